// Package route decides where a connection goes. It is pure: a snapshot of the mesh and a question in, an answer out.
//
// The order of an outbound decision is ztunnel's:
//
//	1  what owns the address in our own network (a workload before a service)?
//	2  a service with a waypoint                      -> the waypoint
//	3  pick an upstream (a service before a workload): nothing found -> the original destination, untouched
//	4  the upstream is on another network             -> its network gateway, double HBONE
//	5  addressed as a workload that has a waypoint    -> the waypoint
//	6  otherwise                                      -> the upstream itself, HBONE or plain TCP as its record says
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// Protocol is how the chosen destination is spoken to.
type Protocol uint8

// The protocols of an outbound connection.
const (
	TCP Protocol = iota
	HBONE
	DoubleHBONE // an HBONE tunnel inside another, through a network gateway
)

// String returns the name of config_dump.
func (p Protocol) String() string {
	switch p {
	case HBONE:
		return "HBONE"
	case DoubleHBONE:
		return "DOUBLEHBONE"
	}
	return "TCP"
}

// Via says which of the steps decided.
type Via uint8

// The ways to a destination.
const (
	Passthrough Via = iota // the original destination, untouched
	Direct                 // the workload itself
	Waypoint               // a waypoint proxy
	Gateway                // a network gateway
)

// String returns the way in one word.
func (v Via) String() string {
	return [...]string{"passthrough", "direct", "waypoint", "gateway"}[v&3]
}

// Query is what is asked.
type Query struct {
	Network string         // the proxy's own network
	Source  *mesh.Workload // who connects
	Dst     netip.AddrPort // where the application wants to go; never v4-mapped
	// Rand returns a random number in [0,n); it is called only with n > 0.
	Rand func(n uint64) uint64
	// Exclude are endpoints, waypoints and gateways that have just failed and are not to be tried again. One that has
	// come back with another address is another one.
	Exclude []*mesh.Workload
}

// Outbound is where a connection goes.
type Outbound struct {
	Protocol Protocol
	Via      Via
	// Addr is what to dial. Its address is invalid when Hostname must be resolved first: see Resolved.
	Addr     netip.AddrPort
	Hostname string
	// Authority is asked for in the (outer and inner) tunnel. It is "" for TCP.
	Authority string
	// Peers are the identities of which the peer that is dialled must have one; InnerPeers those of the inner tunnel.
	Peers      []mesh.Identity
	InnerPeers []mesh.Identity
	// Upstream is the workload that is dialled, for telemetry; nil for a passthrough.
	Upstream *mesh.Workload
	// Service is the service that was asked for, if any.
	Service *mesh.Service
	// Alternatives is the number of other endpoints, or waypoints, or gateways that the connection could go to.
	Alternatives int

	target uint16 // port at the workload, for an authority that waits for Resolved
}

// Resolved returns the route with the address that its Hostname resolved to.
func (o Outbound) Resolved(a netip.Addr) Outbound {
	o.Addr = netip.AddrPortFrom(a, o.Addr.Port())
	if o.Via == Direct && o.Protocol == HBONE {
		o.Authority = netip.AddrPortFrom(a, o.target).String()
	}
	return o
}

// The reasons for which there is no route. Their texts are those operators know from ztunnel.
var (
	ErrNoHealthyUpstream = errors.New("no healthy upstream")
	ErrUnknownWaypoint   = errors.New("unknown waypoint")
	ErrUnknownGateway    = errors.New("unknown network gateway")
	ErrNoDestination     = errors.New("no valid routing destination for workload")
)

