// Package inventory holds the nouns of Amazon ECS as Isthmus sees them: clusters, services, tasks and task
// definitions, and the Snapshot that holds them together at one moment.
//
// The package imports only the standard library, so that the pure packages (discovery, plan) can speak about ECS without
// linking a client of it. Everything reachable from a published Snapshot is immutable: a reader may keep it for ever
// and must not change it.
package inventory

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Status words of ECS that decide something here. ECS has more of them; unknown words are carried and never an error.
const (
	StatusActive   = "ACTIVE"
	StatusDraining = "DRAINING"
	StatusInactive = "INACTIVE"

	TaskProvisioning   = "PROVISIONING"
	TaskPending        = "PENDING"
	TaskActivating     = "ACTIVATING"
	TaskRunning        = "RUNNING"
	TaskDeactivating   = "DEACTIVATING"
	TaskStopping       = "STOPPING"
	TaskDeprovisioning = "DEPROVISIONING"
	TaskStopped        = "STOPPED"
	TaskDeleted        = "DELETED"

	Healthy   = "HEALTHY"
	Unhealthy = "UNHEALTHY"
	Unknown   = "UNKNOWN"

	LaunchEC2      = "EC2"
	LaunchFargate  = "FARGATE"
	LaunchExternal = "EXTERNAL"

	NetworkAWSVPC = "awsvpc"
	NetworkBridge = "bridge"
	NetworkHost   = "host"
)

// Tags are the tags of one AWS resource.
type Tags map[string]string

// Cluster is one ECS cluster as DescribeClusters tells it.
type Cluster struct {
	ARN    string
	Name   string
	Status string
	Tags   Tags
}

// Service is one ECS service as DescribeServices tells it.
type Service struct {
	ARN            string
	Name           string
	ClusterARN     string
	Status         string
	LaunchType     string
	TaskDefinition string // ARN of the revision of the primary deployment
	DesiredCount   int
	RunningCount   int
	PendingCount   int
	Deployments    []Deployment
	CreatedAt      time.Time
	Tags           Tags
}

// Deployment is one deployment of a service. A task that a service started carries its ID as StartedBy.
type Deployment struct {
	ID             string
	Status         string // PRIMARY, ACTIVE or INACTIVE
	RolloutState   string
	RolloutReason  string
	TaskDefinition string
	DesiredCount   int
	RunningCount   int
	PendingCount   int
	FailedCount    int
	UpdatedAt      time.Time
}

// Task is one ECS task as DescribeTasks tells it.
type Task struct {
	ARN               string
	ClusterARN        string
	TaskDefinitionARN string
	Group             string // "service:NAME" for a task of a service; a hint, because RunTask callers choose it freely
	StartedBy         string
	LastStatus        string
	DesiredStatus     string
	HealthStatus      string
	StopCode          string
	StoppedReason     string
	LaunchType        string
	AvailabilityZone  string
	TaskRoleOverride  string // overrides.taskRoleArn; wins over the task definition's
	ContainerInstance string // ARN; EC2 and EXTERNAL only
	HostAddr          netip.Addr
	ExecEnabled       bool
	Version           int64 // grows at every change of state
	CreatedAt         time.Time
	StartedAt         time.Time
	StoppingAt        time.Time
	StoppedAt         time.Time
	Attachments       []Attachment
	Containers        []Container
	Tags              Tags
}

// Attachment is an elastic network interface of a task.
type Attachment struct {
	ID      string
	Type    string // "ElasticNetworkInterface" in DescribeTasks, "eni" in events
	Status  string
	Details map[string]string
}

// IsENI reports whether the attachment is a network interface, under either of the two names AWS gives it.
func (a Attachment) IsENI() bool { return a.Type == "ElasticNetworkInterface" || a.Type == "eni" }

// Container is one container of a task.
type Container struct {
	Name         string
	ARN          string
	LastStatus   string
	HealthStatus string
	RuntimeID    string
	Image        string
	ExitCode     *int
	Reason       string
	Addrs        []netip.Addr // of its own network interfaces (awsvpc)
	Bindings     []Binding    // bridge and host mode
	ExecAgent    string       // lastStatus of the ExecuteCommandAgent; empty without one
}

// Binding is one published port of a container in bridge or host mode.
type Binding struct {
	ContainerPort uint16
	HostPort      uint16
	Protocol      string // tcp or udp
}

// TaskDefinition is one revision of a task definition. A revision never changes.
type TaskDefinition struct {
	ARN           string
	Family        string
	Revision      int
	Status        string
	TaskRoleARN   string
	ExecutionRole string
	NetworkMode   string // "" means bridge on EC2
	CPU, Memory   string
	Containers    []ContainerDefinition
	Tags          Tags
}

// ContainerDefinition is what Isthmus needs to know of a container definition.
type ContainerDefinition struct {
	Name           string
	Image          string
	Essential      bool
	HasHealthCheck bool
	DockerLabels   map[string]string
	PortMappings   []PortMapping
	StopTimeout    time.Duration // 0 means ECS's default of 30 s
}

// PortMapping is one port that a container publishes.
type PortMapping struct {
	Name          string // optional; the name Service Connect uses
	ContainerPort uint16
	HostPort      uint16
	Protocol      string // tcp or udp
	AppProtocol   string // http, http2, grpc or empty
}

// Container returns the definition of the named container, or nil.
func (d *TaskDefinition) Container(name string) *ContainerDefinition {
	if d == nil {
		return nil
	}
	for i := range d.Containers {
		if d.Containers[i].Name == name {
			return &d.Containers[i]
		}
	}
	return nil
}

// ID returns the task's id: the last part of its ARN.
func (t *Task) ID() string { return LastPart(t.ARN) }

// ServiceName returns the service that the task's group names, or "" for a task that no service claims.
func (t *Task) ServiceName() string {
	name, ok := strings.CutPrefix(t.Group, "service:")
	if !ok {
		return ""
	}
	return name
}

// Stopping reports whether ECS has decided to stop the task, or has already done so. This is the earliest sign there
// is: DesiredStatus flips before LastStatus follows.
func (t *Task) Stopping() bool {
	if t.DesiredStatus == TaskStopped {
		return true
	}
	switch t.LastStatus {
	case TaskDeactivating, TaskStopping, TaskDeprovisioning, TaskStopped, TaskDeleted:
		return true
	}
	return false
}

// Addresses returns the task's own addresses in awsvpc mode: those of its containers' network interfaces, else the
// IPv4 address in its attachment's details. IPv4 comes first, and nothing comes twice.
func (t *Task) Addresses() []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a = a.Unmap(); a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, c := range t.Containers {
		for _, a := range c.Addrs {
			add(a)
		}
	}
	if len(out) == 0 {
		for _, at := range t.Attachments {
			if !at.IsENI() {
				continue
			}
			if a, err := netip.ParseAddr(at.Details["privateIPv4Address"]); err == nil {
				add(a)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return out
}

// InterfaceLeaving reports whether a network interface of the task is on its way out or failed.
func (t *Task) InterfaceLeaving() bool {
	for _, at := range t.Attachments {
		if !at.IsENI() {
			continue
		}
		switch at.Status {
		case "DETACHING", "DETACHED", "DELETED", "FAILED":
			return true
		}
	}
	return false
}

// ContainerNamed returns the named container, or nil.
func (t *Task) ContainerNamed(name string) *Container {
	for i := range t.Containers {
		if t.Containers[i].Name == name {
			return &t.Containers[i]
		}
	}
	return nil
}
