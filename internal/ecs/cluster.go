package ecs

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"reflect"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// clusterSweep is one look at one cluster.
type clusterSweep struct {
	*sweep
	prev *inventory.ClusterView

	// What is known now: the maps of prev until something is written to them, see edit.
	tasks    map[string]*inventory.Task
	services map[string]*inventory.Service
	members  map[string]string
	edited   struct{ tasks, services, members bool }
	touched  []string // ARNs of the tasks and services that are others than before

	only     []string // if not nil, the tasks to look at
	gone     map[string]inventory.Evidence
	appeared []string
	hosts    map[string]string
}

// clusterResult is what a look at one cluster brought.
type clusterResult struct {
	view        *inventory.ClusterView
	gone        map[string]inventory.Evidence
	appeared    []string
	touched     []string
	hosts       map[string]string
	clusterGone bool
	keyed       bool // only what hints were about was read
	err         error
}

func isNotFound(err error) bool { return awsapi.IsNotFound(err) }

// run looks at tasks, services and who belongs to whom. What fails keeps its previous state.
func (c *clusterSweep) run(ctx context.Context) *clusterResult {
	c.begin()
	err := c.readTasks(ctx)
	if err == nil && (c.full || !c.prev.Complete || c.strangers()) {
		err = c.readServices(ctx)
	}
	if err == nil {
		err = c.readMembers(ctx)
	}
	if err == nil {
		c.readHosts(ctx)
	}
	res := &clusterResult{gone: c.gone, appeared: c.appeared, touched: c.touched, hosts: c.hosts, err: err}
	if isNotFound(err) {
		res.clusterGone, res.err = true, fmt.Errorf("%s: %w", c.prev.Cluster.Name, errClusterUnknown)
	}
	v := c.result()
	if v.Complete, v.Err = res.err == nil, res.err; v.Complete {
		v.CompleteSweeps++
		v.ReadAt = c.cfg.Now()
	}
	res.view = v
	return res
}

// begin takes over what was known before.
func (c *clusterSweep) begin() {
	c.tasks, c.services, c.members = c.prev.Tasks, c.prev.Services, c.prev.Members
	if c.tasks == nil {
		c.tasks, c.services, c.members = map[string]*inventory.Task{}, map[string]*inventory.Service{}, map[string]string{}
	}
	c.gone, c.hosts = map[string]inventory.Evidence{}, map[string]string{}
}

// edit returns a map to write to: a copy of what it was, made before the first write, because what is published does not
// change. The key is the ARN of the task or service that becomes another.
func edit[V any](c *clusterSweep, m *map[string]V, edited *bool, key string) map[string]V {
	if !*edited {
		*m, *edited = maps.Clone(*m), true
	}
	c.touched = append(c.touched, key)
	return *m
}

func (c *clusterSweep) setTask(t *inventory.Task) {
	edit(c, &c.tasks, &c.edited.tasks, t.ARN)[t.ARN] = t
}

func (c *clusterSweep) setMember(task, service string) {
	if c.members[task] != service {
		edit(c, &c.members, &c.edited.members, task)[task] = service
	}
}

// scan returns the tasks to look at.
func (c *clusterSweep) scan() iter.Seq2[string, *inventory.Task] {
	if c.only == nil {
		return maps.All(c.tasks)
	}
	return func(yield func(string, *inventory.Task) bool) {
		for _, arn := range c.only {
			if t := c.tasks[arn]; t != nil && !yield(arn, t) {
				return
			}
		}
	}
}

// result returns the view of what is known now. What did not change is shared with the view before.
func (c *clusterSweep) result() *inventory.ClusterView {
	v := *c.prev
	v.Tasks, v.Services, v.Members = c.tasks, c.services, c.members
	v.History = c.prev.History.Next(c.touched...)
	return &v
}

