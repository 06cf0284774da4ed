package ztunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// The peer of these tests shares no code of the tunnels with this program: its HTTP/2 is golang.org/x/net's, its TLS is
// set up here. Its settings and its headers are those that Istio's ztunnel is seen to send.
const (
	peerStreamWindow = 4 << 20
	peerConnWindow   = 16 << 20
	peerFrameSize    = 1 << 20
	peerHeaderList   = 16 << 10
	peerStreams      = 200
)

// peerIdentity is who the peer is.
func peerIdentity() mesh.Identity {
	return mesh.Identity{TrustDomain: "cluster.local", Namespace: "istio-peers", ServiceAccount: "peer"}
}

// peerTLS is TLS 1.3 with h2, no server name, no session tickets, and a client certificate; the SPIFFE id of the other
// end is compared as a string.
func peerTLS(t *testing.T, ca *meshtest.CA, want string) *tls.Config {
	t.Helper()
	cert := ca.Issue(t, peerIdentity())
	return &tls.Config{
		Certificates: []tls.Certificate{cert.TLS}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, // the names are no DNS names; the path is verified below
		VerifyConnection: func(cs tls.ConnectionState) error {
			leaf := cs.PeerCertificates[0]
			_, err := leaf.Verify(x509.VerifyOptions{Roots: ca.Roots(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			switch {
			case err != nil:
				return err
			case cs.ServerName != "":
				return fmt.Errorf("the client sends the server name %q", cs.ServerName)
			case len(leaf.URIs) != 1 || leaf.URIs[0].String() != want:
				return fmt.Errorf("the other end is %v, want %s", leaf.URIs, want)
			}
			return nil
		},
	}
}

// foreignServer ends tunnels and says back what it is told, in one piece and only when it has been told everything: so
// each direction must end by itself.
type foreignServer struct {
	requests chan *http.Request
	conns    atomic.Int32
}

func (f *foreignServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case f.requests <- r:
	default:
	}
	if _, port, _ := net.SplitHostPort(r.Host); port == "81" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("baggage", "k8s.namespace.name=istio-peers,service.name=peer")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	all, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(all)
}

func startForeignServer(t *testing.T, ca *meshtest.CA, ip netip.Addr, want string) *foreignServer {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(ip, mesh.HBONEPort).String())
	if err != nil {
		t.Fatal(err)
	}
	f := &foreignServer{requests: make(chan *http.Request, 1000)}
	conf := peerTLS(t, ca, want)
	srv := &http2.Server{MaxConcurrentStreams: peerStreams, MaxReadFrameSize: peerFrameSize, MaxUploadBufferPerConnection: peerConnWindow, MaxUploadBufferPerStream: peerStreamWindow}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.conns.Add(1)
			serving.Go(func() {
				tc := tls.Server(c, conf)
				defer tc.Close()
				if err := tc.HandshakeContext(t.Context()); err != nil {
					t.Errorf("handshake of the peer's server: %v", err)
					return
				}
				srv.ServeConn(tc, &http2.ServeConnOpts{Handler: f})
			})
		}
	})
	t.Cleanup(func() { l.Close() })
	return f
}

