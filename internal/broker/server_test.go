package broker

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

var brokerIdentity = mesh.Identity{TrustDomain: "cluster.local", Namespace: "istio-system", ServiceAccount: "isthmus-controller"}

type nobody struct{}

func (nobody) ServiceAccount(context.Context, string, string) (kube.ServiceAccount, error) {
	return kube.ServiceAccount{}, errors.New("nobody")
}

func (nobody) IssueToken(context.Context, kube.TokenSpec) (kube.Token, error) {
	return kube.Token{}, errors.New("nobody")
}

type refuseAll struct{}

func (refuseAll) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }

// selfSigned makes a certificate for an identity and the pool that trusts it.
func selfSigned(t *testing.T, id mesh.Identity) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

// TestOverTheWire runs the proxy's own client against the server: the protocol, the mesh identity of the broker, and a
// certificate that changes while the server runs.
func TestOverTheWire(t *testing.T) {
	w := newWorld(t, nil)
	right, roots := selfSigned(t, brokerIdentity)
	wrong, wrongRoots := selfSigned(t, mesh.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "eve"})
	var current atomic.Pointer[tls.Certificate]
	current.Store(right)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ServerConfig{
			Listener: ln, Log: slog.New(slog.DiscardHandler),
			Certificate: func(context.Context) (*tls.Certificate, error) { return current.Load(), nil },
		}, w.broker)
	}()
	creds := w.sts.session(sessionARN(task1))
	client := func(pool *x509.CertPool) *iamproof.BrokerClient {
		c, err := iamproof.NewBrokerClient(iamproof.BrokerConfig{
			Address: "https://" + ln.Addr().String(), ServerName: "isthmus-broker.istio-system.svc", Identity: brokerIdentity,
			Roots:       func() (*x509.CertPool, error) { return pool, nil },
			Credentials: credentials.NewStaticCredentialsProvider(creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken),
			Region:      region, Audience: audience, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	got, err := client(roots).Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Namespace != "ecs-demo-1" || got.ServiceAccount != "ecs-demo-sa-local" {
		t.Errorf("answer %+v", got)
	}
	// The task is refused: the client tells the code.
	w.dir.change(task1, func(x *Task) { x.DesiredStatus = "STOPPED" })
	_, err = client(roots).Token(t.Context())
	var refused *iamproof.TokenError
	if !errors.As(err, &refused) || refused.Code != "IST2204" {
		t.Errorf("stopped task: %v, want IST2204", err)
	}
	// A broker with another identity gets no proof.
	current.Store(wrong)
	before := w.sts.callCount()
	if _, err := client(wrongRoots).Token(t.Context()); err == nil {
		t.Error("the client trusted a broker of another identity")
	}
	if w.sts.callCount() != before {
		t.Error("a proof reached a broker of another identity")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	w := newWorld(t, nil)
	cert, roots := selfSigned(t, brokerIdentity)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ServerConfig{Listener: ln, Log: slog.New(slog.DiscardHandler), Certificate: func(context.Context) (*tls.Certificate, error) { return cert, nil }}, w.broker)
	}()
	defer func() { cancel(); <-done }()
	conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	if err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}
