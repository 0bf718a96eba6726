package outbox

import (
	"context"
	"fmt"
	"time"
)

// quickCheckLimit bounds the check after an unclean end. It takes about a second
// per million rows, and holds back checkpoints while it runs.
const quickCheckLimit = time.Minute

// maxProblems is how many altered results are named.
const maxProblems = 100

// quickCheck looks for damage in the background after an unclean end.
func (o *Outbox) quickCheck(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickCheckLimit)
	defer cancel()
	start := time.Now()
	problems, err := o.integrity(ctx, "quick_check(1)")
	switch {
	case ctx.Err() != nil:
		o.log.Info("quick check after an unclean end stopped before it was done", "after", time.Since(start))
	case err != nil:
		return o.tolerate(ctx, "quick check failed", err)
	case len(problems) > 0:
		o.setDamage("quick_check: " + problems[0])
	default:
		o.sound.Store(true)
		o.log.Info("quick check after an unclean end: sound", "took", time.Since(start))
	}
	return nil
}

// Check reads the whole file and returns what is wrong with it: SQLite's
// integrity_check, and our counters against the rows. Empty is sound.
func (o *Outbox) Check(ctx context.Context) ([]string, error) {
	problems, err := o.integrity(ctx, "integrity_check")
	if err != nil || len(problems) > 0 {
		return problems, err
	}
	o.sound.Store(true)
	problems, err = o.checkCounters(ctx)
	if err != nil {
		return problems, err
	}
	altered, err := o.checkDigests(ctx)
	return append(problems, altered...), err
}

// checkDigests compares each content that is still there with its digest.
func (o *Outbox) checkDigests(ctx context.Context) (problems []string, err error) {
	rows, err := o.readers.QueryContext(ctx, `SELECT `+resultColumns+` FROM results WHERE result IS NOT NULL`)
	if err != nil {
		return nil, o.judge(fmt.Errorf("read results: %w", err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	for rows.Next() {
		row, err := scanAny(rows)
		if err != nil {
			return problems, o.judge(err)
		}
		if !intact(row) && len(problems) < maxProblems {
			problems = append(problems, fmt.Sprintf("seq %v: %v", row[0], errAltered))
		}
	}
	return problems, rows.Err()
}

func (o *Outbox) integrity(ctx context.Context, pragma string) ([]string, error) {
	rows, err := o.readers.QueryContext(ctx, "PRAGMA "+pragma)
	if err != nil {
		return nil, o.judge(fmt.Errorf("run %s: %w", pragma, err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var problems []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return problems, err
		}
		if line != "ok" {
			problems = append(problems, line)
		}
	}
	return problems, rows.Err()
}

// checkCounters counts the rows anew, in one snapshot with the counters.
func (o *Outbox) checkCounters(ctx context.Context) ([]string, error) {
	rows, err := o.readers.QueryContext(ctx, `
		WITH r AS (SELECT seq, size, seq IN (SELECT seq FROM parked) AS is_parked FROM results)
		SELECT 'held rows', held_rows, (SELECT count(*) FROM r WHERE seq <= last_seq) FROM state
		UNION ALL SELECT 'held bytes', held_bytes, (SELECT coalesce(sum(size), 0) FROM r WHERE seq <= last_seq) FROM state
		UNION ALL SELECT 'parked rows', parked_rows, (SELECT count(*) FROM parked) FROM state
		UNION ALL SELECT 'parked bytes', parked_bytes, (SELECT coalesce(sum(size), 0) FROM r WHERE is_parked) FROM state
		UNION ALL SELECT 'pending rows', pending_rows, (SELECT count(*) FROM r WHERE seq > published_seq AND seq <= last_seq AND NOT is_parked) FROM state
		UNION ALL SELECT 'pending bytes', pending_bytes, (SELECT coalesce(sum(size), 0) FROM r WHERE seq > published_seq AND seq <= last_seq AND NOT is_parked) FROM state
		UNION ALL SELECT 'event IDs that the index lacks', 0, (SELECT count(*) FROM results, state WHERE results.seq <= indexed_seq AND NOT EXISTS (SELECT 1 FROM event_ids i WHERE i.event_id = results.event_id AND i.seq = results.seq))
		UNION ALL SELECT 'correlation IDs that the index lacks', 0, (SELECT count(*) FROM results, state WHERE results.seq <= indexed_seq AND NOT EXISTS (SELECT 1 FROM correlation_ids i WHERE i.correlation_id = results.correlation_id AND i.seq = results.seq))
		UNION ALL SELECT 'event IDs in the index without a row', 0, (SELECT count(*) FROM event_ids, state WHERE seq > pruned_seq AND seq NOT IN (SELECT seq FROM results))
		UNION ALL SELECT 'correlation IDs in the index without a row', 0, (SELECT count(*) FROM correlation_ids, state WHERE seq > pruned_seq AND seq NOT IN (SELECT seq FROM results))`)
	if err != nil {
		return nil, o.judge(fmt.Errorf("count rows: %w", err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	var problems []string
	for rows.Next() {
		var name string
		var counter, counted int64
		if err := rows.Scan(&name, &counter, &counted); err != nil {
			return problems, err
		}
		if counter != counted {
			problems = append(problems, fmt.Sprintf("%s: the counter says %d, the rows are %d", name, counter, counted))
		}
	}
	return problems, rows.Err()
}
