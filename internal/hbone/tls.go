package hbone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// alpn is the only protocol spoken inside.
const alpn = "h2"

// verifyFunc may refuse a chain that is otherwise good.
type verifyFunc func(chain []*x509.Certificate) error

// baseTLS is what both roles have in common. Names are not host names here, so the standard verification is replaced by
// verifyChain and a check of the SPIFFE name; without SNI, crypto/tls asks for InsecureSkipVerify in any case.
func baseTLS(cert Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{cert.TLS},
		NextProtos:                  []string{alpn},
		InsecureSkipVerify:          true, //nolint:gosec // VerifyConnection verifies chain and name
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// clientTLS expects the peer to be any one of peers.
func clientTLS(cert Certificate, peers []mesh.Identity, extra verifyFunc) *tls.Config {
	cfg := baseTLS(cert)
	own := cert.TLS
	cfg.Certificates = nil
	// Always show the certificate: the names of acceptable authorities that a server sends are hints, and some send none
	// that fits.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if cs.NegotiatedProtocol != alpn {
			return errors.New("peer does not speak h2")
		}
		if err := verifyChain(cs, cert.Roots, x509.ExtKeyUsageServerAuth, extra); err != nil {
			return err
		}
		names := uriNames(cs.PeerCertificates[0])
		for _, id := range peers {
			if slices.Contains(names, id.String()) {
				return nil
			}
		}
		return &IdentityError{Expected: peers, Got: names}
	}
	return cfg
}

// serverTLS demands a client certificate of the server's own trust domain.
func serverTLS(cert Certificate, extra verifyFunc) (*tls.Config, error) {
	leaf, err := leafOf(cert.TLS)
	if err != nil {
		return nil, err
	}
	self, ok := spiffeName(leaf, "")
	if !ok {
		return nil, errors.New("own certificate has no spiffe identity")
	}
	cfg := baseTLS(cert)
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verifyChain(cs, cert.Roots, x509.ExtKeyUsageClientAuth, extra); err != nil {
			return err
		}
		if _, ok := spiffeName(cs.PeerCertificates[0], self.TrustDomain); !ok {
			return &IdentityError{TrustDomain: self.TrustDomain, Got: uriNames(cs.PeerCertificates[0])}
		}
		return nil
	}
	return cfg, nil
}

func verifyChain(cs tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage, extra verifyFunc) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("peer presented no certificate")
	}
	if roots == nil { // the system's authorities must never speak for the mesh
		return errors.New("no roots to verify the peer with")
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{usage}}
	for _, c := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := cs.PeerCertificates[0].Verify(opts)
	if err != nil {
		return fmt.Errorf("verify certificate of peer %v: %w", uriNames(cs.PeerCertificates[0]), err)
	}
	if extra == nil {
		return nil
	}
	for _, chain := range chains {
		if err = extra(chain); err == nil {
			return nil
		}
	}
	return err
}

// uriNames returns the URI names of a certificate as strings.
func uriNames(c *x509.Certificate) []string {
	names := make([]string, len(c.URIs))
	for i, u := range c.URIs {
		names[i] = u.String()
	}
	return names
}

// spiffeName returns the first SPIFFE identity of a certificate, of the given trust domain if that is not "".
func spiffeName(c *x509.Certificate, trustDomain string) (mesh.Identity, bool) {
	for _, name := range uriNames(c) {
		id, err := mesh.ParseIdentity(name)
		if err == nil && (trustDomain == "" || id.TrustDomain == trustDomain) {
			return id, true
		}
	}
	return mesh.Identity{}, false
}

// peerName is the identity of a verified peer: the expected one that it presents, or its first.
func peerName(c *x509.Certificate, expected []mesh.Identity) mesh.Identity {
	names := uriNames(c)
	for _, id := range expected {
		if slices.Contains(names, id.String()) {
			return id
		}
	}
	id, _ := spiffeName(c, "")
	return id
}

func leafOf(c tls.Certificate) (*x509.Certificate, error) {
	if c.Leaf != nil {
		return c.Leaf, nil
	}
	if len(c.Certificate) == 0 {
		return nil, errors.New("own certificate is empty")
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse own certificate: %w", err)
	}
	return leaf, nil
}

// handshakeClient makes a TLS connection of conn, which it closes on failure. The end of the handshake is not sent before
// something else is.
func handshakeClient(ctx context.Context, conn net.Conn, cfg *tls.Config) (*tls.Conn, *wire, error) {
	w := newWire(conn)
	tc := tls.Client(w, cfg)
	w.beginHandshake()
	err := tc.HandshakeContext(ctx)
	w.endHandshake(err)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("tls handshake with %s: %w", addrString(conn.RemoteAddr()), handshakeCause(ctx, err))
	}
	return tc, w, nil
}

// handshakeCause names the timeout instead of the closed connection it leaves behind.
func handshakeCause(ctx context.Context, err error) error {
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

func addrString(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	return a.String()
}

// expiry is the end of a connection's certificates: no stream is opened on it after.
func expiry(own tls.Certificate, peer *x509.Certificate) time.Time {
	end := peer.NotAfter
	if leaf, err := leafOf(own); err == nil && leaf.NotAfter.Before(end) {
		end = leaf.NotAfter
	}
	return end
}
