package state_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// model is a store beside plain maps of what it should hold.
type model struct {
	*rand.Rand
	store     *state.Store
	workloads map[string]*mesh.Workload
	services  map[mesh.ServiceKey]*mesh.Service
	policies  map[mesh.PolicyKey]*mesh.Policy
}

func newModel(seed uint64) *model {
	return &model{
		Rand:      rand.New(rand.NewPCG(seed, 7)),
		store:     state.NewStore(),
		workloads: map[string]*mesh.Workload{},
		services:  map[mesh.ServiceKey]*mesh.Service{},
		policies:  map[mesh.PolicyKey]*mesh.Policy{},
	}
}

const (
	modelHosts = 6
	modelAddrs = 8
)

func (m *model) namespace() string { return [...]string{"a", "b", "c"}[m.IntN(3)] }

func (m *model) serviceKey() mesh.ServiceKey {
	return svcKey(m.namespace(), fmt.Sprintf("h%d", m.IntN(modelHosts)))
}

func (m *model) addr() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(m.IntN(modelAddrs))})
}

// step makes one update of several random changes.
func (m *model) step() {
	var u mesh.Update
	seen := map[string]bool{}
	for range 1 + m.IntN(5) {
		switch m.IntN(6) {
		case 0, 1:
			w := m.workload()
			if !seen[w.UID] {
				u.Workloads = append(u.Workloads, w)
				m.workloads[w.UID] = w
				seen[w.UID] = true
			}
		case 2:
			s := m.service()
			if !seen[s.Key.String()] {
				u.Services = append(u.Services, s)
				m.services[s.Key] = s
				seen[s.Key.String()] = true
			}
		case 3:
			p := &mesh.Policy{Key: mesh.PolicyKey{Namespace: m.namespace(), Name: fmt.Sprint(m.IntN(3))}, Scope: mesh.PolicyScope(m.IntN(3))}
			u.Policies = append(u.Policies, p)
			m.policies[p.Key] = p
		case 4:
			if k := m.serviceKey(); !seen[k.String()] {
				u.RemovedAddresses = append(u.RemovedAddresses, k.String())
				delete(m.services, k)
				seen[k.String()] = true
			}
		case 5:
			if uid := fmt.Sprintf("u%d", m.IntN(10)); !seen[uid] {
				u.RemovedAddresses = append(u.RemovedAddresses, uid)
				delete(m.workloads, uid)
				seen[uid] = true
			}
		}
	}
	m.store.Apply(u)
}

func (m *model) workload() *mesh.Workload {
	w := &mesh.Workload{
		UID: fmt.Sprintf("u%d", m.IntN(10)), Namespace: m.namespace(), Name: fmt.Sprint(m.IntN(3)), ServiceAccount: "sa",
		Network: "eks", HostNetwork: m.IntN(5) == 0, Unhealthy: m.IntN(3) == 0, Protocol: mesh.Protocol(m.IntN(2)),
		Node:     [...]string{"", "n1", "n2"}[m.IntN(3)],
		Services: map[mesh.ServiceKey]map[uint16]uint16{},
	}
	for range m.IntN(3) {
		w.Addresses = append(w.Addresses, m.addr())
	}
	for range m.IntN(3) {
		w.Services[m.serviceKey()] = map[uint16]uint16{80: uint16(m.IntN(100))}
	}
	for range m.IntN(3) {
		w.Policies = append(w.Policies, mesh.PolicyKey{Namespace: m.namespace(), Name: fmt.Sprint(m.IntN(3))})
	}
	return w
}

func (m *model) service() *mesh.Service {
	s := &mesh.Service{Key: m.serviceKey(), Canonical: m.IntN(2) == 0, NamespacePrivate: m.IntN(3) == 0}
	for range m.IntN(3) {
		s.VIPs = append(s.VIPs, mesh.NetworkAddress{Network: "eks", Addr: m.addr()})
	}
	for range m.IntN(3) {
		s.CIDRVIPs = append(s.CIDRVIPs, mesh.NetworkPrefix{Network: "eks", Prefix: netip.PrefixFrom(m.addr(), 28+m.IntN(5))})
	}
	if m.IntN(3) == 0 {
		s.LoadBalancer = &mesh.LoadBalancer{AllowAll: true}
	}
	return s
}

func (m *model) check(t *testing.T) {
	t.Helper()
	snap := m.store.Snapshot()
	var want []*mesh.Workload
	want = append(want, slices.Collect(maps.Values(m.workloads))...)
	if !slices.Equal(sortedUIDs(want), slices.Collect(snap.Workloads())) {
		t.Errorf("Workloads differ")
	}
	if got := slices.Collect(snap.Services()); len(got) != len(m.services) || !slices.IsSortedFunc(got, func(a, b *mesh.Service) int { return a.Key.Compare(b.Key) }) {
		t.Errorf("Services = %d, sorted or not, want %d", len(got), len(m.services))
	}
	m.checkServices(t, snap)
	m.checkWorkloads(t, snap)
	for i := range modelAddrs {
		a := mesh.NetworkAddress{Network: "eks", Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}
		for _, ns := range []string{"a", "b", "c", "d"} {
			if got, want := snap.ServiceAt(a, ns), m.serviceAt(a, ns); got != want {
				t.Errorf("ServiceAt(%v, %s) = %+v, want %+v", a, ns, got, want)
			}
		}
		if got, want := snap.WorkloadAt(a), m.workloadAt(a); got != want {
			t.Errorf("WorkloadAt(%v) = %+v, want %+v", a, got, want)
		}
	}
}

