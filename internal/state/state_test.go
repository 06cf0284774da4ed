package state_test

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

var diffOpts = gocmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func at(ip string) mesh.NetworkAddress {
	return mesh.NetworkAddress{Network: "eks", Addr: netip.MustParseAddr(ip)}
}

func svcKey(ns, host string) mesh.ServiceKey { return mesh.ServiceKey{Namespace: ns, Hostname: host} }

func workload(uid, ip string, services ...mesh.ServiceKey) *mesh.Workload {
	w := &mesh.Workload{UID: uid, Name: uid, Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "sa", Network: "eks", Capacity: 1}
	if ip != "" {
		w.Addresses = []netip.Addr{netip.MustParseAddr(ip)}
	}
	for _, k := range services {
		if w.Services == nil {
			w.Services = map[mesh.ServiceKey]map[uint16]uint16{}
		}
		w.Services[k] = map[uint16]uint16{80: 8080}
	}
	return w
}

func service(k mesh.ServiceKey, vips ...string) *mesh.Service {
	s := &mesh.Service{Key: k, Ports: map[uint16]uint16{80: 8080}}
	for _, vip := range vips {
		if p, err := netip.ParsePrefix(vip); err == nil {
			s.CIDRVIPs = append(s.CIDRVIPs, mesh.NetworkPrefix{Network: "eks", Prefix: p})
			continue
		}
		s.VIPs = append(s.VIPs, at(vip))
	}
	return s
}

func apply(s *state.Store, values ...any) {
	var u mesh.Update
	for _, v := range values {
		switch v := v.(type) {
		case *mesh.Workload:
			u.Workloads = append(u.Workloads, v)
		case *mesh.Service:
			u.Services = append(u.Services, v)
		case *mesh.Policy:
			u.Policies = append(u.Policies, v)
		case string:
			u.RemovedAddresses = append(u.RemovedAddresses, v)
			u.RemovedPolicies = append(u.RemovedPolicies, v)
		}
	}
	s.Apply(u)
}

func uids(es []state.Endpoint) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.Workload.UID)
	}
	slices.Sort(out)
	return out
}

func TestEndpointsAreStagedUntilTheServiceComes(t *testing.T) {
	k := svcKey("ns", "echo.ns")
	s := state.NewStore()
	apply(s, workload("a", "10.0.0.1", k), workload("b", "10.0.0.2", k))
	if got := s.Snapshot().Endpoints(k); got != nil {
		t.Errorf("Endpoints before the service = %v, want none", uids(got))
	}
	if diff := gocmp.Diff([]mesh.ServiceKey{k}, s.Snapshot().Staged()); diff != "" {
		t.Errorf("Staged (-want +got):\n%s", diff)
	}
	apply(s, service(k, "240.240.0.1"))
	before := s.Snapshot()
	if diff := gocmp.Diff([]string{"a", "b"}, uids(before.Endpoints(k))); diff != "" {
		t.Errorf("Endpoints (-want +got):\n%s", diff)
	}
	apply(s, service(k, "240.240.0.2")) // an update of the service keeps them
	apply(s, "a")
	if diff := gocmp.Diff([]string{"b"}, uids(s.Snapshot().Endpoints(k))); diff != "" {
		t.Errorf("Endpoints after a removal (-want +got):\n%s", diff)
	}
	apply(s, workload("b", "10.0.0.2")) // no longer names the service
	if got := s.Snapshot().Endpoints(k); len(got) != 0 {
		t.Errorf("Endpoints after the last left = %v, want none", uids(got))
	}
	apply(s, workload("c", "10.0.0.3", k), "ns/echo.ns")
	if got := s.Snapshot().Endpoints(k); got != nil {
		t.Errorf("Endpoints without the service = %v, want none", uids(got))
	}
	apply(s, service(k))
	if diff := gocmp.Diff([]string{"c"}, uids(s.Snapshot().Endpoints(k))); diff != "" {
		t.Errorf("Endpoints after the service came back (-want +got):\n%s", diff)
	}
	apply(s, "c", "ns/echo.ns")
	if w, svc, _ := s.Snapshot().Counts(); svc != 0 || w != 1 || s.Snapshot().Staged() != nil {
		t.Errorf("Counts = %d workloads, %d services, staged %v, want 1, 0, none", w, svc, s.Snapshot().Staged())
	}
	if diff := gocmp.Diff([]string{"a", "b"}, uids(before.Endpoints(k))); diff != "" {
		t.Errorf("an old snapshot changed (-want +got):\n%s", diff)
	}
}

