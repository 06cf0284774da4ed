package inventory

import (
	"cmp"
	"slices"
	"time"
)

// Evidence says why AWS itself no longer wants something to be reached. The zero value is "no evidence".
type Evidence uint8

// The kinds of evidence, from none to certain.
const (
	// NoEvidence means that nothing was said about the thing.
	NoEvidence Evidence = iota
	// Absent means missing from two complete sweeps; ECS was asked twice and did not contradict.
	Absent
	// Missing means that a Describe call answered MISSING for exactly this ARN.
	Missing
	// ClusterGone means that the whole cluster is INACTIVE or unknown to ECS.
	ClusterGone
	// OptedOut means that the cluster lost its opt-in tag, seen in two complete sweeps.
	OptedOut
	// Terminal means that ECS describes the thing as stopping, stopped, draining or inactive.
	Terminal
)

// String returns the word that reports use.
func (e Evidence) String() string {
	return [...]string{"none", "absent", "missing", "cluster gone", "opted out", "terminal", "none", "none"}[e&7]
}

// Positive reports whether AWS said something about the thing itself, rather than merely not mentioning it.
func (e Evidence) Positive() bool { return e >= Missing }

// ClusterView is one opted-in cluster with everything in it.
type ClusterView struct {
	Cluster  *Cluster
	Services map[string]*Service // by service name; INACTIVE ones are not kept
	Tasks    map[string]*Task    // by task ARN; includes tasks that are stopping, until they are gone
	// Members holds, by task ARN, the service whose own list of tasks contains the task.
	Members map[string]string
	// Complete reports whether the last look at this cluster read everything. When it is false the data are the last
	// good ones.
	Complete bool
	// Err is what made the last look incomplete.
	Err error
	// CompleteSweeps counts the complete looks since the reflector started.
	CompleteSweeps uint64
	// ReadAt is when the last complete look ended; zero before the first.
	ReadAt time.Time
	// History tells, by their ARNs, of the services and tasks that changed lately; a task changes too when its service
	// does. What else may differ (the cluster itself, the counters) it does not tell.
	History History
}

// Snapshot is everything known about one account in one region at one moment.
type Snapshot struct {
	Account   string
	Region    string
	Partition string

	// Clusters are the opted-in clusters, by ARN.
	Clusters map[string]*ClusterView
	// Definitions are the task definitions that services and tasks refer to, by ARN.
	Definitions map[string]*TaskDefinition
	// Gone says, by ARN, why a task, service or cluster that was once seen is no longer in the snapshot. It is bounded
	// and forgets the oldest first; a forgotten entry only means that absence must be enough.
	Gone map[string]Evidence

	// Complete reports whether the last sweep read everything it wanted to.
	Complete bool
	// Err is what made the last sweep incomplete, the first of several.
	Err error
	// CompleteSweeps counts the complete sweeps since the reflector started.
	CompleteSweeps uint64
	// Sweeps counts all sweeps since the reflector started.
	Sweeps uint64
	// SweptAt is when the last complete sweep ended; zero before the first.
	SweptAt time.Time
	// Version grows whenever the content (not merely the counters) changes.
	Version uint64
	// History tells, by their ARNs, of the clusters whose view is another one.
	History History
}

// TaskView joins a task with what it belongs to.
type TaskView struct {
	Account    string
	Region     string
	Cluster    *Cluster
	Service    *Service // nil for a task of no known service
	Task       *Task
	Definition *TaskDefinition // nil when it could not be read yet
}

// SortedClusters returns the clusters in order of their ARN.
func (s *Snapshot) SortedClusters() []*ClusterView {
	out := make([]*ClusterView, 0, len(s.Clusters))
	for _, c := range s.Clusters {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *ClusterView) int { return cmp.Compare(a.Cluster.ARN, b.Cluster.ARN) })
	return out
}

// SortedServices returns the cluster's services in order of their name.
func (c *ClusterView) SortedServices() []*Service {
	out := make([]*Service, 0, len(c.Services))
	for _, s := range c.Services {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *Service) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// SortedTasks returns the cluster's tasks in order of their ARN.
func (c *ClusterView) SortedTasks() []*Task {
	out := make([]*Task, 0, len(c.Tasks))
	for _, t := range c.Tasks {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *Task) int { return cmp.Compare(a.ARN, b.ARN) })
	return out
}

// View joins a task of the cluster with its service and definition.
func (s *Snapshot) View(c *ClusterView, t *Task) TaskView {
	v := TaskView{Account: s.Account, Region: s.Region, Cluster: c.Cluster, Task: t, Definition: s.Definitions[t.TaskDefinitionARN]}
	if name := c.Members[t.ARN]; name != "" {
		v.Service = c.Services[name]
	}
	return v
}

// FindTask returns the task with the given id in any opted-in cluster of the snapshot.
func (s *Snapshot) FindTask(id string) (TaskView, bool) {
	for _, c := range s.SortedClusters() {
		if t := c.Tasks[TaskARN(c.Cluster.ARN, id)]; t != nil {
			return s.View(c, t), true
		}
	}
	return TaskView{}, false
}

// Counts returns how many services and tasks the snapshot holds.
func (s *Snapshot) Counts() (services, tasks int) {
	for _, c := range s.Clusters {
		services += len(c.Services)
		tasks += len(c.Tasks)
	}
	return services, tasks
}

// RoleARN returns the task's effective IAM role: the override of RunTask, else that of its definition, else "".
func (v TaskView) RoleARN() string {
	if v.Task != nil && v.Task.TaskRoleOverride != "" {
		return v.Task.TaskRoleOverride
	}
	if v.Definition != nil {
		return v.Definition.TaskRoleARN
	}
	return ""
}

// Tag returns the value of a tag and where it was found. The nearest wins: the task's own tag, then the service's, then
// the task definition's.
func (v TaskView) Tag(key string) (value, from string, ok bool) {
	if v.Task != nil {
		if s, ok := v.Task.Tags[key]; ok {
			return s, "task", true
		}
	}
	if v.Service != nil {
		if s, ok := v.Service.Tags[key]; ok {
			return s, "service", true
		}
	}
	if v.Definition != nil {
		if s, ok := v.Definition.Tags[key]; ok {
			return s, "task definition", true
		}
	}
	return "", "", false
}