func (m *model) checkServices(t *testing.T, snap *state.Snapshot) {
	t.Helper()
	for _, ns := range []string{"a", "b", "c"} {
		for i := range modelHosts {
			k := svcKey(ns, fmt.Sprintf("h%d", i))
			svc := m.services[k]
			if got := snap.Service(k); got != svc {
				t.Errorf("Service(%v) = %v, want %v", k, got, svc)
			}
			var want []string
			for _, w := range m.workloads {
				_, member := w.Services[k]
				all := svc != nil && svc.LoadBalancer != nil
				if svc != nil && member && (all || !w.Unhealthy) {
					want = append(want, w.UID)
				}
			}
			slices.Sort(want)
			if diff := gocmp.Diff(want, uids(snap.Endpoints(k)), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("Endpoints(%v) (-want +got):\n%s", k, diff)
			}
			for _, e := range snap.Endpoints(k) {
				if w := m.workloads[e.Workload.UID]; e.Workload != w || !maps.Equal(e.Ports, w.Services[k]) {
					t.Errorf("endpoint %s of %v is not the newest", e.Workload.UID, k)
				}
			}
		}
	}
}

func (m *model) checkWorkloads(t *testing.T, snap *state.Snapshot) {
	t.Helper()
	for _, node := range []string{"n1", "n2"} {
		n := 0
		for w := range snap.OnNode(node) {
			if n++; m.workloads[w.UID] != w || w.Node != node {
				t.Errorf("OnNode(%s) has %s, which is not there", node, w.UID)
			}
		}
		for _, w := range m.workloads {
			if w.Node == node {
				n--
			}
		}
		if n != 0 {
			t.Errorf("OnNode(%s) has %d too many", node, n)
		}
	}
	for _, w := range m.workloads {
		want := map[mesh.PolicyKey]bool{}
		for k, p := range m.policies {
			if p.Scope == mesh.ScopeGlobal || p.Scope == mesh.ScopeNamespace && k.Namespace == w.Namespace || slices.Contains(w.Policies, k) {
				want[k] = true
			}
		}
		ps, missing := snap.PoliciesFor(w)
		got := map[mesh.PolicyKey]bool{}
		for _, p := range ps {
			got[p.Key] = true
		}
		for _, k := range missing {
			if m.policies[k] != nil {
				t.Errorf("PoliciesFor says %v is missing", k)
			}
		}
		if !maps.Equal(want, got) {
			t.Errorf("PoliciesFor(%s) = %v, want %v", w.UID, got, want)
		}
	}
}

// workloadAt and serviceAt say by exhaustive search what the lookups should find.
func (m *model) workloadAt(a mesh.NetworkAddress) (best *mesh.Workload) {
	for _, w := range m.workloads {
		if w.HostNetwork || !slices.Contains(w.Addresses, a.Addr) {
			continue
		}
		switch { // no pods here
		case best == nil,
			w.Protocol > best.Protocol,
			w.Protocol == best.Protocol && w.UID < best.UID:
			best = w
		}
	}
	return best
}

func (m *model) serviceAt(a mesh.NetworkAddress, ns string) (best *mesh.Service) {
	// rank is compared from the left: exact, own namespace, prefix length, canonical, and the key to break ties.
	type rank struct {
		exact, own bool
		bits       int
		canonical  bool
	}
	above := func(x, y rank, xk, yk mesh.ServiceKey) bool {
		switch {
		case x.exact != y.exact:
			return x.exact
		case x.own != y.own:
			return x.own
		case x.bits != y.bits:
			return x.bits > y.bits
		case x.canonical != y.canonical:
			return x.canonical
		}
		return xk.Compare(yk) < 0
	}
	var top rank
	consider := func(s *mesh.Service, r rank) {
		r.own, r.canonical = s.Key.Namespace == ns, s.Canonical
		if s.NamespacePrivate && !r.own {
			return
		}
		if best == nil || above(r, top, s.Key, best.Key) {
			best, top = s, r
		}
	}
	for _, s := range m.services {
		if slices.Contains(s.VIPs, a) {
			consider(s, rank{exact: true})
		}
		for _, p := range s.CIDRVIPs {
			if p.Prefix.Contains(a.Addr) {
				consider(s, rank{bits: p.Prefix.Bits()})
			}
		}
	}
	return best
}
