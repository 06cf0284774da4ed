package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Limits on what a signer may return; far above what any authority sends.
const (
	maxChainElements = 16
	maxRootCerts     = 64
)

// newRequest makes a key and a signing request as istiod expects it: ECDSA P-256, no subject, the identity as the only
// name.
func newRequest(id mesh.Identity) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request for %q: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		URIs:               []*url.URL{uri},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request for %q: %w", id, err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// parseChain checks what a signer returned for id and key, and makes a Certificate of it.
func parseChain(id mesh.Identity, key *ecdsa.PrivateKey, chainPEM []string, now time.Time) (*Certificate, error) {
	if len(chainPEM) < 2 {
		return nil, errors.New("the authority returned no root certificates")
	}
	if len(chainPEM) > maxChainElements {
		return nil, fmt.Errorf("the authority returned a chain of %d elements, more than %d", len(chainPEM), maxChainElements)
	}
	last := len(chainPEM) - 1
	var chain []*x509.Certificate
	for i, text := range chainPEM[:last] {
		certs, err := parsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d of the chain: %w", i, err)
		}
		chain = append(chain, certs...)
	}
	roots, err := parsePEM(chainPEM[last])
	if err != nil {
		return nil, fmt.Errorf("parse root certificates: %w", err)
	}
	if len(chain) == 0 || len(roots) == 0 {
		return nil, errors.New("the authority returned an empty chain")
	}
	c := &Certificate{
		Identity:  id,
		TLS:       tls.Certificate{PrivateKey: key, Leaf: chain[0]},
		Roots:     x509.NewCertPool(),
		RootCerts: roots,
		NotBefore: chain[0].NotBefore,
		NotAfter:  chain[0].NotAfter,
	}
	for _, cert := range chain {
		c.TLS.Certificate = append(c.TLS.Certificate, cert.Raw)
	}
	for _, root := range roots {
		c.Roots.AddCert(root)
	}
	return c, checkLeaf(c, chain, now)
}

func checkLeaf(c *Certificate, chain []*x509.Certificate, now time.Time) error {
	leaf := chain[0]
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !key.Equal(c.TLS.PrivateKey.(*ecdsa.PrivateKey).Public()) {
		return errors.New("the returned certificate is for another key")
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != c.Identity.String() {
		return fmt.Errorf("did not find expected SAN %q: the returned certificate is for %q", c.Identity, leaf.URIs)
	}
	if !leaf.NotAfter.After(now) {
		return fmt.Errorf("the returned certificate expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	opts := x509.VerifyOptions{
		Roots:         c.Roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime:   now,
	}
	if opts.CurrentTime.Before(leaf.NotBefore) {
		// Our clock is a little behind the authority's. Peers will judge by their own clocks.
		opts.CurrentTime = leaf.NotBefore
	}
	for _, cert := range chain[1:] {
		opts.Intermediates.AddCert(cert)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("verify the returned certificate under the returned roots: %w", err)
	}
	return nil
}

// parsePEM returns all certificates of a text.
func parsePEM(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("unexpected PEM block %q", block.Type)
		}
		if len(certs) == maxRootCerts {
			return nil, fmt.Errorf("more than %d certificates", maxRootCerts)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate found")
	}
	return certs, nil
}
