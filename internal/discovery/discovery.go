// Package discovery says what an Istio mesh should know about Amazon ECS: it maps snapshots of ECS to the ServiceEntry
// and WorkloadEntry objects that stock istiod serves, and lists what a person should put right. It is pure: no clock, no
// input or output; the same snapshots give the same objects.
//
//	ECS                          Istio
//	cluster                      namespace of the same name, unless a tag or the configuration says otherwise
//	service                      ServiceEntry, host SERVICE.CLUSTER.DOMAIN, ports from the port mappings
//	task that serves             WorkloadEntry with the task's address and service account
//	task whose proxy is healthy  ... and the annotation that makes istiod advertise HBONE
package discovery

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Config holds the rules that are the same for all accounts.
type Config struct {
	// TagPrefix starts the keys of the tags that are read; "" means "ecs.solo.io/".
	TagPrefix string
	// ProxyContainer is the name of the container that is our proxy; "" means "ztunnel". A container with the docker
	// label isthmus.dev/proxy=true is one whatever its name.
	ProxyContainer string
	// DefaultServiceAccount is that of tasks without a tag; "" means that they have none.
	DefaultServiceAccount string
}

// Input is one account and region.
type Input struct {
	Snapshot *inventory.Snapshot
	// Domain ends the host names, for example ecs.local.
	Domain string
	// Network is the mesh network of the tasks; "" means istiod's own.
	Network string
	// Namespaces maps names of ECS clusters to namespaces; a cluster that is not in it has the namespace of its name.
	Namespaces map[string]string
	// AllowedNamespaces limits the namespaces that tags may choose; a trailing * matches any rest. Empty means all but
	// the reserved ones.
	AllowedNamespaces []string
}

// Skip says why something that exists in ECS has no object.
type Skip struct {
	Reason string
	// Drop reports whether an object that exists already should go. It is false while ECS merely has not said yes: a
	// task whose health became unknown keeps the object it has.
	Drop bool
}

// Want returns the objects for the inputs. The order of the inputs does not matter.
func Want(inputs []Input, cfg Config) Desired {
	w := &want{cfg: cfg.withDefaults(), skipped: map[string]Skip{}}
	inputs = slices.Clone(inputs)
	slices.SortFunc(inputs, func(a, b Input) int {
		return cmp.Or(cmp.Compare(a.Snapshot.Account, b.Snapshot.Account), cmp.Compare(a.Snapshot.Region, b.Snapshot.Region))
	})
	for _, in := range inputs {
		for _, c := range in.Snapshot.SortedClusters() {
			for _, svc := range c.SortedServices() {
				w.addService(in, c, svc)
			}
		}
	}
	w.mergeHosts()
	tasks := 0
	for _, in := range inputs {
		_, n := in.Snapshot.Counts()
		tasks += n
	}
	w.workloads = make([]workload, 0, tasks)
	for _, in := range inputs {
		for _, c := range in.Snapshot.SortedClusters() {
			for _, t := range c.SortedTasks() {
				w.addTask(in, in.Snapshot.View(c, t))
			}
		}
	}
	w.settleAddresses()
	return w.desired()
}

func (c Config) withDefaults() Config {
	if c.TagPrefix == "" {
		c.TagPrefix = "ecs.solo.io/"
	}
	if c.ProxyContainer == "" {
		c.ProxyContainer = "ztunnel"
	}
	return c
}

// want is the work in progress.
type want struct {
	cfg       Config
	services  []*service
	byARN     map[string]*service
	entries   []ServiceEntry
	workloads []workload
	problems  []Problem
	skipped   map[string]Skip
}

// workload is a wanted WorkloadEntry and what decides when two claim one address.
type workload struct {
	entry  *WorkloadEntry
	arn    string
	addr   netip.Addr
	own    bool // the address is the task's own, not its host's
	scope  string
	newest int64 // start of the task, in nanoseconds
}

func (w *want) problem(object string, code diag.Code, fix, cause string, args ...any) {
	w.problems = append(w.problems, Problem{Object: object, Code: code, Cause: fmt.Sprintf(cause, args...), Fix: fix})
}

