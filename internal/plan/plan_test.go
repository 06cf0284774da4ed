package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

const (
	account = "123456789012"
	region  = "us-east-2"
	defARN  = "arn:aws:ecs:us-east-2:123456789012:task-definition/echo:1"
)

func clusterNamed(name string) string { return "arn:aws:ecs:us-east-2:" + account + ":cluster/" + name }

// snapshot returns a complete snapshot with one cluster of one service with n running tasks.
func snapshot(n int) *inventory.Snapshot {
	s := emptySnapshot()
	addCluster(s, "ecs-demo-1", n)
	return s
}

func emptySnapshot() *inventory.Snapshot {
	return &inventory.Snapshot{
		Account: account, Region: region, Partition: "aws", Complete: true, CompleteSweeps: 5, Sweeps: 5,
		Clusters: map[string]*inventory.ClusterView{}, Gone: map[string]inventory.Evidence{},
		Definitions: map[string]*inventory.TaskDefinition{defARN: {
			ARN: defARN, Family: "echo", Revision: 1, NetworkMode: inventory.NetworkAWSVPC, Tags: inventory.Tags{"ecs.solo.io/service-account": "echo"},
			Containers: []inventory.ContainerDefinition{{Name: "app", PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}},
		}},
	}
}

func addCluster(s *inventory.Snapshot, name string, tasks int) *inventory.ClusterView {
	arn := clusterNamed(name)
	c := &inventory.ClusterView{
		Cluster: &inventory.Cluster{ARN: arn, Name: name, Status: inventory.StatusActive}, Complete: true, CompleteSweeps: 5,
		Services: map[string]*inventory.Service{}, Tasks: map[string]*inventory.Task{}, Members: map[string]string{},
	}
	c.Services["web"] = &inventory.Service{ARN: strings.Replace(arn, "cluster/", "service/", 1) + "/web", Name: "web", ClusterARN: arn, Status: inventory.StatusActive, TaskDefinition: defARN}
	base := len(s.Clusters) * 1000
	for i := range tasks {
		addTask(c, base+i+1)
	}
	s.Clusters[arn] = c
	return c
}

func addTask(c *inventory.ClusterView, n int) string {
	arn := inventory.TaskARN(c.Cluster.ARN, fmt.Sprintf("%032x", n))
	c.Tasks[arn] = &inventory.Task{
		ARN: arn, ClusterARN: c.Cluster.ARN, TaskDefinitionARN: defARN, Group: "service:web", LastStatus: inventory.TaskRunning, DesiredStatus: inventory.TaskRunning,
		LaunchType: inventory.LaunchFargate, StartedAt: time.Unix(int64(n), 0),
		Containers: []inventory.Container{{Name: "app", Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})}}},
	}
	c.Members[arn] = "web"
	return arn
}

func anyTask(s *inventory.Snapshot, cluster string) (string, *inventory.ClusterView) {
	c := s.Clusters[clusterNamed(cluster)]
	return c.SortedTasks()[0].ARN, c
}

func edit(c *inventory.ClusterView, arn string, change func(*inventory.Task)) {
	t := *c.Tasks[arn]
	change(&t)
	c.Tasks[arn] = &t
}

func want(s ...*inventory.Snapshot) discovery.Desired {
	var in []discovery.Input
	for _, x := range s {
		in = append(in, discovery.Input{Snapshot: x, Domain: "ecs.local"})
	}
	return discovery.Want(in, discovery.Config{})
}

// compute plans for the given snapshots.
func compute(cur Current, mem Memory, lim Limits, s ...*inventory.Snapshot) (Changes, Memory) {
	return Compute(Input{Desired: want(s...), Current: cur, Snapshots: s, Limits: lim, Memory: mem})
}

// apply returns what exists after the plan.
func apply(cur Current, c Changes) Current {
	drop := map[Key]bool{}
	for _, list := range [][]Change{c.Update, c.Delete} {
		for _, ch := range list {
			drop[ch.Key] = true
		}
	}
	var out Current
	for _, e := range cur.ServiceEntries {
		if !drop[Key{e.Kind, e.Metadata.Namespace, e.Metadata.Name}] {
			out.ServiceEntries = append(out.ServiceEntries, e)
		}
	}
	for _, e := range cur.WorkloadEntries {
		if !drop[Key{e.Kind, e.Metadata.Namespace, e.Metadata.Name}] {
			out.WorkloadEntries = append(out.WorkloadEntries, e)
		}
	}
	for _, list := range [][]Change{c.Create, c.Update} {
		for _, ch := range list {
			if ch.Service != nil {
				out.ServiceEntries = append(out.ServiceEntries, *ch.Service)
			} else {
				out.WorkloadEntries = append(out.WorkloadEntries, *ch.Workload)
			}
		}
	}
	return out
}

