package outbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// at makes an outbox whose clock the test turns.
func at(now *time.Time) func(*Options) {
	return func(o *Options) { o.Now = func() time.Time { return *now } }
}

func publishAll(t *testing.T, h *harness, now time.Time) {
	t.Helper()
	h.MarkPublished(Publication{Through: h.stats().LastSeq, At: now, Topic: "t"})
	h.stats()
}

func TestWindows(t *testing.T) {
	ctx := context.Background()
	now := time.Now()
	h := open(t, t.TempDir(), at(&now), func(o *Options) { o.History, o.DedupWindow = time.Hour, 24*time.Hour })
	rs := results(t, 3, `{"pad":"`+strings.Repeat("x", 2000)+`"}`)
	h.add(rs...)
	if err := h.Park(ctx, 2, "no"); err != nil {
		t.Fatal(err)
	}
	publishAll(t, h, now)
	full := h.stats().HeldBytes

	now = now.Add(2 * time.Hour)
	if err := h.retain(ctx); err != nil {
		t.Fatal(err)
	}
	payload, err := h.Payload(ctx, rs[0].EventID)
	if err != nil || payload != nil {
		t.Errorf("after the history window: %d bytes, %v", len(payload), err)
	}
	if parked, err := h.Payload(ctx, rs[1].EventID); err != nil || len(parked) < 2000 {
		t.Errorf("a parked payload: %d bytes, %v", len(parked), err)
	}
	if out := h.add(rs[0])[0]; !out.Duplicate {
		t.Errorf("not recognised within the deduplication window: %+v", out)
	}
	if st := h.stats(); st.HeldRows != 3 || st.HeldBytes > full-4000 {
		t.Errorf("held %d rows, %d of %d bytes", st.HeldRows, st.HeldBytes, full)
	}

	now = now.Add(23 * time.Hour)
	if err := h.retain(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get(ctx, rs[0].EventID); !errors.Is(err, ErrNotFound) {
		t.Errorf("after the deduplication window: %v", err)
	}
	if e, err := h.Get(ctx, rs[1].EventID); err != nil || e.State != Parked {
		t.Errorf("the parked one: %+v %v", e, err)
	}
}

func TestPendingIsNeverPruned(t *testing.T) {
	now := time.Now()
	h := open(t, t.TempDir(), at(&now))
	h.add(results(t, 3, `{}`)...)
	now = now.Add(1000 * time.Hour)
	if err := h.retain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := h.next(0); !cmp.Equal(got, []int64{1, 2, 3}) {
		t.Errorf("pending %v", got)
	}
}

func TestLimitOfRows(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxRows = 10 })
	rs := results(t, 10, `{}`)
	h.add(rs...)
	out := h.add(newResult(t, `{}`))[0]
	if !errors.Is(out.Err, ErrFull) {
		t.Errorf("beyond the limit: %+v", out)
	}
	if out := h.add(rs[3])[0]; !out.Duplicate {
		t.Errorf("a resend at the limit: %+v", out)
	}
	if err := h.Ready(); !errors.Is(err, ErrFull) {
		t.Errorf("ready: %v", err)
	}
	publishAll(t, h, time.Now())
	if out := h.add(newResult(t, `{}`))[0]; out.Err != nil {
		t.Errorf("published ones must give way: %v", out.Err)
	}
	if st := h.stats(); st.HeldRows > 10 || st.DedupTrimmedAt.IsZero() {
		t.Errorf("stats %+v", st)
	}
}

// TestLimitOfBytesIsTold: the bytes are hardly ever used up to the last one, so it is
// full where the newest result found no room, until one does or room is made.
func TestLimitOfBytesIsTold(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxBytes = 50_000 })
	ready := func(when string, full bool) {
		t.Helper()
		if err := h.Ready(); errors.Is(err, ErrFull) != full || !full && err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	big := `{"pad":"` + strings.Repeat("x", 6000) + `"}`
	if out := h.add(newResult(t, `{"pad":"`+strings.Repeat("x", 60_000)+`"}`))[0]; !errors.Is(out.Err, ErrFull) {
		t.Errorf("%+v", out)
	}
	ready("what can never fit says nothing of the outbox", false)
	for h.add(newResult(t, big))[0].Err == nil {
		ready("while results are accepted", false)
	}
	ready("when one was refused", true)
	if out := h.add(newResult(t, `{}`))[0]; out.Err != nil {
		t.Errorf("%+v", out)
	}
	ready("when a smaller one was accepted", false)
	h.add(newResult(t, big))
	ready("when one was refused again", true)
	publishAll(t, h, time.Now())
	ready("when all is published", false)
}

func TestLimitOfBytesTakesHistoryFirst(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxBytes = 50_000 })
	big := `{"pad":"` + strings.Repeat("x", 4000) + `"}`
	rs := results(t, 10, big)
	h.add(rs...)
	publishAll(t, h, time.Now())
	h.add(results(t, 8, big)...)
	if st := h.stats(); st.HeldRows != 18 || st.HeldBytes > 50_000 {
		t.Errorf("rows %d, bytes %d: payloads go, entries stay", st.HeldRows, st.HeldBytes)
	}
	if out := h.add(rs[0])[0]; !out.Duplicate {
		t.Errorf("deduplication went before history: %+v", out)
	}
}

func TestDedupRowsCap(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.DedupRows = 100 })
	h.add(results(t, 400, `{}`)...)
	publishAll(t, h, time.Now())
	if err := h.retain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if st := h.stats(); st.HeldRows != 100 {
		t.Errorf("held %d", st.HeldRows)
	}
}

