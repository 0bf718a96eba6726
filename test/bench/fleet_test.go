//go:build kafka

package bench

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"workflow-results-sidecar/internal/testkit"
)

var (
	fleetSize = flag.Int("fleet", 20, "how many sidecars BenchmarkFleet starts")
	fleetRate = flag.Float64("fleet-rate", 1, "results per second that each of them is given")
	fleetIdle = flag.Duration("fleet-idle", time.Minute, "how long they are watched idle; a sidecar looks at its topics once a minute")
)

// startedAtOnce is how many sidecars of a fleet start at a time: a fleet's own
// start is a wave too, but two processors would show the waiting for themselves.
const startedAtOnce = 10

// fleetSample is what a fleet of one kind of delivery showed. CPU is in
// processors: 1 is one that is always busy.
type fleetSample struct {
	Delivery    string  `json:"delivery"`
	Sidecars    int     `json:"sidecars"`
	LoadAverage float64 `json:"load_average"`
	Start       float64 `json:"start_seconds"` // until all publish

	Results         int     `json:"results"`
	Answered        float64 `json:"answered_per_second"`
	Transactions    float64 `json:"transactions_per_second"`
	P50             float64 `json:"p50_ms"` // from before the POST until a read_committed reader has it
	P99             float64 `json:"p99_ms"`
	BrokerCPU       float64 `json:"broker_cpu"`
	BrokerCPUResult float64 `json:"broker_cpu_us_per_result"` // what it takes idle is taken off
	SidecarsCPU     float64 `json:"sidecars_cpu"`             // of all
	Requests        float64 `json:"requests_per_second"`      // at the broker: segments with data that came

	BrokerRSS   float64 `json:"broker_rss_mib"`
	SidecarRSS  float64 `json:"sidecar_rss_mib"` // median
	SidecarsRSS float64 `json:"sidecars_rss_mib"`
	Connections int     `json:"connections"` // at the broker
	Files       int     `json:"broker_files"`

	TransactionalIDs   int     `json:"transactional_ids"`
	ProducerIDs        int     `json:"producer_ids"`    // on any partition of the two topics
	ProducerStates     int     `json:"producer_states"` // one for each partition and each producer on it
	WatermarkRecords   int64   `json:"watermark_records"`
	WatermarkBytes     int64   `json:"watermark_bytes"`
	StateBytes         int64   `json:"transaction_state_bytes"`
	WatermarkBytesEach float64 `json:"watermark_bytes_per_transaction"`
	StateBytesEach     float64 `json:"transaction_state_bytes_per_transaction"`
	ResultBytesEach    float64 `json:"result_bytes_per_result"`

	IdleBrokerCPU   float64 `json:"idle_broker_cpu"`
	IdleSidecarsCPU float64 `json:"idle_sidecars_cpu"`
	IdleOpened      float64 `json:"idle_connections_opened_per_second"` // of the whole machine
	IdleConnections int     `json:"idle_connections"`

	// One sidecar more, with an empty data directory: it looks through all watermarks.
	Newcomer        float64 `json:"newcomer_seconds"`             // until it publishes, beside the fleet's watermarks
	NewcomerForeign float64 `json:"newcomer_seconds_foreign"`     // beside those and as many more
	Foreign         int     `json:"foreign_watermarks,omitempty"` // which were added
	ForeignBytes    int64   `json:"foreign_watermark_bytes"`
}

// BenchmarkFleet starts many sidecars beside one broker, each with its own outbox,
// gives each a few results, and lets them be idle: what one broker has to bear.
func BenchmarkFleet(b *testing.B) {
	found := struct {
		*book
		Idle    float64       `json:"seconds_idle"`
		Rate    float64       `json:"results_per_second_each"`
		Samples []fleetSample `json:"samples"`
	}{book: newBook(""), Idle: fleetIdle.Seconds(), Rate: *fleetRate}
	for _, delivery := range []string{"exactly-once", "at-least-once"} {
		b.Run(delivery, func(b *testing.B) {
			for b.Loop() {
				f := newFleet(b, delivery)
				f.start()
				f.load()
				f.count()
				f.idle()
				f.newcomers()
				f.stop()
				f.report()
				found.Samples = append(found.Samples, f.sample)
			}
		})
	}
	writeSamples(b, found)
}

