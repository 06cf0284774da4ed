package ecs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// The rules by which a snapshot changes:
//
//   - Something new is taken up at once.
//   - Of two readings of one task the one with the higher version stands, whichever came later.
//   - A task or service that a list no longer has is asked for by its ARN. It goes when ECS describes it as stopped or
//     inactive, or answers MISSING; if ECS describes it as running the list was stale, and it stays.
//   - A cluster goes when ECS describes it as inactive or answers MISSING; without its opt-in tag, or when its lists
//     say that it does not exist, only when a second look agrees.
//   - Whatever could not be read keeps its last state, and its cluster is marked incomplete. A cluster that fails is
//     left alone for a while that doubles from 2 s to 5 min; the others are not delayed.

// state is what sweeps remember. Clusters are changed by one goroutine each, the rest by the sweep itself.
type state struct {
	clusters map[string]*clusterState
	defs     map[string]*definition
	hosts    map[string]string // private address by container instance ARN

	// suspects are clusters that no list has, and that yet have tasks or services that live; each with how often it
	// was described without being opted in.
	suspects map[string]int

	listFailures int
	listAfter    time.Time
	listErr      error

	gone      map[string]inventory.Evidence
	goneOrder []string

	// Since the last snapshot.
	defsChanged, goneChanged bool
}

type definition struct {
	def  *inventory.TaskDefinition // nil when ECS does not know it
	read time.Time
}

type clusterState struct {
	view     *inventory.ClusterView // the published one, never changed
	optedOut int                    // times in a row that it was described without its opt-in tag
	unknown  int                    // times in a row that its lists said there is no such cluster
	failures int
	after    time.Time // not to be read before
}

func newState() *state {
	return &state{clusters: map[string]*clusterState{}, defs: map[string]*definition{}, hosts: map[string]string{}, suspects: map[string]int{}, gone: map[string]inventory.Evidence{}}
}

// forget records why something went, and forgets the oldest such record when there are too many.
func (st *state) forget(arn string, why inventory.Evidence) {
	if _, ok := st.gone[arn]; !ok {
		st.goneOrder = append(st.goneOrder, arn)
	}
	st.gone[arn], st.goneChanged = why, true
	for len(st.gone) > maxGone && len(st.goneOrder) > 0 {
		delete(st.gone, st.goneOrder[0])
		st.goneOrder = st.goneOrder[1:]
	}
}

// revive removes the record of an ARN that is back: names of services and clusters are used again.
func (st *state) revive(arn string) {
	if _, ok := st.gone[arn]; ok {
		delete(st.gone, arn)
		st.goneChanged = true
		st.goneOrder = slices.DeleteFunc(st.goneOrder, func(s string) bool { return s == arn })
	}
}

// sweep is one look at everything.
type sweep struct {
	cfg      *Config
	state    *state
	full     bool
	now      time.Time
	only     map[string]bool // if not nil, the clusters to look at; the rest stays as it is
	keys     hints           // if not nil, what to read of these
	expected []string
	early    func(*inventory.Snapshot) // if not nil, is given what is known before the clusters have been read

	mu   sync.Mutex
	errs []error // guarded by mu; what made the sweep incomplete
}

