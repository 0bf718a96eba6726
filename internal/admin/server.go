package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Server serves Observe's handler on TCP, with time-outs for every phase.
type Server struct {
	listener net.Listener
	http     *http.Server
}

// Listen binds addr. hosts are names that a Host header may carry beside IP
// addresses and localhost: a page in somebody's browser must not reach us by a
// name of its own (DNS rebinding).
func Listen(addr string, hosts []string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin address %s: %w", addr, err)
	}
	return &Server{listener: l, http: &http.Server{
		Handler:           checkHost(hosts, h),
		ReadTimeout:       10 * time.Second,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}}, nil
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
