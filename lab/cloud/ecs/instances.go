package ecs

import (
	"context"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// listContainerInstances lists none: the lab has one machine, which is nobody's container instance.
func (s *Service) listContainerInstances(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster string `json:"cluster"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListContainerInstances", clusterARN(r, in.Cluster), nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	if _, err := p.activeCluster(in.Cluster); err != nil {
		return nil, err
	}
	return doc{"containerInstanceArns": []string{}}, nil
}

// describeContainerInstances finds none of those asked for.
func (s *Service) describeContainerInstances(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster            string   `json:"cluster"`
		ContainerInstances []string `json:"containerInstances"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	switch n := len(in.ContainerInstances); {
	case n == 0:
		return nil, invalid("Container instances cannot be empty.")
	case n > 100:
		return nil, invalid("Container instances cannot have more than 100 elements.")
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	failures := []doc{}
	for _, ref := range in.ContainerInstances {
		arn := ref
		if !strings.HasPrefix(arn, "arn:") {
			arn = p.arn("container-instance", last(clusterARN(r, in.Cluster)), ref)
		}
		if err := r.Authorize("ecs:DescribeContainerInstances", arn, map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
			return nil, err
		}
		failures = append(failures, missing(arn))
	}
	if _, err := p.activeCluster(in.Cluster); err != nil {
		return nil, err
	}
	return doc{"containerInstances": []doc{}, "failures": failures}, nil
}
