package cloud_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/enrol"
)

// taskRole is the role that `isthmus ecs infra` makes for tasks.
const taskRole = "arn:aws:iam::" + account + ":role/ecs/ambient/eks-ecs-task-role"

// fakeKube serves what enrolment asks of Kubernetes, and returns a kubeconfig.
func fakeKube(t *testing.T) string {
	t.Helper()
	objects := map[string]string{
		"/apis/gateway.networking.k8s.io/v1/namespaces/istio-system/gateways/eastwest": `{"status":{"addresses":[{"value":"10.0.200.1"}]}}`,
		"/api/v1/namespaces/istio-system/configmaps/istio-ca-root-cert":                `{"data":{"root-cert.pem":"PEM"}}`,
	}
	for _, ns := range []string{"ecs-demo-1", "ecs-demo-2"} {
		objects["/api/v1/namespaces/"+ns] = `{"kind":"Namespace","metadata":{"name":"` + ns + `","labels":{"istio.io/dataplane-mode":"ambient"}}}`
		objects["/api/v1/namespaces/"+ns+"/serviceaccounts/ecs-demo-sa-local"] = `{"kind":"ServiceAccount","metadata":{"name":"ecs-demo-sa-local","namespace":"` + ns + `","annotations":{"ecs.solo.io/role-arn":"` + taskRole + `"}}}`
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		text, found := objects[r.URL.Path]
		if !found {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
			return
		}
		var o map[string]any
		if err := json.Unmarshal([]byte(text), &o); err != nil {
			t.Error(err)
		}
		if o["kind"] == nil {
			o["kind"] = "Object"
		}
		o["apiVersion"] = "v1"
		_ = json.NewEncoder(w).Encode(o)
	}))
	t.Cleanup(s.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"` + s.URL + `"}}],` +
		`"users":[{"name":"u","user":{}}],"contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// enrolment is a lab with the guide's infrastructure and services, and a command line.
type enrolment struct {
	*lab
	isthmus func(want int, args ...string) string
}

func newEnrolment(t *testing.T) *enrolment {
	t.Helper()
	l := newLab(t)
	e := &enrolment{lab: l, isthmus: l.commandLine(fakeKube(t))}
	e.isthmus(0, "ecs", "infra")
	e.isthmus(0, "ecs", "deploy")
	return e
}

// definition is what a service runs, in the form of enrol.
func (e *enrolment) definition(cluster, service string) (arn string, d enrol.Definition) {
	e.t.Helper()
	arn = *e.describeService(cluster, service).TaskDefinition
	out := must(e.ecs().DescribeTaskDefinition(e.t.Context(), &awsecs.DescribeTaskDefinitionInput{TaskDefinition: &arn, Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags}}))(e.t)
	d.Tags, d.Task = map[string]string{}, map[string]any{}
	for _, tag := range out.Tags {
		d.Tags[*tag.Key] = *tag.Value
	}
	var containers []any
	for _, c := range out.TaskDefinition.ContainerDefinitions {
		var env []any
		for _, v := range c.Environment {
			env = append(env, map[string]any{"name": *v.Name, "value": *v.Value})
		}
		labels := map[string]any{}
		for k, v := range c.DockerLabels {
			labels[k] = v
		}
		containers = append(containers, map[string]any{"name": *c.Name, "image": *c.Image, "environment": env, "dockerLabels": labels, "dependsOn": fmt.Sprint(len(c.DependsOn))})
	}
	d.Task["containerDefinitions"], d.Task["family"] = containers, *out.TaskDefinition.Family
	return arn, d
}

func revisions(e *enrolment) int {
	e.t.Helper()
	return len(must(e.ecs().ListTaskDefinitions(e.t.Context(), &awsecs.ListTaskDefinitionsInput{}))(e.t).TaskDefinitionArns)
}

