//go:build kafka

package test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/testkit"
)

// TestHangingTransaction: a transaction of the outbox is open in its partitions and
// no longer known to its coordinator, as a broker leaves it behind that was stopped
// at the moment of the commit. It ends as the sidecar was told that it did, and where
// it was told nothing, what is in it is published anew.
func TestHangingTransaction(t *testing.T) {
	for _, release := range []string{"", "3.9-IV0"} {
		for name, c := range map[string]struct {
			pending int  // results that wait
			beyond  bool // the transaction's watermark is past them
			visible bool // what it holds comes out in the end
		}{
			"Kafka said that it is committed":     {visible: true},
			"nobody knows":                        {pending: 10, beyond: true},
			"pending results were not part of it": {pending: 10, visible: true},
		} {
			t.Run(strings.TrimSpace(name+" "+release), func(t *testing.T) {
				opts := []testkit.KafkaOption{testkit.WithProperties("transaction.partition.verification.enable=false")} // else it would refuse what hang does
				if release != "" {
					opts = append(opts, testkit.WithRelease(release))
				}
				broker := testkit.StartKafka(t, opts...)
				l := newLine(t, broker.Addr())
				p := l.start()
				acked := l.post(50)
				s := l.drained()
				l.stop(p)
				l.broker = nowhere
				p = l.start()
				if c.pending > 0 {
					acked = slices.Concat(acked, l.post(c.pending))
				}
				p.Kill(t)
				l.broker = broker.Addr()

				through := int64(50)
				if c.beyond {
					through += int64(c.pending)
				}
				extra := uuid.New()
				home := l.markPartition(broker)
				if c.beyond { // so the coordinator does not say that the last one is committed
					abortOne(t, broker, l.topic+"-"+s.Outbox.ID, l.topic)
				}
				hang(t, broker, l.topic+"-"+s.Outbox.ID, &kgo.Record{Topic: l.topic, Key: []byte("k"), Value: []byte("{}"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(extra.String())}}},
					&kgo.Record{Topic: l.topic + "-watermarks", Partition: home, Key: []byte(s.Outbox.ID), Value: l.watermark(through)})

				p = l.start()
				l.drained()
				acked = slices.Concat(acked, l.post(20))
				l.drained()
				l.stop(p)
				ended := "ended=aborted"
				if c.visible {
					ended = "ended=committed"
				}
				if n := strings.Count(p.Output(), "had left a transaction"); n != 1 || !strings.Contains(p.Output(), ended) {
					t.Errorf("it told %d times of it, want once and %s", n, ended)
				}
				records := testkit.Consume(t, broker.Addr(), l.topic)
				isExtra := func(r *kgo.Record) bool { return testkit.Header(r, "ce_id") == extra.String() }
				if slices.ContainsFunc(records, isExtra) != c.visible {
					t.Errorf("what the transaction held is visible: %t", !c.visible)
				}
				testkit.CheckExactlyOnce(t, acked, slices.DeleteFunc(records, isExtra))
			})
		}
	}
}

// TestHangingTransactionOfWhichNobodyHeard: the coordinator has committed it, the results
// are visible, and only the watermarks' partition has no marker.
func TestHangingTransactionOfWhichNobodyHeard(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProperties("transaction.partition.verification.enable=false"))
	l, acked, pending := lineWithPending(t, broker.Addr())
	cl := broker.Client(t, kgo.TransactionalID(l.transactionalID()))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), l.recordsOf(pending)...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	hang(t, broker, l.transactionalID(), &kgo.Record{Topic: l.topic + "-watermarks", Partition: l.markPartition(broker), Key: []byte(l.outboxID), Value: l.watermark(60)})
	p := l.start()
	l.drained()
	acked = slices.Concat(acked, pending, l.post(20))
	l.drained()
	l.stop(p)
	if !strings.Contains(p.Output(), "ended=committed") {
		t.Error("it was not committed")
	}
	l.visibleOnce(broker, acked)
}

