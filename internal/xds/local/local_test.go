package local_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds/local"
)

const localYAML = `
workloads:
- uid: Kubernetes//Pod/ns/echo-1
  name: echo-1
  namespace: ns
  serviceAccount: echo
  workloadIps: ["10.0.0.1", "::ffff:10.0.0.2"]
  protocol: HBONE
  network: eks
  node: node-1
  status: Unhealthy
  workloadType: Pod
  capacity: 0
  locality: {region: r, zone: z}
  applicationTunnel: {protocol: PROXY, port: 9}
  waypoint: {destination: eks/10.0.0.9, hboneMtlsPort: 15008}
  networkGateway: {destination: istio-system/gw.example, hboneMtlsPort: 15443}
  authorizationPolicies: [ns/p]
  services:
    ns/echo.ns:
      80: 8080
services:
- name: echo
  namespace: ns
  hostname: echo.ns
  vips: [eks/240.240.0.1, /fd00::1]
  cidrVips: [eks/10.5.0.0/16, {network: eks, cidr: 10.6.1.0/16}]
  ports: {80: 8080}
  loadBalancer: {routingPreferences: [Network, Region], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  visibility: Namespace
  canonical: true
policies:
- name: p
  namespace: ns
  scope: WorkloadSelector
  action: Deny
  rules:
  - - - notPrincipals: [{Presence: []}]
      - sourceIps: [10.1.2.3/8]
        namespaces: [{Exact: a}, {Prefix: b}, {Suffix: c}]
    - - notDestinationPorts: [8080]
        serviceAccounts: [{namespace: a, serviceAccount: b}]
`

