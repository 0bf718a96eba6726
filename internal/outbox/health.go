package outbox

import (
	"fmt"
	"time"
)

// stuckAfter is how long one commit may take before the writer counts as stuck.
const stuckAfter = time.Minute

// Alive returns an error if the writer has been in one commit for a minute: the
// disk hangs.
func (o *Outbox) Alive() error {
	if err := o.fatalError(); err != nil {
		return err
	}
	if start := o.committing.Load(); start != 0 {
		if d := time.Since(time.Unix(0, start)); d > stuckAfter {
			return fmt.Errorf("a commit has been under way for %s: the disk of %s hangs", d.Round(time.Second), o.opts.Dir)
		}
	}
	return nil
}

// Ready returns an error if no result could be accepted now, or none of the size of
// the newest one.
func (o *Outbox) Ready() error {
	if err := o.usable(); err != nil {
		return err
	}
	if err := o.inPlace(); err != nil {
		return err
	}
	if o.noRoom.Load() {
		return fmt.Errorf("%w: the volume of %s is nearly full; what is left is kept for publishing what is held", ErrFull, o.opts.Dir)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.state
	switch {
	case o.closed:
		return ErrClosed
	case s.pendingRows+s.parkedRows >= o.opts.MaxRows || s.pendingBytes+s.parkedBytes+max(o.unmet.Load(), 1) > o.opts.MaxBytes:
		text := fmt.Sprintf("%d results (%s) are pending, %d (%s) parked; the limits are %d and %s",
			s.pendingRows, BytesText(s.pendingBytes), s.parkedRows, BytesText(s.parkedBytes), o.opts.MaxRows, BytesText(o.opts.MaxBytes))
		if size := o.unmet.Load(); size > 0 {
			text += fmt.Sprintf(", and the newest result needs %s", BytesText(size))
		}
		return fmt.Errorf("%w: %s", ErrFull, text)
	}
	return nil
}

// BytesText writes a number of bytes for people.
func BytesText(n int64) string {
	const units = "KMGT"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
