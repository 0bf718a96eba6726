// Command sidecar hands the results of a workflow process to Kafka: it takes
// them over a Unix socket, commits them to a SQLite outbox before it answers,
// and publishes them exactly once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit statuses. await has its own meaning for 1 and 2.
const (
	exitFailed = 1
	exitUsage  = 2
)

// exitError carries an exit status of its own; err may be nil where all has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

type cli struct {
	Run         runCmd         `cmd:"" help:"Take results over the socket and publish them."`
	Demo        demoCmd        `cmd:"" help:"Show the whole way of three results, with an embedded broker."`
	Await       awaitCmd       `cmd:"" help:"Wait for the result of one trigger and print it."`
	Status      statusCmd      `cmd:"" help:"Tell how a running sidecar is."`
	Outbox      outboxCmd      `cmd:"" help:"Look into the outbox, with or without a running sidecar."`
	Topic       topicCmd       `cmd:"" help:"Make the topics, or report how they differ."`
	Healthcheck healthcheckCmd `cmd:"" help:"Exit 0 if the sidecar is alive (or ready): a probe without a port."`
	Version     versionCmd     `cmd:"" help:"Tell the version."`
}

// env is what commands need of the process; tests bring their own.
type env struct {
	ctx     context.Context // ends with the first SIGTERM or SIGINT
	signals <-chan os.Signal
	stdout  io.Writer
	stderr  io.Writer
}

// interrupted is the exit status of a command that a signal has ended, as a shell
// gives it.
func (e *env) interrupted() int {
	if s, ok := (<-e.signals).(syscall.Signal); ok {
		return 128 + int(s)
	}
	return exitFailed
}

// gcPercent keeps the sidecar below 64 MiB while it drains a long backlog; with
// Go's own 100 it takes some 67. It costs a sixth of the drain's rate and nothing
// of the intake's (measured). GOGC overrides it.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	signal.Ignore(syscall.SIGPIPE) // a reader that is gone is a failed write, and what was begun is tidied up
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	os.Exit(execute(os.Args[1:], signals, os.Stdout, os.Stderr))
}

// execute is the program: arguments in, exit status out.
func execute(args []string, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	var c cli
	code := -1
	parser, err := kong.New(&c,
		kong.Name("sidecar"),
		kong.Description("Hands the results of a workflow process to Kafka, exactly once.\n\nEvery flag can come from the environment: SIDECAR_SOCKET stands for --socket."),
		kong.DefaultEnvars("SIDECAR"),
		kong.Writers(stdout, stderr),
		kong.Exit(func(status int) { code = status }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "sidecar:", err)
		return exitUsage
	}
	parsed, err := parser.Parse(args)
	if code >= 0 {
		return code // --help has been answered
	}
	if err != nil {
		fmt.Fprintf(stderr, "sidecar: %v\nSee: sidecar %s--help\n", err, commandOf(err))
		return exitUsage
	}
	return runCommand(parsed, signals, stdout, stderr)
}

func runCommand(parsed *kong.Context, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	second := make(chan os.Signal, 2)
	go func() {
		for s := range signals {
			cancel()
			second <- s
		}
	}()
	err := parsed.Run(&env{ctx: ctx, signals: second, stdout: stdout, stderr: stderr})
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(stderr, "sidecar:", exit.err)
		}
		return exit.code
	default:
		fmt.Fprintln(stderr, "sidecar:", err)
		return exitFailed
	}
}

// commandOf returns the words of the command that was recognised, for the hint at
// its help.
func commandOf(err error) string {
	var b strings.Builder
	var parse *kong.ParseError
	if errors.As(err, &parse) {
		for _, step := range parse.Context.Path {
			if step.Command != nil {
				b.WriteString(step.Command.Name + " ")
			}
		}
	}
	return b.String()
}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}