func TestUnhealthy(t *testing.T) {
	k := svcKey("ns", "echo.ns")
	s := state.NewStore()
	sick := workload("sick", "10.0.0.1", k)
	sick.Unhealthy = true
	apply(s, sick, workload("well", "10.0.0.2", k), service(k))
	if diff := gocmp.Diff([]string{"well"}, uids(s.Snapshot().Endpoints(k))); diff != "" {
		t.Errorf("Endpoints (-want +got):\n%s", diff)
	}
	if got := s.Snapshot().WorkloadAt(at("10.0.0.1")); got != sick {
		t.Errorf("WorkloadAt = %v, want the unhealthy one", got)
	}
	if e, ok := s.Snapshot().Endpoint(k, "sick"); !ok || e.Ports[80] != 8080 {
		t.Errorf("Endpoint(sick) = %v, %v", e, ok)
	}
	all := service(k)
	all.LoadBalancer = &mesh.LoadBalancer{AllowAll: true}
	apply(s, all)
	if diff := gocmp.Diff([]string{"sick", "well"}, uids(s.Snapshot().Endpoints(k))); diff != "" {
		t.Errorf("Endpoints of a service that allows all (-want +got):\n%s", diff)
	}
}

func TestWorkloadAt(t *testing.T) {
	shared := func(uid string, p mesh.Protocol) *mesh.Workload {
		w := workload(uid, "10.0.0.1")
		w.Protocol = p
		return w
	}
	s := state.NewStore()
	order := []*mesh.Workload{
		shared("c//Pod/ns/hbone", mesh.HBONE),
		shared("c//Pod/ns/plain", mesh.TCP),
		shared("c/WorkloadEntry/hbone", mesh.HBONE),
		shared("c/WorkloadEntry/hbone2", mesh.HBONE),
		shared("c/WorkloadEntry/plain", mesh.TCP),
	}
	for _, i := range []int{4, 2, 0, 3, 1} {
		apply(s, order[i])
	}
	for _, want := range order {
		if got := s.Snapshot().WorkloadAt(at("::ffff:10.0.0.1")); got != want {
			t.Errorf("WorkloadAt = %v, want %s", got, want.UID)
		}
		apply(s, want.UID)
	}
	if got := s.Snapshot().WorkloadAt(at("10.0.0.1")); got != nil {
		t.Errorf("WorkloadAt of the removed = %s, want nil", got.UID)
	}
	host := workload("host", "10.0.0.5")
	host.HostNetwork = true
	apply(s, host)
	if got := s.Snapshot().WorkloadAt(at("10.0.0.5")); got != nil {
		t.Errorf("WorkloadAt of a host network = %s, want nil", got.UID)
	}
	other := workload("other", "10.0.0.5")
	other.Network = "ecs"
	apply(s, other)
	if got := s.Snapshot().WorkloadAt(at("10.0.0.5")); got != nil {
		t.Errorf("WorkloadAt of another network = %s, want nil", got.UID)
	}
	apply(s, workload("twice", "10.0.0.9"), workload("twice", "10.0.0.8"))
	if got := s.Snapshot().WorkloadAt(at("10.0.0.9")); got != nil {
		t.Errorf("WorkloadAt of a former address = %s, want nil", got.UID)
	}
	double := workload("double", "10.0.0.20")
	double.Addresses = append(double.Addresses, double.Addresses[0])
	apply(s, double)
	apply(s, "double")
	if got := s.Snapshot().WorkloadAt(at("10.0.0.20")); got != nil {
		t.Errorf("WorkloadAt of an address that was listed twice = %s, want nil", got.UID)
	}
}

