// Package state holds what a proxy knows of the mesh, as immutable, indexed snapshots.
//
// A Store takes updates from the control plane and publishes a new Snapshot for each. Snapshots share structure: one
// change copies a few small nodes, so it costs the same among ten workloads and among a million, and a reader may
// keep a snapshot as long as it likes. Reading takes one atomic load and no lock. A connection takes one snapshot and
// uses only that, so that it never sees two worlds.
//
// What the indices mean, beyond what their names say:
//
//   - The endpoints of a service are the workloads that name it. They may arrive before the service does; until then
//     they are staged: kept, but not served.
//   - Unhealthy workloads are endpoints only of services that allow it, but remain known by address.
//   - Workloads that share their node's network are not found by address.
//   - Several workloads may claim an address: pods that speak HBONE come first, then pods, then others that speak
//     HBONE, then the rest; among equals the one with the smallest UID, so that all proxies agree.
package state

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// Store holds the current Snapshot. Its methods may be called from any goroutine.
type Store struct {
	current atomic.Pointer[generation]

	mu sync.Mutex // held by the one writer
}

// generation is a snapshot with the channels that close when it is no longer the newest.
type generation struct {
	snapshot        *Snapshot
	changed         chan struct{}
	policiesChanged chan struct{}
}

// NewStore returns an empty Store.
func NewStore() *Store {
	s := &Store{}
	s.current.Store(&generation{snapshot: &Snapshot{}, changed: make(chan struct{}), policiesChanged: make(chan struct{})})
	return s
}

// Snapshot returns the newest state.
func (s *Store) Snapshot() *Snapshot { return s.current.Load().snapshot }

// Changed returns a channel that closes at the next change. To miss nothing, take the channel first and the snapshot
// after it.
func (s *Store) Changed() <-chan struct{} { return s.current.Load().changed }

// PoliciesChanged returns a channel that closes when, for any workload, the set of policies that apply to it may have
// changed: a policy came, went or changed, or a workload came or changed with another list of policies.
func (s *Store) PoliciesChanged() <-chan struct{} { return s.current.Load().policiesChanged }

// Apply publishes the state with u applied to it: first what is new or replaced, then what is removed. The values of
// u belong to the store from now on. An empty update publishes nothing.
func (s *Store) Apply(u mesh.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	b := builder{s: *old.snapshot, e: new(edit)}
	for _, svc := range u.Services {
		b.setService(svc)
	}
	for _, w := range u.Workloads {
		b.setWorkload(w)
	}
	for _, p := range u.Policies {
		b.setPolicy(p)
	}
	for _, name := range u.RemovedAddresses {
		b.removeAddress(name)
	}
	for _, name := range u.RemovedPolicies {
		b.removePolicy(name)
	}
	if !b.changed {
		return
	}
	b.s.version++
	next := &generation{snapshot: &b.s, changed: make(chan struct{}), policiesChanged: old.policiesChanged}
	if b.policies {
		next.policiesChanged = make(chan struct{})
	}
	s.current.Store(next)
	close(old.changed)
	if b.policies {
		close(old.policiesChanged)
	}
}

// builder is a snapshot in the making: a shallow copy of the last one, changed under one edit.
type builder struct {
	s        Snapshot
	e        *edit
	changed  bool // anything
	policies bool // anything that PoliciesChanged promises
}

func (b *builder) setWorkload(w *mesh.Workload) {
	old := b.s.workloads.at(w.UID)
	if old == w {
		return
	}
	var before []mesh.PolicyKey
	if old != nil {
		before = old.Policies
		b.unindexWorkload(old, w)
	}
	if !slices.Equal(before, w.Policies) {
		b.policies = true
	}
	b.changed = true
	b.s.workloads.set(b.e, w.UID, w)
	b.indexWorkload(w)
}

func (b *builder) removeWorkload(old *mesh.Workload) {
	b.changed = true
	b.s.workloads.delete(b.e, old.UID)
	b.unindexWorkload(old, nil)
}

