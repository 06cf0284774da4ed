package enrol_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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
func rendered(t *testing.T, capture enrol.Capture) (task map[string]any, tags map[string]string) {
	t.Helper()
	def := enrol.Definition{Task: map[string]any{"family": "web", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::123456789012:role/web",
		"containerDefinitions": []any{map[string]any{"name": "web", "image": "web:1", "essential": true,
			"portMappings": []any{map[string]any{"containerPort": 8080.0, "protocol": "tcp", "name": "http", "appProtocol": "http"}}}}}}
	out, err := enrol.Enrol(def, enrol.Options{Image: "reg/ztunnel:1", Gateway: gateway, RootPEM: rootPEM, Namespace: "ns", ServiceAccount: "sa", Network: "eks", Capture: capture})
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
// that of enrolment, for every way of capture. That the module passes every variable of the template, and declares every
// one it uses, is read from its text.
func TestTerraformModule(t *testing.T) {
	main, outputs, declared := readExample(t, "terraform/main.tf"), readExample(t, "terraform/outputs.tf"), readExample(t, "terraform/variables.tf")
	for _, capture := range enrol.Captures() {
		task, tags := rendered(t, capture)
		if diff := cmp.Diff(containersOf(t, task["containerDefinitions"])["ztunnel"], any(terraformContainer(t, main, capture))); diff != "" {
			t.Errorf("examples/terraform differs from isthmus ecs render --capture %s (-render +terraform):\n%s", capture, diff)
		}
		for key := range tags {
			if !strings.Contains(outputs, `"`+key+`"`) {
				t.Errorf("outputs.tf lacks the tag %s", key)
			}
		}
		if !strings.Contains(declared, `"`+string(capture)+`"`) {
			t.Errorf("variables.tf does not allow capture %s", capture)
		}
		platform, _ := task["proxyConfiguration"].(map[string]any)
		properties, _ := platform["properties"].([]any)
		for _, p := range properties {
			m, _ := p.(map[string]any)
			value := `"` + m["value"].(string) + `"`
			if m["name"] == "AppPorts" {
				value = `join(",", local.ports)`
			}
			if !regexp.MustCompile(m["name"].(string) + ` += ` + regexp.QuoteMeta(value)).MatchString(outputs) {
				t.Errorf("outputs.tf lacks the property %s = %s", m["name"], value)
			}
		}
	}
	for _, m := range regexp.MustCompile(`var\.(\w+)`).FindAllStringSubmatch(main+outputs, -1) {
		if !strings.Contains(declared, `variable "`+m[1]+`" {`) {
			t.Errorf("variable %s is used and not declared", m[1])
		}
	}
	if !strings.Contains(main, `{ containerName = "ztunnel", condition = "HEALTHY" }`) {
		t.Error("main.tf does not make the application wait for the proxy")
	}
}

// terraformContainer is what the template makes. The expressions of main.tf that depend on the capture are written here
// once more, in Go.
func terraformContainer(t *testing.T, main string, capture enrol.Capture) map[string]any {
	t.Helper()
	user, capabilities := "1337:1337", map[string]any{"drop": []string{"ALL"}}
	if capture == enrol.CaptureRedirect {
		user, capabilities["add"] = "0:0", []string{"NET_ADMIN"}
	}
	values := map[string]any{"image": "reg/ztunnel:1", "memory_reservation": 64, "network": "eks", "cluster_id": "Kubernetes", "trust_domain": "cluster.local",
		"gateway": "https://" + gateway + ":15012", "root_cert": rootPEM, "socks": strconv.FormatBool(capture != enrol.CaptureNone),
		"redirect": strconv.FormatBool(capture == enrol.CaptureRedirect), "user": user, "capabilities": capabilities, "stop_timeout": 60, "stop_timeout_text": "60"}
	for _, line := range []string{`socks              = tostring(var.capture != "none")`, `redirect           = tostring(var.capture == "redirect")`,
		`user               = var.capture == "redirect" ? "0:0" : "1337:1337"`,
		`capabilities       = merge({ drop = ["ALL"] }, var.capture == "redirect" ? { add = ["NET_ADMIN"] } : {})`} {
		if !strings.Contains(main, line) {
			t.Errorf("main.tf lacks: %s", line)
		}
	}
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
	return got
}

// TestCloudFormation resolves the template's references and compares its containers with those of enrolment, for every
// way of capture.
func TestCloudFormation(t *testing.T) {
	var template struct {
		Conditions map[string]any
		Resources  map[string]struct{ Properties map[string]any }
	}
	if err := yaml.Unmarshal([]byte(readExample(t, "cloudformation/service.yaml")), &template); err != nil {
		t.Fatal(err)
	}
	for _, capture := range enrol.Captures() {
		r := &resolver{t: t, conditions: template.Conditions, parameters: map[string]string{"Image": "web:1", "TaskRole": "arn:aws:iam::123456789012:role/web",
			"ExecutionRole": "x", "Namespace": "ns", "ServiceAccount": "sa", "GatewayAddress": gateway, "RootCert": rootPEM, "ProxyImage": "reg/ztunnel:1",
			"Network": "eks", "Capture": string(capture)}}
		properties, _ := r.resolve(template.Resources["TaskDefinition"].Properties, "").(map[string]any)
		task, tags := rendered(t, capture)
		if diff := cmp.Diff(containersOf(t, task["containerDefinitions"]), containersOf(t, properties["containerDefinitions"])); diff != "" {
			t.Errorf("examples/cloudformation differs from isthmus ecs render --capture %s (-render +cloudformation):\n%s", capture, diff)
		}
		if diff := cmp.Diff(task["proxyConfiguration"], properties["proxyConfiguration"]); diff != "" {
			t.Errorf("proxyConfiguration with capture %s (-render +cloudformation):\n%s", capture, diff)
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
}

// resolver evaluates the functions of CloudFormation that the template uses.
type resolver struct {
	t          *testing.T
	conditions map[string]any
	parameters map[string]string
}

// nothing is what AWS::NoValue resolves to: the member is left out.
type nothing struct{}

// resolve evaluates functions and writes member names as the API does, except those that are data.
func (r *resolver) resolve(v any, member string) any {
	r.t.Helper()
	switch x := v.(type) {
	case map[string]any:
		if name, ok := x["Ref"].(string); ok {
			if name == "AWS::NoValue" {
				return nothing{}
			}
			value, known := r.parameters[name]
			if !known {
				r.t.Errorf("Ref to %s, which is no parameter of this test", name)
			}
			return value
		}
		if text, ok := x["Fn::Sub"].(string); ok {
			for name, value := range r.parameters {
				text = strings.ReplaceAll(text, "${"+name+"}", value)
			}
			return text
		}
		if choice, ok := x["Fn::If"].([]any); ok {
			if r.holds(r.conditions[choice[0].(string)]) {
				return r.resolve(choice[1], member)
			}
			return r.resolve(choice[2], member)
		}
		out := map[string]any{}
		for k, y := range x {
			name := k
			if member != "dockerLabels" {
				name = strings.ToLower(k[:1]) + k[1:]
			}
			if name == "proxyConfigurationProperties" {
				name = "properties"
			}
			if y = r.resolve(y, name); y != (nothing{}) {
				out[name] = y
			}
		}
		return out
	case []any:
		out := make([]any, 0, len(x))
		for _, y := range x {
			out = append(out, r.resolve(y, ""))
		}
		return out
	}
	return v
}

// holds evaluates a condition.
func (r *resolver) holds(condition any) bool {
	r.t.Helper()
	m, _ := condition.(map[string]any)
	if not, ok := m["Fn::Not"].([]any); ok {
		return !r.holds(not[0])
	}
	pair, ok := m["Fn::Equals"].([]any)
	if !ok {
		r.t.Fatalf("condition %v is more than this test can evaluate", condition)
	}
	return r.resolve(pair[0], "") == pair[1]
}
