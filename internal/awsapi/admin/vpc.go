package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// VPC is a VPC as the command line wants it: subnets in zones, the private ones behind one NAT gateway.
type VPC struct {
	Name, Range string
	Subnets     []SubnetSpec // at least one must be public
	Gateway     string       // name of the internet gateway
	NAT         string       // name of the NAT gateway
	Public      string       // names of the route tables
	Private     string
	Tags        map[string]string
}

// SubnetSpec is a subnet of a VPC.
type SubnetSpec struct {
	Name, Range, Zone string
	Public            bool
}

// natTimeout is how long AWS may take to make or unmake a NAT gateway.
const natTimeout = 10 * time.Minute

// ensuring brings a VPC to what is wanted and notes what it does. With dryRun ids of what is missing are empty, and what
// belongs to it counts as missing too.
type ensuring struct {
	vpcCalls
	want    VPC
	dryRun  bool
	changes []string
}

// FindVPC returns the id and range of the VPC of a name; "" if there is none, and an error if there are several.
func (a *Client) FindVPC(ctx context.Context, name string) (id, cidr string, err error) {
	out, err := newVPCCalls(a.cfg).describeVpcs(ctx, &ec2.DescribeVpcsInput{Filters: byName("", name)})
	if err != nil {
		return "", "", fmt.Errorf("find vpc %s: %w", name, err)
	}
	switch len(out.Vpcs) {
	case 0:
		return "", "", nil
	case 1:
		return aws.ToString(out.Vpcs[0].VpcId), aws.ToString(out.Vpcs[0].CidrBlock), nil
	}
	return "", "", fmt.Errorf("find vpc %s: %d have this name", name, len(out.Vpcs))
}

// EnsureVPC makes what is missing of a VPC, found by names, and waits for its NAT gateway. It returns the VPC's id and
// what it changed, one line each; with dryRun it only tells.
func (a *Client) EnsureVPC(ctx context.Context, want VPC, dryRun bool) (id string, changes []string, err error) {
	e := &ensuring{vpcCalls: newVPCCalls(a.cfg), want: want, dryRun: dryRun}
	id, cidr, err := a.FindVPC(ctx, want.Name)
	if err != nil {
		return "", nil, err
	}
	if id != "" && cidr != want.Range {
		return id, nil, fmt.Errorf("vpc %s has the range %s, want %s", want.Name, cidr, want.Range)
	}
	if id == "" {
		if id, err = e.makeVPC(ctx); err != nil {
			return "", e.changes, err
		}
	}
	return id, e.changes, e.inside(ctx, id)
}

// inside makes what belongs to the VPC, in the order in which one needs the other.
func (e *ensuring) inside(ctx context.Context, vpc string) error {
	gateway, err := e.gateway(ctx, vpc)
	if err != nil {
		return err
	}
	var public, private []string
	for _, s := range e.want.Subnets {
		id, err := e.subnet(ctx, vpc, s)
		if err != nil {
			return err
		}
		if s.Public {
			public = append(public, id)
		} else {
			private = append(private, id)
		}
	}
	if len(public) == 0 {
		return fmt.Errorf("vpc %s: no public subnet for its NAT gateway", e.want.Name)
	}
	if err := e.table(ctx, vpc, e.want.Public, public, func(in *ec2.CreateRouteInput) { in.GatewayId = &gateway }); err != nil {
		return err
	}
	nat, err := e.nat(ctx, vpc, public[0])
	if err != nil {
		return err
	}
	return e.table(ctx, vpc, e.want.Private, private, func(in *ec2.CreateRouteInput) { in.NatGatewayId = &nat })
}

// did notes a change and reports whether to make it.
func (e *ensuring) did(format string, args ...any) bool {
	e.changes = append(e.changes, fmt.Sprintf(format, args...))
	return !e.dryRun
}

func (e *ensuring) tags(kind types.ResourceType, name string) []types.TagSpecification {
	tags := []types.Tag{{Key: aws.String("Name"), Value: &name}}
	for k, v := range e.want.Tags {
		tags = append(tags, types.Tag{Key: aws.String(k), Value: aws.String(v)})
	}
	return []types.TagSpecification{{ResourceType: kind, Tags: tags}}
}

