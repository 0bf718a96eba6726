package k8s

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kfake"
	corev1 "k8s.io/api/core/v1"

	"workflow-results-sidecar/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// binary is the sidecar, where other users may run it.
func binary(t *testing.T) string {
	t.Helper()
	path := testkit.Build(t)
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestFlags: every variable in the manifests is one of a flag, and the defaults that
// their texts rest on are so.
func TestFlags(t *testing.T) {
	help, err := exec.Command(binary(t), "run", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	flags := strings.Join(strings.Fields(string(help)), " ")
	for _, text := range []string{"($SIDECAR_SHUTDOWN_TIMEOUT) (default 25s)", `($SIDECAR_SOCKET) (default "/run/workflow-results/sidecar.sock")`} {
		if !strings.Contains(flags, text) {
			t.Errorf("the help does not say %s", text)
		}
	}
	for _, overlay := range overlays(t) {
		n := 0
		for name := range environment(podOf(t, overlay)) {
			if strings.HasPrefix(name, "SIDECAR_") {
				n++
				if !strings.Contains(flags, "($"+name+")") {
					t.Errorf("%s: %s belongs to no flag", overlay, name)
				}
			}
		}
		if n < 5 {
			t.Errorf("%s: only %d variables", overlay, n)
		}
	}
	for _, name := range regexp.MustCompile(`SIDECAR_[A-Z_]+`).FindAllString(readFile(t, manifests, "README.md"), -1) {
		if !strings.Contains(flags, "($"+name+")") {
			t.Errorf("README.md: %s belongs to no flag", name)
		}
	}
}

// node plays a kubelet with processes: the pod's volumes are directories, its
// containers run as their users, in their groups, without any capability.
type node struct {
	t       *testing.T
	pod     pod
	dir     string
	brokers string
	admin   string
	sidecar *testkit.Process
}

// schedule lays the pod's volumes out as the kubelet does: they belong to root, and
// to the fsGroup, whose bit makes what is made in them belong to it.
func schedule(t *testing.T, p pod, brokers string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can run containers as their users")
	}
	dir, err := os.MkdirTemp("", "pod") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, pod: p, dir: dir, brokers: brokers}
	for _, m := range p.container(sidecar).VolumeMounts {
		at := n.path(m.MountPath)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(at, 0, int(*p.spec.SecurityContext.FSGroup)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(at, 0o777|os.ModeSetgid); err != nil { // of an emptyDir; a claim's is 0775
			t.Fatal(err)
		}
	}
	return n
}

// path is where a container's path is on this machine.
func (n *node) path(in string) string { return filepath.Join(n.dir, in) }

// as is the beginning of a command line that runs what follows as a container does.
func (n *node) as(c *corev1.Container) []string {
	gid := "0" // what a container has whose image and manifest name no group
	if c.SecurityContext.RunAsGroup != nil {
		gid = fmt.Sprint(*c.SecurityContext.RunAsGroup)
	}
	return []string{"setpriv", "--reuid", fmt.Sprint(*c.SecurityContext.RunAsUser), "--regid", gid,
		"--groups", fmt.Sprint(*n.pod.spec.SecurityContext.FSGroup), "--no-new-privs", "--bounding-set", "-all", "--inh-caps", "-all"}
}

// command is how the sidecar's container runs one of its own commands.
func (n *node) command(args ...string) []string {
	line := append(n.as(n.pod.container(sidecar)), "env", "-i")
	for name, value := range environment(n.pod) {
		switch {
		case name == "SIDECAR_BROKERS":
			value = n.brokers
		case name == "SIDECAR_ADMIN_ADDR":
			value = n.admin
		case strings.HasPrefix(value, "/"):
			value = n.path(value)
		}
		line = append(line, name+"="+value)
	}
	return append(append(line, binary(n.t)), args...)
}

// start starts the sidecar's container.
func (n *node) start(more ...string) {
	n.t.Helper()
	n.admin = testkit.FreeAddr(n.t)
	args := slices.Clone(n.pod.container(sidecar).Args)
	for i, arg := range args {
		if strings.HasPrefix(arg, "/") {
			args[i] = n.path(arg)
		}
	}
	line := n.command(append(args, more...)...)
	n.sidecar = testkit.StartSidecar(n.t, line[0], line[1:]...)
}

// probe asks as the kubelet does.
func (n *node) probe(p *corev1.Probe) error {
	if p.Exec != nil {
		if p.Exec.Command[0] != "/sidecar" {
			return fmt.Errorf("the image has no %s", p.Exec.Command[0])
		}
		line := n.command(p.Exec.Command[1:]...)
		out, err := exec.Command(line[0], line[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	resp, err := http.Get("http://" + n.admin + p.HTTPGet.Path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s: %s", p.HTTPGet.Path, resp.Status)
	}
	return nil
}

// await polls a probe until it passes.
func (n *node) await(p *corev1.Probe) {
	n.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := n.probe(p)
		if err == nil {
			return
		}
		select {
		case <-n.sidecar.Done():
			n.t.Fatalf("the sidecar ended; its probe: %v", err)
		default:
			if time.Now().After(deadline) {
				n.t.Fatalf("the probe never passed: %v", err)
			}
		}
	}
}

// app hands over a result, as the app's user, and returns its event ID.
func (n *node) app() string {
	n.t.Helper()
	id, body := result()
	if out, err := n.handOver(n.as(n.pod.container("app")), body); err != nil {
		n.t.Fatalf("the app could not hand over its result: %v\n%s", err, out)
	}
	return id
}

// result is one to hand over, and its event ID.
func result() (id, body string) {
	id = uuid.NewString()
	return id, fmt.Sprintf(`{"event_id":%q,"correlation_id":%q,"workflow_id":"w","workflow_run_id":"r","status":"success","result":{},"error":null}`, id, uuid.NewString())
}

// handOver sends body as somebody, who is the beginning of a command line.
func (n *node) handOver(somebody []string, body string) ([]byte, error) {
	line := append(somebody, "curl", "--silent", "--show-error", "--fail", "--max-time", "30", "--unix-socket", n.path("/run/workflow-results/sidecar.sock"),
		"--header", "Content-Type: application/json", "--data", body, "http://sidecar/v1/results")
	return exec.Command(line[0], line[1:]...).CombinedOutput()
}

// startApp starts the app's container, when the startup probe lets it, and waits
// for its first result. Asked to end, it works on for so many seconds and hands over
// its second one.
func (n *node) startApp(worksOn int) (app *testkit.Process, ids []string) {
	n.t.Helper()
	n.await(n.pod.container(sidecar).StartupProbe)
	const script = `
		hand() { curl --silent --show-error --fail --max-time 30 --unix-socket "$1" --header "Content-Type: application/json" --data "$2" http://sidecar/v1/results; }
		trap 'kill $!; sleep "$4"; hand "$1" "$3"; exit $?' TERM
		hand "$1" "$2"
		setpriv --pdeathsig KILL sleep infinity >/dev/null 2>&1 & wait $!`
	first, one := result()
	second, two := result()
	line := append(n.as(n.pod.container("app")), "sh", "-c", script, "app", n.path("/run/workflow-results/sidecar.sock"), one, two, fmt.Sprint(worksOn))
	app = testkit.StartSidecar(n.t, line[0], line[1:]...)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(app.Output(), first); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("the app handed nothing over: %s", app.Output())
		}
	}
	return app, []string{first, second}
}

// terminate ends the pod as the kubelet does: SIGTERM to the app, and when that has
// ended to a native sidecar, which has what is left of the grace period; to a plain
// container at once. What runs at the end of the grace period gets SIGKILL.
func (n *node) terminate(app *testkit.Process, grace time.Duration) (killed bool) {
	n.t.Helper()
	over := time.NewTimer(grace)
	defer over.Stop()
	app.Term(n.t)
	order := []*testkit.Process{app, n.sidecar}
	if n.pod.container(sidecar).RestartPolicy == nil {
		n.sidecar.Term(n.t)
	}
	for _, p := range order {
		if p == n.sidecar && n.pod.container(sidecar).RestartPolicy != nil {
			p.Term(n.t)
		}
		select {
		case <-p.Done():
		case <-over.C:
			app.Kill(n.t)
			n.sidecar.Kill(n.t)
			return true
		}
	}
	return false
}

// grace is the pod's own grace period.
func (n *node) grace() time.Duration {
	return time.Duration(*n.pod.spec.TerminationGracePeriodSeconds) * time.Second
}

// expect reads the topic: each of ids is there, once, and nothing else.
func expect(t *testing.T, broker string, ids []string) {
	t.Helper()
	seen := map[string]int{}
	for _, r := range testkit.Consume(t, broker, "workflow-results") {
		seen[testkit.Header(r, "ce_id")]++
	}
	for _, id := range ids {
		if seen[id] != 1 {
			t.Errorf("%s is in the topic %d times", id, seen[id])
		}
	}
	if len(seen) != len(ids) {
		t.Errorf("%d results are in the topic, want %d", len(seen), len(ids))
	}
}

// TestPodLives plays the life of each overlay's pod that needs no secrets: the
// sidecar starts, the app when the startup probe lets it, it hands over results, the
// pod is asked to end, the app hands over its last result, the sidecar publishes what
// is left and ends within the grace period. The app of the plain container's pod works
// on for longer than the sidecar would wait by default.
func TestPodLives(t *testing.T) {
	for overlay, worksOn := range map[string]int{"deployment": 0, "dev": 0, "pre-1.29": 2, "statefulset": 0} {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			broker := testkit.StartFake(t).Addr()
			n := schedule(t, podOf(t, overlay), broker)
			n.start()
			app, ids := n.startApp(worksOn)
			for range 5 {
				ids = append(ids, n.app())
			}
			c := n.pod.container(sidecar)
			for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe} {
				n.await(p)
			}
			if n.terminate(app, n.grace()) {
				t.Error("it was killed at the end of the grace period")
			}
			if code := app.Wait(t); code != 0 {
				t.Errorf("the app's exit status is %d: it could not hand over its last result:\n%s", code, app.Output())
			}
			n.endedWell()
			expect(t, broker, ids)
			for _, path := range []string{"/var/lib/workflow-results/outbox", "/var/lib/workflow-results/outbox/outbox.db"} {
				info, err := os.Stat(n.path(path))
				if err != nil {
					t.Fatal(err)
				}
				if of := info.Sys().(*syscall.Stat_t).Uid; int64(of) != *c.SecurityContext.RunAsUser || info.Mode()&0o077 != 0 {
					t.Errorf("%s: user %d, mode %s", path, of, info.Mode())
				}
			}
		})
	}
}

