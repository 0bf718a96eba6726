package outbox

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// merging is an outbox without Run, so that a test takes its merge step by step.
type merging struct {
	*Outbox
	t   *testing.T
	dir string
	all []result.Result
}

// fillForMerge appends as many results as start a merge, two per correlation ID.
func fillForMerge(t *testing.T) *merging {
	t.Helper()
	dir := t.TempDir()
	o, err := Open(context.Background(), testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	m := &merging{Outbox: o, t: t, dir: dir}
	t.Cleanup(func() { m.close() })
	for len(m.all) < mergeRows {
		rs := results(t, 1024, `{}`)
		for i := range rs {
			if i%2 == 1 {
				rs[i] = newResultOf(t, rs[i-1].CorrelationID, `{}`)
			}
		}
		if _, err := o.Append(context.Background(), rs); err != nil {
			t.Fatal(err)
		}
		m.all = append(m.all, rs...)
	}
	if !o.mergeDue() {
		t.Fatal("no merge is due")
	}
	return m
}

func (m *merging) close() {
	m.t.Helper()
	if m.Outbox == nil {
		return
	}
	problems, err := m.Check(context.Background())
	if err != nil || len(problems) > 0 {
		m.t.Errorf("check: %v %v", problems, err)
	}
	if err := m.Close(); err != nil {
		m.t.Error(err)
	}
	m.Outbox = nil
}

// rounds lets the writer take n rounds, each with one step of the merge.
func (m *merging) rounds(n int) {
	m.t.Helper()
	for range n {
		if _, err := m.writeRound(); err != nil {
			m.t.Fatal(err)
		}
	}
}

// during runs a write that waits for the writer.
func (m *merging) during(write func() error) {
	m.t.Helper()
	done := make(chan error, 1)
	go func() { done <- write() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				m.t.Fatal(err)
			}
			return
		case <-m.wake:
			m.rounds(1)
		}
	}
}

// everyHundredth expects what was appended to be found by both IDs and to be a
// duplicate, but for event IDs that are gone.
func everyHundredth(t *testing.T, o *Outbox, all []result.Result, gone map[uuid.UUID]bool) {
	t.Helper()
	ctx := context.Background()
	for i := 0; i < len(all); i += 100 {
		r := all[i]
		if gone[r.EventID] {
			if _, err := o.Get(ctx, r.EventID); !errors.Is(err, ErrNotFound) {
				t.Errorf("result %d was purged: %v", i, err)
			}
			continue
		}
		e, err := o.Get(ctx, r.EventID)
		if err != nil || e.EventID != r.EventID || e.CorrelationID != r.CorrelationID {
			t.Fatalf("result %d: %+v %v", i, e, err)
		}
		list, err := o.List(ctx, Filter{CorrelationID: &r.CorrelationID})
		if err != nil || len(list) != 2 || list[0].Seq >= list[1].Seq {
			t.Fatalf("results of the correlation ID of result %d: %+v %v", i, list, err)
		}
		outs, err := o.Append(ctx, []result.Result{r})
		if err != nil || !outs[0].Duplicate || outs[0].Entry.Seq != e.Seq {
			t.Fatalf("result %d again: %+v %v", i, outs, err)
		}
	}
}

func TestIDsAreFoundBeforeDuringAndAfterAMerge(t *testing.T) {
	m := fillForMerge(t)
	everyHundredth(t, m.Outbox, m.all, nil)
	for _, rounds := range []int{1, 30, 20} { // events only; in the correlations
		m.rounds(rounds)
		if m.merging == nil {
			t.Fatal("the merge is over already")
		}
		everyHundredth(t, m.Outbox, m.all, nil)
	}
	for m.merging != nil {
		m.rounds(1)
	}
	if len(m.recent) != 0 || m.state.indexedSeq != mergeRows {
		t.Errorf("%d IDs are still in memory, indexed up to %d", len(m.recent), m.state.indexedSeq)
	}
	everyHundredth(t, m.Outbox, m.all, nil)
}

