// Package outbox keeps results in a SQLite file between their acceptance and
// their publication.
//
// What it promises:
//
//   - Append returns an Outcome without an error only after the commit that
//     holds the result is synced to disk. Concurrent calls share a commit.
//   - An event ID is held once. The same content again is a duplicate, other
//     content a *ConflictError, for as long as the deduplication window lasts.
//   - Next gives pending results in seq order; reading removes nothing. A result
//     is published when MarkPublished says so, by one number for all of them,
//     and parked when Park says so.
//   - At a limit, history goes first, then deduplication entries; a result that
//     is pending or parked goes only by Purge.
//   - A failed fsync ends Run: after it nothing is answered from this process.
//
// One goroutine writes at a time: Run's, or the caller of Append who finds nobody
// writing. The directory is locked: one process at a time.
package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"workflow-results-sidecar/internal/metrics"
)

// Options configure Open; DefaultOptions has the limits and windows.
type Options struct {
	Dir            string
	AllowNetworkFS bool

	MaxRows     int64         // rows held at most, published ones in their windows included
	MaxBytes    int64         // bytes held at most, likewise
	History     time.Duration // how long a published payload is kept
	DedupWindow time.Duration // how long a published event ID is recognised
	DedupRows   int64         // published rows kept at most

	// KeepAll lets retention take nothing. It is for commands that do not know
	// the windows of the sidecar whose outbox they open.
	KeepAll bool

	QueueRows  int   // results waiting for a commit at most
	QueueBytes int64 // and their bytes

	Now     func() time.Time // nil: time.Now
	Log     *slog.Logger
	Metrics *metrics.Metrics
}

// DefaultOptions are the limits and windows of a sidecar that is told nothing.
func DefaultOptions() Options {
	return Options{
		MaxRows:     10_000_000,
		MaxBytes:    8 << 30,
		History:     24 * time.Hour,
		DedupWindow: 7 * 24 * time.Hour,
		DedupRows:   5_000_000,
		QueueRows:   8192,
		QueueBytes:  32 << 20,
	}
}

func (o *Options) validate() error {
	switch {
	case o.Dir == "":
		return errors.New("the outbox needs a data directory")
	case o.Log == nil || o.Metrics == nil:
		return errors.New("the outbox needs a logger and metrics")
	case min(o.MaxRows, o.MaxBytes, o.DedupRows, int64(o.QueueRows), o.QueueBytes) < 1:
		return fmt.Errorf("the outbox's limits must be above 0: %+v", *o)
	case o.History < 0:
		return fmt.Errorf("the history window (%s) must be 0 or more", o.History)
	case o.History > o.DedupWindow:
		return fmt.Errorf("the history window (%s) is longer than the deduplication window (%s): a payload cannot outlive its entry", o.History, o.DedupWindow)
	}
	return nil
}