// world returns what exists after a first plan for the snapshots.
func world(t *testing.T, s ...*inventory.Snapshot) Current {
	t.Helper()
	c, _ := compute(Current{}, Memory{}, Limits{}, s...)
	return apply(Current{}, c)
}

func counts(c Changes) string {
	return fmt.Sprintf("+%d ~%d -%d !%d =%d", len(c.Create), len(c.Update), len(c.Delete), len(c.Held), len(c.Unchanged))
}

func TestCreateThenNothing(t *testing.T) {
	s := snapshot(3)
	c, _ := compute(Current{}, Memory{}, Limits{}, s)
	if got := counts(c); got != "+4 ~0 -0 !0 =0" {
		t.Fatalf("first plan %s:\n%s", got, c)
	}
	if c.Create[0].Key.Kind != discovery.KindServiceEntry {
		t.Errorf("the first to create is %s, want the ServiceEntry", c.Create[0].Key)
	}
	c, _ = compute(apply(Current{}, c), Memory{}, Limits{}, s)
	if got := counts(c); got != "+0 ~0 -0 !0 =4" || !c.Empty() {
		t.Errorf("second plan %s", got)
	}
}

// Each rule about one object. The world has 3 workloads; one of them, or its service, is then no longer wanted.
func TestRules(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *inventory.Snapshot)
		rule   Rule
		delete bool
	}{
		{"task stopping", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			edit(c, arn, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
		}, RuleToldToStop, true},
		{"health unknown again", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			edit(c, arn, func(x *inventory.Task) { x.Containers = nil })
		}, RuleNotAsked, false},
		{"task described as stopped", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
			s.Gone[arn] = inventory.Terminal
		}, RuleGone, true},
		{"task missing", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
			s.Gone[arn] = inventory.Missing
		}, RuleGone, true},
		{"absent, seen for the first time", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
		}, RuleAbsentOnce, false},
		{"absent from one complete sweep", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
			c.CompleteSweeps, s.CompleteSweeps = 1, 1
		}, RuleAbsentOnce, false},
		{"no complete sweep yet", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
			c.CompleteSweeps, s.CompleteSweeps = 0, 0
		}, RuleNotSwept, false},
		{"cluster incomplete, task gone", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			delete(c.Tasks, arn)
			s.Gone[arn] = inventory.Terminal
			c.Complete, c.Err, s.Complete, s.Err = false, errors.New("throttled"), false, errors.New("throttled")
		}, RuleIncomplete, false},
		{"cluster incomplete, task stopping", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			edit(c, arn, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
			c.Complete, c.Err = false, errors.New("throttled")
		}, RuleIncomplete, false},
		{"service moved to another namespace", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			edit(c, arn, func(x *inventory.Task) { x.Tags = inventory.Tags{"ecs.solo.io/namespace": "shop"} })
		}, RuleMoved, true},
		{"wrong tag", func(s *inventory.Snapshot) {
			arn, c := anyTask(s, "ecs-demo-1")
			edit(c, arn, func(x *inventory.Task) { x.Tags = inventory.Tags{"ecs.solo.io/namespace": "No Name"} })
		}, RuleNotAsked, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cur := world(t, snapshot(3))
			s := snapshot(3)
			tt.change(s)
			c, _ := compute(cur, Memory{}, Limits{}, s)
			list, want := c.Held, "0 deleted, 1 held"
			if tt.delete {
				list, want = c.Delete, "1 deleted, 0 held"
			}
			if got := fmt.Sprintf("%d deleted, %d held", len(c.Delete), len(c.Held)); got != want {
				t.Fatalf("%s, want %s:\n%s", got, want, c)
			}
			if list[0].Rule != tt.rule || list[0].Reason == "" {
				t.Errorf("rule = %s (%s), want %s", list[0].Rule, list[0].Reason, tt.rule)
			}
		})
	}
}