// byName selects by the Name tag, within a VPC unless it is "".
func byName(vpc, name string) []types.Filter {
	f := []types.Filter{{Name: aws.String("tag:Name"), Values: []string{name}}}
	if vpc != "" {
		f = append(f, inVPC(vpc)...)
	}
	return f
}

func inVPC(vpc string) []types.Filter {
	return []types.Filter{{Name: aws.String("vpc-id"), Values: []string{vpc}}}
}

func (e *ensuring) makeVPC(ctx context.Context) (string, error) {
	if !e.did("create vpc %s with %s", e.want.Name, e.want.Range) {
		return "", nil
	}
	out, err := e.createVpc(ctx, &ec2.CreateVpcInput{CidrBlock: &e.want.Range, TagSpecifications: e.tags(types.ResourceTypeVpc, e.want.Name)})
	if err != nil {
		return "", fmt.Errorf("create vpc %s: %w", e.want.Name, err)
	}
	yes := &types.AttributeBooleanValue{Value: aws.Bool(true)}
	for _, in := range []*ec2.ModifyVpcAttributeInput{{VpcId: out.Vpc.VpcId, EnableDnsSupport: yes}, {VpcId: out.Vpc.VpcId, EnableDnsHostnames: yes}} {
		if _, err := e.modifyVpcAttribute(ctx, in); err != nil {
			return "", fmt.Errorf("turn on dns in vpc %s: %w", e.want.Name, err)
		}
	}
	return *out.Vpc.VpcId, nil
}

func (e *ensuring) gateway(ctx context.Context, vpc string) (string, error) {
	if vpc != "" {
		out, err := e.describeGateways(ctx, &ec2.DescribeInternetGatewaysInput{Filters: []types.Filter{{Name: aws.String("attachment.vpc-id"), Values: []string{vpc}}}})
		if err != nil {
			return "", fmt.Errorf("find the internet gateway of %s: %w", vpc, err)
		}
		if len(out.InternetGateways) > 0 {
			return aws.ToString(out.InternetGateways[0].InternetGatewayId), nil
		}
	}
	if !e.did("create internet gateway %s", e.want.Gateway) {
		return "", nil
	}
	made, err := e.createGateway(ctx, &ec2.CreateInternetGatewayInput{TagSpecifications: e.tags(types.ResourceTypeInternetGateway, e.want.Gateway)})
	if err != nil {
		return "", fmt.Errorf("create internet gateway %s: %w", e.want.Gateway, err)
	}
	id := made.InternetGateway.InternetGatewayId
	if _, err := e.attachGateway(ctx, &ec2.AttachInternetGatewayInput{InternetGatewayId: id, VpcId: &vpc}); err != nil {
		return "", fmt.Errorf("attach internet gateway %s: %w", e.want.Gateway, err)
	}
	return *id, nil
}

func (e *ensuring) subnet(ctx context.Context, vpc string, s SubnetSpec) (string, error) {
	if vpc != "" {
		out, err := e.describeSubnets(ctx, &ec2.DescribeSubnetsInput{Filters: byName(vpc, s.Name)})
		if err != nil {
			return "", fmt.Errorf("find subnet %s: %w", s.Name, err)
		}
		if len(out.Subnets) > 0 {
			return aws.ToString(out.Subnets[0].SubnetId), nil
		}
	}
	if !e.did("create subnet %s with %s", s.Name, s.Range) {
		return "", nil
	}
	made, err := e.createSubnet(ctx, &ec2.CreateSubnetInput{VpcId: &vpc, CidrBlock: &s.Range, AvailabilityZone: &s.Zone, TagSpecifications: e.tags(types.ResourceTypeSubnet, s.Name)})
	if err != nil {
		return "", fmt.Errorf("create subnet %s: %w", s.Name, err)
	}
	return *made.Subnet.SubnetId, nil
}

