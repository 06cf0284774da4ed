// Package mesh holds the nouns of an Istio ambient mesh: identities, workloads, services, networks and policies.
//
// The words and their meaning are Istio's (workload.proto and authorization.proto of its workload API). Values are
// immutable once published: a reader may keep a *Workload, *Service or *Policy for ever and must not change it.
// The package imports only the standard library, so that every other package can speak it.
package mesh

import (
	"cmp"
	"net/netip"
)

// Well-known ports of a ztunnel, Istio's own numbers.
const (
	OutboundPort  = 15001 // captured outbound TCP
	InboundPort   = 15006 // captured inbound plaintext
	HBONEPort     = 15008 // inbound HBONE: mTLS, HTTP/2 CONNECT
	DNSPort       = 15053 // DNS proxy
	SOCKSPort     = 15080 // SOCKS5 and HTTP CONNECT, loopback only
	AdminPort     = 15000 // admin: config_dump, logging, pprof
	MetricsPort   = 15020 // Prometheus
	ReadinessPort = 15021 // /healthz/ready
	XDSPort       = 15012 // istiod: xDS and CA over TLS
)

// Protocol says how a workload is reached on the wire.
type Protocol uint8

// The protocols of Istio's TunnelProtocol that a ztunnel can speak.
const (
	TCP   Protocol = iota // plain TCP
	HBONE                 // HTTP/2 CONNECT over mTLS
)

// String returns the name istioctl prints.
func (p Protocol) String() string {
	if p == HBONE {
		return "HBONE"
	}
	return "TCP"
}

// NetworkAddress is an IP address within a named network. Two networks may use the same addresses.
type NetworkAddress struct {
	Network string
	Addr    netip.Addr // never v4-mapped
}

// String returns "network/ip", the form of config_dump.
func (a NetworkAddress) String() string { return a.Network + "/" + a.Addr.String() }

// NetworkPrefix is a CIDR within a named network.
type NetworkPrefix struct {
	Network string
	Prefix  netip.Prefix
}

// ServiceKey names a service: Istio's resource name is "namespace/hostname".
type ServiceKey struct {
	Namespace string
	Hostname  string
}

// String returns "namespace/hostname".
func (k ServiceKey) String() string { return k.Namespace + "/" + k.Hostname }

// Compare orders keys by namespace, then hostname.
func (k ServiceKey) Compare(o ServiceKey) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Hostname, o.Hostname))
}

// PolicyKey names a policy: Istio's resource name is "namespace/name".
type PolicyKey struct {
	Namespace string
	Name      string
}

// String returns "namespace/name".
func (k PolicyKey) String() string { return k.Namespace + "/" + k.Name }

// GatewayAddress is where a waypoint or a network gateway is found: either Address or Service is set.
type GatewayAddress struct {
	Address   NetworkAddress // set when Address.Addr is valid
	Service   ServiceKey     // set otherwise
	HBONEPort uint16
}

// Destination returns "network/ip" or "namespace/hostname", the form of config_dump.
func (g GatewayAddress) Destination() string {
	if g.Address.Addr.IsValid() {
		return g.Address.String()
	}
	return g.Service.String()
}

// Locality is where a workload runs: in AWS a region and an availability zone.
type Locality struct {
	Region  string
	Zone    string
	Subzone string
}

// Update is one consistent batch of changes from the control plane, applied as a whole.
type Update struct {
	Workloads []*Workload
	Services  []*Service
	Policies  []*Policy
	// RemovedAddresses are resource names of workloads (their UID) or services ("namespace/hostname").
	RemovedAddresses []string
	// RemovedPolicies are resource names of policies ("namespace/name").
	RemovedPolicies []string
}
