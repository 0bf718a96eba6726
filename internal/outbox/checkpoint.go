package outbox

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"time"
)

const (
	checkpointBytes    = 4 << 20         // of appended results between two passive checkpoints
	checkpointInterval = 5 * time.Second // and at the latest, if anything was written
	walFramesBound     = 16384           // 64 MiB of 4 KiB pages: beyond it the writer waits for a checkpoint
)

// checkpoint runs PRAGMA wal_checkpoint and returns whether it was hindered and
// how many frames of the WAL are not yet in the file.
func checkpoint(ctx context.Context, conn *sql.Conn, mode string) (busy bool, left int64, err error) {
	var b, log, done int64
	if err := conn.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&b, &log, &done); err != nil {
		return false, 0, fmt.Errorf("checkpoint the WAL: %w", err)
	}
	return b != 0, log - done, nil
}

// runCheckpoints copies the WAL into the file beside the writer, which goes on
// committing. A crash in the middle is harmless: the WAL is still whole.
func (o *Outbox) runCheckpoints(ctx context.Context) error {
	conn := o.checkpoints
	tick := time.NewTicker(checkpointInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.checkpointDue:
		case <-tick.C:
			if o.dirtyBytes.Load() == 0 {
				continue
			}
		}
		if err := o.checkpointOnce(ctx, conn); err != nil {
			return err
		}
	}
}

func (o *Outbox) checkpointOnce(ctx context.Context, conn *sql.Conn) error {
	o.dirtyBytes.Store(0)
	o.writing.Lock()
	err := o.whole() // else it would copy holes into the file
	o.writing.Unlock()
	if err != nil {
		return o.tolerate(ctx, "checkpoint failed", err)
	}
	_, left, err := checkpoint(ctx, conn, "PASSIVE")
	if err != nil {
		return o.tolerate(ctx, "checkpoint failed", err)
	}
	if left > walFramesBound {
		o.walTooLong.Store(true)
	}
	o.walNearlyDone.Store(true)
	o.wakeWriter()
	return nil
}

// finishCheckpoint is the writer's own step: with nobody appending it ends, and
// the next commit starts again at the WAL's top. Overwriting a file costs half of
// what growing one does. Only where the WAL has become too long is it cut, which
// waits for readers.
func (o *Outbox) finishCheckpoint() error {
	mode := "PASSIVE"
	if o.walTooLong.Swap(false) {
		mode = "TRUNCATE"
	} else if !o.walNearlyDone.Swap(false) {
		return nil
	}
	_, _, err := checkpoint(context.Background(), o.conn, mode)
	return o.tolerate(context.Background(), "checkpoint failed", err)
}

// wrote counts what a commit added and asks for a checkpoint when it is time.
func (o *Outbox) wrote(bytes int64) {
	if o.dirtyBytes.Add(bytes+1) < checkpointBytes {
		return
	}
	select {
	case o.checkpointDue <- struct{}{}:
	default:
	}
}

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0 // not there yet, or just truncated away
	}
	return st.Size()
}
