package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// proxyArgs are the ways in which an application may use the proxy port.
func proxyArgs() map[string][]string {
	at := netip.AddrPortFrom(clientIP, mesh.SOCKSPort).String()
	return map[string][]string{
		"socks5h":      {"--proxy", "socks5h://" + at},
		"http connect": {"--proxy", "http://" + at, "--proxytunnel"},
		"http":         {"--proxy", "http://" + at},
	}
}

func TestProxyPort(t *testing.T) {
	w := newWorld(t)
	for name, args := range proxyArgs() {
		t.Run(name, func(t *testing.T) {
			out, errOut, code := proxytest.Curl(t, append(args, "-d", "over "+name, "http://"+echoHost+"/")...)
			if code != 0 || !strings.Contains(out, fmt.Sprintf("you sent %q", "over "+name)) {
				t.Fatalf("curl = %d, %q, %q", code, out, errOut)
			}
		})
	}
	w.client.logged(t, "connection complete", `dst.service="`+echoHost+`"`, "dst.hbone_addr=10.1.0.2:8080")
}

func TestProxyPortDenied(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(mesh.Update{Policies: []*mesh.Policy{denyAll()}})
	for name, args := range proxyArgs() {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				out, errOut, code := proxytest.Curl(t, append(args, "http://"+echoHost+"/")...)
				if code != 56 || strings.TrimSpace(errOut) != "curl: (56) Recv failure: Connection reset by peer" {
					t.Fatalf("curl = %d, %q, %q; want (56) Recv failure: Connection reset by peer", code, out, errOut)
				}
			}
		})
	}
}

func TestProxyPortOutsideTheMesh(t *testing.T) {
	w := newWorld(t)
	serveApp(t, netip.AddrPortFrom(plainIP, 8082), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "outside") }))
	for name, args := range proxyArgs() {
		t.Run(name, func(t *testing.T) {
			if out, errOut, code := proxytest.Curl(t, append(args, "http://10.1.0.4:8082/")...); out != "outside" {
				t.Errorf("curl = %d, %q, %q", code, out, errOut)
			}
		})
	}
	w.client.logged(t, "connection complete", "dst.addr=10.1.0.4:8082")
}

// addressesOf is a Resolver with fixed answers.
type addressesOf []netip.Addr

func (a addressesOf) Resolve(context.Context, string, bool) ([]netip.Addr, error) { return a, nil }

// Of a name outside the mesh the second address is tried when the first does not answer.
func TestAlternativeAddresses(t *testing.T) {
	newWorld(t, func(client, _ *Config) {
		client.Resolver = addressesOf{netip.MustParseAddr("127.0.0.9"), plainIP}
	})
	serveApp(t, netip.AddrPortFrom(plainIP, 8083), http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "second") }))
	if out, errOut, code := proxytest.Curl(t, append(proxyArgs()["socks5h"], "http://outside.example:8083/")...); out != "second" {
		t.Errorf("curl = %d, %q, %q", code, out, errOut)
	}
}

func TestUnknownName(t *testing.T) {
	w := newWorld(t)
	_, errOut, code := proxytest.Curl(t, append(proxyArgs()["socks5h"], "http://nowhere.example/")...)
	if code != 97 { // curl's code for "the SOCKS proxy refused"; 4 is "host unreachable"
		t.Errorf("curl = %d, %q; want 97", code, errOut)
	}
	w.client.logged(t, "connection failed", "nowhere.example")
}
