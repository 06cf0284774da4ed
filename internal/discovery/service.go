package discovery

import (
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// service is an ECS service on its way to a ServiceEntry.
type service struct {
	account   string
	region    string
	domain    string
	cluster   *inventory.Cluster
	svc       *inventory.Service
	namespace string
	host      string
	tagged    bool // the host name comes from a tag
	shared    bool // its ServiceEntry selects by host name, because a tag chose it
	ports     []Port
}

// service prepares a service: where it belongs, its host name and its ports. It is nil when a tag says that it belongs
// nowhere, and it has no ports when there is a reason to skip it.
func (w *eval) service(in Input, c *inventory.Cluster, svc *inventory.Service) (*service, Skip) {
	// The view of a task that does not exist: it reads the service's tags, then those of the primary revision.
	v := inventory.TaskView{Account: in.Snapshot.Account, Region: in.Snapshot.Region, Cluster: c, Service: svc, Definition: in.Snapshot.Definitions[svc.TaskDefinition]}
	tag, from, _ := v.Tag(w.cfg.TagPrefix + "namespace")
	ns, err := w.cfg.namespace(in, c, tag, from)
	if err != nil {
		w.problem(svc.ARN, diag.TagInvalid, "correct the tag, or remove it", "%v", err)
		return nil, Skip{Reason: err.Error()}
	}
	s := &service{account: in.Snapshot.Account, region: in.Snapshot.Region, domain: in.Domain, cluster: c, svc: svc, namespace: ns}
	w.chooseHost(s, v)
	if v.Definition == nil {
		return s, Skip{Reason: "its task definition could not be read"}
	}
	if _, _, ok := v.Tag(w.cfg.TagPrefix + "service-account"); !ok && w.cfg.DefaultServiceAccount == "" {
		w.problem(svc.ARN, diag.ServiceAccountAbsent, "tag the service or its task definition with "+w.cfg.TagPrefix+"service-account",
			"nothing says which service account the service's tasks are")
	}
	s.ports = w.choosePorts(s, v)
	if len(s.ports) == 0 {
		w.problem(svc.ARN, diag.ServiceWithoutPorts, "add port mappings to the container, or the tag "+w.cfg.TagPrefix+"ports to the service",
			"no container of %s maps a TCP port", inventory.LastPart(svc.TaskDefinition))
		return s, Skip{Reason: "it has no ports", Drop: true}
	}
	return s, Skip{}
}

func (w *eval) chooseHost(s *service, v inventory.TaskView) {
	s.host = strings.Join([]string{dnsLabel(s.svc.Name), dnsLabel(s.cluster.Name), s.domain}, ".")
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

// entryOf returns the ServiceEntry of one service, or of several that share a host name.
func (w *eval) entryOf(group []*service) ServiceEntry {
	first := group[0]
	e := ServiceEntry{
		APIVersion: APIVersion, Kind: KindServiceEntry,
		Metadata: ObjectMeta{
			Name: objectName("ecs-service", first.account, first.region, first.cluster.Name, first.svc.Name), Namespace: first.namespace,
			Annotations: map[string]string{},
		},
		Spec: ServiceEntrySpec{Hosts: []string{first.host}, Location: "MESH_INTERNAL", Resolution: "STATIC", Ports: w.unitePorts(group)},
	}
	e.Metadata.Labels = scopeLabels(first.account, first.region, first.cluster.Name)
	e.Metadata.Labels[LabelService] = labelValue(first.svc.Name)
	e.Spec.WorkloadSelector = &WorkloadSelector{Labels: map[string]string{
		LabelService: labelValue(first.svc.Name), LabelCluster: labelValue(first.cluster.Name), LabelAccount: labelValue(first.account), LabelRegion: labelValue(first.region),
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
