//go:build kafka

package test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
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

// breaker does its verdict to frames at random gaps, about as long as a session's
// beginning: so that frames there are hit and frames of publishing.
type breaker struct {
	verdict testkit.Verdict
	mu      sync.Mutex
	gap     int            // frames that pass before the next hit
	hits    map[string]int // by API
	total   int
}

func (b *breaker) judge(f testkit.Frame) testkit.Verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gap--; b.gap >= 0 {
		return testkit.Pass
	}
	b.gap = rand.IntN(60)
	b.hits[kmsg.NameForKey(f.Key)]++
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
			l.drained() // it is in the middle of publishing
			b := &breaker{verdict: c.verdict, hits: map[string]int{}}
			broker.Proxy().Set(b.judge)
			defer broker.Proxy().Set(nil)
			for n := range c.hits {
				awaitTrue(t, "connections break", func(context.Context) (bool, error) { return b.count() > n, nil })
			}
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
			says := []string{"the topic was deleted, or the broker has lost it"}
			if suffix != "" {
				says = append(says, "the watermarks of this outbox are gone")
			}
			awaitTrue(t, "it says what that means", func(context.Context) (bool, error) {
				return !slices.ContainsFunc(says, func(text string) bool { return strings.Count(p.Output(), text) != 1 }), nil
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

// TestLeadersMove: in a cluster of three, the broker that leads most and then the
// coordinator of the sidecar's transactions die and come back.
func TestLeadersMove(t *testing.T) {
	brokers := testkit.StartCluster(t, 3)
	adm := kadm.NewClient(brokers[0].Client(t, kgo.SeedBrokers(brokers[0].Addr(), brokers[1].Addr(), brokers[2].Addr())))
	l := newLine(t, brokers[0].Addr(), "--brokers", brokers[1].Addr(), "--brokers", brokers[2].Addr())
	p := l.start()
	s := l.drained()
	load, cancel := l.startLoad()
	for _, find := range []func() int32{
		func() int32 { return mostLeaders(t, adm, l.topic) },
		func() int32 {
			c := adm.FindTxnCoordinators(t.Context(), l.topic+"-"+s.Outbox.ID)
			if err := c.Error(); err != nil || len(c) != 1 {
				t.Fatalf("find the coordinator: %v %v", c, err)
			}
			return c.Sorted()[0].NodeID
		},
	} {
		awaitAcked(t, load, len(load.Acked())+500)
		away := find()
		brokers[away-1].Kill(t)
		awaitAcked(t, load, len(load.Acked())+500)
		awaitPublishedSoFar(l)
		brokers[away-1].Start(t)
		awaitTrue(t, "all replicas are in sync", func(ctx context.Context) (bool, error) {
			topics, err := adm.ListTopicsWithInternal(ctx)
			inSync := true
			topics.EachPartition(func(d kadm.PartitionDetail) { inSync = inSync && len(d.ISR) == len(brokers) })
			return inSync && len(topics) > 0, err
		})
	}
	awaitAcked(t, load, len(load.Acked())+500)
	cancel()
	l.finish(p, load)
}

// mostLeaders is the broker that leads most partitions of a topic.
func mostLeaders(t *testing.T, adm *kadm.Client, topic string) int32 {
	t.Helper()
	topics, err := adm.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	led, most := map[int32]int{}, int32(0)
	topics.EachPartition(func(d kadm.PartitionDetail) {
		if led[d.Leader]++; led[d.Leader] > led[most] {
			most = d.Leader
		}
	})
	return most
}

// awaitPublishedSoFar waits until what is acknowledged by now is published.
func awaitPublishedSoFar(l *line) {
	l.t.Helper()
	s, err := l.status(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	for until := int64(0); until < s.Outbox.LastSeq; { // in steps: no time-out for the whole
		until = min(until+10_000, s.Outbox.LastSeq)
		l.awaitStatus("what was accepted is published", func(now status) bool { return now.Outbox.LastSeq-now.Outbox.Pending >= until })
	}
}

// TestOlderBroker: a broker with the features of Kafka 3.9 (no second version of
// transactions, KIP-890), and a sidecar that is killed again and again.
func TestOlderBroker(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithRelease("3.9-IV0"))
	l := newLine(t, broker.Addr())
	p := l.start()
	load, cancel := l.startLoad()
	for range max(5, *rounds/4) {
		awaitAcked(t, load, len(load.Acked())+100+rand.IntN(200))
		p.Kill(t)
		p = l.start()
	}
	awaitAcked(t, load, len(load.Acked())+300)
	cancel()
	l.finish(p, load)
}

// TestSlowBroker: each answer takes 100 ms, one in fifty 2 s.
func TestSlowBroker(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProxy())
	l := newLine(t, broker.Proxy().Addr())
	broker.Proxy().Set(func(f testkit.Frame) testkit.Verdict {
		switch {
		case !f.Answer:
		case rand.IntN(50) == 0:
			time.Sleep(2 * time.Second)
		default:
			time.Sleep(100 * time.Millisecond)
		}
		return testkit.Pass
	})
	p := l.start()
	load, cancel := l.startLoad()
	awaitAcked(t, load, 5000)
	cancel()
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	l.drained()
	broker.Proxy().Set(nil) // for the reader
	l.finish(p, load)
}

var away = flag.Duration("away", 10*time.Second, "how long TestBrokerAway stops the broker")

// TestBrokerAway: the intake goes on without a broker, and the log says what is
// wrong without being flooded.
func TestBrokerAway(t *testing.T) {
	broker := testkit.StartKafka(t)
	l := newLine(t, broker.Addr())
	p := l.start()
	load, cancel := l.startLoad()
	awaitAcked(t, load, 500)
	l.awaitStatus("it publishes", func(s status) bool { return s.Publisher.State == "publishing" })
	broker.Stop(t)
	stopped := time.Now()
	before := len(load.Acked())
	time.Sleep(*away) // the fault itself, not a wait for something
	during := len(load.Acked()) - before
	broker.Start(t)
	outage := time.Since(stopped)
	s, err := l.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	awaitPublishedSoFar(l)
	took := time.Since(start)
	said := 0
	for line := range strings.Lines(p.Output()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") || strings.Contains(line, "publishing works again") {
			said++
		}
	}
	const interval = 30 * time.Second // publisher.DefaultOptions: LogInterval
	if most := 1 + int(time.Since(stopped)/interval) + 1; said < 2 || said > most {
		t.Errorf("%d lines about an outage of %s, want 2 to %d:\n%s", said, outage.Round(time.Second), most, p.Output())
	}
	if during == 0 {
		t.Error("nothing was accepted while the broker was away")
	}
	cancel()
	l.finish(p, load)
	t.Logf("away for %s: %d accepted meanwhile, %d lines; %d pending published in %s, %.0f/s",
		outage.Round(time.Second), during, said, s.Outbox.Pending, took.Round(time.Millisecond), float64(s.Outbox.Pending)/took.Seconds())
}

