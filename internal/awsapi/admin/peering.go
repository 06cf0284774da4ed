package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// PeerVPC is one side of a peering.
type PeerVPC struct {
	Account, VPC, Range string
	Client              *Client
}

// EnsurePeering peers two VPCs, requested by mine and accepted by other, and gives every route table of both a route to
// the other side. It returns what it changed, one line each; with dryRun it only tells.
func EnsurePeering(ctx context.Context, name string, mine, other PeerVPC, tags map[string]string, dryRun bool) (changes []string, err error) {
	mc, oc := newVPCCalls(mine.Client.cfg), newVPCCalls(other.Client.cfg)
	id, status, err := mc.findPeering(ctx, mine.VPC, other.VPC)
	if err != nil {
		return nil, err
	}
	if id == "" {
		changes = append(changes, "create peering "+name)
		if dryRun {
			return append(changes, "route "+other.Range+" and "+mine.Range+" through it"), nil
		}
		e := &ensuring{want: VPC{Tags: tags}}
		out, err := mc.createPeering(ctx, &ec2.CreateVpcPeeringConnectionInput{VpcId: &mine.VPC, PeerVpcId: &other.VPC, PeerOwnerId: &other.Account,
			TagSpecifications: e.tags(types.ResourceTypeVpcPeeringConnection, name)})
		if err != nil {
			return changes, fmt.Errorf("create peering %s: %w", name, err)
		}
		id = *out.VpcPeeringConnection.VpcPeeringConnectionId
	}
	if status != types.VpcPeeringConnectionStateReasonCodeActive {
		changes = append(changes, "accept peering "+name)
		if !dryRun {
			if err := oc.accept(ctx, id); err != nil {
				return changes, err
			}
		}
	}
	for _, side := range []struct {
		calls vpcCalls
		vpc   string
		to    string
	}{{mc, mine.VPC, other.Range}, {oc, other.VPC, mine.Range}} {
		did, err := side.calls.routeAll(ctx, side.vpc, side.to, id, dryRun)
		changes = append(changes, did...)
		if err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// findPeering returns a peering of two VPCs that is active or waits to be accepted.
func (c vpcCalls) findPeering(ctx context.Context, requester, accepter string) (id string, status types.VpcPeeringConnectionStateReasonCode, err error) {
	if requester == "" || accepter == "" {
		return "", "", nil
	}
	out, err := c.describePeerings(ctx, &ec2.DescribeVpcPeeringConnectionsInput{Filters: []types.Filter{
		{Name: aws.String("requester-vpc-info.vpc-id"), Values: []string{requester}}, {Name: aws.String("accepter-vpc-info.vpc-id"), Values: []string{accepter}}}})
	if err != nil {
		return "", "", fmt.Errorf("find the peering of %s and %s: %w", requester, accepter, err)
	}
	for _, p := range out.VpcPeeringConnections {
		switch p.Status.Code {
		case types.VpcPeeringConnectionStateReasonCodeActive, types.VpcPeeringConnectionStateReasonCodePendingAcceptance,
			types.VpcPeeringConnectionStateReasonCodeProvisioning, types.VpcPeeringConnectionStateReasonCodeInitiatingRequest:
			return aws.ToString(p.VpcPeeringConnectionId), p.Status.Code, nil
		}
	}
	return "", "", nil
}

// accept accepts a peering. Right after the request the other side may not see it yet.
func (c vpcCalls) accept(ctx context.Context, id string) error {
	for attempt := 1; ; attempt++ {
		_, err := c.acceptPeering(ctx, &ec2.AcceptVpcPeeringConnectionInput{VpcPeeringConnectionId: &id})
		if err == nil {
			return nil
		}
		if !slices.Contains([]string{"InvalidVpcPeeringConnectionID.NotFound", "InvalidStateTransition"}, awsapi.Code(err)) || attempt == 10 || !pause(ctx, attempt) {
			return fmt.Errorf("accept peering %s: %w", id, err)
		}
	}
}

// routeAll gives every route table of a VPC a route to a peering, in place of a stale one.
func (c vpcCalls) routeAll(ctx context.Context, vpc, to, peering string, dryRun bool) (changes []string, err error) {
	out, err := c.describeTables(ctx, &ec2.DescribeRouteTablesInput{Filters: inVPC(vpc)})
	if err != nil {
		return nil, fmt.Errorf("describe the route tables of %s: %w", vpc, err)
	}
	for _, t := range out.RouteTables {
		i := slices.IndexFunc(t.Routes, func(r types.Route) bool { return aws.ToString(r.DestinationCidrBlock) == to })
		if i >= 0 && aws.ToString(t.Routes[i].VpcPeeringConnectionId) == peering {
			continue
		}
		changes = append(changes, fmt.Sprintf("route %s in route table %s to the peering", to, *t.RouteTableId))
		switch {
		case dryRun:
		case i >= 0:
			_, err = c.replaceRoute(ctx, &ec2.ReplaceRouteInput{RouteTableId: t.RouteTableId, DestinationCidrBlock: &to, VpcPeeringConnectionId: &peering})
		default:
			_, err = c.createRoute(ctx, &ec2.CreateRouteInput{RouteTableId: t.RouteTableId, DestinationCidrBlock: &to, VpcPeeringConnectionId: &peering})
		}
		if err != nil {
			return changes, fmt.Errorf("route %s in %s: %w", to, *t.RouteTableId, err)
		}
	}
	return changes, nil
}

// OpenPorts lets a range reach TCP ports through the security groups of a VPC whose names match a pattern. It returns the
// names of the groups that it changed.
func (a *Client) OpenPorts(ctx context.Context, vpc, pattern, from string, ports []int32, dryRun bool) (changed []string, err error) {
	out, err := a.calls.describeSecurityGroups(ctx, &ec2.DescribeSecurityGroupsInput{Filters: append(inVPC(vpc),
		types.Filter{Name: aws.String("group-name"), Values: []string{pattern}})})
	if err != nil {
		return nil, fmt.Errorf("find security groups %s: %w", pattern, err)
	}
	for _, g := range out.SecurityGroups {
		for _, port := range ports {
			open := slices.ContainsFunc(g.IpPermissions, func(p types.IpPermission) bool {
				return aws.ToInt32(p.FromPort) == port && aws.ToInt32(p.ToPort) == port &&
					slices.ContainsFunc(p.IpRanges, func(r types.IpRange) bool { return aws.ToString(r.CidrIp) == from })
			})
			if open {
				continue
			}
			changed = append(changed, fmt.Sprintf("open port %d of security group %s to %s", port, aws.ToString(g.GroupName), from))
			if dryRun {
				continue
			}
			_, err := a.calls.authorizeIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: g.GroupId, IpPermissions: []types.IpPermission{{
				IpProtocol: aws.String("tcp"), FromPort: &port, ToPort: &port, IpRanges: []types.IpRange{{CidrIp: &from, Description: aws.String("the mesh in a peered VPC")}}}}})
			if err != nil && !awsapi.IsAlreadyExists(err) {
				return changed, fmt.Errorf("open port %d of %s: %w", port, aws.ToString(g.GroupName), err)
			}
		}
	}
	return changed, nil
}

