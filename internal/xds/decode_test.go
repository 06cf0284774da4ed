package xds_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/xds"
	spb "github.com/isthmus-mesh/isthmus/internal/xds/securitypb"
	wpb "github.com/isthmus-mesh/isthmus/internal/xds/workloadpb"
)

var compareOpts = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()}

// fullWorkload, fullService and fullPolicy have something in every field.
func fullWorkload() *mesh.Workload {
	return &mesh.Workload{
		UID: "Kubernetes//Pod/ns/echo-1", Name: "echo-1", Namespace: "ns", TrustDomain: "td", ServiceAccount: "sa",
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")},
		Hostname:  "echo.example", Network: "eks", ClusterID: "c", Node: "n", Locality: mesh.Locality{Region: "r", Zone: "z", Subzone: "s"},
		Protocol: mesh.HBONE, NativeTunnel: true, HostNetwork: true, Unhealthy: true, Capacity: 7,
		Waypoint:          &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: netip.MustParseAddr("10.0.0.9")}, HBONEPort: 15008},
		NetworkGateway:    &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "istio-system", Hostname: "gw"}, HBONEPort: 15443},
		ApplicationTunnel: &mesh.ApplicationTunnel{PROXY: true, Port: 9},
		CanonicalName:     "echo", CanonicalRevision: "v1", WorkloadName: "echo", WorkloadType: mesh.Job,
		Policies: []mesh.PolicyKey{{Namespace: "ns", Name: "p"}},
		Services: map[mesh.ServiceKey]map[uint16]uint16{{Namespace: "ns", Hostname: "echo.ns"}: {80: 8080, 443: 0}},
	}
}

func fullService() *mesh.Service {
	return &mesh.Service{
		Key: mesh.ServiceKey{Namespace: "ns", Hostname: "echo.ns"}, Name: "echo",
		VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: netip.MustParseAddr("240.240.0.1")}, {Network: "eks", Addr: netip.MustParseAddr("2001:2::1")}},
		CIDRVIPs: []mesh.NetworkPrefix{{Network: "eks", Prefix: netip.MustParsePrefix("10.5.0.0/16")},
			{Network: "eks", Prefix: netip.MustParsePrefix("0.0.0.0/0")}},
		Ports: map[uint16]uint16{80: 8080, 443: 0}, AppProtocols: map[uint16]string{80: "HTTP2"},
		SubjectAltNames:   []string{"spiffe://td/ns/ns/sa/sa"},
		Waypoint:          &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "ns", Hostname: "wp"}, HBONEPort: 15008},
		WeightedWaypoints: []mesh.WeightedGateway{{Gateway: mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "ns", Hostname: "wp2"}, HBONEPort: 15008}, Weight: 3}},
		LoadBalancer:      &mesh.LoadBalancer{Preferences: []mesh.RoutingScope{mesh.ScopeNetwork, mesh.ScopeRegion}, Mode: mesh.ModeFailover, AllowAll: true},
		IPFamilies:        mesh.DualStack, Canonical: true, NamespacePrivate: true,
	}
}

func fullPolicy() *mesh.Policy {
	texts := []mesh.StringMatch{{Kind: mesh.MatchExact, Value: "a"}, {Kind: mesh.MatchPrefix, Value: "b"}, {Kind: mesh.MatchSuffix, Value: "c"}, {Kind: mesh.MatchPresence}}
	accounts := []mesh.ServiceAccountMatch{{Namespace: "ns", ServiceAccount: "sa"}}
	ips := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/16")}
	return &mesh.Policy{
		Key: mesh.PolicyKey{Namespace: "ns", Name: "p"}, Scope: mesh.ScopeSelector, Action: mesh.Deny, DryRun: true,
		Rules: []mesh.Rule{{{{
			Namespaces: texts, NotNamespaces: texts, Principals: texts, NotPrincipals: texts,
			ServiceAccounts: accounts, NotServiceAccounts: accounts,
			SourceIPs: ips, NotSourceIPs: ips, DestinationIPs: ips, NotDestinationIPs: ips,
			DestinationPorts: []uint16{80, 65535}, NotDestinationPorts: []uint16{443},
		}}}, {}, {{}}},
	}
}

