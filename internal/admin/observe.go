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
	Metrics prometheus.Gatherer
}

// Observe serves GET /healthz, /readyz, /v1/status and /metrics.
func Observe(src Sources) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { probe(w, src.Alive(), "") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { probe(w, src.Ready(), src.Broker()) })
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, src.Status(r.Context()))
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(src.Metrics, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}))
	return mux
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
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone is no error of ours
}
