package meshtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// CA is a certificate authority of a mesh. It is an identity.Signer; what it signs and how long that is valid can be
// changed at any time. Methods may be called from any goroutine.
type CA struct {
	Root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu        sync.Mutex
	serial    int64
	identity  mesh.Identity // of callers that do not impersonate; zero means what the request asks for
	ttl       time.Duration
	skew      time.Duration // of its clock
	err       error
	requests  []SignRequest
	moreRoots []*x509.Certificate
}

// SignRequest is a request that a CA saw.
type SignRequest struct {
	CSR         *x509.CertificateRequest
	TTL         time.Duration
	Impersonate mesh.Identity
}

var _ identity.Signer = (*CA)(nil)

// NewCA returns a CA with a new root.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca, err := newCA()
	if err != nil {
		t.Fatalf("NewCA() = %v", err)
	}
	return ca
}

func newCA() (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{Organization: []string{"meshtest"}},
		NotBefore:             time.Now().Add(-24 * time.Hour),
		NotAfter:              time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &CA{Root: root, key: key, serial: 1}, nil
}

// Roots returns a pool with the root.
func (ca *CA) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root)
	return pool
}

// RootsFunc is Roots in the form that configurations take.
func (ca *CA) RootsFunc() (*x509.CertPool, error) { return ca.Roots(), nil }

// RootPEM returns the root as PEM.
func (ca *CA) RootPEM() []byte { return encode(ca.Root.Raw) }

// SetIdentity makes the CA sign this identity whatever is asked for, as istiod does with the identity of the token.
func (ca *CA) SetIdentity(id mesh.Identity) { ca.locked(func() { ca.identity = id }) }

// SetTTL makes certificates valid for d instead of what is asked for.
func (ca *CA) SetTTL(d time.Duration) { ca.locked(func() { ca.ttl = d }) }

// SetSkew makes the CA's clock wrong by d: ahead if d is positive.
func (ca *CA) SetSkew(d time.Duration) { ca.locked(func() { ca.skew = d }) }

// SetError makes the CA refuse with err; nil makes it sign again.
func (ca *CA) SetError(err error) { ca.locked(func() { ca.err = err }) }

// AddRoot makes the CA hand out another root beside its own, as during a rotation.
func (ca *CA) AddRoot(root *x509.Certificate) {
	ca.locked(func() { ca.moreRoots = append(ca.moreRoots, root) })
}

// DropRoots makes the CA hand out its own root only, as after a rotation.
func (ca *CA) DropRoots() { ca.locked(func() { ca.moreRoots = nil }) }

// Requests returns the requests so far.
func (ca *CA) Requests() []SignRequest {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return append([]SignRequest(nil), ca.requests...)
}

func (ca *CA) locked(f func()) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	f()
}

// Sign implements identity.Signer.
func (ca *CA) Sign(ctx context.Context, csrPEM []byte, ttl time.Duration, impersonate mesh.Identity) ([]string, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, errors.New("no PEM in the request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.requests = append(ca.requests, SignRequest{CSR: csr, TTL: ttl, Impersonate: impersonate})
	if ca.err != nil {
		return nil, ca.err
	}
	uris := csr.URIs
	if id := ca.identity; !impersonate.IsZero() || !id.IsZero() {
		if !impersonate.IsZero() {
			id = impersonate
		}
		uris = []*url.URL{identityURL(id)}
	}
	if ca.ttl != 0 {
		ttl = ca.ttl
	}
	der, err := ca.issue(&x509.Certificate{URIs: uris}, csr.PublicKey, ttl)
	if err != nil {
		return nil, err
	}
	roots := encode(ca.Root.Raw)
	for _, root := range ca.moreRoots {
		roots = append(roots, encode(root.Raw)...)
	}
	return []string{string(encode(der)), string(roots)}, nil
}

// issue signs; the caller holds mu.
func (ca *CA) issue(template *x509.Certificate, key any, ttl time.Duration) ([]byte, error) {
	ca.serial++
	template.SerialNumber = big.NewInt(ca.serial)
	template.NotBefore = time.Now().Add(ca.skew)
	template.NotAfter = template.NotBefore.Add(ttl)
	if ttl < 0 {
		template.NotBefore = template.NotAfter.Add(-time.Hour)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, ca.Root, key, ca.key)
}

// Issue returns a certificate for id that is valid for a day.
func (ca *CA) Issue(t testing.TB, id mesh.Identity) *identity.Certificate {
	t.Helper()
	return ca.IssueFor(t, id, 24*time.Hour)
}

// IssueFor returns a certificate for id that is valid for ttl; a negative one gives an expired certificate.
func (ca *CA) IssueFor(t testing.TB, id mesh.Identity, ttl time.Duration) *identity.Certificate {
	t.Helper()
	pair, err := ca.pair(&x509.Certificate{URIs: []*url.URL{identityURL(id)}}, ttl)
	if err != nil {
		t.Fatalf("Issue(%v) = %v", id, err)
	}
	return &identity.Certificate{
		Identity:  id,
		TLS:       pair,
		Roots:     ca.Roots(),
		RootCerts: []*x509.Certificate{ca.Root},
		NotBefore: pair.Leaf.NotBefore,
		NotAfter:  pair.Leaf.NotAfter,
	}
}

// ServerTLS returns a TLS configuration of a server with these DNS names (and addresses), as istiod's.
func (ca *CA) ServerTLS(t testing.TB, names ...string) *tls.Config {
	t.Helper()
	template := &x509.Certificate{}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
			continue
		}
		template.DNSNames = append(template.DNSNames, name)
	}
	pair, err := ca.pair(template, 24*time.Hour)
	if err != nil {
		t.Fatalf("ServerTLS(%v) = %v", names, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}
}

func (ca *CA) pair(template *x509.Certificate, ttl time.Duration) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	ca.mu.Lock()
	der, err := ca.issue(template, key.Public(), ttl)
	ca.mu.Unlock()
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// Revoke returns a revocation list of the authority, as PEM, that names the certificates.
func (ca *CA) Revoke(t testing.TB, certs ...*x509.Certificate) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Root, ca.key)
	if err != nil {
		t.Fatalf("Revoke() = %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// ID parses a SPIFFE identity of the default trust domain from "namespace/serviceaccount".
func ID(namespace, serviceAccount string) mesh.Identity {
	return mesh.Identity{TrustDomain: mesh.DefaultTrustDomain, Namespace: namespace, ServiceAccount: serviceAccount}
}

func identityURL(id mesh.Identity) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: fmt.Sprintf("/ns/%s/sa/%s", id.Namespace, id.ServiceAccount)}
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
