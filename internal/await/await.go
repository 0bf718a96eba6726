// Package await is the waiting side: it reads the results topic until the result
// of one trigger is there.
//
// It matches on record keys (the correlation ID), reads read_committed, joins no
// group and commits nothing: any number of waiters, nothing to steal.
package await

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/result"
)

// Options configure Wait.
type Options struct {
	Client        []kgo.Opt // brokers and security
	Topic         string
	CorrelationID uuid.UUID
	// Since is how far back to look; it must reach before the result was
	// published, so before the trigger. It allows for clocks that differ.
	Since time.Duration
}

// Found is the result that was waited for.
type Found struct {
	Result    result.Result
	Value     []byte // the record's value, byte for byte
	Partition int32
	Offset    int64
	Timestamp time.Time // of the record
}

const retryDelay = 500 * time.Millisecond

// Wait returns the first result with the correlation ID. It ends only with one
// or with ctx; broker away or topic missing is tried again, and told in the
// error when the time is over.
func Wait(ctx context.Context, opts Options) (Found, error) {
	var last error
	for {
		found, err := waitOnce(ctx, opts)
		if err == nil {
			return found, nil
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(retryDelay):
			continue
		case <-ctx.Done():
		}
		err = fmt.Errorf("no result for correlation ID %s in topic %s: %w", opts.CorrelationID, opts.Topic, context.Cause(ctx))
		if last != nil {
			err = fmt.Errorf("%w (last trouble: %w)", err, last)
		}
		return Found{}, err
	}
}

func waitOnce(ctx context.Context, opts Options) (Found, error) {
	cl, err := kgo.NewClient(append(opts.Client[:len(opts.Client):len(opts.Client)], kgo.FetchIsolationLevel(kgo.ReadCommitted()))...)
	if err != nil {
		return Found{}, fmt.Errorf("make a client: %w", err)
	}
	defer cl.Close()
	offsets, err := kadm.NewClient(cl).ListOffsetsAfterMilli(ctx, time.Now().Add(-opts.Since).UnixMilli(), opts.Topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return Found{}, fmt.Errorf("find where to start: %w", err)
	}
	cl.AddConsumePartitions(offsets.KOffsets())
	key := opts.CorrelationID.String()
	for {
		fetches := cl.PollFetches(ctx)
		for r := range fetches.RecordsAll() {
			if string(r.Key) == key {
				return foundIn(r)
			}
		}
		if err := errors.Join(ctx.Err(), fetches.Err()); err != nil {
			return Found{}, fmt.Errorf("read %s: %w", opts.Topic, err)
		}
	}
}

func foundIn(r *kgo.Record) (Found, error) {
	res, err := result.Decode(r.Value, r.Timestamp)
	if err != nil {
		return Found{}, fmt.Errorf("the record at partition %d, offset %d is not a result event: %w", r.Partition, r.Offset, err)
	}
	return Found{Result: res, Value: r.Value, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp}, nil
}
