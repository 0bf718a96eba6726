package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"workflow-results-sidecar/internal/metrics"
)

func readFile(t *testing.T, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// registered takes the names of all metrics that are registered with it.
type registered struct{ names map[string]bool }

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

func (r registered) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	for d := range descs {
		r.names[fqName.FindStringSubmatch(d.String())[1]] = true
	}
	return nil
}

func (r registered) MustRegister(cs ...prometheus.Collector) {
	for _, c := range cs {
		_ = r.Register(c)
	}
}
func (registered) Unregister(prometheus.Collector) bool { return false }

// TestMetricsInUseExist: a metric that an alert, the dashboard or the runbook names,
// and that is not there, would look like one that is always well.
func TestMetricsInUseExist(t *testing.T) {
	r := registered{map[string]bool{}}
	metrics.New(r)
	r.MustRegister(collector{})
	if len(r.names) < 20 {
		t.Fatalf("only %v", r.names)
	}
	metric := regexp.MustCompile(`workflow_results_[a-z0-9_]*[a-z0-9]`)
	for _, file := range []string{"k8s/monitoring/prometheusrule.yaml", "k8s/monitoring/dashboard.json", "docs/OPERATIONS.md"} {
		found := metric.FindAllString(readFile(t, "../..", file), -1)
		if len(found) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range found {
			if !r.names[name] && !r.names[strings.TrimSuffix(name, "_bucket")] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

var alertName = regexp.MustCompile(`(?m)^ *- alert: (\w+)$`)

// TestAlertsHaveTheirEntry: who is woken finds by the alert's name what it means,
// what to type, and what is lost otherwise; and the runbook tells of no other.
func TestAlertsHaveTheirEntry(t *testing.T) {
	runbook := readFile(t, "../../docs/OPERATIONS.md")
	var alerts []string
	for _, m := range alertName.FindAllStringSubmatch(readFile(t, "../../k8s/monitoring/prometheusrule.yaml"), -1) {
		alerts = append(alerts, m[1])
		_, entry, found := strings.Cut(runbook, "\n### "+m[1]+"\n")
		entry, _, _ = strings.Cut(entry, "\n#")
		if !found {
			t.Errorf("docs/OPERATIONS.md has no entry %s", m[1])
			continue
		}
		for _, part := range []string{"**Means**", "**Type**", "**If you do nothing**"} {
			if !strings.Contains(entry, part) {
				t.Errorf("the entry %s lacks %s", m[1], part)
			}
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^### (WorkflowResults\w+)$`).FindAllStringSubmatch(runbook, -1) {
		if !slices.Contains(alerts, m[1]) {
			t.Errorf("docs/OPERATIONS.md has an entry %s, and there is no such alert", m[1])
		}
	}
}

// TestAlertsFire has promtool play time to the alerts.
func TestAlertsFire(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("no promtool on this machine: apt-get install prometheus")
	}
	_, rules, found := strings.Cut(readFile(t, "../../k8s/monitoring/prometheusrule.yaml"), "\nspec:\n")
	if !found {
		t.Fatal("no spec")
	}
	rules = regexp.MustCompile(`(?m)^  `).ReplaceAllString(rules, "")
	tests := readFile(t, "testdata/alerts_test.yaml")
	for _, m := range alertName.FindAllStringSubmatch(rules, -1) {
		if n := strings.Count(tests, "alertname: "+m[1]); n < 2 {
			t.Errorf("%s is tested %d times, want once when it fires and once when it does not", m[1], n)
		}
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"rules.yaml": rules, "tests.yaml": tests} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", "rules.yaml"}, {"test", "rules", "tests.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
