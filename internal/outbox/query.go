package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// entryColumns are what scanEntry reads; the rest of the query names results r
// and parked p.
const entryColumns = `SELECT r.seq, r.event_id, r.correlation_id, r.workflow_id, r.workflow_run_id, r.status, r.accepted_at, r.size, p.reason, p.parked_at`

type scanner interface{ Scan(...any) error }

// scanEntry reads an entry; more receives columns that follow. The state is
// parked or still unknown: complete tells the others.
func scanEntry(row scanner, more ...any) (Entry, error) {
	var e Entry
	var event, correlation []byte
	var accepted int64
	var reason sql.NullString
	var parkedAt sql.NullInt64
	dest := append([]any{&e.Seq, &event, &correlation, &e.WorkflowID, &e.WorkflowRunID, &e.Status, &accepted, &e.Bytes, &reason, &parkedAt}, more...)
	if err := row.Scan(dest...); err != nil {
		return e, err
	}
	copy(e.EventID[:], event)
	copy(e.CorrelationID[:], correlation)
	e.AcceptedAt = time.UnixMicro(accepted).UTC()
	if parkedAt.Valid {
		at := time.UnixMicro(parkedAt.Int64).UTC()
		e.State, e.Reason, e.ParkedAt = Parked, reason.String, &at
	}
	return e, nil
}

// complete sets the state that only the published number tells, and where the
// result went. proven is that number from before the row was read: a result is
// parked before the number passes it, so a row that is read later cannot be told
// as published when it is parked. from is the connection to read by.
func (o *Outbox) complete(ctx context.Context, from querier, e *Entry, proven int64) error {
	if e.State == Parked {
		return nil
	}
	o.mu.Lock()
	p, found := locate(o.unmarked, e.Seq)
	o.mu.Unlock()
	if e.Seq > proven {
		e.State = Pending
		return nil
	}
	e.State = Published
	if !found {
		var err error
		if p, err = o.publicationOf(ctx, from, e.Seq); err != nil {
			return err
		}
	}
	for _, at := range p.Placements {
		if at.Seq == e.Seq {
			e.PublishedAt = &p.At
			e.Location = &Location{Topic: p.Topic, Partition: at.Partition, Offset: at.Offset}
		}
	}
	return nil
}

// locate finds the publication that holds seq among those not yet committed.
func locate(ps []Publication, seq int64) (Publication, bool) {
	for _, p := range ps {
		if seq <= p.Through && len(p.Placements) > 0 && seq >= p.Placements[0].Seq {
			return p, true
		}
	}
	return Publication{}, false
}

// querier is a pool, or the writer's connection within its transaction.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (o *Outbox) publicationOf(ctx context.Context, from querier, seq int64) (Publication, error) {
	var p Publication
	var micros int64
	var blob []byte
	err := from.QueryRowContext(ctx, `SELECT through, published_at, topic, placements FROM publications WHERE through >= ? ORDER BY through LIMIT 1`, seq).
		Scan(&p.Through, &micros, &p.Topic, &blob)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil // only the watermark told us
	}
	if err != nil {
		return p, o.judge(fmt.Errorf("read publication: %w", err))
	}
	p.At = time.UnixMicro(micros).UTC()
	p.Placements, err = decodePlacements(blob)
	return p, err
}

// Get returns what is known of a result, or ErrNotFound.
func (o *Outbox) Get(ctx context.Context, id uuid.UUID) (Entry, error) {
	var e Entry
	proven := o.Proven()
	err := o.lookUp(ctx, id, entryColumns+` FROM results r LEFT JOIN parked p ON p.seq = r.seq`, func(row scanner) (err error) {
		e, err = scanEntry(row)
		return err
	})
	if err != nil {
		return e, err
	}
	return e, o.complete(ctx, o.readers, &e, proven)
}

// Payload returns the result object of an event ID, byte for byte; nil once the
// history window is over; ErrNotFound.
func (o *Outbox) Payload(ctx context.Context, id uuid.UUID) ([]byte, error) {
	var payload []byte
	err := o.lookUp(ctx, id, `SELECT r.result FROM results r`, func(row scanner) error { return row.Scan(&payload) })
	return payload, err
}

