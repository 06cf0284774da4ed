package admin

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"time"
)

// Dump is the answer of /config_dump. Its shape is ztunnel's, which istioctl ztunnel-config reads.
type Dump struct {
	Workloads      []Workload               `json:"workloads"`
	Services       []Service                `json:"services"`
	Policies       []Policy                 `json:"policies"`
	StagedServices map[string]any           `json:"stagedServices"`
	StaticConfig   map[string]any           `json:"staticConfig"`
	Version        map[string]string        `json:"version"`
	Config         map[string]any           `json:"config"`
	Certificates   []Certificate            `json:"certificates"`
	WorkloadState  map[string]WorkloadState `json:"workloadState"`
}

// Gateway is a waypoint or network gateway.
type Gateway struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
}

// Tunnel is a workload's application tunnel.
type Tunnel struct {
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
}

// Locality is where a workload runs.
type Locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	Subzone string `json:"subzone,omitempty"`
}

// Workload is one workload of the dump.
type Workload struct {
	WorkloadIPs           []string  `json:"workloadIps"`
	Waypoint              *Gateway  `json:"waypoint,omitempty"`
	NetworkGateway        *Gateway  `json:"networkGateway,omitempty"`
	Protocol              string    `json:"protocol"`
	NetworkMode           string    `json:"networkMode"`
	UID                   string    `json:"uid,omitempty"`
	Name                  string    `json:"name"`
	Namespace             string    `json:"namespace"`
	TrustDomain           string    `json:"trustDomain,omitempty"`
	ServiceAccount        string    `json:"serviceAccount,omitempty"`
	Network               string    `json:"network,omitempty"`
	WorkloadName          string    `json:"workloadName,omitempty"`
	WorkloadType          string    `json:"workloadType,omitempty"`
	CanonicalName         string    `json:"canonicalName,omitempty"`
	CanonicalRevision     string    `json:"canonicalRevision,omitempty"`
	Hostname              string    `json:"hostname,omitempty"`
	Node                  string    `json:"node,omitempty"`
	NativeTunnel          bool      `json:"nativeTunnel,omitempty"`
	ApplicationTunnel     *Tunnel   `json:"applicationTunnel,omitempty"`
	AuthorizationPolicies []string  `json:"authorizationPolicies,omitempty"`
	Status                string    `json:"status"`
	ClusterID             string    `json:"clusterId"`
	Locality              *Locality `json:"locality,omitempty"`
	Services              []string  `json:"services,omitempty"`
	Capacity              uint32    `json:"capacity"`
}

// LoadBalancer is a service's choice among its endpoints.
type LoadBalancer struct {
	RoutingPreferences []string `json:"routingPreferences"`
	Mode               string   `json:"mode"`
	HealthPolicy       string   `json:"healthPolicy"`
}

// Endpoint is one workload behind a service.
type Endpoint struct {
	WorkloadUID string            `json:"workloadUid"`
	Port        map[uint16]uint16 `json:"port"`
	Status      string            `json:"status"`
}

// WeightedWaypoint is one of several waypoints of a service.
type WeightedWaypoint struct {
	Destination   string `json:"destination"`
	HBONEMTLSPort uint16 `json:"hboneMtlsPort"`
	Weight        uint32 `json:"weight"`
}

// Service is one service of the dump.
type Service struct {
	Name              string              `json:"name"`
	Namespace         string              `json:"namespace"`
	Hostname          string              `json:"hostname"`
	VIPs              []string            `json:"vips"`
	CIDRVIPs          []string            `json:"cidrVips,omitempty"`
	Ports             map[uint16]uint16   `json:"ports"`
	Endpoints         map[string]Endpoint `json:"endpoints,omitempty"`
	SubjectAltNames   []string            `json:"subjectAltNames,omitempty"`
	Waypoint          *Gateway            `json:"waypoint,omitempty"`
	WeightedWaypoints []WeightedWaypoint  `json:"weightedWaypoints,omitempty"`
	LoadBalancer      *LoadBalancer       `json:"loadBalancer,omitempty"`
	IPFamilies        string              `json:"ipFamilies,omitempty"`
	Canonical         bool                `json:"canonical,omitempty"`
	Visibility        string              `json:"visibility,omitempty"`
}

// Policy is one authorization policy of the dump.
type Policy struct {
	Name      string      `json:"name"`
	Namespace string      `json:"namespace"`
	Scope     string      `json:"scope"`
	Action    string      `json:"action"`
	Rules     [][][]Match `json:"rules"`
	DryRun    bool        `json:"dryRun,omitempty"`
}

// StringMatch has exactly one key: Exact, Prefix, Suffix or Presence.
type StringMatch map[string]any

// AccountMatch names a service account.
type AccountMatch struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

// Match is one match of a policy's clause.
type Match struct {
	Namespaces          []StringMatch  `json:"namespaces,omitempty"`
	NotNamespaces       []StringMatch  `json:"notNamespaces,omitempty"`
	Principals          []StringMatch  `json:"principals,omitempty"`
	NotPrincipals       []StringMatch  `json:"notPrincipals,omitempty"`
	ServiceAccounts     []AccountMatch `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []AccountMatch `json:"notServiceAccounts,omitempty"`
	SourceIPs           []string       `json:"sourceIps,omitempty"`
	NotSourceIPs        []string       `json:"notSourceIps,omitempty"`
	DestinationIPs      []string       `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string       `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16       `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16       `json:"notDestinationPorts,omitempty"`
}

// Certificate is what the proxy has for one identity.
type Certificate struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	CertChain []Cert `json:"certChain"`
	RootCerts []Cert `json:"rootCerts"`
}

// Cert is one certificate.
type Cert struct {
	PEM            string `json:"pem"`          // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"` // decimal
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

// NewCerts describes certificates in the form of the dump.
func NewCerts(certs []*x509.Certificate) []Cert {
	out := make([]Cert, 0, len(certs))
	for _, c := range certs {
		if c == nil {
			continue
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
		out = append(out, Cert{
			PEM:            base64.StdEncoding.EncodeToString(text),
			SerialNumber:   c.SerialNumber.Text(10),
			ValidFrom:      c.NotBefore.UTC().Format(time.RFC3339),
			ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
	return out
}

// WorkloadState is one workload that is proxied here, with its connections.
type WorkloadState struct {
	State       string       `json:"state"` // Up or Pending
	Connections Connections  `json:"connections"`
	Info        WorkloadInfo `json:"info"`
}

// WorkloadInfo names a proxied workload.
type WorkloadInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	TrustDomain    string `json:"trustDomain,omitempty"`
	ServiceAccount string `json:"serviceAccount"`
}

// Connections are the live connections of a workload.
type Connections struct {
	Inbound  []Connection `json:"inbound"`
	Outbound []Connection `json:"outbound"`
}

// Connection is one live connection.
type Connection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"` // TCP, HBONE or DOUBLEHBONE
}
