package proxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// What a waypoint sends on is judged by the waypoint's identity: a policy that lets nobody else in makes it the only way.
func TestAcceptFromWaypoint(t *testing.T) {
	w := newWorld(t)
	waypoint := mesh.Identity{TrustDomain: "cluster.local", Namespace: "ecs-demo-1", ServiceAccount: "waypoint"}
	w.store.Apply(mesh.Update{Policies: []*mesh.Policy{{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "waypoint-only"}, Scope: mesh.ScopeNamespace, Action: mesh.Allow,
		Rules: []mesh.Rule{{{{Principals: []mesh.StringMatch{{Value: "cluster.local/ns/ecs-demo-1/sa/waypoint"}}}}}}}}})
	w.connectAs(waypoint, hbone.Header{Name: headerForwarded, Value: `for="10.1.0.1:5";host=` + echoHost})
	w.server.logged(t, "\tinfo\taccess\tconnection complete\t", `src.identity="spiffe://cluster.local/ns/ecs-demo-1/sa/waypoint"`, `dst.service="`+echoHost+`"`)
	_, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...)
	if code != 56 {
		t.Errorf("the client itself: curl = %d, %q, want 56", code, errOut)
	}
	w.server.logged(t, "\terror\taccess\tconnection complete\t", `src.workload="shell-1"`, "reason=DENY")
}

// An application that wants the PROXY protocol gets a header that says who the client is and what it asked for, before the
// client's bytes, on the port of its tunnel and on the loopback.
func TestApplicationTunnelEndToEnd(t *testing.T) {
	w := newWorld(t)
	server := serverWorkload()
	server.ApplicationTunnel = &mesh.ApplicationTunnel{PROXY: true, Port: 15088}
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{server}})
	got := make(chan []byte, 1)
	serveTCP(t, netip.MustParseAddrPort("127.0.0.1:15088"), func(c *net.TCPConn) {
		b := make([]byte, 1<<10)
		n, err := io.ReadAtLeast(c, b, 16+12+3)
		if err != nil {
			return
		}
		for !bytes.HasSuffix(b[:n], []byte("hello")) {
			m, err := c.Read(b[n:])
			if n += m; err != nil {
				return
			}
		}
		got <- b[:n]
		_, _ = io.WriteString(c, "answer")
	})
	c := w.dial()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.CloseWrite(), readAll(c, "answer")); err != nil {
		t.Error(err)
	}
	line := w.client.logged(t, "connection complete", `direction="outbound"`)
	src := w.server.logged(t, "connection complete", `direction="inbound"`)
	from := netip.MustParseAddrPort(field(t, src, "src.addr"))
	want := append(proxyHeader(from, netip.MustParseAddrPort(field(t, line, "dst.hbone_addr")), clientWorkload().Identity()), "hello"...)
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("the application got %q, want %q", b, want)
	}
	meshtest.Eventually(t, "nothing is left", func() bool { return len(w.server.proxy.Connections()) == 0 })
	// Who calls the tunnel's own port goes through the same door.
	w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 15088)))
	c = w.dial()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := readAll(c, "answer"); err != nil {
		t.Error(err)
	}
}

func readAll(r io.Reader, want string) error {
	b, err := io.ReadAll(r)
	if err == nil && string(b) != want {
		err = errors.New("got " + string(b))
	}
	return err
}

// field returns the value of a field of a log line.
func field(t *testing.T, line, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(line, " "+name+"=")
	if _, first, found := strings.Cut(line, "\t"+name+"="); found {
		rest, ok = first, true
	}
	if !ok {
		t.Fatalf("no %s in %s", name, line)
	}
	value, _, _ := strings.Cut(rest, " ")
	return value
}
