package install

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func guideSettings() settings.File {
	return settings.File{
		Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{
			Role: "arn:aws:iam::123456789012:role/istiod-local", Domain: "ecs.local", Regions: []string{"us-east-2"},
		}}}},
		Network: "eks",
	}
}

func guideGateway() Gateway {
	return Gateway{
		Gateway: "eastwest", Namespace: "istio-system", UID: "1234", Network: "eks",
		Ports:     []GatewayPort{{"cross-network", 15008, 15008}, {"xds-tls", 15012, 15012}},
		TLSRoutes: map[string]string{"istiod.istio-system.svc": "istiod.istio-system.svc:15012", "isthmus-broker.istio-system.svc": "isthmus-broker.istio-system.svc:443"},
		Labels:    map[string]string{"topology.istio.io/network": "eks"},
	}
}

func TestGolden(t *testing.T) {
	tests := []struct {
		name   string
		render func() ([]byte, error)
	}{
		{"guide.yaml", Config{Settings: guideSettings()}.Render},
		{"lab.yaml", Config{
			Settings: guideSettings(), Replicas: 1, TaskNamespaces: []string{"ecs-demo-1", "ecs-demo-2"},
			Env: map[string]string{"AWS_REGION": "us-east-2", "AWS_ENDPOINT_URL": "http://10.0.0.1:4566"}, Args: []string{"--sts-endpoint=http://10.0.0.1:4566"},
		}.Render},
		{"gateway.yaml", guideGateway().Render},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.render()
			if err != nil {
				t.Fatal(err)
			}
			for i, doc := range strings.Split(string(got), "\n---\n") {
				var v map[string]any
				if err := yaml.UnmarshalStrict([]byte(doc), &v); err != nil {
					t.Fatalf("document %d is not YAML: %v\n%s", i, err, doc)
				}
				if v["kind"] == nil || v["metadata"] == nil {
					t.Errorf("document %d has no kind or metadata:\n%s", i, doc)
				}
			}
			file := filepath.Join("testdata", tt.name)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got; -update rewrites):\n%s", file, diff)
			}
		})
	}
}

func TestSettingsSurviveTheConfigMap(t *testing.T) {
	text, err := Config{Settings: guideSettings()}.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var cm struct {
			Kind string            `json:"kind"`
			Data map[string]string `json:"data"`
		}
		if err := yaml.Unmarshal([]byte(doc), &cm); err != nil || cm.Kind != "ConfigMap" {
			continue
		}
		f, err := settings.Parse([]byte(cm.Data["config.yaml"]))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(guideSettings().Platforms, f.Platforms); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		return
	}
	t.Fatal("no ConfigMap in the manifest")
}

// TestRights keeps the controller's rights from growing unnoticed: nothing but what is listed, no wildcard, and the
// strong ones in the broker's own role.
func TestRights(t *testing.T) {
	text, err := Config{Settings: guideSettings(), TaskNamespaces: []string{"shop"}}.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range strings.Split(string(text), "\n---\n") {
		var role struct {
			Kind     string
			Metadata struct{ Name, Namespace string }
			Rules    []struct{ APIGroups, Resources, Verbs []string }
			RoleRef  struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(doc), &role); err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			for _, list := range [][]string{r.APIGroups, r.Resources, r.Verbs} {
				for _, v := range list {
					if v == "*" || v == "escalate" || v == "bind" || v == "impersonate" {
						t.Errorf("%s %s grants %q", role.Kind, role.Metadata.Name, v)
					}
				}
			}
			strong := strings.Contains(strings.Join(r.Resources, " "), "secrets") || strings.Contains(strings.Join(r.Resources, " "), "token")
			if strong && role.Metadata.Name != "isthmus-controller-broker" {
				t.Errorf("%s %s grants %v", role.Kind, role.Metadata.Name, r.Resources)
			}
		}
		if role.Kind == "ClusterRoleBinding" && role.RoleRef.Name == "isthmus-controller-broker" {
			t.Error("the broker's rights are cluster-wide although namespaces were given")
		}
	}
}

func TestRefusals(t *testing.T) {
	bad := guideSettings()
	bad.Platforms.ECS.Accounts[0].Role = "nonsense"
	tests := []struct {
		name string
		cfg  Config
		want string
	}{
		{"namespace", Config{Namespace: "Istio System"}, "is not a namespace"},
		{"task namespace", Config{TaskNamespaces: []string{"a\nb"}}, "is not a namespace"},
		{"image", Config{Image: "x y"}, "is not an image"},
		{"replicas", Config{Replicas: 99}, "99 replicas"},
		{"environment", Config{Env: map[string]string{"a b": "c"}}, "is not an environment variable"},
		{"settings", Config{Settings: bad}, "is not arn:aws:iam"},
		{"pull policy", Config{ImagePullPolicy: "Sometimes"}, "is not an image pull policy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tt.cfg.Render(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Render = %v, want %q", err, tt.want)
			}
		})
	}
	g := guideGateway()
	g.Ports = nil
	if _, err := g.Render(); err == nil {
		t.Error("a gateway without ports was rendered")
	}
	g = guideGateway()
	g.Gateway = strings.Repeat("x", 60)
	if _, err := g.Render(); err == nil {
		t.Error("a gateway whose name is too long was rendered")
	}
}

// TestValuesCannotBecomeStructure puts YAML into every free value.
func TestValuesCannotBecomeStructure(t *testing.T) {
	evil := "x\"\n- name: evil\n  value: y"
	text, err := Config{Settings: guideSettings(), Env: map[string]string{"A": evil}, Args: []string{evil}}.Render()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "\n- name: evil") {
		t.Errorf("a value escaped its quotes:\n%s", text)
	}
}
