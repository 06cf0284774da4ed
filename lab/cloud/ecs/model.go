package ecs

import (
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// doc is a JSON document that is passed through, so that members the lab does not know survive.
type doc = map[string]any

// States of clusters, services and task definitions.
const (
	statusActive   = "ACTIVE"
	statusDraining = "DRAINING"
	statusInactive = "INACTIVE"
	statusPrimary  = "PRIMARY"
)

// Network modes.
const (
	modeAWSVPC = "awsvpc"
	modeBridge = "bridge"
	modeHost   = "host"
	modeNone   = "none"
)

// Launch types.
const (
	launchFargate = "FARGATE"
	launchEC2     = "EC2"
)

// States of a task, in the order it passes through them.
const (
	stateProvisioning   = "PROVISIONING"
	statePending        = "PENDING"
	stateActivating     = "ACTIVATING"
	stateRunning        = "RUNNING"
	stateDeactivating   = "DEACTIVATING"
	stateStopping       = "STOPPING"
	stateDeprovisioning = "DEPROVISIONING"
	stateStopped        = "STOPPED"
)

// Health of a container and a task.
const (
	healthUnknown   = "UNKNOWN"
	healthHealthy   = "HEALTHY"
	healthUnhealthy = "UNHEALTHY"
)

// Reasons for a task to end.
const (
	stopUser          = "UserInitiated"
	stopScheduler     = "ServiceSchedulerInitiated"
	stopEssential     = "EssentialContainerExited"
	stopFailedToStart = "TaskFailedToStart"
)

// tag is a tag as ECS writes it.
type tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// cluster is an ECS cluster. Guarded by Service.mu, as everything below.
type cluster struct {
	place     *place
	name, arn string
	status    string
	changedAt time.Time
	tags      map[string]string
	extra     doc // settings, configuration, capacity providers: as given
	services  map[string]*service
	gone      []*service // INACTIVE services whose name is in use again, newest last
	tasks     map[string]*task
	instances map[string]*instance
}

// service is an ECS service.
type service struct {
	cluster     *cluster
	name, arn   string
	status      string
	changedAt   time.Time
	createdAt   time.Time
	createdBy   string
	desired     int
	tags        map[string]string
	extra       doc // the members of the request the lab only keeps
	network     networkConfig
	config      deploymentConfig
	propagate   string // NONE, SERVICE, TASK_DEFINITION
	controller  string // ECS, CODE_DEPLOY, EXTERNAL
	execEnabled bool
	launchType  string
	platform    string
	deployments []*deployment // the primary first
	events      []doc         // newest first
	steady      bool          // a steady-state event was sent for the present deployment
	good        *taskDef      // of the last deployment that was completed, for the circuit breaker
	failures    int           // tasks in a row that never became steady
	failedAt    time.Time     // when the last of them failed
	notBefore   time.Time     // no new task before this, while backing off
}

// deployment is one generation of a service's tasks.
type deployment struct {
	id           string
	status       string
	def          *taskDef
	desired      int
	failed       int
	createdAt    time.Time
	updatedAt    time.Time
	rollout      string
	reason       string
	launchFailed bool // the circuit breaker has given up on it
}

// networkConfig is awsvpcConfiguration.
type networkConfig struct {
	Subnets        []string `json:"subnets"`
	SecurityGroups []string `json:"securityGroups,omitempty"`
	AssignPublicIP string   `json:"assignPublicIp,omitempty"`
}

// deploymentConfig is the part of deploymentConfiguration the scheduler obeys.
type deploymentConfig struct {
	MaximumPercent        int
	MinimumHealthyPercent int
	BreakerEnabled        bool
	BreakerRollback       bool
}

// task is one task.
type task struct {
	place      *place
	cluster    *cluster
	service    *service // nil for a task of RunTask
	deployment string
	id, arn    string
	def        *taskDef
	group      string
	startedBy  string
	launchType string
	platform   string
	overrides  taskOverride
	rawOver    doc
	tags       map[string]string
	exec       bool
	network    networkConfig
	turn       int // which of the subnets is its first choice

	last, desired string
	version       int64
	stopCode      string
	stoppedReason string
	counted       bool // the scheduler has drawn its conclusions from the end of this task

	createdAt, connectivityAt, pullStartedAt, pullStoppedAt, startedAt, stoppingAt, executionStoppedAt, stoppedAt time.Time

	eni        *eni
	containers []*container

	instance *instance            // where it runs, with launch type EC2
	bindings map[string][]binding // its ports on the instance, by container

	credentialID string
	session      iam.Session

	stop    chan struct{} // closed when the task shall stop
	changed chan struct{} // closed and replaced at every change
}

// eni is the network interface of a task.
type eni struct {
	id, attachmentID, mac, addr, dnsName string
	subnet                               Subnet
	status                               string
}

// container is one container of a task.
type container struct {
	def        *containerDef
	arn        string
	runtimeID  string
	metadataID string
	last       string
	health     string
	reason     string
	exitCode   *int
	started    bool
	createdAt  time.Time
	startedAt  time.Time
	finishedAt time.Time
	handle     Container
}

// taskOverride is the part of RunTask's overrides the lab applies.
type taskOverride struct {
	TaskRoleARN        string              `json:"taskRoleArn"`
	ExecutionRoleARN   string              `json:"executionRoleArn"`
	ContainerOverrides []containerOverride `json:"containerOverrides"`
}

type containerOverride struct {
	Name        string    `json:"name"`
	Command     []string  `json:"command"`
	Environment []keyPair `json:"environment"`
}

type keyPair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// changeLocked records that the state of the task changed: the version grows, an event tells of it, and whoever waits looks
// again.
func (t *task) changeLocked() {
	t.version++
	t.tellLocked()
	t.stirLocked()
}

// stirLocked makes whoever waits look again. Alone it is for health: a change of nothing but health makes no event, and so
// no version, which counts the events.
func (t *task) stirLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// roleARN is the role the task really runs with.
func (t *task) roleARN() string {
	if t.overrides.TaskRoleARN != "" {
		return t.overrides.TaskRoleARN
	}
	return t.def.TaskRoleARN
}

// healthStatus joins the health of the essential containers.
func (t *task) healthStatus() string {
	out := healthHealthy
	for _, c := range t.containers {
		if !c.def.isEssential() {
			continue
		}
		if c.health == healthUnhealthy {
			return healthUnhealthy
		}
		if c.health == healthUnknown {
			out = healthUnknown
		}
	}
	return out
}

// serving reports whether the scheduler counts the task as healthy: running, and no health check unsatisfied.
func (t *task) serving() bool {
	if t.last != stateRunning || t.desired != stateRunning {
		return false
	}
	for _, c := range t.containers {
		if c.def.isEssential() && c.def.HealthCheck != nil && c.health != healthHealthy {
			return false
		}
	}
	return true
}

// living reports whether the task is meant to run.
func (t *task) living() bool { return t.desired == stateRunning && t.last != stateStopped }

// forgetTasks drops tasks that stopped before limit, and the oldest beyond the bound.
func (c *cluster) forgetTasks(limit time.Time) {
	var stopped []*task
	for id, t := range c.tasks {
		if t.last != stateStopped {
			continue
		}
		if t.stoppedAt.Before(limit) {
			delete(c.tasks, id)
			continue
		}
		stopped = append(stopped, t)
	}
	if over := len(stopped) - maxStoppedTasks; over > 0 {
		slices.SortFunc(stopped, func(a, b *task) int { return a.stoppedAt.Compare(b.stoppedAt) })
		for _, t := range stopped[:over] {
			delete(c.tasks, t.id)
		}
	}
}

func (c *cluster) forgetServices(limit time.Time) {
	for name, sv := range c.services {
		if sv.status == statusInactive && sv.changedAt.Before(limit) {
			delete(c.services, name)
		}
	}
	c.gone = slices.DeleteFunc(c.gone, func(sv *service) bool { return sv.changedAt.Before(limit) })
}

// sortedTags returns tags in the order of their keys.
func sortedTags(m map[string]string) []tag {
	out := make([]tag, 0, len(m))
	for k, v := range m {
		out = append(out, tag{k, v})
	}
	slices.SortFunc(out, func(a, b tag) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// epoch writes a time as AWS JSON does, nil for the zero time.
func epoch(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return awsserver.Epoch{Time: t}
}

// prune removes members without a value, which AWS leaves out.
func prune(d doc) doc {
	for k, v := range d {
		if v == nil || v == "" {
			delete(d, k)
		}
	}
	return d
}
