// Package ecs is the lab's Elastic Container Service: its control API, a service scheduler, and tasks that really
// run, on a container runtime handed in, with addresses of the VPC, credentials of their role, health checks and
// exec. Tasks of launch type EC2 run on container instances, which are EC2 instances whose user data names a cluster; each is a
// network namespace with the instance's address, for network modes host and bridge, and there is one machine below all of them.
//
// All state lives in one Service behind one mutex. What takes time - starting a container, asking for its health -
// is done by one goroutine per task (runner.go) without the mutex; the scheduler (scheduler.go) only compares and
// decides. Run owns every goroutine.
package ecs

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// Bounds of the lab, beyond which calls are refused as AWS refuses them beyond its quotas.
const (
	maxClusters     = 10000
	maxServices     = 5000 // per cluster
	maxTasks        = 5000 // per cluster, living
	maxStoppedTasks = 1000 // per cluster
	maxRevisions    = 1000000
	stoppedFor      = time.Hour // a stopped task and an inactive service or cluster stay describable this long
)

// Subnet is where a task's network interface may be.
type Subnet struct {
	ID, Zone string
	CIDR     netip.Prefix
}

// Network knows the subnets and security groups an account can use, and hands out addresses.
type Network interface {
	Subnet(account, region, id string) (Subnet, bool)
	SecurityGroupExists(account, region, id string) bool
	Allocate(subnet netip.Prefix) (netip.Addr, error)
	Release(addr netip.Addr)
}

// LogSink takes what containers with the awslogs driver print.
type LogSink interface {
	// CreateStream makes a stream, and its group too when createGroup is set; it fails when the group is missing.
	CreateStream(account, region, group, stream string, createGroup bool) error
	Put(account, region, group, stream string, at time.Time, message string)
}

// Roles gives tasks their credentials.
type Roles interface {
	AssumeForService(in iam.ServiceSession) (iam.Session, error)
	Revoke(accessKeyID string)
}

// Config is what a Service needs.
type Config struct {
	Runtime Runtime // required
	Network Network // required
	Logs    LogSink // required
	Roles   Roles   // required
	Bus     Bus     // hears of changes; nil means nobody does
	// Dir is where volumes of tasks are made; without it a task with volumes fails to start.
	Dir string
	// EndpointURL is put into the containers as AWS_ENDPOINT_URL, so that AWS clients in them find the lab. It may
	// be empty.
	EndpointURL string
	// MetadataURL is where containers reach MetadataHandler; empty means http://169.254.170.2.
	MetadataURL string
	Now         func() time.Time // nil means time.Now
	Log         *slog.Logger     // required
}

// Service is ECS. It is safe for concurrent use.
type Service struct {
	cfg  Config
	now  func() time.Time
	log  *slog.Logger
	wake chan struct{} // holds one token when the scheduler should look again

	mu       sync.Mutex
	places   map[placeKey]*place // guarded by mu
	starting []*task             // guarded by mu; tasks made but not yet given to a runner
	creds    map[string]*task    // by credential id; guarded by mu
	machines map[string]*machine // by EC2 instance id; guarded by mu
	metadata map[string]*containerRef
	sessions map[string]*execSession // by session id; guarded by mu
	running  bool                    // guarded by mu

	inbox inbox
}

type placeKey struct{ account, region string }

// place is one account in one region.
type place struct {
	placeKey
	clusters map[string]*cluster // by name, INACTIVE ones included until forgotten
	families map[string]*family
	bus      Bus
	now      func() time.Time
	launched int // tasks ever made, so that they take turns in the subnets
}

type containerRef struct {
	task      *task
	container *container
}

