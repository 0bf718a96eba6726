package publisher

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// TopicSpec is a topic as it is asked for.
type TopicSpec struct {
	Name              string
	Partitions        int32
	ReplicationFactor int16             // -1: the broker's default
	Configs           map[string]string // by Kafka's names, e.g. retention.ms
}

// ResultsTopic is the spec of a results topic with Kafka's names for the settings.
func ResultsTopic(name string, partitions int32, replication int16, configs map[string]string) TopicSpec {
	all := map[string]string{"cleanup.policy": "delete"}
	maps.Copy(all, configs)
	return TopicSpec{Name: name, Partitions: partitions, ReplicationFactor: replication, Configs: all}
}

// WatermarksTopic is the spec of the compacted topic that proves publication. A new
// outbox reads what is left of it, so small segments are compacted soon, and without the
// markers of transactions, which Kafka keeps for a day unless it is told otherwise.
func WatermarksTopic(results TopicSpec) TopicSpec {
	return TopicSpec{
		Name: results.Name + "-watermarks", Partitions: results.Partitions, ReplicationFactor: results.ReplicationFactor,
		Configs: map[string]string{
			"cleanup.policy": "compact", "segment.bytes": strconv.Itoa(16 << 20),
			"max.compaction.lag.ms": "600000", "delete.retention.ms": "60000",
		},
	}
}

// Drift is one setting of a topic that differs from what was asked.
type Drift struct {
	Topic   string `json:"topic"`
	Setting string `json:"setting"`
	Want    string `json:"want"`
	Got     string `json:"got"`
}

// TopicState is a topic as it is.
type TopicState struct {
	Name            string   `json:"name"`
	ID              [16]byte `json:"-"`
	Partitions      int32    `json:"partitions"`
	Created         bool     `json:"created"` // by us, just now
	MaxMessageBytes int64    `json:"max_message_bytes,omitempty"`
	Drift           []Drift  `json:"drift"`
	Note            string   `json:"note,omitempty"` // what could not be looked at, and why
}

// EnsureTopic makes the topic if it is missing, and reports how it differs from
// the spec if it is there. It alters nothing, and never adds partitions: that
// would move the keys. Without the right to create, an existing topic is enough;
// without the right to describe its settings, they are taken on trust.
func EnsureTopic(ctx context.Context, adm *kadm.Client, spec TopicSpec) (TopicState, error) {
	st, found, err := lookUpTopic(ctx, adm, spec.Name)
	if err != nil {
		return st, err
	}
	if !found {
		if err := createTopic(ctx, adm, spec); err != nil {
			return st, err
		}
		if st, err = awaitTopic(ctx, adm, spec.Name); err != nil {
			return st, err
		}
		st.Created = true
	}
	if err := st.compare(ctx, adm, spec); err != nil {
		return st, err
	}
	return st, nil
}

func lookUpTopic(ctx context.Context, adm *kadm.Client, name string) (st TopicState, found bool, err error) {
	st = TopicState{Name: name, Drift: []Drift{}}
	topics, err := adm.ListTopics(ctx, name)
	t, ok := topics[name]
	if err == nil && ok {
		err = t.Err
	}
	switch {
	case isUnauthorised(err):
		return st, false, fmt.Errorf("topic %s: not authorised: grant this principal Describe and Write on it: %w", name, err)
	case !ok && err == nil || errors.Is(err, kerr.UnknownTopicOrPartition):
		return st, false, nil
	case err != nil:
		return st, false, fmt.Errorf("look up topic %s: %w", name, err)
	}
	st.ID, st.Partitions = t.ID, int32(len(t.Partitions))
	return st, true, nil
}

// isUnauthorised: kadm tells of a missing right of one topic as it does of one of
// the whole call.
func isUnauthorised(err error) bool {
	var auth *kadm.AuthError
	return errors.As(err, &auth) || errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed)
}

// awaitTopic waits until the brokers' metadata shows a topic that was just made.
func awaitTopic(ctx context.Context, adm *kadm.Client, name string) (TopicState, error) {
	for {
		st, found, err := lookUpTopic(ctx, adm, name)
		if err != nil || (found && st.Partitions > 0) {
			return st, err
		}
		select {
		case <-ctx.Done():
			return st, fmt.Errorf("wait for the new topic %s to appear: %w", name, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func createTopic(ctx context.Context, adm *kadm.Client, spec TopicSpec) error {
	configs := make(map[string]*string, len(spec.Configs))
	for k, v := range spec.Configs {
		configs[k] = &v
	}
	_, err := adm.CreateTopic(ctx, spec.Partitions, spec.ReplicationFactor, configs, spec.Name)
	switch {
	case err == nil, errors.Is(err, kerr.TopicAlreadyExists):
		return nil
	case isUnauthorised(err):
		return fmt.Errorf("topic %s does not exist and may not be created: grant this principal Create on it (or on the cluster), or have it made with `sidecar topic` by somebody who may: %w", spec.Name, err)
	default:
		return fmt.Errorf("create topic %s: %w", spec.Name, err)
	}
}

// compare reads the topic's settings and notes every difference.
func (st *TopicState) compare(ctx context.Context, adm *kadm.Client, spec TopicSpec) error {
	if spec.Partitions > 0 && st.Partitions > 0 && st.Partitions != spec.Partitions {
		st.drift("partitions", strconv.Itoa(int(spec.Partitions)), strconv.Itoa(int(st.Partitions)))
	}
	all, err := adm.DescribeTopicConfigs(ctx, spec.Name)
	var rc kadm.ResourceConfig
	if err == nil {
		rc, err = all.On(spec.Name, nil)
	}
	if err == nil {
		err = rc.Err
	}
	if isUnauthorised(err) {
		st.Note = "its settings are unknown: grant this principal DescribeConfigs to have them checked"
		return nil
	}
	if err != nil {
		return fmt.Errorf("describe topic %s: %w", spec.Name, err)
	}
	got := make(map[string]string, len(rc.Configs))
	for _, c := range rc.Configs {
		got[c.Key] = c.MaybeValue()
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Configs)) {
		if v, known := got[name]; known && v != spec.Configs[name] {
			st.drift(name, spec.Configs[name], v)
		}
	}
	st.MaxMessageBytes, _ = strconv.ParseInt(got["max.message.bytes"], 10, 64) // 0 where the broker does not tell
	return nil
}

func (st *TopicState) drift(setting, want, got string) {
	st.Drift = append(st.Drift, Drift{Topic: st.Name, Setting: setting, Want: want, Got: got})
}
