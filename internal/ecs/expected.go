package ecs

import (
	"context"
	"fmt"
	"maps"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// askExpected finds out what became of tasks and services that others remember and the sweeps do not know.
func (s *sweep) askExpected(ctx context.Context) {
	tasks, services := map[string][]string{}, map[string][]string{}
	for _, arn := range s.expected {
		a, err := inventory.ParseARN(arn)
		if err != nil || a.Account != s.cfg.Account || a.Region != s.cfg.Region {
			continue
		}
		cluster := inventory.ClusterOf(arn)
		switch {
		case cluster == "":
		case len(a.Resource) > 5 && a.Resource[:5] == "task/":
			tasks[cluster] = append(tasks[cluster], arn)
		case len(a.Resource) > 8 && a.Resource[:8] == "service/":
			services[cluster] = append(services[cluster], arn)
		}
	}
	for cluster, arns := range tasks {
		found, missing, err := s.cfg.Source.DescribeTasks(ctx, cluster, arns)
		answered := setOf(missing)
		for _, t := range found {
			answered[t.ARN] = true
			s.meetTask(t)
		}
		s.conclude(arns, answered, missing, err)
	}
	for cluster, arns := range services {
		found, missing, err := s.cfg.Source.DescribeServices(ctx, cluster, arns)
		answered := setOf(missing)
		for _, svc := range found {
			answered[svc.ARN] = true
			s.meetService(svc)
		}
		s.conclude(arns, answered, missing, err)
	}
}

// meetTask takes over an answer about a task that no list has: it ended, or the lists are stale.
func (s *sweep) meetTask(t *inventory.Task) {
	cs := s.state.clusters[t.ClusterARN]
	switch {
	case s.known(t.ARN):
	case t.LastStatus == inventory.TaskStopped || t.LastStatus == inventory.TaskDeleted:
		s.state.forget(t.ARN, inventory.Terminal)
	case cs != nil:
		v := *cs.view
		v.Tasks = maps.Clone(v.Tasks)
		v.Tasks[t.ARN] = t
		v.History = v.History.Next(t.ARN)
		cs.view = &v
		s.state.revive(t.ARN)
	default:
		s.suspect(t.ClusterARN, t.ARN)
	}
}

// meetService is meetTask for services.
func (s *sweep) meetService(svc *inventory.Service) {
	cs := s.state.clusters[svc.ClusterARN]
	switch {
	case s.known(svc.ARN):
	case svc.Status == inventory.StatusInactive:
		s.state.forget(svc.ARN, inventory.Terminal)
	case cs != nil:
		v := *cs.view
		v.Services = maps.Clone(v.Services)
		v.Services[svc.Name] = svc
		v.History = v.History.Next(svc.ARN)
		cs.view = &v
		s.state.revive(svc.ARN)
	default:
		s.suspect(svc.ClusterARN, svc.ARN)
	}
}

// conclude takes over what ECS does not know. A question that failed, or was not answered, makes the sweep and the
// cluster asked about incomplete: absence from lists must not count while ECS has not been heard.
func (s *sweep) conclude(arns []string, answered map[string]bool, missing []string, err error) {
	why := inventory.Missing
	if isNotFound(err) {
		answered, missing, why, err = setOf(arns), arns, inventory.ClusterGone, nil
	}
	for _, arn := range arns {
		if err == nil && !answered[arn] {
			err = fmt.Errorf("no answer about %s", arn)
		}
	}
	if err != nil {
		s.fail(err)
		if cs := s.state.clusters[inventory.ClusterARNOf(arns[0])]; cs != nil {
			v := *cs.view
			v.Complete, v.Err = false, err
			cs.view = &v
		}
	}
	for _, arn := range missing {
		if !s.known(arn) {
			s.state.forget(arn, why)
		}
	}
}

// known reports whether the ARN is in the state: what is there cannot be gone.
func (s *sweep) known(arn string) bool {
	for _, cs := range s.state.clusters {
		if cs.view.Tasks[arn] != nil {
			return true
		}
		if svc := cs.view.Services[inventory.LastPart(arn)]; svc != nil && svc.ARN == arn {
			return true
		}
	}
	return false
}

func setOf(items []string) map[string]bool {
	set := make(map[string]bool, len(items))
	for _, item := range items {
		set[item] = true
	}
	return set
}
