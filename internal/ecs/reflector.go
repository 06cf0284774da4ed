package ecs

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// Defaults and limits.
const (
	defaultInterval     = 10 * time.Second
	defaultFullInterval = 60 * time.Second
	defaultHotInterval  = 2 * time.Second
	defaultJitter       = 0.2
	defaultParallel     = 4
	defaultLookupMaxAge = 24 * time.Hour
	defaultOptInTag     = "ecs.solo.io/discovery-enabled"

	hotFor         = 15 * time.Minute       // how long a task may take to start before nobody hurries for it
	minSpacing     = 100 * time.Millisecond // between sweeps, however many hints come
	backoffFirst   = 2 * time.Second
	backoffLast    = 5 * time.Minute
	maxGone        = 20_000 // ARNs whose end is remembered
	maxExpected    = 20_000 // ARNs waiting to be asked about
	definitionTTL  = 10 * time.Minute
	maxRefreshes   = 20 // task definitions whose tags are read again in one full sweep
	lookupsPerSec  = 10
	lookupBurst    = 100
	negativeTTL    = 2 * time.Second
	maxNegative    = 4096
	maxSuspects    = 1000 // clusters that are described though no list has them
	requiredSweeps = 2    // complete sweeps that must agree on an absence
)

// Reflector keeps a Snapshot of one account and region fresh. All methods are safe for concurrent use.
type Reflector struct {
	cfg Config

	pub    atomic.Pointer[publication]
	kick   chan struct{}
	hinted chan struct{} // holds one token while there are hints

	sweeping sync.Mutex // one sweep at a time
	state    *state     // guarded by sweeping

	lookups  *rate.Limiter
	mu       sync.Mutex
	negative map[string]time.Time // task ids that were just not found; guarded by mu
	expected map[string]bool      // ARNs to ask about; guarded by mu
	hints    hints                // guarded by mu
	// hintCount counts the tasks in hints; guarded by mu.
	hintCount int
}

// publication is a snapshot and the channel that closes when the next one replaces it.
type publication struct {
	snap    *inventory.Snapshot
	changed chan struct{}
}

// New returns a Reflector. It makes no call; Run or Sweep does.
func New(cfg Config) (*Reflector, error) {
	switch {
	case cfg.Account == "":
		return nil, errors.New("ecs: Config.Account is required")
	case cfg.Region == "":
		return nil, errors.New("ecs: Config.Region is required")
	case cfg.Source == nil:
		return nil, errors.New("ecs: Config.Source is required")
	case cfg.Log == nil:
		return nil, errors.New("ecs: Config.Log is required")
	}
	if cfg.Partition == "" {
		cfg.Partition = "aws"
	}
	if len(cfg.OptInTags) == 0 {
		cfg.OptInTags = []string{defaultOptInTag}
	}
	if cfg.Interval <= 0 {
		cfg.Interval = defaultInterval
	}
	if cfg.FullInterval <= 0 {
		cfg.FullInterval = defaultFullInterval
	}
	if cfg.HotInterval <= 0 {
		cfg.HotInterval = defaultHotInterval
	}
	if cfg.Jitter == 0 {
		cfg.Jitter = defaultJitter
	}
	if cfg.Jitter < 0 {
		cfg.Jitter = 0
	}
	if cfg.LookupMaxAge <= 0 {
		cfg.LookupMaxAge = defaultLookupMaxAge
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = defaultParallel
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Reflector{
		cfg: cfg, kick: make(chan struct{}, 1), hinted: make(chan struct{}, 1), hints: hints{}, state: newState(),
		lookups: rate.NewLimiter(lookupsPerSec, lookupBurst), negative: map[string]time.Time{}, expected: map[string]bool{},
	}
	r.pub.Store(&publication{snap: &inventory.Snapshot{Account: cfg.Account, Region: cfg.Region, Partition: cfg.Partition}, changed: make(chan struct{})})
	return r, nil
}

// Snapshot returns the latest snapshot; before the first sweep it is empty, with Sweeps 0.
func (r *Reflector) Snapshot() *inventory.Snapshot { return r.pub.Load().snap }

// Watch returns the latest snapshot and a channel that closes as soon as a newer one is there.
func (r *Reflector) Watch() (*inventory.Snapshot, <-chan struct{}) {
	p := r.pub.Load()
	return p.snap, p.changed
}

// Kick asks for a sweep soon. It never blocks; many kicks make one sweep.
func (r *Reflector) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Expect asks the next sweep to find out what became of tasks or services, given by ARN, that the snapshot does not
// have; the answer is in Snapshot.Gone. It is how objects left over from before a restart get their evidence.
func (r *Reflector) Expect(arns ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, arn := range arns {
		if len(r.expected) >= maxExpected {
			return // asked again at the next plan
		}
		r.expected[arn] = true
	}
}

// Run sweeps until ctx ends, and then returns nil.
func (r *Reflector) Run(ctx context.Context) error {
	var lastFull, lastSweep time.Time
	mode := sweepFull
	for {
		now := r.cfg.Now()
		if mode >= sweepHot && now.Sub(lastSweep) >= r.cfg.Interval {
			mode = sweepTasks
		}
		if now.Sub(lastFull) >= r.cfg.FullInterval {
			mode, lastFull = sweepFull, now
		}
		if mode < sweepHot {
			lastSweep = now
		}
		_, _ = r.sweep(ctx, mode) // reported and published
		var ok bool
		if mode, ok = r.pause(ctx); !ok {
			return nil
		}
	}
}

// pause waits until the next look is due or was asked for, and says which it is to be. It returns false if ctx ended.
func (r *Reflector) pause(ctx context.Context) (sweepMode, bool) {
	mode, interval := sweepTasks, r.cfg.Interval
	if r.cfg.HotInterval < interval && len(hot(r.Snapshot(), r.cfg.Now())) > 0 {
		mode, interval = sweepHot, r.cfg.HotInterval
	}
	if !wait(ctx, minSpacing) {
		return mode, false
	}
	timer := time.NewTimer(max(0, r.jittered(interval)-minSpacing))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return mode, false
	case <-r.kick:
		return sweepTasks, true
	case <-r.hinted:
		return sweepKeyed, true
	case <-timer.C:
		return mode, true
	}
}

