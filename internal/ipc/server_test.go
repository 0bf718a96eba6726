package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"workflow-results-sidecar/internal/admin"
	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// api is the document against which every exchange is checked.
var api *document

func TestMain(m *testing.M) {
	if target := os.Getenv("IPC_TEST_SOCKET"); target != "" {
		os.Exit(beAnotherUser(target))
	}
	var err error
	if api, err = loadDocument("../../api/openapi.yaml"); err != nil {
		fmt.Fprintln(os.Stderr, "api/openapi.yaml:", err)
		os.Exit(1)
	}
	code := m.Run()
	if code == 0 {
		code = verifyDocument(api, flag.Lookup("test.run").Value.String() == "")
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// harness is a server on a real socket over a real outbox.
type harness struct {
	t      testing.TB
	path   string
	store  *outbox.Outbox
	faults *faults
	client *http.Client
	srv    *Server
	stop   context.CancelFunc
	done   chan error
}

// faults lets a test take the place of the store's Append or Get.
type faults struct {
	*outbox.Outbox
	append func(context.Context, []result.Result) ([]outbox.Outcome, error)
	get    error
}

func (f *faults) Append(ctx context.Context, rs []result.Result) ([]outbox.Outcome, error) {
	if f.append != nil {
		return f.append(ctx, rs)
	}
	return f.Outbox.Append(ctx, rs)
}

func (f *faults) Get(ctx context.Context, id uuid.UUID) (outbox.Entry, error) {
	if f.get != nil {
		return outbox.Entry{}, f.get
	}
	return f.Outbox.Get(ctx, id)
}

func (f *faults) List(ctx context.Context, filter outbox.Filter) ([]outbox.Entry, error) {
	if f.get != nil {
		return nil, f.get
	}
	return f.Outbox.List(ctx, filter)
}

func (f *faults) Retry(ctx context.Context, id uuid.UUID) (outbox.Entry, error) {
	if f.get != nil {
		return outbox.Entry{}, f.get
	}
	return f.Outbox.Retry(ctx, id)
}

func (f *faults) Purge(ctx context.Context, id uuid.UUID) error {
	if f.get != nil {
		return f.get
	}
	return f.Outbox.Purge(ctx, id)
}

// settings are what a test changes before the start.
type settings struct {
	Options
	outbox outbox.Options
	alive  error
	broken bool // metrics that cannot be read
}

func start(t testing.TB, change ...func(*settings)) *harness {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	registry := prometheus.NewRegistry()
	m := metrics.New(registry)
	s := settings{Options: DefaultOptions(), outbox: outbox.DefaultOptions()}
	s.outbox.Dir, s.outbox.Log, s.outbox.Metrics = t.TempDir(), log, m
	s.Path = filepath.Join(shortDir(t), "s")
	s.Access = Access{Operators: []uint32{uint32(os.Getuid())}}
	s.MaxResultBytes = func() int64 { return 64 << 10 }
	s.Log, s.Metrics = log, m
	for _, f := range change {
		f(&s)
	}
	if s.broken {
		registry.MustRegister(brokenCollector{})
	}
	store, err := outbox.Open(t.Context(), s.outbox)
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, path: s.Path, store: store, faults: &faults{Outbox: store}, done: make(chan error, 2)}
	s.Store = h.faults
	s.Observe = admin.Observe(admin.Sources{
		Alive: func() error { return s.alive }, Ready: store.Ready, Broker: func() string { return "connecting" },
		Status: h.status, History: noHistory, Metrics: registry,
	})
	srv, err := Listen(s.Options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	h.srv, h.stop = srv, stop
	go func() { h.done <- store.Run(ctx) }()
	go func() { h.done <- srv.Run(ctx, context.Background()) }()
	h.client = &http.Client{Transport: &checked{t: t, next: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", s.Path)
	}}}}
	t.Cleanup(h.close)
	return h
}

func (h *harness) close() {
	h.client.CloseIdleConnections()
	h.stop()
	if err := errors.Join(<-h.done, <-h.done, h.store.Close()); err != nil {
		h.t.Error(err)
	}
}

// status is what cmd/sidecar tells, as far as a test of the socket has it.
func (h *harness) status(ctx context.Context) any {
	st, err := h.store.Stats(ctx)
	if err != nil {
		h.t.Error(err)
	}
	return map[string]any{
		"now": time.Now().UTC(), "version": "test", "started_at": time.Now().UTC(), "socket": h.path, "data_dir": "d", "brokers": []string{}, "ending": false,
		"verdict": map[string]any{"word": "WELL", "sentence": "", "level": "well"}, "topic": "t", "shows": map[string]any{"results": false, "payloads": false},
		"publisher": map[string]any{"state": "connecting", "delivery": "exactly-once", "topics": []any{}},
		"outbox": map[string]any{
			"id": st.ID, "pending": st.PendingRows, "pending_bytes": st.PendingBytes, "oldest_pending_seconds": 0, "full": false, "parked": st.ParkedRows,
			"parked_bytes": st.ParkedBytes, "held": st.HeldRows, "held_bytes": st.HeldBytes, "max_rows": st.MaxRows, "max_bytes": st.MaxBytes,
			"last_seq": st.LastSeq, "published_seq": st.PublishedSeq, "file_bytes": st.FileBytes, "wal_bytes": st.WALBytes,
		},
	}
}

