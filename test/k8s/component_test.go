package k8s

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const restricted = `
          securityContext:
            runAsNonRoot: true
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
            seccompProfile: {type: RuntimeDefault}
`

func workload(kind, rest string) string {
	head := "apiVersion: apps/v1\nkind: " + kind + "\nmetadata:\n  name: mine\nspec:\n  selector: {matchLabels: {a: b}}\n"
	switch kind {
	case "StatefulSet":
		head += "  serviceName: mine\n"
	case "Job":
		head = "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: mine\nspec:\n"
		rest = "      restartPolicy: Never\n" + rest
	case "CronJob":
		_, job, _ := strings.Cut(workload("Job", rest), "\nspec:\n")
		return "apiVersion: batch/v1\nkind: CronJob\nmetadata:\n  name: mine\nspec:\n  schedule: 0 3 * * *\n  jobTemplate:\n    spec:\n" + indent(job, 4)
	}
	return head + "  template:\n    metadata:\n      labels: {a: b}\n    spec:\n" + rest
}

// indent moves each line so many columns to the right.
func indent(text string, by int) string {
	return regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(text, strings.Repeat(" ", by)+"$1")
}

// with builds a workload of somebody's own with components, as the README says.
func with(t *testing.T, workload, more string, components ...string) string {
	t.Helper()
	return build(t, kustomization(t, workload, more, components...))
}

// kustomization makes the directory that with builds; more is the end of its file.
func kustomization(t *testing.T, workload, more string, components ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "k8s"), os.DirFS(manifests)); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "resources: [workload.yaml]\nconfigMapGenerator:\n  - name: workflow-results-sidecar\n    literals: [\"SIDECAR_BROKERS=127.0.0.1:9092\"]\ncomponents:\n"
	for _, c := range components {
		text += "  - ../k8s/components/" + c + "\n"
	}
	for name, content := range map[string]string{"workload.yaml": workload, "kustomization.yaml": text + more} {
		if err := os.WriteFile(filepath.Join(own, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return own
}

const bare = "      containers:\n        - name: app\n          image: mine" + restricted

const full = `      volumes:
        - name: cache
          emptyDir: {}
      initContainers:
        - name: prepare
          image: mine` + restricted + `          volumeMounts:
            - {name: cache, mountPath: /cache}
      containers:
        - name: app
          image: mine
          volumeMounts:
            - {name: cache, mountPath: /cache}
          env:
            - {name: A, value: b}` + restricted + `        - name: proxy
          image: other` + restricted

// TestComponentOnAnyWorkload adds the sidecar to what has no volumes, mounts or init
// containers, and to what has all of them: nothing of theirs is lost.
func TestComponentOnAnyWorkload(t *testing.T) {
	for _, kind := range []string{"Deployment", "StatefulSet", "Job", "CronJob"} {
		t.Run(kind+" without anything", func(t *testing.T) {
			if err := hasSidecar(thePod(t, with(t, workload(kind, bare), "", "sidecar")), true); err != nil {
				t.Error(err)
			}
		})
		t.Run(kind+" with all of it", func(t *testing.T) {
			p := thePod(t, with(t, workload(kind, full), "", "sidecar"))
			if err := hasSidecar(p, true); err != nil {
				t.Error(err)
			}
			app := p.container("app")
			if mounts(app)["/cache"] != "cache" || len(app.Env) != 1 || p.container("proxy") == nil || p.container("prepare") == nil {
				t.Errorf("something is lost: %+v", p.spec)
			}
			if p.spec.InitContainers[0].Name != sidecar {
				t.Error("the workload's own init containers come first: they could not hand over results")
			}
			if len(mounts(p.container("proxy"))) > 0 {
				t.Error("proxy got a mount that it has no use for")
			}
		})
	}
}

// TestComponents adds the others to the first.
func TestComponents(t *testing.T) {
	t.Run("a claim", func(t *testing.T) {
		p := thePod(t, with(t, workload("StatefulSet", bare), "", "sidecar", "outbox-pvc"))
		if err := hasSidecar(p, true); err != nil {
			t.Error(err)
		}
		if slices.ContainsFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == "workflow-results-outbox" }) {
			t.Error("the emptyDir is still there")
		}
	})
	for _, kind := range []string{"Deployment", "StatefulSet", "Job", "CronJob"} {
		t.Run("no port, "+kind, func(t *testing.T) {
			c := thePod(t, with(t, workload(kind, bare), "", "sidecar", "exec-probes")).container(sidecar)
			if len(c.Ports) > 0 || slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "SIDECAR_ADMIN_ADDR" }) {
				t.Errorf("ports %v, env %v", c.Ports, c.Env)
			}
			for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
				if probe.Exec == nil || probe.HTTPGet != nil {
					t.Errorf("%+v", probe)
				}
			}
			if c.StartupProbe.FailureThreshold != 300 {
				t.Error("the startup probe's patience is lost")
			}
		})
		t.Run("TLS and SASL, "+kind, func(t *testing.T) {
			p := thePod(t, with(t, workload(kind, bare), "", "sidecar", "kafka-sasl-tls"))
			dir := mounts(p.container(sidecar))["/etc/workflow-results/kafka"]
			if dir == "" || mounts(p.container("app"))["/etc/workflow-results/kafka"] != "" {
				t.Error("the Secret must be mounted in the sidecar, and in nothing else")
			}
			for _, file := range []string{"SIDECAR_KAFKA_CA_FILE", "SIDECAR_KAFKA_PASSWORD_FILE"} {
				if filepath.Dir(env(p, file)) != "/etc/workflow-results/kafka" {
					t.Errorf("%s is %s", file, env(p, file))
				}
			}
		})
	}
	t.Run("a plain container", func(t *testing.T) {
		if err := hasSidecar(thePod(t, with(t, workload("Deployment", full), "", "sidecar", "plain-container")), false); err != nil {
			t.Error(err)
		}
	})
}

