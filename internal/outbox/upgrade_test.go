package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"workflow-results-sidecar/internal/result"
)

var update = flag.Bool("update", false, "write testdata/schema-N.db and .json of the newest schema, where they are missing")

// kept is what an outbox of an older schema holds, and what a newer sidecar must
// find in it.
type kept struct {
	ID      uuid.UUID
	Entries []Entry
	Pending []Row
	Payload map[uuid.UUID]string // nil where the history window was over
}

// forEver keeps what a fixture holds from retention: it is older than any window.
func forEver(o *Options) { o.History, o.DedupWindow = 1e6*time.Hour, 1e6*time.Hour }

func keptIn(t *testing.T, h *harness) (k kept) {
	t.Helper()
	ctx := t.Context()
	k.ID, k.Payload = h.ID(), map[uuid.UUID]string{}
	var err error
	if k.Entries, err = h.List(ctx, Filter{}); err != nil {
		t.Fatal(err)
	}
	if k.Pending, err = h.Next(ctx, h.Proven(), 1000, 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, e := range k.Entries {
		payload, err := h.Payload(ctx, e.EventID)
		if err != nil {
			t.Fatal(err)
		}
		k.Payload[e.EventID] = string(payload)
	}
	return k
}

// TestUpgrade opens a file of each schema there ever was, as a sidecar of that
// time left it (testdata/schema-N.db): all is there, resends are recognised, and
// what comes next is taken. A schema without a fixture fails: write it with
// `go test ./internal/outbox -run TestUpgrade -update` before it is released.
func TestUpgrade(t *testing.T) {
	for version := 1; version <= SchemaVersion(); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			file := filepath.Join("testdata", fmt.Sprintf("schema-%d", version))
			if _, err := os.Stat(file + ".db"); *update && os.IsNotExist(err) && version == SchemaVersion() {
				writeFixture(t, file)
			}
			db, err := os.ReadFile(file + ".db")
			if err != nil {
				t.Fatal(err)
			}
			var want kept
			if text, err := os.ReadFile(file + ".json"); err != nil {
				t.Fatal(err)
			} else if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, fileName), db, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := schemaOf(t, dir); got != version {
				t.Fatalf("the fixture has schema %d", got)
			}
			h := open(t, dir, forEver)
			if diff := cmp.Diff(want, keptIn(t, h)); diff != "" {
				t.Errorf("what was kept (-) and what is found (+):\n%s", diff)
			}
			if got := schemaOf(t, dir); got != SchemaVersion() {
				t.Errorf("schema %d after the start, want %d", got, SchemaVersion())
			}
			if out := h.add(want.Pending[0].Result)[0]; out.Err != nil || !out.Duplicate {
				t.Errorf("a resend: %+v, want a duplicate", out)
			}
			last := want.Entries[len(want.Entries)-1].Seq
			if out := h.add(newResult(t, `{}`))[0]; out.Err != nil || out.Entry.Seq <= last {
				t.Errorf("a new result: %+v, want a seq above %d", out, last)
			}
		})
	}
}

// writeFixture leaves an outbox with a result in each state there is.
func writeFixture(t *testing.T, file string) {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	h := open(t, dir)
	var rs []result.Result
	for i := range 8 {
		r := newResult(t, fmt.Sprintf(`{"n":%d,"exact":1.10,"text":"Grüße 🌍"}`, i))
		r.TraceParent, r.TraceState = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=b"
		rs = append(rs, r)
	}
	failure, err := result.Decode(fmt.Appendf(nil, `{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"failure","error":"declined"}`,
		uuid.New(), rs[0].CorrelationID), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h.add(append(rs, failure)...)
	if err := h.Park(ctx, 2, "MESSAGE_TOO_LARGE"); err != nil {
		t.Fatal(err)
	}
	h.MarkPublished(Publication{Through: 4, At: time.Now().UTC(), Topic: "workflow-results", Placements: []Placement{{1, 0, 10}, {3, 5, 1 << 40}, {4, 0, 11}}})
	h.stats()
	if err := h.Park(ctx, 5, "retried soon"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Retry(ctx, rs[4].EventID); err != nil {
		t.Fatal(err)
	}
	if err := h.do(ctx, func(tx *transaction) error { _, err := tx.slim(1, 1); return err }); err != nil {
		t.Fatal(err)
	}
	k := keptIn(t, h)
	h.close()
	text, err := json.MarshalIndent(k, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	for suffix, content := range map[string][]byte{".db": db, ".json": append(text, '\n')} {
		if err := os.WriteFile(file+suffix, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func schemaOf(t *testing.T, dir string) (version int) {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, fileName)+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(context.Background(), `PRAGMA user_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}
