package proxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/internal/dns"
	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// The addresses of the world that the stories play in. All are on the loopback of the test's own network namespace.
var (
	clientIP  = netip.MustParseAddr("10.1.0.1")
	serverIP  = netip.MustParseAddr("10.1.0.2")
	gatewayIP = netip.MustParseAddr("10.1.0.3")
	plainIP   = netip.MustParseAddr("10.1.0.4") // outside the mesh
	otherIP   = netip.MustParseAddr("10.1.0.8") // another server
	vip       = netip.MustParseAddr("240.240.0.2")
)

const echoHost = "echo.ecs-demo-1.ecs.local"

func TestMain(m *testing.M) {
	os.Exit(proxytest.Main(m, clientIP, serverIP, gatewayIP, plainIP, otherIP))
}

// side is one proxy with what it reported.
type side struct {
	proxy  *Proxy
	log    *meshtest.Buffer
	reg    *prometheus.Registry
	met    *telemetry.Metrics
	cancel context.CancelCauseFunc
	done   chan struct{}
}

// world is a client workload and a server workload, each with its proxy, and an echo application behind the server.
type world struct {
	t      *testing.T
	store  *state.Store
	ca     *meshtest.CA
	client *side
	server *side
	echo   *workloadOf
	// dst is where the next captured connection was going.
	dst  atomic.Pointer[netip.AddrPort]
	wire *meshtest.Buffer // everything between the two proxies
	app  *httptest.Server
}

type workloadOf struct{ w *mesh.Workload }

func clientWorkload() *mesh.Workload {
	return &mesh.Workload{UID: "Kubernetes//Pod/default/shell-1", Name: "shell-1", Namespace: "default", TrustDomain: "cluster.local",
		ServiceAccount: "shell", Addresses: []netip.Addr{clientIP}, Network: "eks", ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1,
		CanonicalName: "shell", CanonicalRevision: "v1", WorkloadName: "shell"}
}

func serverWorkload() *mesh.Workload {
	return &mesh.Workload{UID: "Kubernetes/networking.istio.io/WorkloadEntry/ecs-demo-1/echo-1", Name: "echo-1", Namespace: "ecs-demo-1", TrustDomain: "cluster.local",
		ServiceAccount: "echo", Addresses: []netip.Addr{serverIP}, Network: "eks", ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1,
		CanonicalName: "echo", CanonicalRevision: "latest", WorkloadName: "echo", Locality: mesh.Locality{Region: "us-east-2", Zone: "us-east-2a"},
		Services: map[mesh.ServiceKey]map[uint16]uint16{{Namespace: "ecs-demo-1", Hostname: echoHost}: {80: 8080}}}
}

func echoService() *mesh.Service {
	return &mesh.Service{Key: mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}, Name: "echo",
		VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080}}
}

func newWorld(t *testing.T, change ...func(client, server *Config)) *world {
	t.Helper()
	w := &world{t: t, store: state.NewStore(), ca: meshtest.NewCA(t), wire: &meshtest.Buffer{}}
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{clientWorkload(), serverWorkload()}, Services: []*mesh.Service{echoService()}})
	w.dst.Store(ptr(netip.AddrPortFrom(vip, 80)))
	cc, sc := w.config("shell-1", "default", "shell"), w.config("echo-1", "ecs-demo-1", "echo")
	cc.Dial = func(ctx context.Context, r DialRequest) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientIP.AsSlice()}}
		c, err := d.DialContext(ctx, "tcp", r.Addr.String())
		if err == nil && r.Addr.Port() == mesh.HBONEPort {
			return &tapped{c, w.wire}, nil
		}
		return c, err
	}
	cc.OriginalDst = func(*net.TCPConn) (netip.AddrPort, error) { return *w.dst.Load(), nil }
	cc.Resolver = w.resolver()
	for _, f := range change {
		f(&cc, &sc)
	}
	w.client = w.start(cc, clientIP)
	w.server = w.start(sc, serverIP)
	w.app = serveApp(t, netip.AddrPortFrom(serverIP, 8080), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(rw, "hello from echo, you are %s, you sent %q", r.RemoteAddr, body)
	}))
	return w
}

