package why

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func wl(namespace, name, owner, account, ip string, f ...func(*mesh.Workload)) *mesh.Workload {
	w := &mesh.Workload{UID: "c//Pod/" + namespace + "/" + name, Name: name, Namespace: namespace, WorkloadName: owner, TrustDomain: "cluster.local", ServiceAccount: account,
		Network: "eks", ClusterID: "c", Protocol: mesh.HBONE, Capacity: 1, Addresses: []netip.Addr{addr(ip)}, Services: map[mesh.ServiceKey]map[uint16]uint16{}}
	for _, g := range f {
		g(w)
	}
	return w
}

func of(namespace, host string) func(*mesh.Workload) {
	return func(w *mesh.Workload) {
		w.Services[mesh.ServiceKey{Namespace: namespace, Hostname: host}] = map[uint16]uint16{80: 8080}
	}
}

func svc(namespace, name, host, vip string) *mesh.Service {
	return &mesh.Service{Key: mesh.ServiceKey{Namespace: namespace, Hostname: host}, Name: name, VIPs: []mesh.NetworkAddress{{Network: "eks", Addr: addr(vip)}},
		Ports: map[uint16]uint16{80: 8080}}
}

func principals(values ...string) (ms []mesh.StringMatch) {
	for _, v := range values {
		ms = append(ms, mesh.StringMatch{Value: v})
	}
	return ms
}

// world is a small mesh: a shell, an echo service of two tasks of which one is guarded more, and what has no proxy.
func world() *state.Snapshot {
	guarded := mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "guarded"}
	s := state.NewStore()
	s.Apply(mesh.Update{
		Workloads: []*mesh.Workload{
			wl("default", "eks-shell-abc", "eks-shell", "shell", "10.0.0.1"),
			wl("ecs-demo-1", "echo-1", "echo", "echo", "10.0.1.1", of("ecs-demo-1", "echo.ecs-demo-1.ecs.local")),
			wl("ecs-demo-1", "echo-2", "echo", "echo", "10.0.1.2", of("ecs-demo-1", "echo.ecs-demo-1.ecs.local"),
				func(w *mesh.Workload) { w.Policies = []mesh.PolicyKey{guarded} }),
			wl("legacy", "old-1", "old", "old", "10.0.2.1", func(w *mesh.Workload) { w.Protocol = mesh.TCP }),
			wl("shop", "cart-1", "cart", "cart", "10.0.3.1", of("shop", "cart.shop.svc.cluster.local"), func(w *mesh.Workload) {
				w.Policies = []mesh.PolicyKey{{Namespace: "shop", Name: "not-yet"}}
			}),
		},
		Services: []*mesh.Service{svc("ecs-demo-1", "ecs-service-echo", "echo.ecs-demo-1.ecs.local", "240.240.0.1"), svc("shop", "cart", "cart.shop.svc.cluster.local", "10.96.0.1"),
			svc("shop", "empty", "empty.shop.svc.cluster.local", "10.96.0.2")},
		Policies: []*mesh.Policy{
			{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "callers"}, Scope: mesh.ScopeNamespace, Rules: []mesh.Rule{
				{{{Principals: principals("cluster.local/ns/x/sa/y")}}},
				{{{Namespaces: principals("default")}}, {{DestinationPorts: []uint16{8080}}}}}},
			{Key: guarded, Scope: mesh.ScopeSelector, Action: mesh.Deny, Rules: []mesh.Rule{{{{NotSourceIPs: []netip.Prefix{netip.MustParsePrefix("10.0.9.0/24")}}}}}},
			{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: "trial"}, Scope: mesh.ScopeNamespace, Action: mesh.Deny, DryRun: true, Rules: []mesh.Rule{{}}},
		},
	})
	return s.Snapshot()
}

func query(source, destination string) Query {
	return Query{Network: "eks", Source: source, Destination: destination}
}

