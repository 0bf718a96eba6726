package outbox

import (
	"context"
	"database/sql"
	"os"
	"strings"
	"testing"
	"time"

	"workflow-results-sidecar/internal/result"
)

// TestWatermarkNamesTheGenerationOfWhatNextReturns, while others commit: a
// watermark without it would make the next start believe that it is a copy.
func TestWatermarkNamesTheGenerationOfWhatNextReturns(t *testing.T) {
	h := open(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 4)
	for range cap(done) {
		go func() {
			for ctx.Err() == nil {
				_, _ = h.Append(t.Context(), results(t, 1, `{}`)) // what it stores is all that counts
			}
			done <- struct{}{}
		}()
	}
	for looks := 0; looks < 3000; {
		rows, err := h.Next(t.Context(), h.Proven(), 1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			continue
		}
		looks++
		through := rows[len(rows)-1].Seq
		if w := h.Watermark(through); w.Generation != h.owner {
			t.Errorf("seq %d: generation %s, this start is %s", through, w.Generation, h.owner)
			break
		}
		h.MarkPublished(Publication{Through: through, At: time.Now()})
	}
	cancel()
	for range cap(done) {
		<-done
	}
}

// TestResendAtTheLimit: a resend needs no room, and what has to give way for
// another result of the same batch must not break the batch.
func TestResendAtTheLimit(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxRows = 10 })
	rs := results(t, 10, `{}`)
	h.add(rs...)
	publishAll(t, h, time.Now())
	if out := h.add(rs[0])[0]; !out.Duplicate {
		t.Errorf("alone: %+v", out)
	}
	outs := h.add(newResult(t, `{}`), rs[0], rs[9], newResult(t, `{}`))
	if outs[0].Err != nil || outs[1].Err != nil || outs[3].Err != nil || !outs[2].Duplicate {
		t.Errorf("%+v", outs)
	}
	if outs[1].Duplicate {
		t.Error("the oldest entry should have given way")
	}
	if out := h.add(rs[0])[0]; !out.Duplicate || out.Entry.Seq != outs[1].Entry.Seq {
		t.Errorf("stored anew, and not recognised: %+v", out)
	}
	if st := h.stats(); st.HeldRows != 10 {
		t.Errorf("held %d", st.HeldRows)
	}
}

// TestLittleGivesWayAtATime: one new result must not cost the whole history.
func TestLittleGivesWayAtATime(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxRows = 100 })
	rs := results(t, 100, `{}`)
	h.add(rs...)
	publishAll(t, h, time.Now())
	h.add(newResult(t, `{}`))
	for i, r := range rs[1:] {
		if out := h.add(r)[0]; !out.Duplicate {
			t.Fatalf("result %d is forgotten", i+1)
		}
	}
}

// TestTooLargeForTheOutboxTakesNothing: what can never fit must not empty it first.
func TestTooLargeForTheOutboxTakesNothing(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.MaxBytes = 20_000 })
	h.add(results(t, 10, `{}`)...)
	publishAll(t, h, time.Now())
	big := newResult(t, `{"x":"`+strings.Repeat("x", 30_000)+`"}`)
	if out := h.add(big)[0]; out.Err == nil {
		t.Errorf("%+v", out)
	}
	if st := h.stats(); st.HeldRows != 10 {
		t.Errorf("held %d", st.HeldRows)
	}
}

