package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/result"
)

// Recovery tells what Recover could save.
type Recovery struct {
	Copied     int64
	Pending    int64 // of them
	Parked     int64 // of them
	Uncertain  int64 // of the parked: whether Kafka has them is not readable
	Unreadable int64 // seqs that the damage hides: their results are lost, if there were any
	Missing    int64 // seqs up to LastSeq without a row: pruned, purged or retried before
	LastSeq    int64
}

const resultColumns = `seq, event_id, correlation_id, workflow_id, workflow_run_id, status, accepted_at, timestamp, size, digest, traceparent, tracestate, error, result`

const (
	resultsBetween = `SELECT ` + resultColumns + ` FROM results WHERE seq BETWEEN ? AND ?`
	resultAt       = `SELECT ` + resultColumns + ` FROM results WHERE seq = ?`
)

// Recover copies every readable row of the damaged outbox in from into a new
// outbox in to, which gets a new ID. The damaged files are only read. Rows keep
// their seq, so their order, and parked ones stay parked. Where the published
// number is not readable, all that have a payload are pending: better twice than
// never. Where the list of parked ones is not, each published one whose place in
// Kafka is not known is parked: a person decides.
func Recover(ctx context.Context, from, to string, allowNetworkFS bool) (rep Recovery, err error) {
	if err := Exists(from); err != nil {
		return rep, err
	}
	if Exists(to) == nil {
		return rep, fmt.Errorf("there is an outbox in %s already: choose a new directory", to)
	}
	lock, err := lockDir(from)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	readable, done, err := mendedWAL(from, filepath.Dir(to))
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, done()) }()
	src, err := openDamaged(ctx, readable)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	work := filepath.Join(to, unfinishedName)
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(to, 0o700)); err != nil {
		return rep, fmt.Errorf("make the directory of the new outbox: %w", err)
	}
	if rep, err = salvageInto(ctx, src, work, allowNetworkFS); err != nil {
		return rep, errors.Join(err, os.RemoveAll(work))
	}
	return rep, finish(work, to)
}

// unfinishedName is where, in its new directory, Recover works: killed in the
// middle, it must not leave what looks like an outbox and is a part of one. A start
// is refused in a directory that has it, and no outbox.
const unfinishedName = "recover-unfinished"

func refuseUnfinished(dir string) error {
	_, err := os.Stat(filepath.Join(dir, unfinishedName))
	if errors.Is(err, fs.ErrNotExist) || Exists(dir) == nil { // there is one: the recovery ended, but for its last step
		return nil
	}
	return fmt.Errorf("`sidecar outbox recover` into %s has not ended: run it again", dir)
}

func salvageInto(ctx context.Context, src *sql.DB, dir string, allowNetworkFS bool) (rep Recovery, err error) {
	opts := DefaultOptions()
	opts.Dir, opts.AllowNetworkFS = dir, allowNetworkFS
	opts.Log, opts.Metrics = slog.New(slog.NewTextHandler(os.Stderr, nil)), metrics.New(prometheus.NewRegistry())
	dst, err := Open(ctx, opts)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return salvage{src: src, dst: dst}.run(ctx)
}

// finish gives the recovered outbox, which is closed and whole, its place.
func finish(work, to string) error {
	if err := os.Rename(filepath.Join(work, fileName), filepath.Join(to, fileName)); err != nil {
		return fmt.Errorf("give the new outbox its place: %w", err)
	}
	// The new name first: without it a crash would leave nothing to find.
	if err := syncDirs(to); err != nil {
		return err
	}
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("remove what the recovery worked in: %w", err)
	}
	return syncDirs(to)
}

// mendedWAL returns a directory whose file SQLite reads to the end: from itself,
// or, where the write-ahead log is damaged in its middle, one beside the new outbox
// with the log's whole frames in the file; done removes that.
func mendedWAL(from, beside string) (dir string, done func() error, err error) {
	err = checkWAL(walOf(from))
	if !errors.Is(err, errWALDamaged) {
		return from, func() error { return nil }, err
	}
	if err := os.MkdirAll(beside, 0o700); err != nil {
		return "", nil, fmt.Errorf("make the directory of the new outbox: %w", err)
	}
	if dir, err = os.MkdirTemp(beside, "recover-"); err != nil {
		return "", nil, fmt.Errorf("make a directory for a copy: %w", err)
	}
	done = func() error { return os.RemoveAll(dir) }
	if err := copyWithWAL(from, dir); err != nil {
		return "", nil, errors.Join(err, done())
	}
	return dir, done, nil
}

