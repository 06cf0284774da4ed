package check

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// healthy is an installation with nothing to complain about.
func healthy() *Facts {
	f := &Facts{Now: now, Names: Names{Account: "123456789012", Region: "us-east-2", EKSCluster: "demo", Network: "eks", Gateway: "istio-system/eastwest"}}
	f.AWS = AWS{Account: "123456789012", ARN: "arn:aws:iam::123456789012:user/admin", EKS: "ACTIVE"}
	f.Kube.Server = "https://10.0.0.1:6443"
	f.Istio = Istio{Istiod: Pods{Ready: 2, Total: 2}, Ztunnel: Pods{Ready: 3, Total: 3}, Network: "eks", RootNotAfter: now.AddDate(9, 0, 0)}
	f.Controller = Controller{Pods: Pods{Ready: 2, Total: 2}, Gateway: "10.0.200.1", Status: &Status{Updated: now.Add(-time.Minute)}}
	f.Controller.Status.Accounts = []Account{{Account: "123456789012", Region: "us-east-2", Complete: true, Services: 1, Tasks: 1, Clusters: []string{"ecs-demo-1"}}}
	f.Clusters = []Cluster{{Name: "ecs-demo-1", Status: "ACTIVE", ARN: "arn:aws:ecs:us-east-2:123456789012:cluster/ecs-demo-1", Tagged: true, Namespace: true, Ambient: true,
		Services: []Service{{Cluster: "ecs-demo-1", Name: "echo-service", Desired: 1, Running: 1, Definition: "echo:2", Enrolled: true,
			Tasks: []Task{{ID: "t1", Status: "RUNNING", Address: "10.0.128.10", Proxy: "HEALTHY", Protocol: "HBONE"}}}}}}
	return f
}

// cases are installations; each has a golden report.
func cases() map[string]func(*Facts) {
	return map[string]func(*Facts){
		"healthy": func(*Facts) {},
		"no-aws": func(f *Facts) {
			err := diag.New(diag.CloudCredentials, "get credentials: no provider")
			f.AWS, f.ECSErr, f.Clusters = AWS{Err: err}, err, nil
		},
		"no-kube": func(f *Facts) {
			f.Kube = Kube{Err: diag.New(diag.KubeUnreachable, "dial tcp 127.0.0.1:6443: connection refused")}
			f.Istio, f.Controller = Istio{}, Controller{}
			f.Clusters[0].Services[0].Tasks[0].Protocol = ""
		},
		"wrong-account": func(f *Facts) { f.AWS.Account = "999999999999" },
		"half-installed": func(f *Facts) {
			f.AWS.Infra = []string{"create role /istiod-local", "put policy Discovery on role istiod-local"}
			f.AWS.Rights = []string{"role istiod-eks-ecs-demo, which isthmus did not make, has the policy arn:aws:iam::aws:policy/AdministratorAccess"}
			f.AWS.Group, f.AWS.Open = "ecs-demo-sg", []string{"all traffic from 0.0.0.0/0"}
			f.Kube.Missing = []string{"gateways.gateway.networking.k8s.io"}
			f.Istio.Ztunnel.Ready, f.Istio.Network = 1, ""
			f.Istio.RootNotAfter = now.AddDate(0, 0, 10)
			f.Controller.Status = nil
			f.Clusters[0].Tagged = false
			f.Clusters = append(f.Clusters, Cluster{Name: "ecs-demo-2"})
		},
		"sick-services": func(f *Facts) {
			a := &f.Controller.Status.Accounts[0]
			a.Complete, a.Code, a.Error, a.Fix = false, diag.AssumeRoleDenied, "may not assume istiod-local", "name the role in the trust policy"
			f.Controller.Status.Problems = []Problem{{Object: "123456789012 in us-east-2", Code: diag.AssumeRoleDenied, Cause: "told above"},
				{Object: "arn:web", Code: diag.ServiceWithoutPorts, Cause: "no port", Fix: "add one"}}
			s := &f.Clusters[0].Services[0]
			s.Running, s.Pending, s.Rollout = 0, 1, "ECS deployment in progress"
			s.AccountErr = diag.New(diag.RoleNotAnnotated, "no annotation").WithFix("kubectl annotate ...")
			s.Drift = []string{"~ task.containerDefinitions.ztunnel.environment: old -> new"}
			s.Tasks = []Task{{ID: "t1", Status: "RUNNING", Proxy: "UNHEALTHY", Protocol: "TCP"}, {ID: "t2", Status: "RUNNING"}, {ID: "t3", Status: "PENDING"}}
			f.Clusters[0].Services = append(f.Clusters[0].Services, Service{Cluster: "ecs-demo-1", Name: "plain", Desired: 1, Running: 1})
		},
		"stale-controller": func(f *Facts) { f.Controller.Status.Updated = now.Add(-time.Hour) },
	}
}

func TestReports(t *testing.T) {
	for name, change := range cases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := healthy()
			change(f)
			results := Run(f)
			var got bytes.Buffer
			Write(&got, results, 0, Style{UTF8: true})
			golden(t, filepath.Join("testdata", name+".golden"), got.Bytes())
			if failed := Count(results, Failed) > 0; failed != (name != "healthy") {
				t.Errorf("failed = %v", failed)
			}
			for _, r := range results {
				if r.State == Failed && (r.Cause == "" || r.Fix == "" || !strings.HasSuffix(r.See, "#"+r.ID)) {
					t.Errorf("%s fails without cause, fix or page: %+v", r.ID, r)
				}
			}
		})
	}
}

func TestShortReportInASCII(t *testing.T) {
	f := healthy()
	cases()["wrong-account"](f)
	var got bytes.Buffer
	Write(&got, Run(f), 1500*time.Millisecond, Style{Short: true, Paint: func(color, text string) string { return "<" + color + ">" + text }})
	want := "aws\n---\n<31>FAIL the account is 999999999999<2>  [aws-account]\n    the configuration says 123456789012\n" +
		"    fix: choose the profile of that account with --profile, or correct account in isthmus.yaml\n    see: " + DocBase + "#aws-account\n\n"
	if !strings.HasPrefix(got.String(), want) || !strings.HasSuffix(got.String(), "passed in 1.5s\n") {
		t.Errorf("Write() = %s", got.String())
	}
}

// Every check has a unique id, a category that is printed, and needs only what runs before it.
func TestTable(t *testing.T) {
	before := map[string]bool{}
	categories := strings.Join(Categories(), " ")
	for _, c := range Checks() {
		if before[c.ID] || c.Looks == "" || c.Why == "" || !strings.Contains(categories, c.Category) {
			t.Errorf("check %q: doubled, undocumented or of no category", c.ID)
		}
		for _, n := range c.needs {
			if !before[n] {
				t.Errorf("check %s needs %s, which does not run before it", c.ID, n)
			}
		}
		before[c.ID] = true
	}
}

// A check that fails with an uncoded error still shows the error.
func TestPlainError(t *testing.T) {
	f := healthy()
	f.AWS.InfraErr = errors.New("get role: no")
	for _, r := range Run(f) {
		if r.ID == "aws-infrastructure" && (r.State != Failed || r.Cause != "get role: no") {
			t.Errorf("result = %+v", r)
		}
	}
}

func TestReferencePageIsFresh(t *testing.T) {
	golden(t, filepath.Join("..", "..", "..", "docs", "reference", "checks.md"), Markdown())
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE") != "" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with UPDATE=1)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is stale, make it again with UPDATE=1 (-want +got):\n%s", path, diff)
	}
}
