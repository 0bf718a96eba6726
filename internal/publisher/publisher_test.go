package publisher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"workflow-results-sidecar/internal/metrics"
	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/result"
	"workflow-results-sidecar/internal/testkit"
)

// bench is a publisher between a real outbox and a fake broker.
type bench struct {
	t      *testing.T
	fake   *testkit.Fake
	outbox *outbox.Outbox
	opts   Options
}

func newBench(t *testing.T, delivery Delivery) *bench {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	m := metrics.New(prometheus.NewRegistry())
	store := outbox.DefaultOptions()
	store.Dir, store.Log, store.Metrics = t.TempDir(), log, m
	o, err := outbox.Open(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx) }()
	b := &bench{t: t, fake: testkit.StartFake(t), outbox: o, opts: DefaultOptions()}
	t.Cleanup(func() {
		problems, err := o.Check(context.Background())
		stop()
		if err := errors.Join(err, <-done, o.Close()); err != nil || len(problems) > 0 {
			t.Errorf("outbox: %v %v", problems, err)
		}
	})
	b.opts.Client = []kgo.Opt{kgo.SeedBrokers(b.fake.Addr()), kgo.MetadataMinAge(50 * time.Millisecond)}
	b.opts.Topic = ResultsTopic("results", 3, 1, nil)
	b.opts.Watermarks = WatermarksTopic(b.opts.Topic)
	b.opts.Delivery, b.opts.CESource = delivery, "/test"
	b.opts.Source, b.opts.Log, b.opts.Metrics = o, log, m
	b.opts.BackoffMin, b.opts.TransactionTimeout = 10*time.Millisecond, 3*time.Second
	return b
}

// run runs a publisher for as long as the test takes.
func (b *bench) run() *Publisher {
	p := New(b.opts)
	soft, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(soft, context.Background()) }()
	b.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
	return p
}

// add appends n results, each with a correlation ID of its own.
func (b *bench) add(n int) []uuid.UUID {
	b.t.Helper()
	return b.addWithKeys(n, uuid.New)
}

func (b *bench) addWithKeys(n int, key func() uuid.UUID) []uuid.UUID {
	b.t.Helper()
	ids := make([]uuid.UUID, n)
	rs := make([]result.Result, n)
	for i := range rs {
		ids[i] = uuid.New()
		r, err := result.Decode(fmt.Appendf(nil, `{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":{"i":%d}}`, ids[i], key(), i), time.Now())
		if err != nil {
			b.t.Fatal(err)
		}
		rs[i] = r
	}
	if _, err := b.outbox.Append(b.t.Context(), rs); err != nil {
		b.t.Fatal(err)
	}
	return ids
}

func (b *bench) awaitPublished(ids []uuid.UUID) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 30*time.Second)
	defer cancel()
	for _, id := range ids {
		if e, err := b.outbox.WaitPublished(ctx, id); err != nil || e.State != outbox.Published {
			b.t.Fatalf("%s: %+v %v", id, e, err)
		}
	}
}

// counts reads the topic as a read_committed reader and counts each ce_id.
func (b *bench) counts() map[string]int {
	n := map[string]int{}
	for _, r := range testkit.Consume(b.t, b.fake.Addr(), "results") {
		n[testkit.Header(r, "ce_id")]++
	}
	return n
}

func (b *bench) eachOnce(ids []uuid.UUID) {
	b.t.Helper()
	n := b.counts()
	if len(n) != len(ids) {
		b.t.Errorf("%d event IDs in Kafka, want %d", len(n), len(ids))
	}
	for _, id := range ids {
		if n[id.String()] != 1 {
			b.t.Errorf("%s is there %d times", id, n[id.String()])
		}
	}
}

