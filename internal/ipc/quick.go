package ipc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Nearly every request is POST /v1/results with an event of a few KiB. A connection
// is served by a loop of ours while it sends such requests in their plainest form,
// and by net/http from the first that is anything else, which the loop hands over
// as it came. What the loop takes, it takes as net/http would, into the same
// ServeHTTP; TestQuickAnswersAsNetHTTP compares the two. It saves what net/http does
// for requests that we do not have: a goroutine that watches for the client's
// hanging up, a new request with all its parts, several deadlines each.
const (
	quickHead = 4 << 10  // a longer header is net/http's
	quickBody = 64 << 10 // a longer body likewise
)

// quickConn is a connection and what its requests have in common. One goroutine
// serves it; sleep and wake are where others meet it.
type quickConn struct {
	srv    *Server
	conn   *countedConn
	r      *bufio.Reader
	req    *http.Request // one for all requests: no handler keeps it
	body   boundedBody
	answer quickAnswer

	readBy, writeBy time.Time // the deadlines that are set

	mu     sync.Mutex
	asleep bool
}

// acceptAll serves every new connection until the listener is closed. Where the
// system is short of something it tries again: connections that end make room.
func (s *Server) acceptAll() error {
	for {
		conn, err := s.conns.Accept()
		switch {
		case err == nil:
			s.goQuick(conn.(*countedConn)) // of our own listener
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.ECONNABORTED):
			if s.logged.due("accept") {
				s.opts.Log.Warn("cannot take a connection; it is tried again", "error", err)
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-s.stopping.Done():
			}
		default:
			return err
		}
	}
}

func (s *Server) goQuick(conn *countedConn) {
	if conn.peerErr != nil {
		s.opts.Log.Warn("a peer's credentials are unknown", "error", conn.peerErr)
	}
	q := &quickConn{srv: s, conn: conn, r: bufio.NewReaderSize(conn, quickHead)}
	q.body.r = q.r
	q.answer.header = make(http.Header, 4)
	q.req = (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: resultsPath}, RequestURI: resultsPath,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header, 8), Body: &q.body,
	}).WithContext(s.connContext(context.Background(), conn))
	s.mu.Lock()
	s.quick[q] = struct{}{}
	s.mu.Unlock()
	s.quickRunning.Go(q.serve)
}

// serve serves until the connection ends or is handed over.
func (q *quickConn) serve() {
	defer func() {
		q.srv.mu.Lock()
		defer q.srv.mu.Unlock()
		delete(q.srv.quick, q)
	}()
	defer q.survive()
	for least := 1; q.next(least); least = leastRequest {
		if least > 1 {
			q.skipLineEnds()
		}
		length, ok := q.readHead()
		if !ok {
			q.handOver()
			return
		}
		if !q.exchange(length) {
			break
		}
	}
	_ = q.conn.Close() // nothing is left to be read or written
}

// survive ends the connection where a handler panics, and not the process:
// net/http does so too.
func (q *quickConn) survive() {
	if cause := recover(); cause != nil {
		q.srv.opts.Log.Error("a request broke its handler; its connection is closed", "error", fmt.Sprint(cause), "stack", string(debug.Stack()))
		_ = q.conn.Close() // the panic is what is told
	}
}

// wakeQuick ends the connections that wait for a next request.
func (s *Server) wakeQuick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for q := range s.quick {
		q.wake()
	}
}