func (b *builder) indexWorkload(w *mesh.Workload) {
	if !w.HostNetwork {
		for _, a := range w.Addresses {
			addTo(&b.s.byAddress, b.e, mesh.NetworkAddress{Network: w.Network, Addr: a}, w, compareWorkloads)
		}
	}
	if w.Hostname != "" {
		addTo(&b.s.byHostname, b.e, mesh.ServiceKey{Namespace: w.Namespace, Hostname: w.Hostname}, w, compareWorkloads)
	}
	addTo(&b.s.byName, b.e, nameKey{w.Namespace, w.Name}, w, compareWorkloads)
	if w.Node != "" {
		on := b.s.byNode.at(w.Node)
		on.set(b.e, w.UID, w)
		b.s.byNode.set(b.e, w.Node, on)
	}
	for k, ports := range w.Services {
		members := b.ownMembers(k)
		members.endpoints.set(b.e, w.UID, Endpoint{Workload: w, Ports: ports})
	}
}

// unindexWorkload takes old out of the indices. It leaves the services that next names too: their entry is about to
// be replaced.
func (b *builder) unindexWorkload(old, next *mesh.Workload) {
	if !old.HostNetwork {
		for _, a := range old.Addresses {
			removeFrom(&b.s.byAddress, b.e, mesh.NetworkAddress{Network: old.Network, Addr: a}, old)
		}
	}
	if old.Hostname != "" {
		removeFrom(&b.s.byHostname, b.e, mesh.ServiceKey{Namespace: old.Namespace, Hostname: old.Hostname}, old)
	}
	removeFrom(&b.s.byName, b.e, nameKey{old.Namespace, old.Name}, old)
	if old.Node != "" {
		on := b.s.byNode.at(old.Node)
		if on.delete(b.e, old.UID); on.len == 0 {
			b.s.byNode.delete(b.e, old.Node)
		} else {
			b.s.byNode.set(b.e, old.Node, on)
		}
	}
	for k := range old.Services {
		if next != nil {
			if _, stays := next.Services[k]; stays {
				continue
			}
		}
		members := b.ownMembers(k)
		members.endpoints.delete(b.e, old.UID)
		b.dropIfEmpty(k, members)
	}
}

// ownMembers returns the members of k for change under this edit.
func (b *builder) ownMembers(k mesh.ServiceKey) *members {
	m := b.s.services.at(k)
	if m != nil && m.owner == b.e {
		return m
	}
	c := &members{owner: b.e}
	if m != nil {
		c.service, c.endpoints = m.service, m.endpoints
	}
	b.s.services.set(b.e, k, c)
	if m == nil {
		b.s.staged++
	}
	return c
}

func (b *builder) dropIfEmpty(k mesh.ServiceKey, m *members) {
	if m.service == nil && m.endpoints.len == 0 {
		b.s.services.delete(b.e, k)
		b.s.staged--
	}
}

func (b *builder) setService(svc *mesh.Service) {
	m := b.ownMembers(svc.Key)
	if m.service == svc {
		return
	}
	b.changed = true
	if m.service == nil {
		b.s.staged--
	} else {
		b.unindexService(m.service)
	}
	m.service = svc
	for _, a := range svc.VIPs {
		addTo(&b.s.byVIP, b.e, a, svc, compareServices)
	}
	for _, p := range svc.CIDRVIPs {
		p.Prefix = p.Prefix.Masked()
		if addTo(&b.s.byCIDR, b.e, p, svc, compareServices) == 1 {
			b.countPrefix(p, +1)
		}
	}
	addTo(&b.s.byHost, b.e, svc.Key.Hostname, svc, compareServices)
}

func (b *builder) removeService(m *members) {
	b.changed = true
	k := m.service.Key
	b.unindexService(m.service)
	m = b.ownMembers(k)
	m.service = nil
	b.s.staged++
	b.dropIfEmpty(k, m)
}

func (b *builder) unindexService(old *mesh.Service) {
	for _, a := range old.VIPs {
		removeFrom(&b.s.byVIP, b.e, a, old)
	}
	for _, p := range old.CIDRVIPs {
		p.Prefix = p.Prefix.Masked()
		had := len(b.s.byCIDR.at(p))
		if removeFrom(&b.s.byCIDR, b.e, p, old) == 0 && had > 0 {
			b.countPrefix(p, -1)
		}
	}
	removeFrom(&b.s.byHost, b.e, old.Key.Hostname, old)
}

