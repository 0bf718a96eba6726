package k8s

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	manifests = "../../k8s"
	sidecar   = "workflow-results-sidecar"
)

// overlays are the directories below k8s/overlays.
func overlays(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(manifests, "overlays"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// podOf builds an overlay and returns the pod with the sidecar.
func podOf(t *testing.T, overlay string) pod {
	t.Helper()
	return thePod(t, build(t, filepath.Join(manifests, "overlays", overlay)))
}

func thePod(t *testing.T, text string) pod {
	t.Helper()
	pods, err := examine(text)
	if err != nil {
		t.Fatal(err)
	}
	var found []pod
	for _, p := range pods {
		if p.container(sidecar) != nil {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d of %d pods have a sidecar, want 1", len(found), len(pods))
	}
	return found[0]
}

// TestOverlays: the API server takes each of them, and each has a sound pod.
func TestOverlays(t *testing.T) {
	names := overlays(t)
	if want := []string{"cronjob", "deployment", "dev", "job", "pre-1.29", "sasl-tls", "statefulset"}; !slices.Equal(names, want) {
		t.Errorf("overlays %v, want %v", names, want)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if err := hasSidecar(podOf(t, name), name != "pre-1.29"); err != nil {
				t.Error(err)
			}
		})
	}
}

// hasSidecar says what is not as it must be, whatever the workload.
func hasSidecar(p pod, native bool) error {
	c := p.container(sidecar)
	isInit := slices.ContainsFunc(p.spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecar })
	always := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	if isInit != native || always != native {
		return fmt.Errorf("native sidecar: among the init containers %t, restarted always %t, want both %t", isInit, always, native)
	}
	socket := mounts(p.container("app"))["/run/workflow-results"]
	if socket == "" || mounts(c)["/run/workflow-results"] != socket {
		return fmt.Errorf("the socket's directory is %q in the app and %q in the sidecar", socket, mounts(c)["/run/workflow-results"])
	}
	data := mounts(c)["/var/lib/workflow-results"]
	for _, other := range append(slices.Clone(p.spec.InitContainers), p.spec.Containers...) {
		for path, volume := range mounts(&other) {
			if other.Name != sidecar && volume == data {
				return fmt.Errorf("container %s mounts the outbox at %s", other.Name, path)
			}
		}
	}
	size, isClaim := p.claims[data]
	for _, v := range p.spec.Volumes {
		if v.Name == data && !isClaim {
			size = v.EmptyDir.SizeLimit.Value()
		}
	}
	// The file takes up to a quarter more than --max-bytes, its log 64 MiB, and as much
	// again and 32 MiB are kept free: docs/OPERATIONS.md, "Disk".
	held, err := strconv.ParseInt(env(p, "SIDECAR_MAX_BYTES"), 10, 64)
	if err != nil {
		return fmt.Errorf("SIDECAR_MAX_BYTES: %w", err)
	}
	if size < held+held/4+(64+64+32)<<20 {
		return fmt.Errorf("the outbox's volume %q has %d bytes, for results of %d", data, size, held)
	}
	return nil
}

func mounts(c *corev1.Container) map[string]string {
	byPath := map[string]string{}
	for _, m := range c.VolumeMounts {
		byPath[m.MountPath] = m.Name
	}
	return byPath
}

// env is a variable of the sidecar's, wherever it comes from.
func env(p pod, name string) string { return environment(p)[name] }

func environment(p pod) map[string]string {
	c, all := p.container(sidecar), map[string]string{}
	for _, from := range c.EnvFrom {
		for k, v := range p.config[from.ConfigMapRef.Name] {
			all[k] = v
		}
	}
	for _, e := range c.Env {
		all[e.Name] = e.Value
		if r := e.ValueFrom; r != nil && r.ResourceFieldRef.Resource == "requests.memory" {
			all[e.Name] = fmt.Sprint(c.Resources.Requests.Memory().Value())
		}
	}
	return all
}

// TestMemory: what Go may hold is a good part below what the kernel kills for.
func TestMemory(t *testing.T) {
	p := podOf(t, "statefulset")
	limit := p.container(sidecar).Resources.Limits.Memory().Value()
	var soft int64
	if _, err := fmt.Sscan(env(p, "GOMEMLIMIT"), &soft); err != nil || soft < limit/2 || soft > limit*8/10 {
		t.Errorf("GOMEMLIMIT %d (%v), the limit is %d", soft, err, limit)
	}
}

// TestGrace: within the pod's grace period the app has ten seconds of its own
// before the sidecar's --shutdown-timeout, and the sidecar of a job or cronjob all but that. So has
// the plain container, which is asked to end together with the app.
func TestGrace(t *testing.T) {
	for overlay, want := range map[string]struct{ grace, own int64 }{"statefulset": {60, 25}, "deployment": {60, 25}, "pre-1.29": {60, 55}, "job": {300, 280}, "cronjob": {300, 280}} {
		p := podOf(t, overlay)
		shutdown := env(p, "SIDECAR_SHUTDOWN_TIMEOUT")
		if shutdown == "" {
			shutdown = "25s" // its default, see TestFlags
		}
		if *p.spec.TerminationGracePeriodSeconds != want.grace || shutdown != fmt.Sprintf("%ds", want.own) {
			t.Errorf("%s: %d s of grace, and --shutdown-timeout %s", overlay, *p.spec.TerminationGracePeriodSeconds, shutdown)
		}
	}
}

