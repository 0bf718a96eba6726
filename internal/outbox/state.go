package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
)

// state mirrors the table of that name, and the highest seq ever given.
type state struct {
	outboxID     uuid.UUID
	clean        bool
	delivery     string
	publishedSeq int64
	slimSeq      int64
	prunedSeq    int64
	pendingRows  int64
	pendingBytes int64
	parkedRows   int64
	parkedBytes  int64
	heldRows     int64
	heldBytes    int64
	position     WatermarkPosition
	lastSeq      int64 // sqlite_sequence, not MAX(seq): rows get pruned
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
	o.state, o.wasClean, o.proven = s, s.clean, s.publishedSeq
	o.state.clean = false
	o.generations, err = readGenerations(ctx, o.conn)
	return err
}

func readState(ctx context.Context, conn *sql.Conn) (state, error) {
	var s state
	var id, topic []byte
	err := conn.QueryRowContext(ctx, `SELECT outbox_id, clean, delivery, published_seq, slim_seq, pruned_seq,
		pending_rows, pending_bytes, parked_rows, parked_bytes, held_rows, held_bytes,
		watermark_topic, watermark_partitions, watermark_partition, watermark_offset FROM state`).Scan(
		&id, &s.clean, &s.delivery, &s.publishedSeq, &s.slimSeq, &s.prunedSeq,
		&s.pendingRows, &s.pendingBytes, &s.parkedRows, &s.parkedBytes, &s.heldRows, &s.heldBytes,
		&topic, &s.position.Partitions, &s.position.Partition, &s.position.Offset)
	if err != nil {
		return s, fmt.Errorf("read the state: %w", err)
	}
	if s.outboxID, err = uuid.FromBytes(id); err != nil {
		return s, fmt.Errorf("read the outbox ID: %w", err)
	}
	copy(s.position.TopicID[:], topic)
	err = conn.QueryRowContext(ctx, `SELECT seq FROM sqlite_sequence WHERE name = 'results'`).Scan(&s.lastSeq)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return s, fmt.Errorf("read the last seq: %w", err)
	}
	return s, nil
}

// statements are the writer's, prepared once.
type statements struct {
	insert, held, update *sql.Stmt
}

func (s *statements) prepare(ctx context.Context, conn *sql.Conn) error {
	for _, p := range []struct {
		stmt **sql.Stmt
		text string
	}{
		{&s.insert, `INSERT INTO results (event_id, correlation_id, workflow_id, workflow_run_id, status, accepted_at, timestamp, size, digest, traceparent, tracestate, error, result)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (event_id) DO NOTHING`},
		{&s.held, entryColumns + `, r.digest FROM results r LEFT JOIN parked p ON p.seq = r.seq WHERE r.event_id = ?`},
		{&s.update, `UPDATE state SET outbox_id=?, clean=?, delivery=?, published_seq=?, slim_seq=?, pruned_seq=?, pending_rows=?, pending_bytes=?,
			parked_rows=?, parked_bytes=?, held_rows=?, held_bytes=?, watermark_topic=?, watermark_partitions=?, watermark_partition=?, watermark_offset=?`},
	} {
		stmt, err := conn.PrepareContext(ctx, p.text)
		if err != nil {
			return fmt.Errorf("prepare %.20q: %w", p.text, err)
		}
		*p.stmt = stmt
	}
	return nil
}

func (s *statements) close() error {
	var errs []error
	for _, stmt := range []*sql.Stmt{s.insert, s.held, s.update} {
		if stmt != nil {
			errs = append(errs, stmt.Close())
		}
	}
	return errors.Join(errs...)
}

func (o *Outbox) writeState(s *state) error {
	_, err := o.stmts.update.Exec(s.outboxID[:], s.clean, s.delivery, s.publishedSeq, s.slimSeq, s.prunedSeq, s.pendingRows, s.pendingBytes,
		s.parkedRows, s.parkedBytes, s.heldRows, s.heldBytes, s.position.TopicID[:], s.position.Partitions, s.position.Partition, s.position.Offset)
	if err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return nil
}