func TestPublishesInBothModes(t *testing.T) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			b := newBench(t, delivery)
			p := b.run()
			ids := b.add(200)
			b.awaitPublished(ids)
			b.eachOnce(ids)
			e, err := b.outbox.Get(t.Context(), ids[7])
			if err != nil || e.Location == nil || e.Location.Topic != "results" {
				t.Errorf("%+v %v", e, err)
			}
			if s := p.Status(); s.State != "publishing" || s.LastPublishedAt == nil {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestRecordOfAResult(t *testing.T) {
	text := "boom"
	accepted := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.UTC)
	row := outbox.Row{Seq: 1, AcceptedAt: accepted, Result: result.Result{
		EventID: uuid.New(), CorrelationID: uuid.New(), WorkflowID: "wörk", WorkflowRunID: "r", Payload: []byte(`{}`), Status: result.Error,
		Timestamp: accepted, Error: &text, TraceParent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", TraceState: "a=b",
	}}
	r := recordOf("t", "/src", &row, accepted.Add(-time.Minute)) // the clock was set back
	if r.Timestamp.Before(accepted) || r.Timestamp.Nanosecond()%1e6 != 0 {
		t.Errorf("timestamp %v, accepted %v", r.Timestamp, accepted)
	}
	if string(r.Key) != row.Result.CorrelationID.String() {
		t.Errorf("key %s", r.Key)
	}
	for name, want := range map[string]string{
		"ce_specversion": "1.0", "ce_id": row.Result.EventID.String(), "ce_type": "workflow.result", "ce_source": "/src",
		"ce_time": "2026-01-02T03:04:05.6789Z", "ce_correlationid": string(r.Key), "ce_workflowid": "wörk", "ce_workflowrunid": "r",
		"content-type": "application/json", "traceparent": row.Result.TraceParent, "tracestate": "a=b",
	} {
		if got := testkit.Header(r, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestUnknownOutcomeOfACommit: Kafka commits and the answer is lost. The
// watermark must tell, and nothing may go out twice.
func TestUnknownOutcomeOfACommit(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	b.run()
	b.awaitPublished(b.add(1)) // claimed and running
	var lost atomic.Int32
	b.fake.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.EndTxnResponse)
		if lost.Add(1) > 1 {
			return nil, nil, false
		}
		resp.ErrorCode = kerr.UnknownServerError.Code
		return resp, nil, true
	})
	ids := b.add(50)
	b.awaitPublished(ids)
	n := b.counts()
	for _, id := range ids {
		if n[id.String()] != 1 {
			t.Errorf("%s is there %d times", id, n[id.String()])
		}
	}
	if lost.Load() == 0 {
		t.Error("the fault was never injected")
	}
}

// TestProduceErrorsAreTriedAgain: whatever a produce request answers but a
// refusal, the results go out in the end, once.
func TestProduceErrorsAreTriedAgain(t *testing.T) {
	for _, kafkaErr := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.TopicAuthorizationFailed, kerr.InvalidProducerEpoch, kerr.NotEnoughReplicas, kerr.InvalidTimestamp, kerr.KafkaStorageError} {
		t.Run(kafkaErr.Message, func(t *testing.T) {
			b := newBench(t, ExactlyOnce)
			p := b.run()
			first := b.add(1)
			b.awaitPublished(first)
			var injected atomic.Int32
			b.fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				if injected.Add(1) > 2 {
					return nil, nil, false
				}
				b.fake.KeepControl()
				return testkit.ProduceError(req.(*kmsg.ProduceRequest), kafkaErr.Code), nil, true
			})
			ids := b.add(20)
			b.awaitPublished(ids)
			b.eachOnce(append(first, ids...))
			if injected.Load() == 0 {
				t.Error("the fault was never injected")
			}
			if said := p.Status().LastError; kafkaErr == kerr.InvalidTimestamp && !strings.Contains(said, "clock") {
				t.Errorf("it does not say what to set right: %s", said)
			}
			if st, err := b.outbox.Stats(t.Context()); err != nil || st.ParkedRows != 0 {
				t.Errorf("parked %d, %v", st.ParkedRows, err)
			}
		})
	}
}

// watched counts the readings of what lies behind the results on their way.
type watched struct {
	Source
	ahead atomic.Int32
}

func (w *watched) Next(ctx context.Context, after int64, maxRows int, maxBytes int64) ([]outbox.Row, error) {
	if after > w.Proven() {
		w.ahead.Add(1)
	}
	return w.Source.Next(ctx, after, maxRows, maxBytes)
}

