package outbox

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// state mirrors the table of that name, brought up to the newest row.
type state struct {
	outboxID     uuid.UUID
	clean        bool
	delivery     string
	lastSeq      int64 // highest ever given, not MAX(seq): rows go
	indexedSeq   int64
	publishedSeq int64
	slimSeq      int64
	prunedSeq    int64
	pendingRows  int64
	pendingBytes int64
	parkedRows   int64
	parkedBytes  int64
	parkings     int64 // how often a result was set aside, ever
	heldRows     int64
	heldBytes    int64
	position     WatermarkPosition
}

// appended is the state after rows more were given, up to seq last.
func (s state) appended(rows, bytes, last int64) state {
	s.lastSeq = last
	s.pendingRows, s.pendingBytes = s.pendingRows+rows, s.pendingBytes+bytes
	s.heldRows, s.heldBytes = s.heldRows+rows, s.heldBytes+bytes
	return s
}

// loadState reads the state, and makes it on the first start.
func (o *Outbox) loadState(ctx context.Context) error {
	first := uuid.New()
	if _, err := o.conn.ExecContext(ctx, `INSERT OR IGNORE INTO state (one, outbox_id) VALUES (1, ?)`, first[:]); err != nil {
		return fmt.Errorf("make the state: %w", err)
	}
	s, err := readState(ctx, o.conn)
	if err != nil {
		return err
	}
	o.state, o.proven = s, s.publishedSeq
	o.sound.Store(s.clean)
	if err := o.loadRecent(ctx); err != nil {
		return err
	}
	o.generations, err = readGenerations(ctx, o.conn)
	return err
}

func readState(ctx context.Context, conn *sql.Conn) (state, error) {
	var s state
	var id, topic []byte
	err := conn.QueryRowContext(ctx, `SELECT outbox_id, clean, delivery, last_seq, indexed_seq, published_seq, slim_seq, pruned_seq,
		pending_rows, pending_bytes, parked_rows, parked_bytes, parkings, held_rows, held_bytes,
		watermark_topic, watermark_partition, watermark_offset FROM state`).Scan(
		&id, &s.clean, &s.delivery, &s.lastSeq, &s.indexedSeq, &s.publishedSeq, &s.slimSeq, &s.prunedSeq,
		&s.pendingRows, &s.pendingBytes, &s.parkedRows, &s.parkedBytes, &s.parkings, &s.heldRows, &s.heldBytes,
		&topic, &s.position.Partition, &s.position.Offset)
	if err != nil {
		return s, fmt.Errorf("read the state: %w", err)
	}
	if s.outboxID, err = uuid.FromBytes(id); err != nil {
		return s, fmt.Errorf("read the outbox ID: %w", err)
	}
	copy(s.position.TopicID[:], topic)
	return s, nil
}

// indexEntries are those of Outbox.stillRecent's blob, in its order.
const indexEntries = ` WITH RECURSIVE entries (start) AS (VALUES (1) UNION ALL SELECT start + 36 FROM entries WHERE start + 36 < ?2)
	SELECT substr(?1, start, 16), CAST(substr(?1, start + 16, 20) AS INTEGER) FROM entries`

// statements are the writer's, prepared once.
type statements struct {
	insert                       rowInsert
	held, update                 *sql.Stmt
	seqOf, seqsOf                *sql.Stmt // of one event ID, and of those that lie in a blob one after the other
	indexEvent, indexCorrelation *sql.Stmt
}

// ofARow passes over the stale entries of an index i: see sweep.
const ofARow = ` WHERE EXISTS (SELECT 1 FROM results r WHERE r.seq = i.seq)`

func (s *statements) prepare(ctx context.Context, conn *sql.Conn) error {
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&s.seqOf, `SELECT seq FROM (SELECT seq FROM event_ids WHERE event_id = ?) i` + ofARow},
		{&s.seqsOf, `WITH RECURSIVE ids (start) AS (VALUES (1) UNION ALL SELECT start + 16 FROM ids WHERE start + 16 < ?2)
			SELECT event_id, seq FROM ids CROSS JOIN event_ids i ON event_id = substr(?1, start, 16)` + ofARow},
		{&s.held, entryColumns + `, r.digest FROM results r LEFT JOIN parked p ON p.seq = r.seq WHERE r.seq = ?`},
		{&s.indexEvent, `INSERT OR REPLACE INTO event_ids (event_id, seq)` + indexEntries},
		{&s.indexCorrelation, `INSERT OR IGNORE INTO correlation_ids (correlation_id, seq)` + indexEntries},
		{&s.update, `UPDATE state SET outbox_id=?, clean=?, delivery=?, last_seq=?, indexed_seq=?, published_seq=?, slim_seq=?, pruned_seq=?, pending_rows=?, pending_bytes=?,
			parked_rows=?, parked_bytes=?, parkings=?, held_rows=?, held_bytes=?, watermark_topic=?, watermark_partition=?, watermark_offset=?`},
	} {
		stmt, err := conn.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("prepare %.20q: %w", p.text, err)
		}
		*p.stmt = stmt
	}
	return s.insert.prepare(conn)
}

func (s *statements) close() error {
	errs := []error{s.insert.close()}
	for _, stmt := range []*sql.Stmt{s.seqOf, s.seqsOf, s.held, s.update, s.indexEvent, s.indexCorrelation} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	return errors.Join(errs...)
}

// rowInsert inserts a row, by the driver's own statement. database/sql would allocate
// each value twice, and the driver's Exec enters C for each; its Query does so once for
// all of them, and takes the step too.
type rowInsert struct {
	stmt driver.Stmt
	args [14]driver.NamedValue
}

func (i *rowInsert) prepare(conn *sql.Conn) error {
	for n := range i.args {
		i.args[n].Ordinal = n + 1
	}
	err := conn.Raw(func(dc any) (err error) {
		i.stmt, err = dc.(driver.Conn).Prepare(`INSERT INTO results (seq, event_id, correlation_id, workflow_id, workflow_run_id, status, accepted_at, timestamp, size, digest, traceparent, tracestate, error, result)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)`)
		return err
	})
	if err != nil {
		return fmt.Errorf("prepare the insertion of a row: %w", err)
	}
	return nil
}

// row inserts a row whose values are as the driver has them: int64, string, []byte, nil.
func (i *rowInsert) row(values ...driver.Value) error {
	for n, v := range values {
		i.args[n].Value = v
	}
	rows, err := i.stmt.(driver.StmtQueryContext).QueryContext(context.Background(), i.args[:])
	for n := range i.args {
		i.args[n].Value = nil // else the payload would be kept
	}
	if err != nil {
		return err
	}
	return rows.Close()
}

func (i *rowInsert) close() error {
	if i.stmt == nil {
		return nil
	}
	return i.stmt.Close()
}

// writeState writes the state, unless rows were appended and nothing else
// changed: those are counted at the next start, or written with the next change.
func (tx *transaction) writeState() error {
	s, o := &tx.state, tx.o
	if *s == o.state.appended(tx.rows, tx.bytes, s.lastSeq) {
		return nil
	}
	_, err := o.stmts.update.Exec(s.outboxID[:], s.clean, s.delivery, s.lastSeq, s.indexedSeq, s.publishedSeq, s.slimSeq, s.prunedSeq, s.pendingRows, s.pendingBytes,
		s.parkedRows, s.parkedBytes, s.parkings, s.heldRows, s.heldBytes, s.position.TopicID[:], s.position.Partition, s.position.Offset)
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}
