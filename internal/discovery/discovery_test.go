package discovery

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

const (
	account = "123456789012"
	region  = "us-east-2"
)

// fixture is a snapshot under construction.
type fixture struct {
	snap *inventory.Snapshot
	next int
}

func newFixture() *fixture {
	return &fixture{snap: &inventory.Snapshot{
		Account: account, Region: region, Partition: "aws", Complete: true, CompleteSweeps: 5,
		Clusters: map[string]*inventory.ClusterView{}, Definitions: map[string]*inventory.TaskDefinition{},
	}}
}

func (f *fixture) cluster(name string) *inventory.ClusterView {
	arn := "arn:aws:ecs:" + f.snap.Region + ":" + f.snap.Account + ":cluster/" + name
	c := &inventory.ClusterView{
		Cluster:  &inventory.Cluster{ARN: arn, Name: name, Status: inventory.StatusActive},
		Services: map[string]*inventory.Service{}, Tasks: map[string]*inventory.Task{}, Members: map[string]string{}, Complete: true, CompleteSweeps: 5,
	}
	f.snap.Clusters[arn] = c
	return c
}

// definition adds a revision with an app container on 8080 and, if proxied, our proxy; change may alter it.
func (f *fixture) definition(family string, proxied bool, change func(*inventory.TaskDefinition)) string {
	f.next++
	d := &inventory.TaskDefinition{
		Family: family, Revision: f.next, NetworkMode: inventory.NetworkAWSVPC, Tags: inventory.Tags{"ecs.solo.io/service-account": "ecs-demo-sa-local"},
		Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}},
	}
	d.ARN = fmt.Sprintf("arn:aws:ecs:%s:%s:task-definition/%s:%d", region, account, family, d.Revision)
	if proxied {
		d.Containers = append(d.Containers, inventory.ContainerDefinition{
			Name: "ztunnel", HasHealthCheck: true, PortMappings: []inventory.PortMapping{{ContainerPort: 15008, Protocol: "tcp"}}})
	}
	if change != nil {
		change(d)
	}
	f.snap.Definitions[d.ARN] = d
	return d.ARN
}

func (f *fixture) service(c *inventory.ClusterView, name, def string) *inventory.Service {
	f.next++
	s := &inventory.Service{ARN: strings.Replace(c.Cluster.ARN, "cluster/", "service/", 1) + "/" + name, Name: name, ClusterARN: c.Cluster.ARN,
		Status: inventory.StatusActive, TaskDefinition: def, CreatedAt: time.Unix(int64(1000+f.next), 0)}
	c.Services[name] = s
	return s
}

func (f *fixture) task(c *inventory.ClusterView, service, def string, change func(*inventory.Task)) *inventory.Task {
	f.next++
	addr := netip.AddrFrom4([4]byte{10, 0, 128, byte(f.next)})
	t := &inventory.Task{
		ARN: inventory.TaskARN(c.Cluster.ARN, fmt.Sprintf("%032x", f.next)), ClusterARN: c.Cluster.ARN, TaskDefinitionARN: def,
		LastStatus: inventory.TaskRunning, DesiredStatus: inventory.TaskRunning, HealthStatus: inventory.Unknown, LaunchType: inventory.LaunchFargate,
		AvailabilityZone: region + "b", StartedAt: time.Unix(int64(f.next), 0),
	}
	for _, cd := range f.snap.Definitions[def].Containers {
		h := inventory.Unknown
		if cd.HasHealthCheck {
			h = inventory.Healthy
		}
		t.Containers = append(t.Containers, inventory.Container{Name: cd.Name, LastStatus: "RUNNING", HealthStatus: h, Addrs: []netip.Addr{addr}})
	}
	if service != "" {
		t.Group = "service:" + service
		c.Members[t.ARN] = service
	}
	if change != nil {
		change(t)
	}
	c.Tasks[t.ARN] = t
	return t
}

func (f *fixture) want() Desired {
	return Want([]Input{{Snapshot: f.snap, Domain: "ecs.local"}}, Config{})
}

func codes(d Desired) []diag.Code {
	var out []diag.Code
	for _, p := range d.Problems {
		out = append(out, p.Code)
	}
	return out
}

