package meshtest

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	spb "github.com/isthmus-mesh/isthmus/internal/xds/securitypb"
	wpb "github.com/isthmus-mesh/isthmus/internal/xds/workloadpb"
)

// EncodeWorkload returns w as istiod sends it, with what istiod leaves out left out.
func EncodeWorkload(w *mesh.Workload) *wpb.Workload {
	p := &wpb.Workload{
		Uid: w.UID, Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount,
		Hostname: w.Hostname, Network: w.Network, ClusterId: w.ClusterID, Node: w.Node, NativeTunnel: w.NativeTunnel,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, WorkloadName: w.WorkloadName,
		WorkloadType:   [...]wpb.WorkloadType{wpb.WorkloadType_DEPLOYMENT, wpb.WorkloadType_CRONJOB, wpb.WorkloadType_POD, wpb.WorkloadType_JOB}[w.WorkloadType],
		Waypoint:       encodeGateway(w.Waypoint),
		NetworkGateway: encodeGateway(w.NetworkGateway),
	}
	if w.TrustDomain != mesh.DefaultTrustDomain {
		p.TrustDomain = w.TrustDomain
	}
	if w.Capacity != 1 {
		p.Capacity = wrapperspb.UInt32(w.Capacity)
	}
	if w.Protocol == mesh.HBONE {
		p.TunnelProtocol = wpb.TunnelProtocol_HBONE
	}
	if w.HostNetwork {
		p.NetworkMode = wpb.NetworkMode_HOST_NETWORK
	}
	if w.Unhealthy {
		p.Status = wpb.WorkloadStatus_UNHEALTHY
	}
	if l := w.Locality; l != (mesh.Locality{}) {
		p.Locality = &wpb.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
	}
	if t := w.ApplicationTunnel; t != nil {
		p.ApplicationTunnel = &wpb.ApplicationTunnel{Port: uint32(t.Port)}
		if t.PROXY {
			p.ApplicationTunnel.Protocol = wpb.ApplicationTunnel_PROXY
		}
	}
	for _, a := range w.Addresses {
		p.Addresses = append(p.Addresses, a.AsSlice())
	}
	for _, k := range w.Policies {
		p.AuthorizationPolicies = append(p.AuthorizationPolicies, k.String())
	}
	for k, ports := range w.Services {
		if p.Services == nil {
			p.Services = make(map[string]*wpb.PortList)
		}
		p.Services[k.String()] = &wpb.PortList{Ports: encodePorts(ports, nil)}
	}
	return p
}

// EncodeService returns s as istiod sends it.
func EncodeService(s *mesh.Service) *wpb.Service {
	p := &wpb.Service{
		Name: s.Name, Namespace: s.Key.Namespace, Hostname: s.Key.Hostname,
		SubjectAltNames: s.SubjectAltNames,
		Ports:           encodePorts(s.Ports, s.AppProtocols),
		Waypoint:        encodeGateway(s.Waypoint),
		Canonical:       s.Canonical,
		IpFamilies:      [...]wpb.IPFamilies{wpb.IPFamilies_AUTOMATIC, wpb.IPFamilies_IPV4_ONLY, wpb.IPFamilies_IPV6_ONLY, wpb.IPFamilies_DUAL}[s.IPFamilies],
	}
	if s.NamespacePrivate {
		p.Visibility = wpb.Service_NAMESPACE
	}
	for _, a := range s.VIPs {
		p.Addresses = append(p.Addresses, &wpb.NetworkAddress{Network: a.Network, Address: a.Addr.AsSlice()})
	}
	for _, c := range s.CIDRVIPs {
		length := uint32(c.Prefix.Bits())
		p.Addresses = append(p.Addresses, &wpb.NetworkAddress{Network: c.Network, Address: c.Prefix.Addr().AsSlice(), Length: &length})
	}
	for _, w := range s.WeightedWaypoints {
		p.WeightedWaypoints = append(p.WeightedWaypoints, &wpb.WeightedWaypoint{Destination: encodeGateway(&w.Gateway), Weight: w.Weight})
	}
	if lb := s.LoadBalancer; lb != nil {
		p.LoadBalancing = &wpb.LoadBalancing{
			Mode: [...]wpb.LoadBalancing_Mode{wpb.LoadBalancing_UNSPECIFIED_MODE, wpb.LoadBalancing_STRICT, wpb.LoadBalancing_FAILOVER, wpb.LoadBalancing_PASSTHROUGH}[lb.Mode],
		}
		for _, scope := range lb.Preferences {
			p.LoadBalancing.RoutingPreference = append(p.LoadBalancing.RoutingPreference, wpb.LoadBalancing_Scope(scope)+wpb.LoadBalancing_REGION)
		}
		if lb.AllowAll {
			p.LoadBalancing.HealthPolicy = wpb.LoadBalancing_ALLOW_ALL
		}
	}
	return p
}

