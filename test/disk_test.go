//go:build kafka

package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

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

// untilRefused posts results of some size until 20 of them were refused with this
// status and text.
func (l *line) untilRefused(status int, text string) (accepted, refused []uuid.UUID) {
	l.t.Helper()
	for len(refused) < 20 && len(accepted) < 2000 {
		id := uuid.New()
		got, body, err := l.try(id, pad)
		switch {
		case got == http.StatusCreated:
			accepted = append(accepted, id)
		case got == status && strings.Contains(body, text):
			refused = append(refused, id)
		default:
			l.t.Fatalf("%d %s %v", got, body, err)
		}
	}
	if len(refused) < 20 {
		l.t.Fatal("none was refused")
	}
	return accepted, refused
}

// pad is a payload of several pages.
var pad = `{"pad":"` + strings.Repeat("x", 20_000) + `"}`

// resend posts again what was refused, until it is accepted.
func (l *line) resend(refused []uuid.UUID) {
	l.t.Helper()
	for _, id := range refused {
		deadline := time.Now().Add(time.Minute)
		for {
			status, body, err := l.try(id, pad)
			if status == http.StatusCreated {
				break
			}
			if time.Now().After(deadline) {
				l.t.Fatalf("with room again: %d %s %v", status, body, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// fillDisk writes a file until the disk takes no more.
func fillDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	return nil
}

// overwrite puts n bytes of nonsense at a place in a file.
func overwrite(t *testing.T, path string, at int64, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(strings.Repeat("\xa5", n)), at)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestAFailedFsyncEndsTheProcess: nothing is acknowledged after it, and the next
// start has all that was acknowledged before.
func TestAFailedFsyncEndsTheProcess(t *testing.T) {
	k := testkit.SharedKafka(t)
	l := newLine(t, k.Addr())
	faults := testkit.NewFaults(t)
	l.env = faults.Env()
	p := l.start()
	before := uuid.New()
	if status, body, err := l.try(before, `{}`); status != http.StatusCreated {
		t.Fatalf("%d %s %v", status, body, err)
	}
	faults.Set(testkit.Fault{Call: testkit.CallSync, Action: testkit.Fail, Errno: syscall.EIO})
	during := uuid.New()
	if status, body, err := l.try(during, `{}`); err == nil && status < 500 {
		t.Errorf("answered %d after a failed fsync: %s", status, body)
	}
	if code := p.Wait(t); code != 1 || !strings.Contains(p.Output(), "fsync failed") {
		t.Errorf("ended with %d", code)
	}
	faults.Clear()
	p = l.start()
	if status, body, err := l.try(during, `{}`); status != http.StatusCreated && status != http.StatusOK {
		t.Errorf("sent again: %d %s %v", status, body, err)
	}
	l.drained()
	l.stop(p)
	l.once([]uuid.UUID{before, during})
}

// TestWritesThatFail: with each errno a file system knows, some writes fail in
// mid-load, anywhere in a commit. Those results are refused for the time being,
// and as soon as writes succeed again they are accepted, without a restart.
func TestWritesThatFail(t *testing.T) {
	k := testkit.SharedKafka(t)
	for name, errno := range map[string]syscall.Errno{"EIO": syscall.EIO, "ENOSPC": syscall.ENOSPC, "EDQUOT": syscall.EDQUOT, "EROFS": syscall.EROFS} {
		t.Run(name, func(t *testing.T) {
			faults := testkit.NewFaults(t)
			l := newLine(t, k.Addr())
			l.env = faults.Env()
			p := l.start()
			ctx, cancel := context.WithCancel(t.Context())
			load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 16, Sizes: randomSizes(), Keys: 4})
			for range 5 {
				faults.Set(testkit.Fault{Call: testkit.CallWrite, Action: testkit.Fail, Errno: errno, Skip: rand.IntN(50), Times: 1 + rand.IntN(20)})
				awaitAcked(t, load, len(load.Acked())+500)
				if faults.Hits() == 0 {
					t.Error("no write failed")
				}
			}
			// All of them fail: one of them hears what is wrong, and that it is to come again.
			faults.Set(testkit.Fault{Call: testkit.CallWrite, Action: testkit.Fail, Errno: errno})
			status, body, err := l.try(uuid.New(), `{}`)
			if err != nil || status != http.StatusServiceUnavailable && status != http.StatusInsufficientStorage {
				t.Errorf("%d %s %v", status, body, err)
			}
			faults.Clear()
			awaitAcked(t, load, len(load.Acked())+500)
			select {
			case <-p.Done():
				t.Error("it has ended")
			default:
			}
			cancel()
			l.finish(p, load)
		})
	}
}

// TestASlowDisk: an fsync that takes seconds holds answers back, and nothing else.
func TestASlowDisk(t *testing.T) {
	k := testkit.SharedKafka(t)
	faults := testkit.NewFaults(t)
	l := newLine(t, k.Addr())
	l.env = faults.Env()
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: 16, Keys: 4})
	awaitAcked(t, load, 200)
	faults.Set(testkit.Fault{Call: testkit.CallSync, Action: testkit.Slow, Delay: 1500 * time.Millisecond, Times: 3})
	awaitAcked(t, load, len(load.Acked())+200)
	if faults.Hits() != 3 {
		t.Errorf("%d of 3 were slow", faults.Hits())
	}
	cancel()
	l.finish(p, load)
}