func TestGuideObjects(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo-service-definition", true, nil)
	f.service(c, "echo-service", def)
	task := f.task(c, "echo-service", def, nil)
	d := f.want()
	got, err := json.MarshalIndent(struct {
		S []ServiceEntry
		W []WorkloadEntry
	}{d.ServiceEntries, d.WorkloadEntries}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
 "S": [
  {
   "apiVersion": "networking.istio.io/v1",
   "kind": "ServiceEntry",
   "metadata": {
    "name": "ecs-service-123456789012-us-east-2-ecs-demo-1-echo-service",
    "namespace": "ecs-demo-1",
    "labels": {
     "app.kubernetes.io/managed-by": "isthmus-controller",
     "ecs.solo.io/cluster": "ecs-demo-1",
     "ecs.solo.io/service": "echo-service",
     "isthmus.dev/account": "123456789012",
     "isthmus.dev/region": "us-east-2"
    },
    "annotations": {
     "isthmus.dev/ecs-clusters": "arn:aws:ecs:us-east-2:123456789012:cluster/ecs-demo-1",
     "isthmus.dev/source": "arn:aws:ecs:us-east-2:123456789012:service/ecs-demo-1/echo-service"
    }
   },
   "spec": {
    "hosts": [
     "echo-service.ecs-demo-1.ecs.local"
    ],
    "location": "MESH_INTERNAL",
    "resolution": "STATIC",
    "ports": [
     {
      "number": 8080,
      "name": "tcp-8080",
      "protocol": "TCP"
     }
    ],
    "workloadSelector": {
     "labels": {
      "ecs.solo.io/cluster": "ecs-demo-1",
      "ecs.solo.io/service": "echo-service",
      "isthmus.dev/account": "123456789012",
      "isthmus.dev/region": "us-east-2"
     }
    }
   }
  }
 ],
 "W": [
  {
   "apiVersion": "networking.istio.io/v1",
   "kind": "WorkloadEntry",
   "metadata": {
    "name": "ecs-task-123456789012-us-east-2-ecs-demo-1-00000000000000000000000000000003",
    "namespace": "ecs-demo-1",
    "labels": {
     "app": "echo-service",
     "app.kubernetes.io/managed-by": "isthmus-controller",
     "ecs.solo.io/cluster": "ecs-demo-1",
     "ecs.solo.io/service": "echo-service",
     "isthmus.dev/account": "123456789012",
     "isthmus.dev/region": "us-east-2",
     "service.istio.io/canonical-name": "echo-service",
     "service.istio.io/canonical-revision": "1"
    },
    "annotations": {
     "ambient.istio.io/redirection": "enabled",
     "isthmus.dev/ecs-clusters": "arn:aws:ecs:us-east-2:123456789012:cluster/ecs-demo-1",
     "isthmus.dev/source": "` + task.ARN + `",
     "isthmus.dev/task-definition": "` + def + `"
    }
   },
   "spec": {
    "address": "10.0.128.3",
    "locality": "us-east-2/us-east-2b",
    "serviceAccount": "ecs-demo-sa-local"
   }
  }
 ]
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("Want (-want +got):\n%s", diff)
	}
	if len(d.Problems) != 0 {
		t.Errorf("problems = %v, want none", d.Problems)
	}
}

// The life cycle of a task, with traps 4 and 5.
// ECS calls a task UNKNOWN as soon as one essential container has no health check: containers are judged one by one, and
// only those that are checked.
func TestTrap5ContainersWithoutHealthCheckDoNotCount(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, nil)
	f.service(c, "echo-service", def)
	f.task(c, "echo-service", def, func(x *inventory.Task) {
		x.HealthStatus, x.Containers[0].HealthStatus = inventory.Unknown, inventory.Unknown
	})
	f.task(c, "echo-service", def, func(x *inventory.Task) {
		x.HealthStatus, x.Containers[1].HealthStatus = inventory.Unknown, inventory.Unknown // this one is checked
	})
	if d := f.want(); len(d.WorkloadEntries) != 1 || d.WorkloadEntries[0].Metadata.Annotations[AnnotationHBONE] != AnnotationHBONEValue {
		t.Errorf("workloads = %+v, want that of the first task, with HBONE", d.WorkloadEntries)
	}
}

