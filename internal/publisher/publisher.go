// Package publisher moves results from the outbox to Kafka.
//
// What it promises: results go out in seq order, so that those of one key never
// overtake each other, parked ones aside. In exactly-once delivery a
// read_committed reader sees each once, whatever is killed: every Kafka
// transaction carries a watermark, and what an earlier process or connection may
// have published is judged by the watermark alone (KIP-618 does the same for
// Kafka Connect's sources). In at-least-once delivery a crash repeats what was in
// flight, recognisable by ce_id. Kafka away, topic gone, rights missing: it tries
// again for ever; a result that Kafka can never take is parked, and the rest
// goes on.
package publisher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
)

// Delivery is a publishing mode.
type Delivery string

// ExactlyOnce uses Kafka transactions; AtLeastOnce an idempotent producer, for
// brokers or ACLs without transactions, or the lowest latency.
const (
	ExactlyOnce Delivery = "exactly-once"
	AtLeastOnce Delivery = "at-least-once"
)

// Source is where results come from; *outbox.Outbox is one.
type Source interface {
	Next(ctx context.Context, after int64, maxRows int, maxBytes int64) ([]outbox.Row, error)
	Pending() <-chan struct{}
	Proven() int64
	MarkPublished(p outbox.Publication)
	TakeBack(ctx context.Context, through int64, position outbox.WatermarkPosition) (rows, gone int64, err error)
	Park(ctx context.Context, seq int64, reason string) error

	ID() uuid.UUID
	TakeNewID(ctx context.Context) (uuid.UUID, error)
	Watermark(seq int64) outbox.Watermark
	Judges(w outbox.Watermark) bool
	WatermarkPosition() outbox.WatermarkPosition
	Delivery() string
	SetDelivery(ctx context.Context, mode string) error
}

// Options configure New.
type Options struct {
	Client     []kgo.Opt // brokers and security
	Hooks      []kgo.Opt // for the producing client alone: metrics, logs
	Topic      TopicSpec
	Watermarks TopicSpec
	Delivery   Delivery
	CESource   string // the ce_source header (CloudEvents: a URI reference)

	MaxRows            int           // of one publication
	MaxBytes           int64         // likewise
	TransactionTimeout time.Duration // what Kafka waits before it aborts a transaction of ours
	BackoffMin         time.Duration
	BackoffMax         time.Duration
	LogInterval        time.Duration // between two lines about the same trouble
	TopicInterval      time.Duration // between two looks at the topics

	Source  Source
	Now     func() time.Time
	Log     *slog.Logger
	Metrics *metrics.Metrics
}

// DefaultOptions are the bounds of a sidecar that is told nothing.
func DefaultOptions() Options {
	return Options{
		Delivery: ExactlyOnce, MaxRows: 1024, MaxBytes: 1 << 20,
		TransactionTimeout: 10 * time.Second,
		BackoffMin:         100 * time.Millisecond, BackoffMax: 10 * time.Second,
		LogInterval: 30 * time.Second, TopicInterval: time.Minute,
		Now: time.Now,
	}
}

// errAnotherCopy: a claim in the watermark that is not ours. Another copy of the
// data directory publishes under the same identity.
var errAnotherCopy = errors.New("another copy of this data directory publishes under the same outbox ID")

// errAgain ends a session that did all it could; the next one starts at once.
var errAgain = errors.New("the session starts over")

// Publisher publishes. Its methods may be called from any goroutine.
type Publisher struct {
	opts    Options
	source  Source
	log     *slog.Logger
	metrics *metrics.Metrics
	trouble trouble
	parked  parkings

	claimed bool   // by Run alone: a watermark with our owner is proven
	missed  bool   // by Run alone: it was told that our watermarks are gone
	last    ending // by Run alone: of the transaction before the newest InitProducerId
	bounds  bounds
	acked   map[int64]outbox.Placement // by Run alone: what Kafka has beyond the proven number (at-least-once)
	ahead   *readAhead                 // by Run alone: nil but within a backlog

	mu     sync.Mutex
	status Status
}

// Status is how the publishing stands.
type Status struct {
	State           string       `json:"state"` // connecting, publishing, retrying, stopped
	Delivery        Delivery     `json:"delivery"`
	LastError       string       `json:"last_error,omitempty"`
	LastErrorAt     *time.Time   `json:"last_error_at,omitempty"`
	LastPublishedAt *time.Time   `json:"last_published_at,omitempty"`
	Topics          []TopicState `json:"topics"`
}

