package dns

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// A headless service with more endpoints than fit: over UDP as many as the client takes, marked as cut, and all over TCP.
func TestLargeMeshAnswer(t *testing.T) {
	const endpoints = 400
	view := testView()
	key := mesh.ServiceKey{Namespace: "default", Hostname: "large.default.svc.cluster.local"}
	view.services = append(view.services, &mesh.Service{Key: key})
	for i := range endpoints {
		view.endpoints[key] = append(view.endpoints[key], &mesh.Workload{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})}})
	}
	addr := startServer(t, newResolver(t, func(c *Config) { c.View = func() View { return view } }))
	exchange := func(network string, size uint16) *mdns.Msg {
		q := new(mdns.Msg).SetQuestion("large.", mdns.TypeA)
		if size > 0 {
			q.SetEdns0(size, false)
		}
		m, _, err := (&mdns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: max(size, 512)}).Exchange(q, addr)
		if err != nil {
			t.Fatalf("%s, %d bytes: %v", network, size, err)
		}
		return m
	}
	least := 0
	for _, size := range []uint16{512, 0, 1232, 4096} {
		m := exchange("udp", size)
		m.Compress = true // as it came
		if !m.Truncated || m.Len() > int(max(size, 512)) || len(m.Answer) < least || len(m.Answer) == 0 {
			t.Errorf("over UDP to a client that takes %d bytes: %d records in %d bytes, cut %v", size, len(m.Answer), m.Len(), m.Truncated)
		}
		least = len(m.Answer)
	}
	m := exchange("tcp", 0)
	seen := map[string]bool{}
	for _, rr := range m.Answer {
		seen[rr.(*mdns.A).A.String()] = true
	}
	if m.Truncated || len(seen) != endpoints {
		t.Errorf("over TCP: %d addresses, cut %v, want all %d", len(seen), m.Truncated, endpoints)
	}
}

// The domains of the host's resolv.conf are the search list of a task: a name that the client's resolver has put one behind
// is found without it, in the order of the list, and the answer says which name was meant. What is not of the mesh goes to
// the upstream as it was asked.
func TestSearchDomains(t *testing.T) {
	up := startUpstream(t, upstreamAnswer)
	addr := startServer(t, newResolver(t, func(c *Config) {
		c.Search, c.Upstreams = []string{"us-east-2.compute.internal", "corp.example"}, []netip.AddrPort{up}
	}))
	for name, want := range map[string]string{
		"echo.ecs-demo-1.ecs.local.us-east-2.compute.internal": "echo.ecs-demo-1.ecs.local. 240.240.0.2",
		"echo.ecs-demo-1.ecs.local.corp.example":               "echo.ecs-demo-1.ecs.local. 240.240.0.2",
		"web.us-east-2.compute.internal":                       "web. 10.96.0.1",
		"web.other.corp.example":                               "web.other. 10.96.0.2",
		"echo.ecs-demo-1.ecs.local.elsewhere.example":          "echo.ecs-demo-1.ecs.local.elsewhere.example. 192.0.2.1",
		"external.corp.example":                                "external.corp.example. 192.0.2.1",
	} {
		m := ask(t, "udp", addr, name, mdns.TypeA)
		got := ""
		for _, rr := range m.Answer {
			if a, ok := rr.(*mdns.A); ok {
				got = fmt.Sprintf("%s %s", a.Hdr.Name, a.A)
			}
		}
		if got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// With all upstreams down, names of the mesh are answered as ever, and others with a failure, at once.
func TestUpstreamsDown(t *testing.T) {
	addr := startServer(t, newResolver(t, func(c *Config) {
		c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")}
	}))
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(t, network, addr, "example.com", mdns.TypeA); m.Rcode != mdns.RcodeServerFailure {
			t.Errorf("%s: rcode = %s, want SERVFAIL", network, mdns.RcodeToString[m.Rcode])
		}
		if m := ask(t, network, addr, "web", mdns.TypeAAAA); len(m.Answer) != 1 {
			t.Errorf("%s: mesh name = %v", network, m)
		}
	}
}
