package discovery

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Trap 8: one role and one service account in two clusters; what tells them apart is the namespace of the cluster.
func TestTrap8TwoClustersOneServiceAccount(t *testing.T) {
	f := newFixture()
	def := f.definition("echo", true, nil)
	got := map[string]string{}
	for _, name := range []string{"ecs-demo-1", "ecs-demo-2"} {
		c := f.cluster(name)
		f.service(c, "echo-service", def)
		f.task(c, "echo-service", def, nil)
	}
	d := f.want()
	for _, w := range d.WorkloadEntries {
		got[w.Metadata.Labels[LabelCluster]] = w.Metadata.Namespace + "/" + w.Spec.ServiceAccount
	}
	want := map[string]string{"ecs-demo-1": "ecs-demo-1/ecs-demo-sa-local", "ecs-demo-2": "ecs-demo-2/ecs-demo-sa-local"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(d.ServiceEntries) != 2 || len(d.Problems) != 0 {
		t.Errorf("%d ServiceEntries, problems %v", len(d.ServiceEntries), d.Problems)
	}
}

func TestNamespaces(t *testing.T) {
	tests := []struct {
		name    string
		tag     string
		in      Input
		want    string
		problem bool
	}{
		{"cluster's name", "", Input{}, "my-cluster", false},
		{"configured", "", Input{Namespaces: map[string]string{"My_Cluster": "shop"}}, "shop", false},
		{"tag", "web", Input{}, "web", false},
		{"tag not allowed", "web", Input{AllowedNamespaces: []string{"shop", "ecs-*"}}, "", true},
		{"tag allowed by pattern", "ecs-1", Input{AllowedNamespaces: []string{"shop", "ecs-*"}}, "ecs-1", false},
		{"reserved", "istio-system", Input{}, "", true},
		{"not a name", "No Name", Input{}, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			c := f.cluster("My_Cluster")
			def := f.definition("echo", false, func(d *inventory.TaskDefinition) {
				if tt.tag != "" {
					d.Tags["ecs.solo.io/namespace"] = tt.tag
				}
			})
			f.service(c, "echo-service", def)
			task := f.task(c, "echo-service", def, nil)
			tt.in.Snapshot, tt.in.Domain = f.snap, "ecs.local"
			d := Want([]Input{tt.in}, Config{})
			if tt.problem {
				if len(d.ServiceEntries)+len(d.WorkloadEntries) != 0 || len(d.Problems) != 2 || d.Skipped[task.ARN].Drop {
					t.Errorf("objects %d, problems %v, skip %+v: a wrong tag makes no object and deletes none", len(d.WorkloadEntries), d.Problems, d.Skipped[task.ARN])
				}
				return
			}
			if len(d.WorkloadEntries) != 1 || d.WorkloadEntries[0].Metadata.Namespace != tt.want || d.ServiceEntries[0].Metadata.Namespace != tt.want {
				t.Errorf("Want = %+v, want namespace %s", d.WorkloadEntries, tt.want)
			}
		})
	}
}

