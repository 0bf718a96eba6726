package ipc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// pair is two servers with an outbox each: the same requests have the same answers.
type pair struct {
	quick, plain *harness
	plainPath    string // here net/http has every connection from its first byte
}

func startPair(t testing.TB) *pair {
	t.Helper()
	quiet := func(s *settings) {
		s.Log, s.outbox.Log = slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler)
	}
	p := &pair{quick: start(t, quiet), plain: start(t, quiet), plainPath: filepath.Join(shortDir(t), "s")}
	l, err := net.Listen("unix", p.plainPath)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.plain.srv.http.Serve(limitConnections(l, 16, Access{})) }()
	t.Cleanup(func() { // before the harnesses end
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return p
}

// seen is an answer without what no two answers share.
type seen struct {
	Status int
	Header http.Header
	Body   string
}

var unlike = regexp.MustCompile(`"(event_id|accepted_at)":"[^"]*"`)

// exchange sends parts, each in a write of its own, then the end of the stream, and
// returns all answers.
func exchange(t testing.TB, path string, parts ...[]byte) []seen {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for _, part := range parts {
			if _, err := c.Write(part); err != nil {
				return // an answer came first: it is read below
			}
		}
		_ = c.(*net.UnixConn).CloseWrite() // likewise
	}()
	var all []seen
	for r := bufio.NewReader(c); ; {
		resp, err := http.ReadResponse(r, nil)
		if err != nil { // the end, in whichever way
			return all
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()                                  // c is closed in the end
		if err != nil && !errors.Is(err, syscall.ECONNRESET) { // which ends it where the request was not read to its end
			t.Fatalf("the answer's body: %v", err)
		}
		if at, dated := resp.Header["Date"]; dated {
			if _, err := http.ParseTime(at[0]); err != nil {
				t.Error(err)
			}
			resp.Header["Date"] = make([]string, len(at))
		}
		all = append(all, seen{resp.StatusCode, resp.Header, unlike.ReplaceAllString(string(body), `"$1":""`)})
	}
}

// compare sends the same to both.
func (p *pair) compare(t testing.TB, parts ...[]byte) []seen {
	t.Helper()
	got, want := exchange(t, p.quick.path, parts...), exchange(t, p.plainPath, parts...)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%.400q\nquick:    %+v\nnet/http: %+v", parts, got, want)
	}
	a, errA := p.quick.store.Stats(t.Context())
	b, errB := p.plain.store.Stats(t.Context())
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	if a.LastSeq != b.LastSeq {
		t.Errorf("%.400q\nquick has taken %d results, net/http %d", parts, a.LastSeq, b.LastSeq)
	}
	return got
}

// post is a request with these lines in its header, each ended, and this body.
func post(header, body string) []byte {
	return []byte("POST /v1/results HTTP/1.1\r\n" + header + "\r\n" + body)
}

