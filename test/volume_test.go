//go:build kafka

package test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// volume is an ext4 file system of the test's own, on a loop device.
type volume struct {
	t       *testing.T
	dir     string // where it is mounted
	image   string
	options string
	device  string
}

// newVolume makes and mounts one; it needs root, and a kernel with loop devices.
func newVolume(t *testing.T, size int64, options string, mkfs ...string) *volume {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount a file system")
	}
	base := t.TempDir()
	v := &volume{t: t, dir: filepath.Join(base, "mnt"), image: filepath.Join(base, "image"), options: options}
	if err := errors.Join(os.Mkdir(v.dir, 0o700), os.WriteFile(v.image, nil, 0o600), os.Truncate(v.image, size)); err != nil {
		t.Fatal(err)
	}
	v.run("mkfs.ext4", append(append([]string{"-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"}, mkfs...), v.image)...)
	device, err := exec.Command("losetup", "--find", "--show", v.image).Output()
	if err != nil {
		t.Skipf("this machine lets even root have no loop device: %v", err)
	}
	v.device = strings.TrimSpace(string(device))
	t.Cleanup(func() { v.run("losetup", "--detach", v.device) })
	v.mount()
	t.Cleanup(v.unmount)
	return v
}

func (v *volume) mount() {
	v.t.Helper()
	if err := unix.Mount(v.device, v.dir, "ext4", 0, v.options); err != nil {
		v.t.Fatalf("mount %s: %v", v.device, err)
	}
}

func (v *volume) unmount() {
	v.t.Helper()
	if err := unix.Unmount(v.dir, 0); err != nil {
		v.t.Errorf("unmount %s: %v", v.dir, err)
	}
}

const (
	ext4Shutdown = 0x8004587d // EXT4_IOC_SHUTDOWN, linux/fs/ext4/ext4.h: _IOR('X', 125, __u32)
	noLogFlush   = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH: what the journal has not written is lost
)

// cut ends the file system as a loss of power does: from one moment on nothing
// reaches the device, whatever was not synced is gone.
func (v *volume) cut() {
	v.t.Helper()
	dir, err := os.Open(v.dir)
	if err != nil {
		v.t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), ext4Shutdown, noLogFlush); err != nil {
		v.t.Fatalf("shut the file system down: %v", err)
	}
}

// powerOn mounts it again, as the next boot does: its journal is replayed. The
// file system itself must be whole, else it is not the sidecar that is tried.
func (v *volume) powerOn() {
	v.t.Helper()
	v.unmount()
	v.mount()
	v.unmount()
	v.run("fsck.ext4", "-n", "-f", v.device)
	v.mount()
}

// fail lets ext4 find an error; with errors=remount-ro it can only be read from then on.
func (v *volume) fail() {
	v.t.Helper()
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(v.device), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("1"), 0); err != nil {
		v.t.Fatal(err)
	}
}

func (v *volume) run(name string, args ...string) {
	v.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		v.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