// Resolve answers a Query.
func Resolve(s *state.Snapshot, q Query) (Outbound, error) {
	here := mesh.NetworkAddress{Network: q.Network, Addr: q.Dst.Addr()}
	var owner *mesh.Service
	if s.WorkloadAt(here) == nil {
		owner = s.ServiceAt(here, q.Source.Namespace)
	}
	if owner != nil {
		if gw := pickWaypoint(owner, q.Rand); gw != nil {
			return toWaypoint(s, q, *gw, owner)
		}
	}
	there := mesh.NetworkAddress{Network: q.Source.Network, Addr: q.Dst.Addr()}
	svc := s.ServiceAt(there, q.Source.Namespace)
	if svc == nil {
		w := s.WorkloadAt(there)
		switch {
		case w != nil:
			return toWorkload(s, q, w)
		case owner != nil:
			return Outbound{}, fmt.Errorf("%w: %s", ErrNoHealthyUpstream, q.Dst)
		}
		return Outbound{Via: Passthrough, Addr: q.Dst}, nil
	}
	if svc.LoadBalancer != nil && svc.LoadBalancer.Mode == mesh.ModePassthrough {
		return Outbound{Via: Passthrough, Addr: q.Dst, Service: svc}, nil
	}
	up, ok := pick(s, q, svc, q.Dst.Port(), standard)
	if !ok {
		return Outbound{}, fmt.Errorf("%w: %s", ErrNoHealthyUpstream, q.Dst)
	}
	if up.Workload.Network != q.Source.Network {
		return toNetwork(s, q, up.Workload, svc)
	}
	o := direct(up, svc)
	o.Alternatives = up.Others
	return o, nil
}

// toWorkload routes a connection that was addressed to a workload's own address.
func toWorkload(s *state.Snapshot, q Query, w *mesh.Workload) (Outbound, error) {
	if w.Network != q.Source.Network {
		return Outbound{}, fmt.Errorf("%w: %s", ErrNoDestination, w.UID)
	}
	if w.Waypoint != nil && !isWaypoint(s, q.Source, *w.Waypoint) {
		return toWaypoint(s, q, *w.Waypoint, nil)
	}
	return direct(upstream{Workload: w, Addr: q.Dst.Addr(), Port: q.Dst.Port()}, nil), nil
}

func direct(up upstream, svc *mesh.Service) Outbound {
	o := Outbound{Via: Direct, Hostname: up.Hostname, Upstream: up.Workload, Service: svc, target: up.Port}
	if up.Workload.Protocol != mesh.HBONE {
		o.Addr = netip.AddrPortFrom(up.Addr, up.Port)
		return o
	}
	o.Protocol = HBONE
	o.Addr = netip.AddrPortFrom(up.Addr, mesh.HBONEPort)
	o.Authority = netip.AddrPortFrom(up.Addr, up.Port).String()
	o.Peers = peers(svc, up.Workload)
	return o
}

// toWaypoint routes through a waypoint; svc is the service asked for, or nil if a workload was.
func toWaypoint(s *state.Snapshot, q Query, gw mesh.GatewayAddress, svc *mesh.Service) (Outbound, error) {
	up, gwSvc, ok := gatewayUpstream(s, q, gw)
	if !ok {
		return Outbound{}, fmt.Errorf("%w: %s", ErrUnknownWaypoint, gw.Destination())
	}
	if up.Workload.Network != q.Source.Network {
		if svc == nil {
			return Outbound{}, fmt.Errorf("%w: %s", ErrNoDestination, up.Workload.UID)
		}
		o, err := toNetwork(s, q, up.Workload, svc)
		o.InnerPeers = peers(gwSvc, up.Workload)
		return o, err
	}
	return Outbound{
		Protocol: HBONE, Via: Waypoint, Addr: netip.AddrPortFrom(up.Addr, up.Port), Hostname: up.Hostname,
		Authority: q.Dst.String(), // never translated: the waypoint decides by what the application asked for
		Peers:     peers(gwSvc, up.Workload), Upstream: up.Workload, Service: svc, Alternatives: up.Others,
	}, nil
}

