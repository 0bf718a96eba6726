package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"workflow-results-sidecar/internal/testkit"
)

// TestSystemdHears plays the service manager: it hears that the sidecar is ready,
// its verdict, the watchdog's sign of life, and that it stops.
func TestSystemdHears(t *testing.T) {
	p := newPlace(t, testkit.FreeAddr(t))
	path := filepath.Join(p.dir, "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	messages := make(chan string, 1)
	go func() {
		defer close(messages)
		for buf := make([]byte, 4096); ; {
			n, err := manager.Read(buf)
			if err != nil {
				return // closed with the test
			}
			messages <- string(buf[:n])
		}
	}()
	hear := func(what string) {
		t.Helper()
		for m := range messages {
			if strings.Contains(m, what) {
				return
			}
		}
		t.Fatalf("never heard %q", what)
	}
	r := p.run("--shutdown-timeout", "4s")
	hear("READY=1")
	hear("STATUS=WAITING FOR KAFKA: results are accepted and kept\nWATCHDOG=1")
	p.post(`{}`, "success")
	r.signals <- os.Interrupt
	hear("STATUS=ENDING: 1 results are still pending\nWATCHDOG=1\nSTOPPING=1")
	// From here on the manager does not read: that must hold nothing up.
	if code := r.wait(); code != 0 {
		t.Errorf("status %d", code)
	}
	_ = manager.Close()
	for range messages {
	}
}

// TestSystemdUnit has systemd read the unit; every flag in it must exist.
func TestSystemdUnit(t *testing.T) {
	unit, err := os.ReadFile("../../systemd/workflow-results-sidecar.service")
	if err != nil {
		t.Fatal(err)
	}
	const installed = "/usr/local/bin/sidecar"
	_, args, found := strings.Cut(string(unit), "ExecStart="+installed+" ")
	if !found {
		t.Fatalf("no ExecStart=%s", installed)
	}
	args, _, _ = strings.Cut(args, "\n")
	succeed(t, append(strings.Fields(args), "--help")...)

	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze on this machine")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "workflow-results-sidecar.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(unit), installed, exe)), 0o600); err != nil { // verify wants a program that is there
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), analyze, "verify", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// 1.2 of 10: it needs the network and Unix sockets.
	if out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--threshold=15", file).CombinedOutput(); err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
