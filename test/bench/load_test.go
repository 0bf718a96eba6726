//go:build kafka

package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// client is one connection. It writes requests that were made beforehand and
// reads only what it must: two cores have to serve both sides, and the load
// should not be what is measured.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

// dial connects to a Unix socket's path, or to host:port.
func dial(address string) (*client, error) {
	network := "unix"
	if !filepath.IsAbs(address) {
		network = "tcp"
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// post sends one request and returns the answer's status.
func (c *client) post(request []byte) (status int, err error) {
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	length := 0
	chunked := false
	for first := true; ; first = false {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		switch {
		case first:
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, err
			}
		case len(line) <= 2:
			if chunked {
				return status, c.skipChunks()
			}
			_, err := c.r.Discard(length)
			return status, err
		case bytes.HasPrefix(line, []byte("Content-Length: ")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[16:]))); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(line, []byte("Transfer-Encoding: chunked")):
			chunked = true
		}
	}
}

func (c *client) skipChunks() error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return err
		}
		if _, err := c.r.Discard(int(n) + 2); err != nil || n == 0 {
			return err
		}
	}
}

// eventBytes is the size of one event: the issue of all figures.
const eventBytes = 1024

const placeholder = "00000000-0000-4000-8000-000000000000"

// event is a result of about 1 KiB with placeholders for its two IDs.
func event() string {
	head := `{"event_id":"` + placeholder + `","correlation_id":"` + placeholder + `","workflow_id":"bench","workflow_run_id":"bench-1","status":"success","result":{"text":"`
	return head + strings.Repeat("x", eventBytes-len(head)-3) + `"}}`
}

// request is a whole HTTP request whose IDs renew draws anew.
type request struct {
	bytes []byte
	ids   []int // where each placeholder is
}

func newRequest(target, mediaType string, body string) *request {
	text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: sidecar\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, mediaType, len(body), body)
	r := &request{bytes: []byte(text)}
	for at := 0; ; {
		i := strings.Index(text[at:], placeholder)
		if i < 0 {
			return r
		}
		r.ids = append(r.ids, at+i)
		at += i + len(placeholder)
	}
}

func single() *request { return newRequest("/v1/results", "application/json", event()) }

func ndjson(lines int) *request {
	return newRequest("/v1/results:batch", "application/x-ndjson", strings.Repeat(event()+"\n", lines))
}

func (r *request) renew() {
	for _, at := range r.ids {
		id := uuid.New()
		encodeID(r.bytes[at:at+36], id)
	}
}

func encodeID(dst []byte, id uuid.UUID) {
	hex.Encode(dst[0:8], id[0:4])
	hex.Encode(dst[9:13], id[4:6])
	hex.Encode(dst[14:18], id[6:8])
	hex.Encode(dst[19:23], id[8:10])
	hex.Encode(dst[24:36], id[10:16])
}

// measured is what a load saw.
type measured struct {
	requests  int
	elapsed   time.Duration
	latencies []time.Duration // sorted
}

func (m measured) quantile(q float64) time.Duration {
	return m.latencies[min(int(q*float64(len(m.latencies))), len(m.latencies)-1)]
}

// runLoad lets conns connections send one request after the other for d, and
// expects every answer to be want.
func runLoad(b *testing.B, address string, conns int, d time.Duration, want int, newRequest func() *request) measured {
	b.Helper()
	return load(b, conns, d, func(ctx context.Context) ([]time.Duration, error) {
		return sendAll(ctx, address, want, newRequest())
	})
}

// load runs send conns times at once, each until d is over.
func load(b *testing.B, conns int, d time.Duration, send func(context.Context) ([]time.Duration, error)) measured {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d)
	defer cancel()
	var (
		g  errgroup.Group
		mu sync.Mutex
		m  measured
	)
	start := time.Now()
	for range conns {
		g.Go(func() error {
			latencies, err := send(ctx)
			mu.Lock()
			defer mu.Unlock()
			m.latencies = append(m.latencies, latencies...)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	m.elapsed, m.requests = time.Since(start), len(m.latencies)
	slices.Sort(m.latencies)
	return m
}

// sendAll sends one request after the other until ctx ends and returns how long each took.
func sendAll(ctx context.Context, address string, want int, req *request) ([]time.Duration, error) {
	latencies := make([]time.Duration, 0, 1<<12)
	err := sendEach(ctx, address, want, req, func(start, end time.Time) { latencies = append(latencies, end.Sub(start)) })
	return latencies, err
}

// sendEach sends one request after the other until ctx ends and tells when each
// was sent and answered.
func sendEach(ctx context.Context, address string, want int, req *request, answered func(start, end time.Time)) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	for ctx.Err() == nil {
		req.renew()
		start := time.Now()
		status, err := c.post(req.bytes)
		if err != nil {
			return err
		}
		if status != want {
			rest, _ := io.ReadAll(io.LimitReader(c.r, int64(c.r.Buffered())))
			return fmt.Errorf("answered %d, not %d: %s", status, want, rest)
		}
		answered(start, time.Now())
	}
	return nil
}

// report reports requests (each of rows results) per second, p50 and p99.
func (m measured) report(b *testing.B, rows int, unit string) {
	perSecond(b, m.requests*rows, m.elapsed, unit)
	milliseconds(b, m.quantile(0.5), "p50-ms")
	milliseconds(b, m.quantile(0.99), "p99-ms")
}

func listenUnix(b *testing.B, socket string) net.Listener {
	b.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	return l
}