// TestKilledWhileATransactionIsEnded: what Kafka had said is committed hangs, and the
// process dies in the middle of committing it; the next InitProducerId aborts it all.
func TestKilledWhileATransactionIsEnded(t *testing.T) {
	broker := testkit.StartKafka(t, testkit.WithProxy(), testkit.WithProperties("transaction.partition.verification.enable=false"))
	l, acked, pending := lineWithPending(t, broker.Proxy().Addr())
	home := l.markPartition(broker)
	offset := hang(t, broker, l.transactionalID(), append(l.recordsOf(pending),
		&kgo.Record{Topic: l.topic + "-watermarks", Partition: home, Key: []byte(l.outboxID), Value: l.watermark(60)})...)
	topics, err := kadm.NewClient(broker.Client(t)).ListTopics(t.Context(), l.topic+"-watermarks")
	if err != nil {
		t.Fatal(err)
	}
	l.withOutbox(func(o *outbox.Outbox) {
		o.MarkPublished(outbox.Publication{Through: 60, At: time.Now(), Topic: l.topic,
			Watermark: outbox.WatermarkPosition{TopicID: topics[l.topic+"-watermarks"].ID, Partition: home, Offset: offset}})
	})

	dying := make(chan struct{})
	ending := sync.OnceFunc(func() { close(dying) })
	broker.Proxy().Set(func(f testkit.Frame) testkit.Verdict {
		if f.Key == endTxn && !f.Answer {
			ending()
			return testkit.Swallow
		}
		return testkit.Pass
	})
	p := l.start()
	<-dying
	p.Kill(t)
	broker.Proxy().Set(nil)
	p = l.start()
	l.drained()
	acked = slices.Concat(acked, pending, l.post(20))
	l.drained()
	l.stop(p)
	if !strings.Contains(p.Output(), "has undone a transaction") {
		t.Error("it does not tell that Kafka has undone a transaction")
	}
	l.visibleOnce(broker, acked)
}

// hangingLine is a line whose outbox's ID is known.
type hangingLine struct {
	*line
	outboxID string
}

func (l *hangingLine) transactionalID() string { return l.topic + "-" + l.outboxID }

// lineWithPending is a line with 50 published and 10 pending results, its sidecar dead.
func lineWithPending(t *testing.T, addr string) (l *hangingLine, published, pending []testkit.Acked) {
	t.Helper()
	l = &hangingLine{line: newLine(t, addr)}
	p := l.start()
	published = l.post(50)
	l.outboxID = l.drained().Outbox.ID
	l.stop(p)
	l.broker = nowhere
	p = l.start()
	pending = l.post(10)
	p.Kill(t)
	l.broker = addr
	return l, published, pending
}

// recordsOf are records that stand for results.
func (l *hangingLine) recordsOf(results []testkit.Acked) (records []*kgo.Record) {
	for _, a := range results {
		records = append(records, &kgo.Record{Topic: l.topic, Key: []byte(a.CorrelationID.String()), Value: []byte("{}"), Headers: []kgo.RecordHeader{{Key: "ce_id", Value: []byte(a.EventID.String())}}})
	}
	return records
}

// visibleOnce expects that a read_committed reader sees each result once.
func (l *hangingLine) visibleOnce(broker *testkit.Kafka, results []testkit.Acked) {
	l.t.Helper()
	times := make(map[string]int)
	for _, r := range testkit.Consume(l.t, broker.Addr(), l.topic) {
		times[testkit.Header(r, "ce_id")]++
	}
	for _, a := range results {
		if n := times[a.EventID.String()]; n != 1 {
			l.t.Errorf("result %s is visible %d times", a.EventID, n)
		}
	}
}

// withOutbox opens the outbox for as long as f takes, and until what it has marked is
// on disk. The sidecar must have ended.
func (l *line) withOutbox(f func(o *outbox.Outbox)) {
	l.t.Helper()
	opts := outbox.DefaultOptions()
	opts.Dir, opts.KeepAll, opts.Log, opts.Metrics = l.data, true, slog.New(slog.DiscardHandler), metrics.New(prometheus.NewRegistry())
	o, err := outbox.Open(l.t.Context(), opts)
	if err != nil {
		l.t.Fatal(err)
	}
	f(o)
	ctx, stop := context.WithCancel(l.t.Context())
	stop() // it commits what is marked, and ends
	if err := errors.Join(o.Run(ctx), o.Close()); err != nil {
		l.t.Fatal(err)
	}
}

// abortOne begins a transaction as the producer of a transactional ID, and aborts it.
func abortOne(t *testing.T, broker *testkit.Kafka, txnID, topic string) {
	t.Helper()
	cl := broker.Client(t, kgo.TransactionalID(txnID))
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte("{}")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := cl.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
}

// markPartition is where the watermarks of the line's only outbox lie.
func (l *line) markPartition(broker *testkit.Kafka) int32 {
	l.t.Helper()
	return testkit.Consume(l.t, broker.Addr(), l.topic+"-watermarks")[0].Partition
}

