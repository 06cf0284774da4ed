// Package local reads a mesh from a file instead of from istiod: from ztunnel's local configuration, and from a proxy's
// config_dump.
package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// MaxBytes limits the size of a local configuration.
const MaxBytes = 64 << 20

// Defaults for what is left out; they are istiod's.
const (
	defaultServiceAccount = "default"
	defaultClusterID      = "Kubernetes"
)

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

// Parse reads a mesh from YAML in the form of ztunnel's local configuration (LOCAL_XDS and LOCAL_XDS_PATH), with
// which a proxy runs without istiod. The keys are those of config_dump; an unknown key is an error. Where ztunnel
// demands a trust domain, cluster.local is taken if there is none.
func Parse(text []byte) (mesh.Update, error) {
	if len(text) > MaxBytes {
		return mesh.Update{}, fmt.Errorf("read the local configuration: %d bytes, more than %d", len(text), MaxBytes)
	}
	var file localFile
	if err := yaml.UnmarshalStrict(text, &file); err != nil {
		return mesh.Update{}, fmt.Errorf("read the local configuration: %w", err)
	}
	u, err := file.mesh()
	if err != nil {
		return mesh.Update{}, fmt.Errorf("read the local configuration: %w", err)
	}
	return u, nil
}

type localFile struct {
	Workloads []localWorkload `json:"workloads"`
	Services  []localService  `json:"services"`
	Policies  []localPolicy   `json:"policies"`
}

func (file *localFile) mesh() (u mesh.Update, _ error) {
	var errs []error
	for i := range file.Workloads {
		w, err := file.Workloads[i].mesh()
		if err != nil {
			errs = append(errs, fmt.Errorf("workload %q: %w", file.Workloads[i].UID, err))
			continue
		}
		u.Workloads = append(u.Workloads, w)
	}
	for i := range file.Services {
		s, err := file.Services[i].mesh()
		if err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", file.Services[i].Hostname, err))
			continue
		}
		u.Services = append(u.Services, s)
	}
	for i := range file.Policies {
		p, err := file.Policies[i].mesh()
		if err != nil {
			errs = append(errs, fmt.Errorf("policy %q: %w", file.Policies[i].Name, err))
			continue
		}
		u.Policies = append(u.Policies, p)
	}
	return u, errors.Join(errs...)
}

type localWorkload struct {
	WorkloadIPs           []netip.Addr                 `json:"workloadIps"`
	Waypoint              *localGateway                `json:"waypoint"`
	NetworkGateway        *localGateway                `json:"networkGateway"`
	Protocol              string                       `json:"protocol"`
	NetworkMode           string                       `json:"networkMode"`
	UID                   string                       `json:"uid"`
	Name                  string                       `json:"name"`
	Namespace             string                       `json:"namespace"`
	TrustDomain           string                       `json:"trustDomain"`
	ServiceAccount        string                       `json:"serviceAccount"`
	Network               string                       `json:"network"`
	WorkloadName          string                       `json:"workloadName"`
	WorkloadType          string                       `json:"workloadType"`
	CanonicalName         string                       `json:"canonicalName"`
	CanonicalRevision     string                       `json:"canonicalRevision"`
	Hostname              string                       `json:"hostname"`
	Node                  string                       `json:"node"`
	NativeTunnel          bool                         `json:"nativeTunnel"`
	ApplicationTunnel     *localApplicationTunnel      `json:"applicationTunnel"`
	AuthorizationPolicies []string                     `json:"authorizationPolicies"`
	Status                string                       `json:"status"`
	ClusterID             string                       `json:"clusterId"`
	Locality              localLocality                `json:"locality"`
	Capacity              *uint32                      `json:"capacity"`
	Services              map[string]map[uint16]uint16 `json:"services"`
}

type localLocality struct {
	Region  string `json:"region"`
	Zone    string `json:"zone"`
	Subzone string `json:"subzone"`
}

type localApplicationTunnel struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

type localGateway struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

type localWeightedGateway struct {
	Destination string `json:"destination"`
	Weight      uint32 `json:"weight"`
}

