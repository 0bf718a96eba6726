package testkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// StartSidecar starts the sidecar's binary with args, without SIDECAR_ variables
// of the caller's environment; args may begin with some of its own (NAME=value).
// It ends with the test.
func StartSidecar(t testing.TB, bin string, args ...string) *Process {
	t.Helper()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "SIDECAR_") })
	for len(args) > 0 && strings.Contains(args[0], "=") {
		env, args = append(env, args[0]), args[1:]
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = env
	return StartProcess(t, "the sidecar", cmd)
}

// StartProcess starts cmd, called name in reports. It ends with the test.
func StartProcess(t testing.TB, name string, cmd *exec.Cmd) *Process {
	t.Helper()
	out := &output{}
	p, err := startProcess(name, cmd, out)
	if err != nil {
		t.Fatal(err)
	}
	showOnFailure(t, name, out)
	t.Cleanup(p.end)
	return p
}

// WaitReady waits until the sidecar answers GET /readyz with 200 on its socket.
func (p *Process) WaitReady(t testing.TB, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyTimeout)
	defer cancel()
	client := SocketClient(t, socket)
	defer client.CloseIdleConnections() // a sidecar that ends waits for its clients to go
	err := poll(ctx, func(ctx context.Context) error {
		select {
		case <-p.done:
			return errors.Join(errEnded, fmt.Errorf("exit code %d", p.cmd.ProcessState.ExitCode()))
		default:
			return getReady(ctx, client)
		}
	})
	if err != nil {
		t.Fatalf("%s is not ready: %v", p.name, err)
	}
}

func getReady(ctx context.Context, client *http.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sidecar/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET /readyz: %s: %s", resp.Status, body)
	}
	return err
}

// SocketClient is an HTTP client that dials a Unix socket, whatever the URL's
// host. Its idle connections are closed with the test.
func SocketClient(t testing.TB, socket string) *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxConnsPerHost: 1,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}
