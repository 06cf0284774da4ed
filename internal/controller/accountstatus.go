package controller

import (
	"cmp"
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Conditions of an ECSAccount.
const (
	conditionAccepted = "Accepted" // the declaration is valid and the only one of its account
	conditionSynced   = "Synced"   // the last sweep of every region saw everything
)

// Limits of the status.
const (
	maxClusterNames = 100 // in one region
	maxReasons      = 20
)

// ECSAccountStatus is the status of an ECSAccount.
type ECSAccountStatus struct {
	ObservedGeneration int64            `json:"observedGeneration,omitempty"`
	Account            string           `json:"account,omitempty"`
	Conditions         []kube.Condition `json:"conditions"`
	Clusters           int              `json:"clusters"`
	Services           int              `json:"services"`
	Tasks              int              `json:"tasks"`
	// Problems counts what is wrong with things in the account; the events and the status ConfigMap list them.
	Problems int `json:"problems"`
	// Reasons are the problems by code, with one of them as an example; those that concern most come first.
	Reasons []ProblemReason `json:"reasons,omitempty"`
	// LastCompleteSweep is that of the region for which it was longest ago.
	LastCompleteSweep string         `json:"lastCompleteSweep,omitempty"`
	LastError         *AccountError  `json:"lastError,omitempty"`
	Regions           []RegionStatus `json:"regions,omitempty"`
}

// AccountError is what is wrong with an account, and how to put it right.
type AccountError struct {
	Code    diag.Code `json:"code,omitempty"`
	Region  string    `json:"region,omitempty"`
	Message string    `json:"message"`
	Fix     string    `json:"fix,omitempty"`
}

// ProblemReason is what is wrong with some things in an account.
type ProblemReason struct {
	Code    diag.Code `json:"code"`
	Count   int       `json:"count"`
	Object  string    `json:"object"` // the first of them by ARN
	Message string    `json:"message"`
	Fix     string    `json:"fix,omitempty"`
}

// RegionStatus is one region of an account.
type RegionStatus struct {
	Region            string   `json:"region"`
	Complete          bool     `json:"complete"`
	LastCompleteSweep string   `json:"lastCompleteSweep,omitempty"`
	Clusters          []string `json:"clusters"` // the first by name
	Services          int      `json:"services"`
	Tasks             int      `json:"tasks"`
}

// accountWriter writes the ECSAccounts' status and those that show the file's accounts. Only the planning loop's
// goroutine uses it.
type accountWriter struct {
	c       *Controller
	written map[string]writtenStatus // by name
	failed  time.Time                // when a write last failed
}

type writtenStatus struct {
	shape ECSAccountStatus // without its times
	at    time.Time
}

func newAccountWriter(c *Controller) *accountWriter {
	return &accountWriter{c: c, written: map[string]writtenStatus{}}
}

// report writes what changed. It reports whether it must be called again soon.
func (w *accountWriter) report(ctx context.Context, p picture) (again bool) {
	now := w.c.cfg.Now()
	if !isClosed(w.c.resources.Synced()) || now.Sub(w.failed) < statusInterval {
		return !w.failed.IsZero() && now.Sub(w.failed) < statusInterval
	}
	all := *w.c.declared.Load()
	shown := map[string]bool{}
	problems := problemsByAccount(p.problems)
	for _, d := range all {
		shown[d.name] = true
		more, err := w.reportOne(ctx, p, d, problems, now)
		if err != nil && ctx.Err() == nil {
			w.c.log.Warn("status of account not written", slog.String("account", d.name), slog.String("error", firstLine(err)))
			w.failed = now
			return true
		}
		again = again || more
	}
	for _, o := range w.c.resources.List() { // those of accounts that the file has no longer
		if o.GetLabels()[originLabel] == originFile && !shown[o.GetName()] {
			if _, err := w.c.cfg.Kube.Delete(ctx, kube.ECSAccounts, "", o.GetName(), o); err != nil && ctx.Err() == nil {
				w.c.log.Warn("account not taken off the list", slog.String("account", o.GetName()), slog.String("error", firstLine(err)))
			}
		}
	}
	for name := range w.written {
		if !shown[name] {
			delete(w.written, name)
		}
	}
	return again
}

func (w *accountWriter) reportOne(ctx context.Context, p picture, d declared, problems map[string][]ProblemReason, now time.Time) (again bool, err error) {
	have := w.c.resources.Get("", d.name)
	if d.object == nil {
		want, err := d.mirror()
		if err != nil {
			return false, err
		}
		if _, err := w.c.cfg.Kube.Apply(ctx, want, have); err != nil {
			return false, err
		}
	}
	if have == nil {
		return true, nil // its status is written once it is there
	}
	st := w.build(p, d, have, problems)
	shape := st.withoutTimes()
	last, ok := w.written[d.name]
	same := ok && reflect.DeepEqual(shape, last.shape)
	if age := now.Sub(last.at); ok && (age < statusInterval || same && age < statusRefresh) {
		return !same, nil
	}
	var old struct{ Status ECSAccountStatus }
	if err := kube.Decode(have, &old); err != nil {
		return false, err
	}
	kube.KeepTimes(st.Conditions, old.Status.Conditions, now)
	if err := w.c.cfg.Kube.WriteStatus(ctx, have, st); err != nil {
		return false, err
	}
	w.written[d.name] = writtenStatus{shape, now}
	return false, nil
}

// build returns the status of an account.
func (w *accountWriter) build(p picture, d declared, have *kube.Object, problems map[string][]ProblemReason) ECSAccountStatus {
	id := d.account.AccountID()
	st := ECSAccountStatus{ObservedGeneration: have.GetGeneration(), Account: id}
	condition := func(kind, status, reason, message string) {
		st.Conditions = append(st.Conditions, kube.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: have.GetGeneration()})
	}
	if d.reason != "" {
		st.LastError = &AccountError{Code: diag.CodeOf(d.err), Message: d.err.Error(), Fix: fixOf(d.err)}
		condition(conditionAccepted, "False", d.reason, d.err.Error())
		condition(conditionSynced, "Unknown", "NotAccepted", "the account is not read")
		return st
	}
	condition(conditionAccepted, "True", "Accepted", "")
	for _, r := range problems[id] {
		st.Problems += r.Count
	}
	st.Reasons = problems[id][:min(len(problems[id]), maxReasons)]
	var failed *inventory.Snapshot
	pending := false
	var oldest time.Time
	for _, s := range p.snapshots {
		if s.Account != id {
			continue
		}
		services, tasks := s.Counts()
		r := RegionStatus{Region: s.Region, Complete: s.Complete, Services: services, Tasks: tasks, LastCompleteSweep: stamp(s.SweptAt), Clusters: []string{}}
		for _, c := range s.SortedClusters() {
			if len(r.Clusters) < maxClusterNames {
				r.Clusters = append(r.Clusters, c.Cluster.Name)
			}
		}
		if len(st.Regions) == 0 || s.SweptAt.Before(oldest) {
			oldest = s.SweptAt
		}
		st.Clusters, st.Services, st.Tasks = st.Clusters+len(s.Clusters), st.Services+services, st.Tasks+tasks
		st.Regions = append(st.Regions, r)
		pending = pending || s.Sweeps == 0
		if s.Err != nil && failed == nil {
			failed = s
		}
	}
	st.LastCompleteSweep = stamp(oldest)
	slices.SortFunc(st.Regions, func(a, b RegionStatus) int { return strings.Compare(a.Region, b.Region) })
	switch {
	case failed != nil:
		st.LastError = w.errorOf(failed)
		condition(conditionSynced, "False", string(st.LastError.Code), st.LastError.Message)
	case pending || len(st.Regions) == 0:
		condition(conditionSynced, "Unknown", "Pending", "no sweep has ended yet")
	default:
		condition(conditionSynced, "True", "Complete", "")
	}
	return st
}

