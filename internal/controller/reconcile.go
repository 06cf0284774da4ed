package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// Times of the planning loop.
const (
	settle      = 20 * time.Millisecond // after a change, to let those that belong together come together
	writeRetry  = 2 * time.Second       // after a failed write
	planResync  = time.Minute           // without any change
	crdPatience = 10 * time.Second      // before complaining that Istio's kinds cannot be read
)

// reconciler is the leader's planning loop. Only its own goroutine touches its fields.
type reconciler struct {
	c          *Controller
	services   *kube.Cache
	workloads  *kube.Cache
	namespaces *kube.Cache
	configMap  *kube.Cache
	ledger     *ledger
	status     *reporter
}

func newReconciler(c *Controller) (*reconciler, error) {
	r := &reconciler{c: c, status: newReporter(c), ledger: newLedger(c.accounts.rules, c.log)}
	ours := kube.ManagedByLabel + "=" + kube.ManagedByValue
	for _, x := range []struct {
		cache **kube.Cache
		cfg   kube.CacheConfig
	}{
		{&r.services, kube.CacheConfig{Kind: kube.ServiceEntries, Selector: ours, Track: true}},
		{&r.workloads, kube.CacheConfig{Kind: kube.WorkloadEntries, Selector: ours, Track: true}},
		{&r.namespaces, kube.CacheConfig{Kind: kube.Namespaces}},
		{&r.configMap, kube.CacheConfig{Kind: kube.ConfigMaps, Namespace: c.cfg.Options.Namespace, Field: "metadata.name=isthmus-controller"}},
	} {
		k, err := c.cfg.Kube.NewCache(x.cfg)
		if err != nil {
			return nil, err
		}
		*x.cache = k
	}
	return r, nil
}

func (r *reconciler) caches() []*kube.Cache {
	return []*kube.Cache{r.services, r.workloads, r.namespaces, r.configMap}
}

// run plans and writes until ctx ends.
func (r *reconciler) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, k := range r.caches() {
		g.Go(func() error { return k.Run(ctx) })
	}
	g.Go(func() error {
		if r.waitForCaches(ctx) {
			r.loop(ctx)
		}
		return nil
	})
	return g.Wait()
}

// waitForCaches waits as long as it takes, and says after a while what is missing.
func (r *reconciler) waitForCaches(ctx context.Context) bool {
	for _, k := range r.caches() {
		for {
			err := k.Wait(ctx, crdPatience)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return false
			}
			problem := diag.Wrap(diag.KubeUnreachable, err)
			if kube.IsNotFound(k.Err()) {
				problem = diag.Wrap(diag.MeshCRDMissing, err)
			} else if kube.IsForbidden(k.Err()) {
				problem = diag.Wrap(diag.KubeForbidden, err)
			}
			r.c.log.Warn("waiting for kubernetes", slog.String("error", problem.Error()), slog.String("fix", problem.Fix))
		}
	}
	return true
}

func (r *reconciler) loop(ctx context.Context) {
	for {
		// Taken before reading, so that a change during the round starts another.
		sweeps, se, we := r.c.accounts.changed(), r.services.Changed(), r.workloads.Changed()
		ns, cm, acct := r.namespaces.Changed(), r.configMap.Changed(), r.c.resources.Changed()
		seen := r.c.accounts.versions()
		pause := planResync
		held, untold, err := r.round(ctx)
		if untold {
			pause = statusInterval
		}
		if err != nil && ctx.Err() == nil {
			r.c.log.Warn("not everything was written", slog.String("error", firstLine(err)))
			pause = writeRetry
			sweeps = nil // a failing write must not be repeated at the pace of sweeps
		}
		timer := time.NewTimer(pause)
		for again := false; !again; {
			again = true
			select {
			case <-ctx.Done():
			case <-sweeps:
				// A sweep that saw what the one before saw changes no plan, unless a rule counts sweeps.
				sweeps = r.c.accounts.changed()
				again = held || r.c.accounts.versions() != seen
			case <-se:
			case <-we:
			case <-ns:
			case <-cm:
			case <-acct:
			case <-timer.C:
			}
		}
		timer.Stop()
		if !sleep(ctx, settle) {
			return
		}
	}
}

