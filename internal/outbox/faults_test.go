package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"

	"workflow-results-sidecar/internal/result"
)

// pagesLeft bounds the file to so many pages more: SQLite then says that the disk
// is full, from where it would if it were.
func (h *harness) pagesLeft(n int64) {
	h.t.Helper()
	h.writing.Lock()
	defer h.writing.Unlock()
	pages, err := pragmaInt(context.Background(), h.conn, "page_count")
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.conn.ExecContext(context.Background(), fmt.Sprintf("PRAGMA max_page_count = %d", pages+n)); err != nil {
		h.t.Fatal(err)
	}
}

// TestDiskFull: some commits in mid-batch meet the end of the disk. What was
// answered is held, of the rest nothing is, and with room again all goes on.
func TestDiskFull(t *testing.T) {
	ctx := context.Background()
	h := open(t, t.TempDir())
	h.pagesLeft(200)
	var mu sync.Mutex
	var held, refused []result.Result
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				batch := results(t, 7, `{"pad":"`+strings.Repeat("x", 1500)+`"}`)
				outs, err := h.Append(ctx, batch)
				mu.Lock()
				switch {
				case err == nil:
					held = append(held, batch...)
					for _, out := range outs {
						if out.Err != nil {
							t.Errorf("%v", out.Err)
						}
					}
				case errors.Is(err, ErrFull) && strings.Contains(err.Error(), "no space on the disk"):
					refused = append(refused, batch...)
				default:
					t.Errorf("%v", err)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(held) == 0 || len(refused) == 0 {
		t.Fatalf("%d held, %d refused: the disk was not filled in mid-load", len(held), len(refused))
	}
	h.pagesLeft(100_000)
	for _, r := range held {
		if _, err := h.Get(ctx, r.EventID); err != nil {
			t.Fatalf("acknowledged: %v", err)
		}
	}
	for _, r := range refused {
		if _, err := h.Get(ctx, r.EventID); !errors.Is(err, ErrNotFound) {
			t.Fatalf("refused: %v", err)
		}
	}
	for _, out := range h.add(refused...) {
		if out.Err != nil || out.Duplicate {
			t.Fatalf("resent with room again: %+v", out)
		}
	}
	if got := h.stats().PendingRows; got != int64(len(held)+len(refused)) {
		t.Errorf("%d pending, want %d", got, len(held)+len(refused))
	}
}

// TestPublishingGoesOnWithAFullDisk: what is proven published is known, and on
// disk as soon as there is room.
func TestPublishingGoesOnWithAFullDisk(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	rs := results(t, 100, `{}`)
	h.add(rs...)
	h.pagesLeft(0)
	var placements []Placement // too many for the pages that are there
	for seq := range int64(50) {
		placements = append(placements, Placement{Seq: seq + 1, Partition: int32(seq * 7919 % 100_000), Offset: seq * 104729 * 1_000_003})
	}
	h.MarkPublished(Publication{Through: 50, At: time.Now(), Topic: strings.Repeat("t", 9000), Placements: placements})
	if got := len(h.next(h.Proven())); got != 50 {
		t.Errorf("%d are pending", got)
	}
	_, err := h.Append(context.Background(), results(t, 100, `{}`))
	if !errors.Is(err, ErrFull) {
		t.Errorf("the mark does not fit, so neither does what would ride with it: %v", err)
	}
	h.pagesLeft(1000)
	if st := h.stats(); st.PublishedSeq != 50 || st.PendingRows != 50 {
		t.Errorf("%+v", st)
	}
	h.close()
	if h = open(t, dir); h.Proven() != 50 {
		t.Errorf("%d after a restart", h.Proven())
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		err    sqlite3.Error
		want   error
		fatal  bool
		damage bool
	}{
		{sqlite3.Error{Code: sqlite3.ErrIoErr, ExtendedCode: sqlite3.ErrIoErrFsync}, ErrUnavailable, true, false},
		{sqlite3.Error{Code: sqlite3.ErrIoErr, ExtendedCode: sqlite3.ErrIoErrDirFsync}, ErrUnavailable, true, false},
		{sqlite3.Error{Code: sqlite3.ErrIoErr, ExtendedCode: sqlite3.ErrIoErrWrite}, ErrUnavailable, false, false},
		{sqlite3.Error{Code: sqlite3.ErrReadonly}, ErrUnavailable, false, false},
		{sqlite3.Error{Code: sqlite3.ErrBusy}, ErrUnavailable, false, false},
		{sqlite3.Error{Code: sqlite3.ErrCorrupt}, ErrUnavailable, false, true},
		{sqlite3.Error{Code: sqlite3.ErrNotADB}, ErrUnavailable, false, true},
		{sqlite3.Error{Code: sqlite3.ErrFull}, ErrFull, false, false},
	} {
		o := &Outbox{log: testOptions(t, "d").Log}
		if err := o.judge(fmt.Errorf("insert: %w", c.err)); !errors.Is(err, c.want) {
			t.Errorf("%v: %v", c.err, err)
		}
		if (o.fatalError() != nil) != c.fatal || (o.damage.Load() != nil) != c.damage {
			t.Errorf("%v: fatal %v, damage %v", c.err, o.fatalError(), o.damage.Load())
		}
	}
}

// TestBackgroundTasksComplainOncePerInterval: on a full disk each of them fails
// every second, and a log that grows on the same disk makes it worse.
func TestBackgroundTasksComplainOncePerInterval(t *testing.T) {
	var log bytes.Buffer
	o := &Outbox{log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 100 {
		for _, task := range []string{"retention", "checkpoint"} {
			if err := o.tolerate(t.Context(), task+" failed", errors.New("disk full")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if said := strings.Count(log.String(), "\n"); said != 2 {
		t.Errorf("%d lines, want one for each task:\n%s", said, log.String())
	}
	now := time.Now()
	if o.complaints.due("retention failed", now) || !o.complaints.due("retention failed", now.Add(complainInterval)) {
		t.Error("want the next line an interval later, not before and not never")
	}
}
