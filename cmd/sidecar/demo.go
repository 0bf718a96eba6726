package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"workflow-results-sidecar/internal/await"
	"workflow-results-sidecar/internal/ipc"
	"workflow-results-sidecar/internal/outbox"
)

type demoCmd struct {
	logFlags
}

// Help is shown by --help.
func (demoCmd) Help() string {
	return `Example:
  sidecar demo --log-level warn

Starts a sidecar and an embedded broker in a temporary directory, hands over a success, a failure and
an error, waits for each by its correlation ID, and shows where each is. Nothing is left behind.`
}

// sample is one result of the demo, and what its payload says.
type sample struct{ status, result, err string }

var samples = []sample{
	{"success", `{"answer":42}`, "null"},
	{"failure", `{"reason":"not enough evidence"}`, `"the reviewer declined"`},
	{"error", `{}`, `"TimeoutError: the model did not answer"`},
}

// Run shows the whole way of three results.
func (c *demoCmd) Run(e *env) (err error) {
	dir, err := os.MkdirTemp("", "sidecar-demo")
	if err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cmd, err := demoSettings(dir)
	if err != nil {
		return err
	}
	s, err := newSidecar(e.ctx, cmd, c.logger(e.stderr))
	if err != nil {
		return err
	}
	term, end := context.WithCancel(e.ctx)
	signals := make(chan os.Signal, 1)
	done := make(chan error, 1)
	go func() { done <- s.run(term, signals) }()
	err = c.show(e, cmd)
	signals <- syscall.SIGTERM
	end()
	return errors.Join(err, <-done)
}

// demoSettings are the defaults of run, with everything in dir.
func demoSettings(dir string) (*runCmd, error) {
	broker, err := freeAddress()
	if err != nil {
		return nil, err
	}
	cmd := new(runCmd)
	cmd.bind(pflag.NewFlagSet("demo", pflag.ContinueOnError)) // sets the defaults
	cmd.Socket, cmd.DataDir = filepath.Join(dir, "s"), filepath.Join(dir, "data")
	cmd.Brokers, cmd.EmbeddedBroker, cmd.Linger = []string{broker}, true, 0
	return cmd, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}

func (c *demoCmd) show(e *env, cmd *runCmd) error {
	cl := ipc.NewClient(cmd.Socket)
	defer cl.Close()
	ctx, cancel := context.WithTimeout(e.ctx, time.Minute)
	defer cancel()
	client, err := cmd.config().Options()
	if err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "1. Three results are handed over by POST /v1/results. 201 says that each is on disk:")
	correlations := make([]uuid.UUID, len(samples))
	for i, s := range samples {
		correlations[i] = uuid.New()
		event := fmt.Sprintf(`{"correlation_id":%q,"workflow_id":"demo","workflow_run_id":"run-1","result":%s,"status":%q,"error":%s}`, correlations[i], s.result, s.status, s.err)
		status, body, err := cl.Post(ctx, []byte(event))
		if err != nil {
			return err
		}
		if status != http.StatusCreated {
			return fmt.Errorf("the sidecar answers %d: %s", status, body)
		}
		fmt.Fprintf(e.stdout, "   %-7s  %d %s", s.status, status, body)
	}
	fmt.Fprintln(e.stdout, "\n2. Whoever triggered the workflow waits for its correlation ID in Kafka:")
	for _, id := range correlations {
		found, err := await.Wait(ctx, await.Options{Client: client, Topic: cmd.Topic, CorrelationID: id, Since: time.Hour})
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "   %s\n", found.Value)
	}
	fmt.Fprintln(e.stdout, "\n3. The outbox tells where each is:")
	entries, err := cl.List(ctx, outbox.Filter{})
	if err != nil {
		return err
	}
	return printEntries(e.stdout, entries, outbox.MaxListLimit)
}
