package admin

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fakeView is a small mesh that uses every field of the dump.
type fakeView struct{}

func (fakeView) Workloads() iter.Seq[*mesh.Workload] {
	svc := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}
	return slices.Values([]*mesh.Workload{
		{UID: "Kubernetes//Pod/default/shell-1", Name: "shell-1", Namespace: "default", TrustDomain: "cluster.local", ServiceAccount: "shell",
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.64.2")}, Network: "eks", ClusterID: "Kubernetes", Node: "lab-node", Protocol: mesh.HBONE, Capacity: 1,
			CanonicalName: "shell", CanonicalRevision: "latest", WorkloadName: "shell", WorkloadType: mesh.Deployment,
			Policies: []mesh.PolicyKey{{Namespace: "istio-system", Name: "istio_converted_static_strict"}}},
		{UID: "Kubernetes/networking.istio.io/WorkloadEntry/ecs-demo-1/echo-1", Name: "echo-1", Namespace: "ecs-demo-1", TrustDomain: "cluster.local", ServiceAccount: "echo",
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.128.9")}, Network: "eks", ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1, Unhealthy: true,
			Locality:          mesh.Locality{Region: "us-east-2", Zone: "us-east-2a"},
			Waypoint:          &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: netip.MustParseAddr("10.96.0.7")}, HBONEPort: 15008},
			NetworkGateway:    &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "istio-system", Hostname: "gw.example"}, HBONEPort: 15008},
			ApplicationTunnel: &mesh.ApplicationTunnel{PROXY: true, Port: 1234},
			Services:          map[mesh.ServiceKey]map[uint16]uint16{svc: {80: 8080}}},
		{UID: "host", Name: "host", Namespace: "kube-system", HostNetwork: true, Hostname: "node.example", NativeTunnel: true, ClusterID: "Kubernetes"},
	})
}

func (fakeView) Services() iter.Seq[*mesh.Service] {
	return slices.Values([]*mesh.Service{
		{Key: mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: "echo.ecs-demo-1.ecs.local"}, Name: "ecs-service-1-echo",
			VIPs:  []mesh.NetworkAddress{{Network: "eks", Addr: netip.MustParseAddr("240.240.0.2")}},
			Ports: map[uint16]uint16{80: 8080}, SubjectAltNames: []string{"spiffe://cluster.local/ns/ecs-demo-1/sa/echo"},
			LoadBalancer: &mesh.LoadBalancer{Preferences: []mesh.RoutingScope{mesh.ScopeNetwork, mesh.ScopeZone}, Mode: mesh.ModeFailover},
			IPFamilies:   mesh.IPv4Only, Canonical: true},
		{Key: mesh.ServiceKey{Namespace: "other", Hostname: "cidr.example"}, Name: "cidr", NamespacePrivate: true,
			CIDRVIPs:          []mesh.NetworkPrefix{{Network: "eks", Prefix: netip.MustParsePrefix("10.9.0.0/16")}},
			Waypoint:          &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "other", Hostname: "wp.other"}, HBONEPort: 15008},
			WeightedWaypoints: []mesh.WeightedGateway{{Gateway: mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "other", Hostname: "wp2.other"}, HBONEPort: 15008}, Weight: 3}},
			LoadBalancer:      &mesh.LoadBalancer{Mode: mesh.ModeStrict, AllowAll: true}},
	})
}

func (fakeView) Policies() iter.Seq[*mesh.Policy] {
	return slices.Values([]*mesh.Policy{
		{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}, Scope: mesh.ScopeNamespace, Action: mesh.Allow},
		{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "everything"}, Scope: mesh.ScopeSelector, Action: mesh.Deny, DryRun: true, Rules: []mesh.Rule{{{{
			Namespaces: []mesh.StringMatch{{Value: "default"}}, NotNamespaces: []mesh.StringMatch{{Kind: mesh.MatchPrefix, Value: "kube-"}},
			Principals: []mesh.StringMatch{{Kind: mesh.MatchSuffix, Value: "/sa/x"}}, NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}},
			ServiceAccounts: []mesh.ServiceAccountMatch{{Namespace: "a", ServiceAccount: "b"}},
			SourceIPs:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, DestinationPorts: []uint16{80}, NotDestinationPorts: []uint16{81},
		}}}}},
	})
}

func TestConfigDumpGolden(t *testing.T) {
	d := Describe(fakeView{})
	d.Version = map[string]string{"version": "test"}
	d.Config = map[string]any{"network": "eks"}
	d.WorkloadState["default/shell-1"] = WorkloadState{State: "Up", Info: WorkloadInfo{Name: "shell-1", Namespace: "default", ServiceAccount: "shell"},
		Connections: Connections{Inbound: []Connection{}, Outbound: []Connection{{Src: "10.0.64.2:1", OriginalDst: "240.240.0.2:80", ActualDst: "10.0.128.9:15008", Protocol: "HBONE"}}}}
	s := newServer(t, d)
	rec := httptest.NewRecorder()
	s.AdminHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/config_dump", nil))
	if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type = %q", ct)
	}
	golden := filepath.Join("testdata", "config_dump.json")
	if *update {
		if err := os.WriteFile(golden, rec.Body.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), rec.Body.String()); diff != "" {
		t.Errorf("config dump (-want +got):\n%s", diff)
	}
}

