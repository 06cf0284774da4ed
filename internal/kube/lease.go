package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// LeaseConfig describes a lease of which one process at a time is the leader.
type LeaseConfig struct {
	// Namespace, Name and Identity are required; Identity is unique per process.
	Namespace string
	Name      string
	Identity  string
	// Duration is how long a leader that fell silent keeps the lease; 0 means 15 s.
	Duration time.Duration
	// OnLeader is told who leads now; nil means nobody cares.
	OnLeader func(identity string, us bool)
}

// Lead runs lead while this process holds the lease, and competes again when it was lost, until ctx ends or lead returns
// an error of its own. The lease is given back at the end, so that another replica takes over at once.
//
// The lease is used exactly as client-go's own election uses it, so either may lead beside the other:
//
//	holder        renews every eighth of Duration, and stops leading when two thirds passed without a renewal
//	others        take over when they have seen the same record for as long as the record says; each by its own clock
//	both at once  one update fails, because it names the version that it changes
func (c *Client) Lead(ctx context.Context, cfg LeaseConfig, lead func(ctx context.Context) error) error {
	if cfg.Namespace == "" || cfg.Name == "" || cfg.Identity == "" {
		return errors.New("kube: LeaseConfig.Namespace, Name and Identity are required")
	}
	if cfg.Duration == 0 {
		cfg.Duration = 15 * time.Second
	}
	for ctx.Err() == nil {
		e := &election{c: c, cfg: cfg}
		if !e.acquire(ctx) {
			return nil
		}
		c.log.Info("leading", slog.String("lease", cfg.Name), slog.String("identity", cfg.Identity))
		err := e.hold(ctx, lead)
		c.log.Info("not leading any more", slog.String("lease", cfg.Name))
		if err != nil {
			return fmt.Errorf("while leading: %w", err)
		}
	}
	return nil
}

// election is one attempt to become and to stay the leader. One goroutine uses it.
type election struct {
	c   *Client
	cfg LeaseConfig

	seen   map[string]any // the newest record, and since when it is the newest
	since  time.Time
	leader string
}

func (e *election) retry() time.Duration    { return e.cfg.Duration / 8 }
func (e *election) deadline() time.Duration { return e.cfg.Duration * 2 / 3 }

// acquire blocks until the lease is ours; it returns false if ctx ended first.
func (e *election) acquire(ctx context.Context) bool {
	for {
		try, cancel := context.WithTimeout(ctx, e.deadline())
		ours, err := e.claim(try)
		cancel()
		if ctx.Err() != nil {
			if ours {
				e.release(ctx)
			}
			return false
		}
		if ours {
			return true
		}
		if err != nil {
			e.c.log.Debug("lease not acquired", slog.String("lease", e.cfg.Name), slog.String("error", err.Error()))
		}
		timer := time.NewTimer(e.retry() + rand.N(e.retry()/5+1)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// hold runs lead and renews the lease until lead has returned: it is given back only then, because two leaders would
// write at once. If the lease is lost meanwhile, lead's context ends.
func (e *election) hold(ctx context.Context, lead func(ctx context.Context) error) error {
	leadCtx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- lead(leadCtx) }()
	renewed := time.Now()
	ticker := time.NewTicker(e.retry())
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			e.release(ctx)
			return err
		case <-ticker.C:
		}
		try, cancel := context.WithDeadline(context.WithoutCancel(ctx), renewed.Add(e.deadline()))
		ours, err := e.claim(try)
		cancel()
		if ours {
			renewed = time.Now()
			continue
		}
		if stolen := err == nil; stolen || time.Since(renewed) >= e.deadline() {
			e.c.log.Warn("lease lost", slog.String("lease", e.cfg.Name), slog.String("leader", e.leader))
			stop()
			return <-done // nothing we started may outlive us
		}
	}
}

// claim takes, or renews, the lease; ours is false without an error while it is validly somebody else's.
func (e *election) claim(ctx context.Context) (ours bool, err error) {
	leases := e.c.dyn.Resource(Leases).Namespace(e.cfg.Namespace)
	o, err := leases.Get(ctx, e.cfg.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		o = &Object{Object: map[string]any{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}}
		o.SetName(e.cfg.Name)
		o.SetNamespace(e.cfg.Namespace)
		o.Object["spec"] = e.record(nil)
		if o, err = leases.Create(ctx, o, metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
			return false, fmt.Errorf("create lease: %w", err)
		}
		e.observe(o)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("get lease: %w", err)
	}
	spec := e.observe(o)
	holder, _, _ := unstructured.NestedString(spec, "holderIdentity")
	seconds, _, _ := unstructured.NestedInt64(spec, "leaseDurationSeconds")
	if holder != "" && holder != e.cfg.Identity && time.Since(e.since) < time.Duration(seconds)*time.Second {
		return false, nil
	}
	o = o.DeepCopy()
	o.Object["spec"] = e.record(spec)
	if o, err = leases.Update(ctx, o, metav1.UpdateOptions{FieldManager: FieldManager}); err != nil {
		return false, fmt.Errorf("update lease: %w", err)
	}
	e.observe(o)
	return true, nil
}

// release gives the lease back if it is ours, so that nobody has to wait for its end. It works after ctx has ended.
func (e *election) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.deadline())
	defer cancel()
	leases := e.c.dyn.Resource(Leases).Namespace(e.cfg.Namespace)
	o, err := leases.Get(ctx, e.cfg.Name, metav1.GetOptions{})
	if err == nil {
		spec := e.observe(o)
		if holder, _, _ := unstructured.NestedString(spec, "holderIdentity"); holder != e.cfg.Identity {
			return
		}
		o = o.DeepCopy()
		now := microTime(time.Now())
		o.Object["spec"] = map[string]any{"leaseDurationSeconds": int64(1), "acquireTime": now, "renewTime": now, "leaseTransitions": transitions(spec)}
		_, err = leases.Update(ctx, o, metav1.UpdateOptions{FieldManager: FieldManager})
	}
	if err != nil {
		e.c.log.Debug("lease not given back", slog.String("lease", e.cfg.Name), slog.String("error", err.Error()))
	}
}

// record returns the record with which we hold the lease after the one given.
func (e *election) record(have map[string]any) map[string]any {
	now := microTime(time.Now())
	spec := map[string]any{
		"holderIdentity": e.cfg.Identity, "leaseDurationSeconds": int64(max(1, e.cfg.Duration/time.Second)),
		"acquireTime": now, "renewTime": now, "leaseTransitions": transitions(have),
	}
	if holder, _, _ := unstructured.NestedString(have, "holderIdentity"); have != nil && holder != e.cfg.Identity {
		spec["leaseTransitions"] = transitions(have) + 1
	} else if at, ok := have["acquireTime"]; ok {
		spec["acquireTime"] = at
	}
	return spec
}

// observe notes the record and when it was first seen, and tells who leads.
func (e *election) observe(o *Object) map[string]any {
	spec, _, _ := unstructured.NestedMap(o.Object, "spec")
	if !reflect.DeepEqual(spec, e.seen) {
		e.seen, e.since = spec, time.Now()
	}
	if holder, _, _ := unstructured.NestedString(spec, "holderIdentity"); holder != e.leader {
		e.leader = holder
		if e.cfg.OnLeader != nil && holder != "" {
			e.cfg.OnLeader(holder, holder == e.cfg.Identity)
		}
	}
	return spec
}

func transitions(spec map[string]any) int64 {
	n, _, _ := unstructured.NestedInt64(spec, "leaseTransitions")
	return n
}

// microTime writes a time as metav1.MicroTime does.
func microTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z07:00") }
