package testkit

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
)

// flakyIntake takes results over a Unix socket and, of each, answers the first
// two attempts badly: 503, then a broken connection after it was accepted.
type flakyIntake struct {
	mu       sync.Mutex
	attempts map[uuid.UUID]int
	records  []*kgo.Record // as a publisher would make them
}

func (f *flakyIntake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var event struct {
		EventID       uuid.UUID `json:"event_id"`
		CorrelationID uuid.UUID `json:"correlation_id"`
	}
	if err := json.Unmarshal(body, &event); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attempts[event.EventID]++
	switch f.attempts[event.EventID] {
	case 1:
		w.WriteHeader(http.StatusServiceUnavailable)
	case 2:
		f.records = append(f.records, record(event.EventID, event.CorrelationID, body, len(f.records)))
		panic(http.ErrAbortHandler) // the client sees a broken connection
	default:
		w.WriteHeader(http.StatusOK)
	}
}

func record(id, correlation uuid.UUID, value []byte, offset int) *kgo.Record {
	return &kgo.Record{Key: []byte(correlation.String()), Value: value, Offset: int64(offset),
		Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(id.String())}}}
}

func serve(t *testing.T, h http.Handler) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}}
	srv.Start()
	t.Cleanup(srv.Close)
	return socket
}

func TestLoadSendsAgainUntilAcknowledged(t *testing.T) {
	intake := &flakyIntake{attempts: map[uuid.UUID]int{}}
	l := StartLoad(t.Context(), t, LoadConfig{Socket: serve(t, intake), Conns: 3, Count: 4, Keys: 2, Sizes: []int{10, 5000}})
	if err := l.Wait(); err != nil {
		t.Fatal(err)
	}
	acked := l.Acked()
	if len(acked) != 12 {
		t.Fatalf("%d results acknowledged, want 12", len(acked))
	}
	for _, a := range acked {
		if a.Attempts != 3 {
			t.Errorf("event %s took %d attempts, want 3", a.EventID, a.Attempts)
		}
	}
	CheckExactlyOnce(t, acked, intake.records)
}

func TestLoadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := StartLoad(ctx, t, LoadConfig{Socket: filepath.Join(t.TempDir(), "nobody"), Conns: 2})
	cancel()
	if err := l.Wait(); err != nil {
		t.Errorf("the end of the context is no error: %v", err)
	}
	if n := len(l.Acked()); n > 0 {
		t.Errorf("%d results acknowledged by nobody", n)
	}
	if err := l.AwaitAcked(ctx, 1); err == nil {
		t.Error("AwaitAcked found a result that nobody acknowledged")
	}
}

func TestLoadStopsAtARefusal(t *testing.T) {
	socket := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "workflow_id is missing", http.StatusUnprocessableEntity)
	}))
	l := &Load{cfg: LoadConfig{Socket: socket, Sizes: []int{1}}, changed: make(chan struct{})}
	if err := l.send(t.Context(), SocketClient(t, socket), 0); !errors.Is(err, errRefused) {
		t.Errorf("got %v, want a refusal", err)
	}
}
