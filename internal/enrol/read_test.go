package enrol

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadReturnsWhatEnrolWasTold(t *testing.T) {
	for _, capture := range Captures() {
		want := Options{Image: "isthmus/ztunnel:dev", Gateway: "10.0.200.1", GatewayPort: 15012, RootPEM: "PEM", Namespace: "ns", ServiceAccount: "sa",
			Network: "eks", ClusterID: "Kubernetes", TrustDomain: "cluster.local", Capture: capture, ClientOnly: true, MemoryMiB: 96, StopTimeout: 30, CPU: 32, ProxyEnv: ProxyEnvHTTP, Proof: ProofSignature}
		if capture == CaptureNone {
			want.ProxyEnv = ProxyEnvNone // there is nothing to point to
			want.Proof = ProofWebIdentity
		}
		def := Definition{Task: map[string]any{"family": "f", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::123456789012:role/web",
			"containerDefinitions": []any{map[string]any{"name": "web", "image": "web:1", "portMappings": []any{map[string]any{"containerPort": 80.0}}}}}}
		if _, ok := Read(def); ok {
			t.Fatal("Read() of a definition without a proxy = ok")
		}
		enrolled, err := Enrol(def, want)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := Read(enrolled)
		if !ok {
			t.Fatal("Read() of an enrolled definition is not ok")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Read() with capture %s (-want +got):\n%s", capture, diff)
		}
		again, err := Enrol(enrolled, got)
		if err != nil {
			t.Fatal(err)
		}
		if !Equal(enrolled, again) {
			t.Errorf("enrolling again with what Read returned changes: %v", Diff(enrolled, again))
		}
	}
}

// What the API adds on reading is no difference: else every add-service would register a revision.
func TestEqualIgnoresWhatTheAPIAdds(t *testing.T) {
	opt := Options{Image: "i", Gateway: "g", RootPEM: "PEM", Namespace: "ns", ServiceAccount: "sa", Network: "eks", ClientOnly: true}
	want, err := Enrol(Definition{Task: map[string]any{"family": "f", "networkMode": "awsvpc", "taskRoleArn": "arn:aws:iam::123456789012:role/web",
		"containerDefinitions": []any{map[string]any{"name": "web", "image": "web:1"}}}}, opt)
	if err != nil {
		t.Fatal(err)
	}
	read, err := clone(want.Task)
	if err != nil {
		t.Fatal(err)
	}
	read["revision"], read["status"], read["taskDefinitionArn"], read["volumes"], read["compatibilities"] = 3.0, "ACTIVE", "arn", []any{}, []any{"EC2"}
	for _, c := range list(read["containerDefinitions"]) {
		m, _ := c.(map[string]any)
		m["cpu"], m["mountPoints"], m["volumesFrom"] = 0.0, []any{}, []any{}
	}
	have := Definition{Task: read, Tags: want.Tags}
	if !Equal(have, want) {
		t.Errorf("Equal() = false: %v", Diff(have, want))
	}
	if diff := Diff(have, want); len(diff) > 0 {
		t.Errorf("Diff() = %v, want nothing", diff)
	}
	again, err := Enrol(have, opt)
	if err != nil {
		t.Fatal(err)
	}
	if !Equal(have, again) {
		t.Errorf("enrolling what was read changes: %v", Diff(have, again))
	}
}