// Absence counts only when a second complete sweep agrees; in between ECS can be asked.
func TestAbsentTwice(t *testing.T) {
	cur := world(t, snapshot(3))
	s := snapshot(3)
	arn, cl := anyTask(s, "ecs-demo-1")
	delete(cl.Tasks, arn)
	c, mem := compute(cur, Memory{}, Limits{}, s)
	if got := c.WantEvidence(); len(c.Delete) != 0 || !cmp.Equal(got, []string{arn}) {
		t.Fatalf("WantEvidence() = %v, want the absent task; plan:\n%s", got, c)
	}
	if c, mem = compute(cur, mem, Limits{}, s); len(c.Delete) != 0 {
		t.Fatalf("deleted after the same sweep:\n%s", c)
	}
	cl.CompleteSweeps++
	if c, _ = compute(cur, mem, Limits{}, s); len(c.Delete) != 1 || c.Delete[0].Rule != RuleAbsent {
		t.Errorf("not deleted after the next sweep:\n%s", c)
	}
}

// Trap 2: nothing goes because of an empty answer; with a word about the thing itself it does.
func TestTrap2Empty(t *testing.T) {
	cur := world(t, snapshot(3))
	c, _ := compute(cur, Memory{}, Limits{}, emptySnapshot())
	if got := counts(c); got != "+0 ~0 -0 !4 =0" || c.Held[0].Rule != RuleEmpty {
		t.Fatalf("plan from an empty snapshot %s:\n%s", got, c)
	}
	want := []string{}
	s := snapshot(3)
	for arn := range s.Clusters[clusterNamed("ecs-demo-1")].Tasks {
		want = append(want, arn)
	}
	want = append(want, s.Clusters[clusterNamed("ecs-demo-1")].Services["web"].ARN)
	if got := c.WantEvidence(); len(got) != len(want) {
		t.Errorf("WantEvidence() = %v, want all four sources", got)
	}
	e := emptySnapshot()
	e.Gone[clusterNamed("ecs-demo-1")] = inventory.ClusterGone
	if c, _ = compute(cur, Memory{}, Limits{}, e); counts(c) != "+0 ~0 -4 !0 =0" {
		t.Errorf("plan after the cluster went: %s\n%s", counts(c), c)
	}
	if c.Delete[0].Key.Kind != discovery.KindWorkloadEntry || c.Delete[3].Key.Kind != discovery.KindServiceEntry {
		t.Error("ServiceEntries must go last")
	}
}

// One cluster that cannot be read protects its own objects only.
func TestIncompleteClusterProtectsItsOwn(t *testing.T) {
	build := func() *inventory.Snapshot {
		s := emptySnapshot()
		addCluster(s, "sick", 3)
		addCluster(s, "well", 3)
		return s
	}
	cur := world(t, build())
	s := build()
	for _, name := range []string{"sick", "well"} {
		arn, c := anyTask(s, name)
		delete(c.Tasks, arn)
		s.Gone[arn] = inventory.Terminal
	}
	sick := s.Clusters[clusterNamed("sick")]
	sick.Complete, sick.Err, s.Complete, s.Err = false, errors.New("denied"), false, errors.New("denied")
	c, _ := compute(cur, Memory{}, Limits{}, s)
	if len(c.Delete) != 1 || len(c.Held) != 1 || c.Delete[0].Key.Namespace != "well" || c.Held[0].Key.Namespace != "sick" {
		t.Errorf("plan:\n%s", c)
	}
}

func TestMassDeletionIsHeld(t *testing.T) {
	stopAll := func(n, of int) *inventory.Snapshot {
		s := snapshot(of)
		c := s.Clusters[clusterNamed("ecs-demo-1")]
		for _, x := range c.SortedTasks()[:n] {
			edit(c, x.ARN, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
		}
		return s
	}
	tests := []struct {
		name    string
		n, of   int
		lim     Limits
		deletes int
		rule    Rule
	}{
		{"few are never a mass", 9, 9, Limits{}, 9, RuleToldToStop},
		{"half is allowed", 10, 20, Limits{}, 10, RuleToldToStop},
		{"more than half is not", 11, 20, Limits{}, 0, RuleMass},
		{"all of ten", 10, 10, Limits{}, 0, RuleMass},
		{"smaller share configured", 10, 40, Limits{MaxDeleteShare: 0.1}, 0, RuleMass},
		{"smaller count configured", 3, 4, Limits{MinDeleteCount: 2}, 0, RuleMass},
		{"confirmed", 20, 20, Limits{Confirmed: map[string]bool{account: true}}, 20, RuleMassConfirmed},
		{"another account confirmed", 20, 20, Limits{Confirmed: map[string]bool{"999999999999": true}}, 0, RuleMass},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, mem := compute(world(t, snapshot(tt.of)), Memory{}, tt.lim, stopAll(tt.n, tt.of))
			if len(c.Delete) != tt.deletes || len(c.Delete)+len(c.Held) != tt.n || len(mem.Held) != tt.n-tt.deletes {
				t.Fatalf("%d deleted, %d held, %d remembered; want %d deleted of %d", len(c.Delete), len(c.Held), len(mem.Held), tt.deletes, tt.n)
			}
			if all := append(c.Delete, c.Held...); all[0].Rule != tt.rule {
				t.Errorf("rule = %s, want %s", all[0].Rule, tt.rule)
			}
		})
	}
}

