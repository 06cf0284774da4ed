package plan

import (
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// 100 clusters of 100 services and 1,000 tasks each: what one changed task costs the pure part.
func BenchmarkHundredThousandTasks(b *testing.B) {
	s := emptySnapshot()
	for i := range 100 {
		c := addCluster(s, fmt.Sprintf("c%02d", i), 0)
		for n := range 100 {
			name := fmt.Sprintf("svc-%03d", n)
			svc := *c.Services["web"]
			svc.Name, svc.ARN = name, svc.ARN[:len(svc.ARN)-3]+name
			c.Services[name] = &svc
		}
		for n := range 1000 {
			arn := addTask(c, i*1000+n+1)
			c.Members[arn] = fmt.Sprintf("svc-%03d", n%100)
		}
	}
	c, _ := compute(Current{}, Memory{}, Limits{}, s)
	cur := apply(Current{}, c)
	arn, cl := anyTask(s, "c00")
	edit(cl, arn, func(x *inventory.Task) { x.DesiredStatus = inventory.TaskStopped })
	b.ReportAllocs()
	for b.Loop() {
		if c, _ := compute(cur, Memory{}, Limits{}, s); len(c.Delete) != 1 || len(c.Create)+len(c.Update)+len(c.Held) != 0 {
			b.Fatal(counts(c))
		}
	}
}
