package mesh

import (
	"fmt"
	"strings"
)

// DefaultTrustDomain is the trust domain that Istio leaves out of its resources.
const DefaultTrustDomain = "cluster.local"

// Identity is a workload's SPIFFE identity as Istio forms it: spiffe://TrustDomain/ns/Namespace/sa/ServiceAccount.
// The zero value means "no identity", as of a plaintext peer.
type Identity struct {
	TrustDomain    string
	Namespace      string
	ServiceAccount string
}

// IsZero reports whether there is no identity.
func (i Identity) IsZero() bool { return i == Identity{} }

// String returns the SPIFFE URI, or "" for the zero value.
func (i Identity) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.TrustDomain + "/ns/" + i.Namespace + "/sa/" + i.ServiceAccount
}

// ParseIdentity parses a SPIFFE URI of exactly the form that Istio issues. Anything else is an error: an identity
// decides what a peer may do, so there is no lenient reading of it.
func ParseIdentity(uri string) (Identity, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return Identity{}, fmt.Errorf("invalid spiffe identity %q: scheme is not spiffe", uri)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" || parts[0] == "" || parts[2] == "" || parts[4] == "" {
		return Identity{}, fmt.Errorf("invalid spiffe identity %q: want spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT", uri)
	}
	if strings.ContainsAny(rest, "?#%@ \t\r\n") {
		return Identity{}, fmt.Errorf("invalid spiffe identity %q: unexpected character", uri)
	}
	return Identity{TrustDomain: parts[0], Namespace: parts[2], ServiceAccount: parts[4]}, nil
}