// picture is everything that one plan was made from and what it came to.
type picture struct {
	snapshots []*inventory.Snapshot
	problems  []discovery.Problem
	changes   plan.Changes
}

// round looks, plans, writes and reports once. Held reports whether the next sweep may change the plan by itself, untold
// whether there is more to report.
func (r *reconciler) round(ctx context.Context) (held, untold bool, err error) {
	start := r.c.cfg.Now()
	p := r.look()
	r.c.accounts.expect(p.changes.WantEvidence())
	results, err := r.write(ctx, p)
	ch := p.changes
	r.c.cfg.Metrics.Plan(len(ch.Create), len(ch.Update), len(ch.Delete), len(ch.Held), ch.Kept, len(p.problems), r.c.cfg.Now().Sub(start))
	if !ch.Empty() {
		r.c.log.Info("plan applied", slog.Int("created", len(ch.Create)), slog.Int("updated", len(ch.Update)), slog.Int("deleted", len(ch.Delete)),
			slog.Int("held", len(ch.Held)), slog.Int("failed", countFailed(results)))
	}
	p.problems = append(p.problems, writeProblems(results)...)
	untold = r.status.report(ctx, p, r.objectOf)
	return len(ch.Held) > 0, untold, err
}

// look reads what changed in the snapshots and of the current objects, and plans.
func (r *reconciler) look() picture {
	inputs, snaps := r.c.accounts.inputs()
	r.ledger.want(inputs, func(ns string) bool { return r.namespaces.Get("", ns) != nil })
	r.ledger.see(discovery.KindServiceEntry, r.services.Take())
	r.ledger.see(discovery.KindWorkloadEntry, r.workloads.Take())
	limits := plan.Limits{MaxDeleteShare: float64(r.c.cfg.Settings.DeletionLimitPercent) / 100, Confirmed: r.confirmed()}
	p := picture{snapshots: snaps, changes: r.ledger.plan.Plan(snaps, r.ledger.discovery.Skipped, limits)}
	p.problems = append(r.c.accounts.problems(), r.ledger.discovery.Problems()...)
	p.problems = append(p.problems, namespaceProblems(r.ledger.missing())...)
	p.problems = append(p.problems, heldProblems(p.changes)...)
	sortProblems(p.problems)
	return p
}

// confirmed reads the accounts whose mass deletions an operator has allowed with an annotation.
func (r *reconciler) confirmed() map[string]bool {
	cm := r.configMap.Get(r.c.cfg.Options.Namespace, "isthmus-controller")
	if cm == nil {
		return nil
	}
	out := map[string]bool{}
	for _, account := range strings.FieldsFunc(cm.GetAnnotations()[kube.AllowDeletionsAnnot], func(c rune) bool { return c == ',' || c == ' ' }) {
		out[account] = true
	}
	return out
}

// write applies a plan: services before workloads, and the other way round where things go.
func (r *reconciler) write(ctx context.Context, p picture) ([]kube.Result, error) {
	byKind := func(changes []plan.Change, kind string) []kube.Write {
		var out []kube.Write
		for _, ch := range changes {
			if ch.Key.Kind == kind {
				out = append(out, r.writeOf(ch, r.ledger.have[ch.Key]))
			}
		}
		return out
	}
	applied := append(slices.Clone(p.changes.Create), p.changes.Update...)
	var results []kube.Result
	for _, batch := range [][]kube.Write{
		byKind(applied, discovery.KindServiceEntry), byKind(applied, discovery.KindWorkloadEntry),
		byKind(p.changes.Delete, discovery.KindWorkloadEntry), byKind(p.changes.Delete, discovery.KindServiceEntry),
	} {
		if len(batch) > 0 && ctx.Err() == nil {
			results = append(results, r.c.cfg.Kube.WriteAll(ctx, batch)...)
		}
	}
	var errs []error
	for _, res := range results {
		r.c.cfg.Metrics.Write(string(res.Outcome))
		if res.Err != nil {
			errs = append(errs, res.Err)
		}
	}
	return results, errors.Join(errs...)
}

