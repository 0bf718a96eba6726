//go:build kafka

package testkit

import (
	"path/filepath"
	"testing"
)

// The helpers together, and with the real parts: what the crash tests stand on.
func TestSidecarPublishesALoadExactlyOnce(t *testing.T) {
	k := SharedKafka(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	args := []string{"run", "--socket", socket, "--data-dir", filepath.Join(dir, "data"), "--brokers", k.Addr(), "--topic", "under-load"}
	p := StartSidecar(t, Build(t), args...)
	p.WaitReady(t, socket)

	load := StartLoad(t.Context(), t, LoadConfig{Socket: socket, Conns: 4, Count: 50, Keys: 3, Sizes: []int{100, 3000}, Query: "wait=published&timeout=20s"})
	if err := load.AwaitAcked(t.Context(), 60); err != nil {
		t.Fatal(err)
	}
	p.Kill(t)
	p = StartSidecar(t, Build(t), args...)
	p.WaitReady(t, socket)
	if err := load.Wait(); err != nil {
		t.Fatal(err)
	}
	p.Term(t)
	if code := p.Wait(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	acked := load.Acked()
	if len(acked) != 200 {
		t.Errorf("%d results acknowledged, want 200", len(acked))
	}
	CheckExactlyOnce(t, acked, Consume(t, k.Addr(), "under-load"))
}
