// Command sidecar hands the results of a workflow process to Kafka: it takes
// them over a Unix socket, commits them to a SQLite outbox before it answers,
// and publishes them exactly once.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
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

func main() {
	signal.Ignore(syscall.SIGPIPE) // a reader that is gone is a failed write, and what was begun is tidied up
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	os.Exit(execute(os.Args[1:], signals, os.Stdout, os.Stderr))
}

// execute is the program: arguments in, exit status out.
func execute(args []string, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	called, words, err := parse(args, stdout)
	if err != nil {
		fmt.Fprintf(stderr, "sidecar: %v\nSee: %s --help\n", err, words)
		return exitUsage
	}
	if called == nil {
		return 0 // the help has been printed
	}
	return perform(called, signals, stdout, stderr)
}

func perform(called action, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	second := make(chan os.Signal, 2)
	go func() {
		for s := range signals {
			cancel()
			second <- s
		}
	}()
	err := called.Run(&env{ctx: ctx, signals: second, stdout: stdout, stderr: stderr})
	var exit *exitError
	var file *fs.PathError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintln(stderr, "sidecar:", exit.err)
		}
		return exit.code
	case errors.As(err, &file) && errors.Is(file, syscall.EPIPE): // not a connection, which has no path
		return exitFailed // whoever read our output has gone, and wants no more of it
	default:
		fmt.Fprintln(stderr, "sidecar:", err)
		return exitFailed
	}
}

func usage(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}
