package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	smithy "github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

func ecsAccount(name, created, spec string) string {
	return "apiVersion: isthmus.dev/v1alpha1\nkind: ECSAccount\nmetadata: {name: " + name + ", generation: 1, creationTimestamp: '" + created + "'}\nspec: {" + spec + "}\n---\n"
}

const roleB = "role: 'arn:aws:iam::" + accountB + ":role/r'"

func objects(t *testing.T, yaml string) []*kube.Object {
	t.Helper()
	objs, err := kube.ParseYAML([]byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

func TestDeclarations(t *testing.T) {
	file := []settings.Account{{Role: "arn:aws:iam::" + accountA + ":role/r"}}
	got := declarations(file, objects(t,
		ecsAccount("younger", "2026-02-01T00:00:00Z", roleB)+
			ecsAccount("older", "2026-01-01T00:00:00Z", roleB+", regions: [eu-west-1], events: {queueUrl: 'https://sqs.eu-west-1.amazonaws.com/222222222222/q'}")+
			ecsAccount("same-as-file", "2025-01-01T00:00:00Z", "role: 'arn:aws:iam::"+accountA+":role/other'")+
			ecsAccount("broken", "2025-01-01T00:00:00Z", roleB+", domain: Not_A_Domain")+
			strings.Replace(ecsAccount("config-"+accountA, "2024-01-01T00:00:00Z", roleB), "generation: 1", "labels: {isthmus.dev/origin: config-file}", 1)))
	var lines []string
	for _, d := range got {
		lines = append(lines, fmt.Sprintf("%s %s %s", d.name, d.account.AccountID(), d.reason))
	}
	want := []string{
		"config-" + accountA + " " + accountA + " ", "broken " + accountB + " Invalid", "same-as-file " + accountA + " Conflict", "older " + accountB + " ", "younger " + accountB + " Conflict",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got[3].account.Domain != "ecs.local" || got[3].account.Events.QueueRegion() != "eu-west-1" {
		t.Errorf("defaults were not filled in: %+v", got[3].account)
	}
}

func accountStatus(t *testing.T, c *kubetest.Cluster, name string) ECSAccountStatus {
	t.Helper()
	o, err := c.Client.Get(t.Context(), kube.ECSAccounts, "", name)
	if kube.IsNotFound(err) {
		return ECSAccountStatus{}
	}
	if err != nil {
		t.Fatal(err)
	}
	var read struct{ Status ECSAccountStatus }
	if err := kube.Decode(o, &read); err != nil {
		t.Fatal(err)
	}
	return read.Status
}

func conditions(st ECSAccountStatus) string {
	var out []string
	for _, c := range st.Conditions {
		out = append(out, c.Type+"="+c.Status+"/"+c.Reason)
	}
	return strings.Join(out, " ")
}

// Accounts come, fail, are mended and go while the controller runs, and the list of accounts tells.
func TestECSAccounts(t *testing.T) {
	a, b := newAccount(accountA, "ecs-demo-1"), newAccount(accountB, "ecs-demo-2")
	a.RunTask(a.cluster, "echo", a.definition)
	b.RunTask(b.cluster, "echo", b.definition)
	cluster := kubetest.New(t, namespaces("ecs-demo-1", "ecs-demo-2"))
	w := newWorld(t, cluster, func(c *Config) { c.Settings.Platforms.ECS.Accounts = c.Settings.Platforms.ECS.Accounts[:1] }, a, b)
	w.run()
	mine := "config-" + accountA
	w.wait("the file's account on the list", func() bool {
		st := accountStatus(t, cluster, mine)
		return st.Tasks == 1 && st.Clusters == 1 && st.Services == 1 && st.LastCompleteSweep != "" && conditions(st) == "Accepted=True/Accepted Synced=True/Complete"
	})

	cluster.Put(t, ecsAccount("partner", "2026-01-01T00:00:00Z", roleB+", domain: partner.example")+ecsAccount("twice", "2026-01-02T00:00:00Z", roleB))
	w.wait("the second account read", func() bool { return accountStatus(t, cluster, "partner").Tasks == 1 })
	w.wait("its objects", func() bool {
		list, err := cluster.Client.List(t.Context(), kube.ServiceEntries, "ecs-demo-2", "")
		return err == nil && len(list) == 1 && strings.Contains(fmt.Sprint(list[0].Object["spec"]), "echo.ecs-demo-2.partner.example")
	})
	w.wait("the conflict told", func() bool {
		st := accountStatus(t, cluster, "twice")
		return conditions(st) == "Accepted=False/Conflict Synced=Unknown/NotAccepted" && st.LastError != nil && st.LastError.Fix != ""
	})

	b.Break("ListTasks", "", apiDenied{})
	w.wait("the refusal told, with its fix", func() bool {
		st := accountStatus(t, cluster, "partner")
		return st.LastError != nil && st.LastError.Code == "IST1001" && st.LastError.Fix != "" && st.Tasks == 1 && strings.HasPrefix(conditions(st), "Accepted=True/Accepted Synced=False/IST1001")
	})
	if st := accountStatus(t, cluster, mine); !strings.HasSuffix(conditions(st), "Synced=True/Complete") {
		t.Errorf("a sick account spoiled another: %s", conditions(st))
	}
	b.Mend()
	w.wait("mended", func() bool { return accountStatus(t, cluster, "partner").LastError == nil })

	sweeps := w.ctl.accounts.list()[1].reflector
	if _, err := cluster.Client.Delete(t.Context(), kube.ECSAccounts, "", "partner", nil); err != nil {
		t.Fatal(err)
	}
	w.wait("the next in line accepted", func() bool {
		return strings.HasPrefix(conditions(accountStatus(t, cluster, "twice")), "Accepted=True") && accountStatus(t, cluster, "twice").Tasks == 1
	})
	if got := w.ctl.accounts.list()[1].reflector; got != sweeps {
		t.Error("an account that is read as before was read anew")
	}
	if _, err := cluster.Client.Delete(t.Context(), kube.ECSAccounts, "", "twice", nil); err != nil {
		t.Fatal(err)
	}
	w.wait("one account left", func() bool { return len(w.ctl.accounts.list()) == 1 })
	if list, err := cluster.Client.List(t.Context(), kube.WorkloadEntries, "ecs-demo-2", ""); err != nil || len(list) != 1 {
		t.Errorf("an account that is no longer declared lost its workloads: %v, %v", list, err)
	}
}

// apiDenied is what ECS says to a role that lacks a permission.
type apiDenied struct{}

func (apiDenied) Error() string {
	return "AccessDeniedException: not authorized to perform ecs:ListTasks"
}
func (apiDenied) ErrorCode() string    { return "AccessDeniedException" }
func (apiDenied) ErrorMessage() string { return "not authorized to perform ecs:ListTasks" }

// ErrorFault implements smithy.APIError.
func (apiDenied) ErrorFault() smithy.ErrorFault { return smithy.FaultClient }

// queue is a Queue that a test fills.
type queue struct {
	bodies chan string
	mu     sync.Mutex
	gone   []string
}

func (q *queue) Receive(ctx context.Context) (bodies, receipts []string, err error) {
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case b := <-q.bodies:
		if b == "fail" {
			return nil, nil, errors.New("queue is down")
		}
		return []string{b}, []string{b}, nil
	}
}

func (q *queue) Delete(_ context.Context, receipts []string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = append(q.gone, receipts...)
	return nil
}

// With events a task is known long before the next sweep; what is no event, or another account's, is taken off the queue
// and does nothing.
func TestEventsShortenTheWait(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	cluster := kubetest.New(t, namespaces("ecs-demo-1"))
	q := &queue{bodies: make(chan string, 10)}
	w := newWorld(t, cluster, func(c *Config) {
		c.Settings.SweepInterval = settings.Duration(time.Hour)
		c.Settings.Platforms.ECS.Accounts[0].Events = &settings.Events{QueueURL: "https://sqs.us-east-2.amazonaws.com/111111111111/q"}
		c.Queue = func(settings.Account, settings.Events) (Queue, error) { return q, nil }
	}, a)
	w.run()
	reflector := w.ctl.accounts.list()[0].reflector
	w.wait("first sweep", func() bool { return reflector.Snapshot().CompleteSweeps == 1 })
	arn := a.RunTask(a.cluster, "echo", a.definition)
	task, _ := a.Task(arn)
	event := func(account, arn string) string {
		return fmt.Sprintf(`{"version":"0","source":"aws.ecs","detail-type":"ECS Task State Change","account":%q,"region":"us-east-2","detail":{"taskArn":%q,"clusterArn":%q,"version":%d}}`,
			account, arn, a.cluster, task.Version)
	}
	calls := a.CallCount("")
	for _, body := range []string{"nonsense", event("999999999999", strings.Replace(arn, accountA, "999999999999", 1)), event(accountA, arn), event(accountA, arn)} {
		q.bodies <- body
	}
	w.wait("the task", func() bool {
		list, err := cluster.Client.List(t.Context(), kube.WorkloadEntries, "ecs-demo-1", "")
		return err == nil && len(list) == 1
	})
	w.wait("the queue empty", func() bool { q.mu.Lock(); defer q.mu.Unlock(); return len(q.gone) == 4 })
	if n := a.CallCount("") - calls; n > 4 { // DescribeTasks, and ListTasks of the service; the definition is known or one more; the second event at most once more
		t.Errorf("the event cost %d calls", n)
	}
	if n := reflector.Snapshot().CompleteSweeps; n != 1 {
		t.Errorf("a hint counted as a sweep: %d", n)
	}
}
