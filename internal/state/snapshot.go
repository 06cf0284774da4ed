package state

import (
	"cmp"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Snapshot is the mesh at one moment. It never changes. Slices that its methods return belong to it and must not be
// changed.
type Snapshot struct {
	version uint64

	workloads  table[string, *mesh.Workload]
	byAddress  table[mesh.NetworkAddress, []*mesh.Workload]
	byHostname table[mesh.ServiceKey, []*mesh.Workload]
	byName     table[nameKey, []*mesh.Workload]
	byNode     table[string, table[string, *mesh.Workload]]

	services   table[mesh.ServiceKey, *members]
	staged     int // entries of services without a service
	byVIP      table[mesh.NetworkAddress, []*mesh.Service]
	byCIDR     table[mesh.NetworkPrefix, []*mesh.Service]
	prefixLens table[string, []prefixLen]
	byHost     table[string, []*mesh.Service]

	policies    table[mesh.PolicyKey, *mesh.Policy]
	global      []*mesh.Policy
	byNamespace table[string, []*mesh.Policy]
}

type nameKey struct{ namespace, name string }

// prefixLen says that count CIDR VIPs of a network have this length and family.
type prefixLen struct {
	is4   bool
	bits  int
	count int
}

// members is a service with its endpoints. While service is nil the endpoints are staged.
type members struct {
	owner     *edit // the batch that may change this value in place
	service   *mesh.Service
	endpoints table[string, Endpoint]

	served atomic.Pointer[[]Endpoint] // what Endpoints returned first
}

// Endpoint is a workload as part of a service.
type Endpoint struct {
	Workload *mesh.Workload
	// Ports maps service port to target port where the workload has its own opinion. It must not be changed.
	Ports map[uint16]uint16
}

// Version counts the changes of the store that led to this snapshot.
func (s *Snapshot) Version() uint64 { return s.version }

// Counts returns how many workloads, services and policies there are.
func (s *Snapshot) Counts() (workloads, services, policies int) {
	return s.workloads.len, s.services.len - s.staged, s.policies.len
}

// Workload returns the workload with the given UID, or nil.
func (s *Snapshot) Workload(uid string) *mesh.Workload { return s.workloads.at(uid) }

// WorkloadAt returns the workload that has the address a, or nil. If several have it, it is the one that the package
// comment says.
func (s *Snapshot) WorkloadAt(a mesh.NetworkAddress) *mesh.Workload {
	a.Addr = a.Addr.Unmap()
	if ws := s.byAddress.at(a); len(ws) > 0 {
		return ws[0]
	}
	return nil
}

// WorkloadsAt returns all workloads that have the address a, the one of WorkloadAt first.
func (s *Snapshot) WorkloadsAt(a mesh.NetworkAddress) []*mesh.Workload {
	a.Addr = a.Addr.Unmap()
	return s.byAddress.at(a)
}

// WorkloadByHost returns the workload whose own hostname is k's, in k's namespace, or nil. Network gateways behind a
// name are found so.
func (s *Snapshot) WorkloadByHost(k mesh.ServiceKey) *mesh.Workload {
	if ws := s.byHostname.at(k); len(ws) > 0 {
		return ws[0]
	}
	return nil
}

// Local returns the workload that a proxy with this name stands for, or nil. An empty node means any.
func (s *Snapshot) Local(name, namespace, serviceAccount, node string) *mesh.Workload {
	for _, w := range s.byName.at(nameKey{namespace, name}) {
		if w.ServiceAccount == serviceAccount && (node == "" || w.Node == node) {
			return w
		}
	}
	return nil
}

// OnNode returns the workloads of a node, in no particular order. Workloads without a node are not on any.
func (s *Snapshot) OnNode(node string) iter.Seq[*mesh.Workload] {
	on := s.byNode.at(node)
	return func(yield func(*mesh.Workload) bool) {
		on.all(func(_ string, w *mesh.Workload) bool { return yield(w) })
	}
}

// Service returns the service with the given key, or nil.
func (s *Snapshot) Service(k mesh.ServiceKey) *mesh.Service {
	if m := s.services.at(k); m != nil {
		return m.service
	}
	return nil
}

// ServiceAt returns the service that a client in clientNamespace means by the virtual address a, or nil. The exact
// address comes before a CIDR that contains it. Of several services, those of other namespaces that keep to themselves
// do not count; then the client's own namespace comes first, then the canonical one. Between CIDRs the longer comes
// before the canonical, but after the client's own namespace.
func (s *Snapshot) ServiceAt(a mesh.NetworkAddress, clientNamespace string) *mesh.Service {
	a.Addr = a.Addr.Unmap()
	if svc := prefer(s.byVIP.at(a), clientNamespace); svc != nil {
		return svc
	}
	var found *mesh.Service
	for _, l := range s.prefixLens.at(a.Network) { // longest first
		if l.is4 != a.Addr.Is4() {
			continue
		}
		prefix, err := a.Addr.Prefix(l.bits)
		if err != nil {
			continue
		}
		svc := prefer(s.byCIDR.at(mesh.NetworkPrefix{Network: a.Network, Prefix: prefix}), clientNamespace)
		if svc == nil {
			continue
		}
		if svc.Key.Namespace == clientNamespace {
			return svc
		}
		if found == nil {
			found = svc
		}
	}
	return found
}

// ServicesByHost returns the services with exactly this hostname: the canonical one first, then by namespace.
func (s *Snapshot) ServicesByHost(host string) []*mesh.Service { return s.byHost.at(host) }

// ServiceByHost returns the service that a client in clientNamespace means by host, or nil, with the preferences of
// ServiceAt.
func (s *Snapshot) ServiceByHost(host, clientNamespace string) *mesh.Service {
	return prefer(s.byHost.at(host), clientNamespace)
}

// prefer picks from candidates that are sorted by compareServices.
func prefer(candidates []*mesh.Service, clientNamespace string) *mesh.Service {
	var found *mesh.Service
	for _, svc := range candidates {
		if svc.Key.Namespace == clientNamespace {
			return svc
		}
		if found == nil && !svc.NamespacePrivate {
			found = svc
		}
	}
	return found
}

// Endpoints returns the endpoints of a service, in no particular order: the healthy ones, or all if the service's load
// balancer allows it. A service that is not known has none, even if workloads name it already.
func (s *Snapshot) Endpoints(k mesh.ServiceKey) []Endpoint {
	m := s.services.at(k)
	if m == nil || m.service == nil {
		return nil
	}
	if served := m.served.Load(); served != nil {
		return *served
	}
	// The list is made at the first question and not at the change: a large service may change many times in between.
	all := m.service.LoadBalancer != nil && m.service.LoadBalancer.AllowAll
	list := make([]Endpoint, 0, m.endpoints.len)
	m.endpoints.all(func(_ string, e Endpoint) bool {
		if all || !e.Workload.Unhealthy {
			list = append(list, e)
		}
		return true
	})
	list = slices.Clip(list)
	m.served.Store(&list)
	return list
}

// Endpoint returns the endpoint that the workload with this UID is of the service k, healthy or not.
func (s *Snapshot) Endpoint(k mesh.ServiceKey, uid string) (Endpoint, bool) {
	m := s.services.at(k)
	if m == nil || m.service == nil {
		return Endpoint{}, false
	}
	return m.endpoints.get(uid)
}

// Staged returns the keys of the services that workloads name but that are not known, sorted.
func (s *Snapshot) Staged() []mesh.ServiceKey {
	if s.staged == 0 {
		return nil
	}
	var keys []mesh.ServiceKey
	s.services.all(func(k mesh.ServiceKey, m *members) bool {
		if m.service == nil {
			keys = append(keys, k)
		}
		return true
	})
	slices.SortFunc(keys, mesh.ServiceKey.Compare)
	return keys
}

// Policy returns the policy with the given key, or nil.
func (s *Snapshot) Policy(k mesh.PolicyKey) *mesh.Policy { return s.policies.at(k) }

// PoliciesFor returns the policies that apply to w: those of its namespace, the global ones and those that it names.
// The names for which there is no policy, or not yet, are in missing.
func (s *Snapshot) PoliciesFor(w *mesh.Workload) (ps []*mesh.Policy, missing []mesh.PolicyKey) {
	ns := s.byNamespace.at(w.Namespace)
	switch {
	case len(w.Policies) == 0 && len(s.global) == 0:
		return ns, nil
	case len(w.Policies) == 0 && len(ns) == 0:
		return s.global, nil
	}
	ps = make([]*mesh.Policy, 0, len(ns)+len(s.global)+len(w.Policies))
	ps = append(append(ps, ns...), s.global...)
	for _, k := range w.Policies {
		p := s.policies.at(k)
		switch {
		case p == nil:
			missing = append(missing, k)
		case p.Scope == mesh.ScopeGlobal || p.Scope == mesh.ScopeNamespace && k.Namespace == w.Namespace:
			// It is in the list already.
		default:
			ps = append(ps, p)
		}
	}
	return ps, missing
}

// Workloads returns all workloads, sorted by UID.
func (s *Snapshot) Workloads() iter.Seq[*mesh.Workload] {
	return sorted(s.workloads, func(w *mesh.Workload) *mesh.Workload { return w },
		func(a, b *mesh.Workload) int { return cmp.Compare(a.UID, b.UID) })
}

// Services returns all services, sorted by namespace and hostname.
func (s *Snapshot) Services() iter.Seq[*mesh.Service] {
	return sorted(s.services, func(m *members) *mesh.Service { return m.service },
		func(a, b *mesh.Service) int { return a.Key.Compare(b.Key) })
}

// Policies returns all policies, sorted by namespace and name.
func (s *Snapshot) Policies() iter.Seq[*mesh.Policy] {
	return sorted(s.policies, func(p *mesh.Policy) *mesh.Policy { return p }, comparePolicies)
}

// VIPs returns all virtual addresses with the services behind them, in no particular order.
func (s *Snapshot) VIPs() iter.Seq2[mesh.NetworkAddress, []*mesh.Service] { return s.byVIP.all }

func sorted[K comparable, V, T any](t table[K, V], of func(V) *T, order func(a, b *T) int) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		list := make([]*T, 0, t.len)
		t.all(func(_ K, v V) bool {
			if x := of(v); x != nil {
				list = append(list, x)
			}
			return true
		})
		slices.SortFunc(list, order)
		for _, x := range list {
			if !yield(x) {
				return
			}
		}
	}
}
