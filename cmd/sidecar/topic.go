package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/publisher"
)

type topicCmd struct {
	kafkaFlags
	topicFlags
	JSON    bool
	Timeout time.Duration
}

func (c *topicCmd) bind(flags *pflag.FlagSet) {
	c.kafkaFlags.bind(flags)
	c.topicFlags.bind(flags)
	flags.BoolVar(&c.JSON, "json", false, "Print JSON")
	flags.DurationVar(&c.Timeout, "timeout", 30*time.Second, "How long to wait for brokers that are away")
}

// Help is shown by --help.
func (topicCmd) Help() string {
	return `Example:
  sidecar topic --brokers kafka-1:9092 --topic-partitions 12 --topic-replication-factor 3

Makes the results topic and its watermark topic where they are missing; alters nothing that is there.
Exit status 1 if a topic differs from what was asked.`
}

// Validate refuses values that cannot be meant.
func (c *topicCmd) Validate() error {
	return errors.Join(c.kafkaFlags.check(), c.topicFlags.check())
}

// Run does once what a sidecar does at its start.
func (c *topicCmd) Run(e *env) error {
	opts, err := c.config().Options()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(e.ctx, c.Timeout)
	defer cancel()
	var states []publisher.TopicState
	results, watermarks := c.specs()
	for _, spec := range []publisher.TopicSpec{results, watermarks} {
		st, err := ensureTopic(ctx, kadm.NewClient(cl), spec)
		if err != nil {
			return err
		}
		states = append(states, st)
	}
	return c.print(e, states)
}

// ensureTopic waits for brokers that are not there yet; any other error ends it.
func ensureTopic(ctx context.Context, adm *kadm.Client, spec publisher.TopicSpec) (publisher.TopicState, error) {
	for {
		st, err := publisher.EnsureTopic(ctx, adm, spec)
		var unreachable *net.OpError
		if err == nil || !errors.As(err, &unreachable) {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c *topicCmd) print(e *env, states []publisher.TopicState) error {
	drift := 0
	for _, st := range states {
		drift += len(st.Drift)
	}
	if c.JSON {
		if err := json.NewEncoder(e.stdout).Encode(states); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	} else {
		printTopics(e, states)
	}
	if drift > 0 {
		return &exitError{exitFailed, fmt.Errorf("%d settings differ from what was asked; nothing was altered", drift)}
	}
	return nil
}

func printTopics(e *env, states []publisher.TopicState) {
	for _, st := range states {
		what := "exists"
		if st.Created {
			what = "created"
		}
		fmt.Fprintf(e.stdout, "%-40s %s, %d partitions\n", st.Name, what, st.Partitions)
		for _, d := range st.Drift {
			fmt.Fprintf(e.stdout, "  differs: %s is %s, asked for %s\n", d.Setting, d.Got, d.Want)
		}
		if st.Note != "" {
			fmt.Fprintf(e.stdout, "  note: %s\n", st.Note)
		}
	}
}
