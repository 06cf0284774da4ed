package awsfake

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// AddCluster adds an ACTIVE cluster and returns its ARN.
func (f *ECS) AddCluster(name string, tags inventory.Tags) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	arn := f.arn("cluster/" + name)
	f.clusters[arn] = &cluster{
		Cluster:  inventory.Cluster{ARN: arn, Name: name, Status: inventory.StatusActive, Tags: tags},
		services: map[string]*inventory.Service{}, tasks: map[string]*inventory.Task{},
	}
	return arn
}

// SetCluster changes status and tags of a cluster.
func (f *ECS) SetCluster(arn, status string, tags inventory.Tags) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clusters[arn].Status, f.clusters[arn].Tags = status, tags
}

// RemoveCluster makes ECS not know a cluster any more.
func (f *ECS) RemoveCluster(arn string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clusters, arn)
}

// AddDefinition adds a task definition and returns its ARN.
func (f *ECS) AddDefinition(d inventory.TaskDefinition) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d.ARN == "" {
		d.ARN = f.arn(fmt.Sprintf("task-definition/%s:%d", d.Family, d.Revision))
	}
	if d.NetworkMode == "" {
		d.NetworkMode = inventory.NetworkAWSVPC
	}
	f.defs[d.ARN] = &d
	return d.ARN
}

// AddService adds an ACTIVE service and returns its ARN.
func (f *ECS) AddService(clusterARN, name, definition string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	arn := f.arn("service/" + inventory.LastPart(clusterARN) + "/" + name)
	f.clusters[clusterARN].services[name] = &inventory.Service{
		ARN: arn, Name: name, ClusterARN: clusterARN, Status: inventory.StatusActive, LaunchType: inventory.LaunchFargate, TaskDefinition: definition, DesiredCount: 1,
	}
	return arn
}

// EditService changes a service.
func (f *ECS) EditService(clusterARN, name string, change func(*inventory.Service)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := *f.clusters[clusterARN].services[name]
	change(&next)
	f.clusters[clusterARN].services[name] = &next
}

// RemoveService makes ECS not know a service any more.
func (f *ECS) RemoveService(clusterARN, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.clusters[clusterARN].services, name)
}

// RunTask adds a RUNNING task of a service ("" for none) and returns its ARN. Containers are those of the definition,
// HEALTHY if they have a health check.
func (f *ECS) RunTask(clusterARN, service, definition string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	f.version++
	id := fmt.Sprintf("%032x", f.next)
	addr := netip.AddrFrom4([4]byte{10, byte(f.next / 32_000), byte(128 + f.next/250%128), byte(1 + f.next%250)})
	t := &inventory.Task{
		ARN: inventory.TaskARN(clusterARN, id), ClusterARN: clusterARN, TaskDefinitionARN: definition, Group: "family:none",
		LastStatus: inventory.TaskRunning, DesiredStatus: inventory.TaskRunning, HealthStatus: inventory.Unknown, LaunchType: inventory.LaunchFargate,
		AvailabilityZone: f.Region + "a", Version: f.version, StartedAt: time.Unix(1_700_000_000+int64(f.next), 0).UTC(),
		Attachments: []inventory.Attachment{{ID: "eni-" + id, Type: "ElasticNetworkInterface", Status: "ATTACHED", Details: map[string]string{"privateIPv4Address": addr.String()}}},
	}
	if service != "" {
		t.Group, t.StartedBy = "service:"+service, "ecs-svc/"+service
	}
	if d := f.defs[definition]; d != nil {
		for _, cd := range d.Containers {
			c := inventory.Container{Name: cd.Name, LastStatus: inventory.TaskRunning, HealthStatus: inventory.Unknown, Addrs: []netip.Addr{addr}}
			if cd.HasHealthCheck {
				c.HealthStatus = inventory.Healthy
			}
			t.Containers = append(t.Containers, c)
		}
	}
	f.clusters[clusterARN].tasks[t.ARN] = t
	return t.ARN
}

