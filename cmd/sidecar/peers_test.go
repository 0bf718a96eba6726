package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/ipc"
	"workflow-results-sidecar/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// besieged is a real sidecar among bad peers, and the good one that is connected.
type besieged struct {
	place
	proc *testkit.Process
	good *http.Client

	// Before anybody else came:
	fds, sockets int
	rss          int64
}

func besiege(t *testing.T, args ...string) *besieged {
	t.Helper()
	p := newPlace(t, testkit.FreeAddr(t))
	all := append(append([]string{"run", "--linger", "0s", "--shutdown-timeout", "100ms"}, p.either()...), p.kafka()...)
	b := &besieged{place: p, proc: testkit.StartSidecar(t, testkit.Build(t), append(all, args...)...)}
	b.proc.WaitReady(t, p.socket())
	b.good = testkit.SocketClient(t, p.socket())
	for range 100 { // what a sidecar at work needs is there before it is counted
		b.serve()
	}
	b.fds, b.sockets = b.descriptors()
	b.rss = b.memory()
	return b
}

// serve has the good client, on its one connection, hand over a result and find it.
func (b *besieged) serve() {
	b.t.Helper()
	id := uuid.New()
	resp, err := b.good.Post("http://sidecar/v1/results", "application/json", strings.NewReader(goodEvent(id)))
	if err != nil {
		b.t.Fatalf("the good client is not served: %v", err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusCreated {
		b.t.Fatalf("the good client hears %d %s %v", resp.StatusCode, text, err)
	}
}

// serveNew has a client come, ask and go.
func (b *besieged) serveNew() {
	b.t.Helper()
	cl := ipc.NewClient(b.socket())
	defer cl.Close()
	if err := cl.Probe(b.t.Context(), "/healthz"); err != nil {
		b.t.Errorf("a new client: %v", err)
	}
}

func goodEvent(id uuid.UUID) string {
	return fmt.Sprintf(`{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"failure"}`, id, id)
}

// held is how many results the sidecar holds.
func (b *besieged) held() int64 {
	b.t.Helper()
	return decode[statusReport](b.t, succeed(b.t, "status", "--json", "--socket", b.socket())).Outbox.HeldRows
}

// descriptors counts what the sidecar has open, and the sockets among it.
func (b *besieged) descriptors() (all, sockets int) {
	b.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", b.proc.PID())
	fds, err := os.ReadDir(dir)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return len(fds), sockets
}

// awaitSockets waits until there are so many sockets as there should be.
func (b *besieged) awaitSockets(ok func(int) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, n := b.descriptors()
		if ok(n) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.t.Fatalf("%d sockets are open, %d were before", n, b.sockets)
		}
	}
}

// storeFDs is what the outbox may open later than at its start: the database and
// its WAL for each of four readers.
const storeFDs = 8

// left expects that nothing of the bad peers is left.
func (b *besieged) left() {
	b.t.Helper()
	b.awaitSockets(func(n int) bool { return n <= b.sockets })
	if all, _ := b.descriptors(); all > b.fds+storeFDs {
		b.t.Errorf("%d descriptors are open, %d were before", all, b.fds)
	}
	b.serve()
}

// memory is the sidecar's resident set in bytes.
func (b *besieged) memory() int64 {
	b.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.proc.PID()))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return kib << 10
		}
	}
	b.t.Fatalf("no VmRSS in %s", status)
	return 0
}

// dial connects; where the kernel's backlog is full it says false.
func (b *besieged) dial() (net.Conn, bool) {
	b.t.Helper()
	c, err := net.Dial("unix", b.socket())
	if errors.Is(err, syscall.EAGAIN) {
		return nil, false
	}
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c, true
}

// send opens a connection and writes text on it.
func (b *besieged) send(text string) net.Conn {
	b.t.Helper()
	c, ok := b.dial()
	if !ok {
		b.t.Fatal("the backlog is full")
	}
	if _, err := io.WriteString(c, text); err != nil {
		b.t.Fatal(err)
	}
	return c
}

// answers reads all answers on a connection until the sidecar closes it.
func answers(t *testing.T, c net.Conn) (statuses []int) {
	t.Helper()
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		statuses = append(statuses, resp.StatusCode)
	}
}

func httpPost(length int, body string) string {
	return fmt.Sprintf("POST /v1/results HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", length, body)
}

// TestHalfRequests: peers that go in the midst of a request, or say more or less
// than they announced, leave nothing behind.
func TestHalfRequests(t *testing.T) {
	t.Parallel()
	b := besiege(t)
	before := b.held()
	whole := httpPost(len(goodEvent(uuid.Nil)), goodEvent(uuid.New()))
	for i := range len(whole) - 1 { // all places to break off
		b.send(whole[:i+1]).Close()
	}
	b.left()
	if n := b.held() - before; n != 1 { // left's own
		t.Errorf("%d results were stored of halves", n-1)
	}

	// Fewer bytes than announced are refused, and more are the next request.
	before = b.held()
	body := goodEvent(uuid.New())
	c := b.send(httpPost(len(body)+1, body))
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(answers(t, c)); got != "[400]" {
		t.Errorf("a body too short: %s", got)
	}
	if got := fmt.Sprint(answers(t, b.send(httpPost(len(body), body+`{"more":1}`+"\r\n\r\n")))); got != "[201 400]" {
		t.Errorf("a body too long: %s", got)
	}
	if got := fmt.Sprint(answers(t, b.send(httpPost(len(body)-1, body+"\r\n\r\n")))); got != "[400 400]" {
		t.Errorf("a body cut by its length: %s", got)
	}
	if n := b.held() - before; n != 1 {
		t.Errorf("%d results were stored, one was whole", n)
	}
	b.left()
}

