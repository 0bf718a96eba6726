//go:build kafka

package bench

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

var largest = flag.Int("largest", 100_000, "rows of the largest outbox of BenchmarkGrowth; 10000000 take 13 GB of disk and some minutes to fill")

// growthSample is what one run on an outbox of so many rows showed; what a run does
// not have is 0.
type growthSample struct {
	What        string  `json:"what"` // fill, pending, history, start, drain, retention
	How         string  `json:"how,omitempty"`
	Rows        int     `json:"rows"` // in the outbox as it was made
	Round       int     `json:"round"`
	LoadAverage float64 `json:"load_average"` // of the machine, one minute, before the run

	Answered float64 `json:"answered_per_second,omitempty"`
	P50      float64 `json:"p50_ms,omitempty"`
	P99      float64 `json:"p99_ms,omitempty"`
	WorstP99 float64 `json:"worst_second_p99_ms,omitempty"` // of the answers of one second
	Gap      float64 `json:"longest_gap_ms,omitempty"`      // in which nobody was answered

	Written float64 `json:"written_bytes_per_result,omitempty"` // by the process: log, file, answers

	Open     float64 `json:"open_ms,omitempty"`    // from exec until somebody is connected
	Durable  float64 `json:"durable_ms,omitempty"` // from exec until a first result is answered
	Seconds  float64 `json:"seconds,omitempty"`    // of filling, of publishing, of deleting what is left
	Peak     float64 `json:"peak_mib,omitempty"`   // resident, of the process (VmHWM)
	Payload  int64   `json:"payload_bytes"`        // 1 KiB each
	File     int64   `json:"file_bytes"`           // before
	Log      int64   `json:"log_bytes"`            // likewise
	FileLeft int64   `json:"file_bytes_after"`     // after
	LogLeft  int64   `json:"log_bytes_after"`      // likewise
	Shrank   float64 `json:"shrank_s,omitempty"`   // from the load's end until no more pages are given back
	Held     int64   `json:"rows_after,omitempty"` // in the outbox
	Rate     float64 `json:"per_second,omitempty"` // rows that are put in, published or deleted
}

func (s growthSample) report(b *testing.B) {
	b.Helper()
	for _, m := range []struct {
		value float64
		unit  string
	}{
		{s.Answered, "answers/s"}, {s.P50, "p50-ms"}, {s.P99, "p99-ms"}, {s.WorstP99, "worst-second-p99-ms"}, {s.Gap, "longest-gap-ms"}, {s.Written, "written-B/result"},
		{s.Open, "open-ms"}, {s.Durable, "durable-ms"}, {s.Seconds, "s"}, {s.Rate, "rows/s"}, {s.Peak, "peak-MiB"},
		{float64(s.File) / float64(s.Payload), "file/payload"}, {float64(s.FileLeft) / (1 << 20), "file-after-MiB"},
	} {
		if m.value > 0 {
			b.ReportMetric(m.value, m.unit)
		}
	}
}

// growth is a run of BenchmarkGrowth.
type growth struct {
	*book
	Samples []growthSample `json:"samples"`

	dir   string
	kafka *testkit.Kafka
	made  map[string]string // directory of each outbox that was filled, by name
}