// TestFaultsAreSeen spoils what is sound and expects to hear of it: else the other
// tests would prove nothing.
func TestFaultsAreSeen(t *testing.T) {
	text := build(t, filepath.Join(manifests, "overlays", "deployment"))
	for name, c := range map[string]struct{ old, new, says string }{
		"unknown field":           {"livenessProbe:\n", "livenessProb:\n", "unknown field"},
		"field of another type":   {"failureThreshold: 300", "failureThreshold: many", "cannot unmarshal"},
		"field twice":             {"serviceAccountName: langgraph\n", "serviceAccountName: langgraph\n      serviceAccountName: other\n", "already set"},
		"volume that is not":      {"mountPath: /run/workflow-results\n          name: workflow-results-socket", "mountPath: /run/workflow-results\n          name: nothing", "Not found"},
		"volume without a mount":  {"mountPath: /var/lib/workflow-results", "mountPath: /run/workflow-results", "must be unique"},
		"probe of no port":        {"port: results-admin\n          periodSeconds: 10", "port: results\n          periodSeconds: 10", "liveness probe asks at the port results"},
		"bad port name":           {"name: results-admin\n", "name: the-port-of-results\n", "must be no more than 15 characters"},
		"port of another":         {"containerPort: 9464", "containerPort: 9465", "is 9465, and it listens at"},
		"restart policy":          {"restartPolicy: Always", "restartPolicy: Sometimes", "Unsupported value"},
		"selector of another":     {"matchLabels:\n      app: langgraph", "matchLabels:\n      app: other", "selector"},
		"limit below the request": {"memory: 160Mi", "memory: 16Mi", "must be less than or equal to memory limit"},
		"root":                    {"runAsNonRoot: true\n          runAsUser: 65532", "runAsUser: 0", "runAsUser=0"},
		"escalation":              {"allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "allowPrivilegeEscalation != false"},
		"capabilities":            {"drop:\n            - ALL", "drop:\n            - CHOWN", "unrestricted capabilities"},
		"seccomp":                 {"type: RuntimeDefault", "type: Unconfined", "seccompProfile"},
		"no ConfigMap":            {"envFrom:\n        - configMapRef:\n            name: workflow-results-sidecar", "envFrom:\n        - configMapRef:\n            name: other", "there is no ConfigMap"},
		"socket by subPath":       {"name: workflow-results-socket\n", "name: workflow-results-socket\n          subPath: a\n", "by subPath"},
		"kind without a check  ":  {"automountServiceAccountToken: false\nkind: ServiceAccount", "kind: Secret", "no validator"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(text, c.old) {
				t.Fatalf("%q is not in\n%s", c.old, text)
			}
			_, err := examine(strings.Replace(text, c.old, c.new, 1))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
		})
	}
}

// TestFaultsOfOtherKinds: each kind has its own validator.
func TestFaultsOfOtherKinds(t *testing.T) {
	for name, c := range map[string]struct{ overlay, old, new, says string }{
		"access mode":         {"statefulset", "- ReadWriteOncePod", "- ReadWriteTwice", "Unsupported value"},
		"claim without size":  {"statefulset", "storage: 2Gi", "storag: 2Gi", "Required value"},
		"service's name":      {"statefulset", "serviceName: langgraph", "serviceName: Lang_graph", "spec.serviceName"},
		"service's address":   {"statefulset", "clusterIP: None", "clusterIP: Nowhere", "spec.clusterIP"},
		"NetworkPolicy's way": {"statefulset", "- Ingress", "- Regress", "Unsupported value"},
		"ServiceAccount":      {"statefulset", "automountServiceAccountToken", "automountToken", "unknown field"},
		"ConfigMap's key":     {"statefulset", "SIDECAR_BROKERS:", "'SIDECAR BROKERS':", "a valid config key"},
		"job's restarts":      {"job", "restartPolicy: OnFailure", "restartPolicy: Always", "valid values"},
		"job's limit":         {"job", "backoffLimit: 3", "backoffLimit: -3", "backoffLimit"},
		"schedule":            {"cronjob", "schedule: 0 3 * * *", "schedule: 0 25 * * *", "spec.schedule"},
		"root, each night":    {"cronjob", "runAsNonRoot: true\n              runAsUser: 65532", "runAsUser: 0", "runAsUser=0"},
		"mount in its pod":    {"cronjob", "mountPath: /var/lib/workflow-results\n", "mountPath: /run/workflow-results\n", "must be unique"},
		"probe in its pod":    {"cronjob", "livenessProbe:\n", "livenessProb:\n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			text := build(t, filepath.Join(manifests, "overlays", c.overlay))
			if !strings.Contains(text, c.old) {
				t.Fatalf("%q is not in\n%s", c.old, text)
			}
			_, err := examine(strings.Replace(text, c.old, c.new, 1))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want an error that says %q", err, c.says)
			}
		})
	}
}