func (r *reconciler) writeOf(ch plan.Change, have *kube.Object) kube.Write {
	kind := kube.ServiceEntries
	var want any = ch.Service
	if ch.Key.Kind == discovery.KindWorkloadEntry {
		kind, want = kube.WorkloadEntries, ch.Workload
	}
	if ch.Action == plan.Delete {
		return kube.Write{Kind: kind, Have: have}
	}
	o, err := kube.Encode(want)
	if err != nil { // our own types always encode
		o = &kube.Object{Object: map[string]any{}}
	}
	return kube.Write{Kind: kind, Want: o, Have: have}
}

// objectOf finds the Kubernetes object that stands for an ARN, to hang an event on.
func (r *reconciler) objectOf(arn string) *kube.Object {
	if o := r.ledger.about(arn); o != nil {
		return o
	}
	return r.configMap.Get(r.c.cfg.Options.Namespace, "isthmus-controller")
}

// namespaceProblems tells of the namespaces that are wanted and do not exist. Creating them is left to people: a
// namespace is where policies and rights live.
func namespaceProblems(missing map[string]string) []discovery.Problem {
	var out []discovery.Problem
	for ns, cluster := range missing {
		out = append(out, discovery.Problem{
			Object: cluster, Code: diag.NamespaceMissing, Cause: fmt.Sprintf("namespace %s does not exist", ns),
			Fix: fmt.Sprintf("kubectl create namespace %s && kubectl label namespace %s %s=ambient", ns, ns, kube.AmbientLabel),
		})
	}
	return out
}

// heldProblems tells of deletions that the safety rules hold back for a person to decide.
func heldProblems(ch plan.Changes) []discovery.Problem {
	byAccount := map[string]int{}
	var out []discovery.Problem
	for _, h := range ch.Held {
		switch h.Rule {
		case plan.RuleMass:
			byAccount[h.Account]++
		case plan.RuleForeign:
			out = append(out, discovery.Problem{
				Object: h.Key.String(), Code: diag.WriteRefused, Cause: h.Reason,
				Fix: "rename or delete the other object, or give the ECS service another name",
			})
		}
	}
	for account, n := range byAccount {
		out = append(out, discovery.Problem{
			Object: account, Code: diag.DeletionHeld, Cause: fmt.Sprintf("%d workloads of account %s would be removed at once", n, account),
			Fix: fmt.Sprintf("if it is intended: kubectl annotate configmap isthmus-controller -n istio-system %s=%s", kube.AllowDeletionsAnnot, account),
		})
	}
	return out
}

// writeProblems tells of writes that Kubernetes refused; those that only need a repetition are not a person's business.
func writeProblems(results []kube.Result) []discovery.Problem {
	var out []discovery.Problem
	for _, res := range results {
		var coded *diag.Error
		if errors.As(res.Err, &coded) && (coded.Code == diag.WriteRefused || coded.Code == diag.KubeForbidden) {
			out = append(out, discovery.Problem{Object: res.Ref, Code: coded.Code, Cause: coded.Cause, Fix: coded.Fix})
		}
	}
	return out
}

func countFailed(results []kube.Result) int {
	n := 0
	for _, r := range results {
		if r.Err != nil {
			n++
		}
	}
	return n
}

// firstLine keeps a log line short when ten thousand writes failed alike.
func firstLine(err error) string {
	line, rest, more := strings.Cut(err.Error(), "\n")
	if more {
		line += fmt.Sprintf(" (and %d more)", strings.Count(rest, "\n")+1)
	}
	return line
}

func sortProblems(ps []discovery.Problem) {
	slices.SortStableFunc(ps, func(a, b discovery.Problem) int {
		return strings.Compare(a.Object+"\x00"+string(a.Code)+a.Cause, b.Object+"\x00"+string(b.Code)+b.Cause)
	})
}