// BenchmarkGrowth measures how the sidecar is with few and with many results in
// its outbox: the sizes by turns, round by round. The rows are put in beforehand, by
// the outbox's own code; what the runs add is beside them. Small outboxes are new
// in each run, those of a million rows and more live through all.
func BenchmarkGrowth(b *testing.B) {
	kafka := testkit.SharedKafka(b)
	g := &growth{book: newBook(kafka.Addr()), kafka: kafka, dir: shortDir(b), made: make(map[string]string)}
	sizes := slices.DeleteFunc([]int{1_000, 100_000, 10_000_000}, func(n int) bool { return n > *largest })
	starts := slices.DeleteFunc([]int{1_000, 100_000, 1_000_000}, func(n int) bool { return n > *largest })
	deep := min(*largest, 1_000_000)
	requireRoom(b, g.dir, int64(*largest+4*deep)*1300)
	for _, rows := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(sizes, starts, []int{deep})))) {
		g.fill(b, rows)
	}
	for round := 1; round <= *rounds; round++ {
		for _, rows := range starts {
			for _, how := range []string{"clean end", "kill"} {
				g.add(b, growthSample{What: "start", How: how, Rows: rows, Round: round}, g.start)
			}
		}
		for _, rows := range sizes {
			g.add(b, growthSample{What: "pending", Rows: rows, Round: round}, g.intake)
		}
		writeSamples(b, g) // an interrupted run keeps its rounds
	}
	for round := 1; round <= *rounds; round++ {
		g.drainAndRetain(b, deep, round)
		writeSamples(b, g)
	}
	for _, rows := range sizes {
		markAll(b, g.made[filled(rows)])
	}
	for round := 1; round <= *rounds; round++ {
		for _, rows := range sizes {
			g.add(b, growthSample{What: "history", Rows: rows, Round: round}, g.intake)
		}
		writeSamples(b, g)
	}
}

func filled(rows int) string { return fmt.Sprintf("%d", rows) }

// add takes one sample.
func (g *growth) add(b *testing.B, s growthSample, run func(*testing.B, *growthSample)) {
	b.Helper()
	s.Payload = int64(s.Rows) * testkit.EventBytes
	name := strings.TrimSuffix(s.What+"/"+strings.ReplaceAll(s.How, " ", "-"), "/")
	b.Run(fmt.Sprintf("round=%d/%s/rows=%d", s.Round, name, s.Rows), func(b *testing.B) {
		unix.Sync() // what the run before left to be written is not this one's
		s.LoadAverage = loadAverage(b)
		for b.Loop() {
			run(b, &s)
		}
		s.report(b)
		g.Samples = append(g.Samples, s)
	})
}

// fill makes an outbox of so many pending rows.
func (g *growth) fill(b *testing.B, rows int) {
	b.Helper()
	dir := filepath.Join(g.dir, filled(rows))
	g.made[filled(rows)] = dir
	g.add(b, growthSample{What: "fill", Rows: rows}, func(b *testing.B, s *growthSample) {
		ids := randomIDs
		if rows > 1_000_000 {
			ids, s.How = evenIDs(rows), "IDs in order"
		}
		start := time.Now()
		fillOutbox(b, dir, rows, ids)
		s.Seconds = time.Since(start).Seconds()
		s.Rate = float64(rows) / s.Seconds
		s.File, s.Log = outboxBytes(b, dir)
	})
}

// outbox returns the outbox of so many rows: a small one anew each time.
func (g *growth) outbox(b *testing.B, rows int) string {
	b.Helper()
	dir := g.made[filled(rows)]
	if rows > 100_000 {
		return dir
	}
	copied := filepath.Join(shortDir(b), "data")
	copyOutbox(b, dir, copied)
	return copied
}

// place is a sidecar on the outbox in data, whose broker is away. It ends with
// pending results and is not given time for them.
func (g *growth) place(b *testing.B, data string, args ...string) *place {
	b.Helper()
	p := newPlace(b, nowhere, "exactly-once")
	p.data = data
	p.args = append([]string{"--max-rows", fmt.Sprint(largeRows), "--dedup-rows", fmt.Sprint(largeRows), "--max-bytes", fmt.Sprint(largeBytes),
		"--shutdown-timeout", "100ms"}, args...)
	return p
}

