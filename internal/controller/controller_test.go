package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
	"github.com/isthmus-mesh/isthmus/internal/telemetry/control"
)

const (
	region   = "us-east-2"
	accountA = "111111111111"
	accountB = "222222222222"
)

func configMap() string {
	return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: isthmus-controller, namespace: istio-system}\n---\n"
}

func namespaces(names ...string) string {
	out := configMap()
	for _, n := range names {
		out += "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + n + "}\n---\n"
	}
	return out
}

// account is a fake AWS account with one opted-in cluster and a service in it.
type account struct {
	*awsfake.ECS
	cluster    string
	definition string
}

func newAccount(id, cluster string) *account {
	f := awsfake.New(id, region)
	a := &account{ECS: f}
	a.cluster = f.AddCluster(cluster, inventory.Tags{"ecs.solo.io/discovery-enabled": "true"})
	a.definition = f.AddDefinition(inventory.TaskDefinition{
		Family: "echo", Revision: 7, TaskRoleARN: "arn:aws:iam::" + id + ":role/ecs/ambient/task",
		Containers: []inventory.ContainerDefinition{
			{Name: "echo", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp", AppProtocol: "http"}}},
			{Name: "ztunnel", HasHealthCheck: true},
		},
		Tags: inventory.Tags{"ecs.solo.io/service-account": "echo-sa"},
	})
	f.AddService(a.cluster, "echo", a.definition)
	if id == accountB { // the fake counts addresses up: these must not be those of the other account
		elsewhere := f.AddCluster("not-opted-in", nil)
		for range 100 {
			f.RunTask(elsewhere, "", a.definition)
		}
	}
	return a
}

type world struct {
	t    *testing.T
	kube *kubetest.Cluster
	ctl  *Controller
	log  bytes.Buffer
}

func newWorld(t *testing.T, cluster *kubetest.Cluster, change func(*Config), accounts ...*account) *world {
	t.Helper()
	w := &world{t: t, kube: cluster}
	file := settings.File{SweepInterval: settings.Duration(50 * time.Millisecond), ClusterName: "Kubernetes", TrustDomain: "cluster.local", DeletionLimitPercent: 50,
		DiscoveryTags: []string{"ecs.solo.io/discovery-enabled"}}
	byID := map[string]*account{}
	for _, a := range accounts {
		byID[a.Account] = a
		file.Platforms.ECS.Accounts = append(file.Platforms.ECS.Accounts, settings.Account{Role: "arn:aws:iam::" + a.Account + ":role/istiod-local", Domain: "ecs.local"})
	}
	cfg := Config{
		Options: Options{
			Namespace: "istio-system", MonitoringAddress: "127.0.0.1:0", LeaseDuration: 2 * time.Second, RevokeInterval: time.Second, GatewayReplicas: 1, ServiceAccount: "isthmus-controller",
		},
		Settings: file, Kube: cluster.Client, Region: region, Identity: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Source:  func(a settings.Account, _ string) (ecs.Source, error) { return byID[a.AccountID()].Reader(), nil },
		Metrics: control.New(func() time.Duration { return 0 }),
	}
	if change != nil {
		change(&cfg)
	}
	ctl, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.ctl = ctl
	return w
}

func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.ctl.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run = %v", err)
		}
	})
}

func (w *world) wait(what string, cond func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			w.t.Fatalf("not within 15 s: %s\nevents: %v\nstatus: %+v", what, w.kube.Events(w.t), w.status())
		}
	}
}

func (w *world) list(kind kube.Kind) []*kube.Object {
	w.t.Helper()
	objs, err := w.kube.Client.List(w.t.Context(), kind, "", "")
	if err != nil {
		w.t.Fatal(err)
	}
	return objs
}

func (w *world) addresses() []string {
	var out []string
	for _, o := range w.list(kube.WorkloadEntries) {
		spec, _ := o.Object["spec"].(map[string]any)
		hbone := o.GetAnnotations()["ambient.istio.io/redirection"]
		out = append(out, fmt.Sprintf("%s/%v/%v/%s", o.GetNamespace(), spec["address"], spec["serviceAccount"], hbone))
	}
	slices.Sort(out)
	return out
}

func (w *world) status() Status {
	o, err := w.kube.Client.Get(w.t.Context(), kube.ConfigMaps, "istio-system", StatusConfigMap)
	if err != nil {
		return Status{}
	}
	data, _ := o.Object["data"].(map[string]any)
	text, _ := data["status.yaml"].(string)
	var st Status
	if err := yaml.Unmarshal([]byte(text), &st); err != nil {
		w.t.Fatal(err)
	}
	return st
}

