package testkit

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestFaultsHitTheCallsTheyAreAimedAt tries it with sync(1), which calls fsync once.
func TestFaultsHitTheCallsTheyAreAimedAt(t *testing.T) {
	f := NewFaults(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 10), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() int {
		t.Helper()
		return StartSidecar(t, "/usr/bin/env", append(f.Env(), "sync", file)...).Wait(t)
	}
	if code := run(); code != 0 || f.Seen(CallSync) != 1 {
		t.Fatalf("without a fault: ended with %d, %d calls seen", code, f.Seen(CallSync))
	}
	f.Set(Fault{Call: CallSync, Action: Fail, Errno: syscall.EIO, Skip: 1, Times: 1})
	for i, want := range []int{0, 1, 0} {
		if code := run(); code != want {
			t.Errorf("run %d ended with %d, want %d", i, code, want)
		}
	}
	for _, action := range []Action{KillBefore, KillAfter} {
		f.Set(Fault{Call: CallSync, Action: action})
		if code := run(); code != -1 || f.Hits() != 1 {
			t.Errorf("action %d: ended with %d, %d hits; want a signal", action, code, f.Hits())
		}
	}
	f.Clear()
	if code := run(); code != 0 {
		t.Errorf("after Clear: ended with %d", code)
	}
}
