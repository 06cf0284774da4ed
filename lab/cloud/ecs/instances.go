package ecs

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Host ports that Docker gives to containers that ask for none.
const firstHostPort, lastHostPort = 32768, 60999

// instance is a container instance: a machine whose agent has joined a cluster. Guarded by Service.mu.
type instance struct {
	cluster      *cluster
	machine      *machine
	id, arn      string
	status       string // ACTIVE, DRAINING, INACTIVE
	version      int64
	registeredAt time.Time
	nextPort     int
}

// binding is a port of a container on its instance.
type binding struct {
	containerPort, hostPort int
	protocol                string
}

func (b binding) describe() doc {
	return doc{"bindIP": "0.0.0.0", "containerPort": b.containerPort, "hostPort": b.hostPort, "protocol": b.protocol}
}

// instanceOf finds the container instance of a machine.
func (p *place) instanceOf(m *machine) *instance {
	for _, c := range p.clusters {
		for _, i := range c.instances {
			if i.machine == m {
				return i
			}
		}
	}
	return nil
}

// registerLocked makes a machine a container instance of a cluster.
func (s *Service) registerLocked(c *cluster, m *machine) {
	id := hexID(16)
	i := &instance{cluster: c, machine: m, id: id, arn: c.place.arn("container-instance", c.name, id), status: statusActive,
		registeredAt: s.now(), nextPort: firstHostPort}
	c.instances[id] = i
	i.tellLocked()
}

// loseLocked takes a container instance whose machine is gone out of its cluster and stops what runs on it.
func (s *Service) loseLocked(i *instance) {
	i.status = statusInactive
	i.tellLocked()
	delete(i.cluster.instances, i.id)
	for _, t := range i.cluster.tasks {
		if t.instance == i && t.last != stateStopped {
			s.stopLocked(t, "TerminationNotice", "Host EC2 (instance "+i.machine.ID+") terminated.")
		}
	}
}

// load counts the tasks of an instance.
func (i *instance) load() (running, pending int) {
	for _, t := range i.cluster.tasks {
		switch {
		case t.instance != i:
		case t.last == stateRunning:
			running++
		case t.last != stateStopped && t.desired == stateRunning:
			pending++
		}
	}
	return running, pending
}

// taken are the host ports in use on an instance.
func (i *instance) taken() map[int]bool {
	out := map[int]bool{}
	for _, t := range i.cluster.tasks {
		if t.instance != i || t.last == stateStopped {
			continue
		}
		for _, list := range t.bindings {
			for _, b := range list {
				out[b.hostPort] = true
			}
		}
	}
	return out
}

// bind gives the containers of a definition their host ports on the instance; it reports false when one is taken.
func (i *instance) bind(td *taskDef) (map[string][]binding, bool) {
	out, taken := map[string][]binding{}, i.taken()
	mode := orDefault(td.NetworkMode, modeBridge)
	for _, c := range td.ContainerDefinitions {
		for _, pm := range c.PortMappings {
			b := binding{containerPort: pm.ContainerPort, hostPort: pm.HostPort, protocol: orDefault(pm.Protocol, "tcp")}
			switch {
			case mode == modeHost:
				b.hostPort = b.containerPort
			case mode != modeBridge:
				continue
			case b.hostPort == 0:
				for taken[i.nextPort] {
					i.nextPort = max(firstHostPort, (i.nextPort+1)%lastHostPort)
				}
				b.hostPort = i.nextPort
			}
			if taken[b.hostPort] {
				return nil, false
			}
			taken[b.hostPort] = true
			out[c.Name] = append(out[c.Name], b)
		}
	}
	return out, true
}

// placeTask finds an instance for a task, that with the fewest tasks first. Without one it says why.
func (c *cluster) placeTask(td *taskDef) (i *instance, bindings map[string][]binding, why string) {
	var all []*instance
	for _, x := range c.instances {
		if x.status == statusActive {
			all = append(all, x)
		}
	}
	if len(all) == 0 {
		return nil, nil, "No Container Instances were found in your cluster."
	}
	slices.SortFunc(all, func(a, b *instance) int {
		ra, pa := a.load()
		rb, pb := b.load()
		if d := ra + pa - rb - pb; d != 0 {
			return d
		}
		return strings.Compare(a.arn, b.arn)
	})
	for _, x := range all {
		if bindings, ok := x.bind(td); ok {
			return x, bindings, ""
		}
	}
	return nil, nil, "The closest matching (container-instance " + all[0].id + ") is already using a port required by your task."
}