func copyWithWAL(from, to string) (err error) {
	src, err := os.Open(filepath.Join(from, fileName))
	if err != nil {
		return fmt.Errorf("open the damaged file: %w", err)
	}
	defer func() { _ = src.Close() }() // it is only read
	dst, err := os.OpenFile(filepath.Join(to, fileName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the copy: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("copy the damaged file: %w", err)
	}
	return applyWAL(walOf(from), dst)
}

// openDamaged opens the file for reading without the checks of a start.
func openDamaged(ctx context.Context, dir string) (*sql.DB, error) {
	db := sql.OpenDB(damagedConnector{path: filepath.Join(dir, fileName)})
	db.SetMaxOpenConns(1)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the damaged file: %w: its beginning is not readable, and nothing can be saved from it; take a backup of the directory, if there is one, and send again from where the results came", err), db.Close())
	}
	return db, nil
}

// salvage copies rows from src to dst.
type salvage struct {
	src *sql.DB
	dst *Outbox
}

func (s salvage) run(ctx context.Context) (Recovery, error) {
	var rep Recovery
	last, err := s.lastSeq(ctx)
	if err != nil {
		return rep, err
	}
	rep.LastSeq = last
	published := s.number(ctx, `SELECT published_seq FROM state`)
	for seq := int64(1); seq <= last; seq += sliceRows {
		copied, unreadable, err := s.copySlice(ctx, seq, min(seq+sliceRows-1, last))
		if err != nil {
			return rep, err
		}
		rep.Copied, rep.Unreadable = rep.Copied+copied, rep.Unreadable+unreadable
	}
	rep.Missing = last - rep.Copied - rep.Unreadable
	err = s.dst.commit(func(tx *transaction) (err error) {
		rep.Uncertain, err = s.settle(ctx, tx, published, last)
		return err
	})
	rep.Pending, rep.Parked = s.dst.state.pendingRows, s.dst.state.parkedRows
	return rep, err
}

// lastSeq takes the highest number that any readable place tells.
func (s salvage) lastSeq(ctx context.Context) (int64, error) {
	last := max(
		s.number(ctx, `SELECT last_seq FROM state`),
		s.number(ctx, `SELECT max(seq) FROM results`),
		s.number(ctx, `SELECT max(first_seq) - 1 FROM generations`))
	if last == 0 {
		return 0, errors.New("the damaged file tells no seq: it was empty, or its first pages are not readable and nothing can be saved from it: restore the newest backup")
	}
	return last, nil
}

// number reads one number, 0 where it is not readable.
func (s salvage) number(ctx context.Context, query string) int64 {
	var v sql.NullInt64
	if err := s.src.QueryRowContext(ctx, query).Scan(&v); err != nil {
		return 0
	}
	return v.Int64
}

// copySlice copies rows by range, and one by one where the range meets damage.
func (s salvage) copySlice(ctx context.Context, from, to int64) (copied, unreadable int64, err error) {
	rows, err := s.read(ctx, resultsBetween, from, to)
	if err != nil {
		rows = nil
		for seq := from; seq <= to; seq++ {
			one, err := s.read(ctx, resultAt, seq) // a range of one would step on to the next page
			switch {
			case ctx.Err() != nil:
				return 0, 0, ctx.Err()
			case err != nil:
				unreadable++
			default:
				rows = append(rows, one...)
			}
		}
	}
	err = s.dst.commit(func(tx *transaction) error {
		for _, r := range rows {
			if err := tx.exec(`INSERT OR IGNORE INTO results (`+resultColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, r...); err != nil {
				return err
			}
		}
		return nil
	})
	return int64(len(rows)), unreadable, err
}

func (s salvage) read(ctx context.Context, query string, args ...any) ([][]any, error) {
	rows, err := s.src.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var out [][]any
	for rows.Next() {
		row, err := scanAny(rows)
		if err != nil {
			return nil, err
		}
		if !intact(row) {
			return nil, errAltered
		}
		out = append(out, row)
	}
	return out, rows.Err()
}

// scanAny reads a row of resultColumns as SQLite has it.
func scanAny(rows *sql.Rows) ([]any, error) {
	row := make([]any, 14)
	dest := make([]any, len(row))
	for i := range row {
		dest[i] = &row[i]
	}
	return row, rows.Scan(dest...)
}

// intact checks a row of resultColumns against its digest; one whose payload went
// with its history has nothing left to check.
func intact(row []any) bool {
	correlation, _ := row[2].([]byte)
	digest, _ := row[9].([]byte)
	payload, kept := row[13].([]byte)
	if !kept {
		return true
	}
	r := result.Result{Payload: payload}
	copy(r.CorrelationID[:], correlation)
	copy(r.Digest[:], digest)
	r.WorkflowID, _ = row[3].(string)
	r.WorkflowRunID, _ = row[4].(string)
	status, _ := row[5].(string)
	r.Status = result.Status(status)
	if text, ok := row[12].(string); ok {
		r.Error = &text
	}
	return r.Intact()
}

