package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// MarkPublished records that everything up to p.Through is published, parked
// results aside. It is known at once, and on disk with the next commit: a crash
// in between is what the watermark, or the reader's deduplication, is for.
func (o *Outbox) MarkPublished(p Publication) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p.Through <= o.proven {
		return
	}
	if len(o.unmarked) == 0 {
		o.unmarkedAt = time.Now()
	}
	o.proven = p.Through
	o.tail.published(p.Through)
	o.unmarked = append(o.unmarked, p)
	o.metrics.Published.Add(float64(len(p.Placements)))
	for seq, chans := range o.waiters {
		if seq <= p.Through {
			o.release(seq, chans)
		}
	}
	o.wakeWriter()
}

func (o *Outbox) release(seq int64, chans []chan struct{}) {
	for _, c := range chans {
		close(c)
	}
	delete(o.waiters, seq)
}

// WaitPublished returns once a result is published or parked, or with ctx's error.
func (o *Outbox) WaitPublished(ctx context.Context, id uuid.UUID) (Entry, error) {
	for {
		parkings := o.parkings()
		e, err := o.Get(ctx, id)
		if err != nil || e.State != Pending {
			return e, err
		}
		if err := o.waitFor(ctx, e.Seq, parkings); err != nil {
			return e, err
		}
	}
}

// parkings is how often a result was set aside, ever.
func (o *Outbox) parkings() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state.parkings
}

// waitFor returns when the state of seq may have changed since there were so
// many parkings.
func (o *Outbox) waitFor(ctx context.Context, seq, parkings int64) error {
	c := make(chan struct{})
	o.mu.Lock()
	if seq <= o.proven || o.state.parkings != parkings {
		o.mu.Unlock()
		return nil
	}
	o.waiters[seq] = append(o.waiters[seq], c)
	o.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		o.mu.Lock()
		defer o.mu.Unlock()
		o.forget(seq, c)
		return ctx.Err()
	}
}

func (o *Outbox) forget(seq int64, c chan struct{}) {
	left := o.waiters[seq][:0]
	for _, w := range o.waiters[seq] {
		if w != c {
			left = append(left, w)
		}
	}
	if len(left) == 0 {
		delete(o.waiters, seq)
		return
	}
	o.waiters[seq] = left
}

// mark carries a proven publication into the file.
func (tx *transaction) mark(p Publication) error {
	s := &tx.state
	if p.Through <= s.publishedSeq {
		return nil
	}
	rows, bytes := int64(len(p.Placements)), p.Bytes
	if bytes == 0 {
		err := tx.o.conn.QueryRowContext(context.Background(), `SELECT count(*), coalesce(sum(size), 0) FROM results
			WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`, s.publishedSeq, p.Through).Scan(&rows, &bytes)
		if err != nil {
			return fmt.Errorf("count what was published: %w", err)
		}
	}
	s.pendingRows, s.pendingBytes, s.publishedSeq = s.pendingRows-rows, s.pendingBytes-bytes, p.Through
	if p.Watermark != (WatermarkPosition{}) {
		s.position = p.Watermark
	}
	return tx.exec(`INSERT OR REPLACE INTO publications (through, published_at, topic, placements) VALUES (?,?,?,?)`,
		p.Through, p.At.UnixMicro(), p.Topic, encodePlacements(p.Placements))
}

// TakeBack makes pending again, durably, what was published after seq through, where
// Kafka has undone it. position is where the watermark of what is left lies. It returns
// how many results are pending again, and how many it could not take back: their
// payloads are past the history window.
func (o *Outbox) TakeBack(ctx context.Context, through int64, position WatermarkPosition) (rows, gone int64, err error) {
	err = o.do(ctx, func(tx *transaction) error {
		s := &tx.state
		from := max(through, s.slimSeq, s.prunedSeq)
		gone = from - through
		var bytes int64
		if err := tx.o.conn.QueryRowContext(context.Background(), `SELECT count(*), coalesce(sum(size), 0) FROM results
			WHERE seq > ? AND seq <= ? AND seq NOT IN (SELECT seq FROM parked)`, from, s.publishedSeq).Scan(&rows, &bytes); err != nil {
			return fmt.Errorf("count what is taken back: %w", err)
		}
		s.pendingRows, s.pendingBytes, s.publishedSeq, s.position = s.pendingRows+rows, s.pendingBytes+bytes, from, position
		tx.unproven = true
		return tx.exec(`DELETE FROM publications WHERE through > ?`, from)
	})
	if err == nil {
		o.signalPending()
	}
	return rows, gone, err
}

