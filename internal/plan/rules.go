package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Rule names the reason for which a deletion is done, or is not.
//
// The rules are asked in this order; the first that has an answer decides. "Source" is the ECS task or service that the
// object stands for (several, for a shared host name: then all of them must be gone).
//
//	rule             decides                                                                            deletes
//	foreign          the object is not ours, or of an account and region not swept here                 never
//	not-swept        there was no complete sweep of its account and region yet                          no
//	incomplete       the last look at its cluster (or at the account) was incomplete                    no
//	not-asked        the source exists and ECS has not said that it should stop                         no
//	told-to-stop     the source exists and ECS says stop: stopping, draining, unhealthy, opted out      yes
//	moved            the source exists and its object is wanted under another name or namespace         yes
//	gone             the source was seen to end: terminal, MISSING, cluster gone, opt-in tag removed    yes
//	empty            the source is merely absent, and so is everything else of the account              no
//	absent-once      the source is merely absent, and not yet from two complete sweeps; ECS is asked    no
//	absent           the source is absent from two complete sweeps, and ECS, asked, did not object      yes
//	mass             the deletions above are too large a share of the account's workloads               no
//	mass-confirmed   ... and an operator confirmed them                                                 yes
//	mass-persisted   ... and ECS has said the same, with positive evidence, for several sweeps          yes
type Rule string

// The rules.
const (
	RuleForeign       Rule = "foreign"
	RuleNotSwept      Rule = "not-swept"
	RuleIncomplete    Rule = "incomplete"
	RuleNotAsked      Rule = "not-asked"
	RuleToldToStop    Rule = "told-to-stop"
	RuleMoved         Rule = "moved"
	RuleGone          Rule = "gone"
	RuleEmpty         Rule = "empty"
	RuleAbsentOnce    Rule = "absent-once"
	RuleAbsent        Rule = "absent"
	RuleMass          Rule = "mass"
	RuleMassConfirmed Rule = "mass-confirmed"
	RuleMassPersisted Rule = "mass-persisted"
)

// Defaults of Limits.
const (
	defaultMaxDeleteShare = 0.5
	defaultMinDeleteCount = 10
	defaultReleaseAfter   = 3
	sweepsForAbsence      = 2
)

func (l Limits) withDefaults() Limits {
	if l.MaxDeleteShare <= 0 {
		l.MaxDeleteShare = defaultMaxDeleteShare
	}
	if l.MinDeleteCount <= 0 {
		l.MinDeleteCount = defaultMinDeleteCount
	}
	if l.ReleaseAfter <= 0 {
		l.ReleaseAfter = defaultReleaseAfter
	}
	return l
}

// scopeKey names an account and region.
type scopeKey struct{ account, region string }

// object is a current object in the form that the rules need.
type object struct {
	key      Key
	meta     *discovery.ObjectMeta
	service  *discovery.ServiceEntry
	workload *discovery.WorkloadEntry
}

// sources returns the ARNs that the object stands for.
func (o object) sources() []string {
	return strings.Fields(o.meta.Annotations[discovery.AnnotationSource])
}

func (o object) change(a Action, r Rule, account, region, format string, args ...any) Change {
	return Change{Action: a, Key: o.key, Service: o.service, Workload: o.workload, Rule: r, Reason: fmt.Sprintf(format, args...), Account: account, Region: region}
}

// verdict is what the rules say about one object that is not wanted.
type verdict struct {
	rule     Rule
	delete   bool
	positive bool // AWS said so about the source itself
	reason   string
}

// judge asks the rules up to mass about an object that is not wanted.
func (p *planner) judge(o object) (verdict, scopeKey) {
	var out verdict
	var at scopeKey
	sources := o.sources()
	for i, source := range sources {
		v, scope := p.judgeSource(o, source)
		if !v.delete {
			return v, scope // one source that may still be there is enough to keep the object
		}
		if i == 0 {
			out, at = v, scope
		}
		out.positive = out.positive && v.positive
	}
	if len(sources) == 0 {
		return verdict{rule: RuleForeign, reason: "it does not say which ECS task or service it stands for"}, at
	}
	return out, at
}

