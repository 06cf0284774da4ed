package xds

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"unique"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	pb "github.com/isthmus-mesh/isthmus/internal/xds/discoverypb"
	wpb "github.com/isthmus-mesh/isthmus/internal/xds/workloadpb"
)

// Defaults for what istiod leaves out.
const (
	defaultServiceAccount = "default"
	defaultClusterID      = "Kubernetes"
)

// decodeAddresses decodes a response of AddressType.
func decodeAddresses(resources []*pb.Resource) decoded {
	d := decoded{rejected: map[string]error{}}
	for _, r := range resources {
		var a wpb.Address
		if err := unmarshal(r, AddressType, &a); err != nil {
			d.rejected[r.GetName()] = err
			continue
		}
		switch t := a.Type.(type) {
		case *wpb.Address_Workload:
			w, err := DecodeWorkload(t.Workload)
			if err != nil {
				d.rejected[r.Name] = err
				continue
			}
			d.update.Workloads = append(d.update.Workloads, w)
		case *wpb.Address_Service:
			s, err := DecodeService(t.Service)
			if err != nil {
				d.rejected[r.Name] = err
				continue
			}
			d.update.Services = append(d.update.Services, s)
		default:
			d.rejected[r.Name] = errors.New("neither a workload nor a service")
		}
	}
	return d
}

