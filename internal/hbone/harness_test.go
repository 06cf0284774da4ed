package hbone

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

var (
	alice = mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "alice"}
	bob   = mesh.Identity{TrustDomain: "cluster.local", Namespace: "default", ServiceAccount: "bob"}
	eve   = mesh.Identity{TrustDomain: "evil.local", Namespace: "default", ServiceAccount: "alice"}
)

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) issue(t testing.TB, ids ...mesh.Identity) Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, id := range ids {
		u, err := url.Parse(id.String())
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return Certificate{TLS: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Roots: a.pool}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// echo accepts and sends back what it gets, ending when the client ends.
func echo(_ context.Context, s *ServerStream) {
	st, err := s.Accept(nil)
	if err != nil {
		return
	}
	if _, err := io.Copy(onlyWriter{st}, onlyReader{st}); err == nil {
		_ = st.CloseWrite()
		<-st.Done()
	}
}

// onlyReader and onlyWriter hide the fast paths, so that Read and Write are used.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// world is a server on loopback and a pool that trusts it.
type world struct {
	t      testing.TB
	ca     *authority
	server *Server
	pool   *Pool
	addr   netip.AddrPort

	mu     sync.Mutex
	served []error
	conns  []net.Conn // accepted
}

type options struct {
	server func(*ServerConfig)
	pool   func(*PoolConfig)
	listen func(net.Conn) net.Conn // wraps accepted connections
}

func newWorld(t testing.TB, h func(context.Context, *ServerStream), o options) *world {
	t.Helper()
	w := &world{t: t, ca: newAuthority(t)}
	bobCert, aliceCert := w.ca.issue(t, bob), w.ca.issue(t, alice)
	sc := ServerConfig{
		Certificate: func(context.Context) (Certificate, error) { return bobCert, nil },
		Handler:     h, Log: quiet(),
	}
	if o.server != nil {
		o.server(&sc)
	}
	var err error
	if w.server, err = NewServer(sc); err != nil {
		t.Fatal(err)
	}
	pc := PoolConfig{Certificate: func(context.Context, mesh.Identity) (Certificate, error) { return aliceCert, nil }, Log: quiet()}
	if o.pool != nil {
		o.pool(&pc)
	}
	if w.pool, err = NewPool(pc); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.addr = l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.pool.Run(ctx) })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, c)
			w.mu.Unlock()
			if o.listen != nil {
				c = o.listen(c)
			}
			wg.Go(func() {
				err := w.server.ServeConn(ctx, c)
				w.mu.Lock()
				w.served = append(w.served, err)
				w.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	return w
}

func (w *world) accepted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// accept is the i-th connection that the server accepted.
func (w *world) accept(i int) net.Conn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[i]
}

func (w *world) key() Key {
	return Key{Source: alice, Peers: []mesh.Identity{bob}, Addr: w.addr}
}

func (w *world) connect() *Stream {
	w.t.Helper()
	s, resp, err := w.pool.Connect(w.t.Context(), w.key(), Request{Authority: "10.0.0.1:80"})
	if err != nil {
		w.t.Fatalf("Connect: %v", err)
	}
	if resp.Peer != bob {
		w.t.Fatalf("peer = %v, want %v", resp.Peer, bob)
	}
	w.t.Cleanup(func() { s.Close() })
	return s
}

// eventually polls until ok or gives up.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		<-tick.C
	}
}

func wantErr(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error = %v, want %v", err, target)
	}
}