// hot returns the clusters in which tasks are starting.
func hot(snap *inventory.Snapshot, now time.Time) map[string]bool {
	out := map[string]bool{}
	for arn, c := range snap.Clusters {
		for _, t := range c.Tasks {
			if starting(t, snap.Definitions[t.TaskDefinitionARN]) && now.Sub(t.CreatedAt) < hotFor {
				out[arn] = true
				break
			}
		}
	}
	return out
}

// starting reports whether a task is on its way to serve: not running yet, or running and not yet known to be healthy.
func starting(t *inventory.Task, d *inventory.TaskDefinition) bool {
	if t.Stopping() {
		return false
	}
	if t.LastStatus != inventory.TaskRunning {
		return true
	}
	for _, c := range t.Containers {
		if cd := d.Container(c.Name); cd != nil && cd.HasHealthCheck && c.HealthStatus != inventory.Healthy && c.HealthStatus != inventory.Unhealthy {
			return true
		}
	}
	return false
}

// sweepMode says how much one look reads.
type sweepMode uint8

const (
	sweepTasks sweepMode = iota // the tasks of all clusters
	sweepFull                   // clusters and services too
	sweepHot                    // the tasks of clusters in which tasks are starting
	sweepKeyed                  // what hints are about
)

// Sweep looks once and publishes what it saw. Full also reads clusters and services again. The returned error is that
// of the published snapshot: what made the sweep incomplete.
func (r *Reflector) Sweep(ctx context.Context, full bool) (*inventory.Snapshot, error) {
	if full {
		return r.sweep(ctx, sweepFull)
	}
	return r.sweep(ctx, sweepTasks)
}

func (r *Reflector) sweep(ctx context.Context, mode sweepMode) (*inventory.Snapshot, error) {
	r.sweeping.Lock()
	defer r.sweeping.Unlock()
	start := r.cfg.Now()
	before := r.Snapshot()
	if before.CompleteSweeps == 0 || len(r.state.suspects) > 0 {
		mode = sweepFull
	}
	s := &sweep{cfg: &r.cfg, state: r.state, full: mode == sweepFull, now: start}
	asked := r.takeHints() // any other look at the same sees at least as much
	switch mode {
	case sweepHot:
		s.only = hot(before, start)
		for cluster := range asked {
			s.only[cluster] = true
		}
	case sweepKeyed:
		s.only, s.keys = map[string]bool{}, asked
		for cluster := range asked {
			s.only[cluster] = true
		}
	default:
		s.expected = r.takeExpected()
	}
	if before.Sweeps == 0 {
		s.early = r.publish
	}
	snap := s.run(ctx, before)
	r.retryHints(asked, snap)
	if ctx.Err() != nil {
		return before, ctx.Err() // a half-done sweep of a dying process is nobody's business
	}
	r.publish(snap)
	r.report(snap, before, mode, r.cfg.Now().Sub(start))
	if mode == sweepKeyed && len(s.errs) > 0 {
		r.Kick()
	}
	return snap, snap.Err
}

func (r *Reflector) publish(snap *inventory.Snapshot) {
	old := r.pub.Swap(&publication{snap: snap, changed: make(chan struct{})})
	close(old.changed)
}

func (r *Reflector) takeExpected() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	arns := make([]string, 0, len(r.expected))
	for arn := range r.expected {
		arns = append(arns, arn)
	}
	clear(r.expected)
	return arns
}

// report logs changes of state only: a sweep that finds nothing new is not news.
func (r *Reflector) report(snap, before *inventory.Snapshot, mode sweepMode, took time.Duration) {
	services, tasks := snap.Counts()
	changed := snap.Version != before.Version
	if r.cfg.Observe != nil {
		r.cfg.Observe(SweepReport{
			Account: snap.Account, Region: snap.Region, Full: mode == sweepFull, Hot: mode == sweepHot, Keyed: mode == sweepKeyed, Complete: snap.Complete, Err: snap.Err, Took: took,
			Clusters: len(snap.Clusters), Services: services, Tasks: tasks, Changed: changed,
		})
	}
	log := r.cfg.Log.With(slog.String("account", snap.Account), slog.String("region", snap.Region))
	switch {
	case !snap.Complete && (before.Complete || before.Sweeps == 0 || errText(before.Err) != errText(snap.Err)):
		log.Warn("ecs sweep incomplete", logattr.Err(snap.Err))
	case snap.Complete && !before.Complete && before.Sweeps > 0:
		log.Info("ecs sweep complete again", logattr.Elapsed(took))
	}
	if changed {
		log.Info("ecs inventory changed", slog.Int("clusters", len(snap.Clusters)), slog.Int("services", services), slog.Int("tasks", tasks), logattr.Elapsed(took))
	}
}

func (r *Reflector) jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + r.cfg.Jitter*(2*rand.Float64()-1)))
}

// backoff returns how long to leave something alone after n failures in a row.
func backoff(n int) time.Duration {
	d := backoffFirst
	for ; n > 1 && d < backoffLast; n-- {
		d *= 2
	}
	return min(d, backoffLast)
}

// wait returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
