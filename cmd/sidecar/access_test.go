package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

// user is somebody whom the kernel knows by number alone.
type user struct{ uid, gid, group int } // group: supplementary; 0: none

// as is a command line that is run by a user.
func (u user) as(args ...string) []string {
	line := []string{"setpriv", "--reuid", strconv.Itoa(u.uid), "--regid", strconv.Itoa(u.gid), "--clear-groups"}
	if u.group != 0 {
		line = append(line[:len(line)-1], "--groups", strconv.Itoa(u.group))
	}
	return append(line, args...)
}

// tell runs the sidecar's command as a user and returns "ok", or what it said.
func (u user) tell(t *testing.T, bin string, args ...string) string {
	t.Helper()
	line := u.as(append([]string{bin}, args...)...)
	cmd := exec.CommandContext(t.Context(), line[0], line[1:]...)
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return strings.TrimSpace(string(out))
	}
	return "ok"
}

const socketGroup = 52010

var (
	ofSidecar = user{uid: 52001, gid: 52001, group: socketGroup}
	member    = user{uid: 52002, gid: socketGroup}
	also      = user{uid: 52003, gid: 52003, group: socketGroup} // a member beside its own group
	other     = user{uid: 52004, gid: 52004}
	superuser = user{}
)

// guarded is a sidecar that runs as a user of its own, in a directory of its own.
type guarded struct {
	place
	bin string
}

func guard(t *testing.T, args ...string) guarded {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of other users")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv is missing: apt-get install util-linux")
	}
	g := guarded{place: newPlace(t, testkit.FreeAddr(t))}
	g.bin = filepath.Join(g.dir, "sidecar")
	program, err := os.ReadFile(testkit.Build(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.bin, program, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{g.dir, g.bin} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, ofSidecar.uid, ofSidecar.gid); err != nil {
			t.Fatal(err)
		}
	}
	line := ofSidecar.as(g.bin, "run", "--socket", g.socket(), "--data-dir", g.dataDir(), "--brokers", g.broker, "--linger", "0s", "--shutdown-timeout", "100ms")
	p := testkit.StartSidecar(t, line[0], append(line[1:], args...)...)
	for ofSidecar.tell(t, g.bin, "healthcheck", "--socket", g.socket()) != "ok" {
		select {
		case <-p.Done():
			t.Fatal("the sidecar ended")
		default:
		}
	}
	return g
}

func (g guarded) expect(u user, want string) {
	g.t.Helper()
	if got := u.tell(g.t, g.bin, "status", "--socket", g.socket()); got != want && (want == "ok" || !strings.Contains(got, want)) {
		g.t.Errorf("%+v: %s, want %s", u, got, want)
	}
}

// TestTheModeLetsIn owner and group, whether it is the first group or another.
func TestTheModeLetsIn(t *testing.T) {
	g := guard(t, "--socket-mode", "0660", "--socket-gid", strconv.Itoa(socketGroup))
	g.expect(ofSidecar, "ok")
	g.expect(member, "ok")
	g.expect(also, "ok")
	g.expect(superuser, "ok")
	g.expect(other, "permission denied")
}

// TestTheListsLetIn UIDs and GIDs, whether it is a peer's first group or another.
func TestTheListsLetIn(t *testing.T) {
	g := guard(t, "--socket-mode", "0666", "--allow-uid", fmt.Sprint(ofSidecar.uid), "--allow-gid", strconv.Itoa(socketGroup))
	g.expect(ofSidecar, "ok")
	g.expect(member, "ok")
	g.expect(also, "ok")
	g.expect(other, "403")
	g.expect(superuser, "403") // not even root, unless it is listed
}