// addTask wants a WorkloadEntry for a task that serves.
func (w *want) addTask(in Input, v inventory.TaskView) {
	arn := v.Task.ARN
	if s, ok := w.serving(v); !ok {
		w.skipped[arn] = s
		return
	}
	p, err := w.cfg.Place(in, v)
	if err != nil {
		w.problem(arn, diag.TagInvalid, "correct the tag, or remove it", "%v", err)
		w.skipped[arn] = Skip{Reason: err.Error()}
		return
	}
	proxied := w.cfg.proxied(v)
	if v.Service == nil && proxyDefinition(w.cfg, v.Definition) == nil && p.ServiceAccountFrom == "" {
		w.skipped[arn] = Skip{Reason: "it belongs to no service, and neither runs the proxy nor names a service account", Drop: true}
		return
	}
	svc := w.serviceOf(v)
	addr, own, ports, skip := w.reach(v, svc)
	if skip.Reason != "" {
		w.skipped[arn] = skip
		return
	}
	if p.ServiceAccount == "" && proxied {
		w.problem(arn, diag.ServiceAccountAbsent, "tag the task definition with "+w.cfg.TagPrefix+"service-account and deploy it again",
			"the task runs the proxy but nothing says which service account it is")
		proxied = false
	}
	e := &WorkloadEntry{
		APIVersion: APIVersion, Kind: KindWorkloadEntry,
		Metadata: ObjectMeta{
			Name: p.WorkloadName, Namespace: p.Namespace,
			Labels: w.workloadLabels(v, svc),
			Annotations: map[string]string{
				AnnotationSource: arn, AnnotationClusters: v.Cluster.ARN, AnnotationTaskDefinition: v.Task.TaskDefinitionARN,
			},
		},
		Spec: WorkloadEntrySpec{Address: addr.String(), Ports: ports, Network: in.Network, Locality: locality(v), ServiceAccount: p.ServiceAccount},
	}
	if proxied && own {
		e.Metadata.Annotations[AnnotationHBONE] = AnnotationHBONEValue
	}
	w.workloads = append(w.workloads, workload{entry: e, arn: arn, addr: addr, own: own, scope: v.Account + "/" + v.Region, newest: v.Task.StartedAt.UnixNano()})
}

func (w *want) serviceOf(v inventory.TaskView) *service {
	if v.Service == nil {
		return nil
	}
	return w.byARN[v.Service.ARN]
}

// workloadLabels returns the labels by which ServiceEntries select a task and by which Istio names it in telemetry.
func (w *want) workloadLabels(v inventory.TaskView, svc *service) map[string]string {
	name := v.Definition.Family
	if v.Service != nil {
		name = v.Service.Name
	}
	labels := scopeLabels(v.Account, v.Region, v.Cluster.Name)
	labels[LabelApp] = labelValue(name)
	labels[LabelCanonicalName] = labelValue(name)
	labels[LabelCanonicalRevision] = fmt.Sprint(v.Definition.Revision)
	if v.Service != nil {
		labels[LabelService] = labelValue(name)
	}
	if svc != nil && svc.shared {
		labels[LabelHost] = labelValue(svc.host)
	}
	return labels
}

// scopeLabels are the labels that all objects carry.
func scopeLabels(account, region, cluster string) map[string]string {
	return map[string]string{LabelManagedBy: ManagedBy, LabelAccount: labelValue(account), LabelRegion: labelValue(region), LabelCluster: labelValue(cluster)}
}

func locality(v inventory.TaskView) string {
	if v.Task.AvailabilityZone == "" {
		return v.Region
	}
	return v.Region + "/" + v.Task.AvailabilityZone
}

// settleAddresses lets only one task have an address of its own. Istio takes two silently and then picks either; AWS
// gives one address to one task at a time, so the task that started last is the one that has it now.
func (w *want) settleAddresses() {
	type key struct {
		network string
		addr    netip.Addr
	}
	slices.SortFunc(w.workloads, func(a, b workload) int {
		return cmp.Or(cmp.Compare(b.newest, a.newest), cmp.Compare(a.arn, b.arn))
	})
	owner := make(map[key]int, len(w.workloads))
	kept := 0
	for _, e := range w.workloads {
		k := key{e.entry.Spec.Network, e.addr}
		i, taken := owner[k]
		if taken && e.own && w.workloads[i].own {
			first := w.workloads[i]
			w.problem(e.arn, diag.AddressConflict, "give overlapping VPCs networks of their own in the configuration",
				"the task has the address %s that %s has too", e.addr, first.arn)
			w.skipped[e.arn] = Skip{Reason: fmt.Sprintf("its address %s is that of %s", e.addr, first.arn), Drop: e.scope == first.scope}
			continue
		}
		if !taken {
			owner[k] = kept
		}
		w.workloads[kept] = e
		kept++
	}
	w.workloads = w.workloads[:kept]
}

func (w *want) desired() Desired {
	slices.SortFunc(w.workloads, func(a, b workload) int { return compareMeta(&a.entry.Metadata, &b.entry.Metadata) })
	d := Desired{ServiceEntries: w.entries, Problems: w.problems, Skipped: w.skipped}
	if len(w.workloads) > 0 {
		d.WorkloadEntries = make([]WorkloadEntry, 0, len(w.workloads))
	}
	for _, e := range w.workloads {
		d.WorkloadEntries = append(d.WorkloadEntries, *e.entry)
	}
	slices.SortFunc(d.ServiceEntries, func(a, b ServiceEntry) int { return compareMeta(&a.Metadata, &b.Metadata) })
	slices.SortFunc(d.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Cause, b.Cause))
	})
	d.Problems = slices.Compact(d.Problems)
	return d
}

func compareMeta(a, b *ObjectMeta) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