type fleet struct {
	b        *testing.B
	kafka    *testkit.Kafka // its own: a broker that others have used has more to hold
	adm      *kadm.Client
	topic    string
	sidecars []*place
	reader   *arrivals
	looked   map[string]float64 // segments on each connection at the last look
	came     float64            // and on all since the first
	sample   fleetSample
}

func newFleet(b *testing.B, delivery string) *fleet {
	b.Helper()
	f := &fleet{b: b, topic: "fleet", looked: map[string]float64{}, sample: fleetSample{Delivery: delivery, Sidecars: *fleetSize, LoadAverage: loadAverage(b)}}
	// As many partitions of the transactions' log as a broker has by default.
	f.kafka = testkit.StartKafka(b, testkit.WithProperties("transaction.state.log.num.partitions=50"))
	f.adm = kadm.NewClient(f.kafka.Client(b))
	return f
}

// start starts the sidecars in waves, each when the one before publishes.
func (f *fleet) start() {
	f.b.Helper()
	began := time.Now()
	for len(f.sidecars) < f.sample.Sidecars {
		wave := f.sidecars[len(f.sidecars):]
		for range min(startedAtOnce, f.sample.Sidecars-len(f.sidecars)) {
			p := newPlace(f.b, f.kafka.Addr(), f.sample.Delivery)
			p.topic = f.topic
			p.execute()
			wave = append(wave, p)
		}
		for _, p := range wave {
			p.process.WaitReady(f.b, p.socket)
			poll(f.b, 50*time.Millisecond, time.Minute, func(context.Context) (bool, any) {
				s := p.status()
				return s.Publisher.State == "publishing", s
			})
		}
		f.sidecars = append(f.sidecars, wave...)
	}
	f.sample.Start = time.Since(began).Seconds()
}

// load gives each sidecar its few results per second, from its own random moment on.
func (f *fleet) load() {
	f.b.Helper()
	f.reader = readArrivals(f.b, f.kafka, f.topic)
	every := time.Duration(float64(time.Second) / *fleetRate)
	broker, all, before := cpuTime(f.b, f.kafka.PID(f.b)), f.cpu(), f.ends()
	requests := f.requests()
	ctx, cancel := context.WithTimeout(f.b.Context(), *duration)
	defer cancel()
	g, began := errgroup.Group{}, time.Now()
	for _, p := range f.sidecars {
		g.Go(func() error { return f.reader.send(ctx, p.socket, every) })
	}
	if err := g.Wait(); err != nil {
		f.b.Fatal(err)
	}
	took := time.Since(began)
	f.sample.Requests = (f.requests() - requests) / took.Seconds()
	f.sample.BrokerCPU = (cpuTime(f.b, f.kafka.PID(f.b)) - broker).Seconds() / took.Seconds()
	f.sample.SidecarsCPU = (f.cpu() - all).Seconds() / took.Seconds()
	latencies := f.reader.await(f.b)
	m := measured{latencies: latencies}
	f.sample.Results, f.sample.P50, f.sample.P99 = len(latencies), inMilliseconds(m.quantile(0.5)), inMilliseconds(m.quantile(0.99))
	f.sample.Answered = float64(len(latencies)) / took.Seconds()
	// A transaction leaves its watermark and the marker behind it.
	f.sample.Transactions = float64(f.ends()-before) / 2 / took.Seconds()
}

