package discovery

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// TestMain draws more cases than rapid does by itself, unless -rapid.checks says how many: 3,000 have found what 100 did
// not.
func TestMain(m *testing.M) {
	if f := flag.Lookup("rapid.checks"); f != nil {
		_ = f.Value.Set("3000") // a number always is one
	}
	os.Exit(m.Run())
}

// evolve returns the next snapshot of an account: what is not drawn to change is shared with the one before, as a
// reflector does. Few clusters, services, hosts and addresses make the cross-cluster rules meet often.
func evolve(t *rapid.T, s *inventory.Snapshot) *inventory.Snapshot {
	next := *s
	next.Version++
	next.Clusters, next.Definitions = maps.Clone(s.Clusters), maps.Clone(s.Definitions)
	for range rapid.IntRange(1, 4).Draw(t, "steps") {
		name := rapid.SampledFrom([]string{"a", "a-b", "c"}).Draw(t, "cluster")
		arn := "arn:aws:ecs:" + s.Region + ":" + s.Account + ":cluster/" + name
		def := fmt.Sprintf("arn:aws:ecs:%s:%s:task-definition/f:%d", s.Region, s.Account, rapid.IntRange(1, 3).Draw(t, "revision"))
		if rapid.IntRange(0, 3).Draw(t, "definition") == 0 {
			next.Definitions[def] = drawDefinition(t, def)
		}
		old := next.Clusters[arn]
		c := &inventory.ClusterView{Cluster: &inventory.Cluster{ARN: arn, Name: name}, Services: map[string]*inventory.Service{}, Tasks: map[string]*inventory.Task{}, Members: map[string]string{}}
		if old != nil {
			c = &inventory.ClusterView{Cluster: old.Cluster, Services: old.Services, Tasks: old.Tasks, Members: old.Members, History: old.History}
		}
		next.History = next.History.Next(arn)
		next.Clusters[arn] = c
		service := rapid.SampledFrom([]string{"c", "b-c", "web"}).Draw(t, "service")
		task := inventory.TaskARN(arn, fmt.Sprintf("%032x", rapid.IntRange(1, 4).Draw(t, "task")))
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0:
			delete(next.Clusters, arn)
		case 1:
			delete(next.Definitions, def)
		case 2:
			c.Services = maps.Clone(c.Services)
			delete(c.Services, service)
		case 3:
			c.Tasks, c.Members = maps.Clone(c.Tasks), maps.Clone(c.Members)
			delete(c.Tasks, task)
			delete(c.Members, task)
		case 4:
			c.Members = maps.Clone(c.Members)
			c.Members[task] = service
		case 5, 6:
			c.Services = maps.Clone(c.Services)
			c.Services[service] = drawService(t, arn, service, def)
		default:
			c.Tasks = maps.Clone(c.Tasks)
			c.Tasks[task] = drawTask(t, arn, task, def)
			if rapid.Bool().Draw(t, "member") {
				c.Members = maps.Clone(c.Members)
				c.Members[task] = service
			}
		}
		c.History = c.History.Next(task, strings.Replace(arn, ":cluster/", ":service/", 1)+"/"+service)
	}
	return &next
}

func drawTags(t *rapid.T) inventory.Tags {
	tags := inventory.Tags{"ecs.solo.io/service-account": "sa"}
	if rapid.IntRange(0, 3).Draw(t, "hostname") == 0 {
		tags["ecs.solo.io/hostname"] = rapid.SampledFrom([]string{"shop.example", "c.a.ecs.local", "not a host"}).Draw(t, "host")
	}
	if rapid.IntRange(0, 2).Draw(t, "tagged") == 0 {
		tags["ecs.solo.io/namespace"] = rapid.SampledFrom([]string{"one", "two", "kube-system"}).Draw(t, "namespace")
	}
	return tags
}

func drawDefinition(t *rapid.T, arn string) *inventory.TaskDefinition {
	d := &inventory.TaskDefinition{ARN: arn, Family: "f", Revision: 1, NetworkMode: inventory.NetworkAWSVPC, Tags: drawTags(t)}
	app := inventory.ContainerDefinition{Name: "app"}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		app.PortMappings = append(app.PortMappings, inventory.PortMapping{ContainerPort: uint16(rapid.IntRange(80, 82).Draw(t, "port")), Protocol: "tcp"})
	}
	d.Containers = []inventory.ContainerDefinition{app, {Name: "ztunnel", HasHealthCheck: true}}
	return d
}

func drawService(t *rapid.T, cluster, name, def string) *inventory.Service {
	return &inventory.Service{
		ARN: strings.Replace(cluster, ":cluster/", ":service/", 1) + "/" + name, Name: name, ClusterARN: cluster, TaskDefinition: def, Tags: drawTags(t),
		Status:    rapid.SampledFrom([]string{inventory.StatusActive, inventory.StatusActive, inventory.StatusDraining}).Draw(t, "status"),
		CreatedAt: time.Unix(int64(rapid.IntRange(1, 3).Draw(t, "created")), 0),
	}
}

func drawTask(t *rapid.T, cluster, arn, def string) *inventory.Task {
	addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 4).Draw(t, "addr"))})
	return &inventory.Task{
		ARN: arn, ClusterARN: cluster, TaskDefinitionARN: def, DesiredStatus: inventory.TaskRunning,
		LastStatus: rapid.SampledFrom([]string{inventory.TaskRunning, inventory.TaskRunning, inventory.TaskPending, inventory.TaskStopping}).Draw(t, "last"),
		StartedAt:  time.Unix(int64(rapid.IntRange(1, 4).Draw(t, "started")), 0),
		Containers: []inventory.Container{{Name: "app", Addrs: []netip.Addr{addr}}, {Name: "ztunnel", HealthStatus: rapid.SampledFrom([]string{"HEALTHY", "HEALTHY", "UNHEALTHY"}).Draw(t, "health")}},
	}
}