// endedWell checks that the sidecar has ended by itself, with nothing left.
func (n *node) endedWell() {
	n.t.Helper()
	if code := n.sidecar.Wait(n.t); code != 0 {
		n.t.Errorf("exit status %d: the pod would have failed", code)
	}
	if !strings.Contains(n.sidecar.Output(), "everything is published") {
		n.t.Error("it does not say that everything is published")
	}
}

// TestJobCompletes: the app ends by itself, the kubelet then ends the sidecar, which
// publishes what Kafka, away until then, had not taken; nothing of the pod runs on.
func TestJobCompletes(t *testing.T) {
	for _, overlay := range []string{"job", "cronjob"} {
		t.Run(overlay, func(t *testing.T) {
			n := schedule(t, podOf(t, overlay), testkit.FreeAddr(t))
			n.start()
			n.await(n.pod.container(sidecar).StartupProbe)
			ids := []string{n.app(), n.app()} // each is a process that ends with status 0
			n.sidecar.Term(t)
			testkit.StartFake(t, kfake.Ports(port(t, n.brokers)))
			n.endedWell()
			expect(t, n.brokers, ids)
		})
	}
}

// TestPodWithoutKafka gets ready, and loses nothing when the kubelet kills the
// container at the end of the grace period and starts it again on the same volume.
func TestPodWithoutKafka(t *testing.T) {
	n := schedule(t, podOf(t, "statefulset"), testkit.FreeAddr(t))
	n.start()
	c := n.pod.container(sidecar)
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		n.await(p)
	}
	app, ids := n.startApp(0)
	if !n.terminate(app, 2*time.Second) { // less than --shutdown-timeout
		t.Error("it ended by itself, without Kafka")
	}
	if code := app.Wait(t); code != 0 {
		t.Errorf("the app's exit status is %d: it could not hand over its last result:\n%s", code, app.Output())
	}

	n.brokers = testkit.StartFake(t).Addr()
	n.start()
	n.await(c.StartupProbe)
	ids = append(ids, n.app())
	n.sidecar.Term(t)
	if code := n.sidecar.Wait(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	expect(t, n.brokers, ids)
}

