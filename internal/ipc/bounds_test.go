package ipc

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// dial opens a connection on which a test writes bytes of its own.
func (h *harness) dial() (net.Conn, *bufio.Reader) {
	h.t.Helper()
	c, err := net.Dial("unix", h.path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() }) // a test may have closed it
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// read reads one answer and checks it against the document as one to a POST.
func read(t *testing.T, r *bufio.Reader) (status int, body string) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func rawPost(target, mediaType string, length int, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, mediaType, length, body)
}

// sendRaw sends a request with a wrong or slow body, and checks the answer.
func (h *harness) sendRaw(target, mediaType string, length int, body string, closeWrite bool) (int, string) {
	h.t.Helper()
	c, r := h.dial()
	write(h.t, c, rawPost(target, mediaType, length, body))
	if closeWrite {
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			h.t.Fatal(err)
		}
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://sidecar"+target, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := api.check(req, nil, resp, text); err != nil {
		h.t.Error(err)
	}
	return resp.StatusCode, string(text)
}

func TestBodiesThatDoNotComeWhole(t *testing.T) {
	h := start(t, func(s *settings) { s.ReadTimeout = 300 * time.Millisecond })
	for target, mediaType := range map[string]string{"/v1/results": "application/json", "/v1/results:batch": "application/x-ndjson"} {
		if status, body := h.sendRaw(target, mediaType, 500, `{"half":`, true); status != 400 || !strings.Contains(body, "incomplete") {
			t.Errorf("%s, cut off: %d %s", target, status, body)
		}
		if status, body := h.sendRaw(target, mediaType, 500, `{"half":`, false); status != 408 || !strings.Contains(body, "slow") {
			t.Errorf("%s, slow: %d %s", target, status, body)
		}
	}
	h.post(oneEvent()).want(t, 201, "")
	if h.lastSeq() != 1 {
		t.Error("half a body was stored")
	}
}

func TestPipelinedRequests(t *testing.T) {
	h := start(t)
	c, r := h.dial()
	first, second := oneEvent(), oneEvent()
	write(t, c, rawPost("/v1/results", "application/json", len(first), first)+rawPost("/v1/results", "application/json", len(second), second)+
		"GET /v1/results?limit=9 HTTP/1.1\r\nHost: s\r\n\r\n")
	for i, want := range []int{201, 201, 200} {
		if status, body := read(t, r); status != want {
			t.Errorf("answer %d: %d %s", i, status, body)
		}
	}
}

func TestBytesInFlightAreBounded(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxInFlightBytes = 64 << 10 })
	c, r := h.dial()
	body := event([16]byte{1}, `{"x":"`+strings.Repeat("x", 40<<10)+`"}`)
	write(t, c, strings.Replace(rawPost("/v1/results", "application/json", len(body), ""), "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	if status, _ := read(t, r); status != 100 { // its length is held from here on
		t.Fatalf("%d", status)
	}
	large := event([16]byte{2}, `{"x":"`+strings.Repeat("x", 40<<10)+`"}`)
	h.post(large).want(t, 503, "busy")
	h.post(oneEvent()).want(t, 201, "") // a small one fits
	write(t, c, body)
	if status, text := read(t, r); status != 201 {
		t.Errorf("%d %s", status, text)
	}
	if a := h.post(large); a.status/100 != 2 {
		t.Errorf("%s", a.text) // there is room again
	}
}

// TestConnectionsAreBounded: one more waits, it is not refused.
func TestConnectionsAreBounded(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxConnections = 1 })
	c, r := h.dial()
	write(t, c, "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")
	if status, _ := read(t, r); status != 200 {
		t.Fatal(status)
	}
	second, sr := h.dial()
	write(t, second, "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")
	got := make(chan int, 1)
	go func() {
		status := 0
		if resp, err := http.ReadResponse(sr, nil); err == nil {
			status = resp.StatusCode
			resp.Body.Close()
		}
		got <- status
	}()
	write(t, c, "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n") // the first is still served
	if status, _ := read(t, r); status != 200 {
		t.Fatal(status)
	}
	select {
	case status := <-got:
		t.Fatalf("the second connection was served beside the first: %d", status)
	default:
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if status := <-got; status != 200 {
		t.Errorf("the waiting connection was not served: %d", status)
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	h := start(t, func(s *settings) { s.IdleTimeout = 20 * time.Millisecond })
	c, r := h.dial()
	write(t, c, "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")
	if status, _ := read(t, r); status != 200 {
		t.Fatal(status)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("%v", err)
	}
}

// TestShutdownLetsRequestsFinish: what is under way gets its answer.
func TestShutdownLetsRequestsFinish(t *testing.T) {
	h := start(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	h.faults.append = func(_ context.Context, rs []result.Result) ([]outbox.Outcome, error) {
		close(entered)
		<-leave
		return []outbox.Outcome{{Entry: outbox.Entry{Seq: 1, EventID: rs[0].EventID, State: outbox.Pending}}}, nil
	}
	got := make(chan answer, 1)
	go func() {
		a, err := h.try(context.Background(), http.MethodPost, "/v1/results", "application/json", strings.NewReader(oneEvent()))
		if err != nil {
			t.Error(err)
		}
		got <- a
	}()
	<-entered
	h.stop()
	for { // until no new connection is taken
		c, err := net.Dial("unix", h.path)
		if err != nil {
			break
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(leave)
	if a := <-got; a.status != 201 {
		t.Errorf("%+v", a)
	}
}
