package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func testPKI(t *testing.T) *pki {
	t.Helper()
	p, err := newPKI(filepath.Join(t.TempDir(), "pki"), "lab-node", netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.96.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAPIServerCertificate(t *testing.T) {
	t.Parallel()
	p := testPKI(t)
	roots := x509.NewCertPool()
	roots.AddCert(p.ca.cert)
	for _, name := range []string{"127.0.0.1", "10.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"} {
		_, err := p.apiServer.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			t.Errorf("Verify as %s: %v", name, err)
		}
	}
	if err := p.apiServer.cert.VerifyHostname("example.com"); err == nil {
		t.Error("the certificate is valid for example.com, want it refused")
	}
}

// TestFrontProxyApart checks that a client certificate of the cluster does not pass for an aggregated API server's
// proxy, which may name any user.
func TestFrontProxyApart(t *testing.T) {
	t.Parallel()
	p := testPKI(t)
	roots := x509.NewCertPool()
	roots.AddCert(p.frontProxy.cert)
	options := x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := p.proxyClient.cert.Verify(options); err != nil {
		t.Errorf("front proxy's own client: %v", err)
	}
	if _, err := p.users[Admin].cert.Verify(options); err == nil {
		t.Error("the administrator's certificate passes for a front proxy, want it refused")
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	p := testPKI(t)
	want := map[User][]string{
		Admin:             {"isthmus-lab-admin", "system:masters"},
		ControllerManager: {"system:kube-controller-manager"},
		Scheduler:         {"system:kube-scheduler"},
		Node:              {"system:node:lab-node", "system:nodes", "system:masters"},
	}
	got := map[User][]string{}
	for user, pair := range p.users {
		got[user] = append([]string{pair.cert.Subject.CommonName}, pair.cert.Subject.Organization...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("name and groups of the users (-want +got):\n%s", diff)
	}
}

func TestKeysAreSecret(t *testing.T) {
	t.Parallel()
	p := testPKI(t)
	files, err := filepath.Glob(p.path("*"))
	if err != nil || len(files) < 10 {
		t.Fatalf("files = %v, %v, want the PKI", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of %s = %v, want 0600", filepath.Base(f), info.Mode().Perm())
		}
	}
}

// TestKubeconfigConnects makes a TLS connection as a client that has nothing but the kubeconfig.
func TestKubeconfigConnects(t *testing.T) {
	t.Parallel()
	p := testPKI(t)
	server, err := tls.X509KeyPair(p.apiServer.certPEM, p.apiServer.keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(p.ca.cert)
	near, far := net.Pipe()
	defer near.Close()
	subject := make(chan string, 1)
	go func() {
		defer far.Close()
		conn := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert})
		if err := conn.Handshake(); err != nil {
			subject <- err.Error()
			return
		}
		subject <- conn.ConnectionState().PeerCertificates[0].Subject.CommonName
	}()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := p.writeKubeconfig(file, Admin, "https://127.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(near, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: "127.0.0.1"})
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := <-subject; got != "isthmus-lab-admin" {
		t.Errorf("the server sees %q, want isthmus-lab-admin", got)
	}
}
