package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

func TestAllowed(t *testing.T) {
	w := newWorld(t)
	out, errOut, code := proxytest.Curl(t, append(captured(), "-d", "the secret word", "http://"+echoHost+"/")...)
	if code != 0 || !strings.Contains(out, `you sent "the secret word"`) {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	client := w.client.logged(t, "\taccess\tconnection complete\t", `direction="outbound"`)
	for _, part := range []string{"\tinfo\t", "src.addr=10.1.0.1:", `src.workload="shell-1"`, `src.identity="spiffe://cluster.local/ns/default/sa/shell"`,
		"dst.addr=10.1.0.2:15008 dst.hbone_addr=10.1.0.2:8080", `dst.service="` + echoHost + `"`, `dst.workload="echo-1"`,
		`dst.identity="spiffe://cluster.local/ns/ecs-demo-1/sa/echo"`, "bytes_sent=", "bytes_recv="} {
		if !strings.Contains(client, part) {
			t.Errorf("the client's access log lacks %s: %s", part, client)
		}
	}
	if strings.Contains(client, "error=") || strings.Contains(client, "bytes_sent=0") || strings.Contains(client, "bytes_recv=0") {
		t.Errorf("the client's access log: %s", client)
	}
	server := w.server.logged(t, "\taccess\tconnection complete\t", `direction="inbound"`)
	for _, part := range []string{`src.workload="shell-1"`, `src.namespace="default"`, "dst.hbone_addr=10.1.0.2:8080", `dst.workload="echo-1"`, `dst.service="` + echoHost + `"`} {
		if !strings.Contains(server, part) {
			t.Errorf("the server's access log lacks %s: %s", part, server)
		}
	}
	labels := []string{`source_workload="shell"`, `destination_workload="echo"`, `connection_security_policy="mutual_tls"`, `response_flags="-"`, `destination_service="` + echoHost + `"`}
	for _, s := range []struct {
		*side
		reporter string
	}{{w.client, "source"}, {w.server, "destination"}} {
		ls := append([]string{`reporter="` + s.reporter + `"`}, labels...)
		for _, name := range []string{"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total"} {
			meshtest.Eventually(t, name, func() bool { return s.metric(t, name, ls...) == 1 })
		}
		if n := s.metric(t, "istio_tcp_received_bytes_total", ls...); n < 15 {
			t.Errorf("%s: %v bytes received, want at least the request", s.reporter, n)
		}
	}
	if wire := w.wire.String(); wire == "" || strings.Contains(wire, "secret word") || strings.Contains(wire, "hello from") {
		t.Errorf("the payload is readable between the proxies (%d bytes seen)", len(wire))
	}
}

func TestDenied(t *testing.T) {
	for name, p := range map[string]*mesh.Policy{
		"deny all":      denyAll(),
		"deny explicit": denyPolicy("no-shell", "cluster.local/ns/default/sa/shell"),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{p}})
			for range 5 { // always the same answer, not only by luck
				out, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...)
				if code != 56 || strings.TrimSpace(errOut) != "curl: (56) Recv failure: Connection reset by peer" {
					t.Fatalf("curl = %d, %q, %q; want (56) Recv failure: Connection reset by peer", code, out, errOut)
				}
			}
			w.client.logged(t, "\terror\taccess\tconnection complete\t", `error="http status: 401 Unauthorized"`, "bytes_sent=0 bytes_recv=0")
			reason := `connection closed due to policy rejection: allow policies exist, but none allowed"`
			if p.Action == mesh.Deny {
				reason = `connection closed due to policy rejection: explicitly denied by: ecs-demo-1/no-shell" policy="ecs-demo-1/no-shell" rule=0`
			}
			w.server.logged(t, "\terror\taccess\tconnection complete\t", reason, "reason=DENY", `src.identity="spiffe://cluster.local/ns/default/sa/shell"`)
			if n := w.server.metric(t, "istio_tcp_connections_closed_total", `response_flags="DENY"`); n != 5 {
				t.Errorf("the server counts %v denied connections, want 5", n)
			}
			if n := w.client.metric(t, "istio_tcp_connections_failed_total", `response_flags="CONNECT"`); n != 5 {
				t.Errorf("the client counts %v failed connections, want 5", n)
			}
		})
	}
}

