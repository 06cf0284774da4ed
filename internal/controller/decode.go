package controller

import (
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/plan"
)

// decodedObjects remembers what objects decoded to, so that a round costs what has changed and not what there is.
type decodedObjects map[plan.Key]decodedObject

type decodedObject struct {
	uid, version string
	service      *discovery.ServiceEntry
	workload     *discovery.WorkloadEntry
}

// read returns the current objects for the planner and fills index with the objects behind them.
func (d decodedObjects) read(services, workloads []*kube.Object, index map[plan.Key]*kube.Object) (plan.Current, error) {
	current := plan.Current{
		ServiceEntries:  make([]discovery.ServiceEntry, 0, len(services)),
		WorkloadEntries: make([]discovery.WorkloadEntry, 0, len(workloads)),
	}
	for _, o := range services {
		entry, key, err := d.one(o, discovery.KindServiceEntry)
		if err != nil {
			return plan.Current{}, err
		}
		index[key] = o
		current.ServiceEntries = append(current.ServiceEntries, *entry.service)
	}
	for _, o := range workloads {
		entry, key, err := d.one(o, discovery.KindWorkloadEntry)
		if err != nil {
			return plan.Current{}, err
		}
		index[key] = o
		current.WorkloadEntries = append(current.WorkloadEntries, *entry.workload)
	}
	for key := range d {
		if index[key] == nil {
			delete(d, key)
		}
	}
	return current, nil
}

func (d decodedObjects) one(o *kube.Object, kind string) (decodedObject, plan.Key, error) {
	key := plan.Key{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	have, ok := d[key]
	if ok && have.uid == string(o.GetUID()) && have.version == o.GetResourceVersion() && have.version != "" {
		return have, key, nil
	}
	e := decodedObject{uid: string(o.GetUID()), version: o.GetResourceVersion()}
	var err error
	if kind == discovery.KindServiceEntry {
		e.service = &discovery.ServiceEntry{}
		err = kube.Decode(o, e.service)
	} else {
		e.workload = &discovery.WorkloadEntry{}
		err = kube.Decode(o, e.workload)
	}
	if err != nil {
		return decodedObject{}, key, err
	}
	d[key] = e
	return e, key, nil
}