// TestRightTakenAway: without a right it says which and waits; with the right
// given back it goes on.
func TestRightTakenAway(t *testing.T) {
	s := startSecured(t)
	for name, c := range map[string]struct {
		delivery string
		right    grant
		says     []string
	}{
		"exactly-once, the topic":            {"exactly-once", grant{"topic", kadm.OpWrite}, []string{"Write", "the topic"}},
		"exactly-once, the watermarks":       {"exactly-once", grant{"watermarks", kadm.OpWrite}, []string{"Write", "-watermarks"}},
		"exactly-once, the transactional ID": {"exactly-once", grant{"transactional ID", kadm.OpWrite}, []string{"Write", "transactional ID"}},
		"at-least-once, the topic":           {"at-least-once", grant{"topic", kadm.OpWrite}, []string{"Write", "the topic"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t, s.SecureAddr(), append(s.tls, "--delivery", c.delivery, "--kafka-sasl", "plain", "--kafka-username", "plain",
				"--kafka-password-file", s.file("password", []byte(testkit.SASLPassword)))...)
			s.grant("plain", l.topic, minimum...)
			p := l.start()
			l.drained()
			load, cancel := l.startLoad()
			awaitAcked(t, load, 300)
			s.revoke("plain", l.topic, c.right)
			l.awaitStatus("it names the right", func(s status) bool {
				return !slices.ContainsFunc(c.says, func(part string) bool { return !strings.Contains(s.Publisher.LastError, part) })
			})
			awaitAcked(t, load, len(load.Acked())+300)
			s.grant("plain", l.topic, c.right)
			awaitPublishedSoFar(l)
			cancel()
			if err := load.Wait(); err != nil {
				t.Fatal(err)
			}
			st := l.drained()
			if st.Outbox.Parked > 0 {
				t.Errorf("%d were parked", st.Outbox.Parked)
			}
			l.stop(p)
			testkit.CheckExactlyOnce(t, load.Acked(), testkit.Consume(t, s.Addr(), l.topic))
		})
	}
}