func (s *sweep) fail(err error) {
	if err == nil {
		err = errors.New("not read")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// run returns the next snapshot.
func (s *sweep) run(ctx context.Context, before *inventory.Snapshot) *inventory.Snapshot {
	if s.full {
		s.readClusters(ctx)
	}
	if s.early != nil && s.state.listErr == nil && ctx.Err() == nil {
		// The first sweep of a large account takes long. Knowing its clusters is enough to look up a task in them.
		s.errs = []error{errFirstSweep}
		known := s.snapshot(before)
		s.early(known)
		again := *known
		again.Sweeps, s.errs = before.Sweeps, nil // it is still the same sweep
		before = &again
	}
	if s.state.listErr != nil && s.only == nil {
		s.fail(s.state.listErr)
	}
	arns := slices.Sorted(maps.Keys(s.state.clusters))
	results := make([]*clusterResult, len(arns))
	var g errgroup.Group
	g.SetLimit(s.cfg.Parallel)
	for i, arn := range arns {
		cs := s.state.clusters[arn]
		if s.only != nil && !s.only[arn] {
			continue
		}
		if s.now.Before(cs.after) {
			if s.keys == nil {
				s.fail(cs.view.Err)
			}
			continue
		}
		g.Go(func() error {
			c := &clusterSweep{sweep: s, prev: cs.view}
			if s.keys != nil {
				results[i] = c.runKeyed(ctx, s.keys[arn])
			} else {
				results[i] = c.run(ctx)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions above return no error; failures are recorded
	for i, arn := range arns {
		if results[i] != nil {
			s.settle(arn, results[i])
		}
	}
	s.askExpected(ctx)
	s.readDefinitions(ctx)
	return s.snapshot(before)
}

// readClusters finds the opted-in clusters, and lets go of those that are gone.
func (s *sweep) readClusters(ctx context.Context) {
	st := s.state
	if s.now.Before(st.listAfter) {
		return
	}
	found, missing, err := s.listClusters(ctx)
	st.listErr = err
	if err != nil {
		st.listFailures++
		st.listAfter = s.now.Add(backoff(st.listFailures))
		return
	}
	st.listFailures = 0
	for _, c := range found {
		cs := st.clusters[c.ARN]
		optedIn := c.Status == inventory.StatusActive && s.optedIn(c)
		switch {
		case cs == nil && optedIn:
			st.revive(c.ARN)
			delete(st.suspects, c.ARN)
			st.clusters[c.ARN] = &clusterState{view: &inventory.ClusterView{Cluster: c}}
		case cs == nil:
			s.clear(c)
		case optedIn:
			cs.optedOut = 0
			if !sameCluster(cs.view.Cluster, c) {
				v := *cs.view
				v.Cluster = c
				cs.view = &v
			}
		case c.Status == inventory.StatusActive || c.Status == "PROVISIONING":
			if cs.optedOut++; cs.optedOut >= requiredSweeps {
				s.dropCluster(c.ARN, cs, inventory.OptedOut)
			}
		default: // DEPROVISIONING, FAILED, INACTIVE
			s.dropCluster(c.ARN, cs, inventory.ClusterGone)
		}
	}
	for _, arn := range missing {
		if cs := st.clusters[arn]; cs != nil {
			s.dropCluster(arn, cs, inventory.ClusterGone)
		} else if _, ok := st.suspects[arn]; ok {
			delete(st.suspects, arn)
			st.forget(arn, inventory.ClusterGone)
		}
	}
}

// clear settles a suspected cluster that is described and turns out to be none of ours.
func (s *sweep) clear(c *inventory.Cluster) {
	n, ok := s.state.suspects[c.ARN]
	switch {
	case !ok:
	case c.Status != inventory.StatusActive:
		delete(s.state.suspects, c.ARN)
		s.state.forget(c.ARN, inventory.ClusterGone)
	case n+1 >= requiredSweeps:
		delete(s.state.suspects, c.ARN)
		s.state.forget(c.ARN, inventory.OptedOut)
	default:
		s.state.suspects[c.ARN] = n + 1
		s.fail(fmt.Errorf("cluster %s has lost its opt-in tag", c.Name))
	}
}

// suspect notes a cluster of which something lives though no list has the cluster. Until it is described nothing can be
// said about what is in it.
func (s *sweep) suspect(clusterARN, what string) {
	if s.state.gone[clusterARN].Positive() || len(s.state.suspects) >= maxSuspects {
		return
	}
	if _, ok := s.state.suspects[clusterARN]; !ok {
		s.state.suspects[clusterARN] = 0
	}
	s.fail(fmt.Errorf("%s lives, but its cluster is not in the list of clusters", what))
}

// listClusters describes every listed cluster and every known one that the list lacks.
func (s *sweep) listClusters(ctx context.Context) (found []*inventory.Cluster, missing []string, err error) {
	arns, err := s.cfg.Source.ListClusters(ctx)
	if err != nil {
		return nil, nil, err
	}
	listed := setOf(arns)
	for arn := range s.state.clusters {
		if !listed[arn] {
			arns = append(arns, arn)
		}
	}
	for arn := range s.state.suspects {
		if !listed[arn] && s.state.clusters[arn] == nil {
			arns = append(arns, arn)
		}
	}
	if len(arns) == 0 {
		return nil, nil, nil
	}
	found, missing, err = s.cfg.Source.DescribeClusters(ctx, arns)
	if err != nil {
		return nil, nil, err
	}
	answered := setOf(missing)
	for _, c := range found {
		answered[c.ARN] = true
	}
	for _, arn := range arns {
		if !answered[arn] {
			return nil, nil, fmt.Errorf("describe clusters: no answer about %s", arn)
		}
	}
	return found, missing, nil
}

func (s *sweep) optedIn(c *inventory.Cluster) bool {
	return slices.ContainsFunc(s.cfg.OptInTags, func(tag string) bool { return c.Tags[tag] == "true" })
}

func (s *sweep) dropCluster(arn string, cs *clusterState, why inventory.Evidence) {
	for task := range cs.view.Tasks {
		s.state.forget(task, why)
	}
	for _, svc := range cs.view.Services {
		s.state.forget(svc.ARN, why)
	}
	s.state.forget(arn, why)
	delete(s.state.clusters, arn)
}

// settle takes over what the look at one cluster brought.
func (s *sweep) settle(arn string, res *clusterResult) {
	cs := s.state.clusters[arn]
	if res.keyed {
		s.settleKeyed(cs, res)
		return
	}
	if !res.clusterGone {
		cs.unknown = 0
	} else if cs.unknown++; cs.unknown >= requiredSweeps {
		s.dropCluster(arn, cs, inventory.ClusterGone)
		return
	}
	s.remember(res)
	if res.err != nil {
		cs.failures++
		cs.after = s.now.Add(backoff(cs.failures))
		s.fail(res.err)
	} else {
		cs.failures, cs.after = 0, time.Time{}
	}
	cs.view = res.view
}

// settleKeyed takes over what a look at some things of a cluster brought.
func (s *sweep) settleKeyed(cs *clusterState, res *clusterResult) {
	s.remember(res)
	cs.view = res.view
	if res.err != nil {
		s.fail(res.err)
	}
}

// remember takes over what a look says about things that went or came.
func (s *sweep) remember(res *clusterResult) {
	for gone, why := range res.gone {
		s.state.forget(gone, why)
	}
	for _, arn := range res.appeared {
		s.state.revive(arn)
	}
	maps.Copy(s.state.hosts, res.hosts)
}

// snapshot builds the snapshot to publish. Unchanged clusters share their maps with the one before.
func (s *sweep) snapshot(before *inventory.Snapshot) *inventory.Snapshot {
	snap := &inventory.Snapshot{
		Account: before.Account, Region: before.Region, Partition: before.Partition,
		Clusters: make(map[string]*inventory.ClusterView, len(s.state.clusters)),
		Sweeps:   before.Sweeps + 1, CompleteSweeps: before.CompleteSweeps, SweptAt: before.SweptAt, Version: before.Version,
	}
	changed := len(before.Clusters) != len(s.state.clusters)
	var others []string
	for arn := range before.Clusters {
		if s.state.clusters[arn] == nil {
			others = append(others, arn)
		}
	}
	for arn, cs := range s.state.clusters {
		snap.Clusters[arn] = cs.view
		old := before.Clusters[arn]
		if old != cs.view {
			others = append(others, arn)
		}
		changed = changed || old == nil || old != cs.view && !sameContent(old, cs.view)
	}
	snap.History = before.History.Next(others...)
	snap.Definitions, snap.Gone = before.Definitions, before.Gone
	if s.state.defsChanged {
		snap.Definitions, s.state.defsChanged = map[string]*inventory.TaskDefinition{}, false
		for arn, d := range s.state.defs {
			if d.def != nil {
				snap.Definitions[arn] = d.def
			}
		}
		changed = changed || !maps.Equal(snap.Definitions, before.Definitions)
	}
	if s.state.goneChanged {
		snap.Gone, s.state.goneChanged = maps.Clone(s.state.gone), false
		changed = changed || !maps.Equal(snap.Gone, before.Gone)
	}
	if changed {
		snap.Version++
	}
	if (len(s.errs) == 0 || s.keys != nil) && s.only != nil {
		snap.Complete, snap.Err = before.Complete, before.Err // a look at some clusters says nothing about the others
		return snap
	}
	if len(s.errs) == 0 {
		snap.Complete, snap.CompleteSweeps, snap.SweptAt = true, before.CompleteSweeps+1, s.cfg.Now()
		return snap
	}
	slices.SortFunc(s.errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	snap.Err = s.errs[0]
	if more := len(s.errs) - 1; more > 0 {
		snap.Err = fmt.Errorf("%w (and %d more)", s.errs[0], more)
	}
	return snap
}

// readDefinitions reads the task definitions that are referred to and not known yet, reads the tags of some old ones
// again (a revision never changes, but its tags may), and drops those that nothing refers to.
func (s *sweep) readDefinitions(ctx context.Context) {
	users := map[string][]*clusterState{}
	for arn, cs := range s.state.clusters {
		if s.only != nil && !s.only[arn] {
			continue // its definitions were read when it was looked at
		}
		for _, t := range cs.view.Tasks {
			addUser(users, t.TaskDefinitionARN, cs)
		}
		for _, svc := range cs.view.Services {
			addUser(users, svc.TaskDefinition, cs)
		}
	}
	if s.only == nil {
		maps.DeleteFunc(s.state.defs, func(arn string, _ *definition) bool {
			unused := users[arn] == nil
			s.state.defsChanged = s.state.defsChanged || unused
			return unused
		})
	}
	var want, old []string
	for arn := range users {
		switch d := s.state.defs[arn]; {
		case d == nil:
			want = append(want, arn)
		case s.full && s.now.Sub(d.read) >= definitionTTL:
			old = append(old, arn)
		}
	}
	slices.Sort(want)
	slices.SortFunc(old, func(a, b string) int {
		return cmp.Or(s.state.defs[a].read.Compare(s.state.defs[b].read), cmp.Compare(a, b))
	})
	want = append(want, old[:min(len(old), maxRefreshes)]...)
	got := make([]*inventory.TaskDefinition, len(want))
	errs := make([]error, len(want))
	var g errgroup.Group
	g.SetLimit(s.cfg.Parallel)
	for i, arn := range want {
		g.Go(func() error {
			got[i], errs[i] = s.cfg.Source.DescribeTaskDefinition(ctx, arn)
			return nil
		})
	}
	_ = g.Wait() // the functions above return no error
	for i, arn := range want {
		switch {
		case errs[i] == nil, isNotFound(errs[i]):
			if old := s.state.defs[arn]; old != nil && reflect.DeepEqual(old.def, got[i]) {
				got[i] = old.def
			}
			s.state.defs[arn], s.state.defsChanged = &definition{def: got[i], read: s.now}, true
		case s.state.defs[arn] == nil:
			s.fail(errs[i])
			for _, cs := range users[arn] {
				v := *cs.view
				v.Complete, v.Err = false, errs[i]
				cs.view = &v
			}
		}
	}
}

func addUser(users map[string][]*clusterState, arn string, cs *clusterState) {
	if arn != "" && !slices.Contains(users[arn], cs) {
		users[arn] = append(users[arn], cs)
	}
}

var errFirstSweep = errors.New("the first sweep has not ended yet")

var errClusterUnknown = errors.New("ecs does not know the cluster")
