package outbox

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"workflow-results-sidecar/internal/result"
)

// rowOverhead is what a row costs beside its texts: IDs, digest, two index
// entries. Measured: see TestFileSize.
const rowOverhead = 160

func rowSize(r *result.Result) int64 { return slimSize(r) + payloadSize(r) }

func slimSize(r *result.Result) int64 {
	return int64(rowOverhead + len(r.WorkflowID) + len(r.WorkflowRunID) + len(r.TraceParent) + len(r.TraceState))
}

func payloadSize(r *result.Result) int64 {
	n := len(r.Payload)
	if r.Error != nil {
		n += len(*r.Error)
	}
	return int64(n)
}

// Append stores results in one commit and returns an Outcome for each, in
// order. It returns after that commit is synced. The error, if any, stands for
// all: ErrBusy (nothing was queued), ErrFull or ErrUnavailable (rolled back),
// ErrClosed, or ctx's (the outcome is unknown; and rs may still be read, so its
// memory must not be reused).
func (o *Outbox) Append(ctx context.Context, rs []result.Result) ([]Outcome, error) {
	if len(rs) == 0 {
		return nil, nil
	}
	r := &request{results: rs, outcomes: make([]Outcome, len(rs)), done: make(chan error, 1)}
	for i := range rs {
		r.bytes += rowSize(&rs[i])
	}
	if err := o.enqueue(r); err != nil {
		return nil, err
	}
	o.lead()
	select {
	case err := <-r.done:
		if err != nil {
			return nil, err
		}
		return r.outcomes, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (o *Outbox) enqueue(r *request) error {
	if err := o.usable(); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return ErrClosed
	case len(o.queue) > 0 && (o.queuedRows+len(r.results) > o.opts.QueueRows || o.queuedBytes+r.bytes > o.opts.QueueBytes):
		return ErrBusy
	}
	o.queue = append(o.queue, r)
	o.queuedRows += len(r.results)
	o.queuedBytes += r.bytes
	return nil
}

// appendAll inserts the results of one request. A result that is held already,
// or for which there is no room, is an outcome; an error ends the transaction.
func (tx *transaction) appendAll(r *request) error {
	for i := range r.results {
		out, err := tx.append(&r.results[i])
		if err != nil {
			return err
		}
		r.outcomes[i] = out
	}
	return nil
}

func (tx *transaction) append(r *result.Result) (Outcome, error) {
	size := rowSize(r)
	seq, found, err := tx.find(r.EventID)
	if err != nil {
		return Outcome{}, err
	}
	if found {
		return tx.held(r, seq)
	}
	for _, fits := range []func(int64) (bool, error){tx.roomFor, tx.makeRoom} {
		if ok, err := fits(size); err != nil || !ok {
			return Outcome{Err: ErrFull}, err
		}
	}
	seq = tx.state.lastSeq + 1
	var cause driver.Value
	if r.Error != nil {
		cause = *r.Error
	}
	err = tx.o.stmts.insert.row(seq, r.EventID[:], r.CorrelationID[:], r.WorkflowID, r.WorkflowRunID, string(r.Status),
		tx.now.UnixMicro(), r.Timestamp.Format(time.RFC3339Nano), size, r.Digest[:], r.TraceParent, r.TraceState, cause, []byte(r.Payload))
	if err != nil {
		return Outcome{}, fmt.Errorf("insert result: %w", err)
	}
	tx.added(r, seq, size)
	return Outcome{Entry: Entry{
		Seq: seq, EventID: r.EventID, CorrelationID: r.CorrelationID, WorkflowID: r.WorkflowID, WorkflowRunID: r.WorkflowRunID,
		Status: r.Status, State: Pending, AcceptedAt: time.UnixMicro(tx.now.UnixMicro()).UTC(), Bytes: size,
	}}, nil
}

func (tx *transaction) added(r *result.Result, seq, size int64) {
	tx.state = tx.state.appended(1, size, seq)
	tx.rows, tx.bytes = tx.rows+1, tx.bytes+size
	tx.remember(r, seq, size)
}

// held answers for an event ID that the outbox holds at seq already, this very
// transaction included.
func (tx *transaction) held(r *result.Result, seq int64) (Outcome, error) {
	var digest []byte
	proven := tx.o.Proven()
	e, err := scanEntry(tx.o.stmts.held.QueryRow(seq), &digest)
	if err != nil {
		return Outcome{}, fmt.Errorf("read the held result: %w", err)
	}
	if err := tx.o.complete(context.Background(), tx.o.conn, &e, proven); err != nil {
		return Outcome{}, err
	}
	if result.Digest(digest) != r.Digest {
		return Outcome{Err: &ConflictError{Held: e}}, nil
	}
	return Outcome{Entry: e, Duplicate: true}, nil
}
