//go:build kafka

package test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/testkit"
)

var sizes = []int{50, 1000, 200, 8000}

func TestBrokerAwayInMidLoad(t *testing.T) {
	broker := testkit.StartKafka(t)
	l := newLine(t, broker.Addr())
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 8, Sizes: sizes, Keys: 4})
	awaitAcked(t, load, 500)
	broker.Stop(t)
	awaitAcked(t, load, len(load.Acked())+2000) // it goes on accepting
	broker.Start(t)
	awaitAcked(t, load, len(load.Acked())+500)
	broker.Kill(t)
	awaitAcked(t, load, len(load.Acked())+2000)
	broker.Start(t)
	awaitAcked(t, load, len(load.Acked())+500)
	cancel()
	l.finish(p, load)
}

// TestPauseBeyondTheTransactionTimeout: the sidecar is stopped inside a transaction;
// the broker gives that up and shuts the producer out, with no second producer anywhere.
func TestPauseBeyondTheTransactionTimeout(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProxy(), testkit.WithProperties("transaction.abort.timed.out.transaction.cleanup.interval.ms=500"))
	adm := kadm.NewClient(broker.Client(t))
	l := newLine(t, broker.Proxy().Addr())
	p := l.start()
	load, cancel := l.startLoad()
	l.drained()
	paused, goOn := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	var once sync.Once
	broker.Proxy().Set(func(f testkit.Frame) testkit.Verdict {
		if f.Key == produce && f.Answer {
			once.Do(func() {
				p.Pause(t)
				close(paused)
				<-goOn
			})
		}
		return testkit.Pass
	})
	<-paused
	open := func(ctx context.Context) (bool, error) {
		txns, err := adm.ListTransactions(ctx, nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"})
		return slices.ContainsFunc(txns.Sorted(), func(t kadm.ListedTransaction) bool { return strings.HasPrefix(t.TxnID, l.topic) }), err
	}
	if is, err := open(t.Context()); err != nil || !is {
		t.Fatalf("no transaction is open: %v", err)
	}
	awaitTrue(t, "Kafka gives the transaction up", func(ctx context.Context) (bool, error) {
		is, err := open(ctx)
		return !is, err
	})
	p.Resume(t)
	release()
	awaitAcked(t, load, len(load.Acked())+500)
	cancel()
	l.finish(p, load)
}

// TestZombieIsFenced: a copy of the data directory takes over while the first
// sidecar is paused; the first must notice and stop publishing.
func TestZombieIsFenced(t *testing.T) {
	broker := testkit.SharedKafka(t)
	a := newLine(t, broker.Addr())
	pa := a.start()
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: a.socket, Conns: 4, Count: 100})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	a.drained()
	pa.Pause(t)

	b := newLine(t, broker.Addr())
	b.topic = a.topic
	a.copyData(b.data)
	pb := b.start()
	if err := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: b.socket, Conns: 1, Count: 1}).Wait(); err != nil {
		t.Fatal(err)
	}
	fromB := b.drained()
	pa.Resume(t)
	late := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: a.socket, Conns: 4, Count: 50})
	if err := late.Wait(); err != nil {
		t.Fatal(err)
	}
	stopped := a.awaitStatus("the zombie stops publishing", func(s status) bool { return s.Publisher.State == "stopped" })
	if stopped.Outbox.Pending != 200 || stopped.Outbox.ID != fromB.Outbox.ID {
		t.Errorf("the zombie: %+v", stopped)
	}
	// The successor goes on, and is not shut out by the zombie's attempt.
	more := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: b.socket, Conns: 4, Count: 50})
	if err := more.Wait(); err != nil {
		t.Fatal(err)
	}
	b.drained()
	testkit.CheckExactlyOnce(t, slices.Concat(load.Acked(), more.Acked()), testkit.Consume(t, broker.Addr(), a.topic))

	// A restart gives the first a new identity; what it kept is published.
	pa.Kill(t)
	pa = a.start()
	if s := a.drained(); s.Outbox.ID == fromB.Outbox.ID {
		t.Error("after its restart the zombie has the successor's identity")
	}
	a.stop(pa)
	b.stop(pb)
	testkit.CheckExactlyOnce(t, slices.Concat(load.Acked(), more.Acked(), late.Acked()), testkit.Consume(t, broker.Addr(), a.topic))
}

