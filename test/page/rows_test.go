package page

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
	"workflow-results-sidecar/internal/testkit"
)

var rows = flag.Int("rows", 100_000, "results in the outbox of TestManyRows")

// TestManyRows: the page of a sidecar that holds many results. How long its
// questions take is told and not judged.
func TestManyRows(t *testing.T) {
	w := newWorld(t, testkit.FreeAddr(t), "--admin-results")
	sought := fill(t, w.data, *rows)
	w.start()
	for _, path := range []string{"", "v1/status", "v1/history", "v1/results?after=0&newest=true&limit=20", "v1/results?state=parked&newest=true&limit=20",
		"v1/results?correlation_id=" + sought.CorrelationID.String() + "&newest=true&limit=20", "v1/results/" + sought.EventID.String()} {
		start := time.Now()
		resp, err := http.Get(w.url() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Errorf("%s: %s %v", path, resp.Status, err)
		}
		t.Logf("%d rows: /%.60s %s, %d bytes", *rows, path, time.Since(start).Round(10*time.Microsecond), len(body))
	}
	tb := open(t, startBrowser(t), w.url())
	tb.wait(`document.querySelectorAll("#newest-table tbody tr").length === 20`)
	tb.says("#newest-hint", "20 of")
	tb.says("#parked-hint", "20 of 1")
	tb.search(sought.CorrelationID.String())
	tb.wait(`document.querySelector("#found article")`)
	tb.says("#found", sought.EventID.String(), "Published to workflow-results, partition 3")
}

// fill makes an outbox of n results: the oldest are published, a hundred parked,
// the newest tenth pending. It returns one of those that are published.
func fill(t *testing.T, dir string, n int) result.Result {
	t.Helper()
	o := outbox.DefaultOptions()
	o.Dir, o.Log, o.Metrics = dir, slog.New(slog.DiscardHandler), metrics.New(prometheus.NewRegistry())
	box, err := outbox.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- box.Run(ctx) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := box.Close(); err != nil {
			t.Error(err)
		}
	}()
	const batch = 2000
	var sought result.Result
	start := time.Now()
	for begin := 0; begin < n; begin += batch {
		rs := make([]result.Result, batch)
		for i := range rs {
			text := fmt.Appendf(nil, `{"event_id":%q,"correlation_id":%q,"workflow_id":"invoice","workflow_run_id":"run-%d","status":"success","result":{"n":%d}}`, uuid.New(), uuid.New(), begin+i, i)
			if rs[i], err = result.Decode(text, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		outs, err := box.Append(ctx, rs)
		if err != nil {
			t.Fatal(err)
		}
		if begin > n*9/10 {
			continue
		}
		p := outbox.Publication{At: time.Now().UTC(), Topic: "workflow-results"}
		for i, out := range outs {
			seq := out.Entry.Seq
			if begin == 0 && i < 100 {
				if err := box.Park(ctx, seq, "Kafka refuses the record: MESSAGE_TOO_LARGE"); err != nil {
					t.Fatal(err)
				}
				continue
			}
			p.Placements = append(p.Placements, outbox.Placement{Seq: seq, Partition: 3, Offset: seq})
			p.Bytes += out.Entry.Bytes
			p.Through, sought = seq, rs[i]
		}
		box.MarkPublished(p)
	}
	t.Logf("%d rows were made in %s", n, time.Since(start).Round(time.Millisecond))
	return sought
}
