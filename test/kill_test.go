//go:build kafka

package test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kmsg"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/testkit"
)

var rounds = flag.Int("rounds", 24, "how often TestKilledAtEveryPoint kills the sidecar, in each mode of delivery")

// aim is a moment to be killed at.
type aim struct {
	name  string
	fault testkit.Fault // at a call into the file system, or
	frame *frameAim     // at a frame of the Kafka protocol, or
	modes []string      // nil: both
	skip  func() int    // how many such moments pass before
}

type frameAim struct {
	key    int16
	answer bool
}

func upTo(n int) func() int { return func() int { return rand.IntN(n) } }

var (
	produce = kmsg.NewPtrProduceRequest().Key()
	endTxn  = kmsg.NewPtrEndTxnRequest().Key()
)

var aims = []aim{
	{name: "in place of an fsync", fault: testkit.Fault{Call: testkit.CallSync, Action: testkit.KillBefore}, skip: upTo(100)},
	{name: "between fsync and answer", fault: testkit.Fault{Call: testkit.CallSync, Action: testkit.KillAfter}, skip: upTo(100)},
	{name: "in the middle of a write", fault: testkit.Fault{Call: testkit.CallWrite, Action: testkit.Tear}, skip: upTo(1000)},
	{name: "results on the way to Kafka", frame: &frameAim{produce, false}, skip: upTo(10)},
	{name: "results in Kafka, and nobody heard", frame: &frameAim{produce, true}, skip: upTo(10)},
	{name: "before Kafka's commit", frame: &frameAim{endTxn, false}, skip: upTo(10), modes: []string{"exactly-once"}},
	{name: "between Kafka's commit and the mark", frame: &frameAim{endTxn, true}, skip: upTo(10), modes: []string{"exactly-once"}},
}

// TestKilledAtEveryPoint kills the sidecar (SIGKILL) under 64 clients that send
// again until they are answered: half of the rounds at a random moment, the other
// half where it hurts. After each the file is whole; in the end nothing that was
// answered is missing, nothing is altered, no key's order is broken, and in
// exactly-once nothing is there twice.
func TestKilledAtEveryPoint(t *testing.T) {
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		t.Run(delivery, func(t *testing.T) {
			broker := testkit.StartKafka(t, testkit.WithProxy())
			l := newLine(t, broker.Proxy().Addr(), "--delivery", delivery, "--history", "1s", "--dedup-window", "1m")
			faults := testkit.NewFaults(t)
			l.env = faults.Env()
			p := l.start()
			ctx, cancel := context.WithCancel(t.Context())
			load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 64, Sizes: randomSizes(), Keys: 4})
			possible := slices.DeleteFunc(slices.Clone(aims), func(a aim) bool { return a.modes != nil && !slices.Contains(a.modes, delivery) })
			kills := map[string]int{}
			for round := range *rounds {
				awaitAcked(t, load, len(load.Acked())+200)
				name := "at random"
				if round%2 == 0 {
					awaitAcked(t, load, len(load.Acked())+rand.IntN(500))
					p.Kill(t)
				} else {
					a := possible[round/2%len(possible)]
					name = a.name
					a.kill(t, p, faults, broker.Proxy())
				}
				kills[name]++
				l.checkCopy()
				p = l.start()
			}
			awaitAcked(t, load, len(load.Acked())+200)
			cancel()
			if err := load.Wait(); err != nil {
				t.Fatal(err)
			}
			l.drained()
			l.stop(p)
			records := testkit.Consume(t, broker.Addr(), l.topic)
			duplicates := testkit.CheckAtLeastOnce(t, load.Acked(), records)
			if delivery == "exactly-once" && duplicates > 0 {
				t.Errorf("%d records are there more than once", duplicates)
			}
			t.Logf("%d kills %v: %d acknowledged, %d in doubt, %d records, %d duplicates",
				*rounds, kills, len(load.Acked()), len(load.Doubtful()), len(records), duplicates)
		})
	}
}

// kill arms the aim and waits until it has hit.
func (a aim) kill(t *testing.T, p *testkit.Process, faults *testkit.Faults, proxy *testkit.Proxy) {
	t.Helper()
	if a.frame == nil {
		a.fault.Skip = a.skip()
		faults.Set(a.fault)
		defer faults.Clear()
	} else {
		var passed atomic.Int32
		skip := int32(a.skip())
		proxy.Set(func(f testkit.Frame) testkit.Verdict {
			if f.Key != a.frame.key || f.Answer != a.frame.answer || passed.Add(1) <= skip {
				return testkit.Pass
			}
			p.Kill(t)
			return testkit.Cut
		})
		defer proxy.Set(nil)
	}
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%s: the moment never came", a.name)
	}
}

// randomSizes are of payloads: most are small, some are of many pages.
func randomSizes() []int {
	sizes := make([]int, 97) // prime to the number of keys: each key gets each size
	for i := range sizes {
		sizes[i] = 1 + rand.IntN(1000)
		if i%10 == 0 {
			sizes[i] = 1 + rand.IntN(20_000)
		}
	}
	return sizes
}

