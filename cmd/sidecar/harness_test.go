package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/ipc"
)

// answered is what a command did.
type answered struct {
	code           int
	stdout, stderr string
}

// sidecarCommand runs the program with args in this process.
func sidecarCommand(t testing.TB, args ...string) answered {
	t.Helper()
	signals := make(chan os.Signal)
	defer close(signals)
	out, errs := newLog(), newLog()
	code := execute(args, signals, out, errs)
	return answered{code, out.String(), errs.String()}
}

// succeed runs a command that must end with status 0, and returns what it printed.
func succeed(t testing.TB, args ...string) string {
	t.Helper()
	a := sidecarCommand(t, args...)
	if a.code != 0 {
		t.Fatalf("sidecar %s: status %d\n%s%s", strings.Join(args, " "), a.code, a.stdout, a.stderr)
	}
	return a.stdout
}

// fail runs a command that must end with a status and say each text on stderr.
func fail(t testing.TB, code int, says []string, args ...string) {
	t.Helper()
	a := sidecarCommand(t, args...)
	if a.code != code {
		t.Errorf("sidecar %s: status %d, want %d\n%s%s", strings.Join(args, " "), a.code, code, a.stdout, a.stderr)
	}
	for _, text := range says {
		if !strings.Contains(a.stderr, text) {
			t.Errorf("sidecar %s does not say %q:\n%s", strings.Join(args, " "), text, a.stderr)
		}
	}
}

// place is where a test's sidecar has its files and its broker.
type place struct {
	t      *testing.T
	dir    string
	broker string
}

func newPlace(t *testing.T, broker string) place {
	t.Helper()
	dir, err := os.MkdirTemp("", "cmd") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return place{t, dir, broker}
}

func (p place) socket() string  { return filepath.Join(p.dir, "s") }
func (p place) dataDir() string { return filepath.Join(p.dir, "data") }

// either are the flags of a command that goes through the socket or to the files.
func (p place) either() []string {
	return []string{"--socket", p.socket(), "--data-dir", p.dataDir()}
}

func (p place) kafka() []string { return []string{"--brokers", p.broker} }

// running is a sidecar that runs in this process.
type running struct {
	place
	signals chan os.Signal
	log     *logBuffer
	done    chan int
	code    int
}

// logBuffer takes what several goroutines write, and tests wait for its text.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
	grew chan struct{} // closed with the next write
}

func newLog() *logBuffer { return &logBuffer{grew: make(chan struct{})} }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.grew)
	b.grew = make(chan struct{})
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits until text is logged.
func (b *logBuffer) await(t testing.TB, text string) {
	t.Helper()
	b.awaitBehind(t, 0, text)
}

// awaitBehind waits until text is logged behind the first n bytes.
func (b *logBuffer) awaitBehind(t testing.TB, n int, text string) {
	t.Helper()
	timeout := time.NewTimer(time.Minute)
	defer timeout.Stop()
	for {
		b.mu.Lock()
		have, grew := b.text.String(), b.grew
		b.mu.Unlock()
		if strings.Contains(have[n:], text) {
			return
		}
		select {
		case <-grew:
		case <-timeout.C:
			t.Fatalf("%q was never logged:\n%s", text, have)
		}
	}
}

// run starts a sidecar and waits until it is ready. It ends with the test.
func (p place) run(args ...string) *running {
	p.t.Helper()
	r := &running{place: p, signals: make(chan os.Signal), log: newLog(), done: make(chan int, 1), code: -1}
	all := append([]string{"run", "--linger", "0s", "--shutdown-timeout", "30s"}, p.either()...)
	all = append(append(all, p.kafka()...), args...)
	go func() { r.done <- execute(all, r.signals, newLog(), r.log) }()
	p.t.Cleanup(func() {
		if r.code < 0 {
			close(r.kill())
		}
		if p.t.Failed() {
			p.t.Logf("the sidecar's log:\n%s", r.log)
		}
	})
	r.log.await(p.t, "msg=ready")
	return r
}

// kill ends a sidecar that may be waiting for its broker.
func (r *running) kill() chan os.Signal {
	for range 2 {
		select {
		case r.signals <- syscall.SIGTERM:
		case r.code = <-r.done:
			return r.signals
		}
	}
	r.code = <-r.done
	return r.signals
}

// end sends SIGTERM and returns the exit status.
func (r *running) end() int {
	r.t.Helper()
	r.signals <- syscall.SIGTERM
	return r.wait()
}

func (r *running) wait() int {
	r.t.Helper()
	select {
	case r.code = <-r.done:
		close(r.signals)
		return r.code
	case <-time.After(time.Minute):
		r.t.Fatalf("the sidecar did not end:\n%s", r.log)
		return -1
	}
}

// sent is a result that a test handed over.
type sent struct{ event, correlation uuid.UUID }

// post hands over a result with this payload and status.
func (p place) post(payload, status string) sent {
	p.t.Helper()
	s := sent{uuid.New(), uuid.New()}
	errText := "null"
	if status == "error" {
		errText = `"boom"`
	}
	cl := ipc.NewClient(p.socket())
	defer cl.Close()
	code, body, err := cl.Post(p.t.Context(), fmt.Appendf(nil, `{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","result":%s,"status":%q,"error":%s}`, s.event, s.correlation, payload, status, errText))
	if err != nil || code != http.StatusCreated {
		p.t.Fatalf("%d %s %v", code, body, err)
	}
	return s
}

// settle waits until a result is published or parked.
func (p place) settle(s sent) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		cl := ipc.NewClient(p.socket())
		e, err := cl.Get(ctx, s.event)
		cl.Close()
		if err == nil && e.State != "pending" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.t.Fatalf("%s is still pending", s.event)
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}
