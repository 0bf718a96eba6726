package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	retentionInterval       = time.Second
	sliceRows         int64 = 512 // rows that one retention step touches at most, or pages that it gives back
	leastSlice        int64 = 64
	keepFreePages           = 1024

	// sliceTime is how long one retention step may hold back the intake, its commit
	// included. How many rows that is depends on the disk.
	sliceTime   = 8 * time.Millisecond
	pauseOfStep = 3 // how many times as long as a step the pause after it is

	// stepsOfTurn is how many steps one kind of work takes before the others have
	// their turn. Results may come in faster than their like are pruned, for ever.
	stepsOfTurn = 16
	// stepPace is how many rows a step may touch per row that came in since the last
	// one, whatever time that takes: where commits are slow, smaller steps would not
	// be quicker and would never catch up.
	stepPace = 2
)

// runRetention drops what is past its window and gives freed pages back to the
// file system, in small steps between the commits of others.
func (o *Outbox) runRetention(ctx context.Context) error {
	tick := time.NewTicker(retentionInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := o.retain(ctx); err != nil {
			if err := o.tolerate(ctx, "retention failed; it is tried again", err); err != nil {
				return err
			}
		}
	}
}

// retain works until nothing is due.
func (o *Outbox) retain(ctx context.Context) error {
	if o.opts.KeepAll {
		return nil
	}
	for again := true; again; {
		again = false
		for _, step := range []func(tx *transaction, n int64) (more bool, err error){
			(*transaction).pruneExpired, (*transaction).slimExpired, (*transaction).clearForRoom, // what is to go whole need not be slimmed
		} {
			more, err := o.turn(ctx, step)
			if err != nil {
				return err
			}
			again = again || more
		}
		if err := o.sweep(ctx); err != nil {
			return err
		}
		if err := o.vacuum(ctx); err != nil {
			return err
		}
	}
	return nil
}

