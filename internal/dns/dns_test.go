package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// fakeView is a mesh of a few services.
type fakeView struct {
	services  []*mesh.Service
	endpoints map[mesh.ServiceKey][]*mesh.Workload
}

func (f *fakeView) ServicesByHost(host string) []*mesh.Service {
	var out []*mesh.Service
	for _, s := range f.services {
		if s.Key.Hostname == host {
			out = append(out, s)
		}
	}
	return out
}

func (f *fakeView) EndpointWorkloads(k mesh.ServiceKey) []*mesh.Workload { return f.endpoints[k] }

func svc(ns, host string, vips ...string) *mesh.Service {
	s := &mesh.Service{Key: mesh.ServiceKey{Namespace: ns, Hostname: host}}
	for _, v := range vips {
		network := "eks"
		if n, a, ok := strings.Cut(v, "/"); ok {
			network, v = n, a
		}
		s.VIPs = append(s.VIPs, mesh.NetworkAddress{Network: network, Addr: netip.MustParseAddr(v)})
	}
	return s
}

func testView() *fakeView {
	headless := mesh.ServiceKey{Namespace: "default", Hostname: "db.default.svc.cluster.local"}
	v4only := svc("default", "v4only.default.svc.cluster.local", "10.96.0.4", "fd00::4")
	v4only.IPFamilies = mesh.IPv4Only
	private := svc("other", "private.ecs.local", "240.240.0.66")
	private.NamespacePrivate = true
	canonical := svc("zzz", "shared.ecs.local", "240.240.0.71")
	canonical.Canonical = true
	return &fakeView{
		services: []*mesh.Service{
			svc("ecs-demo-1", "echo.ecs-demo-1.ecs.local", "240.240.0.2"),
			svc("default", "web.default.svc.cluster.local", "10.96.0.1", "fd00::1"),
			svc("other", "web.other.svc.cluster.local", "10.96.0.2"),
			svc("default", "far.ecs.local", "other-network/240.240.0.9"),
			svc("default", "*.wild.com", "240.240.0.10"),
			svc("default", "external.com"), // no address and not Kubernetes': not ours to answer
			{Key: headless},
			v4only, private,
			svc("aaa", "shared.ecs.local", "240.240.0.70"), canonical,
		},
		endpoints: map[mesh.ServiceKey][]*mesh.Workload{headless: {
			{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd01::1")}},
			{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.3")}},
		}},
	}
}

func client() *mesh.Workload {
	return &mesh.Workload{Name: "shell", Namespace: "default", Network: "eks", CanonicalName: "shell"}
}

func newResolver(t testing.TB, change func(*Config)) *Resolver {
	t.Helper()
	view := testView()
	cfg := Config{View: func() View { return view }, Client: func(context.Context) (*mesh.Workload, error) { return client(), nil }, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLookup(t *testing.T) {
	r := newResolver(t, nil)
	for _, c := range []struct {
		name string
		ipv6 bool
		want string // addresses sorted, "" for an empty answer, "-" for not ours
		via  string
	}{
		{name: "echo.ecs-demo-1.ecs.local.", want: "240.240.0.2"},
		{name: "ECHO.ecs-demo-1.ECS.local", want: "240.240.0.2"},
		{name: "echo.ecs-demo-1.ecs.local", ipv6: true, want: ""},
		{name: "web", want: "10.96.0.1"},
		{name: "web", ipv6: true, want: "fd00::1"},
		{name: "web.other", want: "10.96.0.2"},
		{name: "web.other.svc", want: "10.96.0.2"},
		{name: "web.default.svc.cluster.local", want: "10.96.0.1"},
		{name: "web.default.svc.cluster.local.default.svc.cluster.local", want: "10.96.0.1", via: "web.default.svc.cluster.local"},
		{name: "echo.ecs-demo-1.ecs.local.svc.cluster.local", want: "240.240.0.2", via: "echo.ecs-demo-1.ecs.local"},
		{name: "far.ecs.local", want: ""},
		{name: "a.wild.com", want: "240.240.0.10"},
		{name: "a.b.wild.com", want: "240.240.0.10"},
		{name: "a.wild.com.cluster.local", want: "240.240.0.10"},
		{name: "wild.com", want: "-"},
		{name: "external.com", want: "-"},
		{name: "db", want: "10.1.0.1 10.1.0.3"},
		{name: "db", ipv6: true, want: "fd01::1"},
		{name: "v4only", want: "10.96.0.4"},
		{name: "v4only", ipv6: true, want: ""},
		{name: "private.ecs.local", want: "-"},
		{name: "shared.ecs.local", want: "240.240.0.71"},
		{name: "nowhere.example.", want: "-"},
		{name: "", want: "-"},
		{name: ".", want: "-"},
	} {
		ans, ok := r.Lookup(client(), c.name, c.ipv6)
		got := "-"
		if ok {
			var as []string
			for _, a := range ans.Addrs {
				as = append(as, a.String())
			}
			slices.Sort(as)
			got = strings.Join(as, " ")
		}
		if got != c.want || ans.CNAME != c.via {
			t.Errorf("Lookup(%q, ipv6 %v) = %q via %q, want %q via %q", c.name, c.ipv6, got, ans.CNAME, c.want, c.via)
		}
	}
}

func TestPreferredNamespace(t *testing.T) {
	view := &fakeView{services: []*mesh.Service{svc("aaa", "x.ecs.local", "240.240.0.1"), svc("bbb", "x.ecs.local", "240.240.0.2")}}
	r := newResolver(t, func(c *Config) { c.View = func() View { return view }; c.PreferredNamespace = "bbb" })
	ans, _ := r.Lookup(client(), "x.ecs.local", false)
	if len(ans.Addrs) != 1 || ans.Addrs[0].String() != "240.240.0.2" {
		t.Errorf("Lookup = %v, want the preferred namespace's address", ans.Addrs)
	}
}

func TestExpansionsByLabelCount(t *testing.T) {
	r := newResolver(t, nil)
	for name, want := range map[string][]string{
		"a":           {"a.ns.svc.cluster.local"},
		"a.b":         {"a.b.svc.cluster.local", "a.b.ns.svc.cluster.local"},
		"a.b.svc":     {"a.b.svc.cluster.local", "a.b.svc.svc.cluster.local"},
		"a.b.c":       {"a.b.c.svc.cluster.local"},
		"a.b.c.svc":   {"a.b.c.svc.cluster.local"},
		"a.b.c.d":     nil,
		"a.b.c.d.svc": nil,
	} {
		if diff := cmp.Diff(want, r.expand("ns", name)); diff != "" {
			t.Errorf("expand(%q) (-want +got):\n%s", name, diff)
		}
	}
}

// startUpstream serves fixed answers over UDP and TCP at one address.
func startUpstream(t *testing.T, h mdns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*mdns.Server{{Listener: l, Handler: h}, {PacketConn: pc, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

func upstreamAnswer(w mdns.ResponseWriter, q *mdns.Msg) {
	m := new(mdns.Msg)
	name := q.Question[0].Name
	switch {
	case strings.HasPrefix(name, "missing."):
		m.SetRcode(q, mdns.RcodeNameError)
	case q.Question[0].Qtype == mdns.TypeA:
		m.SetReply(q)
		n := 1
		if strings.HasPrefix(name, "many.") {
			n = 100
		}
		for i := range n {
			m.Answer = append(m.Answer, record(name, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 5))
		}
	case q.Question[0].Qtype == mdns.TypeTXT:
		m.SetReply(q)
		m.Answer = append(m.Answer, &mdns.TXT{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET}, Txt: []string{"hello"}})
	default:
		m.SetReply(q)
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(int(udpSize(q)))
	}
	w.WriteMsg(m)
}

// startServer runs a Server in front of r and returns its address.
func startServer(t *testing.T, r *Resolver) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ServerConfig{Resolver: r, PacketConns: []net.PacketConn{pc}, Listeners: []net.Listener{l}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run() = %v", err)
		}
	})
	return l.Addr().String()
}

func ask(t *testing.T, network, addr, name string, qtype uint16) *mdns.Msg {
	t.Helper()
	q := new(mdns.Msg).SetQuestion(mdns.Fqdn(name), qtype)
	q.SetEdns0(512, false)
	resp, _, err := (&mdns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(q, addr)
	if err != nil {
		t.Fatalf("ask %s for %s: %v", network, name, err)
	}
	return resp
}

func TestServer(t *testing.T) {
	up := startUpstream(t, upstreamAnswer)
	dead := netip.MustParseAddrPort("127.0.0.1:1") // refuses: the next one is asked
	r := newResolver(t, func(c *Config) { c.Upstreams = []netip.AddrPort{dead, up} })
	addr := startServer(t, r)
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, network, addr, "echo.ecs-demo-1.ecs.local", mdns.TypeA)
		if len(m.Answer) != 1 || !m.Authoritative || !m.RecursionAvailable || m.IsEdns0() == nil {
			t.Errorf("%s: mesh answer = %v", network, m)
		}
		if a, ok := m.Answer[0].(*mdns.A); !ok || a.A.String() != "240.240.0.2" || a.Hdr.Ttl != 30 {
			t.Errorf("%s: record = %v, want 240.240.0.2 for 30 s", network, m.Answer[0])
		}
		if m := ask(t, network, addr, "example.com", mdns.TypeA); len(m.Answer) != 1 || m.Authoritative {
			t.Errorf("%s: forwarded answer = %v", network, m)
		}
		if m := ask(t, network, addr, "web", mdns.TypeTXT); len(m.Answer) != 1 {
			t.Errorf("%s: TXT of a mesh name was not forwarded: %v", network, m)
		}
		if m := ask(t, network, addr, "missing.example.com", mdns.TypeA); m.Rcode != mdns.RcodeNameError {
			t.Errorf("%s: rcode = %s, want the upstream's NXDOMAIN", network, mdns.RcodeToString[m.Rcode])
		}
		m = ask(t, network, addr, "many.example.com", mdns.TypeA)
		if m.Truncated != (network == "udp") {
			t.Errorf("%s: truncated = %v for 100 records", network, m.Truncated)
		}
	}
	m := ask(t, "udp", addr, "web.default.svc.cluster.local.default.svc.cluster.local", mdns.TypeA)
	if len(m.Answer) != 2 || m.Answer[0].Header().Rrtype != mdns.TypeCNAME || m.Answer[1].Header().Name != "web.default.svc.cluster.local." {
		t.Errorf("answer through a search domain = %v, want CNAME and A of the stripped name", m.Answer)
	}
}

func TestServerRefuses(t *testing.T) {
	r := newResolver(t, nil)
	s, err := NewServer(ServerConfig{Resolver: r})
	if err != nil {
		t.Fatal(err)
	}
	question := func(change func(*mdns.Msg)) *mdns.Msg {
		m := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeA)
		change(m)
		return m
	}
	for name, c := range map[string]struct {
		msg  *mdns.Msg
		want int
	}{
		"response":     {question(func(m *mdns.Msg) { m.Response = true }), mdns.RcodeFormatError},
		"update":       {question(func(m *mdns.Msg) { m.Opcode = mdns.OpcodeUpdate }), mdns.RcodeNotImplemented},
		"no question":  {question(func(m *mdns.Msg) { m.Question = nil }), mdns.RcodeFormatError},
		"no upstreams": {question(func(*mdns.Msg) {}), mdns.RcodeServerFailure},
	} {
		if got := s.Respond(t.Context(), c.msg, "udp").Rcode; got != c.want {
			t.Errorf("%s: rcode = %s, want %s", name, mdns.RcodeToString[got], mdns.RcodeToString[c.want])
		}
	}
	r.cfg.Client = func(context.Context) (*mesh.Workload, error) { return nil, errors.New("unknown") }
	if got := s.Respond(t.Context(), question(func(*mdns.Msg) {}), "udp").Rcode; got != mdns.RcodeServerFailure {
		t.Errorf("unknown client: rcode = %d, want SERVFAIL", got)
	}
}

func TestResolve(t *testing.T) {
	up := startUpstream(t, upstreamAnswer)
	r := newResolver(t, func(c *Config) { c.Upstreams = []netip.AddrPort{up} })
	for host, want := range map[string]string{
		"echo.ecs-demo-1.ecs.local": "[240.240.0.2]", "192.0.2.9": "[192.0.2.9]", "web": "[10.96.0.1 fd00::1]",
		"example.com": "[192.0.2.1]", "::ffff:192.0.2.9": "[192.0.2.9]",
	} {
		got, err := r.Resolve(t.Context(), host, true)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("Resolve(%q) = %v, %v; want %s", host, got, err, want)
		}
	}
	for _, host := range []string{"far.ecs.local", "missing.example.com"} {
		if _, err := r.Resolve(t.Context(), host, true); !errors.Is(err, ErrNoSuchHost) {
			t.Errorf("Resolve(%q) = %v, want ErrNoSuchHost", host, err)
		}
	}
	if _, err := r.Resolve(t.Context(), "not a name", true); err == nil {
		t.Error("Resolve accepted a name with spaces")
	}
}

