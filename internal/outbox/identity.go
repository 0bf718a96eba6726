package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

const generationsKept = 1000

// generation says which start gave the seqs from first on.
type generation struct {
	first int64
	id    uuid.UUID
}

// Watermark is what the publisher writes to Kafka with its results: everything
// up to Seq is published, parked results aside. Generation is the start that gave
// Seq; an outbox whose table says otherwise is a copy that went its own way.
// Parkings is how often a result had been set aside; an outbox that knows of fewer
// is a copy from before, and would take a parked result for a published one. Owner
// is the start that wrote the watermark.
type Watermark struct {
	Seq        int64
	Generation uuid.UUID
	Parkings   int64
	Owner      uuid.UUID
}

// WatermarkPosition is where in Kafka our newest watermark lies, so that a
// recovery can start there. The zero value is unknown.
type WatermarkPosition struct {
	TopicID   [16]byte
	Partition int32
	Offset    int64
}

func readGenerations(ctx context.Context, conn *sql.Conn) ([]generation, error) {
	rows, err := conn.QueryContext(ctx, `SELECT first_seq, generation FROM generations ORDER BY first_seq`)
	if err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var gs []generation
	for rows.Next() {
		var g generation
		var id []byte
		if err := rows.Scan(&g.first, &id); err != nil {
			return nil, fmt.Errorf("read generations: %w", err)
		}
		copy(g.id[:], id)
		gs = append(gs, g)
	}
	return gs, rows.Err()
}

// startGeneration commits who gives the seqs from here on, before any is given.
// A start that gave none is replaced by the next. Generations that ended before
// the published number are needed no more, but for a watermark that stayed behind
// while at-least-once delivery went ahead; so a good many are kept.
func (o *Outbox) startGeneration(ctx context.Context) error {
	first := o.state.lastSeq + 1
	err := o.commit(func(tx *transaction) error {
		tx.state.clean = false
		if err := tx.exec(`INSERT OR REPLACE INTO generations (first_seq, generation, started_at) VALUES (?,?,?)`, first, o.owner[:], tx.now.UnixMicro()); err != nil {
			return err
		}
		return tx.exec(`DELETE FROM generations WHERE first_seq < (SELECT max(first_seq) FROM generations WHERE first_seq <= ?)
			AND first_seq NOT IN (SELECT first_seq FROM generations ORDER BY first_seq DESC LIMIT ?)`, tx.state.publishedSeq, generationsKept)
	})
	if err != nil {
		return fmt.Errorf("start a generation: %w", err)
	}
	o.generations, err = readGenerations(ctx, o.conn)
	return err
}

// generationOf returns who gave seq; the zero UUID if nobody did.
func (o *Outbox) generationOf(seq int64) uuid.UUID {
	var id uuid.UUID
	if seq > 0 && seq <= o.state.lastSeq {
		for _, g := range o.generations {
			if g.first <= seq {
				id = g.id
			}
		}
	}
	return id
}

// ID identifies the outbox; the transactional ID derives from it.
func (o *Outbox) ID() uuid.UUID {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.outboxID
}

// Watermark returns the watermark that says "published through seq".
func (o *Outbox) Watermark(seq int64) Watermark {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Watermark{Seq: seq, Generation: o.generationOf(seq), Parkings: o.state.parkings, Owner: o.owner}
}

// Proven is the highest seq of which we know that it and all before it are
// published, parked ones aside.
func (o *Outbox) Proven() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.proven
}

// Judges reports whether w speaks of the rows that this outbox holds. If not,
// the data directory is an old copy or a restored backup, and w proves nothing.
func (o *Outbox) Judges(w Watermark) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return w.Seq <= o.state.lastSeq && o.generationOf(w.Seq) == w.Generation && w.Parkings <= o.state.parkings
}

// TakeNewID gives the outbox a new identity, durably, and forgets where the old
// one's watermark lies.
func (o *Outbox) TakeNewID(ctx context.Context) (uuid.UUID, error) {
	id := uuid.New()
	err := o.do(ctx, func(tx *transaction) error {
		tx.state.outboxID, tx.state.position = id, WatermarkPosition{}
		return nil
	})
	return id, err
}

// Delivery is the mode that published last, empty if none did.
func (o *Outbox) Delivery() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.delivery
}

// SetDelivery records the mode that publishes from now on, before it does.
func (o *Outbox) SetDelivery(ctx context.Context, mode string) error {
	if o.Delivery() == mode {
		return nil
	}
	return o.do(ctx, func(tx *transaction) error { tx.state.delivery = mode; return nil })
}

// WatermarkPosition returns where our newest watermark is known to lie.
func (o *Outbox) WatermarkPosition() WatermarkPosition {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range slices.Backward(o.unmarked) {
		if p.Watermark != (WatermarkPosition{}) {
			return p.Watermark
		}
	}
	return o.state.position
}
