package cloud_test

import (
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	ekstypes "github.com/aws/aws-sdk-go-v2/service/eks/types"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	bustypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// page is what pagers return, or only the error.
func page[T any](err error, list func() []T, key func(T) *string, next func() *string) ([]string, *string, error) {
	if err != nil {
		return nil, nil, err
	}
	return texts(list(), key), next(), nil
}

func itself(s string) *string { return &s }

func ec2Pagers() []pager {
	const badSize, badToken = "InvalidParameterValue", "InvalidNextToken"
	return []pager{
		{op: "ec2.DescribeVpcs", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeVpcs(c.ctx, &awsec2.DescribeVpcsInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.Vpc { return out.Vpcs }, func(x types.Vpc) *string { return x.VpcId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeInstances", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeInstances(c.ctx, &awsec2.DescribeInstancesInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.Reservation { return out.Reservations }, func(x types.Reservation) *string { return x.ReservationId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeSubnets", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeSubnets(c.ctx, &awsec2.DescribeSubnetsInput{MaxResults: size(n), NextToken: token, Filters: ec2Filter("vpc-id", c.ids["vpc"])})
			return page(err, func() []types.Subnet { return out.Subnets }, func(x types.Subnet) *string { return x.SubnetId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeInternetGateways", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeInternetGateways(c.ctx, &awsec2.DescribeInternetGatewaysInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.InternetGateway { return out.InternetGateways }, func(x types.InternetGateway) *string { return x.InternetGatewayId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeNatGateways", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeNatGateways(c.ctx, &awsec2.DescribeNatGatewaysInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.NatGateway { return out.NatGateways }, func(x types.NatGateway) *string { return x.NatGatewayId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeRouteTables", least: 5, most: 100, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeRouteTables(c.ctx, &awsec2.DescribeRouteTablesInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.RouteTable { return out.RouteTables }, func(x types.RouteTable) *string { return x.RouteTableId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeVpcPeeringConnections", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeVpcPeeringConnections(c.ctx, &awsec2.DescribeVpcPeeringConnectionsInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.VpcPeeringConnection { return out.VpcPeeringConnections }, func(x types.VpcPeeringConnection) *string { return x.VpcPeeringConnectionId }, func() *string { return out.NextToken })
		}},
		{op: "ec2.DescribeSecurityGroups", least: 5, most: 1000, badSize: badSize, badToken: badToken, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ec2.DescribeSecurityGroups(c.ctx, &awsec2.DescribeSecurityGroupsInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []types.SecurityGroup { return out.SecurityGroups }, func(x types.SecurityGroup) *string { return x.GroupId }, func() *string { return out.NextToken })
		}},
	}
}

func ecsPagers() []pager {
	const bad = "InvalidParameterException"
	in := of("page-0")
	return []pager{
		{op: "ecs.ListClusters", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListClusters(c.ctx, &awsecs.ListClustersInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.ClusterArns }, itself, func() *string { return out.NextToken })
		}},
		{op: "ecs.ListServices", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListServices(c.ctx, &awsecs.ListServicesInput{Cluster: in, MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.ServiceArns }, itself, func() *string { return out.NextToken })
		}},
		{op: "ecs.ListTasks", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListTasks(c.ctx, &awsecs.ListTasksInput{Cluster: in, MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.TaskArns }, itself, func() *string { return out.NextToken })
		}},
		{op: "ecs.ListContainerInstances", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListContainerInstances(c.ctx, &awsecs.ListContainerInstancesInput{Cluster: in, MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.ContainerInstanceArns }, itself, func() *string { return out.NextToken })
		}},
		{op: "ecs.ListTaskDefinitions", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListTaskDefinitions(c.ctx, &awsecs.ListTaskDefinitionsInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.TaskDefinitionArns }, itself, func() *string { return out.NextToken })
		}},
		{op: "ecs.ListTaskDefinitionFamilies", least: 1, most: 100, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.ecs.ListTaskDefinitionFamilies(c.ctx, &awsecs.ListTaskDefinitionFamiliesInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.Families }, itself, func() *string { return out.NextToken })
		}},
	}
}

func iamPagers() []pager {
	const bad = "ValidationError"
	role := of("page")
	return []pager{
		{op: "iam.ListRoles", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListRoles(c.ctx, &awsiam.ListRolesInput{MaxItems: size(n), Marker: token})
			return page(err, func() []iamtypes.Role { return out.Roles }, func(x iamtypes.Role) *string { return x.RoleName }, func() *string { return out.Marker })
		}},
		{op: "iam.ListPolicies", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListPolicies(c.ctx, &awsiam.ListPoliciesInput{MaxItems: size(n), Marker: token})
			return page(err, func() []iamtypes.Policy { return out.Policies }, func(x iamtypes.Policy) *string { return x.Arn }, func() *string { return out.Marker })
		}},
		{op: "iam.ListRolePolicies", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListRolePolicies(c.ctx, &awsiam.ListRolePoliciesInput{RoleName: role, MaxItems: size(n), Marker: token})
			return page(err, func() []string { return out.PolicyNames }, itself, func() *string { return out.Marker })
		}},
		{op: "iam.ListRoleTags", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListRoleTags(c.ctx, &awsiam.ListRoleTagsInput{RoleName: role, MaxItems: size(n), Marker: token})
			return page(err, func() []iamtypes.Tag { return out.Tags }, func(x iamtypes.Tag) *string { return x.Key }, func() *string { return out.Marker })
		}},
		{op: "iam.ListPolicyVersions", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListPolicyVersions(c.ctx, &awsiam.ListPolicyVersionsInput{PolicyArn: of("arn:aws:iam::" + c.id + ":policy/page-0"), MaxItems: size(n), Marker: token})
			return page(err, func() []iamtypes.PolicyVersion { return out.Versions }, func(x iamtypes.PolicyVersion) *string { return x.VersionId }, func() *string { return out.Marker })
		}},
		{op: "iam.ListAttachedRolePolicies", least: 1, most: 1000, badSize: bad, badToken: bad, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.iam.ListAttachedRolePolicies(c.ctx, &awsiam.ListAttachedRolePoliciesInput{RoleName: role, MaxItems: size(n), Marker: token})
			return page(err, func() []iamtypes.AttachedPolicy { return out.AttachedPolicies }, func(x iamtypes.AttachedPolicy) *string { return x.PolicyArn }, func() *string { return out.Marker })
		}},
	}
}

