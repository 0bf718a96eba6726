//go:build kafka

package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

var (
	rounds      = flag.Int("rounds", 1, "how often BenchmarkPeers and BenchmarkGrowth measure each thing")
	samplesFile = flag.String("samples", "", "where BenchmarkPeers, BenchmarkGrowth or BenchmarkFleet writes its samples (JSON)")
)

// sample is what one run of one system showed. What a system does not have is 0:
// a limit publishes nothing, rsyslog answers nothing.
type sample struct {
	System      string  `json:"system"`
	Connections int     `json:"connections"`
	Round       int     `json:"round"`
	Results     int     `json:"results"`
	Answered    float64 `json:"answered_per_second"`
	EndToEnd    float64 `json:"end_to_end_per_second"` // from the first request until all are in Kafka
	P50         float64 `json:"p50_ms"`
	P99         float64 `json:"p99_ms"`
	CPU         float64 `json:"cpu_us_per_result"` // user and system, until all are in Kafka
	RSS         float64 `json:"rss_mib"`           // at the end of the load
	LoadAverage float64 `json:"load_average"`      // of the machine, one minute, before the run
}

// answers is a sample of m, whose requests had so many results each.
func answers(m measured, rows int) sample {
	s := sample{Results: m.requests * rows, Answered: float64(m.requests*rows) / m.elapsed.Seconds()}
	if len(m.latencies) > 0 {
		s.P50, s.P99 = inMilliseconds(m.quantile(0.5)), inMilliseconds(m.quantile(0.99))
	}
	return s
}

// spend notes what the results cost.
func (s *sample) spend(cpu time.Duration) {
	s.CPU = float64(cpu) / float64(time.Microsecond) / float64(s.Results)
}

func (s sample) report(b *testing.B) {
	b.Helper()
	for _, m := range []struct {
		value float64
		unit  string
	}{
		{s.Answered, "answers/s"}, {s.EndToEnd, "end-to-end/s"}, {s.P50, "p50-ms"}, {s.P99, "p99-ms"},
		{s.CPU, "CPU-us/result"}, {s.RSS, "RSS-MiB"},
	} {
		if m.value > 0 {
			b.ReportMetric(m.value, m.unit)
		}
	}
}

// contender is the sidecar, a peer or a limit; run measures it once.
type contender struct {
	name string
	run  func(b *testing.B, conns int) sample
}

// BenchmarkPeers measures the sidecar beside what a user would pick instead, and
// beside what bounds it: everything by turns, round by round, on one broker.
// Before each peer the sidecar runs again, so that each has a neighbour in time
// to be compared with.
func BenchmarkPeers(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	peers := requirePeers(b, kafka)
	sidecar := contender{"sidecar", func(b *testing.B, conns int) sample {
		return runSidecar(b, kafka, "exactly-once", conns, 1)
	}}
	alone := limits(kafka)
	book := newBook(kafka.Addr())
	for round := 1; round <= *rounds; round++ {
		for _, conns := range []int{1, 64, 256, 1000} {
			for _, peer := range peers {
				book.add(b, round, conns, sidecar)
				book.add(b, round, conns, peer)
			}
		}
		for _, limit := range alone {
			book.add(b, round, 0, limit)
		}
		book.write(b) // an interrupted run keeps its rounds
	}
}

// book is the record of a run.
type book struct {
	broker  string
	Date    string   `json:"date"`
	CPUs    int      `json:"cpus"`
	Kernel  string   `json:"kernel"`
	Seconds float64  `json:"seconds_per_run"`
	Samples []sample `json:"samples"`
}

func newBook(broker string) *book {
	k := &book{broker: broker, Date: time.Now().UTC().Format(time.DateOnly), CPUs: runtime.NumCPU(), Seconds: duration.Seconds()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		k.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	}
	return k
}

// add measures one contender. A run that fails is reported and leaves no sample;
// without a broker all would, each after minutes.
func (k *book) add(b *testing.B, round, conns int, c contender) {
	b.Helper()
	conn, err := net.Dial("tcp", k.broker)
	if err != nil {
		b.Fatalf("the broker has ended: %v", err)
	}
	if err := conn.Close(); err != nil {
		b.Fatal(err)
	}
	b.Run(fmt.Sprintf("round=%d/conns=%d/%s", round, conns, strings.ReplaceAll(c.name, " ", "-")), func(b *testing.B) {
		unix.Sync() // what the run before left to be written is not this one's
		load := loadAverage(b)
		var s sample
		for b.Loop() {
			s = c.run(b, conns)
		}
		s.System, s.Connections, s.Round, s.LoadAverage = c.name, conns, round, load
		s.report(b)
		k.Samples = append(k.Samples, s)
	})
}

func (k *book) write(b *testing.B) {
	b.Helper()
	writeSamples(b, k)
}

// writeSamples writes what a run showed to -samples.
func writeSamples(b *testing.B, run any) {
	b.Helper()
	if *samplesFile == "" {
		return
	}
	text, err := json.MarshalIndent(run, "", " ")
	if err == nil {
		err = os.WriteFile(*samplesFile, append(text, '\n'), 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
}

func loadAverage(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	load, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return load
}

// server is a process that takes results over HTTP.
type server struct {
	pid     int
	address string
	want    int // status of an answer
	request func() *testkit.BareRequest
	rows    int               // results in a request
	arrived func(results int) // waits until so many are in Kafka; nil: it publishes nothing
}

// measure sends one request to wake everything up, and then the load.
func (s server) measure(b *testing.B, conns int) sample {
	b.Helper()
	c, err := testkit.DialBare(s.address)
	if err != nil {
		b.Fatal(err)
	}
	first := s.request()
	first.Renew()
	if status, err := c.Post(first.Bytes); err != nil || status != s.want {
		b.Fatalf("the first request: %d %v", status, err)
	}
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	if s.arrived != nil {
		s.arrived(s.rows)
	}
	cpu, start := cpuTime(b, s.pid), time.Now()
	m := runLoad(b, s.address, conns, *duration, s.want, s.request)
	out := answers(m, s.rows)
	out.RSS = memory(b, s.pid, "VmRSS")
	if s.arrived != nil {
		s.arrived(s.rows + out.Results)
		out.EndToEnd = float64(out.Results) / time.Since(start).Seconds()
	}
	out.spend(cpuTime(b, s.pid) - cpu)
	return out
}

// runSidecar measures the sidecar with so many results in each request.
func runSidecar(b *testing.B, kafka *testkit.Kafka, delivery string, conns, rows int) sample {
	b.Helper()
	p := newPlace(b, kafka.Addr(), delivery)
	p.startPublishing()
	s := server{pid: p.process.PID(), address: p.socket, want: http.StatusCreated, request: testkit.SingleRequest, rows: rows,
		arrived: func(int) { p.drained() }}
	if rows > 1 {
		s.want, s.request = http.StatusOK, func() *testkit.BareRequest { return testkit.BatchRequest(rows) }
	}
	out := s.measure(b, conns)
	p.stop()
	deleteTopics(b, kafka, p.topic, p.topic+"-watermarks")
	return out
}

// cpuTime is what a process has used, user and system: its clock (clock_getcpuclockid(3)).
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	const ofAllThreads = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofAllThreads), &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}