func TestRoundTrip(t *testing.T) {
	w, err := xds.DecodeWorkload(meshtest.EncodeWorkload(fullWorkload()))
	if diff := cmp.Diff(fullWorkload(), w, compareOpts); err != nil || diff != "" {
		t.Errorf("DecodeWorkload: %v (-want +got):\n%s", err, diff)
	}
	s, err := xds.DecodeService(meshtest.EncodeService(fullService()))
	if diff := cmp.Diff(fullService(), s, compareOpts); err != nil || diff != "" {
		t.Errorf("DecodeService: %v (-want +got):\n%s", err, diff)
	}
	p, err := xds.DecodePolicy(meshtest.EncodePolicy(fullPolicy()))
	if diff := cmp.Diff(fullPolicy(), p, compareOpts); err != nil || diff != "" {
		t.Errorf("DecodePolicy: %v (-want +got):\n%s", err, diff)
	}
}

func TestDecodeDefaults(t *testing.T) {
	got, err := xds.DecodeWorkload(&wpb.Workload{Uid: "u", Addresses: [][]byte{netip.MustParseAddr("::ffff:10.0.0.1").AsSlice()}})
	want := &mesh.Workload{UID: "u", TrustDomain: "cluster.local", ServiceAccount: "default", ClusterID: "Kubernetes", Capacity: 1,
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	if diff := cmp.Diff(want, got, compareOpts); err != nil || diff != "" {
		t.Errorf("DecodeWorkload: %v (-want +got):\n%s", err, diff)
	}
	length := uint32(32)
	svc, err := xds.DecodeService(&wpb.Service{Hostname: "h", Visibility: 9, Addresses: []*wpb.NetworkAddress{{Address: []byte{1, 2, 3, 4}, Length: &length}}})
	if err != nil || len(svc.VIPs) != 1 || len(svc.CIDRVIPs) != 0 || svc.NamespacePrivate {
		t.Errorf("DecodeService = %+v, %v, want one plain address and public", svc, err)
	}
	p, err := xds.DecodePolicy(&spb.Authorization{Name: "p", Groups: []*spb.Group{{Rules: []*spb.Rules{{Matches: []*spb.Match{
		{SourceIps: []*spb.Address{{Address: netip.MustParseAddr("::ffff:10.1.2.3").AsSlice(), Length: 104}}}}}}}}})
	if err != nil || p.Rules[0][0][0].SourceIPs[0] != netip.MustParsePrefix("10.0.0.0/8") {
		t.Errorf("DecodePolicy of a v4-mapped CIDR = %+v, %v, want 10.0.0.0/8", p, err)
	}
}

func TestDecodeRejects(t *testing.T) {
	workload := func(change func(*wpb.Workload)) func() error {
		return func() error {
			p := meshtest.EncodeWorkload(fullWorkload())
			change(p)
			_, err := xds.DecodeWorkload(p)
			return err
		}
	}
	service := func(change func(*wpb.Service)) func() error {
		return func() error {
			p := meshtest.EncodeService(fullService())
			change(p)
			_, err := xds.DecodeService(p)
			return err
		}
	}
	match := func(m *spb.Match) func() error {
		return func() error {
			_, err := xds.DecodePolicy(&spb.Authorization{Name: "p", Groups: []*spb.Group{{Rules: []*spb.Rules{{Matches: []*spb.Match{m}}}}}})
			return err
		}
	}
	long := uint32(33)
	tests := []struct {
		want   string
		decode func() error
	}{
		{"without a uid", workload(func(p *wpb.Workload) { p.Uid = "" })},
		{"address of 5 bytes", workload(func(p *wpb.Workload) { p.Addresses = [][]byte{{1, 2, 3, 4, 5}} })},
		{"tunnel protocol", workload(func(p *wpb.Workload) { p.TunnelProtocol = wpb.TunnelProtocol_LEGACY_ISTIO_MTLS })},
		{"tunnel protocol", workload(func(p *wpb.Workload) { p.TunnelProtocol = 99 })},
		{"workload type", workload(func(p *wpb.Workload) { p.WorkloadType = 99 })},
		{"status", workload(func(p *wpb.Workload) { p.Status = 99 })},
		{"network mode", workload(func(p *wpb.Workload) { p.NetworkMode = 99 })},
		{"application tunnel protocol", workload(func(p *wpb.Workload) { p.ApplicationTunnel.Protocol = 99 })},
		{"port 70000", workload(func(p *wpb.Workload) { p.ApplicationTunnel.Port = 70000 })},
		{"without a destination", workload(func(p *wpb.Workload) { p.Waypoint.Destination = nil })},
		{"network gateway: port 65536", workload(func(p *wpb.Workload) { p.NetworkGateway.HboneMtlsPort = 65536 })},
		{"NAMESPACE/NAME", workload(func(p *wpb.Workload) { p.AuthorizationPolicies = []string{"x"} })},
		{"NAMESPACE/HOSTNAME", workload(func(p *wpb.Workload) { p.Services = map[string]*wpb.PortList{"x": nil} })},
		{"port 99999", workload(func(p *wpb.Workload) {
			p.Services = map[string]*wpb.PortList{"a/b": {Ports: []*wpb.Port{{ServicePort: 99999}}}}
		})},
		{"without a hostname", service(func(p *wpb.Service) { p.Hostname = "" })},
		{"address of 0 bytes", service(func(p *wpb.Service) { p.Addresses[0].Address = nil })},
		{"prefix length 33", service(func(p *wpb.Service) { p.Addresses[0].Length = &long })},
		{"port 80000", service(func(p *wpb.Service) { p.Ports[0].TargetPort = 80000 })},
		{"weighted waypoint without", service(func(p *wpb.Service) { p.WeightedWaypoints[0].Destination = nil })},
		{"empty hostname", service(func(p *wpb.Service) {
			p.Waypoint.Destination = &wpb.GatewayAddress_Hostname{Hostname: &wpb.NamespacedHostname{}}
		})},
		{"routing preference", service(func(p *wpb.Service) { p.LoadBalancing.RoutingPreference[0] = 0 })},
		{"load balancing mode", service(func(p *wpb.Service) { p.LoadBalancing.Mode = 9 })},
		{"health policy", service(func(p *wpb.Service) { p.LoadBalancing.HealthPolicy = 9 })},
		{"IP families", service(func(p *wpb.Service) { p.IpFamilies = 9 })},
		{"IP families", service(func(p *wpb.Service) { p.IpFamilies = -1 })},
		{"unknown kind", match(&spb.Match{Namespaces: []*spb.StringMatch{{}}})},
		{"CIDR of 3 bytes", match(&spb.Match{NotSourceIps: []*spb.Address{{Address: []byte{1, 2, 3}}}})},
		{"CIDR of 4 bytes", match(&spb.Match{DestinationIps: []*spb.Address{{Address: []byte{1, 2, 3, 4}, Length: 33}}})},
		{"rule 0: port 65536", match(&spb.Match{NotDestinationPorts: []uint32{65536}})},
		{"without a name", func() error { _, err := xds.DecodePolicy(&spb.Authorization{}); return err }},
		{"scope", func() error { _, err := xds.DecodePolicy(&spb.Authorization{Name: "x", Scope: 9}); return err }},
		{"action", func() error { _, err := xds.DecodePolicy(&spb.Authorization{Name: "x", Action: 9}); return err }},
	}
	for _, tt := range tests {
		if err := tt.decode(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("decode = %v, want an error with %q", err, tt.want)
		}
	}
}

// FuzzDecodeAddress checks that whatever can be decoded can be encoded and decoded again to the same.
func FuzzDecodeAddress(f *testing.F) {
	f.Add(meshtest.Marshal(f, meshtest.WorkloadAddress(meshtest.EncodeWorkload(fullWorkload()))))
	f.Add(meshtest.Marshal(f, meshtest.ServiceAddress(meshtest.EncodeService(fullService()))))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a wpb.Address
		if proto.Unmarshal(raw, &a) != nil {
			return
		}
		switch v := a.Type.(type) {
		case *wpb.Address_Workload:
			w, err := xds.DecodeWorkload(v.Workload)
			if err != nil {
				return
			}
			again, err := xds.DecodeWorkload(meshtest.EncodeWorkload(w))
			if diff := cmp.Diff(w, again, compareOpts); err != nil || diff != "" {
				t.Errorf("DecodeWorkload again: %v (-want +got):\n%s", err, diff)
			}
		case *wpb.Address_Service:
			s, err := xds.DecodeService(v.Service)
			if err != nil {
				return
			}
			again, err := xds.DecodeService(meshtest.EncodeService(s))
			if diff := cmp.Diff(s, again, compareOpts); err != nil || diff != "" {
				t.Errorf("DecodeService again: %v (-want +got):\n%s", err, diff)
			}
		}
	})
}

func FuzzDecodePolicy(f *testing.F) {
	f.Add(meshtest.Marshal(f, meshtest.EncodePolicy(fullPolicy())))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a spb.Authorization
		if proto.Unmarshal(raw, &a) != nil {
			return
		}
		p, err := xds.DecodePolicy(&a)
		if err != nil {
			return
		}
		again, err := xds.DecodePolicy(meshtest.EncodePolicy(p))
		if diff := cmp.Diff(p, again, compareOpts); err != nil || diff != "" {
			t.Errorf("DecodePolicy again: %v (-want +got):\n%s", err, diff)
		}
	})
}
