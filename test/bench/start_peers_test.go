//go:build kafka

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"workflow-results-sidecar/internal/testkit"
)

// What `make bench` makes before.
const (
	bentoBinary = "../../.cache/bench/bento"
	benchPython = "../../.cache/venv-bench/bin/python"
)

// requirePeers is all peers, or the end of the benchmark: what is missing is told
// at once, not after half an hour.
func requirePeers(b *testing.B, kafka *testkit.Kafka) []contender {
	b.Helper()
	for _, file := range []string{bentoBinary, benchPython} {
		if _, err := os.Stat(file); err != nil {
			b.Fatalf("%v: `make bench` makes it", err)
		}
	}
	if _, err := exec.LookPath("rsyslogd"); err != nil {
		b.Fatalf("%v: install it (Debian, Ubuntu): apt-get install rsyslog-kafka", err)
	}
	peers := []contender{
		{"sidecar, at least once", func(b *testing.B, conns int) sample {
			return runSidecar(b, kafka, "at-least-once", conns, 1)
		}},
	}
	for _, form := range []string{"documented", "batched", "unbuffered"} {
		peers = append(peers, contender{"Bento, " + form, func(b *testing.B, conns int) sample {
			return runBento(b, kafka, form, conns)
		}})
	}
	return append(peers,
		contender{"aiokafka", func(b *testing.B, conns int) sample { return runAiokafka(b, kafka, conns) }},
		contender{"rsyslog", func(b *testing.B, conns int) sample { return runRsyslog(b, kafka, conns) }},
		contender{"empty handler", runEmptyHandler},
	)
}

// runBento measures one of the forms in peers/bento.
func runBento(b *testing.B, kafka *testkit.Kafka, form string, conns int) sample {
	b.Helper()
	t := newTopic(b, kafka)
	address := testkit.FreeAddr(b)
	cmd := exec.Command(bentoBinary, "-c", filepath.Join("peers", "bento", form+".yaml"))
	cmd.Env = append(os.Environ(), "ADDRESS="+address, "DATA="+b.TempDir(), "BROKERS="+kafka.Addr(), "TOPIC="+t.name)
	p := testkit.StartProcess(b, "Bento", cmd)
	awaitListening(b, p, address)
	s := server{pid: p.PID(), address: address, want: http.StatusOK, rows: 1, arrived: t.await,
		request: func() *testkit.BareRequest {
			return testkit.NewBareRequest("/post", "application/json", testkit.Event())
		}}.measure(b, conns)
	p.Kill(b) // there is nothing left that an orderly end would save
	return s
}

// runAiokafka has a Python process send with so many calls at once; it measures
// itself, since the client is the whole of it.
func runAiokafka(b *testing.B, kafka *testkit.Kafka, concurrent int) sample {
	b.Helper()
	t := newTopic(b, kafka)
	p := testkit.StartProcess(b, "aiokafka", exec.Command(benchPython, filepath.Join("peers", "aiokafka", "load.py"),
		"--brokers", kafka.Addr(), "--topic", t.name, "--concurrent", fmt.Sprint(concurrent),
		"--seconds", fmt.Sprint(duration.Seconds()), "--size", fmt.Sprint(testkit.EventBytes)))
	if code := p.Wait(b); code != 0 {
		b.Fatalf("aiokafka ended with %d", code)
	}
	var s struct {
		sample
		Seconds float64 `json:"seconds"`
	}
	if err := json.Unmarshal([]byte(p.Output()), &s); err != nil {
		b.Fatalf("aiokafka's output: %v", err)
	}
	t.await(s.Results)
	s.Answered = float64(s.Results) / s.Seconds
	s.EndToEnd = s.Answered // what it has answered is in Kafka
	return s.sample
}