// New returns a Service; nothing runs before Run.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.Runtime == nil:
		return nil, errors.New("ecs: Config.Runtime is required")
	case cfg.Network == nil:
		return nil, errors.New("ecs: Config.Network is required")
	case cfg.Logs == nil:
		return nil, errors.New("ecs: Config.Logs is required")
	case cfg.Roles == nil:
		return nil, errors.New("ecs: Config.Roles is required")
	case cfg.Log == nil:
		return nil, errors.New("ecs: Config.Log is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MetadataURL == "" {
		cfg.MetadataURL = "http://169.254.170.2"
	}
	return &Service{cfg: cfg, now: cfg.Now, log: cfg.Log, wake: make(chan struct{}, 1), places: map[placeKey]*place{},
		creds: map[string]*task{}, metadata: map[string]*containerRef{}, sessions: map[string]*execSession{}, machines: map[string]*machine{}}, nil
}

// API returns ECS for registration with the front.
func (s *Service) API() awsserver.Service {
	return awsserver.Service{
		Name: "ecs", Protocol: awsserver.JSON11, Target: "AmazonEC2ContainerServiceV20141113",
		Operations: map[string]awsserver.Operation{
			"CreateCluster": s.createCluster, "DescribeClusters": s.describeClusters, "ListClusters": s.listClusters,
			"DeleteCluster": s.deleteCluster, "TagResource": s.tagResource, "UntagResource": s.untagResource,
			"ListTagsForResource":    s.listTagsForResource,
			"RegisterTaskDefinition": s.registerTaskDefinition, "DescribeTaskDefinition": s.describeTaskDefinition,
			"ListTaskDefinitions": s.listTaskDefinitions, "DeregisterTaskDefinition": s.deregisterTaskDefinition,
			"ListTaskDefinitionFamilies": s.listTaskDefinitionFamilies,
			"CreateService":              s.createService, "UpdateService": s.updateService, "DescribeServices": s.describeServices,
			"ListServices": s.listServices, "DeleteService": s.deleteService,
			"RunTask": s.runTask, "StopTask": s.stopTask, "ListTasks": s.listTasks, "DescribeTasks": s.describeTasks,
			"ExecuteCommand":         s.executeCommand,
			"ListContainerInstances": s.listContainerInstances, "DescribeContainerInstances": s.describeContainerInstances,
			"UpdateContainerInstancesState": s.updateInstancesState,
		},
	}
}

// Run schedules services and runs tasks until ctx ends; then it ends all tasks and returns nil.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return errors.New("ecs: Run was called twice")
	}
	s.running = true
	s.mu.Unlock()
	var tasks sync.WaitGroup
	defer tasks.Wait()
	// The ticker serves what has no event: back-off that ends, stopped tasks that grow old.
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		s.mu.Lock()
		closing := s.machinesLocked()
		s.scheduleLocked()
		s.forgetLocked()
		fresh := s.starting
		s.starting = nil
		s.mu.Unlock()
		for _, sandbox := range closing {
			tasks.Go(func() {
				if err := sandbox.Close(); err != nil {
					s.log.Warn("sandbox of an instance did not close", slog.String("error", err.Error()))
				}
			})
		}
		for _, t := range fresh {
			tasks.Go(func() { s.runTaskLife(ctx, t) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick.C:
		}
	}
}

// poke makes the scheduler look at everything again soon.
func (s *Service) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// placeLocked returns the state of an account in a region.
func (s *Service) placeLocked(account, region string) *place {
	k := placeKey{account, region}
	p := s.places[k]
	if p == nil {
		p = &place{placeKey: k, clusters: map[string]*cluster{}, families: map[string]*family{}, bus: s.cfg.Bus, now: s.now}
		s.places[k] = p
	}
	return p
}

// arn builds an ARN of this place.
func (p *place) arn(kind string, parts ...string) string {
	return "arn:aws:ecs:" + p.region + ":" + p.account + ":" + kind + "/" + strings.Join(parts, "/")
}

// forgetLocked drops what AWS would no longer describe.
func (s *Service) forgetLocked() {
	limit := s.now().Add(-stoppedFor)
	for _, p := range s.places {
		for name, c := range p.clusters {
			c.forgetTasks(limit)
			c.forgetServices(limit)
			if c.status == statusInactive && c.changedAt.Before(limit) {
				delete(p.clusters, name)
			}
		}
	}
	for id, x := range s.sessions {
		if x.createdAt.Before(limit) {
			delete(s.sessions, id)
		}
	}
}
