package enrol

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const echo = `{
  "family": "echo-service-definition", "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "512",
  "taskRoleArn": "arn:aws:iam::123456789012:role/ecs/ambient/eks-ecs-task-role", "revision": 3, "status": "ACTIVE", "futureMember": {"kept": true},
  "containerDefinitions": [{
    "name": "echo-service", "image": "ealen/echo-server", "essential": true, "futureContainerMember": 7,
    "portMappings": [{"containerPort": 8080, "protocol": "tcp"}],
    "logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "/ecs/ecs-demo", "awslogs-region": "us-east-2", "awslogs-stream-prefix": "echo"}}
  }]
}`

func definition(t *testing.T, text string) Definition {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return Definition{Task: m, Tags: map[string]string{"environment": "ecs-demo"}}
}

func options() Options {
	return Options{Image: "isthmus/ztunnel:dev", Gateway: "10.0.200.1", RootPEM: "PEM", Namespace: "ecs-demo-1", ServiceAccount: "sa", Network: "eks"}
}

func enrolled(t *testing.T, d Definition, o Options) Definition {
	t.Helper()
	out, err := Enrol(d, o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEnrolKeepsUnknownMembersAndTags(t *testing.T) {
	in := definition(t, echo)
	before, err := clone(in.Task)
	if err != nil {
		t.Fatal(err)
	}
	out := enrolled(t, in, options())
	if diff := cmp.Diff(before, in.Task); diff != "" {
		t.Errorf("Enrol changed its argument:\n%s", diff)
	}
	if got := out.Task["futureMember"]; !cmp.Equal(got, map[string]any{"kept": true}) {
		t.Errorf("futureMember = %v, want kept", got)
	}
	app := out.Task["containerDefinitions"].([]any)[0].(map[string]any)
	if app["futureContainerMember"] != 7.0 {
		t.Errorf("futureContainerMember = %v, want 7", app["futureContainerMember"])
	}
	if diff := cmp.Diff([]any{map[string]any{"containerName": "ztunnel", "condition": "HEALTHY"}}, app["dependsOn"]); diff != "" {
		t.Errorf("dependsOn (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]string{"environment": "ecs-demo", TagServiceAccount: "sa", TagNamespace: "ecs-demo-1"}, out.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	for _, k := range []string{"revision", "status"} {
		if _, ok := out.Task[k]; ok {
			t.Errorf("member %q is refused on registering and was kept", k)
		}
	}
	proxy := out.Task["containerDefinitions"].([]any)[1].(map[string]any)
	if got := proxy["logConfiguration"].(map[string]any)["options"].(map[string]any)["awslogs-stream-prefix"]; got != "ztunnel" {
		t.Errorf("log stream prefix = %v, want ztunnel", got)
	}
}

func TestEnrolIsIdempotentAndRendersAnew(t *testing.T) {
	once := enrolled(t, definition(t, echo), options())
	if twice := enrolled(t, once, options()); !Equal(once, twice) {
		t.Errorf("enrolling twice differs:\n%s", strings.Join(Diff(once, twice), "\n"))
	}
	other := options()
	other.Namespace = "ecs-demo-2"
	moved := enrolled(t, once, other)
	if moved.Tags[TagNamespace] != "ecs-demo-2" || Equal(once, moved) {
		t.Errorf("enrolling for another namespace kept the old one: %v", moved.Tags)
	}
	if n := len(moved.Task["containerDefinitions"].([]any)); n != 2 {
		t.Errorf("%d containers after enrolling twice, want 2", n)
	}
}

func TestRemoveUndoesEnrol(t *testing.T) {
	in := definition(t, echo)
	o := options()
	o.Capture = CapturePlatform
	out, err := Remove(enrolled(t, in, o))
	if err != nil {
		t.Fatal(err)
	}
	if !Equal(in, out) {
		t.Errorf("Remove(Enrol(d)) differs from d:\n%s", strings.Join(Diff(in, out), "\n"))
	}
	if Enrolled(out) || !Enrolled(enrolled(t, in, o)) {
		t.Error("Enrolled does not tell an enrolled definition")
	}
}

func TestEnrolLeavesLogRouterAlone(t *testing.T) {
	d := definition(t, echo)
	all := d.Task["containerDefinitions"].([]any)
	d.Task["containerDefinitions"] = append(all, map[string]any{"name": "log_router", "firelensConfiguration": map[string]any{"type": "fluentbit"}})
	out := enrolled(t, d, options())
	router := out.Task["containerDefinitions"].([]any)[1].(map[string]any)
	if router["dependsOn"] != nil {
		t.Errorf("log router depends on %v, want nothing", router["dependsOn"])
	}
}

func FuzzEnrol(f *testing.F) {
	f.Add([]byte(echo))
	f.Add([]byte(`{"containerDefinitions":[{"name":1}]}`))
	f.Add([]byte(`{"networkMode":"awsvpc","taskRoleArn":"x","containerDefinitions":[{"name":"a","dependsOn":3,"portMappings":[null]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m map[string]any
		if json.Unmarshal(b, &m) != nil {
			return
		}
		once, err := Enrol(Definition{Task: m}, options())
		if err != nil {
			return
		}
		twice, err := Enrol(once, options())
		if err != nil || !Equal(once, twice) {
			t.Errorf("enrolling again: %v, differs: %v", err, Diff(once, twice))
		}
	})
}
