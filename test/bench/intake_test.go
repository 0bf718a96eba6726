//go:build kafka

package bench

import (
	"fmt"
	"net/http"
	"testing"

	"workflow-results-sidecar/internal/testkit"
)

// nowhere is an address at which no broker is: intake alone is measured.
const nowhere = "127.0.0.1:1"

// BenchmarkIntake measures durable answers, with publishing going on to a real
// broker and with the broker away.
func BenchmarkIntake(b *testing.B) {
	kafka := testkit.SharedKafka(b).Addr()
	for _, conns := range []int{1, 64} {
		for _, delivery := range []string{"exactly-once", "at-least-once"} {
			b.Run(fmt.Sprintf("conns=%d/%s", conns, delivery), func(b *testing.B) {
				benchIntake(b, kafka, delivery, conns, 1, testkit.SingleRequest)
			})
		}
		b.Run(fmt.Sprintf("conns=%d/broker-away", conns), func(b *testing.B) {
			benchIntake(b, nowhere, "exactly-once", conns, 1, testkit.SingleRequest)
		})
	}
	batch := func() *testkit.BareRequest { return testkit.BatchRequest(256) }
	b.Run("batch=256/exactly-once", func(b *testing.B) { benchIntake(b, kafka, "exactly-once", 1, 256, batch) })
	b.Run("batch=256/broker-away", func(b *testing.B) { benchIntake(b, nowhere, "exactly-once", 1, 256, batch) })
}

func benchIntake(b *testing.B, broker, delivery string, conns, rows int, newRequest func() *testkit.BareRequest) {
	want := http.StatusCreated
	if rows > 1 {
		want = http.StatusOK
	}
	for b.Loop() {
		p := newPlace(b, broker, delivery)
		if broker == nowhere {
			p.start()
		} else {
			p.startPublishing()
		}
		m := runLoad(b, p.socket, conns, *duration, want, newRequest)
		m.report(b, rows, "answers/s")
		if broker == nowhere {
			p.process.Kill(b)
			continue
		}
		left := p.status().Outbox.Pending
		b.ReportMetric(float64(left), "left-behind")
		p.drained()
		p.stop()
	}
}
