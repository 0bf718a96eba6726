// Package page tries the admin address's page in a real browser, against the
// real binary. It is a module of its own: the browser's driver is no part of the
// product.
package page

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is one sidecar's place; it keeps its addresses over restarts.
type world struct {
	t      *testing.T
	bin    string
	socket string
	data   string
	broker string
	admin  string
	flags  []string
}

// newWorld is a sidecar with an embedded broker, unless broker says where one is.
func newWorld(t *testing.T, broker string, flags ...string) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "page") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, bin: testkit.Build(t), socket: filepath.Join(dir, "s"), data: filepath.Join(dir, "data"), broker: broker, admin: testkit.FreeAddr(t), flags: flags}
	if broker == "" {
		w.broker, w.flags = testkit.FreeAddr(t), append([]string{"--embedded-broker"}, flags...)
	}
	return w
}

func (w *world) url() string { return "http://" + w.admin + "/" }

// start starts the sidecar and waits until its socket answers.
func (w *world) start(flags ...string) *testkit.Process {
	w.t.Helper()
	p := w.launch(flags...)
	p.WaitReady(w.t, w.socket)
	return p
}

func (w *world) launch(flags ...string) *testkit.Process {
	w.t.Helper()
	return testkit.StartSidecar(w.t, w.bin, slices.Concat([]string{"run", "--socket", w.socket, "--data-dir", w.data, "--brokers", w.broker, "--admin-addr", w.admin,
		"--linger", "0s", "--shutdown-timeout", "30s"}, w.flags, flags)...)
}

// listens waits until the admin address of a sidecar takes connections.
func (w *world) listens(p *testkit.Process) {
	w.t.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	limit := time.After(patience)
	for {
		if c, err := net.Dial("tcp", w.admin); err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-look.C:
		case <-p.Done():
			w.t.Fatalf("the sidecar has ended:\n%s", p.Output())
		case <-limit:
			w.t.Fatal("the admin address takes no connections")
		}
	}
}

// event is a result as a workflow hands it over.
type event struct {
	EventID       string          `json:"event_id"`
	CorrelationID string          `json:"correlation_id"`
	WorkflowID    string          `json:"workflow_id"`
	RunID         string          `json:"workflow_run_id"`
	Status        string          `json:"status"`
	Result        json.RawMessage `json:"result"`
	Error         *string         `json:"error"`
}

func newEvent(payload string) event {
	return event{EventID: uuid.NewString(), CorrelationID: uuid.NewString(), WorkflowID: "invoice", RunID: "run-1", Status: "success", Result: json.RawMessage(payload)}
}

// post hands results over, waiting for publication where query says so.
func (w *world) post(query string, events ...event) {
	w.t.Helper()
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	encoder.SetEscapeHTML(false)
	for _, e := range events {
		if err := encoder.Encode(e); err != nil {
			w.t.Fatal(err)
		}
	}
	client := testkit.SocketClient(w.t, w.socket)
	defer client.CloseIdleConnections()
	resp, err := client.Post("http://sidecar/v1/results:batch"+query, "application/x-ndjson", &lines)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || strings.Contains(string(body), `"problem"`) {
		w.t.Fatalf("%s %.500s %v", resp.Status, body, err)
	}
}

func someEvents(n int) []event {
	events := make([]event, n)
	for i := range events {
		events[i] = newEvent(fmt.Sprintf(`{"n":%d}`, i))
	}
	return events
}