// Outbox is an open outbox. Its methods may be called from any goroutine while
// Run runs.
type Outbox struct {
	opts        Options
	log         *slog.Logger
	metrics     *metrics.Metrics
	lock        *os.File
	db          *sql.DB // the writer's; conn is its first connection
	conn        *sql.Conn
	readers     *sql.DB
	checkpoints *sql.Conn // theirs alone
	stmts       statements
	files       []placed // as opened
	commits     commits
	comparesLog bool // its files show what is committed

	sound atomic.Bool // the last end was clean, or a check after it found no damage
	owner uuid.UUID   // generation of this start

	mu             sync.Mutex // guards what follows
	state          state      // as committed
	generations    []generation
	recent         map[uuid.UUID]recentRow // by event ID
	proven         int64                   // highest published seq we have proof of; state.publishedSeq follows with the next commit
	unmarked       []Publication           // proven, not yet committed
	unmarkedAt     time.Time               // since when
	tail           tail                    // the newest rows, for Next
	waiters        map[int64][]chan struct{}
	queue          []*request
	queuedRows     int
	queuedBytes    int64
	tasks          []*task
	closed         bool
	dedupTrimmedAt time.Time

	// writing is held while somebody writes: Run's writer, or a caller that found
	// nobody doing so. It guards conn, stmts, and what follows; it comes before mu.
	writing    sync.Mutex
	merging    *merge    // nil: none is under way
	mergeAfter time.Time // when to try again after a failure
	room       room      // on the disk, as last seen
	sinceMerge int       // rows appended since the last step of a merge

	wake          chan struct{} // one slot: the writer has work
	pending       chan struct{} // one slot: the publisher has work
	checkpointDue chan struct{} // one slot
	dirtyBytes    atomic.Int64
	swept         atomic.Int64 // the indexes have no entries of pruned rows up to it
	committing    atomic.Int64 // since when, in Unix nanoseconds; 0: no commit is under way
	walNearlyDone atomic.Bool  // a checkpoint has left little: the writer ends it
	walTooLong    atomic.Bool
	fatal         atomic.Pointer[error]
	noRoom        atomic.Bool  // results are refused for want of room on the disk
	unmet         atomic.Int64 // size of the newest result where the limit left no room for it, else 0
	complaints    complaints
	damage        atomic.Pointer[string]
}

// Open takes the data directory and brings the file to a known state: when it
// returns, every result that was ever acknowledged is on disk and readable. It
// fails with ErrLocked if another process has the directory.
func Open(ctx context.Context, opts Options) (*Outbox, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	lock, err := prepareDir(opts.Dir, opts.AllowNetworkFS)
	if err != nil {
		return nil, err
	}
	if err := refuseUnfinished(opts.Dir); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	o := &Outbox{
		opts: opts, log: opts.Log, metrics: opts.Metrics, lock: lock,
		owner:         uuid.Must(uuid.NewV7()),
		waiters:       make(map[int64][]chan struct{}),
		wake:          make(chan struct{}, 1),
		pending:       make(chan struct{}, 1),
		checkpointDue: make(chan struct{}, 1),
	}
	if err := errors.Join(refuseEmptied(opts.Dir), refuseWithoutLog(opts.Dir), checkWAL(walOf(opts.Dir))); err != nil { // before SQLite mends it in its own way
		return nil, errors.Join(explainOpen(o.path(), err), lock.Close())
	}
	o.db, o.conn, err = openFile(ctx, o.path())
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	o.readers = sql.OpenDB(connector{path: o.path(), readOnly: true, check: o.inPlace})
	o.readers.SetMaxOpenConns(4)
	o.readers.SetMaxIdleConns(4)
	if err := o.begin(ctx); err != nil {
		return nil, errors.Join(explainOpen(o.path(), err), o.closeFiles())
	}
	if o.checkpoints, err = o.db.Conn(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open a connection for checkpoints: %w", err), o.closeFiles())
	}
	if o.files, err = placeFiles(opts.Dir); err != nil {
		return nil, errors.Join(err, o.closeFiles())
	}
	if o.commits, err = openCommits(opts.Dir); err != nil {
		return nil, errors.Join(err, o.closeFiles())
	}
	frames, err := o.compare()                                       // of the commit that began this start
	o.comparesLog = frames > 0 && err == nil && !opts.AllowNetworkFS // there less is sure
	return o, nil
}

func (o *Outbox) path() string { return filepath.Join(o.opts.Dir, fileName) }

// begin loads the state and commits this start's generation, before intake.
func (o *Outbox) begin(ctx context.Context) error {
	if err := o.loadState(ctx); err != nil {
		return err
	}
	if err := o.stmts.prepare(ctx, o.conn); err != nil {
		return err
	}
	if err := o.startGeneration(ctx); err != nil {
		return err
	}
	o.signalPending()
	return nil
}

