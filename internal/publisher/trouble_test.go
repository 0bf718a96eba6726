package publisher

import (
	"bytes"
	"errors"
	"log/slog"
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