// quickSeeds are requests in all forms between the plainest and the broken.
func quickSeeds() [][]byte {
	body := oneEvent
	sized := func(header, body string) []byte {
		return post(fmt.Sprintf("Host: s\r\nContent-Length: %d\r\n%s", len(body), header), body)
	}
	const mediaType = "Content-Type: application/json\r\n"
	get := "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n"
	seeds := [][]byte{
		sized(mediaType, body()),
		sized("content-type: application/json\r\nUSER-AGENT: x\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n", body()),
		sized("Content-Type: application/json; charset=utf-8\r\n", body()),
		sized("Content-Type: text/plain\r\n", body()),
		sized("", body()),
		sized(mediaType, ""),
		sized(mediaType, "{}"),
		sized(mediaType, "no JSON"),
		sized(mediaType, strings.Repeat("x", 60<<10)),
		sized(mediaType, strings.Repeat("x", quickBody)),
		sized(mediaType, strings.Repeat("x", quickBody+1)),
		sized(mediaType, event(uuid.New(), `{"long":"`+strings.Repeat("x", 50<<10)+`"}`)),
		sized(mediaType+"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nTracestate: a=b\r\n", body()),
		sized(mediaType+"Traceparent: nonsense\r\n", body()),
		sized(mediaType+"Traceparent: a\r\nTraceparent: b\r\n", body()),
		sized(mediaType+"Connection: close\r\n", body()),
		sized(mediaType+"Connection: Keep-Alive\r\n", body()),
		sized(mediaType+"Connection: keep-alive\r\nConnection: close\r\n", body()),
		sized(mediaType+"X-Other: y\r\n", body()),
		sized(mediaType+"Accept:\r\n", body()),
		sized(mediaType+"Accept: \r\n", body()),
		sized(mediaType+"Accept:x\r\n", body()),
		sized(mediaType+"Accept:  x\t\r\n", body()),
		sized(mediaType+"Accept : x\r\n", body()),
		sized(mediaType+"Accept: a\x00b\r\n", body()),
		sized(mediaType+"Accept: ä\r\n", body()),
		sized(mediaType+"Accept: a\rb\r\n", body()),
		sized(mediaType+"Accept: a\r\n folded\r\n", body()),
		sized(mediaType+"no colon\r\n", body()),
		sized(mediaType+": no name\r\n", body()),
		sized(mediaType+"Uſer-Agent: x\r\n", body()), // ſ is an s to whoever folds Unicode
		post("Hoſt: s\r\nContent-Length: 2\r\n"+mediaType, "{}"),
		sized(mediaType+"Host: other\r\n", body()),
		sized(mediaType+"Content-Length: 5\r\n", body()),
		sized(mediaType+"Content-Length: 0\r\n", ""),
		sized(mediaType+"Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		sized(mediaType+"Expect: 100-continue\r\n", body()),
		sized(mediaType+"Expect: nonsense\r\n", body()),
		sized(mediaType+"Upgrade: h2c\r\nConnection: Upgrade\r\n", body()),
		sized(mediaType+"User-Agent: "+strings.Repeat("x", quickHead)+"\r\n", body()),
		sized(mediaType+"User-Agent: "+strings.Repeat("x", 2*maxHeaderBytes)+"\r\n", body()),
		post("Content-Length: 2\r\n"+mediaType, "{}"),
		post("Host: a/b\r\nContent-Length: 2\r\n"+mediaType, "{}"),
		post("Host: [::1]:80\r\nContent-Length: 2\r\n"+mediaType, "{}"),
		post("Host: \r\nContent-Length: 2\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: +2\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: -2\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: 0x2\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: 002\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: 2, 2\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: 99999999999999999999\r\n"+mediaType, "{}"),
		post("Host: s\r\nContent-Length: 20\r\n"+mediaType, "{}"), // the rest never comes
		post("Host: s\r\n"+mediaType, "{}"),
		post("Host: s\r\nTransfer-Encoding: chunked\r\n"+mediaType, "2\r\n{}\r\n0\r\n\r\n"),
		[]byte(strings.ReplaceAll(string(sized(mediaType, body())), "\r\n", "\n")),
		[]byte(strings.Replace(string(sized(mediaType, body())), "HTTP/1.1", "HTTP/1.0", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "HTTP/1.1", "HTTP/2.0", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "/v1/results", "/v1/results?", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "/v1/results", "/v1/results?wait=published&timeout=1ms", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "/v1/results", "/v1//results", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "/v1/results", "http://s/v1/results", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "POST", "PUT", 1)),
		[]byte(strings.Replace(string(sized(mediaType, body())), "POST", "post", 1)),
		[]byte(get), []byte("\r\n" + get), []byte("x"), []byte("POST /v1/results HTTP/1.1\r\nHost: s\r\n"), []byte("\r\n\r\n"), {},
	}
	for _, rest := range []string{"x", "xxx", "xxxx", "\r\n", "\r\n\r\n", "POST /v1/results HTTP/1.1\r\n"} {
		seeds = append(seeds, append(sized(mediaType, body()), rest...))
	}
	all := bytes.Join([][]byte{seeds[0], seeds[1], []byte(get), seeds[7], seeds[0], seeds[3], sized(mediaType, body())}, nil)
	return append(seeds, all)
}

// TestQuickAnswersAsNetHTTP: whoever serves a connection, the answers are the same,
// the header included, and so is what is stored.
func TestQuickAnswersAsNetHTTP(t *testing.T) {
	p := startPair(t)
	for _, request := range quickSeeds() {
		p.compare(t, request)
		if end := bytes.Index(request, headEnd); end > 0 { // as many clients write it
			p.compare(t, request[:end+len(headEnd)], request[end+len(headEnd):])
			p.compare(t, request[:end/2], request[end/2:])
		}
	}
}

// FuzzQuick: likewise, whatever is sent.
func FuzzQuick(f *testing.F) {
	p := startPair(f)
	for _, request := range quickSeeds() {
		f.Add(request)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		if bytes.Contains(request, []byte("/metrics")) || bytes.Contains(request, []byte("/v1/status")) {
			t.Skip("tells the time, and what each process did")
		}
		p.compare(t, request)
	})
}

