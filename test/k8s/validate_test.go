// Package k8s checks the manifests in k8s/ with Kubernetes' own code: what the API
// server would refuse is refused here, without a cluster.
package k8s

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podapi "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/batch"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	sigsyaml "sigs.k8s.io/yaml"
)

// validators are the API server's own for each kind, hand-written; the generated ones
// belong to the scheme. They come with the kinds' packages alone: the server's whole
// registry would double what is to be compiled.
var validators = map[string]func(runtime.Object) field.ErrorList{
	"ConfigMap": func(o runtime.Object) field.ErrorList {
		return corevalidation.ValidateConfigMap(o.(*core.ConfigMap))
	},
	"CronJob": func(o runtime.Object) field.ErrorList {
		j := o.(*batch.CronJob)
		return batchvalidation.ValidateCronJobCreate(j, podapi.GetValidationOptionsFromPodTemplate(&j.Spec.JobTemplate.Spec.Template, nil))
	},
	"Deployment": func(o runtime.Object) field.ErrorList {
		d := o.(*apps.Deployment)
		return appsvalidation.ValidateDeployment(d, podapi.GetValidationOptionsFromPodTemplate(&d.Spec.Template, nil))
	},
	"Job": func(o runtime.Object) field.ErrorList {
		j := o.(*batch.Job) // its spec as a template's: the server makes the selector
		return append(corevalidation.ValidateObjectMeta(&j.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata")),
			batchvalidation.ValidateJobTemplateSpec(&batch.JobTemplateSpec{Spec: j.Spec}, nil, nil, podapi.GetValidationOptionsFromPodTemplate(&j.Spec.Template, nil))...)
	},
	"NetworkPolicy": func(o runtime.Object) field.ErrorList {
		return networkingvalidation.ValidateNetworkPolicy(o.(*networking.NetworkPolicy), networkingvalidation.NetworkPolicyValidationOptions{})
	},
	"Service": func(o runtime.Object) field.ErrorList {
		s := o.(*core.Service)
		if s.Spec.ClusterIP != "" {
			s.Spec.ClusterIPs = []string{s.Spec.ClusterIP} // the server's storage does it
		}
		return corevalidation.ValidateServiceCreate(s)
	},
	"ServiceAccount": func(o runtime.Object) field.ErrorList {
		return corevalidation.ValidateServiceAccount(o.(*core.ServiceAccount))
	},
	"StatefulSet": func(o runtime.Object) field.ErrorList {
		s := o.(*apps.StatefulSet)
		return appsvalidation.ValidateStatefulSet(s, appsvalidation.StatefulSetValidationOptions{}, podapi.GetValidationOptionsFromPodTemplate(&s.Spec.Template, nil))
	},
}

// alpha is what the generated validators ask for: off, as in a cluster.
var alpha = map[string]bool{"WorkloadWithJob": false}

// template is a workload's pod template, or nil.
func template(o runtime.Object) *core.PodTemplateSpec {
	switch o := o.(type) {
	case *apps.Deployment:
		return &o.Spec.Template
	case *apps.StatefulSet:
		return &o.Spec.Template
	case *batch.Job:
		return &o.Spec.Template
	case *batch.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	}
	return nil
}

// kustomize runs it on a directory.
func kustomize(dir string) (string, error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return "", err
	}
	text, err := built.AsYaml()
	return string(text), err
}

