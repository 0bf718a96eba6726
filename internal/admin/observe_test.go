package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// sources are those of a sidecar that is well; a test spoils one.
func sources() Sources {
	return Sources{
		Alive:   func() error { return nil },
		Ready:   func() error { return nil },
		Broker:  func() string { return "down: connection refused" },
		Status:  func(context.Context) any { return map[string]int{"pending": 3} },
		History: func() any { return map[string]int{"points": 300} },
		Metrics: prometheus.NewRegistry(),
	}
}

func request(t *testing.T, h http.Handler, method, target string) (status int, header http.Header, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, target, nil))
	data, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, w.Result().Header, string(data)
}

func TestObserveAnswers(t *testing.T) {
	sick := errors.New("the disk is gone")
	tests := []struct {
		name   string
		spoil  func(*Sources)
		method string
		path   string
		status int
		body   string // contained in the answer
	}{
		{"alive", nil, "GET", "/healthz", 200, `{"ok":true}`},
		{"dead", func(s *Sources) { s.Alive = func() error { return sick } }, "GET", "/healthz", 503, `"reason":"the disk is gone"`},
		{"ready without a broker", nil, "GET", "/readyz", 200, `"broker":"down: connection refused"`},
		{"not ready", func(s *Sources) { s.Ready = func() error { return sick } }, "GET", "/readyz", 503, `{"ok":false,"reason":"the disk is gone","broker":"down: connection refused"}`},
		{"status", nil, "GET", "/v1/status", 200, `{"pending":3}`},
		{"history", nil, "GET", "/v1/history", 200, `{"points":300}`},
		{"status that is no JSON", func(s *Sources) { s.Status = func(context.Context) any { return make(chan int) } }, "GET", "/v1/status", 500, "unsupported type"},
		{"takes no results", nil, "POST", "/v1/results", 404, ""},
		{"shows no results", nil, "GET", "/v1/results", 404, ""},
		{"no pprof", nil, "GET", "/debug/pprof/", 404, ""},
		{"no root", nil, "GET", "/", 404, ""},
		{"other method", nil, "POST", "/healthz", 405, ""},
		{"HEAD", nil, "HEAD", "/healthz", 200, ""},
		{"HEAD of the dead", func(s *Sources) { s.Alive = func() error { return sick } }, "HEAD", "/healthz", 503, ""},
		{"HEAD of an unknown path", nil, "HEAD", "/nothing", 404, ""},
		{"HEAD of metrics", nil, "HEAD", "/metrics", 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := sources()
			if tt.spoil != nil {
				tt.spoil(&src)
			}
			status, header, body := request(t, Observe(src), tt.method, tt.path)
			if status != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%d %s, want %d with %s", status, body, tt.status, tt.body)
			}
			if status == http.StatusMethodNotAllowed && header.Get("Allow") != "GET, HEAD" {
				t.Errorf("Allow: %q, want GET, HEAD", header.Get("Allow"))
			}
			if status >= 400 && status != 503 && header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("Content-Type %q, want a problem", header.Get("Content-Type"))
			}
			if !json.Valid([]byte(body)) && tt.path != "/metrics" {
				t.Errorf("%q is not JSON", body)
			}
		})
	}
}

func TestObserveServesMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "seen_total", Help: "Seen."})
	counter.Add(3)
	reg.MustRegister(counter)
	src := sources()
	src.Metrics = reg
	if status, _, body := request(t, Observe(src), "GET", "/metrics"); status != 200 || !strings.Contains(body, "seen_total 3\n") {
		t.Errorf("%d %s", status, body)
	}

	src.Metrics = prometheus.Gatherers{reg, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		return nil, errors.New("the outbox cannot be read")
	})}
	if status, _, body := request(t, Observe(src), "GET", "/metrics"); status != 500 || !strings.Contains(body, "cannot be read") {
		t.Errorf("%d %s, want the error as 500: half the metrics look like all of them", status, body)
	}
}