func TestServing(t *testing.T) {
	tests := []struct {
		name   string
		change func(*inventory.Task)
		serves bool
		drop   bool
	}{
		{"running and healthy", func(*inventory.Task) {}, true, false},
		{"trap 5: task UNKNOWN because the app has no health check", func(x *inventory.Task) { x.HealthStatus = inventory.Unknown }, true, false},
		{"pending", func(x *inventory.Task) { x.LastStatus = inventory.TaskPending }, false, false},
		{"activating", func(x *inventory.Task) { x.LastStatus = inventory.TaskActivating }, false, false},
		{"trap 4: desired STOPPED, still RUNNING", func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped }, false, true},
		{"deactivating", func(x *inventory.Task) { x.LastStatus = inventory.TaskDeactivating }, false, true},
		{"stopping", func(x *inventory.Task) { x.LastStatus = inventory.TaskStopping }, false, true},
		{"deprovisioning", func(x *inventory.Task) { x.LastStatus = inventory.TaskDeprovisioning }, false, true},
		{"proxy unhealthy", func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Unhealthy }, false, true},
		{"proxy not healthy yet", func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Unknown }, false, false},
		{"proxy container not there", func(x *inventory.Task) { x.Containers = x.Containers[:1] }, false, false},
		{"no address", func(x *inventory.Task) { x.Containers[0].Addrs, x.Containers[1].Addrs = nil, nil }, false, false},
		{"interface leaving", func(x *inventory.Task) {
			x.Attachments = []inventory.Attachment{{Type: "eni", Status: "DETACHING"}}
		}, false, true},
		{"external", func(x *inventory.Task) { x.LaunchType = inventory.LaunchExternal }, false, true},
		{"unconfirmed member", func(x *inventory.Task) { x.Group = "service:other" }, false, false},
		{"definition unknown", func(x *inventory.Task) { x.TaskDefinitionARN = "unknown" }, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			c := f.cluster("ecs-demo-1")
			def := f.definition("echo", true, nil)
			f.service(c, "echo-service", def)
			task := f.task(c, "echo-service", def, tt.change)
			if task.ServiceName() == "other" {
				delete(c.Members, task.ARN)
			}
			d := f.want()
			if got := len(d.WorkloadEntries) == 1; got != tt.serves {
				t.Errorf("serves = %v, want %v (%v)", got, tt.serves, d.Skipped)
			}
			if skip, ok := d.Skipped[task.ARN]; ok == tt.serves || skip.Drop != tt.drop {
				t.Errorf("skipped = %+v, %v; want drop %v", skip, ok, tt.drop)
			}
			if len(d.ServiceEntries) != 1 {
				t.Errorf("%d ServiceEntries, want 1 whatever its tasks do", len(d.ServiceEntries))
			}
		})
	}
}

func TestDrainingServiceKeepsItsEntry(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, nil)
	s := f.service(c, "echo-service", def)
	task := f.task(c, "echo-service", def, nil)
	s.Status = inventory.StatusDraining
	d := f.want()
	if len(d.WorkloadEntries) != 0 || !d.Skipped[task.ARN].Drop || len(d.ServiceEntries) != 1 {
		t.Errorf("draining: %d workloads, %d services", len(d.WorkloadEntries), len(d.ServiceEntries))
	}
}

