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

// Compute returns what to change so that the current objects become the wanted ones, as far as the rules allow, and
// what to remember for the next time. Applying the changes and computing again yields an empty plan. It is what an
// Engine comes to that is given everything at once.
func Compute(in Input) (Changes, Memory) {
	e := NewEngine()
	e.memory = in.Memory
	for i := range in.Desired.ServiceEntries {
		e.Want(Object{Service: &in.Desired.ServiceEntries[i]}.Key(), Object{Service: &in.Desired.ServiceEntries[i]})
	}
	for i := range in.Desired.WorkloadEntries {
		e.Want(Object{Workload: &in.Desired.WorkloadEntries[i]}.Key(), Object{Workload: &in.Desired.WorkloadEntries[i]})
	}
	for i := range in.Current.ServiceEntries {
		e.Have(Object{Service: &in.Current.ServiceEntries[i]}.Key(), Object{Service: &in.Current.ServiceEntries[i]})
	}
	for i := range in.Current.WorkloadEntries {
		e.Have(Object{Workload: &in.Current.WorkloadEntries[i]}.Key(), Object{Workload: &in.Current.WorkloadEntries[i]})
	}
	skipped := func(arn string) (discovery.Skip, bool) { s, ok := in.Desired.Skipped[arn]; return s, ok }
	out := e.Plan(in.Snapshots, skipped, in.Limits)
	out.Unchanged = make([]Change, 0, out.Kept) // nearly all are, nearly always
	for k, o := range e.wanted {
		if _, ok := e.todo[k]; !ok {
			out.Unchanged = append(out.Unchanged, about(o, Keep, ""))
		}
	}
	sortChanges(&out)
	return out, e.memory
}

func serviceObject(e *discovery.ServiceEntry) object {
	return object{key: Key{discovery.KindServiceEntry, e.Metadata.Namespace, e.Metadata.Name}, meta: &e.Metadata, service: e}
}

func workloadObject(e *discovery.WorkloadEntry) object {
	return object{key: Key{discovery.KindWorkloadEntry, e.Metadata.Namespace, e.Metadata.Name}, meta: &e.Metadata, workload: e}
}

// about makes a change of a wanted object.
func about(o object, a Action, reason string) Change {
	c := Change{Action: a, Key: o.key, Service: o.service, Workload: o.workload, Reason: reason}
	if sources := o.sources(); len(sources) > 0 {
		if arn, err := inventory.ParseARN(sources[0]); err == nil {
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