func TestFollowsECS(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	first := a.RunTask(a.cluster, "echo", a.definition)
	w := newWorld(t, kubetest.New(t, namespaces("ecs-demo-1")), nil, a)
	w.run()
	w.wait("service and task", func() bool { return len(w.list(kube.ServiceEntries)) == 1 && len(w.list(kube.WorkloadEntries)) == 1 })
	if diff := cmp.Diff([]string{"ecs-demo-1/10.0.128.2/echo-sa/enabled"}, w.addresses()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	uid := w.list(kube.ServiceEntries)[0].GetUID()
	a.RunTask(a.cluster, "echo", a.definition)
	w.wait("second task", func() bool { return len(w.list(kube.WorkloadEntries)) == 2 })
	a.StopTask(first)
	w.wait("first task gone", func() bool { return len(w.list(kube.WorkloadEntries)) == 1 })
	if diff := cmp.Diff([]string{"ecs-demo-1/10.0.128.3/echo-sa/enabled"}, w.addresses()); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
	if got := w.list(kube.ServiceEntries)[0].GetUID(); got != uid {
		t.Errorf("the ServiceEntry was re-created (uid %s, then %s), which changes its address", uid, got)
	}

	// Nothing changes, so nothing is written, however many sweeps there are.
	w.kube.Writes()
	sweeps := w.ctl.accounts.list()[0].reflector.Snapshot().CompleteSweeps
	w.wait("five sweeps", func() bool { return w.ctl.accounts.list()[0].reflector.Snapshot().CompleteSweeps > sweeps+5 })
	for _, call := range w.kube.Writes() {
		if strings.Contains(call, "entries") {
			t.Errorf("an idle sweep wrote: %s", call)
		}
	}
	w.wait("status", func() bool {
		st := w.status()
		return len(st.Accounts) == 1 && st.Accounts[0].Complete && st.Accounts[0].Services == 1 && st.Leader == "test"
	})
}

func TestSickAccountDelaysNobodyAndLosesNothing(t *testing.T) {
	sick, well := newAccount(accountA, "ecs-demo-1"), newAccount(accountB, "ecs-demo-2")
	for range 3 {
		sick.RunTask(sick.cluster, "echo", sick.definition)
	}
	w := newWorld(t, kubetest.New(t, namespaces("ecs-demo-1", "ecs-demo-2")), nil, sick, well)
	w.run()
	w.wait("three tasks", func() bool { return len(w.list(kube.WorkloadEntries)) == 3 })
	denied := errors.New("AccessDeniedException: not authorized")
	for _, op := range []string{"ListClusters", "ListTasks", "DescribeTasks"} {
		sick.Break(op, "", denied)
	}
	well.RunTask(well.cluster, "echo", well.definition)
	w.wait("the other account goes on", func() bool { return len(w.list(kube.WorkloadEntries)) == 4 })
	w.wait("the problem is told", func() bool {
		for _, acct := range w.status().Accounts {
			if acct.Account == accountA && !acct.Complete && acct.Error != "" && acct.Fix != "" {
				return true
			}
		}
		return false
	})
	if n := len(w.list(kube.WorkloadEntries)); n != 4 {
		t.Errorf("%d workloads, want all 4", n)
	}
	sick.Mend()
	w.wait("recovery", func() bool {
		for _, acct := range w.status().Accounts {
			if acct.Account == accountA {
				return acct.Complete && acct.Error == ""
			}
		}
		return false
	})
}

func TestMissingNamespaceIsToldAndMended(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	a.RunTask(a.cluster, "echo", a.definition)
	w := newWorld(t, kubetest.New(t, configMap()), nil, a)
	w.run()
	w.wait("event", func() bool {
		return slices.ContainsFunc(w.kube.Events(t), func(e string) bool {
			return strings.HasPrefix(e, "Warning ECSProblem ConfigMap/isthmus-controller") && strings.Contains(e, "IST1101") && strings.Contains(e, "kubectl create namespace ecs-demo-1")
		})
	})
	if n := len(w.list(kube.ServiceEntries)); n != 0 {
		t.Errorf("%d ServiceEntries in a namespace that does not exist", n)
	}
	w.kube.Put(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: ecs-demo-1}")
	w.wait("objects", func() bool { return len(w.list(kube.ServiceEntries)) == 1 && len(w.list(kube.WorkloadEntries)) == 1 })
	w.wait("problem solved", func() bool {
		st := w.status()
		return st.Leader != "" && !slices.ContainsFunc(st.Problems, func(p discovery.Problem) bool { return p.Code == diag.NamespaceMissing })
	})
}

func TestRefusedWriteIsToldAndRetried(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	a.RunTask(a.cluster, "echo", a.definition)
	cluster := kubetest.New(t, namespaces("ecs-demo-1"))
	cluster.Fail(func(call string) error {
		if strings.HasPrefix(call, "patch workloadentries") {
			return errors.New("admission webhook denied the request")
		}
		return nil
	})
	w := newWorld(t, cluster, nil, a)
	w.run()
	w.wait("service", func() bool { return len(w.list(kube.ServiceEntries)) == 1 })
	cluster.Fail(nil)
	w.wait("task after the webhook recovered", func() bool { return len(w.list(kube.WorkloadEntries)) == 1 })
}

func TestOnceDryRun(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	a.RunTask(a.cluster, "echo", a.definition)
	w := newWorld(t, kubetest.New(t, namespaces("ecs-demo-1")), nil, a)
	var out bytes.Buffer
	if err := w.ctl.Once(t.Context(), &out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"+ ServiceEntry ecs-demo-1/ecs-service-" + accountA + "-us-east-2-ecs-demo-1-echo", "+ WorkloadEntry ecs-demo-1/ecs-task-", "plan: 2 to create, 0 to update, 0 to delete"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("plan lacks %q:\n%s", want, &out)
		}
	}
	if writes := w.kube.Writes(); len(writes) != 0 {
		t.Errorf("a dry run wrote %v", writes)
	}
	out.Reset()
	if err := w.ctl.Once(t.Context(), &out, true); err != nil {
		t.Fatal(err)
	}
	if n := len(w.list(kube.WorkloadEntries)); n != 1 {
		t.Errorf("after --once there are %d workloads, want 1", n)
	}
	out.Reset()
	if err := w.ctl.Once(t.Context(), &out, true); err != nil || !strings.Contains(out.String(), "plan: 0 to create, 0 to update, 0 to delete, 0 held, 2 unchanged") {
		t.Errorf("second --once: %v\n%s", err, &out)
	}
	// A task that ended while no controller ran: its object goes only on ECS's word.
	for _, o := range w.list(kube.WorkloadEntries) {
		a.ForgetTask(o.GetAnnotations()["isthmus.dev/source"])
	}
	fresh := newWorld(t, w.kube, nil, a)
	if err := fresh.ctl.Once(t.Context(), &out, true); err != nil {
		t.Fatal(err)
	}
	if n := len(w.list(kube.WorkloadEntries)); n != 0 {
		t.Errorf("the object of a task that ECS calls missing is still there:\n%s", &out)
	}
}

