package admin

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// View is the state that a dump describes. The sequences must be sorted.
type View interface {
	Workloads() iter.Seq[*mesh.Workload]
	Services() iter.Seq[*mesh.Service]
	Policies() iter.Seq[*mesh.Policy]
}

// Describe fills a Dump with a view of the mesh.
func Describe(v View) Dump {
	d := Dump{Workloads: []Workload{}, Services: []Service{}, Policies: []Policy{}, Certificates: []Certificate{},
		StagedServices: map[string]any{}, StaticConfig: map[string]any{}, WorkloadState: map[string]WorkloadState{}}
	endpoints := map[mesh.ServiceKey]map[string]Endpoint{}
	for w := range v.Workloads() {
		d.Workloads = append(d.Workloads, NewWorkload(w))
		for k, ports := range w.Services {
			if endpoints[k] == nil {
				endpoints[k] = map[string]Endpoint{}
			}
			if ports == nil {
				ports = map[uint16]uint16{}
			}
			endpoints[k][w.UID] = Endpoint{WorkloadUID: w.UID, Port: ports, Status: status(w)}
		}
	}
	for s := range v.Services() {
		d.Services = append(d.Services, NewService(s, endpoints[s.Key]))
	}
	for p := range v.Policies() {
		d.Policies = append(d.Policies, NewPolicy(p))
	}
	return d
}

// NewWorkload describes a workload.
func NewWorkload(w *mesh.Workload) Workload {
	out := Workload{
		WorkloadIPs: []string{}, Waypoint: gateway(w.Waypoint), NetworkGateway: gateway(w.NetworkGateway),
		Protocol: w.Protocol.String(), NetworkMode: "Standard", UID: w.UID, Name: w.Name, Namespace: w.Namespace,
		TrustDomain: w.TrustDomain, ServiceAccount: w.ServiceAccount, Network: w.Network, WorkloadName: w.WorkloadName,
		WorkloadType: w.WorkloadType.String(), CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision,
		Hostname: w.Hostname, Node: w.Node, NativeTunnel: w.NativeTunnel, Status: status(w), ClusterID: w.ClusterID, Capacity: w.Capacity,
	}
	if w.HostNetwork {
		out.NetworkMode = "HostNetwork"
	}
	for _, a := range w.Addresses {
		out.WorkloadIPs = append(out.WorkloadIPs, a.String())
	}
	if t := w.ApplicationTunnel; t != nil {
		out.ApplicationTunnel = &Tunnel{Protocol: "NONE", Port: t.Port}
		if t.PROXY {
			out.ApplicationTunnel.Protocol = "PROXY"
		}
	}
	for _, k := range w.Policies {
		out.AuthorizationPolicies = append(out.AuthorizationPolicies, k.String())
	}
	if w.Locality != (mesh.Locality{}) {
		out.Locality = &Locality{Region: w.Locality.Region, Zone: w.Locality.Zone, Subzone: w.Locality.Subzone}
	}
	for k := range w.Services {
		out.Services = append(out.Services, k.String())
	}
	slices.Sort(out.Services)
	return out
}

// NewService describes a service with its endpoints.
func NewService(s *mesh.Service, endpoints map[string]Endpoint) Service {
	out := Service{
		Name: s.Name, Namespace: s.Key.Namespace, Hostname: s.Key.Hostname, VIPs: []string{}, Ports: s.Ports, Endpoints: endpoints,
		SubjectAltNames: s.SubjectAltNames, Waypoint: gateway(s.Waypoint), Canonical: s.Canonical,
		IPFamilies: [...]string{"", "IPv4", "IPv6", "Dual"}[s.IPFamilies&3],
	}
	if out.Ports == nil {
		out.Ports = map[uint16]uint16{}
	}
	for _, v := range s.VIPs {
		out.VIPs = append(out.VIPs, v.String())
	}
	for _, v := range s.CIDRVIPs {
		out.CIDRVIPs = append(out.CIDRVIPs, v.Network+"/"+v.Prefix.String())
	}
	for _, w := range s.WeightedWaypoints {
		out.WeightedWaypoints = append(out.WeightedWaypoints,
			WeightedWaypoint{Destination: w.Gateway.Destination(), HBONEMTLSPort: w.Gateway.HBONEPort, Weight: w.Weight})
	}
	if lb := s.LoadBalancer; lb != nil {
		out.LoadBalancer = &LoadBalancer{RoutingPreferences: []string{}, HealthPolicy: "OnlyHealthy",
			Mode: [...]string{"Standard", "Strict", "Failover", "Passthrough"}[lb.Mode&3]}
		for _, p := range lb.Preferences {
			out.LoadBalancer.RoutingPreferences = append(out.LoadBalancer.RoutingPreferences, scopeName(p))
		}
		if lb.AllowAll {
			out.LoadBalancer.HealthPolicy = "AllowAll"
		}
	}
	if s.NamespacePrivate {
		out.Visibility = "Namespace"
	}
	return out
}

func scopeName(s mesh.RoutingScope) string {
	names := [...]string{"Region", "Zone", "Subzone", "Node", "Cluster", "Network"}
	if int(s) < len(names) {
		return names[s]
	}
	return ""
}

// NewPolicy describes a policy.
func NewPolicy(p *mesh.Policy) Policy {
	out := Policy{Name: p.Key.Name, Namespace: p.Key.Namespace, Scope: p.Scope.String(), Action: p.Action.String(), DryRun: p.DryRun, Rules: [][][]Match{}}
	for _, r := range p.Rules {
		clauses := [][]Match{}
		for _, c := range r {
			matches := []Match{}
			for _, m := range c {
				matches = append(matches, newMatch(m))
			}
			clauses = append(clauses, matches)
		}
		out.Rules = append(out.Rules, clauses)
	}
	return out
}

func newMatch(m mesh.Match) Match {
	return Match{
		Namespaces: stringMatches(m.Namespaces), NotNamespaces: stringMatches(m.NotNamespaces),
		Principals: stringMatches(m.Principals), NotPrincipals: stringMatches(m.NotPrincipals),
		ServiceAccounts: accounts(m.ServiceAccounts), NotServiceAccounts: accounts(m.NotServiceAccounts),
		SourceIPs: prefixes(m.SourceIPs), NotSourceIPs: prefixes(m.NotSourceIPs),
		DestinationIPs: prefixes(m.DestinationIPs), NotDestinationIPs: prefixes(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func stringMatches(ms []mesh.StringMatch) []StringMatch {
	var out []StringMatch
	for _, m := range ms {
		switch m.Kind {
		case mesh.MatchPrefix:
			out = append(out, StringMatch{"Prefix": m.Value})
		case mesh.MatchSuffix:
			out = append(out, StringMatch{"Suffix": m.Value})
		case mesh.MatchPresence:
			out = append(out, StringMatch{"Presence": []string{}})
		default:
			out = append(out, StringMatch{"Exact": m.Value})
		}
	}
	return out
}

func accounts(ms []mesh.ServiceAccountMatch) []AccountMatch {
	var out []AccountMatch
	for _, m := range ms {
		out = append(out, AccountMatch{Namespace: m.Namespace, ServiceAccount: m.ServiceAccount})
	}
	return out
}

func prefixes(ps []netip.Prefix) []string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return out
}

func gateway(g *mesh.GatewayAddress) *Gateway {
	if g == nil {
		return nil
	}
	return &Gateway{Destination: g.Destination(), HBONEMTLSPort: g.HBONEPort}
}

func status(w *mesh.Workload) string {
	if w.Unhealthy {
		return "Unhealthy"
	}
	return "Healthy"
}
