package await

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"workflow-results-sidecar/internal/result"
	"workflow-results-sidecar/internal/testkit"
)

const topic = "results"

// broker is a real Kafka or kfake.
type broker interface {
	Addr() string
	Client(testing.TB, ...kgo.Opt) *kgo.Client
	CreateTopic(t testing.TB, topic string, partitions int32, configs ...string)
}

func options(b broker, id uuid.UUID) Options {
	return Options{Client: []kgo.Opt{kgo.SeedBrokers(b.Addr())}, Topic: topic, CorrelationID: id}
}

// limit is a context for waits that must end with a result.
func limit(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// event is a record with a result whose payload is {"n":n}.
func event(id uuid.UUID, n int) *kgo.Record {
	value := fmt.Appendf(nil, `{"event_type":"workflow.result","event_id":"%s","correlation_id":"%s","workflow_id":"w","workflow_run_id":"r","result":{"n":%d},"status":"failure","timestamp":"2026-01-02T03:04:05Z","error":"no"}`,
		uuid.New(), id, n)
	return &kgo.Record{Topic: topic, Key: []byte(id.String()), Value: value, Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte("workflow.result")}}}
}

func produce(t *testing.T, cl *kgo.Client, records ...*kgo.Record) {
	t.Helper()
	if err := cl.ProduceSync(limit(t), records...).FirstErr(); err != nil {
		t.Fatalf("produce: %v", err)
	}
}

func wantPayload(t *testing.T, found Found, err error, n int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(`{"n":%d}`, n); string(found.Result.Payload) != want {
		t.Errorf("payload %s, want %s", found.Result.Payload, want)
	}
}

func TestWaitFindsTheFirstResultOfItsKey(t *testing.T) {
	f := testkit.StartFake(t)
	f.CreateTopic(t, topic, 3)
	id := uuid.New()
	sent := event(id, 1)
	produce(t, f.Client(t),
		&kgo.Record{Topic: topic, Key: []byte("another"), Value: []byte("not JSON")},
		event(uuid.New(), 9), sent, event(id, 2))

	found, err := Wait(limit(t), options(f, id))
	wantPayload(t, found, err, 1)
	if found.Partition != sent.Partition || found.Offset != sent.Offset || string(found.Value) != string(sent.Value) {
		t.Errorf("found %d/%d %s, sent %d/%d %s", found.Partition, found.Offset, found.Value, sent.Partition, sent.Offset, sent.Value)
	}
	if found.Result.Status != result.Failure || *found.Result.Error != "no" || len(found.Headers) != 1 {
		t.Errorf("found %+v", found)
	}
}

func TestWaitBeginsAtItsTime(t *testing.T) {
	f := testkit.StartFake(t)
	f.CreateTopic(t, topic, 1)
	id := uuid.New()
	old := event(id, 1)
	old.Timestamp = time.Now().Add(-3 * time.Hour)
	young := event(id, 2)
	young.Timestamp = time.Now().Add(-30*time.Minute - Skew/2)
	produce(t, f.Client(t), old)
	produce(t, f.Client(t), young)

	opts := options(f, id)
	opts.Since = 30 * time.Minute
	found, err := Wait(limit(t), opts)
	wantPayload(t, found, err, 2)
	opts.Since = 4 * time.Hour
	found, err = Wait(limit(t), opts)
	wantPayload(t, found, err, 1)
}

func TestWaitBeginsWhereItWasArmed(t *testing.T) {
	f := testkit.StartFake(t)
	opts := options(f, uuid.New())
	before, err := Arm(limit(t), opts.Client, topic)
	if err != nil || before == nil || len(before) != 0 {
		t.Fatalf("armed without a topic: %v, %v", before, err)
	}
	f.CreateTopic(t, topic, 2)
	produce(t, f.Client(t), event(opts.CorrelationID, 1))
	after, err := Arm(limit(t), opts.Client, topic)
	if err != nil {
		t.Fatal(err)
	}
	produce(t, f.Client(t), event(opts.CorrelationID, 2))

	opts.Positions = before
	found, err := Wait(limit(t), opts)
	wantPayload(t, found, err, 1)
	opts.Positions = after
	found, err = Wait(limit(t), opts)
	wantPayload(t, found, err, 2)
}

