package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func key(host string) mesh.ServiceKey { return mesh.ServiceKey{Namespace: "shop", Hostname: host} }

// wl returns a workload of network "eks" that speaks HBONE, changed by each f.
func wl(name, ip string, f ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{UID: "uid-" + name, Name: name, Namespace: "shop", TrustDomain: "cluster.local", ServiceAccount: name, Network: "eks",
		ClusterID: "Kubernetes", Protocol: mesh.HBONE, Capacity: 1, Services: map[mesh.ServiceKey]map[uint16]uint16{}}
	if ip != "" {
		w.Addresses = []netip.Addr{addr(ip)}
	}
	for _, g := range f {
		g(w)
	}
	return w
}

func of(host string, ports map[uint16]uint16) func(*mesh.Workload) {
	return func(w *mesh.Workload) { w.Services[key(host)] = ports }
}

func plain(w *mesh.Workload) { w.Protocol = mesh.TCP }

func in(network string) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Network = network } }

func service(host, vip string, ports map[uint16]uint16, f ...func(*mesh.Service)) *mesh.Service {
	s := &mesh.Service{Key: key(host), Name: host, Ports: ports, VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: addr(vip)}}}
	for _, g := range f {
		g(s)
	}
	return s
}

func gatewayAt(ip string) *mesh.GatewayAddress {
	return &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: addr(ip)}, HBONEPort: 15008}
}

func testSnapshot() *state.Snapshot {
	p80 := map[uint16]uint16{80: 8080}
	st := state.NewStore()
	st.Apply(mesh.Update{
		Workloads: []*mesh.Workload{
			wl("client", "10.0.0.1"),
			wl("echo", "10.0.0.2", of("echo.shop", map[uint16]uint16{80: 9090})),
			wl("tcp", "10.0.0.3", plain, of("tcp.shop", nil)),
			wl("wp", "10.0.0.4", of("wp.shop", map[uint16]uint16{15008: 15008})),
			wl("behind", "10.0.0.5", func(w *mesh.Workload) { w.Waypoint = gatewayAt("10.96.0.9") }),
			wl("behind-host", "10.0.0.6", func(w *mesh.Workload) {
				w.Waypoint = &mesh.GatewayAddress{Service: key("wp.shop"), HBONEPort: 15008}
			}),
			wl("lost", "10.0.0.7", func(w *mesh.Workload) {
				w.Waypoint = &mesh.GatewayAddress{Service: key("nowhere"), HBONEPort: 15008}
			}),
			wl("far", "", in("vpc"), of("far.shop", p80), func(w *mesh.Workload) { w.NetworkGateway = gatewayAt("10.0.0.8") }),
			wl("far2", "", in("vpc"), of("far2.shop", p80), func(w *mesh.Workload) {
				w.NetworkGateway = &mesh.GatewayAddress{Service: mesh.ServiceKey{Namespace: "shop", Hostname: "gw.example"}, HBONEPort: 15443}
			}),
			wl("gw", "10.0.0.8"),
			wl("gwhost", "", func(w *mesh.Workload) { w.Hostname = "gw.example" }),
			wl("stranded", "10.7.0.1", in("vpc"), of("stranded.shop", p80)),
			wl("named", "", plain, func(w *mesh.Workload) { w.Hostname = "db.example" }, of("named.shop", nil)),
			wl("dual", "10.0.0.20", of("dual.shop", p80), func(w *mesh.Workload) { w.Addresses = append(w.Addresses, addr("fd00::20")) }),
		},
		Services: []*mesh.Service{
			service("echo.shop", "240.240.0.1", p80, func(s *mesh.Service) {
				s.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/alt", "not-an-identity"}
			}),
			service("tcp.shop", "240.240.0.2", p80),
			service("wp.shop", "10.96.0.9", map[uint16]uint16{15008: 15008}),
			service("behind.shop", "240.240.0.3", p80, func(s *mesh.Service) { s.Waypoint = gatewayAt("10.96.0.9") }),
			service("weighted.shop", "240.240.0.12", p80, func(s *mesh.Service) {
				s.Waypoint = gatewayAt("10.0.0.7")
				s.WeightedWaypoints = []mesh.WeightedGateway{{Gateway: *gatewayAt("10.0.0.8"), Weight: 9}, {Gateway: *gatewayAt("10.96.0.9")}}
			}),
			service("far.shop", "240.240.0.4", p80, func(s *mesh.Service) { s.SubjectAltNames = []string{"spiffe://cluster.local/ns/shop/sa/far"} }),
			service("far2.shop", "240.240.0.5", p80),
			service("empty.shop", "240.240.0.6", p80),
			service("stranded.shop", "240.240.0.7", p80),
			service("passthrough.shop", "240.240.0.8", p80, func(s *mesh.Service) { s.LoadBalancer = &mesh.LoadBalancer{Mode: mesh.ModePassthrough} }),
			service("named.shop", "240.240.0.9", p80),
			service("dual.shop", "240.240.0.10", p80, func(s *mesh.Service) {
				s.VIPs = append(s.VIPs, mesh.NetworkAddress{Network: "eks", Addr: addr("fd00::10")})
			}),
			service("unmapped.shop", "240.240.0.11", map[uint16]uint16{80: 0}),
		},
	})
	return st.Snapshot()
}

