package ipc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shortDir is a directory whose paths fit into sun_path.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ipc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func take(t *testing.T, path string) *socket {
	t.Helper()
	s, err := takeSocket(path, 0o640, -1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestTakesAFreshPathWithItsMode(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	s := take(t, path)
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o640 {
		t.Fatalf("%v %v", st, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the path is left behind: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 { // the lock stays
		t.Errorf("%v %v", left, err)
	}
}

func TestLongestPath(t *testing.T) {
	dir := shortDir(t)
	longest := filepath.Join(dir, strings.Repeat("x", maxPath-len(dir)-1))
	take(t, longest)
	if _, err := takeSocket(longest+"x", 0o660, -1); err == nil || !strings.Contains(err.Error(), "108 bytes") {
		t.Errorf("%v", err)
	}
}

func TestLivePathIsRefusedAndDeadOneReplaced(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if _, err := takeSocket(path, 0o660, -1); err == nil || !strings.Contains(err.Error(), "live") {
		t.Errorf("live: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	take(t, path)
	if _, err := takeSocket(path, 0o660, -1); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a second sidecar: %v", err)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	dir := shortDir(t)
	file, link := filepath.Join(dir, "f"), filepath.Join(dir, "l")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if _, err := takeSocket(path, 0o660, -1); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if text, err := os.ReadFile(link); err != nil || string(text) != "precious" {
		t.Errorf("%q %v", text, err)
	}
}

func TestOnlyItsOwnInodeIsUnlinked(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	s := take(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("somebody else's file was removed: %v", err)
	}
}

// TestASidecarThatDoesNotAnswer is told from one that does not run.
func TestASidecarThatDoesNotAnswer(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path) // and never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	cl := NewClient(path)
	defer cl.Close()
	if _, err := cl.Status(ctx); err == nil || errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "it hangs, or was stopped") {
		t.Error(err)
	}
}
