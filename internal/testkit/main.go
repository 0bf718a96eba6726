package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// shared is what the tests of one test binary have in common. It is the one
// variable of this package: no test outlives it, and only TestMain can end it.
var shared struct {
	mu     sync.Mutex
	dir    string // made by Main; empty without it
	binary string
	kafka  *Kafka
}

// Main runs a package's tests, then ends what they shared, and exits.
func Main(m *testing.M) {
	dir, err := os.MkdirTemp("", "sidecar-tests-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the tests:", err)
		os.Exit(1)
	}
	shared.dir = dir
	code := m.Run()
	if shared.kafka != nil {
		shared.kafka.end()
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "remove the directory of the tests:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// SharedKafka is one broker for all tests of the binary, started by the first
// that asks. Tests keep apart by the names of their topics and leave it running.
func SharedKafka(t testing.TB) *Kafka {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.kafka != nil {
		showOnFailure(t, "Kafka", shared.kafka.out)
		return shared.kafka
	}
	dir := filepath.Join(sharedDir(t), "kafka")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k, err := newKafka(dir, nil)
	if err == nil {
		err = k.start()
	}
	if err != nil {
		_ = os.RemoveAll(dir) // so that the next test reports its own attempt
		t.Fatal(err)
	}
	shared.kafka = k
	return k
}

// Build builds ./cmd/sidecar once for the test binary, with the race detector
// where the tests have it, and returns its path.
func Build(t testing.TB) string {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.binary != "" {
		return shared.binary
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(sharedDir(t), "sidecar")
	args := []string{"build", "-o", bin}
	if RaceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/sidecar")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the sidecar: %v\n%s", err, out)
	}
	shared.binary = bin
	return bin
}

func sharedDir(t testing.TB) string {
	t.Helper()
	if shared.dir == "" {
		t.Fatal("the package needs: func TestMain(m *testing.M) { testkit.Main(m) }")
	}
	return shared.dir
}