// count looks at what the broker holds.
func (f *fleet) count() {
	f.b.Helper()
	s, rss := &f.sample, make([]float64, 0, len(f.sidecars))
	for _, p := range f.sidecars {
		rss = append(rss, memory(f.b, p.process.PID(), "VmRSS"))
		s.SidecarsRSS += rss[len(rss)-1]
	}
	slices.Sort(rss)
	s.SidecarRSS = rss[len(rss)/2]
	s.BrokerRSS = memory(f.b, f.kafka.PID(f.b), "VmRSS")
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", f.kafka.PID(f.b)))
	if err != nil {
		f.b.Fatal(err)
	}
	s.Files, s.Connections = len(files), len(f.connections())
	ids, err := f.adm.ListTransactions(f.b.Context(), nil, nil)
	if err != nil {
		f.b.Fatal(err)
	}
	for id := range ids {
		if strings.HasPrefix(id, f.topic+"-") {
			s.TransactionalIDs++
		}
	}
	f.countProducers()
	s.WatermarkRecords = f.ends()
	bytes := f.bytes()
	s.WatermarkBytes, s.StateBytes = bytes[f.topic+"-watermarks"], bytes["__transaction_state"]
	s.ResultBytesEach = float64(bytes[f.topic]) / float64(s.Results)
	if n := float64(s.WatermarkRecords) / 2; n > 0 {
		s.WatermarkBytesEach, s.StateBytesEach = float64(s.WatermarkBytes)/n, float64(s.StateBytes)/n
	}
}

func (f *fleet) countProducers() {
	f.b.Helper()
	var topics kadm.TopicsSet
	for _, t := range f.topics() {
		topics.Add(t.Topic, t.Partitions.Numbers()...)
	}
	producers, err := f.adm.DescribeProducers(f.b.Context(), topics)
	if err != nil {
		f.b.Fatal(err)
	}
	distinct := map[int64]bool{}
	producers.EachProducer(func(p kadm.DescribedProducer) {
		distinct[p.ProducerID] = true
		f.sample.ProducerStates++
	})
	f.sample.ProducerIDs = len(distinct)
}

// idle watches them doing nothing; the reader's requests would be most of what comes.
func (f *fleet) idle() {
	f.b.Helper()
	f.reader.stop()
	s := &f.sample
	broker, all, opened, began := cpuTime(f.b, f.kafka.PID(f.b)), f.cpu(), passiveOpens(f.b), time.Now()
	time.Sleep(*fleetIdle)
	took := time.Since(began).Seconds()
	s.IdleBrokerCPU = (cpuTime(f.b, f.kafka.PID(f.b)) - broker).Seconds() / took
	s.IdleSidecarsCPU = (f.cpu() - all).Seconds() / took
	s.IdleOpened = (passiveOpens(f.b) - opened) / took
	s.IdleConnections = len(f.connections())
	s.BrokerCPUResult = (s.BrokerCPU - s.IdleBrokerCPU) / s.Answered * 1e6
}

// foreignWatermarks is what a fleet of 10 000 leaves in 20 s, with a result per second each.
const foreignWatermarks = 200_000

// newcomers starts a sidecar more, twice: a new outbox has no place of its own in
// the watermark topic to read from.
func (f *fleet) newcomers() {
	f.b.Helper()
	f.sample.Newcomer = f.newcomer()
	if f.sample.Delivery != "exactly-once" {
		return
	}
	name := f.topic + "-watermarks"
	before := f.bytes()[name]
	// As small batches as the client makes: a fleet's have one record each.
	cl := f.kafka.Client(f.b, kgo.DefaultProduceTopic(name), kgo.ProducerBatchMaxBytes(1<<10), kgo.ProducerBatchCompression(kgo.NoCompression()))
	value := make([]byte, 64)
	promise := kgo.AbortingFirstErrPromise(cl)
	for range foreignWatermarks {
		id := uuid.New().String()
		cl.Produce(f.b.Context(), &kgo.Record{Key: []byte(id), Value: value}, promise.Promise())
	}
	if err := errors.Join(cl.Flush(f.b.Context()), promise.Err()); err != nil {
		f.b.Fatal(err)
	}
	f.sample.Foreign, f.sample.ForeignBytes = foreignWatermarks, f.bytes()[name]-before
	f.sample.NewcomerForeign = f.newcomer()
}