// intake is answers per second of 64 connections beside what the outbox holds.
func (g *growth) intake(b *testing.B, s *growthSample) {
	p := g.place(b, g.outbox(b, s.Rows))
	s.File, s.Log = outboxBytes(b, p.data)
	p.start()
	before := written(b, p.process.PID())
	all := watch(b, p.socket, *duration, nil)
	s.Written = float64(written(b, p.process.PID())-before) / float64(len(all))
	s.take(all)
	s.Peak = memory(b, p.process.PID(), "VmHWM")
	s.Held = p.status().Outbox.Held
	p.stop()
	s.FileLeft, s.LogLeft = outboxBytes(b, p.data)
}

// written is how many bytes a process has given to write(2) and its like (proc(5)):
// for the same results, in a larger outbox, more pages of the indexes.
func written(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		b.Fatal(err)
	}
	var read, wrote int64
	if _, err := fmt.Sscanf(string(text), "rchar: %d\nwchar: %d", &read, &wrote); err != nil {
		b.Fatal(err)
	}
	return wrote
}

// start is the time until the socket is open, after an end in order or after a
// kill while 64 connections send.
func (g *growth) start(b *testing.B, s *growthSample) {
	const before = 500 * time.Millisecond // of load
	p := g.place(b, g.outbox(b, s.Rows))
	p.start()
	if s.How == "kill" {
		kill := time.AfterFunc(before, func() { p.process.Kill(b) })
		defer kill.Stop()
		watch(b, p.socket, time.Minute, p.process.Done())
	} else {
		watch(b, p.socket, before, nil)
		p.stop()
	}
	s.File, s.Log = outboxBytes(b, p.data)
	began := time.Now()
	p.execute()
	c := connect(b, p.socket)
	s.Open = inMilliseconds(time.Since(began))
	first := testkit.SingleRequest()
	first.Renew()
	if status, err := c.Post(first.Bytes); err != nil || status != http.StatusCreated {
		b.Fatalf("the first result: %d %v", status, err)
	}
	s.Durable = inMilliseconds(time.Since(began))
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	s.Peak = memory(b, p.process.PID(), "VmHWM")
	s.Held = p.status().Outbox.Held
	p.process.WaitReady(b, p.socket)
	p.stop()
	s.FileLeft, s.LogLeft = outboxBytes(b, p.data)
}

// connect waits for a socket that takes connections.
func connect(b *testing.B, socket string) (c *testkit.BareClient) {
	b.Helper()
	poll(b, 500*time.Microsecond, time.Minute, func(context.Context) (bool, any) {
		var err error
		c, err = testkit.DialBare(socket)
		return err == nil, err
	})
	return c
}

// drainAndRetain publishes an outbox to Kafka, and then lets retention delete it,
// with and without results that come in beside.
func (g *growth) drainAndRetain(b *testing.B, rows, round int) {
	b.Helper()
	data := filepath.Join(shortDir(b), "data")
	copyOutbox(b, g.made[filled(rows)], data)
	topic := fmt.Sprintf("bench-%d", time.Now().UnixNano()) // one, for its watermark belongs to the outbox
	for _, step := range []struct {
		what, how string
		run       func(*place, *growthSample)
		args      []string
	}{
		{"drain", "", g.drain, nil},
		{"retention", "off", g.retain, nil},
		{"retention", "payloads", g.retain, []string{"--history", "0s"}},
		{"retention", "rows", g.retain, keepNothing},
		{"shrink", "", g.shrink, keepNothing},
	} {
		g.add(b, growthSample{What: step.what, How: step.how, Rows: rows, Round: round}, func(b *testing.B, s *growthSample) {
			p := g.place(b, data, step.args...)
			p.topic = topic
			s.File, s.Log = outboxBytes(b, data)
			step.run(p, s)
			s.Peak = memory(b, p.process.PID(), "VmHWM")
			s.Held = p.status().Outbox.Held
			p.stop()
			s.FileLeft, s.LogLeft = outboxBytes(b, data)
		})
	}
	deleteTopics(b, g.kafka, topic, topic+"-watermarks")
}

// keepNothing lets retention take what is published.
var keepNothing = []string{"--history", "0s", "--dedup-window", "0s"}

