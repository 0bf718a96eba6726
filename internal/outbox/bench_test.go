package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkAppend is one caller that appends so many 1 KiB results per commit.
func BenchmarkAppend(b *testing.B) { benchAppend(b, func(*harness) {}) }

// BenchmarkAppendAndPublish has each commit published before the next.
func BenchmarkAppendAndPublish(b *testing.B) {
	benchAppend(b, func(h *harness) {
		rows, err := h.Next(context.Background(), h.Proven(), 1024, 1<<20)
		if err != nil || len(rows) == 0 {
			b.Fatal("nothing to publish", err)
		}
		p := Publication{Through: rows[len(rows)-1].Seq, At: time.Now(), Topic: "results", Placements: make([]Placement, len(rows))}
		for i := range rows {
			p.Placements[i] = Placement{Seq: rows[i].Seq, Offset: rows[i].Seq}
			p.Bytes += rows[i].Bytes
		}
		h.MarkPublished(p)
	})
}

func benchAppend(b *testing.B, after func(*harness)) {
	for _, rows := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			h := open(b, b.TempDir(), func(o *Options) { o.Log = slog.New(slog.DiscardHandler) })
			var cpu time.Duration
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				rs := results(b, rows, `{"x":"`+strings.Repeat("x", 800)+`"}`)
				before := cpuTime(b)
				b.StartTimer()
				h.add(rs...)
				after(h)
				cpu += cpuTime(b) - before
			}
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
			b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N*rows)/1000, "cpu-µs/row")
		})
	}
}

// cpuTime is what the process has used, in user and kernel mode.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
