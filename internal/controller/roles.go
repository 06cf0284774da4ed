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
	maxRoleUseAge = 5 * time.Minute
	// maxRoleUsers are remembered of a role; more than one is too many already.
	maxRoleUsers = 8
)

// roleUses is who uses which role in an account and region. It is made when it is first asked for and when the snapshot
// has changed, so that it costs nothing where nobody asks.
type roleUses struct {
	mu      sync.Mutex
	made    bool                // guarded by mu
	version uint64              // guarded by mu; of the snapshot that byRole is of
	byRole  map[string][]string // guarded by mu; users by the role's name
	unread  string              // guarded by mu; a task or service whose role is not known, or ""
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
	if !u.made || u.version != snap.Version {
		u.readLocked(snap, userOf)
	}
	if u.unread != "" {
		return nil, fmt.Errorf("the role of %s is not known yet", u.unread)
	}
	return u.byRole[roleName], nil
}

// readLocked goes through all tasks that have not ended, and through the services, whose next task may come at any time.
func (u *roleUses) readLocked(snap *inventory.Snapshot, userOf func(inventory.TaskView) string) {
	u.made, u.version, u.byRole, u.unread = true, snap.Version, map[string][]string{}, ""
	add := func(v inventory.TaskView, what string) {
		if v.Definition == nil && v.Task.TaskRoleOverride == "" {
			u.unread = what
			return
		}
		role := inventory.LastPart(v.RoleARN())
		if role == "" {
			return // without a role there is nobody to prove it
		}
		users := u.byRole[role]
		if len(users) >= maxRoleUsers {
			return
		}
		if user := userOf(v); !slices.Contains(users, user) {
			u.byRole[role] = append(users, user)
		}
	}
	for _, c := range snap.SortedClusters() {
		for _, svc := range c.SortedServices() {
			next := inventory.Task{ClusterARN: c.Cluster.ARN, TaskDefinitionARN: svc.TaskDefinition}
			add(inventory.TaskView{
				Account: snap.Account, Region: snap.Region, Cluster: c.Cluster, Service: svc, Task: &next, Definition: snap.Definitions[svc.TaskDefinition],
			}, "service "+svc.Name)
		}
		for _, t := range c.SortedTasks() {
			if lifeOf(t) != broker.Ended {
				add(snap.View(c, t), "task "+t.ID())
			}
		}
	}
}