// TestAFullDisk: an ext4 of a few megabytes fills in mid-load. What was refused
// is not kept, what was accepted is not lost, publishing goes on, and with room
// again the refused ones are accepted.
func TestAFullDisk(t *testing.T) {
	k := testkit.SharedKafka(t)
	v := newVolume(t, 64<<20, "", "-m", "0")
	l := newLine(t, k.Addr())
	l.data = filepath.Join(v.dir, "data")
	p := l.start()
	ballast := filepath.Join(v.dir, "ballast")
	if err := fillDisk(ballast); err != nil {
		t.Fatal(err)
	}
	accepted, refused := l.untilRefused(http.StatusInsufficientStorage, "disk")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.resend(refused)
	l.drained()
	l.stop(p)
	l.once(append(accepted, refused...))
	if out, err := exec.Command(l.bin, "outbox", "check", "--data-dir", l.data).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAFileSystemThatTurnsReadOnly does so in mid-load, as ext4 does on finding an
// error. Nothing is acknowledged from then on; once it can be written again, all
// that was acknowledged before is there.
func TestAFileSystemThatTurnsReadOnly(t *testing.T) {
	k := testkit.SharedKafka(t)
	v := newVolume(t, 64<<20, "errors=remount-ro")
	l := newLine(t, nowhere)
	l.data = filepath.Join(v.dir, "data")
	p := l.start()
	ctx, cancel := context.WithCancel(t.Context())
	load := testkit.StartLoad(ctx, t, testkit.LoadConfig{Socket: l.socket, Conns: conns, Keys: 4})
	awaitAcked(t, load, 1000)
	v.fail()
	before := len(load.Acked())
	status, body, err := l.try(uuid.New(), `{}`)
	if err == nil && status < 500 {
		t.Errorf("answered %d on a read-only file system: %s", status, body)
	}
	if after := len(load.Acked()); after > before+conns { // answers that were on their way
		t.Errorf("%d results were answered", after-before)
	}
	p.Kill(t)
	v.powerOn()
	l.broker = k.Addr()
	p = l.start()
	awaitAcked(t, load, len(load.Acked())+100)
	cancel()
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	l.drained()
	l.stop(p)
	// In the milliseconds in which ext4 gives up its journal, fdatasync can return
	// success for blocks that the kernel has dropped (Linux 6.18: one commit in every
	// third run). No program can tell; what was answered before is there.
	acked, records := load.Acked(), testkit.Consume(t, k.Addr(), l.topic)
	window := acked[before : before+min(conns, len(acked)-before)]
	t.Logf("%d of %d that were answered while it turned read-only are lost", missing(window, records), len(window))
	testkit.CheckExactlyOnce(t, append(slices.Clone(acked[:before]), acked[before+len(window):]...), records)
}

// TestPublishingGoesOnWithoutRoom: what is held goes out though nothing new fits,
// and that makes room.
func TestPublishingGoesOnWithoutRoom(t *testing.T) {
	k := testkit.StartKafka(t)
	k.Stop(t)
	v := newVolume(t, 64<<20, "", "-m", "0")
	l := newLine(t, k.Addr())
	l.data = filepath.Join(v.dir, "data")
	p := l.start()
	accepted, refused := l.untilRefused(http.StatusInsufficientStorage, "disk")
	p.Kill(t)
	p = l.start() // a restart finds room enough to begin
	k.Start(t)
	l.drained()
	l.resend(refused)
	l.drained()
	l.stop(p)
	l.once(append(accepted, refused...))
}

// TestADamagedFile: bytes are overwritten while nobody looks. The start, or the
// check behind it, says so and what to do; `outbox recover` copies the rest, which
// is then published.
func TestADamagedFile(t *testing.T) {
	k := testkit.SharedKafka(t)
	l := newLine(t, nowhere)
	p := l.start()
	load := testkit.StartLoad(t.Context(), t, testkit.LoadConfig{Socket: l.socket, Conns: 16, Count: 100, Sizes: []int{2000}})
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Kill(t) // the log holds results
	logged := filepath.Join(l.dir, "logged")
	l.copyData(logged)
	p = l.start("--shutdown-timeout", "100ms")
	p.Term(t) // the file holds all of them
	p.Wait(t)
	for name, c := range map[string]struct {
		data, file string
		at         int64
		n          int
		lost       bool // all of it
	}{
		"the first page":        {l.data, "outbox.db", 0, 100, true},
		"a page of results":     {l.data, "outbox.db", 4096 * 200, 4096, false},
		"the middle of the log": {logged, "outbox.db-wal", 500_000, 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newLine(t, k.Addr())
			d.topic += "-" + strings.ReplaceAll(name, " ", "-")
			if err := os.CopyFS(d.data, os.DirFS(c.data)); err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(d.data, c.file), c.at, c.n)
			p := d.launch()
			d.awaitDamage(p)
			saved := filepath.Join(d.dir, "saved")
			out, err := exec.Command(d.bin, "outbox", "recover", "--data-dir", d.data, "--to", saved).CombinedOutput()
			t.Logf("%s", out)
			if c.lost {
				if err == nil || !strings.Contains(string(out), "nothing can be saved from it") {
					t.Errorf("recover: %v", err)
				}
				return
			}
			if !strings.Contains(string(out), "copied 1") { // of 1600; the exit status says whether some are lost
				t.Fatalf("recover: %v", err)
			}
			d.data = saved
			p = d.start()
			d.drained()
			d.stop(p)
			if lost := missing(load.Acked(), testkit.Consume(t, k.Addr(), d.topic)); lost > 5 || lost > 0 && err == nil {
				t.Errorf("%d of %d are lost for one damaged page (%v)", lost, len(load.Acked()), err)
			}
		})
	}
}

// awaitDamage waits until the sidecar tells of damage and what to do: it refuses
// to start, or /readyz says so once the damage is met.
func (l *line) awaitDamage(p *testkit.Process) {
	l.t.Helper()
	const help = "sidecar outbox recover --data-dir "
	client := testkit.SocketClient(l.t, l.socket)
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.Done():
			if code := p.Wait(l.t); code != 1 || !strings.Contains(p.Output(), help+l.data) {
				l.t.Fatalf("ended with %d", code)
			}
			return
		default:
		}
		if body, err := readyz(client); err == nil && strings.Contains(body, help) {
			p.Kill(l.t)
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatal("it never tells of damage")
		}
	}
}

func readyz(client *http.Client) (string, error) {
	resp, err := client.Get("http://sidecar/readyz")
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), errors.Join(err, resp.Body.Close())
}
