//go:build kafka

package await

import (
	"testing"

	"github.com/google/uuid"

	"workflow-results-sidecar/internal/testkit"
)

func TestWaitReadsOnlyWhatIsCommittedByKafka(t *testing.T) {
	readsOnlyCommitted(t, testkit.StartKafka(t))
}

func TestWaitOutlastsARestartOfKafka(t *testing.T) {
	k := testkit.StartKafka(t)
	k.CreateTopic(t, topic, 2)
	early, late := uuid.New(), uuid.New()
	produce(t, k.Client(t), event(early, 1))
	done := make(chan error, 1)
	go func() {
		_, err := WaitAll(limit(t), options(k, uuid.Nil), early, late)
		done <- err
	}()
	k.Kill(t)
	k.Start(t)
	produce(t, k.Client(t), event(late, 2))
	if err := <-done; err != nil {
		t.Error(err)
	}
}
