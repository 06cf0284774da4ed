package admin

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// calls holds the SDK's methods one by one; see awsapi for why.
type calls struct {
	getCallerIdentity func(context.Context, *sts.GetCallerIdentityInput, ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error)

	createCluster            func(context.Context, *ecs.CreateClusterInput, ...func(*ecs.Options)) (*ecs.CreateClusterOutput, error)
	deleteCluster            func(context.Context, *ecs.DeleteClusterInput, ...func(*ecs.Options)) (*ecs.DeleteClusterOutput, error)
	tagResource              func(context.Context, *ecs.TagResourceInput, ...func(*ecs.Options)) (*ecs.TagResourceOutput, error)
	createService            func(context.Context, *ecs.CreateServiceInput, ...func(*ecs.Options)) (*ecs.CreateServiceOutput, error)
	updateService            func(context.Context, *ecs.UpdateServiceInput, ...func(*ecs.Options)) (*ecs.UpdateServiceOutput, error)
	deleteService            func(context.Context, *ecs.DeleteServiceInput, ...func(*ecs.Options)) (*ecs.DeleteServiceOutput, error)
	listTaskDefinitions      func(context.Context, *ecs.ListTaskDefinitionsInput, ...func(*ecs.Options)) (*ecs.ListTaskDefinitionsOutput, error)
	deregisterTaskDefinition func(context.Context, *ecs.DeregisterTaskDefinitionInput, ...func(*ecs.Options)) (*ecs.DeregisterTaskDefinitionOutput, error)
	executeCommand           func(context.Context, *ecs.ExecuteCommandInput, ...func(*ecs.Options)) (*ecs.ExecuteCommandOutput, error)
	stopTask                 func(context.Context, *ecs.StopTaskInput, ...func(*ecs.Options)) (*ecs.StopTaskOutput, error)

	getRole                func(context.Context, *iam.GetRoleInput, ...func(*iam.Options)) (*iam.GetRoleOutput, error)
	createRole             func(context.Context, *iam.CreateRoleInput, ...func(*iam.Options)) (*iam.CreateRoleOutput, error)
	updateAssumeRolePolicy func(context.Context, *iam.UpdateAssumeRolePolicyInput, ...func(*iam.Options)) (*iam.UpdateAssumeRolePolicyOutput, error)
	putRolePolicy          func(context.Context, *iam.PutRolePolicyInput, ...func(*iam.Options)) (*iam.PutRolePolicyOutput, error)
	getRolePolicy          func(context.Context, *iam.GetRolePolicyInput, ...func(*iam.Options)) (*iam.GetRolePolicyOutput, error)
	listRolePolicies       func(context.Context, *iam.ListRolePoliciesInput, ...func(*iam.Options)) (*iam.ListRolePoliciesOutput, error)
	deleteRolePolicy       func(context.Context, *iam.DeleteRolePolicyInput, ...func(*iam.Options)) (*iam.DeleteRolePolicyOutput, error)
	deleteRole             func(context.Context, *iam.DeleteRoleInput, ...func(*iam.Options)) (*iam.DeleteRoleOutput, error)

	listAttachedRolePolicies func(context.Context, *iam.ListAttachedRolePoliciesInput, ...func(*iam.Options)) (*iam.ListAttachedRolePoliciesOutput, error)
	detachRolePolicy         func(context.Context, *iam.DetachRolePolicyInput, ...func(*iam.Options)) (*iam.DetachRolePolicyOutput, error)

	describeCluster                func(context.Context, *eks.DescribeClusterInput, ...func(*eks.Options)) (*eks.DescribeClusterOutput, error)
	listPodIdentityAssociations    func(context.Context, *eks.ListPodIdentityAssociationsInput, ...func(*eks.Options)) (*eks.ListPodIdentityAssociationsOutput, error)
	deletePodIdentityAssociation   func(context.Context, *eks.DeletePodIdentityAssociationInput, ...func(*eks.Options)) (*eks.DeletePodIdentityAssociationOutput, error)
	describePodIdentityAssociation func(context.Context, *eks.DescribePodIdentityAssociationInput, ...func(*eks.Options)) (*eks.DescribePodIdentityAssociationOutput, error)
	updatePodIdentityAssociation   func(context.Context, *eks.UpdatePodIdentityAssociationInput, ...func(*eks.Options)) (*eks.UpdatePodIdentityAssociationOutput, error)
	createPodIdentityAssociation   func(context.Context, *eks.CreatePodIdentityAssociationInput, ...func(*eks.Options)) (*eks.CreatePodIdentityAssociationOutput, error)

	describeSubnets        func(context.Context, *ec2.DescribeSubnetsInput, ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error)
	describeVpcs           func(context.Context, *ec2.DescribeVpcsInput, ...func(*ec2.Options)) (*ec2.DescribeVpcsOutput, error)
	describeSecurityGroups func(context.Context, *ec2.DescribeSecurityGroupsInput, ...func(*ec2.Options)) (*ec2.DescribeSecurityGroupsOutput, error)
	createSecurityGroup    func(context.Context, *ec2.CreateSecurityGroupInput, ...func(*ec2.Options)) (*ec2.CreateSecurityGroupOutput, error)
	authorizeIngress       func(context.Context, *ec2.AuthorizeSecurityGroupIngressInput, ...func(*ec2.Options)) (*ec2.AuthorizeSecurityGroupIngressOutput, error)
	revokeIngress          func(context.Context, *ec2.RevokeSecurityGroupIngressInput, ...func(*ec2.Options)) (*ec2.RevokeSecurityGroupIngressOutput, error)
	deleteSecurityGroup    func(context.Context, *ec2.DeleteSecurityGroupInput, ...func(*ec2.Options)) (*ec2.DeleteSecurityGroupOutput, error)
	describeLogGroups      func(context.Context, *cloudwatchlogs.DescribeLogGroupsInput, ...func(*cloudwatchlogs.Options)) (*cloudwatchlogs.DescribeLogGroupsOutput, error)
	createLogGroup         func(context.Context, *cloudwatchlogs.CreateLogGroupInput, ...func(*cloudwatchlogs.Options)) (*cloudwatchlogs.CreateLogGroupOutput, error)
	deleteLogGroup         func(context.Context, *cloudwatchlogs.DeleteLogGroupInput, ...func(*cloudwatchlogs.Options)) (*cloudwatchlogs.DeleteLogGroupOutput, error)
}

