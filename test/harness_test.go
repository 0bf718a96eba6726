//go:build kafka

// Package test tries the promises of the sidecar with its real binary, a real
// file system and a real Kafka.
package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"workflow-results-sidecar/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// line is one sidecar's place: its socket, data directory and topic.
type line struct {
	t      *testing.T
	bin    string
	dir    string
	socket string
	data   string
	broker string
	topic  string
	extra  []string

	as  int      // the user that it runs as; 0: the test's own
	env []string // variables of the sidecar's own, NAME=value
}

func newLine(t *testing.T, broker string, extra ...string) *line {
	t.Helper()
	dir, err := os.MkdirTemp("", "wrs") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &line{t: t, bin: testkit.Build(t), dir: dir, socket: filepath.Join(dir, "s"), data: filepath.Join(dir, "data"),
		broker: broker, topic: fmt.Sprintf("results-%d", time.Now().UnixNano()), extra: extra}
}

// start starts the sidecar and waits until it accepts results.
func (l *line) start(args ...string) *testkit.Process {
	l.t.Helper()
	p := l.launch(args...)
	p.WaitReady(l.t, l.socket)
	return p
}

// launch starts the sidecar and does not wait.
func (l *line) launch(args ...string) *testkit.Process {
	l.t.Helper()
	all := append([]string{"run", "--socket", l.socket, "--data-dir", l.data, "--brokers", l.broker, "--topic", l.topic, "--linger", "0s"}, l.extra...)
	bin := l.bin
	if l.as != 0 {
		bin, all = "setpriv", append([]string{"--reuid", strconv.Itoa(l.as), "--clear-groups", l.bin}, all...)
	}
	return testkit.StartSidecar(l.t, bin, slices.Concat(l.env, all, args)...)
}

type status struct {
	Outbox struct {
		ID      string `json:"id"`
		Pending int64  `json:"pending"`
		Parked  int64  `json:"parked"`
		LastSeq int64  `json:"last_seq"`
		Held    int64  `json:"held"`
		File    int64  `json:"file_bytes"`
		WAL     int64  `json:"wal_bytes"`
	} `json:"outbox"`
	Publisher struct {
		State     string `json:"state"`
		LastError string `json:"last_error"`
		Topics    []struct {
			Name  string `json:"name"`
			Drift []struct {
				Setting string `json:"setting"`
			} `json:"drift"`
		} `json:"topics"`
	} `json:"publisher"`
}

func (l *line) status(ctx context.Context) (s status, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sidecar/v1/status", nil)
	if err != nil {
		return s, err
	}
	client := testkit.SocketClient(l.t, l.socket)
	defer client.CloseIdleConnections() // a connected client holds a sidecar back that is told to end
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// awaitStatus polls until the sidecar says what is expected.
func (l *line) awaitStatus(what string, ok func(status) bool) status {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last status
	for {
		s, err := l.status(ctx)
		if err == nil && ok(s) {
			return s
		}
		if err == nil {
			last = s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			l.t.Fatalf("waited in vain: %s; last status %+v (%v)", what, last, err)
		}
	}
}

func (l *line) drained() status {
	l.t.Helper()
	return l.awaitStatus("nothing is pending", func(s status) bool { return s.Outbox.Pending == 0 && s.Publisher.State == "publishing" })
}

// stop ends the sidecar in order and expects that all is published.
func (l *line) stop(p *testkit.Process) {
	l.t.Helper()
	p.Term(l.t)
	if code := p.Wait(l.t); code != 0 {
		l.t.Fatalf("the sidecar ended with %d", code)
	}
}

// finish waits for the end of a load, drains and stops the sidecar, and expects
// every acknowledged result in Kafka once.
func (l *line) finish(p *testkit.Process, load *testkit.Load) {
	l.t.Helper()
	if err := load.Wait(); err != nil {
		l.t.Fatal(err)
	}
	l.drained()
	l.stop(p)
	testkit.CheckExactlyOnce(l.t, load.Acked(), testkit.Consume(l.t, l.broker, l.topic))
}

// copyData copies the data directory as it is.
func (l *line) copyData(to string) {
	l.t.Helper()
	if err := os.CopyFS(to, os.DirFS(l.data)); err != nil {
		l.t.Fatal(err)
	}
}

func awaitAcked(t *testing.T, load *testkit.Load, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := load.AwaitAcked(ctx, n); err != nil {
		t.Fatal(err)
	}
}