func (f *fleet) newcomer() float64 {
	f.b.Helper()
	p := newPlace(f.b, f.kafka.Addr(), f.sample.Delivery)
	p.topic = f.topic
	began := time.Now()
	p.startPublishing()
	took := time.Since(began).Seconds()
	p.stop()
	return took
}

// stop ends all at once, as a rollout does.
func (f *fleet) stop() {
	f.b.Helper()
	for _, p := range f.sidecars {
		p.process.Term(f.b)
	}
	for _, p := range f.sidecars {
		if code := p.process.Wait(f.b); code != 0 {
			f.b.Errorf("a sidecar ended with %d", code)
		}
	}
}

func (f *fleet) report() {
	f.b.Helper()
	s := f.sample
	for unit, value := range map[string]float64{
		"answers/s": s.Answered, "transactions/s": s.Transactions, "p50-ms": s.P50, "p99-ms": s.P99, "broker-CPU": s.BrokerCPU,
		"sidecars-CPU": s.SidecarsCPU, "RSS-MiB": s.SidecarRSS, "idle-broker-CPU": s.IdleBrokerCPU, "idle-opened/s": s.IdleOpened,
	} {
		f.b.ReportMetric(value, unit)
	}
}

// cpu is what all sidecars have used.
func (f *fleet) cpu() (sum time.Duration) {
	for _, p := range f.sidecars {
		sum += cpuTime(f.b, p.process.PID())
	}
	return sum
}

// topics are those of the fleet; with at-least-once there are no watermarks.
func (f *fleet) topics() []kadm.TopicDetail {
	f.b.Helper()
	found, err := f.adm.ListTopics(f.b.Context(), f.topic, f.topic+"-watermarks")
	if err != nil {
		f.b.Fatal(err)
	}
	return slices.DeleteFunc(found.Sorted(), func(t kadm.TopicDetail) bool { return t.Err != nil })
}

// ends is the sum of the watermark topic's ends.
func (f *fleet) ends() (sum int64) {
	f.b.Helper()
	for _, t := range f.topics() {
		if t.Topic != f.topic+"-watermarks" {
			continue
		}
		ends, err := f.adm.ListEndOffsets(f.b.Context(), t.Topic)
		if err != nil {
			f.b.Fatal(err)
		}
		ends.Each(func(end kadm.ListedOffset) { sum += end.Offset })
	}
	return sum
}

// bytes is what each topic takes on the broker's disk.
func (f *fleet) bytes() map[string]int64 {
	f.b.Helper()
	dirs, err := f.adm.DescribeAllLogDirs(f.b.Context(), nil)
	if err != nil {
		f.b.Fatal(err)
	}
	found := map[string]int64{}
	dirs.Each(func(dir kadm.DescribedLogDir) {
		for topic, partitions := range dir.Topics {
			for _, p := range partitions {
				found[topic] += p.Size
			}
		}
	})
	return found
}

var segments = regexp.MustCompile(`\bdata_segs_in:([0-9]+)`)

// connections is how many segments with data have come on each connection at the
// broker, by the other end's address, as the kernel tells: a request is one, a
// large one several.
func (f *fleet) connections() map[string]float64 {
	f.b.Helper()
	_, port, err := net.SplitHostPort(f.kafka.Addr())
	if err != nil {
		f.b.Fatal(err)
	}
	out, err := exec.Command("ss", "-HtniO", "state", "established", "sport", "=", ":"+port).Output()
	if err != nil {
		f.b.Fatalf("%v: the kernel's account of connections; install it (Debian, Ubuntu): apt-get install iproute2", err)
	}
	found := map[string]float64{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line) // queued in, queued out, our address, theirs
		if len(fields) < 4 {
			continue
		}
		found[fields[3]] = 0
		if m := segments.FindStringSubmatch(line); m != nil {
			if found[fields[3]], err = strconv.ParseFloat(m[1], 64); err != nil {
				f.b.Fatal(err)
			}
		}
	}
	return found
}

