package outbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"workflow-results-sidecar/internal/result"
)

// TestFilesTakenAway: whoever deletes or renames a file of a running outbox, or
// puts a copy in its place, leaves SQLite writing to a file that no later start
// finds. Nothing is acknowledged then, and with the file back all goes on.
func TestFilesTakenAway(t *testing.T) {
	for _, name := range []string{"", fileName, fileName + "-wal", fileName + "-shm", lockName} {
		for _, copied := range []bool{false, true} {
			if name == "" && copied {
				continue
			}
			t.Run(map[string]string{"": "directory"}[name]+name+map[bool]string{true: " copied"}[copied], func(t *testing.T) {
				ctx := context.Background()
				dir := filepath.Join(t.TempDir(), "data")
				h := open(t, dir)
				before := newResult(t, `{"n":1}`)
				h.add(before)
				parked := newResult(t, `{}`)
				if err := h.Park(ctx, h.add(parked)[0].Entry.Seq, "refused"); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, name)
				aside := filepath.Join(filepath.Dir(dir), "aside")
				if err := os.Rename(path, aside); err != nil {
					t.Fatal(err)
				}
				if copied {
					data, err := os.ReadFile(aside)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, data, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				after := newResult(t, `{"n":2}`)
				for _, r := range [][]result.Result{{before}, {after}} { // a resend would be told that it is held
					if out, err := h.Append(ctx, r); !errors.Is(err, ErrUnavailable) {
						t.Errorf("acknowledged: %v, %v", out, err)
					}
				}
				if _, err := h.Retry(ctx, parked.EventID); !errors.Is(err, ErrUnavailable) {
					t.Errorf("retried: %v", err)
				}
				if err := h.Purge(ctx, parked.EventID); !errors.Is(err, ErrUnavailable) {
					t.Errorf("purged: %v", err)
				}
				if err := h.Ready(); !errors.Is(err, ErrUnavailable) {
					t.Errorf("ready: %v", err)
				}
				if err := os.Rename(aside, path); err != nil {
					t.Fatal(err)
				}
				if err := h.Ready(); err != nil {
					t.Errorf("with the file back: %v", err)
				}
				if out := h.add(after)[0]; out.Err != nil || out.Duplicate {
					t.Errorf("with the file back: %+v", out)
				}
				if out := h.add(before)[0]; out.Err != nil || !out.Duplicate {
					t.Errorf("held before: %+v", out)
				}
			})
		}
	}
}
