// Package admin tells how the sidecar is: probes, metrics and status, for
// kubelet, Prometheus and people. It takes no results and changes nothing.
package admin

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Sources are what Observe tells.
type Sources struct {
	Alive   func() error              // nil while the loops run
	Ready   func() error              // nil while results can be accepted; Kafka does not decide it
	Broker  func() string             // how the broker stands, told with the readiness
	Status  func(context.Context) any // a JSON object
	History func() any                // likewise: the last minutes
	Metrics prometheus.Gatherer
}

// maxScrapes bounds the readings of /metrics at one time; one more gets 503.
const maxScrapes = 8

// Observe serves GET and HEAD of /healthz, /readyz, /v1/status, /v1/history and /metrics, and
// nothing else: another path is 404 and another method 405. A metric that cannot be
// read makes the whole scrape a 500: half of them would look like all.
func Observe(src Sources) http.Handler {
	routes := map[string]http.HandlerFunc{
		"/healthz": func(w http.ResponseWriter, _ *http.Request) { probe(w, src.Alive(), "") },
		"/readyz":  func(w http.ResponseWriter, _ *http.Request) { probe(w, src.Ready(), src.Broker()) },
		"/v1/status": func(w http.ResponseWriter, r *http.Request) {
			writeJSON(w, http.StatusOK, src.Status(r.Context()))
		},
		"/v1/history": func(w http.ResponseWriter, _ *http.Request) {
			writeJSON(w, http.StatusOK, src.History())
		},
		"/metrics": promhttp.HandlerFor(src.Metrics, promhttp.HandlerOpts{
			ErrorHandling: promhttp.HTTPErrorOnError, MaxRequestsInFlight: maxScrapes,
		}).ServeHTTP,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve, known := routes[r.URL.Path]
		switch {
		case !known:
			writeProblem(w, http.StatusNotFound, "there is only the page at /, /healthz, /readyz, /v1/status, /v1/history and /metrics here; results go to the socket")
		case !reads(r):
			refuseMethod(w, r)
		default:
			serve(w, r)
		}
	})
}

// reads tells GET, and HEAD: the same answer without its content, which net/http leaves
// away (RFC 9110, 9.3.2).
func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

func refuseMethod(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", "GET, HEAD")
	writeProblem(w, http.StatusMethodNotAllowed, r.URL.Path+" takes GET and HEAD only")
}

type answer struct {
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
	Broker string `json:"broker,omitempty"`
}

func probe(w http.ResponseWriter, err error, broker string) {
	if err != nil {
		writeJSON(w, http.StatusServiceUnavailable, answer{Reason: err.Error(), Broker: broker})
		return
	}
	writeJSON(w, http.StatusOK, answer{OK: true, Broker: broker})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		writeProblem(w, http.StatusInternalServerError, "the answer cannot be written as JSON: "+err.Error())
		return
	}
	write(w, "application/json", status, body)
}

// problem is an error as RFC 9457 has it; its type is about:blank, so the title
// is the status's own.
type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	body, err := json.Marshal(problem{http.StatusText(status), status, detail})
	if err != nil { // strings and a number always marshal
		panic(err)
	}
	write(w, "application/problem+json", status, body)
}

func write(w http.ResponseWriter, contentType string, status int, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone is no error of ours
}
