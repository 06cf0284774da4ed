package plan

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// pair joins discovery's engine and the planner's, as the controller does.
type pair struct {
	discovery *discovery.Engine
	plan      *Engine
}

func newPair() pair { return pair{discovery.NewEngine(discovery.Config{}), NewEngine()} }

func (p pair) update(lim Limits, s *inventory.Snapshot) Changes {
	delta := p.discovery.Update([]discovery.Input{{Snapshot: s, Domain: "ecs.local"}})
	for n, o := range delta.Services {
		p.plan.Want(Key{discovery.KindServiceEntry, n.Namespace, n.Name}, Object{Service: o})
	}
	for n, o := range delta.Workloads {
		p.plan.Want(Key{discovery.KindWorkloadEntry, n.Namespace, n.Name}, Object{Workload: o})
	}
	return p.plan.Plan([]*inventory.Snapshot{s}, p.discovery.Skipped, lim)
}

// write tells the planner what there is after some of the changes were made.
func (p pair) write(c Changes) {
	for _, list := range [][]Change{c.Create, c.Update} {
		for _, ch := range list {
			p.plan.Have(ch.Key, Object{ch.Service, ch.Workload})
		}
	}
	for _, ch := range c.Delete {
		p.plan.Have(ch.Key, Object{})
	}
}

// Engines that saw every step plan what a computation plans that sees only the end.
func TestPropertyIncrementalEqualsFull(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := drawLimits(t)
		p := newPair()
		var cur Current
		var mem Memory
		for i := range rapid.IntRange(1, 6).Draw(t, "rounds") {
			s := drawSnapshot(t, fmt.Sprint(i))
			got := p.update(lim, s)
			var want Changes
			want, mem = compute(cur, mem, lim, s)
			listed := want
			listed.Unchanged = nil               // an engine only counts them
			if !reflect.DeepEqual(listed, got) { // ten times as fast as cmp, which finds what differs
				if diff := cmp.Diff(listed, got, cmpopts.EquateErrors(), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("round %d: incremental differs from full (-full +incremental):\n%s", i, diff)
				}
			}
			if !reflect.DeepEqual(mem, p.plan.memory) {
				if diff := cmp.Diff(mem, p.plan.memory, cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("round %d: memory differs (-full +incremental):\n%s", i, diff)
				}
			}
			if want.Kept != len(want.Unchanged) {
				t.Fatalf("%d kept, %d unchanged", want.Kept, len(want.Unchanged))
			}
			if rapid.IntRange(0, 3).Draw(t, "write fails") > 0 {
				cur = apply(cur, want)
				p.write(got)
			}
		}
	})
}

func TestEngineHoldsForeignObjects(t *testing.T) {
	p := newPair()
	s := snapshot(1)
	c := p.update(Limits{}, s)
	theirs := *c.Create[0].Service
	theirs.Metadata.Labels = nil
	p.plan.Have(c.Create[0].Key, Object{Service: &theirs})
	c = p.update(Limits{}, s)
	if len(c.Held) != 1 || c.Held[0].Rule != RuleForeign || len(c.Create) != 1 || c.Foreign != 1 {
		t.Fatalf("with an object of somebody else's: %s", c)
	}
	p.plan.Have(c.Held[0].Key, Object{})
	if c = p.update(Limits{}, s); len(c.Create) != 2 || c.Foreign != 0 {
		t.Errorf("after theirs has gone: %s", c)
	}
}