// TestADrainThatIsFencedEnds: another copy takes over in the middle of a drain.
func TestADrainThatIsFencedEnds(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProxy())
	a := newLine(t, nowhere)
	p := a.start()
	pending := a.post(20)
	p.Kill(t)
	b := newLine(t, broker.Addr())
	b.topic = a.topic
	a.copyData(b.data)

	claimed, goOn := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	var requests atomic.Int32
	broker.Proxy().Set(func(f testkit.Frame) testkit.Verdict {
		if f.Key == produce && !f.Answer && requests.Add(1) == 2 { // the first is its claim
			close(claimed)
			<-goOn
		}
		return testkit.Pass
	})
	drain := testkit.StartSidecar(t, a.bin, "outbox", "drain", "--exit-when-empty", "--data-dir", a.data, "--brokers", broker.Proxy().Addr(), "--topic", a.topic)
	<-claimed
	pb := b.start()
	b.drained()
	release()
	if code := drain.Wait(t); code != 1 || !strings.Contains(drain.Output(), "20 results stay in "+a.data) {
		t.Errorf("the drain ended with %d", code)
	}
	b.stop(pb)
	testkit.CheckExactlyOnce(t, pending, testkit.Consume(t, broker.Addr(), a.topic))
}

// TestForeignTransactionWhileRecovering: another producer's open transaction on
// the watermark topic must not hide our watermark.
func TestForeignTransactionWhileRecovering(t *testing.T) {
	broker := testkit.SharedKafka(t)
	l := newLine(t, broker.Addr())
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 8})
	awaitAcked(t, load, 300)
	l.awaitStatus("the topics are there", func(s status) bool { return s.Publisher.State == "publishing" })

	other := broker.Client(t, kgo.TransactionalID("foreign-"+l.topic), kgo.TransactionTimeout(time.Minute), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := other.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	for partition := range int32(6) {
		r := &kgo.Record{Topic: l.topic + "-watermarks", Partition: partition, Key: []byte("foreign"), Value: []byte("{}")}
		if err := other.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	awaitAcked(t, load, len(load.Acked())+300) // these lie behind the foreign transaction
	p.Kill(t)
	p = l.start()
	awaitAcked(t, load, len(load.Acked())+300)
	if s, err := l.status(t.Context()); err != nil || s.Publisher.State == "publishing" {
		t.Errorf("it publishes before it could read its watermark: %+v %v", s.Publisher, err)
	}
	if err := other.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	cancel()
	l.finish(p, load)
}

// TestOldCopyOfTheDataDirectory: a restored backup must not take the watermark's
// word for rows that it gave the same seqs.
func TestOldCopyOfTheDataDirectory(t *testing.T) {
	broker := testkit.SharedKafka(t)
	l := newLine(t, broker.Addr())
	p := l.start()
	post := func() []testkit.Acked {
		t.Helper()
		load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 2, Count: 50})
		if err := load.Wait(); err != nil {
			t.Fatal(err)
		}
		l.drained()
		return load.Acked()
	}
	first := post()
	l.stop(p)
	backup := filepath.Join(l.dir, "backup")
	l.copyData(backup)
	p = l.start()
	second := post()
	before, err := l.status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.stop(p)
	if err := os.RemoveAll(l.data); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(backup, l.data); err != nil {
		t.Fatal(err)
	}
	l.broker = nowhere
	p = l.start() // it accepts before it can see Kafka
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 2, Count: 80})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Kill(t)
	l.broker = broker.Addr()
	p = l.start()
	if after := l.drained(); after.Outbox.ID == before.Outbox.ID {
		t.Error("the restored backup kept its identity")
	}
	l.stop(p)
	testkit.CheckExactlyOnce(t, slices.Concat(first, second, load.Acked()), testkit.Consume(t, broker.Addr(), l.topic))
}

