package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// accounts holds a reflector for each account and region, and answers the broker's questions about tasks from them. Which
// accounts there are may change at any time.
type accounts struct {
	cfg     Config
	rules   discovery.Config
	started time.Time
	scopes  atomic.Pointer[[]*scope]
	relist  chan struct{} // holds one token after the list has changed

	mu   sync.Mutex
	wake chan struct{} // guarded by mu; closed and replaced after each sweep
}

// scope is one account in one region. It is not changed once it was made.
type scope struct {
	account   settings.Account
	id        string
	region    string
	network   string
	reflector *ecs.Reflector
	roles     *roleUses
}

func newAccounts(cfg Config) (*accounts, error) {
	a := &accounts{
		cfg: cfg, rules: discovery.Config{DefaultServiceAccount: cfg.Settings.DefaultServiceAccount}, wake: make(chan struct{}), started: cfg.Now(),
		relist: make(chan struct{}, 1),
	}
	a.scopes.Store(&[]*scope{})
	if errs := a.set(cfg.Settings.Platforms.ECS.Accounts); len(errs) > 0 {
		return nil, slices.Collect(maps.Values(errs))[0]
	}
	return a, nil
}

// list returns the accounts and regions that there are now.
func (a *accounts) list() []*scope { return *a.scopes.Load() }

// set makes the accounts those given. A reflector whose account is still read in the same way is kept, with all that it
// knows. An account that cannot be set up is left out; errors are by its id.
func (a *accounts) set(accts []settings.Account) map[string]error {
	errs := map[string]error{}
	var next []*scope
	for _, acct := range accts {
		some, err := a.scopesOf(acct)
		if err != nil {
			errs[acct.AccountID()] = err
			continue
		}
		next = append(next, some...)
	}
	a.scopes.Store(&next)
	select {
	case a.relist <- struct{}{}:
	default:
	}
	a.wakeUp()
	return errs
}

func (a *accounts) scopesOf(acct settings.Account) ([]*scope, error) {
	regions := acct.Regions
	if len(regions) == 0 {
		if a.cfg.Region == "" {
			return nil, configError("account %s lists no regions and the controller has none of its own: set AWS_REGION", acct.AccountID())
		}
		regions = []string{a.cfg.Region}
	}
	var out []*scope
	for _, region := range regions {
		s := &scope{account: acct, id: acct.AccountID(), region: region, network: cmp.Or(acct.Network, a.cfg.Settings.Network)}
		for _, old := range a.list() {
			if old.id == s.id && old.region == region && readAlike(old.account, acct) {
				s.reflector = old.reflector
			}
		}
		if s.reflector == nil {
			var err error
			if s.reflector, err = a.reflect(acct, region); err != nil {
				return nil, fmt.Errorf("account %s in %s: %w", s.id, region, err)
			}
		}
		s.roles = &roleUses{}
		out = append(out, s)
	}
	return out, nil
}

// readAlike reports whether two configurations of an account make no difference to how it is read.
func readAlike(a, b settings.Account) bool {
	return a.Role == b.Role && a.ExternalID == b.ExternalID && slices.Equal(a.DiscoveryTags, b.DiscoveryTags)
}

func (a *accounts) reflect(acct settings.Account, region string) (*ecs.Reflector, error) {
	source, err := a.cfg.Source(acct, region)
	if err != nil {
		return nil, err
	}
	var hosts ecs.HostSource
	if a.cfg.Hosts != nil {
		if hosts, err = a.cfg.Hosts(acct, region); err != nil {
			return nil, err
		}
	}
	tags := acct.DiscoveryTags
	if len(tags) == 0 {
		tags = a.cfg.Settings.DiscoveryTags
	}
	id, interval := acct.AccountID(), time.Duration(a.cfg.Settings.SweepInterval)
	return ecs.New(ecs.Config{
		Account: id, Region: region, Partition: acct.Partition(), Source: source, Hosts: hosts, OptInTags: tags,
		Interval: interval, FullInterval: fullInterval(interval), LookupMaxAge: a.cfg.Options.LookupMaxAge,
		Log: a.cfg.Log.With(slog.String("scope", "discovery"), slog.String("account", id), slog.String("region", region)),
		Now: a.cfg.Now, Observe: a.observe,
	})
}