// TestAddServiceAndRemoveService follows services into the mesh and out of it again.
func TestAddServiceAndRemoveService(t *testing.T) { //nolint:tparallel // it sets the environment
	e := newEnrolment(t)
	plainARN, plain := e.definition("ecs-demo-1", "shell-task")
	before := revisions(e)
	out := e.isthmus(0, "ecs", "add-service", "shell-task", "--cluster", "ecs-demo-1", "--dry-run")
	if !strings.Contains(out, "would change from "+plainARN[strings.LastIndex(plainARN, "/")+1:]) || !strings.Contains(out, "+ task.containerDefinitions.ztunnel") || revisions(e) != before {
		t.Errorf("dry run, %d revisions after %d:\n%s", revisions(e), before, out)
	}
	e.isthmus(0, "ecs", "add-service", "--all", "--wait", "--external")
	for _, c := range []string{"ecs-demo-1", "ecs-demo-2"} {
		_, d := e.definition(c, "shell-task")
		opt, ok := enrol.Read(d)
		if !ok || opt.Namespace != c || opt.ServiceAccount != "ecs-demo-sa-local" || d.Task["family"] != plain.Task["family"] || d.Tags["environment"] != "ecs-demo" || opt.Gateway != "10.0.200.1" {
			t.Errorf("%s/shell-task is enrolled as %+v with tags %v in family %v", c, opt, d.Tags, d.Task["family"])
		}
	}
	first, _ := e.definition("ecs-demo-1", "shell-task")
	second, _ := e.definition("ecs-demo-2", "shell-task")
	if n := revisions(e); first == second || n != before+4 {
		t.Errorf("revisions: %d, want %d, and one for each cluster: %s %s", n, before+4, first, second)
	}
	if out := e.isthmus(0, "ecs", "add-service", "--all"); strings.Count(out, "unchanged") != 4 || revisions(e) != before+4 {
		t.Errorf("the second time, %d revisions:\n%s", revisions(e), out)
	}

	// A service that somebody made from the family's latest revision has another cluster's identity; it is rendered anew.
	must(e.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("ecs-demo-1"), Service: aws.String("shell-task"), TaskDefinition: &second}))(t)
	if out := e.isthmus(0, "ecs", "status", "-o", "json"); strings.Count(out, "tags.ecs.solo.io/namespace") != 1 {
		t.Errorf("status does not show the drift:\n%s", out)
	}
	e.isthmus(0, "ecs", "add-service", "shell-task", "--cluster", "ecs-demo-1", "--wait")
	if _, d := e.definition("ecs-demo-1", "shell-task"); d.Tags[enrol.TagNamespace] != "ecs-demo-1" {
		t.Errorf("tags after it was rendered anew: %v", d.Tags)
	}

	e.isthmus(0, "ecs", "remove-service", "--all", "--wait")
	if _, back := e.definition("ecs-demo-1", "shell-task"); !cmp.Equal(plain, back) {
		t.Errorf("remove-service is not the inverse of add-service (-before +after):\n%s", cmp.Diff(plain, back))
	}
	if out := e.isthmus(0, "ecs", "remove-service", "--all"); strings.Count(out, "unchanged") != 4 {
		t.Errorf("removing again:\n%s", out)
	}
}

// TestWaitExplainsRollback lets the circuit breaker take a service back.
func TestWaitExplainsRollback(t *testing.T) { //nolint:tparallel // it sets the environment
	e := newEnrolment(t)
	must(e.ecs().UpdateService(t.Context(), &awsecs.UpdateServiceInput{Cluster: aws.String("ecs-demo-1"), Service: aws.String("shell-task"),
		DeploymentConfiguration: &types.DeploymentConfiguration{DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true, Rollback: true}}}))(t)
	plain, _ := e.definition("ecs-demo-1", "shell-task")
	out := e.isthmus(1, "ecs", "add-service", "shell-task", "--cluster", "ecs-demo-1", "--image", "broken/ztunnel", "--wait")
	for _, want := range []string{"IST3116", "the service is back at " + plain[strings.LastIndex(plain, "/")+1:], "stopped: ", "exec format error", "its latest events:", "rolling back", "fix:"} {
		if !strings.Contains(out, want) {
			t.Errorf("the error lacks %q:\n%s", want, out)
		}
	}
}

// TestCaptureOfTheService is what only the service tells: its launch type and platform version.
func TestCaptureOfTheService(t *testing.T) { //nolint:tparallel // it sets the environment
	e := newEnrolment(t)
	web := app("web")
	web.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(8080)}}
	def := *must(e.ecs().RegisterTaskDefinition(t.Context(), &awsecs.RegisterTaskDefinitionInput{Family: aws.String("web"), NetworkMode: types.NetworkModeAwsvpc,
		TaskRoleArn: aws.String(taskRole), ContainerDefinitions: []types.ContainerDefinition{web}, RequiresCompatibilities: []types.Compatibility{types.CompatibilityEc2}}))(t).TaskDefinition.TaskDefinitionArn
	for _, s := range []*awsecs.CreateServiceInput{
		{ServiceName: aws.String("on-ec2"), LaunchType: types.LaunchTypeEc2},
		{ServiceName: aws.String("on-fargate"), LaunchType: types.LaunchTypeFargate},
		{ServiceName: aws.String("old"), LaunchType: types.LaunchTypeFargate, PlatformVersion: aws.String("1.2.0")},
	} {
		s.Cluster, s.TaskDefinition, s.DesiredCount, s.NetworkConfiguration = aws.String("ecs-demo-1"), &def, aws.Int32(0), network()
		must(e.ecs().CreateService(t.Context(), s))(t)
	}
	add := func(want int, name, capture string) string {
		t.Helper()
		return e.isthmus(want, "ecs", "add-service", name, "--cluster", "ecs-demo-1", "--capture", capture)
	}
	for _, c := range []struct{ service, capture, code string }{
		{"on-fargate", "redirect", "IST3117"}, {"old", "socks", "IST3106"},
	} {
		if out := add(1, c.service, c.capture); !strings.Contains(out, c.code) || !strings.Contains(out, "fix:") {
			t.Errorf("%s with %s: want %s:\n%s", c.service, c.capture, c.code, out)
		}
	}
	add(0, "on-ec2", "redirect")
	_, d := e.definition("ecs-demo-1", "on-ec2")
	if opt, _ := enrol.Read(d); opt.Capture != enrol.CaptureRedirect {
		t.Errorf("on-ec2 is enrolled with %+v", opt)
	}
}
