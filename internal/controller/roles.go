package controller

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Limits of what a role alone may say.
const (
	// maxRoleUseAge is how old the last complete sweep may be; with a long sweep interval it is two of them.
	maxRoleUseAge = 10 * time.Minute
	// maxRoleUsers are remembered of a role; more than one is too many already.
	maxRoleUsers = 8
)

// roleUses is who uses which role in an account and region. It is made when it is first asked for, cluster by cluster, and
// again for a cluster that was read again: it costs nothing where nobody asks.
type roleUses struct {
	mu       sync.Mutex
	clusters map[string]*clusterRoles // guarded by mu; by ARN
}

// clusterRoles is who uses which role in one cluster, as it was at one moment.
type clusterRoles struct {
	view     *inventory.ClusterView
	tasks    map[string][]*inventory.Task    // by the role's name; those that have not ended
	services map[string][]*inventory.Service // by the role's name of their next task, which may come at any time
	users    map[string][]string             // by the role's name; made of the above when it is asked for
	unread   string                          // a task or service whose role is not known, or ""
}

// issuer returns the issuer that is pinned to an account whose web identity tokens are accepted.
func (a *accounts) issuer(account string) (string, bool) {
	for _, s := range a.list() {
		if w := s.account.WebIdentity; s.id == account && w != nil {
			return w.Issuer, w.Enabled
		}
	}
	return "", false
}

// RoleUse implements broker.Roles: the users of a role in all regions of the account, if every one was read lately.
func (a *accounts) RoleUse(account, roleName string) ([]string, error) {
	maxAge := max(maxRoleUseAge, 2*time.Duration(a.cfg.Settings.SweepInterval))
	var users []string
	for _, s := range a.list() {
		if s.id != account {
			continue
		}
		snap := s.reflector.Snapshot()
		if snap.SweptAt.IsZero() {
			return nil, fmt.Errorf("%w: %s was not read completely yet", broker.ErrUnavailable, s.region)
		}
		if age := a.cfg.Now().Sub(snap.SweptAt); age > maxAge {
			return nil, fmt.Errorf("%w: %s was read completely %v ago, at most %v is accepted", broker.ErrUnavailable, s.region, age.Round(time.Second), maxAge)
		}
		some, err := s.roles.of(roleName, snap, func(v inventory.TaskView) string { return a.userOf(s, snap, v) })
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %w", broker.ErrUnavailable, s.region, err)
		}
		users = append(users, some...)
	}
	slices.Sort(users)
	return slices.Compact(users), nil
}

// userOf names what has a role: the service account, or what is none.
func (a *accounts) userOf(s *scope, snap *inventory.Snapshot, v inventory.TaskView) string {
	place, err := a.rules.Place(s.input(snap), v)
	if err == nil && place.ServiceAccount != "" && place.Namespace != "" {
		return place.Namespace + "/" + place.ServiceAccount
	}
	what := "task " + v.Task.ID()
	if v.Service != nil {
		what = "service " + v.Service.Name
	}
	return fmt.Sprintf("%s of cluster %s, which names no service account", what, v.Cluster.Name)
}

func (u *roleUses) of(roleName string, snap *inventory.Snapshot, userOf func(inventory.TaskView) string) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := make(map[string]*clusterRoles, len(snap.Clusters))
	var users []string
	for arn, view := range snap.Clusters {
		c := u.clusters[arn]
		if c == nil || c.view != view || c.unread != "" {
			c = rolesIn(snap, view)
		}
		next[arn] = c
		if c.unread != "" {
			return nil, fmt.Errorf("the role of %s is not known yet", c.unread)
		}
		users = append(users, c.usersOf(roleName, snap, userOf)...)
	}
	u.clusters = next
	return users, nil
}

// rolesIn sorts what is in a cluster by role.
func rolesIn(snap *inventory.Snapshot, view *inventory.ClusterView) *clusterRoles {
	c := &clusterRoles{view: view, tasks: map[string][]*inventory.Task{}, services: map[string][]*inventory.Service{}, users: map[string][]string{}}
	for _, svc := range view.Services {
		def := snap.Definitions[svc.TaskDefinition]
		if def == nil {
			c.unread = "service " + svc.Name
			continue
		}
		role := inventory.LastPart(def.TaskRoleARN)
		c.services[role] = append(c.services[role], svc)
	}
	for _, t := range view.Tasks {
		v := inventory.TaskView{Task: t, Definition: snap.Definitions[t.TaskDefinitionARN]}
		switch {
		case lifeOf(t) == broker.Ended:
		case v.Definition == nil && t.TaskRoleOverride == "":
			c.unread = "task " + t.ID()
		default:
			role := inventory.LastPart(v.RoleARN())
			c.tasks[role] = append(c.tasks[role], t)
		}
	}
	return c
}

// usersOf names the users of a role in the cluster, as many as are needed to know that they are too many.
func (c *clusterRoles) usersOf(roleName string, snap *inventory.Snapshot, userOf func(inventory.TaskView) string) []string {
	if users, ok := c.users[roleName]; ok {
		return users
	}
	var users []string
	add := func(v inventory.TaskView) {
		if len(users) >= maxRoleUsers {
			return
		}
		if user := userOf(v); !slices.Contains(users, user) {
			users = append(users, user)
		}
	}
	for _, svc := range c.services[roleName] {
		next := inventory.Task{ClusterARN: svc.ClusterARN, TaskDefinitionARN: svc.TaskDefinition}
		add(inventory.TaskView{
			Account: snap.Account, Region: snap.Region, Cluster: c.view.Cluster, Service: svc, Task: &next, Definition: snap.Definitions[svc.TaskDefinition],
		})
	}
	for _, t := range c.tasks[roleName] {
		add(snap.View(c.view, t))
	}
	if len(c.services[roleName])+len(c.tasks[roleName]) > 0 { // names that nobody has are the callers' own, and without end
		c.users[roleName] = users
	}
	return users
}
