package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// endTimeout is how long a process may take to end after SIGTERM before the
// test fails: more than any shutdown time-out that a test sets.
const endTimeout = 60 * time.Second

// Process is a child process. It gets SIGKILL when the test binary dies.
type Process struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when the process has been waited for
}

// startProcess starts cmd with its output captured in out. The parent-death
// signal follows the thread that forked, not the process (prctl(2)), so one
// goroutine, locked to its thread, starts the child and stays until it ended.
func startProcess(name string, cmd *exec.Cmd, out *output) (*Process, error) {
	p := &Process{name: name, cmd: cmd, out: out, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state is kept in cmd.ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// PID is the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output is everything it wrote so far to standard output and error.
func (p *Process) Output() string { return p.out.String() }

// Term asks it to end (SIGTERM), waking it first if it is paused. It does not wait.
func (p *Process) Term(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	p.signal(t, syscall.SIGCONT)
}

// Kill ends it at once (SIGKILL) and waits until it is gone.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.signal(t, syscall.SIGKILL)
	<-p.done
}

// Pause stops it (SIGSTOP): it holds its connections and locks and does nothing.
func (p *Process) Pause(t testing.TB) { t.Helper(); p.signal(t, syscall.SIGSTOP) }

// Resume lets a paused process go on (SIGCONT).
func (p *Process) Resume(t testing.TB) { t.Helper(); p.signal(t, syscall.SIGCONT) }

// Wait waits until it ended by itself and returns its exit code, or -1 where a
// signal ended it. A process that does not end fails the test.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	limit := time.NewTimer(endTimeout)
	defer limit.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-limit.C:
		t.Fatalf("%s (PID %d) has not ended after %s", p.name, p.PID(), endTimeout)
		return -1
	}
}

// signal reaches only this child: os.Process refuses once it has been waited for,
// so a reused PID is never hit.
func (p *Process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("send %s to %s (PID %d): %v", sig, p.name, p.PID(), err)
	}
}

// end is the cleanup: whatever state it is in, it is gone afterwards.
func (p *Process) end() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// outputLimit bounds what is kept of a process's output, in bytes.
const outputLimit = 1 << 20

// output keeps the newest part of what processes wrote; those of one life after
// another share it.
type output struct {
	mu   sync.Mutex
	data []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.data = append(o.data, b...)
	if len(o.data) > 2*outputLimit {
		o.data = bytes.Clone(o.data[len(o.data)-outputLimit:])
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.data)
}

// tail is its last n bytes.
func (o *output) tail(n int) string {
	s := o.String()
	return s[max(0, len(s)-n):]
}

// showOnFailure puts the end of what a process wrote into a failed test's output.
func showOnFailure(t testing.TB, name string, out *output) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of what %s wrote:\n%s", name, out.tail(16<<10))
		}
	})
}