// TestPodDrainsToTheEnd: with Kafka away it ends by itself when --shutdown-timeout is
// over, tells what is left, and exits 0, so that a Job is complete.
func TestPodDrainsToTheEnd(t *testing.T) {
	n := schedule(t, podOf(t, "job"), testkit.FreeAddr(t))
	n.start("--shutdown-timeout", "1s")
	n.await(n.pod.container(sidecar).StartupProbe)
	n.app()
	n.sidecar.Term(t)
	if code := n.sidecar.Wait(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if !strings.Contains(n.sidecar.Output(), `"pending":1`) {
		t.Errorf("it does not tell what is left:\n%s", n.sidecar.Output())
	}
}

// TestExecProbes asks through the socket, as the sidecar's own user.
func TestExecProbes(t *testing.T) {
	n := schedule(t, thePod(t, with(t, workload("Deployment", bare), "", "sidecar", "exec-probes")), testkit.FreeAddr(t))
	c := n.pod.container(sidecar)
	n.start()
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		n.await(p)
	}
	n.sidecar.Kill(t)
	for _, p := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		if n.probe(p) == nil {
			t.Error("a probe passes, and nothing runs")
		}
	}
}

// TestProbesFailWhenTheyShould: a full outbox is not ready, and alive all the same.
func TestProbesFailWhenTheyShould(t *testing.T) {
	n := schedule(t, podOf(t, "deployment"), testkit.FreeAddr(t))
	n.start("--max-rows", "1")
	c := n.pod.container(sidecar)
	n.await(c.StartupProbe)
	n.app()
	if n.probe(c.ReadinessProbe) == nil {
		t.Error("a full outbox is ready")
	}
	for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe} {
		if err := n.probe(p); err != nil {
			t.Errorf("a full outbox is restarted: %v", err)
		}
	}
	wrong := c.LivenessProbe.DeepCopy()
	wrong.HTTPGet.Path = "/health"
	if n.probe(wrong) == nil {
		t.Error("a path passes that the sidecar does not have")
	}
}