// TestOperatorsAlone may purge: a sidecar's own user and root, unless others are named.
func TestOperatorsAlone(t *testing.T) {
	for name, c := range map[string]struct {
		flags []string
		may   []user
		not   []user
	}{
		"by default": {nil, []user{ofSidecar, superuser}, []user{member, other}},
		"as named":   {[]string{"--operator-uid", fmt.Sprint(other.uid)}, []user{other}, []user{ofSidecar, superuser, member}},
	} {
		t.Run(name, func(t *testing.T) {
			g := guard(t, append([]string{"--socket-mode", "0666"}, c.flags...)...)
			id := g.post(`{}`, "success").event.String()
			for _, command := range [][]string{{"outbox", "purge", "--yes", id}, {"outbox", "retry", id}} {
				command = append(command, "--socket", g.socket(), "--data-dir", "/nonexistent")
				for _, u := range c.may {
					if got := u.tell(t, g.bin, command...); !strings.Contains(got, "parked") {
						t.Errorf("%+v: %v: %s", u, command, got)
					}
				}
				for _, u := range c.not {
					if got := u.tell(t, g.bin, command...); !strings.Contains(got, "403") {
						t.Errorf("%+v: %v: %s", u, command, got)
					}
				}
			}
		})
	}
}

// TestForeignDataDirectory: who is not its owner learns who is.
func TestForeignDataDirectory(t *testing.T) {
	g := guard(t)
	foreign := filepath.Join(g.dir, "foreign")
	if err := os.Mkdir(foreign, 0o700); err != nil { // root's
		t.Fatal(err)
	}
	for _, dir := range []string{foreign, filepath.Join(foreign, "below")} {
		got := ofSidecar.tell(t, g.bin, append(g.runIn(g.socket()+"2"), "--data-dir", dir)...)
		for _, text := range []string{dir, "this process runs as UID 52001", "--data-dir"} {
			if !strings.Contains(got, text) {
				t.Errorf("%s: %q is missing in %q", dir, text, got)
			}
		}
	}
}

// runIn is the command line of a sidecar at a path, with a data directory of its own.
func (p place) runIn(socket string) []string {
	return []string{"run", "--socket", socket, "--data-dir", filepath.Join(p.dir, uuid.NewString()), "--brokers", p.broker, "--linger", "0s", "--shutdown-timeout", "100ms"}
}

// TestWhatStandsAtThePath is never followed, replaced or removed, unless it is the
// socket of a sidecar that is dead.
func TestWhatStandsAtThePath(t *testing.T) {
	t.Parallel()
	p := newPlace(t, testkit.FreeAddr(t))
	bin := testkit.Build(t)
	at := func(name string) string { return filepath.Join(p.dir, name) }
	file := at("precious")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", at("live"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for name, lay := range map[string]func(path string) error{
		"a file":                     func(path string) error { return os.Link(file, path) },
		"a directory":                func(path string) error { return os.Mkdir(path, 0o700) },
		"a pipe":                     func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a symlink to a file":        func(path string) error { return os.Symlink(file, path) },
		"a symlink to nothing":       func(path string) error { return os.Symlink(at("nothing"), path) },
		"a symlink to a socket":      func(path string) error { return os.Symlink(at("live"), path) },
		"a live socket":              func(path string) error { return os.Link(at("live"), path) },
		"a symlink as the lock":      func(path string) error { return os.Symlink(file, path+".lock") },
		"a dangling one as the lock": func(path string) error { return os.Symlink(at("nothing"), path+".lock") },
		"a directory as the lock":    func(path string) error { return os.Mkdir(path+".lock", 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			path := at(uuid.NewString()[:8])
			if err := lay(path); err != nil {
				t.Fatal(err)
			}
			before := look(t, p.dir, path)
			sidecar := testkit.StartSidecar(t, bin, p.runIn(path)...)
			if code := sidecar.Wait(t); code != exitFailed || !strings.Contains(sidecar.Output(), path) {
				t.Errorf("status %d: %s", code, sidecar.Output())
			}
			if after := look(t, p.dir, path); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("%q %v", text, err)
	}
	if _, err := os.Lstat(at("nothing")); !os.IsNotExist(err) {
		t.Errorf("a symlink was followed: %v", err)
	}
}

// look lists what stands in a directory under names that begin with path, the lock
// file of a sidecar that was refused aside.
func look(t *testing.T, dir, path string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		st, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		isNewLock := name == path+".lock" && st.Mode() == 0o600 && st.Size() == 0
		if (strings.HasPrefix(name, path) || strings.HasPrefix(e.Name(), ".s")) && !isNewLock {
			fmt.Fprintln(&b, e.Name(), st.Mode(), st.Sys().(*syscall.Stat_t).Ino)
		}
	}
	return b.String()
}

