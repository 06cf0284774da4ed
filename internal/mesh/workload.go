package mesh

import (
	"net/netip"
	"strings"
)

// WorkloadType is the kind of the controller that owns a workload, for telemetry.
type WorkloadType uint8

// The types of Istio's WorkloadType.
const (
	Deployment WorkloadType = iota
	CronJob
	Pod
	Job
)

// String returns the lower-case name used in baggage and logs.
func (t WorkloadType) String() string {
	return [...]string{"deployment", "cronjob", "pod", "job"}[t&3]
}

// ApplicationTunnel asks for the connection to be handed to the application with a PROXY protocol header.
type ApplicationTunnel struct {
	PROXY bool   // PROXY protocol v2 header first
	Port  uint16 // 0 means the resolved port
}

// Workload is one addressable instance: a pod, an ECS task, a virtual machine, or a gateway.
type Workload struct {
	UID            string // key; for example Kubernetes//Pod/default/echo-1
	Name           string
	Namespace      string
	TrustDomain    string // never empty
	ServiceAccount string // never empty

	Addresses []netip.Addr
	Hostname  string // resolved on demand when Addresses is empty
	Network   string
	ClusterID string
	Node      string
	Locality  Locality

	Protocol     Protocol
	NativeTunnel bool // the application itself speaks HBONE
	HostNetwork  bool // shares its node's addresses, so it is not found by address
	Unhealthy    bool
	Capacity     uint32 // weight; 1 unless said otherwise

	Waypoint          *GatewayAddress
	NetworkGateway    *GatewayAddress
	ApplicationTunnel *ApplicationTunnel

	CanonicalName     string
	CanonicalRevision string
	WorkloadName      string
	WorkloadType      WorkloadType

	// Policies are the selector-scoped policies that apply to this workload.
	Policies []PolicyKey
	// Services maps the services this workload is an endpoint of to its own mapping service port to target port.
	Services map[ServiceKey]map[uint16]uint16
}

// Identity is what the workload's certificate says.
func (w *Workload) Identity() Identity {
	return Identity{TrustDomain: w.TrustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount}
}

// IsPod reports whether the workload stands for a Kubernetes pod, which its UID tells.
func (w *Workload) IsPod() bool { return strings.Contains(w.UID, "//Pod/") }

// RoutingScope is one preference of a load balancer: how near an endpoint is to the source.
type RoutingScope uint8

// The scopes of Istio's LoadBalancing.Scope.
const (
	ScopeRegion RoutingScope = iota
	ScopeZone
	ScopeSubzone
	ScopeNode
	ScopeCluster
	ScopeNetwork
)

// LoadBalancerMode says what the preferences of a LoadBalancer do.
type LoadBalancerMode uint8

// The modes of Istio's LoadBalancing.Mode.
const (
	ModeStandard    LoadBalancerMode = iota // preferences are ignored
	ModeStrict                              // only endpoints that match all preferences
	ModeFailover                            // the endpoints that match the most preferences
	ModePassthrough                         // the original destination, untouched
)

// LoadBalancer is a service's choice among its endpoints.
type LoadBalancer struct {
	Preferences []RoutingScope
	Mode        LoadBalancerMode
	AllowAll    bool // unhealthy endpoints count too
}

// IPFamilies says which families a service's names resolve to.
type IPFamilies uint8

// The families of Istio's IPFamilies.
const (
	FamiliesAutomatic IPFamilies = iota
	IPv4Only
	IPv6Only
	DualStack
)

// Allows reports whether an address of addr's family may be used.
func (f IPFamilies) Allows(addr netip.Addr) bool {
	switch f {
	case IPv4Only:
		return addr.Is4()
	case IPv6Only:
		return addr.Is6()
	}
	return true
}

// WeightedGateway is one of several waypoints of a service with its share of the connections.
type WeightedGateway struct {
	Gateway GatewayAddress
	Weight  uint32
}

// Service is a name, its virtual addresses and its ports. Its endpoints are the workloads that name it.
type Service struct {
	Key  ServiceKey
	Name string

	VIPs     []NetworkAddress
	CIDRVIPs []NetworkPrefix
	// Ports maps service port to target port; target 0 means "named port: ask the endpoint".
	Ports map[uint16]uint16
	// AppProtocols maps service port to Istio's name of its application protocol (HTTP11, HTTP2, GRPC) where known.
	AppProtocols map[uint16]string

	SubjectAltNames   []string
	Waypoint          *GatewayAddress
	WeightedWaypoints []WeightedGateway
	LoadBalancer      *LoadBalancer
	IPFamilies        IPFamilies
	Canonical         bool // the oldest of several services with this hostname
	NamespacePrivate  bool // visible in its own namespace only
}
