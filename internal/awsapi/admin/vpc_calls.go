package admin

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
)

// vpcCalls holds the SDK's methods about networks one by one; see awsapi for why.
type vpcCalls struct {
	describeVpcs       func(context.Context, *ec2.DescribeVpcsInput, ...func(*ec2.Options)) (*ec2.DescribeVpcsOutput, error)
	createVpc          func(context.Context, *ec2.CreateVpcInput, ...func(*ec2.Options)) (*ec2.CreateVpcOutput, error)
	modifyVpcAttribute func(context.Context, *ec2.ModifyVpcAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyVpcAttributeOutput, error)
	deleteVpc          func(context.Context, *ec2.DeleteVpcInput, ...func(*ec2.Options)) (*ec2.DeleteVpcOutput, error)
	describeSubnets    func(context.Context, *ec2.DescribeSubnetsInput, ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error)
	createSubnet       func(context.Context, *ec2.CreateSubnetInput, ...func(*ec2.Options)) (*ec2.CreateSubnetOutput, error)
	deleteSubnet       func(context.Context, *ec2.DeleteSubnetInput, ...func(*ec2.Options)) (*ec2.DeleteSubnetOutput, error)

	describeGateways func(context.Context, *ec2.DescribeInternetGatewaysInput, ...func(*ec2.Options)) (*ec2.DescribeInternetGatewaysOutput, error)
	createGateway    func(context.Context, *ec2.CreateInternetGatewayInput, ...func(*ec2.Options)) (*ec2.CreateInternetGatewayOutput, error)
	attachGateway    func(context.Context, *ec2.AttachInternetGatewayInput, ...func(*ec2.Options)) (*ec2.AttachInternetGatewayOutput, error)
	detachGateway    func(context.Context, *ec2.DetachInternetGatewayInput, ...func(*ec2.Options)) (*ec2.DetachInternetGatewayOutput, error)
	deleteGateway    func(context.Context, *ec2.DeleteInternetGatewayInput, ...func(*ec2.Options)) (*ec2.DeleteInternetGatewayOutput, error)
	allocateAddress  func(context.Context, *ec2.AllocateAddressInput, ...func(*ec2.Options)) (*ec2.AllocateAddressOutput, error)
	releaseAddress   func(context.Context, *ec2.ReleaseAddressInput, ...func(*ec2.Options)) (*ec2.ReleaseAddressOutput, error)
	describeNats     func(context.Context, *ec2.DescribeNatGatewaysInput, ...func(*ec2.Options)) (*ec2.DescribeNatGatewaysOutput, error)
	createNat        func(context.Context, *ec2.CreateNatGatewayInput, ...func(*ec2.Options)) (*ec2.CreateNatGatewayOutput, error)
	deleteNat        func(context.Context, *ec2.DeleteNatGatewayInput, ...func(*ec2.Options)) (*ec2.DeleteNatGatewayOutput, error)

	describeTables    func(context.Context, *ec2.DescribeRouteTablesInput, ...func(*ec2.Options)) (*ec2.DescribeRouteTablesOutput, error)
	createTable       func(context.Context, *ec2.CreateRouteTableInput, ...func(*ec2.Options)) (*ec2.CreateRouteTableOutput, error)
	associateTable    func(context.Context, *ec2.AssociateRouteTableInput, ...func(*ec2.Options)) (*ec2.AssociateRouteTableOutput, error)
	disassociateTable func(context.Context, *ec2.DisassociateRouteTableInput, ...func(*ec2.Options)) (*ec2.DisassociateRouteTableOutput, error)
	deleteTable       func(context.Context, *ec2.DeleteRouteTableInput, ...func(*ec2.Options)) (*ec2.DeleteRouteTableOutput, error)
	createRoute       func(context.Context, *ec2.CreateRouteInput, ...func(*ec2.Options)) (*ec2.CreateRouteOutput, error)
	replaceRoute      func(context.Context, *ec2.ReplaceRouteInput, ...func(*ec2.Options)) (*ec2.ReplaceRouteOutput, error)
	deleteRoute       func(context.Context, *ec2.DeleteRouteInput, ...func(*ec2.Options)) (*ec2.DeleteRouteOutput, error)

	describePeerings func(context.Context, *ec2.DescribeVpcPeeringConnectionsInput, ...func(*ec2.Options)) (*ec2.DescribeVpcPeeringConnectionsOutput, error)
	createPeering    func(context.Context, *ec2.CreateVpcPeeringConnectionInput, ...func(*ec2.Options)) (*ec2.CreateVpcPeeringConnectionOutput, error)
	acceptPeering    func(context.Context, *ec2.AcceptVpcPeeringConnectionInput, ...func(*ec2.Options)) (*ec2.AcceptVpcPeeringConnectionOutput, error)
	deletePeering    func(context.Context, *ec2.DeleteVpcPeeringConnectionInput, ...func(*ec2.Options)) (*ec2.DeleteVpcPeeringConnectionOutput, error)
}

func newVPCCalls(cfg aws.Config) vpcCalls {
	c := ec2.NewFromConfig(cfg)
	return vpcCalls{
		describeVpcs: c.DescribeVpcs, createVpc: c.CreateVpc, modifyVpcAttribute: c.ModifyVpcAttribute, deleteVpc: c.DeleteVpc,
		describeSubnets: c.DescribeSubnets, createSubnet: c.CreateSubnet, deleteSubnet: c.DeleteSubnet,
		describeGateways: c.DescribeInternetGateways, createGateway: c.CreateInternetGateway, attachGateway: c.AttachInternetGateway,
		detachGateway: c.DetachInternetGateway, deleteGateway: c.DeleteInternetGateway,
		allocateAddress: c.AllocateAddress, releaseAddress: c.ReleaseAddress,
		describeNats: c.DescribeNatGateways, createNat: c.CreateNatGateway, deleteNat: c.DeleteNatGateway,
		describeTables: c.DescribeRouteTables, createTable: c.CreateRouteTable, associateTable: c.AssociateRouteTable,
		disassociateTable: c.DisassociateRouteTable, deleteTable: c.DeleteRouteTable,
		createRoute: c.CreateRoute, replaceRoute: c.ReplaceRoute, deleteRoute: c.DeleteRoute,
		describePeerings: c.DescribeVpcPeeringConnections, createPeering: c.CreateVpcPeeringConnection,
		acceptPeering: c.AcceptVpcPeeringConnection, deletePeering: c.DeleteVpcPeeringConnection,
	}
}