func TestSharedHostName(t *testing.T) {
	f := newFixture()
	tags := func(d *inventory.TaskDefinition) {
		d.Tags["ecs.solo.io/hostname"], d.Tags["ecs.solo.io/namespace"] = "Shop.example.", "shop"
	}
	def := f.definition("echo", true, tags)
	for _, name := range []string{"east", "west"} {
		c := f.cluster(name)
		f.service(c, "web", def)
		f.task(c, "web", def, nil)
	}
	d := f.want()
	if len(d.ServiceEntries) != 1 || len(d.WorkloadEntries) != 2 || len(d.Problems) != 0 {
		t.Fatalf("%d ServiceEntries, %d WorkloadEntries, problems %v", len(d.ServiceEntries), len(d.WorkloadEntries), d.Problems)
	}
	e := d.ServiceEntries[0]
	if e.Spec.Hosts[0] != "shop.example" || e.Metadata.Name != "ecs-host-shop.example" || e.Metadata.Annotations[AnnotationTrafficDistribution] != "PreferClose" {
		t.Errorf("entry = %+v", e)
	}
	if got := len(strings.Fields(e.Metadata.Annotations[AnnotationSource])); got != 2 {
		t.Errorf("%d sources, want 2", got)
	}
	for _, w := range d.WorkloadEntries {
		for k, v := range e.Spec.WorkloadSelector.Labels {
			if w.Metadata.Labels[k] != v {
				t.Errorf("workload %s lacks label %s=%s", w.Metadata.Name, k, v)
			}
		}
	}
	// With one of the two services gone the entry keeps its name, and with it its VIP.
	for _, c := range f.snap.Clusters {
		if c.Cluster.Name == "east" {
			clear(c.Services)
		}
	}
	if again := f.want(); len(again.ServiceEntries) != 1 || again.ServiceEntries[0].Metadata.Name != e.Metadata.Name {
		t.Errorf("entry after one service went: %+v", again.ServiceEntries)
	}
}