func TestResolve(t *testing.T) {
	s := testSnapshot()
	id := func(names ...string) string {
		var out []string
		for _, n := range names {
			out = append(out, "spiffe://cluster.local/ns/shop/sa/"+n)
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct {
		dst   string
		want  string // protocol via address authority
		peers string
		inner string
		err   error
	}{
		{dst: "192.0.2.1:443", want: "TCP passthrough 192.0.2.1:443 "},
		{dst: "10.0.0.2:1234", want: "HBONE direct 10.0.0.2:15008 10.0.0.2:1234", peers: id("echo")},
		{dst: "240.240.0.1:80", want: "HBONE direct 10.0.0.2:15008 10.0.0.2:9090", peers: id("alt", "echo")},
		{dst: "240.240.0.1:81", err: ErrNoHealthyUpstream},
		{dst: "240.240.0.2:80", want: "TCP direct 10.0.0.3:8080 "},
		{dst: "10.0.0.3:22", want: "TCP direct 10.0.0.3:22 "},
		{dst: "240.240.0.3:80", want: "HBONE waypoint 10.0.0.4:15008 240.240.0.3:80", peers: id("wp")},
		{dst: "10.0.0.5:80", want: "HBONE waypoint 10.0.0.4:15008 10.0.0.5:80", peers: id("wp")},
		{dst: "10.0.0.6:80", want: "HBONE waypoint 10.0.0.4:15008 10.0.0.6:80", peers: id("wp")},
		{dst: "10.0.0.7:80", err: ErrUnknownWaypoint},
		{dst: "240.240.0.4:80", want: "DOUBLEHBONE gateway 10.0.0.8:15008 far.shop:80", peers: id("gw"), inner: id("far")},
		{dst: "240.240.0.5:80", want: "DOUBLEHBONE gateway gw.example:15443 far2.shop:80", peers: id("gwhost")},
		{dst: "240.240.0.6:80", err: ErrNoHealthyUpstream},
		{dst: "240.240.0.7:80", err: ErrNoDestination},
		{dst: "240.240.0.8:80", want: "TCP passthrough 240.240.0.8:80 "},
		{dst: "240.240.0.9:80", want: "TCP direct db.example:8080 "},
		{dst: "240.240.0.10:80", want: "HBONE direct 10.0.0.20:15008 10.0.0.20:8080", peers: id("dual")},
		{dst: "[fd00::10]:80", want: "HBONE direct [fd00::20]:15008 [fd00::20]:8080", peers: id("dual")},
		{dst: "240.240.0.11:80", err: ErrNoHealthyUpstream},
	} {
		o, err := Resolve(s, Query{Network: "eks", Source: s.Workload("uid-client"), Dst: netip.MustParseAddrPort(c.dst), Rand: func(uint64) uint64 { return 0 }})
		if !errors.Is(err, c.err) || c.err != nil && err == nil {
			t.Errorf("Resolve(%s) = %v, want %v", c.dst, err, c.err)
			continue
		}
		if c.err != nil {
			continue
		}
		at := o.Addr.String()
		if !o.Addr.Addr().IsValid() {
			at = fmt.Sprintf("%s:%d", o.Hostname, o.Addr.Port())
		}
		if got := fmt.Sprintf("%s %s %s %s", o.Protocol, o.Via, at, o.Authority); got != c.want {
			t.Errorf("Resolve(%s) = %q, want %q", c.dst, got, c.want)
		}
		if got := strings.Trim(fmt.Sprint(o.Peers), "[]"); got != c.peers {
			t.Errorf("Resolve(%s): peers %q, want %q", c.dst, got, c.peers)
		}
		if got := strings.Trim(fmt.Sprint(o.InnerPeers), "[]"); got != c.inner {
			t.Errorf("Resolve(%s): inner peers %q, want %q", c.dst, got, c.inner)
		}
	}
}

// What a waypoint sends to the workloads behind it must not come back to it.
func TestWaypointReachesItsWorkload(t *testing.T) {
	s := testSnapshot()
	o, err := Resolve(s, Query{Network: "eks", Source: s.Workload("uid-wp"), Dst: netip.MustParseAddrPort("10.0.0.5:80"), Rand: func(uint64) uint64 { return 0 }})
	if err != nil || o.Via != Direct {
		t.Errorf("Resolve = %+v, %v; want direct", o, err)
	}
}

func TestBalancing(t *testing.T) {
	zone := func(region, z string) func(*mesh.Workload) {
		return func(w *mesh.Workload) { w.Locality = mesh.Locality{Region: region, Zone: z} }
	}
	weight := func(n uint32) func(*mesh.Workload) { return func(w *mesh.Workload) { w.Capacity = n } }
	client := wl("client", "10.0.0.1", zone("r1", "z1"))
	ports := map[uint16]uint16{80: 8080}
	same, sameRegion, other := wl("same", "10.0.0.2", zone("r1", "z1"), of("s", ports)), wl("region", "10.0.0.3", zone("r1", "z2"), of("s", ports)), wl("other", "10.0.0.4", zone("r2", "z9"), of("s", ports))
	remote := wl("remote", "10.9.0.9", zone("r1", "z1"), in("vpc"), of("s", ports), func(w *mesh.Workload) { w.NetworkGateway = gatewayAt("10.0.0.1") })
	prefs := func(mode mesh.LoadBalancerMode, ps ...mesh.RoutingScope) *mesh.LoadBalancer {
		return &mesh.LoadBalancer{Mode: mode, Preferences: ps}
	}
	for _, c := range []struct {
		name string
		lb   *mesh.LoadBalancer
		eps  []*mesh.Workload
		want string // names that get connections, with their share of 100
	}{
		{"even", nil, []*mesh.Workload{same, other}, "other:50 same:50"},
		{"by capacity", nil, []*mesh.Workload{wl("a", "10.0.0.7", weight(3), of("s", ports)), wl("b", "10.0.0.8", weight(1), of("s", ports))}, "a:75 b:25"},
		{"zero capacity", nil, []*mesh.Workload{wl("a", "10.0.0.7", weight(0), of("s", ports)), same}, "same:100"},
		{"all zero", nil, []*mesh.Workload{wl("a", "10.0.0.7", weight(0), of("s", ports))}, ""},
		{"preferences without mode", prefs(mesh.ModeStandard, mesh.ScopeRegion), []*mesh.Workload{same, other}, "other:50 same:50"},
		{"failover near", prefs(mesh.ModeFailover, mesh.ScopeRegion, mesh.ScopeZone), []*mesh.Workload{same, sameRegion, other}, "same:100"},
		{"failover next", prefs(mesh.ModeFailover, mesh.ScopeRegion, mesh.ScopeZone), []*mesh.Workload{sameRegion, other}, "region:100"},
		{"failover last", prefs(mesh.ModeFailover, mesh.ScopeRegion, mesh.ScopeZone), []*mesh.Workload{other}, "other:100"},
		{"strict", prefs(mesh.ModeStrict, mesh.ScopeRegion), []*mesh.Workload{same, sameRegion, other}, "region:50 same:50"},
		{"strict, none", prefs(mesh.ModeStrict, mesh.ScopeRegion), []*mesh.Workload{other}, ""},
		{"network first beats locality", prefs(mesh.ModeFailover, mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone), []*mesh.Workload{remote, other}, "other:100"},
		{"network first ranks the remote too", prefs(mesh.ModeFailover, mesh.ScopeNetwork, mesh.ScopeRegion, mesh.ScopeZone), []*mesh.Workload{remote}, "remote:100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := state.NewStore()
			svc := service("s", "240.240.0.1", ports, func(s *mesh.Service) { s.LoadBalancer = c.lb })
			st.Apply(mesh.Update{Workloads: append([]*mesh.Workload{client}, c.eps...), Services: []*mesh.Service{svc}})
			snap := st.Snapshot()
			got := map[string]int{}
			for i := range uint64(100) {
				up, ok := pick(snap, Query{Network: "eks", Source: client, Dst: netip.MustParseAddrPort("240.240.0.1:80"), Rand: func(n uint64) uint64 { return i * n / 100 }}, svc, 80, standard)
				if ok {
					got[up.Workload.Name]++
				}
			}
			want := map[string]int{}
			for part := range strings.FieldsSeq(c.want) {
				name, n, _ := strings.Cut(part, ":")
				var share int
				if _, err := fmt.Sscan(n, &share); err != nil {
					t.Fatal(err)
				}
				want[name] = share
			}
			for name := range got {
				if got[name] != want[name] {
					t.Errorf("%s got %d of 100, want %d (all: %v)", name, got[name], want[name], got)
				}
			}
			if len(got) != len(want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestWeightedWaypoints(t *testing.T) {
	svc := &mesh.Service{WeightedWaypoints: []mesh.WeightedGateway{{Gateway: *gatewayAt("10.0.0.1"), Weight: 1}, {Gateway: *gatewayAt("10.0.0.2"), Weight: 3}}}
	counts := map[string]int{}
	for i := range uint64(4) {
		counts[pickWaypoint(svc, func(n uint64) uint64 { return i % n }).Address.Addr.String()]++
	}
	if counts["10.0.0.1"] != 1 || counts["10.0.0.2"] != 3 {
		t.Errorf("shares = %v, want 1 and 3", counts)
	}
	if gw := pickWaypoint(&mesh.Service{Waypoint: gatewayAt("10.0.0.9")}, nil); gw == nil {
		t.Error("the only waypoint was not taken")
	}
}

func TestResolveInbound(t *testing.T) {
	s := testSnapshot()
	illegal := func(p uint16) bool { return p == 15001 }
	for _, c := range []struct {
		local, authority, want string
		status                 int
	}{
		{local: "echo", authority: "10.0.0.2:8080", want: "10.0.0.2:8080 10.0.0.2:8080"},
		{local: "echo", authority: "10.0.0.9:8080", status: 400},
		{local: "echo", authority: "echo.shop:80", want: "10.0.0.2:9090 10.0.0.2:9090"},
		{local: "tcp", authority: "tcp.shop:80", want: "10.0.0.3:8080 10.0.0.3:8080"},
		{local: "echo", authority: "echo.shop:81", status: 503},
		{local: "echo", authority: "nowhere.shop:80", status: 503},
		{local: "echo", authority: "unmapped.shop:80", status: 503},
		{local: "echo", authority: "10.0.0.2:15001", status: 503},
		{local: "echo", authority: "10.0.0.2", status: 400},
		{local: "echo", authority: "", status: 400},
		{local: "echo", authority: "echo.shop:99999", status: 400},
		{local: "echo", authority: "a/b:80", status: 400},
		{local: "wp", authority: "240.240.0.3:80", want: "10.0.0.4:80 10.0.0.4:80"}, // we are its waypoint
		{local: "wp", authority: "10.0.0.6:80", want: "10.0.0.4:80 10.0.0.4:80"},
		{local: "wp", authority: "240.240.0.1:80", status: 400},
		{local: "wp", authority: "240.240.0.12:80", want: "10.0.0.4:80 10.0.0.4:80"}, // one of its weighted waypoints, of weight 0 now
		{local: "gw", authority: "240.240.0.12:80", want: "10.0.0.8:80 10.0.0.8:80"}, // the other one, named by its own address
		{local: "lost", authority: "240.240.0.12:80", want: "10.0.0.7:80 10.0.0.7:80"},
		{local: "echo", authority: "240.240.0.12:80", status: 400},
	} {
		w := s.Workload("uid-" + c.local)
		got, err := ResolveInbound(s, InboundQuery{Network: "eks", Local: w, Dialled: netip.AddrPortFrom(w.Addresses[0], 15008), Authority: c.authority, Illegal: illegal})
		var rej *Rejection
		if c.status != 0 {
			if !errors.As(err, &rej) || rej.Status != c.status {
				t.Errorf("%s, %q: %v, want status %d", c.local, c.authority, err, c.status)
			}
			continue
		}
		if text := fmt.Sprintf("%s %s", got.Addr, got.Dial); err != nil || text != c.want {
			t.Errorf("%s, %q = %q, %v; want %q", c.local, c.authority, text, err, c.want)
		}
	}
}

func TestApplicationTunnel(t *testing.T) {
	s := testSnapshot()
	local := *s.Workload("uid-echo")
	local.ApplicationTunnel = &mesh.ApplicationTunnel{PROXY: true, Port: 15088}
	got, err := ResolveInbound(s, InboundQuery{Network: "eks", Local: &local, Dialled: netip.MustParseAddrPort("10.0.0.2:15008"), Authority: "240.240.0.1:80"})
	if err != nil || !got.PROXY || got.Dial.String() != "127.0.0.1:15088" || got.Target.String() != "240.240.0.1:80" {
		t.Errorf("ResolveInbound = %+v, %v; want the PROXY tunnel on the loopback", got, err)
	}
}

func TestResolveGateway(t *testing.T) {
	s := testSnapshot()
	for _, c := range []struct {
		authority string
		processed bool
		want      string
		status    int
	}{
		{authority: "echo.shop:80", want: "10.0.0.2:15008"},
		{authority: "240.240.0.1:80", want: "10.0.0.2:15008"},
		{authority: "10.0.0.2:1234", want: "10.0.0.2:15008"},
		{authority: "tcp.shop:80", status: 503}, // nothing there ends the inner tunnel
		{authority: "10.0.0.3:80", status: 503},
		{authority: "far.shop:80", status: 503}, // another network's
		{authority: "behind.shop:80", want: "10.0.0.4:15008"},
		{authority: "behind.shop:80", processed: true, status: 503}, // it has no endpoint of its own
		{authority: "nowhere:80", status: 404},
		{authority: "192.0.2.1:80", status: 404},
		{authority: "x", status: 400},
	} {
		o, err := ResolveGateway(s, GatewayQuery{Network: "eks", Self: s.Workload("uid-gw"), Authority: c.authority, Processed: c.processed, Rand: func(uint64) uint64 { return 0 }})
		var rej *Rejection
		if c.status != 0 {
			if !errors.As(err, &rej) || rej.Status != c.status {
				t.Errorf("%q = %+v, %v, want status %d", c.authority, o, err, c.status)
			}
			continue
		}
		if err != nil || o.Addr.String() != c.want {
			t.Errorf("%q = %s, %v; want %s", c.authority, o.Addr, err, c.want)
		}
	}
}

// A gateway that was told which services it is for serves no other one, and no workload by its address.
func TestResolveGatewayServes(t *testing.T) {
	s := testSnapshot()
	q := GatewayQuery{Network: "eks", Self: s.Workload("uid-gw"), Rand: func(uint64) uint64 { return 0 }, Serves: func(host string) bool { return host == "echo.shop" }}
	for authority, want := range map[string]int{"echo.shop:80": 0, "Echo.Shop:80": 0, "240.240.0.1:80": 0, "behind.shop:80": 404, "10.0.0.2:1234": 404} {
		q.Authority = authority
		o, err := ResolveGateway(s, q)
		var rej *Rejection
		if want == 0 && err != nil || want != 0 && (!errors.As(err, &rej) || rej.Status != want) {
			t.Errorf("%q = %s, %v; want status %d", authority, o.Addr, err, want)
		}
	}
}

// Whatever a peer asks for, nothing panics, and nothing but our own address is dialled.
func FuzzResolveInbound(f *testing.F) {
	for _, a := range []string{"10.0.0.2:80", "echo.shop:80", "[::1]:80", ":80", "a:b:c", "240.240.0.3:80", "%:1"} {
		f.Add(a)
	}
	s := testSnapshot()
	f.Fuzz(func(t *testing.T, authority string) {
		in, err := ResolveInbound(s, InboundQuery{Network: "eks", Local: s.Workload("uid-echo"), Dialled: netip.MustParseAddrPort("10.0.0.2:15008"), Authority: authority})
		if err == nil && (in.Addr.Addr() != addr("10.0.0.2") || in.Addr.Port() == 0 && !strings.HasSuffix(authority, ":0")) {
			t.Errorf("authority %q leads to %s", authority, in.Addr)
		}
	})
}

func BenchmarkResolve(b *testing.B) {
	s := testSnapshot()
	q := Query{Network: "eks", Source: s.Workload("uid-client"), Dst: netip.MustParseAddrPort("240.240.0.1:80"), Rand: func(uint64) uint64 { return 0 }}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Resolve(s, q); err != nil {
			b.Fatal(err)
		}
	}
}

// What has failed is not chosen again, unless it has come back elsewhere; a waypoint is replaced by another one, never
// left out.
func TestExclude(t *testing.T) {
	st := state.NewStore()
	p := map[uint16]uint16{15008: 15008}
	client, echo := wl("client", "10.0.0.1"), wl("echo", "10.0.0.2", of("echo.shop", nil))
	wp1, wp2 := wl("wp1", "10.0.0.4", of("wp.shop", p)), wl("wp2", "10.0.0.5", of("wp.shop", p))
	gw := wl("gw", "10.0.0.8")
	p80 := map[uint16]uint16{80: 8080}
	st.Apply(mesh.Update{
		Workloads: []*mesh.Workload{client, echo, wp1, wp2, gw,
			wl("far", "", in("vpc"), of("far.shop", p80), func(w *mesh.Workload) { w.NetworkGateway = gatewayAt("10.0.0.8") })},
		Services: []*mesh.Service{
			service("echo.shop", "240.240.0.1", p80),
			service("wp.shop", "10.96.0.9", p),
			service("behind.shop", "240.240.0.3", p80, func(s *mesh.Service) { s.Waypoint = gatewayAt("10.96.0.9") }),
			service("far.shop", "240.240.0.4", p80),
		},
	})
	moved := *echo
	moved.Addresses = []netip.Addr{addr("10.0.0.22")}
	for _, c := range []struct {
		dst    string
		failed []*mesh.Workload
		want   string
		others int
		err    error
	}{
		{dst: "240.240.0.1:80", want: "10.0.0.2:15008"},
		{dst: "240.240.0.1:80", failed: []*mesh.Workload{echo}, err: ErrNoHealthyUpstream},
		{dst: "240.240.0.1:80", failed: []*mesh.Workload{&moved}, want: "10.0.0.2:15008"},
		{dst: "240.240.0.3:80", failed: []*mesh.Workload{wp1}, want: "10.0.0.5:15008"},
		{dst: "240.240.0.3:80", failed: []*mesh.Workload{wp2}, want: "10.0.0.4:15008"},
		{dst: "240.240.0.3:80", failed: []*mesh.Workload{echo}, others: 1},
		{dst: "240.240.0.3:80", failed: []*mesh.Workload{wp1, wp2}, err: ErrUnknownWaypoint},
		{dst: "240.240.0.4:80", failed: []*mesh.Workload{gw}, err: ErrUnknownGateway},
	} {
		o, err := Resolve(st.Snapshot(), Query{Network: "eks", Source: client, Dst: netip.MustParseAddrPort(c.dst), Exclude: c.failed, Rand: func(uint64) uint64 { return 0 }})
		if !errors.Is(err, c.err) || c.err != nil && err == nil {
			t.Errorf("Resolve(%s) = %v, want %v", c.dst, err, c.err)
			continue
		}
		if c.err == nil && (c.want != "" && o.Addr.String() != c.want || o.Alternatives != c.others) {
			t.Errorf("Resolve(%s) without %d that failed = %s and %d alternatives, want %s and %d", c.dst, len(c.failed), o.Addr, o.Alternatives, c.want, c.others)
		}
	}
}