func TestServiceAt(t *testing.T) {
	canonical := service(svcKey("b", "x"), "240.240.0.1", "10.1.0.0/16")
	canonical.Canonical = true
	private := service(svcKey("c", "x"), "240.240.0.1", "240.240.0.2", "10.1.2.0/24")
	private.NamespacePrivate = true
	s := state.NewStore()
	apply(s, service(svcKey("a", "x"), "240.240.0.1", "10.1.0.0/16", "10.0.0.0/8"), canonical, private,
		service(svcKey("d", "wide"), "240.240.0.0/16", "10.1.9.0/24"), service(svcKey("e", "six"), "fd00::/8", "fd00::1"))
	tests := []struct{ addr, client, want string }{
		{"240.240.0.1", "zz", "b/x"}, // the canonical one
		{"240.240.0.1", "a", "a/x"},  // the client's own
		{"240.240.0.1", "c", "c/x"},
		{"240.240.0.2", "c", "c/x"},
		{"240.240.0.2", "a", "d/wide"}, // a private exact address falls through to a CIDR
		{"10.1.2.3", "zz", "b/x"},      // the private, longer one does not count
		{"10.1.2.3", "c", "c/x"},
		{"10.1.9.1", "zz", "d/wide"}, // longest
		{"10.1.9.1", "a", "a/x"},     // own namespace before longest, and there the longest
		{"10.2.0.1", "zz", "a/x"},
		{"192.168.0.1", "a", "<nil>"},
		{"fd00::1", "a", "e/six"},
		{"fd00::2", "a", "e/six"},
	}
	for _, tt := range tests {
		got := "<nil>"
		if svc := s.Snapshot().ServiceAt(at(tt.addr), tt.client); svc != nil {
			got = svc.Key.String()
		}
		if got != tt.want {
			t.Errorf("ServiceAt(%s, %s) = %s, want %s", tt.addr, tt.client, got, tt.want)
		}
	}
	if got := s.Snapshot().ServicesByHost("x"); len(got) != 3 || got[0] != canonical {
		t.Errorf("ServicesByHost = %v, want three, the canonical first", got)
	}
	if got := s.Snapshot().ServiceByHost("x", "c"); got != private {
		t.Errorf("ServiceByHost of its own namespace = %v, want the private one", got)
	}
	if got := s.Snapshot().ServiceByHost("x", "zz"); got != canonical {
		t.Errorf("ServiceByHost = %v, want the canonical one", got)
	}
	for _, k := range []string{"a/x", "b/x", "c/x", "d/wide", "e/six"} {
		apply(s, k)
	}
	for _, tt := range tests {
		if svc := s.Snapshot().ServiceAt(at(tt.addr), tt.client); svc != nil {
			t.Errorf("ServiceAt(%s) after removal = %s, want nil", tt.addr, svc.Key)
		}
	}
}

func TestLocal(t *testing.T) {
	a, b := workload("uid-a", "10.0.0.1"), workload("uid-b", "10.0.0.2")
	a.Name, b.Name = "echo", "echo"
	b.ServiceAccount, b.Node = "other", "node-1"
	gateway := workload("gw", "")
	gateway.Hostname = "lb.example.com"
	s := state.NewStore()
	apply(s, a, b, gateway)
	snap := s.Snapshot()
	tests := []struct {
		name, ns, sa, node string
		want               *mesh.Workload
	}{
		{"echo", "ns", "sa", "", a},
		{"echo", "ns", "other", "", b},
		{"echo", "ns", "other", "node-1", b},
		{"echo", "ns", "other", "node-2", nil},
		{"echo", "ns", "sa", "node-1", nil},
		{"echo", "other", "sa", "", nil},
		{"none", "ns", "sa", "", nil},
	}
	for _, tt := range tests {
		if got := snap.Local(tt.name, tt.ns, tt.sa, tt.node); got != tt.want {
			t.Errorf("Local(%s, %s, %s, %s) = %v, want %v", tt.name, tt.ns, tt.sa, tt.node, got, tt.want)
		}
	}
	if got := slices.Collect(snap.OnNode("node-1")); len(got) != 1 || got[0] != b {
		t.Errorf("OnNode = %v, want b", got)
	}
	if got := snap.WorkloadByHost(svcKey("ns", "lb.example.com")); got != gateway {
		t.Errorf("WorkloadByHost = %v, want the gateway", got)
	}
	apply(s, "uid-b", "gw")
	if got := slices.Collect(s.Snapshot().OnNode("node-1")); len(got) != 0 {
		t.Errorf("OnNode after removal = %v, want none", got)
	}
	if got := s.Snapshot().WorkloadByHost(svcKey("ns", "lb.example.com")); got != nil {
		t.Errorf("WorkloadByHost after removal = %v, want nil", got)
	}
}

