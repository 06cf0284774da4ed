package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// place is an account in a region, with a cluster of a name of its own and a service in it.
type place struct {
	*awsfake.ECS
	cluster, definition string
}

func newPlace(account, region, cluster string, taken int) *place {
	p := &place{ECS: awsfake.New(account, region)}
	p.cluster = p.AddCluster(cluster, inventory.Tags{"ecs.solo.io/discovery-enabled": "true"})
	p.definition = p.AddDefinition(inventory.TaskDefinition{
		Family: "echo", Revision: 1, Tags: inventory.Tags{"ecs.solo.io/service-account": "echo-sa"},
		Containers: []inventory.ContainerDefinition{{Name: "echo", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}},
	})
	p.AddService(p.cluster, "echo", p.definition)
	elsewhere := p.AddCluster("not-opted-in", nil)
	for range taken { // the fake counts addresses up, and no two places may have the same
		p.RunTask(elsewhere, "", p.definition)
	}
	return p
}

// taskEvent is what EventBridge brings of a task: what it says of the state is the caller's choice.
func taskEvent(account, region, cluster, arn, state string, version int64) string {
	return fmt.Sprintf(`{"version":"0","source":"aws.ecs","detail-type":"ECS Task State Change","account":%q,"region":%q,"resources":[%q],
		"detail":{"taskArn":%q,"clusterArn":%q,"version":%d,"lastStatus":%q,"desiredStatus":%q,"group":"service:echo",
		"attachments":[{"id":"1","type":"eni","status":"ATTACHED","details":[{"name":"privateIPv4Address","value":"192.0.2.66"}]}]}}`,
		account, region, arn, arn, cluster, version, state, state)
}

// One queue in one region carries the events of other accounts and of other regions, forwarded from bus to bus. Each is
// a reason for its own account and region, and for no other, to read one thing again; what it says is believed by nobody.
func TestEventsOfOtherAccountsAndRegions(t *testing.T) {
	places := map[string]*place{
		accountA + "/us-east-2": newPlace(accountA, "us-east-2", "ecs-demo-1", 0),
		accountA + "/eu-west-1": newPlace(accountA, "eu-west-1", "ecs-demo-2", 20),
		accountB + "/us-east-2": newPlace(accountB, "us-east-2", "ecs-demo-3", 40),
	}
	running := map[string]string{} // a task of each that runs from the beginning
	for name, p := range places {
		running[name] = p.RunTask(p.cluster, "echo", p.definition)
	}
	q := &queue{bodies: make(chan string, 10)}
	var readers []string // whose role reads the queue
	cluster := kubetest.New(t, namespaces("istio-system", "ecs-demo-1", "ecs-demo-2", "ecs-demo-3"))
	w := newWorld(t, cluster, func(c *Config) {
		c.Settings.SweepInterval = settings.Duration(time.Hour)
		events := &settings.Events{QueueURL: "https://sqs.us-east-2.amazonaws.com/" + accountA + "/q"}
		c.Settings.Platforms.ECS.Accounts = []settings.Account{
			{Role: "arn:aws:iam::" + accountA + ":role/istiod-local", Domain: "ecs.local", Regions: []string{"us-east-2", "eu-west-1"}, Events: events},
			{Role: "arn:aws:iam::" + accountB + ":role/istiod-local", Domain: "ecs.external", Regions: []string{"us-east-2"}, Events: events},
		}
		c.Source = func(a settings.Account, region string) (ecs.Source, error) {
			return places[a.AccountID()+"/"+region].Reader(), nil
		}
		c.Queue = func(a settings.Account, _ settings.Events) (Queue, error) {
			readers = append(readers, a.AccountID())
			return q, nil
		}
	})
	w.run()
	w.wait("the first tasks", func() bool { return len(w.list(kube.WorkloadEntries)) == len(places) })
	if !slices.Equal(readers, []string{accountA}) {
		t.Errorf("the queue is read by %v, want once by the account that owns it", readers)
	}
	calls := func() map[string]int {
		out := map[string]int{}
		for name, p := range places {
			out[name] = p.CallCount("")
		}
		return out
	}
	read := 0 // messages so far
	send := func(bodies ...string) {
		t.Helper()
		for _, b := range bodies {
			q.bodies <- b
		}
		read += len(bodies)
		w.wait("the queue empty", func() bool { q.mu.Lock(); defer q.mu.Unlock(); return len(q.gone) == read })
	}
	version := func(p *place, arn string) int64 { x, _ := p.Task(arn); return x.Version }

	for name, p := range places {
		before, have := calls(), len(w.list(kube.WorkloadEntries))
		arn := p.RunTask(p.cluster, "echo", p.definition)
		send(taskEvent(p.Account, p.Region, p.cluster, arn, "RUNNING", version(p, arn)))
		w.wait("the new task of "+name, func() bool { return len(w.list(kube.WorkloadEntries)) == have+1 })
		for other, n := range calls() {
			if other != name && n != before[other] {
				t.Errorf("an event of %s made %d calls in %s", name, n-before[other], other)
			}
		}
		if strings.Contains(strings.Join(w.addresses(), " "), "192.0.2.66") {
			t.Error("the address that an event told was written")
		}
	}

	// Events that lie: that a running task stopped, that a task runs which there is none of, that another account's task is
	// one's own, and news that are old.
	before, objects := calls(), w.addresses()
	w.kube.Writes()
	for name, p := range places {
		invented := inventory.TaskARN(p.cluster, strings.Repeat("e", 32))
		other := running[accountB+"/us-east-2"]
		if p.Account == accountB {
			other = running[accountA+"/us-east-2"]
		}
		send(taskEvent(p.Account, p.Region, p.cluster, running[name], "STOPPED", version(p, running[name])+100),
			taskEvent(p.Account, p.Region, p.cluster, invented, "RUNNING", 5),
			taskEvent(p.Account, p.Region, p.cluster, other, "STOPPED", 1000),
			taskEvent(p.Account, p.Region, p.cluster, running[name], "STOPPED", version(p, running[name])-1))
		reads := func() int { return p.CallCount("DescribeTasks") }
		w.wait("the reads of "+name, func() bool { return reads() > 0 && p.CallCount("") > before[name] })
	}
	w.wait("nothing left to read", func() bool {
		now := calls()
		sleep(t.Context(), 500*time.Millisecond) // longer than between two reads of what an event told
		return fmt.Sprint(now) == fmt.Sprint(calls())
	})
	if got := w.addresses(); !slices.Equal(got, objects) {
		t.Errorf("objects are %v and were %v", got, objects)
	}
	for _, call := range w.kube.Writes() {
		if strings.Contains(call, "workloadentries") || strings.Contains(call, "serviceentries") {
			t.Errorf("an event wrote: %s", call)
		}
	}
	for name, n := range calls() {
		if n := n - before[name]; n > 8 {
			t.Errorf("%d calls for the lies about %s", n, name)
		}
	}
}