// An engine that saw every step wants what an engine wants that sees only the end, and its deltas add up to it.
func TestPropertyIncrementalEqualsFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := NewEngine(Config{})
		services, workloads := map[Name]*ServiceEntry{}, map[Name]*WorkloadEntry{}
		snaps := []*inventory.Snapshot{{Account: "111111111111", Region: "us-east-2"}, {Account: "222222222222", Region: "us-east-2"}}
		for i := range snaps {
			snaps[i].Clusters, snaps[i].Definitions = map[string]*inventory.ClusterView{}, map[string]*inventory.TaskDefinition{}
		}
		domain := "ecs.local"
		for range rapid.IntRange(1, 12).Draw(t, "rounds") {
			i := rapid.IntRange(0, 1).Draw(t, "account")
			snaps[i] = evolve(t, snaps[i])
			if rapid.IntRange(0, 9).Draw(t, "reconfigured") == 0 {
				domain = rapid.SampledFrom([]string{"ecs.local", "example"}).Draw(t, "domain")
			}
			in := []Input{{Snapshot: snaps[0], Domain: domain}, {Snapshot: snaps[1], Domain: domain}}
			if rapid.IntRange(0, 7).Draw(t, "removed") == 0 {
				in = in[:1]
			}
			delta := e.Update(in)
			for n, o := range delta.Services {
				if services[n] = o; o == nil {
					delete(services, n)
				}
			}
			for n, o := range delta.Workloads {
				if workloads[n] = o; o == nil {
					delete(workloads, n)
				}
			}
			got, want := e.Desired(), Want(in, Config{})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("incremental differs from full (-full +incremental):\n%s", diff)
			}
			if len(services) != len(want.ServiceEntries) || len(workloads) != len(want.WorkloadEntries) {
				t.Fatalf("deltas add up to %d services and %d workloads, want %d and %d", len(services), len(workloads), len(want.ServiceEntries), len(want.WorkloadEntries))
			}
			for j := range want.ServiceEntries {
				if diff := cmp.Diff(&want.ServiceEntries[j], services[nameOf(&want.ServiceEntries[j].Metadata)]); diff != "" {
					t.Fatalf("delta of a service (-want +told):\n%s", diff)
				}
			}
			for j := range want.WorkloadEntries {
				if diff := cmp.Diff(&want.WorkloadEntries[j], workloads[nameOf(&want.WorkloadEntries[j].Metadata)]); diff != "" {
					t.Fatalf("delta of a workload (-want +told):\n%s", diff)
				}
			}
		}
	})
}

// An update without a change, or with one, touches nothing else.
func TestUpdateTellsOnlyWhatChanged(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, nil)
	f.service(c, "echo", def)
	first := f.task(c, "echo", def, nil)
	f.task(c, "echo", def, nil)
	e := NewEngine(Config{})
	in := func(s *inventory.Snapshot) []Input { return []Input{{Snapshot: s, Domain: "ecs.local"}} }
	if d := e.Update(in(f.snap)); len(d.Services) != 1 || len(d.Workloads) != 2 {
		t.Fatalf("first update told %d services and %d workloads, want 1 and 2", len(d.Services), len(d.Workloads))
	}
	next := *f.snap
	if d := e.Update(in(&next)); len(d.Services)+len(d.Workloads) != 0 {
		t.Errorf("nothing changed, and yet %v was told", d)
	}
	view := *c
	view.Tasks = maps.Clone(c.Tasks)
	stopping := *first
	stopping.DesiredStatus = inventory.TaskStopped
	view.Tasks[first.ARN] = &stopping
	third := next
	third.Clusters = map[string]*inventory.ClusterView{c.Cluster.ARN: &view}
	d := e.Update(in(&third))
	if len(d.Services) != 0 || len(d.Workloads) != 1 {
		t.Fatalf("one task changed, and %v was told", d)
	}
	for n, w := range d.Workloads {
		if w != nil {
			t.Errorf("%v is still wanted", n)
		}
	}
	if s, ok := e.Skipped(first.ARN); !ok || !s.Drop {
		t.Errorf("Skipped = %+v, %v; want a drop", s, ok)
	}
}

// A task whose membership alone changed is looked at again when a history says where to look.
func TestUpdateFollowsHistory(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, nil)
	f.service(c, "echo", def)
	task := f.task(c, "echo", def, nil)
	members := c.Members
	c.Members, c.History, f.snap.History = nil, c.History.Next(), f.snap.History.Next()
	e := NewEngine(Config{})
	in := func(s *inventory.Snapshot) []Input { return []Input{{Snapshot: s, Domain: "ecs.local"}} }
	before := e.Update(in(f.snap))
	view, next := *c, *f.snap
	view.Members, view.History = members, c.History.Next(task.ARN)
	next.Clusters, next.History = map[string]*inventory.ClusterView{c.Cluster.ARN: &view}, f.snap.History.Next(c.Cluster.ARN)
	if d := e.Update(in(&next)); len(before.Workloads) != 0 || len(d.Workloads) != 1 {
		t.Errorf("%d workloads without a service, and %d when the task became its member; want 0 and 1", len(before.Workloads), len(d.Workloads))
	}
}
