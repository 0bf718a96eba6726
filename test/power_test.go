//go:build kafka

package test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/testkit"
)

var cuts = flag.Int("cuts", 6, "how often TestPowerIsCut cuts the power")

// nowhere is a broker that refuses every connection.
const nowhere = "127.0.0.1:1"

const conns = 64

// TestPowerIsCut takes the file system away in mid-load, as a loss of power does,
// and brings it back: what was answered is there, whether Kafka had been away
// (all of it must come out of the file) or not.
//
// In every other round the process is stopped first, so that no call is under way:
// then whatever was answered must be there. In the others the cut comes in the
// middle of writes and syncs, where the simulation has a flaw of its own: a real
// machine answers nobody any more, but here an fdatasync that the cut overtakes may
// still return success for blocks that the kernel drops (Linux 6.18). What is
// answered between the order to cut and the process's end is left out there, at
// most one result for each client.
func TestPowerIsCut(t *testing.T) {
	broker := testkit.SharedKafka(t)
	v := newVolume(t, 256<<20, "")
	l := newLine(t, broker.Addr())
	l.data = filepath.Join(v.dir, "data")
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: conns, Sizes: randomSizes(), Keys: 4})
	var overtaken [][2]int // from and to, of what was answered during a cut
	for round := range *cuts {
		awaitAcked(t, load, len(load.Acked())+500+rand.IntN(1000))
		stopped := round%2 == 0
		if stopped {
			p.Pause(t)
			awaitStopped(t, p)
		}
		before := len(load.Acked())
		v.cut()
		cut := len(load.Acked())
		if !stopped { // it ends by a failed fsync, or refuses what it cannot write or read
			if status, body, err := l.try(uuid.New(), `{}`); err == nil && status < 500 {
				t.Logf("answered %d after the cut: %s", status, body)
			}
		}
		p.Kill(t)
		after := len(load.Acked())
		if after > cut+conns { // an answer may have been on its way to each client
			t.Errorf("%d results were answered after the cut", after-cut)
		}
		if !stopped {
			overtaken = append(overtaken, [2]int{before, after})
		}
		v.powerOn()
		l.checkCopy()
		l.broker = nowhere
		if round%4 >= 2 {
			l.broker = broker.Addr()
		}
		p = l.start()
	}
	p.Kill(t)
	l.broker = broker.Addr()
	p = l.start()
	awaitAcked(t, load, len(load.Acked())+100)
	cancel()
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	l.drained()
	l.stop(p)
	acked, records := load.Acked(), testkit.Consume(t, broker.Addr(), l.topic)
	answered := len(acked)
	var during []testkit.Acked
	for _, o := range slices.Backward(overtaken) {
		during = append(during, acked[o[0]:o[1]]...)
		acked = slices.Delete(acked, o[0], o[1])
	}
	testkit.CheckExactlyOnce(t, acked, records)
	t.Logf("%d cuts: %d answered; %d of %d that were answered during a cut are missing", *cuts, answered, missing(during, records), len(during))
}

// awaitStopped waits until none of a paused process's threads runs or is in a call.
func awaitStopped(t *testing.T, p *testkit.Process) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
		if err != nil || len(stats) == 0 {
			t.Fatalf("no threads of PID %d: %v", p.PID(), err)
		}
		running := slices.ContainsFunc(stats, func(path string) bool {
			text, err := os.ReadFile(path)
			_, fields, found := strings.Cut(string(text), ") ") // proc(5): the state comes behind the name
			return err == nil && (!found || fields[0] != 'T')
		})
		if !running {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not stop")
		}
	}
}

// TestPowerIsCutFromADiskThatLies is the control: where fsync does nothing, the
// same cut loses what was answered. If it did not, TestPowerIsCut would prove nothing.
func TestPowerIsCutFromADiskThatLies(t *testing.T) {
	broker := testkit.SharedKafka(t)
	v := newVolume(t, 256<<20, "")
	faults := testkit.NewFaults(t)
	l := newLine(t, nowhere)
	l.data = filepath.Join(v.dir, "data")
	l.env = faults.Env()
	p := l.start()
	faults.Set(testkit.Fault{Call: testkit.CallSync, Action: testkit.Lie})
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: conns, Count: 20})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	v.cut()
	p.Kill(t)
	faults.Clear()
	v.powerOn()
	l.broker = broker.Addr()
	p = l.start()
	l.drained()
	l.stop(p)
	lost := missing(load.Acked(), testkit.Consume(t, broker.Addr(), l.topic))
	if lost == 0 {
		t.Error("nothing was lost: the cut is no loss of power")
	}
	t.Logf("%d of %d are lost", lost, len(load.Acked()))
}

// missing counts the acknowledged results that are not among the records.
func missing(acked []testkit.Acked, records []*kgo.Record) (n int) {
	there := map[uuid.UUID]bool{}
	for _, r := range records {
		if id, err := uuid.Parse(testkit.Header(r, "ce_id")); err == nil {
			there[id] = true
		}
	}
	for _, a := range acked {
		if !there[a.EventID] {
			n++
		}
	}
	return n
}
