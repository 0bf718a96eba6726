package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

// parentPipe returns the two ends of a pipe as numbers: the read end will be the sidecar's own.
func parentPipe(t *testing.T) (read, write int) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return ends[0], ends[1]
}

func TestTheParentsEndDrains(t *testing.T) {
	read, write := parentPipe(t)
	r := newPlace(t, testkit.StartFake(t).Addr()).run("--parent-fd", strconv.Itoa(read))
	if _, err := unix.Write(write, []byte("what a parent writes means nothing")); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		r.post(`{}`, "success")
	}
	unix.Close(write)
	if code := r.wait(); code != 0 || !strings.Contains(r.log.String(), "the parent has ended") || !strings.Contains(r.log.String(), "everything is published") {
		t.Errorf("status %d:\n%s", code, r.log)
	}
}

// TestTheParentsEndAndASignalAreOneWish: whoever ends a whole service sends
// SIGTERM to both, in either order. Only a further signal cuts the drain short.
func TestTheParentsEndAndASignalAreOneWish(t *testing.T) {
	for _, parentFirst := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		from, gone, to := make(chan os.Signal), make(chan struct{}), make(chan os.Signal, 2)
		go endWithParent(from, gone, to, cancel)
		if parentFirst {
			close(gone)
			<-ctx.Done()
			from <- syscall.SIGHUP // the one that is left out
		} else {
			from <- syscall.SIGTERM
			<-ctx.Done()
			close(gone)
		}
		from <- syscall.SIGINT
		if first, further := <-to, <-to; first != syscall.SIGTERM || further != syscall.SIGINT {
			t.Errorf("parent first: %t: %v, %v", parentFirst, first, further)
		}
		close(from)
	}
}

func TestParentFDThatIsNoPipe(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	run := func(fd int, says string) {
		t.Helper()
		fail(t, exitUsage, []string{says, "--parent-fd"}, append([]string{"run", "--brokers", p.broker, "--parent-fd", strconv.Itoa(fd)}, p.either()...)...)
	}
	run(1<<20, "not open here")
	file, err := os.Create(filepath.Join(p.dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	run(int(file.Fd()), "not the read end of a pipe")
	read, write := parentPipe(t)
	defer unix.Close(read)
	defer unix.Close(write)
	run(write, "not the read end of a pipe")
}
