package publisher

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// hang lets requests of a kind go unanswered, skipping the first, until the test
// ends or release is called.
func (b *bench) hang(key kmsg.Key, skip int32, count int32) (hanging <-chan struct{}, release func()) {
	entered, leave := make(chan struct{}), make(chan struct{})
	var seen atomic.Int32
	var released atomic.Bool
	release = func() {
		if released.CompareAndSwap(false, true) {
			close(leave)
		}
	}
	b.t.Cleanup(release)
	b.fake.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		b.fake.KeepControl()
		n := seen.Add(1)
		if n <= skip || n > skip+count || released.Load() {
			return nil, nil, false
		}
		if n == skip+1 {
			close(entered)
		}
		b.fake.SleepControl(func() { <-leave })
		return nil, nil, false
	})
	return entered, release
}

// TestAStalledProduceIsGivenUp: the broker took the records and says nothing. A
// new client recovers, with a smaller publication, and nothing goes out twice.
func TestAStalledProduceIsGivenUp(t *testing.T) {
	for _, delivery := range []Delivery{ExactlyOnce, AtLeastOnce} {
		t.Run(string(delivery), func(t *testing.T) {
			b := newBench(t, delivery)
			b.opts.TransactionTimeout = 300 * time.Millisecond
			p := b.run()
			first := b.add(1)
			b.awaitPublished(first)
			hanging, _ := b.hang(kmsg.Produce, 0, 1)
			ids := b.add(100)
			<-hanging
			b.awaitPublished(ids)
			if s := p.Status(); !strings.Contains(s.LastError, "did not answer within 300ms") {
				t.Errorf("%+v", s)
			}
			if delivery == ExactlyOnce {
				b.eachOnce(append(first, ids...))
			}
		})
	}
}

// TestASlowLinkIsNotALoop: a full publication takes longer than a transaction may
// last, so it must get smaller until it fits.
func TestASlowLinkIsNotALoop(t *testing.T) {
	b := newBench(t, ExactlyOnce)
	b.opts.TransactionTimeout = 500 * time.Millisecond
	var slow atomic.Int32
	b.fake.ControlKey(int16(kmsg.Produce), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		b.fake.KeepControl()
		n := 0
		for _, topic := range kreq.(*kmsg.ProduceRequest).Topics {
			for _, p := range topic.Partitions {
				n += len(p.Records)
			}
		}
		took := time.Duration(n) * 50 * time.Microsecond // 20 kB/s
		if took > b.opts.TransactionTimeout {
			slow.Add(1)
		}
		b.fake.SleepControl(func() { time.Sleep(took) })
		return nil, nil, false
	})
	ids := b.add(300)
	b.run()
	b.awaitPublished(ids)
	b.eachOnce(ids)
	if slow.Load() == 0 {
		t.Error("the link was never too slow")
	}
}

// TestRunEndsWhateverHangs: with the broker silent at any step, the end of soft
// and hard ends Run.
func TestRunEndsWhateverHangs(t *testing.T) {
	for name, key := range map[string]kmsg.Key{
		"metadata": kmsg.Metadata, "find coordinator": kmsg.FindCoordinator, "init producer ID": kmsg.InitProducerID, "list offsets": kmsg.ListOffsets,
		"produce": kmsg.Produce, "end transaction": kmsg.EndTxn,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, ExactlyOnce)
			hanging, _ := b.hang(key, 0, 1<<30)
			b.add(10)
			p := New(b.opts)
			soft, stop := context.WithCancel(context.Background())
			hard, kill := context.WithCancel(context.Background())
			defer kill()
			done := make(chan error, 1)
			go func() { done <- p.Run(soft, hard) }()
			<-hanging
			stop()
			kill()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(30 * time.Second):
				t.Fatal("Run did not end")
			}
			if st, err := b.outbox.Stats(t.Context()); err != nil || st.PendingRows != 10 {
				t.Errorf("%+v %v", st, err)
			}
		})
	}
}