// TestPipelining: a peer that sends and does not read is held up, and gets every
// answer when it does.
func TestPipelining(t *testing.T) {
	t.Parallel()
	b := besiege(t)
	const n = 5000
	before := b.held()
	c, _ := b.dial()
	var sending sync.WaitGroup
	sending.Go(func() {
		for range n {
			body := goodEvent(uuid.New())
			if _, err := io.WriteString(c, httpPost(len(body), body)); err != nil {
				t.Error(err)
				return
			}
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	b.serve()
	got := answers(t, c)
	sending.Wait()
	if want := bytes.Repeat([]byte("201 "), n); fmt.Sprint(got) != "["+strings.TrimSpace(string(want))+"]" {
		t.Errorf("%d answers: %.100v", len(got), got)
	}
	if held := b.held() - before; held != n+1 {
		t.Errorf("%d results are held, %d were sent", held-1, n)
	}
	b.left()
}

// TestSlowPeers: who sends a byte a second is cut off after the time-outs of the
// header and of the request, and the good client is served all the while.
func TestSlowPeers(t *testing.T) {
	t.Parallel()
	b := besiege(t)
	const peers = 500
	body := goodEvent(uuid.New()) // longer in bytes than the time-out in seconds
	before := b.held()
	var heads, bodies []net.Conn
	for range peers {
		heads = append(heads, b.send("P"))
		bodies = append(bodies, b.send(httpPost(len(body), "")))
	}
	open := map[net.Conn]bool{}
	for _, c := range append(heads, bodies...) {
		open[c] = true
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	most, posted := b.rss, 0
	for i := 0; len(open) > 0; i++ {
		for c := range open {
			next := body[i%len(body)]
			if _, err := c.Write([]byte{next}); err != nil { // it was cut off
				delete(open, c)
			}
		}
		b.serve()
		posted++
		most = max(most, b.memory())
		if i == len(body) {
			t.Fatalf("%d slow peers are still connected", len(open))
		}
		<-tick.C
	}
	for _, c := range bodies {
		if got := fmt.Sprint(answers(t, c)); got != "[408]" {
			t.Errorf("a slow body was answered %s", got)
		}
	}
	if n := b.held() - before; n != int64(posted) {
		t.Errorf("%d results were stored of slow peers", n-int64(posted))
	}
	t.Logf("RSS %d MiB before, %d MiB with %d slow peers", b.rss>>20, most>>20, 2*peers)
	if most > b.rss+siegeMemory(2*peers) {
		t.Errorf("RSS grew from %d to %d", b.rss, most)
	}
	b.left()
}

// siegeMemory is what n connections may cost: two buffers of 4 KiB and a goroutine
// each, with as much again for the collector, which runs late. The race detector
// wants four times as much.
func siegeMemory(n int) int64 {
	each := int64(48 << 10)
	if testkit.RaceEnabled {
		each *= 4
	}
	return 16<<20 + int64(n)*each
}

// TestTenThousandConnections at once: those beyond --max-connections wait in the
// kernel's backlog, which costs the sidecar nothing.
func TestTenThousandConnections(t *testing.T) {
	const peers = 10_000
	raiseFDLimit(t, peers+1000)
	for _, most := range []int{1024, peers + 1000} {
		t.Run(fmt.Sprintf("at most %d", most), func(t *testing.T) {
			b := besiege(t, "--max-connections", strconv.Itoa(most))
			var conns []net.Conn
			refused := 0
			for len(conns)+refused < peers {
				c, ok := b.dial()
				switch {
				case ok:
					conns = append(conns, c)
					if _, err := io.WriteString(c, "POST /v1/results HTTP/1.1\r\nHost: s\r\nX: "); err != nil {
						t.Fatal(err)
					}
				case most > peers: // they are all taken in, in their time
					b.serve()
				default:
					refused++
				}
			}
			want := min(most-1, peers) + b.sockets // the good one is in already
			b.awaitSockets(func(n int) bool { return n >= want })
			for range 100 {
				b.serve()
			}
			fds, sockets := b.descriptors()
			rss := b.memory()
			t.Logf("%d connected, %d refused by the kernel: %d descriptors (%d before), RSS %d MiB (%d before)", len(conns), refused, fds, b.fds, rss>>20, b.rss>>20)
			if sockets > b.sockets+most {
				t.Errorf("%d sockets, %d before, and --max-connections is %d", sockets, b.sockets, most)
			}
			if limit := b.rss + siegeMemory(min(most, peers)); rss > limit {
				t.Errorf("RSS %d, %d before", rss, b.rss)
			}
			if most > peers {
				b.serveNew()
			}
			for _, c := range conns {
				c.Close()
			}
			b.left()
			b.serveNew()
		})
	}
}

// raiseFDLimit lets this process, and those it starts, open n files.
func raiseFDLimit(t *testing.T, n uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur >= n {
		return
	}
	raised := syscall.Rlimit{Cur: n, Max: max(n, limit.Max)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised); err != nil {
		t.Skipf("RLIMIT_NOFILE is %d, of at most %d, and %d are needed: %v (ulimit -n)", limit.Cur, limit.Max, n, err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
}
