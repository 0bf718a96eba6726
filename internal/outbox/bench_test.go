package outbox

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// BenchmarkAppend is one caller that appends so many 1 KiB results per commit.
func BenchmarkAppend(b *testing.B) {
	for _, rows := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			h := open(b, b.TempDir(), func(o *Options) { o.Log = slog.New(slog.DiscardHandler) })
			rs := results(b, rows, `{"x":"`+strings.Repeat("x", 800)+`"}`)
			b.ReportAllocs()
			for b.Loop() {
				renew(rs)
				h.add(rs...)
			}
			b.ReportMetric(float64(b.N*rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}

func renew(rs []result.Result) {
	for i := range rs {
		rs[i].EventID, rs[i].CorrelationID = uuid.New(), uuid.New()
	}
}