func sdkTags(tags inventory.Tags) []types.Tag {
	var out []types.Tag
	for k, v := range tags {
		out = append(out, types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	return out
}

func sdkService(s *inventory.Service) types.Service {
	out := types.Service{
		ServiceArn: aws.String(s.ARN), ServiceName: aws.String(s.Name), ClusterArn: aws.String(s.ClusterARN), Status: aws.String(s.Status),
		LaunchType: types.LaunchType(s.LaunchType), TaskDefinition: aws.String(s.TaskDefinition), DesiredCount: int32(s.DesiredCount), //nolint:gosec // small
		RunningCount: int32(s.RunningCount), Tags: sdkTags(s.Tags), CreatedAt: sdkTime(s.CreatedAt), //nolint:gosec // small
	}
	for _, d := range s.Deployments {
		out.Deployments = append(out.Deployments, types.Deployment{Id: aws.String(d.ID), Status: aws.String(d.Status), TaskDefinition: aws.String(d.TaskDefinition)})
	}
	return out
}

func sdkTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func sdkTask(t *inventory.Task) types.Task {
	out := types.Task{
		TaskArn: aws.String(t.ARN), ClusterArn: aws.String(t.ClusterARN), TaskDefinitionArn: aws.String(t.TaskDefinitionARN), Group: aws.String(t.Group),
		StartedBy: aws.String(t.StartedBy), LastStatus: aws.String(t.LastStatus), DesiredStatus: aws.String(t.DesiredStatus), HealthStatus: types.HealthStatus(t.HealthStatus),
		StopCode: types.TaskStopCode(t.StopCode), StoppedReason: aws.String(t.StoppedReason), LaunchType: types.LaunchType(t.LaunchType),
		AvailabilityZone: aws.String(t.AvailabilityZone), Version: t.Version, CreatedAt: sdkTime(t.CreatedAt), StartedAt: sdkTime(t.StartedAt), Tags: sdkTags(t.Tags),
		EnableExecuteCommand: t.ExecEnabled,
	}
	if t.ContainerInstance != "" {
		out.ContainerInstanceArn = aws.String(t.ContainerInstance)
	}
	if t.TaskRoleOverride != "" {
		out.Overrides = &types.TaskOverride{TaskRoleArn: aws.String(t.TaskRoleOverride)}
	}
	for _, a := range t.Attachments {
		at := types.Attachment{Id: aws.String(a.ID), Type: aws.String(a.Type), Status: aws.String(a.Status)}
		for k, v := range a.Details {
			at.Details = append(at.Details, types.KeyValuePair{Name: aws.String(k), Value: aws.String(v)})
		}
		out.Attachments = append(out.Attachments, at)
	}
	for _, c := range t.Containers {
		tc := types.Container{Name: aws.String(c.Name), LastStatus: aws.String(c.LastStatus), HealthStatus: types.HealthStatus(c.HealthStatus), RuntimeId: aws.String(c.RuntimeID)}
		var ni types.NetworkInterface
		for _, a := range c.Addrs {
			if a.Is4() {
				ni.PrivateIpv4Address = aws.String(a.String())
			} else {
				ni.Ipv6Address = aws.String(a.String())
			}
		}
		if len(c.Addrs) > 0 {
			tc.NetworkInterfaces = []types.NetworkInterface{ni}
		}
		for _, b := range c.Bindings {
			tc.NetworkBindings = append(tc.NetworkBindings, types.NetworkBinding{ContainerPort: aws.Int32(int32(b.ContainerPort)), HostPort: aws.Int32(int32(b.HostPort)), Protocol: types.TransportProtocol(b.Protocol)})
		}
		out.Containers = append(out.Containers, tc)
	}
	return out
}

func sdkDefinition(d *inventory.TaskDefinition) *ecs.DescribeTaskDefinitionOutput {
	td := &types.TaskDefinition{
		TaskDefinitionArn: aws.String(d.ARN), Family: aws.String(d.Family), Revision: int32(d.Revision), Status: types.TaskDefinitionStatus(d.Status), //nolint:gosec // small
		TaskRoleArn: aws.String(d.TaskRoleARN), NetworkMode: types.NetworkMode(d.NetworkMode),
	}
	for _, c := range d.Containers {
		cd := types.ContainerDefinition{Name: aws.String(c.Name), Image: aws.String(c.Image), Essential: aws.Bool(c.Essential), DockerLabels: c.DockerLabels}
		if c.HasHealthCheck {
			cd.HealthCheck = &types.HealthCheck{Command: []string{"CMD", "true"}}
		}
		for _, p := range c.PortMappings {
			m := types.PortMapping{ContainerPort: aws.Int32(int32(p.ContainerPort)), Protocol: types.TransportProtocol(p.Protocol), AppProtocol: types.ApplicationProtocol(p.AppProtocol)}
			if p.Name != "" {
				m.Name = aws.String(p.Name)
			}
			cd.PortMappings = append(cd.PortMappings, m)
		}
		td.ContainerDefinitions = append(td.ContainerDefinitions, cd)
	}
	return &ecs.DescribeTaskDefinitionOutput{TaskDefinition: td, Tags: sdkTags(d.Tags)}
}
