package ztunnel

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// proxyPorts are all ports of a proxy. The last three are served in the proxy's own namespace and not in a pod's.
func proxyPorts() []int {
	return []int{mesh.OutboundPort, mesh.InboundPort, mesh.HBONEPort, mesh.DNSPort, mesh.SOCKSPort, mesh.AdminPort, mesh.MetricsPort, mesh.ReadinessPort}
}

// attempt sends an HTTP request to an address from within a namespace and returns what comes back.
func attempt(t *testing.T, ns *inpod.Netns, target string) (string, error) {
	t.Helper()
	d := net.Dialer{Timeout: 3 * time.Second}
	c, err := ns.Dial(t.Context(), &d, "tcp", target)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience(target)))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(c, 64<<10))
	return string(b), err
}

// patience is how long a call may take. The DNS port takes what is sent for the beginning of a question and waits for
// the rest, so nothing is learned from waiting with it.
func patience(target string) time.Duration {
	if strings.HasSuffix(target, fmt.Sprint(":", mesh.DNSPort)) {
		return 100 * time.Millisecond
	}
	return 7 * time.Second
}

// opened sums a counter of the metrics port.
func (r *running) opened(t *testing.T) (n float64) {
	t.Helper()
	_, text, err := r.get(mesh.MetricsPort, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	return sumOpened(t, text)
}

func sumOpened(t *testing.T, text string) (n float64) {
	t.Helper()
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "istio_tcp_connections_opened_total{") {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// maxHops is how many connections one attempt may cause: out of the client's proxy and into the server's.
const maxHops = 2

// Every port of the proxy, called by whom it is not for, from everywhere: nothing may be served that way and nothing
// may go round in circles.
func TestMaliciousCalls(t *testing.T) {
	ipA, ipB := netip.MustParseAddr("10.3.0.1"), netip.MustParseAddr("10.3.0.2")
	for _, c := range []struct {
		name               string
		capturedA, meshedB bool
	}{{"captured to captured", true, true}, {"plain to captured", false, true}, {"captured to plain", true, false}} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newPod(t), newPod(t)
			link(t, a, b, ipA, ipB)
			istiod := meshtest.NewIstiod(t, nil)
			socket := filepath.Join(t.TempDir(), "ztunnel.sock")
			cni, err := inpod.NewServer(inpod.ServerConfig{Path: socket, Log: meshtest.Discard()})
			if err != nil {
				t.Fatal(err)
			}
			meshtest.Run(t, cni.Run)
			for _, p := range []struct {
				uid    string
				ns     *inpod.Netns
				ip     netip.Addr
				meshed bool
			}{{"pod-a", a, ipA, c.capturedA}, {"pod-b", b, ipB, c.meshedB}} {
				w := workload(p.uid, "default", p.uid, p.ip)
				w.UID, w.Node = "Kubernetes//Pod/default/"+p.uid, "node-1"
				if !p.meshed {
					w.Protocol = mesh.TCP
				}
				istiod.Set(w)
				if !p.meshed {
					continue
				}
				if err := redirect.Install(p.ns.File(), redirect.Config{Outbound: true, Inbound: true, DNS: true, SpoofSource: true}); err != nil {
					t.Fatal(err)
				}
				if err := cni.Add(t.Context(), inpod.Workload{UID: p.uid, Name: p.uid, Namespace: "default", ServiceAccount: p.uid}, p.ns.File()); err != nil {
					t.Fatal(err)
				}
			}
			node := startShared(t, istiod, socket)
			meshtest.Eventually(t, "the node's proxy is ready", node.ready)
			serveIn(t, b, ipB.String()+":8080", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
			if out, err := attempt(t, a, ipB.String()+":8080"); !strings.Contains(out, "hello") {
				t.Fatalf("the application itself = %q, %v", out, err)
			}
			for _, port := range proxyPorts() {
				for from, call := range map[string]struct {
					ns *inpod.Netns
					ip string
				}{
					"the other pod":        {a, ipB.String()},
					"the server itself":    {b, ipB.String()},
					"the server's loop":    {b, "127.0.0.1"},
					"the client itself":    {a, ipA.String()},
					"the client's loop":    {a, "127.0.0.1"},
					"the server backwards": {b, ipA.String()},
				} {
					before := node.opened(t)
					target := fmt.Sprintf("%s:%d", call.ip, port)
					out, err := attempt(t, call.ns, target)
					var ne net.Error
					if errors.As(err, &ne) && ne.Timeout() && port != mesh.DNSPort {
						t.Errorf("%s to %s: hangs instead of being refused: %v", from, target, err)
					}
					if strings.HasPrefix(out, "HTTP/1.") && strings.Contains(out, " 200 ") {
						t.Errorf("%s to %s: was served: %.60q", from, target, out)
					}
					if n := node.opened(t) - before; n > maxHops {
						t.Errorf("%s to %s: one call became %v connections", from, target, n)
					}
				}
			}
			meshtest.Eventually(t, "no connection is left", func() bool {
				_, text, err := node.get(mesh.AdminPort, "/config_dump")
				return err == nil && !strings.Contains(text, `"originalDst"`)
			})
		})
	}
}

