package testkit

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// newClient makes a client that is closed with the test.
func newClient(t testing.TB, addrs []string, opts []kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(slices.Concat([]kgo.Opt{kgo.SeedBrokers(addrs...), kgo.MetadataMinAge(50 * time.Millisecond)}, opts)...)
	if err != nil {
		t.Fatalf("make a Kafka client: %v", err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func createTopic(t testing.TB, addrs []string, topic string, partitions int32, configs []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	values := map[string]*string{}
	for pair := range slices.Chunk(configs, 2) {
		values[pair[0]] = &pair[1]
	}
	adm := kadm.NewClient(newClient(t, addrs, nil))
	if _, err := adm.CreateTopic(ctx, partitions, -1, values, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	err := poll(ctx, func(ctx context.Context) error { // a new topic has no leader for a moment
		ends, err := adm.ListEndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		return ends.Error()
	})
	if err != nil {
		t.Fatalf("topic %s is not ready: %v", topic, err)
	}
}
