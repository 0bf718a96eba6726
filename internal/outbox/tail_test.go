package outbox

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// history is an outbox to which one thing after another happens, in an order that
// a seed decides.
type history struct {
	*harness
	rand   *rand.Rand
	parked []uuid.UUID
	sent   []result.Result
}

// TestNextFromMemoryIsNextFromTheFile, after each step of whatever can happen.
func TestNextFromMemoryIsNextFromTheFile(t *testing.T) {
	served := 0
	for seed := range uint64(10) {
		h := &history{harness: open(t, t.TempDir(), func(o *Options) { o.History, o.DedupWindow = 0, 0 }), rand: rand.New(rand.NewPCG(seed, 0))}
		steps := []func(){h.append, h.append, h.append, h.append, h.publish, h.publish, h.park, h.retry, h.purge, h.failAppend, h.failTask, h.expire, h.mergeAll}
		for range 150 {
			steps[h.rand.IntN(len(steps))]()
			served += h.compare()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		h.close()
	}
	if served < 2000 {
		t.Errorf("only %d rows came from memory: nothing was tested", served)
	}
}

func (h *history) append() {
	rs := results(h.t, 1+h.rand.IntN(9), `{"p":"`+strings.Repeat("x", h.rand.IntN(2000))+`"}`)
	for i := range rs {
		if h.rand.IntN(3) == 0 {
			text := "it broke\x00 …"
			rs[i].Error, rs[i].Status = &text, result.Error
			rs[i].Digest = mustDecode(h.t, rs[i]).Digest
		}
		if h.rand.IntN(3) == 0 {
			rs[i].TraceParent, rs[i].TraceState = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"
		}
	}
	if len(rs) > 3 {
		rs[1] = rs[0]
		rs[3].EventID = rs[2].EventID // with other content, perhaps
	}
	if len(h.sent) > 0 && h.rand.IntN(3) == 0 {
		rs[0] = h.sent[h.rand.IntN(len(h.sent))]
	}
	for i := range rs {
		rs[i] = clone(rs[i])
		h.sent = append(h.sent, clone(rs[i]))
	}
	h.add(rs...)
	for i := range rs { // the memory is the caller's again
		clear(rs[i].Payload)
		if rs[i].Error != nil {
			*rs[i].Error = "other"
		}
	}
}

func clone(r result.Result) result.Result {
	r.Payload = bytes.Clone(r.Payload)
	if r.Error != nil {
		text := *r.Error
		r.Error = &text
	}
	return r
}

// mustDecode gives the result the digest that its fields have.
func mustDecode(t testing.TB, r result.Result) result.Result {
	t.Helper()
	d, err := result.Decode(r.AppendJSON(nil), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (h *history) publish() {
	rows, err := h.Next(context.Background(), h.Proven(), 1+h.rand.IntN(30), 1<<20)
	if err != nil || len(rows) == 0 {
		return
	}
	rows = rows[:1+h.rand.IntN(len(rows))]
	p := Publication{Through: rows[len(rows)-1].Seq, At: time.Now(), Topic: "t"}
	if h.rand.IntN(4) > 0 {
		for _, r := range rows {
			p.Placements, p.Bytes = append(p.Placements, Placement{Seq: r.Seq, Offset: r.Seq}), p.Bytes+r.Bytes
		}
	}
	h.MarkPublished(p)
}

func (h *history) park() {
	rows, err := h.Next(context.Background(), h.Proven(), 10, 1<<20)
	if err != nil || len(rows) == 0 {
		return
	}
	r := rows[h.rand.IntN(len(rows))]
	if err := h.Park(context.Background(), r.Seq, "refused"); err != nil {
		h.t.Error(err)
	}
	h.parked = append(h.parked, r.Result.EventID)
}

// unpark takes one of the parked.
func (h *history) unpark(f func(uuid.UUID) error) {
	if len(h.parked) == 0 {
		return
	}
	i := h.rand.IntN(len(h.parked))
	if err := f(h.parked[i]); err != nil {
		h.t.Error(err)
	}
	h.parked = append(h.parked[:i], h.parked[i+1:]...)
}

func (h *history) retry() {
	h.unpark(func(id uuid.UUID) error { _, err := h.Retry(context.Background(), id); return err })
}

func (h *history) purge() {
	h.unpark(func(id uuid.UUID) error { return h.Purge(context.Background(), id) })
}

// failAppend lets a commit of results fail: of what it had inserted nothing is seen.
func (h *history) failAppend() {
	h.pagesLeft(0)
	if _, err := h.Append(context.Background(), results(h.t, 20, `{"p":"`+strings.Repeat("x", 20_000)+`"}`)); !errors.Is(err, ErrFull) {
		h.t.Errorf("want a full disk: %v", err)
	}
	h.pagesLeft(1_000_000)
}

func (h *history) failTask() {
	want := errors.New("not now")
	if err := h.do(context.Background(), func(*transaction) error { return want }); !errors.Is(err, want) {
		h.t.Error(err)
	}
}

func (h *history) expire() {
	if err := h.retain(context.Background()); err != nil {
		h.t.Error(err)
	}
}

func (h *history) mergeAll() {
	h.writing.Lock()
	defer h.writing.Unlock()
	for first := true; first || h.merging != nil; first = false {
		if err := h.mergeSome(); err != nil {
			h.t.Error(err)
		}
	}
}

// compare asks both for the same, from where the publisher would ask on and from
// elsewhere, and returns how many rows came from memory.
func (h *history) compare() (served int) {
	for _, after := range []int64{h.Proven(), h.Proven() + h.rand.Int64N(20), h.rand.Int64N(h.lastSeq() + 2)} {
		maxRows, maxBytes := 1+h.rand.IntN(60), 1+h.rand.Int64N(40_000)
		if h.rand.IntN(2) == 0 {
			maxRows, maxBytes = 1000, 1<<20
		}
		if after == h.Proven() { // what else is asked for is not the publisher's doing
			if _, err := h.Next(context.Background(), after, maxRows, maxBytes); err != nil {
				h.t.Error(err)
			}
		}
		h.mu.Lock()
		rows, ok := h.tail.next(after, maxRows, maxBytes)
		h.mu.Unlock()
		if !ok {
			continue
		}
		served += len(rows)
		file, err := h.nextFromFile(context.Background(), after, maxRows, maxBytes)
		if err != nil || !reflect.DeepEqual(rows, file) {
			h.t.Errorf("after %d, %d rows, %d bytes: memory differs from the file (%v):\n%s", after, maxRows, maxBytes, err, cmp.Diff(file, rows))
		}
	}
	h.tailIsSound()
	return served
}

// tailIsSound: within the bounds, and counted right.
func (h *harness) tailIsSound() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	rows, bytes := 0, int64(0)
	for _, c := range h.tail.chunks {
		for _, r := range c.rows {
			rows, bytes = rows+1, bytes+r.Bytes
		}
	}
	if rows != h.tail.rows || bytes != h.tail.bytes || rows > tailRows || bytes > tailBytes || rows > 0 && !h.tail.kept {
		h.t.Errorf("%d rows, %d bytes in memory, counted %d and %d", rows, bytes, h.tail.rows, h.tail.bytes)
	}
}

// inMemory is how many rows are in memory, and whether more would be.
func (h *harness) inMemory() (rows int, kept bool) {
	h.tailIsSound()
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.tail.rows, h.tail.kept
}

// publishAll publishes, n at a time, all that is pending.
func (h *harness) publishAll(n int) (rows int) {
	h.t.Helper()
	for {
		next, err := h.Next(context.Background(), h.Proven(), n, 1<<20)
		if err != nil {
			h.t.Fatal(err)
		}
		if len(next) == 0 {
			return rows
		}
		rows += len(next)
		p := Publication{Through: next[len(next)-1].Seq, At: time.Now(), Topic: "t"}
		for _, r := range next {
			p.Placements, p.Bytes = append(p.Placements, Placement{Seq: r.Seq, Offset: r.Seq}), p.Bytes+r.Bytes
		}
		h.MarkPublished(p)
	}
}

// TestMemoryIsBoundedAndEmptyWhenIdle: nothing is kept before somebody publishes,
// once too much is pending, and after all is published.
func TestMemoryIsBoundedAndEmptyWhenIdle(t *testing.T) {
	for name, c := range map[string]struct {
		payload string
		commits int // of 256 results
	}{
		"many rows":   {`{}`, tailRows/256 + 1},
		"large rows":  {`{"p":"` + strings.Repeat("x", 8000) + `"}`, 3},
		"one too big": {`{"p":"` + strings.Repeat("x", 30_000) + `"}`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, t.TempDir())
			h.add(results(t, 10, c.payload)...)
			if rows, kept := h.inMemory(); rows > 0 || kept {
				t.Errorf("%d rows are kept for nobody", rows)
			}
			for range 2 {
				h.publishAll(1000)
				for range 5 {
					h.add(results(t, 2, c.payload)...)
				}
				if rows, _ := h.inMemory(); rows != 10 {
					t.Errorf("%d rows of 10 are in memory", rows)
				}
				for range c.commits {
					h.add(results(t, 256, c.payload)...)
					h.tailIsSound()
				}
				if rows, kept := h.inMemory(); rows > 0 || kept {
					t.Errorf("%d rows are in memory of a backlog beyond the bounds", rows)
				}
				h.next(h.Proven())
				h.add(results(t, 1, c.payload)...)
				if got, want := h.publishAll(100), 11+256*c.commits; got != want {
					t.Errorf("%d published, want %d", got, want)
				}
				if rows, kept := h.inMemory(); rows > 0 || !kept || h.tail.chunks != nil {
					t.Errorf("%d rows are in memory, all is published", rows)
				}
			}
		})
	}
}

// TestNothingFromMemoryOnceStopped: rows in memory are no reason to publish on.
func TestNothingFromMemoryOnceStopped(t *testing.T) {
	for name, stop := range map[string]func(h *harness){
		"damaged": func(h *harness) { h.setDamage("found by a check") },
		"broken":  func(h *harness) { h.fatal.Store(&ErrBroken) },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, t.TempDir())
			h.next(0)
			h.add(results(t, 3, `{}`)...)
			if rows, _ := h.inMemory(); rows != 3 {
				t.Fatalf("%d rows are in memory", rows)
			}
			stop(h)
			defer func() { h.damage.Store(nil); h.fatal.Store(nil) }()
			if rows, err := h.Next(context.Background(), 0, 10, 1<<20); !errors.Is(err, ErrUnavailable) || rows != nil {
				t.Errorf("%d rows, %v", len(rows), err)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		h := open(t, t.TempDir())
		h.next(0)
		h.add(results(t, 3, `{}`)...)
		h.close()
		if rows, err := h.Next(context.Background(), 0, 10, 1<<20); err == nil {
			t.Errorf("%d rows", len(rows))
		}
	})
}
