package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"workflow-results-sidecar/internal/publisher"
	"workflow-results-sidecar/internal/testkit"
)

func TestTopic(t *testing.T) {
	fake := testkit.StartFake(t)
	topic := []string{"topic", "--brokers", fake.Addr(), "--topic", "r"}
	if out := succeed(t, append(topic, "--topic-partitions", "3")...); strings.Count(out, "created") != 2 || !strings.Contains(out, "r-watermarks") {
		t.Error(out)
	}
	if out := succeed(t, append(topic, "--topic-partitions", "3")...); strings.Count(out, "exists") != 2 {
		t.Error(out)
	}
	a := sidecarCommand(t, append(topic, "--topic-partitions", "5", "--topic-retention", "1h")...)
	if a.code != exitFailed || !strings.Contains(a.stdout, "partitions is 3, asked for 5") || !strings.Contains(a.stdout, "retention.ms is 604800000, asked for 3600000") || !strings.Contains(a.stderr, "3 settings differ") {
		t.Errorf("%+v", a)
	}
	states := decode[[]publisher.TopicState](t, succeed(t, append(topic, "--topic-partitions", "3", "--json")...))
	if len(states) != 2 || states[0].Name != "r" || states[0].Partitions != 3 || states[1].Name != "r-watermarks" {
		t.Errorf("%+v", states)
	}
	fail(t, exitFailed, []string{"127.0.0.1"}, "topic", "--brokers", testkit.FreeAddr(t), "--timeout", "300ms")
}

func TestAwait(t *testing.T) {
	p := newPlace(t, testkit.StartFake(t).Addr())
	r := p.run()
	for status, code := range map[string]int{"success": 0, "failure": 1, "error": 1} {
		s := r.post(`{"n":12345678901234567890.10}`, status)
		a := sidecarCommand(t, append([]string{"await", "--correlation-id", s.correlation.String()}, p.kafka()...)...)
		if a.code != code || a.stderr != "" || !strings.Contains(a.stdout, `"result":{"n":12345678901234567890.10}`) {
			t.Errorf("%s: %+v", status, a)
		}
		if v := decode[map[string]any](t, a.stdout); v["event_id"] != s.event.String() || v["status"] != status {
			t.Errorf("%s: %v", status, v)
		}
	}
	nobody := uuid.NewString()
	fail(t, 2, []string{"timed out after 300ms", nobody}, append([]string{"await", "--timeout", "300ms", "--correlation-id", nobody}, p.kafka()...)...)
	fail(t, 2, []string{"timed out"}, "await", "--timeout", "300ms", "--correlation-id", nobody, "--brokers", testkit.FreeAddr(t))
}

func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	before, err := os.ReadDir(os.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	out := succeed(t, "demo", "--log-level", "warn")
	for _, text := range []string{`"answer":42`, "not enough evidence", "TimeoutError", "published", "success", "failure", "error"} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in\n%s", text, out)
		}
	}
	after, err := os.ReadDir(os.TempDir())
	if err != nil || !cmp.Equal(len(before), len(after)) {
		t.Errorf("left behind: %v %v", after, err)
	}
}
