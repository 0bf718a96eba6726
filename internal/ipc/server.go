// Package ipc takes results over a Unix socket, by HTTP/1.1 and JSON.
//
// What it promises: nothing is answered 2xx before the store has committed it;
// every error is a problem document (RFC 9457) whose status says whether to send
// again; bodies, waiting requests and connections are bounded, and whoever is
// beyond the bounds hears so instead of filling memory. The socket's path is
// taken without a moment at which somebody else could be let in or pushed aside.
package ipc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
)

// Store is where results go; *outbox.Outbox is one.
type Store interface {
	Append(ctx context.Context, rs []result.Result) ([]outbox.Outcome, error)
	WaitPublished(ctx context.Context, id uuid.UUID) (outbox.Entry, error)
	Get(ctx context.Context, id uuid.UUID) (outbox.Entry, error)
	Payload(ctx context.Context, id uuid.UUID) ([]byte, error)
	List(ctx context.Context, f outbox.Filter) ([]outbox.Entry, error)
	Retry(ctx context.Context, id uuid.UUID) (outbox.Entry, error)
	Purge(ctx context.Context, id uuid.UUID) error
}

// Options configure Listen. Every bound must be positive.
type Options struct {
	Path   string
	Mode   fs.FileMode
	GID    int // group of the socket; negative: the process's own
	Access Access

	MaxResultBytes   func() int64 // of one result; follows the topic's max.message.bytes
	MaxBatchBytes    int64        // of one batch
	MaxInFlightBytes int64        // of all request bodies in memory
	MaxWaiters       int64        // requests that wait for publication
	MaxConnections   int
	MaxWait          time.Duration // longest timeout= of wait=published
	ReadTimeout      time.Duration // a whole request
	WriteTimeout     time.Duration // an answer, beyond the reading and any wait for publication
	IdleTimeout      time.Duration // between two requests of a connection

	ShowPayload bool
	Observe     http.Handler // GET /v1/status, /v1/history, /healthz, /readyz, /metrics
	Store       Store
	Now         func() time.Time
	Log         *slog.Logger
	Metrics     *metrics.Metrics
	Tracer      trace.Tracer // makes a span of each request that stores results; nil: none
}

// DefaultOptions are the bounds of a sidecar that is told nothing.
func DefaultOptions() Options {
	return Options{
		Mode: 0o660, GID: -1,
		MaxBatchBytes:    8 << 20,
		MaxInFlightBytes: 32 << 20,
		MaxWaiters:       1024,
		MaxConnections:   1024,
		MaxWait:          10 * time.Minute,
		ReadTimeout:      30 * time.Second,
		WriteTimeout:     30 * time.Second,
		IdleTimeout:      2 * time.Minute,
		Now:              time.Now,
	}
}

const (
	shutdownTimeout = 5 * time.Second // for requests under way, at the end
	maxHeaderBytes  = 16 << 10
)

// Server listens on the socket.
type Server struct {
	opts    Options
	socket  *socket
	conns   *connections
	http    *http.Server
	routes  map[string]methods // by path; made once, read by every request
	bodies  *semaphore.Weighted
	waiters *semaphore.Weighted
	logged  interval

	mu           sync.Mutex
	quick        map[*quickConn]struct{} // connections that net/http has not got
	quickRunning sync.WaitGroup
	handedOver   chan *countedConn // to net/http

	stopping context.Context // ends when the server begins to end
	stop     context.CancelFunc
}

// interval lets one line per key and second through: a full disk must not flood
// the log as well. How many there were is in the metrics.
type interval struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (i *interval) due(key string) bool {
	now := time.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	if now.Sub(i.last[key]) < time.Second {
		return false
	}
	i.last[key] = now
	return true
}

// Listen takes the socket. Clients may connect from here on; they are served
// once Run runs.
func Listen(opts Options) (*Server, error) {
	s, err := takeSocket(opts.Path, opts.Mode, opts.GID)
	if err != nil {
		return nil, fmt.Errorf("take the socket: %w", err)
	}
	srv := &Server{
		opts:    opts,
		socket:  s,
		conns:   limitConnections(s, opts.MaxConnections, opts.Access),
		bodies:  semaphore.NewWeighted(opts.MaxInFlightBytes),
		waiters: semaphore.NewWeighted(opts.MaxWaiters),
		logged:  interval{last: make(map[string]time.Time)},

		quick:      make(map[*quickConn]struct{}),
		handedOver: make(chan *countedConn),
	}
	srv.routes = srv.makeRoutes()
	srv.stopping, srv.stop = context.WithCancel(context.Background())
	for _, name := range problemNames {
		opts.Metrics.Rejected.WithLabelValues(name)
	}
	srv.http = &http.Server{
		Handler:           srv,
		ReadTimeout:       opts.ReadTimeout,
		ReadHeaderTimeout: min(opts.ReadTimeout, 10*time.Second),
		WriteTimeout:      opts.ReadTimeout + opts.WriteTimeout,
		IdleTimeout:       opts.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(opts.Log.Handler(), slog.LevelWarn),
		ConnContext:       srv.connContext,

		DisableGeneralOptionsHandler: true, // it would answer peers that may not connect
	}
	return srv, nil
}

func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, c.(*countedConn).peer) // of our own listener
}

// Run serves until soft ends, then lets requests under way finish, within a
// deadline and until hard ends, and gives the path back. Who waits for publication
// then is told at once how things stand.
func (s *Server) Run(soft, hard context.Context) error {
	failed := make(chan error, 1)
	s.quickRunning.Go(func() { failed <- s.acceptAll() })
	served := make(chan error, 1)
	go func() {
		served <- s.http.Serve(lobby{Listener: s.conns, handedOver: s.handedOver, done: s.stopping.Done()})
	}()
	var err error
	select {
	case err = <-failed:
	case <-soft.Done():
	}
	s.stop()
	s.wakeQuick()
	stop, cancel := context.WithTimeout(hard, shutdownTimeout)
	defer cancel()
	if cut := errors.Join(s.http.Shutdown(stop), s.finishQuick(stop)); cut != nil {
		s.opts.Log.Warn("requests were cut off at shutdown", "error", errors.Join(cut, s.http.Close()))
	}
	if e := <-served; !errors.Is(e, http.ErrServerClosed) && !errors.Is(e, net.ErrClosed) {
		err = errors.Join(err, e)
	}
	return errors.Join(err, s.socket.Close())
}

// Close gives the path back where Run never ran.
func (s *Server) Close() error {
	s.stop()
	return s.socket.Close()
}

// IdleSince returns since when no client has been connected; ok is false while
// one is.
func (s *Server) IdleSince() (t time.Time, ok bool) { return s.conns.idleSince() }
