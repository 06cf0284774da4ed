package live

import (
	"context"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// DefaultPolicyWait is how long a policy that is not known yet is waited for.
const DefaultPolicyWait = 2 * time.Second

// Judge decides by policies about connections. Store, Live, Wait and Log are required.
type Judge struct {
	Store *state.Store
	Live  *Registry
	// Wait is how long a connection waits for policies that its destination names and that have not arrived. Then it is
	// refused, or, with AllowMissing, judged without them; see docs/decisions/0003.
	Wait         time.Duration
	AllowMissing bool
	LogVerdicts  bool // at info instead of debug
	// Now returns the present record of a connection's destination, whose list of policies may have changed since; nil
	// looks it up by its UID.
	Now func(s *state.Snapshot, dst *mesh.Workload) *mesh.Workload
	Log *slog.Logger
}

// ask asks the policies of the snapshot about the connection.
func (j *Judge) ask(s *state.Snapshot, c *Conn) (policy.Decision, []mesh.PolicyKey) {
	dst := c.Dst
	if j.Now != nil {
		dst = j.Now(s, dst)
	} else if now := s.Workload(dst.UID); now != nil {
		dst = now
	}
	ps, missing := s.PoliciesFor(dst)
	return policy.Evaluate(ps, c.Ask), missing
}

// Decide judges a new connection, logs what dry runs and missing policies there were, and notes in rec which policy has
// decided. The error of a refusal is a *DeniedError.
func (j *Judge) Decide(ctx context.Context, c *Conn, snap *state.Snapshot, rec *telemetry.Conn) error {
	d, missing := j.decide(ctx, c, snap)
	level := slog.LevelDebug // ztunnel's, unless a setting makes it info
	if j.LogVerdicts {
		level = slog.LevelInfo
	}
	if j.Log.Enabled(ctx, level) {
		j.Log.LogAttrs(ctx, level, "policies evaluated", logattr.Outcome(allowedWord(d.Allowed)), logattr.Policy(d.Policy), logattr.Rule(d.Policy, d.Rule),
			logattr.SrcAddr(c.Ask.SourceAddr), logattr.SrcIdentity(c.Ask.Source), logattr.DstAddr(c.Ask.DestinationAddr))
	}
	for _, k := range missing {
		j.Log.Warn("policy of the workload is not known and cannot be enforced", logattr.Policy(k), logattr.Outcome(allowedWord(d.Allowed)))
	}
	for _, r := range d.DryRun {
		result := "no match"
		if r.Matched {
			result = "match"
		}
		j.Log.Info("dry-run policy evaluated", logattr.Policy(r.Policy), logattr.DryRun(result), logattr.SrcAddr(rec.SrcAddr))
	}
	rec.Policy, rec.Rule = d.Policy, d.Rule
	if !d.Allowed {
		return &DeniedError{d.Reason}
	}
	return nil
}

// decide judges a new connection. A workload may name policies that have not arrived: istiod sends workloads and
// policies in responses of their own. A verdict that they could change waits for them a while.
func (j *Judge) decide(ctx context.Context, c *Conn, snap *state.Snapshot) (policy.Decision, []mesh.PolicyKey) {
	d, missing := j.ask(snap, c)
	if len(missing) == 0 || d.Final() {
		return d, nil
	}
	t := time.NewTimer(j.Wait)
	defer t.Stop()
	for len(missing) > 0 && !d.Final() {
		changed := j.Store.PoliciesChanged()
		if d, missing = j.ask(j.Store.Snapshot(), c); len(missing) == 0 || d.Final() {
			return d, nil
		}
		select {
		case <-changed:
			continue
		case <-t.C:
		case <-ctx.Done():
		}
		break
	}
	if !j.AllowMissing {
		d = d.Without(missing)
	}
	return d, missing
}

func allowedWord(allowed bool) string {
	if allowed {
		return "allowed"
	}
	return "denied"
}

// Watch ends connections that a change of policies no longer allows, until ctx ends. Where a policy is missing that
// might allow one, it is waited for as long as for new connections.
func (j *Judge) Watch(ctx context.Context) {
	t := time.NewTimer(j.Wait)
	defer t.Stop()
	overdue := false
	for {
		changed := j.Store.PoliciesChanged()
		snap := j.Store.Snapshot()
		waiting := false
		for _, c := range j.Live.all() {
			if c.Dst == nil {
				continue
			}
			d, missing := j.ask(snap, c)
			switch {
			case d.Allowed:
			case len(missing) == 0 || d.Final() || overdue:
				c.Stop(ErrPolicyChange, d)
			default:
				waiting = true
			}
		}
		var wait <-chan time.Time
		if waiting {
			t.Reset(j.Wait)
			wait = t.C
		}
		select {
		case <-changed:
			overdue = false
		case <-wait:
			overdue = true
		case <-ctx.Done():
			return
		}
	}
}
