package awsapi

import (
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

func tagsOf(tags []types.Tag) inventory.Tags {
	if len(tags) == 0 {
		return nil
	}
	m := make(inventory.Tags, len(tags))
	for _, t := range tags {
		m[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return m
}

func clusterOf(c *types.Cluster) *inventory.Cluster {
	return &inventory.Cluster{ARN: aws.ToString(c.ClusterArn), Name: aws.ToString(c.ClusterName), Status: aws.ToString(c.Status), Tags: tagsOf(c.Tags)}
}

func serviceOf(s *types.Service) *inventory.Service {
	out := &inventory.Service{
		ARN: aws.ToString(s.ServiceArn), Name: aws.ToString(s.ServiceName), ClusterARN: aws.ToString(s.ClusterArn), Status: aws.ToString(s.Status),
		LaunchType: string(s.LaunchType), TaskDefinition: aws.ToString(s.TaskDefinition),
		DesiredCount: int(s.DesiredCount), RunningCount: int(s.RunningCount), PendingCount: int(s.PendingCount),
		CreatedAt: timeOf(s.CreatedAt), Tags: tagsOf(s.Tags),
	}
	for _, d := range s.Deployments {
		out.Deployments = append(out.Deployments, inventory.Deployment{
			ID: aws.ToString(d.Id), Status: aws.ToString(d.Status), RolloutState: string(d.RolloutState), RolloutReason: aws.ToString(d.RolloutStateReason),
			TaskDefinition: aws.ToString(d.TaskDefinition), DesiredCount: int(d.DesiredCount), RunningCount: int(d.RunningCount),
			PendingCount: int(d.PendingCount), FailedCount: int(d.FailedTasks), UpdatedAt: timeOf(d.UpdatedAt),
		})
	}
	return out
}

func taskOf(t *types.Task) *inventory.Task {
	out := &inventory.Task{
		ARN: aws.ToString(t.TaskArn), ClusterARN: aws.ToString(t.ClusterArn), TaskDefinitionARN: aws.ToString(t.TaskDefinitionArn),
		Group: aws.ToString(t.Group), StartedBy: aws.ToString(t.StartedBy), LastStatus: aws.ToString(t.LastStatus), DesiredStatus: aws.ToString(t.DesiredStatus),
		HealthStatus: string(t.HealthStatus), StopCode: string(t.StopCode), StoppedReason: aws.ToString(t.StoppedReason),
		LaunchType: string(t.LaunchType), AvailabilityZone: aws.ToString(t.AvailabilityZone), ContainerInstance: aws.ToString(t.ContainerInstanceArn),
		ExecEnabled: t.EnableExecuteCommand, Version: t.Version, CreatedAt: timeOf(t.CreatedAt), StartedAt: timeOf(t.StartedAt),
		StoppingAt: timeOf(t.StoppingAt), StoppedAt: timeOf(t.StoppedAt), Tags: tagsOf(t.Tags),
	}
	if t.Overrides != nil {
		out.TaskRoleOverride = aws.ToString(t.Overrides.TaskRoleArn)
	}
	for _, a := range t.Attachments {
		details := make(map[string]string, len(a.Details))
		for _, d := range a.Details {
			details[aws.ToString(d.Name)] = aws.ToString(d.Value)
		}
		out.Attachments = append(out.Attachments, inventory.Attachment{ID: aws.ToString(a.Id), Type: aws.ToString(a.Type), Status: aws.ToString(a.Status), Details: details})
	}
	for i := range t.Containers {
		out.Containers = append(out.Containers, containerOf(&t.Containers[i]))
	}
	return out
}

func containerOf(c *types.Container) inventory.Container {
	out := inventory.Container{
		Name: aws.ToString(c.Name), ARN: aws.ToString(c.ContainerArn), LastStatus: aws.ToString(c.LastStatus), HealthStatus: string(c.HealthStatus),
		RuntimeID: aws.ToString(c.RuntimeId), Image: aws.ToString(c.Image), Reason: aws.ToString(c.Reason),
	}
	if c.ExitCode != nil {
		code := int(*c.ExitCode)
		out.ExitCode = &code
	}
	for _, n := range c.NetworkInterfaces {
		for _, s := range []*string{n.PrivateIpv4Address, n.Ipv6Address} {
			if a, err := netip.ParseAddr(aws.ToString(s)); err == nil {
				out.Addrs = append(out.Addrs, a)
			}
		}
	}
	for _, b := range c.NetworkBindings {
		port, ok1 := portOf(b.ContainerPort)
		host, ok2 := portOf(b.HostPort)
		if ok1 && ok2 {
			out.Bindings = append(out.Bindings, inventory.Binding{ContainerPort: port, HostPort: host, Protocol: protocolOf(b.Protocol)})
		}
	}
	for _, m := range c.ManagedAgents {
		if m.Name == types.ManagedAgentNameExecuteCommandAgent {
			out.ExecAgent = aws.ToString(m.LastStatus)
		}
	}
	return out
}

func definitionOf(d *types.TaskDefinition, tags []types.Tag) *inventory.TaskDefinition {
	out := &inventory.TaskDefinition{
		ARN: aws.ToString(d.TaskDefinitionArn), Family: aws.ToString(d.Family), Revision: int(d.Revision), Status: string(d.Status),
		TaskRoleARN: aws.ToString(d.TaskRoleArn), ExecutionRole: aws.ToString(d.ExecutionRoleArn), NetworkMode: string(d.NetworkMode),
		CPU: aws.ToString(d.Cpu), Memory: aws.ToString(d.Memory), Tags: tagsOf(tags),
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		cd := inventory.ContainerDefinition{
			Name: aws.ToString(c.Name), Image: aws.ToString(c.Image), Essential: c.Essential == nil || *c.Essential,
			HasHealthCheck: c.HealthCheck != nil && len(c.HealthCheck.Command) > 0 && c.HealthCheck.Command[0] != "NONE",
			DockerLabels:   c.DockerLabels,
		}
		if c.StopTimeout != nil {
			cd.StopTimeout = time.Duration(*c.StopTimeout) * time.Second
		}
		for _, p := range c.PortMappings {
			port, ok := portOf(p.ContainerPort)
			if !ok {
				continue // a port range; ranges are not service ports
			}
			host, _ := portOf(p.HostPort)
			cd.PortMappings = append(cd.PortMappings, inventory.PortMapping{
				Name: aws.ToString(p.Name), ContainerPort: port, HostPort: host, Protocol: protocolOf(p.Protocol), AppProtocol: string(p.AppProtocol)})
		}
		out.Containers = append(out.Containers, cd)
	}
	return out
}

func protocolOf(p types.TransportProtocol) string {
	if p == "" {
		return "tcp"
	}
	return string(p)
}

func portOf(p *int32) (uint16, bool) {
	if p == nil || *p < 1 || *p > 65535 {
		return 0, false
	}
	return uint16(*p), true
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
