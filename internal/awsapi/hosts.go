package awsapi

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// batchInstanceIDs is how many instances one DescribeInstances names; EC2 advises not to name many more.
const batchInstanceIDs = 100

// Hosts finds the private addresses of the EC2 instances behind ECS container instances. It needs permissions of its
// own (ecs:DescribeContainerInstances, ec2:DescribeInstances).
type Hosts struct {
	ecs               *ECS
	describeInstances func(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
}

// NewHosts returns the finder of a target. It makes no network call.
func NewHosts(s *Session, t Target) (*Hosts, error) {
	reader, err := NewECS(s, t)
	if err != nil {
		return nil, err
	}
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return nil, err
	}
	return &Hosts{ecs: reader, describeInstances: ec2.NewFromConfig(cfg).DescribeInstances}, nil
}

// HostAddresses returns the private IPv4 address of each container instance that runs on EC2, by its ARN.
func (h *Hosts) HostAddresses(ctx context.Context, cluster string, containerInstances []string) (map[string]string, error) {
	instances, err := h.ecs.InstanceIDs(ctx, cluster, containerInstances)
	if err != nil {
		return nil, err
	}
	ids := make([]string, 0, len(instances))
	for _, id := range instances {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	addrs := map[string]string{}
	for batch := range slices.Chunk(slices.Compact(ids), batchInstanceIDs) {
		out, err := h.describeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: batch})
		if err != nil {
			return nil, fmt.Errorf("describe instances: %w", err)
		}
		for _, r := range out.Reservations {
			for _, i := range r.Instances {
				addrs[aws.ToString(i.InstanceId)] = aws.ToString(i.PrivateIpAddress)
			}
		}
	}
	byInstance := map[string]string{}
	for ci, id := range instances {
		if a := addrs[id]; a != "" {
			byInstance[ci] = a
		}
	}
	return byInstance, nil
}
