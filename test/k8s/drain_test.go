package k8s

import (
	"os"
	"path/filepath"
	"testing"

	"workflow-results-sidecar/internal/testkit"
)

// TestDrainJob publishes what a pod that comes no more has left in its claim.
func TestDrainJob(t *testing.T) {
	n := schedule(t, podOf(t, "statefulset"), testkit.FreeAddr(t))
	n.start()
	n.await(n.pod.container(sidecar).StartupProbe)
	ids := []string{n.app(), n.app(), n.app()}
	n.sidecar.Kill(t)

	drain := thePod(t, build(t, filepath.Join(manifests, "drain")))
	if drain.container(sidecar).Image != n.pod.container(sidecar).Image {
		t.Errorf("the image is %s, and that of the sidecar %s", drain.container(sidecar).Image, n.pod.container(sidecar).Image)
	}
	broker := testkit.StartFake(t).Addr()
	job := &node{t: t, pod: drain, dir: n.dir, brokers: broker}
	job.start()
	if code := job.sidecar.Wait(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	expect(t, broker, ids)
}

// TestRecoverInAClaim does what the README says of a damaged one: what can be read is
// copied by one Job and published by the next. What damage does is for internal/outbox.
func TestRecoverInAClaim(t *testing.T) {
	broker := testkit.StartFake(t).Addr()
	n := schedule(t, podOf(t, "statefulset"), testkit.FreeAddr(t))
	n.start()
	n.await(n.pod.container(sidecar).StartupProbe)
	ids := []string{n.app(), n.app(), n.app()}
	n.sidecar.Kill(t)
	for _, phrase := range []string{"which needs the room", "what was pending goes to Kafka"} {
		dir := kustomization(t, "", "", "sidecar")
		text := "resources: [../k8s/drain]\n" + advice(t, phrase)
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		job := &node{t: t, pod: thePod(t, build(t, dir)), dir: n.dir, brokers: broker}
		job.start()
		if code := job.sidecar.Wait(t); code != 0 {
			t.Errorf("%s: exit status %d:\n%s", phrase, code, job.sidecar.Output())
		}
	}
	expect(t, broker, ids)
}

// TestDrainJobWithSASL: what the workload logs in with, the Job does too.
func TestDrainJobWithSASL(t *testing.T) {
	dir := kustomization(t, "", "", "kafka-sasl-tls")
	text := "resources: [../k8s/drain]\ncomponents: [../k8s/components/kafka-sasl-tls]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := thePod(t, build(t, dir))
	c := p.container(sidecar)
	if len(p.spec.InitContainers) != 0 || mounts(c)["/etc/workflow-results/kafka"] == "" || env(p, "SIDECAR_KAFKA_PASSWORD_FILE") == "" {
		t.Errorf("%+v", p.spec)
	}
}
