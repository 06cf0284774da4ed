package controller

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// TestRoleUse follows one role through an account: who has it, and when that is not known.
func TestRoleUse(t *testing.T) {
	ctx := t.Context()
	a := newAccount(accountA, "ecs-demo-1")
	now := time.Unix(1_800_000_000, 0)
	w := newWorld(t, kubetest.New(t, namespaces()), func(c *Config) { c.Now = func() time.Time { return now } }, a)
	acc := w.ctl.accounts
	use := func() []string {
		t.Helper()
		if err := w.ctl.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		got, err := acc.RoleUse(accountA, "task")
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	is := func(what string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, use()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	if _, err := acc.RoleUse(accountA, "task"); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("before the first sweep: %v, want ErrUnavailable", err)
	}
	is("a service without tasks", "ecs-demo-1/echo-sa")
	a.RunTask(a.cluster, "echo", a.definition)
	a.RunTask(a.cluster, "echo", a.definition)
	is("its tasks", "ecs-demo-1/echo-sa")
	if got, err := acc.RoleUse(accountA, "another"); err != nil || len(got) != 0 {
		t.Errorf("a role that nothing has: %v, %v", got, err)
	}
	// A task of another definition with the same role, without a service account.
	bare := a.AddDefinition(inventory.TaskDefinition{Family: "cron", Revision: 1, TaskRoleARN: taskRole, Containers: []inventory.ContainerDefinition{{Name: "cron"}}})
	cron := a.RunTask(a.cluster, "", bare)
	is("a task that names no service account", "ecs-demo-1/echo-sa", "task "+inventory.LastPart(cron)+" of cluster ecs-demo-1, which names no service account")
	a.StopTask(cron)
	is("the same while it stops: its credentials are still good", "ecs-demo-1/echo-sa", "task "+inventory.LastPart(cron)+" of cluster ecs-demo-1, which names no service account")
	a.EndTask(cron)
	is("the same when it has ended", "ecs-demo-1/echo-sa")
	// A service with another service account and no task yet.
	other := a.AddDefinition(inventory.TaskDefinition{Family: "web", Revision: 1, TaskRoleARN: taskRole, Tags: inventory.Tags{"ecs.solo.io/service-account": "web-sa"}})
	a.AddService(a.cluster, "web", other)
	now = now.Add(time.Hour) // services are read every sixth time, or when they are due
	is("a second service account", "ecs-demo-1/echo-sa", "ecs-demo-1/web-sa")

	// Nothing follows from what is old.
	a.Break("ListTasks", "", errors.New("down"))
	_ = w.ctl.sweep(ctx)
	if got, err := acc.RoleUse(accountA, "task"); err != nil || len(got) != 2 {
		t.Errorf("a moment after a failure: %v, %v", got, err)
	}
	now = now.Add(maxRoleUseAge + time.Second)
	_ = w.ctl.sweep(ctx)
	if _, err := acc.RoleUse(accountA, "task"); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "at most 10m0s") {
		t.Errorf("long after the last complete sweep: %v, want ErrUnavailable", err)
	}
}

// TestRoleUseOfWhatIsUnread has definitions that could not be read: nothing follows until they are.
func TestRoleUseOfWhatIsUnread(t *testing.T) {
	cluster := &inventory.Cluster{ARN: "arn:aws:ecs:us-east-2:111111111111:cluster/c", Name: "c"}
	def := &inventory.TaskDefinition{ARN: "d:1", TaskRoleARN: taskRole}
	for name, view := range map[string]*inventory.ClusterView{
		"a service": {Cluster: cluster, Services: map[string]*inventory.Service{"s": {Name: "s", TaskDefinition: def.ARN}}},
		"a task":    {Cluster: cluster, Tasks: map[string]*inventory.Task{"t": {ARN: "t", TaskDefinitionARN: def.ARN, LastStatus: "RUNNING"}}},
	} {
		u := &roleUses{}
		snap := &inventory.Snapshot{Clusters: map[string]*inventory.ClusterView{cluster.ARN: view}}
		user := func(inventory.TaskView) string { return "someone" }
		if got, err := u.of("task", snap, user); err == nil {
			t.Errorf("%s without its definition: %v, want an error", name, got)
		}
		read := *snap
		read.Definitions = map[string]*inventory.TaskDefinition{def.ARN: def}
		if got, err := u.of("task", &read, user); err != nil || len(got) != 1 {
			t.Errorf("%s with its definition: %v, %v", name, got, err)
		}
	}
	ended := &inventory.ClusterView{Cluster: cluster, Tasks: map[string]*inventory.Task{"t": {ARN: "t", TaskDefinitionARN: "none", LastStatus: "STOPPED"}}}
	if got, err := (&roleUses{}).of("task", &inventory.Snapshot{Clusters: map[string]*inventory.ClusterView{cluster.ARN: ended}}, nil); err != nil || len(got) != 0 {
		t.Errorf("a task that has ended: %v, %v", got, err)
	}
}

