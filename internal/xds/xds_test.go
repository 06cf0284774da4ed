package xds_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds"
)

func newWorkload(uid, ip string) *mesh.Workload {
	return &mesh.Workload{
		UID: uid, Name: uid, Namespace: "ecs-demo-1", TrustDomain: "cluster.local", ServiceAccount: "sa", Network: "eks",
		ClusterID: "Kubernetes", Capacity: 1, Addresses: []netip.Addr{netip.MustParseAddr(ip)},
		Services: map[mesh.ServiceKey]map[uint16]uint16{{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}: {80: 8080}},
	}
}

var echo = &mesh.Service{
	Key: mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}, Name: "echo",
	VIPs:  []mesh.NetworkAddress{{Network: "eks", Addr: netip.MustParseAddr("240.240.0.1")}},
	Ports: map[uint16]uint16{80: 8080}, AppProtocols: map[uint16]string{80: "HTTP11"},
}

var denyAll = &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}, Scope: mesh.ScopeNamespace}

func config(t *testing.T, istiod *meshtest.Istiod, store *state.Store) xds.Config {
	return xds.Config{
		Address:    istiod.Address(),
		ServerName: meshtest.IstiodName,
		Roots:      istiod.CA.RootsFunc,
		Token:      func(context.Context) (string, error) { return "secret", nil },
		ClusterID:  "Kubernetes",
		Headers:    map[string]string{"X-Custom": "1"},
		Node: xds.NodeInfo{Name: "task", Namespace: "ecs-demo-1", InstanceIP: netip.MustParseAddr("10.0.128.9"),
			Metadata: map[string]any{"CLUSTER_ID": "Kubernetes"}},
		Sink: store,
		Log:  meshtest.Logger(t),
	}
}

// start runs a client of istiod until the test ends.
func start(t *testing.T, istiod *meshtest.Istiod, change func(*xds.Config)) (*xds.Client, *state.Store) {
	t.Helper()
	store := state.NewStore()
	cfg := config(t, istiod, store)
	if change != nil {
		change(&cfg)
	}
	c, err := xds.New(cfg)
	if err != nil {
		t.Fatalf("New() = %v", err)
	}
	meshtest.Run(t, c.Run)
	return c, store
}

func has(store *state.Store, uid string) func() bool {
	return func() bool { return store.Snapshot().Workload(uid) != nil }
}

func hasNot(store *state.Store, uid string) func() bool {
	return func() bool { return store.Snapshot().Workload(uid) == nil }
}

func TestClient(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Set(newWorkload("a", "10.0.128.1"), newWorkload("b", "10.0.128.2"), echo, denyAll)
	c, store := start(t, istiod, nil)
	meshtest.Closes(t, "synced", c.Synced())
	snap := store.Snapshot()
	opts := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(newWorkload("a", "10.0.128.1"), snap.Workload("a"), opts); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(echo, snap.Service(echo.Key), opts); diff != "" {
		t.Errorf("service (-want +got):\n%s", diff)
	}
	if n := len(snap.Endpoints(echo.Key)); n != 2 {
		t.Errorf("%d endpoints, want 2", n)
	}
	if ps, _ := snap.PoliciesFor(snap.Workload("a")); len(ps) != 1 {
		t.Errorf("%d policies, want deny-all", len(ps))
	}
	istiod.Set(newWorkload("c", "10.0.128.3"))
	meshtest.Eventually(t, "an added workload", has(store, "c"))
	istiod.Remove("a", "ecs-demo-1/deny-all")
	meshtest.Eventually(t, "a removed workload", hasNot(store, "a"))
	meshtest.Eventually(t, "a removed policy", func() bool { return store.Snapshot().Policy(denyAll.Key) == nil })

	md := istiod.Calls()[0]
	for name, want := range map[string]string{"authorization": "Bearer secret", "clusterid": "Kubernetes", "x-custom": "1"} {
		if got := strings.Join(md.Get(name), ","); got != want {
			t.Errorf("metadata %s = %q, want %q", name, got, want)
		}
	}
	node := istiod.Requests()[0].Node
	if want := "ztunnel~10.0.128.9~task.ecs-demo-1~ecs-demo-1.svc.cluster.local"; node.GetId() != want {
		t.Errorf("node id %q, want %q", node.GetId(), want)
	}
	want := map[string]any{"NAME": "task", "NAMESPACE": "ecs-demo-1", "INSTANCE_IPS": "10.0.128.9", "NODE_NAME": "", "CLUSTER_ID": "Kubernetes"}
	if diff := cmp.Diff(want, node.GetMetadata().AsMap()); diff != "" {
		t.Errorf("node metadata (-want +got):\n%s", diff)
	}
	if got := istiod.Rejections(); len(got) != 0 {
		t.Errorf("rejections %q, want none", got)
	}
}

