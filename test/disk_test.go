//go:build kafka

package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"workflow-results-sidecar/internal/testkit"
)

// try posts one result and returns the answer, or the error of having none.
func (l *line) try(id uuid.UUID, payload string) (status int, body string, err error) {
	client := testkit.SocketClient(l.t, l.socket)
	defer client.CloseIdleConnections()
	event := fmt.Sprintf(`{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":%s}`, id, id, payload)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://sidecar/v1/results", strings.NewReader(event))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// once checks that these results, and no others, are in the topic, once each.
func (l *line) once(ids []uuid.UUID) {
	l.t.Helper()
	n := map[string]int{}
	for _, r := range testkit.Consume(l.t, l.broker, l.topic) {
		n[testkit.Header(r, "ce_id")]++
	}
	for _, id := range ids {
		if n[id.String()] != 1 {
			l.t.Errorf("%s is there %d times", id, n[id.String()])
		}
	}
	if len(n) != len(ids) {
		l.t.Errorf("%d results in the topic, want %d", len(n), len(ids))
	}
}

// failingSync is a library for LD_PRELOAD whose fsync and fdatasync fail while the
// file of FAIL_SYNC is there, as a disk's do that reports a lost write.
const failingSync = `
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int fails(void) { const char *f = getenv("FAIL_SYNC"); return f && access(f, F_OK) == 0; }
int fsync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { if (fails()) { errno = EIO; return -1; } return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
`

// TestAFailedFsyncEndsTheProcess: nothing is acknowledged after it, and the next
// start has all that was acknowledged before.
func TestAFailedFsyncEndsTheProcess(t *testing.T) {
	k := testkit.SharedKafka(t)
	l := newLine(t, k.Addr())
	lib, source, trigger := filepath.Join(l.dir, "sync.so"), filepath.Join(l.dir, "sync.c"), filepath.Join(l.dir, "fail")
	if err := os.WriteFile(source, []byte(failingSync), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gcc", "-shared", "-fPIC", "-o", lib, source, "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l.env = []string{"LD_PRELOAD=" + lib, "FAIL_SYNC=" + trigger}
	p := l.start()
	before := uuid.New()
	if status, body, err := l.try(before, `{}`); status != http.StatusCreated {
		t.Fatalf("%d %s %v", status, body, err)
	}
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	during := uuid.New()
	if status, body, err := l.try(during, `{}`); err == nil && status < 500 {
		t.Errorf("answered %d after a failed fsync: %s", status, body)
	}
	if code := p.Wait(t); code != 1 || !strings.Contains(p.Output(), "fsync failed") {
		t.Errorf("ended with %d", code)
	}
	if err := os.Remove(trigger); err != nil {
		t.Fatal(err)
	}
	p = l.start()
	if status, body, err := l.try(during, `{}`); status != http.StatusCreated && status != http.StatusOK {
		t.Errorf("sent again: %d %s %v", status, body, err)
	}
	l.drained()
	l.stop(p)
	l.once([]uuid.UUID{before, during})
}

// TestAFullDisk: a file system fills in mid-load. Nothing that was refused is
// kept, nothing that was accepted is lost, publishing goes on, and with room again
// the refused ones are accepted.
func TestAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount a small file system")
	}
	k := testkit.SharedKafka(t)
	l := newLine(t, k.Addr())
	if err := os.Mkdir(l.data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", l.data, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("this machine lets even root mount nothing: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(l.data, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	p := l.start()
	payload := `{"pad":"` + strings.Repeat("x", 20_000) + `"}`
	var accepted, refused []uuid.UUID
	for len(refused) < 20 && len(accepted) < 1000 {
		id := uuid.New()
		status, body, err := l.try(id, payload)
		switch {
		case status == http.StatusCreated:
			accepted = append(accepted, id)
		case status == http.StatusInsufficientStorage && strings.Contains(body, "disk"):
			refused = append(refused, id)
		default:
			t.Fatalf("%d %s %v", status, body, err)
		}
	}
	if len(refused) < 20 {
		t.Fatal("the disk never was full")
	}
	if err := unix.Mount("tmpfs", l.data, "tmpfs", unix.MS_REMOUNT, "size=30m"); err != nil {
		t.Fatal(err)
	}
	for _, id := range refused {
		if status, body, err := l.try(id, payload); status != http.StatusCreated {
			t.Fatalf("with room again: %d %s %v", status, body, err)
		}
	}
	l.drained()
	l.stop(p)
	l.once(append(accepted, refused...))
	if out, err := exec.Command(l.bin, "outbox", "check", "--data-dir", l.data).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
