package ipc

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkRequest is a whole request on the socket, from the bytes of a client to
// the answer after the commit: one result of 1 KiB from 1 and from 64 connections,
// and 256 in a batch. An operation is one result. Nothing publishes, and the client
// allocates nothing: what is counted is the sidecar's. The number of results is
// best fixed (-benchtime 20000x), for the outbox is fuller with each.
func BenchmarkRequest(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(fmt.Sprintf("conns=%d", conns), func(b *testing.B) { benchRequests(b, conns, 1) })
	}
	b.Run("batch=256", func(b *testing.B) { benchRequests(b, 1, 256) })
}

func benchRequests(b *testing.B, conns, rows int) {
	h := start(b, func(s *settings) {
		s.Log = slog.New(slog.DiscardHandler)
		s.outbox.Log = s.Log
	})
	var clients []*bareClient
	for range conns {
		c, err := newBareClient(h.path, rows)
		if err == nil {
			err = c.exchange() // the first allocates what a connection keeps
		}
		if err != nil {
			b.Fatal(err)
		}
		clients = append(clients, c)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, c := range clients {
		wg.Go(func() {
			for left.Add(-int64(rows)) > -int64(rows) {
				if err := c.exchange(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "results/s")
	for _, c := range clients {
		c.conn.Close()
	}
}

// bareClient sends the same request over and over, each time with other IDs, and
// reads no more of an answer than where it ends.
type bareClient struct {
	conn    net.Conn
	r       *bufio.Reader
	request []byte
	ids     []int // where each placeholder is
	want    []byte
}

const placeholder = "00000000-0000-4000-8000-000000000000"

func newBareClient(path string, rows int) (*bareClient, error) {
	head := `{"event_id":"` + placeholder + `","correlation_id":"` + placeholder + `","workflow_id":"bench","workflow_run_id":"bench-1","status":"success","result":{"text":"`
	body := head + strings.Repeat("x", 1024-len(head)-3) + `"}}`
	target, mediaType, want := "/v1/results", "application/json", "HTTP/1.1 201 "
	if rows > 1 {
		target, mediaType, want = "/v1/results:batch", "application/x-ndjson", "HTTP/1.1 200 "
		body = strings.Repeat(body+"\n", rows)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c := &bareClient{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), want: []byte(want)}
	c.request = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: sidecar\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, mediaType, len(body), body)
	for at := 0; ; {
		i := bytes.Index(c.request[at:], []byte(placeholder))
		if i < 0 {
			return c, nil
		}
		c.ids = append(c.ids, at+i)
		at += i + len(placeholder)
	}
}

// exchange sends one request and reads its answer.
func (c *bareClient) exchange() error {
	var random [9]byte
	for _, at := range c.ids {
		if _, err := rand.Read(random[:]); err != nil {
			return err
		}
		id := c.request[at : at+36]
		hex.Encode(id[:8], random[:4])
		hex.Encode(id[26:], random[4:]) // the version and the variant stay
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	status, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(status, c.want) {
		return fmt.Errorf("answered %q", status)
	}
	return c.skip()
}

// skip reads the rest of an answer.
func (c *bareClient) skip() error {
	length, chunked := 0, false
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0 && chunked:
			return c.skipChunks()
		case len(line) == 0:
			_, err := c.r.Discard(length)
			return err
		case bytes.Equal(line, []byte("Transfer-Encoding: chunked")):
			chunked = true
		default:
			if digits, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
				length = number(digits, 10)
			}
		}
	}
}

func (c *bareClient) skipChunks() error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		n := number(bytes.TrimSpace(line), 16)
		if _, err := c.r.Discard(n + 2); err != nil || n == 0 {
			return err
		}
	}
}

// number is strconv's, without the string that it would want.
func number(digits []byte, base int) (n int) {
	for _, d := range digits {
		n = n*base + strings.IndexByte("0123456789abcdef", d)
	}
	return n
}