// istioctl reads every list of the dump, so none may be null.
func TestEmptyDumpHasNoNulls(t *testing.T) {
	b, err := json.Marshal(Describe(emptyView{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"workloads", "services", "policies", "certificates", "workloadState"} {
		if strings.Contains(string(b), `"`+key+`":null`) {
			t.Errorf("%s is null", key)
		}
	}
}

type emptyView struct{}

func (emptyView) Workloads() iter.Seq[*mesh.Workload] { return slices.Values([]*mesh.Workload{}) }
func (emptyView) Services() iter.Seq[*mesh.Service]   { return slices.Values([]*mesh.Service{}) }
func (emptyView) Policies() iter.Seq[*mesh.Policy]    { return slices.Values([]*mesh.Policy{}) }

// fakeLevels remembers what was set.
type fakeLevels struct{ set []string }

func (f *fakeLevels) String() string { return "info" }

func (f *fakeLevels) Set(filter string, reset bool) error {
	if filter == "bad" {
		return errors.New("unknown log level")
	}
	f.set = append(f.set, fmt.Sprint(filter, reset))
	return nil
}

func newServer(t *testing.T, d Dump) *Server {
	t.Helper()
	s, err := New(Config{Dump: func() Dump { return d }, Levels: &fakeLevels{}, Shutdown: func() {}, Ready: NewReadiness("b", "a"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAdminPaths(t *testing.T) {
	s := newServer(t, Dump{})
	levels := &fakeLevels{}
	var stopped int
	s.cfg.Levels, s.cfg.Shutdown = levels, func() { stopped++ }
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/", 200, "config_dump"},
		{"GET", "/nothing", 404, ""},
		{"POST", "/logging", 200, "current log level is info"},
		{"POST", "/logging?level=debug&reset", 200, "current log level is info"},
		{"POST", "/logging?level=bad", 400, "usage"},
		{"GET", "/logging", 405, "usage"},
		{"GET", "/quitquitquit", 405, ""},
		{"POST", "/quitquitquit", 200, "shutdown now"},
		{"POST", "/quitquitquit", 200, "shutdown now"},
		{"GET", "/debug/pprof/profile?seconds=0", 400, "between"},
		{"GET", "/debug/pprof/profile?seconds=9999", 400, "between"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
	} {
		rec := httptest.NewRecorder()
		s.AdminHandler().ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if rec.Code != c.code || !strings.Contains(rec.Body.String(), c.body) {
			t.Errorf("%s %s = %d %q, want %d with %q", c.method, c.path, rec.Code, rec.Body, c.code, c.body)
		}
	}
	if diff := cmp.Diff([]string{"debugtrue"}, levels.set); diff != "" {
		t.Errorf("levels that were set (-want +got):\n%s", diff)
	}
	if stopped != 1 {
		t.Errorf("shutdown was asked for %d times, want 1", stopped)
	}
}

func TestReadiness(t *testing.T) {
	s := newServer(t, Dump{})
	var changes []bool
	s.cfg.Ready.OnChange(func(ok bool) { changes = append(changes, ok) })
	get := func() string {
		rec := httptest.NewRecorder()
		s.ReadinessHandler().ServeHTTP(rec, httptest.NewRequest("GET", "/healthz/ready", nil))
		return fmt.Sprint(rec.Code, " ", strings.TrimSpace(rec.Body.String()))
	}
	want := []string{"500 not ready, pending: a, b", "500 not ready, pending: b", "200 ready", "500 not ready, pending: a"}
	got := []string{get()}
	s.cfg.Ready.Set("a", true)
	got = append(got, get())
	s.cfg.Ready.Set("b", true)
	got = append(got, get())
	s.cfg.Ready.Set("a", false)
	got = append(got, get())
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]bool{true, false}, changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	rec := httptest.NewRecorder()
	s.ReadinessHandler().ServeHTTP(rec, httptest.NewRequest("POST", "/healthz/ready", nil))
	if rec.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST = %d", rec.Code)
	}
}

func TestRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ready := NewReadiness()
	s, err := New(Config{Readiness: []net.Listener{l}, Ready: ready, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/healthz/ready")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "ready\n" {
		t.Errorf("body = %q", b)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	l := []net.Listener{nil}
	for want, cfg := range map[string]Config{
		"Config.Log": {}, "Config.Dump": {Log: slog.New(slog.DiscardHandler), Admin: l}, "Config.Gather": {Log: slog.New(slog.DiscardHandler), Metrics: l},
		"Config.Ready": {Log: slog.New(slog.DiscardHandler), Readiness: l},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New() = %v, want a complaint about %s", err, want)
		}
	}
}

// A request's head has a limit, and so has the time to send it.
func TestHeadIsBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Readiness: []net.Listener{l}, Ready: NewReadiness(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	meshtest.Run(t, s.Run)
	for n, want := range map[int]int{1 << 10: 200, 2 * maxHeaderBytes: 431} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/healthz/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Long", strings.Repeat("x", n))
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("a head of %d bytes = %d, want %d", n, resp.StatusCode, want)
		}
	}
}