// TestABacklogIsReadAhead: what was read ahead of a publication that fails is
// forgotten, and everything goes out once, in order.
func TestABacklogIsReadAhead(t *testing.T) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			b := newBench(t, delivery)
			w := &watched{Source: b.outbox}
			b.opts.Source, b.opts.MaxRows = w, 8
			key := uuid.New()
			keys := 0
			ids := b.addWithKeys(300, func() uuid.UUID { // one in three of one key
				if keys++; keys%3 == 0 {
					return key
				}
				return uuid.New()
			})
			var produced atomic.Int32
			b.fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
				b.fake.KeepControl()
				if produced.Add(1)%7 != 0 {
					return nil, nil, false
				}
				return testkit.ProduceError(req.(*kmsg.ProduceRequest), kerr.TopicAuthorizationFailed.Code), nil, true
			})
			b.run()
			b.awaitPublished(ids)
			b.eachOnce(ids)
			var order []string
			for _, r := range testkit.Consume(t, b.fake.Addr(), "results") {
				if string(r.Key) == key.String() {
					order = append(order, testkit.Header(r, "ce_id"))
				}
			}
			var want []string
			for i := 2; i < len(ids); i += 3 {
				want = append(want, ids[i].String())
			}
			if !slices.Equal(order, want) {
				t.Errorf("of one key, %d are in Kafka, %d were taken; or they are in another order", len(order), len(want))
			}
			if w.ahead.Load() == 0 || produced.Load() < 14 {
				t.Errorf("read ahead %d times; %d requests to produce", w.ahead.Load(), produced.Load())
			}
		})
	}
}

// TestNothingOvertakesWithinAKey: one batch fails, and the batches behind it do
// not. What is sent again must not come behind a later result of its key.
func TestNothingOvertakesWithinAKey(t *testing.T) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			b := newBench(t, delivery)
			b.opts.Topic.Configs["max.message.bytes"] = "16384" // many batches
			var requests atomic.Int32
			b.fake.ControlKey(int16(kmsg.Produce), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
				b.fake.KeepControl()
				req := kreq.(*kmsg.ProduceRequest)
				if requests.Add(1) != 2 {
					return nil, nil, false
				}
				return testkit.ProduceError(req, kerr.TopicAuthorizationFailed.Code), nil, true
			})
			b.opts.MaxRows, b.opts.MaxBytes = 20000, 64<<20 // producing them lasts longer than a request
			keys := make([]uuid.UUID, 1000)
			for i := range keys {
				keys[i] = uuid.New()
			}
			n := 0
			ids := b.addWithKeys(20000, func() uuid.UUID { n++; return keys[n%len(keys)] })
			seqs := make(map[string]int, len(ids))
			for i, id := range ids {
				seqs[id.String()] = i
			}
			b.run()
			b.awaitPublished(ids[len(ids)-1:]) // all before it are, too
			last, seen := make(map[string]int), make(map[string]bool)
			for _, r := range testkit.Consume(t, b.fake.Addr(), "results") {
				id, key := testkit.Header(r, "ce_id"), string(r.Key)
				if !seen[id] && seqs[id] < last[key] {
					t.Fatalf("of key %s, result %d comes after %d", key, seqs[id], last[key])
				}
				seen[id], last[key] = true, max(last[key], seqs[id])
			}
			if requests.Load() < 3 {
				t.Error("the fault was never injected")
			}
		})
	}
}

// TestRefusedRecordIsParkedAlone: the limit of the topic shrank after the
// results were accepted.
func TestRefusedRecordIsParkedAlone(t *testing.T) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			b := newBench(t, delivery)
			big := make([]byte, 3000)
			for i := range big {
				big[i] = 'a' + byte(i*i%26)
			}
			b.opts.Topic.Configs["max.message.bytes"] = "2500"
			before := b.add(5)
			r, err := result.Decode(fmt.Appendf(nil, `{"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":{"big":%q}}`, uuid.New(), big), time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.outbox.Append(t.Context(), []result.Result{r}); err != nil {
				t.Fatal(err)
			}
			after := b.add(5)
			b.run()
			b.awaitPublished(append(before, after...))
			e, err := b.outbox.WaitPublished(t.Context(), r.EventID)
			if err != nil || e.State != outbox.Parked || e.Reason == "" {
				t.Errorf("%+v %v", e, err)
			}
			b.eachOnce(append(before, after...))
		})
	}
}

// countingSource counts how often results are read.
type countingSource struct {
	Source
	reads atomic.Int32
}

func (s *countingSource) Next(ctx context.Context, after int64, maxRows int, maxBytes int64) ([]outbox.Row, error) {
	s.reads.Add(1)
	return s.Source.Next(ctx, after, maxRows, maxBytes)
}