func encodePorts(ports map[uint16]uint16, protocols map[uint16]string) []*wpb.Port {
	var list []*wpb.Port
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		list = append(list, &wpb.Port{
			ServicePort: uint32(port),
			TargetPort:  uint32(ports[port]),
			AppProtocol: wpb.AppProtocol(wpb.AppProtocol_value[protocols[port]]),
		})
	}
	return list
}

func encodeGateway(g *mesh.GatewayAddress) *wpb.GatewayAddress {
	if g == nil {
		return nil
	}
	p := &wpb.GatewayAddress{HboneMtlsPort: uint32(g.HBONEPort)}
	if g.Address.Addr.IsValid() {
		p.Destination = &wpb.GatewayAddress_Address{Address: &wpb.NetworkAddress{Network: g.Address.Network, Address: g.Address.Addr.AsSlice()}}
		return p
	}
	p.Destination = &wpb.GatewayAddress_Hostname{Hostname: &wpb.NamespacedHostname{Namespace: g.Service.Namespace, Hostname: g.Service.Hostname}}
	return p
}

// EncodePolicy returns p as istiod sends it.
func EncodePolicy(p *mesh.Policy) *spb.Authorization {
	a := &spb.Authorization{
		Name: p.Key.Name, Namespace: p.Key.Namespace, DryRun: p.DryRun,
		Scope:  [...]spb.Scope{spb.Scope_GLOBAL, spb.Scope_NAMESPACE, spb.Scope_WORKLOAD_SELECTOR}[p.Scope],
		Action: [...]spb.Action{spb.Action_ALLOW, spb.Action_DENY}[p.Action],
	}
	for _, rule := range p.Rules {
		g := &spb.Group{}
		for _, clause := range rule {
			r := &spb.Rules{}
			for i := range clause {
				r.Matches = append(r.Matches, encodeMatch(&clause[i]))
			}
			g.Rules = append(g.Rules, r)
		}
		a.Groups = append(a.Groups, g)
	}
	return a
}

func encodeMatch(m *mesh.Match) *spb.Match {
	return &spb.Match{
		Namespaces:          encodeTexts(m.Namespaces),
		NotNamespaces:       encodeTexts(m.NotNamespaces),
		Principals:          encodeTexts(m.Principals),
		NotPrincipals:       encodeTexts(m.NotPrincipals),
		ServiceAccounts:     encodeServiceAccounts(m.ServiceAccounts),
		NotServiceAccounts:  encodeServiceAccounts(m.NotServiceAccounts),
		SourceIps:           encodePrefixes(m.SourceIPs),
		NotSourceIps:        encodePrefixes(m.NotSourceIPs),
		DestinationIps:      encodePrefixes(m.DestinationIPs),
		NotDestinationIps:   encodePrefixes(m.NotDestinationIPs),
		DestinationPorts:    encodeNumbers(m.DestinationPorts),
		NotDestinationPorts: encodeNumbers(m.NotDestinationPorts),
	}
}

func encodeTexts(list []mesh.StringMatch) []*spb.StringMatch {
	var out []*spb.StringMatch
	for _, m := range list {
		p := &spb.StringMatch{}
		switch m.Kind {
		case mesh.MatchExact:
			p.MatchType = &spb.StringMatch_Exact{Exact: m.Value}
		case mesh.MatchPrefix:
			p.MatchType = &spb.StringMatch_Prefix{Prefix: m.Value}
		case mesh.MatchSuffix:
			p.MatchType = &spb.StringMatch_Suffix{Suffix: m.Value}
		case mesh.MatchPresence:
			p.MatchType = &spb.StringMatch_Presence{Presence: &emptypb.Empty{}}
		}
		out = append(out, p)
	}
	return out
}

func encodeServiceAccounts(list []mesh.ServiceAccountMatch) []*spb.ServiceAccountMatch {
	var out []*spb.ServiceAccountMatch
	for _, m := range list {
		out = append(out, &spb.ServiceAccountMatch{Namespace: m.Namespace, ServiceAccount: m.ServiceAccount})
	}
	return out
}

func encodePrefixes(list []netip.Prefix) []*spb.Address {
	var out []*spb.Address
	for _, p := range list {
		out = append(out, &spb.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())})
	}
	return out
}

func encodeNumbers(list []uint16) []uint32 {
	var out []uint32
	for _, p := range list {
		out = append(out, uint32(p))
	}
	return out
}

// WorkloadAddress wraps a workload message as a resource of AddressType holds it.
func WorkloadAddress(w *wpb.Workload) *wpb.Address {
	return &wpb.Address{Type: &wpb.Address_Workload{Workload: w}}
}

// ServiceAddress wraps a service message as a resource of AddressType holds it.
func ServiceAddress(s *wpb.Service) *wpb.Address {
	return &wpb.Address{Type: &wpb.Address_Service{Service: s}}
}

// Marshal encodes a message for Istiod.SetRaw.
func Marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatalf("Marshal(%T) = %v", m, err)
	}
	return body
}