// runRsyslog sends lines to a Unix socket. Nothing answers: what counts is when
// they are in Kafka.
func runRsyslog(b *testing.B, kafka *testkit.Kafka, conns int) sample {
	b.Helper()
	t := newTopic(b, kafka)
	dir := shortDir(b)
	address := filepath.Join(dir, "s")
	settings, err := os.ReadFile(filepath.Join("peers", "rsyslog", "rsyslog.conf"))
	if err != nil {
		b.Fatal(err)
	}
	filled := strings.NewReplacer("@DATA@", dir, "@ADDRESS@", address, "@BROKERS@", kafka.Addr(), "@TOPIC@", t.name).Replace(string(settings))
	file := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(file, []byte(filled), 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("rsyslogd", "-N1", "-f", file).CombinedOutput(); err != nil {
		b.Fatalf("rsyslogd refuses its settings; without its Kafka module: apt-get install rsyslog-kafka\n%s", out)
	}
	p := testkit.StartProcess(b, "rsyslog", exec.Command("rsyslogd", "-n", "-f", file, "-i", filepath.Join(dir, "pid")))
	awaitListening(b, p, address)
	if _, err := sendLines(b.Context(), address, 1); err != nil {
		b.Fatal(err)
	}
	t.await(1)
	cpu, start := cpuTime(b, p.PID()), time.Now()
	m := load(b, conns, *duration, func(ctx context.Context) ([]time.Duration, error) { return sendLines(ctx, address, 0) })
	s := sample{Results: m.requests, RSS: memory(b, p.PID(), "VmRSS")}
	t.await(1 + m.requests)
	s.EndToEnd = float64(m.requests) / time.Since(start).Seconds()
	s.spend(cpuTime(b, p.PID()) - cpu)
	p.Kill(b)
	return s
}

// sendLines writes one result after the other, each a line, n or (0) until ctx is
// over, and returns how long each took to be written.
func sendLines(ctx context.Context, address string, n int) ([]time.Duration, error) {
	conn, err := net.Dial("unix", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.(*net.UnixConn).SetWriteBuffer(4096); err != nil { // what lies in buffers is nobody's throughput
		return nil, err
	}
	line := testkit.NewBareRequest("", "", testkit.Event()+"\n")
	body := line.Bytes[slices.Index(line.Bytes, '{'):]
	var took []time.Duration
	for ctx.Err() == nil && (n == 0 || len(took) < n) {
		line.Renew()
		start := time.Now()
		if _, err := conn.Write(body); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
	}
	return took, nil
}

// handlerVariable names the socket on which this program serves nothing else
// than an empty handler: a process of its own, as the sidecar is.
const handlerVariable = "BENCH_EMPTY_HANDLER"

func serveEmptyHandler(socket string) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusCreated)
	}))
}

func runEmptyHandler(b *testing.B, conns int) sample {
	b.Helper()
	socket := filepath.Join(shortDir(b), "s")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), handlerVariable+"="+socket)
	p := testkit.StartProcess(b, "the empty handler", cmd)
	awaitListening(b, p, socket)
	s := server{pid: p.PID(), address: socket, want: http.StatusCreated, request: testkit.SingleRequest, rows: 1}.measure(b, conns)
	p.Kill(b)
	return s
}

// awaitListening waits until a process takes connections.
func awaitListening(b *testing.B, p *testkit.Process, address string) {
	b.Helper()
	poll(b, 5*time.Millisecond, time.Minute, func(context.Context) (bool, any) {
		select {
		case <-p.Done():
			b.Fatal("it ended before it listened")
		default:
		}
		c, err := testkit.DialBare(address)
		if err != nil {
			return false, err
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		return true, nil
	})
}

// topic is where a peer publishes.
type topic struct {
	b    *testing.B
	adm  *kadm.Client
	name string
}

// newTopic makes a topic as the sidecar makes its own, and deletes it in the end:
// what the broker has not written to disk yet disturbs nobody then.
func newTopic(b *testing.B, kafka *testkit.Kafka) topic {
	b.Helper()
	t := topic{b: b, adm: kadm.NewClient(kafka.Client(b)), name: fmt.Sprintf("peer-%d", time.Now().UnixNano())}
	kafka.CreateTopic(b, t.name, 6)
	b.Cleanup(func() { deleteTopics(b, kafka, t.name) })
	return t
}

func deleteTopics(b *testing.B, kafka *testkit.Kafka, names ...string) {
	b.Helper()
	if _, err := kadm.NewClient(kafka.Client(b)).DeleteTopics(context.Background(), names...); err != nil {
		b.Error(err)
	}
}

// await waits until n records are in the topic. Only what writes without
// transactions is counted so: markers would count too.
func (t topic) await(n int) {
	t.b.Helper()
	poll(t.b, 20*time.Millisecond, 5*time.Minute, func(ctx context.Context) (bool, any) {
		ends, err := t.adm.ListEndOffsets(ctx, t.name)
		if err != nil {
			t.b.Fatal(err)
		}
		var sum int64
		ends.Each(func(end kadm.ListedOffset) { sum += end.Offset })
		return sum >= int64(n), fmt.Sprintf("%d of %d records are in Kafka", sum, n)
	})
}
