package proxy

import (
	"context"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/policy"
	"github.com/isthmus-mesh/isthmus/internal/state"
)

// authorise asks the policies of the snapshot about the connection.
func (e *entry) authorise(s *state.Snapshot) (policy.Decision, []mesh.PolicyKey) {
	dst := e.dst
	if now := s.Workload(dst.UID); now != nil {
		dst = now // its list of policies may have changed since the connection was accepted
	}
	ps, missing := s.PoliciesFor(dst)
	return policy.Evaluate(ps, e.ask), missing
}

// decide judges a new connection. A workload may name policies that have not arrived: istiod sends workloads and
// policies in responses of their own. A verdict that they could change waits for them a while. What then is left
// unknown refuses the connection, unless Config.AllowMissingPolicies; see docs/decisions/0003.
func (p *Proxy) decide(ctx context.Context, e *entry, snap *state.Snapshot) (policy.Decision, []mesh.PolicyKey) {
	d, missing := e.authorise(snap)
	if len(missing) == 0 || d.Final() {
		return d, nil
	}
	t := time.NewTimer(p.cfg.PolicyWait)
	defer t.Stop()
	for len(missing) > 0 && !d.Final() {
		changed := p.cfg.Store.PoliciesChanged()
		if d, missing = e.authorise(p.cfg.Store.Snapshot()); len(missing) == 0 || d.Final() {
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
	if !p.cfg.AllowMissingPolicies {
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

// watchPolicies ends inbound connections that a change of policies no longer allows, until ctx ends. Where a policy is
// missing that might allow one, it is waited for as long as for new connections.
func (p *Proxy) watchPolicies(ctx context.Context) {
	t := time.NewTimer(p.cfg.PolicyWait)
	defer t.Stop()
	overdue := false
	for {
		changed := p.cfg.Store.PoliciesChanged()
		snap := p.cfg.Store.Snapshot()
		waiting := false
		for _, e := range p.live.all() {
			if e.dst == nil {
				continue
			}
			d, missing := e.authorise(snap)
			switch {
			case d.Allowed:
			case len(missing) == 0 || d.Final() || overdue:
				e.stop(ErrPolicyChange, d)
			default:
				waiting = true
			}
		}
		var wait <-chan time.Time
		if waiting {
			t.Reset(p.cfg.PolicyWait)
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
