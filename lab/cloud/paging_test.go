package cloud_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	bustypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// pager is a call that answers in pages.
type pager struct {
	op          string
	least, most int32 // what a page may be asked to hold
	badSize     string
	badToken    string
	fixed       int // items that cannot be made more of; 0 means the account was filled
	// read asks for one page; size 0 asks for no size.
	read func(c *caller, size int32, token *string) (items []string, next *string, err error)
}

func size(n int32) *int32 {
	if n == 0 {
		return nil
	}
	return &n
}

// texts are the fields of items that tell them apart.
func texts[T any](list []T, key func(T) *string) []string {
	out := make([]string, 0, len(list))
	for _, x := range list {
		out = append(out, *key(x))
	}
	return out
}

// TestPages reads every list of the table whole and in the smallest pages, which must hold the same, each once; a token that the
// call did not give and a size out of its bounds are refused.
func TestPages(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, _ := l.callers()
	c.fill()
	pagers := slices.Concat(ec2Pagers(), ecsPagers(), iamPagers(), otherPagers())
	has := map[string]bool{}
	for _, p := range pagers {
		has[p.op] = true
		t.Run(p.op, func(t *testing.T) { p.check(t, c) })
	}
	for _, op := range l.cloud.Operations() {
		_, name, _ := strings.Cut(op, ".")
		reads := strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Describe") || strings.HasPrefix(name, "Filter")
		if reads && !has[op] && !unpaged()[op] {
			t.Errorf("%s is neither read in pages here nor among the calls that have none", op)
		}
	}
}

// unpaged are the reads that have no pages at AWS either, or of which the lab never has anything.
func unpaged() map[string]bool {
	out := map[string]bool{}
	for _, op := range []string{"ecs.DescribeClusters", "ecs.DescribeServices", "ecs.DescribeTasks", "ecs.DescribeTaskDefinition", "ecs.DescribeContainerInstances",
		"ecs.ListTagsForResource", "ec2.DescribeVpcAttribute", "ec2.DescribeAvailabilityZones", "ec2.DescribeAddresses", "eks.DescribeCluster",
		"eks.DescribePodIdentityAssociation", "events.DescribeRule", "events.DescribeEventBus", "events.ListTagsForResource", "sqs.ListQueueTags", "iam.ListInstanceProfilesForRole",
		"cloudformation.DescribeStacks", "cloudformation.ListStacks", "cloudformation.DescribeStackResource", "cloudformation.DescribeStackResources",
		"elasticloadbalancing/2012-06-01.DescribeLoadBalancers", "elasticloadbalancing/2015-12-01.DescribeLoadBalancers"} {
		out[op] = true
	}
	return out
}

func (p pager) check(t *testing.T, c *caller) {
	whole, next, err := p.read(c, 0, nil)
	for err == nil && next != nil { // some calls have a small page where none is asked for
		var more []string
		more, next, err = p.read(c, 0, next)
		whole = append(whole, more...)
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	pages := 0
	for token := (*string)(nil); ; pages++ {
		items, next, err := p.read(c, p.least, token)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) > int(p.least) {
			t.Errorf("a page of %d has %d", p.least, len(items))
		}
		if all = append(all, items...); next == nil {
			break
		}
		token = next
	}
	if !slices.Equal(all, whole) {
		t.Errorf("in pages of %d it has %v, whole it has %v", p.least, all, whole)
	}
	if p.fixed == 0 && pages < 2 || p.fixed > 0 && len(whole) != p.fixed {
		t.Errorf("%d items in %d pages: too few to tell", len(whole), pages+1)
	}
	_, _, err = p.read(c, 0, of("bm90IGEgdG9rZW4"))
	wantCode(t, "a token from nowhere", err, p.badToken)
	_, _, err = p.read(c, p.most+1, nil)
	wantCode(t, "a page that is too large", err, p.badSize)
	if p.least > 1 {
		_, _, err = p.read(c, p.least-1, nil)
		wantCode(t, "a page that is too small", err, p.badSize)
	}
}