// TestQuickServes: the comparison is worth nothing if net/http serves both.
func TestQuickServes(t *testing.T) {
	h := start(t)
	entered, leave := make(chan struct{}, 2), make(chan struct{})
	h.faults.append = func(ctx context.Context, rs []result.Result) ([]outbox.Outcome, error) {
		entered <- struct{}{}
		<-leave
		return h.store.Append(ctx, rs)
	}
	c, r := h.dial()
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	<-entered
	h.srv.mu.Lock()
	served := len(h.srv.quick)
	h.srv.mu.Unlock()
	close(leave)
	if status, body := read(t, r); status != 201 || served != 1 {
		t.Errorf("%d %s; %d connections are served by the loop", status, body, served)
	}
	write(t, c, "GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")
	if status, body := read(t, r); status != 200 {
		t.Errorf("handed over: %d %s", status, body)
	}
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	if status, body := read(t, r); status != 201 {
		t.Errorf("after it was handed over: %d %s", status, body)
	}
}

// TestAPanicEndsItsConnectionAlone: as in net/http.
func TestAPanicEndsItsConnectionAlone(t *testing.T) {
	log := make(lines, 8)
	h := start(t, func(s *settings) { s.Log = slog.New(slog.NewTextHandler(log, nil)) })
	var broken sync.Once
	h.faults.append = func(ctx context.Context, rs []result.Result) ([]outbox.Outcome, error) {
		broken.Do(func() { panic("broken on purpose") })
		return h.store.Append(ctx, rs)
	}
	c, r := h.dial()
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	if b, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("%q, %v", b, err)
	}
	h.post(oneEvent()).want(t, 201, "")
	if told := <-log; !strings.Contains(told, "broken on purpose") || !strings.Contains(told, "quick_test.go") {
		t.Errorf("the log does not tell what broke, and where: %s", told)
	}
}

// lines are those of a log.
type lines chan string

func (l lines) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

// TestAnIdlePosterIsHungUpOn: net/http has not got this connection yet.
func TestAnIdlePosterIsHungUpOn(t *testing.T) {
	h := start(t, func(s *settings) { s.IdleTimeout = 20 * time.Millisecond })
	c, r := h.dial()
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	if status, body := read(t, r); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestASilentConnectionIsHungUpOn: one that sends nothing has less time than one
// between two requests.
func TestASilentConnectionIsHungUpOn(t *testing.T) {
	h := start(t, func(s *settings) { s.ReadTimeout = 20 * time.Millisecond })
	_, r := h.dial() // reads for a minute; IdleTimeout is two
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestNobodyWaitsForIdlePosters: the end of the server wakes the connections that
// wait for a next request.
func TestNobodyWaitsForIdlePosters(t *testing.T) {
	log := make(lines, 8)
	h := start(t, func(s *settings) { s.Log = slog.New(slog.NewTextHandler(log, nil)) })
	c, r := h.dial()
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	if status, body := read(t, r); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	for !h.asleep() {
		time.Sleep(time.Millisecond)
	}
	h.stop()
	if _, err := r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	first, second := <-h.done, <-h.done
	h.done <- first // for close, which wants to know too
	h.done <- second
	if len(log) > 0 {
		t.Errorf("an idle connection was cut off: %s", <-log)
	}
}

// asleep reports whether every connection waits for its next request.
func (h *harness) asleep() bool {
	h.srv.mu.Lock()
	defer h.srv.mu.Unlock()
	for q := range h.srv.quick {
		q.mu.Lock()
		asleep := q.asleep
		q.mu.Unlock()
		if !asleep {
			return false
		}
	}
	return true
}

// refusing is a listener that refuses as often as there are errors.
type refusing struct {
	net.Listener
	errs chan error
}

func (r *refusing) Accept() (net.Conn, error) {
	select {
	case err := <-r.errs:
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", err)}
	default:
		return r.Listener.Accept()
	}
}

// TestAcceptIsTriedAgain: where the process has no descriptor left, clients wait;
// a listener that is broken ends the server.
func TestAcceptIsTriedAgain(t *testing.T) {
	h, log := start(t), make(lines, 8)
	opts := h.srv.opts
	opts.Path, opts.Log = filepath.Join(shortDir(t), "s"), slog.New(slog.NewTextHandler(log, nil))
	srv, err := Listen(opts)
	if err != nil {
		t.Fatal(err)
	}
	l := &refusing{srv.conns.Listener, make(chan error, 2)}
	srv.conns.Listener = l
	l.errs <- syscall.EMFILE
	done := make(chan error, 1)
	go func() { done <- srv.Run(t.Context(), t.Context()) }()
	h.path = opts.Path
	c, r := h.dial()
	write(t, c, rawPost("/v1/results", "application/json", len(oneEvent()), oneEvent()))
	if status, body := read(t, r); status != 201 {
		t.Errorf("%d %s", status, body)
	}
	if told := <-log; !strings.Contains(told, "too many open files") {
		t.Error(told)
	}
	l.errs <- syscall.EBADF
	h.dial() // ends the Accept that is waiting
	if err := <-done; !errors.Is(err, syscall.EBADF) {
		t.Error(err)
	}
}