// noHistory is what cmd/sidecar tells that remembers nothing yet.
func noHistory() any {
	return map[string]any{"step_seconds": 2, "points": 300, "newest_at": time.Time{},
		"accepted_per_second": []float64{}, "published_per_second": []float64{}, "oldest_pending_seconds": []float64{}, "pending": []int64{}}
}

// checked holds every exchange against the document.
type checked struct {
	t    testing.TB
	next *http.Transport
}

func (c *checked) CloseIdleConnections() { c.next.CloseIdleConnections() }

func (c *checked) RoundTrip(req *http.Request) (*http.Response, error) {
	var sent []byte // nil where the length is not told
	if req.Body == nil {
		sent = []byte{}
	}
	if req.GetBody != nil {
		r, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		if sent, err = io.ReadAll(r); err != nil {
			return nil, err
		}
	}
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	if err := api.check(req, sent, resp, body); err != nil {
		c.t.Error(err)
	}
	return resp, nil
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	text   string
	// The fields of receipts, entries and problems.
	EventID   uuid.UUID `json:"event_id"`
	Seq       int64     `json:"seq"`
	State     string    `json:"state"`
	Duplicate bool      `json:"duplicate"`
	Topic     *string   `json:"topic"`
	Offset    *int64    `json:"offset"`
	Reason    *string   `json:"reason"`
	Type      string    `json:"type"`
	Detail    string    `json:"detail"`
	Errors    []struct {
		Field string `json:"field"`
	} `json:"errors"`
	Held   *View           `json:"held"`
	Limit  int64           `json:"limit_bytes"`
	Size   int64           `json:"size_bytes"`
	Result json.RawMessage `json:"result"`
}

// call sends a request; body nil is none.
func (h *harness) call(method, target, mediaType string, body io.Reader) answer {
	h.t.Helper()
	a, err := h.try(h.t.Context(), method, target, mediaType, body)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *harness) try(ctx context.Context, method, target, mediaType string, body io.Reader) (a answer, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://sidecar"+target, body)
	if err != nil {
		return a, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	return h.send(req)
}

func (h *harness) send(req *http.Request) (a answer, err error) {
	resp, err := h.client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, err
	}
	a.status, a.header, a.text = resp.StatusCode, resp.Header, string(text)
	if req.Method != http.MethodHead && strings.Contains(resp.Header.Get("Content-Type"), "json") && !strings.Contains(resp.Header.Get("Content-Type"), "ndjson") {
		if err := json.Unmarshal(text, &a); err != nil && !strings.HasPrefix(a.text, "{\"results\"") {
			return a, fmt.Errorf("%w: %s", err, text)
		}
	}
	return a, nil
}

func (h *harness) post(body string) answer {
	h.t.Helper()
	return h.call(http.MethodPost, "/v1/results", "application/json", strings.NewReader(body))
}

func (h *harness) get(target string) answer {
	h.t.Helper()
	return h.call(http.MethodGet, target, "", nil)
}

// event is a valid result of a new event ID, with the payload.
func event(id uuid.UUID, payload string) string {
	return fmt.Sprintf(`{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":%s}`, id, correlation, payload)
}

const correlation = "0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e"

func oneEvent() string { return event(uuid.New(), `{"n":1}`) }

// publish says, as the publisher does, that everything pending is published.
func (h *harness) publish() {
	h.t.Helper()
	rows, err := h.store.Next(h.t.Context(), h.store.Proven(), 10_000, 1<<30)
	if err != nil || len(rows) == 0 {
		h.t.Fatalf("nothing to publish: %v", err)
	}
	p := outbox.Publication{Through: rows[len(rows)-1].Seq, At: time.Now(), Topic: "results"}
	for i, r := range rows {
		p.Placements = append(p.Placements, outbox.Placement{Seq: r.Seq, Partition: 2, Offset: int64(100 + i)})
	}
	h.store.MarkPublished(p)
}

// park parks the oldest pending result.
func (h *harness) park() {
	h.t.Helper()
	rows, err := h.store.Next(h.t.Context(), h.store.Proven(), 1, 1<<30)
	if err != nil || len(rows) == 0 {
		h.t.Fatalf("nothing to park: %v", err)
	}
	if err := h.store.Park(h.t.Context(), rows[0].Seq, "Kafka refuses the record"); err != nil {
		h.t.Fatal(err)
	}
}

// want fails unless the answer has a status and, for a problem, a name.
func (a answer) want(t testing.TB, status int, problem string) {
	t.Helper()
	if a.status != status || problem != "" && a.Type != problemType+problem {
		t.Errorf("got %d, want %d %s: %s", a.status, status, problem, a.text)
	}
	if retry := a.header.Get("Retry-After"); (status == 429 || status >= 500) && a.Type != "" && retry == "" {
		t.Errorf("%d without Retry-After: %s", status, a.text)
	}
}

type brokenCollector struct{}

func (brokenCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- prometheus.NewDesc("broken", "Cannot be read.", nil, nil)
}

func (brokenCollector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(prometheus.NewDesc("broken", "Cannot be read.", nil, nil), errors.New("unreadable"))
}
