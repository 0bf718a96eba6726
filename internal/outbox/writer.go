package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

const (
	commitRows  = 4096    // results of one group commit at most
	commitBytes = 8 << 20 // and their bytes, so that nobody waits long for the others

	// markDelay is how long a proven publication may wait for a commit to ride
	// on. A crash within it costs nothing in exactly-once delivery, and in
	// at-least-once the duplicates of that time.
	markDelay = 50 * time.Millisecond
)

// request is one Append that waits for its commit. It has one owner at a time:
// the caller, then the writer, then (after done) the caller again.
type request struct {
	results  []result.Result
	bytes    int64
	outcomes []Outcome
	done     chan error // one slot: the writer never waits for a caller that left
}

// task is a write that is not an append. It runs in a transaction of its own.
type task struct {
	do   func(*transaction) error
	done chan error
}

// transaction is one open write transaction and the state it will leave behind.
type transaction struct {
	o     *Outbox
	state state
	now   time.Time
	rows  int64 // appended
	bytes int64

	first       int64                   // the seq of the first row that it appends
	known       map[uuid.UUID]int64     // seqs by event ID: those of the batch that were found, and of the rows appended
	allLookedUp bool                    // the batch's other event IDs are not held
	rearranges  bool                    // it may do more with pending rows than append them
	appended    []appendedRow           // put into o.recent right before the commit; taken out again on a rollback
	announced   bool                    // they are in there
	moved       map[uuid.UUID]recentRow // put into o.recent with the commit
	forgotten   map[uuid.UUID]int64     // seqs of rows that are deleted; taken out of o.recent with the commit
	unproven    bool                    // what was proven is so no more beyond state.publishedSeq
	merged      int64                   // rows up to it are in the indexes from this commit on
}

// appendedRow is a row that a transaction has inserted.
type appendedRow struct {
	result *result.Result // the caller's
	seq    int64
	size   int64
	before recentRow // what stood in o.recent: a row that the transaction pruned, or nothing (seq 0)
}

// lead lets a caller who finds nobody writing commit what is queued itself, its
// own request among it. It saves two switches between goroutines, which cost a
// caller who is alone half as much as the commit.
func (o *Outbox) lead() {
	if !o.writing.TryLock() {
		o.wakeWriter()
		return
	}
	defer o.writing.Unlock()
	o.commitBatch(o.takeBatch())
	if o.mergeDue() || o.fatalError() != nil {
		o.wakeWriter()
	}
}

// runWriter takes what has queued up, commits it and answers, until ctx ends.
func (o *Outbox) runWriter(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := o.writeAll(); err != nil {
			o.refuseQueued(fmt.Errorf("%w: %w", ErrUnavailable, err))
			return err
		}
		timer.Reset(o.untilMark())
		select {
		case <-o.wake:
		case <-timer.C:
		case <-ctx.Done():
			return o.drainWriter()
		}
	}
}

// drainWriter commits what is queued and what is proven, at the end.
func (o *Outbox) drainWriter() error {
	err := o.writeAll()
	if err == nil && o.untilMark() < time.Hour {
		o.writing.Lock()
		defer o.writing.Unlock()
		err = o.commitMarks()
	}
	return errors.Join(err, o.fatalError())
}

// writeAll works until nothing is due.
func (o *Outbox) writeAll() error {
	for more := true; more; {
		var err error
		if more, err = o.writeRound(); err != nil {
			return err
		}
	}
	return o.fatalError()
}

// writeRound does one step of each kind of work that is due, results first, and
// reports whether there was any.
func (o *Outbox) writeRound() (worked bool, err error) {
	o.writing.Lock()
	defer o.writing.Unlock()
	batch, tasks, markDue, mergeDue := o.takeBatch(), o.takeTasks(), o.untilMark() <= 0, o.mergeDue()
	o.commitBatch(batch)
	if markDue && len(batch) == 0 { // else they rode on the batch
		err = o.commitMarks()
	}
	if mergeDue {
		err = errors.Join(err, o.mergeSome())
	}
	for _, t := range tasks {
		t.done <- o.commit(func(tx *transaction) error { tx.rearranges = true; return t.do(tx) })
	}
	err = errors.Join(err, o.finishCheckpoint())
	return len(batch) > 0 || len(tasks) > 0 || markDue || mergeDue, err
}

// untilMark is the time until proven publications must be committed.
func (o *Outbox) untilMark() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.unmarked) == 0 {
		return time.Hour
	}
	return time.Until(o.unmarkedAt.Add(markDelay))
}

// commitMarks commits proven publications alone. A failure is no loss: the
// numbers stay in memory and are tried again.
func (o *Outbox) commitMarks() error {
	err := o.commit(func(*transaction) error { return nil })
	if err != nil {
		o.mu.Lock()
		o.unmarkedAt = time.Now().Add(time.Second) // not in a busy loop
		o.mu.Unlock()
		return o.tolerate(context.Background(), "cannot record what was published; it is tried again", err)
	}
	return nil
}

func (o *Outbox) takeTasks() []*task {
	o.mu.Lock()
	defer o.mu.Unlock()
	tasks := o.tasks
	o.tasks = nil
	return tasks
}