func (e *ensuring) nat(ctx context.Context, vpc, subnet string) (string, error) {
	if vpc != "" {
		out, err := e.describeNats(ctx, &ec2.DescribeNatGatewaysInput{Filter: inVPC(vpc)})
		if err != nil {
			return "", fmt.Errorf("find the nat gateway of %s: %w", vpc, err)
		}
		for _, n := range out.NatGateways {
			if n.State == types.NatGatewayStateAvailable || n.State == types.NatGatewayStatePending {
				return aws.ToString(n.NatGatewayId), nil
			}
		}
	}
	if !e.did("create nat gateway %s with an address", e.want.NAT) {
		return "", nil
	}
	eip, err := e.allocateAddress(ctx, &ec2.AllocateAddressInput{Domain: types.DomainTypeVpc, TagSpecifications: e.tags(types.ResourceTypeElasticIp, e.want.NAT)})
	if err != nil {
		return "", fmt.Errorf("allocate an address: %w", err)
	}
	made, err := e.createNat(ctx, &ec2.CreateNatGatewayInput{SubnetId: &subnet, AllocationId: eip.AllocationId, TagSpecifications: e.tags(types.ResourceTypeNatgateway, e.want.NAT)})
	if err != nil {
		return "", fmt.Errorf("create nat gateway %s: %w", e.want.NAT, err)
	}
	id := *made.NatGateway.NatGatewayId
	return id, e.awaitNAT(ctx, id, types.NatGatewayStateAvailable)
}

// table makes a route table with the default route of its kind and gives it to subnets.
func (e *ensuring) table(ctx context.Context, vpc, name string, subnets []string, out func(*ec2.CreateRouteInput)) error {
	if vpc != "" {
		found, err := e.describeTables(ctx, &ec2.DescribeRouteTablesInput{Filters: byName(vpc, name)})
		if err != nil {
			return fmt.Errorf("find route table %s: %w", name, err)
		}
		if len(found.RouteTables) > 0 {
			return nil
		}
	}
	if !e.did("create route table %s", name) {
		return nil
	}
	made, err := e.createTable(ctx, &ec2.CreateRouteTableInput{VpcId: &vpc, TagSpecifications: e.tags(types.ResourceTypeRouteTable, name)})
	if err != nil {
		return fmt.Errorf("create route table %s: %w", name, err)
	}
	id := made.RouteTable.RouteTableId
	in := &ec2.CreateRouteInput{RouteTableId: id, DestinationCidrBlock: aws.String("0.0.0.0/0")}
	out(in)
	if _, err := e.createRoute(ctx, in); err != nil {
		return fmt.Errorf("create the default route of %s: %w", name, err)
	}
	for _, sn := range subnets {
		if _, err := e.associateTable(ctx, &ec2.AssociateRouteTableInput{RouteTableId: id, SubnetId: &sn}); err != nil {
			return fmt.Errorf("associate route table %s with %s: %w", name, sn, err)
		}
	}
	return nil
}

// awaitNAT waits until a NAT gateway has a state.
func (c vpcCalls) awaitNAT(ctx context.Context, id string, want types.NatGatewayState) error {
	ctx, cancel := context.WithTimeout(ctx, natTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		out, err := c.describeNats(ctx, &ec2.DescribeNatGatewaysInput{NatGatewayIds: []string{id}})
		if err != nil {
			return fmt.Errorf("describe nat gateway %s: %w", id, err)
		}
		if len(out.NatGateways) == 1 {
			switch state := out.NatGateways[0].State; state {
			case want:
				return nil
			case types.NatGatewayStateFailed:
				return fmt.Errorf("nat gateway %s failed: %s", id, aws.ToString(out.NatGateways[0].FailureMessage))
			}
		}
		if !pause(ctx, min(attempt, 10)) {
			return fmt.Errorf("nat gateway %s is not %s: %w", id, want, ctx.Err())
		}
	}
}

// pause waits before another look, longer each time; it returns false if ctx ended.
func pause(ctx context.Context, attempt int) bool {
	timer := time.NewTimer(time.Duration(attempt) * 500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
