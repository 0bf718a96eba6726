package outbox

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// BenchmarkAppend is one caller that appends so many 1 KiB results per commit.
func BenchmarkAppend(b *testing.B) {
	for _, rows := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			h := open(b, b.TempDir(), func(o *Options) { o.Log = slog.New(slog.DiscardHandler) })
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				rs := results(b, rows, `{"x":"`+strings.Repeat("x", 800)+`"}`)
				b.StartTimer()
				h.add(rs...)
			}
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
