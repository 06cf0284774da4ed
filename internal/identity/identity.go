// Package identity obtains, keeps and renews the certificates of workloads.
//
// A Manager holds one certificate per SPIFFE identity. The private key is made here and never leaves; a Signer turns
// the signing request into a chain (istioca does so through istiod). Each certificate is renewed at half its life;
// while renewal fails, the present one serves until its last second, and the attempts come closer together towards it.
// What a signer returns is checked before use: it must be for the key and for the very identity that were asked for, and
// it must verify under the roots that came with it, because peers will do the same.
//
//	state          meaning                                 Certificate returns
//	Initializing   the first attempt is under way          when it is decided
//	Available      there is a valid certificate            the certificate, at once
//	Unavailable    no valid certificate, retry scheduled   the last error, at once
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Certificate is a workload's certificate, ready for use. It never changes.
type Certificate struct {
	Identity mesh.Identity
	// TLS holds the leaf and the intermediates, never a root, with Leaf parsed.
	TLS tls.Certificate
	// Roots are what peers' certificates must verify under.
	Roots *x509.CertPool
	// RootCerts are the certificates of Roots.
	RootCerts           []*x509.Certificate
	NotBefore, NotAfter time.Time
}

// Signer issues certificates. chainPEM holds the leaf, then intermediates, and as its last element the roots: at least
// two elements. A zero impersonate asks for the identity of the caller itself.
type Signer interface {
	Sign(ctx context.Context, csrPEM []byte, ttl time.Duration, impersonate mesh.Identity) (chainPEM []string, err error)
}

// Status is the state of an identity in a Manager.
type Status uint8

// The states of an identity, with the names of config_dump.
const (
	Initializing Status = iota
	Available
	Unavailable
)

// String returns the name of config_dump.
func (s Status) String() string {
	return [...]string{"Initializing", "Available", "Unavailable", "Unavailable"}[s&3]
}

// State is what a Manager knows of one identity.
type State struct {
	Identity    mesh.Identity
	Status      Status
	Certificate *Certificate // the present one, nil unless Available
	Err         error        // the last failure, nil after a success
	// Urgent means that the certificate is in the last fifth of its life and its renewal fails.
	Urgent      bool
	NextAttempt time.Time // when the certificate is renewed or the failure retried; zero while an attempt runs
}

// UnavailableError says that there is no valid certificate for an identity, and why.
type UnavailableError struct {
	Identity mesh.Identity
	Err      error
}

// Error implements error.
func (e *UnavailableError) Error() string {
	return "certificate of " + e.Identity.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }
