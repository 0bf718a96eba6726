package testkit

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestProcessEndsAsItIsTold(t *testing.T) {
	t.Run("by itself", func(t *testing.T) {
		p := StartSidecar(t, "/bin/sh", "-c", "echo said >&2; exit 7")
		if code := p.Wait(t); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
		if p.Output() != "said\n" {
			t.Errorf("output %q", p.Output())
		}
	})
	t.Run("SIGTERM while paused", func(t *testing.T) {
		p := StartSidecar(t, "/bin/cat", fifo(t))
		p.Pause(t)
		p.Term(t)
		if code := p.Wait(t); code != -1 {
			t.Errorf("exit code %d, want -1 of a signal", code)
		}
	})
	t.Run("SIGKILL while paused", func(t *testing.T) {
		p := StartSidecar(t, "/bin/cat", fifo(t))
		p.Pause(t)
		p.Kill(t)
		select {
		case <-p.Done():
		default:
			t.Error("Kill returned before the process was gone")
		}
	})
}

// fifo is a pipe that nobody writes to: reading it waits for ever.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSidecarDoesNotSeeSettingsOfTheCaller(t *testing.T) {
	t.Setenv("SIDECAR_SOCKET", "/elsewhere")
	p := StartSidecar(t, "/bin/sh", "-c", `test -z "$SIDECAR_SOCKET"`)
	if code := p.Wait(t); code != 0 {
		t.Error("SIDECAR_SOCKET of the caller reached the process")
	}
}

// A killed test binary runs no cleanup; what it started must go all the same.
// The test runs itself as that binary.
func TestNoProcessOutlivesAKilledTestBinary(t *testing.T) {
	if path := os.Getenv("TESTKIT_ORPHAN"); path != "" {
		p := StartSidecar(t, "/bin/cat", path)
		_, _ = os.Stdout.WriteString("child " + strconv.Itoa(p.PID()) + "\n")
		<-p.Done()
		return
	}
	parent := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	parent.Env = append(os.Environ(), "TESTKIT_ORPHAN="+fifo(t), "TMPDIR="+t.TempDir())
	stdout, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	child := 0
	for lines := bufio.NewScanner(stdout); child == 0 && lines.Scan(); {
		if _, id, ok := strings.Cut(lines.Text(), "child "); ok {
			child, _ = strconv.Atoi(id)
		}
	}
	if child == 0 {
		t.Fatal("the test binary started nothing")
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed: an error is right
	ctx, cancel := context.WithTimeout(t.Context(), endTimeout)
	defer cancel()
	err = poll(ctx, func(context.Context) error { return gone(child) })
	if err != nil {
		t.Errorf("the child lives on: %v", err)
	}
}

// gone is nil when no such process runs; one that nobody has waited for is gone too.
func gone(pid int) error {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if errors.Is(err, os.ErrNotExist) || strings.Contains(string(stat), ") Z ") {
		return nil
	}
	return errors.New("it still runs")
}