func TestPoliciesFor(t *testing.T) {
	pol := func(ns, name string, scope mesh.PolicyScope) *mesh.Policy {
		return &mesh.Policy{Key: mesh.PolicyKey{Namespace: ns, Name: name}, Scope: scope}
	}
	names := func(ps []*mesh.Policy) (out []string) {
		for _, p := range ps {
			out = append(out, p.Key.String())
		}
		return out
	}
	s := state.NewStore()
	w := workload("a", "10.0.0.1")
	check := func(step string, wantMissing int, want ...string) {
		t.Helper()
		ps, missing := s.Snapshot().PoliciesFor(w)
		if diff := gocmp.Diff(want, names(ps), cmpopts.EquateEmpty()); diff != "" || len(missing) != wantMissing {
			t.Errorf("%s: PoliciesFor missing %v (-want +got):\n%s", step, missing, diff)
		}
	}
	check("none", 0)
	apply(s, pol("ns", "b", mesh.ScopeNamespace), pol("ns", "a", mesh.ScopeNamespace), pol("other", "a", mesh.ScopeNamespace))
	check("namespace", 0, "ns/a", "ns/b")
	apply(s, pol("istio-system", "g", mesh.ScopeGlobal))
	check("global", 0, "ns/a", "ns/b", "istio-system/g")
	w = workload("a", "10.0.0.1")
	w.Policies = []mesh.PolicyKey{{Namespace: "ns", Name: "sel"}, {Namespace: "ns", Name: "a"}}
	check("missing selector", 1, "ns/a", "ns/b", "istio-system/g")
	apply(s, pol("ns", "sel", mesh.ScopeSelector))
	check("selector", 0, "ns/a", "ns/b", "istio-system/g", "ns/sel")
	apply(s, pol("ns", "b", mesh.ScopeSelector))
	check("changed scope", 0, "ns/a", "istio-system/g", "ns/sel")
	apply(s, "ns/a", "istio-system/g")
	check("removed", 1, "ns/sel")
	if got := names(slices.Collect(s.Snapshot().Policies())); !slices.Equal(got, []string{"ns/b", "ns/sel", "other/a"}) {
		t.Errorf("Policies = %v", got)
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestChanged(t *testing.T) {
	withPolicies := func(names ...string) *mesh.Workload {
		w := workload("a", "10.0.0.1")
		for _, n := range names {
			w.Policies = append(w.Policies, mesh.PolicyKey{Namespace: "ns", Name: n})
		}
		return w
	}
	s := state.NewStore()
	steps := []struct {
		name              string
		update            any
		changed, policies bool
	}{
		{"nothing", nil, false, false},
		{"a workload without policies", withPolicies(), true, false},
		{"its address", workload("a", "10.0.0.2"), true, false},
		{"its policies", withPolicies("p"), true, true},
		{"the same policies", withPolicies("p"), true, false},
		{"a service", service(svcKey("ns", "x")), true, false},
		{"a policy", &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ns", Name: "p"}}, true, true},
		{"its removal", "ns/p", true, true},
		{"a removal of what is not there", "ns/none", false, false},
		{"the removal of the workload", "a", true, false},
	}
	for _, step := range steps {
		changed, policies, version := s.Changed(), s.PoliciesChanged(), s.Snapshot().Version()
		apply(s, step.update)
		if got := closed(changed); got != step.changed {
			t.Errorf("%s: Changed closed %v, want %v", step.name, got, step.changed)
		}
		if got := closed(policies); got != step.policies {
			t.Errorf("%s: PoliciesChanged closed %v, want %v", step.name, got, step.policies)
		}
		if got := s.Snapshot().Version() != version; got != step.changed {
			t.Errorf("%s: the version changed: %v, want %v", step.name, got, step.changed)
		}
	}
}

// manyWorkloads returns n workloads in n/100 services, and the services.
func manyWorkloads(n int) mesh.Update {
	var u mesh.Update
	for i := range n {
		k := svcKey("ns", fmt.Sprintf("svc-%d.ns", i/100))
		w := workload(fmt.Sprintf("Kubernetes/networking.istio.io/WorkloadEntry/ns/task-%d", i), "", k)
		w.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}
		u.Workloads = append(u.Workloads, w)
		if i%100 == 0 {
			svc := service(k)
			svc.VIPs = []mesh.NetworkAddress{{Network: "eks", Addr: netip.AddrFrom4([4]byte{240, 240, byte(i / 100 >> 8), byte(i / 100)})}}
			u.Services = append(u.Services, svc)
		}
	}
	return u
}

// TestOneChangeAllocatesLittle is the bound on the cost of a change that does not depend on how fast the machine is.
func TestOneChangeAllocatesLittle(t *testing.T) {
	cost := func(n int) float64 {
		s := state.NewStore()
		u := manyWorkloads(n)
		s.Apply(u)
		i := 0
		return testing.AllocsPerRun(200, func() {
			w := *u.Workloads[i%n]
			w.Unhealthy = !w.Unhealthy
			i++
			s.Apply(mesh.Update{Workloads: []*mesh.Workload{&w}})
		})
	}
	small, large := cost(1_000), cost(100_000)
	t.Logf("allocations of a change: %v among 1,000, %v among 100,000", small, large)
	if large > 2*small || large > 200 {
		t.Errorf("a change among 100,000 workloads allocates %v times, among 1,000 %v: it grows with the mesh", large, small)
	}
}

// TestAgainstModel applies random changes and compares every lookup with a search through plain lists.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(30) {
		m := newModel(seed)
		for range 60 {
			m.step()
			m.check(t)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

func sortedUIDs(ws []*mesh.Workload) []*mesh.Workload {
	slices.SortFunc(ws, func(a, b *mesh.Workload) int { return cmp.Compare(a.UID, b.UID) })
	return ws
}

func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := state.NewStore()
			u := manyWorkloads(n)
			s.Apply(u)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				w := *u.Workloads[i%n]
				i += 7919
				s.Apply(mesh.Update{Workloads: []*mesh.Workload{&w}})
			}
		})
	}
}

