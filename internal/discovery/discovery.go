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

// Want returns the objects for the inputs. The order of the inputs does not matter. It is what an Engine comes to that is
// given the inputs at once.
func Want(inputs []Input, cfg Config) Desired {
	e := NewEngine(cfg)
	e.Update(inputs)
	return e.Desired()
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

// eval is the look at one service, task or host name. It collects what a person should put right.
type eval struct {
	cfg      Config
	problems []Problem
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

func (w *eval) problem(object string, code diag.Code, fix, cause string, args ...any) {
	w.problems = append(w.problems, Problem{Object: object, Code: code, Cause: fmt.Sprintf(cause, args...), Fix: fix})
}

// task returns the WorkloadEntry of a task that serves, or says why there is none. Svc is the task's service, or nil.
func (w *eval) task(in Input, v inventory.TaskView, svc *service) (*workload, Skip) {
	arn := v.Task.ARN
	if s, ok := w.serving(v); !ok {
		return nil, s
	}
	p, err := w.cfg.Place(in, v)
	if err != nil {
		w.problem(arn, diag.TagInvalid, "correct the tag, or remove it", "%v", err)
		return nil, Skip{Reason: err.Error()}
	}
	proxied := w.cfg.proxied(v)
	if v.Service == nil && proxyDefinition(w.cfg, v.Definition) == nil && p.ServiceAccountFrom == "" {
		return nil, Skip{Reason: "it belongs to no service, and neither runs the proxy nor names a service account", Drop: true}
	}
	addr, own, ports, skip := w.reach(v, svc)
	if skip.Reason != "" {
		return nil, skip
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
	return &workload{entry: e, arn: arn, addr: addr, own: own, scope: v.Account + "/" + v.Region, newest: v.Task.StartedAt.UnixNano()}, Skip{}
}

// workloadLabels returns the labels by which ServiceEntries select a task and by which Istio names it in telemetry.
func (w *eval) workloadLabels(v inventory.TaskView, svc *service) map[string]string {
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

func compareMeta(a, b *ObjectMeta) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