func newCalls(cfg aws.Config) calls {
	ecsClient, iamClient, eksClient := ecs.NewFromConfig(cfg), iam.NewFromConfig(cfg), eks.NewFromConfig(cfg)
	ec2Client, logsClient := ec2.NewFromConfig(cfg), cloudwatchlogs.NewFromConfig(cfg)
	return calls{
		getCallerIdentity: sts.NewFromConfig(cfg).GetCallerIdentity,

		createCluster: ecsClient.CreateCluster, deleteCluster: ecsClient.DeleteCluster, tagResource: ecsClient.TagResource,
		createService: ecsClient.CreateService, updateService: ecsClient.UpdateService, deleteService: ecsClient.DeleteService,
		listTaskDefinitions: ecsClient.ListTaskDefinitions, deregisterTaskDefinition: ecsClient.DeregisterTaskDefinition,
		executeCommand: ecsClient.ExecuteCommand, stopTask: ecsClient.StopTask,

		getRole: iamClient.GetRole, createRole: iamClient.CreateRole, updateAssumeRolePolicy: iamClient.UpdateAssumeRolePolicy,
		putRolePolicy: iamClient.PutRolePolicy, getRolePolicy: iamClient.GetRolePolicy, listRolePolicies: iamClient.ListRolePolicies,
		deleteRolePolicy: iamClient.DeleteRolePolicy, deleteRole: iamClient.DeleteRole,
		listAttachedRolePolicies: iamClient.ListAttachedRolePolicies, detachRolePolicy: iamClient.DetachRolePolicy,

		describeCluster: eksClient.DescribeCluster, listPodIdentityAssociations: eksClient.ListPodIdentityAssociations,
		describePodIdentityAssociation: eksClient.DescribePodIdentityAssociation, updatePodIdentityAssociation: eksClient.UpdatePodIdentityAssociation,
		createPodIdentityAssociation: eksClient.CreatePodIdentityAssociation,
		deletePodIdentityAssociation: eksClient.DeletePodIdentityAssociation,

		describeSubnets: ec2Client.DescribeSubnets, describeVpcs: ec2Client.DescribeVpcs, describeSecurityGroups: ec2Client.DescribeSecurityGroups,
		createSecurityGroup: ec2Client.CreateSecurityGroup, authorizeIngress: ec2Client.AuthorizeSecurityGroupIngress,
		deleteSecurityGroup: ec2Client.DeleteSecurityGroup, revokeIngress: ec2Client.RevokeSecurityGroupIngress,
		describeLogGroups: logsClient.DescribeLogGroups,
		createLogGroup:    logsClient.CreateLogGroup, deleteLogGroup: logsClient.DeleteLogGroup,
	}
}
