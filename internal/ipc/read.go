package ipc

import (
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ReadResults serves GET /v1/results and GET /v1/results/{event_id} as the socket
// does, and nothing else, to whoever is let in by the address that it is put on:
// nobody's UID is known there. Of opts it needs Store, ShowPayload, Log and Metrics.
func ReadResults(opts Options) http.Handler {
	s := &Server{opts: opts, logged: interval{last: make(map[string]time.Time)}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, one := strings.CutPrefix(r.URL.Path, resultsPath+"/")
		id, err := uuid.Parse(rest)
		switch {
		case r.URL.Path == resultsPath:
			s.dispatch(w, r, methods{http.MethodGet: s.listResults})
		case one && err == nil && len(rest) == 36:
			s.dispatch(w, r, methods{http.MethodGet: func(w http.ResponseWriter, r *http.Request) { s.getResult(w, r, id) }})
		default:
			s.refuse(w, newProblem(http.StatusNotFound, "unknown-path", "unknown path", "the last segment must be an event_id (a UUID of 36 characters); only the socket takes results, retries and purges"))
		}
	})
}
