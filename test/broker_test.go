//go:build kafka

package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"workflow-results-sidecar/internal/testkit"
)

// startLoad keeps eight clients busy until cancel: fast enough to be in the
// middle of something always, slow enough that what was held up drains soon.
func (l *line) startLoad() (load *testkit.Load, cancel context.CancelFunc) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	l.t.Cleanup(cancel)
	return testkit.StartLoad(ctx, l.t, testkit.LoadConfig{Socket: l.socket, Conns: 8, Sizes: sizes, Keys: 4, Rate: 500}), cancel
}

// awaitTrue polls until ok says so; what it last could not do is its error.
func awaitTrue(t *testing.T, what string, ok func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok(ctx)
		if done && err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s: %v", what, err)
		}
	}
}

// breaker does its verdict to frames at random, and the oftener it has hit an API
// the more rarely it hits it: so that the few frames of a session's beginning are
// hit too, and sessions get past it.
type breaker struct {
	verdict testkit.Verdict
	mu      sync.Mutex
	hits    map[string]int // by API
	total   int
}

func (b *breaker) judge(f testkit.Frame) testkit.Verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := kmsg.NameForKey(f.Key)
	if rand.IntN(10*(1+b.hits[name])) > 0 {
		return testkit.Pass
	}
	b.hits[name]++
	b.total++
	return b.verdict
}

func (b *breaker) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// TestConnectionsThatBreak: requests and answers of every kind are lost, torn, or
// lost without a word; time-outs and new sessions mend it, and no restart.
func TestConnectionsThatBreak(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProxy())
	for _, c := range []struct {
		name    string
		verdict testkit.Verdict
		hits    int
	}{
		{"cut", testkit.Cut, 4 * *rounds},
		{"cut in half", testkit.CutHalf, 4 * *rounds},
		{"swallowed", testkit.Swallow, *rounds / 4}, // each costs a time-out of ten seconds
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLine(t, broker.Proxy().Addr())
			p := l.start()
			load, cancel := l.startLoad()
			awaitAcked(t, load, 300)
			b := &breaker{verdict: c.verdict, hits: map[string]int{}}
			broker.Proxy().Set(b.judge)
			defer broker.Proxy().Set(nil)
			awaitTrue(t, "connections break", func(context.Context) (bool, error) { return b.count() >= c.hits, nil })
			broker.Proxy().Set(nil)
			awaitAcked(t, load, len(load.Acked())+300)
			cancel()
			l.finish(p, load)
			t.Logf("%d breaks %v under %d results", b.count(), b.hits, len(load.Acked()))
		})
	}
}

// TestTopicsDeleted: what lay in a deleted topic is gone, and the rest goes on in
// a new one.
func TestTopicsDeleted(t *testing.T) {
	broker := testkit.SharedKafka(t)
	adm := kadm.NewClient(broker.Client(t))
	for _, suffix := range []string{"", "-watermarks"} {
		t.Run("results"+suffix, func(t *testing.T) {
			l := newLine(t, broker.Addr())
			topic := l.topic + suffix
			p := l.start()
			l.drained()
			load, cancel := l.startLoad()
			awaitAcked(t, load, 500)
			if _, err := adm.DeleteTopic(t.Context(), topic); err != nil {
				t.Fatal(err)
			}
			made := fmt.Sprintf("msg=\"topic created\" topic=%s ", topic)
			awaitTrue(t, "the topic is made again", func(context.Context) (bool, error) {
				return strings.Count(p.Output(), made) == 2, nil
			})
			before := len(load.Acked())
			awaitAcked(t, load, before+500)
			cancel()
			if err := load.Wait(); err != nil {
				t.Fatal(err)
			}
			l.drained()
			l.stop(p)
			acked := load.Acked()
			if suffix == "" {
				acked = acked[before:]
			}
			testkit.CheckExactlyOnce(t, acked, testkit.Consume(t, broker.Addr(), l.topic))
		})
	}
}

// TestIDsExpiredWhileIdle: Kafka forgets the transactional ID and the producer ID
// of a sidecar that has nothing to say; what comes next goes out all the same.
func TestIDsExpiredWhileIdle(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProperties(
		"transactional.id.expiration.ms=1000", "transaction.remove.expired.transaction.cleanup.interval.ms=1000",
		"producer.id.expiration.ms=1000", "producer.id.expiration.check.interval.ms=1000"))
	adm := kadm.NewClient(broker.Client(t))
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		t.Run(delivery, func(t *testing.T) {
			l := newLine(t, broker.Addr(), "--delivery", delivery)
			p := l.start()
			var acked []testkit.Acked
			for range 3 {
				acked = append(acked, l.post(20)...)
				l.drained()
				awaitTrue(t, "Kafka forgets the producer", func(ctx context.Context) (bool, error) {
					known, err := adm.ListTransactions(ctx, nil, nil)
					for _, txn := range known {
						if strings.HasPrefix(txn.TxnID, l.topic) {
							return false, err
						}
					}
					topics := kadm.TopicsSet{}
					for p := range int32(6) {
						topics.Add(l.topic, p)
					}
					active, err2 := adm.DescribeProducers(ctx, topics)
					if err == nil {
						err = err2
					}
					return len(active.SortedProducers()) == 0, err
				})
			}
			acked = append(acked, l.post(20)...)
			l.drained()
			l.stop(p)
			testkit.CheckExactlyOnce(t, acked, testkit.Consume(t, broker.Addr(), l.topic))
		})
	}
}
