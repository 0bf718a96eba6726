package outbox

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// killedWithLog is a copy of an outbox whose last commits are in the log alone.
func killedWithLog(t *testing.T, commits int) (dir string, ids []uuid.UUID) {
	t.Helper()
	h := open(t, t.TempDir())
	for range commits {
		r := newResult(t, `{"pad":"`+strings.Repeat("x", 3000)+`"}`)
		h.add(r)
		ids = append(ids, r.EventID)
	}
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(h.opts.Dir)); err != nil {
		t.Fatal(err)
	}
	return dir, ids
}

// present counts the results that are held.
func present(t *testing.T, dir string, ids []uuid.UUID) (n int) {
	t.Helper()
	o, err := Open(context.Background(), testOptions(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for _, id := range ids {
		switch _, err := o.Get(context.Background(), id); {
		case err == nil:
			n++
		case !errors.Is(err, ErrNotFound):
			t.Error(err)
		}
	}
	return n
}

// TestADamagedLog: wherever a byte of the log is turned over, nothing but the
// last commit may be missing without a word: SQLite itself would drop all that
// lies behind it.
func TestADamagedLog(t *testing.T) {
	const commits = 6
	dir, ids := killedWithLog(t, commits)
	log, err := os.ReadFile(walOf(dir))
	if err != nil {
		t.Fatal(err)
	}
	frame := frameHeaderSize + pageSize
	if frames := (len(log) - walHeaderSize) / frame; frames < commits {
		t.Fatalf("%d frames for %d commits", frames, commits)
	}
	refused := 0
	for at := walHeaderSize; at < len(log); at += frame {
		for _, within := range []int{0, 9, 17, frame - 1} { // page, salt, checksum, content
			spoiled := append([]byte(nil), log...)
			spoiled[at+within] ^= 0x40
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(walOf(copied), spoiled, 0o600); err != nil {
				t.Fatal(err)
			}
			o, err := Open(context.Background(), testOptions(t, copied))
			if err == nil {
				if err := o.Close(); err != nil {
					t.Fatal(err)
				}
				if n := present(t, copied, ids); n < commits-2 {
					t.Errorf("byte %d of frame %d: it starts with %d of %d", within, (at-walHeaderSize)/frame, n, commits)
				}
				continue
			}
			refused++
			if !errors.Is(err, errWALDamaged) || !strings.Contains(err.Error(), "sidecar outbox recover") {
				t.Errorf("byte %d of frame %d: %v", within, (at-walHeaderSize)/frame, err)
			}
			to := filepath.Join(t.TempDir(), "new")
			rep, err := Recover(context.Background(), copied, to, false)
			if err != nil {
				t.Fatalf("recover: %v", err)
			}
			n := present(t, to, ids)
			if n < commits-2 || int64(n) != rep.Copied {
				t.Errorf("byte %d of frame %d: %d of %d recovered, %+v", within, (at-walHeaderSize)/frame, n, commits, rep)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(to), "recover-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		}
	}
	if refused == 0 {
		t.Error("no damage was noticed")
	}
	t.Logf("%d bytes of %d frames turned over: %d times refused", 4*(len(log)-walHeaderSize)/frame, (len(log)-walHeaderSize)/frame, refused)
}

// TestALogCutOffInMidWrite is what a crash leaves: it starts with all the rest.
func TestALogCutOffInMidWrite(t *testing.T) {
	const commits = 5
	for _, cut := range []int64{1, pageSize / 2, pageSize + frameHeaderSize - 1} {
		dir, ids := killedWithLog(t, commits)
		st, err := os.Stat(walOf(dir))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(walOf(dir), st.Size()-cut); err != nil {
			t.Fatal(err)
		}
		if n := present(t, dir, ids); n < commits-1 {
			t.Errorf("%d bytes short: %d of %d are there", cut, n, commits)
		}
	}
}

// BenchmarkCheckWAL is what a start after a kill pays.
func BenchmarkCheckWAL(b *testing.B) {
	var words binary.ByteOrder = binary.LittleEndian
	page := make([]byte, pageSize)
	b.SetBytes(pageSize)
	for b.Loop() {
		walChecksum(words, [2]uint32{1, 2}, page)
	}
}
