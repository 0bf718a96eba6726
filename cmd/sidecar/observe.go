package main

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/publisher"
)

// statusReport is GET /v1/status: how the sidecar is, at a glance.
type statusReport struct {
	Now       time.Time        `json:"now"` // of this report: a browser's clock may be off
	Version   string           `json:"version"`
	StartedAt time.Time        `json:"started_at"`
	Socket    string           `json:"socket"`
	DataDir   string           `json:"data_dir"`
	Brokers   []string         `json:"brokers"`
	Ending    bool             `json:"ending"` // asked to end: it drains
	Verdict   verdict          `json:"verdict"`
	Topic     string           `json:"topic"`
	Shows     shows            `json:"shows"`
	Outbox    outboxReport     `json:"outbox"`
	Publisher publisher.Status `json:"publisher"`
}

// shows is what may be seen of single results, for the page on the admin address.
type shows struct {
	Results  bool `json:"results"`  // on the admin address: --admin-results
	Payloads bool `json:"payloads"` // --show-payload
}

type outboxReport struct {
	ID                uuid.UUID `json:"id"`
	PendingRows       int64     `json:"pending"`
	PendingBytes      int64     `json:"pending_bytes"`
	OldestPendingSecs float64   `json:"oldest_pending_seconds"` // 0: none is pending
	ParkedRows        int64     `json:"parked"`
	ParkedBytes       int64     `json:"parked_bytes"`
	HeldRows          int64     `json:"held"`
	HeldBytes         int64     `json:"held_bytes"`
	MaxRows           int64     `json:"max_rows"`
	MaxBytes          int64     `json:"max_bytes"`
	LastSeq           int64     `json:"last_seq"`
	PublishedSeq      int64     `json:"published_seq"`
	FileBytes         int64     `json:"file_bytes"`
	WALBytes          int64     `json:"wal_bytes"`
	Full              bool      `json:"full"`              // no result can be accepted for want of room
	Trouble           string    `json:"trouble,omitempty"` // why it cannot accept or publish

	fullness string // why it is full
}

func reportOf(st outbox.Stats, now time.Time) outboxReport {
	r := outboxReport{
		ID: st.ID, PendingRows: st.PendingRows, PendingBytes: st.PendingBytes, ParkedRows: st.ParkedRows, ParkedBytes: st.ParkedBytes,
		HeldRows: st.HeldRows, HeldBytes: st.HeldBytes, MaxRows: st.MaxRows, MaxBytes: st.MaxBytes,
		LastSeq: st.LastSeq, PublishedSeq: st.PublishedSeq, FileBytes: st.FileBytes, WALBytes: st.WALBytes, Trouble: st.Damage,
	}
	if !st.OldestPending.IsZero() {
		r.OldestPendingSecs = max(0, now.Sub(st.OldestPending).Seconds())
	}
	return r
}

func (s *sidecar) status(ctx context.Context) any { return s.report(ctx) }

func (s *sidecar) report(ctx context.Context) statusReport {
	st, err := s.outbox.Stats(ctx)
	now := time.Now()
	r := statusReport{
		Now: now.UTC(), Version: version(), StartedAt: s.started, Socket: s.cmd.Socket, DataDir: s.cmd.DataDir, Brokers: s.cmd.Brokers, Ending: s.ending.Load(),
		Topic: s.cmd.Topic, Shows: shows{Results: s.cmd.AdminResults, Payloads: s.cmd.ShowPayload},
		Outbox: reportOf(st, now), Publisher: s.publisher.Status(),
	}
	if err != nil {
		r.Outbox.Trouble = err.Error()
	}
	switch notReady := s.outbox.Ready(); {
	case errors.Is(notReady, outbox.ErrFull):
		r.Outbox.Full, r.Outbox.fullness = true, notReady.Error()
	case notReady != nil && r.Outbox.Trouble == "":
		r.Outbox.Trouble = notReady.Error()
	}
	r.Verdict = r.verdict()
	r.Verdict.Since = s.history.see(r.Verdict.Word, now)
	return r
}

func (s *sidecar) brokerState() string { return s.publisher.Status().State }

// collector reads the gauges when they are scraped.
type collector struct {
	o *outbox.Outbox
	p *publisher.Publisher
}

var stopped = prometheus.NewDesc("workflow_results_stopped", "1 where nothing goes on until somebody acts: the outbox is damaged, or another copy of it publishes.", []string{"reason"}, nil)

var gauges = []struct {
	desc  *prometheus.Desc
	value func(outboxReport) float64
}{
	{gauge("pending", "Results that wait to be published."), func(r outboxReport) float64 { return float64(r.PendingRows) }},
	{gauge("pending_bytes", "Bytes of results that wait to be published."), func(r outboxReport) float64 { return float64(r.PendingBytes) }},
	{gauge("oldest_pending_seconds", "Age of the oldest pending result."), func(r outboxReport) float64 { return r.OldestPendingSecs }},
	{gauge("parked", "Results set aside until somebody retries or purges them."), func(r outboxReport) float64 { return float64(r.ParkedRows) }},
	{gauge("parked_bytes", "Bytes of parked results."), func(r outboxReport) float64 { return float64(r.ParkedBytes) }},
	{gauge("held", "Results in the outbox, published ones in their windows included."), func(r outboxReport) float64 { return float64(r.HeldRows) }},
	{gauge("held_bytes", "Bytes of results in the outbox."), func(r outboxReport) float64 { return float64(r.HeldBytes) }},
	{gauge("max_rows", "Limit of results in the outbox."), func(r outboxReport) float64 { return float64(r.MaxRows) }},
	{gauge("max_bytes", "Limit of bytes in the outbox."), func(r outboxReport) float64 { return float64(r.MaxBytes) }},
	{gauge("file_bytes", "Size of the outbox file."), func(r outboxReport) float64 { return float64(r.FileBytes) }},
	{gauge("wal_bytes", "Size of the outbox's write-ahead log."), func(r outboxReport) float64 { return float64(r.WALBytes) }},
}

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("workflow_results_outbox_"+name, help, nil, nil)
}

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range gauges {
		ch <- g.desc
	}
	ch <- stopped
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := c.o.Stats(ctx)
	for _, g := range gauges {
		if err != nil {
			ch <- prometheus.NewInvalidMetric(g.desc, err)
			continue
		}
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(reportOf(st, time.Now())))
	}
	for reason, is := range map[string]bool{"damage": st.Damage != "", "another_copy": c.p.Status().State == "stopped"} {
		value := 0.0
		if is {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(stopped, prometheus.GaugeValue, value, reason)
	}
}