// shape is what ztunnel's headers look like.
func shape() map[string]*regexp.Regexp {
	return map[string]*regexp.Regexp{
		"baggage":     regexp.MustCompile(`^k8s\.cluster\.name=Kubernetes,k8s\.namespace\.name=default,k8s\.deployment\.name=shell,service\.name=shell$`),
		"forwarded":   regexp.MustCompile(`^for="10\.1\.0\.1:\d+"$`),
		"traceparent": regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`),
	}
}

// Tunnels of this program to a server of another make.
func TestInteropAsClient(t *testing.T) {
	istiod := newMesh(t)
	peer := workload("peer-1", peerIdentity().Namespace, peerIdentity().ServiceAccount, gwIP)
	shellWorkload := workload("shell-1", "default", "shell", shellIP)
	shellWorkload.WorkloadType = mesh.Deployment
	istiod.Set(peer, shellWorkload)
	f := startForeignServer(t, istiod.CA, gwIP, "spiffe://cluster.local/ns/default/sa/shell")
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	meshtest.Eventually(t, "it is ready", shell.ready)
	target := netip.AddrPortFrom(gwIP, 80).String()
	const tunnels = 150 // more than one connection's worth
	var all sync.WaitGroup
	for i := range tunnels {
		size := 1000
		if i < 4 {
			size = 3 * peerFrameSize
		}
		all.Go(func() {
			if err := sayAndHear(t, shellIP, target, bytes.Repeat([]byte{byte(i)}, size)); err != nil {
				t.Errorf("tunnel %d: %v", i, err)
			}
		})
	}
	all.Wait()
	if n := f.conns.Load(); n < 2 || n > 10 {
		t.Errorf("%d tunnels took %d connections", tunnels, n)
	}
	r := <-f.requests
	if r.Method != http.MethodConnect || r.Host != target || r.URL.Path != "" || r.URL.Scheme != "" || r.ContentLength > 0 {
		t.Errorf("the request is %s %s of %q, length %d", r.Method, r.URL, r.Host, r.ContentLength)
	}
	for name, want := range shape() {
		if got := r.Header.Values(name); len(got) != 1 || !want.MatchString(got[0]) {
			t.Errorf("header %s = %q, want %s", name, got, want)
		}
	}
	if got := r.Header.Values("x-forwarded-network"); len(got) != 0 {
		t.Errorf("x-forwarded-network = %q on a single tunnel", got)
	}
	shell.logs(t, "info\taccess\tconnection complete", `dst.identity="spiffe://cluster.local/ns/istio-peers/sa/peer"`, "bytes_sent=3145728", "bytes_recv=3145728")
	if err := sayAndHear(t, shellIP, netip.AddrPortFrom(gwIP, 81).String(), []byte("?")); err == nil {
		t.Error("a refused tunnel was served")
	}
	shell.logs(t, `error="http status: 401 Unauthorized"`)
}

// sayAndHear opens a connection through a proxy's SOCKS port, sends all of text, ends that direction, and compares what
// comes back until the other ends.
func sayAndHear(t *testing.T, via netip.Addr, target string, text []byte) error {
	t.Helper()
	c, err := through(t, via, target)
	if err != nil {
		return err
	}
	if _, err := c.Write(text); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, text) {
		return fmt.Errorf("%d bytes came back, of %d", len(got), len(text))
	}
	return nil
}

// foreignClient makes tunnels on one connection.
type foreignClient struct{ conn *http2.ClientConn }

func newForeignClient(t *testing.T, ca *meshtest.CA, to netip.Addr, want string) *foreignClient {
	t.Helper()
	base := &http.Transport{HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: peerConnWindow, MaxReceiveBufferPerStream: peerStreamWindow,
		MaxReadFrameSize: peerFrameSize, SendPingTimeout: 10 * time.Second, PingTimeout: 20 * time.Second}}
	tr, err := http2.ConfigureTransports(base)
	if err != nil {
		t.Fatal(err)
	}
	tr.MaxHeaderListSize = peerHeaderList
	raw, err := net.Dial("tcp", netip.AddrPortFrom(to, mesh.HBONEPort).String())
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(raw, peerTLS(t, ca, want))
	if err := tc.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	cc, err := tr.NewClientConn(tc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	// The answer comes after the server's SETTINGS, which allow more streams than may be assumed before.
	if err := cc.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &foreignClient{cc}
}

// ask sends a request and its body and returns the answer, whose body is still to be read.
func (f *foreignClient) ask(ctx context.Context, method, authority string, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+authority, body)
	if err != nil {
		return nil, err
	}
	if method == http.MethodConnect {
		r.URL = &url.URL{Host: authority}
	}
	r.Header.Set("baggage", "k8s.cluster.name=Kubernetes,k8s.namespace.name=istio-peers,k8s.deployment.name=peer,service.name=peer,service.version=v1")
	r.Header.Set("forwarded", `for="10.1.0.3:4000";host=`+echoHost)
	r.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
	return f.conn.RoundTrip(r)
}

// Tunnels of a client of another make to this program.
func TestInteropAsServer(t *testing.T) {
	istiod := newMesh(t)
	echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo")
	meshtest.Eventually(t, "it is ready", echo.ready)
	echoAt(t, netip.AddrPortFrom(echoIP, 9090))
	f := newForeignClient(t, istiod.CA, echoIP, "spiffe://cluster.local/ns/ecs-demo-1/sa/echo")
	authority := netip.AddrPortFrom(echoIP, 9090).String()
	var all sync.WaitGroup
	for i := range 150 {
		size := 1000
		if i < 4 {
			size = 3 * peerFrameSize
		}
		all.Go(func() {
			text := bytes.Repeat([]byte{byte(i)}, size)
			resp, err := f.ask(t.Context(), http.MethodConnect, authority, bytes.NewReader(text)) // and its end
			if err != nil {
				t.Errorf("tunnel %d: %v", i, err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK || err != nil || !bytes.Equal(got, text) {
				t.Errorf("tunnel %d: status %d, %d bytes of %d, %v", i, resp.StatusCode, len(got), len(text), err)
			}
			if b := resp.Header.Get("baggage"); !strings.Contains(b, "service.name=echo") {
				t.Errorf("tunnel %d: baggage %q", i, b)
			}
		})
	}
	all.Wait()
	if err := f.conn.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
	echo.logs(t, "info\taccess\tconnection complete", `src.workload="peer" src.namespace="istio-peers" src.identity="spiffe://cluster.local/ns/istio-peers/sa/peer"`,
		"dst.hbone_addr="+authority, "bytes_sent=3145728", "bytes_recv=3145728")
	// By the service's name, as from another network or a waypoint.
	if resp, err := f.ask(t.Context(), http.MethodConnect, echoHost+":80", strings.NewReader("GET / HTTP/1.0\r\n\r\n")); err != nil || resp.StatusCode != 200 {
		t.Errorf("by name: %v, %v", resp, err)
	} else if b, err := io.ReadAll(resp.Body); err != nil || !bytes.HasSuffix(b, []byte("hello")) {
		t.Errorf("by name: %q, %v", b, err)
	}
	istiod.Set(&mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "no-9090"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{DestinationPorts: []uint16{9090}}}}}})
	for what, c := range map[string]struct {
		method, authority string
		status            int
	}{
		"denied": {http.MethodConnect, authority, 401}, "somebody else's address": {http.MethodConnect, "10.9.9.9:80", 400},
		"an unknown name": {http.MethodConnect, "nobody.local:80", 503}, "our own port": {http.MethodConnect, netip.AddrPortFrom(echoIP, 15008).String(), 503},
		"nobody listens": {http.MethodConnect, netip.AddrPortFrom(echoIP, 4).String(), 503}, "not CONNECT": {http.MethodGet, authority, 400},
	} {
		status := 0
		meshtest.Eventually(t, what, func() bool {
			// The body stays open, as the application's connection does.
			pr, pw := io.Pipe()
			defer pw.Close()
			resp, err := f.ask(t.Context(), c.method, c.authority, pr)
			if err != nil {
				t.Logf("%s: %v", what, err)
				return false
			}
			defer resp.Body.Close()
			status = resp.StatusCode
			if b, err := io.ReadAll(resp.Body); status != 200 && (len(b) != 0 || err != nil && !errors.Is(err, io.EOF)) {
				t.Errorf("%s: a body of %d bytes, %v", what, len(b), err)
			}
			return status == c.status
		})
	}
	if err := f.conn.Ping(t.Context()); err != nil {
		t.Errorf("ping after the refusals: %v", err)
	}
}
