package publisher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/outbox"
)

// link is one producing client and what it publishes to.
type link struct {
	p      *Publisher
	cl     *kgo.Client
	topics topics
	id     uuid.UUID // of the outbox, as the transactional ID has it
	home   int32     // the partition of this outbox's watermarks

	producer struct { // as InitProducerId gave it; EndTxn may have raised the epoch since
		id    int64
		epoch int16
	}
}

// transactionalID names the one producer of an outbox: a successor with the same
// ID fences a zombie.
func transactionalID(topic string, id uuid.UUID) string { return topic + "-" + id.String() }

func (p *Publisher) producerOpts(maxMessage int32) []kgo.Opt {
	opts := slices.Concat(p.opts.Client, p.opts.Hooks, []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchMaxBytes(maxMessage),
		kgo.UnknownTopicRetries(-1),
		kgo.RecordPartitioner(partitioner{p.opts.Watermarks.Name}),
		kgo.ProducerLinger(0),
		kgo.MaxBufferedRecords(p.opts.MaxRows + 1),
		kgo.RetryBackoffFn(retryBackoff),
	})
	if p.needsWatermarks() {
		opts = append(opts,
			kgo.TransactionalID(transactionalID(p.opts.Topic.Name, p.source.ID())),
			kgo.TransactionTimeout(p.opts.TransactionTimeout),
			kgo.ConcurrentTransactionsBackoff(2*time.Millisecond))
	}
	return opts
}

// retryBackoff starts low: the first request after a transaction often finds its
// markers still being written.
func retryBackoff(attempt int) time.Duration {
	return min(time.Millisecond<<min(attempt, 12), 2500*time.Millisecond)
}

// recover finds out what is published and makes us the only publisher. Only
// then may anything be sent.
func (l *link) recover(ctx context.Context) error {
	if !l.p.needsWatermarks() {
		return l.p.source.SetDelivery(ctx, string(l.p.opts.Delivery))
	}
	l.id = l.p.source.ID()
	if err := l.lookBack(ctx); err != nil {
		return err
	}
	if err := l.fence(ctx); err != nil {
		return err
	}
	if err := l.settle(ctx); err != nil {
		return err
	}
	w, err := readWatermark(ctx, l.p.opts.Client, l.topics.watermarks, l.id, l.p.source.WatermarkPosition(), l.p.stall())
	if err != nil {
		return err
	}
	l.home = homePartition(l.id, l.topics.watermarks.Partitions)
	if w == nil && l.p.source.WatermarkPosition() != (outbox.WatermarkPosition{}) {
		l.p.missing(l.topics.watermarks.Name)
	}
	if w != nil {
		l.home = w.partition
		if err := l.judge(ctx, w.Watermark); err != nil {
			return err
		}
		if err := l.takeBack(ctx, *w); err != nil {
			return err
		}
	}
	if err := l.p.source.SetDelivery(ctx, string(l.p.opts.Delivery)); err != nil {
		return err
	}
	if l.p.opts.Delivery == AtLeastOnce {
		return errNewMode // the transactional producer has done its part
	}
	return l.claim(ctx, w != nil)
}

// errNewMode ends the session in which a change away from exactly-once was
// settled; the next one has a producer without transactions.
var errNewMode = fmt.Errorf("%w: delivery is at-least-once from here on", errAgain)

// fence runs InitProducerId: it ends what an earlier producer of this outbox
// had left open, and shuts that producer out.
func (l *link) fence(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	var err error
	l.producer.id, l.producer.epoch, err = l.cl.ProducerID(ctx)
	if errors.Is(err, kerr.TransactionalIDAuthorizationFailed) {
		return fmt.Errorf("transactional ID %s: not authorised: grant this principal Write on the prefix %s, or choose --delivery at-least-once: %w", transactionalID(l.p.opts.Topic.Name, l.id), l.p.opts.Topic.Name+"-", err)
	}
	if err != nil {
		return fmt.Errorf("take over the transactional ID: %w", err)
	}
	return nil
}

// judge takes what the newest watermark of ours proves.
func (l *link) judge(ctx context.Context, w outbox.Watermark) error {
	src := l.p.source
	if own := src.Watermark(0).Owner; l.p.claimed && w.Owner != own {
		return errAnotherCopy
	}
	if !src.Judges(w) {
		id, err := src.TakeNewID(ctx)
		if err != nil {
			return err
		}
		l.p.claimed = false
		l.p.log.Error("the data directory is an old copy or a restored backup: Kafka holds a watermark of this outbox that its rows do not explain. It takes a new ID and publishes all that is pending; readers may see results twice, each with the same ce_id",
			"old_outbox_id", l.id, "outbox_id", id, "watermark_seq", w.Seq)
		return fmt.Errorf("%w: the outbox took a new ID", errAgain)
	}
	if w.Seq > src.Proven() {
		src.MarkPublished(outbox.Publication{Through: w.Seq, At: l.p.opts.Now(), Topic: l.p.opts.Topic.Name})
	}
	return nil
}