func (g *growth) drain(p *place, s *growthSample) {
	p.broker = g.kafka.Addr()
	p.startPublishing()
	start, pending := time.Now(), p.status().Outbox.Pending
	p.drained()
	s.Seconds = time.Since(start).Seconds()
	s.Rate = float64(pending) / s.Seconds
}

// retain is intake beside a history: all is kept, or retention takes the payloads,
// or the rows. It has more to do than there is time.
func (g *growth) retain(p *place, s *growthSample) {
	d := *duration
	if s.How != "off" {
		d *= 2
	}
	p.start()
	before := p.status().Outbox.Held
	all := watch(p.b, p.socket, d, nil)
	s.take(all)
	if s.How == "rows" {
		s.Rate = float64(before+int64(len(all))-p.status().Outbox.Held) / d.Seconds()
	}
}

// shrink publishes what is left, and waits until retention has deleted all of it.
func (g *growth) shrink(p *place, s *growthSample) {
	p.broker = g.kafka.Addr()
	p.startPublishing()
	p.drained()
	start := time.Now()
	p.await(func(s status) bool { return s.Outbox.Held == 0 })
	p.shrunk()
	s.Seconds = time.Since(start).Seconds()
}

// shrunk waits until retention gives no more pages back: what is free then is a
// reserve.
func (p *place) shrunk() {
	p.b.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(p.data, outboxFile)+"?mode=ro")
	if err != nil {
		p.b.Fatal(err)
	}
	defer db.Close()
	const reserve = 1024
	poll(p.b, 20*time.Millisecond, 5*time.Minute, func(context.Context) (bool, any) {
		var free, pages int64
		if err := db.QueryRow(`SELECT * FROM pragma_freelist_count, pragma_page_count`).Scan(&free, &pages); err != nil {
			return false, err
		}
		return free <= max(reserve, pages/10), fmt.Sprintf("%d of %d pages are free", free, pages)
	})
}

// answered is one answer.
type answered struct{ at, took time.Duration } // since the start of the load

// watch lets 64 connections send results for d, or until done, and returns all
// answers in the order in which they came.
func watch(b *testing.B, socket string, d time.Duration, done <-chan struct{}) []answered {
	b.Helper()
	const conns = 64
	ctx, cancel := context.WithTimeout(b.Context(), d)
	defer cancel()
	go func() {
		select {
		case <-done:
			cancel()
		case <-ctx.Done():
		}
	}()
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		all []answered
	)
	start := time.Now()
	for range conns {
		wg.Go(func() {
			var own []answered
			err := sendEach(ctx, socket, http.StatusCreated, testkit.SingleRequest(), func(sent, end time.Time) {
				own = append(own, answered{end.Sub(start), end.Sub(sent)})
			})
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
			if err != nil && done == nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b answered) int { return int(a.at - b.at) })
	return all
}

// take makes a load's figures of its answers.
func (s *growthSample) take(all []answered) {
	if len(all) == 0 {
		return
	}
	p99 := func(part []answered) (p50, p99 time.Duration) {
		m := measured{}
		for _, a := range part {
			m.latencies = append(m.latencies, a.took)
		}
		slices.Sort(m.latencies)
		return m.quantile(0.5), m.quantile(0.99)
	}
	end := all[len(all)-1].at
	s.Answered = float64(len(all)) / end.Seconds()
	p50, whole := p99(all)
	s.P50, s.P99 = inMilliseconds(p50), inMilliseconds(whole)
	last, first := time.Duration(0), 0
	for i, a := range all {
		s.Gap = max(s.Gap, inMilliseconds(a.at-last))
		last = a.at
		if a.at-all[first].at >= time.Second || i == len(all)-1 {
			_, worst := p99(all[first : i+1])
			s.WorstP99 = max(s.WorstP99, inMilliseconds(worst))
			first = i
		}
	}
}
