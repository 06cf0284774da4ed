package discovery

import (
	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Group, version and kinds of the objects that discovery wants.
const (
	APIVersion        = "networking.istio.io/v1"
	KindServiceEntry  = "ServiceEntry"
	KindWorkloadEntry = "WorkloadEntry"
)

// Labels and annotations of the objects. What Istio already names keeps Istio's name.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "isthmus-controller" // also the field manager of server-side apply

	LabelApp               = "app"
	LabelCanonicalName     = "service.istio.io/canonical-name"
	LabelCanonicalRevision = "service.istio.io/canonical-revision"
	LabelService           = "ecs.solo.io/service"
	LabelCluster           = "ecs.solo.io/cluster"
	LabelHost              = "ecs.solo.io/host" // only with a host name tag
	LabelAccount           = "isthmus.dev/account"
	LabelRegion            = "isthmus.dev/region"

	// AnnotationHBONE makes stock istiod advertise HBONE for a WorkloadEntry.
	AnnotationHBONE      = "ambient.istio.io/redirection"
	AnnotationHBONEValue = "enabled"
	// AnnotationTrafficDistribution makes istiod prefer near endpoints and fail over to far ones.
	AnnotationTrafficDistribution = "networking.istio.io/traffic-distribution"

	// AnnotationSource holds the ARN of the task or service that an object stands for; several, separated by spaces,
	// for a host name that services share. Nothing is deleted without asking what became of its source.
	AnnotationSource = "isthmus.dev/source"
	// AnnotationClusters holds the ARNs of the ECS clusters of the sources, separated by spaces.
	AnnotationClusters = "isthmus.dev/ecs-clusters"
	// AnnotationTaskDefinition holds the ARN of a task's definition.
	AnnotationTaskDefinition = "isthmus.dev/task-definition"
)

// ObjectMeta is the part of Kubernetes' object metadata that discovery writes and plan compares.
type ObjectMeta struct {
	Name            string            `json:"name"`
	Namespace       string            `json:"namespace"`
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"`
	UID             string            `json:"uid,omitempty"`             // of current objects only
	ResourceVersion string            `json:"resourceVersion,omitempty"` // of current objects only
}

// ServiceEntry mirrors networking.istio.io/v1 as far as discovery uses it.
type ServiceEntry struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Metadata   ObjectMeta       `json:"metadata"`
	Spec       ServiceEntrySpec `json:"spec"`
}

// ServiceEntrySpec is the spec of a ServiceEntry.
type ServiceEntrySpec struct {
	Hosts            []string          `json:"hosts"`
	Location         string            `json:"location"`
	Resolution       string            `json:"resolution"`
	Ports            []Port            `json:"ports"`
	WorkloadSelector *WorkloadSelector `json:"workloadSelector,omitempty"`
}

// Port is one port of a ServiceEntry.
type Port struct {
	Number     uint32 `json:"number"`
	Name       string `json:"name"`
	Protocol   string `json:"protocol,omitempty"`
	TargetPort uint32 `json:"targetPort,omitempty"`
}

// WorkloadSelector selects WorkloadEntries of the same namespace by their labels.
type WorkloadSelector struct {
	Labels map[string]string `json:"labels"`
}

// WorkloadEntry mirrors networking.istio.io/v1 as far as discovery uses it.
type WorkloadEntry struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   ObjectMeta        `json:"metadata"`
	Spec       WorkloadEntrySpec `json:"spec"`
}

// WorkloadEntrySpec is the spec of a WorkloadEntry.
type WorkloadEntrySpec struct {
	Address        string            `json:"address"`
	Ports          map[string]uint32 `json:"ports,omitempty"`
	Network        string            `json:"network,omitempty"`
	Locality       string            `json:"locality,omitempty"`
	Weight         uint32            `json:"weight,omitempty"`
	ServiceAccount string            `json:"serviceAccount,omitempty"`
}

// Desired is what the mesh should know about ECS.
type Desired struct {
	ServiceEntries  []ServiceEntry  // sorted by namespace and name
	WorkloadEntries []WorkloadEntry // sorted by namespace and name
	Problems        []Problem       // sorted by object and code
	// Skipped says, by task or service ARN, why a thing that exists has no object. It is what plan accepts as evidence
	// for removing the object of a task that is alive but must not be reached.
	Skipped map[string]Skip
}

// Problem is something a person can put right.
type Problem struct {
	Object string    `json:"object"` // ARN of the cluster, service or task
	Code   diag.Code `json:"code"`
	Cause  string    `json:"cause"`
	Fix    string    `json:"fix"`
}