// finishQuick lets requests under way finish, and closes what is left of them when
// ctx ends. No more connections come: the listener is closed.
func (s *Server) finishQuick(ctx context.Context) error {
	finished := make(chan struct{})
	go func() { s.quickRunning.Wait(); close(finished) }()
	select {
	case <-finished:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for q := range s.quick {
		_ = q.conn.Close() // ctx's error is the one to tell
	}
	return ctx.Err()
}

// leastRequest is how many bytes net/http takes for another request. A connection
// that ends with fewer ends without an answer.
const leastRequest = 4

// next waits for so many bytes of a request, and is false when there will be none.
func (q *quickConn) next(least int) bool {
	if q.r.Buffered() >= least {
		return q.srv.stopping.Err() == nil
	}
	patience := q.srv.opts.IdleTimeout
	if least == 1 { // it has sent nothing yet, and may hold a place that others wait for
		patience = q.srv.http.ReadHeaderTimeout
	}
	if !q.sleep(patience) {
		return false
	}
	_, err := q.r.Peek(least)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asleep = false
	return err == nil
}

// skipLineEnds passes over what old clients send behind the body of a POST, as
// net/http does.
func (q *quickConn) skipLineEnds() {
	start, _ := q.r.Peek(leastRequest) // next has seen them
	_, _ = q.r.Discard(len(start) - len(bytes.TrimLeft(start, "\r\n")))
}

// sleep is false once the server ends. Before it does, wake finds the connection
// asleep, or sleep finds the server ending.
func (q *quickConn) sleep(patience time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.srv.stopping.Err() != nil {
		return false
	}
	q.asleep = true
	return extend(&q.readBy, time.Now(), patience, q.conn.SetReadDeadline) == nil
}

// extend sets a deadline, unless one is set that comes hardly earlier: to set two for
// each request costs more than to read it.
func extend(deadline *time.Time, now time.Time, patience time.Duration, set func(time.Time) error) error {
	until := now.Add(patience)
	if earlier := until.Sub(*deadline); earlier >= 0 && earlier < patience/64 {
		return nil
	}
	*deadline = until
	return set(until)
}

// wake ends the wait for a next request.
func (q *quickConn) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asleep {
		_ = q.conn.SetReadDeadline(time.Unix(1, 0)) // a connection that is closed already needs no waking
	}
}

// handOver gives the connection to net/http, with what was read of it.
func (q *quickConn) handOver() {
	q.conn.unread, _ = q.r.Peek(q.r.Buffered()) // all of it is there
	select {
	case q.srv.handedOver <- q.conn:
	case <-q.srv.stopping.Done():
		_ = q.conn.Close() // unanswered, as a request that comes a moment later
	}
}

// exchange serves one request, and reports whether the connection can take another.
func (q *quickConn) exchange(length int64) (more bool) {
	q.body.left, q.req.ContentLength = length, length
	q.answer.reset()
	now, opts := time.Now(), &q.srv.opts
	err := extend(&q.writeBy, now, opts.ReadTimeout+opts.WriteTimeout, q.conn.SetWriteDeadline)
	if err == nil && length > int64(q.r.Buffered()) {
		err = extend(&q.readBy, now, opts.ReadTimeout, q.conn.SetReadDeadline)
	}
	if err != nil {
		return false
	}
	q.srv.ServeHTTP(&q.answer, q.req)
	_, err = io.Copy(io.Discard, &q.body) // of a request that was refused
	more = err == nil && q.srv.stopping.Err() == nil && q.answer.header.Get("Connection") != "close"
	_, err = q.conn.Write(q.answer.text(now, more))
	return more && err == nil
}

var (
	quickLine = []byte("POST " + resultsPath + " HTTP/1.1\r\n")
	lineEnd   = []byte("\r\n")
	headEnd   = []byte("\r\n\r\n")
)

// readHead reads the request line and the header; ok is false, and nothing is read,
// where they are not of the plainest form.
func (q *quickConn) readHead() (length int64, ok bool) {
	buffered, _ := q.r.Peek(q.r.Buffered()) // all of it is there
	end := bytes.Index(buffered, headEnd)
	if end < 0 || !bytes.HasPrefix(buffered, quickLine) {
		return 0, false
	}
	clear(q.req.Header)
	q.req.Host, length = "", -1
	for rest := buffered[len(quickLine) : end+len(lineEnd)]; len(rest) > 0; {
		var line []byte
		line, rest, _ = bytes.Cut(rest, lineEnd)
		name, value, _ := bytes.Cut(line, []byte(": "))
		if !plainText(name) || !plainText(value) || !q.takeField(name, value, &length) {
			return 0, false
		}
	}
	if q.req.Host == "" || length < 0 {
		return 0, false
	}
	_, err := q.r.Discard(end + len(headEnd))
	return length, err == nil
}