// HBONE is advertised only for a proxy that is there and HEALTHY.
func TestHBONE(t *testing.T) {
	tests := []struct {
		name    string
		proxied bool
		change  func(*inventory.TaskDefinition)
		want    bool
	}{
		{"no proxy", false, nil, false},
		{"proxy", true, nil, true},
		{"proxy of another name with the label", true, func(d *inventory.TaskDefinition) {
			d.Containers[1].Name, d.Containers[1].DockerLabels = "mesh", map[string]string{"isthmus.dev/proxy": "true"}
		}, true},
		{"proxy without a health check", true, func(d *inventory.TaskDefinition) { d.Containers[1].HasHealthCheck = false }, false},
		{"proxy without a service account", true, func(d *inventory.TaskDefinition) { d.Tags = nil }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			c := f.cluster("ecs-demo-1")
			def := f.definition("echo", tt.proxied, tt.change)
			f.service(c, "echo-service", def)
			f.task(c, "echo-service", def, nil)
			d := f.want()
			if len(d.WorkloadEntries) != 1 {
				t.Fatalf("%d WorkloadEntries, want 1: %v", len(d.WorkloadEntries), d.Skipped)
			}
			if got := d.WorkloadEntries[0].Metadata.Annotations[AnnotationHBONE] == "enabled"; got != tt.want {
				t.Errorf("HBONE = %v, want %v", got, tt.want)
			}
			for _, p := range d.ServiceEntries[0].Spec.Ports {
				if p.Number == 15008 {
					t.Error("the proxy's own port became a service port")
				}
			}
		})
	}
}

func TestPorts(t *testing.T) {
	mapping := func(ms ...inventory.PortMapping) func(*inventory.TaskDefinition) {
		return func(d *inventory.TaskDefinition) { d.Containers[0].PortMappings = ms }
	}
	tag := func(s string) func(*inventory.TaskDefinition) {
		return func(d *inventory.TaskDefinition) { d.Tags["ecs.solo.io/ports"] = s }
	}
	tests := []struct {
		name   string
		change func(*inventory.TaskDefinition)
		want   []Port
		codes  []diag.Code
	}{
		{"none", mapping(), nil, []diag.Code{diag.ServiceWithoutPorts}},
		{"udp only", mapping(inventory.PortMapping{ContainerPort: 53, Protocol: "udp"}), nil, []diag.Code{diag.ServiceWithoutPorts}},
		{"names and protocols", mapping(
			inventory.PortMapping{Name: "web", ContainerPort: 80, Protocol: "tcp", AppProtocol: "http"},
			inventory.PortMapping{Name: "grpc-api", ContainerPort: 9000, Protocol: "tcp", AppProtocol: "grpc"},
			inventory.PortMapping{ContainerPort: 70, Protocol: "tcp", AppProtocol: "http2"},
			inventory.PortMapping{Name: "My_Port", ContainerPort: 60, Protocol: "tcp"},
		), []Port{{Number: 60, Name: "tcp-my-port", Protocol: "TCP"}, {Number: 70, Name: "http2-70", Protocol: "HTTP2"}, {Number: 80, Name: "http-web", Protocol: "HTTP"}, {Number: 9000, Name: "grpc-api", Protocol: "GRPC"}}, nil},
		{"hbone port of the app is not one", mapping(inventory.PortMapping{ContainerPort: 15008, Protocol: "tcp"}, inventory.PortMapping{ContainerPort: 1, Protocol: "tcp"}), []Port{{Number: 1, Name: "tcp-1", Protocol: "TCP"}}, nil},
		{"tag", tag("80:8080/http 9090 443:443/https"), []Port{{Number: 80, TargetPort: 8080, Name: "http-80", Protocol: "HTTP"}, {Number: 443, Name: "https-443", Protocol: "HTTPS"}, {Number: 9090, Name: "tcp-9090", Protocol: "TCP"}}, nil},
		{"wrong tag", tag("eighty"), []Port{{Number: 8080, Name: "tcp-8080", Protocol: "TCP"}}, []diag.Code{diag.TagInvalid}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			c := f.cluster("ecs-demo-1")
			def := f.definition("echo", true, tt.change)
			f.service(c, "echo-service", def)
			d := f.want()
			var got []Port
			if len(d.ServiceEntries) == 1 {
				got = d.ServiceEntries[0].Spec.Ports
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ports (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.codes, codes(d)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParsePortsRefuses(t *testing.T) {
	for _, s := range []string{"", " ", "0", "65536", "-1", "80:", "80:0", "80/smtp", "80 80", "80:x", "http"} {
		if got, err := parsePorts(s); err == nil {
			t.Errorf("parsePorts(%q) = %v, want an error", s, got)
		}
	}
}
