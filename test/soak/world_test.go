package soak_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
	"github.com/isthmus-mesh/isthmus/internal/ztunnel"
)

// Two clients, alice and bob, and three servers: one that alice may always reach, one that she may reach by turns, and
// one whose proxy dies now and then. Bob may never reach any.
var (
	aliceIP   = netip.MustParseAddr("10.2.0.1")
	bobIP     = netip.MustParseAddr("10.2.0.2")
	steadyIP  = netip.MustParseAddr("10.2.0.3")
	toggledIP = netip.MustParseAddr("10.2.0.4")
	mortalIP  = netip.MustParseAddr("10.2.0.5")
)

const (
	appPort    = 8080
	namespace  = "soak"
	socksPort  = mesh.SOCKSPort
	certifyFor = 20 * time.Second // certificates are renewed at half of it; istiod is never away for the other half
)

var servers = map[string]netip.Addr{"steady": steadyIP, "toggled": toggledIP, "mortal": mortalIP}

func host(server string) string { return server + ".soak.ecs.local" }

// world is the mesh and the applications.
type world struct {
	t       *testing.T
	istiod  *meshtest.Istiod
	root    string
	proxies map[string]*running
	apps    []io.Closer
	appWG   sync.WaitGroup
	logs    struct {
		mu   sync.Mutex
		all  []*tail  // guarded by mu
		kept []string // guarded by mu
	}
	// arrived is told who has come through to which server.
	arrived func(server, who string)
}

// running is a proxy with its log.
type running struct {
	name string
	ip   netip.Addr
	log  *tail
	stop context.CancelCauseFunc
	done chan error
}

func newWorld(t *testing.T, istiod *meshtest.Istiod) *world {
	t.Helper()
	w := &world{t: t, istiod: istiod, root: filepath.Join(t.TempDir(), "root.pem"), proxies: map[string]*running{}, arrived: func(string, string) {}}
	if err := os.WriteFile(w.root, istiod.CA.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	istiod.CA.SetTTL(certifyFor)
	values := []any{denyBob(0), workload("alice", aliceIP), workload("bob", bobIP)}
	for name, ip := range servers {
		s := workload(name, ip)
		key := mesh.ServiceKey{Namespace: namespace, Hostname: host(name)}
		s.Services = map[mesh.ServiceKey]map[uint16]uint16{key: {80: appPort}}
		vip := netip.AddrFrom4([4]byte{240, 240, 0, ip.As4()[3]})
		values = append(values, s, &mesh.Service{Key: key, Name: name, VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: appPort}})
	}
	istiod.Set(values...)
	for name, ip := range servers {
		w.serve(name, ip)
	}
	for name, ip := range map[string]netip.Addr{"alice": aliceIP, "bob": bobIP, "steady": steadyIP, "toggled": toggledIP, "mortal": mortalIP} {
		if _, err := w.run(name, ip); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func workload(name string, ip netip.Addr) *mesh.Workload {
	return &mesh.Workload{UID: "Kubernetes/networking.istio.io/WorkloadEntry/" + namespace + "/" + name, Name: name, Namespace: namespace,
		TrustDomain: mesh.DefaultTrustDomain, ServiceAccount: name, Addresses: []netip.Addr{ip}, Network: "eks", ClusterID: "Kubernetes",
		Protocol: mesh.HBONE, Capacity: 1, CanonicalName: name, CanonicalRevision: "latest", WorkloadName: name}
}

// denyBob is one policy in several wordings that mean the same.
func denyBob(wording int) *mesh.Policy {
	p := &mesh.Policy{Key: mesh.PolicyKey{Namespace: namespace, Name: "never-bob"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny}
	match := func(m mesh.Match) { p.Rules = append(p.Rules, mesh.Rule{{m}}) }
	switch wording % 4 {
	case 0:
		match(mesh.Match{Principals: []mesh.StringMatch{{Value: "cluster.local/ns/soak/sa/bob"}}})
	case 1:
		match(mesh.Match{Principals: []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: "/sa/bob"}}})
	case 2:
		match(mesh.Match{ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: namespace, ServiceAccount: "bob"}}})
	case 3:
		match(mesh.Match{DestinationPorts: []uint16{1}})
		match(mesh.Match{NotPrincipals: []mesh.StringMatch{{Value: "cluster.local/ns/soak/sa/alice"}}})
	}
	return p
}

// readyWithin is how long a proxy may take to be ready, on a machine that does much else.
const readyWithin = time.Minute

