package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"reflect"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// Role is an IAM role as the command line wants it.
type Role struct {
	Path, Name, Description string
	Trust                   map[string]any            // assume-role policy document
	Inline                  map[string]map[string]any // name to policy document
	Tags                    map[string]string
	KeepTrust               bool // leave the trust policy of a role that exists and is not ours
	// Owner is the tag that marks roles as ours: such a role has no policies but Inline and those that Keep keeps, by name
	// or ARN. "" means that policies beside Inline are nobody's business.
	Owner string
	Keep  func(policy string) bool
}

func (r Role) owns(role *iamtypes.Role) bool { return r.Owner != "" && hasTag(role, r.Owner) }

func hasTag(role *iamtypes.Role, tag string) bool {
	return slices.ContainsFunc(role.Tags, func(t iamtypes.Tag) bool { return aws.ToString(t.Key) == tag })
}

// EnsureRole creates a role or brings its policies to what is wanted. It returns the role's ARN and what it changed, one
// line each; with dryRun it only tells.
func (a *Client) EnsureRole(ctx context.Context, r Role, dryRun bool) (arn string, changes []string, err error) {
	trust, err := json.Marshal(r.Trust)
	if err != nil {
		return "", nil, fmt.Errorf("encode trust policy of %s: %w", r.Name, err)
	}
	got, err := a.calls.getRole(ctx, &iam.GetRoleInput{RoleName: aws.String(r.Name)})
	ours := false
	switch {
	case awsapi.IsNotFound(err):
		changes = append(changes, "create role "+r.Path+r.Name)
		if dryRun {
			break
		}
		var tags []iamtypes.Tag
		for k, v := range r.Tags {
			tags = append(tags, iamtypes.Tag{Key: aws.String(k), Value: aws.String(v)})
		}
		out, err := a.calls.createRole(ctx, &iam.CreateRoleInput{Path: aws.String(r.Path), RoleName: aws.String(r.Name),
			Description: aws.String(r.Description), AssumeRolePolicyDocument: aws.String(string(trust)), Tags: tags})
		if err != nil {
			return "", nil, fmt.Errorf("create role %s: %w", r.Name, err)
		}
		arn = aws.ToString(out.Role.Arn)
	case err != nil:
		return "", nil, fmt.Errorf("get role %s: %w", r.Name, err)
	default:
		arn = aws.ToString(got.Role.Arn)
		ours = r.owns(got.Role)
		if r.KeepTrust && !ours || samePolicy(aws.ToString(got.Role.AssumeRolePolicyDocument), trust) {
			break
		}
		changes = append(changes, "update trust policy of role "+r.Name)
		if !dryRun {
			if _, err := a.calls.updateAssumeRolePolicy(ctx, &iam.UpdateAssumeRolePolicyInput{RoleName: aws.String(r.Name), PolicyDocument: aws.String(string(trust))}); err != nil {
				return "", nil, fmt.Errorf("update trust policy of %s: %w", r.Name, err)
			}
		}
	}
	did, err := a.ensurePolicies(ctx, r, ours, dryRun)
	return arn, append(changes, did...), err
}

// ensurePolicies brings the policies of a role to what is wanted; from ours it takes what is too much.
func (a *Client) ensurePolicies(ctx context.Context, r Role, ours, dryRun bool) (changes []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(r.Inline)) {
		changed, err := a.EnsureRolePolicy(ctx, r.Name, name, r.Inline[name], dryRun)
		if err != nil {
			return changes, err
		}
		if changed {
			changes = append(changes, "put policy "+name+" on role "+r.Name)
		}
	}
	if !ours {
		return changes, nil
	}
	did, err := a.dropPolicies(ctx, r, dryRun)
	return append(changes, did...), err
}

// EnsureRolePolicy puts an inline policy on a role unless it is there already.
func (a *Client) EnsureRolePolicy(ctx context.Context, role, name string, doc map[string]any, dryRun bool) (changed bool, err error) {
	want, err := json.Marshal(doc)
	if err != nil {
		return false, fmt.Errorf("encode policy %s: %w", name, err)
	}
	got, err := a.calls.getRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String(name)})
	if err != nil && !awsapi.IsNotFound(err) {
		return false, fmt.Errorf("get policy %s of role %s: %w", name, role, err)
	}
	if err == nil && samePolicy(aws.ToString(got.PolicyDocument), want) {
		return false, nil
	}
	if dryRun {
		return true, nil
	}
	_, err = a.calls.putRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String(name), PolicyDocument: aws.String(string(want))})
	if err != nil {
		return false, fmt.Errorf("put policy %s on role %s: %w", name, role, err)
	}
	return true, nil
}

// samePolicy compares policy documents by meaning; IAM returns them URL-encoded.
func samePolicy(have string, want []byte) bool {
	decoded, err := url.QueryUnescape(have)
	if err != nil {
		return false
	}
	var h, w any
	return json.Unmarshal([]byte(decoded), &h) == nil && json.Unmarshal(want, &w) == nil && reflect.DeepEqual(h, w)
}

// DeleteRolePolicy removes an inline policy; one that is not there is no error.
func (a *Client) DeleteRolePolicy(ctx context.Context, role, name string) error {
	_, err := a.calls.deleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String(name)})
	if err != nil && !awsapi.IsNotFound(err) {
		return fmt.Errorf("delete policy %s of role %s: %w", name, role, err)
	}
	return nil
}

