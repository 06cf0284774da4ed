package discovery

import (
	"cmp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// service is an ECS service on its way to a ServiceEntry.
type service struct {
	in        Input
	cluster   *inventory.Cluster
	svc       *inventory.Service
	namespace string
	host      string
	tagged    bool // the host name comes from a tag
	shared    bool // its ServiceEntry selects by host name, because a tag chose it
	ports     []Port
}

// addService prepares a service: where it belongs, its host name and its ports.
func (w *want) addService(in Input, c *inventory.ClusterView, svc *inventory.Service) {
	// The view of a task that does not exist: it reads the service's tags, then those of the primary revision.
	v := inventory.TaskView{Account: in.Snapshot.Account, Region: in.Snapshot.Region, Cluster: c.Cluster, Service: svc, Definition: in.Snapshot.Definitions[svc.TaskDefinition]}
	tag, from, _ := v.Tag(w.cfg.TagPrefix + "namespace")
	ns, err := w.cfg.namespace(in, c.Cluster, tag, from)
	if err != nil {
		w.problem(svc.ARN, diag.TagInvalid, "correct the tag, or remove it", "%v", err)
		w.skipped[svc.ARN] = Skip{Reason: err.Error()}
		return
	}
	s := &service{in: in, cluster: c.Cluster, svc: svc, namespace: ns}
	if w.byARN == nil {
		w.byARN = map[string]*service{}
	}
	w.byARN[svc.ARN] = s
	w.services = append(w.services, s)
	w.chooseHost(s, v)
	if v.Definition == nil {
		w.skipped[svc.ARN] = Skip{Reason: "its task definition could not be read"}
		return
	}
	if _, _, ok := v.Tag(w.cfg.TagPrefix + "service-account"); !ok && w.cfg.DefaultServiceAccount == "" {
		w.problem(svc.ARN, diag.ServiceAccountAbsent, "tag the service or its task definition with "+w.cfg.TagPrefix+"service-account",
			"nothing says which service account the service's tasks are")
	}
	s.ports = w.choosePorts(s, v)
	if len(s.ports) == 0 {
		w.problem(svc.ARN, diag.ServiceWithoutPorts, "add port mappings to the container, or the tag "+w.cfg.TagPrefix+"ports to the service",
			"no container of %s maps a TCP port", inventory.LastPart(svc.TaskDefinition))
		w.skipped[svc.ARN] = Skip{Reason: "it has no ports", Drop: true}
	}
}

func (w *want) chooseHost(s *service, v inventory.TaskView) {
	s.host = strings.Join([]string{dnsLabel(s.svc.Name), dnsLabel(s.cluster.Name), s.in.Domain}, ".")
	host, from, ok := v.Tag(w.cfg.TagPrefix + "hostname")
	if !ok || host == "" {
		return
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if !isHostname(host) || !strings.Contains(host, ".") {
		w.problem(s.svc.ARN, diag.TagInvalid, "use a full host name such as "+s.host, "tag %shostname of the %s is %q, which is not a full host name", w.cfg.TagPrefix, from, host)
		return
	}
	s.host, s.tagged = host, true
}

// mergeHosts makes the ServiceEntries. Services of one namespace whose tags choose the same host name become one entry
// that prefers near endpoints; the same default name twice is a clash, and the older service has it.
func (w *want) mergeHosts() {
	type key struct{ namespace, host string }
	groups := map[key][]*service{}
	for _, s := range w.services {
		if len(s.ports) > 0 {
			k := key{s.namespace, s.host}
			groups[k] = append(groups[k], s)
		}
	}
	names := map[string]string{}      // namespace/name -> host
	namespaces := map[string]string{} // host -> namespace
	keys := make([]key, 0, len(groups))
	for k := range groups {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int { return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.host, b.host)) })
	for _, k := range keys {
		group := groups[k]
		slices.SortFunc(group, func(a, b *service) int {
			return cmp.Or(a.svc.CreatedAt.Compare(b.svc.CreatedAt), cmp.Compare(a.svc.ARN, b.svc.ARN))
		})
		if other, ok := namespaces[k.host]; ok {
			w.problem(group[0].svc.ARN, diag.HostConflict, "give the services one namespace, or host names of their own",
				"host name %s is claimed in the namespaces %s and %s", k.host, other, k.namespace)
		}
		namespaces[k.host] = k.namespace
		if !slices.ContainsFunc(group, func(s *service) bool { return s.tagged }) {
			for _, loser := range group[1:] {
				w.problem(loser.svc.ARN, diag.HostConflict, "choose another name with the tag "+w.cfg.TagPrefix+"hostname",
					"host name %s is already that of %s", k.host, group[0].svc.ARN)
				w.skipped[loser.svc.ARN] = Skip{Reason: "its host name belongs to " + group[0].svc.ARN, Drop: true}
			}
			group = group[:1]
		} else {
			for _, s := range group {
				s.shared = true
			}
		}
		e := w.entryOf(group)
		if other, ok := names[e.Metadata.Namespace+"/"+e.Metadata.Name]; ok {
			w.problem(group[0].svc.ARN, diag.HostConflict, "rename the service or the cluster", "its object name %s is also that of %s", e.Metadata.Name, other)
			e.Metadata.Name = shorten(e.Metadata.Name, maxName-9) + "-" + digest(k.host)
		}
		names[e.Metadata.Namespace+"/"+e.Metadata.Name] = k.host
		w.entries = append(w.entries, e)
	}
}

// entryOf returns the ServiceEntry of one service, or of several that share a host name.
func (w *want) entryOf(group []*service) ServiceEntry {
	first := group[0]
	snap := first.in.Snapshot
	e := ServiceEntry{
		APIVersion: APIVersion, Kind: KindServiceEntry,
		Metadata: ObjectMeta{
			Name: objectName("ecs-service", snap.Account, snap.Region, first.cluster.Name, first.svc.Name), Namespace: first.namespace,
			Annotations: map[string]string{},
		},
		Spec: ServiceEntrySpec{Hosts: []string{first.host}, Location: "MESH_INTERNAL", Resolution: "STATIC", Ports: w.unitePorts(group)},
	}
	e.Metadata.Labels = scopeLabels(snap.Account, snap.Region, first.cluster.Name)
	e.Metadata.Labels[LabelService] = labelValue(first.svc.Name)
	e.Spec.WorkloadSelector = &WorkloadSelector{Labels: map[string]string{
		LabelService: labelValue(first.svc.Name), LabelCluster: labelValue(first.cluster.Name), LabelAccount: labelValue(snap.Account), LabelRegion: labelValue(snap.Region),
	}}
	if first.shared {
		// The name must not depend on which services share the host at the moment: re-creating the entry changes its VIP.
		e.Metadata.Name = objectName("ecs-host", first.host)
		e.Metadata.Labels = map[string]string{LabelManagedBy: ManagedBy, LabelHost: labelValue(first.host)}
		e.Spec.WorkloadSelector = &WorkloadSelector{Labels: map[string]string{LabelHost: labelValue(first.host)}}
		e.Metadata.Annotations[AnnotationTrafficDistribution] = "PreferClose"
	}
	var sources, clusters []string
	for _, s := range group {
		sources = append(sources, s.svc.ARN)
		clusters = append(clusters, s.cluster.ARN)
	}
	slices.Sort(sources)
	slices.Sort(clusters)
	e.Metadata.Annotations[AnnotationSource] = strings.Join(slices.Compact(sources), " ")
	e.Metadata.Annotations[AnnotationClusters] = strings.Join(slices.Compact(clusters), " ")
	return e
}