func TestForwardIsBounded(t *testing.T) {
	m := &counted{}
	release := make(chan struct{})
	up := startUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) { <-release; upstreamAnswer(w, q) })
	r := newResolver(t, func(c *Config) { c.Upstreams = []netip.AddrPort{up}; c.MaxForwards = 1; c.Metrics = m })
	done := make(chan error, 1)
	q := new(mdns.Msg).SetQuestion("example.com.", mdns.TypeA)
	go func() { _, err := r.Forward(context.Background(), client(), q, "udp"); done <- err }()
	for len(r.forwards) == 0 {
		select {
		case err := <-done:
			t.Fatalf("first question ended early: %v", err)
		default:
		}
	}
	if _, err := r.Forward(t.Context(), client(), q, "udp"); !errors.Is(err, ErrBusy) {
		t.Errorf("second question = %v, want ErrBusy", err)
	}
	if got := m.reached(); got != "dns-forwards" {
		t.Errorf("limits reached: %q", got)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("first question = %v", err)
	}
}

func TestParseResolvConf(t *testing.T) {
	rc, err := ParseResolvConf(strings.NewReader("# comment\nnameserver 10.0.0.2\nnameserver bad\nnameserver fd00::2 # more\nsearch Svc.Cluster.local. local\noptions ndots:5\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "{[10.0.0.2:53 [fd00::2]:53] [svc.cluster.local local]}"
	if got := fmt.Sprint(rc); got != want {
		t.Errorf("ParseResolvConf = %s, want %s", got, want)
	}
}

// Whatever arrives is answered with one message that can be packed, and nothing panics.
func FuzzRespond(f *testing.F) {
	for _, name := range []string{"web.", "a.wild.com.", "echo.ecs-demo-1.ecs.local.default.svc.cluster.local.", "."} {
		b, err := new(mdns.Msg).SetQuestion(name, mdns.TypeA).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	r := newResolver(f, nil)
	s, err := NewServer(ServerConfig{Resolver: r})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q mdns.Msg
		if q.Unpack(b) != nil {
			return
		}
		resp := s.Respond(t.Context(), &q, "udp")
		if resp.Id != q.Id || !resp.Response {
			t.Errorf("answer %v does not fit the question", resp)
		}
		if _, err := resp.Pack(); err != nil {
			t.Errorf("answer cannot be packed: %v", err)
		}
	})
}
