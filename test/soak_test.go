//go:build kafka

package test

import (
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"workflow-results-sidecar/internal/testkit"
)

var (
	soakFor = flag.Duration("soak", 0, "how long TestSoak runs; it needs some minutes until retention has caught up")
	soakCSV = flag.String("soak-csv", "", "where TestSoak writes its samples")
)

const (
	soakRate     = 500 // results per second
	soakInterval = 10 * time.Second
)

// soakSample is what is looked at while time passes.
type soakSample struct {
	Seconds, RSS, File, WAL, Descriptors, Goroutines, Held, Pending float64
}

var soakFields = []string{"seconds", "rss_bytes", "file_bytes", "wal_bytes", "descriptors", "goroutines", "held", "pending"}

func (s soakSample) values() []float64 {
	return []float64{s.Seconds, s.RSS, s.File, s.WAL, s.Descriptors, s.Goroutines, s.Held, s.Pending}
}

// TestSoak: at a steady rate, with retention on, nothing grows.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("it takes an hour: make soak")
	}
	broker := testkit.SharedKafka(t)
	// Retention has its first pass behind it in the first quarter of the time.
	history, window := *soakFor/20, *soakFor/10
	l := newLine(t, broker.Addr(), "--history", history.String(), "--dedup-window", window.String())
	p := l.start()
	ctx, cancel := context.WithTimeout(t.Context(), *soakFor)
	defer cancel()
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 8, Sizes: []int{300, 1000, 500}, Keys: 100, Rate: soakRate})
	samples := l.sampleUntil(ctx)
	if *soakCSV != "" {
		if err := writeSoak(*soakCSV, samples); err != nil {
			t.Error(err)
		}
	}
	// Between the second and the last quarter: before, the outbox fills up to its windows.
	quarter := len(samples) / 4
	early, late := samples[quarter:2*quarter], samples[3*quarter:]
	for i, field := range soakFields[1:] {
		a, b := median(early, i+1), median(late, i+1)
		t.Logf("%-12s %14.0f → %14.0f", field, a, b)
		if b > a*1.2+flatSlack[field] {
			t.Errorf("%s grew from %.0f to %.0f", field, a, b)
		}
	}
	l.finish(p, load)
	t.Logf("%d results in %s", len(load.Acked()), *soakFor)
}

// flatSlack is how much a figure may differ without growing: where it is small,
// a fifth of it is noise.
var flatSlack = map[string]float64{"rss_bytes": 4 << 20, "wal_bytes": 4 << 20, "descriptors": 4, "goroutines": 10, "pending": soakRate}

func (l *line) sampleUntil(ctx context.Context) []soakSample {
	l.t.Helper()
	start := time.Now()
	tick := time.NewTicker(soakInterval)
	defer tick.Stop()
	var samples []soakSample
	for {
		select {
		case <-tick.C:
			s, err := l.sample()
			if err != nil {
				l.t.Fatal(err)
			}
			s.Seconds = time.Since(start).Seconds()
			samples = append(samples, s)
		case <-ctx.Done():
			return samples
		}
	}
}

func (l *line) sample() (s soakSample, err error) {
	client := testkit.SocketClient(l.t, l.socket)
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://sidecar/metrics")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return s, errors.New(resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return s, err
	}
	for name, into := range map[string]*float64{
		"process_resident_memory_bytes": &s.RSS, "process_open_fds": &s.Descriptors, "go_goroutines": &s.Goroutines,
	} {
		family := families[name]
		if family == nil {
			return s, fmt.Errorf("no metric %s", name)
		}
		*into = family.GetMetric()[0].GetGauge().GetValue()
	}
	st, err := l.status(l.t.Context())
	if err != nil {
		return s, err
	}
	o := st.Outbox
	s.File, s.WAL, s.Pending, s.Held = float64(o.File), float64(o.WAL), float64(o.Pending), float64(o.Held)
	return s, nil
}

func median(samples []soakSample, field int) float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = s.values()[field]
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func writeSoak(path string, samples []soakSample) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := csv.NewWriter(file)
	rows := [][]string{soakFields}
	for _, s := range samples {
		var row []string
		for _, v := range s.values() {
			row = append(row, strconv.FormatFloat(v, 'f', 0, 64))
		}
		rows = append(rows, row)
	}
	return errors.Join(w.WriteAll(rows), file.Close())
}