// build runs kustomize on a directory that is sound.
func build(t *testing.T, dir string) string {
	t.Helper()
	text, err := kustomize(dir)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// pod is the pod of a workload, as the kubelet would see it.
type pod struct {
	kind, workload string
	meta           metav1.ObjectMeta
	spec           corev1.PodSpec
	claims         map[string]int64 // bytes of a StatefulSet's claims
	config         map[string]map[string]string
}

func (p pod) container(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{p.spec.InitContainers, p.spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// examine decodes every object strictly and does with it what the API server does.
// It returns the pods of the workloads, and everything that is wrong.
func examine(text string) (pods []pod, err error) {
	var errs []error
	config := map[string]map[string]string{}
	documents := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		doc, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		object, err := create(doc)
		if err != nil {
			errs = append(errs, err)
		}
		switch o := object.(type) {
		case *corev1.ConfigMap:
			config[o.Name] = o.Data
		case *appsv1.Deployment:
			pods = append(pods, pod{kind: o.Kind, workload: o.Name, meta: o.Spec.Template.ObjectMeta, spec: o.Spec.Template.Spec})
		case *batchv1.CronJob:
			pods = append(pods, pod{kind: o.Kind, workload: o.Name, meta: o.Spec.JobTemplate.Spec.Template.ObjectMeta, spec: o.Spec.JobTemplate.Spec.Template.Spec})
		case *batchv1.Job:
			pods = append(pods, pod{kind: o.Kind, workload: o.Name, meta: o.Spec.Template.ObjectMeta, spec: o.Spec.Template.Spec})
		case *appsv1.StatefulSet:
			p := pod{kind: o.Kind, workload: o.Name, meta: o.Spec.Template.ObjectMeta, spec: o.Spec.Template.Spec, claims: map[string]int64{}}
			for _, c := range o.Spec.VolumeClaimTemplates {
				p.claims[c.Name] = c.Spec.Resources.Requests.Storage().Value()
			}
			pods = append(pods, p)
		}
	}
	for i := range pods {
		pods[i].config = config
		if err := sound(&pods[i]); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", pods[i].kind, pods[i].workload, err))
		}
	}
	return pods, errors.Join(errs...)
}

// create decodes an object of Kubernetes strictly, in its public version and with
// defaults, and has the API server's code judge it; a warning is an error here.
func create(doc []byte) (runtime.Object, error) {
	scheme := legacyscheme.Scheme
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true})
	object, gvk, err := strict.Decode(doc, nil, nil)
	if err != nil {
		return nil, err
	}
	validate, known := validators[gvk.Kind]
	if !known {
		return nil, fmt.Errorf("%s: no validator is listed for it", gvk)
	}
	about, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	about.SetNamespace("team")
	scheme.Default(object)
	object.GetObjectKind().SetGroupVersionKind(*gvk)
	internal, err := scheme.ConvertToVersion(object, schema.GroupVersion{Group: gvk.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, err
	}
	faults := append(validate(internal), scheme.Validate(context.Background(), alpha, object)...)
	if len(faults) > 0 {
		return nil, fmt.Errorf("%s %s: %w", gvk.Kind, about.GetName(), faults.ToAggregate())
	}
	if pod := template(internal); pod != nil {
		if warnings := podapi.GetWarningsForPodTemplate(context.Background(), field.NewPath("spec", "template"), pod, nil); len(warnings) > 0 {
			return nil, fmt.Errorf("%s %s: the API server warns: %s", gvk.Kind, about.GetName(), strings.Join(warnings, "; "))
		}
	}
	return object, nil
}

// sound looks for what the API server lets pass and the kubelet does not, and for
// what the Pod Security Standard "restricted" forbids.
func sound(p *pod) error {
	var errs []error
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return err
	}
	verdict := policy.AggregateCheckResults(evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &p.meta, &p.spec))
	if !verdict.Allowed {
		errs = append(errs, fmt.Errorf("not restricted: %s", verdict.ForbiddenDetail()))
	}
	for _, c := range append(append([]corev1.Container{}, p.spec.InitContainers...), p.spec.Containers...) {
		ports := map[string]bool{}
		for _, port := range c.Ports {
			ports[port.Name] = true
		}
		if c.Name == sidecar && len(c.Ports) > 0 {
			// Without a host it listens on IPv4 and IPv6, whichever the cluster has.
			port, addr := c.Ports[0], env(*p, "SIDECAR_ADMIN_ADDR")
			if addr != fmt.Sprintf(":%d", port.ContainerPort) {
				errs = append(errs, fmt.Errorf("container %s: its port %s is %d, and it listens at %q", c.Name, port.Name, port.ContainerPort, addr))
			}
		}
		for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
			if probe != nil && probe.HTTPGet != nil && !ports[probe.HTTPGet.Port.String()] {
				errs = append(errs, fmt.Errorf("container %s: its %s probe asks at the port %s, which it does not have", c.Name, what, probe.HTTPGet.Port.String()))
			}
		}
		for _, from := range c.EnvFrom {
			if _, known := p.config[from.ConfigMapRef.Name]; !known {
				errs = append(errs, fmt.Errorf("container %s: there is no ConfigMap %s", c.Name, from.ConfigMapRef.Name))
			}
		}
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" && strings.Contains(m.Name, "workflow-results") {
				errs = append(errs, fmt.Errorf("container %s mounts %s by subPath: a socket that is made anew is not seen there", c.Name, m.Name))
			}
		}
	}
	return errors.Join(errs...)
}

// examineMonitoring decodes the objects of the Prometheus operator strictly, and
// counts them by kind.
func examineMonitoring(text string) (kinds map[string]int, err error) {
	kinds = map[string]int{}
	for _, doc := range strings.Split(text, "\n---\n") {
		var about metav1.TypeMeta
		if err := sigsyaml.Unmarshal([]byte(doc), &about); err != nil {
			return nil, err
		}
		kinds[about.Kind]++
		var into any
		switch about.Kind {
		case monitoring.PodMonitorsKind:
			into = &monitoring.PodMonitor{}
		case monitoring.PrometheusRuleKind:
			into = &monitoring.PrometheusRule{}
		case "ConfigMap":
			if _, err := create([]byte(doc)); err != nil {
				return nil, err
			}
			continue
		default:
			return nil, fmt.Errorf("%s: nobody knows how to check it", about.Kind)
		}
		if err := sigsyaml.UnmarshalStrict([]byte(doc), into); err != nil {
			return nil, err
		}
	}
	return kinds, nil
}

func readFile(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
