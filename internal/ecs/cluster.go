package ecs

import (
	"context"
	"fmt"
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

	tasks    map[string]*inventory.Task
	services map[string]*inventory.Service
	members  map[string]string
	gone     map[string]inventory.Evidence
	appeared []string
	hosts    map[string]string
}

// clusterResult is what a look at one cluster brought.
type clusterResult struct {
	view        *inventory.ClusterView
	gone        map[string]inventory.Evidence
	appeared    []string
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
	res := &clusterResult{gone: c.gone, appeared: c.appeared, hosts: c.hosts, err: err}
	if isNotFound(err) {
		res.clusterGone, res.err = true, fmt.Errorf("%s: %w", c.prev.Cluster.Name, errClusterUnknown)
	}
	v := c.result()
	if v.Complete, v.Err = res.err == nil, res.err; v.Complete {
		v.CompleteSweeps++
	}
	res.view = v
	return res
}

// begin takes over what was known before.
func (c *clusterSweep) begin() {
	c.tasks, c.services, c.members = maps.Clone(c.prev.Tasks), maps.Clone(c.prev.Services), maps.Clone(c.prev.Members)
	if c.tasks == nil {
		c.tasks, c.services, c.members = map[string]*inventory.Task{}, map[string]*inventory.Service{}, map[string]string{}
	}
	c.gone, c.hosts = map[string]inventory.Evidence{}, map[string]string{}
}

// result returns the view of what is known now. What did not change is shared with the view before.
func (c *clusterSweep) result() *inventory.ClusterView {
	v := *c.prev
	if !maps.Equal(c.tasks, c.prev.Tasks) || v.Tasks == nil {
		v.Tasks = c.tasks
	}
	if !maps.Equal(c.services, c.prev.Services) || v.Services == nil {
		v.Services = c.services
	}
	if !maps.Equal(c.members, c.prev.Members) || v.Members == nil {
		v.Members = c.members
	}
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
	c.tasks[t.ARN] = t
}

func (c *clusterSweep) dropTask(arn string, why inventory.Evidence) {
	delete(c.tasks, arn)
	delete(c.members, arn)
	c.gone[arn] = why
}

// strangers reports whether a task claims a service that is not known yet.
func (c *clusterSweep) strangers() bool {
	for _, t := range c.tasks {
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
	c.services[svc.Name] = svc
}

func (c *clusterSweep) dropService(name, arn string, why inventory.Evidence) {
	delete(c.services, name)
	c.gone[arn] = why
}

// readMembers settles which service a task belongs to. The group in the task is only its claim, which callers of RunTask
// may choose; the service's own list of tasks decides. It is read once for a task, since membership never changes.
func (c *clusterSweep) readMembers(ctx context.Context) error {
	claimed := map[string]bool{}
	for arn, t := range c.tasks {
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
				c.members[arn] = name
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
	for _, t := range c.tasks {
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
	for arn, t := range c.tasks {
		if t.ContainerInstance == "" || t.HostAddr.IsValid() || len(t.Addresses()) > 0 {
			continue
		}
		if addr := hostAddr(c.hosts[t.ContainerInstance], c.state.hosts[t.ContainerInstance]); addr.IsValid() {
			withHost := *t
			withHost.HostAddr = addr
			c.tasks[arn] = &withHost
		}
	}
}
