package ztunnel

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// twoNetworks is a client on network vpc, and a server and a gateway on network eks. The client's control plane knows the
// server's service by its gateway alone.
type twoNetworks struct {
	istiod, far          *meshtest.Istiod // of the server and the gateway, and of the client
	shell, echo, gateway *running
}

func newNetworks(t *testing.T, gatewayEnv ...string) *twoNetworks {
	t.Helper()
	return newNetworksFor(t, nil, gatewayEnv)
}

// newNetworksFor is newNetworks with settings of the client's proxy.
func newNetworksFor(t *testing.T, shellEnv, gatewayEnv []string) *twoNetworks {
	t.Helper()
	n := &twoNetworks{istiod: newMesh(t)}
	service := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	split := &mesh.Workload{UID: "far/SplitHorizonWorkload/x/ecs-demo-1/" + echoHost, Name: "split", Namespace: "ecs-demo-1", TrustDomain: "cluster.local",
		ServiceAccount: "none", Network: "eks", ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1,
		NetworkGateway: &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: gwIP}, HBONEPort: 15008},
		Services:       map[mesh.ServiceKey]map[uint16]uint16{service: {80: 8080, 90: 9090}}}
	n.far = meshtest.NewIstiod(t, n.istiod.CA)
	client := workload("shell-1", "default", "shell", shellIP)
	client.Network = "vpc"
	n.far.Set(client, split, workload("gw", "istio-system", "eastwest", gwIP), &mesh.Service{Key: service, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "vpc", Addr: vip}},
		Ports: map[uint16]uint16{80: 8080, 90: 9090}, SubjectAltNames: []string{"spiffe://cluster.local/ns/ecs-demo-1/sa/echo"}})
	n.istiod.Set(workload("gw", "istio-system", "eastwest", gwIP))
	n.shell = start(t, shellIP, n.far, append([]string{"PROXY_WORKLOAD_INFO=default/shell-1/shell", "NETWORK=vpc"}, shellEnv...)...)
	n.echo = start(t, echoIP, n.istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo")
	n.gateway = start(t, gwIP, n.istiod, append([]string{"PROXY_MODE=gateway", "POD_NAME=gw", "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=eastwest",
		"GATEWAY_TLS_ROUTES=" + meshtest.IstiodName + "=" + n.istiod.Address(), "GATEWAY_TLS_PORTS=15012"}, gatewayEnv...)...)
	meshtest.Eventually(t, "all are ready", func() bool { return n.shell.ready() && n.echo.ready() && n.gateway.ready() })
	return n
}

// call calls the server from the client, by name.
func (n *twoNetworks) call(t *testing.T) (out, errOut string, code int) {
	t.Helper()
	return proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
}

// logs waits for a line of r that has all parts.
func (r *running) logs(t *testing.T, parts ...string) {
	t.Helper()
	meshtest.Eventually(t, fmt.Sprintf("%s logs %q", r.ip, parts), func() bool { return r.hasLogged(parts...) })
}

func (r *running) hasLogged(parts ...string) bool {
	for line := range strings.Lines(r.out.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			return true
		}
	}
	return false
}

