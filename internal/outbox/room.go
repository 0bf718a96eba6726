package outbox

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// A disk that is full to its last block could not even be cleared: to mark, to
// drop and to checkpoint all take blocks first. So new results are refused while
// there is still room for that.
const (
	roomInterval = time.Second // between two looks, where there is plenty
	roomSpare    = 32 << 20    // kept for what clears; an eighth of a small volume
	roomSpread   = 3           // what a byte of a result may take until the next checkpoint: log, file, indexes
)

// room is what the volume has left for new results. It belongs to the writer.
type room struct {
	left   int64 // bytes of results, at `at`; below 0 where the spare is touched
	wanted int64 // bytes of results that retention makes room for
	at     time.Time
}

// measureRoom looks at the volume: its free blocks and the file's free pages, less
// the spare and what a checkpoint of the whole log may add to the file.
func (tx *transaction) measureRoom() error {
	o := tx.o
	var st unix.Statfs_t
	if err := unix.Statfs(o.opts.Dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", o.opts.Dir, err)
	}
	var pages, size int64
	if err := o.conn.QueryRowContext(context.Background(), `SELECT * FROM pragma_freelist_count, pragma_page_size`).Scan(&pages, &size); err != nil {
		return fmt.Errorf("count free pages: %w", err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	spare := min(roomSpare, total/8)
	o.room = room{
		left:   (free + pages*size - spare - fileSize(walOf(o.opts.Dir))) / roomSpread,
		wanted: spare / roomSpread,
		at:     time.Now(),
	}
	return nil
}

// roomFor reports whether the disk has room for a result of size bytes more.
func (tx *transaction) roomFor(size int64) (bool, error) {
	o := tx.o
	if time.Since(o.room.at) > roomInterval || o.room.left < 4*(tx.bytes+size) {
		if err := tx.measureRoom(); err != nil {
			return false, err
		}
	}
	if o.room.left >= tx.bytes+size {
		return true, nil
	}
	if !o.noRoom.Swap(true) {
		o.log.Warn("the disk is nearly full: new results are refused, what is held goes out and makes room", "data_dir", o.opts.Dir)
	}
	return false, nil
}

// clearForRoom drops what is published before its time while the disk is nearly
// full: payloads first, then deduplication entries, as at a limit.
func (tx *transaction) clearForRoom(n int64) (more bool, err error) {
	s, o := &tx.state, tx.o
	if !o.noRoom.Load() {
		return false, nil
	}
	if err := tx.measureRoom(); err != nil {
		return false, err
	}
	switch {
	case o.room.left < o.room.wanted && s.slimSeq < s.publishedSeq:
		_, err = tx.slim(s.publishedSeq, n)
		return true, err
	case o.room.left < o.room.wanted && s.prunedSeq < s.publishedSeq:
		_, err = tx.prune(s.publishedSeq, n)
		o.reportTrimmed(tx.now)
		return true, err
	case o.room.left > 0:
		o.noRoom.Store(false)
		o.log.Info("the disk has room again: results are accepted", "data_dir", o.opts.Dir)
	}
	return false, nil
}