// toNetwork routes to a workload on another network, through the gateway that its record names.
func toNetwork(s *state.Snapshot, q Query, w *mesh.Workload, svc *mesh.Service) (Outbound, error) {
	if w.NetworkGateway == nil || svc == nil {
		return Outbound{}, fmt.Errorf("%w: %s", ErrNoDestination, w.UID)
	}
	up, gwSvc, ok := gatewayUpstream(s, q, *w.NetworkGateway)
	if !ok {
		return Outbound{}, fmt.Errorf("%w: %s", ErrUnknownGateway, w.NetworkGateway.Destination())
	}
	return Outbound{
		Protocol: DoubleHBONE, Via: Gateway, Addr: netip.AddrPortFrom(up.Addr, up.Port), Hostname: up.Hostname,
		Authority: svc.Key.Hostname + ":" + strconv.Itoa(int(q.Dst.Port())),
		Peers:     peers(gwSvc, up.Workload), InnerPeers: peers(svc, nil), Upstream: up.Workload, Service: svc, Alternatives: up.Others,
	}, nil
}

// gatewayUpstream finds the workload behind a waypoint's or network gateway's address, and the service it was found
// through, if any.
func gatewayUpstream(s *state.Snapshot, q Query, gw mesh.GatewayAddress) (upstream, *mesh.Service, bool) {
	if gw.Address.Addr.IsValid() {
		if svc := s.ServiceAt(gw.Address, q.Source.Namespace); svc != nil {
			gq := q
			gq.Dst = netip.AddrPortFrom(gw.Address.Addr, gw.HBONEPort)
			up, ok := pick(s, gq, svc, gw.HBONEPort, toGateway)
			return up, svc, ok
		}
		w := s.WorkloadAt(gw.Address)
		return upstream{Workload: w, Addr: gw.Address.Addr, Port: gw.HBONEPort}, nil, w != nil && !q.excludes(w)
	}
	if svc := s.Service(gw.Service); svc != nil {
		up, ok := pick(s, q, svc, gw.HBONEPort, toGateway)
		return up, svc, ok
	}
	w := s.WorkloadByHost(gw.Service)
	if w == nil || q.excludes(w) {
		return upstream{}, nil, false
	}
	up := upstream{Workload: w, Port: gw.HBONEPort, Hostname: w.Hostname}
	if len(w.Addresses) > 0 {
		up.Addr, up.Hostname = w.Addresses[0], ""
	}
	return up, nil, true
}

// isWaypoint reports whether w is one of the workloads behind gw: what a waypoint sends on must not come back to it.
func isWaypoint(s *state.Snapshot, w *mesh.Workload, gw mesh.GatewayAddress) bool {
	svc := s.Service(gw.Service)
	if gw.Address.Addr.IsValid() {
		if s.WorkloadAt(gw.Address) == w {
			return true
		}
		svc = s.ServiceAt(gw.Address, w.Namespace)
	}
	if svc == nil {
		return false
	}
	_, ok := s.Endpoint(svc.Key, w.UID)
	return ok
}

func pickWaypoint(svc *mesh.Service, random func(uint64) uint64) *mesh.GatewayAddress {
	var total uint64
	for _, w := range svc.WeightedWaypoints {
		total += uint64(w.Weight)
	}
	if total == 0 {
		return svc.Waypoint
	}
	n := random(total)
	for i := range svc.WeightedWaypoints {
		w := &svc.WeightedWaypoints[i]
		if n < uint64(w.Weight) {
			return &w.Gateway
		}
		n -= uint64(w.Weight)
	}
	return svc.Waypoint
}

// peers returns the identities that an endpoint of svc may have: the service's alternative names, then its own.
// Alternative names that are no SPIFFE identities cannot be in a mesh certificate, so they are left out.
func peers(svc *mesh.Service, w *mesh.Workload) []mesh.Identity {
	var out []mesh.Identity
	if svc != nil {
		for _, san := range svc.SubjectAltNames {
			if id, err := mesh.ParseIdentity(san); err == nil {
				out = append(out, id)
			}
		}
	}
	if w != nil {
		out = append(out, w.Identity())
	}
	return out
}
