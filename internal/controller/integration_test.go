package controller

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

const integrationObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: istio-system, labels: {topology.istio.io/network: eks}}
---
apiVersion: v1
kind: Namespace
metadata: {name: ecs-demo-1, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: closed}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: echo-sa, namespace: ecs-demo-1, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::111111111111:role/ecs/ambient/task'}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  labels: {istio.io/expose-istiod: "15012", topology.istio.io/network: eks}
  name: eastwest
  namespace: istio-system
spec:
  gatewayClassName: istio-eastwest
  listeners:
  - {name: cross-network, port: 15008, protocol: HBONE, tls: {mode: Passthrough}}
  - {name: xds-tls, port: 15012, protocol: TLS, tls: {mode: Passthrough}}
`

// TestWithItsOwnRights runs the controller against a real API server as the service account of its own manifest: what
// the manifest does not allow does not work here either.
func TestWithItsOwnRights(t *testing.T) {
	api := kubetest.StartAPIServer(t)
	ctx := t.Context()
	api.Apply(t, kubetest.CRDs(t, filepath.Join("..", "..")))
	api.Apply(t, integrationObjects)
	manifest, err := install.Config{
		Settings:       settings.File{Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{Role: "arn:aws:iam::" + accountA + ":role/istiod-local"}}}}},
		TaskNamespaces: []string{"ecs-demo-1"},
	}.Render()
	if err != nil {
		t.Fatal(err)
	}
	api.Apply(t, string(manifest))

	token, err := api.Admin.ServiceAccountToken(ctx, "istio-system", "isthmus-controller")
	if err != nil {
		t.Fatal(err)
	}
	client := api.Client(t, token)

	istiod := meshtest.NewIstiod(t, nil)
	istiod.CA.SetIdentity(mesh.Identity{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "isthmus-controller"})
	dir := t.TempDir()
	for name, text := range map[string][]byte{"root.pem": istiod.CA.RootPEM(), "token": []byte("own-token\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log meshtest.Buffer
	a := newAccount(accountA, "ecs-demo-1")
	first := a.RunTask(a.cluster, "echo", a.definition)
	ctl, err := New(Config{
		Options: Options{
			Namespace: "istio-system", BrokerAddress: "127.0.0.1:0", MonitoringAddress: "127.0.0.1:0", LeaseDuration: 3 * time.Second, RevokeInterval: time.Second,
			IstiodAddress: istiod.Address(), RootCert: filepath.Join(dir, "root.pem"), Token: filepath.Join(dir, "token"), ServiceAccount: "isthmus-controller",
			GatewayReplicas: 1, BrokerSourceRate: 100, BrokerRoleRate: 100,
		},
		Settings: settings.File{
			SweepInterval: settings.Duration(200 * time.Millisecond), ClusterName: "Kubernetes", TrustDomain: "cluster.local", Network: "eks", DeletionLimitPercent: 50,
			Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{Role: "arn:aws:iam::" + accountA + ":role/istiod-local", Domain: "ecs.local"}}}},
		},
		Kube: client, Region: region, Identity: "integration", Log: slog.New(slog.NewTextHandler(&log, nil)),
		Source: func(settings.Account, string) (ecs.Source, error) { return a.Reader(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	runCtx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- ctl.Run(runCtx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}()
	get := func(kind kube.Kind, ns, name string) *kube.Object {
		t.Helper()
		o, err := api.Admin.Get(ctx, kind, ns, name)
		if err != nil && !kube.IsNotFound(err) {
			t.Fatal(err)
		}
		return o
	}
	wait := func(what string, cond func() bool) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for !cond() {
			if time.Now().After(deadline) || !sleep(ctx, 50*time.Millisecond) {
				conditions, _ := ctl.health.snapshot()
				t.Fatalf("not within 30 s: %s (conditions %v)", what, conditions)
			}
		}
	}
	list := func(kind kube.Kind) []*kube.Object {
		t.Helper()
		objs, err := api.Admin.List(ctx, kind, "ecs-demo-1", "")
		if err != nil {
			t.Fatal(err)
		}
		return objs
	}

	t.Run("discovery", func(t *testing.T) {
		wait("service and task", func() bool { return len(list(kube.ServiceEntries)) == 1 && len(list(kube.WorkloadEntries)) == 1 })
		wait("status", func() bool { return get(kube.ConfigMaps, "istio-system", StatusConfigMap) != nil })
		a.RunTask(a.cluster, "echo", a.definition)
		wait("second task", func() bool { return len(list(kube.WorkloadEntries)) == 2 })
		a.StopTask(first)
		wait("first task gone", func() bool { return len(list(kube.WorkloadEntries)) == 1 })
	})
	t.Run("idle sweeps write nothing", func(t *testing.T) {
		versions := func() (out []string) {
			for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
				for _, o := range list(kind) {
					out = append(out, o.GetName()+"@"+o.GetResourceVersion())
				}
			}
			return out
		}
		before, sweeps := versions(), ctl.accounts.list()[0].reflector.Snapshot().CompleteSweeps
		wait("sweeps", func() bool { return ctl.accounts.list()[0].reflector.Snapshot().CompleteSweeps > sweeps+5 })
		if after := versions(); !slices.Equal(before, after) {
			t.Errorf("objects changed from %v to %v", before, after)
		}
	})
	t.Run("kubectl get ecsaccounts", func(t *testing.T) {
		api.Apply(t, "apiVersion: isthmus.dev/v1alpha1\nkind: ECSAccount\nmetadata: {name: again}\nspec: {role: 'arn:aws:iam::"+accountA+":role/other'}\n")
		out := ""
		wait("both accounts", func() bool {
			var err error
			if out, err = api.Kubectl(t, "get", "ecsaccounts"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return strings.Contains(out, "True ") && strings.Contains(out, "False")
		})
		lines := strings.Split(strings.TrimSpace(out), "\n")
		var got []string
		for _, line := range lines {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
		if !strings.HasPrefix(got[0], "NAME ACCOUNT ACCEPTED SYNCED CLUSTERS SERVICES TASKS PROBLEMS LAST SWEEP ERROR") || len(got) != 3 ||
			!strings.HasPrefix(got[1], "again "+accountA+" False Unknown 0 0 0 0 IST3001") || !strings.HasPrefix(got[2], "config-"+accountA+" "+accountA+" True True 1 1 ") {
			t.Errorf("kubectl get ecsaccounts:\n%s", out)
		}
		if out, err := api.Kubectl(t, "get", "ecsa", "again", "-o", "jsonpath={.status.lastError.message}"); err != nil || !strings.Contains(out, "is declared by the controller's configuration file already") {
			t.Errorf("message = %q, %v", out, err)
		}
		if _, err := api.Admin.ApplyYAML(ctx, []byte("apiVersion: isthmus.dev/v1alpha1\nkind: ECSAccount\nmetadata: {name: wrong}\nspec: {role: nonsense}\n"), kube.ApplyOptions{}); err == nil {
			t.Error("the API server took a role that is none")
		}
		if _, err := api.Admin.ApplyYAML(ctx, []byte("apiVersion: isthmus.dev/v1alpha1\nkind: ECSAccount\nmetadata: {name: wrong}\nspec: {domain: ecs.local}\n"), kube.ApplyOptions{}); err == nil {
			t.Error("the API server took an account without a role")
		}
	})
	t.Run("gateway", func(t *testing.T) {
		const name = "eastwest-istio-eastwest"
		wait("workload", func() bool {
			return get(kube.Services, "istio-system", name) != nil && get(kube.Deployments, "istio-system", name) != nil
		})
		condition := func(want string) func() bool {
			return func() bool {
				var gw kube.Gateway
				if err := kube.Decode(get(kube.Gateways, "istio-system", "eastwest"), &gw); err != nil {
					t.Fatal(err)
				}
				return slices.ContainsFunc(gw.Status.Conditions, func(c kube.Condition) bool { return c.Type+"="+c.Status+"/"+c.Reason == want })
			}
		}
		wait("address pending", condition("Programmed=False/AddressNotAssigned"))
		svc, dep := get(kube.Services, "istio-system", name), get(kube.Deployments, "istio-system", name)
		for o, status := range map[*kube.Object]any{
			svc: map[string]any{"loadBalancer": map[string]any{"ingress": []any{map[string]any{"ip": "10.0.200.1"}}}},
			dep: map[string]any{"replicas": 1, "availableReplicas": 1, "readyReplicas": 1, "updatedReplicas": 1},
		} {
			if err := api.Admin.WriteStatus(ctx, o, status); err != nil {
				t.Fatal(err)
			}
		}
		wait("programmed", condition("Programmed=True/Programmed"))
		// The API server fills in defaults; they must not look like differences, or each of the rounds that the status
		// changes above caused would have written again.
		if n := strings.Count(log.String(), "gateway workload applied"); n != 3 {
			t.Errorf("the workload was applied %d times, want once for each of its 3 objects:\n%s", n, log.String())
		}
	})
	t.Run("tokens", func(t *testing.T) {
		id := strings.Repeat("a", 32)
		spec := kube.TokenSpec{Namespace: "ecs-demo-1", ServiceAccount: "echo-sa", Secret: "isthmus-task-" + id, TaskID: id, TaskARN: "arn:aws:ecs:us-east-2:111111111111:task/ecs-demo-1/" + id, TTL: time.Hour}
		tok, err := client.IssueToken(ctx, spec)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(tok.Expiration); left < 55*time.Minute || left > 65*time.Minute {
			t.Errorf("token lives %v, want an hour", left)
		}
		if user, ok, err := api.Admin.ReviewToken(ctx, tok.Value); err != nil || !ok || user != "system:serviceaccount:ecs-demo-1:echo-sa" {
			t.Errorf("ReviewToken = %q, %v, %v", user, ok, err)
		}
		// ECS calls this task missing, so the revoker takes the Secret away, and with it the token's worth.
		wait("revocation", func() bool { _, ok, err := api.Admin.ReviewToken(ctx, tok.Value); return err == nil && !ok })
		spec.Namespace = "closed"
		if _, err := client.IssueToken(ctx, spec); err == nil || !kube.IsForbidden(err) {
			t.Errorf("a token in a namespace that was not given: %v, want forbidden", err)
		}
	})
	t.Run("the rest of the cluster is closed", func(t *testing.T) {
		if _, err := client.List(ctx, kube.Secrets, "kube-system", ""); !kube.IsForbidden(err) {
			t.Errorf("secrets of kube-system: %v, want forbidden", err)
		}
		if _, err := client.List(ctx, kube.Pods, "", ""); !kube.IsForbidden(err) {
			t.Errorf("pods: %v, want forbidden", err)
		}
	})
	t.Run("broker has a certificate", func(t *testing.T) {
		wait("ready", func() bool { _, ok := ctl.health.snapshot(); return ok })
	})
}