// settle carries over what is parked and published, and counts anew.
func (s salvage) settle(ctx context.Context, tx *transaction, published, last int64) (uncertain int64, err error) {
	// A payload goes after publication only, so its row is published whatever else
	// is readable. (Parked rows keep theirs.)
	var slim sql.NullInt64
	if err := tx.o.conn.QueryRowContext(ctx, `SELECT max(seq) FROM results WHERE result IS NULL`).Scan(&slim); err != nil {
		return 0, fmt.Errorf("find the rows without payload: %w", err)
	}
	published = max(published, slim.Int64)
	complete, err := s.copyParked(ctx, tx)
	if err == nil && !complete {
		uncertain, err = s.parkUncertain(ctx, tx, published)
	}
	if err != nil {
		return 0, err
	}
	// The history and deduplication windows of what was published start anew.
	if err := tx.exec(`INSERT INTO publications (through, published_at, topic, placements) SELECT ?, ?, '', x'' WHERE ? > 0`, published, tx.now.UnixMicro(), published); err != nil {
		return 0, err
	}
	st := &tx.state
	st.publishedSeq, st.lastSeq, st.indexedSeq = published, last, last
	if err := errors.Join(
		tx.exec(`INSERT OR IGNORE INTO event_ids SELECT event_id, seq FROM results ORDER BY event_id`),
		tx.exec(`INSERT OR IGNORE INTO correlation_ids SELECT correlation_id, seq FROM results ORDER BY correlation_id`)); err != nil {
		return 0, err
	}
	return uncertain, tx.count(ctx)
}

// copyParked reports whether the list of parked results could be read to its end.
func (s salvage) copyParked(ctx context.Context, tx *transaction) (complete bool, err error) {
	rows, err := s.src.QueryContext(ctx, `SELECT seq, reason, parked_at FROM parked`)
	if err != nil {
		return false, nil //nolint:nilerr // it is damaged: that is what we are here for
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	for rows.Next() {
		var seq, at int64
		var reason string
		if rows.Scan(&seq, &reason, &at) != nil {
			return false, nil
		}
		if err := tx.exec(`INSERT OR IGNORE INTO parked SELECT seq, ?, ? FROM results WHERE seq = ?`, reason, at, seq); err != nil {
			return false, err
		}
	}
	return rows.Err() == nil, nil
}

// parkUncertain parks what the published number covers and no publication places:
// it was parked, or published with only the watermark to tell.
func (s salvage) parkUncertain(ctx context.Context, tx *transaction, published int64) (int64, error) {
	if err := tx.exec(`CREATE TEMP TABLE placed (seq INTEGER PRIMARY KEY)`); err != nil {
		return 0, err
	}
	rows, err := s.src.QueryContext(ctx, `SELECT placements FROM publications`)
	if err == nil {
		defer func() { _ = rows.Close() }() // what is not readable proves nothing
		for rows.Next() {
			var blob []byte
			if rows.Scan(&blob) != nil {
				break
			}
			placements, _ := decodePlacements(blob) // as far as they go
			for _, p := range placements {
				if err := tx.exec(`INSERT OR IGNORE INTO placed (seq) VALUES (?)`, p.Seq); err != nil {
					return 0, err
				}
			}
		}
	}
	const reason = "recovered from a damaged outbox: whether Kafka has it is not known; a retry publishes it, perhaps again"
	res, err := tx.o.conn.ExecContext(ctx, `INSERT OR IGNORE INTO parked SELECT seq, ?, ? FROM results
		WHERE seq <= ? AND result IS NOT NULL AND seq NOT IN (SELECT seq FROM placed)`, reason, tx.now.UnixMicro(), published)
	if err != nil {
		return 0, fmt.Errorf("park what is uncertain: %w", err)
	}
	n, err := res.RowsAffected()
	return n, errors.Join(err, tx.exec(`DROP TABLE placed`))
}

// count sets the counters by the rows.
func (tx *transaction) count(ctx context.Context) error {
	st := &tx.state
	const count = `SELECT count(*), coalesce(sum(size), 0) FROM results WHERE `
	for _, c := range []struct {
		where       string
		rows, bytes *int64
	}{
		{`1`, &st.heldRows, &st.heldBytes},
		{`seq IN (SELECT seq FROM parked)`, &st.parkedRows, &st.parkedBytes},
		{fmt.Sprintf(`seq > %d AND seq NOT IN (SELECT seq FROM parked)`, st.publishedSeq), &st.pendingRows, &st.pendingBytes},
	} {
		if err := tx.o.conn.QueryRowContext(ctx, count+c.where).Scan(c.rows, c.bytes); err != nil {
			return fmt.Errorf("count what was copied: %w", err)
		}
	}
	return nil
}
