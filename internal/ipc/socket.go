package ipc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxPath is what sun_path holds on Linux, without the closing NUL (unix(7)).
const maxPath = 107

// socket is a Unix socket whose path we took, and the lock that says so.
type socket struct {
	*net.UnixListener
	path string
	lock *os.File
	ino  uint64 // of our own socket: nothing else is unlinked at the end
	dev  uint64
}

// takeSocket listens on path. A live socket there is refused, a dead one is
// replaced, and anything else is left alone. The socket gets its mode and group
// under a private name and is renamed into place, so that there is no moment at
// which it stands there with others.
func takeSocket(path string, mode fs.FileMode, gid int) (s *socket, err error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("the socket path has %d bytes, the system allows %d: choose a shorter --socket: %s", len(path), maxPath, path)
	}
	lock, err := lockSocket(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	if err := checkOldSocket(path); err != nil {
		return nil, err
	}
	l, private, err := listenPrivately(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	s = &socket{UnixListener: l, path: path, lock: lock}
	if err := s.moveIntoPlace(private, mode, gid); err != nil {
		return nil, errors.Join(err, l.Close(), os.RemoveAll(filepath.Dir(private)))
	}
	return s, nil
}

// lockSocket keeps a second sidecar off the path: a rename would replace a live
// socket without a word. The lock file stays; removing it would race.
func lockSocket(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock beside the socket: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close() // the lock's error is the one to tell
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the socket %s is in use by another sidecar: it holds %s.lock", path, path)
		}
		return nil, fmt.Errorf("lock %s.lock: %w", path, err)
	}
	return f, nil
}

// checkOldSocket decides whether what stands at path may be replaced.
func checkOldSocket(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket path: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket (%s): it is left alone; choose another --socket", path, st.Mode().Type())
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		return errors.Join(fmt.Errorf("the socket %s is live: another process answers there", path), c.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot tell whether the socket %s is live: %w", path, err)
	}
	return nil
}

// listenPrivately binds in a new directory that only we may enter, beside the
// final place so that a rename can move the socket.
func listenPrivately(dir string) (*net.UnixListener, string, error) {
	private, err := os.MkdirTemp(dir, ".s")
	if err != nil {
		return nil, "", fmt.Errorf("make a private directory for the socket: %w", err)
	}
	l, name, err := bindIn(private)
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("listen on a Unix socket: %w", err), os.RemoveAll(private))
	}
	l.SetUnlinkOnClose(false) // Go would unlink the private name
	return l, name, nil
}

// bindIn binds through /proc/self/fd, so that the private name never exceeds
// sun_path where the final one fits.
func bindIn(private string) (*net.UnixListener, string, error) {
	d, err := os.Open(private)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = d.Close() }() // opened for reading only
	addr := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())}
	l, err := net.ListenUnix("unix", addr)
	return l, filepath.Join(private, "s"), err
}

func (s *socket) moveIntoPlace(private string, mode fs.FileMode, gid int) error {
	if gid >= 0 {
		if err := os.Lchown(private, -1, gid); err != nil {
			return fmt.Errorf("give the socket to group %d: %w", gid, err)
		}
	}
	if err := os.Chmod(private, mode); err != nil {
		return fmt.Errorf("set the socket's mode: %w", err)
	}
	var err error
	if s.dev, s.ino, err = inode(private); err != nil {
		return err
	}
	if err := os.Rename(private, s.path); err != nil {
		return fmt.Errorf("move the socket into place: %w", err)
	}
	if err := os.Remove(filepath.Dir(private)); err != nil {
		return fmt.Errorf("remove the private directory: %w", err)
	}
	return nil
}

// Close stops listening and removes the path if it is still ours.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // http.Server closed it; what follows is still to do, once
	}
	dev, ino, statErr := inode(s.path)
	if statErr == nil && dev == s.dev && ino == s.ino {
		err = errors.Join(err, os.Remove(s.path))
	}
	if e := s.lock.Close(); e != nil && !errors.Is(e, fs.ErrClosed) {
		err = errors.Join(err, e)
	}
	return err
}

func inode(path string) (dev, ino uint64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return st.Dev, st.Ino, nil
}
