package outbox

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

// IDs are random, and an index of random keys that takes each row as it comes
// writes a page per row: measured, two such indexes cost four fifths of the intake
// rate. So the newest rows' IDs are kept in memory, and merged into the indexes in
// bulk, sorted, in slices between the commits of others. After a crash they are
// read from the rows again: a row is in memory until state.indexed_seq says that
// the indexes have it.
const (
	mergeRows  = 16384 // IDs in memory that start a merge: some 2 MiB, and a start reads as many rows
	mergeSlice = 512   // entries of one merge step at least
	// mergePace is how many entries are merged per row appended, so that a merge
	// ends before the next is due: there are two for each row.
	mergePace = 4
)

// recentRow is a row that the indexes do not hold yet.
type recentRow struct {
	seq         int64
	correlation uuid.UUID
}

// indexEntry is one row of an index.
type indexEntry struct {
	id    uuid.UUID
	event uuid.UUID // the row it belongs to
	seq   int64
}

// merge is what is left of one merge, by the writer alone.
type merge struct {
	through              int64 // rows up to it are in the indexes afterwards
	events, correlations []indexEntry
}

// loadRecent reads the rows that the indexes lack, and brings the state up to
// the newest row.
func (o *Outbox) loadRecent(ctx context.Context) error {
	o.recent = make(map[uuid.UUID]recentRow)
	rows, err := o.conn.QueryContext(ctx, `SELECT seq, event_id, correlation_id, size FROM results WHERE seq > ?`, min(o.state.indexedSeq, o.state.lastSeq))
	if err != nil {
		return fmt.Errorf("read the newest results: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	for rows.Next() {
		var seq, size int64
		var event, correlation sql.RawBytes
		if err := rows.Scan(&seq, &event, &correlation, &size); err != nil {
			return fmt.Errorf("read the newest results: %w", err)
		}
		if seq > o.state.indexedSeq {
			o.recent[uuid.UUID(event)] = recentRow{seq: seq, correlation: uuid.UUID(correlation)}
		}
		if seq > o.state.lastSeq {
			o.state = o.state.appended(1, size, seq)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the newest results: %w", err)
	}
	return nil
}

// lookUpAll finds those event IDs of a batch, of n results, that are held: by one look
// into memory, and one into the index. One ID alone it leaves to find.
func (tx *transaction) lookUpAll(batch []*request, n int) error {
	const size = len(uuid.UUID{})
	if n == 1 {
		return nil
	}
	o, ids := tx.o, make([]byte, 0, n*size)
	tx.known = make(map[uuid.UUID]int64, n)
	o.mu.Lock()
	for _, r := range batch {
		for i := range r.results {
			id := r.results[i].EventID
			if row, found := o.recent[id]; found {
				tx.known[id] = row.seq
			} else {
				ids = append(ids, id[:]...)
			}
		}
	}
	o.mu.Unlock()
	rows, err := o.stmts.seqsOf.Query(ids, len(ids))
	if err != nil {
		return fmt.Errorf("look up event IDs: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	for rows.Next() {
		var id uuid.UUID
		var seq int64
		if err := rows.Scan(&id, &seq); err != nil {
			return fmt.Errorf("look up event IDs: %w", err)
		}
		tx.known[id] = seq
	}
	tx.allLookedUp = true
	return rows.Err()
}

// lookAgain forgets what was looked up: rows that were held may be no more.
func (tx *transaction) lookAgain() {
	tx.allLookedUp = false
	maps.DeleteFunc(tx.known, func(_ uuid.UUID, seq int64) bool { return seq < tx.first })
}

// find tells whether an event ID is held, this very transaction included.
func (tx *transaction) find(id uuid.UUID) (seq int64, found bool, err error) {
	if seq, found = tx.known[id]; found || tx.allLookedUp {
		return seq, found, nil
	}
	tx.o.mu.Lock()
	row, found := tx.o.recent[id]
	tx.o.mu.Unlock()
	if found && tx.forgotten[id] != row.seq {
		return row.seq, true, nil
	}
	err = tx.o.stmts.seqOf.QueryRow(id[:]).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look up an event ID: %w", err)
	}
	return seq, true, nil
}

// remember makes a new row known to the rest of its transaction.
func (tx *transaction) remember(r *result.Result, seq, size int64) {
	tx.appended = append(tx.appended, appendedRow{result: r, seq: seq, size: size})
	if tx.known != nil { // else there is no second result in it
		tx.known[r.EventID] = seq
	}
}

// announce makes the new rows known to readers, right before the commit: they look for
// the row itself and do not see it any earlier, and whoever sees it finds it by its ID.
func (tx *transaction) announce() {
	tx.announced = true
	tx.o.mu.Lock()
	defer tx.o.mu.Unlock()
	for i := range tx.appended {
		a := &tx.appended[i]
		a.before = tx.o.recent[a.result.EventID]
		tx.o.recent[a.result.EventID] = recentRow{seq: a.seq, correlation: a.result.CorrelationID}
	}
}

// withdraw undoes announce.
func (tx *transaction) withdraw() {
	if !tx.announced {
		return
	}
	tx.o.mu.Lock()
	defer tx.o.mu.Unlock()
	for _, a := range slices.Backward(tx.appended) {
		if a.before.seq == 0 {
			delete(tx.o.recent, a.result.EventID)
		} else {
			tx.o.recent[a.result.EventID] = a.before
		}
	}
}

// settleRecent takes over what a commit changed; o.mu is held.
func (tx *transaction) settleRecent() {
	o := tx.o
	for id, seq := range tx.forgotten {
		if o.recent[id].seq == seq { // else the same ID came in again
			delete(o.recent, id)
		}
	}
	maps.Copy(o.recent, tx.moved)
	if tx.merged > 0 {
		maps.DeleteFunc(o.recent, func(_ uuid.UUID, row recentRow) bool { return row.seq <= tx.merged })
	}
}

// forget takes the rows of a slice (from, to] that are to be deleted out of memory.
func (tx *transaction) forget(from, to int64) error {
	if to <= tx.state.indexedSeq {
		return nil
	}
	rows, err := tx.o.conn.QueryContext(context.Background(), `SELECT event_id, seq FROM results WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`, from, to)
	if err != nil {
		return fmt.Errorf("read expired event IDs: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	for rows.Next() {
		var id uuid.UUID
		var seq int64
		if err := rows.Scan(&id, &seq); err != nil {
			return fmt.Errorf("read expired event IDs: %w", err)
		}
		tx.forgetRow(id, seq)
	}
	return rows.Err()
}

// forgetRow takes one row out of memory, for this transaction at once and for
// others with its commit.
func (tx *transaction) forgetRow(id uuid.UUID, seq int64) {
	if tx.forgotten == nil {
		tx.forgotten = make(map[uuid.UUID]int64)
	}
	tx.forgotten[id] = seq
}

// unindex takes a row out of the indexes, whether or not it is in them.
func (tx *transaction) unindex(seq int64) error {
	tx.lookAgain()
	const row = ` FROM results WHERE seq = ?`
	return errors.Join(
		tx.exec(`DELETE FROM event_ids WHERE event_id IN (SELECT event_id`+row+`)`, seq),
		tx.exec(`DELETE FROM correlation_ids WHERE (correlation_id, seq) IN (SELECT correlation_id, seq`+row+`)`, seq))
}

// lookUp reads the row of an event ID by a query that names results r. Where the
// row moves while we look, it looks again.
func (o *Outbox) lookUp(ctx context.Context, id uuid.UUID, query string, scan func(scanner) error) error {
	for {
		recent := o.recentSeq(id)
		err := scan(o.readers.QueryRowContext(ctx, query+` WHERE r.seq = coalesce(?1, (SELECT seq FROM event_ids WHERE event_id = ?2)) AND r.event_id = ?2`, recent, id[:]))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, sql.ErrNoRows):
			return o.judge(fmt.Errorf("read result: %w", err))
		case o.recentSeq(id) == recent:
			return fmt.Errorf("%w: event_id %s", ErrNotFound, id)
		}
	}
}

// recentSeq is the seq of a row that is in memory only.
func (o *Outbox) recentSeq(id uuid.UUID) sql.NullInt64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	row, found := o.recent[id]
	return sql.NullInt64{Int64: row.seq, Valid: found}
}