type localService struct {
	Name              string                 `json:"name"`
	Namespace         string                 `json:"namespace"`
	Hostname          string                 `json:"hostname"`
	VIPs              []string               `json:"vips"`
	CIDRVIPs          []localCIDR            `json:"cidrVips"`
	Ports             map[uint16]uint16      `json:"ports"`
	SubjectAltNames   []string               `json:"subjectAltNames"`
	Waypoint          *localGateway          `json:"waypoint"`
	WeightedWaypoints []localWeightedGateway `json:"weightedWaypoints"`
	LoadBalancer      *localLoadBalancer     `json:"loadBalancer"`
	IPFamilies        string                 `json:"ipFamilies"`
	Canonical         bool                   `json:"canonical"`
	Visibility        string                 `json:"visibility"`
}

type localLoadBalancer struct {
	RoutingPreferences []string `json:"routingPreferences"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

// localCIDR is "network/cidr" or {network, cidr}.
type localCIDR struct{ mesh.NetworkPrefix }

// UnmarshalJSON implements json.Unmarshaler.
func (c *localCIDR) UnmarshalJSON(text []byte) error {
	var object struct {
		Network string `json:"network"`
		CIDR    string `json:"cidr"`
	}
	if len(text) > 0 && text[0] == '"' {
		var joined string
		if err := json.Unmarshal(text, &joined); err != nil {
			return err
		}
		object.Network, object.CIDR, _ = strings.Cut(joined, "/")
	} else if err := json.Unmarshal(text, &object); err != nil {
		return err
	}
	prefix, err := netip.ParsePrefix(object.CIDR)
	if err != nil {
		return fmt.Errorf("cidrVips: %w", err)
	}
	c.NetworkPrefix = mesh.NetworkPrefix{Network: object.Network, Prefix: prefix.Masked()}
	return nil
}

func (l *localWorkload) mesh() (*mesh.Workload, error) {
	if l.UID == "" {
		return nil, errors.New("uid is required")
	}
	w := &mesh.Workload{
		UID: l.UID, Name: l.Name, Namespace: l.Namespace,
		TrustDomain: orDefault(l.TrustDomain, mesh.DefaultTrustDomain), ServiceAccount: orDefault(l.ServiceAccount, defaultServiceAccount),
		Hostname: l.Hostname, Network: l.Network, ClusterID: orDefault(l.ClusterID, defaultClusterID), Node: l.Node,
		Locality:     mesh.Locality{Region: l.Locality.Region, Zone: l.Locality.Zone, Subzone: l.Locality.Subzone},
		NativeTunnel: l.NativeTunnel, Capacity: 1,
		CanonicalName: l.CanonicalName, CanonicalRevision: l.CanonicalRevision, WorkloadName: l.WorkloadName,
	}
	if l.Capacity != nil {
		w.Capacity = *l.Capacity
	}
	for _, a := range l.WorkloadIPs {
		w.Addresses = append(w.Addresses, a.Unmap())
	}
	var d wordDecoder
	w.Protocol = word(&d, "protocol", l.Protocol, map[string]mesh.Protocol{"": mesh.TCP, "TCP": mesh.TCP, "HBONE": mesh.HBONE})
	w.HostNetwork = word(&d, "networkMode", l.NetworkMode, map[string]bool{"": false, "Standard": false, "HostNetwork": true})
	w.Unhealthy = word(&d, "status", l.Status, map[string]bool{"": false, "Healthy": false, "Unhealthy": true})
	w.WorkloadType = word(&d, "workloadType", strings.ToLower(l.WorkloadType), map[string]mesh.WorkloadType{
		"": mesh.Deployment, "deployment": mesh.Deployment, "cronjob": mesh.CronJob, "pod": mesh.Pod, "job": mesh.Job})
	if t := l.ApplicationTunnel; t != nil {
		proxy := word(&d, "applicationTunnel.protocol", t.Protocol, map[string]bool{"": false, "NONE": false, "PROXY": true})
		w.ApplicationTunnel = &mesh.ApplicationTunnel{PROXY: proxy, Port: t.Port}
	}
	w.Waypoint, w.NetworkGateway = d.gateway(l.Waypoint), d.gateway(l.NetworkGateway)
	for _, name := range l.AuthorizationPolicies {
		ns, n := d.pair("authorizationPolicies", name)
		w.Policies = append(w.Policies, mesh.PolicyKey{Namespace: ns, Name: n})
	}
	for name, ports := range l.Services {
		if w.Services == nil {
			w.Services = make(map[mesh.ServiceKey]map[uint16]uint16, len(l.Services))
		}
		ns, host := d.pair("services", name)
		w.Services[mesh.ServiceKey{Namespace: ns, Hostname: host}] = ports
	}
	return w, d.err
}

func (l *localService) mesh() (*mesh.Service, error) {
	if l.Hostname == "" {
		return nil, errors.New("hostname is required")
	}
	s := &mesh.Service{
		Key: mesh.ServiceKey{Namespace: l.Namespace, Hostname: l.Hostname}, Name: l.Name, Ports: l.Ports,
		SubjectAltNames: l.SubjectAltNames, Canonical: l.Canonical,
	}
	var d wordDecoder
	for _, vip := range l.VIPs {
		network, ip := d.pair("vips", vip)
		a, err := netip.ParseAddr(ip)
		if err != nil {
			d.fail(fmt.Errorf("vips: %w", err))
			continue
		}
		s.VIPs = append(s.VIPs, mesh.NetworkAddress{Network: network, Addr: a.Unmap()})
	}
	for _, c := range l.CIDRVIPs {
		s.CIDRVIPs = append(s.CIDRVIPs, c.NetworkPrefix)
	}
	s.Waypoint = d.gateway(l.Waypoint)
	for _, w := range l.WeightedWaypoints {
		if g := d.gateway(&localGateway{Destination: w.Destination, HBONEMTLSPort: mesh.HBONEPort}); g != nil {
			s.WeightedWaypoints = append(s.WeightedWaypoints, mesh.WeightedGateway{Gateway: *g, Weight: w.Weight})
		}
	}
	s.IPFamilies = word(&d, "ipFamilies", l.IPFamilies, map[string]mesh.IPFamilies{
		"": mesh.FamiliesAutomatic, "IPv4": mesh.IPv4Only, "IPv6": mesh.IPv6Only, "Dual": mesh.DualStack})
	s.NamespacePrivate = word(&d, "visibility", l.Visibility, map[string]bool{"": false, "Public": false, "Namespace": true})
	if lb := l.LoadBalancer; lb != nil {
		s.LoadBalancer = &mesh.LoadBalancer{
			Mode: word(&d, "loadBalancer.mode", lb.Mode, map[string]mesh.LoadBalancerMode{
				"": mesh.ModeStandard, "Standard": mesh.ModeStandard, "Strict": mesh.ModeStrict, "Failover": mesh.ModeFailover, "Passthrough": mesh.ModePassthrough}),
			AllowAll: word(&d, "loadBalancer.healthPolicy", lb.HealthPolicy, map[string]bool{"": false, "OnlyHealthy": false, "AllowAll": true}),
		}
		for _, p := range lb.RoutingPreferences {
			s.LoadBalancer.Preferences = append(s.LoadBalancer.Preferences, word(&d, "loadBalancer.routingPreferences", p, map[string]mesh.RoutingScope{
				"Region": mesh.ScopeRegion, "Zone": mesh.ScopeZone, "Subzone": mesh.ScopeSubzone, "Node": mesh.ScopeNode, "Cluster": mesh.ScopeCluster, "Network": mesh.ScopeNetwork}))
		}
	}
	return s, d.err
}

// wordDecoder remembers the first error, so that the many fields read as a list.
type wordDecoder struct{ err error }

func (d *wordDecoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// word looks a value up in the words that a key may have.
func word[T any](d *wordDecoder, key, value string, words map[string]T) T {
	v, ok := words[value]
	if !ok {
		d.fail(fmt.Errorf("%s: unknown value %.64q", key, value))
	}
	return v
}

// pair splits "namespace/name" or "network/address"; the first part may be empty.
func (d *wordDecoder) pair(key, value string) (first, second string) {
	first, second, ok := strings.Cut(value, "/")
	if !ok || second == "" {
		d.fail(fmt.Errorf("%s: %.256q has no slash in it", key, value))
	}
	return first, second
}

func (d *wordDecoder) gateway(l *localGateway) *mesh.GatewayAddress {
	if l == nil {
		return nil
	}
	first, second := d.pair("destination", l.Destination)
	g := &mesh.GatewayAddress{HBONEPort: l.HBONEMTLSPort}
	if a, err := netip.ParseAddr(second); err == nil {
		g.Address = mesh.NetworkAddress{Network: first, Addr: a.Unmap()}
		return g
	}
	g.Service = mesh.ServiceKey{Namespace: first, Hostname: second}
	return g
}
