// Package awsfake is an Amazon ECS in memory, for tests of what reads ECS. It speaks the SDK's types, so that paging,
// batching and conversion of awsapi are part of what is tested; it enforces AWS's page and batch limits; and it can be
// told to throttle, deny, fail, answer in part, or answer from the past.
package awsfake

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// ECS is one account in one region. The zero value is not usable; see New.
type ECS struct {
	Account, Region, Partition string

	mu       sync.Mutex
	clusters map[string]*cluster // by ARN
	defs     map[string]*inventory.TaskDefinition
	next     int
	version  int64
	calls    map[string]int
	faults   map[string][]error        // by operation, used up one by one
	broken   map[string]error          // by operation, until mended
	brokenIn map[string]error          // by "operation cluster-name", until mended
	hidden   map[string]bool           // ARNs that lists leave out
	silent   map[string]bool           // ARNs that describes do not answer at all
	stale    map[string]inventory.Task // readings from the past, by task ARN
	empty    map[string]bool           // operations that list nothing
}

type cluster struct {
	inventory.Cluster
	services map[string]*inventory.Service
	tasks    map[string]*inventory.Task
}

// New returns an empty account.
func New(account, region string) *ECS {
	return &ECS{
		Account: account, Region: region, Partition: "aws", clusters: map[string]*cluster{}, defs: map[string]*inventory.TaskDefinition{},
		calls: map[string]int{}, faults: map[string][]error{}, broken: map[string]error{}, brokenIn: map[string]error{},
		hidden: map[string]bool{}, silent: map[string]bool{}, stale: map[string]inventory.Task{}, empty: map[string]bool{},
	}
}

// Reader returns an awsapi.ECS over the fake.
func (f *ECS) Reader() *awsapi.ECS { return awsapi.NewECSFromCalls(f.Calls()) }

// Calls returns the fake's calls.
func (f *ECS) Calls() awsapi.ECSCalls {
	return awsapi.ECSCalls{
		ListClusters: f.listClusters, DescribeClusters: f.describeClusters, ListServices: f.listServices, DescribeServices: f.describeServices,
		ListTasks: f.listTasks, DescribeTasks: f.describeTasks, DescribeTaskDefinition: f.describeTaskDefinition,
		DescribeContainerInstances: f.describeContainerInstances,
	}
}

// begin counts a call and returns its fault, if it has one. The caller holds mu.
func (f *ECS) begin(op, cluster string) error {
	f.calls[op]++
	if q := f.faults[op]; len(q) > 0 {
		f.faults[op] = q[1:]
		if q[0] != nil {
			return q[0]
		}
	}
	if err := f.brokenIn[op+" "+inventory.LastPart(cluster)]; err != nil {
		return err
	}
	return f.broken[op]
}

func apiError(code, message string) error {
	return &smithy.OperationError{ServiceID: "ECS", OperationName: "Fake", Err: &smithy.GenericAPIError{Code: code, Message: message}}
}

// Errors as AWS makes them.
var (
	ErrThrottled = apiError("ThrottlingException", "Rate exceeded")
	ErrDenied    = apiError("AccessDeniedException", "User is not authorized to perform this action")
	ErrServer    = apiError("ServerException", "Service unavailable")
)

func (f *ECS) arn(resource string) string {
	return "arn:" + f.Partition + ":ecs:" + f.Region + ":" + f.Account + ":" + resource
}

// page cuts a sorted list at a token; AWS's tokens are opaque, these are offsets.
func page(all []string, token *string, size int) ([]string, *string) {
	start, _ := strconv.Atoi(strings.TrimPrefix(aws.ToString(token), "page-"))
	start = min(start, len(all))
	end := min(start+size, len(all))
	if end == len(all) {
		return all[start:], nil
	}
	return all[start:end], aws.String("page-" + strconv.Itoa(end))
}