func TestParse(t *testing.T) {
	got, err := local.Parse([]byte(localYAML))
	if err != nil {
		t.Fatalf("Parse() = %v", err)
	}
	want := mesh.Update{
		Workloads: []*mesh.Workload{{
			UID: "Kubernetes//Pod/ns/echo-1", Name: "echo-1", Namespace: "ns", TrustDomain: "cluster.local", ServiceAccount: "echo",
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")},
			Network:   "eks", ClusterID: "Kubernetes", Node: "node-1", Locality: mesh.Locality{Region: "r", Zone: "z"},
			Protocol: mesh.HBONE, Unhealthy: true, Capacity: 0, WorkloadType: mesh.Pod,
			Waypoint:          &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: netip.MustParseAddr("10.0.0.9")}, HBONEPort: 15008},
			NetworkGateway:    &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "istio-system", Hostname: "gw.example"}, HBONEPort: 15443},
			ApplicationTunnel: &mesh.ApplicationTunnel{PROXY: true, Port: 9},
			Policies:          []mesh.PolicyKey{{Namespace: "ns", Name: "p"}},
			Services:          map[mesh.ServiceKey]map[uint16]uint16{{Namespace: "ns", Hostname: "echo.ns"}: {80: 8080}},
		}},
		Services: []*mesh.Service{{
			Key: mesh.ServiceKey{Namespace: "ns", Hostname: "echo.ns"}, Name: "echo",
			VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: netip.MustParseAddr("240.240.0.1")}, {Addr: netip.MustParseAddr("fd00::1")}},
			CIDRVIPs: []mesh.NetworkPrefix{{Network: "eks", Prefix: netip.MustParsePrefix("10.5.0.0/16")},
				{Network: "eks", Prefix: netip.MustParsePrefix("10.6.0.0/16")}},
			Ports:        map[uint16]uint16{80: 8080},
			LoadBalancer: &mesh.LoadBalancer{Preferences: []mesh.RoutingScope{mesh.ScopeNetwork, mesh.ScopeRegion}, Mode: mesh.ModeFailover, AllowAll: true},
			IPFamilies:   mesh.IPv4Only, NamespacePrivate: true, Canonical: true,
		}},
		Policies: []*mesh.Policy{{
			Key: mesh.PolicyKey{Namespace: "ns", Name: "p"}, Scope: mesh.ScopeSelector, Action: mesh.Deny,
			Rules: []mesh.Rule{{
				{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}},
					{SourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
						Namespaces: []mesh.StringMatch{{Value: "a"}, {Kind: mesh.MatchPrefix, Value: "b"}, {Kind: mesh.MatchSuffix, Value: "c"}}}},
				{{NotDestinationPorts: []uint16{8080}, ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "a", ServiceAccount: "b"}}}},
			}},
		}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	store := state.NewStore()
	store.Apply(got)
	if n := len(store.Snapshot().Endpoints(want.Services[0].Key)); n != 1 {
		t.Errorf("%d endpoints, want 1", n)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ text, want string }{
		{"workload: []", `unknown field "workload"`},
		{"workloads: [{uid: a, nam: b}]", `unknown field "nam"`},
		{"workloads: [{uid: a, uid: b}]", `key "uid" already set`},
		{"workloads: [{name: a}]", "uid is required"},
		{"workloads: [{uid: a, workloadIps: [x]}]", "x"},
		{"workloads: [{uid: a, protocol: UDP}]", `protocol: unknown value "UDP"`},
		{"workloads: [{uid: a, waypoint: {destination: x}}]", "no slash"},
		{"workloads: [{uid: a, services: {x: {80: 80}}}]", "no slash"},
		{"workloads: [{uid: a, services: {a/x: {80: 99999}}}]", "99999"},
		{"services: [{name: a}]", "hostname is required"},
		{"services: [{hostname: a, vips: [x/y]}]", "vips"},
		{"services: [{hostname: a, cidrVips: [x/y]}]", "cidrVips"},
		{"policies: [{namespace: a}]", "name is required"},
		{"policies: [{name: a, scope: Global, action: Audit}]", `action: unknown value "Audit"`},
		{"policies: [{name: a, action: Allow}]", `scope: unknown value ""`},
		{"policies: [{name: a, rules: [[[{namespaces: [{Regex: x}]}]]]}]", "unknown string match"},
		{"policies: [{name: a, rules: [[[{namespaces: [{}]}]]]}]", "exactly one"},
		{"policies: [{name: a, rules: [[[{sourceIps: [x]}]]]}]", "x"},
		{":", "read the local configuration"},
	}
	for _, tt := range tests {
		if _, err := local.Parse([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%s) = %v, want an error with %q", tt.text, err, tt.want)
		}
	}
	if got, err := local.Parse(nil); err != nil || !cmp.Equal(got, mesh.Update{}) {
		t.Errorf("Parse of nothing = %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(localYAML))
	f.Add([]byte("workloads: [{uid: a}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := local.Parse(text)
		if err != nil {
			return
		}
		state.NewStore().Apply(u) // must not trip over anything that parses
	})
}

// A dump of ours and one with Istio's habits: maps instead of lists, members that nobody knows, services by their names.
func TestParseDump(t *testing.T) {
	const endpoints = `"endpoints": {"w": {"workloadUid": "w", "port": {"80": 8080}, "status": "Healthy"}, "gone": {"workloadUid": "gone", "port": {}}}`
	service := `{"name": "echo", "namespace": "ns", "hostname": "echo.ns", "vips": ["eks/240.240.0.1"], "ports": {"80": 0}, "new": 1, ` + endpoints + `}`
	workload := `{"uid": "w", "name": "w", "namespace": "ns", "workloadIps": ["10.0.0.1"], "protocol": "HBONE", "status": "Healthy", "services": ["ns/echo.ns"], "new": {}}`
	policy := `{"name": "p", "namespace": "ns", "scope": "Namespace", "action": "Deny", "rules": [[[{"principals": [{"Exact": "x"}], "new": null}]]]}`
	for name, text := range map[string]string{
		"lists": `{"workloads": [` + workload + `], "services": [` + service + `], "policies": [` + policy + `], "version": {}, "config": {}}`,
		"maps":  `{"workloads": {"w": ` + workload + `}, "services": {"a": ` + service + `}, "policies": {"p": ` + policy + `}}`,
	} {
		u, err := local.ParseDump(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		store := state.NewStore()
		store.Apply(u)
		s := store.Snapshot()
		key := mesh.ServiceKey{Namespace: "ns", Hostname: "echo.ns"}
		if eps := s.Endpoints(key); len(eps) != 1 || eps[0].Ports[80] != 8080 || s.ServiceAt(mesh.NetworkAddress{Network: "eks", Addr: netip.MustParseAddr("240.240.0.1")}, "") == nil {
			t.Errorf("%s: endpoints %+v", name, eps)
		}
		if ps, _ := s.PoliciesFor(s.Workload("w")); len(ps) != 1 || len(ps[0].Rules) != 1 {
			t.Errorf("%s: policies %+v", name, ps)
		}
	}
	for _, bad := range []string{"", "[]", `{"workloads": 1}`, `{"policies": [{"name": "p", "scope": "Namespace", "action": "Audit"}]}`, `{"workloads": [{"uid": 1}]}`} {
		if _, err := local.ParseDump(strings.NewReader(bad)); err == nil {
			t.Errorf("ParseDump(%s) was accepted", bad)
		}
	}
}
