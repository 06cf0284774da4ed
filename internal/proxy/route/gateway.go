package route

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// GatewayQuery is an outer tunnel that arrived at a network gateway.
type GatewayQuery struct {
	Network   string         // the gateway's own network: it serves nothing else
	Self      *mesh.Workload // the gateway
	Authority string
	// Processed says that a waypoint has dealt with the connection already, so it goes to the endpoint itself.
	Processed bool
	// Serves says which services the gateway is for; it then serves no workload by its address either. nil serves all.
	Serves func(hostname string) bool
	Rand   func(n uint64) uint64
	// Exclude are workloads that have just failed and are not to be tried again.
	Exclude []*mesh.Workload
}

// ResolveGateway chooses the workload whose own proxy terminates the inner tunnel. Only workloads of the gateway's
// network that speak HBONE can.
func ResolveGateway(s *state.Snapshot, q GatewayQuery) (Outbound, error) {
	source := *q.Self
	source.Network = q.Network // the record of the gateway may not say
	query := Query{Network: q.Network, Source: &source, Rand: q.Rand, Exclude: q.Exclude}
	svc, w, port, err := q.destination(s)
	if err != nil {
		return Outbound{}, err
	}
	out := Outbound{Protocol: TCP, Via: Direct, Service: svc}
	if w != nil {
		if w.Protocol != mesh.HBONE || len(w.Addresses) == 0 {
			return Outbound{}, unreachable(q.Authority)
		}
		out.Upstream, out.Addr = w, netip.AddrPortFrom(w.Addresses[0], mesh.HBONEPort)
		return out, nil
	}
	if gw := pickWaypoint(svc, q.Rand); gw != nil && !q.Processed {
		up, _, ok := gatewayUpstream(s, query, *gw)
		if !ok || !up.Addr.IsValid() || up.Workload.Network != q.Network {
			return Outbound{}, unreachable(q.Authority)
		}
		out.Via, out.Upstream, out.Addr, out.Alternatives = Waypoint, up.Workload, netip.AddrPortFrom(up.Addr, up.Port), up.Others
		return out, nil
	}
	up, ok := pickLocal(s, query, svc, port)
	if !ok {
		return Outbound{}, unreachable(q.Authority)
	}
	out.Upstream, out.Addr, out.Alternatives = up.Workload, netip.AddrPortFrom(up.Addr, mesh.HBONEPort), up.Others
	return out, nil
}

func unreachable(authority string) error {
	return &Rejection{http.StatusServiceUnavailable, fmt.Sprintf("%s: %s", ErrNoHealthyUpstream, authority)}
}

// destination finds what an authority means: a service by name, a service by virtual address, or a workload.
func (q GatewayQuery) destination(s *state.Snapshot) (*mesh.Service, *mesh.Workload, uint16, error) {
	if a, err := netip.ParseAddrPort(q.Authority); err == nil {
		at := mesh.NetworkAddress{Network: q.Network, Addr: a.Addr().Unmap()}
		if svc := s.ServiceAt(at, q.Self.Namespace); svc != nil && q.serves(svc) {
			return svc, nil, a.Port(), nil
		}
		if w := s.WorkloadAt(at); w != nil && q.Serves == nil {
			return nil, w, a.Port(), nil
		}
		return nil, nil, 0, &Rejection{http.StatusNotFound, "no service or workload for address: " + a.String()}
	}
	host, port, ok := splitHostPort(q.Authority)
	if !ok {
		return nil, nil, 0, &Rejection{http.StatusBadRequest, fmt.Sprintf("no valid authority pseudo header: %q", q.Authority)}
	}
	svc := s.ServiceByHost(strings.ToLower(host), q.Self.Namespace)
	if svc == nil || !q.serves(svc) {
		return nil, nil, 0, &Rejection{http.StatusNotFound, "no service or workload for hostname: " + host}
	}
	return svc, nil, port, nil
}

func (q GatewayQuery) serves(svc *mesh.Service) bool {
	return q.Serves == nil || q.Serves(svc.Key.Hostname)
}

// pickLocal is pick among the endpoints that a gateway can reach.
func pickLocal(s *state.Snapshot, q Query, svc *mesh.Service, port uint16) (upstream, bool) {
	target, known := svc.Ports[port]
	if !known {
		return upstream{}, false
	}
	usable := func(e *state.Endpoint) bool {
		w := e.Workload
		return w.Protocol == mesh.HBONE && w.Network == q.Network && len(w.Addresses) > 0 && targetPort(e, port, target) != 0 && !q.excludes(w)
	}
	eps := s.Endpoints(svc.Key)
	var total uint64
	fit := 0
	for i := range eps {
		if usable(&eps[i]) {
			fit++
			total += uint64(eps[i].Workload.Capacity)
		}
	}
	if total == 0 {
		return upstream{}, false
	}
	n := q.Rand(total)
	for i := range eps {
		if !usable(&eps[i]) {
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
