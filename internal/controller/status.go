package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// StatusConfigMap is where the leader writes what it sees, as YAML under the key status.yaml.
const StatusConfigMap = "isthmus-controller-status"

// Limits and times of reporting.
const (
	maxProblems    = 200 // in the status
	maxEvents      = 50  // written in one round
	eventRepeat    = 10 * time.Minute
	statusInterval = 2 * time.Second // between writes of a status that changed
	statusRefresh  = time.Minute     // between writes of one in which only times changed
)

// Status is what the leader writes for people and tools.
type Status struct {
	Leader   string              `json:"leader"`
	Accounts []AccountStatus     `json:"accounts"`
	Objects  map[string]int      `json:"objects"` // of the last plan, by action
	Problems []discovery.Problem `json:"problems"`
	// ProblemsOmitted counts those beyond the limit.
	ProblemsOmitted int    `json:"problemsOmitted,omitempty"`
	Held            []Held `json:"held,omitempty"`
	Updated         string `json:"updated"`
}

// AccountStatus is one account and region.
type AccountStatus struct {
	Account           string    `json:"account"`
	Region            string    `json:"region"`
	Complete          bool      `json:"complete"`
	LastCompleteSweep string    `json:"lastCompleteSweep,omitempty"`
	Clusters          []string  `json:"clusters"`
	Services          int       `json:"services"`
	Tasks             int       `json:"tasks"`
	Code              diag.Code `json:"code,omitempty"`
	Error             string    `json:"error,omitempty"`
	Fix               string    `json:"fix,omitempty"`
}

// Held is a deletion that is held back.
type Held struct {
	Object string    `json:"object"`
	Rule   plan.Rule `json:"rule"`
	Reason string    `json:"reason"`
}

// reporter writes the status ConfigMap and events. Only the planning loop's goroutine uses it.
type reporter struct {
	c         *Controller
	accounts  *accountWriter
	told      map[string]time.Time // when each problem was last told as an event
	lastShape string               // the status without its times
	lastWrite time.Time
}

func newReporter(c *Controller) *reporter {
	return &reporter{c: c, accounts: newAccountWriter(c), told: map[string]time.Time{}}
}

// report tells what a round saw, and reports whether it must be called again soon because there is more to tell: a
// status that changes all the time is written every few seconds only, and a write may fail.
func (r *reporter) report(ctx context.Context, p picture, objectOf func(arn string) *kube.Object) (again bool) {
	r.observe(p.snapshots)
	again, err := r.writeStatus(ctx, p)
	if err != nil && ctx.Err() == nil {
		r.c.log.Warn("status not written", slog.String("error", err.Error()))
	}
	r.writeEvents(ctx, p.problems, objectOf)
	more := r.accounts.report(ctx, p)
	return again || more || err != nil
}

func (r *reporter) observe(snaps []*inventory.Snapshot) {
	var clusters, services, tasks, complete int
	for _, s := range snaps {
		n, m := s.Counts()
		clusters, services, tasks = clusters+len(s.Clusters), services+n, tasks+m
		if s.Complete {
			complete++
		}
	}
	r.c.cfg.Metrics.Seen(clusters, services, tasks, complete, len(snaps)-complete)
}

func (r *reporter) writeEvents(ctx context.Context, problems []discovery.Problem, objectOf func(string) *kube.Object) {
	now := r.c.cfg.Now()
	current := make(map[string]bool, len(problems))
	written := 0
	for _, p := range problems {
		key := p.Object + "\x00" + string(p.Code) + "\x00" + p.Cause
		current[key] = true
		if at, ok := r.told[key]; ok && now.Sub(at) < eventRepeat || written >= maxEvents || ctx.Err() != nil {
			continue
		}
		about := objectOf(p.Object)
		if about == nil {
			continue
		}
		written++
		message := fmt.Sprintf("%s: %s [%s] Fix: %s (%s)", summaryOf(p.Code), p.Cause, p.Code, p.Fix, p.Object)
		event := kube.Event{About: withKind(about), Warning: true, Reason: "ECSProblem", Message: message}
		if err := r.c.cfg.Kube.Report(ctx, event, now); err != nil {
			r.c.log.Warn("event not written", slog.String("error", err.Error()))
			continue
		}
		if _, repeated := r.told[key]; !repeated {
			r.c.log.Warn("problem", slog.String("code", string(p.Code)), slog.String("object", p.Object), slog.String("cause", p.Cause), slog.String("fix", p.Fix))
		}
		r.told[key] = now
	}
	for key := range r.told {
		if !current[key] {
			delete(r.told, key) // solved: told anew if it comes back
		}
	}
}