// A gateway hands a tunnel from another network to a workload of its own, and passes TLS through by name.
func TestGateway(t *testing.T) {
	n := newNetworks(t)
	if out, errOut, code := n.call(t); out != "hello" {
		t.Fatalf("curl through the gateway = %d, %q, %q", code, out, errOut)
	}
	n.echo.logs(t, `src.identity="spiffe://cluster.local/ns/default/sa/shell"`) // the true client
	n.gateway.logs(t, "connection complete", "dst.hbone_addr="+echoHost+":80")
	// And the control plane through the gateway's passthrough port, as a task reaches it.
	task := start(t, netip.MustParseAddr("127.0.0.77"), n.istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo", "XDS_ADDRESS="+gwIP.String()+":15012", "CA_ADDRESS="+gwIP.String()+":15012")
	meshtest.Eventually(t, "a task behind the gateway is ready", task.ready)
}

// Who serves behind a gateway is known from the baggage of the inner answer alone. Where that is not believed, the log names
// the gateway.
func TestGatewayBaggage(t *testing.T) {
	for value, workload := range map[string]string{"true": "echo", "false": "gw"} {
		t.Run(value, func(t *testing.T) {
			n := newNetworksFor(t, []string{"ENABLE_RESPONSE_BAGGAGE=" + value}, nil)
			if out, errOut, code := n.call(t); out != "hello" {
				t.Fatalf("curl = %d, %q, %q", code, out, errOut)
			}
			n.shell.logs(t, "info\taccess\tconnection complete", fmt.Sprintf("dst.workload=%q", workload), `dst.identity="spiffe://cluster.local/ns/ecs-demo-1/sa/echo"`)
		})
	}
}

// Policies that select the gateway decide about the outer tunnel, before anything is dialled; a denial names the policy,
// and the client sees what it sees of any denial.
func TestGatewayPolicies(t *testing.T) {
	n := newNetworks(t)
	deny := &mesh.Policy{Key: mesh.PolicyKey{Namespace: "istio-system", Name: "no-shell"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{Principals: []mesh.StringMatch{{Value: "cluster.local/ns/default/sa/shell"}}}}}}}
	n.istiod.Set(deny)
	meshtest.Eventually(t, "the gateway denies", func() bool {
		_, errOut, code := n.call(t)
		return code == 56 && strings.Contains(errOut, "Recv failure: Connection reset by peer")
	})
	n.gateway.logs(t, "error\taccess\tconnection complete", `src.identity="spiffe://cluster.local/ns/default/sa/shell"`,
		`error="connection closed due to policy rejection: explicitly denied by: istio-system/no-shell"`, `policy="istio-system/no-shell" rule=0 reason=DENY`)
	n.shell.logs(t, `error="http status: 401 Unauthorized"`)
	if strings.Contains(n.echo.out.String(), "access") {
		t.Error("the destination was reached although the gateway denied")
	}
	if _, text, err := n.gateway.get(mesh.MetricsPort, "/metrics"); err != nil || !strings.Contains(text, `response_flags="DENY"`) {
		t.Errorf("the gateway's metrics do not show the denial: %v", err)
	}
	n.istiod.Remove(deny.Key.String())
	meshtest.Eventually(t, "it lets pass again", func() bool { out, _, _ := n.call(t); return out == "hello" })

	// One that selects the workload by name, as xDS knows it, and one of the whole mesh.
	gw := workload("gw", "istio-system", "eastwest", gwIP)
	deny.Scope, gw.Policies = mesh.ScopeSelector, []mesh.PolicyKey{deny.Key}
	n.istiod.Set(deny, gw)
	meshtest.Eventually(t, "a policy of the gateway's workload denies", func() bool { _, _, code := n.call(t); return code == 56 })
	n.istiod.Remove(deny.Key.String())
}

// The inner tunnel is the destination's: what the gateway lets pass is judged there, by the true client's identity. The
// workload API does not say which services are global, so a gateway serves all of its network unless it was told which.
func TestGatewayServices(t *testing.T) {
	n := newNetworks(t)
	n.istiod.Set(&mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "local-only"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{NotNamespaces: []mesh.StringMatch{{Value: "ecs-demo-1"}}}}}}})
	meshtest.Eventually(t, "the destination denies", func() bool { _, _, code := n.call(t); return code == 56 })
	n.echo.logs(t, `src.identity="spiffe://cluster.local/ns/default/sa/shell"`, "explicitly denied by: ecs-demo-1/local-only")
	n.gateway.logs(t, "info\taccess\tconnection complete", "dst.hbone_addr="+echoHost+":80")
}