// A mass deletion that ECS goes on asking for is done after three more complete sweeps; one for which there is only
// absence never is; and one that ends in between starts anew.
func TestMassDeletionPersists(t *testing.T) {
	cur := world(t, snapshot(20))
	gone := func(sweep uint64, why inventory.Evidence) *inventory.Snapshot {
		s := snapshot(20)
		c := s.Clusters[clusterNamed("ecs-demo-1")]
		for arn := range c.Tasks {
			delete(c.Tasks, arn)
			if why != inventory.NoEvidence {
				s.Gone[arn] = why
			}
		}
		s.CompleteSweeps, c.CompleteSweeps = sweep, sweep
		return s
	}
	var mem Memory
	for sweep := uint64(10); sweep <= 12; sweep++ {
		var c Changes
		c, mem = compute(cur, mem, Limits{}, gone(sweep, inventory.Terminal))
		if len(c.Held) != 20 || len(c.Delete) != 0 {
			t.Fatalf("sweep %d: %s", sweep, counts(c))
		}
		c, mem = compute(cur, mem, Limits{}, gone(sweep, inventory.Terminal)) // planning twice in a sweep is no progress
		if len(c.Held) != 20 {
			t.Fatalf("sweep %d, planned again: %s", sweep, counts(c))
		}
	}
	if c, _ := compute(cur, mem, Limits{}, gone(13, inventory.Terminal)); len(c.Delete) != 20 || c.Delete[0].Rule != RuleMassPersisted {
		t.Errorf("after three more sweeps: %s", counts(c))
	}
	if _, m := compute(cur, mem, Limits{}, snapshot(20)); len(m.Held) != 0 {
		t.Errorf("%d remembered after the tasks came back, want 0", len(m.Held))
	}
	mem = Memory{}
	for sweep := uint64(10); sweep < 40; sweep++ {
		var c Changes
		if c, mem = compute(cur, mem, Limits{}, gone(sweep, inventory.NoEvidence)); len(c.Delete) != 0 {
			t.Fatalf("sweep %d: a mass was deleted for mere absence", sweep)
		}
	}
}

func TestForeignObjectsAreLeftAlone(t *testing.T) {
	s := snapshot(1)
	cur := world(t, s)
	byHand := cur.WorkloadEntries[0]
	byHand.Metadata.Name = "by-hand"
	byHand.Metadata.Labels = map[string]string{"app": "mine"}
	elsewhere := cur.WorkloadEntries[0]
	elsewhere.Metadata.Name = "ecs-task-of-another-region"
	elsewhere.Metadata.Annotations = map[string]string{discovery.AnnotationSource: "arn:aws:ecs:eu-west-1:123456789012:task/x/00000000000000000000000000000001"}
	nameless := cur.WorkloadEntries[0]
	nameless.Metadata.Name, nameless.Metadata.Annotations = "no-source", nil
	cur.WorkloadEntries = append(cur.WorkloadEntries, byHand, elsewhere, nameless)
	c, _ := compute(cur, Memory{}, Limits{}, s)
	if !c.Empty() || len(c.Held) != 0 || c.Foreign != 3 {
		t.Errorf("foreign = %d, want 3; plan:\n%s", c.Foreign, c)
	}
}

func TestNameTakenByAnother(t *testing.T) {
	s := snapshot(1)
	cur := world(t, s)
	cur.ServiceEntries[0].Metadata.Labels = map[string]string{"owner": "somebody"}
	cur.ServiceEntries[0].Spec.Hosts = []string{"other.example"}
	c, _ := compute(cur, Memory{}, Limits{}, s)
	if !c.Empty() || len(c.Held) != 1 || c.Held[0].Rule != RuleForeign {
		t.Errorf("plan:\n%s", c)
	}
}

