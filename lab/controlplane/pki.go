package controlplane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// certificateLife is how long the lab's certificates are valid. A lab lives hours or days and never renews them.
const certificateLife = 365 * 24 * time.Hour

// keyPair is a certificate with its key, both also as PEM.
type keyPair struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	keyPEM  []byte
}

// leaf says what a certificate is for: a server when it has names or addresses, and a client always.
type leaf struct {
	commonName   string
	organization []string // Kubernetes reads the groups of a client from here
	dnsNames     []string
	addresses    []netip.Addr
}

// newCA returns a self-signed certificate authority.
func newCA(name string) (*keyPair, error) {
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	return sign(t, nil)
}

// issue returns a certificate for l, signed by ca.
func (ca *keyPair) issue(l leaf) (*keyPair, error) {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: l.commonName, Organization: l.organization},
		DNSNames:    l.dnsNames,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, a := range l.addresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	if len(t.DNSNames)+len(t.IPAddresses) > 0 {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	pair, err := sign(t, ca)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %q: %w", l.commonName, err)
	}
	return pair, nil
}

// sign completes the template and signs it; without a parent the certificate signs itself.
func sign(t *x509.Certificate, parent *keyPair) (*keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, fmt.Errorf("draw serial number: %w", err)
	}
	now := time.Now()
	t.NotBefore, t.NotAfter = now.Add(-time.Hour), now.Add(certificateLife) // an hour back for clocks that were just set
	issuer, issuerKey := t, crypto.Signer(key)
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), issuerKey)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read back certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return &keyPair{cert: cert, key: key, certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM: keyPEM}, nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// pki is every key of one lab. Its files live in a directory that vanishes with the lab.
type pki struct {
	dir           string
	ca            *keyPair // of the API server, its clients and the kubelet API
	frontProxy    *keyPair // certificate authority of aggregated API servers; apart, so that no client certificate passes for a proxy
	apiServer     *keyPair
	kubelet       *keyPair // served by the node agent
	kubeletClient *keyPair // the API server towards the node agent
	proxyClient   *keyPair // the API server towards aggregated API servers
	users         map[User]*keyPair
}

// User is an account of the lab's API server that proves itself with a client certificate.
type User string

// The users of the lab's API server. Admin and Node may do everything: the node agent also plays CNI, load balancer
// and cloud, and the lab is one person's.
const (
	Admin             User = "admin"
	ControllerManager User = "kube-controller-manager"
	Scheduler         User = "kube-scheduler"
	Node              User = "node"
)

// subjects holds the name and groups of each user, as RBAC's built-in bindings expect them.
func subjects(nodeName string) map[User]leaf {
	return map[User]leaf{
		Admin:             {commonName: "isthmus-lab-admin", organization: []string{"system:masters"}},
		ControllerManager: {commonName: "system:kube-controller-manager"},
		Scheduler:         {commonName: "system:kube-scheduler"},
		Node:              {commonName: "system:node:" + nodeName, organization: []string{"system:nodes", "system:masters"}},
	}
}

// newPKI makes all keys and writes those that the components read to files in dir.
func newPKI(dir, nodeName string, advertise, kubernetesService netip.Addr) (*pki, error) {
	p := &pki{dir: dir, users: map[User]*keyPair{}}
	var err error
	if p.ca, err = newCA("isthmus-lab"); err != nil {
		return nil, err
	}
	if p.frontProxy, err = newCA("isthmus-lab-front-proxy"); err != nil {
		return nil, err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	leaves := []struct {
		to **keyPair
		ca *keyPair
		leaf
	}{
		{&p.apiServer, p.ca, leaf{
			commonName: "kube-apiserver",
			dnsNames:   []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
			addresses:  []netip.Addr{loopback, advertise, kubernetesService},
		}},
		{&p.kubelet, p.ca, leaf{commonName: "system:node:" + nodeName, dnsNames: []string{nodeName, "localhost"}, addresses: []netip.Addr{loopback, advertise}}},
		{&p.kubeletClient, p.ca, leaf{commonName: "kube-apiserver-kubelet-client", organization: []string{"system:masters"}}},
		{&p.proxyClient, p.frontProxy, leaf{commonName: "front-proxy-client"}},
	}
	for _, l := range leaves {
		if *l.to, err = l.ca.issue(l.leaf); err != nil {
			return nil, err
		}
	}
	for user, subject := range subjects(nodeName) {
		if p.users[user], err = p.ca.issue(subject); err != nil {
			return nil, err
		}
	}
	return p, p.write()
}

// path returns where a file of the PKI is.
func (p *pki) path(name string) string { return filepath.Join(p.dir, name) }

// write stores the files that the components are started with.
func (p *pki) write() error {
	serviceAccount, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("generate service account key: %w", err)
	}
	saKey, err := encodeKey(serviceAccount)
	if err != nil {
		return err
	}
	saPub, err := x509.MarshalPKIXPublicKey(serviceAccount.Public())
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	files := map[string][]byte{
		"ca.crt":             p.ca.certPEM,
		"ca.key":             p.ca.keyPEM,
		"front-proxy-ca.crt": p.frontProxy.certPEM,
		"sa.key":             saKey,
		"sa.pub":             pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: saPub}),
	}
	for name, pair := range map[string]*keyPair{
		"apiserver": p.apiServer, "kubelet": p.kubelet, "kubelet-client": p.kubeletClient, "front-proxy-client": p.proxyClient,
	} {
		files[name+".crt"], files[name+".key"] = pair.certPEM, pair.keyPEM
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("make PKI directory: %w", err)
	}
	for name, data := range files {
		if err := os.WriteFile(p.path(name), data, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}