func BenchmarkFill100000(b *testing.B) {
	u := manyWorkloads(100_000)
	b.ReportAllocs()
	for b.Loop() {
		state.NewStore().Apply(u)
	}
}

func BenchmarkLookup100000(b *testing.B) {
	s := state.NewStore()
	u := manyWorkloads(100_000)
	s.Apply(u)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		snap := s.Snapshot()
		svc := snap.ServiceAt(u.Services[i%len(u.Services)].VIPs[0], "ns")
		es := snap.Endpoints(svc.Key)
		if snap.WorkloadAt(mesh.NetworkAddress{Network: "eks", Addr: es[i%len(es)].Workload.Addresses[0]}) == nil {
			b.Fatal("not found")
		}
		i++
	}
}

// TestReadersSeeOneWorld has readers look while a writer moves a workload between two addresses in one update: no
// snapshot may have it at both or at neither.
func TestReadersSeeOneWorld(t *testing.T) {
	s := state.NewStore()
	k := svcKey("ns", "echo.ns")
	apply(s, service(k), workload("a", "10.0.0.1", k))
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for !closed(done) {
				snap := s.Snapshot()
				first, second := snap.WorkloadAt(at("10.0.0.1")), snap.WorkloadAt(at("10.0.0.2"))
				es := snap.Endpoints(k)
				if (first == nil) == (second == nil) || len(es) != 1 || es[0].Workload != snap.Workload("a") {
					t.Errorf("a snapshot has %v, %v and %d endpoints", first, second, len(es))
					return
				}
			}
		})
	}
	for i := range 2000 {
		apply(s, workload("a", [...]string{"10.0.0.1", "10.0.0.2"}[i%2], k))
	}
	close(done)
	readers.Wait()
}