// DeletePeering removes the peering of two VPCs and the routes that lead to it; found tells whether there was one.
func DeletePeering(ctx context.Context, mine, other PeerVPC, dryRun bool) (found bool, err error) {
	mc, oc := newVPCCalls(mine.Client.cfg), newVPCCalls(other.Client.cfg)
	id, _, err := mc.findPeering(ctx, mine.VPC, other.VPC)
	if err != nil || id == "" || dryRun {
		return id != "", err
	}
	for _, side := range []struct {
		calls vpcCalls
		vpc   string
	}{{mc, mine.VPC}, {oc, other.VPC}} {
		out, err := side.calls.describeTables(ctx, &ec2.DescribeRouteTablesInput{Filters: inVPC(side.vpc)})
		if err != nil {
			return true, fmt.Errorf("describe the route tables of %s: %w", side.vpc, err)
		}
		for _, t := range out.RouteTables {
			for _, r := range t.Routes {
				if aws.ToString(r.VpcPeeringConnectionId) != id {
					continue
				}
				if _, err := side.calls.deleteRoute(ctx, &ec2.DeleteRouteInput{RouteTableId: t.RouteTableId, DestinationCidrBlock: r.DestinationCidrBlock}); err != nil {
					return true, fmt.Errorf("delete route %s of %s: %w", aws.ToString(r.DestinationCidrBlock), *t.RouteTableId, err)
				}
			}
		}
	}
	if _, err := mc.deletePeering(ctx, &ec2.DeleteVpcPeeringConnectionInput{VpcPeeringConnectionId: &id}); err != nil {
		return true, fmt.Errorf("delete peering %s: %w", id, err)
	}
	return true, nil
}