// takeBatch takes what one commit may hold.
func (o *Outbox) takeBatch() (batch []*request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	rows, bytes, n := 0, int64(0), 0
	for _, r := range o.queue {
		if n > 0 && (rows+len(r.results) > commitRows || bytes+r.bytes > commitBytes) {
			break
		}
		rows, bytes, n = rows+len(r.results), bytes+r.bytes, n+1
	}
	batch = append(batch, o.queue[:n]...)
	clear(o.queue[:n])
	o.queue = append(o.queue[:0], o.queue[n:]...)
	o.queuedRows -= rows
	o.queuedBytes -= bytes
	return batch
}

// commitBatch is the group commit: one transaction, one fsync, then everybody
// is answered. If we crash before the fsync nobody has been answered; if we
// crash after it the resends find their results held.
func (o *Outbox) commitBatch(batch []*request) {
	if len(batch) == 0 {
		return
	}
	start := time.Now()
	var rows int64
	err := o.commit(func(tx *transaction) error {
		if err := o.inPlace(); err != nil {
			return err
		}
		n := 0
		for _, r := range batch {
			n += len(r.results)
		}
		tx.appended = make([]appendedRow, 0, n)
		if err := tx.lookUpAll(batch, n); err != nil {
			return err
		}
		for _, r := range batch {
			if err := tx.appendAll(r); err != nil {
				return err
			}
		}
		rows = tx.rows
		return nil
	})
	if err == nil {
		o.metrics.CommitSeconds.Observe(time.Since(start).Seconds())
		o.metrics.CommitRows.Observe(float64(rows))
		o.sinceMerge += int(rows)
		if rows > 0 {
			o.signalPending()
		}
	}
	for _, r := range batch {
		r.done <- err
	}
}

// commit runs do in one transaction, together with the publications that are
// proven and the new state. On any error everything is rolled back, the state
// in memory included, and the error is one that judge makes.
func (o *Outbox) commit(do func(*transaction) error) error {
	if err := o.usable(); err != nil {
		return err
	}
	o.committing.Store(time.Now().UnixNano())
	defer o.committing.Store(0)
	o.mu.Lock()
	tx := &transaction{o: o, state: o.state, first: o.state.lastSeq + 1, now: o.opts.Now()}
	marks := o.unmarked[:len(o.unmarked):len(o.unmarked)]
	o.mu.Unlock()
	if err := o.transact(tx, do, marks); err != nil {
		return tx.rollback(err)
	}
	o.wrote(tx.bytes)
	o.room.left -= tx.bytes
	c, kept := tx.keep()
	o.mu.Lock()
	o.state = tx.state
	tx.extendTail(c, kept)
	tx.settleRecent()
	o.unmarked = append(o.unmarked[:0], o.unmarked[len(marks):]...)
	o.unmarkedAt = time.Now()
	if tx.unproven {
		o.proven = o.state.publishedSeq
	}
	o.mu.Unlock()
	return nil
}

func (o *Outbox) transact(tx *transaction, do func(*transaction) error, marks []Publication) error {
	if err := tx.exec(`BEGIN IMMEDIATE`); err != nil {
		return err
	}
	for _, p := range marks {
		if err := tx.mark(p); err != nil {
			return err
		}
	}
	if err := do(tx); err != nil {
		return err
	}
	if err := tx.writeState(); err != nil {
		return err
	}
	tx.announce()
	if err := tx.exec(`COMMIT`); err != nil {
		return err
	}
	return tx.o.whole() // nobody is answered for what the next start would drop
}

// rollback ends a failed transaction. SQLite may have rolled back by itself
// (SQLITE_FULL does); a connection that stays in a transaction afterwards would
// let later rows ride on an unknown one, so that ends the process.
func (tx *transaction) rollback(cause error) error {
	o := tx.o
	tx.withdraw()
	_, err := o.conn.ExecContext(context.Background(), `ROLLBACK`)
	if inTransaction(o.conn) {
		fatal := fmt.Errorf("%w: cannot roll back: %w (after %w)", ErrBroken, err, cause)
		o.fatal.CompareAndSwap(nil, &fatal)
	}
	if isDamage(cause) {
		cause = cmp.Or(o.whole(), cause) // what was cut, where that is it, says more
	}
	return o.judge(cause)
}

func (tx *transaction) exec(query string, args ...any) error {
	if _, err := tx.o.conn.ExecContext(context.Background(), query, args...); err != nil {
		return fmt.Errorf("%.30s: %w", query, err)
	}
	return nil
}

// do hands a write to the writer and waits for its commit. When ctx ends first,
// the write may still happen.
func (o *Outbox) do(ctx context.Context, f func(*transaction) error) error {
	t := &task{do: f, done: make(chan error, 1)}
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return ErrClosed
	}
	o.tasks = append(o.tasks, t)
	o.mu.Unlock()
	o.wakeWriter()
	select {
	case err := <-t.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refuseQueued answers everybody who still waits with err.
func (o *Outbox) refuseQueued(err error) {
	o.mu.Lock()
	o.closed = true
	batch, tasks := o.queue, o.tasks
	o.queue, o.tasks, o.queuedRows, o.queuedBytes = nil, nil, 0, 0
	o.mu.Unlock()
	for _, r := range batch {
		r.done <- err
	}
	for _, t := range tasks {
		t.done <- err
	}
}