// New makes a publisher; it connects in Run.
func New(opts Options) *Publisher {
	return &Publisher{
		opts: opts, source: opts.Source, log: opts.Log, metrics: opts.Metrics,
		trouble: trouble{log: opts.Log, interval: opts.LogInterval},
		parked:  parkings{interval: opts.LogInterval},
		acked:   make(map[int64]outbox.Placement),
		bounds:  newBounds(opts.MaxRows, opts.MaxBytes),
		status:  Status{State: "connecting", Delivery: opts.Delivery, Topics: []TopicState{}},
	}
}

// Status returns how the publishing stands.
func (p *Publisher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// defaultMaxMessage is Kafka's own default of max.message.bytes, taken until the
// topic was looked at.
const defaultMaxMessage = 1048588

// recordOverhead is what headers, key and framing of a record can add to the
// event: two IDs of 256 bytes twice, a trace state of 512, and the rest.
const recordOverhead = 4096

// MaxResultBytes is how large an event may be so that the topic takes it.
func (p *Publisher) MaxResultBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit := int64(defaultMaxMessage)
	for _, t := range p.status.Topics {
		if t.Name == p.opts.Topic.Name && t.MaxMessageBytes > 0 {
			limit = t.MaxMessageBytes
		}
	}
	return max(limit-recordOverhead, limit/2)
}

// Run publishes until soft ends: it takes no more results then, and finishes the
// publication it holds. When hard ends it drops even that; what became of it is
// for the next start to find out. Trouble with Kafka is never an error.
func (p *Publisher) Run(soft, hard context.Context) error {
	backoff := p.opts.BackoffMin
	for soft.Err() == nil {
		before := p.source.Proven()
		err := p.session(soft, hard)
		switch {
		case soft.Err() != nil:
			return nil
		case errors.Is(err, errAgain):
			continue
		case errors.Is(err, errAnotherCopy):
			return p.standDown(soft)
		case p.source.Proven() > before:
			backoff = p.opts.BackoffMin
		}
		p.failed(err)
		pause(soft, backoff)
		backoff = min(backoff*2, p.opts.BackoffMax)
	}
	return nil
}

// standDown stops publishing for good and says so, again and again. Results are
// still accepted: they are safe here, and a restart gives them a new identity.
func (p *Publisher) standDown(soft context.Context) error {
	p.set(func(s *Status) { s.State, s.LastError = "stopped", errAnotherCopy.Error() })
	p.metrics.BrokerUp.Set(0)
	for soft.Err() == nil {
		p.log.Error("publishing is stopped: "+errAnotherCopy.Error()+"; results are accepted and kept; stop one of the two, then restart this sidecar", "outbox_id", p.source.ID())
		pause(soft, p.opts.LogInterval)
	}
	return nil
}

func (p *Publisher) set(f func(*Status)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.status)
}

func (p *Publisher) failed(err error) {
	err = explainLogin(err)
	now := p.opts.Now().UTC()
	p.set(func(s *Status) { s.State, s.LastError, s.LastErrorAt = "retrying", err.Error(), &now })
	p.metrics.BrokerUp.Set(0)
	p.metrics.PublishErrors.Inc()
	p.trouble.report(err)
}

// stall is how long the reading of watermarks waits for anything to come. The open
// transactions of other sidecars have ended by then: Kafka gives one up after the
// time-out, and looks every ten seconds.
func (p *Publisher) stall() time.Duration { return 3 * p.opts.TransactionTimeout }

// missing tells, once, that what proves our publications is gone.
func (p *Publisher) missing(topic string) {
	if !p.missed {
		p.log.Warn("the watermarks of this outbox are gone: what was on its way when it last ended may be published twice, each with the same ce_id", "topic", topic, "outbox_id", p.source.ID(),
			"help", "was the topic deleted, or --topic changed? its cleanup.policy must be compact")
	}
	p.missed = true
}

func (p *Publisher) well() {
	p.set(func(s *Status) { s.State = "publishing" })
	p.metrics.BrokerUp.Set(1)
	p.trouble.over()
}