func TestOversizedRecordAmongGoodOnes(t *testing.T) {
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		t.Run(delivery, func(t *testing.T) {
			broker := testkit.SharedKafka(t)
			l := newLine(t, broker.Addr(), "--delivery", delivery)
			p := l.start()
			l.drained()
			limit := "20000" // the sidecar does not know yet
			adm := kadm.NewClient(broker.Client(t))
			if _, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &limit}}, l.topic); err != nil {
				t.Fatal(err)
			}
			large := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 2, Count: 3, Sizes: []int{100, 600_000, 100}})
			small := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 4, Count: 100})
			for _, load := range []*testkit.Load{large, small} {
				if err := load.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			if s := l.drained(); s.Outbox.Parked != 2 {
				t.Errorf("parked %d, want 2", s.Outbox.Parked)
			}
			l.stop(p)
			var fit []testkit.Acked
			records := testkit.Consume(t, broker.Addr(), l.topic)
			if len(records) < 404 {
				t.Errorf("%d records", len(records))
			}
			published := map[string]bool{}
			for _, r := range records {
				published[testkit.Header(r, "ce_id")] = true
			}
			for _, a := range slices.Concat(large.Acked(), small.Acked()) {
				if published[a.EventID.String()] {
					fit = append(fit, a)
				}
			}
			if len(fit) != 404 {
				t.Errorf("%d of 404 are published", len(fit))
			}
			testkit.CheckAtLeastOnce(t, fit, records)
			if delivery == "exactly-once" {
				testkit.CheckExactlyOnce(t, fit, records)
			}
		})
	}
}

func TestTopicMissingExistingDifferent(t *testing.T) {
	broker := testkit.SharedKafka(t)
	adm := kadm.NewClient(broker.Client(t))
	l := newLine(t, broker.Addr())
	p := l.start()
	s := l.drained()
	for _, topic := range s.Publisher.Topics {
		if len(topic.Drift) > 0 {
			t.Errorf("a topic just made differs: %+v", topic)
		}
	}
	l.stop(p)

	p = l.start("--topic-partitions", "12", "--topic-retention", "1h")
	s = l.drained()
	var drift []string
	for _, d := range s.Publisher.Topics[0].Drift {
		drift = append(drift, d.Setting)
	}
	if !slices.Contains(drift, "partitions") || !slices.Contains(drift, "retention.ms") {
		t.Errorf("drift %v", drift)
	}
	if load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 1, Count: 10}); load.Wait() != nil {
		t.Error("a topic that differs must not block")
	}
	l.drained()
	l.stop(p)
	details, err := adm.ListTopics(t.Context(), l.topic)
	if err != nil || len(details[l.topic].Partitions) != 6 {
		t.Errorf("the topic was altered: %v %v", details, err)
	}
}

// TestColdBroker: the sidecar starts before Kafka does.
func TestColdBroker(t *testing.T) {
	broker := testkit.StartKafka(t)
	broker.Stop(t)
	l := newLine(t, broker.Addr())
	p := l.start()
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 4, Count: 100})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	broker.Start(t)
	l.drained()
	l.stop(p)
	testkit.CheckExactlyOnce(t, load.Acked(), testkit.Consume(t, broker.Addr(), l.topic))
}

// TestChangeOfDelivery goes to at-least-once and back under load.
func TestChangeOfDelivery(t *testing.T) {
	broker := testkit.SharedKafka(t)
	l := newLine(t, broker.Addr())
	var acked []testkit.Acked
	for _, delivery := range []string{"exactly-once", "at-least-once", "exactly-once"} {
		p := l.start("--delivery", delivery)
		load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 4, Count: 50})
		if err := load.Wait(); err != nil {
			t.Fatal(err)
		}
		acked = append(acked, load.Acked()...)
		l.drained()
		l.stop(p)
	}
	testkit.CheckExactlyOnce(t, acked, testkit.Consume(t, broker.Addr(), l.topic))
}
