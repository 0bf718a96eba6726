package outbox

import (
	"slices"
	"sort"
	"strings"
	"time"

	"workflow-results-sidecar/internal/result"
)

// What the writer has committed the publisher reads within milliseconds. So the
// newest rows are kept in memory until they are published, where the publisher
// keeps up. Nothing rests on them: each is committed before it is kept, and what
// is not kept is read from the file. After a crash the file alone is read.
//
// The bounds are what may lie here while one publication is on its way: four of
// publisher.DefaultOptions. Beyond it the publisher is behind, and reads the file.
const (
	tailRows  = 4096
	tailBytes = 4 << 20
)

// tail holds every pending row of (after, state.lastSeq], or nothing.
type tail struct {
	kept   bool // else what follows is zero, and Next reads the file
	after  int64
	chunks []chunk
	rows   int
	bytes  int64
}

// chunk is what one commit has appended, in seq order; never empty.
type chunk struct {
	rows  []Row
	bytes int64
}

func (c *chunk) last() int64 { return c.rows[len(c.rows)-1].Seq }

// begin keeps what is committed from now on, after lastSeq.
func (t *tail) begin(lastSeq int64) { *t = tail{kept: true, after: lastSeq} }

// drop lets go of everything: of what is committed from now on, too.
func (t *tail) drop() { *t = tail{} }

// hasRoom reports whether the bounds leave room for so much more.
func (t *tail) hasRoom(rows, bytes int64) bool {
	return t.kept && int64(t.rows)+rows <= tailRows && t.bytes+bytes <= tailBytes
}

// published lets go of the rows up to through, by whole chunks.
func (t *tail) published(through int64) {
	if !t.kept {
		return
	}
	t.after = max(t.after, through)
	n := 0
	for n < len(t.chunks) && t.chunks[n].last() <= through {
		t.rows, t.bytes = t.rows-len(t.chunks[n].rows), t.bytes-t.chunks[n].bytes
		n++
	}
	if t.chunks = slices.Delete(t.chunks, 0, n); len(t.chunks) == 0 {
		t.chunks = nil
	}
}

// next returns what Next does; false where the file must be read.
func (t *tail) next(after int64, maxRows int, maxBytes int64) ([]Row, bool) {
	if !t.kept || after < t.after {
		return nil, false
	}
	first := sort.Search(len(t.chunks), func(i int) bool { return t.chunks[i].last() > after })
	var out []Row
	var bytes int64
	for i := range t.chunks[first:] {
		rows := t.chunks[first+i].rows
		if i == 0 {
			rows = rows[sort.Search(len(rows), func(i int) bool { return rows[i].Seq > after }):]
		}
		for j := range rows {
			if bytes += rows[j].Bytes; len(out) >= maxRows || bytes > maxBytes && len(out) > 0 {
				return out, true
			}
			if out == nil {
				out = make([]Row, 0, min(maxRows, t.rows))
			}
			out = append(out, rows[j])
		}
	}
	return out, true
}

// copyRows copies what the transaction has appended, as Next would read it: once
// they are answered, the results are their callers' again.
func (tx *transaction) copyRows() chunk {
	c := chunk{rows: make([]Row, len(tx.appended)), bytes: tx.bytes}
	texts, payloads := 0, 0
	for _, a := range tx.appended {
		r := a.result
		texts += len(r.WorkflowID) + len(r.WorkflowRunID) + len(r.Status) + len(r.TraceParent) + len(r.TraceState)
		if r.Error != nil {
			texts += len(*r.Error)
		}
		payloads += len(r.Payload)
	}
	var text strings.Builder // one allocation for all of a commit, and one for the payloads
	text.Grow(texts)
	keep := func(s string) string {
		from := text.Len()
		text.WriteString(s)
		return text.String()[from:]
	}
	payload := make([]byte, 0, payloads)
	accepted := time.UnixMicro(tx.now.UnixMicro()).UTC()
	for i, a := range tx.appended {
		r := *a.result
		r.WorkflowID, r.WorkflowRunID, r.Status = keep(r.WorkflowID), keep(r.WorkflowRunID), result.Status(keep(string(r.Status)))
		r.TraceParent, r.TraceState = keep(r.TraceParent), keep(r.TraceState)
		if r.Error != nil {
			kept := keep(*r.Error)
			r.Error = &kept
		}
		from := len(payload)
		payload = append(payload, r.Payload...)
		r.Payload = payload[from:len(payload):len(payload)]
		r.Timestamp = r.Timestamp.Round(0) // the file keeps no monotonic reading
		c.rows[i] = Row{Seq: a.seq, AcceptedAt: accepted, Bytes: a.size, Result: r}
	}
	return c
}

// nextFromTail is Next where the tail holds what is asked for. Where it does not, and
// the file's pending rows are no more than the caller takes at once, the tail begins:
// by the next call the caller has caught up with it.
func (o *Outbox) nextFromTail(after int64, maxRows int, maxBytes int64) ([]Row, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return nil, false
	}
	if out, ok := o.tail.next(after, maxRows, maxBytes); ok {
		return out, true
	}
	if rows, bytes := o.pendingNow(); !o.tail.kept && rows <= int64(maxRows) && bytes <= maxBytes {
		o.tail.begin(o.state.lastSeq)
	}
	return nil, false
}

// keep returns a copy of what the transaction has appended where the tail has room
// for it, else nothing. It is made outside of o.mu.
func (tx *transaction) keep() (c chunk, ok bool) {
	o := tx.o
	if len(tx.appended) == 0 {
		return c, true
	}
	o.mu.Lock()
	room := o.tail.hasRoom(tx.rows, tx.bytes)
	o.mu.Unlock()
	if !room {
		return c, false
	}
	return tx.copyRows(), true
}

// extendTail takes over what a commit has appended; o.mu is held. Where rows were
// parked or moved, all are read from the file again.
func (tx *transaction) extendTail(c chunk, ok bool) {
	t := &tx.o.tail
	switch {
	case tx.rearranges || !ok:
		t.drop()
	case t.kept && len(c.rows) > 0:
		t.chunks = append(t.chunks, c)
		t.rows, t.bytes = t.rows+len(c.rows), t.bytes+c.bytes
	}
}