// TestGolden holds an answer as a whole.
func TestGolden(t *testing.T) {
	a, err := Explain(world(), query("spiffe://cluster.local/ns/default/sa/shell", "echo.ecs-demo-1.ecs.local:80"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", "echo.json")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
		t.Errorf("the answer (-want +got):\n%s", diff)
	}
}

func TestNames(t *testing.T) {
	s := world()
	const shell = "spiffe://cluster.local/ns/default/sa/shell"
	for _, c := range []struct {
		source, destination string
		identity, verdict   string
		addresses           string
	}{
		{shell, "10.0.1.1:8080", shell, Allowed, "10.0.1.1:8080"},
		{"10.0.0.1", "240.240.0.1:80", shell, Mixed, "10.0.1.1:8080 10.0.1.2:8080"},
		{"default/eks-shell", "ecs-demo-1/echo:80", shell, Mixed, "10.0.1.1:8080 10.0.1.2:8080"},
		{"default/eks-shell-abc", "ecs-demo-1/ecs-service-echo:80", shell, Mixed, "10.0.1.1:8080 10.0.1.2:8080"},
		{"cart.shop", "ecs-demo-1/echo-1:8080", "spiffe://cluster.local/ns/shop/sa/cart", Denied, "10.0.1.1:8080"},
		{"shop/cart", "Echo.ecs-demo-1.ecs.local.:80", "spiffe://cluster.local/ns/shop/sa/cart", Denied, "10.0.1.1:8080 10.0.1.2:8080"},
		{"10.0.2.1", "10.0.1.1:8080", "", Denied, "10.0.1.1:8080"},  // no proxy, no identity
		{"192.0.2.1", "10.0.1.1:8080", "", Denied, "10.0.1.1:8080"}, // nobody
		{shell, "10.0.1.1:9", shell, Denied, "10.0.1.1:9"},          // the port is the application's
		{shell, "10.0.2.1:80", shell, Allowed, "10.0.2.1:80"},       // nothing enforces there
		{shell, "cart.shop.svc:80", shell, Denied, "10.0.3.1:8080"}, // a policy is missing
		{shell, "empty.shop.svc.cluster.local:80", shell, Nobody, ""},
		{"::ffff:10.0.0.1", "[::ffff:10.0.1.1]:8080", shell, Allowed, "10.0.1.1:8080"},
	} {
		a, err := Explain(s, query(c.source, c.destination))
		if err != nil {
			t.Errorf("%s to %s: %v", c.source, c.destination, err)
			continue
		}
		var at []string
		for _, w := range a.Workloads {
			at = append(at, w.Address)
		}
		if a.Verdict != c.verdict || a.Source.Identity != c.identity || strings.Join(at, " ") != c.addresses {
			t.Errorf("%s to %s = %s for %q at %v; want %s for %q at %s", c.source, c.destination, a.Verdict, a.Source.Identity, at, c.verdict, c.identity, c.addresses)
		}
	}
	q := query(shell, "cart.shop.svc:80")
	q.AllowMissing = true
	if a, err := Explain(s, q); err != nil || a.Verdict != Allowed || len(a.Workloads[0].MissingPolicies) != 1 {
		t.Errorf("with ISTHMUS_MISSING_POLICY=allow: %+v, %v", a, err)
	}
	q = query(shell, "10.0.1.2:8080")
	q.SourceAddr = "10.0.9.7"
	if a, err := Explain(s, q); err != nil || a.Verdict != Allowed || len(a.Notes) != 0 {
		t.Errorf("from an address of the policy: %+v, %v", a, err)
	}
}

func TestRefusals(t *testing.T) {
	s := world()
	for _, c := range []struct {
		source, destination, sourceAddr string
		status                          int
		text                            string
	}{
		{"", "10.0.1.1:80", "", 400, "source is missing"},
		{"spiffe://x", "10.0.1.1:80", "", 400, "invalid spiffe identity"},
		{"nobody.local", "10.0.1.1:80", "", 404, "no workload or service"},
		{"default/nobody", "10.0.1.1:80", "", 404, "no workload or service"},
		{"empty.shop", "10.0.1.1:80", "", 404, "no endpoints"},
		{"10.0.0.1", "", "", 400, "not ADDRESS:PORT"},
		{"10.0.0.1", "10.0.1.1", "", 400, "not ADDRESS:PORT"},
		{"10.0.0.1", "10.0.1.1:0", "", 400, "is not a port"},
		{"10.0.0.1", "10.0.1.1:x", "", 400, "is not a port"},
		{"10.0.0.1", "8.8.8.8:53", "", 404, "no service or workload has the address"},
		{"10.0.0.1", "nobody.local:53", "", 404, "no service or workload"},
		{"10.0.0.1", "echo.ecs-demo-1.ecs.local:81", "", 404, "has no port 81"},
		{"10.0.0.1", "10.0.1.1:80", "x", 400, "is not an address"},
		{strings.Repeat("a", 513), "10.0.1.1:80", "", 400, "longer than 512 bytes"},
	} {
		q := query(c.source, c.destination)
		q.SourceAddr = c.sourceAddr
		_, err := Explain(s, q)
		var e *Error
		if !errors.As(err, &e) || e.Status() != c.status || !strings.Contains(e.Text, c.text) {
			t.Errorf("%.20q to %q = %v, want status %d with %q", c.source, c.destination, err, c.status, c.text)
		}
	}
}

func TestNotesAndLimits(t *testing.T) {
	s := state.NewStore()
	key := mesh.ServiceKey{Namespace: "a", Hostname: "big.a.svc.cluster.local"}
	big := svc("a", "big", key.Hostname, "10.96.0.9")
	big.Waypoint = &mesh.GatewayAddress{Address: mesh.NetworkAddress{Network: "eks", Addr: addr("10.0.0.99")}, HBONEPort: 15008}
	u := mesh.Update{Services: []*mesh.Service{big}}
	for i := range 250 {
		u.Workloads = append(u.Workloads, wl("a", fmt.Sprintf("big-%03d", i), "big", "big", fmt.Sprintf("10.7.%d.%d", i/100, i%100), of("a", key.Hostname)))
	}
	s.Apply(u)
	a, err := Explain(s.Snapshot(), query("spiffe://td/ns/b/sa/c", "a/big:80"))
	if err != nil || len(a.Workloads) != 100 || a.More != 150 || a.Workloads[0].Name != "big-000" || a.Workloads[0].Reason != "no policy applies" {
		t.Errorf("of 250 workloads %d are told, %d not, %v", len(a.Workloads), a.More, err)
	}
	if len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "waypoint eks/10.0.0.99") {
		t.Errorf("notes %q", a.Notes)
	}
	if a, err := Explain(world(), query("10.0.2.1", "echo.ecs-demo-1.ecs.local:80")); err != nil || len(a.Notes) != 1 || !strings.Contains(a.Notes[0], "has no proxy") {
		t.Errorf("notes %q, %v", a.Notes, err)
	}
}