// The same for a task whose proxy captures its own namespace, where all its ports are. What it serves to everybody, and to
// the task itself on the loopback, is served; nothing else is, and nothing goes round in circles.
func TestMaliciousCallsToRedirectedTask(t *testing.T) {
	task, peer := newPod(t), newPod(t)
	taskIP, peerIP := netip.MustParseAddr("10.3.0.1"), netip.MustParseAddr("10.3.0.2")
	link(t, task, peer, taskIP, peerIP)
	serveIn(t, task, "10.3.0.1:8080", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	text := fmt.Sprintf(`{workloads: [{uid: shell-1, name: shell-1, namespace: default, serviceAccount: shell, network: eks, workloadIps: [%s], protocol: TCP}]}`, taskIP)
	proxyIn(t, task, &meshtest.Buffer{}, "ISTHMUS_REDIRECT=true", "UNSTABLE_ENABLE_SOCKS5=true", "PROXY_WORKLOAD_INFO=default/shell-1/shell", "NETWORK=eks",
		"INSTANCE_IP="+taskIP.String(), "XDS_ADDRESS=", "CA_ADDRESS=", "LOCAL_XDS="+text)
	meshtest.Eventually(t, "the proxy is ready", func() bool {
		_, _, code := curlIn(t, task, "-f", fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", mesh.ReadinessPort))
		return code == 0
	})
	opened := func() float64 {
		out, _, _ := curlIn(t, task, fmt.Sprintf("http://127.0.0.1:%d/metrics", mesh.MetricsPort))
		return sumOpened(t, out)
	}
	if out, err := attempt(t, peer, "10.3.0.1:8080"); !strings.Contains(out, "hello") {
		t.Fatalf("the application itself = %q, %v", out, err)
	}
	for _, port := range proxyPorts() {
		for from, call := range map[string]struct {
			ns *inpod.Netns
			ip string
		}{"the peer": {peer, taskIP.String()}, "the task itself": {task, taskIP.String()}, "the task's loop": {task, "127.0.0.1"}, "the task outwards": {task, peerIP.String()}} {
			before := opened()
			target := fmt.Sprintf("%s:%d", call.ip, port)
			out, err := attempt(t, call.ns, target)
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() && port != mesh.DNSPort {
				t.Errorf("%s to %s: hangs instead of being refused: %v", from, target, err)
			}
			public := port == mesh.MetricsPort || port == mesh.ReadinessPort || port == mesh.AdminPort && call.ip == "127.0.0.1"
			if served := strings.HasPrefix(out, "HTTP/1.") && (strings.Contains(out, " 200 ") || strings.Contains(out, " 404 ")); served && !public {
				t.Errorf("%s to %s: was served: %.60q", from, target, out)
			}
			if n := opened() - before; n > maxHops {
				t.Errorf("%s to %s: one call became %v connections", from, target, n)
			}
		}
	}
}

// The same for an uncaptured task: its own proxy ports through its own SOCKS port, and those of a peer.
func TestMaliciousCallsBySOCKS(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo")
	meshtest.Eventually(t, "both are ready", func() bool { return shell.ready() && echo.ready() })
	for _, port := range proxyPorts() {
		for _, ip := range []netip.Addr{shellIP, echoIP, netip.MustParseAddr("127.0.0.1")} {
			before := shell.opened(t) + echo.opened(t)
			target := fmt.Sprintf("%s:%d", ip, port)
			text := ""
			c, err := through(t, shellIP, target)
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(patience(target)))
				_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
				var b []byte
				b, err = io.ReadAll(io.LimitReader(c, 64<<10))
				text = string(b)
			}
			// Metrics and readiness are public: whoever reaches the address may have them.
			public := port == mesh.MetricsPort || port == mesh.ReadinessPort
			if strings.Contains(text, " 200 ") && !public {
				t.Errorf("%s was served: %.60q", target, text)
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() && port != mesh.DNSPort {
				t.Errorf("%s hangs instead of being refused: %v", target, err)
			}
			if n := shell.opened(t) + echo.opened(t) - before; n > maxHops {
				t.Errorf("%s: one call became %v connections", target, n)
			}
		}
	}
}

// A node's proxy can be scraped through HBONE, as its own workload; its admin port cannot be reached that way.
func TestSharedServesItself(t *testing.T) {
	istiod := newMesh(t)
	node := startSelf(t, istiod)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	meshtest.Eventually(t, "both are ready", func() bool { return node.ready() && shell.ready() })
	via := fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort)
	out, errOut, code := proxytest.Curl(t, "--proxy", via, fmt.Sprintf("http://%s:%d/metrics", gwIP, mesh.MetricsPort))
	if code != 0 || !strings.Contains(out, "istio_build{") {
		t.Fatalf("scrape through HBONE = %d, %.80q, %q", code, out, errOut)
	}
	meshtest.Eventually(t, "mutual TLS in the access log", func() bool {
		return strings.Contains(node.out.String(), `src.identity="spiffe://cluster.local/ns/default/sa/shell"`) &&
			strings.Contains(node.out.String(), `dst.identity="spiffe://cluster.local/ns/istio-system/sa/ztunnel"`)
	})
	if out, _, code := proxytest.Curl(t, "--proxy", via, fmt.Sprintf("http://%s:%d/config_dump", gwIP, mesh.AdminPort)); code == 0 {
		t.Errorf("the admin port is reachable through the mesh: %.80q", out)
	}
}
