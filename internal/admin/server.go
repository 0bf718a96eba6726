package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// maxConnections is far more than probes, scrapes and some open pages need, and little
// of what the process may open: the socket's clients need descriptors too.
const maxConnections = 64

// Server serves Observe's handler on TCP, with time-outs for every phase.
type Server struct {
	listener net.Listener
	http     *http.Server
	crowd    *crowd
}

// Listen binds addr. hosts are names that a Host header may carry beside IP
// addresses and localhost: a page in somebody's browser must not reach us by a
// name of its own (DNS rebinding).
func Listen(addr string, hosts []string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin address %s: %w", addr, err)
	}
	c := &crowd{idle: map[net.Conn]bool{}}
	return &Server{listener: l, crowd: c, http: &http.Server{
		Handler:           checkHost(hosts, h),
		ReadTimeout:       10 * time.Second,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnState:         c.see,
	}}, nil
}

// crowd bounds the open connections. The next is let in at the cost of another, never
// made to wait: it may be the kubelet's probe.
type crowd struct {
	mu   sync.Mutex
	open []net.Conn // the oldest first
	idle map[net.Conn]bool
}

// see is http.Server's ConnState.
func (c *crowd) see(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if len(c.open) == maxConnections {
			i := max(0, slices.IndexFunc(c.open, func(o net.Conn) bool { return c.idle[o] }))
			_ = c.open[i].Close() // its own loop sees the error and ends
			delete(c.idle, c.open[i])
			c.open = slices.Delete(c.open, i, i+1)
		}
		c.open = append(c.open, conn)
	case http.StateActive:
		delete(c.idle, conn)
	case http.StateIdle:
		c.idle[conn] = slices.Contains(c.open, conn)
	case http.StateClosed, http.StateHijacked:
		delete(c.idle, conn)
		c.open = slices.DeleteFunc(c.open, func(o net.Conn) bool { return o == conn })
	}
}

// Addr is where it listens.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- s.http.Serve(s.listener) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve the admin address: %w", err)
	case <-ctx.Done():
		err := errors.Join(s.http.Close(), <-done) // probes and scrapes can be cut off
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	}
}

func checkHost(hosts []string, next http.Handler) http.Handler {
	allowed := map[string]bool{"localhost": true}
	for _, h := range hosts {
		allowed[strings.ToLower(h)] = true
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := hostname(r.Host)
		if _, err := netip.ParseAddr(host); err != nil && !allowed[host] {
			writeProblem(w, http.StatusForbidden, "unknown name in the Host header; allow it with --admin-host")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostname is a Host header without port and brackets, in lower case.
func hostname(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	} else if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	return strings.ToLower(host)
}