func TestNameClash(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", false, nil)
	first := f.service(c, "echo_service", def)
	second := f.service(c, "echo-service", def)
	d := f.want()
	if len(d.ServiceEntries) != 1 || d.ServiceEntries[0].Metadata.Annotations[AnnotationSource] != first.ARN || !d.Skipped[second.ARN].Drop {
		t.Errorf("entries = %+v, want only that of the older service", d.ServiceEntries)
	}
	if diff := cmp.Diff([]diag.Code{diag.HostConflict}, codes(d)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestDuplicateAddress(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, nil)
	f.service(c, "echo-service", def)
	old := f.task(c, "echo-service", def, nil)
	young := f.task(c, "echo-service", def, func(x *inventory.Task) {
		for i := range x.Containers {
			x.Containers[i].Addrs = old.Addresses()
		}
	})
	d := f.want()
	if len(d.WorkloadEntries) != 1 || d.WorkloadEntries[0].Metadata.Annotations[AnnotationSource] != young.ARN || !d.Skipped[old.ARN].Drop {
		t.Errorf("workloads = %+v, want only the younger", d.WorkloadEntries)
	}
	if diff := cmp.Diff([]diag.Code{diag.AddressConflict}, codes(d)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestBridgeIsAPlainEndpoint(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, func(d *inventory.TaskDefinition) { d.NetworkMode = inventory.NetworkBridge })
	f.service(c, "echo-service", def)
	bridge := func(host string, ports ...inventory.Binding) func(*inventory.Task) {
		return func(x *inventory.Task) {
			x.LaunchType, x.ContainerInstance = inventory.LaunchEC2, "arn:aws:ecs:us-east-2:123456789012:container-instance/ecs-demo-1/i"
			x.Containers[0].Addrs, x.Containers[1].Addrs, x.Containers[0].Bindings = nil, nil, ports
			x.HostAddr, _ = netip.ParseAddr(host)
		}
	}
	f.task(c, "echo-service", def, bridge("10.0.5.5", inventory.Binding{ContainerPort: 8080, HostPort: 32768, Protocol: "tcp"}))
	f.task(c, "echo-service", def, bridge("10.0.5.5", inventory.Binding{ContainerPort: 8080, HostPort: 32769, Protocol: "tcp"}))
	noHost := f.task(c, "echo-service", def, bridge("", inventory.Binding{ContainerPort: 8080, HostPort: 32768, Protocol: "tcp"}))
	noPort := f.task(c, "echo-service", def, bridge("10.0.5.5"))
	d := f.want()
	if len(d.WorkloadEntries) != 2 {
		t.Fatalf("%d workloads, want 2: %v", len(d.WorkloadEntries), d.Skipped)
	}
	for i, w := range d.WorkloadEntries {
		if w.Spec.Address != "10.0.5.5" || w.Spec.Ports["tcp-8080"] != uint32(32768+i) || w.Metadata.Annotations[AnnotationHBONE] != "" {
			t.Errorf("workload = %+v", w)
		}
	}
	for _, x := range []*inventory.Task{noHost, noPort} {
		if s, ok := d.Skipped[x.ARN]; !ok || s.Drop {
			t.Errorf("skipped[%s] = %+v, %v", x.ARN, s, ok)
		}
	}
	if len(d.Problems) != 4 || d.Problems[0].Code != diag.NetworkModePlain {
		t.Errorf("problems = %v", d.Problems)
	}
}

func TestStandaloneTasks(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	tagged := f.task(c, "", f.definition("job", false, nil), nil)
	plain := f.task(c, "", f.definition("other", false, func(d *inventory.TaskDefinition) { d.Tags = nil }), nil)
	d := f.want()
	if len(d.WorkloadEntries) != 1 || d.WorkloadEntries[0].Metadata.Annotations[AnnotationSource] != tagged.ARN {
		t.Errorf("workloads = %+v, want only the one that names a service account", d.WorkloadEntries)
	}
	if !d.Skipped[plain.ARN].Drop {
		t.Errorf("skipped = %+v", d.Skipped)
	}
}

func TestOrderOfInputsDoesNotMatter(t *testing.T) {
	a, b := newFixture(), newFixture()
	b.snap.Account, b.next = "999999999999", 50
	for _, f := range []*fixture{a, b} {
		c := f.cluster("prod")
		def := f.definition("echo", true, nil)
		f.service(c, "web", def)
		f.task(c, "web", def, nil)
	}
	x := Want([]Input{{Snapshot: a.snap, Domain: "a.local"}, {Snapshot: b.snap, Domain: "b.local", Network: "b"}}, Config{})
	y := Want([]Input{{Snapshot: b.snap, Domain: "b.local", Network: "b"}, {Snapshot: a.snap, Domain: "a.local"}}, Config{})
	if diff := cmp.Diff(x, y); diff != "" {
		t.Errorf("(-ab +ba):\n%s", diff)
	}
	if len(x.ServiceEntries) != 2 || x.WorkloadEntries[1].Spec.Network != "b" {
		t.Errorf("Want = %+v", x)
	}
}

func TestNamesAreValid(t *testing.T) {
	long := strings.Repeat("Very_Long.", 40)
	for _, s := range []string{"a", "A", "a_b", "-a-", "a..b", long, "ünïcode", "a.-b", "1"} {
		for i, got := range []string{objectName("ecs-service", account, region, s, s), objectName("ecs-host", s)} {
			if !isSubdomain(got) {
				t.Errorf("objectName %d of %q = %q, not a DNS-1123 subdomain", i, s, got)
			}
		}
		if got := labelValue(s); len(got) > 63 || got != strings.Trim(got, "-_.") {
			t.Errorf("labelValue(%q) = %q", s, got)
		}
		if got := dnsLabel(s); !isLabel(got) {
			t.Errorf("dnsLabel(%q) = %q", s, got)
		}
	}
	if objectName("x", "a_b") == objectName("x", "a-b") {
		t.Error("two names became one")
	}
	if objectName("ecs-service", "a-b", "c") != "ecs-service-a-b-c" {
		t.Error("a clean name was changed")
	}
}

// In host mode a task is reached at its host's address, at the ports as they are.
func TestHostModeIsAPlainEndpoint(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", true, func(d *inventory.TaskDefinition) { d.NetworkMode = inventory.NetworkHost })
	f.service(c, "echo-service", def)
	on := func(host string) func(*inventory.Task) {
		return func(x *inventory.Task) {
			x.LaunchType, x.ContainerInstance = inventory.LaunchEC2, "arn:aws:ecs:us-east-2:123456789012:container-instance/ecs-demo-1/i"
			x.Containers[0].Addrs, x.Containers[1].Addrs = nil, nil
			x.HostAddr, _ = netip.ParseAddr(host)
		}
	}
	f.task(c, "echo-service", def, on("10.0.5.5"))
	noHost := f.task(c, "echo-service", def, on(""))
	d := f.want()
	if len(d.WorkloadEntries) != 1 {
		t.Fatalf("%d workloads, want 1: %v", len(d.WorkloadEntries), d.Skipped)
	}
	w := d.WorkloadEntries[0]
	if w.Spec.Address != "10.0.5.5" || len(w.Spec.Ports) != 0 || w.Metadata.Annotations[AnnotationHBONE] != "" {
		t.Errorf("workload = %+v, want a plain one with the service's own ports", w)
	}
	if s, ok := d.Skipped[noHost.ARN]; !ok || s.Drop || !strings.Contains(s.Reason, "host") {
		t.Errorf("skipped = %+v, %v", s, ok)
	}
	if len(d.Problems) != 2 || d.Problems[0].Code != diag.NetworkModePlain || !strings.Contains(d.Problems[0].Cause, "network mode host and is a plain TCP endpoint") ||
		d.Problems[1].Object != noHost.ARN || !strings.Contains(d.Problems[1].Cause, "is not reached") || !strings.Contains(d.Problems[1].Fix, "ec2Hosts: true") {
		t.Errorf("problems = %v", d.Problems)
	}
}

// Launch type EXTERNAL has no address that AWS tells, and the problem says so in words of its own.
func TestExternalTasksAreTold(t *testing.T) {
	f := newFixture()
	c := f.cluster("ecs-demo-1")
	def := f.definition("echo", false, func(d *inventory.TaskDefinition) { d.NetworkMode = inventory.NetworkBridge })
	f.service(c, "echo-service", def)
	task := f.task(c, "echo-service", def, func(x *inventory.Task) {
		x.LaunchType, x.ContainerInstance, x.Containers[0].Addrs = inventory.LaunchExternal, "arn:aws:ecs:us-east-2:123456789012:container-instance/ecs-demo-1/mi", nil
	})
	d := f.want()
	if len(d.WorkloadEntries) != 0 || !d.Skipped[task.ARN].Drop {
		t.Errorf("workloads = %v, skipped %v", d.WorkloadEntries, d.Skipped)
	}
	if len(d.Problems) != 1 || d.Problems[0].Code != diag.ExternalTask || d.Problems[0].Fix == "" || d.Problems[0].Object != task.ARN {
		t.Errorf("problems = %v", d.Problems)
	}
}

// A task has one address in the mesh: IPv4 where it has both, else IPv6, with mTLS like any other.
func TestIPv6Tasks(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.128.9"), netip.MustParseAddr("2001:db8:1::9")
	for _, tt := range []struct {
		name  string
		addrs []netip.Addr
		want  string
	}{
		{"dual stack", []netip.Addr{v6, v4}, v4.String()},
		{"only IPv6", []netip.Addr{v6}, v6.String()},
		{"IPv4 written as IPv6", []netip.Addr{netip.AddrFrom16(v4.As16())}, v4.String()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture()
			c := f.cluster("ecs-demo-1")
			def := f.definition("echo", true, nil)
			f.service(c, "echo-service", def)
			f.task(c, "echo-service", def, func(x *inventory.Task) {
				for i := range x.Containers {
					x.Containers[i].Addrs = tt.addrs
				}
			})
			d := f.want()
			if len(d.WorkloadEntries) != 1 || d.WorkloadEntries[0].Spec.Address != tt.want || d.WorkloadEntries[0].Metadata.Annotations[AnnotationHBONE] != AnnotationHBONEValue {
				t.Errorf("workloads = %+v, want one at %s with HBONE", d.WorkloadEntries, tt.want)
			}
		})
	}
}
