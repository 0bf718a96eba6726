package publisher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"workflow-results-sidecar/internal/outbox"
)

// A transaction hangs when a partition holds it open and its coordinator has done
// with it (KIP-664): nobody will end it, and no read_committed reader gets past it.
// Kafka leaves one where a partition has no leader at the moment of the commit: it
// takes the partition for deleted, and says that all is committed (KAFKA-20734). A
// single broker that is stopped under load is enough.

// hanging is what a transaction of ours holds open of the watermarks' topic.
type hanging struct {
	at   span // of the partition
	part int32
}

// ending is what the coordinator says of the last transaction of ours.
type ending int

const (
	unknown   ending = iota
	committed        // or about to be: nothing can change it
	aborted          // or open still, and InitProducerId aborts it
)

// lookBack asks the coordinator how the last transaction of ours ended. It must be
// called before InitProducerId, which makes the coordinator forget it: then what was
// heard before that holds, if it was this process that asked.
func (l *link) lookBack(ctx context.Context) error {
	id := transactionalID(l.p.opts.Topic.Name, l.id)
	txns, err := kadm.NewClient(l.cl).DescribeTransactions(ctx, id)
	txn := txns[id]
	if err == nil {
		err = txn.Err
	}
	switch {
	case errors.Is(err, kerr.TransactionalIDNotFound), errors.Is(err, kerr.TransactionalIDAuthorizationFailed), isUnsupported(err):
		return nil // it is the first start; or fence says what is missing; or our own numbers must do
	case err != nil:
		return fmt.Errorf("ask how the last transaction ended: %w", err)
	}
	switch txn.State {
	case "Empty", "Dead": // InitProducerId came after it
	case "PrepareCommit", "CompleteCommit":
		l.p.last = committed
	default:
		l.p.last = aborted
	}
	return nil
}

// isUnsupported: the broker does not know a request. The client's own error for what it
// knows beforehand has no name outside of it.
func isUnsupported(err error) bool {
	return errors.Is(err, kerr.UnsupportedVersion) || err != nil && strings.Contains(err.Error(), "broker is too old")
}

// settle ends the transaction of this outbox that hangs, if there is one, in the way
// that loses nothing and repeats nothing: committed where the coordinator has said so,
// to lookBack or in its time to who published it, else aborted, and then what was in it
// is published again. It must be called after InitProducerId, which returns only once
// no transaction of ours is open for its coordinator. If we crash in here, the next
// InitProducerId aborts it: see takeBack.
func (l *link) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	found, err := l.findHanging(ctx)
	if err != nil || len(found) == 0 {
		return err
	}
	spans := make(map[int32]span)
	for _, h := range found {
		spans[h.part] = h.at
	}
	w, err := readSpans(ctx, l.p.opts.Client, l.topics.watermarks, l.id, spans, kgo.ReadUncommitted(), l.p.stall())
	if err != nil {
		return err
	}
	// Where an abort came over some of its partitions, the others must follow. What we do
	// not know the rows of we could not publish again.
	told := l.p.last == committed || l.p.last == unknown && w != nil && w.Seq <= l.p.source.Proven()
	commit := w != nil && (told || !l.p.source.Judges(w.Watermark))
	if err := l.end(ctx, commit); err != nil {
		return fmt.Errorf("end a transaction that Kafka has left open: %w", err)
	}
	ended := "aborted"
	if commit {
		ended = "committed"
	}
	l.p.log.Warn("Kafka had left a transaction of this outbox open; it is ended now",
		"ended", ended, "topic", l.topics.watermarks.Name, "partition", found[0].part, "offset", found[0].at.from, "outbox_id", l.id,
		"help", "nothing is lost, and nothing is to be done; a broker that stops while a partition has no other replica does this (KAFKA-20734)")
	return fmt.Errorf("%w: a hanging transaction was %s", errAgain, ended) // its end may have taken the producer's epoch
}