// requests is how many have come since the fleet's first look. A connection is
// idle for half a minute before its client closes it: who looks more often misses
// nothing of it.
func (f *fleet) requests() float64 {
	f.b.Helper()
	for other, n := range f.connections() {
		if last := f.looked[other]; n >= last {
			f.came += n - last
		} else { // another connection, from the same port
			f.came += n
		}
		f.looked[other] = n
	}
	return f.came
}

// passiveOpens is how many TCP connections this machine has taken since its start
// (RFC 4022). A sidecar's look at its topics is over too soon to be seen among
// those that are open.
func passiveOpens(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		b.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		n, err := strconv.ParseFloat(fields[slices.Index(names, "PassiveOpens")], 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	b.Fatal("/proc/net/snmp has no Tcp line")
	return 0
}

// arrivals matches results with those who sent them.
type arrivals struct {
	mu        sync.Mutex
	sent      map[string]time.Time
	latencies []time.Duration
	arrived   chan struct{} // one that may be waited for has arrived
	stop      func()
}

// readArrivals reads a topic from its end on, until the benchmark ends.
func readArrivals(b *testing.B, kafka *testkit.Kafka, topic string) *arrivals {
	b.Helper()
	a := &arrivals{sent: map[string]time.Time{}, arrived: make(chan struct{}, 1)}
	offsets, err := kadm.NewClient(kafka.Client(b)).ListEndOffsets(b.Context(), topic)
	if err != nil {
		b.Fatal(err)
	}
	cl := kafka.Client(b, kgo.ConsumePartitions(offsets.KOffsets()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(time.Second))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			fetches := cl.PollFetches(ctx)
			a.take(fetches, time.Now())
		}
	}()
	a.stop = func() { cancel(); <-done; cl.Close() }
	b.Cleanup(a.stop)
	return a
}

func (a *arrivals) take(fetches kgo.Fetches, at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fetches.EachRecord(func(r *kgo.Record) {
		if sent, known := a.sent[string(r.Key)]; known {
			a.latencies = append(a.latencies, at.Sub(sent))
			delete(a.sent, string(r.Key))
		}
	})
	select {
	case a.arrived <- struct{}{}:
	default:
	}
}

// send sends a result to one sidecar every so often.
func (a *arrivals) send(ctx context.Context, socket string, every time.Duration) error {
	c, err := testkit.DialBare(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	req := testkit.SingleRequest()
	next := time.NewTimer(rand.N(every))
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			next.Reset(every)
		}
		req.Renew()
		a.mu.Lock()
		a.sent[correlationOf(req)] = time.Now()
		a.mu.Unlock()
		status, err := c.Post(req.Bytes)
		if err := cmp.Or(err, unexpected(status)); err != nil {
			return fmt.Errorf("%s: %w", filepath.Dir(socket), err)
		}
	}
}

func unexpected(status int) error {
	if status == http.StatusCreated {
		return nil
	}
	return fmt.Errorf("answered %d", status)
}

// await waits until everything sent has arrived; the latencies are sorted.
func (a *arrivals) await(b *testing.B) []time.Duration {
	b.Helper()
	limit := time.After(2 * time.Minute)
	for {
		a.mu.Lock()
		left := len(a.sent)
		a.mu.Unlock()
		if left == 0 {
			slices.Sort(a.latencies)
			return a.latencies
		}
		select {
		case <-a.arrived:
		case <-limit:
			b.Fatalf("%d results have not arrived after two minutes", left)
		}
	}
}
