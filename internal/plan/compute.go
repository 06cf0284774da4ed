package plan

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// planner is one computation.
type planner struct {
	in            Input
	scopes        map[scopeKey]*inventory.Snapshot
	wantedSources map[string]bool // "Kind ARN" of everything wanted
	currentOurs   []object
	memory        Memory
}

// Compute returns what to change so that the current objects become the wanted ones, as far as the rules allow, and
// what to remember for the next time. Applying the changes and computing again yields an empty plan.
func Compute(in Input) (Changes, Memory) {
	in.Limits = in.Limits.withDefaults()
	p := &planner{in: in, scopes: map[scopeKey]*inventory.Snapshot{}, wantedSources: map[string]bool{}, memory: Memory{Held: map[Key]HeldSince{}, Absent: map[Key]HeldSince{}}}
	for _, s := range in.Snapshots {
		p.scopes[scopeKey{s.Account, s.Region}] = s
	}
	var out Changes
	wanted := p.wanted()
	current := p.current(&out)
	for _, o := range wanted {
		for _, source := range o.sources {
			p.wantedSources[o.key.Kind+" "+source] = true
		}
	}
	out.Unchanged = make([]Change, 0, len(wanted)) // nearly all are, nearly always
	for _, o := range wanted {
		have, ok := current[o.key]
		switch {
		case !ok:
			out.Create = append(out.Create, p.about(o, Create, "new: "+strings.Join(o.sources, " ")))
		case have.foreign:
			c := p.about(o, Hold, "an object of this name exists that is not managed by "+discovery.ManagedBy)
			c.Rule = RuleForeign
			out.Held = append(out.Held, c)
		default:
			diffs := diff(have.object, o)
			if len(diffs) == 0 {
				out.Unchanged = append(out.Unchanged, p.about(o, Keep, ""))
				continue
			}
			c := p.about(o, Update, "changed: "+fieldNames(diffs))
			c.Fields = diffs
			out.Update = append(out.Update, c)
		}
	}
	p.deletions(wanted, &out)
	sortChanges(&out)
	return out, p.memory
}

// deletions judges every object of ours that is not wanted.
func (p *planner) deletions(wanted []object, out *Changes) {
	isWanted := make(map[Key]bool, len(wanted))
	for _, o := range wanted {
		isWanted[o.key] = true
	}
	var judged []judgement
	for _, o := range p.currentOurs {
		if isWanted[o.key] {
			continue
		}
		v, at := p.judge(o)
		judged = append(judged, judgement{o, v, at})
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

// wanted returns the wanted objects.
func (p *planner) wanted() []object {
	out := make([]object, 0, len(p.in.Desired.ServiceEntries)+len(p.in.Desired.WorkloadEntries))
	for i := range p.in.Desired.ServiceEntries {
		out = append(out, serviceObject(&p.in.Desired.ServiceEntries[i]))
	}
	for i := range p.in.Desired.WorkloadEntries {
		out = append(out, workloadObject(&p.in.Desired.WorkloadEntries[i]))
	}
	return out
}

type currentObject struct {
	object
	foreign bool
}

// current returns the current objects by key, and notes which of them are ours.
func (p *planner) current(out *Changes) map[Key]currentObject {
	n := len(p.in.Current.ServiceEntries) + len(p.in.Current.WorkloadEntries)
	all := make(map[Key]currentObject, n)
	p.currentOurs = make([]object, 0, n)
	add := func(o object) {
		foreign := o.meta.Labels[discovery.LabelManagedBy] != discovery.ManagedBy
		all[o.key] = currentObject{o, foreign}
		if foreign {
			out.Foreign++
			return
		}
		p.currentOurs = append(p.currentOurs, o)
	}
	for i := range p.in.Current.ServiceEntries {
		add(serviceObject(&p.in.Current.ServiceEntries[i]))
	}
	for i := range p.in.Current.WorkloadEntries {
		add(workloadObject(&p.in.Current.WorkloadEntries[i]))
	}
	slices.SortFunc(p.currentOurs, func(a, b object) int { return compareKeys(a.key, b.key) })
	return all
}

func serviceObject(e *discovery.ServiceEntry) object {
	return object{key: Key{discovery.KindServiceEntry, e.Metadata.Namespace, e.Metadata.Name}, meta: &e.Metadata, service: e,
		sources: strings.Fields(e.Metadata.Annotations[discovery.AnnotationSource])}
}

func workloadObject(e *discovery.WorkloadEntry) object {
	return object{key: Key{discovery.KindWorkloadEntry, e.Metadata.Namespace, e.Metadata.Name}, meta: &e.Metadata, workload: e,
		sources: strings.Fields(e.Metadata.Annotations[discovery.AnnotationSource])}
}

func (p *planner) about(o object, a Action, reason string) Change {
	c := Change{Action: a, Key: o.key, Service: o.service, Workload: o.workload, Reason: reason}
	if len(o.sources) > 0 {
		if arn, err := inventory.ParseARN(o.sources[0]); err == nil {
			c.Account, c.Region = arn.Account, arn.Region
		}
	}
	return c
}

// diff returns the fields in which an object of ours differs from the wanted one. Labels and annotations that are not
// ours belong to others and do not count; of ours, those that are no longer wanted do.
func diff(have, want object) []FieldDiff {
	var out []FieldDiff
	out = append(out, diffMap("labels", have.meta.Labels, want.meta.Labels)...)
	out = append(out, diffMap("annotations", have.meta.Annotations, want.meta.Annotations)...)
	if want.service != nil {
		out = append(out, diffStruct(reflect.ValueOf(have.service.Spec), reflect.ValueOf(want.service.Spec))...)
	} else {
		out = append(out, diffStruct(reflect.ValueOf(have.workload.Spec), reflect.ValueOf(want.workload.Spec))...)
	}
	return out
}

func diffMap(what string, have, want map[string]string) []FieldDiff {
	if maps.Equal(have, want) {
		return nil // the usual case, and the one that must be cheap
	}
	var out []FieldDiff
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if old, ok := have[k]; !ok || old != want[k] {
			out = append(out, FieldDiff{what + "." + k, old, want[k]})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[k]; !ok && ours(k) {
			out = append(out, FieldDiff{what + "." + k, have[k], ""})
		}
	}
	return out
}

// ours reports whether a label or annotation is one that discovery writes.
func ours(key string) bool {
	switch key {
	case discovery.LabelManagedBy, discovery.LabelApp, discovery.LabelCanonicalName, discovery.LabelCanonicalRevision,
		discovery.AnnotationHBONE, discovery.AnnotationTrafficDistribution:
		return true
	}
	return strings.HasPrefix(key, "ecs.solo.io/") || strings.HasPrefix(key, "isthmus.dev/")
}

// diffStruct compares two specs field by field. An empty list or map equals an absent one.
func diffStruct(have, want reflect.Value) []FieldDiff {
	var out []FieldDiff
	for i := range want.NumField() {
		h, w := have.Field(i), want.Field(i)
		if isEmpty(h) && isEmpty(w) || reflect.DeepEqual(h.Interface(), w.Interface()) {
			continue
		}
		name, _, _ := strings.Cut(want.Type().Field(i).Tag.Get("json"), ",")
		out = append(out, FieldDiff{"spec." + name, show(h), show(w)})
	}
	return out
}

func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	}
	return v.IsZero()
}