// watermark is what the outbox would write to say that all is published up to seq. The
// sidecar must have ended.
func (l *line) watermark(seq int64) []byte {
	l.t.Helper()
	var w outbox.Watermark
	l.withOutbox(func(o *outbox.Outbox) { w = o.Watermark(seq) })
	value, err := json.Marshal(map[string]any{"seq": w.Seq, "generation": w.Generation, "parkings": w.Parkings, "owner": w.Owner})
	if err != nil {
		l.t.Fatal(err)
	}
	return value
}

// hang appends records as the producer of a transactional ID, in a transaction that no
// coordinator is told of, and returns the offset of the last. The broker must not verify
// (KIP-890).
func hang(t *testing.T, broker *testkit.Kafka, txnID string, records ...*kgo.Record) (offset int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(produce, 11) // the next makes the partition part of the transaction
	cl := broker.Client(t, kgo.MaxVersions(versions))
	adm := kadm.NewClient(cl)
	txns, err := adm.DescribeTransactions(ctx, txnID)
	if err != nil || txns[txnID].Err != nil {
		t.Fatalf("%v %v", txns, err)
	}
	for _, r := range records {
		req := kmsg.NewPtrProduceRequest()
		req.TransactionID, req.Acks, req.TimeoutMillis = &txnID, -1, 10_000
		topic := kmsg.NewProduceRequestTopic()
		topic.Topic = r.Topic
		partition := kmsg.NewProduceRequestTopicPartition()
		partition.Partition, partition.Records = r.Partition, batchOf(r, nextOf(t, adm, r, txns[txnID]))
		topic.Partitions = append(topic.Partitions, partition)
		req.Topics = append(req.Topics, topic)
		leader, err := adm.ListTopics(ctx, r.Topic)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := cl.Broker(int(leader[r.Topic].Partitions[r.Partition].Leader)).Request(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		appended := answer.(*kmsg.ProduceResponse).Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(appended.ErrorCode); err != nil {
			t.Fatal(err)
		}
		offset = appended.BaseOffset
	}
	stable, err := adm.ListCommittedOffsets(ctx, records[0].Topic)
	ends, errEnds := adm.ListEndOffsets(ctx, records[0].Topic)
	if err != nil || errEnds != nil || fmt.Sprint(stable) == fmt.Sprint(ends) {
		t.Fatalf("nothing hangs: %v %v %v %v", stable, ends, err, errEnds)
	}
	return offset
}

// nextOf is what the partition of a record expects of a producer next.
func nextOf(t *testing.T, adm *kadm.Client, r *kgo.Record, txn kadm.DescribedTransaction) kmsg.RecordBatch {
	t.Helper()
	next := kmsg.RecordBatch{ProducerID: txn.ProducerID, ProducerEpoch: txn.ProducerEpoch}
	producers, err := adm.DescribeProducers(t.Context(), kadm.TopicsSet{r.Topic: {r.Partition: {}}})
	if err != nil {
		t.Fatal(err)
	}
	if last := producers[r.Topic].Partitions[r.Partition].ActiveProducers[txn.ProducerID]; last.ProducerEpoch == txn.ProducerEpoch {
		next.FirstSequence = last.LastSequence + 1 // without KIP-890 an epoch has many transactions
	}
	return next
}

// batchOf is one record as a transactional batch of its own, in Kafka's format
// (https://kafka.apache.org/documentation/#recordbatch).
func batchOf(r *kgo.Record, batch kmsg.RecordBatch) []byte {
	text := func(b, s []byte) []byte { return append(binary.AppendVarint(b, int64(len(s))), s...) }
	record := []byte{0, 0, 0} // attributes, and the differences of time and offset
	record = text(text(record, r.Key), r.Value)
	record = binary.AppendVarint(record, int64(len(r.Headers)))
	for _, h := range r.Headers {
		record = text(text(record, []byte(h.Key)), h.Value)
	}
	now := time.Now().UnixMilli()
	batch.PartitionLeaderEpoch, batch.Magic, batch.Attributes = -1, 2, 0x10
	batch.FirstTimestamp, batch.MaxTimestamp, batch.NumRecords, batch.Records = now, now, 1, text(nil, record)
	const lengthFrom, checksumFrom = 12, 21
	batch.Length = int32(len(batch.AppendTo(nil)) - lengthFrom)
	batch.CRC = int32(crc32.Checksum(batch.AppendTo(nil)[checksumFrom:], crc32.MakeTable(crc32.Castagnoli)))
	return batch.AppendTo(nil)
}
