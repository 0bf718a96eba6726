package publisher

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestTroubleThatComesAndGoesIsOneLine: a connection that breaks ten times a
// second must not fill the log, and what is told of is also told to be over.
func TestTroubleThatComesAndGoesIsOneLine(t *testing.T) {
	var out bytes.Buffer
	tr := trouble{log: slog.New(slog.NewTextHandler(&out, nil)), interval: time.Hour}
	for range 100 {
		tr.report(errors.New("reset"))
		tr.report(errors.New("reset"))
		tr.over()
	}
	expect := func(fails, works int) {
		t.Helper()
		if f, w := strings.Count(out.String(), "publishing fails"), strings.Count(out.String(), "publishing works again"); f != fails || w != works {
			t.Errorf("%d lines of trouble and %d of its end, want %d and %d:\n%s", f, w, fails, works, out.String())
		}
	}
	expect(1, 1)
	tr.logged = tr.logged.Add(-time.Hour) // an interval later
	tr.report(errors.New("reset"))
	expect(2, 1)
	tr.over()
	tr.over()
	expect(2, 2)
}

// TestParkingsAreCounted: those that had no line of their own are in the next one's number.
func TestParkingsAreCounted(t *testing.T) {
	k := parkings{interval: time.Minute}
	start := time.Now()
	var told []int
	for i := range 5 {
		told = append(told, k.add(start.Add(time.Duration(i)*20*time.Second)))
	}
	if want := []int{1, 0, 0, 3, 0}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}