// TestUsersOfThePod: the app is another user, in the socket's group by the pod's
// fsGroup alone. Nobody outside of it gets in, and --allow-gid takes it for what it is.
func TestUsersOfThePod(t *testing.T) {
	n := schedule(t, own(t), testkit.FreeAddr(t)) // its fsGroup is not the sidecar's own group
	app, c := n.pod.container("app").SecurityContext, n.pod.container(sidecar)
	group := *n.pod.spec.SecurityContext.FSGroup
	if *app.RunAsUser == *c.SecurityContext.RunAsUser || group == *c.SecurityContext.RunAsGroup {
		t.Fatal("they are the same user, or in the same group without the fsGroup")
	}
	outside := []string{"setpriv", "--reuid", fmt.Sprint(*app.RunAsUser), "--regid", fmt.Sprint(*app.RunAsUser), "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all"}

	n.start("--allow-gid", fmt.Sprint(group))
	n.await(c.StartupProbe)
	n.app()
	info, err := os.Stat(n.path("/run/workflow-results/sidecar.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if of := info.Sys().(*syscall.Stat_t).Gid; int64(of) != group || info.Mode().Perm() != 0o660 {
		t.Errorf("the socket: group %d, mode %s", of, info.Mode())
	}
	_, body := result()
	if out, err := n.handOver(outside, body); err == nil || !strings.Contains(string(out), "Could not connect") && !strings.Contains(string(out), "Couldn't connect") {
		t.Errorf("somebody outside of the group: %v %s", err, out)
	}
	n.sidecar.Kill(t)

	n.start("--allow-gid", fmt.Sprint(group+1))
	n.await(c.StartupProbe)
	if out, err := n.handOver(n.as(n.pod.container("app")), body); err == nil || !strings.Contains(string(out), "403") {
		t.Errorf("a group that is not allowed: %v %s", err, out)
	}
}

// TestPodWithSecrets logs in by SCRAM over TLS with the files of the overlay's two
// Secrets, which the sidecar's user reads by the pod's group alone.
func TestPodWithSecrets(t *testing.T) {
	p := podOf(t, "sasl-tls")
	authority := testkit.NewAuthority(t)
	const password = "of-the-kafka-user"
	broker := testkit.StartFake(t, kfake.TLS(authority.Server()), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", env(p, "SIDECAR_KAFKA_USERNAME"), password)).Addr()
	n := schedule(t, p, broker)
	for file, content := range map[string]string{"SIDECAR_KAFKA_CA_FILE": string(authority.PEM()), "SIDECAR_KAFKA_PASSWORD_FILE": password} {
		path := n.path(env(p, file))
		if err := os.WriteFile(path, []byte(content), 0o440); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, 0, int(*p.spec.SecurityContext.FSGroup)); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	app, _ := n.startApp(0)
	if n.terminate(app, n.grace()) {
		t.Error("it was killed at the end of the grace period")
	}
	n.endedWell()
}

// port is the port of an address.
func port(t *testing.T, addr string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