// advice is the lines of a kustomization that the README has after a phrase.
func advice(t *testing.T, phrase string) string {
	t.Helper()
	_, text, found := strings.Cut(readFile(t, manifests, "README.md"), phrase)
	lines := regexp.MustCompile(`(?s)\n\n    (.*?)\n\n[^ ]`).FindStringSubmatch(text)
	if !found || lines == nil {
		t.Fatalf("the README has no lines after %q", phrase)
	}
	return strings.ReplaceAll(lines[1], "\n    ", "\n") + "\n"
}

// TestOtherContainerName does what the README says for a container that is not
// called "app"; without it, the API server refuses a container without an image.
func TestOtherContainerName(t *testing.T) {
	worker := workload("Deployment", strings.Replace(bare, "name: app", "name: worker", 1))
	if _, err := examine(with(t, worker, "", "sidecar")); err == nil || !strings.Contains(err.Error(), "image: Required value") {
		t.Errorf("%v, want that an image is required", err)
	}
	p := thePod(t, with(t, worker, advice(t, "A container of another name"), "sidecar"))
	if p.container("app") != nil || mounts(p.container("worker"))["/run/workflow-results"] == "" {
		t.Errorf("%+v", p.spec.Containers)
	}

	// Of a CronJob: the README's lines at the path that it names.
	head, rest, _ := strings.Cut(strings.ReplaceAll(advice(t, "A container of another name"), "kind: Deployment", "kind: CronJob"), "        template:\n")
	lines := head + "        jobTemplate:\n          spec:\n            template:\n" + indent(rest, 4)
	p = thePod(t, with(t, workload("CronJob", strings.Replace(bare, "name: app", "name: worker", 1)), lines, "sidecar"))
	if p.container("app") != nil || mounts(p.container("worker"))["/run/workflow-results"] == "" {
		t.Errorf("%+v", p.spec.Containers)
	}
}

// TestImageOfOwn names another registry and version, as the README says.
func TestImageOfOwn(t *testing.T) {
	p := thePod(t, with(t, workload("Job", bare), advice(t, "The image from a registry of yours"), "sidecar"))
	if image := p.container(sidecar).Image; image != "registry.example.com/workflow-results-sidecar:0.1.0" {
		t.Errorf("the image is %s", image)
	}
	if p.container("app").Image != "mine" {
		t.Errorf("the app's image is %s", p.container("app").Image)
	}
}

// own is a Deployment with a grace period and a group of its own, kept by the
// README's lines.
func own(t *testing.T) pod {
	t.Helper()
	before := "      terminationGracePeriodSeconds: 300\n      securityContext: {fsGroup: 2000, supplementalGroups: [7]}\n"
	user := strings.Replace(bare, "runAsNonRoot", "runAsUser: 10001\n            runAsNonRoot", 1)
	return thePod(t, with(t, workload("Deployment", before+user), advice(t, "gets them back so"), "sidecar"))
}

