package await

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// checkInterval is how often a waiter looks whether the broker is there and the
// topic has new partitions: a silent topic and a dead broker look alike.
const checkInterval = 3 * time.Second

// client makes a client that gives up a request soon, so that the trouble can be
// told; the loop in WaitAll is what tries again.
func (w *waiter) client() (*kgo.Client, error) {
	return kgo.NewClient(slices.Concat(w.opts.Client, []kgo.Opt{
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.RequestRetries(3),
		kgo.RetryTimeout(checkInterval),
		kgo.MetadataMinAge(retryDelay),
	})...)
}

// read reads until nothing is missing any more (nil), ctx ends or the reading is
// in trouble.
func (w *waiter) read(ctx context.Context, cl *kgo.Client) error {
	topic, err := w.topic(ctx, cl)
	if err != nil {
		return err
	}
	reading, err := w.starts(ctx, cl)
	if err != nil {
		return fmt.Errorf("find where to start: %w", err)
	}
	cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{w.opts.Topic: reading})
	for len(w.missing) > 0 {
		w.trouble = nil
		if err := w.poll(ctx, cl); err != nil {
			return fmt.Errorf("read topic %s: %w", w.opts.Topic, err)
		}
		if err := w.follow(ctx, cl, topic.ID, reading); err != nil {
			return err
		}
	}
	return nil
}

func (w *waiter) topic(ctx context.Context, cl *kgo.Client) (kadm.TopicDetail, error) {
	topics, err := kadm.NewClient(cl).ListTopics(ctx, w.opts.Topic)
	if err = errors.Join(err, topics.Error()); err != nil {
		return kadm.TopicDetail{}, fmt.Errorf("look for topic %s: %w", w.opts.Topic, err)
	}
	return topics[w.opts.Topic], nil
}

// poll takes what arrives within one checkInterval, and returns as soon as
// nothing is missing.
func (w *waiter) poll(ctx context.Context, cl *kgo.Client) error {
	turn, cancel := context.WithTimeout(ctx, checkInterval)
	defer cancel()
	for len(w.missing) > 0 {
		fetches := cl.PollFetches(turn)
		for r := range fetches.RecordsAll() {
			w.take(r)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if turn.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return err
		}
	}
	return nil
}

// follow looks whether the broker is there and what became of the topic: it adds
// new partitions, from their start, to those that are being read. A topic that
// was deleted and made anew is an error, which starts the reading afresh.
func (w *waiter) follow(ctx context.Context, cl *kgo.Client, id kadm.TopicID, reading map[int32]kgo.Offset) error {
	if len(w.missing) == 0 {
		return nil
	}
	topic, err := w.topic(ctx, cl)
	if err != nil {
		return err
	}
	if topic.ID != id {
		return fmt.Errorf("topic %s was deleted and made anew", w.opts.Topic)
	}
	added := map[int32]kgo.Offset{}
	for p := range topic.Partitions {
		if _, known := reading[p]; !known {
			added[p] = kgo.NewOffset().AtStart()
		}
	}
	if len(added) > 0 {
		maps.Copy(reading, added)
		cl.AddConsumePartitions(map[string]map[int32]kgo.Offset{w.opts.Topic: added})
	}
	return nil
}

// starts is where to begin in every partition of the topic.
func (w *waiter) starts(ctx context.Context, cl *kgo.Client) (map[int32]kgo.Offset, error) {
	adm := kadm.NewClient(cl)
	// The ends come first. A search by time that finds nothing means "from the
	// end", and the end must not be later than the search: a result that is
	// committed between the two would lie before it.
	ends, err := listed(adm.ListCommittedOffsets(ctx, w.opts.Topic))
	if err != nil {
		return nil, err
	}
	offsets := map[int32]kgo.Offset{}
	if w.opts.Positions != nil {
		for p := range ends[w.opts.Topic] {
			offsets[p] = kgo.NewOffset().AtStart()
			if at, armed := w.opts.Positions[p]; armed {
				offsets[p] = kgo.NewOffset().At(at)
			}
		}
		return offsets, nil
	}
	byTime, err := listed(adm.ListOffsetsAfterMilli(ctx, w.from.UnixMilli(), w.opts.Topic))
	if err != nil {
		return nil, err
	}
	for p, end := range ends[w.opts.Topic] {
		at := end.Offset
		if found, ok := byTime.Lookup(w.opts.Topic, p); ok {
			at = min(at, found.Offset)
		}
		offsets[p] = kgo.NewOffset().At(at)
	}
	return offsets, nil
}

// Arm returns the present end of every partition: positions for a wait for the
// result of a trigger that is published after Arm returned. A topic that is not there yet has no positions and is read from its start.
func Arm(ctx context.Context, client []kgo.Opt, topic string) (map[int32]int64, error) {
	cl, err := kgo.NewClient(client...)
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	defer cl.Close()
	positions := map[int32]int64{}
	adm := kadm.NewClient(cl)
	topics, err := adm.ListTopics(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("look for topic %s: %w", topic, err)
	}
	if !topics.Has(topic) {
		return positions, nil
	}
	ends, err := listed(adm.ListEndOffsets(ctx, topic))
	if err != nil {
		return nil, fmt.Errorf("find the ends of topic %s: %w", topic, err)
	}
	for p, end := range ends[topic] {
		positions[p] = end.Offset
	}
	return positions, nil
}

// listed is an answer of kadm with the errors of single partitions made its own.
func listed(offsets kadm.ListedOffsets, err error) (kadm.ListedOffsets, error) {
	return offsets, errors.Join(err, offsets.Error())
}
