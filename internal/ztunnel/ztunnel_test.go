package ztunnel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/admin"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

var (
	shellIP = netip.MustParseAddr("10.1.0.1")
	echoIP  = netip.MustParseAddr("10.1.0.2")
	gwIP    = netip.MustParseAddr("10.1.0.3")
	vip     = netip.MustParseAddr("240.240.0.2")
)

const echoHost = "echo.ecs-demo-1.ecs.local"

func TestMain(m *testing.M) {
	if os.Getenv(actAsProxy) != "" {
		os.Exit(beProxy())
	}
	os.Exit(proxytest.Main(m, shellIP, echoIP, gwIP))
}

// running is a proxy with what it logged.
type running struct {
	ip   netip.Addr
	out  *meshtest.Buffer
	stop context.CancelCauseFunc
	done chan error
}

// start runs a proxy at ip, with the environment it would have.
func start(t *testing.T, ip netip.Addr, istiod *meshtest.Istiod, env ...string) *running {
	t.Helper()
	return startWith(t, ip, istiod, func(*Config) {}, env...)
}

// startWith is start with a change of what the environment cannot say.
func startWith(t *testing.T, ip netip.Addr, istiod *meshtest.Istiod, change func(*Config), env ...string) *running {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, istiod.CA.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := ParseConfig(append([]string{"PROXY_MODE=dedicated", "NETWORK=eks", "INSTANCE_IP=" + ip.String(), "CLUSTER_ID=Kubernetes",
		"XDS_ADDRESS=" + istiod.Address(), "CA_ADDRESS=" + istiod.Address(), "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root,
		"ALT_XDS_HOSTNAME=" + meshtest.IstiodName, "ALT_CA_HOSTNAME=" + meshtest.IstiodName, "AUTH_TOKEN=a-token",
		"UNSTABLE_ENABLE_SOCKS5=true", "CONNECTION_TERMINATION_DEADLINE=2s"}, env...))
	if err != nil {
		t.Fatal(err)
	}
	at := func(port int) string { return fmt.Sprintf("%s:%d", ip, port) }
	if cfg.Mode == Shared { // the pods' ports are in their own namespaces
		cfg.Listen.Admin, cfg.Listen.Metrics, cfg.Listen.Readiness = at(mesh.AdminPort), at(mesh.MetricsPort), at(mesh.ReadinessPort)
		cfg.Listen.Self = at(mesh.HBONEPort)
	} else {
		cfg.Listen = Addresses{Outbound: at(mesh.OutboundPort), Plain: at(mesh.InboundPort), HBONE: at(mesh.HBONEPort), SOCKS: at(mesh.SOCKSPort),
			DNS: at(mesh.DNSPort), Admin: at(mesh.AdminPort), Metrics: at(mesh.MetricsPort), Readiness: at(mesh.ReadinessPort)}
	}
	change(&cfg)
	r := &running{ip: ip, out: &meshtest.Buffer{}, done: make(chan error, 1)}
	ctx, stop := context.WithCancelCause(context.Background())
	r.stop = stop
	go func() { r.done <- Run(ctx, cfg, r.out) }()
	t.Cleanup(func() {
		stop(errors.New("test ends"))
		if err := <-r.done; err != nil {
			t.Errorf("Run() = %v", err)
		}
		r.done <- nil
		if t.Failed() {
			t.Logf("log of %s:\n%s", ip, r.out)
		}
	})
	return r
}

func (r *running) get(port int, path string) (int, string, error) {
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(httptest.NewRequest("GET", fmt.Sprintf("http://%s:%d%s", r.ip, port, path), nil))
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func (r *running) ready() bool {
	code, _, err := r.get(mesh.ReadinessPort, "/healthz/ready")
	return err == nil && code == 200
}

func workload(name, ns, sa string, ip netip.Addr, svcs ...mesh.ServiceKey) *mesh.Workload {
	w := &mesh.Workload{UID: "Kubernetes/networking.istio.io/WorkloadEntry/" + ns + "/" + name, Name: name, Namespace: ns, TrustDomain: "cluster.local",
		ServiceAccount: sa, Addresses: []netip.Addr{ip}, Network: "eks", ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1,
		CanonicalName: sa, WorkloadName: sa, Services: map[mesh.ServiceKey]map[uint16]uint16{}}
	for _, k := range svcs {
		w.Services[k] = map[uint16]uint16{80: 8080}
	}
	return w
}

func newMesh(t *testing.T) *meshtest.Istiod {
	t.Helper()
	istiod := meshtest.NewIstiod(t, nil)
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	istiod.Set(workload("shell-1", "default", "shell", shellIP), workload("echo-1", "ecs-demo-1", "echo", echoIP, key),
		&mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080}})
	serveAt(t, netip.AddrPortFrom(echoIP, 8080), "hello")
	return istiod
}

