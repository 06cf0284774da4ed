package route

import (
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// upstream is a chosen workload with the address and port to use. Either Addr is valid, or Hostname is set, or the
// workload is reached through its network gateway.
type upstream struct {
	Workload *mesh.Workload
	Addr     netip.Addr
	Port     uint16
	Hostname string
	Others   int // endpoints that fit beside this one, of whatever rank
}

// mode says for what an upstream is picked.
type mode uint8

const (
	standard  mode = iota // for the application
	toGateway             // a waypoint or network gateway
)

// pick chooses one endpoint of svc for a connection to port: those that fit, of these the best rank, of these by
// capacity at random.
func pick(s *state.Snapshot, q Query, svc *mesh.Service, port uint16, m mode) (upstream, bool) {
	target, known := svc.Ports[port]
	if !known && m == standard {
		return upstream{}, false
	}
	eps := s.Endpoints(svc.Key)
	best, total, fit := -1, uint64(0), 0
	for i := range eps {
		rank, ok := q.rank(&eps[i], svc, port, target, known, m)
		if !ok {
			continue
		}
		fit++
		if rank < best {
			continue
		}
		if rank > best {
			best, total = rank, 0
		}
		total += uint64(eps[i].Workload.Capacity)
	}
	if best < 0 || total == 0 {
		return upstream{}, false
	}
	n := q.Rand(total)
	for i := range eps {
		rank, ok := q.rank(&eps[i], svc, port, target, known, m)
		if !ok || rank != best {
			continue
		}
		if c := uint64(eps[i].Workload.Capacity); n >= c {
			n -= c
			continue
		}
		up := q.reach(&eps[i], svc, port, target)
		up.Others = fit - 1
		return up, true
	}
	return upstream{}, false
}

// rank says whether an endpoint may be used, and how well it matches the service's preferences.
func (q Query) rank(e *state.Endpoint, svc *mesh.Service, port, target uint16, known bool, m mode) (int, bool) {
	w := e.Workload
	if q.excludes(w) {
		return 0, false
	}
	if len(w.Addresses) == 0 && w.Hostname == "" && (w.Network == q.Source.Network || w.NetworkGateway == nil) {
		return 0, false
	}
	tunnel := w.ApplicationTunnel
	if m == toGateway && !known && tunnel == nil {
		return 0, false
	}
	if targetPort(e, port, target) == 0 {
		return 0, false
	}
	lb := svc.LoadBalancer
	if lb == nil || lb.Mode == mesh.ModeStandard || lb.Mode == mesh.ModePassthrough || len(lb.Preferences) == 0 {
		return 0, true
	}
	return rankPreferences(lb, q.Source, w)
}

func (q Query) excludes(w *mesh.Workload) bool {
	return slices.ContainsFunc(q.Exclude, func(x *mesh.Workload) bool {
		return x.UID == w.UID && x.Hostname == w.Hostname && slices.Equal(x.Addresses, w.Addresses)
	})
}

// rankPreferences counts the preferences that an endpoint matches, in order, until the first it does not. When the
// network comes first, any endpoint of the own network beats any other, and the others are ranked all the same.
func rankPreferences(lb *mesh.LoadBalancer, source, w *mesh.Workload) (int, bool) {
	rank := 0
	for i, p := range lb.Preferences {
		match := sameScope(p, source, w)
		if i == 0 && p == mesh.ScopeNetwork && lb.Mode == mesh.ModeFailover {
			if match {
				rank += len(lb.Preferences) // more than all that follows can add up to
			}
			continue
		}
		if !match {
			return rank, lb.Mode != mesh.ModeStrict
		}
		rank++
	}
	return rank, true
}

func sameScope(p mesh.RoutingScope, a, b *mesh.Workload) bool {
	switch p {
	case mesh.ScopeRegion:
		return a.Locality.Region == b.Locality.Region
	case mesh.ScopeZone:
		return a.Locality.Zone == b.Locality.Zone
	case mesh.ScopeSubzone:
		return a.Locality.Subzone == b.Locality.Subzone
	case mesh.ScopeNode:
		return a.Node == b.Node
	case mesh.ScopeCluster:
		return a.ClusterID == b.ClusterID
	case mesh.ScopeNetwork:
		return a.Network == b.Network
	}
	return false
}

// targetPort returns the endpoint's port for a service port: its own mapping, else the service's, else, for an
// application tunnel with a port of its own, the service port. 0 means there is none.
func targetPort(e *state.Endpoint, port, target uint16) uint16 {
	if p := e.Ports[port]; p != 0 {
		return p
	}
	if target != 0 {
		return target
	}
	if t := e.Workload.ApplicationTunnel; t != nil && t.Port != 0 {
		return port
	}
	return 0
}

// reach chooses among a workload's addresses: the one asked for, else the first that the service allows of the family
// asked for, else the first it allows, else the hostname.
func (q Query) reach(e *state.Endpoint, svc *mesh.Service, port, target uint16) upstream {
	up := upstream{Workload: e.Workload, Port: targetPort(e, port, target)}
	var sameFamily, any netip.Addr
	for _, a := range e.Workload.Addresses {
		if a == q.Dst.Addr() {
			up.Addr = a
			return up
		}
		if !svc.IPFamilies.Allows(a) {
			continue
		}
		if !sameFamily.IsValid() && a.Is4() == q.Dst.Addr().Is4() {
			sameFamily = a
		}
		if !any.IsValid() {
			any = a
		}
	}
	switch {
	case sameFamily.IsValid():
		up.Addr = sameFamily
	case any.IsValid():
		up.Addr = any
	default:
		up.Hostname = e.Workload.Hostname
	}
	return up
}

// Target is a workload with the address and port of its application.
type Target struct {
	Workload *mesh.Workload
	Addr     netip.AddrPort
}

// Targets returns the endpoints of svc of a network that a connection to port can end at, whatever their rank, in no
// particular order.
func Targets(s *state.Snapshot, svc *mesh.Service, network string, port uint16) []Target {
	target, known := svc.Ports[port]
	if !known {
		return nil
	}
	var out []Target
	eps := s.Endpoints(svc.Key)
	for i := range eps {
		w := eps[i].Workload
		if p := targetPort(&eps[i], port, target); p != 0 && w.Network == network && len(w.Addresses) > 0 {
			out = append(out, Target{w, netip.AddrPortFrom(w.Addresses[0], p)})
		}
	}
	return out
}
