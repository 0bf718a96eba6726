//go:build kafka

package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"workflow-results-sidecar/internal/testkit"
)

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
func runLoad(b *testing.B, address string, conns int, d time.Duration, want int, newRequest func() *testkit.BareRequest) measured {
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
func sendAll(ctx context.Context, address string, want int, req *testkit.BareRequest) ([]time.Duration, error) {
	latencies := make([]time.Duration, 0, 1<<12)
	err := sendEach(ctx, address, want, req, func(start, end time.Time) { latencies = append(latencies, end.Sub(start)) })
	return latencies, err
}

// sendEach sends one request after the other until ctx ends and tells when each
// was sent and answered.
func sendEach(ctx context.Context, address string, want int, req *testkit.BareRequest, answered func(start, end time.Time)) error {
	c, err := testkit.DialBare(address)
	if err != nil {
		return err
	}
	defer c.Close()
	for ctx.Err() == nil {
		req.Renew()
		start := time.Now()
		status, err := c.Post(req.Bytes)
		if err != nil {
			return err
		}
		if status != want {
			return fmt.Errorf("answered %d, not %d: %s", status, want, c.Rest())
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