// session is one client's life: connect, recover, publish until something fails.
func (p *Publisher) session(soft, hard context.Context) error {
	topics, err := p.ensureTopics(hard)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(p.producerOpts(topics.maxMessage())...)
	if err != nil {
		return fmt.Errorf("make the producing client: %w", err)
	}
	defer cl.Close()
	defer context.AfterFunc(hard, cl.Close)()
	link := &link{p: p, cl: cl, topics: topics}
	if err := link.recover(soft); err != nil {
		return err
	}
	return p.publishAll(soft, link)
}

// publishAll publishes what is pending, waits for more, and looks at the topics
// now and then. Where a refusal has left a gap in what Kafka has, it is closed
// first (at-least-once): what lies beyond is known to this process alone.
func (p *Publisher) publishAll(soft context.Context, l *link) error {
	defer p.endReadAhead()
	look := time.NewTicker(p.opts.TopicInterval)
	defer look.Stop()
	for soft.Err() == nil || len(p.acked) > 0 {
		more, err := p.publishOnce(soft, l)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		p.well()
		select {
		case <-soft.Done():
		case <-p.source.Pending():
		case <-look.C:
			if err := p.lookAgain(soft, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// lookAgain looks at the topics while a session lasts. A client has the limit of
// a record from its start, so another limit takes a new one.
func (p *Publisher) lookAgain(ctx context.Context, l *link) error {
	t, err := p.ensureTopics(ctx)
	if err == nil && t.maxMessage() != l.topics.maxMessage() {
		return fmt.Errorf("%w: max.message.bytes is now %d", errAgain, t.maxMessage())
	}
	return err
}

// publishOnce publishes the oldest pending results, as many as the bounds allow,
// and reports whether there may be more.
func (p *Publisher) publishOnce(soft context.Context, l *link) (more bool, err error) {
	rows, err := p.next()
	if err != nil {
		return false, err
	}
	if len(rows) == p.bounds.rows || bytesOf(rows) > p.bounds.bytes/2 {
		p.readAhead(rows[len(rows)-1].Seq)
	}
	for rest := rows; len(rest) > 0; {
		n := len(rest)
		if p.opts.Delivery == AtLeastOnce {
			n = distinctKeys(rest)
		}
		if goOn, err := p.publishRows(l, rest[:n]); err != nil || !goOn || soft.Err() != nil {
			return true, err
		}
		rest = rest[n:]
	}
	return len(rows) > 0, nil
}

// readAhead is a reading of the results that come after those on their way: within
// a backlog, the disk and Kafka work at the same time. It is used where these are
// published in the end, and forgotten otherwise.
type readAhead struct {
	after int64
	rows  []outbox.Row
	err   error
	done  chan struct{}
}

func (p *Publisher) readAhead(after int64) {
	a := &readAhead{after: after, done: make(chan struct{})}
	p.ahead = a
	maxRows, maxBytes := p.bounds.rows, p.bounds.bytes
	go func() {
		defer close(a.done)
		a.rows, a.err = p.source.Next(context.Background(), after, maxRows, maxBytes)
	}()
}

// next returns the oldest pending results, as many as the bounds allow.
func (p *Publisher) next() ([]outbox.Row, error) {
	after := p.source.Proven()
	if a := p.endReadAhead(); a != nil && a.after == after && a.err == nil && len(a.rows) > 0 {
		return a.rows, nil
	}
	return p.source.Next(context.Background(), after, p.bounds.rows, p.bounds.bytes)
}

// endReadAhead waits for it, and returns what became of it; nil if there was none.
func (p *Publisher) endReadAhead() *readAhead {
	a := p.ahead
	if a != nil {
		<-a.done
	}
	p.ahead = nil
	return a
}

// publishRows publishes rows together, and reports whether what comes after them may
// follow: not where one of them was refused.
func (p *Publisher) publishRows(l *link, rows []outbox.Row) (goOn bool, err error) {
	start := time.Now()
	pub, err := l.publish(rows)
	var refused *refusedError
	switch {
	case errors.As(err, &refused):
		return false, p.setAside(l, rows, refused)
	case err != nil:
		p.bounds.halve(len(rows), bytesOf(rows))
		return false, err
	}
	p.metrics.PublishSeconds.Observe(time.Since(start).Seconds())
	p.metrics.PublishRows.Observe(float64(len(rows)))
	p.source.MarkPublished(pub)
	p.bounds.grow()
	p.well()
	p.set(func(s *Status) { s.LastPublishedAt = &pub.At })
	return true, nil
}

// distinctKeys returns how many rows come before the first whose key is among
// them already. Where one batch fails, those behind it may still reach Kafka, and
// what is sent again must not come after a later result of its key. A transaction
// is aborted as a whole and needs no such care.
func distinctKeys(rows []outbox.Row) int {
	seen := make(map[uuid.UUID]bool, len(rows))
	for i := range rows {
		key := rows[i].Result.CorrelationID
		if seen[key] {
			return i
		}
		seen[key] = true
	}
	return len(rows)
}

func bytesOf(rows []outbox.Row) (n int64) {
	for i := range rows {
		n += rows[i].Bytes
	}
	return n
}

// setAside parks a result that was refused alone, by the limit that holds now. A
// refusal among others may blame the wrong one: try again with fewer.
func (p *Publisher) setAside(l *link, rows []outbox.Row, refused *refusedError) error {
	if refused.sent > 1 {
		p.bounds.isolate(len(rows))
		return nil
	}
	if err := p.lookAgain(context.Background(), l); err != nil {
		return err
	}
	i := slices.IndexFunc(rows, func(r outbox.Row) bool { _, ok := p.acked[r.Seq]; return !ok }) // the one that was sent
	r, seq := &rows[i].Result, rows[i].Seq
	if err := p.source.Park(context.Background(), seq, refused.Error()); err != nil {
		return err
	}
	p.bounds.grow()
	if n := p.parked.add(time.Now()); n > 0 {
		p.log.Error("a result was parked: Kafka refuses it", "event_id", r.EventID, "correlation_id", r.CorrelationID, "seq", seq, "error", refused.cause,
			"parked_since_last_line", n, "help", "sidecar outbox show "+r.EventID.String()+"; all of them: sidecar outbox list --state parked")
	}
	return nil
}

// topics are the two topics as they are.
type topics struct{ results, watermarks TopicState }

// leastMaxMessage is the least that a producing client can be given. No result
// fits into less: below it the broker refuses them, and they are parked.
const leastMaxMessage = 512

func (t topics) maxMessage() int32 {
	if m := t.results.MaxMessageBytes; m > 0 {
		return int32(max(leastMaxMessage, min(m, 64<<20)))
	}
	return defaultMaxMessage
}

// ensureTopics looks at the topics, makes what is missing and reports drift.
func (p *Publisher) ensureTopics(ctx context.Context) (t topics, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cl, err := kgo.NewClient(p.opts.Client...)
	if err != nil {
		return t, fmt.Errorf("make an admin client: %w", err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if t.results, err = EnsureTopic(ctx, adm, p.opts.Topic); err != nil {
		return t, err
	}
	states := []TopicState{t.results}
	if p.needsWatermarks() {
		if t.watermarks, err = EnsureTopic(ctx, adm, p.opts.Watermarks); err != nil {
			return t, fmt.Errorf("%w (or choose --delivery at-least-once, which needs no watermark topic)", err)
		}
		states = append(states, t.watermarks)
	}
	p.reportTopics(states)
	return t, nil
}

// needsWatermarks: exactly-once does, and so does the change away from it, which
// must first learn what the transactions had published.
func (p *Publisher) needsWatermarks() bool {
	return p.opts.Delivery == ExactlyOnce || p.source.Delivery() == string(ExactlyOnce)
}

func (p *Publisher) reportTopics(states []TopicState) {
	known, seen := make(map[Drift]bool), make(map[string]bool)
	for _, t := range p.Status().Topics {
		seen[t.Name] = true
		for _, d := range t.Drift {
			known[d] = true
		}
	}
	p.metrics.TopicDrift.Reset()
	for _, t := range states {
		if t.Created && seen[t.Name] {
			p.log.Warn("the topic was deleted, or the broker has lost it: it is made again, and what lay in it is gone", "topic", t.Name)
		}
		if t.Created {
			p.log.Info("topic created", "topic", t.Name, "partitions", t.Partitions)
		}
		for _, d := range t.Drift {
			p.metrics.TopicDrift.WithLabelValues(d.Topic, d.Setting).Set(1)
			if !known[d] {
				p.log.Warn("the topic differs from what was asked; it is left as it is", "topic", d.Topic, "setting", d.Setting, "want", d.Want, "got", d.Got)
			}
		}
	}
	p.set(func(s *Status) { s.Topics = states })
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