// findHanging asks the leaders of the partitions that may have watermarks of ours.
func (l *link) findHanging(ctx context.Context) ([]hanging, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	topic := l.topics.watermarks
	partitions := make(kadm.TopicsSet)
	if hint := l.p.source.WatermarkPosition(); hint.TopicID == topic.ID && hint != (outbox.WatermarkPosition{}) {
		partitions.Add(topic.Name, hint.Partition)
	} else {
		for p := range topic.Partitions {
			partitions.Add(topic.Name, p)
		}
	}
	adm := kadm.NewClient(l.cl)
	producers, err := adm.DescribeProducers(ctx, partitions)
	for _, p := range producers.SortedPartitions() {
		err = cmp.Or(err, p.Err)
	}
	if isUnauthorised(err) || isUnsupported(err) {
		return nil, nil // the reading of the watermarks says what is missing, or what hangs
	}
	if err != nil {
		return nil, fmt.Errorf("ask for open transactions of topic %s: %w", topic.Name, err)
	}
	var found []hanging
	for _, p := range producers.SortedPartitions() {
		if open, ok := p.ActiveProducers[l.producer.id]; ok && open.CurrentTxnStartOffset >= 0 {
			found = append(found, hanging{part: p.Partition, at: span{from: open.CurrentTxnStartOffset}})
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	ends, err := adm.ListEndOffsets(ctx, topic.Name)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the high watermark of the watermarks: %w", err)
	}
	for i := range found {
		end, _ := ends.Lookup(topic.Name, found[i].part)
		found[i].at.until = end.Offset
	}
	return found, nil
}

// end makes every partition part of a transaction without records and ends that: each
// writes a marker, which ends whatever our producer ID has open there. It returns when
// the markers are written.
func (l *link) end(ctx context.Context, commit bool) error {
	versions := kversion.Stable()
	versions.SetMaxKeyVersion(kmsg.NewPtrEndTxnRequest().Key(), 4) // one that every broker takes, whichever way its transactions go (KIP-890)
	cl, err := kgo.NewClient(append(l.p.opts.Client[:len(l.p.opts.Client):len(l.p.opts.Client)], kgo.MaxVersions(versions))...)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	defer cl.Close()
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch = transactionalID(l.p.opts.Topic.Name, l.id), l.producer.id, l.producer.epoch
	for _, t := range []TopicState{l.topics.results, l.topics.watermarks} {
		topic := kmsg.NewAddPartitionsToTxnRequestTopic()
		topic.Topic = t.Name
		for p := range t.Partitions {
			topic.Partitions = append(topic.Partitions, p)
		}
		add.Topics = append(add.Topics, topic)
	}
	added, err := add.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	for _, t := range added.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("partition %d of topic %s: %w", p.Partition, t.Topic, err)
			}
		}
	}
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.ProducerEpoch, end.Commit = add.TransactionalID, add.ProducerID, add.ProducerEpoch, commit
	ended, err := end.RequestWith(ctx, cl)
	if err == nil {
		err = kerr.ErrorForCode(ended.ErrorCode)
	}
	if err != nil {
		return err
	}
	for {
		still, err := l.findHanging(ctx)
		if err != nil || len(still) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// takeBack publishes again what Kafka has undone: the watermark that we were told is
// committed lies where it was written, and is aborted. A transaction that hung does so
// when a later one is aborted over the same partitions, before we have ended it. w is
// the newest watermark that is committed.
func (l *link) takeBack(ctx context.Context, w newest) error {
	src, topic := l.p.source, l.topics.watermarks
	told := src.WatermarkPosition()
	if told.TopicID != topic.ID || told.Partition != w.partition || told.Offset <= w.offset || src.Proven() <= w.Seq {
		return nil
	}
	there, err := readSpans(ctx, l.p.opts.Client, topic, l.id, map[int32]span{told.Partition: {told.Offset, told.Offset + 1}}, kgo.ReadUncommitted(), l.p.stall())
	if err != nil || there == nil || there.offset != told.Offset {
		return err // gone: what it tells of may be there all the same
	}
	if err := l.end(ctx, false); err != nil { // what is left of it, in other partitions
		return fmt.Errorf("end what is left of a transaction that Kafka has undone: %w", err)
	}
	position := outbox.WatermarkPosition{TopicID: topic.ID, Partition: w.partition, Offset: w.offset}
	rows, gone, err := src.TakeBack(ctx, w.Seq, position)
	if err != nil {
		return err
	}
	l.p.log.Error("Kafka has undone a transaction that it had said is committed; its results are published again",
		"results", rows, "payloads_gone", gone, "after_seq", w.Seq, "topic", topic.Name, "partition", told.Partition, "offset", told.Offset, "outbox_id", l.id,
		"help", "nothing is to be done, unless payloads_gone is above 0: those are past --history, and who awaits them must ask for them anew; see to it that the topics have three replicas")
	return fmt.Errorf("%w: a transaction was undone", errAgain)
}