// countPrefix keeps the list of prefix lengths in use per network and family, longest first.
func (b *builder) countPrefix(p mesh.NetworkPrefix, by int) {
	lens := slices.Clone(b.s.prefixLens.at(p.Network))
	want := prefixLen{is4: p.Prefix.Addr().Is4(), bits: p.Prefix.Bits()}
	i := slices.IndexFunc(lens, func(l prefixLen) bool { return l.is4 == want.is4 && l.bits == want.bits })
	if i < 0 {
		lens = append(lens, want)
		i = len(lens) - 1
	}
	if lens[i].count += by; lens[i].count == 0 {
		lens = slices.Delete(lens, i, i+1)
	}
	slices.SortFunc(lens, func(x, y prefixLen) int { return cmp.Compare(y.bits, x.bits) })
	if len(lens) == 0 {
		b.s.prefixLens.delete(b.e, p.Network)
		return
	}
	b.s.prefixLens.set(b.e, p.Network, lens)
}

// removeAddress removes the workload with the UID name or, if there is none, the service "namespace/hostname".
func (b *builder) removeAddress(name string) {
	if w := b.s.workloads.at(name); w != nil {
		b.removeWorkload(w)
		return
	}
	ns, host, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(host, "/") {
		return
	}
	if m := b.s.services.at(mesh.ServiceKey{Namespace: ns, Hostname: host}); m != nil && m.service != nil {
		b.removeService(m)
	}
}

func (b *builder) setPolicy(p *mesh.Policy) {
	old := b.s.policies.at(p.Key)
	if old == p {
		return
	}
	b.changed, b.policies = true, true
	if old != nil {
		b.unindexPolicy(old)
	}
	if len(p.Index.Rows)+len(p.Index.Columns) == 0 {
		policy.Index(p)
	}
	b.s.policies.set(b.e, p.Key, p)
	switch p.Scope {
	case mesh.ScopeGlobal:
		b.s.global = with(b.s.global, p, comparePolicies)
	case mesh.ScopeNamespace:
		addTo(&b.s.byNamespace, b.e, p.Key.Namespace, p, comparePolicies)
	}
}

func (b *builder) removePolicy(name string) {
	ns, n, ok := strings.Cut(name, "/")
	if !ok {
		return
	}
	k := mesh.PolicyKey{Namespace: ns, Name: n}
	old := b.s.policies.at(k)
	if old == nil {
		return
	}
	b.changed, b.policies = true, true
	b.unindexPolicy(old)
	b.s.policies.delete(b.e, k)
}

func (b *builder) unindexPolicy(old *mesh.Policy) {
	switch old.Scope {
	case mesh.ScopeGlobal:
		b.s.global = without(b.s.global, old)
	case mesh.ScopeNamespace:
		removeFrom(&b.s.byNamespace, b.e, old.Key.Namespace, old)
	}
}

// addTo adds v to the sorted list under k and returns its new length.
func addTo[K comparable, V any](t *table[K, []*V], e *edit, k K, v *V, order func(a, b *V) int) int {
	list := with(t.at(k), v, order)
	t.set(e, k, list)
	return len(list)
}

// removeFrom removes v from the list under k and returns its new length.
func removeFrom[K comparable, V any](t *table[K, []*V], e *edit, k K, v *V) int {
	list := without(t.at(k), v)
	if len(list) == 0 {
		t.delete(e, k)
		return 0
	}
	t.set(e, k, list)
	return len(list)
}

// with and without return a new list: the old one may be part of a published snapshot.
func with[V any](list []*V, v *V, order func(a, b *V) int) []*V {
	if slices.Contains(list, v) { // an address listed twice
		return list
	}
	i, _ := slices.BinarySearchFunc(list, v, order)
	out := make([]*V, 0, len(list)+1)
	out = append(out, list[:i]...)
	out = append(out, v)
	return append(out, list[i:]...)
}

func without[V any](list []*V, v *V) []*V {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	if len(list) == 1 {
		return nil
	}
	out := make([]*V, 0, len(list)-1)
	return append(append(out, list[:i]...), list[i+1:]...)
}

// compareWorkloads puts the workload that should be found by a shared address first.
func compareWorkloads(a, b *mesh.Workload) int {
	return cmp.Or(cmp.Compare(addressRank(a), addressRank(b)), cmp.Compare(a.UID, b.UID))
}

func addressRank(w *mesh.Workload) int {
	rank := 0
	if !w.IsPod() {
		rank += 2
	}
	if w.Protocol != mesh.HBONE {
		rank++
	}
	return rank
}

// compareServices puts the canonical one of several services first.
func compareServices(a, b *mesh.Service) int {
	if a.Canonical != b.Canonical {
		if a.Canonical {
			return -1
		}
		return 1
	}
	return a.Key.Compare(b.Key)
}

func comparePolicies(a, b *mesh.Policy) int {
	return cmp.Or(cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Name, b.Key.Name))
}