func (w *world) resolver() *dns.Resolver {
	r, err := dns.New(dns.Config{
		View:   func() dns.View { return snapView{w.store.Snapshot()} },
		Client: func(context.Context) (*mesh.Workload, error) { return clientWorkload(), nil },
		Log:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

type snapView struct{ *state.Snapshot }

func (v snapView) EndpointWorkloads(k mesh.ServiceKey) []*mesh.Workload {
	var out []*mesh.Workload
	for _, e := range v.Endpoints(k) {
		out = append(out, e.Workload)
	}
	return out
}

func (w *world) config(name, ns, sa string) Config {
	return Config{
		Workload: WorkloadInfo{Name: name, Namespace: ns, ServiceAccount: sa}, Network: "eks", Store: w.store,
		Certs: func(_ context.Context, id mesh.Identity) (hbone.Certificate, error) {
			c := w.ca.Issue(w.t, id)
			return hbone.Certificate{TLS: c.TLS, Roots: c.Roots}, nil
		},
		Grace: 5 * time.Second,
	}
}

// start runs a proxy on its real ports at ip.
func (w *world) start(cfg Config, ip netip.Addr) *side {
	w.t.Helper()
	s := &side{log: &meshtest.Buffer{}, reg: prometheus.NewRegistry(), done: make(chan struct{})}
	levels, err := telemetry.NewLevels("debug")
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.Log = slog.New(telemetry.NewHandler(s.log, telemetry.Text, levels))
	cfg.Access = telemetry.NewAccessLog(cfg.Log)
	if s.met, err = telemetry.NewMetrics(s.reg, "test"); err != nil {
		w.t.Fatal(err)
	}
	cfg.Metrics = s.met
	if s.proxy, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	listen := func(a netip.Addr, port uint16) net.Listener {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			w.t.Fatal(err)
		}
		return l
	}
	ls := Listeners{Outbound: listen(ip, mesh.OutboundPort), HBONE: listen(ip, mesh.HBONEPort), Plain: listen(ip, mesh.InboundPort), Proxy: listen(ip, mesh.SOCKSPort)}
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	go func() {
		defer close(s.done)
		if err := s.proxy.Run(ctx, ls); err != nil {
			w.t.Errorf("Run() = %v", err)
		}
	}()
	w.t.Cleanup(func() {
		cancel(ErrRemoved)
		meshtest.Closes(w.t, "proxy stops", s.done)
		if w.t.Failed() {
			w.t.Logf("log of %s:\n%s", cfg.Workload.Name, s.log)
		}
	})
	return s
}

// dial opens a captured connection of the client application.
func (w *world) dial() *net.TCPConn {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientIP.AsSlice()}}
	c, err := d.DialContext(w.t.Context(), "tcp", netip.AddrPortFrom(clientIP, mesh.OutboundPort).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
	return c.(*net.TCPConn)
}

// captured are the arguments that make curl's connection one that was captured.
func captured() []string {
	return []string{"--connect-to", "::" + netip.AddrPortFrom(clientIP, mesh.OutboundPort).String(), "--interface", clientIP.String()}
}

// logged waits for a line that has all parts.
func (s *side) logged(t *testing.T, parts ...string) string {
	t.Helper()
	var found string
	meshtest.Eventually(t, fmt.Sprintf("a log line with %q", parts), func() bool {
		for line := range strings.Lines(s.log.String()) {
			ok := true
			for _, p := range parts {
				ok = ok && strings.Contains(line, p)
			}
			if ok {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// counts returns the sum of a metric's series that have all label parts.
func (s *side) metric(t *testing.T, name string, parts ...string) float64 {
	t.Helper()
	rec := httptest.NewRecorder()
	telemetry.MetricsHandler(s.reg, s.met).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	var sum float64
	for line := range strings.Lines(rec.Body.String()) {
		if !strings.HasPrefix(line, name+"{") {
			continue
		}
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		if ok {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

func serveApp(t *testing.T, addr netip.AddrPort, h http.Handler) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// serveTCP runs f for each connection to addr.
func serveTCP(t *testing.T, addr netip.AddrPort, f func(*net.TCPConn)) {
	t.Helper()
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); f(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
}

func denyPolicy(name string, ids ...string) *mesh.Policy {
	var ms []mesh.StringMatch
	for _, id := range ids {
		ms = append(ms, mesh.StringMatch{Value: id})
	}
	return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: name}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{Principals: ms}}}}}
}

// denyAll is Istio's `spec: {}`.
func denyAll() *mesh.Policy {
	return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}, Scope: mesh.ScopeNamespace, Action: mesh.Allow}
}

// tapped records what passes.
type tapped struct {
	net.Conn
	to *meshtest.Buffer
}

func (c *tapped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.to.Write(p[:n])
	return n, err
}

func (c *tapped) Write(p []byte) (int, error) {
	c.to.Write(p)
	return c.Conn.Write(p)
}

func ptr[T any](v T) *T { return &v }
