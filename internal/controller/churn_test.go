package controller

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// churnsPerAge is how many things happen in the life of one controller.
const churnsPerAge = 2

// churn is an account in which things happen, always the same and in the same order.
type churn struct {
	aws      *awsfake.ECS
	rng      *rand.Rand
	services []*churned
	revision int
	wait     func(time.Duration) // lets time go by

	mu       sync.Mutex
	innocent map[string]bool // guarded by mu; ids of tasks to which nothing has happened since they run
}

// churned is one service. The first of each cluster is never deleted.
type churned struct {
	cluster, name string
	steady, gone  bool
	definition    string
	tasks, ending []string
}

func newChurn() *churn {
	c := &churn{aws: awsfake.New(accountA, region), rng: rand.New(rand.NewPCG(7, 7)), innocent: map[string]bool{}, wait: virtually} //nolint:gosec // a test's choice
	for i := range 3 {
		cluster := c.aws.AddCluster(fmt.Sprint("ecs-demo-", i+1), inventory.Tags{"ecs.solo.io/discovery-enabled": "true"})
		for j := range 3 {
			s := &churned{cluster: cluster, name: fmt.Sprint("service-", j), steady: j == 0}
			c.services = append(c.services, s)
			c.define(s)
			c.aws.AddService(s.cluster, s.name, s.definition)
			c.scale(s, 2)
		}
	}
	return c
}

func (c *churn) namespaces() []string {
	return []string{"istio-system", "ecs-demo-1", "ecs-demo-2", "ecs-demo-3"}
}

// steady returns the entries of the services that are never deleted.
func (c *churn) steady() []string {
	var out []string
	for _, s := range c.services {
		if cluster := inventory.LastPart(s.cluster); s.steady {
			out = append(out, fmt.Sprintf("%s %s/ecs-service-%s-%s-%s-%s", discovery.KindServiceEntry, cluster, accountA, region, cluster, s.name))
		}
	}
	return out
}

// mustStay reports whether an object, by namespace and name, stands for something that AWS has not touched.
func (c *churn) mustStay(name string) bool {
	for _, ref := range c.steady() {
		if strings.HasSuffix(ref, " "+name) {
			return true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.innocent[name[strings.LastIndex(name, "-")+1:]]
}

// define gives a service a new revision, sometimes with another port.
func (c *churn) define(s *churned) {
	c.revision++
	s.definition = c.aws.AddDefinition(inventory.TaskDefinition{
		Family: "family", Revision: c.revision, Tags: inventory.Tags{"ecs.solo.io/service-account": "app"},
		Containers: []inventory.ContainerDefinition{
			{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: uint16(8080 + c.revision%3), Protocol: "tcp"}}}, {Name: "ztunnel", HasHealthCheck: true},
		},
	})
}

func (c *churn) scale(s *churned, n int) {
	for len(s.tasks) < n {
		arn := c.aws.RunTask(s.cluster, s.name, s.definition)
		s.tasks = append(s.tasks, arn)
		c.mu.Lock()
		c.innocent[inventory.LastPart(arn)] = true
		c.mu.Unlock()
	}
	for len(s.tasks) > n {
		c.touch(s.tasks[0])
		c.aws.StopTask(s.tasks[0])
		s.ending, s.tasks = append(s.ending, s.tasks[0]), s.tasks[1:]
	}
}

// touch notes that something is about to happen to a task.
func (c *churn) touch(arn string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.innocent, inventory.LastPart(arn))
}

// step makes one thing happen and lets some time pass.
func (c *churn) step() {
	s := c.services[c.rng.IntN(len(c.services))]
	for _, arn := range s.ending { // what was told to stop ends, and is forgotten or not
		if c.aws.EndTask(arn); c.rng.IntN(2) == 0 {
			c.aws.ForgetTask(arn)
		}
	}
	s.ending = nil
	what := c.rng.IntN(6)
	switch {
	case s.gone:
		s.gone = false
		c.define(s)
		c.aws.AddService(s.cluster, s.name, s.definition)
		c.scale(s, 1+c.rng.IntN(3))
	case what == 0 && !s.steady:
		c.aws.EditService(s.cluster, s.name, func(x *inventory.Service) { x.Status = inventory.StatusDraining })
		c.scale(s, 0)
		c.pass(1000)
		c.aws.EditService(s.cluster, s.name, func(x *inventory.Service) { x.Status = inventory.StatusInactive })
		s.gone = true
	case what == 1:
		c.scale(s, 0)
	case what == 2: // a deployment: the new come before the old go
		c.define(s)
		c.aws.EditService(s.cluster, s.name, func(x *inventory.Service) { x.TaskDefinition = s.definition })
		n := max(1, len(s.tasks))
		c.scale(s, 2*n)
		c.pass(1000)
		c.scale(s, n)
	case what == 3 && len(s.tasks) > 0:
		c.touch(s.tasks[0])
		c.aws.Edit(s.tasks[0], func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Unhealthy })
	case what == 4 && len(s.tasks) > 0:
		c.aws.Edit(s.tasks[0], func(x *inventory.Task) { x.Containers[1].HealthStatus = inventory.Healthy })
	default:
		c.scale(s, c.rng.IntN(5))
	}
	c.pass(1500)
}

// pass lets some of up to so many milliseconds go by.
func (c *churn) pass(most int) { c.wait(time.Duration(c.rng.IntN(most)) * time.Millisecond) }

// virtually lets virtual time go by.
func virtually(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