func show(v reflect.Value) string {
	if isEmpty(v) {
		return ""
	}
	switch x := v.Interface().(type) {
	case *discovery.WorkloadSelector:
		return showMap(x.Labels)
	case []discovery.Port:
		var parts []string
		for _, p := range x {
			s := fmt.Sprintf("%s:%d", p.Name, p.Number)
			if p.TargetPort != 0 {
				s += fmt.Sprintf("->%d", p.TargetPort)
			}
			parts = append(parts, s+"/"+p.Protocol)
		}
		return strings.Join(parts, " ")
	case map[string]uint32:
		m := map[string]string{}
		for k, v := range x {
			m[k] = fmt.Sprint(v)
		}
		return showMap(m)
	default:
		return fmt.Sprint(x)
	}
}

func showMap(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, " ")
}

func fieldNames(diffs []FieldDiff) string {
	names := make([]string, len(diffs))
	for i, d := range diffs {
		names[i] = d.Field
	}
	return strings.Join(names, ", ")
}

// sortChanges puts ServiceEntries before WorkloadEntries, and after them where things are deleted.
func sortChanges(c *Changes) {
	byKey := func(a, b Change) int { return compareKeys(a.Key, b.Key) }
	for _, list := range [][]Change{c.Create, c.Update, c.Held, c.Unchanged} {
		slices.SortFunc(list, byKey)
	}
	slices.SortFunc(c.Delete, func(a, b Change) int {
		return cmp.Or(-cmp.Compare(a.Key.Kind, b.Key.Kind), byKey(a, b))
	})
}

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// WantEvidence returns the ARNs about which the plan would like to know more: sources of objects that were kept only
// because nobody said what became of them. Reflector.Expect takes them.
func (c Changes) WantEvidence() []string {
	var out []string
	for _, h := range c.Held {
		if h.Rule != RuleEmpty && h.Rule != RuleAbsentOnce && h.Rule != RuleMass {
			continue
		}
		var meta discovery.ObjectMeta
		if h.Service != nil {
			meta = h.Service.Metadata
		} else if h.Workload != nil {
			meta = h.Workload.Metadata
		}
		out = append(out, strings.Fields(meta.Annotations[discovery.AnnotationSource])...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
