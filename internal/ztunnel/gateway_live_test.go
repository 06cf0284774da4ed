package ztunnel

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/proxy"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// talk opens a connection from the client to the server's echo port through the gateway, and returns how to say a word.
func (n *twoNetworks) talk(t *testing.T) func() error {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(echoIP, 9090).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	n.istiod.Set(&mesh.Service{Key: mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}, Name: "echo",
		VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080, 90: 9090}})
	socks, err := proxy.SOCKS5("tcp", fmt.Sprintf("%s:%d", shellIP, mesh.SOCKSPort), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	var c net.Conn
	say := func() error {
		_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
		if _, err := io.WriteString(c, "word"); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 4))
		return err
	}
	meshtest.Eventually(t, "the gateway knows the port", func() bool {
		if c, err = socks.Dial("tcp", echoHost+":90"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return say() == nil
	})
	return say
}

// deniesShell is a policy of the gateway's namespace against the client.
func deniesShell() *mesh.Policy {
	return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "istio-system", Name: "no-shell"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{Principals: []mesh.StringMatch{{Value: "cluster.local/ns/default/sa/shell"}}}}}}}
}

// One connection through the gateway has one trace id in all three logs: both tunnels carry what the application said.
func TestGatewayTrace(t *testing.T) {
	n := newNetworks(t)
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	out, errOut, code := proxytest.Curl(t, "--proxytunnel", "--proxy", fmt.Sprintf("http://%s:%d", shellIP, mesh.SOCKSPort),
		"--proxy-header", "traceparent: 00-"+id+"-00f067aa0ba902b7-01", "http://"+echoHost+"/")
	if out != "hello" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	for _, r := range []*running{n.shell, n.gateway, n.echo} {
		r.logs(t, "access\tconnection complete", `trace_id="`+id+`"`)
	}
}

// A live tunnel through the gateway ends when a policy of the gateway comes to forbid it, and only then.
func TestGatewayPolicyChangeEndsLiveTunnel(t *testing.T) {
	n := newNetworks(t)
	say := n.talk(t)
	other := deniesShell()
	other.Key.Name, other.Rules[0][0][0].Principals[0].Value = "no-other", "cluster.local/ns/default/sa/other"
	n.istiod.Set(other)
	dry := deniesShell()
	dry.Key.Name, dry.DryRun = "dry", true
	n.istiod.Set(dry)
	meshtest.Eventually(t, "both have arrived", func() bool {
		out, _, _ := n.call(t)
		return out == "hello" && n.gateway.hasLogged("dry-run policy evaluated")
	})
	if err := say(); err != nil {
		t.Fatalf("a policy that does not forbid the tunnel has ended it: %v", err)
	}
	n.istiod.Set(deniesShell())
	meshtest.Eventually(t, "the tunnel ends", func() bool { return say() != nil })
	n.gateway.logs(t, "error\taccess\tconnection complete", "dst.hbone_addr="+echoHost+":90", `error="connection closed due to policy change"`,
		`policy="istio-system/no-shell"`, "reason=DENY")
}

// A dry run at the gateway is told of, as at any workload, and forbids nothing.
func TestGatewayDryRun(t *testing.T) {
	n := newNetworks(t)
	p := deniesShell()
	p.DryRun = true
	n.istiod.Set(p)
	meshtest.Eventually(t, "the dry run is told of", func() bool {
		if out, errOut, code := n.call(t); out != "hello" {
			t.Fatalf("curl = %d, %q", code, errOut)
		}
		return n.gateway.hasLogged("dry-run policy evaluated", `policy="istio-system/no-shell"`, "match")
	})
}

// What the gateway's workload names and has not got refuses tunnels, as it does at any workload.
func TestGatewayMissingPolicy(t *testing.T) {
	n := newNetworks(t, "ISTHMUS_POLICY_WAIT=20ms")
	gw := workload("gw", "istio-system", "eastwest", gwIP)
	gw.Policies = []mesh.PolicyKey{{Namespace: "istio-system", Name: "strict"}}
	n.istiod.Set(gw)
	meshtest.Eventually(t, "the gateway refuses", func() bool { _, _, code := n.call(t); return code == 56 })
	n.gateway.logs(t, "error\taccess\tconnection complete", "policy of the workload is not known: istio-system/strict", "reason=DENY")
}

// The gateway takes a tunnel to another workload if one is gone, and waits for one if all are.
func TestGatewayFailover(t *testing.T) {
	n := newNetworks(t)
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	echo := workload("echo-1", "ecs-demo-1", "echo", echoIP, key)
	gone := workload("echo-0", "ecs-demo-1", "echo", netip.MustParseAddr("10.1.0.77"), key)
	gone.Capacity = 1 << 30 // all but sure to be chosen first
	n.istiod.Set(gone)
	meshtest.Eventually(t, "the gateway chooses what is gone, and then what is not", func() bool {
		if out, errOut, code := n.call(t); out != "hello" {
			t.Fatalf("curl = %d, %q", code, errOut)
		}
		_, dump, err := n.gateway.get(mesh.AdminPort, "/config_dump")
		return err == nil && strings.Contains(dump, "echo-0")
	})
	if out, errOut, code := n.call(t); out != "hello" {
		t.Errorf("curl = %d, %q", code, errOut)
	}
	n.istiod.Remove(echo.UID)
	meshtest.Eventually(t, "a call finds all gone", func() bool {
		if _, _, code := n.call(t); code == 0 {
			return false // the removal is on its way
		}
		return n.gateway.waits(t, "none") == 1
	})
	answered := make(chan string, 1)
	go func() {
		out, _, _ := n.call(t)
		answered <- out
	}()
	refused := len(n.gateway.out.String())
	n.istiod.Set(echo)
	if out := <-answered; out != "hello" {
		t.Errorf("the call that waited got %q; the gateway's log: %s", out, n.gateway.out.String()[refused:])
	}
}

// waits returns how many connections waited for an endpoint, with an outcome.
func (r *running) waits(t *testing.T, outcome string) (n int) {
	t.Helper()
	_, text, err := r.get(mesh.MetricsPort, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		_, _ = fmt.Sscanf(line, `isthmus_proxy_endpoint_waits_total{outcome="`+outcome+`"} %d`, &n)
	}
	return n
}
