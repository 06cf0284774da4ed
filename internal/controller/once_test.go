package controller

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// What `isthmus-controller --once --dry-run` prints: something new, something changed, something to delete, an account
// that was not read completely, and problems with their fixes.
func TestDryRunGolden(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	a.RunTask(a.cluster, "echo", a.definition)
	stopping := a.RunTask(a.cluster, "echo", a.definition)
	second := a.AddCluster("ecs-demo-2", inventory.Tags{"ecs.solo.io/discovery-enabled": "true"})
	a.AddService(second, "echo", a.definition)
	lost := a.RunTask(second, "echo", a.definition)
	cluster := kubetest.New(t, namespaces("ecs-demo-1", "ecs-demo-2"))
	w := newWorld(t, cluster, nil, a)
	var out bytes.Buffer
	if err := w.ctl.Once(t.Context(), &out, true); err != nil {
		t.Fatal(err)
	}
	a.RunTask(a.cluster, "echo", a.definition)
	a.StopTask(stopping)
	a.EditService(second, "echo", func(s *inventory.Service) { s.Status = inventory.StatusDraining })
	a.Silence(lost)
	a.EditService(a.cluster, "echo", func(s *inventory.Service) { s.Tags = inventory.Tags{"ecs.solo.io/ports": "80:8080/http"} })
	portless := a.AddDefinition(inventory.TaskDefinition{Family: "job", Revision: 1, Tags: inventory.Tags{"ecs.solo.io/service-account": "job"}, Containers: []inventory.ContainerDefinition{{Name: "job", Essential: true}}})
	a.AddService(a.cluster, "job", portless)
	cluster.Writes()
	out.Reset()
	err := w.ctl.Once(t.Context(), &out, false)
	if err != nil {
		out.WriteString("error: " + err.Error() + "\n")
	}
	if writes := cluster.Writes(); len(writes) != 0 {
		t.Errorf("a dry run wrote %v", writes)
	}
	file := filepath.Join("testdata", "dryrun.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites):\n%s", file, diff)
	}
}
