package ipc

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/google/uuid"
)

const (
	resultsPath = "/v1/results"
	batchPath   = "/v1/results:batch"
	retrySuffix = ":retry"
)

// ServeHTTP routes. The mux of net/http knows no "{event_id}:retry", and answers
// unknown paths with plain text.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.opts.Access.allows(peerFrom(r.Context())) {
		w.Header().Set("Connection", "close") // there is room for few strangers
		s.refuse(w, newProblem(http.StatusForbidden, "forbidden", "not allowed", "this peer's UID and GID are not on the sidecar's list"))
		return
	}
	if m, known := s.routes[r.URL.Path]; known {
		s.dispatch(w, r, m)
	} else if rest, one := strings.CutPrefix(r.URL.Path, resultsPath+"/"); one {
		s.routeResult(w, r, rest)
	} else {
		s.refuse(w, newProblem(http.StatusNotFound, "unknown-path", "unknown path", "see GET /v1/status, POST /v1/results"))
	}
}

// makeRoutes returns what is at each path but those of single results.
func (s *Server) makeRoutes() map[string]methods {
	routes := map[string]methods{
		resultsPath: {http.MethodPost: s.accepts(s.postResult), http.MethodGet: s.listResults},
		batchPath:   {http.MethodPost: s.accepts(s.postBatch)},
	}
	for _, path := range []string{"/v1/status", "/v1/history", "/healthz", "/readyz", "/metrics"} {
		routes[path] = methods{http.MethodGet: func(w http.ResponseWriter, r *http.Request) { s.opts.Observe.ServeHTTP(w, r) }}
	}
	return routes
}

func (s *Server) routeResult(w http.ResponseWriter, r *http.Request, rest string) {
	text, retry := strings.CutSuffix(rest, retrySuffix)
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 {
		s.refuse(w, newProblem(http.StatusNotFound, "unknown-path", "unknown path", "the last segment must be an event_id (a UUID of 36 characters)"))
		return
	}
	with := func(f func(http.ResponseWriter, *http.Request, uuid.UUID)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { f(w, r, id) }
	}
	if retry {
		s.dispatch(w, r, methods{http.MethodPost: s.operator(s.plainly(with(s.retryResult)))})
		return
	}
	s.dispatch(w, r, methods{http.MethodGet: with(s.getResult), http.MethodDelete: s.operator(s.plainly(with(s.purgeResult)))})
}

type methods map[string]http.HandlerFunc

func (s *Server) dispatch(w http.ResponseWriter, r *http.Request, m methods) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // RFC 9110, 9.3.2; net/http leaves the content away
	}
	if h, ok := m[method]; ok {
		h(w, r)
		return
	}
	allowed := slices.Collect(maps.Keys(m))
	if _, reads := m[http.MethodGet]; reads {
		allowed = append(allowed, http.MethodHead)
	}
	slices.Sort(allowed)
	w.Header()["Allow"] = allowed
	s.refuse(w, newProblem(http.StatusMethodNotAllowed, "method", "method not allowed", r.Method+" is not known here; the Allow header lists what is"))
}

// operator lets only operators through.
func (s *Server) operator(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.opts.Access.isOperator(peerFrom(r.Context())) {
			s.refuse(w, newProblem(http.StatusForbidden, "forbidden", "not an operator", "retry and purge are for the UIDs that --operator-uid lists"))
			return
		}
		h(w, r)
	}
}

// refuse answers with a problem, counts it, and logs the cause where it is ours.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	s.note(writeProblem(w, err), err)
}

func (s *Server) note(p *problem, cause error) {
	s.opts.Metrics.Rejected.WithLabelValues(p.name).Inc()
	if p.Status >= http.StatusInternalServerError && s.logged.due(p.name) {
		s.opts.Log.Warn("request failed", "status", p.Status, "problem", p.name, "error", cause)
	}
}
