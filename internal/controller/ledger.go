package controller

import (
	"log/slog"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// ledger is what the planning loop knows: what is wanted, what there is, and what both come to. A round costs what has
// changed since the round before, not what there is.
type ledger struct {
	discovery *discovery.Engine
	plan      *plan.Engine
	// wanted holds what discovery wants by namespace. What is wanted in a namespace that does not exist cannot be written,
	// and is kept from the planner until it exists.
	wanted map[string]map[plan.Key]plan.Object
	absent map[string]bool           // namespaces in wanted that did not exist in the last round
	have   map[plan.Key]*kube.Object // what there is
	source map[string]plan.Key       // one of the keys in have, by the ARN that they stand for
	log    *slog.Logger
}

func newLedger(rules discovery.Config, log *slog.Logger) *ledger {
	return &ledger{
		discovery: discovery.NewEngine(rules), plan: plan.NewEngine(), wanted: map[string]map[plan.Key]plan.Object{}, absent: map[string]bool{},
		have: map[plan.Key]*kube.Object{}, source: map[string]plan.Key{}, log: log,
	}
}

// want takes over what discovery wants now.
func (l *ledger) want(inputs []discovery.Input, exists func(namespace string) bool) {
	delta := l.discovery.Update(inputs)
	for n, o := range delta.Services {
		l.wantOne(plan.Key{Kind: discovery.KindServiceEntry, Namespace: n.Namespace, Name: n.Name}, plan.Object{Service: o})
	}
	for n, o := range delta.Workloads {
		l.wantOne(plan.Key{Kind: discovery.KindWorkloadEntry, Namespace: n.Namespace, Name: n.Name}, plan.Object{Workload: o})
	}
	for namespace, objects := range l.wanted {
		if len(objects) == 0 {
			delete(l.wanted, namespace)
			delete(l.absent, namespace)
			continue
		}
		if absent := !exists(namespace); absent != l.absent[namespace] {
			l.absent[namespace] = absent
			for k, o := range objects {
				if absent {
					o = plan.Object{}
				}
				l.plan.Want(k, o)
			}
		}
	}
}

func (l *ledger) wantOne(k plan.Key, o plan.Object) {
	objects := l.wanted[k.Namespace]
	if objects == nil {
		objects = map[plan.Key]plan.Object{}
		l.wanted[k.Namespace] = objects
	}
	if o == (plan.Object{}) {
		delete(objects, k)
	} else {
		objects[k] = o
	}
	if !l.absent[k.Namespace] {
		l.plan.Want(k, o)
	}
}

// missing returns the namespaces that are wanted and do not exist, each with the ARN of an ECS cluster that wants it.
func (l *ledger) missing() map[string]string {
	out := map[string]string{}
	for namespace, absent := range l.absent {
		if !absent {
			continue
		}
		out[namespace] = namespace
		for _, o := range l.wanted[namespace] {
			if clusters := strings.Fields(annotations(o)[discovery.AnnotationClusters]); len(clusters) > 0 {
				out[namespace] = clusters[0]
				break // any will do: they all say the same namespace
			}
		}
	}
	return out
}

func annotations(o plan.Object) map[string]string {
	if o.Service != nil {
		return o.Service.Metadata.Annotations
	}
	return o.Workload.Metadata.Annotations
}

// see takes over what there is now of one kind.
func (l *ledger) see(kind string, changed map[kube.Name]*kube.Object) {
	for n, o := range changed {
		k := plan.Key{Kind: kind, Namespace: n.Namespace, Name: n.Name}
		if old := l.have[k]; old != nil {
			for _, arn := range sources(old) {
				if l.source[arn] == k {
					delete(l.source, arn)
				}
			}
		}
		if o == nil {
			delete(l.have, k)
			l.plan.Have(k, plan.Object{})
			continue
		}
		l.have[k] = o
		for _, arn := range sources(o) {
			l.source[arn] = k
		}
		l.plan.Have(k, l.decode(kind, o))
	}
}

func sources(o *kube.Object) []string {
	return strings.Fields(o.GetAnnotations()[discovery.AnnotationSource])
}

// decode reads an object. One that is not what its kind says is left with its metadata alone, so that it is put right if
// it is wanted, and judged by the rules if it is not.
func (l *ledger) decode(kind string, o *kube.Object) plan.Object {
	meta := discovery.ObjectMeta{Name: o.GetName(), Namespace: o.GetNamespace(), Labels: o.GetLabels(), Annotations: o.GetAnnotations()}
	if kind == discovery.KindServiceEntry {
		e := &discovery.ServiceEntry{}
		if err := kube.Decode(o, e); err != nil {
			l.log.Warn("object not understood", slog.String("error", err.Error()))
			e = &discovery.ServiceEntry{}
		}
		e.Kind, e.Metadata.Name, e.Metadata.Namespace, e.Metadata.Labels, e.Metadata.Annotations = kind, meta.Name, meta.Namespace, meta.Labels, meta.Annotations
		return plan.Object{Service: e}
	}
	e := &discovery.WorkloadEntry{}
	if err := kube.Decode(o, e); err != nil {
		l.log.Warn("object not understood", slog.String("error", err.Error()))
		e = &discovery.WorkloadEntry{}
	}
	e.Kind, e.Metadata.Name, e.Metadata.Namespace, e.Metadata.Labels, e.Metadata.Annotations = kind, meta.Name, meta.Namespace, meta.Labels, meta.Annotations
	return plan.Object{Workload: e}
}

// about returns an object that stands for an ARN, or nil.
func (l *ledger) about(arn string) *kube.Object {
	k, ok := l.source[arn]
	if !ok {
		return nil
	}
	return l.have[k]
}