// A gateway that was told which services are global knows no other.
func TestGatewayServesNamedServices(t *testing.T) {
	for pattern, served := range map[string]bool{"*.ecs-demo-2.ecs.local": false, "*.ecs-demo-1.ecs.local": true} {
		t.Run(pattern, func(t *testing.T) {
			n := newNetworks(t, "GATEWAY_SERVICES="+pattern)
			out, _, code := n.call(t)
			if served {
				if out != "hello" {
					t.Errorf("curl = %d, %q", code, out)
				}
				return
			}
			if code != 56 {
				t.Errorf("curl = %d, %q, want 56", code, out)
			}
			n.gateway.logs(t, "connection failed", "no service or workload for hostname: "+echoHost)
			n.shell.logs(t, `error="http status: 404 Not Found"`)
		})
	}
}

// A client whose certificate is revoked loses its tunnels through the gateway, and gets no new ones.
func TestGatewayRevocation(t *testing.T) {
	list := filepath.Join(t.TempDir(), "crl.pem") // does not exist yet
	n := newNetworks(t, "CRL_PATH="+list)
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	server := workload("echo-1", "ecs-demo-1", "echo", echoIP, key)
	server.Services[key][90] = 9090
	n.istiod.Set(server, &mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080, 90: 9090}})
	echoAt(t, netip.AddrPortFrom(echoIP, 9090))
	var c net.Conn
	meshtest.Eventually(t, "an echo through both tunnels", func() bool {
		var err error
		if c, err = through(t, shellIP, echoHost+":90"); err != nil {
			return false
		}
		_, _ = c.Write([]byte("ping"))
		_, err = io.ReadFull(c, make([]byte, 4))
		return err == nil
	})
	if err := os.WriteFile(list, n.istiod.CA.Revoke(t, leafOf(t, n.shell)), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("the live connection read %d bytes, want its end", k)
	}
	n.gateway.logs(t, "connection complete", "connection closed: peer certificate revoked by CRL", "reason=CERT_REVOKED")
	if out, _, code := n.call(t); code == 0 {
		t.Errorf("a new connection = %q, want a reset", out)
	}
	meshtest.Eventually(t, "the metric", func() bool {
		_, text, err := n.gateway.get(mesh.MetricsPort, "/metrics")
		return err == nil && strings.Contains(text, `istio_crl_policy_rejections_total{reporter="destination"}`)
	})
}

// Tunnels are limited over all connections: one client, which needs a single connection for many, cannot take more.
func TestGatewayTunnelLimit(t *testing.T) {
	n := newNetworks(t, "ISTHMUS_MAX_CONNECTIONS=2")
	key := mesh.ServiceKey{Namespace: "ecs-demo-1", Hostname: echoHost}
	server := workload("echo-1", "ecs-demo-1", "echo", echoIP, key)
	server.Services[key][90] = 9090
	n.istiod.Set(server, &mesh.Service{Key: key, Name: "echo", VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: vip}}, Ports: map[uint16]uint16{80: 8080, 90: 9090}})
	echoAt(t, netip.AddrPortFrom(echoIP, 9090))
	open := func() (net.Conn, error) {
		c, err := through(t, shellIP, echoHost+":90")
		if err == nil {
			_, _ = c.Write([]byte("ping"))
			_, err = io.ReadFull(c, make([]byte, 4))
		}
		return c, err
	}
	var held []net.Conn
	meshtest.Eventually(t, "two tunnels", func() bool {
		if c, err := open(); err == nil {
			held = append(held, c)
		}
		return len(held) == 2
	})
	if _, err := open(); err == nil {
		t.Error("a third tunnel was let through")
	}
	n.gateway.logs(t, "connection failed", "too many inbound tunnels")
	n.shell.logs(t, `error="http status: 503 Service Unavailable"`)
	if _, text, err := n.gateway.get(mesh.MetricsPort, "/metrics"); err != nil || !strings.Contains(text, `isthmus_proxy_limit_reached_total{limit="tunnels"}`) {
		t.Errorf("the metric does not show it: %v", err)
	}
	held[0].Close()
	meshtest.Eventually(t, "a place becomes free", func() bool { _, err := open(); return err == nil })
}
