package proxy

import (
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

var traceID = regexp.MustCompile(`trace_id="([0-9a-f]{32})"`)

// logID returns the trace id of a line.
func logID(t *testing.T, line string) string {
	t.Helper()
	m := traceID.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("no trace id in %s", line)
	}
	return m[1]
}

// A connection has one id in the logs of both proxies: the application's if it says one that is valid, else a new one.
func TestTrace(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	viaProxy := []string{"--interface", clientIP.String(), "--proxy", "http://" + netip.AddrPortFrom(clientIP, mesh.SOCKSPort).String()}
	seen := map[string]bool{}
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"captured", "", captured()},
		{"captured again", "", captured()},
		{"a tunnel's own", id, append([]string{"--proxytunnel", "--proxy-header", "traceparent: " + parent, "--proxy-header", "tracestate: a=b"}, viaProxy...)},
		{"a request's own", id, append([]string{"-H", "Traceparent: " + parent}, viaProxy...)},
		{"malformed", "", append([]string{"--proxytunnel", "--proxy-header", "traceparent: " + strings.ToUpper(parent)}, viaProxy...)},
		{"two", "", append([]string{"--proxytunnel", "--proxy-header", "traceparent: " + parent, "--proxy-header", "traceparent: " + parent}, viaProxy...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			if out, errOut, code := proxytest.Curl(t, append(c.args, "http://"+echoHost+"/")...); code != 0 {
				t.Fatalf("curl = %d, %q, %q", code, out, errOut)
			}
			client := logID(t, w.client.logged(t, "connection complete", `direction="outbound"`))
			server := logID(t, w.server.logged(t, "connection complete", `direction="inbound"`))
			if client != server || c.want != "" && client != c.want {
				t.Errorf("the client's proxy logs trace %s, the server's %s; want both %s", client, server, c.want)
			}
			if c.want == "" && (client == id || seen[client]) {
				t.Errorf("trace %s is not a new one", client)
			}
			seen[client] = true
		})
	}
}

// A waypoint is the next hop like any other.
func TestTraceToWaypoint(t *testing.T) {
	w := newWorld(t)
	serveApp(t, netip.AddrPortFrom(serverIP, 80), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "waypoint") }))
	svc := echoService()
	svc.Waypoint = &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: serverIP}, HBONEPort: mesh.HBONEPort}
	w.store.Apply(mesh.Update{Services: []*mesh.Service{svc}})
	if out, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...); out != "waypoint" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	client := logID(t, w.client.logged(t, "connection complete", "dst.hbone_addr=240.240.0.2:80"))
	if server := logID(t, w.server.logged(t, "connection complete", "dst.hbone_addr=240.240.0.2:80")); server != client {
		t.Errorf("the client's proxy logs trace %s, the waypoint's %s", client, server)
	}
}
