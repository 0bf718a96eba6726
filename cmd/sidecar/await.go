package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/await"
	"workflow-results-sidecar/internal/result"
)

type awaitCmd struct {
	kafkaFlags
	Topic         string
	CorrelationID string
	Timeout       time.Duration
	Since         time.Duration
}

func (c *awaitCmd) bind(flags *pflag.FlagSet) {
	c.kafkaFlags.bind(flags)
	flags.StringVar(&c.Topic, "topic", "workflow-results", "Topic of the results")
	flags.StringVar(&c.CorrelationID, "correlation-id", "", "Event ID of the trigger, a `UUID`")
	flags.DurationVar(&c.Timeout, "timeout", 60*time.Second, "How long to wait")
	flags.DurationVar(&c.Since, "since", time.Hour, "How far back to look")
}

// Help is shown by --help.
func (awaitCmd) Help() string {
	return `Example:
  sidecar await --correlation-id 0192f0c1-7b1e-7cc3-9d2a-0123456789ab --timeout 60s

Prints the result event as JSON. Exit status: 0 success; 1 the workflow's failure or error;
2 time-out, or a wrong call; 128 + n when signal n ended the wait.`
}

// Validate refuses to wait for nothing.
func (c *awaitCmd) Validate() error {
	if c.CorrelationID == "" {
		return errors.New("--correlation-id is missing: the event ID of the trigger")
	}
	if c.Timeout <= 0 || c.Since <= 0 {
		return errors.New("--timeout and --since must be above 0")
	}
	return errors.Join(checkTopic(c.Topic), c.check())
}

// Run waits and prints the event as it lies in Kafka.
func (c *awaitCmd) Run(e *env) error {
	id, err := parseID("--correlation-id", c.CorrelationID)
	if err != nil {
		return err
	}
	client, err := c.config().Options()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	ctx, cancel := context.WithTimeout(e.ctx, c.Timeout)
	defer cancel()
	found, err := await.Wait(ctx, await.Options{Client: client, Topic: c.Topic, CorrelationID: id, Since: c.Since})
	if e.ctx.Err() != nil {
		return &exitError{e.interrupted(), fmt.Errorf("interrupted: %w", err)}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &exitError{2, fmt.Errorf("timed out after %s: %w", c.Timeout, err)}
	}
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(e.stdout, "%s\n", found.Value); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	if found.Result.Status != result.Success {
		return &exitError{code: 1}
	}
	return nil
}
