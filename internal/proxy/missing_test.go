package proxy

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// selected is a policy that only workloads that name it have.
func selected(name string, action mesh.PolicyAction, rules ...mesh.Rule) *mesh.Policy {
	return &mesh.Policy{Key: mesh.PolicyKey{Namespace: "ecs-demo-1", Name: name}, Scope: mesh.ScopeSelector, Action: action, Rules: rules}
}

// named makes the server workload name policies, which may not be known.
func (w *world) named(names ...string) {
	s := serverWorkload()
	for _, n := range names {
		s.Policies = append(s.Policies, mesh.PolicyKey{Namespace: "ecs-demo-1", Name: n})
	}
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{s}})
}

// A policy that is named and has not arrived is waited for a moment; then the connection is refused, unless it is
// configured otherwise.
func TestMissingPolicy(t *testing.T) {
	curl := func() (string, int) {
		out, _, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...)
		return out, code
	}
	t.Run("refused", func(t *testing.T) {
		w := newWorld(t, func(_, server *Config) { server.PolicyWait = 50 * time.Millisecond })
		w.named("strict")
		if _, code := curl(); code != 56 {
			t.Errorf("curl = %d, want 56", code)
		}
		w.server.logged(t, "\terror\taccess\t", "connection closed due to policy rejection: policy of the workload is not known: ecs-demo-1/strict", "reason=DENY")
	})
	t.Run("allowed by configuration", func(t *testing.T) {
		w := newWorld(t, func(_, server *Config) { server.PolicyWait, server.AllowMissingPolicies = 50*time.Millisecond, true })
		w.named("strict")
		if out, code := curl(); code != 0 {
			t.Errorf("curl = %d, %q, want an answer", code, out)
		}
		w.server.logged(t, "\twarn\t", "policy of the workload is not known and cannot be enforced", `policy="ecs-demo-1/strict"`)
	})
	for name, c := range map[string]struct {
		policy *mesh.Policy
		code   int
	}{"allows": {selected("strict", mesh.Allow, mesh.Rule{}), 0}, "denies": {selected("strict", mesh.Deny, mesh.Rule{}), 56}} {
		t.Run("arrives in time and "+name, func(t *testing.T) {
			w := newWorld(t, func(_, server *Config) { server.PolicyWait = meshtest.Wait })
			w.named("strict")
			done := make(chan int, 1)
			go func() {
				_, code := curl()
				done <- code
			}()
			meshtest.Eventually(t, "the server decides", func() bool { return len(w.server.proxy.Connections()) == 1 })
			select {
			case code := <-done:
				t.Fatalf("curl = %d before the policy arrived", code)
			default:
			}
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{c.policy}})
			if code := <-done; code != c.code {
				t.Errorf("curl = %d, want %d", code, c.code)
			}
		})
	}
	t.Run("an explicit denial waits for nothing", func(t *testing.T) {
		w := newWorld(t, func(_, server *Config) { server.PolicyWait = time.Hour })
		w.store.Apply(mesh.Update{Policies: []*mesh.Policy{denyPolicy("no-shell", "cluster.local/ns/default/sa/shell")}})
		w.named("strict")
		if _, code := curl(); code != 56 {
			t.Errorf("curl = %d, want 56 at once", code)
		}
	})
}

// A live connection is not ended while a policy that may allow it is missing, as in the moment between two responses
// of istiod, but it is when the policy stays away.
func TestMissingPolicyAndLiveConnection(t *testing.T) {
	for _, c := range []struct {
		name string
		wait time.Duration
		ends bool
	}{{"kept", time.Hour, false}, {"ended", 20 * time.Millisecond, true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(_, server *Config) { server.PolicyWait = c.wait })
			serveTCP(t, netip.AddrPortFrom(serverIP, 9000), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
			w.store.Apply(mesh.Update{Policies: []*mesh.Policy{selected("a", mesh.Allow, mesh.Rule{}), selected("b", mesh.Allow)}})
			w.named("a", "b")
			w.dst.Store(ptr(netip.AddrPortFrom(serverIP, 9000)))
			conn := w.dial()
			echo := func() error {
				if _, err := conn.Write([]byte("x")); err != nil {
					return err
				}
				_, err := io.ReadFull(conn, make([]byte, 1))
				return err
			}
			if err := echo(); err != nil {
				t.Fatal(err)
			}
			w.store.Apply(mesh.Update{RemovedPolicies: []string{"ecs-demo-1/a"}}) // b alone allows nobody
			if c.ends {
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Error("the connection lives on without any policy that allows it")
				}
				w.server.logged(t, "connection closed due to policy change", "reason=DENY")
				return
			}
			for range 3 {
				if err := echo(); err != nil {
					t.Fatalf("the connection was ended while its policy was on its way: %v", err)
				}
			}
		})
	}
}