// keepTalking opens a connection through which one line has been echoed.
func keepTalking(t *testing.T, w *world) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	serveTCP(t, netip.AddrPortFrom(serverIP, 9000), func(c *net.TCPConn) { io.Copy(c, c) })
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9000)))
	c := w.dial()
	r := bufio.NewReader(c)
	say(t, c, r, "ping\n")
	return c, r
}

func say(t *testing.T, c *net.TCPConn, r *bufio.Reader, line string) {
	t.Helper()
	if _, err := io.WriteString(c, line); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadString('\n'); err != nil || got != line {
		t.Fatalf("echo of %q = %q, %v", line, got, err)
	}
}

func TestPolicyChangeEndsLiveConnection(t *testing.T) {
	deny := denyPolicy("no-shell", "cluster.local/ns/default/sa/shell")
	selector := denyPolicy("by-selector", "cluster.local/ns/default/sa/shell")
	selector.Scope = mesh.ScopeSelector
	listed := serverWorkload()
	listed.Policies = []mesh.PolicyKey{selector.Key}
	for name, change := range map[string]mesh.Update{
		"policy added":          {Policies: []*mesh.Policy{deny}},
		"workload lists policy": {Workloads: []*mesh.Workload{listed}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{selector}}) // applies to nobody yet
			c, r := keepTalking(t, w)
			start := time.Now()
			w.store.Apply(change)
			_, err := r.ReadString('\n')
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read after the policy change = %v, want connection reset", err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("the change took %v to be enforced", took)
			}
			_ = c.Close()
			w.server.logged(t, "connection complete", `error="connection closed due to policy change"`, "reason=DENY", "policy=", "rule=0")
			w.client.logged(t, "connection complete", `direction="outbound"`)
		})
	}
}

func TestUnrelatedPolicyChangeLeavesConnection(t *testing.T) {
	w := newWorld(t)
	c, r := keepTalking(t, w)
	w.store.Apply(mesh.Update{Policies: []*mesh.Policy{denyPolicy("other", "cluster.local/ns/default/sa/other")}})
	say(t, c, r, "still here\n")
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t)
	serveTCP(t, netip.AddrPortFrom(serverIP, 9001), func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // until the client has said everything
		c.Write([]byte(strings.ToUpper(string(all))))
	})
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9001)))
	c := w.dial()
	io.WriteString(c, "question")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "QUESTION" {
		t.Errorf("answer after half-close = %q, %v", got, err)
	}
	w.client.logged(t, "connection complete", "bytes_sent=8 bytes_recv=8")
	w.server.logged(t, "connection complete", "bytes_sent=8 bytes_recv=8")
}

func TestServerSpeaksFirst(t *testing.T) {
	w := newWorld(t)
	serveTCP(t, netip.AddrPortFrom(serverIP, 9002), func(c *net.TCPConn) { io.WriteString(c, "220 ready\r\n") })
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9002)))
	got, err := io.ReadAll(w.dial())
	if err != nil || string(got) != "220 ready\r\n" {
		t.Errorf("greeting = %q, %v", got, err)
	}
}

func TestLargeTransfer(t *testing.T) {
	w := newWorld(t)
	const size = 8 << 20
	serveTCP(t, netip.AddrPortFrom(serverIP, 9003), func(c *net.TCPConn) { io.Copy(c, c) })
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9003)))
	c := w.dial()
	go func() {
		io.CopyN(c, zeros{}, size)
		c.CloseWrite()
	}()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != size {
		t.Errorf("%d bytes came back, %v; want %d", n, err, size)
	}
	w.client.logged(t, "connection complete", "bytes_sent=8388608 bytes_recv=8388608")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestPassthrough(t *testing.T) {
	w := newWorld(t)
	serveApp(t, netip.AddrPortFrom(plainIP, 8081), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "outside") }))
	w.dst.Store(ptr(netip.AddrPortFrom(plainIP, 8081)))
	out, errOut, code := proxytest.Curl(t, append(captured(), "http://outside/")...)
	if code != 0 || out != "outside" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	line := w.client.logged(t, "connection complete", "dst.addr=10.1.0.4:8081")
	if strings.Contains(line, "identity") || strings.Contains(line, "hbone") {
		t.Errorf("a plain connection claims a tunnel: %s", line)
	}
	meshtest.Eventually(t, "a closed plain connection", func() bool {
		return w.client.metric(t, "istio_tcp_connections_closed_total", `connection_security_policy="unknown"`) == 1
	})
	if n := w.client.metric(t, "istio_tcp_sent_bytes_total", `connection_security_policy="unknown"`); n < 7 {
		t.Errorf("%v bytes counted for a spliced connection", n)
	}
}

