//go:build kafka

// Package bench measures the sidecar's real binary beside a real Kafka: how fast
// it answers and publishes, how long a result is on its way, what it costs. What
// bounds the figures (the disk, SQLite, an empty HTTP handler, a bare Kafka
// transaction) is measured in the same run, so that ratios can be told.
//
// Each benchmark runs once for -for; `make bench` repeats the whole, and
// benchstat tells medians and spread.
package bench

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"workflow-results-sidecar/internal/testkit"
)

var duration = flag.Duration("for", 5*time.Second, "how long each load runs")

// binaryFile is what is measured; empty: one that is built on the spot. `make bench` gives
// the image's.
var binaryFile = flag.String("sidecar", "", "path of the sidecar's binary")

func sidecarBinary(b *testing.B) string {
	b.Helper()
	if *binaryFile == "" {
		return testkit.Build(b)
	}
	path, err := filepath.Abs(*binaryFile)
	if err != nil {
		b.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	if socket := os.Getenv(handlerVariable); socket != "" {
		fmt.Fprintln(os.Stderr, serveEmptyHandler(socket))
		os.Exit(1)
	}
	testkit.Main(m)
}

// place is one sidecar's socket, data directory and topic.
type place struct {
	b                         *testing.B
	dir, socket, data, broker string
	topic, delivery           string
	args                      []string // further ones
	process                   *testkit.Process
}

func newPlace(b *testing.B, broker, delivery string) *place {
	b.Helper()
	dir := shortDir(b)
	return &place{b: b, dir: dir, socket: filepath.Join(dir, "s"), data: filepath.Join(dir, "data"),
		broker: broker, topic: fmt.Sprintf("bench-%d", time.Now().UnixNano()), delivery: delivery}
}

// shortDir is a directory whose path leaves room for a socket's; b.TempDir's does not.
func shortDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp("", "wrb")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

// start starts the sidecar and waits until it accepts results.
func (p *place) start() {
	p.b.Helper()
	p.execute()
	p.process.WaitReady(p.b, p.socket)
}

// execute starts the sidecar and does not wait.
func (p *place) execute() {
	p.b.Helper()
	p.process = testkit.StartSidecar(p.b, sidecarBinary(p.b), append([]string{"run", "--socket", p.socket, "--data-dir", p.data,
		"--brokers", p.broker, "--topic", p.topic, "--delivery", p.delivery, "--linger", "0s"}, p.args...)...)
}

// startPublishing starts the sidecar and waits until it publishes.
func (p *place) startPublishing() {
	p.b.Helper()
	p.start()
	p.await(func(s status) bool { return s.Publisher.State == "publishing" })
}

type status struct {
	Outbox struct {
		Pending      int64 `json:"pending"`
		Held         int64 `json:"held"`
		PublishedSeq int64 `json:"published_seq"`
	} `json:"outbox"`
	Publisher struct {
		State string `json:"state"`
	} `json:"publisher"`
}

func (p *place) status() (s status) {
	p.b.Helper()
	client := testkit.SocketClient(p.b, p.socket)
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://sidecar/v1/status")
	if err != nil {
		p.b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.b.Fatal(err)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		p.b.Fatal(err)
	}
	return s
}

// await polls the status until ok.
func (p *place) await(ok func(status) bool) {
	p.b.Helper()
	poll(p.b, 5*time.Millisecond, 5*time.Minute, func(context.Context) (bool, any) {
		s := p.status()
		return ok(s), s
	})
}

// poll calls ready every so often until it says so; where it does not within limit, what
// it saw last is told.
func poll(b *testing.B, every, limit time.Duration, ready func(context.Context) (done bool, saw any)) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		done, saw := ready(ctx)
		if done {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatalf("waited in vain for %s; seen last: %+v", limit, saw)
		}
	}
}

// drained waits until everything is published.
func (p *place) drained() {
	p.b.Helper()
	p.await(func(s status) bool { return s.Outbox.Pending == 0 })
}

// stop ends the sidecar in order.
func (p *place) stop() {
	p.b.Helper()
	p.process.Term(p.b)
	if code := p.process.Wait(p.b); code != 0 {
		p.b.Fatalf("the sidecar ended with %d", code)
	}
}

// perSecond reports n per second of d under unit.
func perSecond(b *testing.B, n int, d time.Duration, unit string) {
	b.ReportMetric(float64(n)/d.Seconds(), unit)
}

// milliseconds reports d under unit.
func milliseconds(b *testing.B, d time.Duration, unit string) {
	b.ReportMetric(inMilliseconds(d), unit)
}

func inMilliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// plainServer serves h on a Unix socket until the benchmark ends.
func plainServer(b *testing.B, socket string, h http.Handler) {
	b.Helper()
	srv := &http.Server{Handler: h}
	l := listenUnix(b, socket)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	b.Cleanup(func() {
		if err := srv.Close(); err != nil {
			b.Error(err)
		}
		<-done
	})
}
