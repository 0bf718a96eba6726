//go:build kafka

package bench

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/testkit"
)

// BenchmarkLine measures results per second from the first POST to the last
// proof of publication, 64 connections, without a reader beside it.
func BenchmarkLine(b *testing.B) {
	kafka := testkit.SharedKafka(b).Addr()
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		b.Run(delivery, func(b *testing.B) {
			for b.Loop() {
				p := newPlace(b, kafka, delivery)
				p.startPublishing()
				start := time.Now()
				m := runLoad(b, p.socket, 64, *duration, http.StatusCreated, testkit.SingleRequest)
				p.drained()
				perSecond(b, m.requests, time.Since(start), "results/s")
				milliseconds(b, time.Since(start)-m.elapsed, "drain-ms")
				p.stop()
			}
		})
	}
}

// BenchmarkBacklog measures how fast a backlog is published that grew while the
// broker was away.
func BenchmarkBacklog(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		b.Run(delivery, func(b *testing.B) {
			for b.Loop() {
				n, took := publishBacklog(b, kafka, delivery)
				perSecond(b, n, took, "results/s")
			}
		})
	}
}

// publishBacklog returns how many results were pending when publishing began, and
// how long they took.
func publishBacklog(b *testing.B, kafka *testkit.Kafka, delivery string) (int, time.Duration) {
	b.Helper()
	const results = 200_000
	p := newPlace(b, nowhere, delivery)
	p.start()
	fill(b, p.socket, results)
	p.process.Kill(b)
	p.broker = kafka.Addr()
	p.startPublishing()
	start, before := time.Now(), p.status().Outbox.Pending
	p.drained()
	took := time.Since(start)
	p.stop()
	return int(before), took
}

// fill puts n results in, in batches of 1024.
func fill(b *testing.B, socket string, n int) {
	b.Helper()
	c, err := testkit.DialBare(socket)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req := testkit.BatchRequest(1024)
	for sent := 0; sent < n; sent += 1024 {
		req.Renew()
		if status, err := c.Post(req.Bytes); err != nil || status != http.StatusOK {
			b.Fatalf("batch: %d %v", status, err)
		}
	}
}

// BenchmarkVisible measures from the start of a POST until a read_committed
// reader has the record, one result at a time.
func BenchmarkVisible(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		b.Run(delivery, func(b *testing.B) {
			for b.Loop() {
				m, posts := visible(b, kafka, delivery)
				milliseconds(b, m.quantile(0.5), "visible-p50-ms")
				milliseconds(b, m.quantile(0.99), "visible-p99-ms")
				milliseconds(b, posts[len(posts)/2], "post-p50-ms")
			}
		})
	}
}

// visible returns the times until results were seen, and those of their answers, sorted.
func visible(b *testing.B, kafka *testkit.Kafka, delivery string) (m measured, posts []time.Duration) {
	b.Helper()
	p := newPlace(b, kafka.Addr(), delivery)
	p.startPublishing()
	reader := kafka.Client(b, kgo.ConsumeTopics(p.topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(time.Second))
	c, err := testkit.DialBare(p.socket)
	if err != nil {
		b.Fatal(err)
	}
	req := testkit.SingleRequest()
	m = repeat(b, 0, func() error { return postAndSee(b.Context(), c, req, reader, &posts) })
	slices.Sort(posts)
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	p.stop()
	return m, posts
}

func postAndSee(ctx context.Context, c *testkit.BareClient, req *testkit.BareRequest, reader *kgo.Client, posts *[]time.Duration) error {
	req.Renew()
	start := time.Now()
	if _, err := c.Post(req.Bytes); err != nil {
		return err
	}
	*posts = append(*posts, time.Since(start))
	want := correlationOf(req)
	for {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		for _, r := range fetches.Records() {
			if string(r.Key) == want {
				return nil
			}
		}
	}
}

// correlationOf is the second ID of a request for one event.
func correlationOf(r *testkit.BareRequest) string {
	return string(r.ID(1))
}