// TestResultsOfOneKeyAreReadOnce: in at-least-once delivery each goes out alone, and
// those behind it are not read again for each.
func TestResultsOfOneKeyAreReadOnce(t *testing.T) {
	b := newBench(t, AtLeastOnce)
	source := &countingSource{Source: b.outbox}
	b.opts.Source = source
	key := uuid.New()
	ids := b.addWithKeys(100, func() uuid.UUID { return key })
	b.run()
	b.awaitPublished(ids)
	b.eachOnce(ids)
	if n := source.reads.Load(); n > 10 {
		t.Errorf("they were read in %d steps", n)
	}
}

// TestManyParkedAreOneLine: a limit that shrank can park thousands.
func TestManyParkedAreOneLine(t *testing.T) {
	b := newBench(t, AtLeastOnce)
	var out bytes.Buffer // read when the publisher has ended
	b.opts.Log = slog.New(slog.NewTextHandler(&out, nil))
	b.opts.Topic.Configs["max.message.bytes"] = "300" // less than the headers take, and than a client can be given
	ids := b.add(10)
	p := New(b.opts)
	soft, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(soft, t.Context()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, id := range ids {
		if e, err := b.outbox.WaitPublished(ctx, id); err != nil || e.State != outbox.Parked {
			t.Fatalf("%+v %v", e, err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "a result was parked"); n != 1 || !strings.Contains(out.String(), "sidecar outbox list --state parked") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}

func TestWatermarkOfAForeignHistoryGivesANewID(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	ids := b.add(10)
	id := b.outbox.ID()
	adm := kadm.NewClient(b.fake.Client(t))
	if _, err := EnsureTopic(t.Context(), adm, b.opts.Watermarks); err != nil {
		t.Fatal(err)
	}
	lie, err := watermarkRecord(b.opts.Watermarks.Name, 0, id, outbox.Watermark{Seq: 5, Generation: uuid.New(), Owner: uuid.New()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.fake.Client(t).ProduceSync(t.Context(), lie).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.run()
	b.awaitPublished(ids)
	b.eachOnce(ids) // the watermark proved nothing: all ten went out
	if b.outbox.ID() == id {
		t.Error("the outbox kept its ID")
	}
}

func TestWatermarkAheadIsBelieved(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	ids := b.add(10)
	adm := kadm.NewClient(b.fake.Client(t))
	if _, err := EnsureTopic(t.Context(), adm, b.opts.Watermarks); err != nil {
		t.Fatal(err)
	}
	mark, err := watermarkRecord(b.opts.Watermarks.Name, 0, b.outbox.ID(), b.outbox.Watermark(6))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.fake.Client(t).ProduceSync(t.Context(), mark).FirstErr(); err != nil {
		t.Fatal(err)
	}
	b.run()
	b.awaitPublished(ids)
	b.eachOnce(ids[6:])
}

func TestEnsureTopicReportsDriftAndAltersNothing(t *testing.T) {
	fake := testkit.StartFake(t)
	adm := kadm.NewClient(fake.Client(t))
	spec := ResultsTopic("results", 4, 1, map[string]string{"retention.ms": "1000"})
	st, err := EnsureTopic(t.Context(), adm, spec)
	if err != nil || !st.Created || st.Partitions != 4 || len(st.Drift) != 0 {
		t.Fatalf("%+v %v", st, err)
	}
	spec.Partitions, spec.Configs["retention.ms"] = 8, "2000"
	st, err = EnsureTopic(t.Context(), adm, spec)
	if err != nil || st.Created || len(st.Drift) != 2 || st.Partitions != 4 {
		t.Errorf("%+v %v", st, err)
	}
}

func TestBounds(t *testing.T) {
	b := newBounds(1000, 1<<20)
	b.halve(1000, 1<<20)
	b.halve(b.rows, b.bytes)
	if b.rows != 250 || b.bytes != 1<<18 {
		t.Errorf("%+v", b)
	}
	b.halve(9, 2000) // what was tried was less than what was allowed
	if b.rows != 4 || b.bytes != 1000 {
		t.Errorf("%+v", b)
	}
	for range 40 {
		b.halve(b.rows, b.bytes)
	}
	if b.rows != 1 || b.bytes != 1 {
		t.Errorf("%+v", b)
	}
	b.grow()
	if b.rows != 2 || b.bytes != 1025 {
		t.Errorf("%+v", b)
	}
	for range 60 {
		b.grow()
	}
	if b.rows != 1000 || b.bytes != 1<<20 {
		t.Errorf("%+v", b)
	}
	b.isolate(9)
	if b.rows != 4 {
		t.Errorf("%+v", b)
	}
}