func TestWaitOutlastsAMissingTopicAndAGrowingOne(t *testing.T) {
	f := testkit.StartFake(t)
	id, late := uuid.New(), uuid.New()
	done := make(chan error, 1)
	go func() {
		found, err := WaitAll(limit(t), options(f, uuid.Nil), id, late)
		if err == nil && len(found) != 2 {
			err = fmt.Errorf("found %d", len(found))
		}
		done <- err
	}()
	f.CreateTopic(t, topic, 1)
	produce(t, f.Client(t), event(id, 1))
	adm := kadm.NewClient(f.Client(t))
	if _, err := adm.CreatePartitions(t.Context(), 1, topic); err != nil {
		t.Fatal(err)
	}
	added := event(late, 2)
	added.Partition = 1
	produce(t, f.Client(t, kgo.RecordPartitioner(kgo.ManualPartitioner())), added)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWaitOutlastsATopicMadeAnew(t *testing.T) {
	f := testkit.StartFake(t)
	f.CreateTopic(t, topic, 1)
	first, second := uuid.New(), uuid.New()
	cl := f.Client(t)
	produce(t, cl, event(first, 1), event(uuid.New(), 2), event(uuid.New(), 3))
	done := make(chan error, 1)
	go func() {
		_, err := WaitAll(limit(t), options(f, uuid.Nil), first, second)
		done <- err
	}()
	if _, err := kadm.NewClient(cl).DeleteTopic(t.Context(), topic); err != nil {
		t.Fatal(err)
	}
	f.CreateTopic(t, topic, 1)
	produce(t, f.Client(t), event(first, 1), event(second, 1))
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWaitTellsWhatWasWrongWhenTheTimeIsOver(t *testing.T) {
	id := uuid.New()
	tests := map[string]struct {
		prepare func(*testing.T, *testkit.Fake)
		want    string
	}{
		"no broker": {func(_ *testing.T, f *testkit.Fake) { f.Close() }, "connection refused"},
		"no topic":  {func(*testing.T, *testkit.Fake) {}, "UNKNOWN_TOPIC_OR_PARTITION"},
		"no result": {func(t *testing.T, f *testkit.Fake) { f.CreateTopic(t, topic, 1) }, "no result for correlation ID " + id.String()},
		"rubbish under our key": {func(t *testing.T, f *testkit.Fake) {
			f.CreateTopic(t, topic, 1)
			produce(t, f.Client(t), &kgo.Record{Topic: topic, Key: []byte(id.String()), Value: []byte("{}")})
		}, "at partition 0, offset 0 is no result"},
		"another's result under our key": {func(t *testing.T, f *testkit.Fake) {
			f.CreateTopic(t, topic, 1)
			r := event(uuid.New(), 1)
			r.Key = []byte(id.String())
			produce(t, f.Client(t), r)
		}, "its correlation_id is"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := testkit.StartFake(t)
			opts := options(f, id)
			tt.prepare(t, f)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			_, err := Wait(ctx, opts)
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a time-out with %q", err, tt.want)
			}
			if name == "no result" && strings.Contains(err.Error(), "trouble") {
				t.Errorf("tells a trouble where there was none: %v", err)
			}
		})
	}
}

func TestRubbishUnderOurKeyDoesNotHideTheResult(t *testing.T) {
	f := testkit.StartFake(t)
	f.CreateTopic(t, topic, 1)
	id := uuid.New()
	produce(t, f.Client(t), &kgo.Record{Topic: topic, Key: []byte(id.String()), Value: []byte("{}")}, event(id, 1))
	found, err := Wait(limit(t), options(f, id))
	wantPayload(t, found, err, 1)
}

func TestWaitAllReturnsWhatItFoundInTime(t *testing.T) {
	f := testkit.StartFake(t)
	f.CreateTopic(t, topic, 1)
	here, absent := uuid.New(), uuid.New()
	produce(t, f.Client(t), event(here, 1))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	found, err := WaitAll(ctx, options(f, uuid.Nil), here, absent)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), absent.String()) {
		t.Errorf("got %v, want a time-out that names %s", err, absent)
	}
	if _, ok := found[here]; !ok || len(found) != 1 {
		t.Errorf("found %v, want only %s", found, here)
	}
}

func TestWaitRefusesWrongOptionsAtOnce(t *testing.T) {
	_, err := Wait(limit(t), Options{Client: []kgo.Opt{kgo.BrokerMaxReadBytes(-1)}, Topic: topic})
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want an error of the options", err)
	}
}

func TestWaitReadsOnlyWhatIsCommitted(t *testing.T) { readsOnlyCommitted(t, testkit.StartFake(t)) }

// readsOnlyCommitted runs on kfake and on a real broker.
func readsOnlyCommitted(t *testing.T, b broker) {
	t.Helper()
	b.CreateTopic(t, topic, 1)
	id := uuid.New()
	cl := b.Client(t, kgo.TransactionalID("await"))
	transact(t, cl, event(id, 1), kgo.TryAbort)

	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, event(id, 2))
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if found, err := Wait(short, options(b, id)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("found %s (%v) while nothing was committed", found.Value, err)
	}
	done := make(chan error, 1)
	go func() {
		found, err := Wait(limit(t), options(b, id))
		if err == nil && string(found.Result.Payload) != `{"n":2}` {
			err = fmt.Errorf("found %s", found.Value)
		}
		done <- err
	}()
	if err := cl.EndTransaction(limit(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func transact(t *testing.T, cl *kgo.Client, r *kgo.Record, end kgo.TransactionEndTry) {
	t.Helper()
	if err := cl.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, r)
	if err := cl.EndTransaction(limit(t), end); err != nil {
		t.Fatal(err)
	}
}