// turn takes steps of one kind, and reports whether more of them are due.
func (o *Outbox) turn(ctx context.Context, step func(tx *transaction, n int64) (more bool, err error)) (bool, error) {
	p := pace{o: o, n: sliceRows}
	for range stepsOfTurn {
		var more bool // the step's alone: where ctx ends first, it may still be taken
		err := p.do(ctx, func(tx *transaction, n int64) (err error) { more, err = step(tx, n); return err })
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// pace takes retention's steps: as large as sliceTime allows, or as the intake asks
// for, and, while results come in, with a pause after each that leaves the intake most
// of the time.
type pace struct {
	o       *Outbox
	n       int64 // what the next step may touch
	lastSeq int64 // of the outbox, after the last step
}

func (p *pace) do(ctx context.Context, step func(tx *transaction, n int64) error) error {
	var began time.Time
	err := p.o.do(ctx, func(tx *transaction) error {
		began = time.Now()
		tx.rearranges = false // retention takes published rows, and pages
		return step(tx, p.n)
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	switch {
	case took > sliceTime:
		p.n = max(p.n/2, leastSlice)
	case took < sliceTime/2:
		p.n = min(2*p.n, sliceRows)
	}
	p.o.mu.Lock()
	last := p.o.state.lastSeq
	p.o.mu.Unlock()
	cameIn := last - p.lastSeq
	if p.lastSeq > 0 { // else it was the first step, and this is no rate
		p.n = max(p.n, min(stepPace*cameIn, sliceRows))
	}
	p.lastSeq = last
	if cameIn == 0 {
		return nil
	}
	select {
	case <-time.After(pauseOfStep * took):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// slimExpired drops payloads whose history window is over.
func (tx *transaction) slimExpired(n int64) (more bool, err error) {
	through, err := tx.publishedBefore(tx.now.Add(-tx.o.opts.History))
	if err != nil {
		return false, err
	}
	return tx.slim(through, n)
}

// pruneExpired drops rows whose deduplication window is over, and the oldest
// published ones beyond the cap.
func (tx *transaction) pruneExpired(n int64) (more bool, err error) {
	through, err := tx.publishedBefore(tx.now.Add(-tx.o.opts.DedupWindow))
	if err != nil {
		return false, err
	}
	if more, err = tx.prune(through, n); more || err != nil {
		return more, err
	}
	excess := tx.beyondCap()
	if excess <= 0 {
		return false, nil
	}
	if more, err = tx.prune(tx.state.publishedSeq, min(excess, n)); err != nil {
		return false, err
	}
	return more && tx.beyondCap() > 0, nil
}

// beyondCap is how many published rows are above the cap.
func (tx *transaction) beyondCap() int64 {
	s := &tx.state
	return s.heldRows - s.pendingRows - s.parkedRows - tx.o.opts.DedupRows
}

// publishedBefore returns the highest seq that was published before t.
func (tx *transaction) publishedBefore(t time.Time) (int64, error) {
	var through int64
	err := tx.o.conn.QueryRowContext(context.Background(), `SELECT through FROM publications WHERE published_at < ? AND through <= ? ORDER BY through DESC LIMIT 1`,
		t.UnixMicro(), tx.state.publishedSeq).Scan(&through)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, fmt.Errorf("find expired publications: %w", err)
	}
	return through, nil
}

// slim drops the payloads of the next n rows up to through.
func (tx *transaction) slim(through, n int64) (more bool, err error) {
	s := &tx.state
	from, to, err := tx.slice(max(s.slimSeq, s.prunedSeq), through, n)
	if err != nil || to == from {
		return false, err
	}
	const payload = `coalesce(length(result), 0) + coalesce(length(CAST(error AS BLOB)), 0)`
	const where = ` WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`
	var bytes int64
	if err := tx.o.conn.QueryRowContext(context.Background(), `SELECT coalesce(sum(`+payload+`), 0) FROM results`+where, from, to).Scan(&bytes); err != nil {
		return false, fmt.Errorf("measure expired payloads: %w", err)
	}
	s.heldBytes, s.slimSeq = s.heldBytes-bytes, to
	return to < through, tx.exec(`UPDATE results SET size = size - (`+payload+`), result = NULL, error = NULL`+where, from, to)
}

// prune drops the next n rows up to through. What the indexes of IDs have of them is
// stale from then on, and means nothing: see sweep.
func (tx *transaction) prune(through, n int64) (more bool, err error) {
	s := &tx.state
	from, to, err := tx.slice(s.prunedSeq, through, n)
	if err != nil || to == from {
		return false, err
	}
	const where = ` WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`
	var rows, bytes int64
	if err := tx.o.conn.QueryRowContext(context.Background(), `SELECT count(*), coalesce(sum(size), 0) FROM results`+where, from, to).Scan(&rows, &bytes); err != nil {
		return false, fmt.Errorf("measure expired results: %w", err)
	}
	s.heldRows, s.heldBytes, s.prunedSeq = s.heldRows-rows, s.heldBytes-bytes, to
	if err := tx.forget(from, to); err != nil {
		return false, err
	}
	tx.lookAgain()
	return to < through, errors.Join(
		tx.exec(`DELETE FROM results`+where, from, to),
		tx.exec(`DELETE FROM publications WHERE through <= ?`, to))
}

const (
	staleRows  = 4096 // pruned rows in the indexes that start a sweep, and
	staleShare = 4    // no less than this part of all rows
	sweepSlice = 4    // entries that a sweep looks at, per row that other steps may touch
)

// sweep takes the entries of pruned rows out of the indexes of IDs, once there are
// many. Rows are pruned in the order of their seq, and their IDs are random: to take
// out each with its row would write a page per row and index. In the order of the
// indexes a page is written once for all its stale entries. How far the last sweep
// of another process came is not known: a start may sweep once more.
func (o *Outbox) sweep(ctx context.Context) error {
	o.mu.Lock()
	pruned, held := o.state.prunedSeq, o.state.heldRows
	o.mu.Unlock()
	if pruned-o.swept.Load() < max(staleRows, held/staleShare) {
		return nil
	}
	for _, table := range []string{"event_ids", "correlation_ids"} {
		p := pace{o: o, n: sliceRows}
		var after, last indexEntry
		for more := true; more; after = last {
			err := p.do(ctx, func(tx *transaction, n int64) (err error) {
				last, more, err = tx.sweepSlice(table, after, pruned, n*sweepSlice)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	o.swept.Store(pruned)
	return nil
}

// sweepSlice looks at the next n entries of an index after one, and returns the last
// of them; there is no more where it has seen the end.
func (tx *transaction) sweepSlice(table string, after indexEntry, pruned, n int64) (last indexEntry, more bool, err error) {
	id := strings.TrimSuffix(table, "s")
	key := `(` + id + `, seq)`
	var raw []byte
	err = tx.o.conn.QueryRowContext(context.Background(), `SELECT `+id+`, seq FROM `+table+` WHERE `+key+` > (?, ?) ORDER BY `+id+`, seq LIMIT 1 OFFSET ?`,
		after.id[:], after.seq, n-1).Scan(&raw, &last.seq)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		last = indexEntry{id: uuid.Max, seq: math.MaxInt64}
	case err != nil:
		return last, false, fmt.Errorf("look for stale IDs: %w", err)
	default:
		more = true
		copy(last.id[:], raw)
	}
	return last, more, tx.exec(`DELETE FROM `+table+` WHERE `+key+` > (?, ?) AND `+key+` <= (?, ?) AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`,
		after.id[:], after.seq, last.id[:], last.seq, pruned)
}

// slice returns the bounds of the next n rows after from, up to through:
// (from, to]. to == from where there is nothing to do.
func (tx *transaction) slice(from, through, n int64) (int64, int64, error) {
	if through <= from {
		return from, from, nil
	}
	var last sql.NullInt64
	err := tx.o.conn.QueryRowContext(context.Background(), `SELECT max(seq) FROM (SELECT seq FROM results WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)`,
		from, through, n).Scan(&last)
	if err != nil {
		return 0, 0, fmt.Errorf("find the next slice: %w", err)
	}
	if !last.Valid {
		return from, through, nil // a gap: nothing but numbers
	}
	return from, last.Int64, nil
}

// fits reports whether one result more, of size bytes, is within the limits.
func (tx *transaction) fits(size int64) bool {
	return tx.state.heldRows+1 <= tx.o.opts.MaxRows && tx.state.heldBytes+size <= tx.o.opts.MaxBytes
}

// makeRoom lets published results give way for a new one of size bytes: history
// first, then deduplication entries, no more than a 64th of what is held at a
// time. It reports false, and takes nothing, where what is pending and parked
// leaves no room.
func (tx *transaction) makeRoom(size int64) (bool, error) {
	s, opts := &tx.state, &tx.o.opts
	if s.pendingRows+s.parkedRows+1 > opts.MaxRows || s.pendingBytes+s.parkedBytes+size > opts.MaxBytes {
		if size <= opts.MaxBytes { // else it can never fit, which says nothing of the outbox
			tx.o.unmet.Store(size)
		}
		return false, nil
	}
	tx.o.unmet.Store(0)
	n := min(max(s.heldRows/64, 1), sliceRows)
	for !tx.fits(size) {
		var err error
		switch {
		case s.heldBytes+size > opts.MaxBytes && s.slimSeq < s.publishedSeq:
			_, err = tx.slim(s.publishedSeq, n)
		case s.prunedSeq < s.publishedSeq:
			_, err = tx.prune(s.publishedSeq, n)
			tx.o.reportTrimmed(tx.now)
		default:
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// reportTrimmed tells that deduplication entries went before their time.
func (o *Outbox) reportTrimmed(now time.Time) {
	o.mu.Lock()
	last := o.dedupTrimmedAt
	o.dedupTrimmedAt = now
	o.mu.Unlock()
	if now.Sub(last) > time.Minute {
		o.log.Warn("the outbox is at its limit: deduplication entries go before their window is over; a result resent after that is published again", "max_rows", o.opts.MaxRows, "max_bytes", o.opts.MaxBytes)
	}
}

// vacuum gives free pages back to the file system, but for a reserve that the
// intake will use again.
func (o *Outbox) vacuum(ctx context.Context) error {
	p := pace{o: o, n: sliceRows / 2}
	for {
		free, err := o.freeAbove(ctx)
		if err != nil || free <= 0 {
			return err
		}
		if err := p.do(ctx, func(tx *transaction, n int64) error { return tx.vacuumSlice(min(free, n)) }); err != nil {
			return err
		}
	}
}

func (o *Outbox) freeAbove(ctx context.Context) (int64, error) {
	var free, pages int64
	if err := o.readers.QueryRowContext(ctx, `SELECT * FROM pragma_freelist_count, pragma_page_count`).Scan(&free, &pages); err != nil {
		return 0, fmt.Errorf("count free pages: %w", err)
	}
	return free - max(keepFreePages, pages/10), nil
}

// vacuumSlice steps the pragma to its end: it frees one page per row.
func (tx *transaction) vacuumSlice(pages int64) error {
	rows, err := tx.o.conn.QueryContext(context.Background(), fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, pages))
	if err != nil {
		return fmt.Errorf("vacuum: %w", err)
	}
	freed := 0
	for rows.Next() { // each step frees a page
		freed++
	}
	tx.o.log.Debug("gave pages back to the file system", "pages", freed)
	return errors.Join(rows.Err(), rows.Close())
}