func (w *accountWriter) errorOf(s *inventory.Snapshot) *AccountError {
	out := &AccountError{Code: codeOf(s.Err), Region: s.Region, Message: s.Err.Error()}
	for _, problem := range w.c.accounts.problems() {
		if problem.Object == s.Account+" in "+s.Region {
			out.Code, out.Message, out.Fix = problem.Code, problem.Cause, problem.Fix
		}
	}
	return out
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// withoutTimes is a copy in which only times are missing.
func (st ECSAccountStatus) withoutTimes() ECSAccountStatus {
	st.LastCompleteSweep = ""
	st.Conditions, st.Regions = slices.Clone(st.Conditions), slices.Clone(st.Regions)
	for i := range st.Conditions {
		st.Conditions[i].LastTransitionTime = ""
	}
	for i := range st.Regions {
		st.Regions[i].LastCompleteSweep = ""
	}
	return st
}

// problemsByAccount gathers the problems of each account by code.
func problemsByAccount(problems []discovery.Problem) map[string][]ProblemReason {
	type key struct {
		account string
		code    diag.Code
	}
	reasons := map[key]*ProblemReason{}
	for _, p := range problems {
		k := key{code: p.Code}
		if arn, err := inventory.ParseARN(p.Object); err == nil {
			k.account = arn.Account
		} else if id, _, ok := strings.Cut(p.Object, " in "); ok {
			k.account = id
		} else {
			continue
		}
		r := reasons[k]
		if r == nil {
			r = &ProblemReason{Code: p.Code, Object: p.Object, Message: p.Cause, Fix: p.Fix}
			reasons[k] = r
		}
		r.Count++
		if p.Object < r.Object {
			r.Object, r.Message, r.Fix = p.Object, p.Cause, p.Fix
		}
	}
	out := map[string][]ProblemReason{}
	for k, r := range reasons {
		out[k.account] = append(out[k.account], *r)
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b ProblemReason) int { return cmp.Or(b.Count-a.Count, cmp.Compare(a.Code, b.Code)) })
	}
	return out
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
