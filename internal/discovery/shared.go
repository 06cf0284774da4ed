package discovery

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// hostKey is one host name in one namespace: one ServiceEntry.
type hostKey struct{ namespace, host string }

// hostNode is what the services of one host name come to.
type hostNode struct {
	members  map[string]*serviceNode // by ARN
	first    string                  // ARN of the oldest member
	wish     Name                    // the name that its object would like to have
	entry    *ServiceEntry           // under that name
	own      []Problem               // of its members alone
	problems []Problem               // with those that it has with other hosts
	out      *ServiceEntry           // what was last told
}

// joinHost puts a service with ports among those of its host name.
func (e *Engine) joinHost(n *serviceNode) {
	if n.s == nil || len(n.s.ports) == 0 {
		return
	}
	k := hostKey{n.s.namespace, n.s.host}
	h := e.hosts[k]
	if h == nil {
		h = &hostNode{members: map[string]*serviceNode{}}
		e.hosts[k] = h
		move(e.byHost, k.namespace, "", k.host)
	}
	h.members[n.s.svc.ARN] = n
	e.dirty.hosts[k] = true
}

// leaveHost takes a service out of its host name.
func (e *Engine) leaveHost(n *serviceNode) {
	if n.s == nil {
		return
	}
	k := hostKey{n.s.namespace, n.s.host}
	if h := e.hosts[k]; h != nil && h.members[n.s.svc.ARN] != nil {
		delete(h.members, n.s.svc.ARN)
		e.dirty.hosts[k] = true
	}
}

// lookAtHosts makes the ServiceEntries of the host names that changed, and of those that they meet: the same host name
// in other namespaces, and other host names whose object has the same name.
func (e *Engine) lookAtHosts() {
	for k := range e.dirty.hosts {
		e.mergeHost(k)
	}
	for k := range e.dirty.hosts {
		for ns := range e.byHost[k.host] {
			e.finishHost(hostKey{ns, k.host})
		}
	}
	e.dirty.hosts = map[hostKey]bool{}
}

// mergeHost makes one entry of the services of a host name. Services whose tags choose the same host name become one
// entry that prefers near endpoints; the same default name twice is a clash, and the older service has it.
func (e *Engine) mergeHost(k hostKey) {
	h := e.hosts[k]
	old := h.wish
	if len(h.members) == 0 {
		e.tellHost(h, nil)
		delete(e.hosts, k)
		delete(e.clashing, k)
		move(e.byHost, k.namespace, k.host, "")
		e.moveName(k.host, old, Name{})
		for ns := range e.byHost[k.host] { // these may lose a conflict
			e.finishHost(hostKey{ns, k.host})
		}
		return
	}
	group := make([]*serviceNode, 0, len(h.members))
	for _, n := range h.members {
		group = append(group, n)
	}
	slices.SortFunc(group, func(a, b *serviceNode) int {
		return cmp.Or(a.s.svc.CreatedAt.Compare(b.s.svc.CreatedAt), cmp.Compare(a.s.svc.ARN, b.s.svc.ARN))
	})
	w := eval{cfg: e.cfg}
	shared := slices.ContainsFunc(group, func(n *serviceNode) bool { return n.s.tagged })
	h.first = group[0].s.svc.ARN
	services := make([]*service, 0, len(group))
	for i, n := range group {
		arn := n.s.svc.ARN
		if n.s.shared != shared {
			n.s.shared = shared
			for task := range e.byService[n.cluster+"\x00"+n.name] {
				e.dirty.tasks[task] = struct{}{}
			}
		}
		if !shared && i > 0 {
			w.problem(arn, diag.HostConflict, "choose another name with the tag "+e.cfg.TagPrefix+"hostname", "host name %s is already that of %s", k.host, h.first)
			n.lost = Skip{Reason: "its host name belongs to " + h.first, Drop: true}
			continue
		}
		n.lost = Skip{}
		services = append(services, n.s)
	}
	entry := w.entryOf(services)
	h.entry, h.own, h.wish = &entry, w.problems, nameOf(&entry.Metadata)
	e.moveName(k.host, old, h.wish)
}

// moveName keeps the index of wished names, and looks again at those who wished for the same.
func (e *Engine) moveName(host string, old, now Name) {
	if old == now {
		return
	}
	if peers := e.byName[old]; peers != nil {
		delete(peers, host)
		if len(peers) == 0 {
			delete(e.byName, old)
		}
	}
	if now != (Name{}) {
		if e.byName[now] == nil {
			e.byName[now] = set{}
		}
		e.byName[now][host] = struct{}{}
	}
	for _, name := range []Name{old, now} {
		if len(e.byName[name]) > 1 || name == old {
			for peer := range e.byName[name] {
				e.finishHost(hostKey{name.Namespace, peer})
			}
		}
	}
}

