package ipc

import (
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"workflow-results-sidecar/internal/testkit"
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
	request, want := testkit.SingleRequest, http.StatusCreated
	if rows > 1 {
		request, want = func() *testkit.BareRequest { return testkit.BatchRequest(rows) }, http.StatusOK
	}
	var exchanges []func() error
	for range conns {
		c, err := testkit.DialBare(h.path)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		r := request()
		exchange := func() error {
			r.Renew()
			status, err := c.Post(r.Bytes)
			if err == nil && status != want {
				err = fmt.Errorf("answered %d: %s", status, c.Rest())
			}
			return err
		}
		if err := exchange(); err != nil { // the first allocates what a connection keeps
			b.Fatal(err)
		}
		exchanges = append(exchanges, exchange)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, exchange := range exchanges {
		wg.Go(func() {
			for left.Add(-int64(rows)) > -int64(rows) {
				if err := exchange(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "results/s")
}