// Whatever is asked, nothing panics, and each verdict is the data path's.
func FuzzExplain(f *testing.F) {
	for _, seed := range [][3]string{{"10.0.0.1", "240.240.0.1:80", ""}, {"spiffe://cluster.local/ns/default/sa/shell", "ecs-demo-1/echo:80", "10.0.9.1"}, {"a/b", "[::1]:1", "::"}, {"/", "/:1", ""}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	s := world()
	f.Fuzz(func(t *testing.T, source, destination, sourceAddr string) {
		q := query(source, destination)
		q.SourceAddr = sourceAddr
		a, err := Explain(s, q)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Errorf("error %v has no status", err)
			}
			return
		}
		for _, w := range a.Workloads {
			if w.Unenforced != "" {
				continue
			}
			c := policy.Connection{DestinationAddr: netip.MustParseAddrPort(w.Address)}
			if a.Source.Identity != "" {
				if c.Source, err = mesh.ParseIdentity(a.Source.Identity); err != nil {
					t.Fatal(err)
				}
			}
			if a.Source.Address != "" {
				c.SourceAddr = netip.AddrPortFrom(addr(a.Source.Address), 40000)
			}
			ps, missing := s.PoliciesFor(s.Workload(w.UID))
			if want := policy.Evaluate(ps, c).Without(missing); want.Allowed != (w.Verdict == Allowed) || want.Policy != (mesh.PolicyKey{}) && want.Policy.String() != w.Policy || want.Rule != w.Rule {
				t.Errorf("%+v: the data path says %+v", w, want)
			}
		}
	})
}
