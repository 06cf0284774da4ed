package plan

import (
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Engine plans again and again at the cost of what changed: it compares an object when it is told that what is wanted of
// it, or what there is of it, is different. The rules are asked at each plan about every object that exists and is not
// wanted; those are few, or they are the change. It is not safe for concurrent use.
type Engine struct {
	wanted  map[Key]object
	current map[Key]object // ours
	foreign map[Key]object // of that name, but not ours
	orphans map[Key]object // ours and not wanted
	todo    map[Key]Change // what wanted objects need: create, update, or hold because of a foreign one

	wantedSources map[sourceKey]int // how many wanted objects stand for a source
	workloads     map[string]int    // our current WorkloadEntries by account
	memory        Memory
}

type sourceKey struct{ kind, arn string }

// Object is a ServiceEntry or a WorkloadEntry; the zero value is none. It must not be changed once it was handed over.
type Object struct {
	Service  *discovery.ServiceEntry
	Workload *discovery.WorkloadEntry
}

// Key names the object.
func (o Object) Key() Key { return o.internal().key }

func (o Object) internal() object {
	switch {
	case o.Service != nil:
		return serviceObject(o.Service)
	case o.Workload != nil:
		return workloadObject(o.Workload)
	}
	return object{}
}

// NewEngine returns an Engine that knows of nothing wanted and of nothing that exists.
func NewEngine() *Engine {
	return &Engine{
		wanted: map[Key]object{}, current: map[Key]object{}, foreign: map[Key]object{}, orphans: map[Key]object{}, todo: map[Key]Change{},
		wantedSources: map[sourceKey]int{}, workloads: map[string]int{},
	}
}

// Want says what the object of that key should be; the zero Object means that it should not be.
func (e *Engine) Want(k Key, o Object) {
	if old, ok := e.wanted[k]; ok {
		e.countSources(old, -1)
		delete(e.wanted, k)
	}
	if o != (Object{}) {
		now := o.internal()
		e.wanted[k] = now
		e.countSources(now, +1)
	}
	e.compare(k)
}

// Have says what the object of that key is; the zero Object means that there is none.
func (e *Engine) Have(k Key, o Object) {
	if old, ok := e.current[k]; ok {
		e.countWorkload(old, -1)
	}
	delete(e.current, k)
	delete(e.foreign, k)
	if o != (Object{}) {
		now := o.internal()
		if now.meta.Labels[discovery.LabelManagedBy] == discovery.ManagedBy {
			e.current[k] = now
			e.countWorkload(now, +1)
		} else {
			e.foreign[k] = now
		}
	}
	e.compare(k)
}

func (e *Engine) countSources(o object, by int) {
	for _, source := range o.sources() {
		key := sourceKey{o.key.Kind, source}
		if e.wantedSources[key] += by; e.wantedSources[key] == 0 {
			delete(e.wantedSources, key)
		}
	}
}

func (e *Engine) countWorkload(o object, by int) {
	if o.workload == nil {
		return
	}
	source, _, _ := strings.Cut(o.meta.Annotations[discovery.AnnotationSource], " ")
	if arn, err := inventory.ParseARN(source); err == nil {
		if e.workloads[arn.Account] += by; e.workloads[arn.Account] == 0 {
			delete(e.workloads, arn.Account)
		}
	}
}

// compare settles what an object needs.
func (e *Engine) compare(k Key) {
	want, wanted := e.wanted[k]
	have, exists := e.current[k]
	_, foreign := e.foreign[k]
	delete(e.todo, k)
	delete(e.orphans, k)
	switch {
	case !wanted && exists:
		e.orphans[k] = have
	case !wanted:
	case foreign:
		c := about(want, Hold, "an object of this name exists that is not managed by "+discovery.ManagedBy)
		c.Rule = RuleForeign
		e.todo[k] = c
	case !exists:
		e.todo[k] = about(want, Create, "new: "+want.meta.Annotations[discovery.AnnotationSource])
	default:
		if diffs := diff(have, want); len(diffs) > 0 {
			c := about(want, Update, "changed: "+fieldNames(diffs))
			c.Fields = diffs
			e.todo[k] = c
		} else {
			e.current[k] = want // it says the same; one of the two is enough to keep
		}
	}
}

// Plan returns what to change, and remembers what the rules must remember until the next plan. Snapshots are those that
// what is wanted was made from, one for each account and region; skipped says why a source that exists has no object.
func (e *Engine) Plan(snapshots []*inventory.Snapshot, skipped func(arn string) (discovery.Skip, bool), limits Limits) Changes {
	p := &planner{
		limits: limits.withDefaults(), before: e.memory, scopes: map[scopeKey]*inventory.Snapshot{}, skipped: skipped,
		wantedSources: e.wantedSources, workloads: e.workloads, memory: Memory{Held: map[Key]HeldSince{}, Absent: map[Key]HeldSince{}},
	}
	e.todo, e.orphans = shrunk(e.todo), shrunk(e.orphans)
	for _, s := range snapshots {
		p.scopes[scopeKey{s.Account, s.Region}] = s
	}
	out := Changes{Kept: len(e.wanted) - len(e.todo), Foreign: len(e.foreign)}
	for _, c := range e.todo {
		switch c.Action {
		case Create:
			out.Create = append(out.Create, c)
		case Update:
			out.Update = append(out.Update, c)
		default:
			out.Held = append(out.Held, c)
		}
	}
	p.deletions(e.orphans, &out)
	sortChanges(&out)
	e.memory = p.memory
	return out
}

// shrunk returns a map that costs no more to walk than what it holds: one that was large goes on costing what it once
// held. Those that hold much change much, and are left as they are.
func shrunk[V any](m map[Key]V) map[Key]V {
	const few = 64
	if len(m) > few {
		return m
	}
	out := make(map[Key]V, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// planner is one look at the objects that are not wanted.
type planner struct {
	limits        Limits
	before        Memory
	scopes        map[scopeKey]*inventory.Snapshot
	skipped       func(arn string) (discovery.Skip, bool)
	wantedSources map[sourceKey]int
	workloads     map[string]int
	memory        Memory
}

// deletions judges every object of ours that is not wanted.
func (p *planner) deletions(orphans map[Key]object, out *Changes) {
	judged := make([]judgement, 0, len(orphans))
	for _, k := range slices.SortedFunc(maps.Keys(orphans), compareKeys) {
		v, at := p.judge(orphans[k])
		judged = append(judged, judgement{orphans[k], v, at})
	}
	for _, j := range p.holdMass(judged) {
		switch {
		case j.verdict.delete:
			out.Delete = append(out.Delete, j.object.change(Delete, j.verdict.rule, j.at.account, j.at.region, "%s", j.verdict.reason))
		case j.verdict.rule == RuleForeign:
			out.Foreign++
		default:
			out.Held = append(out.Held, j.object.change(Hold, j.verdict.rule, j.at.account, j.at.region, "%s", j.verdict.reason))
		}
	}
}
