// Package telemetry reports connections in Istio's words: metric names and labels, response flags, and the access log
// in ztunnel's exact text and JSON forms, so that dashboards and greps written for Istio include ECS unchanged.
//
// A connection is described once, by a Conn value. The same value feeds the metric labels and the log line.
package telemetry

import (
	"net/netip"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Reason is why a connection ended otherwise than well: Istio's response flag.
type Reason uint8

// The closed set of response flags.
const (
	OK              Reason = iota // nothing went wrong
	Denied                        // an authorization policy refused, at connect time or later
	ConnectFailure                // the upstream could not be reached, and every error without a flag of its own
	TLSFailure                    // the TLS handshake with the peer failed
	H2Failure                     // the HTTP/2 handshake with the peer failed
	NetworkPolicy                 // the connection timed out as if a NetworkPolicy blocked the HBONE port
	IdentityFailure               // no certificate for the local workload, or the peer has the wrong identity
	CertRevoked                   // a certificate of the peer's path was revoked
)

// String returns the flag as it appears in the response_flags label.
func (r Reason) String() string {
	switch r {
	case OK:
		return "-"
	case Denied:
		return "DENY"
	case ConnectFailure:
		return "CONNECT"
	case TLSFailure:
		return "TLS_FAILURE"
	case H2Failure:
		return "H2_HANDSHAKE_FAILURE"
	case NetworkPolicy:
		return "NETWORK_POLICY"
	case IdentityFailure:
		return "IDENTITY_ERROR"
	case CertRevoked:
		return "CERT_REVOKED"
	}
	return "CONNECT"
}

// Reporter is the side of the connection a proxy stands on.
type Reporter uint8

// The two sides.
const (
	Source      Reporter = iota // the proxy of the client: outbound
	Destination                 // the proxy of the server: inbound
)

// String returns the value of the reporter label.
func (r Reporter) String() string {
	if r == Destination {
		return "destination"
	}
	return "source"
}

// Direction returns the word of the access log.
func (r Reporter) Direction() string {
	if r == Destination {
		return "inbound"
	}
	return "outbound"
}

// Party is one end of a connection as far as it is known. The zero value is an unknown party.
type Party struct {
	Workload          string // the owner's name: a Deployment, a service
	Instance          string // the pod or WorkloadEntry name, for the access log only
	Namespace         string
	CanonicalName     string
	CanonicalRevision string
	App               string
	Cluster           string
	Region            string
	Zone              string
	Identity          mesh.Identity // proved by mutual TLS; zero otherwise
}

// PartyOf describes a workload that xDS knows. The identity stays empty until mutual TLS has proved it.
func PartyOf(w *mesh.Workload) Party {
	if w == nil {
		return Party{}
	}
	return Party{
		Workload: w.WorkloadName, Instance: w.Name, Namespace: w.Namespace,
		CanonicalName: w.CanonicalName, CanonicalRevision: w.CanonicalRevision, App: w.CanonicalName,
		Cluster: w.ClusterID, Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// Known reports whether anything but a proved identity is known of the party.
func (p Party) Known() bool {
	p.Identity = mesh.Identity{}
	return p != Party{}
}

// Conn describes one connection for metrics and access log.
type Conn struct {
	Reporter    Reporter
	Source      Party
	Destination Party
	Service     mesh.ServiceKey // the service asked for, if any
	ServiceName string          // its short name
	MutualTLS   bool

	SrcAddr   netip.AddrPort
	DstAddr   netip.AddrPort
	HBONEAddr string // the authority inside the tunnel
	Start     time.Time
	Policy    mesh.PolicyKey // the policy that decided, when one did
	Trace     Trace          // what the connection is part of
	Rule      int            // the index of its rule that matched; negative when none did
}