func pageSize(asked *int32, def, most int32) (int, error) {
	n := def
	if asked != nil {
		n = *asked
	}
	if n < 1 || n > most {
		return 0, apiError("InvalidParameterException", fmt.Sprintf("maxResults must be between 1 and %d", most))
	}
	return int(n), nil
}

func (f *ECS) visible(op string, arns []string) []string {
	if f.empty[op] {
		return nil
	}
	arns = slices.DeleteFunc(arns, func(a string) bool { return f.hidden[a] })
	slices.Sort(arns)
	return arns
}

func (f *ECS) listClusters(_ context.Context, in *ecs.ListClustersInput, _ ...func(*ecs.Options)) (*ecs.ListClustersOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("ListClusters", ""); err != nil {
		return nil, err
	}
	size, err := pageSize(in.MaxResults, 100, 100)
	if err != nil {
		return nil, err
	}
	var arns []string
	for arn, c := range f.clusters {
		if c.Status != inventory.StatusInactive {
			arns = append(arns, arn)
		}
	}
	items, next := page(f.visible("ListClusters", arns), in.NextToken, size)
	return &ecs.ListClustersOutput{ClusterArns: items, NextToken: next}, nil
}

func (f *ECS) describeClusters(_ context.Context, in *ecs.DescribeClustersInput, _ ...func(*ecs.Options)) (*ecs.DescribeClustersOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("DescribeClusters", ""); err != nil {
		return nil, err
	}
	if len(in.Clusters) > 100 {
		return nil, apiError("InvalidParameterException", "Clusters cannot have more than 100 elements")
	}
	out := &ecs.DescribeClustersOutput{}
	for _, id := range in.Clusters {
		c := f.find(id)
		switch {
		case f.silent[id]:
		case c == nil:
			out.Failures = append(out.Failures, types.Failure{Arn: aws.String(id), Reason: aws.String("MISSING")})
		default:
			tc := types.Cluster{ClusterArn: aws.String(c.ARN), ClusterName: aws.String(c.Name), Status: aws.String(c.Status)}
			if slices.Contains(in.Include, types.ClusterFieldTags) {
				tc.Tags = sdkTags(c.Tags)
			}
			out.Clusters = append(out.Clusters, tc)
		}
	}
	return out, nil
}

// find returns a cluster by name or ARN; nil if there is none.
func (f *ECS) find(id string) *cluster {
	if c := f.clusters[id]; c != nil {
		return c
	}
	return f.clusters[f.arn("cluster/"+id)]
}

func (f *ECS) mustFind(id *string) (*cluster, error) {
	c := f.find(aws.ToString(id))
	if c == nil || c.Status == inventory.StatusInactive {
		return nil, apiError("ClusterNotFoundException", "Cluster not found.")
	}
	return c, nil
}

func (f *ECS) listServices(_ context.Context, in *ecs.ListServicesInput, _ ...func(*ecs.Options)) (*ecs.ListServicesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("ListServices", aws.ToString(in.Cluster)); err != nil {
		return nil, err
	}
	size, err := pageSize(in.MaxResults, 10, 100)
	if err != nil {
		return nil, err
	}
	c, err := f.mustFind(in.Cluster)
	if err != nil {
		return nil, err
	}
	var arns []string
	for _, s := range c.services {
		if s.Status != inventory.StatusInactive {
			arns = append(arns, s.ARN)
		}
	}
	items, next := page(f.visible("ListServices", arns), in.NextToken, size)
	return &ecs.ListServicesOutput{ServiceArns: items, NextToken: next}, nil
}

func (f *ECS) describeServices(_ context.Context, in *ecs.DescribeServicesInput, _ ...func(*ecs.Options)) (*ecs.DescribeServicesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("DescribeServices", aws.ToString(in.Cluster)); err != nil {
		return nil, err
	}
	c, err := f.mustFind(in.Cluster)
	if err != nil {
		return nil, err
	}
	if len(in.Services) > 10 {
		return nil, apiError("InvalidParameterException", "Services cannot have more than 10 elements")
	}
	out := &ecs.DescribeServicesOutput{}
	for _, id := range in.Services {
		s := c.services[inventory.LastPart(id)]
		switch {
		case f.silent[id]:
		case s == nil:
			out.Failures = append(out.Failures, types.Failure{Arn: aws.String(id), Reason: aws.String("MISSING")})
		default:
			out.Services = append(out.Services, sdkService(s))
		}
	}
	return out, nil
}

