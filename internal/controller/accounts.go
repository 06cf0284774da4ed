package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// accounts holds a reflector for each account and region, and answers the broker's questions about tasks from them.
type accounts struct {
	scopes []*scope
	rules  discovery.Config

	mu      sync.Mutex
	wake    chan struct{} // guarded by mu; closed and replaced when a snapshot changed
	started time.Time
}

// scope is one account in one region.
type scope struct {
	account   settings.Account
	id        string
	region    string
	network   string
	reflector *ecs.Reflector
}

func newAccounts(cfg Config) (*accounts, error) {
	a := &accounts{rules: discovery.Config{DefaultServiceAccount: cfg.Settings.DefaultServiceAccount}, wake: make(chan struct{}), started: cfg.Now()}
	for _, acct := range cfg.Settings.Platforms.ECS.Accounts {
		regions := acct.Regions
		if len(regions) == 0 {
			if cfg.Region == "" {
				return nil, configError("account %s lists no regions and the controller has none of its own: set AWS_REGION", acct.AccountID())
			}
			regions = []string{cfg.Region}
		}
		for _, region := range regions {
			source, err := cfg.Source(acct, region)
			if err != nil {
				return nil, fmt.Errorf("account %s in %s: %w", acct.AccountID(), region, err)
			}
			s := &scope{account: acct, id: acct.AccountID(), region: region, network: acct.Network}
			if s.network == "" {
				s.network = cfg.Settings.Network
			}
			interval := time.Duration(cfg.Settings.SweepInterval)
			s.reflector, err = ecs.New(ecs.Config{
				Account: s.id, Region: region, Partition: acct.Partition(), Source: source, OptInTags: cfg.Settings.DiscoveryTags,
				Interval: interval, FullInterval: fullInterval(interval),
				Log: cfg.Log.With(slog.String("scope", "discovery"), slog.String("account", s.id), slog.String("region", region)),
				Now: cfg.Now, Observe: func(r ecs.SweepReport) { a.observe(cfg, r) },
			})
			if err != nil {
				return nil, err
			}
			a.scopes = append(a.scopes, s)
		}
	}
	return a, nil
}

// fullInterval is how often clusters and services are read again: new ones matter less than tasks that come and go, but
// with a short interval (the lab's) they should not take a minute.
func fullInterval(interval time.Duration) time.Duration {
	return min(time.Minute, 6*interval)
}

func (a *accounts) observe(cfg Config, r ecs.SweepReport) {
	cfg.Metrics.Sweep(r.Complete, r.Took)
	a.mu.Lock()
	defer a.mu.Unlock()
	// Every sweep wakes the planner, not only those that changed something: rules count complete sweeps.
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
	for _, s := range a.scopes {
		snap := s.reflector.Snapshot()
		fmt.Fprintf(&b, "%d %t %v\n", snap.Version, snap.Complete, snap.Err)
	}
	return b.String()
}

// age returns the age of the oldest complete sweep.
func (a *accounts) age(now time.Time) time.Duration {
	var oldest time.Duration
	for _, s := range a.scopes {
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
	for _, s := range a.scopes {
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
	for _, s := range a.scopes {
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
	for _, s := range a.scopes {
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
	for _, s := range a.scopes {
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
	for _, s := range a.scopes {
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