func (p *planner) judgeSource(o object, source string) (verdict, scopeKey) {
	arn, err := inventory.ParseARN(source)
	at := scopeKey{arn.Account, arn.Region}
	snap := p.scopes[at]
	if err != nil || snap == nil {
		return verdict{rule: RuleForeign, reason: "its account and region are not swept here"}, at
	}
	if snap.CompleteSweeps == 0 {
		return verdict{rule: RuleNotSwept, reason: "there was no complete sweep of the account yet"}, at
	}
	cluster := clusterOf(snap, arn)
	switch {
	case cluster != nil && !cluster.Complete:
		return verdict{rule: RuleIncomplete, reason: fmt.Sprintf("the last look at cluster %s was incomplete: %v", cluster.Cluster.Name, cluster.Err)}, at
	case cluster == nil && !snap.Complete:
		return verdict{rule: RuleIncomplete, reason: fmt.Sprintf("the last sweep was incomplete: %v", snap.Err)}, at
	}
	if skip, ok := p.skipped(source); ok {
		if skip.Drop {
			return verdict{rule: RuleToldToStop, delete: true, positive: true, reason: skip.Reason}, at
		}
		return verdict{rule: RuleNotAsked, reason: skip.Reason}, at
	}
	if p.wantedSources[sourceKey{o.key.Kind, source}] > 0 {
		return verdict{rule: RuleMoved, delete: true, positive: true, reason: "it is wanted under another name or namespace"}, at
	}
	if exists(cluster, arn, source) {
		return verdict{rule: RuleNotAsked, reason: "its source exists"}, at
	}
	if why := snap.Gone[source]; why.Positive() {
		return verdict{rule: RuleGone, delete: true, positive: true, reason: "ecs: " + why.String()}, at
	}
	if why := snap.Gone[inventory.ClusterARNOf(source)]; why.Positive() && cluster == nil {
		return verdict{rule: RuleGone, delete: true, positive: true, reason: "its cluster: " + why.String()}, at
	}
	if empty(snap) {
		return verdict{rule: RuleEmpty, reason: "ecs shows nothing at all of the account, which is not believed without a word about this very source"}, at
	}
	if sweeps := sweepsOf(snap, arn); sweeps < sweepsForAbsence || !p.absentBefore(o.key, sweeps) {
		return verdict{rule: RuleAbsentOnce, reason: "absent from the lists; ecs is being asked about it by name"}, at
	}
	return verdict{rule: RuleAbsent, delete: true, reason: "absent from two complete sweeps"}, at
}

// sweepsOf counts the complete looks at the cluster of a source, or at the account if the cluster is not known.
func sweepsOf(snap *inventory.Snapshot, arn inventory.ARN) uint64 {
	if c := clusterOf(snap, arn); c != nil {
		return c.CompleteSweeps
	}
	return snap.CompleteSweeps
}

// absentBefore reports whether an earlier sweep lacked the object's source too, and notes that this one does. Between
// the two somebody can ask ECS about the source (Changes.WantEvidence), which beats any list.
func (p *planner) absentBefore(k Key, sweep uint64) bool {
	since, ok := p.before.Absent[k]
	if !ok || since.Sweep > sweep {
		since = HeldSince{Sweep: sweep}
	}
	p.memory.Absent[k] = since
	return since.Sweep < sweep
}

func clusterOf(snap *inventory.Snapshot, arn inventory.ARN) *inventory.ClusterView {
	return snap.Clusters[inventory.ClusterARNOf(arn.String())]
}

func exists(c *inventory.ClusterView, arn inventory.ARN, source string) bool {
	if c == nil {
		return false
	}
	if strings.HasPrefix(arn.Resource, "task/") {
		return c.Tasks[source] != nil
	}
	svc := c.Services[inventory.LastPart(arn.Resource)]
	return svc != nil && svc.ARN == source
}

func empty(snap *inventory.Snapshot) bool {
	services, tasks := snap.Counts()
	return services+tasks == 0
}

// holdMass takes back deletions of an account that are too many at once, unless they are confirmed or have been wanted,
// with positive evidence, for several sweeps.
func (p *planner) holdMass(judged []judgement) (out []judgement) {
	byAccount := map[string][]int{}
	for i, j := range judged {
		if j.verdict.delete && j.object.workload != nil {
			byAccount[j.at.account] = append(byAccount[j.at.account], i)
		}
	}
	workloads := p.workloads
	out = slices.Clone(judged)
	for account, deletes := range byAccount {
		l := p.limits
		if len(deletes) < l.MinDeleteCount || float64(len(deletes)) <= l.MaxDeleteShare*float64(workloads[account]) {
			continue
		}
		for _, i := range deletes {
			j := &out[i]
			if l.Confirmed[account] {
				j.verdict.rule, j.verdict.reason = RuleMassConfirmed, j.verdict.reason+"; confirmed by an operator"
				continue
			}
			arn, _ := inventory.ParseARN(j.object.sources()[0]) // parsed before, by the rules
			sweep := sweepsOf(p.scopes[j.at], arn)
			since, ok := p.before.Held[j.object.key]
			if !ok || since.Sweep > sweep || !j.verdict.positive {
				since = HeldSince{Sweep: sweep} // evidence must be positive all along
			}
			if j.verdict.positive && sweep-since.Sweep >= uint64(l.ReleaseAfter) {
				j.verdict.rule, j.verdict.reason = RuleMassPersisted, fmt.Sprintf("%s; wanted for %d complete sweeps", j.verdict.reason, sweep-since.Sweep)
				continue
			}
			p.memory.Held[j.object.key] = since
			j.verdict.delete, j.verdict.rule = false, RuleMass
			j.verdict.reason = fmt.Sprintf("%s; but %d of %d workloads of account %s would go at once (limit %.0f%%)",
				j.verdict.reason, len(deletes), workloads[account], account, l.MaxDeleteShare*100)
		}
	}
	return out
}

type judgement struct {
	object  object
	verdict verdict
	at      scopeKey
}
