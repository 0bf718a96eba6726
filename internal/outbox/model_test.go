package outbox

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"workflow-results-sidecar/internal/result"
)

// TestAllAtOnce lets everything happen at once that an outbox promises, under
// limits that are always reached: appends (with resends, conflicts, repeats within
// a batch, callers that leave), publication, parking, retry, purge, retention,
// merges, waiting and listing. What Next gives is what the file holds. Then the counters must be those of the rows, here
// and in a copy of the files as a kill would leave them.
func TestAllAtOnce(t *testing.T) {
	for name, limits := range map[string]func(*Options){
		"many rows":    func(o *Options) { o.MaxRows, o.DedupRows = 30_000, 5000 },
		"few rows":     func(o *Options) { o.MaxRows, o.DedupRows = 2000, 1000 },
		"little bytes": func(o *Options) { o.MaxRows, o.DedupRows, o.MaxBytes = 30_000, 5000, 1<<20 },
	} {
		t.Run(name, func(t *testing.T) {
			dir, crash := t.TempDir(), t.TempDir()
			m := &model{harness: open(t, dir, limits, func(o *Options) { o.History, o.DedupWindow = 500*time.Millisecond, 2*time.Second })}
			m.run(20_000)
			m.writing.Lock()
			err := os.CopyFS(crash, os.DirFS(dir))
			m.mu.Lock()
			want := m.state
			m.mu.Unlock()
			m.writing.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			c := open(t, crash, limits)
			got := c.stats()
			if got.PendingRows != want.pendingRows || got.HeldRows != want.heldRows || got.HeldBytes != want.heldBytes || got.LastSeq != want.lastSeq {
				t.Errorf("after the crash %+v, before %+v", got, want)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if len(m.waiters) != 0 || m.queuedRows != 0 || m.queuedBytes != 0 {
				t.Errorf("left over: %d waiters, %d rows, %d bytes", len(m.waiters), m.queuedRows, m.queuedBytes)
			}
		})
	}
}

// model is an outbox and what its callers know of it.
type model struct {
	*harness
	known sync.Mutex
	sent  []result.Result // acknowledged once
}

func (m *model) pick() (result.Result, bool) {
	m.known.Lock()
	defer m.known.Unlock()
	if len(m.sent) == 0 {
		return result.Result{}, false
	}
	return m.sent[rand.IntN(len(m.sent))], true
}

// run goes on until so many results were accepted.
func (m *model) run(rows int64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for _, part := range []func(context.Context){m.append, m.append, m.append, m.append, m.publish, m.handleParked, m.wait, m.wait, m.look} {
		wg.Go(func() {
			for ctx.Err() == nil {
				part(ctx)
			}
		})
	}
	for m.lastSeq() < rows && !m.t.Failed() {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	wg.Wait()
}

func (m *model) append(context.Context) {
	n := 1
	if rand.IntN(5) == 0 {
		n += rand.IntN(300)
	}
	rs := results(m.t, n, `{"p":"0123456789012345678901234567890123456789"}`)
	if old, ok := m.pick(); ok && rand.IntN(3) == 0 {
		if rand.IntN(4) == 0 {
			rs[0].EventID = old.EventID // with other content
		} else {
			rs[0] = old
		}
	}
	if n > 2 && rand.IntN(3) == 0 {
		rs[2] = rs[1]
	}
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	if rand.IntN(6) == 0 {
		go leave()
	}
	outs, err := m.Append(ctx, rs)
	if errors.Is(err, context.Canceled) {
		return
	}
	if err != nil {
		m.t.Errorf("append: %v", err)
		return
	}
	m.known.Lock()
	defer m.known.Unlock()
	for i, out := range outs {
		var conflict *ConflictError
		switch {
		case out.Err == nil && !out.Duplicate:
			m.sent = append(m.sent, rs[i])
		case out.Err != nil && !errors.As(out.Err, &conflict) && !errors.Is(out.Err, ErrFull):
			m.t.Errorf("outcome: %v", out.Err)
		}
	}
}

func (m *model) publish(ctx context.Context) {
	after := m.Proven()
	rows, err := m.Next(ctx, after, 1+rand.IntN(500), 1<<20)
	if err == nil && len(rows) > 0 { // nobody else parks or publishes, so these stay what they are
		file, err := m.nextFromFile(context.Background(), after, len(rows), 1<<20)
		if err != nil || !reflect.DeepEqual(rows, file) {
			m.t.Errorf("after %d: Next gives %d rows, up to %d; the file says (%v):\n%s", after, len(rows), rows[len(rows)-1].Seq, err, cmp.Diff(file, rows))
		}
	}
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		m.t.Errorf("next: %v", err)
	case len(rows) == 0:
		select {
		case <-m.Pending():
		case <-ctx.Done():
		}
	case rand.IntN(4) == 0:
		if err := m.Park(context.Background(), rows[0].Seq, "refused"); err != nil {
			m.t.Errorf("park: %v", err)
		}
	default:
		p := Publication{At: time.Now(), Topic: "t", Through: rows[len(rows)-1].Seq}
		if rand.IntN(5) > 0 { // else only the watermark told
			for _, r := range rows {
				p.Placements, p.Bytes = append(p.Placements, Placement{Seq: r.Seq, Partition: 1, Offset: r.Seq}), p.Bytes+r.Bytes
			}
		}
		m.MarkPublished(p)
	}
}

func (m *model) handleParked(ctx context.Context) {
	list, err := m.List(ctx, Filter{State: Parked})
	if err != nil && ctx.Err() == nil {
		m.t.Errorf("list: %v", err)
	}
	for _, e := range list {
		if rand.IntN(2) == 0 {
			_, err = m.Retry(context.Background(), e.EventID)
		} else {
			err = m.Purge(context.Background(), e.EventID)
		}
		if err != nil {
			m.t.Errorf("parked seq %d: %v", e.Seq, err)
		}
	}
}

func (m *model) wait(context.Context) {
	r, ok := m.pick()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(20))*time.Millisecond)
	defer cancel()
	e, err := m.WaitPublished(ctx, r.EventID)
	if err == nil && e.State == Pending {
		m.t.Errorf("waited for seq %d, which is still pending", e.Seq)
	}
}

func (m *model) look(ctx context.Context) {
	if _, err := m.Stats(ctx); err != nil && ctx.Err() == nil {
		m.t.Errorf("stats: %v", err)
	}
}