func (f *ECS) listTasks(_ context.Context, in *ecs.ListTasksInput, _ ...func(*ecs.Options)) (*ecs.ListTasksOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("ListTasks", aws.ToString(in.Cluster)); err != nil {
		return nil, err
	}
	size, err := pageSize(in.MaxResults, 100, 100)
	if err != nil {
		return nil, err
	}
	c, err := f.mustFind(in.Cluster)
	if err != nil {
		return nil, err
	}
	if in.ServiceName != nil && c.services[*in.ServiceName] == nil {
		return nil, apiError("ServiceNotFoundException", "Service not found.")
	}
	var arns []string
	for _, t := range c.tasks {
		if t.DesiredStatus == inventory.TaskRunning && (in.ServiceName == nil || t.StartedBy == "ecs-svc/"+*in.ServiceName) {
			arns = append(arns, t.ARN)
		}
	}
	items, next := page(f.visible("ListTasks", arns), in.NextToken, size)
	return &ecs.ListTasksOutput{TaskArns: items, NextToken: next}, nil
}

func (f *ECS) describeTasks(_ context.Context, in *ecs.DescribeTasksInput, _ ...func(*ecs.Options)) (*ecs.DescribeTasksOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("DescribeTasks", aws.ToString(in.Cluster)); err != nil {
		return nil, err
	}
	c, err := f.mustFind(in.Cluster)
	if err != nil {
		return nil, err
	}
	if len(in.Tasks) > 100 {
		return nil, apiError("InvalidParameterException", "Tasks cannot have more than 100 elements")
	}
	out := &ecs.DescribeTasksOutput{}
	for _, id := range in.Tasks {
		t := c.tasks[inventory.TaskARN(c.ARN, inventory.LastPart(id))]
		if old, ok := f.stale[id]; ok {
			t = &old
		}
		switch {
		case f.silent[id]:
		case t == nil:
			out.Failures = append(out.Failures, types.Failure{Arn: aws.String(id), Reason: aws.String("MISSING")})
		default:
			out.Tasks = append(out.Tasks, sdkTask(t))
		}
	}
	return out, nil
}

func (f *ECS) describeTaskDefinition(_ context.Context, in *ecs.DescribeTaskDefinitionInput, _ ...func(*ecs.Options)) (*ecs.DescribeTaskDefinitionOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("DescribeTaskDefinition", ""); err != nil {
		return nil, err
	}
	d := f.defs[aws.ToString(in.TaskDefinition)]
	if d == nil {
		return nil, apiError("ClientException", "Unable to describe task definition.")
	}
	return sdkDefinition(d), nil
}

func (f *ECS) describeContainerInstances(_ context.Context, in *ecs.DescribeContainerInstancesInput, _ ...func(*ecs.Options)) (*ecs.DescribeContainerInstancesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("DescribeContainerInstances", aws.ToString(in.Cluster)); err != nil {
		return nil, err
	}
	out := &ecs.DescribeContainerInstancesOutput{}
	for _, arn := range in.ContainerInstances {
		out.ContainerInstances = append(out.ContainerInstances, types.ContainerInstance{ContainerInstanceArn: aws.String(arn), Ec2InstanceId: aws.String("i-" + inventory.LastPart(arn))})
	}
	return out, nil
}

// CallCount returns how often an operation was called, or all together for "".
func (f *ECS) CallCount(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op != "" {
		return f.calls[op]
	}
	n := 0
	for _, c := range f.calls {
		n += c
	}
	return n
}

// Operations returns the operations called so far, sorted.
func (f *ECS) Operations() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Keys(f.calls), cmp.Compare[string])
}
