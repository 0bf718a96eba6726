package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"

	"workflow-results-sidecar/internal/outbox"
	"workflow-results-sidecar/internal/testkit"
)

// shrunkTopic makes a cluster whose topic takes less than results that were
// accepted before it was known.
func shrunkTopic(t *testing.T) *testkit.Fake {
	fake := testkit.StartFake(t)
	fake.CreateTopic(t, "workflow-results", 6, "max.message.bytes", "2000")
	return fake
}

func setMaxMessageBytes(t *testing.T, fake *testkit.Fake, n string) {
	t.Helper()
	_, err := kadm.NewClient(fake.Client(t)).AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &n}}, "workflow-results")
	if err != nil {
		t.Fatal(err)
	}
}

// incompressible is text that lz4 and its like make little of.
func incompressible(n int) string {
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(uuid.NewString())
	}
	return b.String()[:n]
}

type view struct {
	EventID string `json:"event_id"`
	State   string `json:"state"`
	Seq     int64  `json:"seq"`
	Reason  string `json:"reason"`
}

// TestOutboxCommands work the same beside a running sidecar and without one.
func TestOutboxCommands(t *testing.T) {
	for _, beside := range []bool{true, false} {
		t.Run(fmt.Sprintf("beside a running sidecar %t", beside), func(t *testing.T) {
			p := newPlace(t, testkit.FreeAddr(t))
			r := p.run("--shutdown-timeout", "1ms")
			good, bad, worse := r.post(`{}`, "success"), r.post(`{"x":"`+incompressible(5000)+`"}`, "success"), r.post(`{"x":"`+incompressible(6000)+`"}`, "success")
			r.end()
			fake := shrunkTopic(t)
			p.broker = fake.Addr()
			r = p.run()
			for _, s := range []sent{good, bad, worse} {
				r.settle(s)
			}
			if !beside {
				r.end()
			}
			outbox := func(args ...string) []string { return append(append([]string{"outbox"}, args...), p.either()...) }

			reach := " --socket " + p.socket()
			if !beside {
				reach += " --data-dir " + p.dataDir()
			}

			table := succeed(t, outbox("list")...)
			for _, text := range []string{good.event.String(), bad.event.String(), good.correlation.String(), "published", "parked", "workflow-results/", "SEQ"} {
				if !strings.Contains(table, text) {
					t.Errorf("%q is missing in\n%s", text, table)
				}
			}
			parked := decode[[]view](t, succeed(t, outbox("list", "--state", "parked", "--json")...))
			if len(parked) != 2 || parked[0].EventID != bad.event.String() || parked[0].Reason == "" {
				t.Errorf("%+v", parked)
			}
			if one := decode[[]view](t, succeed(t, outbox("list", "--json", "--correlation-id", worse.correlation.String())...)); len(one) != 1 || one[0].EventID != worse.event.String() {
				t.Errorf("%+v", one)
			}
			if out := succeed(t, outbox("list", "--limit", "1")...); !strings.Contains(out, "there may be more: --after 1") {
				t.Error(out)
			}
			if out := succeed(t, outbox("list", "--state", "pending")...); !strings.Contains(out, "(none)") {
				t.Error(out)
			}
			if none := succeed(t, outbox("list", "--state", "pending", "--json")...); strings.TrimSpace(none) != "[]" {
				t.Error(none)
			}
			if out := succeed(t, outbox("show", bad.event.String())...); !strings.HasPrefix(out, "PARKED: ") || !strings.Contains(out, "sidecar outbox retry"+reach+" "+bad.event.String()) || !strings.Contains(out, "sidecar outbox purge --yes"+reach+" "+bad.event.String()) || !strings.Contains(out, bad.correlation.String()) {
				t.Error(out)
			}
			if out := succeed(t, outbox("show", good.correlation.String())...); !strings.HasPrefix(out, "PUBLISHED: in ") || !strings.Contains(out, good.event.String()) {
				t.Error(out)
			}
			if vs := decode[[]view](t, succeed(t, outbox("show", "--json", good.correlation.String())...)); len(vs) != 1 || vs[0].State != "published" {
				t.Errorf("%+v", vs)
			}
			if v := decode[view](t, succeed(t, outbox("show", "--json", good.event.String())...)); v.State != "published" {
				t.Errorf("%+v", v)
			}
			fail(t, exitFailed, []string{"no such result"}, outbox("show", uuid.NewString())...)
			fail(t, exitFailed, []string{"only parked"}, outbox("retry", good.event.String())...)
			fail(t, exitFailed, []string{"only parked"}, outbox("purge", "--yes", good.event.String())...)

			if out := succeed(t, outbox("purge", "--yes", worse.event.String())...); !strings.Contains(out, "removed") {
				t.Error(out)
			}
			setMaxMessageBytes(t, fake, "1000000")
			if out := succeed(t, outbox("retry", bad.event.String())...); !strings.Contains(out, "pending again, seq 4") {
				t.Error(out)
			}
			if !beside {
				r = p.run()
			}
			r.settle(bad)
			if left := decode[[]view](t, succeed(t, outbox("list", "--json")...)); len(left) != 2 || left[1].EventID != bad.event.String() || left[1].State != "published" {
				t.Errorf("%+v", left)
			}
			if code := r.end(); code != 0 {
				t.Error(code)
			}
			if out := succeed(t, "outbox", "check", "--data-dir", p.dataDir()); !strings.Contains(out, "sound: 2 results held, 0 pending, 0 parked") {
				t.Error(out)
			}
			if n := len(testkit.Consume(t, fake.Addr(), "workflow-results")); n != 2 {
				t.Errorf("%d records", n)
			}
		})
	}
}

