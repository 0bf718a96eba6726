package publisher

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
	"workflow-results-sidecar/internal/testkit"
)

// TestNewestWatermarkOfSeveralPartitions: whatever partition comes last in a
// fetch, the newest watermark counts.
func TestNewestWatermarkOfSeveralPartitions(t *testing.T) {
	for _, newer := range []int32{0, 1, 2} {
		fake := testkit.StartFake(t)
		topic := WatermarksTopic(ResultsTopic("results", 3, 1, nil))
		st, err := EnsureTopic(t.Context(), kadm.NewClient(fake.Client(t)), topic)
		if err != nil {
			t.Fatal(err)
		}
		id := uuid.New()
		cl := fake.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		for p := range int32(3) {
			w := outbox.Watermark{Seq: 4}
			if p == newer {
				w.Seq = 9
			}
			r, err := watermarkRecord(topic.Name, p, id, w)
			if err != nil {
				t.Fatal(err)
			}
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		for name, hint := range map[string]outbox.WatermarkPosition{
			"no hint": {}, "beyond the end": {TopicID: st.ID, Partition: newer, Offset: 1000},
		} {
			w, err := readWatermark(t.Context(), []kgo.Opt{kgo.SeedBrokers(fake.Addr())}, st, id, hint, time.Minute)
			if err != nil || w == nil || w.Seq != 9 || w.partition != newer {
				t.Errorf("%s: %+v %v, want seq 9 in partition %d", name, w, err, newer)
			}
		}
	}
}

// TestWatermarkThatBeganAnewElsewhere: where ours had expired and partitions were
// added, it is in another partition than the one that the outbox remembers.
func TestWatermarkThatBeganAnewElsewhere(t *testing.T) {
	fake := testkit.StartFake(t)
	topic := WatermarksTopic(ResultsTopic("results", 2, 1, nil))
	st, err := EnsureTopic(t.Context(), kadm.NewClient(fake.Client(t)), topic)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	cl := fake.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for partition, of := range []uuid.UUID{uuid.New(), id} {
		r, err := watermarkRecord(topic.Name, int32(partition), of, outbox.Watermark{Seq: 7})
		if err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w, err := readWatermark(t.Context(), []kgo.Opt{kgo.SeedBrokers(fake.Addr())}, st, id, outbox.WatermarkPosition{TopicID: st.ID}, time.Minute)
	if err != nil || w == nil || w.partition != 1 {
		t.Errorf("%+v %v", w, err)
	}
}

// TestWatermarksStayInTheirPartition, where partitions are added in between.
func TestWatermarksStayInTheirPartition(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	b.opts.Watermarks.Partitions = 1
	runOnce := func() {
		p := New(b.opts)
		soft, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(soft, t.Context()) }()
		b.awaitPublished(b.add(10))
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	runOnce()
	if _, err := kadm.NewClient(b.fake.Client(t)).UpdatePartitions(t.Context(), 8, b.opts.Watermarks.Name); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		runOnce()
	}
	marks := testkit.Consume(t, b.fake.Addr(), b.opts.Watermarks.Name)
	for _, r := range marks {
		if r.Partition != 0 {
			t.Errorf("a watermark went to partition %d", r.Partition)
		}
	}
	if len(marks) < 4 {
		t.Errorf("%d watermarks", len(marks))
	}
}

// TestStopClosesTheGapOfARefusal: what Kafka has beyond a refused record is known
// to this process alone, so an orderly end in the middle must not leave it open.
func TestStopClosesTheGapOfARefusal(t *testing.T) {
	b := newBench(t, AtLeastOnce)
	b.opts.Topic.Configs["max.message.bytes"] = "2500"
	big := make([]byte, 3000)
	for i := range big {
		big[i] = 'a'
	}
	ids := b.add(5)
	r, err := result.Decode([]byte(`{"correlation_id":"`+uuid.NewString()+`","workflow_id":"w","workflow_run_id":"r","status":"success","result":{"big":"`+string(big)+`"}}`), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.outbox.Append(t.Context(), []result.Result{r}); err != nil {
		t.Fatal(err)
	}
	ids = append(ids, b.add(5)...)
	looking, goOn := b.hang(kmsg.DescribeConfigs, 1, 1) // the second look comes before the parking
	soft, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(b.opts).Run(soft, t.Context()) }()
	<-looking
	stop()
	goOn()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if st, err := b.outbox.Stats(t.Context()); err != nil || st.PendingRows != 0 || st.ParkedRows != 1 {
		t.Errorf("%+v %v", st, err)
	}
	b.run()
	b.awaitPublished(b.add(1))
	for id, n := range b.counts() {
		if n != 1 {
			t.Errorf("%s is there %d times", id, n)
		}
	}
	if len(b.counts()) != len(ids)+1 {
		t.Errorf("%d of %d are there", len(b.counts()), len(ids)+1)
	}
}

// TestAClockThatWasWrongHoldsNothingUp: brokers refuse records from the future.
func TestAClockThatWasWrongHoldsNothingUp(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ahead, want := range map[time.Duration]time.Duration{time.Minute: time.Minute, 24 * time.Hour: 0, -time.Hour: 0} {
		r := recordOf("t", "/src", &outbox.Row{AcceptedAt: now.Add(ahead)}, now)
		if got := r.Timestamp.Sub(now); got != want {
			t.Errorf("accepted %s ahead: the record is %s ahead, want %s", ahead, got, want)
		}
	}
}

// TestReadingThatIsHeldBackSaysByWhat: the open transaction of another producer ends
// the wait with an error that names it, and never with "there is none".
func TestReadingThatIsHeldBackSaysByWhat(t *testing.T) {
	fake := testkit.StartFake(t)
	topic := WatermarksTopic(ResultsTopic("results", 1, 1, nil))
	st, err := EnsureTopic(t.Context(), kadm.NewClient(fake.Client(t)), topic)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.New()
	mark, err := watermarkRecord(topic.Name, 0, id, outbox.Watermark{Seq: 7})
	if err != nil {
		t.Fatal(err)
	}
	foreign := fake.Client(t, kgo.TransactionalID("foreign"))
	if err := foreign.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := foreign.ProduceSync(t.Context(), &kgo.Record{Topic: topic.Name, Key: []byte("foreign")}, mark).FirstErr(); err != nil {
		t.Fatal(err)
	}
	opts := []kgo.Opt{kgo.SeedBrokers(fake.Addr())}
	w, err := readWatermark(t.Context(), opts, st, id, outbox.WatermarkPosition{}, time.Second)
	if err == nil || w != nil || !strings.Contains(err.Error(), "since offset 0 of partition 0 of topic results-watermarks") || !strings.Contains(err.Error(), "kafka-transactions.sh") {
		t.Fatalf("%+v %v", w, err)
	}
	if err := foreign.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if w, err := readWatermark(t.Context(), opts, st, id, outbox.WatermarkPosition{}, time.Minute); err != nil || w == nil || w.Seq != 7 {
		t.Errorf("afterwards: %+v %v", w, err)
	}
}

// TestWhatKafkaHasUndoneIsPublishedAgain: the watermark that Kafka had said is committed
// is aborted, and what it told of with it.
func TestWhatKafkaHasUndoneIsPublishedAgain(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	runUntil := func(ids []uuid.UUID) {
		p := New(b.opts)
		soft, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(soft, t.Context()) }()
		b.awaitPublished(ids)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	first := b.add(10)
	runUntil(first)
	undone := b.add(5)

	through := b.outbox.Proven() + 5
	home := b.outbox.WatermarkPosition()
	mark, err := watermarkRecord(b.opts.Watermarks.Name, home.Partition, b.outbox.ID(), b.outbox.Watermark(through))
	if err != nil {
		t.Fatal(err)
	}
	earlier := b.fake.Client(t, kgo.TransactionalID(transactionalID("results", b.outbox.ID())), kgo.RecordPartitioner(partitioner{b.opts.Watermarks.Name}))
	if err := earlier.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	rows, err := b.outbox.Next(t.Context(), b.outbox.Proven(), 10, 1<<20)
	if err != nil || len(rows) != 5 {
		t.Fatal(rows, err)
	}
	pub := outbox.Publication{Through: through, At: time.Now(), Topic: "results"}
	for i := range rows {
		r := recordOf("results", "/test", &rows[i], time.Now())
		if err := earlier.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		pub.Placements = append(pub.Placements, outbox.Placement{Seq: rows[i].Seq, Partition: r.Partition, Offset: r.Offset})
		pub.Bytes += rows[i].Bytes
	}
	if err := earlier.ProduceSync(t.Context(), mark).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := earlier.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	pub.Watermark = outbox.WatermarkPosition{TopicID: home.TopicID, Partition: mark.Partition, Offset: mark.Offset}
	b.outbox.MarkPublished(pub) // as if it had been told so

	more := b.add(3)
	runUntil(more)
	b.eachOnce(slices.Concat(first, undone, more))
	last := b.add(1)
	runUntil(last) // and not once more
	b.eachOnce(slices.Concat(first, undone, more, last))
}

// TestBrokerThatCannotTellOfOpenTransactions: it is published to all the same.
func TestBrokerThatCannotTellOfOpenTransactions(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	var asked atomic.Int32
	b.fake.ControlKey(int16(kmsg.DescribeProducers), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		b.fake.KeepControl()
		asked.Add(1)
		req := kreq.(*kmsg.DescribeProducersRequest)
		resp := req.ResponseKind().(*kmsg.DescribeProducersResponse)
		for _, t := range req.Topics {
			topic := kmsg.NewDescribeProducersResponseTopic()
			topic.Topic = t.Topic
			for _, p := range t.Partitions {
				partition := kmsg.NewDescribeProducersResponseTopicPartition()
				partition.Partition, partition.ErrorCode = p, kerr.UnsupportedVersion.Code
				topic.Partitions = append(topic.Partitions, partition)
			}
			resp.Topics = append(resp.Topics, topic)
		}
		return resp, nil, true
	})
	ids := b.add(10)
	b.run()
	b.awaitPublished(ids)
	b.eachOnce(ids)
	if asked.Load() == 0 {
		t.Error("it was not asked")
	}
}