// recentSeqs are the seqs of a correlation ID that are in memory only, as a JSON array.
func (o *Outbox) recentSeqs(correlation uuid.UUID) string {
	list := []byte{'['}
	o.mu.Lock()
	for _, row := range o.recent {
		if row.correlation == correlation {
			list = append(strconv.AppendInt(list, row.seq, 10), ',')
		}
	}
	o.mu.Unlock()
	return string(bytes.TrimSuffix(list, []byte{','})) + "]"
}

// mergeDue reports whether the writer has merging to do.
func (o *Outbox) mergeDue() bool {
	if o.merging != nil {
		return true
	}
	if o.damage.Load() != nil || time.Now().Before(o.mergeAfter) {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.recent) >= mergeRows
}

// mergeSome takes one step of a merge.
func (o *Outbox) mergeSome() error {
	if o.merging == nil {
		o.merging, o.sinceMerge = o.newMerge(), 0
	}
	n := max(mergeSlice, mergePace*o.sinceMerge)
	o.sinceMerge = 0
	m := o.merging
	err := o.commit(func(tx *transaction) error { return tx.mergeSlice(m, n) })
	if err != nil {
		// What it wrote is rolled back or harmless; the next merge starts over.
		o.merging, o.mergeAfter = nil, time.Now().Add(time.Second)
		return o.tolerate(context.Background(), "merging IDs into their indexes failed; it is tried again", err)
	}
	if len(m.events)+len(m.correlations) == 0 {
		o.merging = nil
	}
	return nil
}