// TestASymlinkedDirectory is the operator's own way to lay out a system, and works.
func TestASymlinkedDirectory(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	if err := os.Mkdir(filepath.Join(p.dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(p.dir, "link")); err != nil {
		t.Fatal(err)
	}
	sidecar := testkit.StartSidecar(t, testkit.Build(t), p.runIn(filepath.Join(p.dir, "link", "s"))...)
	sidecar.WaitReady(t, filepath.Join(p.dir, "real", "s"))
}

// TestTwoStartsRace for one path, time and again, beside what the last one left:
// one gets it and serves there, the other is told so.
func TestTwoStartsRace(t *testing.T) {
	t.Parallel()
	p := newPlace(t, testkit.FreeAddr(t))
	bin := testkit.Build(t)
	for range 15 {
		a, b := testkit.StartSidecar(t, bin, p.runIn(p.socket())...), testkit.StartSidecar(t, bin, p.runIn(p.socket())...)
		winner, loser := a, b
		select {
		case <-a.Done():
			winner, loser = b, a
		case <-b.Done():
		}
		if code := loser.Wait(t); code != exitFailed || !strings.Contains(loser.Output(), "in use by another sidecar") {
			t.Fatalf("status %d: %s", code, loser.Output())
		}
		winner.WaitReady(t, p.socket())
		if text := succeed(t, "status", "--json", "--socket", p.socket()); !strings.Contains(winner.Output(), decode[statusReport](t, text).Outbox.ID.String()) {
			t.Fatalf("another one answers: %s", text)
		}
		winner.Kill(t) // its socket stays, stale
	}
}

// TestNoMomentIsOpen: with a umask that forbids nothing, nobody could look in while
// a sidecar starts. The kernel tells of every step: the socket comes to its path by
// a rename alone, with the mode that it keeps, and so does whatever else is there.
func TestNoMomentIsOpen(t *testing.T) {
	t.Parallel()
	p := newPlace(t, testkit.FreeAddr(t))
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, p.dir, unix.IN_CREATE|unix.IN_ATTRIB|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	line := append([]string{"-c", `umask 0; exec "$@"`, "sh", testkit.Build(t)}, p.runIn(p.socket())...)
	sidecar := testkit.StartSidecar(t, "sh", append(line, "--socket-mode", "0600")...)
	sidecar.WaitReady(t, p.socket())
	entries, err := os.ReadDir(p.dir)
	if err != nil || len(entries) != 3 { // the socket, its lock, the data directory
		t.Fatalf("%v %v", entries, err)
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", e.Name(), st.Mode(), err)
		}
	}
	sidecar.Term(t)
	sidecar.Wait(t)
	moved := false
	for _, e := range events(t, fd) {
		isSocket := e.name == filepath.Base(p.socket())
		switch {
		case e.mask&unix.IN_ATTRIB != 0:
			t.Errorf("%s got another mode or owner where it stood", e.name)
		case isSocket && e.mask&unix.IN_CREATE != 0:
			t.Errorf("%s was made where it stands", e.name)
		case isSocket:
			moved = true
		}
	}
	if !moved {
		t.Error("nothing was told of the socket")
	}
}

type event struct {
	mask uint32
	name string
}

// events are those that an inotify descriptor has to tell (inotify(7)).
func events(t *testing.T, fd int) (all []event) {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	for buf = buf[:n]; len(buf) > 0; {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		all = append(all, event{binary.NativeEndian.Uint32(buf[4:]), string(bytes.TrimRight(buf[unix.SizeofInotifyEvent:size], "\x00"))})
		buf = buf[size:]
	}
	return all
}
