package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// start runs a server until the test ends and returns its address.
func start(t *testing.T, hosts []string, h http.Handler) (addr string) {
	t.Helper()
	s, err := Listen("127.0.0.1:0", hosts, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if c, err := net.Dial("tcp", s.Addr()); err == nil {
			_ = c.Close()
			t.Error("the address still takes connections after Run")
		}
	})
	return s.Addr()
}

// raw sends a request as text, so that the Host header is the test's own.
func raw(t *testing.T, addr, request string) (status int, body string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: strings.Fields(request)[0]})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestServerChecksTheHost(t *testing.T) {
	addr := start(t, []string{"Sidecar.example", "metrics"}, Observe(sources()))
	tests := map[string]int{
		addr:                   200,
		"127.0.0.1":            200,
		"10.1.2.3:9090":        200,
		"[::1]:9090":           200,
		"[fe80::1]":            200,
		"localhost":            200,
		"LOCALHOST:9090":       200,
		"sidecar.example":      200,
		"SIDECAR.example:80":   200,
		"metrics":              200,
		"evil.example":         403,
		"evil.example:9090":    403,
		"localhost.evil":       403,
		"127.0.0.1.evil:9090":  403,
		"x.sidecar.example":    403,
		"":                     403,
		"[::1]evil":            403,
		"metrics:9090:metrics": 403,
	}
	for host, want := range tests {
		t.Run(host, func(t *testing.T) {
			status, body := raw(t, addr, fmt.Sprintf("GET /healthz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host))
			if status != want {
				t.Errorf("%d %s, want %d", status, body, want)
			}
		})
	}
	if status, _ := raw(t, addr, "GET /healthz HTTP/1.0\r\n\r\n"); status != 403 {
		t.Errorf("without a Host header: %d, want 403", status)
	}
}

func TestServerTakesNoResults(t *testing.T) {
	addr := start(t, nil, Observe(sources()))
	body := strings.Repeat("x", 100)
	status, _ := raw(t, addr, fmt.Sprintf("POST /v1/results HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	if status != 404 {
		t.Errorf("status %d, want 404", status)
	}
}

// TestServerAnswersHEAD as it answers GET, without the content (RFC 9110, 9.3.2).
func TestServerAnswersHEAD(t *testing.T) {
	addr := start(t, nil, Page(Observe(sources()), nil))
	for _, path := range []string{"/", "/page.js", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/history"} {
		status, body := raw(t, addr, "HEAD "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if status != 200 || body != "" {
			t.Errorf("HEAD %s: %d %q, want 200 and no content", path, status, body)
		}
		// What the next one gets is not what HEAD left.
		if status, body := raw(t, addr, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); status != 200 || (body == "") != (path == "/metrics") {
			t.Errorf("GET %s: %d %q, want 200 and content", path, status, body)
		}
	}
}

func TestServerRefusesAHugeHeader(t *testing.T) {
	addr := start(t, nil, Observe(sources()))
	status, _ := raw(t, addr, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("x", 64<<10)+"\r\n\r\n")
	if status != 431 {
		t.Errorf("status %d, want 431", status)
	}
}

func TestServerEndsWithARequestInHand(t *testing.T) {
	entered := make(chan struct{})
	left := make(chan struct{})
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done() // a scrape that would take for ever
		close(left)
	})
	s, err := Listen("127.0.0.1:0", nil, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	<-left
}

func TestListenTellsWhichAddressIsTaken(t *testing.T) {
	addr := start(t, nil, Observe(sources()))
	_, err := Listen(addr, nil, Observe(sources()), slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an error that names %s", err, addr)
	}
}

// TestACrowdLetsTheNextIn: so many connections are open and no more, idle ones and then
// the oldest give way, and a probe is answered all the same. Else a crowd here would
// take the descriptors that the socket's clients need.
func TestACrowdLetsTheNextIn(t *testing.T) {
	s, err := Listen("127.0.0.1:0", nil, Observe(sources()), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = 0, 0, 0 // none of them closes what is to be closed here
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() { cancel(); <-done }()
	dial := func() *bufio.ReadWriter {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		return bufio.NewReadWriter(bufio.NewReader(c), bufio.NewWriter(c))
	}
	send := func(c *bufio.ReadWriter, text string) {
		t.Helper()
		if _, err := c.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	answered := func(c *bufio.ReadWriter) {
		t.Helper()
		resp, err := http.ReadResponse(c.Reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode, err)
		}
	}
	closed := func(c *bufio.ReadWriter, what string) {
		t.Helper()
		if _, err := c.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%s is still open: %v", what, err)
		}
	}
	const half, rest = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n", "\r\n"
	probe := func() *bufio.ReadWriter {
		c := dial()
		send(c, half+rest)
		answered(c)
		return c
	}

	oldest := dial()
	send(oldest, half)
	idle := probe()
	s.crowd.awaitIdle(t, 1)
	for range maxConnections - 2 {
		send(dial(), half)
	}
	last := probe() // full: the next is let in all the same
	closed(idle, "the idle one")
	s.crowd.awaitIdle(t, 1)
	send(dial(), half)
	closed(last, "the one that had become idle")
	send(dial(), half)
	closed(oldest, "the oldest")
}

// awaitIdle waits until n connections are known to be idle: they are a moment after
// their answer has been read.
func (c *crowd) awaitIdle(t *testing.T, n int) {
	t.Helper()
	for count := -1; count != n; runtime.Gosched() {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		count = len(c.idle)
		c.mu.Unlock()
	}
}