// Park sets a pending result aside, durably, with the reason. It must be called
// before a watermark passes the result.
func (o *Outbox) Park(ctx context.Context, seq int64, reason string) error {
	err := o.do(ctx, func(tx *transaction) error {
		var size int64
		if err := tx.o.conn.QueryRowContext(context.Background(), `SELECT size FROM results WHERE seq = ? AND seq NOT IN (SELECT seq FROM parked)`, seq).Scan(&size); err != nil {
			return fmt.Errorf("read the result to park (seq %d): %w", seq, err)
		}
		s := &tx.state
		s.pendingRows, s.pendingBytes = s.pendingRows-1, s.pendingBytes-size
		s.parkedRows, s.parkedBytes, s.parkings = s.parkedRows+1, s.parkedBytes+size, s.parkings+1
		return tx.exec(`INSERT INTO parked (seq, reason, parked_at) VALUES (?,?,?)`, seq, reason, tx.now.UnixMicro())
	})
	if err != nil {
		return err
	}
	o.metrics.Parked.Inc()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.release(seq, o.waiters[seq])
	return nil
}

// Retry makes a parked result pending again, with a new seq: under its old one
// the watermark may have passed it, and would bury it.
func (o *Outbox) Retry(ctx context.Context, id uuid.UUID) (Entry, error) {
	err := o.do(ctx, func(tx *transaction) error {
		e, err := tx.parkedEntry(id)
		if err != nil {
			return err
		}
		s := &tx.state
		s.lastSeq++
		s.pendingRows, s.pendingBytes = s.pendingRows+1, s.pendingBytes+e.Bytes
		s.parkedRows, s.parkedBytes = s.parkedRows-1, s.parkedBytes-e.Bytes
		tx.moved = map[uuid.UUID]recentRow{id: {seq: s.lastSeq, correlation: e.CorrelationID}}
		return errors.Join(
			tx.exec(`DELETE FROM parked WHERE seq = ?`, e.Seq),
			tx.unindex(e.Seq),
			tx.exec(`UPDATE results SET seq = ? WHERE seq = ?`, s.lastSeq, e.Seq))
	})
	if err != nil {
		return Entry{}, err
	}
	o.signalPending()
	return o.Get(ctx, id)
}

// Purge removes a parked result for good.
func (o *Outbox) Purge(ctx context.Context, id uuid.UUID) error {
	return o.do(ctx, func(tx *transaction) error {
		e, err := tx.parkedEntry(id)
		if err != nil {
			return err
		}
		s := &tx.state
		s.parkedRows, s.parkedBytes = s.parkedRows-1, s.parkedBytes-e.Bytes
		s.heldRows, s.heldBytes = s.heldRows-1, s.heldBytes-e.Bytes
		tx.forgetRow(id, e.Seq)
		return errors.Join(
			tx.exec(`DELETE FROM parked WHERE seq = ?`, e.Seq),
			tx.unindex(e.Seq),
			tx.exec(`DELETE FROM results WHERE seq = ?`, e.Seq))
	})
}

// parkedEntry reads through the writer's connection: it must see this very
// transaction.
func (tx *transaction) parkedEntry(id uuid.UUID) (Entry, error) {
	if err := tx.o.inPlace(); err != nil {
		return Entry{}, err // what was answered would be undone by the next start
	}
	seq, found, err := tx.find(id)
	if err != nil {
		return Entry{}, err
	}
	if !found {
		return Entry{}, fmt.Errorf("%w: event_id %s", ErrNotFound, id)
	}
	var digest []byte
	e, err := scanEntry(tx.o.stmts.held.QueryRow(seq), &digest)
	if err == nil && e.State != Parked {
		return e, fmt.Errorf("%w: event_id %s", ErrNotParked, id)
	}
	return e, err
}

// encodePlacements writes, for each placement, three varints: the seq's and the
// offset's difference from the one before it, and the partition. About four
// bytes each where partitions take turns.
func encodePlacements(ps []Placement) []byte {
	buf := make([]byte, 0, 4*len(ps))
	var seq, offset int64
	for _, p := range ps {
		buf = binary.AppendVarint(buf, p.Seq-seq)
		buf = binary.AppendVarint(buf, int64(p.Partition))
		buf = binary.AppendVarint(buf, p.Offset-offset)
		seq, offset = p.Seq, p.Offset
	}
	return buf
}

func decodePlacements(buf []byte) ([]Placement, error) {
	var ps []Placement
	var last Placement
	for len(buf) > 0 {
		var v [3]int64
		for i := range v {
			x, n := binary.Varint(buf)
			if n <= 0 {
				return nil, errors.New("decode placements: broken varint")
			}
			v[i], buf = x, buf[n:]
		}
		last = Placement{Seq: last.Seq + v[0], Partition: int32(v[1]), Offset: last.Offset + v[2]}
		ps = append(ps, last)
	}
	return ps, nil
}