func unmarshal(r *pb.Resource, typeURL string, to proto.Message) error {
	body := r.GetResource()
	if body == nil {
		return errors.New("no resource in it")
	}
	if body.TypeUrl != typeURL {
		return fmt.Errorf("unexpected type %.128q", body.TypeUrl)
	}
	if err := proto.Unmarshal(body.Value, to); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

// DecodeWorkload checks a workload of the workload API and returns it with defaults filled in.
func DecodeWorkload(p *wpb.Workload) (*mesh.Workload, error) {
	if p.GetUid() == "" {
		return nil, errors.New("workload without a uid")
	}
	w := &mesh.Workload{
		UID:               p.Uid,
		Name:              p.Name,
		Namespace:         intern(p.Namespace),
		TrustDomain:       orDefault(p.TrustDomain, mesh.DefaultTrustDomain),
		ServiceAccount:    orDefault(p.ServiceAccount, defaultServiceAccount),
		Hostname:          p.Hostname,
		Network:           intern(p.Network),
		ClusterID:         orDefault(p.ClusterId, defaultClusterID),
		Node:              intern(p.Node),
		NativeTunnel:      p.NativeTunnel,
		HostNetwork:       p.NetworkMode == wpb.NetworkMode_HOST_NETWORK,
		Unhealthy:         p.Status == wpb.WorkloadStatus_UNHEALTHY,
		Capacity:          1,
		CanonicalName:     intern(p.CanonicalName),
		CanonicalRevision: intern(p.CanonicalRevision),
		WorkloadName:      intern(p.WorkloadName),
	}
	if p.Locality != nil {
		w.Locality = mesh.Locality{Region: intern(p.Locality.Region), Zone: intern(p.Locality.Zone), Subzone: intern(p.Locality.Subzone)}
	}
	if p.Capacity != nil {
		w.Capacity = p.Capacity.Value
	}
	if err := decodeEnums(p, w); err != nil {
		return nil, err
	}
	return w, decodeWorkloadParts(p, w)
}

func decodeEnums(p *wpb.Workload, w *mesh.Workload) error {
	switch p.TunnelProtocol {
	case wpb.TunnelProtocol_NONE:
	case wpb.TunnelProtocol_HBONE:
		w.Protocol = mesh.HBONE
	default:
		return fmt.Errorf("unsupported tunnel protocol %v", p.TunnelProtocol)
	}
	switch p.WorkloadType {
	case wpb.WorkloadType_DEPLOYMENT:
		w.WorkloadType = mesh.Deployment
	case wpb.WorkloadType_CRONJOB:
		w.WorkloadType = mesh.CronJob
	case wpb.WorkloadType_POD:
		w.WorkloadType = mesh.Pod
	case wpb.WorkloadType_JOB:
		w.WorkloadType = mesh.Job
	default:
		return fmt.Errorf("unknown workload type %v", p.WorkloadType)
	}
	if p.Status != wpb.WorkloadStatus_HEALTHY && p.Status != wpb.WorkloadStatus_UNHEALTHY {
		return fmt.Errorf("unknown status %v", p.Status)
	}
	if p.NetworkMode != wpb.NetworkMode_STANDARD && p.NetworkMode != wpb.NetworkMode_HOST_NETWORK {
		return fmt.Errorf("unknown network mode %v", p.NetworkMode)
	}
	return nil
}

func decodeWorkloadParts(p *wpb.Workload, w *mesh.Workload) (err error) {
	for _, raw := range p.Addresses {
		a, err := decodeAddr(raw)
		if err != nil {
			return err
		}
		w.Addresses = append(w.Addresses, a)
	}
	if w.Waypoint, err = decodeGateway(p.Waypoint); err != nil {
		return fmt.Errorf("waypoint: %w", err)
	}
	if w.NetworkGateway, err = decodeGateway(p.NetworkGateway); err != nil {
		return fmt.Errorf("network gateway: %w", err)
	}
	if t := p.ApplicationTunnel; t != nil {
		port, err := decodePort(t.Port)
		if err != nil {
			return fmt.Errorf("application tunnel: %w", err)
		}
		if t.Protocol != wpb.ApplicationTunnel_NONE && t.Protocol != wpb.ApplicationTunnel_PROXY {
			return fmt.Errorf("unknown application tunnel protocol %v", t.Protocol)
		}
		w.ApplicationTunnel = &mesh.ApplicationTunnel{PROXY: t.Protocol == wpb.ApplicationTunnel_PROXY, Port: port}
	}
	for _, name := range p.AuthorizationPolicies {
		ns, n, ok := strings.Cut(name, "/")
		if !ok {
			return fmt.Errorf("authorization policy %.256q is not NAMESPACE/NAME", name)
		}
		w.Policies = append(w.Policies, mesh.PolicyKey{Namespace: intern(ns), Name: intern(n)})
	}
	if len(p.Services) == 0 {
		return nil
	}
	w.Services = make(map[mesh.ServiceKey]map[uint16]uint16, len(p.Services))
	for name, list := range p.Services {
		ns, host, ok := strings.Cut(name, "/")
		if !ok {
			return fmt.Errorf("service %.256q is not NAMESPACE/HOSTNAME", name)
		}
		ports, _, err := decodePorts(list.GetPorts())
		if err != nil {
			return fmt.Errorf("service %.256q: %w", name, err)
		}
		w.Services[mesh.ServiceKey{Namespace: intern(ns), Hostname: intern(host)}] = ports
	}
	return nil
}

// DecodeService checks a service of the workload API.
func DecodeService(p *wpb.Service) (*mesh.Service, error) {
	if p.GetHostname() == "" {
		return nil, errors.New("service without a hostname")
	}
	s := &mesh.Service{
		Key:              mesh.ServiceKey{Namespace: intern(p.Namespace), Hostname: intern(p.Hostname)},
		Name:             p.Name,
		SubjectAltNames:  p.SubjectAltNames,
		Canonical:        p.Canonical,
		NamespacePrivate: p.Visibility == wpb.Service_NAMESPACE, // a visibility of the future is taken for public, as ztunnel does
	}
	for _, a := range p.Addresses {
		addr, err := decodeAddr(a.GetAddress())
		if err != nil {
			return nil, err
		}
		if a.Length == nil || *a.Length == uint32(addr.BitLen()) {
			s.VIPs = append(s.VIPs, mesh.NetworkAddress{Network: intern(a.Network), Addr: addr})
			continue
		}
		prefix, err := decodePrefix(addr, *a.Length)
		if err != nil {
			return nil, err
		}
		s.CIDRVIPs = append(s.CIDRVIPs, mesh.NetworkPrefix{Network: intern(a.Network), Prefix: prefix})
	}
	var err error
	if s.Ports, s.AppProtocols, err = decodePorts(p.Ports); err != nil {
		return nil, err
	}
	if s.Waypoint, err = decodeGateway(p.Waypoint); err != nil {
		return nil, fmt.Errorf("waypoint: %w", err)
	}
	for _, weighted := range p.WeightedWaypoints {
		g, err := decodeGateway(weighted.GetDestination())
		if err != nil {
			return nil, fmt.Errorf("weighted waypoint: %w", err)
		}
		if g == nil {
			return nil, errors.New("weighted waypoint without a destination")
		}
		s.WeightedWaypoints = append(s.WeightedWaypoints, mesh.WeightedGateway{Gateway: *g, Weight: weighted.Weight})
	}
	if s.LoadBalancer, err = decodeLoadBalancer(p.LoadBalancing); err != nil {
		return nil, err
	}
	if p.IpFamilies < wpb.IPFamilies_AUTOMATIC || p.IpFamilies > wpb.IPFamilies_DUAL {
		return nil, fmt.Errorf("unknown IP families %v", p.IpFamilies)
	}
	s.IPFamilies = [...]mesh.IPFamilies{mesh.FamiliesAutomatic, mesh.IPv4Only, mesh.IPv6Only, mesh.DualStack}[p.IpFamilies]
	return s, nil
}

func decodeLoadBalancer(p *wpb.LoadBalancing) (*mesh.LoadBalancer, error) {
	if p == nil {
		return nil, nil
	}
	lb := &mesh.LoadBalancer{}
	for _, scope := range p.RoutingPreference {
		if scope <= wpb.LoadBalancing_UNSPECIFIED_SCOPE || scope > wpb.LoadBalancing_NETWORK {
			return nil, fmt.Errorf("unknown routing preference %v", scope)
		}
		lb.Preferences = append(lb.Preferences, mesh.RoutingScope(scope-wpb.LoadBalancing_REGION))
	}
	if p.Mode < wpb.LoadBalancing_UNSPECIFIED_MODE || p.Mode > wpb.LoadBalancing_PASSTHROUGH {
		return nil, fmt.Errorf("unknown load balancing mode %v", p.Mode)
	}
	lb.Mode = [...]mesh.LoadBalancerMode{mesh.ModeStandard, mesh.ModeStrict, mesh.ModeFailover, mesh.ModePassthrough}[p.Mode]
	switch p.HealthPolicy {
	case wpb.LoadBalancing_ONLY_HEALTHY:
	case wpb.LoadBalancing_ALLOW_ALL:
		lb.AllowAll = true
	default:
		return nil, fmt.Errorf("unknown health policy %v", p.HealthPolicy)
	}
	return lb, nil
}

func decodeGateway(p *wpb.GatewayAddress) (*mesh.GatewayAddress, error) {
	if p == nil {
		return nil, nil
	}
	port, err := decodePort(p.HboneMtlsPort)
	if err != nil {
		return nil, err
	}
	g := &mesh.GatewayAddress{HBONEPort: port}
	switch d := p.Destination.(type) {
	case *wpb.GatewayAddress_Address:
		addr, err := decodeAddr(d.Address.GetAddress())
		if err != nil {
			return nil, err
		}
		g.Address = mesh.NetworkAddress{Network: intern(d.Address.Network), Addr: addr}
	case *wpb.GatewayAddress_Hostname:
		if d.Hostname.GetHostname() == "" {
			return nil, errors.New("gateway with an empty hostname")
		}
		g.Service = mesh.ServiceKey{Namespace: intern(d.Hostname.Namespace), Hostname: intern(d.Hostname.Hostname)}
	default:
		return nil, errors.New("gateway without a destination")
	}
	return g, nil
}

func decodePorts(list []*wpb.Port) (ports map[uint16]uint16, protocols map[uint16]string, err error) {
	ports = make(map[uint16]uint16, len(list))
	for _, p := range list {
		service, err := decodePort(p.GetServicePort())
		if err != nil {
			return nil, nil, err
		}
		target, err := decodePort(p.GetTargetPort())
		if err != nil {
			return nil, nil, err
		}
		ports[service] = target
		name, known := wpb.AppProtocol_name[int32(p.GetAppProtocol())]
		if !known || p.AppProtocol == wpb.AppProtocol_UNKNOWN {
			continue // a hint only: what is new to us is as good as nothing
		}
		if protocols == nil {
			protocols = make(map[uint16]string, len(list))
		}
		protocols[service] = name
	}
	return ports, protocols, nil
}

func decodePort(p uint32) (uint16, error) {
	if p > math.MaxUint16 {
		return 0, fmt.Errorf("port %d is out of range", p)
	}
	return uint16(p), nil
}

// decodeAddr never returns a v4-mapped address.
func decodeAddr(raw []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return a, fmt.Errorf("address of %d bytes", len(raw))
	}
	return a.Unmap(), nil
}

func decodePrefix(a netip.Addr, length uint32) (netip.Prefix, error) {
	if length > uint32(a.BitLen()) {
		return netip.Prefix{}, fmt.Errorf("prefix length %d of %s is out of range", length, a)
	}
	return netip.PrefixFrom(a, int(length)).Masked(), nil
}

func orDefault(s, d string) string {
	if s == "" {
		return d
	}
	return intern(s)
}

// intern lets the many workloads of a mesh share the few names of namespaces, networks, zones and services.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}
