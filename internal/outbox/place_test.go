package outbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// TestFilesCutInPlace: whoever truncates a file of a running outbox, or writes an
// older one over it, leaves SQLite writing behind a hole: the next start would drop
// what comes after it. Nothing is acknowledged then.
func TestFilesCutInPlace(t *testing.T) {
	for _, name := range []string{fileName, fileName + "-wal"} {
		for _, older := range []bool{false, true} {
			if name == fileName && older {
				continue // SQLite's own to find: with the log it makes no sense
			}
			t.Run(name+map[bool]string{true: " overwritten"}[older], func(t *testing.T) {
				ctx := context.Background()
				dir := t.TempDir()
				o, err := Open(ctx, testOptions(t, dir))
				if err != nil {
					t.Fatal(err)
				}
				add := func() error { _, err := o.Append(ctx, results(t, 20, `{}`)); return err }
				if err := add(); err != nil {
					t.Fatal(err)
				}
				path, data := filepath.Join(dir, name), []byte(nil)
				if older {
					if data, err = os.ReadFile(path); err != nil {
						t.Fatal(err)
					}
					if _, _, err := checkpoint(ctx, o.conn, "TRUNCATE"); err != nil {
						t.Fatal(err)
					}
					if err := add(); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(path, data, 0o600); err != nil {
					t.Fatal(err)
				}
				for what, err := range map[string]error{"append": add(), "ready": o.Ready()} {
					if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "cut or overwritten") {
						t.Errorf("%s: %v", what, err)
					}
				}
				if err := o.Ready(); !strings.Contains(fmt.Sprint(err), "sidecar outbox recover") {
					t.Errorf("no help: %v", err)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestALogThatIsInTheFileMayGo: what a checkpoint has copied needs no log.
func TestALogThatIsInTheFileMayGo(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	h.add(results(t, 20, `{}`)...)
	if _, left, err := checkpoint(context.Background(), h.checkpoints, "PASSIVE"); left > 0 || err != nil {
		t.Fatal(left, err)
	}
	if err := os.Truncate(h.path()+"-wal", 0); err != nil {
		t.Fatal(err)
	}
	h.add(results(t, 20, `{}`)...)
	h.close()
	h = open(t, dir)
	if s := h.stats(); s.PendingRows != 40 {
		t.Errorf("%+v", s)
	}
}

// TestAnEmptyFileBesideItsLog: SQLite deletes such a log, and would begin anew
// without a word.
func TestAnEmptyFileBesideItsLog(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir, 3)
	dir = killed(t, dir)
	writeFile(t, dir, nil)
	if _, err := Open(context.Background(), testOptions(t, dir)); err == nil || !strings.Contains(err.Error(), "it was truncated") {
		t.Errorf("started: %v", err)
	}
	if fileSize(walOf(dir)) == 0 {
		t.Error("the log is gone")
	}
}

// TestALogThatWasDeleted: it held what was accepted last.
func TestALogThatWasDeleted(t *testing.T) {
	dir := t.TempDir()
	filled(t, dir, 3)
	dir = killed(t, dir)
	aside := filepath.Join(t.TempDir(), "aside")
	if err := os.Rename(walOf(dir), aside); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), testOptions(t, dir)); err == nil || !strings.Contains(err.Error(), "was deleted or moved") {
		t.Errorf("started: %v", err)
	}
	if err := os.Rename(aside, walOf(dir)); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}
