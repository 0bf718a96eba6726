package testkit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// Acked is one result that was answered 2xx.
type Acked struct {
	EventID       uuid.UUID
	CorrelationID uuid.UUID
	Payload       [sha256.Size]byte // SHA-256 of the bytes of `result`
	Conn          int               // connection that sent it
	Attempts      int               // 1 where the first answer came
}

// LoadConfig says what a Load sends.
type LoadConfig struct {
	Socket string
	Conns  int    // connections, each sends one result after the other; at least 1
	Count  int    // results per connection; 0: until ctx ends
	Sizes  []int  // about how many bytes a payload has, in turn; empty: 100
	Keys   int    // correlation IDs per connection, in turn; 0: a new one for each result
	Rate   int    // results per second of all connections at most; 0: as fast as they are answered
	Query  string // added to /v1/results, for instance "wait=published&timeout=5s"
}

// Load posts results as clients do: whatever went wrong, a result is sent again
// with the same event_id until it is answered 2xx. A correlation ID belongs to
// one connection, so the order of acknowledgement is its order of acceptance.
type Load struct {
	cfg   LoadConfig
	group *errgroup.Group
	turns <-chan time.Time // nil: nobody waits for a turn

	mu      sync.Mutex
	acked   []Acked
	doubt   []uuid.UUID
	changed chan struct{} // closed and replaced at every change
}

// StartLoad starts a load that runs until its results are acknowledged or ctx
// ends, at the latest with the test.
func StartLoad(ctx context.Context, t testing.TB, cfg LoadConfig) *Load {
	t.Helper()
	if len(cfg.Sizes) == 0 {
		cfg.Sizes = []int{100}
	}
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	l := &Load{cfg: cfg, group: group, changed: make(chan struct{})}
	if cfg.Rate > 0 {
		ticker := time.NewTicker(time.Second / time.Duration(cfg.Rate))
		t.Cleanup(ticker.Stop)
		l.turns = ticker.C
	}
	for conn := range max(cfg.Conns, 1) {
		client := SocketClient(t, cfg.Socket)
		client.Timeout = 30 * time.Second
		group.Go(func() error {
			defer client.CloseIdleConnections() // a connected client holds a sidecar back that is told to end
			return l.send(ctx, client, conn)
		})
	}
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("load: %v", err)
		}
	})
	return l
}

// Wait waits for the load's end. The end of its ctx is none of its errors; a
// result that can never be accepted (4xx) is.
func (l *Load) Wait() error { return l.group.Wait() }

// Acked is what was acknowledged so far, in order.
func (l *Load) Acked() []Acked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Acked(nil), l.acked...)
}

// Doubtful are the event IDs that were sent and not acknowledged before ctx
// ended: each may or may not have been accepted.
func (l *Load) Doubtful() []uuid.UUID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]uuid.UUID(nil), l.doubt...)
}

// AwaitAcked waits until n results are acknowledged.
func (l *Load) AwaitAcked(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		have, changed := len(l.acked), l.changed
		l.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d results acknowledged: %w", have, n, context.Cause(ctx))
		}
	}
}

func (l *Load) send(ctx context.Context, client *http.Client, conn int) error {
	defer client.CloseIdleConnections() // a sidecar that ends waits for its clients to go
	var keys []uuid.UUID
	for range l.cfg.Keys {
		keys = append(keys, uuid.New())
	}
	for i := 0; ctx.Err() == nil && (l.cfg.Count == 0 || i < l.cfg.Count); i++ {
		if l.turns != nil {
			select {
			case <-l.turns:
			case <-ctx.Done():
				return nil
			}
		}
		a := Acked{EventID: uuid.New(), CorrelationID: uuid.New(), Conn: conn}
		if len(keys) > 0 {
			a.CorrelationID = keys[i%len(keys)]
		}
		payload := payload(conn, i, l.cfg.Sizes[i%len(l.cfg.Sizes)])
		a.Payload = sha256.Sum256(payload)
		if err := l.sendUntilAcked(ctx, client, &a, event(a, payload)); err != nil {
			return err
		}
	}
	return nil
}

// sendUntilAcked returns nil when a is acknowledged, or in doubt because ctx ended.
func (l *Load) sendUntilAcked(ctx context.Context, client *http.Client, a *Acked, body []byte) error {
	err := poll(ctx, func(ctx context.Context) error {
		a.Attempts++
		return l.post(ctx, client, body)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	switch {
	case err == nil:
		l.acked = append(l.acked, *a)
	case ctx.Err() != nil:
		l.doubt = append(l.doubt, a.EventID)
		return nil
	}
	return err
}

// errRefused ends the sending of a result: it is the test that is wrong, or the sidecar.
var errRefused = fmt.Errorf("refused for good: %w", errEnded)

func (l *Load) post(ctx context.Context, client *http.Client, body []byte) error {
	url := "http://sidecar/v1/results"
	if l.cfg.Query != "" {
		url += "?" + l.cfg.Query
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return errors.Join(errRefused, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode/100 == 2:
		return err // half an answer is none: it is sent again
	case resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s: %s", errRefused, resp.Status, answer)
	default:
		return fmt.Errorf("%s: %s", resp.Status, answer)
	}
}

// payload is an object that a careless way through would alter: a number beyond
// float64, keys out of order, spaces, an escape that need not be one.
func payload(conn, i, size int) []byte {
	head := fmt.Sprintf(`{"z": 12345678901234567890.10, "conn":%d,"i":%d, "a":"\u0061é","fill":"`, conn, i)
	return []byte(head + strings.Repeat("x", max(0, size-len(head)-2)) + `"}`)
}

func event(a Acked, payload []byte) []byte {
	return fmt.Appendf(nil, `{"event_id":"%s","correlation_id":"%s","workflow_id":"load","workflow_run_id":"load-%d","status":"success","result":%s}`,
		a.EventID, a.CorrelationID, a.Conn, payload)
}
