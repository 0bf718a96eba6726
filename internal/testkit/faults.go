package testkit

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:embed faults.c
var faultsSource []byte

// Call is a kind of call that SQLite makes into the C library.
type Call int32

// The calls that a Fault can be aimed at; as in faults.c.
const (
	CallSync     Call = iota // fsync, fdatasync
	CallWrite                // pwrite
	CallTruncate             // ftruncate
)

// Action is what a Fault does to a call; as in faults.c.
type Action int32

const (
	actionNone Action = iota
	// KillBefore ends the process (SIGKILL) in place of the call.
	KillBefore
	// KillAfter ends the process when the call has succeeded, before its caller hears of it.
	KillAfter
	// Tear writes the first half, then ends the process.
	Tear
	// Fail does nothing and returns Errno.
	Fail
	// Lie does nothing and says that all is well: a disk that acknowledges what it has not kept.
	Lie
	// Slow waits for Delay before the call.
	Slow
)

// Fault says what happens to which call.
type Fault struct {
	Call   Call
	Action Action
	Skip   int           // so many calls pass before
	Times  int           // so many calls are hit, then no more; 0: all
	Errno  syscall.Errno // of Fail
	Delay  time.Duration // of Slow
}

// faultControl is shared with the process; as in faults.c.
type faultControl struct {
	call, action, skip, err, times, millis, done atomic.Int32
	seen                                         [3]atomic.Int32
}

// Faults breaks the file system of one process from within, call by call. It
// knows SQLite's calls alone: Go's own do not go through the C library.
type Faults struct {
	lib, file string
	control   *faultControl
}

// NewFaults compiles the library that is to be loaded into a process by Env.
func NewFaults(t testing.TB) *Faults {
	t.Helper()
	dir := t.TempDir()
	f := &Faults{lib: filepath.Join(dir, "faults.so"), file: filepath.Join(dir, "control")}
	source := filepath.Join(dir, "faults.c")
	if err := os.WriteFile(source, faultsSource, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", f.lib, source, "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := os.Create(f.file)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	size := os.Getpagesize()
	if err := file.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	shared, err := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(shared); err != nil {
			t.Error(err)
		}
	})
	f.control = (*faultControl)(unsafe.Pointer(&shared[0]))
	return f
}

// Env is what the process must have in its environment. The race detector's
// runtime and the library get along.
func (f *Faults) Env() []string {
	return []string{"LD_PRELOAD=" + f.lib, "SIDECAR_TEST_FAULTS=" + f.file}
}

// Set arms a fault in place of the last one; it holds over restarts until Clear.
func (f *Faults) Set(fault Fault) {
	f.Clear()
	c := f.control
	c.call.Store(int32(fault.Call))
	c.skip.Store(int32(fault.Skip))
	c.err.Store(int32(fault.Errno))
	c.millis.Store(int32(fault.Delay.Milliseconds()))
	c.times.Store(int32(fault.Times))
	if fault.Times == 0 {
		c.times.Store(-1)
	}
	c.done.Store(0)
	c.action.Store(int32(fault.Action)) // last: it arms
}

// Clear lets everything work again.
func (f *Faults) Clear() { f.control.action.Store(int32(actionNone)) }

// Hits is how many calls the last fault was done to.
func (f *Faults) Hits() int { return int(f.control.done.Load()) }

// Seen is how many calls of a kind there were so far: proof that the library is
// in the way, and what Skip may be drawn from.
func (f *Faults) Seen(c Call) int { return int(f.control.seen[c].Load()) }