func TestUnreachable(t *testing.T) {
	for _, c := range []struct {
		name, dst string
		change    func(*world)
		client    []string
		server    []string
	}{
		{name: "application is down", dst: "10.1.0.2:9999",
			client: []string{"connection complete", `error="http status: 503 Service Unavailable"`, "reason=CONNECT"},
			server: []string{"connection complete", "connection failed: ", "connection refused", "reason=CONNECT"}},
		{name: "no endpoint", dst: "240.240.0.2:80", change: func(w *world) {
			w.store.Apply(mesh.Update{RemovedAddresses: []string{serverWorkload().UID}})
		}, client: []string{"\twarn\t", "connection failed", `error="no healthy upstream: 240.240.0.2:80"`}},
		{name: "no such port of the service", dst: "240.240.0.2:81", client: []string{"connection failed", `error="no healthy upstream: 240.240.0.2:81"`}},
		{name: "plain destination is down", dst: "10.1.0.4:9999", client: []string{"connection complete", "connection refused", "reason=CONNECT"}},
		{name: "own port", dst: "127.0.0.1:15001", client: []string{"connection failed", `error="attempted recursive call to ourselves"`}},
		{name: "peer's own port", dst: "10.1.0.2:15000",
			client: []string{"connection complete", "http status: 503"},
			server: []string{"connection failed", `error="attempted recursive call to ourselves"`}},
		{name: "wrong identity", dst: "10.1.0.2:8080", change: func(w *world) {
			bad := serverWorkload()
			bad.UID, bad.ServiceAccount, bad.Name = "zzz", "somebody-else", "x" // the address now belongs to another
			w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{bad}, RemovedAddresses: nil})
			echo := serverWorkload()
			echo.Addresses = nil
			w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{echo}})
		}, client: []string{"connection complete", "identity verification error", "reason=TLS_FAILURE"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if c.change != nil {
				c.change(w)
			}
			w.dst.Store(ptr(netip.MustParseAddrPort(c.dst)))
			out, errOut, code := proxytest.Curl(t, append(captured(), "http://somewhere/")...)
			if code != 56 {
				t.Errorf("curl = %d, %q, %q; want 56", code, out, errOut)
			}
			w.client.logged(t, c.client...)
			if c.server != nil {
				w.server.logged(t, c.server...)
			}
		})
	}
}

func TestLoopbackFallback(t *testing.T) {
	w := newWorld(t, func(_, server *Config) { server.LoopbackFallback = true })
	serveApp(t, netip.MustParseAddrPort("127.0.0.1:9100"), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "private") }))
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9100)))
	if out, errOut, code := proxytest.Curl(t, append(captured(), "http://x/")...); out != "private" {
		t.Errorf("curl = %d, %q, %q", code, out, errOut)
	}
}

