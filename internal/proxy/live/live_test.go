package live

import (
	"errors"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
)

// Watch and Decide agree on which verdicts are final.
func TestFinal(t *testing.T) {
	selected := func(action mesh.PolicyAction, rules ...mesh.Rule) []*mesh.Policy {
		return []*mesh.Policy{{Key: mesh.PolicyKey{Namespace: "ns", Name: "x"}, Scope: mesh.ScopeSelector, Action: action, Rules: rules}}
	}
	for name, c := range map[string]struct {
		ps   []*mesh.Policy
		want bool
	}{
		"nothing known":     {nil, false},
		"none allowed":      {selected(mesh.Allow), false},
		"explicitly denied": {selected(mesh.Deny, mesh.Rule{}), true},
		"allowed":           {selected(mesh.Allow, mesh.Rule{}), false},
	} {
		if got := policy.Evaluate(c.ps, policy.Connection{}).Final(); got != c.want {
			t.Errorf("%s: final = %v, want %v", name, got, c.want)
		}
	}
	if allowedWord(false) != "denied" || allowedWord(true) != "allowed" {
		t.Error("the words of a verdict are wrong")
	}
}

// The first cause counts, and a connection that was stopped before there was anything to end is ended as soon as there is.
func TestStop(t *testing.T) {
	var r Registry
	c := &Conn{View: View{Src: "b"}}
	remove := r.Add(c)
	defer r.Add(&Conn{View: View{Src: "a"}})()
	if vs := r.Views(); len(vs) != 2 || vs[0].Src != "a" {
		t.Errorf("Views() = %v, want both, sorted", vs)
	}
	why := policy.Decision{Policy: mesh.PolicyKey{Namespace: "ns", Name: "no"}, Rule: 2}
	c.Stop(ErrPolicyChange, why)
	ended := 0
	c.OnStop(func() { ended++ })
	r.EndAll(ErrDrain)
	if d, cause := c.Stopped(); !errors.Is(cause, ErrPolicyChange) || d.Policy != why.Policy || d.Rule != 2 || ended != 2 {
		t.Errorf("Stopped() = %v, %v, and it was ended %d times; want the first cause, and both times", d, cause, ended)
	}
	remove()
	if vs := r.Views(); len(vs) != 1 {
		t.Errorf("Views() = %v after one was removed", vs)
	}
}
