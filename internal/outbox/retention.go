package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const (
	retentionInterval       = time.Second
	sliceRows         int64 = 512 // rows that one retention step touches: it stalls the intake no longer
	slicePages              = 256 // pages that one vacuum step gives back
	keepFreePages           = 1024
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
	for _, step := range []func(*transaction) (more bool, err error){
		(*transaction).slimExpired, (*transaction).pruneExpired, (*transaction).clearForRoom,
	} {
		for more := true; more; {
			err := o.do(ctx, func(tx *transaction) (err error) {
				tx.rearranges = false // it takes published rows alone
				more, err = step(tx)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return o.vacuum(ctx)
}

// slimExpired drops payloads whose history window is over.
func (tx *transaction) slimExpired() (more bool, err error) {
	through, err := tx.publishedBefore(tx.now.Add(-tx.o.opts.History))
	if err != nil {
		return false, err
	}
	return tx.slim(through, sliceRows)
}

// pruneExpired drops rows whose deduplication window is over, and the oldest
// published ones beyond the cap.
func (tx *transaction) pruneExpired() (more bool, err error) {
	through, err := tx.publishedBefore(tx.now.Add(-tx.o.opts.DedupWindow))
	if err != nil {
		return false, err
	}
	if more, err = tx.prune(through, sliceRows); more || err != nil {
		return more, err
	}
	excess := tx.beyondCap()
	if excess <= 0 {
		return false, nil
	}
	if more, err = tx.prune(tx.state.publishedSeq, min(excess, sliceRows)); err != nil {
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

// prune drops the next n rows up to through.
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
	return to < through, errors.Join(
		tx.unindex(from+1, to, ` AND seq NOT IN (SELECT seq FROM parked)`),
		tx.exec(`DELETE FROM results`+where, from, to),
		tx.exec(`DELETE FROM publications WHERE through <= ?`, to))
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
	for {
		free, err := o.freeAbove(ctx)
		if err != nil || free <= 0 {
			return err
		}
		err = o.do(ctx, func(tx *transaction) error {
			tx.rearranges = false // pages, no rows
			return tx.vacuumSlice(min(free, slicePages))
		})
		if err != nil {
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
