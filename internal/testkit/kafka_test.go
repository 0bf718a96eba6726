//go:build kafka

package testkit

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestKafkaKeepsItsRecordsOverKillStopAndPause(t *testing.T) {
	k := StartKafka(t, WithProperties("log.retention.hours=1"))
	addr := k.Addr()
	k.CreateTopic(t, "kept", 2, "max.message.bytes", "123456")
	cl := k.Client(t, kgo.TransactionalID("kept"), kgo.TransactionTimeout(10*time.Second))

	commit(t, cl, "kept", 10)
	k.Kill(t)
	k.Start(t)
	commit(t, cl, "kept", 10)
	k.Stop(t)
	k.Start(t)
	k.Pause(t)
	done := make(chan struct{})
	go func() { defer close(done); commit(t, cl, "kept", 10) }()
	k.Resume(t)
	<-done

	if k.Addr() != addr {
		t.Errorf("the broker moved from %s to %s", addr, k.Addr())
	}
	if n := len(Consume(t, addr, "kept")); n != 30 {
		t.Errorf("read %d records, want 30", n)
	}
}

func TestKafkaHasNoAutomaticTopics(t *testing.T) {
	k := SharedKafka(t)
	if again := SharedKafka(t); again != k {
		t.Fatal("the shared broker was started twice")
	}
	cl := k.Client(t, kgo.AllowAutoTopicCreation(), kgo.UnknownTopicRetries(1))
	err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "nobody-made-this", Value: []byte("x")}).FirstErr()
	if err == nil {
		t.Fatal("a record went to a topic that nobody made")
	}
}

func TestKafkaOfAnOlderRelease(t *testing.T) {
	k := StartKafka(t, WithRelease("3.9-IV0"))
	resp, err := kmsg.NewPtrApiVersionsRequest().RequestWith(t.Context(), k.Client(t))
	if err != nil {
		t.Fatal(err)
	}
	level := int16(-1)
	for _, f := range resp.FinalizedFeatures {
		if f.Name == "metadata.version" {
			level = f.MaxVersionLevel
		}
	}
	if of39 := int16(21); level != of39 { // MetadataVersion.IBP_3_9_IV0
		t.Errorf("metadata.version is at level %d, want %d", level, of39)
	}
	k.CreateTopic(t, "old", 1)
	commit(t, k.Client(t, kgo.TransactionalID("old")), "old", 3)
	if n := len(Consume(t, k.Addr(), "old")); n != 3 {
		t.Errorf("read %d records, want 3", n)
	}
}

// commit produces n records in one transaction. It is called from another
// goroutine too, so it reports with Error.
func commit(t *testing.T, cl *kgo.Client, topic string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := inTransaction(ctx, cl, topic, n, kgo.TryCommit); err != nil {
		t.Errorf("commit %d records: %v", n, err)
	}
}

func inTransaction(ctx context.Context, cl *kgo.Client, topic string, n int, end kgo.TransactionEndTry) error {
	if err := cl.BeginTransaction(); err != nil {
		return err
	}
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: topic, Value: fmt.Append(nil, i)}
	}
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	return cl.EndTransaction(ctx, end)
}

func TestConsumeWaitsForAnOpenTransactionAndLeavesOutAborted(t *testing.T) {
	k := SharedKafka(t)
	k.CreateTopic(t, "open", 1)
	ctx := t.Context()
	aborted := k.Client(t, kgo.TransactionalID("aborted"))
	if err := inTransaction(ctx, aborted, "open", 5, kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	open := k.Client(t, kgo.TransactionalID("open"))
	if err := open.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := open.ProduceSync(ctx, &kgo.Record{Topic: "open", Value: []byte("held")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	read := make(chan []*kgo.Record, 1)
	go func() { read <- Consume(t, k.Addr(), "open") }()
	select {
	case records := <-read:
		t.Errorf("read %d records past an open transaction", len(records))
	case <-time.After(2 * time.Second): // nothing may happen here: there is no event to wait for
	}
	if err := open.EndTransaction(ctx, kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if records := <-read; len(records) != 1 || string(records[0].Value) != "held" {
		t.Errorf("read %d records, want the one that was held", len(records))
	}
}

func TestAClusterOfThree(t *testing.T) {
	brokers := StartCluster(t, 3)
	createTopic(t, []string{brokers[0].Addr()}, "replicated", 1, nil)
	cl := newClient(t, []string{brokers[0].Addr(), brokers[1].Addr(), brokers[2].Addr()}, nil)
	brokers[1].Kill(t)
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "replicated", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	brokers[1].Start(t)
}

func TestAProxyBeforeABroker(t *testing.T) {
	k := StartKafka(t, WithProxy())
	k.CreateTopic(t, "proxied", 1)
	var produced atomic.Int32
	k.Proxy().Set(func(f Frame) Verdict {
		if f.Key == kmsg.NewPtrProduceRequest().Key() && f.Answer && produced.Add(1) == 1 {
			return CutHalf
		}
		return Pass
	})
	cl := newClient(t, []string{k.Proxy().Addr()}, nil)
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "proxied", Value: []byte("x")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if n := produced.Load(); n != 2 {
		t.Errorf("%d answers to Produce, want the cut one and its repetition", n)
	}
	if records := Consume(t, k.Addr(), "proxied"); len(records) != 1 {
		t.Errorf("%d records", len(records))
	}
}