// serveAt runs an HTTP server that says text.
func serveAt(t *testing.T, at netip.AddrPort, text string) {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	app := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })}}
	app.Start()
	t.Cleanup(app.Close)
}

func TestDedicated(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo", "LOG_FORMAT=json")
	meshtest.Eventually(t, "both are ready", func() bool { return shell.ready() && echo.ready() })
	curl := func() (string, string, int) {
		return proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
	}
	if out, errOut, code := curl(); out != "hello" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	meshtest.Eventually(t, "the text access log", func() bool {
		return strings.Contains(shell.out.String(), "\tinfo\taccess\tconnection complete\tsrc.addr=")
	})
	meshtest.Eventually(t, "the JSON access log", func() bool {
		return strings.Contains(echo.out.String(), `"scope":"access","message":"connection complete","src.addr":"`)
	})
	istiod.Set(&mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "deny-all"}, Scope: mesh.ScopeNamespace, Action: mesh.Allow})
	meshtest.Eventually(t, "the policy is enforced", func() bool {
		_, errOut, code := curl()
		return code == 56 && strings.Contains(errOut, "Recv failure: Connection reset by peer")
	})
	checkDump(t, echo)
	code, text, err := echo.get(mesh.MetricsPort, "/metrics")
	if err != nil || code != 200 || !strings.Contains(text, `response_flags="DENY"`) || !strings.Contains(text, "istio_build{") {
		t.Errorf("metrics = %d, %v", code, err)
	}
	seconds, ok := gauge(t, text, "isthmus_certificate_expiration_timestamp_seconds")
	if left := time.Until(time.Unix(int64(seconds), 0)); !ok || left <= 0 || left > 25*time.Hour {
		t.Errorf("the certificate ends at %v, %t", seconds, ok)
	}
}

// gauge finds the value of a metric without labels.
func gauge(t *testing.T, text, name string) (float64, bool) {
	t.Helper()
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return v, err == nil
		}
	}
	return 0, false
}

func checkDump(t *testing.T, r *running) {
	t.Helper()
	_, text, err := r.get(mesh.AdminPort, "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	var d admin.Dump
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Workloads) != 2 || len(d.Services) != 1 || len(d.Policies) != 1 || len(d.Certificates) != 1 || len(d.WorkloadState) != 1 {
		t.Errorf("dump has %d workloads, %d services, %d policies, %d certificates, %d proxied workloads; want 2, 1, 1, 1, 1",
			len(d.Workloads), len(d.Services), len(d.Policies), len(d.Certificates), len(d.WorkloadState))
	}
	if c := d.Certificates[0]; c.State != "Available" || len(c.CertChain) != 1 || len(c.RootCerts) != 1 || c.Identity != "spiffe://cluster.local/ns/ecs-demo-1/sa/echo" {
		t.Errorf("certificate = %+v", c)
	}
	if strings.Contains(text, "a-token") {
		t.Error("the dump holds the token")
	}
}

func TestDrainOnStop(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	meshtest.Eventually(t, "it is ready", shell.ready)
	resp, err := http.Post(fmt.Sprintf("http://%s:%d/quitquitquit", shellIP, mesh.AdminPort), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	meshtest.Eventually(t, "it stops", func() bool {
		select {
		case err := <-shell.done:
			shell.done <- err
			return true
		default:
			return false
		}
	})
	if !strings.Contains(shell.out.String(), "proxy stopped") {
		t.Error("the log does not end with the stop: lines are missing")
	}
}

func TestHealthAndVersion(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := Main([]string{"version"}, nil, &out, &errOut); code != 0 || out.Len() == 0 {
		t.Errorf("version = %d, %q", code, out.String())
	}
	if code := Main([]string{"health"}, nil, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "not reachable") {
		t.Errorf("health without a proxy = %d, %q", code, errOut.String())
	}
	errOut.Reset()
	if code := Main([]string{"dance"}, nil, &out, &errOut); code != 2 {
		t.Errorf("unknown command = %d", code)
	}
	if code := Main(nil, []string{"PROXY_MODE=x", "INSTANCE_IP=y"}, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "PROXY_MODE") || !strings.Contains(errOut.String(), "INSTANCE_IP") {
		t.Errorf("bad configuration = %d, %q; want both problems", code, errOut.String())
	}
}
