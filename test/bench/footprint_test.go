//go:build kafka

package bench

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"workflow-results-sidecar/internal/testkit"
)

// BenchmarkFootprint measures memory, start time and the size of the binary.
func BenchmarkFootprint(b *testing.B) {
	kafka := testkit.SharedKafka(b).Addr()
	b.Run("idle", func(b *testing.B) {
		for b.Loop() {
			p := newPlace(b, kafka, "exactly-once")
			p.startPublishing()
			time.Sleep(5 * time.Second)   // the start's own work is over then
			const idle = 30 * time.Second // the kernel counts by hundredths of a second
			before := cpuTime(b, p.process.PID())
			time.Sleep(idle)
			b.ReportMetric(100*(cpuTime(b, p.process.PID())-before).Seconds()/idle.Seconds(), "idle-CPU-%")
			reportMemory(b, p)
			p.stop()
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			p := newPlace(b, kafka, "exactly-once")
			p.startPublishing()
			runLoad(b, p.socket, 64, *duration, http.StatusCreated, testkit.SingleRequest)
			reportMemory(b, p)
			p.drained()
			p.stop()
		}
	})
	b.Run("pending=1000000", func(b *testing.B) {
		for b.Loop() {
			benchMillion(b, kafka)
		}
	})
	b.Run("start", func(b *testing.B) {
		for b.Loop() {
			p := newPlace(b, kafka, "exactly-once")
			p.start()
			p.stop()
			milliseconds(b, startTime(b, p), "start-ms")
			p.stop()
		}
	})
	b.Run("binary", func(b *testing.B) {
		for b.Loop() {
			st, err := os.Stat(sidecarBinary(b))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(st.Size())/(1<<20), "MiB")
		}
	})
}

// benchMillion fills an outbox while the broker is away, starts it again after a
// kill, and lets it publish.
func benchMillion(b *testing.B, kafka string) {
	const million = 1_000_000
	p := newPlace(b, nowhere, "exactly-once")
	p.start()
	fill(b, p.socket, million)
	reportMemoryAs(b, p, "filled-")
	p.process.Kill(b)
	p.broker = kafka
	milliseconds(b, startTime(b, p), "start-after-kill-ms")
	start := time.Now()
	progress := [][]string{{"seconds", "published"}}
	var last time.Duration
	p.await(func(s status) bool {
		if now := time.Since(start); now-last > 100*time.Millisecond || s.Outbox.Pending == 0 {
			last = now
			progress = append(progress, []string{fmt.Sprintf("%.2f", now.Seconds()), strconv.FormatInt(million-s.Outbox.Pending, 10)})
		}
		return s.Outbox.Pending == 0
	})
	perSecond(b, million, time.Since(start), "drained/s")
	writeProgress(b, progress)
	reportMemoryAs(b, p, "drained-")
	p.stop()
}

// backlogCSV is where the way of the last backlog goes, ten lines a second.
var backlogCSV = flag.String("backlog-csv", "", "where BenchmarkFootprint writes how a million results were published")

func writeProgress(b *testing.B, lines [][]string) {
	b.Helper()
	if *backlogCSV == "" {
		return
	}
	f, err := os.Create(*backlogCSV)
	if err == nil {
		err = errors.Join(csv.NewWriter(f).WriteAll(lines), f.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
}

// startTime is from the start of the process to the first answer on its socket.
func startTime(b *testing.B, p *place) time.Duration {
	b.Helper()
	start := time.Now()
	p.start()
	return time.Since(start)
}

func reportMemory(b *testing.B, p *place) { reportMemoryAs(b, p, "") }

// reportMemoryAs reports resident memory now and at its peak, of the process.
func reportMemoryAs(b *testing.B, p *place, prefix string) {
	b.Helper()
	b.ReportMetric(memory(b, p.process.PID(), "VmRSS"), prefix+"RSS-MiB")
	b.ReportMetric(memory(b, p.process.PID(), "VmHWM"), prefix+"peak-MiB")
}

// memory reads a field of /proc/PID/status (proc(5)), in MiB.
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib / 1024
		}
	}
	b.Fatalf("%s is not in the process's status", field)
	return 0
}
