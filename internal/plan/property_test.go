package plan

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"

	"pgregory.net/rapid"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// TestMain draws more cases than rapid does by itself, unless -rapid.checks says how many: 3,000 have found what 100 did
// not.
func TestMain(m *testing.M) {
	if f := flag.Lookup("rapid.checks"); f != nil {
		_ = f.Value.Set("3000") // a number always is one
	}
	os.Exit(m.Run())
}

// drawSnapshot draws any state that a reflector might publish, good or bad.
func drawSnapshot(t *rapid.T, label string) *inventory.Snapshot {
	s := emptySnapshot()
	s.CompleteSweeps = rapid.Uint64Range(0, 6).Draw(t, label+"sweeps")
	for i := range rapid.IntRange(0, 3).Draw(t, label+"clusters") {
		name := fmt.Sprintf("c%d", i)
		c := addCluster(s, name, 0)
		c.CompleteSweeps = s.CompleteSweeps
		for n := range 8 {
			id := i*100 + n + 1
			arn := inventory.TaskARN(c.Cluster.ARN, fmt.Sprintf("%032x", id))
			switch rapid.IntRange(0, 5).Draw(t, label+"task") {
			case 0: // never there
			case 1:
				s.Gone[arn] = inventory.Evidence(rapid.IntRange(0, 5).Draw(t, label+"why"))
			case 2:
				addTask(c, id)
				edit(c, arn, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
			case 3:
				addTask(c, id)
				edit(c, arn, func(x *inventory.Task) { x.LastStatus = inventory.TaskPending })
			default:
				addTask(c, id)
			}
		}
		if rapid.Bool().Draw(t, label+"noservice") {
			delete(c.Services, "web")
		} else if rapid.Bool().Draw(t, label+"tagged") {
			c.Services["web"].Tags = inventory.Tags{"ecs.solo.io/hostname": "shop.example", "ecs.solo.io/namespace": "shop"}
		}
		if rapid.IntRange(0, 3).Draw(t, label+"incomplete") == 0 {
			c.Complete, c.Err, s.Complete, s.Err = false, errors.New("drawn"), false, errors.New("drawn")
		}
	}
	if rapid.IntRange(0, 5).Draw(t, label+"failed") == 0 {
		s.Complete, s.Err = false, errors.New("drawn")
	}
	return s
}

func drawLimits(t *rapid.T) Limits {
	return Limits{
		MaxDeleteShare: rapid.SampledFrom([]float64{0, 0.1, 0.9}).Draw(t, "share"), MinDeleteCount: rapid.IntRange(0, 12).Draw(t, "min"),
		ReleaseAfter: rapid.IntRange(0, 2).Draw(t, "release"),
	}
}

// Applying a plan and planning again yields nothing to do.
func TestPropertyIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lim := drawLimits(t)
		var cur Current
		var mem Memory
		for i := range 3 {
			s := drawSnapshot(t, fmt.Sprint(i))
			var c, again Changes
			c, mem = compute(cur, mem, lim, s)
			cur = apply(cur, c)
			again, _ = compute(cur, mem, lim, s)
			// Applying may shrink a mass: what was held because of what went with it may then be done. Nothing else.
			if len(again.Create)+len(again.Update) != 0 {
				t.Fatalf("planned again:\n%s", again)
			}
			for _, d := range again.Delete {
				if d.Service != nil || len(c.Held) == 0 {
					t.Fatalf("planned again:\n%s", again)
				}
			}
		}
	})
}

// Nothing of an incomplete cluster or account is deleted, and nothing that runs is.
func TestPropertyNeverDeletesWithoutGroundOrWhenIncomplete(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, s := drawSnapshot(t, "a"), drawSnapshot(t, "b")
		c, _ := compute(Current{}, Memory{}, Limits{}, before)
		cur := apply(Current{}, c)
		c, _ = compute(cur, Memory{}, drawLimits(t), s)
		for _, d := range c.Delete {
			var sources []string
			if d.Workload != nil {
				sources = []string{d.Workload.Metadata.Annotations[discovery.AnnotationSource]}
			}
			for _, source := range sources {
				arn, _ := inventory.ParseARN(source)
				cluster := clusterOf(s, arn)
				if s.CompleteSweeps == 0 || cluster != nil && !cluster.Complete || cluster == nil && !s.Complete {
					t.Fatalf("deleted from an incomplete sweep: %s %s", d.Rule, d.Key)
				}
				if cluster != nil && cluster.Tasks[source] != nil && !cluster.Tasks[source].Stopping() && cluster.Members[source] != "" &&
					cluster.Services["web"] != nil && d.Rule != RuleMoved {
					t.Fatalf("deleted what runs: %s %s %s", d.Rule, d.Key, d.Reason)
				}
			}
		}
	})
}

// A plan never says two things about one object, and loses none.
func TestPropertyEachObjectOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, _ := compute(Current{}, Memory{}, Limits{}, drawSnapshot(t, "a"))
		cur := apply(Current{}, c)
		s := drawSnapshot(t, "b")
		c, _ = compute(cur, Memory{}, drawLimits(t), s)
		seen := map[Key]bool{}
		for _, list := range [][]Change{c.Create, c.Update, c.Delete, c.Held, c.Unchanged} {
			for _, ch := range list {
				if seen[ch.Key] {
					t.Fatalf("%s comes twice", ch.Key)
				}
				seen[ch.Key] = true
			}
		}
		for _, e := range cur.WorkloadEntries {
			if k := (Key{e.Kind, e.Metadata.Namespace, e.Metadata.Name}); !seen[k] {
				t.Fatalf("nothing is said about %s", k)
			}
		}
	})
}