func TestIssuerIsPinnedToAnAccount(t *testing.T) {
	const url = "https://a103a2cc.tokens.sts.global.api.aws"
	w := newWorld(t, kubetest.New(t, namespaces()), nil, newAccount(accountA, "ecs-demo-1"), newAccount(accountB, "ecs-demo-2"))
	acc := w.ctl.accounts
	set := func(web *settings.WebIdentity) {
		accts := w.ctl.cfg.Settings.Platforms.ECS.Accounts
		accts[0].WebIdentity = web
		if errs := acc.set(accts); len(errs) > 0 {
			t.Fatal(errs)
		}
	}
	for name, tt := range map[string]struct {
		web *settings.WebIdentity
		ok  bool
	}{
		"by default":     {nil, false},
		"not enabled":    {&settings.WebIdentity{Issuer: url}, false},
		"enabled":        {&settings.WebIdentity{Issuer: url, Enabled: true}, true},
		"disabled again": {nil, false},
	} {
		set(tt.web)
		if got, ok := acc.issuer(accountA); ok != tt.ok || ok && got != url {
			t.Errorf("%s: issuer %q, %t", name, got, ok)
		}
		if got, ok := acc.issuer(accountB); ok {
			t.Errorf("%s: account B has issuer %q", name, got)
		}
	}
}

// BenchmarkRoleUse asks after a change in an account of 100,000 tasks, each service with a role of its own, and again
// without one.
func BenchmarkRoleUse(b *testing.B) {
	snap := &inventory.Snapshot{Account: accountA, Region: region, Clusters: map[string]*inventory.ClusterView{}, Definitions: map[string]*inventory.TaskDefinition{}}
	for c := range 100 {
		cluster := &inventory.Cluster{ARN: fmt.Sprintf("arn:aws:ecs:%s:%s:cluster/c%d", region, accountA, c), Name: fmt.Sprintf("c%d", c)}
		view := &inventory.ClusterView{Cluster: cluster, Services: map[string]*inventory.Service{}, Tasks: map[string]*inventory.Task{}, Members: map[string]string{}}
		for s := range 100 {
			name := fmt.Sprintf("s%d", s)
			def := &inventory.TaskDefinition{ARN: fmt.Sprintf("arn:aws:ecs:%s:%s:task-definition/c%d-%s:1", region, accountA, c, name),
				TaskRoleARN: fmt.Sprintf("arn:aws:iam::%s:role/c%d-%s", accountA, c, name), Tags: inventory.Tags{"ecs.solo.io/service-account": name}}
			snap.Definitions[def.ARN] = def
			view.Services[name] = &inventory.Service{Name: name, ClusterARN: cluster.ARN, TaskDefinition: def.ARN}
			for n := range 10 {
				arn := fmt.Sprintf("arn:aws:ecs:%s:%s:task/c%d/%s-%d", region, accountA, c, name, n)
				view.Tasks[arn], view.Members[arn] = &inventory.Task{ARN: arn, ClusterARN: cluster.ARN, TaskDefinitionARN: def.ARN, LastStatus: "RUNNING"}, name
			}
		}
		snap.Clusters[cluster.ARN] = view
	}
	a := &accounts{}
	s := &scope{id: accountA, region: region, roles: &roleUses{}}
	ask := func(b *testing.B) {
		got, err := s.roles.of("c7-s7", snap, func(v inventory.TaskView) string { return a.userOf(s, snap, v) })
		if err != nil || len(got) != 1 || got[0] != "c7/s7" {
			b.Fatal(got, err)
		}
	}
	b.Run("after a sweep", func(b *testing.B) {
		for b.Loop() {
			for arn, view := range snap.Clusters { // every cluster was read again
				again := *view
				snap.Clusters[arn] = &again
			}
			ask(b)
		}
	})
	b.Run("without", func(b *testing.B) {
		for b.Loop() {
			ask(b)
		}
	})
}