// run runs the reflectors and the readers of event queues of the accounts that there are, until ctx ends.
func (a *accounts) run(ctx context.Context) error {
	running := map[*ecs.Reflector]context.CancelFunc{}
	queues := map[settings.Events]context.CancelFunc{}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		wanted, wantedQueues := map[*ecs.Reflector]bool{}, map[settings.Events]settings.Account{}
		for _, s := range a.list() {
			wanted[s.reflector] = true
			if e := s.account.Events; e != nil && a.cfg.Queue != nil {
				if _, ok := wantedQueues[*e]; !ok || e.OwnedBy(s.id) {
					wantedQueues[*e] = s.account // whose role reads it
				}
			}
		}
		for r := range wanted {
			if running[r] == nil {
				each, cancel := context.WithCancel(ctx)
				running[r] = cancel
				wg.Go(func() { _ = r.Run(each) }) // returns nil when each ends
			}
		}
		for q, acct := range wantedQueues {
			if queues[q] == nil {
				each, cancel := context.WithCancel(ctx)
				queues[q] = cancel
				wg.Go(func() { a.listen(each, acct, q) })
			}
		}
		for r, cancel := range running {
			if !wanted[r] {
				cancel()
				delete(running, r)
			}
		}
		for q, cancel := range queues {
			if _, ok := wantedQueues[q]; !ok {
				cancel()
				delete(queues, q)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-a.relist:
		}
	}
}

// fullInterval is how often clusters and services are read again: new ones matter less than tasks that come and go, but
// with a short interval (the lab's) they should not take a minute.
func fullInterval(interval time.Duration) time.Duration {
	return min(time.Minute, 6*interval)
}

func (a *accounts) observe(r ecs.SweepReport) {
	a.cfg.Metrics.Sweep(r.Complete, r.Took)
	// Every sweep wakes the planner, not only those that changed something: rules count complete sweeps.
	a.wakeUp()
}

func (a *accounts) wakeUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.wake)
	a.wake = make(chan struct{})
}

// changed returns a channel that closes after the next sweep of any account.
func (a *accounts) changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wake
}

// versions identifies what the snapshots say, without when they said it.
func (a *accounts) versions() string {
	var b strings.Builder
	for _, s := range a.list() {
		snap := s.reflector.Snapshot()
		fmt.Fprintf(&b, "%p %d %t %v\n", s, snap.Version, snap.Complete, snap.Err)
	}
	return b.String()
}

// age returns the age of the oldest complete sweep.
func (a *accounts) age(now time.Time) time.Duration {
	var oldest time.Duration
	for _, s := range a.list() {
		at := s.reflector.Snapshot().SweptAt
		if at.IsZero() {
			at = a.started
		}
		oldest = max(oldest, now.Sub(at))
	}
	return oldest
}

// inputs returns what discovery works on, taken at one moment.
func (a *accounts) inputs() ([]discovery.Input, []*inventory.Snapshot) {
	var in []discovery.Input
	var snaps []*inventory.Snapshot
	for _, s := range a.list() {
		snap := s.reflector.Snapshot()
		snaps = append(snaps, snap)
		in = append(in, s.input(snap))
	}
	return in, snaps
}

func (s *scope) input(snap *inventory.Snapshot) discovery.Input {
	return discovery.Input{Snapshot: snap, Domain: s.account.Domain, Network: s.network, Namespaces: s.account.Namespaces, AllowedNamespaces: s.account.AllowedNamespaces}
}

// expect tells the reflectors which tasks and services somebody would like to know the end of.
func (a *accounts) expect(arns []string) {
	for _, s := range a.list() {
		var ours []string
		for _, arn := range arns {
			if p, err := inventory.ParseARN(arn); err == nil && p.Account == s.id && p.Region == s.region {
				ours = append(ours, arn)
			}
		}
		if len(ours) > 0 {
			s.reflector.Expect(ours...)
		}
	}
}

