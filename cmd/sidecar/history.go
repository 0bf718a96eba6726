package main

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// What the page draws: ten minutes, a point every two seconds.
const (
	historyStep   = 2 * time.Second
	historyPoints = 300
)

// moment is how things stood at a time; the counters are since the start.
type moment struct {
	at                  time.Time
	accepted, published float64
	oldest              float64 // seconds
	pending             int64
}

// history remembers the last minutes, and since when the verdict has its word.
type history struct {
	mu      sync.Mutex
	word    string
	since   time.Time
	moments []moment // in order of time, one more than there are points
}

// see notes the verdict's word of a moment and returns since when it has been so:
// as exactly as somebody looks, which the sampling does every two seconds.
func (h *history) see(word string, now time.Time) *time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if word != h.word {
		h.word, h.since = word, now.UTC()
	}
	since := h.since
	return &since
}

// add takes a moment in and lets the oldest go.
func (h *history) add(m moment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.moments) > historyPoints {
		h.moments = append(h.moments[:0], h.moments[1:]...)
	}
	h.moments = append(h.moments, m)
}

// historyReport is GET /v1/history: lists of the same length, the newest last.
type historyReport struct {
	StepSeconds   float64   `json:"step_seconds"`
	Points        int       `json:"points"` // as many are kept at most
	NewestAt      time.Time `json:"newest_at"`
	Accepted      []float64 `json:"accepted_per_second"`
	Published     []float64 `json:"published_per_second"`
	OldestSeconds []float64 `json:"oldest_pending_seconds"`
	Pending       []int64   `json:"pending"`
}

// report makes rates of the counters: a point is what came since the one before.
func (h *history) report() historyReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := max(len(h.moments)-1, 0)
	r := historyReport{StepSeconds: historyStep.Seconds(), Points: historyPoints,
		Accepted: make([]float64, n), Published: make([]float64, n), OldestSeconds: make([]float64, n), Pending: make([]int64, n)}
	for i := range n {
		before, m := h.moments[i], h.moments[i+1]
		seconds := m.at.Sub(before.at).Seconds()
		r.Accepted[i] = (m.accepted - before.accepted) / seconds
		r.Published[i] = (m.published - before.published) / seconds
		r.OldestSeconds[i], r.Pending[i] = m.oldest, m.pending
		r.NewestAt = m.at.UTC()
	}
	return r
}

// remember samples until ctx ends.
func (s *sidecar) remember(ctx context.Context) error {
	tick := time.NewTicker(historyStep)
	defer tick.Stop()
	for {
		r := s.report(ctx)
		s.history.add(moment{
			at: time.Now(), accepted: valueOf(s.metrics.Accepted), published: valueOf(s.metrics.Published),
			oldest: r.Outbox.OldestPendingSecs, pending: r.Outbox.PendingRows,
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// valueOf reads a counter.
func valueOf(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil { // a counter of our own has nothing that could fail
		return 0
	}
	return m.GetCounter().GetValue()
}
