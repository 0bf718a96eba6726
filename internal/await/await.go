// Package await is the waiting side: it reads the results topic until the results
// of one or more triggers are there.
//
// It matches on record keys (the correlation ID) and parses nothing else, reads
// read_committed, joins no group and commits nothing: any number of waiters,
// nothing to steal. A broker that is away and a topic that is missing are waited
// for as well. Nothing is missed that was published after the starting point: the
// positions of Arm, taken before the trigger, or a time well before it.
package await

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/result"
)

// Skew is how far the clocks of publisher, broker and waiter may differ.
const Skew = 5 * time.Minute

// DefaultSince is how far back a waiter looks that was told nothing.
const DefaultSince = time.Hour

// Options configure Wait and WaitAll.
type Options struct {
	Client        []kgo.Opt // brokers and security
	Topic         string
	CorrelationID uuid.UUID // of Wait; WaitAll has its own
	// Since is how far back to look, Skew aside; it must reach before the result
	// was published, so before the trigger. 0 is DefaultSince.
	Since time.Duration
	// Positions, from Arm, are where to start, by partition; one that is not
	// among them is read from its start. If not nil, Since is not used.
	Positions map[int32]int64
}

// Found is the result that was waited for.
type Found struct {
	Result    result.Result
	Value     []byte // the record's value, byte for byte
	Headers   []kgo.RecordHeader
	Partition int32
	Offset    int64
	Timestamp time.Time // of the record
}

// retryDelay is the pause after a trouble.
const retryDelay = 250 * time.Millisecond

// Wait returns the first result with the correlation ID. It ends only with one
// or with ctx; the error then wraps ctx's cause and tells the last trouble.
// Options that no client can be made of are an error at once.
func Wait(ctx context.Context, opts Options) (Found, error) {
	found, err := WaitAll(ctx, opts, opts.CorrelationID)
	return found[opts.CorrelationID], err
}

// WaitAll is Wait for several correlation IDs with one consumer. When the time is
// over it returns what was found by then beside the error.
func WaitAll(ctx context.Context, opts Options, ids ...uuid.UUID) (map[uuid.UUID]Found, error) {
	w := newWaiter(opts, ids)
	cl, err := w.client()
	if err != nil {
		return nil, fmt.Errorf("make a Kafka client: %w", err)
	}
	for {
		err := w.read(ctx, cl)
		cl.Close()
		if len(w.missing) == 0 {
			return w.found, nil
		}
		if ctx.Err() == nil {
			w.trouble = err
		}
		if !pause(ctx) {
			return w.found, w.timeout(ctx)
		}
		// A new client has no stale view of a topic that was made anew.
		if cl, err = w.client(); err != nil {
			return w.found, fmt.Errorf("make a Kafka client: %w", err)
		}
	}
}

// pause is false when ctx ends.
func pause(ctx context.Context) bool {
	timer := time.NewTimer(retryDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// errSilent is the trouble of a wait whose brokers have not answered at all.
var errSilent = errors.New("the brokers have not answered")

// waiter is the state of one WaitAll, over all its clients.
type waiter struct {
	opts    Options
	from    time.Time            // fixed at the start: a retry must not begin later
	missing map[string]uuid.UUID // by record key
	found   map[uuid.UUID]Found
	odd     error // a record with a key of ours that is no result
	trouble error // what was last wrong with the reading; nil when it goes well
}

func newWaiter(opts Options, ids []uuid.UUID) *waiter {
	if opts.Since == 0 {
		opts.Since = DefaultSince
	}
	w := &waiter{
		opts:    opts,
		from:    time.Now().Add(-opts.Since - Skew),
		missing: map[string]uuid.UUID{},
		found:   map[uuid.UUID]Found{},
		trouble: errSilent,
	}
	for _, id := range ids {
		w.missing[id.String()] = id
	}
	return w
}

func (w *waiter) timeout(ctx context.Context) error {
	keys := slices.Sorted(maps.Keys(w.missing))
	err := fmt.Errorf("no result for correlation ID %s in topic %s", keys[0], w.opts.Topic)
	if len(keys) > 1 {
		err = fmt.Errorf("%w and %d others", err, len(keys)-1)
	}
	err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
	if trouble := errors.Join(w.trouble, w.odd); trouble != nil {
		err = fmt.Errorf("%w (last trouble: %w)", err, trouble)
	}
	return err
}

// take keeps r if it is a result that is waited for. The first one counts; a
// record that carries our key and is no result is told, and does not end the wait.
func (w *waiter) take(r *kgo.Record) {
	id, ours := w.missing[string(r.Key)]
	if !ours {
		return
	}
	res, err := result.Decode(r.Value, r.Timestamp)
	if err == nil && res.CorrelationID != id {
		err = fmt.Errorf("its correlation_id is %s", res.CorrelationID)
	}
	if err != nil {
		w.odd = fmt.Errorf("the record with key %s at partition %d, offset %d is no result: %w", id, r.Partition, r.Offset, err)
		return
	}
	w.found[id] = Found{Result: res, Value: r.Value, Headers: r.Headers, Partition: r.Partition, Offset: r.Offset, Timestamp: r.Timestamp}
	delete(w.missing, string(r.Key))
}
