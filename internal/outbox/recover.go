package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"

	"workflow-results-sidecar/internal/metrics"
)

// Recovery tells what Recover could save.
type Recovery struct {
	Copied  int64
	Pending int64 // of them
	Parked  int64 // of them
	Missing int64 // seqs up to LastSeq without a readable row: damaged, or pruned before
	LastSeq int64
}

const resultColumns = `seq, event_id, correlation_id, workflow_id, workflow_run_id, status, accepted_at, timestamp, size, digest, traceparent, tracestate, error, result`

const (
	resultsBetween = `SELECT ` + resultColumns + ` FROM results WHERE seq BETWEEN ? AND ?`
	resultAt       = `SELECT ` + resultColumns + ` FROM results WHERE seq = ?`
)

// Recover copies every readable row of the damaged outbox in from into a new
// outbox in to, which gets a new ID. The damaged files are only read. Rows keep
// their seq, so their order, and parked ones stay parked. Where the published
// number is not readable, all are pending: better twice than never.
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
	src, err := openDamaged(ctx, from)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	opts := DefaultOptions()
	opts.Dir, opts.AllowNetworkFS = to, allowNetworkFS
	opts.Log, opts.Metrics = slog.New(slog.NewTextHandler(os.Stderr, nil)), metrics.New(prometheus.NewRegistry())
	dst, err := Open(ctx, opts)
	if err != nil {
		return rep, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return salvage{src: src, dst: dst}.run(ctx)
}

// openDamaged opens the file for reading without the checks of a start.
func openDamaged(ctx context.Context, dir string) (*sql.DB, error) {
	db := sql.OpenDB(damagedConnector{path: filepath.Join(dir, fileName)})
	db.SetMaxOpenConns(1)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open the damaged file: %w", err), db.Close())
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
		n, err := s.copySlice(ctx, seq, min(seq+sliceRows-1, last))
		if err != nil {
			return rep, err
		}
		rep.Copied += n
	}
	rep.Missing = last - rep.Copied
	err = s.dst.commit(func(tx *transaction) error { return s.settle(ctx, tx, published, last) })
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
		return 0, errors.New("the damaged file tells no seq: it was empty, or its first pages are not readable and nothing can be saved from it")
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
func (s salvage) copySlice(ctx context.Context, from, to int64) (int64, error) {
	rows, err := s.read(ctx, resultsBetween, from, to)
	if err != nil {
		rows = nil
		for seq := from; seq <= to; seq++ {
			one, err := s.read(ctx, resultAt, seq) // a range of one would step on to the next page
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if err == nil { // an unreadable row is counted as missing
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
	return int64(len(rows)), err
}

func (s salvage) read(ctx context.Context, query string, args ...any) ([][]any, error) {
	rows, err := s.src.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var out [][]any
	for rows.Next() {
		row := make([]any, 14)
		dest := make([]any, len(row))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, rows.Err()
}

// settle carries over what is parked and published, and counts anew.
func (s salvage) settle(ctx context.Context, tx *transaction, published, last int64) error {
	rows, err := s.src.QueryContext(ctx, `SELECT seq, reason, parked_at FROM parked`)
	if err == nil {
		for rows.Next() {
			var seq, at int64
			var reason string
			if rows.Scan(&seq, &reason, &at) == nil {
				if err := tx.exec(`INSERT OR IGNORE INTO parked SELECT seq, ?, ? FROM results WHERE seq = ?`, reason, at, seq); err != nil {
					return errors.Join(err, rows.Close())
				}
			}
		}
		_ = rows.Close() // what was not readable is pending instead
	}
	// The history and deduplication windows of what was published start anew.
	if err := tx.exec(`INSERT INTO publications (through, published_at, topic, placements) SELECT ?, ?, '', x'' WHERE ? > 0`, published, tx.now.UnixMicro(), published); err != nil {
		return err
	}
	st := &tx.state
	st.publishedSeq, st.lastSeq, st.indexedSeq = published, last, last
	if err := errors.Join(
		tx.exec(`INSERT OR IGNORE INTO event_ids SELECT event_id, seq FROM results ORDER BY event_id`),
		tx.exec(`INSERT OR IGNORE INTO correlation_ids SELECT correlation_id, seq FROM results ORDER BY correlation_id`)); err != nil {
		return err
	}
	const count = `SELECT count(*), coalesce(sum(size), 0) FROM results WHERE `
	for _, c := range []struct {
		where       string
		rows, bytes *int64
	}{
		{`1`, &st.heldRows, &st.heldBytes},
		{`seq IN (SELECT seq FROM parked)`, &st.parkedRows, &st.parkedBytes},
		{fmt.Sprintf(`seq > %d AND seq NOT IN (SELECT seq FROM parked)`, published), &st.pendingRows, &st.pendingBytes},
	} {
		if err := tx.o.conn.QueryRowContext(ctx, count+c.where).Scan(c.rows, c.bytes); err != nil {
			return fmt.Errorf("count what was copied: %w", err)
		}
	}
	return nil
}