func TestCommandsThatMeetNothing(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	fail(t, exitFailed, []string{"no sidecar answers at " + p.socket() + " (--socket)", "no outbox in " + p.dataDir()}, append([]string{"outbox", "list"}, p.either()...)...)
	if _, err := os.Stat(p.dataDir()); !os.IsNotExist(err) {
		t.Errorf("a command that looks has made the directory: %v", err)
	}
	fail(t, exitFailed, []string{"no sidecar answers at the socket " + p.socket() + " (--socket)"}, "status", "--socket", p.socket())
	fail(t, exitFailed, []string{"no sidecar answers at the socket " + p.socket()}, "healthcheck", "--socket", p.socket())

	p.run()
	fail(t, exitFailed, []string{"give its --socket"}, "outbox", "list", "--socket", p.socket()+"2", "--data-dir", p.dataDir())
	fail(t, exitFailed, []string{"in use by another process"}, "outbox", "check", "--data-dir", p.dataDir())
	fail(t, exitFailed, []string{"in use by another process"}, "outbox", "recover", "--data-dir", p.dataDir(), "--to", p.dataDir()+"2")
}

func TestStatusAndHealthcheck(t *testing.T) {
	fake := testkit.StartFake(t)
	p := newPlace(t, fake.Addr())
	r := p.run()
	r.settle(r.post(`{}`, "success"))
	out := succeed(t, "status", "--socket", p.socket())
	for _, text := range []string{"WELL: everything is published", "exactly-once", "workflow-results, 6 partitions", p.dataDir()} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in\n%s", text, out)
		}
	}
	report := decode[statusReport](t, succeed(t, "status", "--json", "--socket", p.socket()))
	if report.Outbox.PublishedSeq != 1 || report.Publisher.State != "publishing" || report.Outbox.PendingRows != 0 {
		t.Errorf("%+v", report)
	}
	succeed(t, "healthcheck", "--socket", p.socket())
	succeed(t, "healthcheck", "--ready", "--socket", p.socket())

}

func TestStatusWithoutABroker(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run()
	r.post(`{}`, "success")
	r.log.await(t, "level=WARN")
	out := succeed(t, "status", "--socket", p.socket())
	for _, text := range []string{"WAITING FOR KAFKA", "pending    1", "why ", "connection refused", p.broker} {
		if !strings.Contains(out, text) {
			t.Errorf("%q is missing in\n%s", text, out)
		}
	}
	succeed(t, "healthcheck", "--ready", "--socket", p.socket()) // the broker does not decide
}

// TestStatusWatch sees a sidecar come, work and go, and ends well when interrupted.
func TestStatusWatch(t *testing.T) {
	p := newPlace(t, testkit.StartFake(t).Addr())
	signals, out, done := make(chan os.Signal), newLog(), make(chan int, 1)
	go func() {
		done <- execute([]string{"status", "--watch", "--every", "100ms", "--socket", p.socket()}, signals, out, newLog())
	}()
	out.await(t, "NO ANSWER: no sidecar answers")
	r := p.run()
	r.settle(r.post(`{}`, "success"))
	out.await(t, "WELL: everything is published")
	out.await(t, "/s accepted, ")
	r.end()
	seen := len(out.String())
	out.awaitBehind(t, seen, "NO ANSWER")
	signals <- os.Interrupt
	if code := <-done; code != 0 {
		t.Errorf("status %d", code)
	}
	close(signals)
	if strings.Contains(out.String(), "\x1b") {
		t.Error("control characters, and nothing is a terminal")
	}
	fail(t, exitUsage, []string{"exclude each other"}, "status", "--watch", "--json")
}

