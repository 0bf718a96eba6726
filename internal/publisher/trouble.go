package publisher

import (
	"log/slog"
	"time"
)

// trouble logs what fails again and again: one line per interval, however often
// it comes and goes, and one when a trouble that was told of is over.
type trouble struct {
	log      *slog.Logger
	interval time.Duration
	since    time.Time
	logged   time.Time // of whichever trouble
	told     bool      // of this one
	attempts int
}

func (t *trouble) report(err error) {
	now := time.Now()
	if t.attempts == 0 {
		t.since = now
	}
	t.attempts++
	if now.Sub(t.logged) < t.interval {
		return
	}
	t.logged, t.told = now, true
	t.log.Warn("publishing fails; results are accepted and kept, and it is tried again", "error", err, "attempts", t.attempts, "since", t.since.UTC())
}

func (t *trouble) over() {
	if t.told {
		t.log.Info("publishing works again", "attempts", t.attempts, "after", time.Since(t.since).Round(time.Millisecond))
	}
	t.attempts, t.told = 0, false
}

// parkings counts results that are set aside, so that one line per interval tells of
// them: where a topic's limit shrinks there can be thousands.
type parkings struct {
	interval time.Duration
	logged   time.Time
	untold   int
}

// add returns how many results the line is about that is due now; 0: none is.
func (k *parkings) add(now time.Time) int {
	k.untold++
	if now.Sub(k.logged) < k.interval {
		return 0
	}
	n := k.untold
	k.logged, k.untold = now, 0
	return n
}