// Capacity is taken back, on Fargate (TerminationNotice) and on EC2 (SpotInterruption): the task is told to stop and runs
// for two minutes more. It leaves the mesh at once, so that nothing new is sent to it, and keeps its identity until it
// has stopped, so that it can finish what it does.
func TestSpotInterruptionDrainsBeforeTheTaskGoes(t *testing.T) {
	for _, code := range []string{"TerminationNotice", "SpotInterruption"} {
		t.Run(code, func(t *testing.T) {
			a := newAccount(accountA, "ecs-demo-1")
			arn := a.RunTask(a.cluster, "echo", a.definition)
			w := newWorld(t, kubetest.New(t, namespaces("istio-system", "ecs-demo-1")), nil, a)
			w.run()
			w.wait("the task", func() bool { return len(w.list(kube.WorkloadEntries)) == 1 })
			uid := w.list(kube.ServiceEntries)[0].GetUID()
			a.Edit(arn, func(x *inventory.Task) {
				x.DesiredStatus, x.StopCode, x.StoppedReason, x.Tags = inventory.TaskStopped, code, "Your Spot Task was interrupted.", nil
			})
			a.RunTask(a.cluster, "echo", a.definition) // its replacement
			w.wait("only the replacement served", func() bool {
				list := w.list(kube.WorkloadEntries)
				return len(list) == 1 && !strings.HasSuffix(list[0].GetName(), inventory.LastPart(arn))
			})
			if task, _ := a.Task(arn); task.LastStatus != inventory.TaskRunning {
				t.Fatalf("the task is %s already, which tests nothing", task.LastStatus)
			}
			inputs, _ := w.ctl.accounts.inputs()
			if skip := discovery.Want(inputs, w.ctl.accounts.rules).Skipped[arn]; !skip.Drop || !strings.Contains(skip.Reason, code) {
				t.Errorf("skipped = %+v, want %s in the reason", skip, code)
			}
			if got := w.ctl.accounts.Life(arn); got != broker.Alive {
				t.Errorf("life = %v while it drains, want alive: its token must last", got)
			}
			a.EndTask(arn)
			w.wait("its end", func() bool { return w.ctl.accounts.Life(arn) == broker.Ended })
			if got := w.list(kube.ServiceEntries)[0].GetUID(); got != uid {
				t.Error("the ServiceEntry was made anew, which changes its address")
			}
		})
	}
}
