package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/publisher"
)

type outboxDrainCmd struct {
	dataFlags
	kafkaFlags
	topicFlags
	deliveryFlag
	logFlags
	ExitWhenEmpty bool
	Timeout       time.Duration
}

func (c *outboxDrainCmd) bind(flags *pflag.FlagSet) {
	c.dataFlags.bind(flags)
	c.kafkaFlags.bind(flags)
	c.topicFlags.bind(flags)
	c.deliveryFlag.bind(flags)
	c.logFlags.bind(flags)
	flags.BoolVar(&c.ExitWhenEmpty, "exit-when-empty", false, "End when nothing is pending; else go on until told to end")
	flags.DurationVar(&c.Timeout, "timeout", 0, "Give up after this; 0 never")
}

// Help is shown by --help.
func (outboxDrainCmd) Help() string {
	return `Example:
  sidecar outbox drain --exit-when-empty --data-dir /mnt/orphaned --brokers kafka-1:9092

For a volume whose pod is gone. Exit status 0 only if nothing is pending any more.`
}

// Validate refuses values that cannot be meant.
func (c *outboxDrainCmd) Validate() error {
	return errors.Join(c.kafkaFlags.check(), c.topicFlags.check(), atLeast("--timeout", c.Timeout, 0))
}

// Run publishes what is pending.
func (c *outboxDrainCmd) Run(e *env) error {
	client, err := c.config().Options()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx := e.ctx
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	return c.withFiles(e, func(o *outbox.Outbox) error {
		opts := publisher.DefaultOptions()
		opts.Client, opts.Source, opts.Log, opts.Metrics = client, o, c.logger(e.stderr), metrics.New(prometheus.NewRegistry())
		opts.Topic, opts.Watermarks = c.specs()
		opts.Delivery, opts.CESource = publisher.Delivery(c.Delivery), c.CESource
		soft, stop := context.WithCancel(ctx)
		defer stop()
		hard, kill := context.WithCancel(context.Background())
		defer kill()
		p := publisher.New(opts)
		done := make(chan error, 1)
		go func() { done <- p.Run(soft, hard) }()
		err := c.watch(ctx, e, o, p)
		stop()
		release := time.AfterFunc(5*time.Second, kill)
		defer release.Stop()
		return errors.Join(err, <-done)
	})
}

// isTerminal: progress in a log file is noise.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// watch tells the progress until nothing is pending, nothing can be published any
// more, or ctx ends.
func (c *outboxDrainCmd) watch(ctx context.Context, e *env, o *outbox.Outbox, p *publisher.Publisher) error {
	st, err := o.Stats(ctx)
	if err != nil {
		return err
	}
	total := st.PendingRows
	progress := isTerminal(e.stderr)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err = o.Stats(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		total = max(total, st.PendingRows)
		if progress {
			done := total - st.PendingRows
			fmt.Fprintf(e.stderr, "\rpublishing: %d of %d, %d %%\x1b[K", done, total, 100*done/max(total, 1)) // a terminal that is gone ends nothing
		}
		if st.PendingRows == 0 && c.ExitWhenEmpty {
			if progress {
				fmt.Fprintln(e.stderr)
			}
			_, err := fmt.Fprintf(e.stderr, "published %d, parked %d\n", total, st.ParkedRows)
			return err
		}
		if st.Damage != "" {
			return fmt.Errorf("the outbox is damaged, %d results are pending: %s", st.PendingRows, st.Damage)
		}
		if s := p.Status(); s.State == "stopped" {
			return fmt.Errorf("%s: %d results stay in %s; end the other one, then drain again", s.LastError, st.PendingRows, c.DataDir)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if st.PendingRows == 0 {
				return nil
			}
			return fmt.Errorf("ended with %d results pending: they stay in %s", st.PendingRows, c.DataDir)
		}
	}
}