// Run writes until ctx ends, then commits what is queued and returns nil. It
// returns early only with an error that must end the process.
func (o *Outbox) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.runWriter(ctx) })
	g.Go(func() error { return o.runCheckpoints(ctx) })
	g.Go(func() error { return o.runRetention(ctx) })
	if !o.sound.Load() {
		g.Go(func() error { return o.quickCheck(ctx) })
	}
	return g.Wait()
}

// Close marks the file as cleanly left, checkpoints it and lets go of the
// directory. Run must have returned. A check that is still owed after an unclean
// end stays owed.
func (o *Outbox) Close() error {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.refuseQueued(ErrClosed)
	var err error
	o.writing.Lock() // somebody may still be at it
	defer o.writing.Unlock()
	if o.fatalError() == nil && o.damage.Load() == nil {
		err = o.leaveClean()
	}
	return errors.Join(err, o.closeFiles())
}

func (o *Outbox) leaveClean() error {
	ctx := context.Background()
	if err := o.commit(func(tx *transaction) error { tx.state.clean = o.sound.Load(); return nil }); err != nil {
		return fmt.Errorf("mark the outbox as closed: %w", err)
	}
	_, _, err := checkpoint(ctx, o.conn, "TRUNCATE") // left over frames are for the next start
	return err
}

func (o *Outbox) closeFiles() error {
	if o.checkpoints != nil {
		_ = o.checkpoints.Close() // nothing is written through it that a close could lose
	}
	return errors.Join(o.stmts.close(), o.conn.Close(), o.readers.Close(), o.db.Close(), o.commits.close(), o.lock.Close())
}

// Pending is signalled when there may be results for Next.
func (o *Outbox) Pending() <-chan struct{} { return o.pending }

func (o *Outbox) signalPending() {
	select {
	case o.pending <- struct{}{}:
	default:
	}
}

func (o *Outbox) wakeWriter() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Stats returns the counters as last committed, less what is proven published
// since, and the age of the oldest pending result by one indexed read.
func (o *Outbox) Stats(ctx context.Context) (Stats, error) {
	o.mu.Lock()
	s := Stats{
		ID:         o.state.outboxID,
		ParkedRows: o.state.parkedRows, ParkedBytes: o.state.parkedBytes,
		HeldRows: o.state.heldRows, HeldBytes: o.state.heldBytes,
		MaxRows: o.opts.MaxRows, MaxBytes: o.opts.MaxBytes,
		LastSeq: o.state.lastSeq, PublishedSeq: o.proven,
		QueuedRows: int64(o.queuedRows), QueuedBytes: o.queuedBytes,
		DedupTrimmedAt: o.dedupTrimmedAt,
	}
	s.PendingRows, s.PendingBytes = o.pendingNow()
	o.mu.Unlock()
	s.FileBytes, s.WALBytes = fileSize(o.path()), fileSize(walOf(o.opts.Dir))
	if p := o.damage.Load(); p != nil {
		s.Damage = *p
	}
	oldest, err := o.oldestPending(ctx, s.PublishedSeq)
	s.OldestPending = oldest
	return s, err
}

// pendingNow is what is pending by all that is proven; o.mu is held.
func (o *Outbox) pendingNow() (rows, bytes int64) {
	rows, bytes = o.state.pendingRows, o.state.pendingBytes
	for _, p := range o.unmarked { // proven, and not yet counted
		rows, bytes = rows-int64(len(p.Placements)), bytes-p.Bytes
	}
	return rows, bytes
}

func (o *Outbox) oldestPending(ctx context.Context, after int64) (time.Time, error) {
	var micros int64
	err := o.readers.QueryRowContext(ctx, `SELECT accepted_at FROM results WHERE seq > ? AND seq NOT IN (SELECT seq FROM parked) ORDER BY seq LIMIT 1`, after).Scan(&micros)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, o.judge(fmt.Errorf("read the oldest pending result: %w", err))
	}
	return time.UnixMicro(micros).UTC(), nil
}