// TestMonitoring decodes what is for the Prometheus operator with its own types.
func TestMonitoring(t *testing.T) {
	text := build(t, filepath.Join(manifests, "monitoring"))
	kinds, err := examineMonitoring(text)
	if err != nil || kinds["PodMonitor"] != 1 || kinds["PrometheusRule"] != 1 || kinds["ConfigMap"] != 1 {
		t.Errorf("%v %v", kinds, err)
	}
	for _, field := range []string{"podMetricsEndpoints:", "expr:"} {
		if _, err := examineMonitoring(strings.Replace(text, field, "x"+field, 1)); err == nil {
			t.Errorf("x%s was taken", field)
		}
	}
	p := podOf(t, "statefulset")
	if !strings.Contains(text, "port: "+p.container(sidecar).Ports[0].Name+"\n") {
		t.Error("the PodMonitor asks at a port that the sidecar does not have")
	}
	if p.meta.Labels[sidecar] != "true" || !strings.Contains(text, sidecar+`: "true"`) {
		t.Error("the PodMonitor does not select by the pod's label")
	}
	gate := readFile(t, manifests, "base", "networkpolicy.yaml")
	if !strings.Contains(gate, fmt.Sprintf("- port: %d\n", p.container(sidecar).Ports[0].ContainerPort)) || !strings.Contains(gate, sidecar+`: "true"`) {
		t.Error("the NetworkPolicy does not let the monitoring in to that port of such a pod")
	}
}

// kafkaUser is Strimzi's resource, as far as it is used here.
type kafkaUser struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Authentication struct {
			Type string `json:"type"`
		} `json:"authentication"`
		Authorization struct {
			Type string `json:"type"`
			ACLs []struct {
				Resource   struct{ Type, Name, PatternType string } `json:"resource"`
				Operations []string                                 `json:"operations"`
			} `json:"acls"`
		} `json:"authorization"`
	} `json:"spec"`
}

// TestKafkaUser: its rights are those of the table in docs/OPERATIONS.md, which
// test/security_test.go tries on a broker, and it is the user who logs in.
func TestKafkaUser(t *testing.T) {
	var user kafkaUser
	if err := sigsyaml.UnmarshalStrict([]byte(readFile(t, manifests, "kafka", "kafkauser.yaml")), &user); err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for _, a := range user.Spec.Authorization.ACLs {
		got[strings.Join([]string{a.Resource.Type, a.Resource.Name, a.Resource.PatternType}, " ")] = slices.Sorted(slices.Values(a.Operations))
	}
	const results, watermarks = "topic workflow-results literal", "topic workflow-results-watermarks literal"
	resources := map[string][]string{
		"topic `T`":                       {results},
		"topic `T-watermarks`":            {watermarks},
		"transactional ID, prefixed `T-`": {"transactionalId workflow-results- prefix"},
		"both topics, or the cluster":     {results, watermarks},
		"both topics":                     {results, watermarks},
	}
	_, section, _ := strings.Cut(readFile(t, "../../docs/OPERATIONS.md"), "## Rights in Kafka\n")
	section, _, _ = strings.Cut(section, "\n## ")
	want := map[string][]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (.+?) \| ([A-Z]\w+(?:, [A-Z]\w+)*)(?: \(.*?\))? \|`).FindAllStringSubmatch(section, -1) {
		if resources[row[1]] == nil {
			t.Errorf("docs/OPERATIONS.md: %q is unknown here", row[1])
		}
		for _, r := range resources[row[1]] {
			want[r] = slices.Sorted(slices.Values(append(want[r], strings.Split(row[2], ", ")...)))
		}
	}
	if len(want) != 3 || !reflect.DeepEqual(got, want) {
		t.Errorf("rights\n%v\nwant, as docs/OPERATIONS.md has it,\n%v", got, want)
	}
	p := podOf(t, "sasl-tls")
	if name := env(p, "SIDECAR_KAFKA_USERNAME"); name != user.Name || env(p, "SIDECAR_KAFKA_SASL") != user.Spec.Authentication.Type {
		t.Errorf("the sidecar logs in as %s by %s", name, env(p, "SIDECAR_KAFKA_SASL"))
	}
	i := slices.IndexFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Projected != nil })
	secrets := map[string]string{} // by the path of a file
	for _, s := range p.spec.Volumes[i].Projected.Sources {
		secrets[s.Secret.Items[0].Path] = s.Secret.Name
	}
	cluster := user.Labels["strimzi.io/cluster"]
	if want := map[string]string{"ca.crt": cluster + "-cluster-ca-cert", "password": user.Name}; !maps.Equal(secrets, want) {
		t.Errorf("files from the Secrets %v, want %v", secrets, want)
	}
}