// readTasks reads the tasks that should run, and asks after those that were known and are no longer listed.
func (c *clusterSweep) readTasks(ctx context.Context) error {
	cluster := c.prev.Cluster.ARN
	listed, err := c.cfg.Source.ListTasks(ctx, cluster, "")
	if err != nil {
		return err
	}
	ask := slices.Clone(listed)
	isListed := setOf(listed)
	for arn := range c.tasks {
		if !isListed[arn] {
			ask = append(ask, arn)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	found, missing, err := c.cfg.Source.DescribeTasks(ctx, cluster, ask)
	answered := make(map[string]bool, len(ask))
	for _, t := range found { // what was read is true even if the rest failed
		answered[t.ARN] = true
		c.takeTask(t)
	}
	if err != nil {
		return err
	}
	for _, arn := range missing {
		answered[arn] = true
		if !isListed[arn] { // listed and missing at once: one of the two answers is stale, so nothing is concluded
			c.dropTask(arn, inventory.Missing)
		}
	}
	for _, arn := range ask {
		if !answered[arn] {
			return fmt.Errorf("describe tasks of %s: no answer about %s", cluster, arn)
		}
	}
	return nil
}

// takeTask takes over one reading of a task, unless a newer one is known.
func (c *clusterSweep) takeTask(t *inventory.Task) {
	old := c.tasks[t.ARN]
	if old != nil && old.Version > t.Version {
		return
	}
	if t.LastStatus == inventory.TaskStopped || t.LastStatus == inventory.TaskDeleted {
		if old != nil {
			c.dropTask(t.ARN, inventory.Terminal)
		}
		return
	}
	if old == nil {
		c.appeared = append(c.appeared, t.ARN)
	} else {
		if len(t.Tags) == 0 && t.Stopping() {
			t.Tags = old.Tags // stopping a task removes its tags; who it was does not change
		}
		t.HostAddr = old.HostAddr
		if reflect.DeepEqual(old, t) {
			return
		}
	}
	c.setTask(t)
}

func (c *clusterSweep) dropTask(arn string, why inventory.Evidence) {
	delete(edit(c, &c.tasks, &c.edited.tasks, arn), arn)
	if _, ok := c.members[arn]; ok {
		delete(edit(c, &c.members, &c.edited.members, arn), arn)
	}
	c.gone[arn] = why
}

// strangers reports whether a task claims a service that is not known yet.
func (c *clusterSweep) strangers() bool {
	for _, t := range c.scan() {
		if name := t.ServiceName(); name != "" && c.services[name] == nil && !t.Stopping() {
			return true
		}
	}
	return false
}

// readServices reads the services, and asks after those that were known and are no longer listed.
func (c *clusterSweep) readServices(ctx context.Context) error {
	cluster := c.prev.Cluster.ARN
	listed, err := c.cfg.Source.ListServices(ctx, cluster)
	if err != nil {
		return err
	}
	ask := slices.Clone(listed)
	isListed := setOf(listed)
	for _, svc := range c.services {
		if !isListed[svc.ARN] {
			ask = append(ask, svc.ARN)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	found, missing, err := c.cfg.Source.DescribeServices(ctx, cluster, ask)
	answered := make(map[string]bool, len(ask))
	for _, svc := range found {
		answered[svc.ARN] = true
		c.takeService(svc)
	}
	if err != nil {
		return err
	}
	for _, arn := range missing {
		answered[arn] = true
		if !isListed[arn] {
			c.dropService(inventory.LastPart(arn), arn, inventory.Missing)
		}
	}
	for _, arn := range ask {
		if !answered[arn] {
			return fmt.Errorf("describe services of %s: no answer about %s", cluster, arn)
		}
	}
	return nil
}

// takeService takes over one reading of a service. An INACTIVE service counts as one that does not exist: ECS goes on
// describing it for a while, and its name may be used again.
func (c *clusterSweep) takeService(svc *inventory.Service) {
	old := c.services[svc.Name]
	if svc.Status == inventory.StatusInactive {
		if old != nil {
			c.dropService(svc.Name, svc.ARN, inventory.Terminal)
		}
		return
	}
	if old == nil {
		c.appeared = append(c.appeared, svc.ARN)
	} else if reflect.DeepEqual(old, svc) {
		return
	}
	edit(c, &c.services, &c.edited.services, svc.ARN)[svc.Name] = svc
}

func (c *clusterSweep) dropService(name, arn string, why inventory.Evidence) {
	delete(edit(c, &c.services, &c.edited.services, arn), name)
	c.gone[arn] = why
}

// readMembers settles which service a task belongs to. The group in the task is only its claim, which callers of RunTask
// may choose; the service's own list of tasks decides. It is read once for a task, since membership never changes.
func (c *clusterSweep) readMembers(ctx context.Context) error {
	claimed := map[string]bool{}
	for arn, t := range c.scan() {
		if name := t.ServiceName(); name != "" && c.services[name] != nil && c.members[arn] == "" && !t.Stopping() {
			claimed[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(claimed)) {
		arns, err := c.cfg.Source.ListTasks(ctx, c.prev.Cluster.ARN, name)
		if isNotFound(err) && awsapi.Code(err) != "ClusterNotFoundException" {
			continue // the service was deleted meanwhile
		}
		if err != nil {
			return err
		}
		for _, arn := range arns {
			if c.tasks[arn] != nil {
				c.setMember(arn, name)
			}
		}
	}
	return nil
}

// readHosts finds the host addresses of tasks without an address of their own. A failure leaves them without: that
// reading needs permissions of its own, and nothing else should suffer.
func (c *clusterSweep) readHosts(ctx context.Context) {
	if c.cfg.Hosts == nil {
		return
	}
	var ask []string
	for _, t := range c.scan() {
		if t.ContainerInstance != "" && !t.HostAddr.IsValid() && len(t.Addresses()) == 0 && c.state.hosts[t.ContainerInstance] == "" &&
			!slices.Contains(ask, t.ContainerInstance) {
			ask = append(ask, t.ContainerInstance)
		}
	}
	if len(ask) > 0 {
		slices.Sort(ask)
		found, err := c.cfg.Hosts.HostAddresses(ctx, c.prev.Cluster.ARN, ask)
		if err != nil {
			c.cfg.Log.Debug("addresses of ec2 hosts not read", slog.String("cluster", c.prev.Cluster.Name), logattr.Err(err))
		}
		maps.Copy(c.hosts, found)
	}
	for _, t := range c.scan() {
		if t.ContainerInstance == "" || t.HostAddr.IsValid() || len(t.Addresses()) > 0 {
			continue
		}
		if addr := hostAddr(c.hosts[t.ContainerInstance], c.state.hosts[t.ContainerInstance]); addr.IsValid() {
			withHost := *t
			withHost.HostAddr = addr
			c.setTask(&withHost)
		}
	}
}