// DeleteRole deletes a role with its inline policies, and without what is attached to it, if it carries a tag; deleted tells whether it did.
func (a *Client) DeleteRole(ctx context.Context, name, tag string) (deleted bool, err error) {
	role, err := a.calls.getRole(ctx, &iam.GetRoleInput{RoleName: aws.String(name)})
	if awsapi.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get role %s: %w", name, err)
	}
	if !hasTag(role.Role, tag) {
		return false, nil
	}
	if _, err := a.dropPolicies(ctx, Role{Name: name}, false); err != nil {
		return false, err
	}
	if _, err := a.calls.deleteRole(ctx, &iam.DeleteRoleInput{RoleName: aws.String(name)}); err != nil && !awsapi.IsNotFound(err) {
		return false, fmt.Errorf("delete role %s: %w", name, err)
	}
	return true, nil
}

// EKSCluster is what the command line needs of an EKS cluster.
type EKSCluster struct{ Name, Status, VPC string }

// EKSCluster describes an EKS cluster.
func (a *Client) EKSCluster(ctx context.Context, name string) (EKSCluster, error) {
	out, err := a.calls.describeCluster(ctx, &eks.DescribeClusterInput{Name: aws.String(name)})
	if err != nil {
		return EKSCluster{}, fmt.Errorf("describe eks cluster %s: %w", name, err)
	}
	c := EKSCluster{Name: name, Status: string(out.Cluster.Status)}
	if v := out.Cluster.ResourcesVpcConfig; v != nil {
		c.VPC = aws.ToString(v.VpcId)
	}
	return c, nil
}

// Subnets returns the ids of a VPC's subnets whose Name tag matches a pattern with wildcards; "" means all.
func (a *Client) Subnets(ctx context.Context, vpc, namePattern string) ([]string, error) {
	filters := []ec2types.Filter{{Name: aws.String("vpc-id"), Values: []string{vpc}}}
	if namePattern != "" {
		filters = append(filters, ec2types.Filter{Name: aws.String("tag:Name"), Values: []string{namePattern}})
	}
	out, err := a.calls.describeSubnets(ctx, &ec2.DescribeSubnetsInput{Filters: filters})
	if err != nil {
		return nil, fmt.Errorf("describe subnets of %s: %w", vpc, err)
	}
	var ids []string
	for _, s := range out.Subnets {
		ids = append(ids, aws.ToString(s.SubnetId))
	}
	return ids, nil
}

// VPCRange returns the IPv4 range of a VPC.
func (a *Client) VPCRange(ctx context.Context, vpc string) (string, error) {
	out, err := a.calls.describeVpcs(ctx, &ec2.DescribeVpcsInput{VpcIds: []string{vpc}})
	if err != nil {
		return "", fmt.Errorf("describe vpc %s: %w", vpc, err)
	}
	if len(out.Vpcs) != 1 {
		return "", fmt.Errorf("describe vpc %s: %d answers", vpc, len(out.Vpcs))
	}
	return aws.ToString(out.Vpcs[0].CidrBlock), nil
}

// SecurityGroup returns the id of a VPC's security group by name; "" if there is none.
func (a *Client) SecurityGroup(ctx context.Context, vpc, name string) (string, error) {
	out, err := a.calls.describeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: []ec2types.Filter{
		{Name: aws.String("vpc-id"), Values: []string{vpc}}, {Name: aws.String("group-name"), Values: []string{name}}}})
	if err != nil {
		return "", fmt.Errorf("describe security groups of %s: %w", vpc, err)
	}
	if len(out.SecurityGroups) == 0 {
		return "", nil
	}
	return aws.ToString(out.SecurityGroups[0].GroupId), nil
}

// EnsureSecurityGroup creates a security group that admits one TCP port from an IPv4 range, unless it exists.
func (a *Client) EnsureSecurityGroup(ctx context.Context, vpc, name, description string, port uint16, from string, dryRun bool) (id string, changed bool, err error) {
	id, err = a.SecurityGroup(ctx, vpc, name)
	if err != nil || id != "" || dryRun {
		return id, id == "" && err == nil, err
	}
	out, err := a.calls.createSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: aws.String(vpc), GroupName: aws.String(name), Description: aws.String(description)})
	if err != nil {
		return "", false, fmt.Errorf("create security group %s: %w", name, err)
	}
	id = aws.ToString(out.GroupId)
	_, err = a.calls.authorizeIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: out.GroupId, IpPermissions: []ec2types.IpPermission{{
		IpProtocol: aws.String("tcp"), FromPort: aws.Int32(int32(port)), ToPort: aws.Int32(int32(port)),
		IpRanges: []ec2types.IpRange{{CidrIp: aws.String(from), Description: aws.String("HBONE from the mesh")}}}}})
	if err != nil && awsapi.Code(err) != "InvalidPermission.Duplicate" {
		return "", false, fmt.Errorf("open port %d of security group %s: %w", port, name, err)
	}
	return id, true, nil
}

// DeleteSecurityGroup deletes a security group by id.
func (a *Client) DeleteSecurityGroup(ctx context.Context, id string) error {
	if _, err := a.calls.deleteSecurityGroup(ctx, &ec2.DeleteSecurityGroupInput{GroupId: aws.String(id)}); err != nil && !awsapi.IsNotFound(err) {
		return fmt.Errorf("delete security group %s: %w", id, err)
	}
	return nil
}

// EnsureLogGroup creates a log group unless it exists.
func (a *Client) EnsureLogGroup(ctx context.Context, name string) (changed bool, err error) {
	_, err = a.calls.createLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: aws.String(name)})
	if awsapi.IsAlreadyExists(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("create log group %s: %w", name, err)
	}
	return true, nil
}

// DeleteLogGroup deletes a log group; found tells whether there was one.
func (a *Client) DeleteLogGroup(ctx context.Context, name string) (found bool, err error) {
	_, err = a.calls.deleteLogGroup(ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: aws.String(name)})
	if awsapi.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete log group %s: %w", name, err)
	}
	return true, nil
}