// A ServiceEntry is patched and never made anew: its VIP hangs on it.
func TestServiceEntryIsPatched(t *testing.T) {
	s := snapshot(1)
	cur := world(t, s)
	s2 := snapshot(1)
	def := *s2.Definitions[defARN]
	def.Containers = []inventory.ContainerDefinition{{Name: "app", PortMappings: []inventory.PortMapping{{ContainerPort: 9090, Protocol: "tcp", AppProtocol: "http"}}}}
	s2.Definitions[defARN] = &def
	c, _ := compute(cur, Memory{}, Limits{}, s2)
	if counts(c) != "+0 ~1 -0 !0 =1" {
		t.Fatalf("plan:\n%s", c)
	}
	want := []FieldDiff{{"spec.ports", "tcp-8080:8080/TCP", "http-9090:9090/HTTP"}}
	if diff := cmp.Diff(want, c.Update[0].Fields); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
}

func TestOthersLabelsDoNotCountOursDo(t *testing.T) {
	s := snapshot(1)
	cur := world(t, s)
	m := &cur.WorkloadEntries[0].Metadata
	m.Labels["team"], m.Annotations["note"], m.ResourceVersion, m.UID = "shop", "x", "42", "u"
	if c, _ := compute(cur, Memory{}, Limits{}, s); !c.Empty() {
		t.Errorf("plan:\n%s", c)
	}
	m.Annotations[discovery.AnnotationHBONE] = discovery.AnnotationHBONEValue // the proxy is gone; HBONE must go too
	c, _ := compute(cur, Memory{}, Limits{}, s)
	want := []FieldDiff{{"annotations.ambient.istio.io/redirection", "enabled", ""}}
	if len(c.Update) != 1 || !cmp.Equal(c.Update[0].Fields, want) {
		t.Errorf("plan:\n%s", c)
	}
}

func TestSharedHostNeedsAllSourcesGone(t *testing.T) {
	build := func() *inventory.Snapshot {
		s := emptySnapshot()
		for _, name := range []string{"east", "west"} {
			c := addCluster(s, name, 1)
			c.Services["web"].Tags = inventory.Tags{"ecs.solo.io/hostname": "shop.example", "ecs.solo.io/namespace": "shop"}
		}
		return s
	}
	cur := world(t, build())
	s := build()
	for _, name := range []string{"east", "west"} {
		c := s.Clusters[clusterNamed(name)]
		if name == "east" {
			s.Gone[c.Services["web"].ARN] = inventory.Terminal
		} else {
			c.Complete, c.Err = false, errors.New("throttled")
		}
		delete(c.Services, "web")
	}
	c, _ := compute(cur, Memory{}, Limits{}, s)
	for _, d := range c.Delete {
		if d.Service != nil {
			t.Errorf("the shared entry goes although one service may be there: %s", d.Reason)
		}
	}
}

// A wanted set that says nothing about a source that exists is a mistake, not evidence.
func TestExistingSourceIsNotAbsent(t *testing.T) {
	s := snapshot(2)
	cur := world(t, s)
	c, _ := Compute(Input{Current: cur, Snapshots: []*inventory.Snapshot{s}})
	if !c.Empty() || len(c.Held) != 3 || c.Held[0].Rule != RuleNotAsked {
		t.Errorf("plan:\n%s", c)
	}
}

func TestRender(t *testing.T) {
	old := snapshot(2)
	cur := world(t, old)
	s := snapshot(3)
	arn, c := anyTask(s, "ecs-demo-1")
	edit(c, arn, func(x *inventory.Task) { x.DesiredStatus, x.StoppedReason = inventory.TaskStopped, "Scaling activity" })
	edit(c, c.SortedTasks()[1].ARN, func(x *inventory.Task) { x.AvailabilityZone = "us-east-2c" })
	ch, _ := compute(cur, Memory{}, Limits{}, s)
	want := `+ WorkloadEntry ecs-demo-1/ecs-task-123456789012-us-east-2-ecs-demo-1-00000000000000000000000000000003  10.0.0.3 sa=echo
~ WorkloadEntry ecs-demo-1/ecs-task-123456789012-us-east-2-ecs-demo-1-00000000000000000000000000000002  10.0.0.2 sa=echo
    spec.locality: us-east-2 -> us-east-2/us-east-2c
- WorkloadEntry ecs-demo-1/ecs-task-123456789012-us-east-2-ecs-demo-1-00000000000000000000000000000001
    told-to-stop: ecs is stopping the task (RUNNING, wanted STOPPED): Scaling activity
plan: 1 to create, 1 to update, 1 to delete, 0 held, 1 unchanged
`
	if diff := cmp.Diff(want, ch.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