// fill makes enough of everything for three pages.
func (c *caller) fill() {
	t := c.lab.t
	t.Helper()
	group, role, rule := of("/page"), of("page"), of("page-0")
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c.fillEC2(ok)
	_, err := c.iam.CreateRole(c.ctx, &awsiam.CreateRoleInput{RoleName: role, AssumeRolePolicyDocument: of(taskTrust)})
	ok(err)
	_, err = c.ecs.RegisterTaskDefinition(c.ctx, fargate("page", app("a")))
	ok(err)
	_, err = c.logs.CreateLogGroup(c.ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: group})
	ok(err)
	for i := range 3 {
		name := of(fmt.Sprintf("page-%d", i))
		_, err := c.ecs.CreateCluster(c.ctx, &awsecs.CreateClusterInput{ClusterName: name})
		ok(err)
		_, err = c.ecs.CreateService(c.ctx, &awsecs.CreateServiceInput{Cluster: of("page-0"), ServiceName: name, TaskDefinition: of("page"), DesiredCount: of(int32(1)), NetworkConfiguration: network()})
		ok(err)
		_, err = c.ecs.RegisterTaskDefinition(c.ctx, fargate(*name, app("a")))
		ok(err)
		_, err = c.iam.CreateRole(c.ctx, &awsiam.CreateRoleInput{RoleName: name, AssumeRolePolicyDocument: of(taskTrust)})
		ok(err)
		_, err = c.iam.TagRole(c.ctx, &awsiam.TagRoleInput{RoleName: role, Tags: []iamtypes.Tag{{Key: name, Value: name}}})
		ok(err)
		_, err = c.iam.PutRolePolicy(c.ctx, &awsiam.PutRolePolicyInput{RoleName: role, PolicyName: name, PolicyDocument: of(anything)})
		ok(err)
		policy, err := c.iam.CreatePolicy(c.ctx, &awsiam.CreatePolicyInput{PolicyName: name, PolicyDocument: of(anything)})
		ok(err)
		_, err = c.iam.AttachRolePolicy(c.ctx, &awsiam.AttachRolePolicyInput{RoleName: role, PolicyArn: policy.Policy.Arn})
		ok(err)
		_, err = c.iam.CreatePolicyVersion(c.ctx, &awsiam.CreatePolicyVersionInput{PolicyArn: of("arn:aws:iam::" + c.id + ":policy/page-0"), PolicyDocument: of(anything)})
		ok(err)
		_, err = c.eks.CreatePodIdentityAssociation(c.ctx, &awseks.CreatePodIdentityAssociationInput{ClusterName: of("demo"), Namespace: name, ServiceAccount: name, RoleArn: of("arn:aws:iam::" + c.id + ":role/page")})
		ok(err)
		_, err = c.logs.CreateLogGroup(c.ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: name})
		ok(err)
		_, err = c.logs.CreateLogStream(c.ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: group, LogStreamName: name})
		ok(err)
		_, err = c.logs.PutLogEvents(c.ctx, &cloudwatchlogs.PutLogEventsInput{LogGroupName: group, LogStreamName: name,
			LogEvents: []logtypes.InputLogEvent{{Timestamp: of(time.Now().UnixMilli()), Message: name}}})
		ok(err)
		_, err = c.sqs.CreateQueue(c.ctx, &sqs.CreateQueueInput{QueueName: name})
		ok(err)
		_, err = c.bus.PutRule(c.ctx, &eventbridge.PutRuleInput{Name: name, EventPattern: of(`{"source":["x"]}`)})
		ok(err)
		_, err = c.bus.PutTargets(c.ctx, &eventbridge.PutTargetsInput{Rule: name, Targets: []bustypes.Target{{Id: name, Arn: of(c.arn("sqs", "page-0"))}}})
		ok(err)
		_, err = c.bus.PutTargets(c.ctx, &eventbridge.PutTargetsInput{Rule: rule, Targets: []bustypes.Target{{Id: name, Arn: of(c.arn("sqs", *name))}}})
		ok(err)
	}
	c.lab.eventually("each service has its task", func() bool {
		out, err := c.ecs.ListTasks(c.ctx, &awsecs.ListTasksInput{Cluster: of("page-0")})
		return err == nil && len(out.TaskArns) == 3
	})
	c.lab.eventually("each instance has joined the cluster", func() bool {
		out, err := c.ecs.ListContainerInstances(c.ctx, &awsecs.ListContainerInstancesInput{Cluster: of("page-0")})
		return err == nil && len(out.ContainerInstanceArns) == 11
	})
}

// fillEC2 makes eleven of everything: EC2's smallest page has five.
func (c *caller) fillEC2(ok func(error)) {
	c.lab.t.Helper()
	first, err := c.ec2.CreateVpc(c.ctx, &awsec2.CreateVpcInput{CidrBlock: of("10.100.0.0/16")})
	ok(err)
	c.ids["vpc"] = *first.Vpc.VpcId
	for i := range 11 {
		vpc, err := c.ec2.CreateVpc(c.ctx, &awsec2.CreateVpcInput{CidrBlock: of(fmt.Sprintf("10.%d.0.0/16", 101+i))})
		ok(err)
		_, err = c.ec2.CreateSubnet(c.ctx, &awsec2.CreateSubnetInput{VpcId: first.Vpc.VpcId, CidrBlock: of(fmt.Sprintf("10.100.%d.0/24", i))})
		ok(err)
		_, err = c.ec2.RunInstances(c.ctx, &awsec2.RunInstancesInput{ImageId: of("ami"), MinCount: of(int32(1)), MaxCount: of(int32(1)), UserData: of(base64.StdEncoding.EncodeToString([]byte("ECS_CLUSTER=page-0")))})
		ok(err)
		_, err = c.ec2.CreateRouteTable(c.ctx, &awsec2.CreateRouteTableInput{VpcId: first.Vpc.VpcId})
		ok(err)
		_, err = c.ec2.CreateSecurityGroup(c.ctx, &awsec2.CreateSecurityGroupInput{VpcId: first.Vpc.VpcId, GroupName: of(fmt.Sprintf("page-%d", i)), Description: of("d")})
		ok(err)
		_, err = c.ec2.CreateVpcPeeringConnection(c.ctx, &awsec2.CreateVpcPeeringConnectionInput{VpcId: first.Vpc.VpcId, PeerVpcId: vpc.Vpc.VpcId})
		ok(err)
		igw, err := c.ec2.CreateInternetGateway(c.ctx, &awsec2.CreateInternetGatewayInput{})
		ok(err)
		_, err = c.ec2.AttachInternetGateway(c.ctx, &awsec2.AttachInternetGatewayInput{InternetGatewayId: igw.InternetGateway.InternetGatewayId, VpcId: vpc.Vpc.VpcId})
		ok(err)
		subnet, err := c.ec2.CreateSubnet(c.ctx, &awsec2.CreateSubnetInput{VpcId: vpc.Vpc.VpcId, CidrBlock: of(fmt.Sprintf("10.%d.1.0/24", 101+i))})
		ok(err)
		eip, err := c.ec2.AllocateAddress(c.ctx, &awsec2.AllocateAddressInput{})
		ok(err)
		_, err = c.ec2.CreateNatGateway(c.ctx, &awsec2.CreateNatGatewayInput{SubnetId: subnet.Subnet.SubnetId, AllocationId: eip.AllocationId, ClientToken: of("x")})
		ok(err)
	}
}
