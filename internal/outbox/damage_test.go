package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"workflow-results-sidecar/internal/result"
)

const pageSize = 4096

// marker is text that stands once in the file, in the row of that number.
func marker(i int) string { return fmt.Sprintf("<row %06d>", i) }

// filled makes an outbox of rows of 1 KiB, row i with seq i+1 and its marker: a
// third of them published, two parked, and closed.
func filled(t *testing.T, dir string, rows int) []result.Result {
	t.Helper()
	ctx := context.Background()
	h := open(t, dir)
	var all []result.Result
	for i := range rows {
		all = append(all, newResult(t, fmt.Sprintf(`{"row":%q,"pad":%q}`, marker(i), strings.Repeat("x", 1000))))
	}
	h.add(all...)
	for _, seq := range []int64{int64(rows / 2), int64(rows)} {
		if err := h.Park(ctx, seq, "too large"); err != nil {
			t.Fatal(err)
		}
	}
	h.MarkPublished(Publication{Through: int64(rows / 3), At: time.Now(), Topic: "t"})
	h.stats()
	h.close()
	return all
}

func readFile(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t *testing.T, dir string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// spoil overwrites the page that holds text, and returns what stood on it.
func spoil(t *testing.T, dir string, text []byte) []byte {
	t.Helper()
	file := readFile(t, dir)
	at := bytes.Index(file, text)
	if at < pageSize {
		t.Fatalf("%q is at %d", text, at)
	}
	page := file[at/pageSize*pageSize:][:pageSize]
	was := bytes.Clone(page)
	for i := range page {
		page[i] = 0xa5
	}
	writeFile(t, dir, file)
	return was
}

// killed is a copy of a directory as it is while a process has it open: what a
// kill -9 leaves. All IDs are in their indexes, so that a start reads no rows.
func killed(t *testing.T, dir string) string {
	t.Helper()
	o, err := Open(context.Background(), testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for more := true; more; more = o.merging != nil {
		if err := o.mergeSome(); err != nil {
			t.Fatal(err)
		}
	}
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestDamageFoundAfterAnUncleanEndStopsAll(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	filled(t, dir, 300)
	dir = killed(t, dir)
	spoil(t, dir, []byte(marker(200)))
	o, err := Open(ctx, testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Ready(); err != nil {
		t.Fatalf("before the check: %v", err)
	}
	if err := o.quickCheck(ctx); err != nil {
		t.Fatal(err)
	}
	_, nextErr := o.Next(ctx, 0, 1, 1)
	_, appendErr := o.Append(ctx, results(t, 1, `{}`))
	for what, err := range map[string]error{"ready": o.Ready(), "next": nextErr, "append": appendErr} {
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "sidecar outbox recover") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := o.Alive(); err != nil {
		t.Errorf("a restart does not help a damaged file: %v", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

// TestAnOwedCheckStaysOwed: a short command between the kill and the next start
// does not take the check's place.
func TestAnOwedCheckStaysOwed(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	filled(t, dir, 3)
	dir = killed(t, dir)
	for _, step := range []struct {
		check bool
		sound bool // at the start
	}{{false, false}, {true, false}, {false, true}} {
		o, err := Open(ctx, testOptions(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		if o.sound.Load() != step.sound {
			t.Errorf("%+v: %t", step, o.sound.Load())
		}
		if step.check {
			if err := o.quickCheck(ctx); err != nil {
				t.Error(err)
			}
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestKeepAllTakesNothing(t *testing.T) {
	dir := t.TempDir()
	rs := filled(t, dir, 30)
	past := time.Now().Add(30 * 24 * time.Hour)
	h := open(t, dir, at(&past), func(o *Options) { o.KeepAll = true })
	if err := h.retain(context.Background()); err != nil {
		t.Fatal(err)
	}
	if payload, err := h.Payload(context.Background(), rs[0].EventID); err != nil || payload == nil {
		t.Errorf("%q %v", payload, err)
	}
}

func TestRecover(t *testing.T) {
	const rows, published = 300, 100
	stateOf := func(t *testing.T, dir string) []byte {
		o, err := Open(context.Background(), testOptions(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		id := o.ID()
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		return id[:]
	}
	for name, c := range map[string]struct {
		damage           func(t *testing.T, dir string) (readable []byte)
		publishedUnknown bool
	}{
		"a page of results": {damage: func(t *testing.T, dir string) []byte {
			spoil(t, dir, []byte(marker(200)))
			return readFile(t, dir)
		}},
		"a page of published results": {damage: func(t *testing.T, dir string) []byte {
			spoil(t, dir, []byte(marker(50)))
			return readFile(t, dir)
		}},
		"the state": {publishedUnknown: true, damage: func(t *testing.T, dir string) []byte {
			spoil(t, dir, stateOf(t, dir))
			return readFile(t, dir)
		}},
		"the end of the file is missing": {damage: func(t *testing.T, dir string) []byte {
			file := readFile(t, dir)
			file = file[:len(file)*6/10/pageSize*pageSize]
			writeFile(t, dir, file)
			return file
		}},
		"nothing": {damage: readFile},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			from, to := t.TempDir(), filepath.Join(t.TempDir(), "new")
			all := filled(t, from, rows)
			oldID := stateOf(t, from)
			readable := c.damage(t, from)
			want := Recovery{LastSeq: rows}
			var lost []result.Result
			for i, r := range all {
				parked := i+1 == rows/2 || i+1 == rows
				switch {
				case !bytes.Contains(readable, []byte(marker(i))):
					want.Unreadable++
					lost = append(lost, r)
					continue
				case parked:
					want.Parked++
				case c.publishedUnknown || i >= published:
					want.Pending++
				}
				want.Copied++
			}
			rep, err := Recover(ctx, from, to, false)
			if err != nil {
				t.Fatal(err)
			}
			if name == "the end of the file is missing" { // the highest seq may be lost with it
				want.LastSeq, want.Unreadable = rep.LastSeq, rep.LastSeq-want.Copied
			}
			if diff := cmp.Diff(want, rep); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !bytes.Equal(readFile(t, from), readable) {
				t.Error("the damaged file was changed")
			}
			if _, err := Recover(ctx, from, to, false); err == nil {
				t.Error("recovered over an outbox that is there")
			}

			h := open(t, to)
			if id := h.ID(); bytes.Equal(id[:], oldID) {
				t.Error("the new outbox has the ID of the old one")
			}
			if got := len(h.next(h.Proven())); int64(got) != want.Pending {
				t.Errorf("%d results are given to the publisher, want %d", got, want.Pending)
			}
			for _, r := range all {
				out := h.add(r)[0]
				wasLost := len(lost) > 0 && lost[0].EventID == r.EventID
				if wasLost {
					lost = lost[1:]
				}
				if out.Err != nil || out.Duplicate == wasLost || (wasLost && out.Entry.Seq <= rep.LastSeq) {
					t.Fatalf("resent: %+v, lost: %t", out, wasLost)
				}
			}
		})
	}
}

// TestRecoverWithoutTheListOfParked: what the list would tell apart is parked for
// a person, neither taken for published nor published again unasked.
func TestRecoverWithoutTheListOfParked(t *testing.T) {
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "new")
	h := open(t, dir)
	h.add(results(t, 10, `{}`)...)
	if err := h.Park(t.Context(), 3, "too large: marker-of-the-page"); err != nil {
		t.Fatal(err)
	}
	var placed []Placement
	for _, seq := range []int64{1, 2, 4, 5, 6} {
		placed = append(placed, Placement{Seq: seq, Offset: seq})
	}
	h.MarkPublished(Publication{Through: 6, At: time.Now(), Topic: "t", Placements: placed})
	h.MarkPublished(Publication{Through: 8, At: time.Now(), Topic: "t"}) // only the watermark told
	h.stats()
	h.close()
	spoil(t, dir, []byte("marker-of-the-page"))
	rep, err := Recover(t.Context(), dir, to, false)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Recovery{Copied: 10, Pending: 2, Parked: 3, Uncertain: 3, LastSeq: 10}); rep != want {
		t.Errorf("got %+v, want %+v", rep, want)
	}
	n := open(t, to)
	parked, err := n.List(t.Context(), Filter{State: Parked})
	if err != nil || len(parked) != 3 || parked[0].Seq != 3 || parked[1].Seq != 7 || parked[2].Seq != 8 {
		t.Errorf("%+v %v", parked, err)
	}
	if got := n.next(n.Proven()); !cmp.Equal(got, []int64{9, 10}) {
		t.Errorf("pending %v", got)
	}
}

// TestRecoverTakesWhatIsSlimForPublished: without the state, a row without its
// payload must not be published as if it had one.
func TestRecoverTakesWhatIsSlimForPublished(t *testing.T) {
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "new")
	now := time.Now()
	h := open(t, dir, at(&now))
	h.add(results(t, 5, `{}`)...)
	publishAll(t, h, now)
	now = now.Add(25 * time.Hour)
	if err := h.retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.add(results(t, 3, `{}`)...)
	id := h.ID()
	h.close()
	spoil(t, dir, id[:])
	if _, err := Recover(t.Context(), dir, to, false); err != nil {
		t.Fatal(err)
	}
	n := open(t, to)
	if got := n.next(n.Proven()); !cmp.Equal(got, []int64{6, 7, 8}) {
		t.Errorf("pending %v", got)
	}
}

func TestAnEmptyFileIsNoOutbox(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, nil)
	if err := Exists(dir); err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("%v", err)
	}
}

// TestAlteredContent: bits that turn over within a payload damage no structure of
// SQLite's. It is neither published nor recovered, and the check names it.
func TestAlteredContent(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	filled(t, dir, 9)
	file := readFile(t, dir)
	at := bytes.Index(file, []byte(marker(6)))
	file[at+5] ^= 1
	writeFile(t, dir, file)
	o, err := Open(ctx, testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := o.Check(ctx); err != nil || len(problems) != 1 || !strings.Contains(problems[0], "seq 7: ") {
		t.Errorf("%q %v", problems, err)
	}
	if rows, err := o.Next(ctx, 3, 100, 1<<20); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "digest") || rows != nil {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	if err := o.Ready(); err == nil || !strings.Contains(err.Error(), "sidecar outbox recover") {
		t.Errorf("%v", err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	rep, err := Recover(ctx, dir, filepath.Join(t.TempDir(), "new"), false)
	if err != nil || rep.Copied != 8 || rep.Unreadable != 1 {
		t.Errorf("%+v %v", rep, err)
	}
}