// finishHost settles what a host name has with others: an object name that an earlier host name has already, and
// namespaces that claim the same host name.
func (e *Engine) finishHost(k hostKey) {
	h := e.hosts[k]
	if h == nil || h.entry == nil {
		return
	}
	w := eval{cfg: e.cfg, problems: slices.Clip(h.own)}
	if other := before(e.byHost[k.host], k.namespace); other != "" {
		w.problem(h.first, diag.HostConflict, "give the services one namespace, or host names of their own",
			"host name %s is claimed in the namespaces %s and %s", k.host, other, k.namespace)
	}
	entry := h.entry
	if owner := least(e.byName[h.wish]); owner != k.host {
		w.problem(h.first, diag.HostConflict, "rename the service or the cluster", "its object name %s is also that of %s", h.wish.Name, owner)
		renamed := *entry
		renamed.Metadata.Name = shorten(h.wish.Name, maxName-9) + "-" + digest(k.host)
		entry = &renamed
	}
	h.problems = w.problems
	if len(h.problems) > 0 {
		e.clashing[k] = h
	} else {
		delete(e.clashing, k)
	}
	e.tellHost(h, entry)
}

// before returns the greatest item that is less than s, or "".
func before(items set, s string) string {
	out := ""
	for item := range items {
		if item < s && item > out {
			out = item
		}
	}
	return out
}

func least(items set) string {
	out := ""
	for item := range items {
		if out == "" || item < out {
			out = item
		}
	}
	return out
}

// tellHost notes in the delta what a host name's entry is now. A name may have gone to another host name already.
func (e *Engine) tellHost(h *hostNode, now *ServiceEntry) {
	old := h.out
	if old == now {
		return
	}
	if old != nil && e.told[nameOf(&old.Metadata)] == h {
		e.delta.Services[nameOf(&old.Metadata)] = nil
		delete(e.told, nameOf(&old.Metadata))
	}
	if now != nil {
		e.delta.Services[nameOf(&now.Metadata)] = now
		e.told[nameOf(&now.Metadata)] = h
	}
	h.out = now
}

// addrKey is an address in a mesh network.
type addrKey struct {
	network string
	addr    netip.Addr
}

func (n *taskNode) addrKey() addrKey { return addrKey{n.w.entry.Spec.Network, n.w.addr} }

func (e *Engine) joinAddress(n *taskNode) {
	if n.w == nil {
		e.tell(n, nil)
		return
	}
	k := n.addrKey()
	e.addrs[k] = append(e.addrs[k], n)
	e.dirty.addrs[k] = true
}

func (e *Engine) leaveAddress(n *taskNode) {
	if n.w == nil {
		return
	}
	k := n.addrKey()
	if group := slices.DeleteFunc(e.addrs[k], func(o *taskNode) bool { return o == n }); len(group) > 0 {
		e.addrs[k] = group
	} else {
		delete(e.addrs, k)
	}
	e.dirty.addrs[k] = true
}

// lookAtAddresses lets only one task have an address of its own. Istio takes two silently and then picks either; AWS
// gives one address to one task at a time, so the task that started last is the one that has it now.
func (e *Engine) lookAtAddresses() {
	for k := range e.dirty.addrs {
		group := e.addrs[k]
		slices.SortFunc(group, func(a, b *taskNode) int {
			return cmp.Or(cmp.Compare(b.w.newest, a.w.newest), cmp.Compare(a.w.arn, b.w.arn))
		})
		for i, n := range group {
			n.lost, n.clash = Skip{}, nil
			if first := group[0].w; i > 0 && n.w.own && first.own {
				w := eval{cfg: e.cfg}
				w.problem(n.w.arn, diag.AddressConflict, "give overlapping VPCs networks of their own in the configuration",
					"the task has the address %s that %s has too", n.w.addr, first.arn)
				n.clash = &w.problems[0]
				n.lost = Skip{Reason: fmt.Sprintf("its address %s is that of %s", n.w.addr, first.arn), Drop: n.w.scope == first.scope}
				e.tell(n, nil)
			} else {
				e.tell(n, n.w.entry)
			}
			e.trouble(n.w.arn, len(n.problems) > 0 || n.clash != nil)
		}
	}
	e.dirty.addrs = map[addrKey]bool{}
}
