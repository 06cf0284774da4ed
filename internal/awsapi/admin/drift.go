package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// Policies are the policies of a role: those in it by name, those attached to it by ARN.
type Policies struct{ Inline, Attached []string }

// All are both kinds together.
func (p Policies) All() []string { return slices.Concat(p.Inline, p.Attached) }

// ExtraPolicies returns what a role has beside its Inline and what Keep keeps. A role that is not there has none.
func (a *Client) ExtraPolicies(ctx context.Context, r Role) (Policies, error) {
	p, err := a.policies(ctx, r.Name)
	if awsapi.IsNotFound(err) {
		return Policies{}, nil
	}
	wanted := func(policy string) bool {
		_, ours := r.Inline[policy]
		return ours || r.Keep != nil && r.Keep(policy)
	}
	return Policies{slices.DeleteFunc(p.Inline, wanted), slices.DeleteFunc(p.Attached, wanted)}, err
}

// policies reads one page of each kind, which is more than a role may have.
func (a *Client) policies(ctx context.Context, role string) (Policies, error) {
	inline, err := a.calls.listRolePolicies(ctx, &iam.ListRolePoliciesInput{RoleName: aws.String(role)})
	if err != nil {
		return Policies{}, fmt.Errorf("list policies of role %s: %w", role, err)
	}
	attached, err := a.calls.listAttachedRolePolicies(ctx, &iam.ListAttachedRolePoliciesInput{RoleName: aws.String(role)})
	if err != nil {
		return Policies{}, fmt.Errorf("list attached policies of role %s: %w", role, err)
	}
	p := Policies{Inline: inline.PolicyNames}
	for _, x := range attached.AttachedPolicies {
		p.Attached = append(p.Attached, aws.ToString(x.PolicyArn))
	}
	return p, nil
}

