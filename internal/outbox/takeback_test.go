package outbox

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTakeBack: what was published after a number is pending again, in this process and
// the next; parked results stay aside, and what has lost its payload stays published.
func TestTakeBack(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	now := time.Now()
	options := []func(*Options){at(&now), func(o *Options) { o.History = time.Hour }}
	h := open(t, dir, options...)
	rs := results(t, 12, `{"pad":"`+strings.Repeat("x", 200)+`"}`)
	h.add(rs...)
	if err := h.Park(ctx, 8, "no"); err != nil {
		t.Fatal(err)
	}
	h.MarkPublished(Publication{Through: 6, At: now, Topic: "t"})
	h.stats()
	now = now.Add(time.Minute)
	h.MarkPublished(Publication{Through: 10, At: now, Topic: "t", Watermark: WatermarkPosition{Offset: 9}})
	lies := WatermarkPosition{Offset: 7}
	rows, gone, err := h.TakeBack(ctx, 6, lies)
	if err != nil || rows != 3 || gone != 0 || h.Proven() != 6 || h.WatermarkPosition() != lies {
		t.Fatalf("%d rows, %d gone, %v; proven %d, %+v", rows, gone, err, h.Proven(), h.WatermarkPosition())
	}
	pending := []int64{7, 9, 10, 11, 12}
	if diff := cmp.Diff(pending, h.next(h.Proven())); diff != "" {
		t.Error(diff)
	}
	if e, err := h.Get(ctx, rs[8].EventID); err != nil || e.State != Pending {
		t.Errorf("%+v %v", e, err)
	}
	if e, err := h.Get(ctx, rs[5].EventID); err != nil || e.State != Published {
		t.Errorf("%+v %v", e, err)
	}
	h.close()

	h = open(t, dir, options...)
	if diff := cmp.Diff(pending, h.next(h.Proven())); diff != "" || h.stats().PendingRows != 5 {
		t.Errorf("after a restart: %s", diff)
	}
	h.MarkPublished(Publication{Through: 9, At: now, Topic: "t"})
	h.stats()
	now = now.Add(2 * time.Hour)
	if err := h.retain(ctx); err != nil {
		t.Fatal(err)
	}
	h.MarkPublished(Publication{Through: 11, At: now, Topic: "t"})
	if rows, gone, err := h.TakeBack(ctx, 6, lies); err != nil || rows != 2 || gone != 3 || h.Proven() != 9 {
		t.Errorf("past the history window: %d rows, %d gone, %v; proven %d", rows, gone, err, h.Proven())
	}
	if diff := cmp.Diff([]int64{10, 11, 12}, h.next(h.Proven())); diff != "" {
		t.Error(diff)
	}
}
