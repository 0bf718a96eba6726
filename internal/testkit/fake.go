package testkit

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Fake is an in-process cluster for faults that a real broker will not make on
// demand: Control and ControlKey take its requests in hand. What happens to a
// zombie differs from Kafka; fencing belongs to a real broker.
type Fake struct{ *kfake.Cluster }

// StartFake starts a cluster of one broker, automatic topics off, that ends with
// the test.
func StartFake(t testing.TB, opts ...kfake.Opt) *Fake {
	t.Helper()
	cluster, err := kfake.NewCluster(slices.Concat([]kfake.Opt{kfake.NumBrokers(1)}, opts)...)
	if err != nil {
		t.Fatalf("start kfake: %v", err)
	}
	t.Cleanup(cluster.Close)
	return &Fake{cluster}
}

// Addr is the first broker's host:port.
func (f *Fake) Addr() string { return f.ListenAddrs()[0] }

// Client makes a client of the cluster that is closed with test t.
func (f *Fake) Client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	return newClient(t, f.ListenAddrs(), opts)
}

// CreateTopic makes a topic; configs are key, value, key, value.
func (f *Fake) CreateTopic(t testing.TB, topic string, partitions int32, configs ...string) {
	t.Helper()
	createTopic(t, f.ListenAddrs(), topic, partitions, configs)
}

// ProduceError answers every partition of a produce request with an error code.
func ProduceError(req *kmsg.ProduceRequest, code int16) kmsg.Response {
	resp := req.ResponseKind().(*kmsg.ProduceResponse)
	for _, topic := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic, rt.TopicID = topic.Topic, topic.TopicID
		for _, partition := range topic.Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode = partition.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		resp.Topics = append(resp.Topics, rt)
	}
	return resp
}
