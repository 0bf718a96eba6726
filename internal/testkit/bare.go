package testkit

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// BareClient is one connection of a benchmark. It sends requests that were made
// beforehand, reads no more of an answer than where it ends, and allocates nothing:
// two cores have to serve both sides, and the load should not be what is measured.
type BareClient struct {
	conn net.Conn
	r    *bufio.Reader
}

// DialBare connects to a Unix socket's path, or to host:port.
func DialBare(address string) (*BareClient, error) {
	network := "unix"
	if !filepath.IsAbs(address) {
		network = "tcp"
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &BareClient{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}, nil
}

// Close closes the connection.
func (c *BareClient) Close() error { return c.conn.Close() }

// Post sends one request, reads its answer to the end, and returns the status.
func (c *BareClient) Post(request []byte) (status int, err error) {
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return 0, fmt.Errorf("no answer of HTTP: %q", line)
	}
	if status, err = bareNumber(line[9:12], 10); err != nil {
		return 0, err
	}
	return status, c.skip()
}

// Rest returns what has come and was not read: of an answer that was not expected,
// it may tell why.
func (c *BareClient) Rest() []byte {
	rest, _ := c.r.Peek(c.r.Buffered()) // all of it is there
	return rest
}

// skip reads the header and the body of an answer.
func (c *BareClient) skip() error {
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
				if length, err = bareNumber(digits, 10); err != nil {
					return err
				}
			}
		}
	}
}

func (c *BareClient) skipChunks() error {
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := bareNumber(bytes.TrimSpace(line), 16)
		if err != nil {
			return err
		}
		if _, err := c.r.Discard(n + 2); err != nil || n == 0 {
			return err
		}
	}
}

// bareNumber is strconv's, without the string that it would want.
func bareNumber(digits []byte, base int) (n int, err error) {
	for _, d := range digits {
		digit := strings.IndexByte("0123456789abcdef"[:base], d)
		if digit < 0 {
			return 0, fmt.Errorf("not a number: %q", digits)
		}
		n = n*base + digit
	}
	return n, nil
}

// EventBytes is the size of one event: the issue of all figures.
const EventBytes = 1024

// PlaceholderID stands in Event where an ID belongs.
const PlaceholderID = "00000000-0000-4000-8000-000000000000"

// Event is a result of EventBytes with placeholders for its event ID and its
// correlation ID.
func Event() string {
	head := `{"event_id":"` + PlaceholderID + `","correlation_id":"` + PlaceholderID + `","workflow_id":"bench","workflow_run_id":"bench-1","status":"success","result":{"text":"`
	return head + strings.Repeat("x", EventBytes-len(head)-3) + `"}}`
}

// BareRequest is a whole HTTP request whose IDs Renew draws anew.
type BareRequest struct {
	Bytes  []byte
	ids    []int // where each is
	random uuid.UUID
}

// NewBareRequest makes a POST of body. Renew it before it is sent.
func NewBareRequest(target, mediaType, body string) *BareRequest {
	text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: sidecar\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", target, mediaType, len(body), body)
	r := &BareRequest{Bytes: []byte(text)}
	for at := 0; ; {
		i := strings.Index(text[at:], PlaceholderID)
		if i < 0 {
			return r
		}
		r.ids = append(r.ids, at+i)
		at += i + len(PlaceholderID)
	}
}

// SingleRequest hands over one result.
func SingleRequest() *BareRequest {
	return NewBareRequest("/v1/results", "application/json", Event())
}

// BatchRequest hands over so many results at once.
func BatchRequest(results int) *BareRequest {
	return NewBareRequest("/v1/results:batch", "application/x-ndjson", strings.Repeat(Event()+"\n", results))
}

// Renew draws all IDs anew: UUIDs of version 4.
func (r *BareRequest) Renew() {
	for _, at := range r.ids {
		_, _ = rand.Read(r.random[:]) // which never fails
		r.random[6], r.random[8] = r.random[6]&0x0f|0x40, r.random[8]&0x3f|0x80
		result.AppendUUID(r.Bytes[at:at], r.random)
	}
}

// ID is the n-th ID, in the order in which they stand in the request.
func (r *BareRequest) ID(n int) []byte { return r.Bytes[r.ids[n] : r.ids[n]+len(PlaceholderID)] }