// claim commits a watermark with our owner before anything is published: only
// from then on does a foreign owner prove another copy. The first claim of an
// outbox is read back: that a recovery will not be allowed to read watermarks must
// show before there is anything to recover.
func (l *link) claim(ctx context.Context, readBefore bool) error {
	if l.p.claimed {
		return nil
	}
	pub, err := l.transact(nil, l.p.source.Proven())
	if err != nil {
		return fmt.Errorf("claim the outbox ID: %w", err)
	}
	if !readBefore {
		w, err := readWatermark(ctx, l.p.opts.Client, l.topics.watermarks, l.id, pub.Watermark, l.p.stall())
		if err != nil {
			return err
		}
		if own := l.p.source.Watermark(0).Owner; w == nil || w.Owner != own {
			return fmt.Errorf("the watermark that was just committed to %s, partition %d, is not read back", l.topics.watermarks.Name, l.home)
		}
	}
	l.p.claimed = true
	return nil
}

// publish sends rows and returns once it is proven that Kafka has them all.
// Otherwise nothing may be concluded but what a *refusedError says.
func (l *link) publish(rows []outbox.Row) (outbox.Publication, error) {
	through := rows[len(rows)-1].Seq
	if l.p.opts.Delivery == ExactlyOnce {
		return l.transact(rows, through)
	}
	return l.publishIdempotently(rows, through)
}

// publishIdempotently sends what is not acknowledged yet. What Kafka has beyond
// a refused record is remembered, so that narrowing down on that one repeats none.
func (l *link) publishIdempotently(rows []outbox.Row, through int64) (outbox.Publication, error) {
	acked := l.p.acked
	var todo []outbox.Row
	for _, r := range rows {
		if _, ok := acked[r.Seq]; !ok {
			todo = append(todo, r)
		}
	}
	records := l.records(todo)
	ok, err := l.send(records)
	for i, r := range todo {
		if ok[i] {
			acked[r.Seq] = outbox.Placement{Seq: r.Seq, Partition: records[i].Partition, Offset: records[i].Offset}
		}
	}
	if err != nil {
		return outbox.Publication{}, err
	}
	pub := outbox.Publication{Through: through, At: l.p.opts.Now().UTC(), Topic: l.p.opts.Topic.Name}
	for _, r := range rows {
		pub.Placements = append(pub.Placements, acked[r.Seq])
		pub.Bytes += r.Bytes
		delete(acked, r.Seq)
	}
	return pub, nil
}

func (l *link) records(rows []outbox.Row) []*kgo.Record {
	now := l.p.opts.Now()
	records := make([]*kgo.Record, 0, len(rows)+1)
	for i := range rows {
		records = append(records, recordOf(l.p.opts.Topic.Name, l.p.opts.CESource, &rows[i], now))
	}
	return records
}

func (l *link) publication(rows []outbox.Row, records []*kgo.Record, through int64) outbox.Publication {
	pub := outbox.Publication{Through: through, At: l.p.opts.Now().UTC(), Topic: l.p.opts.Topic.Name, Placements: make([]outbox.Placement, len(rows))}
	for i := range rows {
		pub.Placements[i] = outbox.Placement{Seq: rows[i].Seq, Partition: records[i].Partition, Offset: records[i].Offset}
		pub.Bytes += rows[i].Bytes
	}
	return pub
}

// transact publishes rows and the watermark in one Kafka transaction. It is
// proven when every promise and EndTransaction returned nil. EndTransaction
// alone proves nothing: it commits what succeeded, and returns nil even when
// nothing did.
func (l *link) transact(rows []outbox.Row, through int64) (pub outbox.Publication, err error) {
	mark, err := watermarkRecord(l.topics.watermarks.Name, l.home, l.id, l.p.source.Watermark(through))
	if err != nil {
		return pub, err
	}
	if err := l.cl.BeginTransaction(); err != nil {
		return pub, fmt.Errorf("begin the transaction: %w", err)
	}
	records := append(l.records(rows), mark)
	if _, err := l.send(records); err != nil {
		return pub, l.abort(err)
	}
	// A cancelled EndTransaction has an unknown outcome, so it has no deadline;
	// closing the client ends it where the process must go.
	if err := l.cl.EndTransaction(context.Background(), kgo.TryCommit); err != nil {
		l.p.metrics.Transactions.WithLabelValues("unknown").Inc()
		return pub, fmt.Errorf("commit the transaction (the outcome is unknown until the watermark was read): %w", err)
	}
	l.p.metrics.Transactions.WithLabelValues("committed").Inc()
	pub = l.publication(rows, records, through)
	pub.Watermark = outbox.WatermarkPosition{
		TopicID: l.topics.watermarks.ID, Partition: mark.Partition, Offset: mark.Offset,
	}
	return pub, nil
}