// TestDrain publishes an orphaned volume.
func TestDrain(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--shutdown-timeout", "1ms", "--history", "240h", "--dedup-window", "240h")
	var all []sent
	for range 50 {
		all = append(all, r.post(`{}`, "success"))
	}
	r.end()
	drain := []string{"outbox", "drain", "--exit-when-empty", "--data-dir", p.dataDir()}
	fail(t, exitFailed, []string{"50 results pending", p.dataDir()}, append(drain, "--brokers", p.broker, "--timeout", "200ms")...)
	fake := testkit.StartFake(t)
	a := sidecarCommand(t, append(drain, "--brokers", fake.Addr())...)
	if a.code != 0 || !strings.Contains(a.stderr, "published 50, parked 0") {
		t.Errorf("%+v", a)
	}
	n := map[string]int{}
	for _, rec := range testkit.Consume(t, fake.Addr(), "workflow-results") {
		n[testkit.Header(rec, "ce_id")]++
	}
	for _, s := range all {
		if n[s.event.String()] != 1 {
			t.Errorf("%s is there %d times", s.event, n[s.event.String()])
		}
	}
	succeed(t, append(drain, "--brokers", fake.Addr())...) // nothing left
	fail(t, exitFailed, []string{"no outbox in"}, "outbox", "drain", "--data-dir", p.dir, "--brokers", fake.Addr())
}

// TestDrainOfAlteredContentEnds: it is never published, so nothing is left to wait for.
func TestDrainOfAlteredContentEnds(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--shutdown-timeout", "1ms")
	r.post(`{"x":"<marker>"}`, "success")
	r.end()
	path := filepath.Join(p.dataDir(), "outbox.db")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.ReplaceAll(file, []byte("<marker>"), []byte("<altered")), 0o600); err != nil {
		t.Fatal(err)
	}
	fail(t, exitFailed, []string{"the outbox is damaged, 1 results are pending", "does not have its digest", "sidecar outbox recover"},
		"outbox", "drain", "--exit-when-empty", "--data-dir", p.dataDir(), "--brokers", testkit.StartFake(t).Addr())
}

// TestCheckAndRecover of a file with a damaged page.
func TestCheckAndRecover(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--shutdown-timeout", "1ms")
	for i := range 100 {
		r.post(fmt.Sprintf(`{"row":"<%03d>","x":%q}`, i, incompressible(1000)), "success")
	}
	r.end()
	path := filepath.Join(p.dataDir(), "outbox.db")
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(file), "<050>") / 4096 * 4096
	copy(file[at:at+4096], strings.Repeat("\xa5", 4096))
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	fail(t, exitFailed, []string{"damaged", "sidecar outbox recover --data-dir " + p.dataDir()}, "outbox", "check", "--data-dir", p.dataDir())
	to := p.dataDir() + "-2"
	fail(t, exitFailed, []string{"damage hides up to"}, "outbox", "recover", "--data-dir", p.dataDir(), "--to", to)
	succeed(t, "outbox", "check", "--data-dir", to)
	fake := testkit.StartFake(t)
	succeed(t, "outbox", "drain", "--exit-when-empty", "--data-dir", to, "--brokers", fake.Addr())
	if n := len(testkit.Consume(t, fake.Addr(), "workflow-results")); n < 96 || n > 99 {
		t.Errorf("%d records", n)
	}
}

// TestShowIsPlainText: names come from a workflow, which may send what a terminal
// obeys, or what would pass for a line of ours.
func TestShowIsPlainText(t *testing.T) {
	at := time.Unix(0, 0).UTC()
	en := outbox.Entry{State: outbox.Parked, WorkflowID: "\x1b[2Jé\u202e", WorkflowRunID: "run\ndo  rm -r", Reason: "a\tb\u0085", AcceptedAt: at, ParkedAt: &at}
	var one, list strings.Builder
	if err := errors.Join(printEntry(&one, en, ""), printEntries(&list, []outbox.Entry{en}, 2)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"⟨U+001B⟩[2Jé⟨U+202E⟩, run run⟨U+000A⟩do  rm -r\n", "a⟨U+0009⟩b⟨U+0085⟩\n"} {
		if !strings.Contains(one.String(), text) {
			t.Errorf("%q is missing in\n%q", text, one.String())
		}
	}
	if !strings.HasSuffix(list.String(), "  a⟨U+0009⟩b⟨U+0085⟩\n") {
		t.Errorf("%q", list.String())
	}
}

// TestReaderThatIsGone: `sidecar outbox list | head` has shown what was wanted.
func TestReaderThatIsGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal)
	defer close(signals)
	errs := newLog()
	if code := execute([]string{"version"}, signals, w, errs); code != exitFailed || errs.String() != "" {
		t.Errorf("status %d: %s", code, errs)
	}
}

// TestThePlaceIsExplained where the list that shows it is.
func TestThePlaceIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	for where, text := range map[string]string{"the help": succeed(t, "outbox", "list", "--help"), "docs/OPERATIONS.md": string(page)} {
		if !strings.Contains(text, "topic/partition@offset") {
			t.Errorf("%s does not tell what workflow-results/2@0 is", where)
		}
	}
}
