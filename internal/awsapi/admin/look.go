package admin

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// FindRole reports whether a role exists, and whether it carries a tag.
func (a *Client) FindRole(ctx context.Context, name, tag string) (found, tagged bool, err error) {
	out, err := a.calls.getRole(ctx, &iam.GetRoleInput{RoleName: aws.String(name)})
	if awsapi.IsNotFound(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("get role %s: %w", name, err)
	}
	return true, hasTag(out.Role, tag), nil
}

// FindRolePolicy reports whether a role has an inline policy of a name.
func (a *Client) FindRolePolicy(ctx context.Context, role, name string) (bool, error) {
	_, err := a.calls.getRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String(name)})
	if awsapi.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get policy %s of role %s: %w", name, role, err)
	}
	return true, nil
}

// RemovePodIdentity deletes the association of a service account in an EKS cluster; found tells whether there was one.
// With dryRun it only tells.
func (a *Client) RemovePodIdentity(ctx context.Context, cluster, namespace, serviceAccount string, dryRun bool) (found bool, err error) {
	out, err := a.calls.listPodIdentityAssociations(ctx, &eks.ListPodIdentityAssociationsInput{
		ClusterName: aws.String(cluster), Namespace: aws.String(namespace), ServiceAccount: aws.String(serviceAccount)})
	if awsapi.IsNotFound(err) {
		return false, nil // nor is there a cluster
	}
	if err != nil {
		return false, fmt.Errorf("list pod identity associations of %s: %w", cluster, err)
	}
	for _, as := range out.Associations {
		found = true
		if dryRun {
			continue
		}
		_, err := a.calls.deletePodIdentityAssociation(ctx, &eks.DeletePodIdentityAssociationInput{ClusterName: aws.String(cluster), AssociationId: as.AssociationId})
		if err != nil && !awsapi.IsNotFound(err) {
			return found, fmt.Errorf("delete pod identity association of %s/%s: %w", namespace, serviceAccount, err)
		}
	}
	return found, nil
}

// FindLogGroup reports whether a log group exists.
func (a *Client) FindLogGroup(ctx context.Context, name string) (bool, error) {
	out, err := a.calls.describeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: aws.String(name)})
	if err != nil {
		return false, fmt.Errorf("look for log group %s: %w", name, err)
	}
	for _, g := range out.LogGroups {
		if aws.ToString(g.LogGroupName) == name {
			return true, nil
		}
	}
	return false, nil
}