// TestPrunedAndResentWhereTheIndexBegins: a slice of pruned rows has some of its
// IDs in the index and some in memory; the same ID comes in again meanwhile.
func TestPrunedAndResentWhereTheIndexBegins(t *testing.T) {
	const memory = 20
	o, err := Open(t.Context(), testOptions(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if problems, err := o.Check(t.Context()); err != nil || len(problems) > 0 {
			t.Errorf("check: %v %v", problems, err)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}()
	add := func(rs ...result.Result) []Outcome {
		t.Helper()
		outs, err := o.Append(t.Context(), rs)
		if err != nil {
			t.Fatal(err)
		}
		return outs
	}
	indexed := results(t, 100, `{}`)
	add(indexed...)
	for m := o.newMerge(); len(m.events)+len(m.correlations) > 0; {
		if err := o.commit(func(tx *transaction) error { return tx.mergeSlice(m, 1000) }); err != nil {
			t.Fatal(err)
		}
	}
	add(results(t, memory, `{}`)...)
	o.MarkPublished(Publication{Through: 120, At: time.Now()})
	err = o.commit(func(tx *transaction) error {
		if _, err := tx.prune(tx.state.publishedSeq, 110); err != nil {
			return err
		}
		out, err := tx.append(&indexed[99])
		if out.Duplicate {
			t.Error("a pruned row is still held")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if e, err := o.Get(t.Context(), indexed[99].EventID); err != nil || e.Seq != 121 {
		t.Errorf("%+v %v", e, err)
	}
	if out := add(indexed[99])[0]; !out.Duplicate {
		t.Errorf("stored twice: %+v", out)
	}
}

// TestARollbackRestoresWhatWasPruned, in memory as in the file.
func TestARollbackRestoresWhatWasPruned(t *testing.T) {
	h := open(t, t.TempDir())
	rs := results(t, 5, `{}`)
	h.add(rs...)
	publishAll(t, h, time.Now())
	err := h.do(t.Context(), func(tx *transaction) error {
		if _, err := tx.prune(5, 5); err != nil {
			return err
		}
		if out, err := tx.append(&rs[2]); err != nil || out.Duplicate {
			t.Errorf("%+v %v", out, err)
		}
		return ErrNotFound // any error
	})
	if err == nil {
		t.Fatal("no error")
	}
	if out := h.add(rs[2])[0]; !out.Duplicate || out.Entry.Seq != 3 {
		t.Errorf("%+v", out)
	}
}

// TestCapIsReachedAtOnce: however much is beyond the cap, one round takes it.
func TestCapIsReachedAtOnce(t *testing.T) {
	h := open(t, t.TempDir(), func(o *Options) { o.DedupRows = 100 })
	h.add(results(t, 3000, `{}`)...)
	if err := h.Park(t.Context(), 7, "no"); err != nil {
		t.Fatal(err)
	}
	publishAll(t, h, time.Now())
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if st := h.stats(); st.HeldRows != 101 {
		t.Errorf("held %d", st.HeldRows)
	}
}

// TestABackupFromBeforeAParking: its rows explain the watermark but for the one
// that was parked since. It must not take that one for published.
func TestABackupFromBeforeAParking(t *testing.T) {
	dir, backup := t.TempDir(), t.TempDir()
	h := open(t, dir)
	h.add(results(t, 5, `{}`)...)
	h.stats()
	h.writing.Lock()
	err := os.CopyFS(backup, os.DirFS(dir))
	h.writing.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	before := h.Watermark(5)
	if err := h.Park(t.Context(), 3, "too large"); err != nil {
		t.Fatal(err)
	}
	after := h.Watermark(5)
	b := open(t, backup)
	if !b.Judges(before) || b.Judges(after) || !h.Judges(after) || !h.Judges(before) {
		t.Errorf("the copy judges %t (want true) and %t (want false), the original %t and %t", b.Judges(before), b.Judges(after), h.Judges(after), h.Judges(before))
	}
}

// TestParkedIsNeverToldAsPublished, however the reading falls between parking
// and the next publication.
func TestParkedIsNeverToldAsPublished(t *testing.T) {
	h := open(t, t.TempDir())
	const n = 200
	h.add(results(t, n, `{}`)...)
	done := make(chan error, 1)
	go func() {
		for seq := range int64(n) {
			if err := h.Park(context.Background(), seq+1, "no"); err != nil {
				done <- err
				return
			}
			h.MarkPublished(Publication{Through: seq + 1, At: time.Now()})
		}
		done <- nil
	}()
	for finished := false; !finished; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished = true
		default:
		}
		list, err := h.List(t.Context(), Filter{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if e.State == Published {
				t.Fatalf("seq %d is told as published", e.Seq)
			}
		}
	}
}

// TestANewReaderWaitsForNoWriter: PRAGMA auto_vacuum begins a write transaction,
// so a reading connection that ran it would wait for the writer, who may be
// waiting for it.
func TestANewReaderWaitsForNoWriter(t *testing.T) {
	h := open(t, t.TempDir())
	h.add(newResult(t, `{}`))
	err := h.do(t.Context(), func(*transaction) error {
		readers := sql.OpenDB(connector{path: h.path(), readOnly: true})
		defer readers.Close()
		var n int
		if err := readers.QueryRowContext(t.Context(), `SELECT count(*) FROM results`).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d %v", n, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
