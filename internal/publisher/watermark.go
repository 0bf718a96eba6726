package publisher

import (
	"context"
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

// readWatermark returns the newest committed watermark of the outbox, read
// until past the high watermark that every partition had when we asked. Read
// only to the last stable offset, another sidecar's open transaction would hide
// ours. An error is never "none"; no empty poll and no time-out ends the read.
//
// It must be called after InitProducerId, which ends what an earlier producer
// of ours had left open.
func readWatermark(ctx context.Context, opts []kgo.Opt, topic TopicState, id uuid.UUID, hint outbox.WatermarkPosition) (w outbox.Watermark, found bool, err error) {
	spans, err := watermarkSpans(ctx, opts, topic, hint)
	if err != nil || len(spans) == 0 {
		return w, false, err
	}
	offsets := make(map[int32]kgo.Offset, len(spans))
	for p, s := range spans {
		offsets[p] = kgo.NewOffset().At(s.from)
	}
	cl, err := kgo.NewClient(append(opts[:len(opts):len(opts)],
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic.Name: offsets}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(250*time.Millisecond), // closing waits for the fetch under way
		kgo.KeepControlRecords(),               // they show progress where all records were aborted
	)...)
	if err != nil {
		return w, false, fmt.Errorf("make a client to read watermarks: %w", err)
	}
	defer cl.Close()
	key := id.String()
	for len(spans) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			if errors.Is(err, kerr.TopicAuthorizationFailed) {
				err = fmt.Errorf("not authorised: grant this principal Read on topic %s, or choose --delivery at-least-once: %w", topic.Name, err)
			}
			return w, false, fmt.Errorf("read watermarks: %w", err)
		}
		for r := range fetches.RecordsAll() {
			if !r.Attrs.IsControl() && string(r.Key) == key {
				if w, err = decodeWatermark(r.Value); err != nil {
					return w, false, err
				}
				found = true
			}
			if s, open := spans[r.Partition]; open && r.Offset+1 >= s.until {
				delete(spans, r.Partition)
			}
		}
	}
	return w, found, nil
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
	sameTopic := hint.TopicID == topic.ID && hint.TopicID != [16]byte{} && hint.Partitions == topic.Partitions
	spans := make(map[int32]span)
	ends.Each(func(e kadm.ListedOffset) {
		start, ok := starts.Lookup(topic.Name, e.Partition)
		if !ok {
			start.Offset = 0
		}
		s := span{start.Offset, e.Offset}
		if sameTopic {
			if e.Partition != hint.Partition {
				return
			}
			s.from = max(s.from, hint.Offset)
		}
		if s.from < s.until {
			spans[e.Partition] = s
		}
	})
	if len(ends[topic.Name]) == 0 {
		return nil, fmt.Errorf("find the watermarks: topic %s has no partitions yet", topic.Name)
	}
	return spans, nil
}