func (i *instance) describe(withTags bool) doc {
	running, pending := i.load()
	d := doc{"containerInstanceArn": i.arn, "ec2InstanceId": i.machine.ID, "version": i.version, "status": i.status, "agentConnected": true,
		"runningTasksCount": running, "pendingTasksCount": pending, "registeredAt": epoch(i.registeredAt), "attachments": []any{}, "registeredResources": []any{},
		"remainingResources": []any{}, "versionInfo": doc{"agentVersion": "1.99.0", "dockerVersion": "DockerVersion: 28.5.2"},
		"attributes": []doc{{"name": "ecs.availability-zone", "value": i.machine.Zone}, {"name": "ecs.instance-type", "value": i.machine.Type}, {"name": "ecs.os-type", "value": "linux"}}}
	if withTags {
		d["tags"] = []tag{}
	}
	return d
}

// instance finds a container instance by id or ARN.
func (c *cluster) instance(ref string) *instance {
	i := c.instances[last(ref)]
	if i == nil || strings.HasPrefix(ref, "arn:") && i.arn != ref {
		return nil
	}
	return i
}

func (s *Service) listContainerInstances(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster    string `json:"cluster"`
		Status     string `json:"status"`
		MaxResults int    `json:"maxResults"`
		NextToken  string `json:"nextToken"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListContainerInstances", clusterARN(r, in.Cluster), nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	var arns []string
	for _, i := range c.instances {
		if in.Status == "" || in.Status == i.status {
			arns = append(arns, i.arn)
		}
	}
	slices.Sort(arns)
	return listAnswer(r, "containerInstanceArns", arns, in.NextToken, in.MaxResults)
}

type instancesInput struct {
	Cluster            string   `json:"cluster"`
	ContainerInstances []string `json:"containerInstances"`
	Include            []string `json:"include"`
	Status             string   `json:"status"`
}

// eachInstance checks a call about container instances, of which it may name up to most, and does something with each that is there.
func (s *Service) eachInstance(r *awsserver.Request, most int, do func(in instancesInput, i *instance) doc) (any, error) {
	var in instancesInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	switch n := len(in.ContainerInstances); {
	case n == 0:
		return nil, invalid("Container instances cannot be empty.")
	case n > most:
		return nil, invalid("Container instances cannot have more than %d elements.", most)
	case r.Operation == "UpdateContainerInstancesState" && in.Status != statusActive && in.Status != statusDraining:
		return nil, invalid("Container instance status must be one of ACTIVE, DRAINING.")
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	arns := make([]string, 0, len(in.ContainerInstances))
	for _, ref := range in.ContainerInstances {
		arn := ref
		if !strings.HasPrefix(arn, "arn:") {
			arn = p.arn("container-instance", last(clusterARN(r, in.Cluster)), ref)
		}
		if err := r.Authorize("ecs:"+r.Operation, arn, map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
			return nil, err
		}
		arns = append(arns, arn)
	}
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	found, failures := []doc{}, []doc{}
	for n, ref := range in.ContainerInstances {
		if i := c.instance(ref); i != nil {
			found = append(found, do(in, i))
		} else {
			failures = append(failures, missing(arns[n]))
		}
	}
	return doc{"containerInstances": found, "failures": failures}, nil
}

func (s *Service) describeContainerInstances(_ context.Context, r *awsserver.Request) (any, error) {
	return s.eachInstance(r, 100, func(in instancesInput, i *instance) doc { return i.describe(slices.Contains(in.Include, "TAGS")) })
}

// updateInstancesState lets instances drain, so that services move their tasks to others, or takes them back.
func (s *Service) updateInstancesState(_ context.Context, r *awsserver.Request) (any, error) {
	return s.eachInstance(r, 10, func(in instancesInput, i *instance) doc {
		if i.status != in.Status {
			i.status = in.Status
			i.tellLocked()
			s.poke()
		}
		return i.describe(false)
	})
}
