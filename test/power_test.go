//go:build kafka

package test

import (
	"context"
	"flag"
	"math/rand/v2"
	"path/filepath"
	"testing"

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
func TestPowerIsCut(t *testing.T) {
	broker := testkit.SharedKafka(t)
	v := newVolume(t, 256<<20, "")
	l := newLine(t, broker.Addr())
	l.data = filepath.Join(v.dir, "data")
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: conns, Sizes: randomSizes(), Keys: 4})
	for round := range *cuts {
		awaitAcked(t, load, len(load.Acked())+500+rand.IntN(1000))
		v.cut()
		before := len(load.Acked())
		if code := p.Wait(t); code != 1 {
			t.Errorf("it ended with %d", code)
		}
		// The commit that was synced may have had an answer on the way for each client.
		if after := len(load.Acked()); after > before+conns {
			t.Errorf("%d results were answered after the cut", after-before)
		}
		v.powerOn()
		if round%2 == 0 {
			p = l.start("--brokers", nowhere)
		} else {
			p = l.start()
		}
	}
	p.Kill(t)
	p = l.start()
	awaitAcked(t, load, len(load.Acked())+100)
	cancel()
	t.Logf("%d cuts", *cuts)
	l.finish(p, load)
}

// TestPowerIsCutFromADiskThatLies is the control: where fsync does nothing, the
// same cut loses what was answered. If it did not, TestPowerIsCut would prove nothing.
func TestPowerIsCutFromADiskThatLies(t *testing.T) {
	broker := testkit.SharedKafka(t)
	v := newVolume(t, 256<<20, "")
	faults := testkit.NewFaults(t)
	l := newLine(t, broker.Addr())
	l.data = filepath.Join(v.dir, "data")
	l.env = faults.Env()
	p := l.start("--brokers", nowhere)
	faults.Set(testkit.Fault{Call: testkit.CallSync, Action: testkit.Lie})
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: conns, Count: 20})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	v.cut()
	p.Kill(t)
	faults.Clear()
	v.powerOn()
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
