package plan

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// fleet returns an account of n tasks: at most 1,000 to a cluster and 10 to a service.
func fleet(n int) *inventory.Snapshot {
	s := emptySnapshot()
	s.History = s.History.Next()
	for first := 0; first < n; first += 1000 {
		c := addCluster(s, fmt.Sprintf("c%03d", first/1000), 0)
		delete(c.Services, "web")
		c.History = c.History.Next()
		for i := first; i < min(n, first+1000); i++ {
			name := fmt.Sprintf("svc-%03d", i%1000/10)
			if c.Services[name] == nil {
				arn := strings.Replace(c.Cluster.ARN, "cluster/", "service/", 1) + "/" + name
				c.Services[name] = &inventory.Service{ARN: arn, Name: name, ClusterARN: c.Cluster.ARN, Status: inventory.StatusActive, TaskDefinition: defARN}
			}
			c.Members[addTask(c, i+1)] = name
		}
	}
	return s
}

// stopOne returns the snapshot in which one task is being stopped; everything else is shared, as a reflector does.
func stopOne(s *inventory.Snapshot) *inventory.Snapshot {
	next := *s
	next.Clusters = maps.Clone(s.Clusters)
	arn, c := anyTask(s, "c000")
	view := *c
	view.Tasks = maps.Clone(c.Tasks)
	edit(&view, arn, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
	next.Clusters[c.Cluster.ARN] = &view
	return &next
}

// follow makes a snapshot the successor of another, from which it differs in one task of one cluster.
func follow(now, before *inventory.Snapshot, c *inventory.ClusterView, task string) *inventory.Snapshot {
	c.History = before.Clusters[c.Cluster.ARN].History.Next(task)
	now.History = before.History.Next(c.Cluster.ARN)
	return now
}

// What one task that stops, and then runs again, costs discovery and the planner together, in fleets of any size.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprintf("tasks=%d", n), func(b *testing.B) {
			running := fleet(n)
			stopping := stopOne(running)
			task, up := anyTask(running, "c000")
			_, down := anyTask(stopping, "c000")
			p := newPair()
			p.write(p.update(Limits{}, running))
			b.ReportAllocs()
			for b.Loop() {
				c := p.update(Limits{}, follow(stopping, running, down, task))
				if len(c.Delete) != 1 || len(c.Create)+len(c.Update)+len(c.Held) != 0 {
					b.Fatal(counts(c))
				}
				p.write(c)
				if c = p.update(Limits{}, follow(running, stopping, up, task)); len(c.Create) != 1 || len(c.Delete)+len(c.Update)+len(c.Held) != 0 {
					b.Fatal(counts(c))
				}
				p.write(c)
			}
		})
	}
}

// What it costs to start with a fleet that nothing is known of.
func BenchmarkFirstPlan(b *testing.B) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("tasks=%d", n), func(b *testing.B) {
			s := fleet(n)
			b.ReportAllocs()
			for b.Loop() {
				if c := newPair().update(Limits{}, s); len(c.Create) < n {
					b.Fatal(counts(c))
				}
			}
		})
	}
}

// One change must not cost what there is: ten thousand tasks may cost no more than a small factor of ten.
func TestOneChangeIsIndependentOfTheRest(t *testing.T) {
	allocs := func(n int) float64 {
		running := fleet(n)
		stopping := stopOne(running)
		p := newPair()
		p.write(p.update(Limits{}, running))
		task, up := anyTask(running, "c000")
		_, down := anyTask(stopping, "c000")
		return testing.AllocsPerRun(10, func() {
			p.write(p.update(Limits{}, follow(stopping, running, down, task)))
			p.write(p.update(Limits{}, follow(running, stopping, up, task)))
		})
	}
	small, large := allocs(10), allocs(10_000)
	if large > 1.5*small+20 {
		t.Errorf("one change allocates %.0f times among 10 tasks and %.0f times among 10,000", small, large)
	}
}
