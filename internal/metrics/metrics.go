// Package metrics is the one list of what the sidecar counts. Main makes one
// Metrics on a registry of its own and hands it down; a test reads it there.
package metrics

import "github.com/prometheus/client_golang/prometheus"

const namespace = "workflow_results"

// Metrics holds every counter and histogram. Gauges that only mirror a state
// (pending, parked, bytes, ages) are read from the outbox when scraped; main
// registers those.
type Metrics struct {
	Accepted   prometheus.Counter     // results committed to the outbox
	Duplicates prometheus.Counter     // results already held with the same content
	Rejected   *prometheus.CounterVec // by reason: the problem's short name, e.g. invalid, conflict, full

	CommitSeconds prometheus.Histogram // one group commit, fsync included
	CommitRows    prometheus.Histogram // results in one group commit

	Published      prometheus.Counter
	Parked         prometheus.Counter
	PublishSeconds prometheus.Histogram   // one publication, from first record to proof
	PublishRows    prometheus.Histogram   // results in one publication
	Transactions   *prometheus.CounterVec // outcome: committed, aborted, unknown
	BrokerUp       prometheus.Gauge       // 1 when the last exchange with Kafka went well
	TopicDrift     *prometheus.GaugeVec   // topic, setting: 1 where the topic differs from what was asked
	PublishErrors  prometheus.Counter     // failed attempts to publish
}

// New makes the metrics and registers them.
func New(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets})
	}
	seconds := prometheus.ExponentialBuckets(0.0001, 2, 18) // 0.1 ms to 13 s
	rows := prometheus.ExponentialBuckets(1, 2, 14)         // 1 to 8192
	m := &Metrics{
		Accepted:       counter("accepted_total", "Results committed to the outbox."),
		Duplicates:     counter("duplicates_total", "Results that were already held with the same content."),
		Rejected:       prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "rejected_total", Help: "Results refused, by reason."}, []string{"reason"}),
		CommitSeconds:  histogram("commit_seconds", "Duration of one group commit, fsync included.", seconds),
		CommitRows:     histogram("commit_rows", "Results in one group commit.", rows),
		Published:      counter("published_total", "Results published to Kafka."),
		Parked:         counter("parked_total", "Results set aside because Kafka can never take them."),
		PublishSeconds: histogram("publish_seconds", "Duration of one publication, from the first record to its proof.", seconds),
		PublishRows:    histogram("publish_rows", "Results in one publication.", rows),
		Transactions:   prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "transactions_total", Help: "Kafka transactions, by outcome."}, []string{"outcome"}),
		BrokerUp:       prometheus.NewGauge(prometheus.GaugeOpts{Namespace: namespace, Name: "broker_up", Help: "1 when the last exchange with Kafka went well."}),
		TopicDrift:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "topic_drift", Help: "1 where a topic differs from what was asked."}, []string{"topic", "setting"}),
		PublishErrors:  counter("publish_errors_total", "Failed attempts to publish."),
	}
	for _, outcome := range []string{"committed", "aborted", "unknown"} {
		m.Transactions.WithLabelValues(outcome)
	}
	reg.MustRegister(m.Accepted, m.Duplicates, m.Rejected, m.CommitSeconds, m.CommitRows, m.Published, m.Parked,
		m.PublishSeconds, m.PublishRows, m.Transactions, m.BrokerUp, m.TopicDrift, m.PublishErrors)
	return m
}