// dropPolicies takes from a role what it has too much.
func (a *Client) dropPolicies(ctx context.Context, r Role, dryRun bool) (changes []string, err error) {
	extra, err := a.ExtraPolicies(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, name := range extra.Inline {
		changes = append(changes, "delete policy "+name+" of role "+r.Name)
		if dryRun {
			continue
		}
		if err := a.DeleteRolePolicy(ctx, r.Name, name); err != nil {
			return changes, err
		}
	}
	for _, arn := range extra.Attached {
		changes = append(changes, "detach policy "+arn+" from role "+r.Name)
		if dryRun {
			continue
		}
		if err := a.detachPolicy(ctx, r.Name, arn); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

func (a *Client) detachPolicy(ctx context.Context, role, arn string) error {
	_, err := a.calls.detachRolePolicy(ctx, &iam.DetachRolePolicyInput{RoleName: aws.String(role), PolicyArn: aws.String(arn)})
	if err != nil && !awsapi.IsNotFound(err) {
		return fmt.Errorf("detach policy %s from role %s: %w", arn, role, err)
	}
	return nil
}

// EnsurePodIdentity associates a role with a Kubernetes service account of an EKS cluster, and corrects an association
// with another role. It returns what it changed in words; with dryRun it only tells.
func (a *Client) EnsurePodIdentity(ctx context.Context, cluster, namespace, serviceAccount, roleARN string, dryRun bool) (change string, err error) {
	out, err := a.calls.listPodIdentityAssociations(ctx, &eks.ListPodIdentityAssociationsInput{
		ClusterName: aws.String(cluster), Namespace: aws.String(namespace), ServiceAccount: aws.String(serviceAccount)})
	if err != nil {
		return "", fmt.Errorf("list pod identity associations of %s: %w", cluster, err)
	}
	name := namespace + "/" + serviceAccount
	for _, as := range out.Associations { // at most one of a service account
		got, err := a.calls.describePodIdentityAssociation(ctx, &eks.DescribePodIdentityAssociationInput{ClusterName: aws.String(cluster), AssociationId: as.AssociationId})
		if err != nil {
			return "", fmt.Errorf("describe pod identity association of %s: %w", name, err)
		}
		have := aws.ToString(got.Association.RoleArn)
		if have == roleARN {
			return "", nil
		}
		change = "associate service account " + name + " with role " + roleARN + " instead of " + have
		if dryRun {
			return change, nil
		}
		_, err = a.calls.updatePodIdentityAssociation(ctx, &eks.UpdatePodIdentityAssociationInput{
			ClusterName: aws.String(cluster), AssociationId: as.AssociationId, RoleArn: aws.String(roleARN)})
		if err != nil {
			return "", fmt.Errorf("associate %s with %s: %w", name, roleARN, err)
		}
		return change, nil
	}
	change = "associate service account " + name + " with role " + roleARN
	if dryRun {
		return change, nil
	}
	_, err = a.calls.createPodIdentityAssociation(ctx, &eks.CreatePodIdentityAssociationInput{
		ClusterName: aws.String(cluster), Namespace: aws.String(namespace), ServiceAccount: aws.String(serviceAccount), RoleArn: aws.String(roleARN)})
	if err != nil && !awsapi.IsAlreadyExists(err) {
		return "", fmt.Errorf("associate %s with %s: %w", name, roleARN, err)
	}
	return change, nil
}

// Ingress is one thing that a security group admits, in words and as AWS has it.
type Ingress struct {
	Words string // such as "tcp port 80 from 10.0.0.0/8"
	group string
	rule  ec2types.IpPermission
}

// OtherIngress returns what a security group of a VPC admits beside one TCP port. A group that is not there admits nothing.
func (a *Client) OtherIngress(ctx context.Context, vpc, name string, port uint16) ([]Ingress, error) {
	out, err := a.calls.describeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: append(inVPC(vpc),
		ec2types.Filter{Name: aws.String("group-name"), Values: []string{name}})})
	if err != nil {
		return nil, fmt.Errorf("describe security group %s: %w", name, err)
	}
	var others []Ingress
	for _, g := range out.SecurityGroups {
		for _, p := range g.IpPermissions {
			low, high := aws.ToInt32(p.FromPort), aws.ToInt32(p.ToPort)
			if aws.ToString(p.IpProtocol) == "tcp" && low == int32(port) && high == low {
				continue
			}
			one := func(from string, rule ec2types.IpPermission) {
				rule.IpProtocol, rule.FromPort, rule.ToPort = p.IpProtocol, p.FromPort, p.ToPort
				others = append(others, Ingress{traffic(aws.ToString(p.IpProtocol), low, high) + " from " + from, aws.ToString(g.GroupId), rule})
			}
			for _, r := range p.IpRanges {
				one(aws.ToString(r.CidrIp), ec2types.IpPermission{IpRanges: []ec2types.IpRange{{CidrIp: r.CidrIp}}})
			}
			for _, r := range p.Ipv6Ranges {
				one(aws.ToString(r.CidrIpv6), ec2types.IpPermission{Ipv6Ranges: []ec2types.Ipv6Range{{CidrIpv6: r.CidrIpv6}}})
			}
			for _, r := range p.PrefixListIds {
				one("prefix list "+aws.ToString(r.PrefixListId), ec2types.IpPermission{PrefixListIds: []ec2types.PrefixListId{{PrefixListId: r.PrefixListId}}})
			}
			for _, r := range p.UserIdGroupPairs {
				one("group "+aws.ToString(r.GroupId), ec2types.IpPermission{UserIdGroupPairs: []ec2types.UserIdGroupPair{{GroupId: r.GroupId, UserId: r.UserId}}})
			}
		}
	}
	return others, nil
}

// traffic names a protocol and a range of ports.
func traffic(protocol string, low, high int32) string {
	switch {
	case protocol == "-1":
		return "all traffic"
	case low == high:
		return fmt.Sprintf("%s port %d", protocol, low)
	}
	return fmt.Sprintf("%s ports %d to %d", protocol, low, high)
}

// CloseIngress makes a security group admit one thing less; one that it does not admit is no error.
func (a *Client) CloseIngress(ctx context.Context, in Ingress) error {
	_, err := a.calls.revokeIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: aws.String(in.group), IpPermissions: []ec2types.IpPermission{in.rule}})
	if err != nil && awsapi.Code(err) != "InvalidPermission.NotFound" {
		return fmt.Errorf("close %s: %w", in.Words, err)
	}
	return nil
}
