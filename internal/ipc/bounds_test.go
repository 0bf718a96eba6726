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

	"github.com/google/uuid"

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

func write(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// read reads one answer and checks it against the document as one to a POST.
func read(t testing.TB, r *bufio.Reader) (status int, body string) {
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

// holding announces a body, and returns once the server has begun to read it.
func (h *harness) holding(target, mediaType string, length int) (net.Conn, *bufio.Reader) {
	h.t.Helper()
	c, r := h.dial()
	write(h.t, c, strings.Replace(rawPost(target, mediaType, length, ""), "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	if status, _ := read(h.t, r); status != 100 {
		h.t.Fatalf("%d", status)
	}
	return c, r
}

func TestBytesInFlightAreBounded(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxInFlightBytes = 100 << 10 })
	payload := `{"x":"` + strings.Repeat("x", 45<<10) + `"}`
	body := event([16]byte{1}, payload)
	c, r := h.holding("/v1/results", "application/json", len(body))
	h.holding("/v1/results", "application/json", len(body))
	large := event([16]byte{2}, payload)
	h.post(large).want(t, 503, "busy")
	h.post(oneEvent()).want(t, 201, "") // a small one fits
	write(t, c, body)
	if status, text := read(t, r); status != 201 {
		t.Errorf("%d %s", status, text)
	}
	h.post(large).want(t, 201, "") // there is room again
}

// TestAnAnnouncementHoldsNobodyBack: what counts is what has come.
func TestAnAnnouncementHoldsNobodyBack(t *testing.T) {
	h := start(t)
	for range 8 {
		h.holding("/v1/results:batch", "application/x-ndjson", 8<<20)
	}
	h.post(oneEvent()).want(t, 201, "")
}

// TestBodiesOfUnknownLength are taken though the limit of one exceeds the bound of all.
func TestBodiesOfUnknownLength(t *testing.T) {
	h := start(t, func(s *settings) {
		s.MaxInFlightBytes = 1 << 20
		s.MaxResultBytes = func() int64 { return 8 << 20 }
	})
	for n, want := range map[int]int{10: 201, 200 << 10: 201, 600 << 10: 413} {
		payload := `{"x":"` + strings.Repeat("x", n) + `"}`
		chunked := io.MultiReader(strings.NewReader(event(uuid.New(), payload))) // hides its length
		a := h.call(http.MethodPost, "/v1/results", "application/json", chunked)
		if a.status != want {
			t.Errorf("%d bytes, chunked: %s, want %d", n, a.text, want)
		}
	}
	// It is not the topic that refuses this one.
	a := h.post(event(uuid.New(), `{"x":"`+strings.Repeat("x", 600<<10)+`"}`))
	if a.status != 413 || a.Limit != 512<<10 || strings.Contains(a.text, "topic") {
		t.Errorf("600 KiB: %s", a.text)
	}
	if !h.srv.bodies.TryAcquire(1 << 20) {
		t.Error("some bytes were not given back")
	}
}

// TestAWaitingBatchHoldsNoBytes: Kafka away must not close the intake.
func TestAWaitingBatchHoldsNoBytes(t *testing.T) {
	h := start(t, func(s *settings) { s.MaxInFlightBytes = 64 << 10 })
	done := make(chan answer, 1)
	go func() {
		a, err := h.try(context.Background(), http.MethodPost, "/v1/results:batch?wait=published&timeout=1m", "application/x-ndjson", strings.NewReader(oneEvent()))
		if err != nil {
			t.Error(err)
		}
		done <- a
	}()
	for h.lastSeq() == 0 {
		time.Sleep(time.Millisecond)
	}
	for !h.srv.bodies.TryAcquire(64 << 10) { // given back while it waits, or never
		time.Sleep(time.Millisecond)
	}
	h.srv.bodies.Release(64 << 10)
	h.publish()
	<-done
}

// TestMalformedChunks are the client's fault, and not worth sending again.
func TestMalformedChunks(t *testing.T) {
	h := start(t)
	c, r := h.dial()
	write(t, c, "POST /v1/results HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	if status, text := read(t, r); status != 400 || !strings.Contains(text, "malformed") {
		t.Errorf("%d %s", status, text)
	}
}

// TestOptionsAsksForAccess as well: net/http would answer it to anybody.
func TestOptionsAsksForAccess(t *testing.T) {
	for _, c := range []struct {
		uids []uint32
		want int
	}{{nil, 404}, {[]uint32{1 << 30}, 403}} {
		h := start(t, func(s *settings) { s.Access.UIDs = c.uids })
		conn, r := h.dial()
		write(t, conn, "OPTIONS * HTTP/1.1\r\nHost: s\r\n\r\n")
		if status, text := read(t, r); status != c.want {
			t.Errorf("%d %s, want %d", status, text, c.want)
		}
	}
}

// TestHalfClosed: a client that shuts its side down after a whole request hears
// how it ended, as `nc -N` does.
func TestHalfClosed(t *testing.T) {
	h := start(t)
	for range 50 {
		c, r := h.dial()
		body := oneEvent()
		write(t, c, rawPost("/v1/results", "application/json", len(body), body))
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if status, text := read(t, r); status != 201 {
			t.Fatalf("%d %s", status, text)
		}
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
