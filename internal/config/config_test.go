package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, FileName), []byte("apiVersion: isthmus.dev/v1alpha1\nkind: Config\nclusterName: file\nregion: eu-west-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, "", []string{"CLUSTER_NAME=env", "LOCAL_ACCOUNT=123456789012", "OWNER_NAME="})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.ClusterName, want.Region, want.Account = "env", "eu-west-1", "123456789012"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"ecs-env-1", "ecs-env-2"}, got.ECSClusters()); diff != "" {
		t.Errorf("ECSClusters (-want +got):\n%s", diff)
	}
}

func TestLoadErrors(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"unknown field", "apiVersion: isthmus.dev/v1alpha1\nkind: Config\nclustername2: x\n", `unknown field "clustername2"`},
		{"all problems at once", "apiVersion: isthmus.dev/v1alpha1\nkind: Config\naccount: '12'\nregion: nowhere\n", "region \"nowhere\": want"},
		{"kind", "apiVersion: v1\nkind: Config\n", "apiVersion and kind"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, FileName), []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir, "", nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Load = %v, want an error with %q", err, c.want)
			}
		})
	}
	if _, err := Load(t.TempDir(), "missing.yaml", nil); err == nil {
		t.Error("Load of a named file that is missing succeeded")
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	dir := t.TempDir()
	b, err := Default().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, FileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}

func TestRoleNames(t *testing.T) {
	c := Default()
	if got, want := c.TaskRolePath()+"|"+c.TaskRoleName(), "/ecs/ambient/|eks-ecs-task-role"; got != want {
		t.Errorf("task role = %q, want %q", got, want)
	}
	if got, want := c.ControllerRoleName(), "istiod-eks-ecs-demo"; got != want {
		t.Errorf("ControllerRoleName() = %q, want %q", got, want)
	}
}

// The variables of the guide name both accounts; a configuration of the external one must not take the local one's.
func TestExternal(t *testing.T) {
	dir := t.TempDir()
	b, err := External().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "external.yaml"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Load(dir, filepath.Join(dir, "external.yaml"), []string{"LOCAL_ACCOUNT=123456789012", "LOCAL_ACCOUNT_PROFILE=main",
		"EXTERNAL_ACCOUNT=210987654321", "ISTHMUS_DOMAIN=ecs.local", "ISTHMUS_CLUSTERS=2"})
	if err != nil {
		t.Fatal(err)
	}
	want := External()
	want.Account, want.Home.Account, want.Home.Profile = "210987654321", "123456789012", "main"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"ecs-demo-3"}, got.ECSClusters()); diff != "" {
		t.Errorf("ECSClusters (-want +got):\n%s", diff)
	}
	if home := got.OfHome(); home.Account != "123456789012" || home.Profile != "main" || home.Home != nil {
		t.Errorf("OfHome() = %+v, want the local account", home)
	}
	got.Home.VPCRange = "10.1.0.1/16"
	if err := got.Validate(); err == nil || !strings.Contains(err.Error(), "home.vpcRange") {
		t.Errorf("Validate with host bits in the range = %v", err)
	}
}