func TestACrashInAMergeLosesNoID(t *testing.T) {
	m := fillForMerge(t)
	for _, rounds := range []int{0, 1, 40} {
		m.rounds(rounds)
		crashed := t.TempDir()
		if err := os.CopyFS(crashed, os.DirFS(m.dir)); err != nil {
			t.Fatal(err)
		}
		h := open(t, crashed)
		everyHundredth(t, h.Outbox, m.all, nil)
		if st := h.stats(); st.PendingRows != mergeRows || st.HeldRows != mergeRows || st.LastSeq != mergeRows {
			t.Errorf("after %d rounds: %+v", rounds, st)
		}
		h.close() // checks the whole file
	}
}

func TestWhatMovesDuringAMerge(t *testing.T) {
	m := fillForMerge(t)
	ctx := context.Background()
	m.rounds(10)
	gone := make(map[uuid.UUID]bool)
	for i := 0; i < 800; i += 100 {
		r := m.all[i]
		m.during(func() error { return m.Park(ctx, int64(i)+1, "refused") })
		if i%200 == 0 {
			m.during(func() error { _, err := m.Retry(ctx, r.EventID); return err })
		} else {
			m.during(func() error { return m.Purge(ctx, r.EventID) })
			gone[r.EventID] = true
		}
	}
	if m.merging == nil {
		t.Fatal("the merge is over already: the test shows nothing")
	}
	everyHundredth(t, m.Outbox, m.all, gone)
	for m.merging != nil {
		m.rounds(1)
	}
	everyHundredth(t, m.Outbox, m.all, gone)
	m.close() // checks the indexes
	h := open(t, m.dir)
	everyHundredth(t, h.Outbox, m.all, gone)
}

// TestBatchIsLookedUpAtOnce: whether an event ID is held, each result of a batch is
// told as if it had come alone: by the index, by memory, by what the batch itself has
// brought before it, and by what gave way to that.
func TestBatchIsLookedUpAtOnce(t *testing.T) {
	const held = 64
	h := open(t, t.TempDir(), func(o *Options) { o.MaxRows = held })
	old := results(t, held, `{}`)
	h.add(old[:48]...)
	h.writing.Lock()
	for first := true; first || h.merging != nil; first = false { // 48 in the index, 16 in memory
		if err := h.mergeSome(); err != nil {
			t.Fatal(err)
		}
	}
	h.writing.Unlock()
	h.add(old[48:]...)
	h.publishAll(held)
	for i, out := range h.add(old[10], old[60], old[10], old[11]) { // nothing gives way
		if out.Err != nil || !out.Duplicate {
			t.Errorf("%d of those that are held: %+v", i, out)
		}
	}
	fresh := results(t, 20, `{}`)
	altered := old[40]
	altered.Digest[0] ^= 1
	batch := []result.Result{old[0], old[47], altered, old[63], old[0]} // all of it held
	batch = append(batch, fresh...)                                     // each takes the place of the oldest
	batch = append(batch, fresh[3], old[5], old[30], old[5], old[63])   // held, gone, held, held again, held
	for i, out := range h.add(batch...) {
		var conflict *ConflictError
		switch {
		case i == 2:
			if !errors.As(out.Err, &conflict) || conflict.Held.EventID != old[40].EventID {
				t.Errorf("%d: want a conflict, got %+v", i, out)
			}
		case out.Err != nil || out.Entry.EventID != batch[i].EventID:
			t.Errorf("%d: %+v", i, out)
		case out.Duplicate != (i < 5 || i >= 25 && i != 26):
			t.Errorf("%d: duplicate %t", i, out.Duplicate)
		}
	}
	if last := h.lastSeq(); last != held+21 {
		t.Errorf("%d seqs were given, want %d", last, held+21)
	}
}

// TestWhoSeesARowFindsItByItsID: at no moment of a commit is a row listed and not found.
func TestWhoSeesARowFindsItByItsID(t *testing.T) {
	h := open(t, t.TempDir())
	all, done := results(t, 3000, `{}`), make(chan struct{})
	go func() {
		defer close(done)
		for i := range all {
			if _, err := h.Append(context.Background(), all[i:i+1]); err != nil {
				t.Error(err)
			}
		}
	}()
	defer func() { <-done }()
	for more := true; more; {
		select {
		case <-done:
			more = false
		default:
		}
		var id uuid.UUID
		err := h.readers.QueryRowContext(t.Context(), `SELECT event_id FROM results ORDER BY seq DESC LIMIT 1`).Scan(&id)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Get(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}