func otherPagers() []pager {
	const parameter, validation = "InvalidParameterException", "ValidationException"
	group := of("/page")
	return []pager{
		{op: "eks.ListClusters", least: 1, most: 100, badSize: parameter, badToken: parameter, fixed: 1, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.eks.ListClusters(c.ctx, &awseks.ListClustersInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.Clusters }, itself, func() *string { return out.NextToken })
		}},
		{op: "eks.ListPodIdentityAssociations", least: 1, most: 100, badSize: parameter, badToken: parameter, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.eks.ListPodIdentityAssociations(c.ctx, &awseks.ListPodIdentityAssociationsInput{ClusterName: of("demo"), MaxResults: size(n), NextToken: token})
			return page(err, func() []ekstypes.PodIdentityAssociationSummary { return out.Associations }, func(x ekstypes.PodIdentityAssociationSummary) *string { return x.AssociationId }, func() *string { return out.NextToken })
		}},
		{op: "logs.DescribeLogGroups", least: 1, most: 50, badSize: parameter, badToken: parameter, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.logs.DescribeLogGroups(c.ctx, &cloudwatchlogs.DescribeLogGroupsInput{Limit: size(n), NextToken: token})
			return page(err, func() []logtypes.LogGroup { return out.LogGroups }, func(x logtypes.LogGroup) *string { return x.LogGroupName }, func() *string { return out.NextToken })
		}},
		{op: "logs.DescribeLogStreams", least: 1, most: 50, badSize: parameter, badToken: parameter, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.logs.DescribeLogStreams(c.ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: group, Limit: size(n), NextToken: token})
			return page(err, func() []logtypes.LogStream { return out.LogStreams }, func(x logtypes.LogStream) *string { return x.LogStreamName }, func() *string { return out.NextToken })
		}},
		{op: "logs.FilterLogEvents", least: 1, most: 10000, badSize: parameter, badToken: parameter, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.logs.FilterLogEvents(c.ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: group, Limit: size(n), NextToken: token})
			return page(err, func() []logtypes.FilteredLogEvent { return out.Events }, func(x logtypes.FilteredLogEvent) *string { return x.Message }, func() *string { return out.NextToken })
		}},
		{op: "sqs.ListQueues", least: 1, most: 1000, badSize: "InvalidParameterValue", badToken: "InvalidParameterValue", read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.sqs.ListQueues(c.ctx, &sqs.ListQueuesInput{MaxResults: size(n), NextToken: token})
			return page(err, func() []string { return out.QueueUrls }, itself, func() *string { return out.NextToken })
		}},
		{op: "events.ListEventBuses", least: 1, most: 100, badSize: validation, badToken: validation, fixed: 1, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.bus.ListEventBuses(c.ctx, &eventbridge.ListEventBusesInput{Limit: size(n), NextToken: token})
			return page(err, func() []bustypes.EventBus { return out.EventBuses }, func(x bustypes.EventBus) *string { return x.Name }, func() *string { return out.NextToken })
		}},
		{op: "events.ListRules", least: 1, most: 100, badSize: validation, badToken: validation, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.bus.ListRules(c.ctx, &eventbridge.ListRulesInput{Limit: size(n), NextToken: token})
			return page(err, func() []bustypes.Rule { return out.Rules }, func(x bustypes.Rule) *string { return x.Name }, func() *string { return out.NextToken })
		}},
		{op: "events.ListTargetsByRule", least: 1, most: 100, badSize: validation, badToken: validation, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.bus.ListTargetsByRule(c.ctx, &eventbridge.ListTargetsByRuleInput{Rule: of("page-0"), Limit: size(n), NextToken: token})
			return page(err, func() []bustypes.Target { return out.Targets }, func(x bustypes.Target) *string { return x.Id }, func() *string { return out.NextToken })
		}},
		{op: "events.ListRuleNamesByTarget", least: 1, most: 100, badSize: validation, badToken: validation, read: func(c *caller, n int32, token *string) ([]string, *string, error) {
			out, err := c.bus.ListRuleNamesByTarget(c.ctx, &eventbridge.ListRuleNamesByTargetInput{TargetArn: of(c.arn("sqs", "page-0")), Limit: size(n), NextToken: token})
			return page(err, func() []string { return out.RuleNames }, itself, func() *string { return out.NextToken })
		}},
	}
}