// takeField takes a field of the header, and is false for one that is repeated, or
// of which net/http would have to tell what it means. The name is ASCII: EqualFold
// takes more for letters of ours.
func (q *quickConn) takeField(name, value []byte, length *int64) bool {
	known := ""
	for _, n := range []string{"Host", "Content-Type", "Content-Length", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Traceparent", "Tracestate"} {
		if bytes.EqualFold(name, []byte(n)) {
			known = n
			break
		}
	}
	switch known {
	case "":
		return false
	case "Host":
		first := q.req.Host == ""
		q.req.Host = string(value)
		return first && plainHost(value)
	case "Content-Length":
		first := *length < 0
		n, err := strconv.ParseUint(string(value), 10, 63)
		*length = int64(n)
		return first && err == nil && n <= quickBody
	case "Connection":
		return bytes.EqualFold(value, []byte("keep-alive"))
	default:
		if _, repeated := q.req.Header[known]; repeated {
			return false
		}
		if string(value) == jsonType[0] {
			q.req.Header[known] = jsonType
		} else {
			q.req.Header[known] = []string{string(value)}
		}
		return true
	}
}

// plainText is true for visible ASCII and the spaces within it.
func plainText(value []byte) bool {
	for _, c := range value {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return len(value) > 0 && value[0] != ' ' && value[len(value)-1] != ' '
}

// plainHost is true for what is a name, an IPv4 address, and a port.
func plainHost(value []byte) bool {
	for _, c := range value {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != ':' {
			return false
		}
	}
	return true
}

// boundedBody is the next left bytes of a connection.
type boundedBody struct {
	r    *bufio.Reader
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (b *boundedBody) Close() error { return nil }

// quickAnswer is an answer in memory: a receipt or a problem, both small.
type quickAnswer struct {
	header http.Header
	status int
	body   []byte
	buf    bytes.Buffer
	date   []byte // of dateAt
	dateAt int64
}

func (a *quickAnswer) reset() {
	clear(a.header)
	a.status, a.body = 0, a.body[:0]
}

func (a *quickAnswer) Header() http.Header { return a.header }

func (a *quickAnswer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
}

func (a *quickAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.body = append(a.body, p...)
	return len(p), nil
}

// text is the whole answer; it is valid until the next one.
func (a *quickAnswer) text(now time.Time, more bool) []byte {
	a.WriteHeader(http.StatusOK)
	if !more {
		a.header["Connection"] = closing
	}
	if at := now.Unix(); at != a.dateAt {
		a.dateAt, a.date = at, now.UTC().AppendFormat(a.date[:0], http.TimeFormat)
	}
	a.buf.Reset()
	b := a.buf.AvailableBuffer()
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(a.status), 10)
	b = append(append(b, ' '), http.StatusText(a.status)...)
	b = append(append(b, "\r\nDate: "...), a.date...)
	b = append(b, "\r\nContent-Length: "...)
	b = append(strconv.AppendInt(b, int64(len(a.body)), 10), lineEnd...)
	a.buf.Write(b)
	_ = a.header.Write(&a.buf) // memory takes all
	a.buf.Write(lineEnd)
	a.buf.Write(a.body)
	return a.buf.Bytes()
}

var closing = []string{"close"}

// lobby is the listener of net/http: it gets what the loop hands over.
type lobby struct {
	net.Listener // closed with the lobby
	handedOver   <-chan *countedConn
	done         <-chan struct{}
}

func (l lobby) Accept() (net.Conn, error) {
	select {
	case c := <-l.handedOver:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
