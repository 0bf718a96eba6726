package outbox

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// TestListsNeverScan: the admin page asks every two seconds, at a million rows
// too. Each list walks results or parked by its key from where it begins, or
// looks single rows up, and sorts nothing but the few of one correlation ID.
func TestListsNeverScan(t *testing.T) {
	h := open(t, t.TempDir())
	h.add(results(t, 10, `{}`)...)
	id := uuid.New()
	for name, f := range map[string]Filter{
		"all": {}, "newest": {Newest: true}, "after": {After: 5, Newest: true},
		"pending": {State: Pending, Newest: true}, "published": {State: Published, Newest: true}, "parked": {State: Parked, Newest: true},
		"correlation": {CorrelationID: &id, Newest: true}, "parked of a correlation": {CorrelationID: &id, State: Parked, Newest: true},
	} {
		query, args := h.listQuery(f, 5)
		lines := plan(t, h, query, args)
		if f.State == Parked && f.CorrelationID == nil && !strings.HasPrefix(lines[0], "SEARCH p ") {
			t.Errorf("%s: every result is looked at: %v", name, lines)
		}
		for _, line := range lines {
			if !bounded(line, f.CorrelationID != nil) {
				t.Errorf("%s: %s\nin %s", name, line, query)
			}
		}
	}
	if line := "SCAN r"; bounded(line, true) {
		t.Errorf("%q passes", line)
	}
}

// bounded reports that a step of a plan reads no more than it returns.
func bounded(line string, sorts bool) bool {
	switch {
	case strings.HasPrefix(line, "SEARCH"), strings.Contains(line, "SUBQUERY"), strings.Contains(line, "UNION ALL"), strings.Contains(line, "COMPOUND"), strings.Contains(line, "LEFT-MOST"):
		return true
	case strings.HasPrefix(line, "SCAN json_each"): // the few that are in memory
		return true
	case strings.HasPrefix(line, "USE TEMP B-TREE FOR ORDER BY"):
		return sorts
	}
	return false
}

func plan(t *testing.T, h *harness, query string, args []any) (lines []string) {
	t.Helper()
	rows, err := h.readers.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, detail)
	}
	if rows.Err() != nil || len(lines) == 0 {
		t.Fatal(rows.Err(), lines)
	}
	return lines
}

func TestNewestComeFirst(t *testing.T) {
	h := open(t, t.TempDir())
	h.add(results(t, 5, `{}`)...)
	if err := h.Park(t.Context(), 2, "too large"); err != nil {
		t.Fatal(err)
	}
	h.MarkPublished(Publication{Through: 4, At: time.Now(), Topic: "t", Placements: []Placement{{Seq: 1}, {Seq: 3}, {Seq: 4}}})
	for _, c := range []struct {
		f    Filter
		want []int64
	}{
		{Filter{Newest: true}, []int64{5, 4, 3, 2, 1}},
		{Filter{Newest: true, Limit: 2}, []int64{5, 4}},
		{Filter{Newest: true, After: 3}, []int64{5, 4}},
		{Filter{Newest: true, State: Published, Limit: 2}, []int64{4, 3}},
		{Filter{Newest: true, State: Parked}, []int64{2}},
		{Filter{Newest: true, State: Pending}, []int64{5}},
	} {
		es, err := h.List(t.Context(), c.f)
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		for _, e := range es {
			got = append(got, e.Seq)
		}
		if len(got) != len(c.want) || got[0] != c.want[0] || got[len(got)-1] != c.want[len(c.want)-1] {
			t.Errorf("%+v: %v, want %v", c.f, got, c.want)
		}
	}
}