func TestReconnectNamesWhatIsHeld(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Set(newWorkload("a", "10.0.128.1"), newWorkload("b", "10.0.128.2"), denyAll)
	c, store := start(t, istiod, nil)
	meshtest.Closes(t, "synced", c.Synced())

	istiod.Refuse(status.Error(codes.Unavailable, "restarting"))
	before := len(istiod.Requests())
	istiod.Remove("a", "ecs-demo-1/deny-all")
	istiod.Set(newWorkload("c", "10.0.128.3"))
	if has(store, "a")() == false {
		t.Error("a workload was lost together with istiod")
	}
	istiod.Refuse(nil)
	meshtest.Eventually(t, "what was added meanwhile", has(store, "c"))
	meshtest.Eventually(t, "what was removed meanwhile", hasNot(store, "a"))
	meshtest.Eventually(t, "the policy that was removed meanwhile", func() bool { return store.Snapshot().Policy(denyAll.Key) == nil })
	first := istiod.Requests()[before]
	if first.TypeUrl != xds.AddressType || first.Node == nil || first.ResponseNonce != "" {
		t.Errorf("first request after reconnecting = %v", first)
	}
	if len(first.InitialResourceVersions) != 2 || first.InitialResourceVersions["a"] == "" || first.InitialResourceVersions["b"] == "" {
		t.Errorf("initial versions = %v, want those of a and b", first.InitialResourceVersions)
	}
	second := istiod.Requests()[before+1]
	if _, named := second.InitialResourceVersions["ecs-demo-1/deny-all"]; second.TypeUrl != xds.AuthorizationType || !named {
		t.Errorf("second request after reconnecting = %v, want deny-all in it", second)
	}
}

func TestBadResourcesAreRejectedByName(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Set(newWorkload("good", "10.0.128.1"))
	c, store := start(t, istiod, nil)
	meshtest.Closes(t, "synced", c.Synced())

	bad := newWorkload("bad", "10.0.128.2")
	bad.Policies = []mesh.PolicyKey{{Namespace: "no-slash"}}
	raw := meshtest.EncodeWorkload(bad)
	raw.AuthorizationPolicies = []string{"no-slash"}
	istiod.SetRaw(xds.AddressType, "bad", meshtest.Marshal(t, meshtest.WorkloadAddress(raw)))
	istiod.SetRaw(xds.AuthorizationType, "ns/garbage", []byte{0xff})
	meshtest.Eventually(t, "rejections", func() bool { return len(istiod.Rejections()) >= 2 })
	all := strings.Join(istiod.Rejections(), "\n")
	if !strings.Contains(all, `bad: authorization policy "no-slash" is not NAMESPACE/NAME`) || !strings.Contains(all, "ns/garbage: decode:") {
		t.Errorf("rejections = %q", all)
	}
	istiod.Set(newWorkload("good2", "10.0.128.3"))
	meshtest.Eventually(t, "the stream goes on", has(store, "good2"))

	// The rejected name is not claimed after a reconnect, so that it is sent again.
	before := len(istiod.Requests())
	istiod.Disconnect()
	meshtest.Eventually(t, "a new stream", func() bool { return len(istiod.Requests()) > before+1 })
	if _, claimed := istiod.Requests()[before].InitialResourceVersions["bad"]; claimed {
		t.Error("a rejected resource is claimed")
	}
	istiod.Set(newWorkload("bad", "10.0.128.2"))
	meshtest.Eventually(t, "the corrected resource", has(store, "bad"))
}

func TestRejectionDoesNotSync(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.SetRaw(xds.AuthorizationType, "ns/garbage", []byte{0xff})
	istiod.Set(newWorkload("good", "10.0.128.1"))
	c, store := start(t, istiod, nil)
	meshtest.Eventually(t, "the good part", has(store, "good"))
	meshtest.Eventually(t, "the rejection", func() bool { return len(istiod.Rejections()) == 1 })
	select {
	case <-c.Synced():
		t.Fatal("synced although the first policies were rejected")
	default:
	}
	istiod.Remove("ns/garbage")
	meshtest.Closes(t, "synced", c.Synced())
}

func TestEmptyMeshSyncs(t *testing.T) {
	t.Parallel()
	c, _ := start(t, meshtest.NewIstiod(t, nil), nil)
	meshtest.Closes(t, "synced", c.Synced())
}