// TestFileShrinks: after retention the file is given back, but for the reserve.
func TestFileShrinks(t *testing.T) {
	ctx := context.Background()
	now := time.Now()
	h := open(t, t.TempDir(), at(&now))
	pad := `{"pad":"` + strings.Repeat("x", 8000) + `"}`
	for range 20 {
		h.add(results(t, 256, pad)...)
	}
	publishAll(t, h, now)
	if err := h.do(ctx, func(*transaction) error { return nil }); err != nil {
		t.Fatal(err)
	}
	h.walTooLong.Store(true) // bring the WAL into the file, by the writer's own step
	before := h.stats().FileBytes
	now = now.Add(1000 * time.Hour)
	if err := h.retain(ctx); err != nil {
		t.Fatal(err)
	}
	h.walTooLong.Store(true)
	h.stats()
	after := h.stats()
	if before < 30<<20 || after.FileBytes > 8<<20 {
		t.Errorf("file %d before, %d after", before, after.FileBytes)
	}
	if after.HeldRows != 0 || after.HeldBytes != 0 {
		t.Errorf("held %d rows, %d bytes", after.HeldRows, after.HeldBytes)
	}
}

// TestFileSize keeps rowOverhead honest: what is counted is close to what is used.
func TestFileSize(t *testing.T) {
	h := open(t, t.TempDir())
	payload := `{"pad":"` + strings.Repeat("x", 1000) + `"}`
	for range 20 {
		h.add(results(t, 256, payload)...)
	}
	h.walTooLong.Store(true)
	h.stats()
	st := h.stats()
	if ratio := float64(st.FileBytes) / float64(st.HeldBytes); ratio > 1.3 || ratio < 0.9 {
		t.Errorf("the file has %d bytes for %d counted: %.2f", st.FileBytes, st.HeldBytes, ratio)
	}
}

// TestStaleIDs: what is pruned stays in the indexes until they are swept. Nobody sees
// it there, it comes in again as new, and parked and newer rows are left alone.
func TestStaleIDs(t *testing.T) {
	ctx := context.Background()
	now := time.Now()
	h := open(t, t.TempDir(), at(&now), func(o *Options) { o.History, o.DedupWindow = time.Hour, time.Hour })
	entries := func() (n [2]int) {
		t.Helper()
		if err := h.readers.QueryRowContext(ctx, `SELECT (SELECT count(*) FROM event_ids), (SELECT count(*) FROM correlation_ids)`).Scan(&n[0], &n[1]); err != nil {
			t.Fatal(err)
		}
		return n
	}
	merge := func() {
		t.Helper()
		h.writing.Lock()
		defer h.writing.Unlock()
		for more := true; more; more = h.merging != nil {
			if err := h.mergeSome(); err != nil {
				t.Fatal(err)
			}
		}
	}
	expire := func() {
		t.Helper()
		publishAll(t, h, now)
		now = now.Add(2 * time.Hour)
		if err := h.retain(ctx); err != nil {
			t.Fatal(err)
		}
	}
	old := results(t, 100, `{}`)
	one := newResultOf(t, old[0].CorrelationID, `{}`) // an index has several rows of it
	h.add(append(old, one)...)
	if err := h.Park(ctx, 2, "no"); err != nil {
		t.Fatal(err)
	}
	merge()
	expire()
	if got := entries(); got != [2]int{101, 101} {
		t.Fatalf("%v entries: the few should still be there", got)
	}
	if _, err := h.Get(ctx, old[0].EventID); !errors.Is(err, ErrNotFound) {
		t.Errorf("what was pruned: %v", err)
	}
	if list, err := h.List(ctx, Filter{CorrelationID: &one.CorrelationID}); err != nil || len(list) != 0 {
		t.Errorf("its correlation ID: %v %v", list, err)
	}
	if out := h.add(old[0], old[1]); out[0].Duplicate || !out[1].Duplicate || out[1].Entry.State != Parked {
		t.Errorf("sent again: %+v", out)
	}
	many := results(t, 2*staleRows, `{}`)
	h.add(many[:staleRows]...)
	merge()
	expire()
	h.add(many[staleRows:]...)
	merge()
	if got := entries(); got != [2]int{staleRows + 1, staleRows + 1} {
		t.Errorf("%v entries after a sweep, want those of %d new rows and of one parked", got, staleRows)
	}
	if e, err := h.Get(ctx, old[1].EventID); err != nil || e.State != Parked {
		t.Errorf("the parked one: %+v %v", e, err)
	}
}

// TestSweepHasItsTurn: results that come in faster than their like are pruned must not
// keep the sweep from its turn. The indexes would grow without bound.
func TestSweepHasItsTurn(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxRows, o.DedupRows = 20_000, 1000 })
	for h.swept.Load() == 0 {
		if h.lastSeq() > 1_000_000 {
			t.Fatalf("no sweep in %d rows, of which %d are held", h.lastSeq(), h.stats().HeldRows)
		}
		h.add(results(t, 1000, `{}`)...)
		h.MarkPublished(Publication{Through: h.lastSeq(), At: time.Now(), Topic: "t"})
	}
}

// TestStepsFollowTheIntake: where the disk is slow, retention's steps are no smaller
// than what came in since the last one asks for. Else it would never catch up.
func TestStepsFollowTheIntake(t *testing.T) {
	h := open(t, t.TempDir())
	p := pace{o: h.Outbox, n: sliceRows}
	for range 8 {
		h.add(results(t, 200, `{}`)...)
		err := p.do(context.Background(), func(*transaction, int64) error { time.Sleep(sliceTime + time.Millisecond); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if p.n < 400 {
		t.Errorf("a step may touch %d rows, while 200 come in between two", p.n)
	}
}