func TestPlainInbound(t *testing.T) {
	w := newWorld(t, func(_, server *Config) {
		server.OriginalDst = func(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPortFrom(serverIP, 8080), nil }
	})
	url := "http://" + netip.AddrPortFrom(serverIP, mesh.InboundPort).String() + "/"
	out, errOut, code := proxytest.Curl(t, "--interface", clientIP.String(), url)
	if code != 0 || !strings.Contains(out, "hello from echo") {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	line := w.server.logged(t, "connection complete", `direction="inbound"`, `src.workload="shell-1"`)
	if strings.Contains(line, "identity") {
		t.Errorf("a plaintext connection has an identity: %s", line)
	}
	// What STRICT mutual TLS becomes: deny whoever has no identity.
	strict := &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "strict"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny,
		Rules: []mesh.Rule{{{{NotPrincipals: []mesh.StringMatch{{Kind: mesh.MatchPresence}}}}}}}
	w.store.Apply(mesh.Update{Policies: []*mesh.Policy{strict}})
	out, errOut, code = proxytest.Curl(t, "--interface", clientIP.String(), url)
	if code != 56 {
		t.Errorf("curl = %d, %q, %q; want 56", code, out, errOut)
	}
	w.server.logged(t, "connection complete", "explicitly denied by: ecs-demo-1/strict")
	// The same policy lets mutual TLS pass.
	if out, _, _ := proxytest.Curl(t, append(captured(), "http://x/")...); !strings.Contains(out, "hello from echo") {
		t.Errorf("mutual TLS under a strict policy: %q", out)
	}
}

func TestDrain(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.Grace = 300 * time.Millisecond })
	c, r := keepTalking(t, w)
	w.client.cancel(errors.New("SIGTERM"))
	meshtest.Eventually(t, "the listener to close", func() bool {
		probe, err := net.Dial("tcp", netip.AddrPortFrom(clientIP, mesh.OutboundPort).String())
		if err != nil {
			return true
		}
		probe.Close()
		return false
	})
	say(t, c, r, "not yet over\n")
	if _, err := r.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read after the grace = %v, want connection reset", err)
	}
	meshtest.Closes(t, "proxy ends", w.client.done)
	w.client.logged(t, "connection complete", `error="connection closed due to connection drain"`)
}

func TestServerDrain(t *testing.T) {
	w := newWorld(t, func(_, server *Config) { server.Grace = 300 * time.Millisecond })
	c, r := keepTalking(t, w)
	w.server.cancel(errors.New("SIGTERM"))
	say(t, c, r, "not yet over\n")
	if _, err := r.ReadString('\n'); err == nil {
		t.Error("the connection outlived the server proxy's grace")
	}
	meshtest.Closes(t, "proxy ends", w.server.done)
	w.server.logged(t, "connection complete", `error="connection closed due to connection drain"`)
}

func TestMaxConnections(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.MaxConnections = 1 })
	keepTalking(t, w)
	c, err := net.Dial("tcp", netip.AddrPortFrom(clientIP, mesh.OutboundPort).String())
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("second connection = %v, want connection reset", err)
	}
	if n := w.client.metric(t, "isthmus_proxy_limit_reached_total", `limit="connections"`); n != 1 {
		t.Errorf("the limit was counted %v times, want 1", n)
	}
}

func TestConnectionsAreListed(t *testing.T) {
	w := newWorld(t)
	keepTalking(t, w)
	out, in := w.client.proxy.Connections(), w.server.proxy.Connections()
	if len(out) != 1 || out[0].Inbound || out[0].Protocol != "HBONE" || out[0].OriginalDst != "10.1.0.2:9000" || out[0].ActualDst != "10.1.0.2:15008" {
		t.Errorf("outbound connections = %+v", out)
	}
	if len(in) != 1 || !in[0].Inbound || in[0].ActualDst != "10.1.0.2:9000" {
		t.Errorf("inbound connections = %+v", in)
	}
}

func TestLocalWorkloadUnknown(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if _, err := LocalWorkload(ctx, w.store, WorkloadInfo{Name: "shell-1", Namespace: "default", ServiceAccount: "shell"}); err != nil {
		t.Errorf("known workload: %v", err)
	}
	fallback := clientWorkload()
	got, err := LocalWorkload(ctx, w.store, WorkloadInfo{Name: "late", Namespace: "default", ServiceAccount: "late", Fallback: fallback})
	if err != nil || got != fallback {
		t.Errorf("unknown workload with fallback = %v, %v", got, err)
	}
	late := clientWorkload()
	late.Name, late.UID, late.Addresses = "late", "late", nil
	found := make(chan error, 1)
	go func() {
		_, err := LocalWorkload(ctx, w.store, WorkloadInfo{Name: "late", Namespace: "default", ServiceAccount: "shell"})
		found <- err
	}()
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{late}})
	if err := <-found; err != nil {
		t.Errorf("workload that arrives late: %v", err)
	}
}
