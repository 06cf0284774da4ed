package route

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// Inbound is where a tunnel that arrived goes on this workload.
type Inbound struct {
	// Addr is the workload's own address and the application's port: what policies are asked about.
	Addr netip.AddrPort
	// Service is the service that was asked for by name, if any.
	Service *mesh.Service
	// Target is what the peer asked for as an address, for a PROXY protocol header.
	Target netip.AddrPort
	// Dial is where the application is reached: Addr, or as its application tunnel wants.
	Dial netip.AddrPort
	// PROXY asks for a PROXY protocol header in front of the stream.
	PROXY bool
}

// Rejection is why a tunnel is refused, with the HTTP status that tells the peer.
type Rejection struct {
	Status int
	Text   string
}

// Error returns the text of the log.
func (r *Rejection) Error() string { return r.Text }

// InboundQuery is a tunnel that arrived.
type InboundQuery struct {
	Network    string
	Local      *mesh.Workload
	Dialled    netip.AddrPort // the local address of the connection
	Authority  string
	NoLoopback bool // application tunnels are reached at the own address
	// Illegal reports ports that are the proxy's own.
	Illegal func(port uint16) bool
}

// ResolveInbound decides whether this workload is what the peer asked for, and which port it means.
func ResolveInbound(s *state.Snapshot, q InboundQuery) (Inbound, error) {
	in, err := q.target(s)
	if err != nil {
		return Inbound{}, err
	}
	in.Dial = in.Addr
	if t := q.Local.ApplicationTunnel; t != nil {
		in.PROXY = t.PROXY
		port := in.Addr.Port()
		if t.Port != 0 {
			port = t.Port
		}
		in.Dial = netip.AddrPortFrom(in.Addr.Addr(), port)
		if t.PROXY && !q.NoLoopback {
			in.Dial = netip.AddrPortFrom(Loopback(in.Addr.Addr()), port)
		}
	}
	for _, port := range []uint16{in.Addr.Port(), in.Dial.Port()} {
		if q.Illegal != nil && q.Illegal(port) {
			return Inbound{}, &Rejection{http.StatusServiceUnavailable, "attempted recursive call to ourselves"}
		}
	}
	return in, nil
}

// Loopback returns the loopback address of a's family.
func Loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

func (q InboundQuery) target(s *state.Snapshot) (Inbound, error) {
	local := q.Dialled.Addr().Unmap()
	if asked, err := netip.ParseAddrPort(q.Authority); err == nil {
		asked = netip.AddrPortFrom(asked.Addr().Unmap(), asked.Port())
		if asked.Addr() != local && q.Local.ApplicationTunnel == nil && !q.isOurWaypoint(s, asked.Addr()) {
			return Inbound{}, &Rejection{http.StatusBadRequest, fmt.Sprintf("ip mismatch: %s != %s", local, asked.Addr())}
		}
		return Inbound{Addr: netip.AddrPortFrom(local, asked.Port()), Target: asked}, nil
	}
	host, port, ok := splitHostPort(q.Authority)
	if !ok {
		return Inbound{}, &Rejection{http.StatusBadRequest, fmt.Sprintf("no valid authority pseudo header: %q", q.Authority)}
	}
	svc := s.ServiceByHost(strings.ToLower(host), q.Local.Namespace)
	if svc == nil {
		return Inbound{}, &Rejection{http.StatusServiceUnavailable, "no service or workload for hostname: " + host}
	}
	target := svc.Ports[port]
	if e, ok := s.Endpoint(svc.Key, q.Local.UID); ok && e.Ports[port] != 0 {
		target = e.Ports[port]
	}
	if target == 0 {
		return Inbound{}, &Rejection{http.StatusServiceUnavailable,
			fmt.Sprintf("requested service %s:%d found, but cannot resolve port", host, port)}
	}
	return Inbound{Addr: netip.AddrPortFrom(local, target), Service: svc, Target: vip(svc, q.Network, port)}, nil
}

// isOurWaypoint reports whether asked belongs to something of which this workload is a waypoint: then the peer meant us.
// Of weighted waypoints each counts, whatever its weight: the peer may have chosen by the weights of a moment ago.
func (q InboundQuery) isOurWaypoint(s *state.Snapshot, asked netip.Addr) bool {
	at := mesh.NetworkAddress{Network: q.Network, Addr: asked}
	if w := s.WorkloadAt(at); w != nil {
		return w.Waypoint != nil && isWaypoint(s, q.Local, *w.Waypoint)
	}
	svc := s.ServiceAt(at, q.Local.Namespace)
	if svc == nil {
		return false
	}
	return svc.Waypoint != nil && isWaypoint(s, q.Local, *svc.Waypoint) ||
		slices.ContainsFunc(svc.WeightedWaypoints, func(w mesh.WeightedGateway) bool { return isWaypoint(s, q.Local, w.Gateway) })
}

// vip returns the address of a service in our network, IPv4 first.
func vip(svc *mesh.Service, network string, port uint16) netip.AddrPort {
	var found netip.Addr
	for _, v := range svc.VIPs {
		if v.Network == network && (!found.IsValid() || v.Addr.Is4() && !found.Is4()) {
			found = v.Addr
		}
	}
	return netip.AddrPortFrom(found, port)
}

func splitHostPort(s string) (host string, port uint16, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || strings.ContainsAny(s[:i], ":[]/@ ") {
		return "", 0, false
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 16)
	return s[:i], uint16(n), err == nil && n != 0
}
