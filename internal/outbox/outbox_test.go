package outbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/result"
)

func TestMain(m *testing.M) {
	// database/sql keeps one goroutine per pool until Close; Close is checked by the harness.
	goleak.VerifyTestMain(m)
}

// harness is an outbox on a real file, and whether its Run is going.
type harness struct {
	*Outbox
	t    testing.TB
	stop context.CancelFunc
	done chan error
}

func testOptions(t testing.TB, dir string) Options {
	opts := DefaultOptions()
	opts.Dir, opts.Log, opts.Metrics = dir, slog.New(slog.NewTextHandler(t.Output(), nil)), metrics.New(prometheus.NewRegistry())
	return opts
}

// open opens an outbox, runs it, and at the end checks the whole file.
func open(t testing.TB, dir string, change ...func(*Options)) *harness {
	t.Helper()
	opts := testOptions(t, dir)
	for _, f := range change {
		f(&opts)
	}
	o, err := Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{Outbox: o, t: t, done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	h.stop = cancel
	go func() { h.done <- o.Run(ctx) }()
	t.Cleanup(h.close)
	return h
}

func (h *harness) close() {
	if h.stop == nil {
		return
	}
	problems, err := h.Check(context.Background())
	if err != nil || len(problems) > 0 {
		h.t.Errorf("check: %v %v", problems, err)
	}
	h.stop()
	h.stop = nil
	if err := errors.Join(<-h.done, h.Close()); err != nil {
		h.t.Errorf("close: %v", err)
	}
}

func (h *harness) add(rs ...result.Result) []Outcome {
	h.t.Helper()
	outs, err := h.Append(context.Background(), rs)
	if err != nil {
		h.t.Fatal(err)
	}
	return outs
}

func (h *harness) stats() Stats {
	h.t.Helper()
	// A task goes through the writer, so everything before it is committed.
	if err := h.do(context.Background(), func(*transaction) error { return nil }); err != nil {
		h.t.Fatal(err)
	}
	st, err := h.Stats(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *harness) next(after int64) []int64 {
	h.t.Helper()
	rows, err := h.Next(context.Background(), after, 1000, 1<<30)
	if err != nil {
		h.t.Fatal(err)
	}
	var seqs []int64
	for _, r := range rows {
		seqs = append(seqs, r.Seq)
	}
	return seqs
}

func newResult(t testing.TB, payload string) result.Result {
	t.Helper()
	return newResultOf(t, uuid.New(), payload)
}

func newResultOf(t testing.TB, correlation uuid.UUID, payload string) result.Result {
	t.Helper()
	r, err := result.Decode(fmt.Appendf(nil, `{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":%s}`, uuid.New(), correlation, payload), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func results(t testing.TB, n int, payload string) []result.Result {
	rs := make([]result.Result, n)
	for i := range rs {
		rs[i] = newResult(t, payload)
	}
	return rs
}

func TestAppendIsHeldAcrossRestart(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	r := newResult(t, `{"n":12345678901234567890,"b":1.0, "a":1e400}`)
	r.TraceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	out := h.add(r)[0]
	if out.Err != nil || out.Duplicate || out.Entry.Seq != 1 || out.Entry.State != Pending {
		t.Fatalf("outcome %+v", out)
	}
	h.close()

	h = open(t, dir)
	rows, err := h.Next(context.Background(), 0, 10, 1<<20)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%v %v", rows, err)
	}
	if diff := cmp.Diff(r, rows[0].Result); diff != "" {
		t.Error(diff)
	}
	if e, err := h.Get(context.Background(), r.EventID); err != nil || e.State != Pending {
		t.Errorf("%+v %v", e, err)
	}
}

func TestDuplicateAndConflict(t *testing.T) {
	h := open(t, t.TempDir())
	r := newResult(t, `{"a":1}`)
	other := newResult(t, `{"a":2}`)
	other.EventID = r.EventID
	outs := h.add(r, r, other) // twice and against itself in one batch
	if outs[0].Duplicate || !outs[1].Duplicate || outs[1].Entry.Seq != outs[0].Entry.Seq {
		t.Errorf("in one batch: %+v", outs)
	}
	for name, out := range map[string]Outcome{"same batch": outs[2], "later": h.add(other)[0]} {
		var conflict *ConflictError
		if !errors.As(out.Err, &conflict) || conflict.Held.Seq != outs[0].Entry.Seq {
			t.Errorf("%s: %v", name, out.Err)
		}
	}
	if out := h.add(r)[0]; !out.Duplicate {
		t.Errorf("later: %+v", out)
	}
	if st := h.stats(); st.PendingRows != 1 || st.HeldRows != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestConcurrentAppendsShareCommits(t *testing.T) {
	h := open(t, t.TempDir())
	const clients, each = 32, 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range each {
				if outs, err := h.Append(context.Background(), results(t, 1, `{}`)); err != nil || outs[0].Err != nil {
					t.Errorf("%v %v", outs, err)
				}
			}
		})
	}
	wg.Wait()
	seqs := h.next(0)
	if len(seqs) != 1000 { // Next's limit
		t.Fatalf("%d rows", len(seqs))
	}
	if st := h.stats(); st.PendingRows != clients*each || st.LastSeq != clients*each {
		t.Errorf("stats %+v", st)
	}
}

func TestPublishedStateAndPlace(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	rs := results(t, 4, `{"x":1}`)
	h.add(rs...)
	at := time.Now().UTC().Truncate(time.Microsecond)
	h.MarkPublished(Publication{Through: 2, At: at, Topic: "topic", Placements: []Placement{{1, 5, 100}, {2, 0, 7}}})
	h.MarkPublished(Publication{Through: 3, At: at, Topic: "topic"}) // only the watermark told
	check := func(when string) {
		t.Helper()
		want := []*Location{{"topic", 5, 100}, {"topic", 0, 7}, nil, nil}
		states := []State{Published, Published, Published, Pending}
		for i, r := range rs {
			e, err := h.Get(context.Background(), r.EventID)
			if err != nil || e.State != states[i] || !cmp.Equal(e.Location, want[i]) {
				t.Errorf("%s: result %d is %+v %v", when, i, e, err)
			}
		}
		if got := h.next(h.Proven()); !cmp.Equal(got, []int64{4}) {
			t.Errorf("%s: pending %v", when, got)
		}
	}
	check("before the mark is on disk")
	if st := h.stats(); st.PendingRows != 1 || st.PublishedSeq != 3 {
		t.Errorf("stats %+v", st)
	}
	h.close()
	h = open(t, dir)
	check("after a restart")
}

func TestParkRetryPurge(t *testing.T) {
	ctx := context.Background()
	h := open(t, t.TempDir())
	rs := results(t, 3, `{}`)
	h.add(rs...)
	if err := h.Park(ctx, 2, "too large"); err != nil {
		t.Fatal(err)
	}
	h.MarkPublished(Publication{Through: 3, At: time.Now(), Topic: "t"})
	if e, err := h.Get(ctx, rs[1].EventID); err != nil || e.State != Parked || e.Reason != "too large" {
		t.Fatalf("%+v %v", e, err)
	}
	if out := h.add(rs[1])[0]; !out.Duplicate || out.Entry.State != Parked {
		t.Errorf("a resend of a parked one: %+v", out)
	}
	if err := h.Purge(ctx, rs[0].EventID); !errors.Is(err, ErrNotParked) {
		t.Errorf("purge of a published one: %v", err)
	}
	if _, err := h.Retry(ctx, uuid.New()); !errors.Is(err, ErrNotFound) {
		t.Errorf("retry of nothing: %v", err)
	}
	e, err := h.Retry(ctx, rs[1].EventID)
	if err != nil || e.Seq != 4 || e.State != Pending {
		t.Fatalf("retry: %+v %v", e, err)
	}
	if got := h.next(h.Proven()); !cmp.Equal(got, []int64{4}) {
		t.Errorf("pending %v", got)
	}
	if out := h.add(newResult(t, `{}`))[0]; out.Entry.Seq != 5 {
		t.Errorf("the next seq is %d", out.Entry.Seq)
	}
	if err := h.Park(ctx, 4, "again"); err != nil {
		t.Fatal(err)
	}
	if err := h.Purge(ctx, rs[1].EventID); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Get(ctx, rs[1].EventID); !errors.Is(err, ErrNotFound) {
		t.Errorf("after purge: %v", err)
	}
	if st := h.stats(); st.ParkedRows != 0 || st.HeldRows != 3 || st.PendingRows != 1 {
		t.Errorf("stats %+v", st)
	}
}

// TestParkedBetweenLookingAndWaiting: nobody will wake a waiter that comes too late.
func TestParkedBetweenLookingAndWaiting(t *testing.T) {
	h := open(t, t.TempDir())
	h.add(newResult(t, `{}`))
	before := h.parkings()
	if err := h.Park(t.Context(), 1, "no"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := h.waitFor(ctx, 1, before); err != nil {
		t.Error(err)
	}
}

func TestWaitPublished(t *testing.T) {
	h := open(t, t.TempDir())
	rs := results(t, 2, `{}`)
	h.add(rs...)
	got := make(chan Entry, 2)
	for _, r := range rs {
		go func() {
			e, err := h.WaitPublished(context.Background(), r.EventID)
			if err != nil {
				t.Error(err)
			}
			got <- e
		}()
	}
	h.MarkPublished(Publication{Through: 1, At: time.Now(), Topic: "t", Placements: []Placement{{1, 2, 3}}})
	if e := <-got; e.State != Published || e.Location == nil || e.Location.Offset != 3 {
		t.Errorf("%+v", e)
	}
	if err := h.Park(context.Background(), 2, "no"); err != nil {
		t.Fatal(err)
	}
	if e := <-got; e.State != Parked {
		t.Errorf("%+v", e)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := newResult(t, `{}`)
	h.add(r)
	if _, err := h.WaitPublished(ctx, r.EventID); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.waiters) != 0 {
		t.Errorf("%d waiters are left behind", len(h.waiters))
	}
}

func TestListFilters(t *testing.T) {
	h := open(t, t.TempDir())
	rs := results(t, 5, `{}`)
	h.add(rs...)
	h.MarkPublished(Publication{Through: 2, At: time.Now(), Topic: "t"})
	if err := h.Park(context.Background(), 4, "no"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		f    Filter
		want []int64
	}{
		{Filter{}, []int64{1, 2, 3, 4, 5}},
		{Filter{Limit: 2, After: 1}, []int64{2, 3}},
		{Filter{State: Pending}, []int64{3, 5}},
		{Filter{State: Pending, After: 3}, []int64{5}},
		{Filter{State: Published}, []int64{1, 2}},
		{Filter{State: Parked}, []int64{4}},
		{Filter{State: Parked, After: 4}, nil},
		{Filter{CorrelationID: &rs[2].CorrelationID}, []int64{3}},
		{Filter{CorrelationID: &rs[3].CorrelationID, State: Pending}, nil},
	} {
		entries, err := h.List(context.Background(), c.f)
		var got []int64
		for _, e := range entries {
			got = append(got, e.Seq)
		}
		if err != nil || !cmp.Equal(got, c.want) {
			t.Errorf("%+v: %v %v, want %v", c.f, got, err, c.want)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	h := open(t, t.TempDir())
	if _, err := Open(context.Background(), testOptions(t, h.opts.Dir)); !errors.Is(err, ErrLocked) {
		t.Errorf("%v", err)
	}
}

func TestModesOfFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	h := open(t, dir)
	h.add(newResult(t, `{}`))
	for name, want := range map[string]fs.FileMode{"": 0o700, fileName: 0o600, fileName + "-wal": 0o600, fileName + "-shm": 0o600, lockName: 0o600} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%q: %v %v, want %v", name, st, err, want)
		}
	}
}

func TestNewerSchemaAndForeignFilesAreRefused(t *testing.T) {
	for name, spoil := range map[string]string{
		"newer":   `PRAGMA user_version = 1000`,
		"foreign": `PRAGMA application_id = 7`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			h := open(t, dir)
			if err := h.do(context.Background(), func(tx *transaction) error { return tx.exec(spoil) }); err != nil {
				t.Fatal(err)
			}
			h.close()
			if o, err := Open(context.Background(), testOptions(t, dir)); err == nil {
				t.Error("opened", o.Close())
			}
		})
	}
}

func TestNotADatabaseIsRefusedWithHelp(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte("this is no database, and longer than a header of one hundred bytes must be, to be read as a page at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), testOptions(t, dir))
	if !isDamage(err) {
		t.Errorf("%v", err)
	}
}

// TestNetworkFileSystemIsRefused takes the file system that the test has for one.
func TestNetworkFileSystemIsRefused(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	kind := int64(st.Type) & 0xffffffff
	before, was := networkFS[kind]
	networkFS[kind] = "of the test"
	t.Cleanup(func() {
		if delete(networkFS, kind); was {
			networkFS[kind] = before
		}
	})
	_, err := Open(context.Background(), testOptions(t, dir))
	if err == nil || !strings.Contains(err.Error(), "network file system (of the test)") || !strings.Contains(err.Error(), "--allow-network-fs") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, fileName)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made there: %v", err)
	}
	open(t, dir, func(o *Options) { o.AllowNetworkFS = true })
}

// TestRunThatEndsBeforeItBegan, as a short command makes it.
func TestRunThatEndsBeforeItBegan(t *testing.T) {
	o, err := Open(context.Background(), testOptions(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := errors.Join(o.Run(ctx), o.Close()); err != nil {
		t.Error(err)
	}
}