func (o *Outbox) newMerge() *merge {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := &merge{through: o.state.lastSeq}
	for id, row := range o.recent {
		m.events = append(m.events, indexEntry{id: id, event: id, seq: row.seq})
		m.correlations = append(m.correlations, indexEntry{id: row.correlation, event: id, seq: row.seq})
	}
	byID := func(a, b indexEntry) int { return bytes.Compare(a.id[:], b.id[:]) }
	slices.SortFunc(m.events, byID)
	slices.SortFunc(m.correlations, byID)
	return m
}

// stillRecent encodes entries for one statement that inserts them all: 16 bytes of
// the ID, 20 of the seq in decimal. Those that were purged, pruned or retried since
// are left out.
func (o *Outbox) stillRecent(entries []indexEntry) []byte {
	blob := make([]byte, 0, 36*len(entries))
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range entries {
		if o.recent[e.event].seq == e.seq {
			blob = append(blob, e.id[:]...)
			blob = fmt.Appendf(blob, "%020d", e.seq)
		}
	}
	return blob
}

// mergeSlice merges the next n entries. The last slice moves indexed_seq: until
// then a crash leaves entries in the indexes that memory has too, which is the
// same answer twice.
func (tx *transaction) mergeSlice(m *merge, n int) error {
	for _, part := range []struct {
		entries *[]indexEntry
		insert  *sql.Stmt
	}{{&m.events, tx.o.stmts.indexEvent}, {&m.correlations, tx.o.stmts.indexCorrelation}} {
		slice := (*part.entries)[:min(n, len(*part.entries))]
		if blob := tx.o.stillRecent(slice); len(blob) > 0 {
			if _, err := part.insert.Exec(blob, len(blob)); err != nil {
				return fmt.Errorf("merge IDs into their index: %w", err)
			}
		}
		*part.entries = (*part.entries)[len(slice):]
		n -= len(slice)
	}
	if len(m.correlations) == 0 {
		tx.state.indexedSeq, tx.merged = m.through, m.through
	}
	return nil
}
