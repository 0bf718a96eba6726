package outbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrBroken ends the process: what is on disk is unknown until a new process
// opens the file anew (see isFailedSync).
var ErrBroken = errors.New("the outbox must be opened anew")

// errAltered is content that is no longer what was accepted: the disk has turned
// bits over where SQLite has no structure that would show it.
var errAltered = errors.New("the content does not have its digest any more")

// judge turns an error of SQLite into one that callers decide by, and records
// what must outlive the call: a failed fsync (the process ends) and damage
// (intake and publishing stop until a person has looked).
func (o *Outbox) judge(err error) error {
	switch {
	case err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNotParked) || errors.Is(err, ErrFull) || errors.Is(err, ErrUnavailable):
		return err
	case isFailedSync(err):
		err = fmt.Errorf("%w: an fsync failed: %w", ErrBroken, err)
		o.fatal.CompareAndSwap(nil, &err)
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case isDamage(err) || errors.Is(err, errAltered) || errors.Is(err, errCut):
		o.setDamage(err.Error())
		return fmt.Errorf("%w: the file is damaged: %w", ErrUnavailable, err)
	case isDiskFull(err):
		o.walTooLong.Store(true) // a checkpoint may give the WAL's room back
		o.noRoom.Store(true)
		return fmt.Errorf("%w: no space on the disk: %w", ErrFull, err)
	default:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
}

// complainInterval is the time between two lines about the same background task:
// on a full disk each of them fails every second.
const complainInterval = 30 * time.Second

// tolerate logs an error of a background task, which will come round again, once
// per complainInterval, and returns only what must end the process.
func (o *Outbox) tolerate(ctx context.Context, msg string, err error) error {
	if err == nil || ctx.Err() != nil {
		return o.fatalError()
	}
	if e := o.judge(err); o.fatalError() == nil && o.complaints.due(msg, time.Now()) {
		o.log.Error(msg, "error", e)
	}
	return o.fatalError()
}

// complaints are what was last logged when.
type complaints struct {
	mu   sync.Mutex
	last map[string]time.Time // by message
}

func (c *complaints) due(msg string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, ok := c.last[msg]; ok && now.Sub(last) < complainInterval {
		return false
	}
	if c.last == nil {
		c.last = make(map[string]time.Time)
	}
	c.last[msg] = now
	return true
}

func (o *Outbox) fatalError() error {
	if p := o.fatal.Load(); p != nil {
		return *p
	}
	return nil
}

func (o *Outbox) setDamage(what string) {
	text := what + "; " + DamageHelp(o.opts.Dir)
	if o.damage.CompareAndSwap(nil, &text) {
		o.log.Error("the outbox is damaged: intake and publishing are stopped", "reason", text)
	}
}

// usable returns why nothing may be read for publishing or written.
func (o *Outbox) usable() error {
	if p := o.damage.Load(); p != nil {
		return fmt.Errorf("%w: %s", ErrUnavailable, *p)
	}
	if err := o.fatalError(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