// abort ends a transaction that must not commit. Only after a clean abort does
// a refusal stand; otherwise the session ends and the next one recovers.
func (l *link) abort(cause error) error {
	var stalled *stalledError
	if errors.As(cause, &stalled) {
		l.p.metrics.Transactions.WithLabelValues("unknown").Inc()
		return cause
	}
	if err := l.cl.EndTransaction(context.Background(), kgo.TryAbort); err != nil {
		l.p.metrics.Transactions.WithLabelValues("unknown").Inc()
		return fmt.Errorf("abort the transaction: %w (after: %w)", err, cause)
	}
	l.p.metrics.Transactions.WithLabelValues("aborted").Inc()
	return cause
}

// refusedError says that Kafka will never take one of the results that were sent.
type refusedError struct {
	cause error
	sent  int // results it was among; 1: it is that one
}

func (e *refusedError) Error() string { return "Kafka refuses the record: " + e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

// stalledError says that records were not answered in time. They may still be
// on their way: only closing the client ends that.
type stalledError struct{ after time.Duration }

func (e *stalledError) Error() string {
	return fmt.Sprintf("Kafka did not answer within %s", e.after)
}

// explainProduce names the access control that is missing, or what else a person
// must set right.
func explainProduce(err error) error {
	switch {
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("not authorised: grant this principal Write on the topic: %w", err)
	case errors.Is(err, kerr.ClusterAuthorizationFailed): // what an idempotent producer meets that may write nowhere
		return fmt.Errorf("not authorised: grant this principal Write on the topic, or IdempotentWrite on the cluster: %w", err)
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return fmt.Errorf("not authorised: grant this principal Write on the transactional ID, or choose --delivery at-least-once: %w", err)
	case errors.Is(err, kerr.InvalidTimestamp):
		return fmt.Errorf("this machine's clock differs from the broker's by more than the topic allows (message.timestamp.after.max.ms, message.timestamp.before.max.ms): set it right: %w", err)
	}
	return err
}

// explainLogin names the flag that the broker's answer to a login is about.
func explainLogin(err error) error {
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("the broker refuses the login: correct --kafka-username, or what --kafka-password-file holds (for a token, --kafka-token-file); files are read anew for each connection: %w", err)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		return fmt.Errorf("the broker has no login of the kind of --kafka-sasl: choose another: %w", err)
	case errors.Is(err, kerr.IllegalSaslState):
		return fmt.Errorf("the broker's port takes no login: leave out --kafka-sasl, or name a port with SASL in --brokers: %w", err)
	}
	return err
}

// isRefusal lists the errors of a record that no retry can mend. The list is
// closed: everything else is tried again.
func isRefusal(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

// send produces records, waits for every promise, and tells which of them Kafka
// has. An error that is no refusal outweighs those that are.
func (l *link) send(records []*kgo.Record) ([]bool, error) {
	var (
		wg             sync.WaitGroup
		mu             sync.Mutex
		failed, refuse error
		results        int
	)
	ok := make([]bool, len(records))
	wg.Add(len(records))
	for i, r := range records {
		if r.Topic == l.p.opts.Topic.Name {
			results++
		}
		l.cl.Produce(context.Background(), r, func(_ *kgo.Record, err error) {
			defer wg.Done()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ok[i] = true
				return
			}
			if isRefusal(err) && r.Topic == l.p.opts.Topic.Name {
				refuse = err
			} else if failed == nil {
				failed = fmt.Errorf("produce to %s: %w", r.Topic, explainProduce(err))
			}
		})
	}
	if err := l.await(&wg); err != nil {
		return make([]bool, len(records)), err // promises may still come: they tell nobody
	}
	switch {
	case failed != nil:
		return ok, failed
	case refuse != nil:
		return ok, &refusedError{cause: refuse, sent: results}
	}
	return ok, nil
}

// await bounds the wait for promises: beyond the transaction time-out Kafka has
// given the transaction up, and at-least-once is better off with a new client.
func (l *link) await(wg *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }() // ends at the latest when the session closes the client
	timeout := time.NewTimer(l.p.opts.TransactionTimeout)
	defer timeout.Stop()
	select {
	case <-done:
		return nil
	case <-timeout.C:
		return &stalledError{l.p.opts.TransactionTimeout}
	}
}
