package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"workflow-results-sidecar/internal/testkit"
)

func TestSIGTERMDrains(t *testing.T) {
	r := newPlace(t, testkit.StartFake(t).Addr()).run()
	for range 20 {
		r.post(`{}`, "success")
	}
	if code := r.end(); code != 0 || !strings.Contains(r.log.String(), "everything is published") {
		t.Errorf("status %d:\n%s", code, r.log)
	}
	if _, err := os.Lstat(r.socket()); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestSIGTERMTellsWhatIsLeft: the broker is away. The time-out ends it, and a
// second sidecar publishes what is left.
func TestSIGTERMTellsWhatIsLeft(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--shutdown-timeout", "100ms")
	s := r.post(`{}`, "success")
	if code := r.end(); code != 0 || !strings.Contains(r.log.String(), "pending=1") || !strings.Contains(r.log.String(), "sidecar outbox drain --exit-when-empty --data-dir "+p.dataDir()+" --brokers "+p.broker) {
		t.Errorf("status %d:\n%s", code, r.log)
	}
	p.broker = testkit.StartFake(t).Addr()
	r = p.run()
	r.settle(s)
	if code := r.end(); code != 0 {
		t.Error(code)
	}
}

func TestSecondSIGTERMEndsAtOnce(t *testing.T) {
	r := newPlace(t, testkit.FreeAddr(t)).run("--shutdown-timeout", "1h")
	r.post(`{}`, "success")
	r.signals <- syscall.SIGTERM
	r.log.await(t, "asked to end: draining")
	r.signals <- syscall.SIGTERM
	if code := r.wait(); code != 0 || !strings.Contains(r.log.String(), "ending at once") || !strings.Contains(r.log.String(), "pending=1") {
		t.Errorf("status %d:\n%s", code, r.log)
	}
}

// TestSIGTERMWaitsForClients: a workflow that is still connected may yet have a
// result to hand over.
func TestSIGTERMWaitsForClients(t *testing.T) {
	r := newPlace(t, testkit.StartFake(t).Addr()).run()
	c, err := net.Dial("unix", r.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ask := func() {
		t.Helper()
		if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: s\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	ask()
	r.signals <- syscall.SIGTERM
	r.log.await(t, "asked to end: draining")
	r.post(`{}`, "success") // others are served as well
	ask()
	c.Close()
	if code := r.wait(); code != 0 || !strings.Contains(r.log.String(), "everything is published") {
		t.Errorf("status %d:\n%s", code, r.log)
	}
}

func TestASecondSidecarIsRefused(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	p.run()
	fail(t, exitFailed, []string{"in use by another process", "--data-dir"}, "run", "--socket", p.socket()+"2", "--data-dir", p.dataDir(), "--brokers", p.broker)
	fail(t, exitFailed, []string{p.socket()}, "run", "--socket", p.socket(), "--data-dir", p.dataDir()+"2", "--brokers", p.broker)
}

// TestMetrics: every family is there before anything happened, so that an alert
// never rests on a series that is not.
func TestMetrics(t *testing.T) {
	r := newPlace(t, testkit.StartFake(t).Addr()).run("--admin-addr", "127.0.0.1:0")
	r.settle(r.post(`{}`, "success"))
	resp, err := testkit.SocketClient(t, r.socket()).Get("http://sidecar/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Fields(`
		accepted_total duplicates_total rejected_total commit_seconds commit_rows
		published_total parked_total publish_seconds publish_rows transactions_total publish_errors_total broker_up
		outbox_pending outbox_pending_bytes outbox_oldest_pending_seconds outbox_parked outbox_held outbox_held_bytes
		outbox_max_rows outbox_max_bytes outbox_file_bytes outbox_wal_bytes
		kafka_connects_total kafka_produce_bytes_total`) {
		if f := families["workflow_results_"+name]; f == nil {
			t.Errorf("workflow_results_%s is missing", name)
		}
	}
	for name, f := range families {
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
	outcomes := map[string]bool{}
	for _, m := range families["workflow_results_transactions_total"].GetMetric() {
		outcomes[m.GetLabel()[0].GetValue()] = true
	}
	if !outcomes["committed"] || !outcomes["aborted"] || !outcomes["unknown"] {
		t.Errorf("%v", outcomes)
	}
}

// TestLogsNameResultsAndKeepSecrets at the most talkative level, in JSON.
func TestLogsNameResultsAndKeepSecrets(t *testing.T) {
	t.Setenv("SIDECAR_KAFKA_PASSWORD", "p4ssw0rd-of-the-test")
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--shutdown-timeout", "1ms")
	s := r.post(`{"secret":"p4yl04d qwertz`+incompressible(5000)+`"}`, "success")
	r.end()
	p.broker = shrunkTopic(t).Addr()
	r = p.run("--log-level", "debug")
	r.settle(s)
	succeed(t, append([]string{"outbox", "purge", "--yes", s.event.String()}, p.either()...)...)
	if code := r.end(); code != 0 {
		t.Error(code)
	}
	log := r.log.String()
	for _, secret := range []string{"p4yl04d", "qwertz", "p4ssw0rd"} {
		if strings.Contains(log, secret) {
			t.Errorf("%q stands in the log", secret)
		}
	}
	for _, line := range []string{"a result was parked", "a parked result was purged"} {
		found := false
		for text := range strings.Lines(log) {
			if strings.Contains(text, line) {
				found = strings.Contains(text, "event_id="+s.event.String()) && strings.Contains(text, "correlation_id="+s.correlation.String())
			}
		}
		if !found {
			t.Errorf("no line %q with both IDs", line)
		}
	}
}

func TestLogsInJSON(t *testing.T) {
	a := sidecarCommand(t, "run", "--log-format", "json", "--socket", strings.Repeat("/x", 60), "--data-dir", t.TempDir(), "--brokers", testkit.FreeAddr(t))
	if a.code != exitFailed || !strings.Contains(a.stderr, "the system allows 107") {
		t.Errorf("%+v", a)
	}
	for line := range strings.Lines(a.stderr) {
		decode[map[string]any](t, line)
	}
}

// TestWhoWaitsIsToldAtTheEnd: a request that waits for publication neither holds
// the end up nor is cut off.
func TestWhoWaitsIsToldAtTheEnd(t *testing.T) {
	r := newPlace(t, testkit.FreeAddr(t)).run("--shutdown-timeout", "400ms")
	c, err := net.Dial("unix", r.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const event = `{"correlation_id":"0192f0c1-7b1e-7cc3-9d2a-0123456789ab","workflow_id":"w","workflow_run_id":"r","status":"failure"}`
	fmt.Fprintf(c, "POST /v1/results?wait=published&timeout=10m HTTP/1.1\r\nHost: s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(event), event)
	for !strings.Contains(succeed(t, append([]string{"outbox", "list"}, r.either()...)...), "pending") {
		time.Sleep(time.Millisecond)
	}
	r.signals <- syscall.SIGTERM
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("%d", resp.StatusCode)
	}
	c.Close()
	if code := r.wait(); code != 0 || strings.Contains(r.log.String(), "cut off") {
		t.Errorf("status %d:\n%s", code, r.log)
	}
}

// TestSIGTERMBeforeTheStart is no failure.
func TestSIGTERMBeforeTheStart(t *testing.T) {
	cmd, err := demoSettings(newPlace(t, "").dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := cmd.Run(&env{ctx: ctx, stdout: newLog(), stderr: newLog()}); err != nil {
		t.Error(err)
	}
}

func TestStatusSaysFull(t *testing.T) {
	r := newPlace(t, testkit.FreeAddr(t)).run("--max-rows", "3", "--dedup-rows", "3", "--shutdown-timeout", "100ms")
	for range 3 {
		r.post(`{}`, "success")
	}
	out := succeed(t, "status", "--socket", r.socket())
	for _, text := range []string{"FULL: ", "\nsince ", "\nwhy ", "the limits are 3 and 8.0 GiB"} {
		if !strings.Contains("\n"+out, text) {
			t.Errorf("%q is missing in\n%s", text, out)
		}
	}
}

// TestStatusIsAsDescribed in the OpenAPI document.
func TestStatusIsAsDescribed(t *testing.T) {
	doc, err := openapi3.NewLoader().LoadFromFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := newPlace(t, testkit.StartFake(t).Addr()).run()
	r.settle(r.post(`{}`, "success"))
	status := decode[any](t, succeed(t, "status", "--json", "--socket", r.socket()))
	if err := doc.Components.Schemas["Status"].Value.VisitJSON(status); err != nil {
		t.Error(err)
	}
}

func TestInterruptedAwaitHasAnExitStatusOfItsOwn(t *testing.T) {
	signals := make(chan os.Signal)
	done := make(chan int, 1)
	go func() {
		done <- execute([]string{"await", "--brokers", testkit.FreeAddr(t), "--correlation-id", "0192f0c1-7b1e-7cc3-9d2a-0123456789ab"}, signals, newLog(), newLog())
	}()
	signals <- syscall.SIGINT
	if code := <-done; code != 130 {
		t.Errorf("exit status %d, want 130", code)
	}
	close(signals)
}

func TestFewDescriptorsAreToldOf(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	r := p.run("--max-connections", "1000000000")
	r.log.await(t, "fewer descriptors are allowed")
	p2 := newPlace(t, testkit.FreeAddr(t))
	r2 := p2.run("--max-connections", "16")
	if strings.Contains(r2.log.String(), "fewer descriptors") {
		t.Error("a warning where there are enough")
	}
}

// TestUnknownVariablesAreToldOf: a slip in a ConfigMap must not end in a default
// without a word. What a Service called "sidecar" brings, and what is no flag's but
// ours, is none.
func TestUnknownVariablesAreToldOf(t *testing.T) {
	for name, value := range map[string]string{"SIDECAR_BROKER": "s3cret:9092", "SIDECAR_SERVICE_PORT": "80", "SIDECAR_PORT_80_TCP": "tcp://a:80", "SIDECAR_API_SERVICE_HOST": "a",
		"SIDECAR_LINGER": "0s", "SIDECAR_KAFKA_PASSWORD": "s3cret", "SIDECAR_STATE": ""} {
		t.Setenv(name, value)
	}
	r := newPlace(t, testkit.FreeAddr(t)).run("--shutdown-timeout", "100ms")
	var told []string
	for _, m := range regexp.MustCompile(`belongs to no flag.* name=(\S+)`).FindAllStringSubmatch(r.log.String(), -1) {
		told = append(told, m[1])
	}
	if !slices.Equal(told, []string{"SIDECAR_BROKER"}) || strings.Contains(r.log.String(), "s3cret") {
		t.Errorf("told of %v:\n%s", told, r.log)
	}
}
