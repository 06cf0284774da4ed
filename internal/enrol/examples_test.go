package enrol_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/enrol"
)

const (
	gateway = "10.0.200.1"
	rootPEM = "-----BEGIN CERTIFICATE-----\n\"quoted\"\n-----END CERTIFICATE-----\n"
)

// rendered is what enrolment makes of a task with one application container.
func rendered(t *testing.T) (task map[string]any, tags map[string]string) {
	t.Helper()
	def := enrol.Definition{Task: map[string]any{"family": "web", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::123456789012:role/web",
		"containerDefinitions": []any{map[string]any{"name": "web", "image": "web:1", "essential": true,
			"portMappings": []any{map[string]any{"containerPort": 8080.0, "protocol": "tcp", "name": "http", "appProtocol": "http"}}}}}}
	out, err := enrol.Enrol(def, enrol.Options{Image: "reg/ztunnel:1", Gateway: gateway, RootPEM: rootPEM, Namespace: "ns", ServiceAccount: "sa", Network: "eks"})
	if err != nil {
		t.Fatal(err)
	}
	return out.Task, out.Tags
}

func containersOf(t *testing.T, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	for _, c := range list {
		name, _ := c["name"].(string)
		out[name] = c
	}
	return out
}

func readExample(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "examples", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestTerraformModule evaluates the module's template, whose only function is jsonencode, and compares the container with
// that of enrolment. That the module passes every variable of the template, and declares every one it uses, is read from
// its text.
func TestTerraformModule(t *testing.T) {
	values := map[string]any{"image": "reg/ztunnel:1", "memory_reservation": 64, "network": "eks", "cluster_id": "Kubernetes", "trust_domain": "cluster.local",
		"gateway": "https://" + gateway + ":15012", "root_cert": rootPEM, "socks": "true", "stop_timeout": 60, "stop_timeout_text": "60"}
	main := readExample(t, "terraform/main.tf")
	text := regexp.MustCompile(`\$\{jsonencode\((\w+)\)\}`).ReplaceAllStringFunc(readExample(t, "terraform/ztunnel.json.tftpl"), func(expr string) string {
		name := strings.TrimSuffix(strings.TrimPrefix(expr, "${jsonencode("), ")}")
		v, ok := values[name]
		if !ok || !regexp.MustCompile(`(?m)^ +`+name+` += `).MatchString(main) {
			t.Errorf("the template uses %s, which main.tf or this test does not give", name)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
	if strings.Contains(text, "${") || strings.Contains(text, "%{") {
		t.Errorf("the template does more than this test can evaluate:\n%s", text)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("the template is not JSON: %v", err)
	}
	task, tags := rendered(t)
	if diff := cmp.Diff(containersOf(t, task["containerDefinitions"])["ztunnel"], any(got)); diff != "" {
		t.Errorf("examples/terraform differs from isthmus ecs render (-render +terraform):\n%s", diff)
	}
	outputs := readExample(t, "terraform/outputs.tf")
	for key := range tags {
		if !strings.Contains(outputs, `"`+key+`"`) {
			t.Errorf("outputs.tf lacks the tag %s", key)
		}
	}
	declared := readExample(t, "terraform/variables.tf")
	for _, m := range regexp.MustCompile(`var\.(\w+)`).FindAllStringSubmatch(main+outputs, -1) {
		if !strings.Contains(declared, `variable "`+m[1]+`" {`) {
			t.Errorf("variable %s is used and not declared", m[1])
		}
	}
	if !strings.Contains(main, `{ containerName = "ztunnel", condition = "HEALTHY" }`) {
		t.Error("main.tf does not make the application wait for the proxy")
	}
}

// TestCloudFormation resolves the template's references and compares its containers with those of enrolment.
func TestCloudFormation(t *testing.T) {
	var template struct {
		Resources map[string]struct{ Properties map[string]any }
	}
	if err := yaml.Unmarshal([]byte(readExample(t, "cloudformation/service.yaml")), &template); err != nil {
		t.Fatal(err)
	}
	parameters := map[string]string{"Image": "web:1", "TaskRole": "arn:aws:iam::123456789012:role/web", "ExecutionRole": "x", "Namespace": "ns", "ServiceAccount": "sa",
		"GatewayAddress": gateway, "RootCert": rootPEM, "ProxyImage": "reg/ztunnel:1", "Network": "eks"}
	properties, _ := resolve(t, template.Resources["TaskDefinition"].Properties, parameters, "").(map[string]any)
	task, tags := rendered(t)
	if diff := cmp.Diff(containersOf(t, task["containerDefinitions"]), containersOf(t, properties["containerDefinitions"])); diff != "" {
		t.Errorf("examples/cloudformation differs from isthmus ecs render (-render +cloudformation):\n%s", diff)
	}
	got := map[string]string{}
	list, _ := properties["tags"].([]any)
	for _, v := range list {
		m, _ := v.(map[string]any)
		key, _ := m["key"].(string)
		got[key], _ = m["value"].(string)
	}
	if diff := cmp.Diff(tags, got); diff != "" {
		t.Errorf("tags (-render +cloudformation):\n%s", diff)
	}
}

// resolve evaluates Ref and Fn::Sub and writes member names as the API does, except those that are data.
func resolve(t *testing.T, v any, parameters map[string]string, member string) any {
	t.Helper()
	switch x := v.(type) {
	case map[string]any:
		if name, ok := x["Ref"].(string); ok {
			value, known := parameters[name]
			if !known {
				t.Errorf("Ref to %s, which is no parameter of this test", name)
			}
			return value
		}
		if text, ok := x["Fn::Sub"].(string); ok {
			for name, value := range parameters {
				text = strings.ReplaceAll(text, "${"+name+"}", value)
			}
			return text
		}
		out := map[string]any{}
		for k, y := range x {
			name := k
			if member != "dockerLabels" {
				name = strings.ToLower(k[:1]) + k[1:]
			}
			out[name] = resolve(t, y, parameters, name)
		}
		return out
	case []any:
		out := make([]any, 0, len(x))
		for _, y := range x {
			out = append(out, resolve(t, y, parameters, ""))
		}
		return out
	}
	return v
}