// TestTooManyNames has a mesh whose names alone do not fit into a request: everything is asked for again, and what is
// not in the answer is gone.
func TestTooManyNames(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	long := strings.Repeat("x", 1<<20)
	istiod.Set(newWorkload("a"+long, "10.0.0.1"), newWorkload("b"+long, "10.0.0.2"), newWorkload("c"+long, "10.0.0.3"), newWorkload("d", "10.0.0.4"))
	c, store := start(t, istiod, func(cfg *xds.Config) { cfg.Log = meshtest.Discard() })
	meshtest.Closes(t, "synced", c.Synced())
	istiod.Refuse(status.Error(codes.Unavailable, "restarting"))
	before := len(istiod.Requests())
	istiod.Remove("d")
	istiod.Refuse(nil)
	meshtest.Eventually(t, "what was removed meanwhile", hasNot(store, "d"))
	if n, _, _ := store.Snapshot().Counts(); n != 3 {
		t.Errorf("%d workloads, want 3", n)
	}
	if got := istiod.Requests()[before].InitialResourceVersions; len(got) != 0 {
		t.Errorf("%d names claimed, want none", len(got))
	}
}

type terminations struct {
	mu      sync.Mutex
	reasons []string
	bytes   int
}

func (m *terminations) Terminated(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reasons = append(m.reasons, reason)
}

func (m *terminations) Received(_ string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += n
}

func (m *terminations) seen(reason string) func() bool {
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, r := range m.reasons {
			if r == reason {
				return true
			}
		}
		return false
	}
}

func TestTrustAndTerminations(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	stranger := meshtest.NewCA(t)
	var trusted atomic.Bool
	m := &terminations{}
	c, _ := start(t, istiod, func(cfg *xds.Config) {
		cfg.Metrics = m
		cfg.Roots = func() (*x509.CertPool, error) {
			if trusted.Load() {
				return istiod.CA.Roots(), nil
			}
			return stranger.Roots(), nil
		}
	})
	meshtest.Eventually(t, "refusal of a strange server", m.seen("ConnectionError"))
	if n := len(istiod.Calls()); n != 0 {
		t.Errorf("%d calls reached a server that is not trusted", n)
	}
	trusted.Store(true) // the roots are read again for each connection
	meshtest.Closes(t, "synced", c.Synced())
	istiod.Disconnect()
	meshtest.Eventually(t, "the reason Reconnect", m.seen("Reconnect"))
	istiod.Refuse(status.Error(codes.PermissionDenied, "no identities matched"))
	meshtest.Eventually(t, "the reason Error", m.seen("Error"))
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes == 0 {
		t.Error("no bytes were counted")
	}
}

func TestServerNameIsVerified(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	m := &terminations{}
	start(t, istiod, func(cfg *xds.Config) { cfg.ServerName, cfg.Metrics = "other.example.com", m })
	meshtest.Eventually(t, "refusal of another name", m.seen("ConnectionError"))
	if n := len(istiod.Calls()); n != 0 {
		t.Errorf("%d calls reached a server of another name", n)
	}
}

func TestTokenFailureIsRetried(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	var calls atomic.Int32
	c, _ := start(t, istiod, func(cfg *xds.Config) {
		cfg.Token = func(context.Context) (string, error) {
			if calls.Add(1) < 3 {
				return "", errors.New("no token yet")
			}
			return "t", nil
		}
	})
	meshtest.Closes(t, "synced", c.Synced())
	if got := calls.Load(); got != 3 {
		t.Errorf("token asked for %d times, want 3", got)
	}
}

func TestRejectedTokenIsReported(t *testing.T) {
	t.Parallel()
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Refuse(status.Error(codes.Unauthenticated, "request authenticate failure"))
	rejected := make(chan string, 100)
	c, _ := start(t, istiod, func(cfg *xds.Config) { cfg.TokenRejected = func(token string) { rejected <- token } })
	if got := <-rejected; got != "secret" {
		t.Errorf("TokenRejected(%q), want the token", got)
	}
	istiod.Refuse(nil)
	meshtest.Closes(t, "synced", c.Synced())
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	ca := meshtest.NewCA(t)
	full := xds.Config{Address: "h:1", Roots: ca.RootsFunc, ClusterID: "c", Sink: state.NewStore(), Log: meshtest.Discard()}
	tests := []struct {
		want   string
		change func(*xds.Config)
	}{
		{"", func(*xds.Config) {}},
		{"", func(c *xds.Config) { c.Address = "https://istiod.istio-system.svc" }},
		{"Config.Address", func(c *xds.Config) { c.Address = "" }},
		{"Config.Address", func(c *xds.Config) { c.Address = "http://istiod:15012" }},
		{"Config.Address", func(c *xds.Config) { c.Address = ":15012" }},
		{"Config.Roots", func(c *xds.Config) { c.Roots = nil }},
		{"Config.ClusterID", func(c *xds.Config) { c.ClusterID = "" }},
		{"Config.Sink", func(c *xds.Config) { c.Sink = nil }},
		{"Config.Log", func(c *xds.Config) { c.Log = nil }},
		{"Config.Node", func(c *xds.Config) { c.Node.Metadata = map[string]any{"x": make(chan int)} }},
	}
	for _, tt := range tests {
		cfg := full
		tt.change(&cfg)
		_, err := xds.New(cfg)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("New() = %v, want an error with %q", err, tt.want)
		}
	}
}