// List returns entries in seq order, or from the end where the newest are asked for.
func (o *Outbox) List(ctx context.Context, f Filter) ([]Entry, error) {
	proven := o.Proven()
	query, args := o.listQuery(f, proven)
	rows, err := o.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, o.judge(fmt.Errorf("list results: %w", err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var entries []Entry
	for rows.Next() {
		e, err := scanEntry(rows)
		if err != nil {
			return nil, o.judge(fmt.Errorf("list results: %w", err))
		}
		entries = append(entries, e)
	}
	if err := rows.Err(); err != nil {
		return nil, o.judge(fmt.Errorf("list results: %w", err))
	}
	for i := range entries {
		if err := o.complete(ctx, o.readers, &entries[i], proven); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func (o *Outbox) listQuery(f Filter, proven int64) (string, []any) {
	from, where, seq := ` FROM results r LEFT JOIN parked p ON p.seq = r.seq`, ` WHERE r.seq > ?`, `r.seq`
	args := []any{f.After}
	switch f.State {
	case Pending:
		args[0] = max(f.After, proven)
		where += ` AND p.seq IS NULL`
	case Published:
		where += ` AND r.seq <= ? AND p.seq IS NULL`
		args = append(args, proven)
	case Parked:
		from = ` FROM parked p JOIN results r ON r.seq = p.seq`
		if f.CorrelationID == nil { // parked first, which SQLite would not choose: it would look at every result
			from, where, seq = ` FROM parked p CROSS JOIN results r ON r.seq = p.seq`, ` WHERE p.seq > ?`, `p.seq`
		}
	}
	if f.CorrelationID != nil {
		where += ` AND r.seq IN (SELECT seq FROM correlation_ids WHERE correlation_id = ? UNION ALL SELECT value FROM json_each(?)) AND r.correlation_id = ?`
		args = append(args, f.CorrelationID[:], o.recentSeqs(*f.CorrelationID), f.CorrelationID[:])
	}
	limit := f.Limit
	if limit <= 0 || limit > MaxListLimit {
		limit = MaxListLimit
	}
	if f.Newest {
		seq += ` DESC`
	}
	return entryColumns + from + where + ` ORDER BY ` + seq + ` LIMIT ?`, append(args, limit)
}

// Next returns pending results with a seq greater than after, in seq order: at
// most maxRows, and as many as fit in maxBytes but at least one. It removes
// nothing. A commit that has not reached the state in memory is not seen yet: a
// watermark could not name the generation of its rows. The rows are not to be
// written to: a later call may return the same memory.
func (o *Outbox) Next(ctx context.Context, after int64, maxRows int, maxBytes int64) ([]Row, error) {
	if err := o.usable(); err != nil {
		return nil, err
	}
	if rows, ok := o.nextFromTail(after, maxRows, maxBytes); ok {
		return rows, nil
	}
	return o.nextFromFile(ctx, after, maxRows, maxBytes)
}

func (o *Outbox) nextFromFile(ctx context.Context, after int64, maxRows int, maxBytes int64) ([]Row, error) {
	rows, err := o.readers.QueryContext(ctx, `SELECT seq, event_id, correlation_id, workflow_id, workflow_run_id, status, accepted_at, timestamp, size, digest, traceparent, tracestate, error, result
		FROM results WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked) ORDER BY seq LIMIT ?`, after, o.lastSeq(), maxRows)
	if err != nil {
		return nil, o.judge(fmt.Errorf("read pending results: %w", err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var out []Row
	var bytes int64
	for rows.Next() {
		r, err := scanRow(rows)
		if err != nil {
			return nil, o.judge(fmt.Errorf("read pending results: %w", err))
		}
		if !r.Result.Intact() {
			return nil, o.judge(fmt.Errorf("read pending results: seq %d, event ID %s: %w", r.Seq, r.Result.EventID, errAltered))
		}
		if bytes += r.Bytes; bytes > maxBytes && len(out) > 0 {
			return out, nil
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, o.judge(fmt.Errorf("read pending results: %w", err))
	}
	return out, nil
}

func (o *Outbox) lastSeq() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.lastSeq
}

func scanRow(rows *sql.Rows) (r Row, err error) {
	var event, correlation, digest sql.RawBytes
	var status, timestamp string
	var accepted int64
	res := &r.Result
	if err := rows.Scan(&r.Seq, &event, &correlation, &res.WorkflowID, &res.WorkflowRunID, &status, &accepted, &timestamp, &r.Bytes,
		&digest, &res.TraceParent, &res.TraceState, &res.Error, &res.Payload); err != nil {
		return r, err
	}
	copy(res.EventID[:], event)
	copy(res.CorrelationID[:], correlation)
	copy(res.Digest[:], digest)
	res.Status = result.Status(status)
	r.AcceptedAt = time.UnixMicro(accepted).UTC()
	res.Timestamp, err = time.Parse(time.RFC3339Nano, timestamp)
	return r, err
}
