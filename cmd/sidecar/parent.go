package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

type parentFlag struct {
	ParentFD int
}

func (f *parentFlag) bind(flags *pflag.FlagSet) {
	flags.IntVar(&f.ParentFD, "parent-fd", -1, "`FD` of the inherited read end of a pipe: when its other end is closed, because the parent has ended, end as on SIGTERM; -1 is none")
}

// watch returns e such that the parent's end counts as the first SIGTERM. The
// kernel closes the parent's end of the pipe however the parent ends, and unlike
// PR_SET_PDEATHSIG it does not look at the thread that started us. The pipe is ours
// from here on; done lets go of it.
func (f parentFlag) watch(e *env, log *slog.Logger) (watched *env, done func(), err error) {
	if f.ParentFD < 0 {
		return e, func() {}, nil
	}
	pipe, err := openParentPipe(f.ParentFD)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, err := io.Copy(io.Discard, pipe)
		switch {
		case ctx.Err() != nil: // we end already
		case err != nil:
			log.Error("the parent's pipe cannot be read: ending as on SIGTERM", "parent_fd", f.ParentFD, "error", err)
		default:
			log.Info("the parent has ended: ending as on SIGTERM", "parent_fd", f.ParentFD)
		}
	}()
	signals := make(chan os.Signal, 2)
	go endWithParent(e.signals, gone, signals, cancel)
	w := *e
	w.ctx, w.signals = ctx, signals
	return &w, func() { cancel(); _ = pipe.Close() }, nil
}

// endWithParent passes signals on, and the parent's end as a SIGTERM. Where one
// sender ends the parent and us together, the two are one wish to end and must
// not end the drain: whichever comes second is left out.
func endWithParent(from <-chan os.Signal, gone <-chan struct{}, to chan<- os.Signal, cancel func()) {
	defer cancel()
	select {
	case s, open := <-from:
		if !open {
			return
		}
		to <- s
	case <-gone:
		cancel()
		to <- syscall.SIGTERM
		if _, open := <-from; !open {
			return
		}
	}
	cancel()
	for s := range from {
		to <- s
	}
}

// openParentPipe refuses what could never report an end, or would report it at once.
func openParentPipe(fd int) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, usage("--parent-fd %d is not open here (%v): start the sidecar with the read end of a pipe at that number", fd, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || flags&unix.O_ACCMODE != unix.O_RDONLY {
		return nil, usage("--parent-fd %d is not the read end of a pipe", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that done can interrupt the read
		return nil, usage("--parent-fd %d cannot be read: %v", fd, err)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "parent"), nil
}
