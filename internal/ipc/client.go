package ipc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/outbox"
)

// Client speaks to a running sidecar through its socket. Its methods mirror the
// outbox's, so that a command works the same beside a running sidecar and
// without one.
type Client struct {
	path string
	http *http.Client
}

// ErrNotRunning says that nothing answers at the socket.
var ErrNotRunning = errors.New("no sidecar answers at the socket")

// NewClient makes a client; it connects with the first call.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 30 * time.Second}}
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Post hands over one event as JSON and returns the answer's status and body.
func (c *Client) Post(ctx context.Context, event []byte) (status int, body []byte, err error) {
	return c.call(ctx, http.MethodPost, resultsPath, event)
}

// Get returns what is known of a result.
func (c *Client) Get(ctx context.Context, id uuid.UUID) (outbox.Entry, error) {
	var v View
	err := c.do(ctx, http.MethodGet, resultsPath+"/"+id.String(), &v)
	return v.entry(), err
}

// List returns one page.
func (c *Client) List(ctx context.Context, f outbox.Filter) ([]outbox.Entry, error) {
	q := url.Values{"after": {strconv.FormatInt(f.After, 10)}}
	if f.State != "" {
		q.Set("state", string(f.State))
	}
	if f.CorrelationID != nil {
		q.Set("correlation_id", f.CorrelationID.String())
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	var page listing
	if err := c.do(ctx, http.MethodGet, resultsPath+"?"+q.Encode(), &page); err != nil {
		return nil, err
	}
	entries := make([]outbox.Entry, len(page.Results))
	for i, v := range page.Results {
		entries[i] = v.entry()
	}
	return entries, nil
}

// Retry makes a parked result pending again.
func (c *Client) Retry(ctx context.Context, id uuid.UUID) (outbox.Entry, error) {
	var v View
	err := c.do(ctx, http.MethodPost, resultsPath+"/"+id.String()+retrySuffix, &v)
	return v.entry(), err
}

// Purge removes a parked result.
func (c *Client) Purge(ctx context.Context, id uuid.UUID) error {
	return c.do(ctx, http.MethodDelete, resultsPath+"/"+id.String(), nil)
}

// Status returns the sidecar's own account of itself.
func (c *Client) Status(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	err := c.do(ctx, http.MethodGet, "/v1/status", &raw)
	return raw, err
}

// Probe asks /healthz or /readyz; nil is a 200.
func (c *Client) Probe(ctx context.Context, path string) error {
	status, body, err := c.call(ctx, http.MethodGet, path, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answers %d: %s", path, status, bytes.TrimSpace(body))
	}
	return err
}

func (c *Client) do(ctx context.Context, method, target string, into any) error {
	status, body, err := c.call(ctx, method, target, nil)
	if err != nil {
		return err
	}
	if status >= 300 {
		return errorOf(status, body)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("decode the sidecar's answer: %w", err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, target string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://sidecar"+target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, fmt.Errorf("make a request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return 0, nil, fmt.Errorf("%w %s (--socket): %w", ErrNotRunning, c.path, op.Err)
		}
		var slow net.Error
		if errors.As(err, &slow) && slow.Timeout() {
			return 0, nil, fmt.Errorf("the sidecar at %s has taken the connection and does not answer: it hangs, or was stopped (kill -CONT): %w", c.path, err)
		}
		return 0, nil, fmt.Errorf("ask the sidecar at %s: %w", c.path, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end, or given up
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return 0, nil, fmt.Errorf("read the sidecar's answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}

// errorOf turns a problem document back into the error it came from, where a
// caller decides by it.
func errorOf(status int, body []byte) error {
	p := problem{Status: status, Title: http.StatusText(status)}
	if err := json.Unmarshal(body, &p); err != nil {
		return fmt.Errorf("the sidecar answers %d: %.200s", status, body)
	}
	switch p.Type {
	case problemType + "not-found":
		return again(outbox.ErrNotFound, p.Detail)
	case problemType + "not-parked":
		return again(outbox.ErrNotParked, p.Detail)
	}
	return fmt.Errorf("the sidecar answers %w", &p)
}

// again is an error whose text the detail begins with already.
func again(err error, detail string) error {
	return fmt.Errorf("%w%s", err, strings.TrimPrefix(detail, err.Error()))
}
