// Package ecs turns the Amazon ECS of one account and region into one consistent inventory.Snapshot and keeps it fresh.
//
// Sweeps are the truth: the Reflector lists and describes everything at an interval, remembers the newest version of
// each task, and lets go of a thing only with evidence (snapshot rules in sweep.go). Hints merely make it look sooner.
package ecs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Aliases, so that those who work with a Reflector need only this package.
type (
	Snapshot    = inventory.Snapshot
	ClusterView = inventory.ClusterView
	TaskView    = inventory.TaskView
	Task        = inventory.Task
	Service     = inventory.Service
	Cluster     = inventory.Cluster
)

// Errors of Lookup.
var (
	// ErrTaskNotFound means that no opted-in cluster of the account and region has the task.
	ErrTaskNotFound = errors.New("no such task in an opted-in cluster")
	// ErrLookupLimited means that too many unknown tasks were asked for; try again later.
	ErrLookupLimited = errors.New("too many look-ups of unknown tasks")
	// ErrNotReady means that there has been no complete sweep yet and ECS could not be asked.
	ErrNotReady = errors.New("ecs has not been read yet")
)

// Source is what the Reflector reads; *awsapi.ECS is one. Lists read all pages. Describes take any number of items and
// return those found; what ECS does not know is in missing, and anything else that went wrong is the error.
type Source interface {
	ListClusters(ctx context.Context) (arns []string, err error)
	DescribeClusters(ctx context.Context, arns []string) (found []*inventory.Cluster, missing []string, err error)
	ListServices(ctx context.Context, cluster string) (arns []string, err error)
	DescribeServices(ctx context.Context, cluster string, services []string) (found []*inventory.Service, missing []string, err error)
	ListTasks(ctx context.Context, cluster, service string) (arns []string, err error)
	DescribeTasks(ctx context.Context, cluster string, tasks []string) (found []*inventory.Task, missing []string, err error)
	DescribeTaskDefinition(ctx context.Context, arn string) (*inventory.TaskDefinition, error)
}

// Config is what a Reflector needs.
type Config struct {
	Account   string // required; 12 digits
	Region    string // required
	Partition string // "" means aws
	Source    Source // required
	// Hosts finds the addresses of the EC2 hosts of tasks in bridge or host mode. Nil means that such tasks have none.
	Hosts HostSource
	// OptInTags are the tags of which a cluster must have one, with the value "true"; nil means
	// ecs.solo.io/discovery-enabled.
	OptInTags []string
	// Interval is the time between sweeps; 0 means 10 s.
	Interval time.Duration
	// FullInterval is the time between sweeps that also read clusters and services again; 0 means 60 s, and less than
	// Interval means every sweep.
	FullInterval time.Duration
	// HotInterval is the time between looks at clusters in which tasks are starting, so that a task is known soon
	// after it runs; 0 means 2 s. It has no effect unless it is shorter than Interval.
	HotInterval time.Duration
	// Jitter is the share by which an interval varies at random; 0 means 0.2, negative means none.
	Jitter float64
	// LookupMaxAge is how long after the last complete look at a cluster Lookup still answers from it while ECS cannot
	// be asked; 0 means 24 h.
	LookupMaxAge time.Duration
	// Parallel is how many calls may be in flight; 0 means 4.
	Parallel int
	Log      *slog.Logger // required
	// Observe, if not nil, is called after each sweep.
	Observe func(SweepReport)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// HostSource tells the private addresses of the EC2 hosts behind container instances, by container instance ARN.
type HostSource interface {
	HostAddresses(ctx context.Context, cluster string, containerInstances []string) (map[string]string, error)
}

// SweepReport tells what one sweep did.
type SweepReport struct {
	Account, Region string
	Full            bool
	Hot             bool // only clusters in which tasks are starting were looked at
	Keyed           bool // only what hints were about was read
	Complete        bool
	Err             error
	Took            time.Duration
	Clusters        int
	Services        int
	Tasks           int
	Changed         bool
}
