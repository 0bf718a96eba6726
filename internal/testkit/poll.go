package testkit

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is the pause between two looks at something that cannot be waited for.
const pollInterval = 20 * time.Millisecond

// errEnded ends a poll: what it waits for is gone.
var errEnded = errors.New("the process has ended")

// poll tries until it succeeds, ctx ends or errEnded comes; the error says what
// was last wrong.
func poll(ctx context.Context, try func(context.Context) error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
