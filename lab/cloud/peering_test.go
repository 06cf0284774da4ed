package cloud_test

import (
	"errors"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
)

// fakeFabric remembers what the network was told.
type fakeFabric struct {
	mu       sync.Mutex
	networks []netip.Prefix
	routes   []ec2.Route
}

func (f *fakeFabric) AddNetwork(p netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.Overlaps(netip.MustParsePrefix("10.0.0.0/16")) {
		return errors.New("overlaps")
	}
	f.networks = append(f.networks, p)
	return nil
}

func (f *fakeFabric) RemoveNetwork(netip.Prefix) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networks = nil
	return nil
}

func (f *fakeFabric) SetRoutes(r []ec2.Route) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes = r
	return nil
}

// open reports whether packets from one address reach another, and back.
func (f *fakeFabric) open(from, to string) (there, back bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	way := func(a, b netip.Addr) bool {
		for _, r := range f.routes {
			if r.From.Contains(a) && r.To.Contains(b) {
				return r.Allow
			}
		}
		return false
	}
	a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
	return way(a, b), way(b, a)
}

// twoAccounts is an endpoint with two accounts and a fabric.
func twoAccounts(t *testing.T) (home, external *awsec2.Client, f *fakeFabric) {
	t.Helper()
	f = &fakeFabric{}
	rt := newFakeRuntime()
	c, err := cloud.New(cloud.Config{
		AccountID: account, Region: region, Admin: cloud.Credentials{AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one"},
		Accounts: []cloud.Account{{ID: account2, Admin: cloud.Credentials{AccessKeyID: "AKIALABADMIN00000002", SecretAccessKey: "secret-two"}}},
		Runtime:  rt, VPC: rt, Fabric: f, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(c)
	t.Cleanup(srv.Close)
	l := &lab{t: t, url: srv.URL}
	return awsec2.NewFromConfig(l.admin()), awsec2.NewFromConfig(l.config("AKIALABADMIN00000002", "secret-two", "")), f
}

func named(kind ec2types.ResourceType, name string) []ec2types.TagSpecification {
	return []ec2types.TagSpecification{{ResourceType: kind, Tags: []ec2types.Tag{{Key: aws.String("Name"), Value: aws.String(name)}}}}
}

// TestPeering is the network of the guide's scenario 3, from the empty account to packets, and back.
func TestPeering(t *testing.T) {
	t.Parallel()
	home, ext, f := twoAccounts(t)
	ctx := t.Context()
	if got := must(ext.DescribeVpcs(ctx, nil))(t).Vpcs; len(got) != 0 {
		t.Errorf("the second account has VPCs %+v at first", got)
	}
	_, err := ext.CreateVpc(ctx, &awsec2.CreateVpcInput{CidrBlock: aws.String("10.0.0.0/17")})
	wantCode(t, "a VPC that overlaps", err, "InvalidVpc.Range")
	vpc := *must(ext.CreateVpc(ctx, &awsec2.CreateVpcInput{CidrBlock: aws.String("10.1.0.0/16"), TagSpecifications: named("vpc", "istio-ecs-external-vpc")}))(t).Vpc.VpcId
	must(ext.ModifyVpcAttribute(ctx, &awsec2.ModifyVpcAttributeInput{VpcId: &vpc, EnableDnsHostnames: &ec2types.AttributeBooleanValue{Value: aws.Bool(true)}}))(t)
	if a := must(ext.DescribeVpcAttribute(ctx, &awsec2.DescribeVpcAttributeInput{VpcId: &vpc, Attribute: "enableDnsHostnames"}))(t); !*a.EnableDnsHostnames.Value {
		t.Error("enableDnsHostnames was not changed")
	}
	_, err = home.DescribeVpcs(ctx, &awsec2.DescribeVpcsInput{VpcIds: []string{vpc}})
	wantCode(t, "another account's VPC", err, "InvalidVpcID.NotFound")
	subnet := func(cidr, zone string) string {
		return *must(ext.CreateSubnet(ctx, &awsec2.CreateSubnetInput{VpcId: &vpc, CidrBlock: &cidr, AvailabilityZone: &zone}))(t).Subnet.SubnetId
	}
	private, public := subnet("10.1.1.0/24", "us-east-2a"), subnet("10.1.4.0/24", "us-east-2b")
	_, err = ext.CreateSubnet(ctx, &awsec2.CreateSubnetInput{VpcId: &vpc, CidrBlock: aws.String("10.1.1.128/25")})
	wantCode(t, "a subnet that overlaps", err, "InvalidSubnet.Conflict")

	igw := must(ext.CreateInternetGateway(ctx, nil))(t).InternetGateway.InternetGatewayId
	eip := must(ext.AllocateAddress(ctx, nil))(t).AllocationId
	_, err = ext.CreateNatGateway(ctx, &awsec2.CreateNatGatewayInput{SubnetId: &public, AllocationId: eip})
	wantCode(t, "NAT without an internet gateway", err, "Gateway.NotAttached")
	must(ext.AttachInternetGateway(ctx, &awsec2.AttachInternetGatewayInput{InternetGatewayId: igw, VpcId: &vpc}))(t)
	nat := must(ext.CreateNatGateway(ctx, &awsec2.CreateNatGatewayInput{SubnetId: &public, AllocationId: eip}))(t).NatGateway.NatGatewayId
	waiter := awsec2.NewNatGatewayAvailableWaiter(ext, func(o *awsec2.NatGatewayAvailableWaiterOptions) { o.MinDelay = 10 * time.Millisecond })
	if err := waiter.Wait(ctx, &awsec2.DescribeNatGatewaysInput{NatGatewayIds: []string{*nat}}, 5*time.Second); err != nil {
		t.Error(err)
	}
	_, err = ext.ReleaseAddress(ctx, &awsec2.ReleaseAddressInput{AllocationId: eip})
	wantCode(t, "release an address in use", err, "InvalidIPAddress.InUse")
	rtb := must(ext.CreateRouteTable(ctx, &awsec2.CreateRouteTableInput{VpcId: &vpc, TagSpecifications: named("route-table", "istio-ecs-private-rt")}))(t).RouteTable.RouteTableId
	must(ext.CreateRoute(ctx, &awsec2.CreateRouteInput{RouteTableId: rtb, DestinationCidrBlock: aws.String("0.0.0.0/0"), NatGatewayId: nat}))(t)
	assoc := must(ext.AssociateRouteTable(ctx, &awsec2.AssociateRouteTableInput{RouteTableId: rtb, SubnetId: &private}))(t).AssociationId

	pcx := *must(ext.CreateVpcPeeringConnection(ctx, &awsec2.CreateVpcPeeringConnectionInput{VpcId: &vpc, PeerVpcId: aws.String(ec2.DefaultVPCID), PeerOwnerId: aws.String(account)}))(t).VpcPeeringConnection.VpcPeeringConnectionId
	_, err = ext.AcceptVpcPeeringConnection(ctx, &awsec2.AcceptVpcPeeringConnectionInput{VpcPeeringConnectionId: &pcx})
	wantCode(t, "accept one's own request", err, "OperationNotPermitted")
	must(home.AcceptVpcPeeringConnection(ctx, &awsec2.AcceptVpcPeeringConnectionInput{VpcPeeringConnectionId: &pcx}))(t)
	if p := must(home.DescribeVpcPeeringConnections(ctx, &awsec2.DescribeVpcPeeringConnectionsInput{Filters: []ec2types.Filter{filter("status-code", "active")}}))(t).VpcPeeringConnections; len(p) != 1 || *p[0].RequesterVpcInfo.CidrBlock != "10.1.0.0/16" {
		t.Errorf("peerings = %+v", p)
	}
	type ways struct{ There, Back bool }
	check := func(when, from, to string, want ways) {
		t.Helper()
		there, back := f.open(from, to)
		if diff := cmp.Diff(want, ways{there, back}); diff != "" {
			t.Errorf("%s, %s to %s (-want +got):\n%s", when, from, to, diff)
		}
	}
	check("without routes", "10.1.1.9", "10.0.128.9", ways{})
	must(ext.CreateRoute(ctx, &awsec2.CreateRouteInput{RouteTableId: rtb, DestinationCidrBlock: aws.String("10.0.0.0/16"), VpcPeeringConnectionId: &pcx}))(t)
	check("with one side's route", "10.1.1.9", "10.0.128.9", ways{There: true})
	for _, table := range must(home.DescribeRouteTables(ctx, nil))(t).RouteTables {
		must(home.CreateRoute(ctx, &awsec2.CreateRouteInput{RouteTableId: table.RouteTableId, DestinationCidrBlock: aws.String("10.1.0.0/16"), VpcPeeringConnectionId: &pcx}))(t)
	}
	check("with both sides' routes", "10.1.1.9", "10.0.128.9", ways{true, true})
	check("pods use the main table", "10.1.1.9", "10.0.64.9", ways{true, true})
	check("a subnet with the main table, which has no route", "10.1.4.9", "10.0.64.9", ways{Back: true})

	_, err = ext.DeleteVpc(ctx, &awsec2.DeleteVpcInput{VpcId: &vpc})
	wantCode(t, "delete a VPC in use", err, "DependencyViolation")
	must(ext.DeleteVpcPeeringConnection(ctx, &awsec2.DeleteVpcPeeringConnectionInput{VpcPeeringConnectionId: &pcx}))(t)
	check("without the peering", "10.1.1.9", "10.0.128.9", ways{})
	must(ext.DeleteNatGateway(ctx, &awsec2.DeleteNatGatewayInput{NatGatewayId: nat}))(t)
	must(ext.ReleaseAddress(ctx, &awsec2.ReleaseAddressInput{AllocationId: eip}))(t)
	must(ext.DetachInternetGateway(ctx, &awsec2.DetachInternetGatewayInput{InternetGatewayId: igw, VpcId: &vpc}))(t)
	must(ext.DeleteInternetGateway(ctx, &awsec2.DeleteInternetGatewayInput{InternetGatewayId: igw}))(t)
	must(ext.DisassociateRouteTable(ctx, &awsec2.DisassociateRouteTableInput{AssociationId: assoc}))(t)
	must(ext.DeleteRouteTable(ctx, &awsec2.DeleteRouteTableInput{RouteTableId: rtb}))(t)
	for _, id := range []string{private, public} {
		must(ext.DeleteSubnet(ctx, &awsec2.DeleteSubnetInput{SubnetId: &id}))(t)
	}
	must(ext.DeleteVpc(ctx, &awsec2.DeleteVpcInput{VpcId: &vpc}))(t)
	if len(f.networks) != 0 {
		t.Errorf("networks left: %v", f.networks)
	}
}
