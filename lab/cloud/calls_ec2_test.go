package cloud_test

import (
	"encoding/base64"

	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

func anywhere() []types.IpPermission {
	return []types.IpPermission{{IpProtocol: of("tcp"), FromPort: of(int32(15008)), ToPort: of(int32(15008)), IpRanges: []types.IpRange{{CidrIp: of("10.0.0.0/8")}}}}
}

func ec2Calls() (furnish, read, clear []call) {
	makeVPC := func(name, cidr string) call {
		return call{op: "ec2.CreateVpc", do: func(c *caller) error {
			out, err := c.ec2.CreateVpc(c.ctx, &awsec2.CreateVpcInput{CidrBlock: of(cidr)})
			return want(err, func() bool { return c.set(name, out.Vpc.VpcId) == nil && *out.Vpc.OwnerId == c.id })
		}}
	}
	peer := call{op: "ec2.CreateVpcPeeringConnection", do: func(c *caller) error {
		out, err := c.ec2.CreateVpcPeeringConnection(c.ctx, &awsec2.CreateVpcPeeringConnectionInput{VpcId: c.get("vpc"), PeerVpcId: c.get("vpc2")})
		return want(err, func() bool { return c.set("pcx", out.VpcPeeringConnection.VpcPeeringConnectionId) == nil })
	}}
	furnish = []call{makeVPC("vpc", "10.7.0.0/16"), makeVPC("vpc2", "10.8.0.0/16"),
		{op: "ec2.ModifyVpcAttribute", do: func(c *caller) error {
			_, err := c.ec2.ModifyVpcAttribute(c.ctx, &awsec2.ModifyVpcAttributeInput{VpcId: c.get("vpc"), EnableDnsHostnames: &types.AttributeBooleanValue{Value: of(true)}})
			return err
		}},
		{op: "ec2.CreateSubnet", do: func(c *caller) error {
			out, err := c.ec2.CreateSubnet(c.ctx, &awsec2.CreateSubnetInput{VpcId: c.get("vpc"), CidrBlock: of("10.7.1.0/24"), AvailabilityZone: of(region + "b")})
			return want(err, func() bool {
				return c.set("subnet", out.Subnet.SubnetId) == nil && *out.Subnet.AvailabilityZone == region+"b"
			})
		}},
		{op: "ec2.ModifySubnetAttribute", do: func(c *caller) error {
			_, err := c.ec2.ModifySubnetAttribute(c.ctx, &awsec2.ModifySubnetAttributeInput{SubnetId: c.get("subnet"), MapPublicIpOnLaunch: &types.AttributeBooleanValue{Value: of(true)}})
			return err
		}},
		{op: "ec2.CreateInternetGateway", do: func(c *caller) error {
			out, err := c.ec2.CreateInternetGateway(c.ctx, &awsec2.CreateInternetGatewayInput{})
			return want(err, func() bool { return c.set("igw", out.InternetGateway.InternetGatewayId) == nil })
		}},
		{op: "ec2.AttachInternetGateway", do: func(c *caller) error {
			_, err := c.ec2.AttachInternetGateway(c.ctx, &awsec2.AttachInternetGatewayInput{InternetGatewayId: c.get("igw"), VpcId: c.get("vpc")})
			return err
		}},
		{op: "ec2.AllocateAddress", do: func(c *caller) error {
			out, err := c.ec2.AllocateAddress(c.ctx, &awsec2.AllocateAddressInput{Domain: types.DomainTypeVpc})
			return want(err, func() bool { return c.set("eip", out.AllocationId) == nil && *out.PublicIp != "" })
		}},
		{op: "ec2.CreateNatGateway", do: func(c *caller) error {
			out, err := c.ec2.CreateNatGateway(c.ctx, &awsec2.CreateNatGatewayInput{SubnetId: c.get("subnet"), AllocationId: c.get("eip"), ClientToken: of("same")})
			return want(err, func() bool { return c.set("nat", out.NatGateway.NatGatewayId) == nil })
		}},
		{op: "ec2.CreateRouteTable", do: func(c *caller) error {
			out, err := c.ec2.CreateRouteTable(c.ctx, &awsec2.CreateRouteTableInput{VpcId: c.get("vpc")})
			return want(err, func() bool {
				return c.set("rtb", out.RouteTable.RouteTableId) == nil && len(out.RouteTable.Routes) == 1
			})
		}},
		{op: "ec2.AssociateRouteTable", do: func(c *caller) error {
			out, err := c.ec2.AssociateRouteTable(c.ctx, &awsec2.AssociateRouteTableInput{RouteTableId: c.get("rtb"), SubnetId: c.get("subnet")})
			return want(err, func() bool { return c.set("rtbassoc", out.AssociationId) == nil })
		}},
		{op: "ec2.CreateRoute", do: func(c *caller) error {
			_, err := c.ec2.CreateRoute(c.ctx, &awsec2.CreateRouteInput{RouteTableId: c.get("rtb"), DestinationCidrBlock: of("0.0.0.0/0"), GatewayId: c.get("igw")})
			return err
		}},
		{op: "ec2.ReplaceRoute", do: func(c *caller) error {
			_, err := c.ec2.ReplaceRoute(c.ctx, &awsec2.ReplaceRouteInput{RouteTableId: c.get("rtb"), DestinationCidrBlock: of("0.0.0.0/0"), NatGatewayId: c.get("nat")})
			return err
		}},
		peer,
		{op: "ec2.RejectVpcPeeringConnection", do: func(c *caller) error {
			_, err := c.ec2.RejectVpcPeeringConnection(c.ctx, &awsec2.RejectVpcPeeringConnectionInput{VpcPeeringConnectionId: c.get("pcx")})
			return err
		}},
		peer,
		{op: "ec2.AcceptVpcPeeringConnection", do: func(c *caller) error {
			out, err := c.ec2.AcceptVpcPeeringConnection(c.ctx, &awsec2.AcceptVpcPeeringConnectionInput{VpcPeeringConnectionId: c.get("pcx")})
			return want(err, func() bool {
				return out.VpcPeeringConnection.Status.Code == types.VpcPeeringConnectionStateReasonCodeActive
			})
		}},
		{op: "ec2.CreateSecurityGroup", do: func(c *caller) error {
			out, err := c.ec2.CreateSecurityGroup(c.ctx, &awsec2.CreateSecurityGroupInput{GroupName: of("mesh"), Description: of("mesh"), VpcId: c.get("vpc")})
			return want(err, func() bool { return c.set("sg", out.GroupId) == nil })
		}},
		{op: "ec2.AuthorizeSecurityGroupIngress", do: func(c *caller) error {
			_, err := c.ec2.AuthorizeSecurityGroupIngress(c.ctx, &awsec2.AuthorizeSecurityGroupIngressInput{GroupId: c.get("sg"), IpPermissions: anywhere()})
			return err
		}},
		{op: "ec2.AuthorizeSecurityGroupEgress", do: func(c *caller) error {
			_, err := c.ec2.AuthorizeSecurityGroupEgress(c.ctx, &awsec2.AuthorizeSecurityGroupEgressInput{GroupId: c.get("sg"), IpPermissions: anywhere()})
			return err
		}},
		{op: "ec2.RunInstances", do: func(c *caller) error {
			out, err := c.ec2.RunInstances(c.ctx, &awsec2.RunInstancesInput{ImageId: of("ami-ecs"), MinCount: of(int32(1)), MaxCount: of(int32(1)), SubnetId: c.get("subnet"),
				InstanceType: types.InstanceTypeT3Small, UserData: of(base64.StdEncoding.EncodeToString([]byte("#!/bin/bash\necho ECS_CLUSTER=" + walkCluster + " >> /etc/ecs/ecs.config\n")))})
			return want(err, func() bool {
				return len(out.Instances) == 1 && c.set("instance", out.Instances[0].InstanceId) == nil && *out.OwnerId == c.id
			})
		}},
		{op: "ec2.CreateTags", do: func(c *caller) error {
			_, err := c.ec2.CreateTags(c.ctx, &awsec2.CreateTagsInput{Resources: []string{c.ids["vpc"]}, Tags: []types.Tag{{Key: of("Name"), Value: of("walk")}}})
			return err
		}},
	}
	return furnish, ec2Reads(), ec2Clear()
}

func ec2Filter(name, value string) []types.Filter {
	return []types.Filter{{Name: of(name), Values: []string{value}}}
}

// ec2Reads ask by filters, and by id where nothing else tells one's own from what is there from the start.
func ec2Reads() []call {
	return []call{
		{op: "ec2.DescribeVpcs", do: func(c *caller) error {
			out, err := c.ec2.DescribeVpcs(c.ctx, &awsec2.DescribeVpcsInput{Filters: ec2Filter("tag:Name", "walk")})
			return want(err, func() bool { return len(out.Vpcs) == 1 && *out.Vpcs[0].VpcId == c.ids["vpc"] })
		}},
		{op: "ec2.DescribeVpcAttribute", do: func(c *caller) error {
			out, err := c.ec2.DescribeVpcAttribute(c.ctx, &awsec2.DescribeVpcAttributeInput{VpcId: c.get("vpc"), Attribute: types.VpcAttributeNameEnableDnsHostnames})
			return want(err, func() bool { return *out.EnableDnsHostnames.Value })
		}},
		{op: "ec2.DescribeSubnets", do: func(c *caller) error {
			out, err := c.ec2.DescribeSubnets(c.ctx, &awsec2.DescribeSubnetsInput{Filters: ec2Filter("cidr-block", "10.7.*")})
			return want(err, func() bool { return len(out.Subnets) == 1 && *out.Subnets[0].MapPublicIpOnLaunch })
		}},
		{op: "ec2.DescribeAvailabilityZones", do: func(c *caller) error {
			out, err := c.ec2.DescribeAvailabilityZones(c.ctx, &awsec2.DescribeAvailabilityZonesInput{})
			return want(err, func() bool { return len(out.AvailabilityZones) == 3 })
		}},
		{op: "ec2.DescribeInternetGateways", do: func(c *caller) error {
			out, err := c.ec2.DescribeInternetGateways(c.ctx, &awsec2.DescribeInternetGatewaysInput{Filters: ec2Filter("attachment.vpc-id", c.ids["vpc"])})
			return want(err, func() bool { return len(out.InternetGateways) == 1 })
		}},
		{op: "ec2.DescribeAddresses", do: func(c *caller) error {
			out, err := c.ec2.DescribeAddresses(c.ctx, &awsec2.DescribeAddressesInput{})
			return want(err, func() bool { return len(out.Addresses) == 1 })
		}},
		{op: "ec2.DescribeNatGateways", do: func(c *caller) error {
			out, err := c.ec2.DescribeNatGateways(c.ctx, &awsec2.DescribeNatGatewaysInput{})
			return want(err, func() bool {
				return len(out.NatGateways) == 1 && out.NatGateways[0].State == types.NatGatewayStateAvailable
			})
		}},
		{op: "ec2.DescribeRouteTables", do: func(c *caller) error {
			out, err := c.ec2.DescribeRouteTables(c.ctx, &awsec2.DescribeRouteTablesInput{Filters: ec2Filter("association.subnet-id", c.ids["subnet"])})
			return want(err, func() bool {
				return len(out.RouteTables) == 1 && *out.RouteTables[0].Routes[1].NatGatewayId == c.ids["nat"]
			})
		}},
		{op: "ec2.DescribeVpcPeeringConnections", do: func(c *caller) error {
			out, err := c.ec2.DescribeVpcPeeringConnections(c.ctx, &awsec2.DescribeVpcPeeringConnectionsInput{Filters: ec2Filter("status-code", "active")})
			return want(err, func() bool { return len(out.VpcPeeringConnections) == 1 })
		}},
		{op: "ec2.DescribeSecurityGroups", do: func(c *caller) error {
			out, err := c.ec2.DescribeSecurityGroups(c.ctx, &awsec2.DescribeSecurityGroupsInput{Filters: ec2Filter("group-name", "mes*")})
			return want(err, func() bool { return len(out.SecurityGroups) == 1 && len(out.SecurityGroups[0].IpPermissions) == 1 })
		}},
		{op: "ec2.DescribeInstances", do: func(c *caller) error {
			out, err := c.ec2.DescribeInstances(c.ctx, &awsec2.DescribeInstancesInput{})
			return want(err, func() bool {
				return len(out.Reservations) == 1 && *out.Reservations[0].Instances[0].InstanceId == c.ids["instance"]
			})
		}},
	}
}

func ec2Clear() []call {
	dropVPC := func(name string) call {
		return call{op: "ec2.DeleteVpc", do: func(c *caller) error {
			_, err := c.ec2.DeleteVpc(c.ctx, &awsec2.DeleteVpcInput{VpcId: c.get(name)})
			return err
		}}
	}
	return []call{
		{op: "ec2.TerminateInstances", do: func(c *caller) error {
			out, err := c.ec2.TerminateInstances(c.ctx, &awsec2.TerminateInstancesInput{InstanceIds: []string{c.ids["instance"]}})
			return want(err, func() bool { return out.TerminatingInstances[0].PreviousState.Name == types.InstanceStateNameRunning })
		}},
		{op: "ec2.DeleteTags", do: func(c *caller) error {
			_, err := c.ec2.DeleteTags(c.ctx, &awsec2.DeleteTagsInput{Resources: []string{c.ids["vpc"]}, Tags: []types.Tag{{Key: of("Name")}}})
			return err
		}},
		{op: "ec2.RevokeSecurityGroupIngress", do: func(c *caller) error {
			_, err := c.ec2.RevokeSecurityGroupIngress(c.ctx, &awsec2.RevokeSecurityGroupIngressInput{GroupId: c.get("sg"), IpPermissions: anywhere()})
			return err
		}},
		{op: "ec2.RevokeSecurityGroupEgress", do: func(c *caller) error {
			_, err := c.ec2.RevokeSecurityGroupEgress(c.ctx, &awsec2.RevokeSecurityGroupEgressInput{GroupId: c.get("sg"), IpPermissions: anywhere()})
			return err
		}},
		{op: "ec2.DeleteSecurityGroup", do: func(c *caller) error {
			_, err := c.ec2.DeleteSecurityGroup(c.ctx, &awsec2.DeleteSecurityGroupInput{GroupId: c.get("sg")})
			return err
		}},
		{op: "ec2.DeleteVpcPeeringConnection", do: func(c *caller) error {
			_, err := c.ec2.DeleteVpcPeeringConnection(c.ctx, &awsec2.DeleteVpcPeeringConnectionInput{VpcPeeringConnectionId: c.get("pcx")})
			return err
		}},
		{op: "ec2.DeleteRoute", do: func(c *caller) error {
			_, err := c.ec2.DeleteRoute(c.ctx, &awsec2.DeleteRouteInput{RouteTableId: c.get("rtb"), DestinationCidrBlock: of("0.0.0.0/0")})
			return err
		}},
		{op: "ec2.DisassociateRouteTable", do: func(c *caller) error {
			_, err := c.ec2.DisassociateRouteTable(c.ctx, &awsec2.DisassociateRouteTableInput{AssociationId: c.get("rtbassoc")})
			return err
		}},
		{op: "ec2.DeleteRouteTable", do: func(c *caller) error {
			_, err := c.ec2.DeleteRouteTable(c.ctx, &awsec2.DeleteRouteTableInput{RouteTableId: c.get("rtb")})
			return err
		}},
		{op: "ec2.DeleteNatGateway", do: func(c *caller) error {
			_, err := c.ec2.DeleteNatGateway(c.ctx, &awsec2.DeleteNatGatewayInput{NatGatewayId: c.get("nat")})
			return err
		}},
		{op: "ec2.ReleaseAddress", do: func(c *caller) error {
			_, err := c.ec2.ReleaseAddress(c.ctx, &awsec2.ReleaseAddressInput{AllocationId: c.get("eip")})
			return err
		}},
		{op: "ec2.DetachInternetGateway", do: func(c *caller) error {
			_, err := c.ec2.DetachInternetGateway(c.ctx, &awsec2.DetachInternetGatewayInput{InternetGatewayId: c.get("igw"), VpcId: c.get("vpc")})
			return err
		}},
		{op: "ec2.DeleteInternetGateway", do: func(c *caller) error {
			_, err := c.ec2.DeleteInternetGateway(c.ctx, &awsec2.DeleteInternetGatewayInput{InternetGatewayId: c.get("igw")})
			return err
		}},
		{op: "ec2.DeleteSubnet", do: func(c *caller) error {
			_, err := c.ec2.DeleteSubnet(c.ctx, &awsec2.DeleteSubnetInput{SubnetId: c.get("subnet")})
			return err
		}},
		dropVPC("vpc"), dropVPC("vpc2"),
	}
}