// run starts a proxy, as a task would, and returns how long it took to be ready.
func (w *world) run(name string, ip netip.Addr) (time.Duration, error) {
	cfg, err := ztunnel.ParseConfig([]string{"PROXY_MODE=dedicated", "NETWORK=eks", "INSTANCE_IP=" + ip.String(), "CLUSTER_ID=Kubernetes",
		"XDS_ADDRESS=" + w.istiod.Address(), "CA_ADDRESS=" + w.istiod.Address(), "XDS_ROOT_CA=" + w.root, "CA_ROOT_CA=" + w.root,
		"ALT_XDS_HOSTNAME=" + meshtest.IstiodName, "ALT_CA_HOSTNAME=" + meshtest.IstiodName, "AUTH_TOKEN=a-token", "IPV6_ENABLED=false",
		"UNSTABLE_ENABLE_SOCKS5=true", "CONNECTION_TERMINATION_DEADLINE=2s", "PROXY_WORKLOAD_INFO=" + namespace + "/" + name + "/" + name})
	if err != nil {
		return 0, err
	}
	at := func(port int) string { return fmt.Sprintf("%s:%d", ip, port) }
	cfg.Listen = ztunnel.Addresses{Outbound: at(mesh.OutboundPort), Plain: at(mesh.InboundPort), HBONE: at(mesh.HBONEPort), SOCKS: at(socksPort),
		DNS: at(mesh.DNSPort), Admin: at(mesh.AdminPort), Metrics: at(mesh.MetricsPort), Readiness: at(mesh.ReadinessPort)}
	ctx, stop := context.WithCancelCause(context.Background())
	r := &running{name: name, ip: ip, log: w.tail(name), stop: stop, done: make(chan error, 1)}
	go func() { r.done <- ztunnel.Run(ctx, cfg, r.log) }()
	w.proxies[name] = r
	began := time.Now()
	for tick := time.Tick(20 * time.Millisecond); !r.ready(); <-tick {
		if time.Since(began) > readyWithin {
			return 0, fmt.Errorf("%s is not ready after %v; its log:\n%s", name, readyWithin, r.log)
		}
	}
	return time.Since(began), nil
}

// tail returns the log of a proxy, the one it had before it died.
func (w *world) tail(name string) *tail {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	for _, l := range w.logs.all {
		if l.name == name {
			return l
		}
	}
	l := &tail{name: name}
	w.logs.all = append(w.logs.all, l)
	return l
}

func (r *running) ready() bool {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	resp, err := client.Get(fmt.Sprintf("http://%s:%d/healthz/ready", r.ip, mesh.ReadinessPort))
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// kill ends a proxy without a word to anybody.
func (w *world) kill(name string) {
	r := w.proxies[name]
	r.stop(proxy.ErrRemoved)
	if err := <-r.done; err != nil {
		w.t.Errorf("%s: Run() = %v", name, err)
	}
	delete(w.proxies, name)
}

func (w *world) stop() {
	for name, r := range w.proxies {
		r.stop(errors.New("the soak is over"))
		if err := <-r.done; err != nil {
			w.t.Errorf("%s: Run() = %v", name, err)
		}
	}
	for _, a := range w.apps {
		a.Close()
	}
	w.appWG.Wait()
	http.DefaultClient.CloseIdleConnections()
}

// remember keeps what the proxies logged around the first fault.
func (w *world) remember() {
	time.AfterFunc(100*time.Millisecond, func() {
		w.logs.mu.Lock()
		defer w.logs.mu.Unlock()
		for _, l := range w.logs.all {
			w.logs.kept = append(w.logs.kept, l.name+":\n"+l.String())
		}
	})
}

// dump shows the lines that may tell of the fault: what is neither bob's, who is denied all the time, nor a success.
func (w *world) dump() {
	w.logs.mu.Lock()
	defer w.logs.mu.Unlock()
	for _, text := range w.logs.kept {
		for line := range strings.Lines(text) {
			if !strings.Contains(line, "sa/bob") && !strings.Contains(line, "connection complete\tsrc") || strings.Contains(line, "sa/alice") && strings.Contains(line, "error=") {
				w.t.Log(strings.TrimSpace(line))
			}
		}
	}
}

// serve runs a server's application: it reads who comes, in one line's worth of eight bytes, and echoes what follows.
func (w *world) serve(name string, ip netip.Addr) {
	w.t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(ip, appPort).String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.apps = append(w.apps, l)
	w.appWG.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.appWG.Go(func() {
				defer c.Close()
				var who [8]byte
				if _, err := io.ReadFull(c, who[:]); err != nil {
					return
				}
				w.arrived(name, string(who[:binary.BigEndian.Uint16(who[6:])]))
				_, _ = io.Copy(c, c)
			})
		}
	})
}

// tail keeps the end of what is written.
type tail struct {
	name string

	mu  sync.Mutex
	buf []byte // guarded by mu
}

// Write implements io.Writer.
func (l *tail) Write(p []byte) (int, error) {
	const keep = 128 << 10
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*keep {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-keep:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (l *tail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}