// FindTask implements broker.Directory: what the snapshots hold first, then ECS itself, the hinted region before others.
func (a *accounts) FindTask(ctx context.Context, account, region, id string) (broker.Task, error) {
	var mine []*scope
	for _, s := range a.list() {
		switch {
		case s.id != account:
		case s.region == region:
			mine = append([]*scope{s}, mine...)
		default:
			mine = append(mine, s)
		}
	}
	if len(mine) == 0 {
		return broker.Task{}, broker.ErrAccountUnknown
	}
	for _, s := range mine {
		if _, ok := s.reflector.Snapshot().FindTask(id); ok {
			mine = []*scope{s}
			break
		}
	}
	var errs []error
	for _, s := range mine {
		v, err := s.reflector.Lookup(ctx, id)
		if err == nil {
			return a.task(s, v)
		}
		if !errors.Is(err, ecs.ErrTaskNotFound) {
			errs = append(errs, err)
		}
	}
	switch err := errors.Join(errs...); {
	case err == nil:
		return broker.Task{}, broker.ErrTaskUnknown
	case errors.Is(err, ecs.ErrLookupLimited):
		return broker.Task{}, broker.ErrLimited
	default:
		return broker.Task{}, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
}

func (a *accounts) task(s *scope, v inventory.TaskView) (broker.Task, error) {
	place, err := a.rules.Place(s.input(s.reflector.Snapshot()), v)
	if err != nil {
		return broker.Task{}, fmt.Errorf("%w: %w", broker.ErrPlacement, err)
	}
	return broker.Task{
		ARN: v.Task.ARN, ID: v.Task.ID(), ClusterARN: v.Cluster.ARN, RoleARN: v.RoleARN(), LastStatus: v.Task.LastStatus, DesiredStatus: v.Task.DesiredStatus,
		Namespace: place.Namespace, ServiceAccount: place.ServiceAccount, WorkloadName: place.WorkloadName,
	}, nil
}

// Life implements broker.Lives. A task ends when ECS says so, or is absent from complete sweeps; it does not end because
// AWS cannot be asked.
func (a *accounts) Life(taskARN string) broker.Life {
	arn, err := inventory.ParseARN(taskARN)
	if err != nil {
		return broker.Unknown
	}
	for _, s := range a.list() {
		if s.id != arn.Account || s.region != arn.Region {
			continue
		}
		snap := s.reflector.Snapshot()
		clusterARN := arn
		clusterARN.Resource = "cluster/" + inventory.ClusterOf(taskARN)
		if c := snap.Clusters[clusterARN.String()]; c != nil {
			if t := c.Tasks[taskARN]; t != nil {
				return lifeOf(t)
			}
		} else if snap.Gone[clusterARN.String()].Positive() {
			return broker.Ended
		}
		if snap.Gone[taskARN] != inventory.NoEvidence {
			return broker.Ended
		}
		if snap.CompleteSweeps > 0 {
			s.reflector.Expect(taskARN)
		}
	}
	return broker.Unknown
}

// lifeOf keeps a draining task alive until its containers have stopped: it may still need istiod to finish its work.
func lifeOf(t *inventory.Task) broker.Life {
	switch t.LastStatus {
	case inventory.TaskStopped, inventory.TaskDeleted, inventory.TaskDeprovisioning:
		return broker.Ended
	}
	return broker.Alive
}

// problems returns what is wrong with whole accounts.
func (a *accounts) problems() []discovery.Problem {
	var out []discovery.Problem
	for _, s := range a.list() {
		snap := s.reflector.Snapshot()
		object := s.id + " in " + s.region
		switch {
		case snap.Err != nil:
			p := discovery.Problem{Object: object, Code: codeOf(snap.Err), Cause: snap.Err.Error()}
			if entry, ok := diag.Lookup(p.Code); ok {
				p.Fix = entry.Fix
			}
			if cause, fix := awsapi.Advice(snap.Err, s.account.Role); fix != "" {
				p.Cause, p.Fix = cause+" ("+snap.Err.Error()+")", fix
			}
			out = append(out, p)
		case snap.CompleteSweeps > 0 && len(snap.Clusters) == 0:
			entry, _ := diag.Lookup(diag.NoClusterOptedIn)
			out = append(out, discovery.Problem{Object: object, Code: diag.NoClusterOptedIn, Cause: entry.Cause, Fix: entry.Fix})
		}
	}
	return out
}

func codeOf(err error) diag.Code {
	switch awsapi.KindOf(err) {
	case awsapi.AccessDenied:
		if strings.Contains(err.Error(), "AssumeRole") { // STS names the action it refused nowhere but in the text
			return diag.AssumeRoleDenied
		}
		return diag.AccountDenied
	case awsapi.Throttled:
		return diag.AccountThrottled
	case awsapi.Unavailable:
		return diag.AccountUnreachable
	}
	return diag.SweepIncomplete
}