// checkCopy looks through the whole file as the dead left it, in a copy: to open
// it would already mend it.
func (l *line) checkCopy() {
	l.t.Helper()
	dir, err := os.MkdirTemp(l.dir, "copy")
	if err != nil {
		l.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l.copyData(filepath.Join(dir, "data"))
	if out, err := exec.Command(l.bin, "outbox", "check", "--data-dir", filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		l.t.Errorf("outbox check: %v\n%s", err, out)
	}
}

// TestKilledAtEveryCallOfTheFirstStart: whichever of its writes, syncs and
// truncations the making of a new outbox ends at, the next start goes well.
func TestKilledAtEveryCallOfTheFirstStart(t *testing.T) {
	broker := testkit.SharedKafka(t)
	faults := testkit.NewFaults(t)
	hits := 0
	for _, fault := range []testkit.Fault{
		{Call: testkit.CallSync, Action: testkit.KillBefore}, {Call: testkit.CallSync, Action: testkit.KillAfter},
		{Call: testkit.CallWrite, Action: testkit.KillBefore}, {Call: testkit.CallWrite, Action: testkit.Tear},
		{Call: testkit.CallTruncate, Action: testkit.KillBefore},
	} {
		for fault.Skip = 0; ; fault.Skip++ {
			l := newLine(t, broker.Addr())
			l.env = faults.Env()
			faults.Set(fault)
			p := l.launch()
			if !l.readyOrEnded(p) {
				break // it has fewer calls than that
			}
			hits++
			faults.Clear()
			p = l.start()
			p.Kill(t)
			l.checkCopy()
		}
		faults.Clear()
	}
	if t.Logf("killed %d times", hits); hits < 10 {
		t.Errorf("only %d calls were hit", hits)
	}
}

// TestKilledInRetention: nothing but retention writes, and is killed at its calls.
func TestKilledInRetention(t *testing.T) {
	broker := testkit.SharedKafka(t)
	faults := testkit.NewFaults(t)
	l := newLine(t, broker.Addr(), "--history", "1s", "--dedup-window", "3s")
	l.env = faults.Env()
	p := l.start()
	var acked []testkit.Acked
	faultsOf := []testkit.Fault{
		{Call: testkit.CallSync, Action: testkit.KillBefore}, {Call: testkit.CallSync, Action: testkit.KillAfter},
		{Call: testkit.CallWrite, Action: testkit.Tear},
	}
	for round := range max(len(faultsOf), *rounds/8) {
		load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 16, Count: 100, Sizes: randomSizes()})
		if err := load.Wait(); err != nil {
			t.Fatal(err)
		}
		acked = append(acked, load.Acked()...)
		l.drained()
		fault := faultsOf[round%len(faultsOf)]
		fault.Skip = rand.IntN(3)
		faults.Set(fault)
		select {
		case <-p.Done():
		case <-time.After(time.Minute):
			t.Fatal("retention never wrote")
		}
		faults.Clear()
		l.checkCopy()
		p = l.start()
	}
	l.drained()
	l.awaitStatus("all is forgotten", func(s status) bool { return s.Outbox.Held == 0 })
	l.stop(p)
	testkit.CheckExactlyOnce(t, acked, testkit.Consume(t, broker.Addr(), l.topic))
}

// readyOrEnded waits for either and tells whether it ended.
func (l *line) readyOrEnded(p *testkit.Process) (ended bool) {
	l.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 3000 {
		select {
		case <-p.Done():
			return true
		case <-tick.C:
			if strings.Contains(p.Output(), "msg=ready") {
				p.Kill(l.t)
				return false
			}
		}
	}
	l.t.Fatal(fmt.Errorf("neither ready nor ended:\n%s", p.Output()))
	return false
}

// TestKilledInRecover: at whichever of its calls `outbox recover` ends, what it leaves
// is no outbox, or the whole of it; another run makes it whole.
func TestKilledInRecover(t *testing.T) {
	l := newLine(t, nowhere)
	p := l.start()
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 4, Count: 50, Sizes: sizes})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Kill(t)
	faults := testkit.NewFaults(t)
	recovery := func(to string) error {
		cmd := exec.Command(l.bin, "outbox", "recover", "--data-dir", l.data, "--to", to)
		cmd.Env = append(os.Environ(), faults.Env()...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	pending := func(dir string) (int64, error) {
		opts := outbox.DefaultOptions()
		opts.Dir, opts.Log, opts.Metrics = dir, slog.New(slog.DiscardHandler), metrics.New(prometheus.NewRegistry())
		o, err := outbox.Open(t.Context(), opts)
		if err != nil {
			return 0, err
		}
		st, err := o.Stats(t.Context())
		return st.PendingRows, errors.Join(err, o.Close())
	}
	want, hits := int64(len(load.Acked())), 0
	for _, fault := range []testkit.Fault{
		{Call: testkit.CallSync, Action: testkit.KillBefore}, {Call: testkit.CallSync, Action: testkit.KillAfter},
		{Call: testkit.CallWrite, Action: testkit.KillBefore}, {Call: testkit.CallTruncate, Action: testkit.KillBefore},
	} {
		for fault.Skip = 0; ; fault.Skip++ {
			to := filepath.Join(t.TempDir(), "new")
			faults.Set(fault)
			err := recovery(to)
			faults.Clear()
			if err == nil {
				break // it has fewer calls than that
			}
			hits++
			if outbox.Exists(to) == nil { // killed in its last step
				if n, err := pending(to); err != nil || n != want {
					t.Fatalf("%+v: a part of it looks like an outbox: %d results of %d (%v)", fault, n, want, err)
				}
				continue
			}
			if _, err := os.Stat(filepath.Join(to, "recover-unfinished")); err == nil {
				if _, err := pending(to); err == nil {
					t.Fatalf("%+v: a start was let in beside an unfinished recovery", fault)
				}
			}
			if err := recovery(to); err != nil {
				t.Fatalf("%+v: another run: %v", fault, err)
			}
			if n, err := pending(to); err != nil || n != want {
				t.Fatalf("%+v: %d results after another run (%v), want %d", fault, n, err, want)
			}
		}
	}
	if t.Logf("killed %d times", hits); hits < 10 {
		t.Errorf("only %d calls were hit", hits)
	}
}