// DeleteVPC removes a VPC with everything that EnsureVPC makes in it, last made first. Security groups must be gone.
func (a *Client) DeleteVPC(ctx context.Context, vpc string) error {
	c := newVPCCalls(a.cfg)
	for _, step := range []struct {
		what string
		do   func(context.Context, string) error
	}{
		{"nat gateways", c.deleteNATs}, {"internet gateways", c.deleteGateways}, {"route tables", c.deleteTables}, {"subnets", c.deleteSubnets},
	} {
		if err := step.do(ctx, vpc); err != nil {
			return fmt.Errorf("delete the %s of %s: %w", step.what, vpc, err)
		}
	}
	if _, err := c.deleteVpc(ctx, &ec2.DeleteVpcInput{VpcId: &vpc}); err != nil {
		return fmt.Errorf("delete vpc %s: %w", vpc, err)
	}
	return nil
}

func (c vpcCalls) deleteNATs(ctx context.Context, vpc string) error {
	out, err := c.describeNats(ctx, &ec2.DescribeNatGatewaysInput{Filter: inVPC(vpc)})
	if err != nil {
		return err
	}
	for _, n := range out.NatGateways {
		if n.State == types.NatGatewayStateDeleted {
			continue
		}
		if _, err := c.deleteNat(ctx, &ec2.DeleteNatGatewayInput{NatGatewayId: n.NatGatewayId}); err != nil {
			return err
		}
		if err := c.awaitNAT(ctx, *n.NatGatewayId, types.NatGatewayStateDeleted); err != nil {
			return err
		}
		for _, a := range n.NatGatewayAddresses {
			if _, err := c.releaseAddress(ctx, &ec2.ReleaseAddressInput{AllocationId: a.AllocationId}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c vpcCalls) deleteGateways(ctx context.Context, vpc string) error {
	out, err := c.describeGateways(ctx, &ec2.DescribeInternetGatewaysInput{Filters: []types.Filter{{Name: aws.String("attachment.vpc-id"), Values: []string{vpc}}}})
	if err != nil {
		return err
	}
	for _, g := range out.InternetGateways {
		if _, err := c.detachGateway(ctx, &ec2.DetachInternetGatewayInput{InternetGatewayId: g.InternetGatewayId, VpcId: &vpc}); err != nil {
			return err
		}
		if _, err := c.deleteGateway(ctx, &ec2.DeleteInternetGatewayInput{InternetGatewayId: g.InternetGatewayId}); err != nil {
			return err
		}
	}
	return nil
}

func (c vpcCalls) deleteTables(ctx context.Context, vpc string) error {
	out, err := c.describeTables(ctx, &ec2.DescribeRouteTablesInput{Filters: inVPC(vpc)})
	if err != nil {
		return err
	}
	for _, t := range out.RouteTables {
		main := false
		for _, as := range t.Associations {
			if aws.ToBool(as.Main) {
				main = true
				continue
			}
			if _, err := c.disassociateTable(ctx, &ec2.DisassociateRouteTableInput{AssociationId: as.RouteTableAssociationId}); err != nil {
				return err
			}
		}
		if main {
			continue // it goes with the VPC
		}
		if _, err := c.deleteTable(ctx, &ec2.DeleteRouteTableInput{RouteTableId: t.RouteTableId}); err != nil {
			return err
		}
	}
	return nil
}

func (c vpcCalls) deleteSubnets(ctx context.Context, vpc string) error {
	out, err := c.describeSubnets(ctx, &ec2.DescribeSubnetsInput{Filters: inVPC(vpc)})
	if err != nil {
		return err
	}
	for _, s := range out.Subnets {
		if _, err := c.deleteSubnet(ctx, &ec2.DeleteSubnetInput{SubnetId: s.SubnetId}); err != nil {
			return err
		}
	}
	return nil
}
