package ipc

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
)

const stranger = 4_000_000_000 // a UID and GID that nobody has

func TestOnlyListedPeers(t *testing.T) {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	for name, c := range map[string]struct {
		uids, gids []uint32
		allowed    bool
	}{
		"no list":          {nil, nil, true},
		"our UID":          {[]uint32{stranger, uid}, nil, true},
		"our GID":          {nil, []uint32{gid}, true},
		"either is enough": {[]uint32{stranger}, []uint32{gid}, true},
		"another UID":      {[]uint32{stranger}, nil, false},
		"another GID":      {nil, []uint32{stranger}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t, func(s *settings) { s.Access.UIDs, s.Access.GIDs = c.uids, c.gids })
			if c.allowed {
				h.post(oneEvent()).want(t, 201, "")
				return
			}
			id := uuid.NewString()
			h.post(oneEvent()).want(t, 403, "forbidden")
			h.call("POST", "/v1/results:batch", "application/x-ndjson", strings.NewReader(oneEvent())).want(t, 403, "forbidden")
			for _, target := range []string{"/v1/results", "/v1/results/" + id, "/v1/status", "/v1/history", "/healthz", "/readyz", "/metrics", "/unknown"} {
				h.get(target).want(t, 403, "forbidden")
			}
			if h.lastSeq() != 0 {
				t.Error("a stranger's result was stored")
			}
		})
	}
}

func TestOnlyOperatorsRetryAndPurge(t *testing.T) {
	h := start(t, func(s *settings) { s.Access.Operators = []uint32{stranger} })
	id := uuid.New()
	h.post(event(id, `{"n":1}`))
	h.park()
	h.call("POST", "/v1/results/"+id.String()+":retry", "", nil).want(t, 403, "forbidden")
	h.call("DELETE", "/v1/results/"+id.String(), "", nil).want(t, 403, "forbidden")
	if a := h.get("/v1/results/" + id.String()); a.State != "parked" {
		t.Errorf("%s", a.text)
	}
}

// TestAnotherUser connects as somebody else in earnest: the kernel says who.
func TestAnotherUser(t *testing.T) {
	dir, ask := anotherUser(t)
	serve := func(name string, change func(*settings)) string {
		h := start(t, func(s *settings) {
			s.Path, s.Mode = filepath.Join(dir, name), 0o666
			change(s)
		})
		return h.path
	}
	if got := ask(serve("open", func(*settings) {})); got != "200" {
		t.Errorf("mode 0666, no list: %s", got)
	}
	if got := ask(serve("listed", func(s *settings) { s.Access.GIDs = []uint32{nobody} })); got != "200" {
		t.Errorf("on the list: %s", got)
	}
	if got := ask(serve("of a group", func(s *settings) { s.Access.GIDs = []uint32{itsGroups[len(itsGroups)-1]} })); got != "200" {
		t.Errorf("a supplementary group on the list: %s", got)
	}
	if got := ask(serve("of no group", func(s *settings) { s.Access.GIDs = []uint32{stranger} })); got != "403" {
		t.Errorf("none of its groups on the list: %s", got)
	}
	if got := ask(serve("unlisted", func(s *settings) { s.Access.UIDs = []uint32{0} })); got != "403" {
		t.Errorf("not on the list: %s", got)
	}
	if got := ask(serve("closed", func(s *settings) { s.Mode = 0o660 })); !strings.Contains(got, "permission denied") {
		t.Errorf("mode 0660: %s", got)
	}
}

// TestStrangersHoldNobodyUp: who may not connect takes no connection from those
// who may, however many he opens.
func TestStrangersHoldNobodyUp(t *testing.T) {
	dir, ask := anotherUser(t)
	h := start(t, func(s *settings) {
		s.Path, s.Mode, s.MaxConnections = filepath.Join(dir, "s"), 0o666, 4
		s.Access.UIDs = []uint32{nobody}
	})
	for range 200 { // this process is the stranger
		h.dial()
	}
	if got := ask(h.path); got != "200" {
		t.Errorf("beside 200 connections of a stranger: %s", got)
	}
}

const nobody = 65534

// itsGroups are nobody's supplementary groups in these tests: more than one
// reading of them takes.
var itsGroups = func() (gs []uint32) {
	for i := range uint32(100) {
		gs = append(gs, 70_000+i)
	}
	return gs
}()

// anotherUser returns a directory that everybody may enter, and what lets nobody
// ask the server at a path in it: the answer's status, or the error.
func anotherUser(t *testing.T) (dir string, ask func(path string) string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = shortDir(t)
	bin := filepath.Join(dir, "test")
	if err := copyFile(exe, bin); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, func(path string) string {
		cmd := exec.CommandContext(t.Context(), bin)
		cmd.Dir, cmd.Env = "/", []string{"IPC_TEST_SOCKET=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody, Groups: itsGroups}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Logf("%v", err)
		}
		return strings.TrimSpace(string(out))
	}
}

// beAnotherUser is the child of anotherUser: it prints the answer's status.
func beAnotherUser(path string) int {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://sidecar/v1/status")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer resp.Body.Close()
	fmt.Println(resp.StatusCode)
	return 0
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