// TestWhatThePodHasOfItsOwn is kept, by the README's lines where it must be.
func TestWhatThePodHasOfItsOwn(t *testing.T) {
	p := own(t)
	s := p.spec.SecurityContext
	if *p.spec.TerminationGracePeriodSeconds != 300 || *s.FSGroup != 2000 || !slices.Equal(s.SupplementalGroups, []int64{7}) {
		t.Errorf("grace %d, %+v", *p.spec.TerminationGracePeriodSeconds, s)
	}
}

// TestClaimsOfItsOwn are never replaced: the component refuses, and the README's
// lines add to them.
func TestClaimsOfItsOwn(t *testing.T) {
	claims := strings.Replace(workload("StatefulSet", bare), "  template:\n", `  volumeClaimTemplates:
    - metadata: {name: own}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
  template:
`, 1)
	if _, err := kustomize(kustomization(t, claims, "", "sidecar", "outbox-pvc")); err == nil || !strings.Contains(err.Error(), "testing value /spec/volumeClaimTemplates failed") {
		t.Errorf("%v, want a refusal", err)
	}
	p := thePod(t, with(t, claims, advice(t, "where there are some, in its place"), "sidecar"))
	if err := hasSidecar(p, true); err != nil {
		t.Error(err)
	}
	if len(p.claims) != 2 || p.claims["own"] != 1<<30 {
		t.Errorf("claims %v", p.claims)
	}
	if slices.ContainsFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == "workflow-results-outbox" }) {
		t.Error("the emptyDir is still there")
	}
}

// TestAdvice: the README's first lines are what the other tests build on.
func TestAdvice(t *testing.T) {
	lines := advice(t, "They write these lines")
	for _, want := range []string{"components:\n  - workflow-results/components/sidecar\n", "configMapGenerator:\n  - name: " + sidecar + "\n    literals:\n      - SIDECAR_BROKERS="} {
		if !strings.Contains(lines, want) {
			t.Errorf("%q is not in\n%s", want, lines)
		}
	}
}

// TestLoginOfOwn mounts a Secret of somebody's own, as the README says.
func TestLoginOfOwn(t *testing.T) {
	p := thePod(t, with(t, workload("Deployment", bare), advice(t, "A login at a Kafka of another kind"), "sidecar"))
	c := p.container(sidecar)
	name := mounts(c)["/etc/workflow-results/kafka"]
	i := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 || p.spec.Volumes[i].Secret == nil || p.spec.Volumes[i].Secret.SecretName != "billing-kafka" || mounts(c)["/run/workflow-results"] == "" {
		t.Errorf("%+v", p.spec)
	}
}

// TestLoginWins: of what the component sets, the user's ConfigMap changes what it names,
// in a workload and in the Job that drains.
func TestLoginWins(t *testing.T) {
	for _, workload := range []string{workload("Deployment", bare), workload("CronJob", bare), ""} {
		components := []string{"sidecar", "kafka-sasl-tls"}
		if workload == "" {
			components = components[1:]
		}
		dir := kustomization(t, workload, "", components...)
		file := filepath.Join(dir, "kustomization.yaml")
		text := strings.Replace(readFile(t, file), `"]`, `", "SIDECAR_KAFKA_USERNAME=billing", "SIDECAR_KAFKA_SASL=scram-sha-256"]`, 1)
		if workload == "" {
			text = strings.Replace(text, "[workload.yaml]", "[../k8s/drain]", 1)
			text = strings.Replace(text, "    literals:", "    behavior: merge\n    literals:", 1)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := thePod(t, build(t, dir))
		if env(p, "SIDECAR_KAFKA_USERNAME") != "billing" || env(p, "SIDECAR_KAFKA_SASL") != "scram-sha-256" || env(p, "SIDECAR_KAFKA_TLS") != "true" || env(p, "SIDECAR_BROKERS") != "127.0.0.1:9092" {
			t.Errorf("%s: %v", p.kind, environment(p))
		}
	}
}

// TestLimitOfOwn raises what the ConfigMap cannot, as the README says.
func TestLimitOfOwn(t *testing.T) {
	p := thePod(t, with(t, workload("Deployment", bare), advice(t, "the ConfigMap does not change"), "sidecar"))
	if err := hasSidecar(p, true); err != nil || env(p, "SIDECAR_MAX_BYTES") != "4294967296" {
		t.Errorf("%v; SIDECAR_MAX_BYTES is %s", err, env(p, "SIDECAR_MAX_BYTES"))
	}
}