// withKind names the kind of an object of the typed world's caches, which some servers leave out of lists.
func withKind(o *kube.Object) *kube.Object {
	if o.GetKind() != "" {
		return o
	}
	c := o.DeepCopy()
	c.SetAPIVersion("v1")
	c.SetKind("ConfigMap")
	return c
}

func summaryOf(code diag.Code) string {
	entry, _ := diag.Lookup(code)
	return cmp.Or(entry.Summary, "problem")
}

func (r *reporter) writeStatus(ctx context.Context, p picture) (again bool, err error) {
	now := r.c.cfg.Now()
	st := r.build(p)
	shape, err := yaml.Marshal(withoutTimes(st))
	if err != nil {
		return false, fmt.Errorf("encode status: %w", err)
	}
	age, same := now.Sub(r.lastWrite), string(shape) == r.lastShape
	if age < statusInterval || same && age < statusRefresh {
		return !same, nil
	}
	st.Updated = now.UTC().Format(time.RFC3339)
	text, err := yaml.Marshal(st)
	if err != nil {
		return false, fmt.Errorf("encode status: %w", err)
	}
	want := &kube.Object{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{
			"name": StatusConfigMap, "namespace": r.c.cfg.Options.Namespace,
			"labels": map[string]any{"app": "isthmus-controller", kube.ManagedByLabel: kube.ManagedByValue},
		},
		"data": map[string]any{"status.yaml": string(text)},
	}}
	if _, err := r.c.cfg.Kube.Apply(ctx, want, nil); err != nil {
		return false, err
	}
	r.lastShape, r.lastWrite = string(shape), now
	return false, nil
}

func (r *reporter) build(p picture) Status {
	st := Status{Leader: r.c.cfg.Identity, Problems: p.problems, Accounts: []AccountStatus{}}
	if st.Problems == nil {
		st.Problems = []discovery.Problem{}
	}
	if extra := len(st.Problems) - maxProblems; extra > 0 {
		st.Problems, st.ProblemsOmitted = st.Problems[:maxProblems], extra
	}
	ch := p.changes
	st.Objects = map[string]int{
		"create": len(ch.Create), "update": len(ch.Update), "delete": len(ch.Delete), "hold": len(ch.Held), "keep": ch.Kept,
	}
	for _, h := range ch.Held {
		if len(st.Held) == maxProblems {
			break
		}
		st.Held = append(st.Held, Held{Object: h.Key.String(), Rule: h.Rule, Reason: h.Reason})
	}
	byScope := map[string]discovery.Problem{}
	for _, problem := range r.c.accounts.problems() {
		byScope[problem.Object] = problem
	}
	for _, s := range p.snapshots {
		services, tasks := s.Counts()
		a := AccountStatus{Account: s.Account, Region: s.Region, Complete: s.Complete, Services: services, Tasks: tasks, Clusters: []string{}}
		if !s.SweptAt.IsZero() {
			a.LastCompleteSweep = s.SweptAt.UTC().Format(time.RFC3339)
		}
		for _, c := range s.SortedClusters() {
			a.Clusters = append(a.Clusters, c.Cluster.Name)
		}
		if problem, ok := byScope[s.Account+" in "+s.Region]; ok {
			a.Code, a.Error, a.Fix = problem.Code, problem.Cause, problem.Fix
		}
		st.Accounts = append(st.Accounts, a)
	}
	return st
}

func withoutTimes(st Status) Status {
	st.Updated = ""
	accounts := make([]AccountStatus, len(st.Accounts))
	copy(accounts, st.Accounts)
	for i := range accounts {
		accounts[i].LastCompleteSweep = ""
	}
	st.Accounts = accounts
	return st
}