func TestOnceReportsAnAccountThatCannotBeRead(t *testing.T) {
	a, b := newAccount(accountA, "ecs-demo-1"), newAccount(accountB, "ecs-demo-2")
	a.Break("ListClusters", "", errors.New("no credentials"))
	b.RunTask(b.cluster, "echo", b.definition)
	w := newWorld(t, kubetest.New(t, namespaces("ecs-demo-1", "ecs-demo-2")), nil, a, b)
	var out bytes.Buffer
	err := w.ctl.Once(t.Context(), &out, true)
	if err == nil || !strings.Contains(err.Error(), "account "+accountA) {
		t.Errorf("Once = %v, want the account's error", err)
	}
	if n := len(w.list(kube.WorkloadEntries)); n != 1 {
		t.Errorf("the other account's task was not written: %d", n)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	w := newWorld(t, kubetest.New(t, namespaces("ecs-demo-1", "istio-system")), nil, a)
	w.run()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + w.ctl.Address("monitoring") + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	w.wait("listener", func() bool { return w.ctl.Address("monitoring") != "" })
	w.wait("ready", func() bool { code, _ := get("/readyz"); return code == 200 })
	if code, body := get("/readyz?verbose"); code != 200 || body != "kubernetes: ok\n" {
		t.Errorf("/readyz?verbose = %d %q", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("/healthz = %d", code)
	}
	w.wait("metrics of a sweep", func() bool {
		_, body := get("/metrics")
		return strings.Contains(body, `isthmus_discovery_sweeps_total{outcome="complete"}`) && strings.Contains(body, "isthmus_controller_leader 1")
	})
	w.ctl.health.set("broker-certificate", errors.New("istiod is away"))
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "broker-certificate: istiod is away") {
		t.Errorf("/readyz = %d %q, want the reason", code, body)
	}
}

func TestNewRefuses(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	good := newWorld(t, kubetest.New(t, ""), nil, a).ctl.cfg
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no kube":     {func(c *Config) { c.Kube = nil }, "Config.Kube is required"},
		"no source":   {func(c *Config) { c.Source = nil }, "Config.Source is required"},
		"no identity": {func(c *Config) { c.Identity = "" }, "Config.Identity is required"},
		"no log":      {func(c *Config) { c.Log = nil }, "Config.Log is required"},
		"no region":   {func(c *Config) { c.Region = "" }, "set AWS_REGION"},
	} {
		cfg := good
		tt.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: New = %v, want %q", name, err, tt.want)
		}
	}
}
