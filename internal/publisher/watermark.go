package publisher

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/outbox"
)

// span is what is to be read of one partition: [from, until).
type span struct{ from, until int64 }

// newest is the newest watermark of an outbox, and where it lies.
type newest struct {
	outbox.Watermark
	partition int32
	offset    int64
	at        time.Time
}

// after compares watermarks of different partitions, where offsets tell nothing.
func (n newest) after(other newest) bool {
	return cmp.Or(cmp.Compare(n.Seq, other.Seq), cmp.Compare(n.Parkings, other.Parkings), n.at.Compare(other.at)) > 0
}

// readWatermark returns the newest committed watermark of the outbox, or nil,
// read until past the high watermark that every partition had when we asked. Read
// only to the last stable offset, another sidecar's open transaction would hide
// ours. An error is never "none"; no empty poll and no time-out ends the read.
//
// It must be called after InitProducerId, which ends what an earlier producer
// of ours had left open.
func readWatermark(ctx context.Context, opts []kgo.Opt, topic TopicState, id uuid.UUID, hint outbox.WatermarkPosition, stall time.Duration) (*newest, error) {
	spans, err := watermarkSpans(ctx, opts, topic, hint)
	if err != nil {
		return nil, err
	}
	w, err := readSpans(ctx, opts, topic, id, spans, kgo.ReadCommitted(), stall)
	if err == nil && w == nil && hint != (outbox.WatermarkPosition{}) {
		// What lay there is gone; since then we may have begun anew in another partition.
		return readWatermark(ctx, opts, topic, id, outbox.WatermarkPosition{}, stall)
	}
	return w, err
}

// readSpans returns the newest watermark of the outbox in what spans name of the
// topic's partitions. It takes out of spans what it has read.
func readSpans(ctx context.Context, opts []kgo.Opt, topic TopicState, id uuid.UUID, spans map[int32]span, isolation kgo.IsolationLevel, stall time.Duration) (*newest, error) {
	if len(spans) == 0 {
		return nil, nil // there is none
	}
	offsets := make(map[int32]kgo.Offset, len(spans))
	for p, s := range spans {
		offsets[p] = kgo.NewOffset().At(s.from)
	}
	cl, err := kgo.NewClient(append(opts[:len(opts):len(opts)],
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic.Name: offsets}),
		kgo.FetchIsolationLevel(isolation),
		kgo.FetchMaxWait(250*time.Millisecond), // closing waits for the fetch under way
		kgo.KeepControlRecords(),               // they show progress where all records were aborted
	)...)
	if err != nil {
		return nil, fmt.Errorf("make a client to read watermarks: %w", err)
	}
	defer cl.Close()
	key, last := id.String(), make(map[int32]newest)
	for len(spans) > 0 {
		poll, cancel := context.WithTimeout(ctx, stall)
		fetches := cl.PollFetches(poll)
		stalled := poll.Err() != nil && ctx.Err() == nil
		cancel()
		if stalled {
			return nil, fmt.Errorf("read watermarks: nothing came for %s: %w", stall, explainStall(ctx, cl, topic.Name, spans))
		}
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			if errors.Is(err, kerr.TopicAuthorizationFailed) {
				err = fmt.Errorf("not authorised: grant this principal Read on topic %s, or choose --delivery at-least-once: %w", topic.Name, err)
			}
			return nil, fmt.Errorf("read watermarks: %w", err)
		}
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() && string(r.Key) == key {
				w, err := decodeWatermark(r.Value)
				if err != nil {
					return nil, fmt.Errorf("partition %d, offset %d of topic %s: %w", r.Partition, r.Offset, topic.Name, err)
				}
				last[r.Partition] = newest{Watermark: w, partition: r.Partition, offset: r.Offset, at: r.Timestamp}
			}
			if s, open := spans[r.Partition]; open && r.Offset+1 >= s.until {
				delete(spans, r.Partition)
			}
		}
	}
	var best *newest
	for _, n := range last {
		if best == nil || n.after(*best) {
			best = &n
		}
	}
	return best, nil
}

// explainStall says why what is left of the partitions cannot be read.
func explainStall(ctx context.Context, cl *kgo.Client, topic string, left map[int32]span) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stable, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = stable.Error()
	}
	if err != nil {
		return fmt.Errorf("find the last stable offset: %w", err)
	}
	for p, s := range left {
		if at, ok := stable.Lookup(topic, p); ok && at.Offset < s.until {
			return fmt.Errorf("a transaction that is open since offset %d of partition %d of topic %s holds its readers back, this one too; where its producer is gone and Kafka does not end it, look with kafka-transactions.sh find-hanging --topic %s, and end it with abort --topic %s --partition %d --start-offset %d", at.Offset, p, topic, topic, topic, p, at.Offset)
		}
	}
	return errors.New("the broker gives no records, and no error")
}

// watermarkSpans decides what must be read: everything, or, where the topic is
// still the one we wrote to, our partition from our newest watermark on.
func watermarkSpans(ctx context.Context, opts []kgo.Opt, topic TopicState, hint outbox.WatermarkPosition) (map[int32]span, error) {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make a client to find watermarks: %w", err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx, topic.Name)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the start of the watermarks: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, topic.Name) // read_uncommitted: the high watermark
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("find the high watermark of the watermarks: %w", err)
	}
	if len(ends[topic.Name]) == 0 {
		return nil, fmt.Errorf("find the watermarks: topic %s has no partitions yet", topic.Name)
	}
	spans := make(map[int32]span)
	ends.Each(func(e kadm.ListedOffset) {
		start, _ := starts.Lookup(topic.Name, e.Partition) // 0 for a partition that came in between
		if start.Offset < e.Offset {
			spans[e.Partition] = span{start.Offset, e.Offset}
		}
	})
	sameTopic := hint.TopicID == topic.ID && hint.TopicID != [16]byte{}
	s, held := spans[hint.Partition]
	if !sameTopic || !held || hint.Offset >= s.until {
		return spans, nil // another topic, or one that lost its end
	}
	return map[int32]span{hint.Partition: {max(s.from, hint.Offset), s.until}}, nil
}

// partitioner sends a watermark to the partition that its record names: those of
// one outbox stay in one partition even where partitions are added, so that the
// last one read is the newest. Results go by their key, as Kafka's own clients do it.
type partitioner struct{ watermarks string }

// ForTopic is called by the client.
func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == p.watermarks {
		return kgo.ManualPartitioner().ForTopic(topic)
	}
	return kgo.StickyKeyPartitioner(nil).ForTopic(topic)
}

// homePartition is where the watermarks of an outbox go that has none yet.
func homePartition(id uuid.UUID, partitions int32) int32 {
	return int32(binary.BigEndian.Uint32(id[12:]) % uint32(max(partitions, 1)))
}
