package ztunnel

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/why"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds/local"
)

func (r *running) why(t *testing.T, source, destination string) (int, *why.Answer, string) {
	t.Helper()
	code, text, err := r.get(mesh.AdminPort, "/why?"+url.Values{"source": {source}, "destination": {destination}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	var a why.Answer
	if code == 200 {
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
	}
	return code, &a, text
}

// What /why says, of either proxy, is what then happens to a connection, and the access log names the same policy and
// rule.
func TestWhy(t *testing.T) {
	istiod := newMesh(t)
	shell := start(t, shellIP, istiod, "PROXY_WORKLOAD_INFO=default/shell-1/shell")
	echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo")
	meshtest.Eventually(t, "both are ready", func() bool { return shell.ready() && echo.ready() })
	ns := func(name string, action mesh.PolicyAction, rules ...mesh.Rule) *mesh.Policy {
		return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: name}, Scope: mesh.ScopeNamespace, Action: action, Rules: rules}
	}
	caller := func(namespaces ...string) mesh.Rule {
		var ms []mesh.StringMatch
		for _, n := range namespaces {
			ms = append(ms, mesh.StringMatch{Value: n})
		}
		return mesh.Rule{{{Namespaces: ms}}}
	}
	for _, c := range []struct {
		name     string
		policies []*mesh.Policy
		verdict  string
		policy   string
		rule     int
	}{
		{"no policy", nil, why.Allowed, "", -1},
		{"deny-all", []*mesh.Policy{ns("deny-all", mesh.Allow)}, why.Denied, "", -1},
		{"allow by the second rule", []*mesh.Policy{ns("callers", mesh.Allow, caller("other"), caller("other", "default"))}, why.Allowed, "ecs-demo-1/callers", 1},
		{"deny before allow", []*mesh.Policy{ns("callers", mesh.Allow, caller("default")), ns("no-default", mesh.Deny, caller("x"), caller("default"))}, why.Denied, "ecs-demo-1/no-default", 1},
		{"deny by the application's port", []*mesh.Policy{ns("no-8080", mesh.Deny, mesh.Rule{{{DestinationPorts: []uint16{8080}}}})}, why.Denied, "ecs-demo-1/no-8080", 0},
		{"deny of the service's port", []*mesh.Policy{ns("no-80", mesh.Deny, mesh.Rule{{{DestinationPorts: []uint16{80}}}})}, why.Allowed, "", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var names []string
			for _, p := range c.policies {
				istiod.Set(p)
				names = append(names, p.Key.String())
			}
			defer func() {
				istiod.Remove(names...)
				meshtest.Eventually(t, "the policies are gone", func() bool {
					_, a, _ := shell.why(t, shellIP.String(), echoIP.String()+":8080")
					return len(a.Workloads[0].Policies) == 0
				})
			}()
			for _, r := range []*running{shell, echo} {
				var a *why.Answer
				meshtest.Eventually(t, "the policies have arrived", func() bool {
					_, a, _ = r.why(t, "default/shell", echoHost+":80")
					return len(a.Workloads) == 1 && len(a.Workloads[0].Policies) == len(c.policies)
				})
				w := a.Workloads[0]
				if a.Verdict != c.verdict || w.Policy != c.policy || w.Rule != c.rule || w.Address != echoIP.String()+":8080" || a.Source.Identity != "spiffe://cluster.local/ns/default/sa/shell" {
					t.Errorf("%s says %s by %q, rule %d, at %s; want %s by %q, rule %d", r.ip, a.Verdict, w.Policy, w.Rule, w.Address, c.verdict, c.policy, c.rule)
				}
			}
			before := len(echo.out.String())
			out, errOut, code := proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
			if passed := out == "hello"; passed != (c.verdict == why.Allowed) {
				t.Errorf("curl = %d, %q, %q, although /why says %s", code, out, errOut, c.verdict)
			}
			if c.policy != "" {
				meshtest.Eventually(t, "the access log names policy and rule", func() bool {
					return strings.Contains(echo.out.String()[before:], fmt.Sprintf("policy=%q rule=%d", c.policy, c.rule))
				})
			}
		})
	}
	// A dump, judged elsewhere by the same code, says the same.
	istiod.Set(ns("callers", mesh.Allow, caller("other"), caller("default")), ns("trial", mesh.Deny, caller("default")))
	var said *why.Answer
	meshtest.Eventually(t, "both policies", func() bool {
		_, said, _ = shell.why(t, "default/shell", echoHost+":80")
		return len(said.Workloads[0].Policies) == 2
	})
	_, text, err := shell.get(mesh.AdminPort, "/config_dump")
	if err != nil {
		t.Fatal(err)
	}
	u, err := local.ParseDump(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	store := state.NewStore()
	store.Apply(u)
	judged, err := why.Explain(store.Snapshot(), why.Query{Network: "eks", Source: "default/shell", Destination: echoHost + ":80"})
	if diff := cmp.Diff(said, judged); diff != "" || err != nil {
		t.Errorf("/why and the dump differ (-/why +dump):\n%s%v", diff, err)
	}
	for query, want := range map[string]int{"": 400, "source=10.1.0.1": 400, "source=10.1.0.1&destination=10.1.0.2:80&x=y": 400, "source=10.1.0.1&source=10.1.0.1&destination=10.1.0.2:80": 400,
		"source=10.1.0.1&destination=192.0.2.1:80": 404, "source=10.1.0.1&destination=10.1.0.2:80": 200} {
		code, text, err := shell.get(mesh.AdminPort, "/why?"+query)
		if err != nil || code != want || code != 200 && !strings.Contains(text, "usage: GET /why?source=SOURCE") {
			t.Errorf("GET /why?%s = %d, %.100q, %v; want %d", query, code, text, err, want)
		}
	}
}
