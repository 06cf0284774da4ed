package ec2

import (
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type vpcXML struct {
	VPCID     string   `xml:"vpcId"`
	OwnerID   string   `xml:"ownerId"`
	State     string   `xml:"state"`
	CIDR      string   `xml:"cidrBlock"`
	DHCP      string   `xml:"dhcpOptionsId"`
	Tenancy   string   `xml:"instanceTenancy"`
	IsDefault bool     `xml:"isDefault"`
	Tags      []tagXML `xml:"tagSet>item"`
}

func (v *vpc) xml() vpcXML {
	return vpcXML{VPCID: v.id, OwnerID: v.account, State: "available", CIDR: v.cidr.String(), DHCP: "dopt-0a1b2c3d", Tenancy: "default",
		IsDefault: v.isDefault, Tags: tagSet(v.tags)}
}

const noVPC, vpcID = "InvalidVpcID.NotFound", "vpc ID"

func (s *Service) vpc(r *awsserver.Request, id string) (*vpc, error) {
	return find(r, s.vpcs, id, noVPC, vpcID)
}

func (s *Service) describeVPCs(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.vpcs, "VpcId", noVPC, vpcID, func(v *vpc) map[string][]string {
		isDefault := []string{strconv.FormatBool(v.isDefault)}
		return map[string][]string{"vpc-id": {v.id}, "cidr": {v.cidr.String()}, "state": {"available"}, "is-default": isDefault,
			"isDefault": isDefault, "owner-id": {v.account}}
	})
	out := struct {
		VPCs []vpcXML `xml:"vpcSet>item"`
		Next string   `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, v := range found {
		out.VPCs = append(out.VPCs, v.xml())
	}
	return out, err
}

func (s *Service) createVPC(r *awsserver.Request) (any, error) {
	cidr, err := parseCIDR(r.Form.Get("CidrBlock"), 16, 28)
	if err != nil {
		return nil, err
	}
	if count(r, s.vpcs) >= maxVPCs {
		return nil, limit("VpcLimitExceeded", "VPCs")
	}
	if s.cfg.Fabric != nil {
		if err := s.cfg.Fabric.AddNetwork(cidr); err != nil {
			return nil, awsserver.Errorf("InvalidVpc.Range", "The lab cannot make this network: %s", err)
		}
	}
	v := &vpc{owned: s.newOwned(r, "vpc-"), cidr: cidr, support: true}
	s.vpcs[v.id] = v
	s.addTable(v, true)
	s.addGroup(v, "default", "default VPC security group")
	return struct {
		VPC vpcXML `xml:"vpc"`
	}{v.xml()}, nil
}

// dependent is AWS's refusal to delete what something else still uses.
func dependent(what, id string) error {
	return awsserver.Errorf("DependencyViolation", "The %s '%s' has dependencies and cannot be deleted.", what, id)
}

func (s *Service) deleteVPC(r *awsserver.Request) (any, error) {
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	for _, x := range s.subnets {
		if x.vpc == v.id {
			return nil, dependent("vpc", v.id)
		}
	}
	for _, g := range s.gateways {
		if g.vpc == v.id {
			return nil, dependent("vpc", v.id)
		}
	}
	for _, t := range s.tables {
		if t.vpc == v.id && !t.main {
			return nil, dependent("vpc", v.id)
		}
	}
	for _, g := range s.groups {
		if g.vpc == v.id && g.name != "default" {
			return nil, dependent("vpc", v.id)
		}
	}
	if s.cfg.Fabric != nil {
		if err := s.cfg.Fabric.RemoveNetwork(v.cidr); err != nil {
			return nil, dependent("vpc", v.id)
		}
	}
	for id, t := range s.tables {
		if t.vpc == v.id {
			delete(s.tables, id)
		}
	}
	for id, g := range s.groups {
		if g.vpc == v.id {
			delete(s.groups, id)
		}
	}
	for _, p := range s.peerings { // a peering does not outlive its VPCs
		if p.requester.vpc == v.id || p.accepter.vpc == v.id {
			p.status = peeringDeleted
		}
	}
	delete(s.vpcs, v.id)
	return returned{true}, s.connect()
}

type flagXML struct {
	Value bool `xml:"value"`
}

func (s *Service) describeVPCAttribute(r *awsserver.Request) (any, error) {
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	out := struct {
		VPCID     string   `xml:"vpcId"`
		Support   *flagXML `xml:"enableDnsSupport,omitempty"`
		Hostnames *flagXML `xml:"enableDnsHostnames,omitempty"`
	}{VPCID: v.id}
	switch r.Form.Get("Attribute") {
	case "enableDnsSupport":
		out.Support = &flagXML{v.support}
	case "enableDnsHostnames":
		out.Hostnames = &flagXML{v.hostnames}
	default:
		return nil, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter attribute is invalid.", r.Form.Get("Attribute"))
	}
	return out, nil
}

func (s *Service) modifyVPCAttribute(r *awsserver.Request) (any, error) {
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	support, hostnames := r.Form.Get("EnableDnsSupport.Value"), r.Form.Get("EnableDnsHostnames.Value")
	if (support == "") == (hostnames == "") {
		return nil, awsserver.Errorf("InvalidParameterCombination", "Fields for multiple attribute types specified, or none at all")
	}
	if support != "" {
		v.support = support == "true"
	} else {
		v.hostnames = hostnames == "true"
	}
	return returned{true}, nil
}

type subnetXML struct {
	SubnetID  string   `xml:"subnetId"`
	ARN       string   `xml:"subnetArn"`
	State     string   `xml:"state"`
	OwnerID   string   `xml:"ownerId"`
	VPCID     string   `xml:"vpcId"`
	CIDR      string   `xml:"cidrBlock"`
	Available int      `xml:"availableIpAddressCount"`
	Zone      string   `xml:"availabilityZone"`
	ZoneID    string   `xml:"availabilityZoneId"`
	Default   bool     `xml:"defaultForAz"`
	Public    bool     `xml:"mapPublicIpOnLaunch"`
	Tags      []tagXML `xml:"tagSet>item"`
}

func (x *subnet) xml() subnetXML {
	return subnetXML{SubnetID: x.id, ARN: "arn:aws:ec2:" + x.region + ":" + x.account + ":subnet/" + x.id, State: "available", OwnerID: x.account,
		VPCID: x.vpc, CIDR: x.cidr.String(), Available: 1<<(32-x.cidr.Bits()) - 5, Zone: x.zone, ZoneID: zoneID(x.zone), Public: x.public, Tags: tagSet(x.tags)}
}

// zoneID is the id of a zone that is the same in every account: use2-az1 for us-east-2a.
func zoneID(zone string) string {
	parts := strings.Split(zone, "-")
	if len(parts) != 3 || len(parts[2]) != 2 || len(parts[1]) == 0 {
		return zone
	}
	return parts[0] + parts[1][:1] + parts[2][:1] + "-az" + strconv.Itoa(int(parts[2][1]-'a')+1)
}

const noSubnet, subnetID = "InvalidSubnetID.NotFound", "subnet ID"

func (s *Service) describeSubnets(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.subnets, "SubnetId", noSubnet, subnetID, func(x *subnet) map[string][]string {
		return map[string][]string{"subnet-id": {x.id}, "vpc-id": {x.vpc}, "availability-zone": {x.zone}, "state": {"available"},
			"cidr-block": {x.cidr.String()}, "cidrBlock": {x.cidr.String()}, "cidr": {x.cidr.String()},
			"map-public-ip-on-launch": {strconv.FormatBool(x.public)}, "owner-id": {x.account}}
	})
	out := struct {
		Subnets []subnetXML `xml:"subnetSet>item"`
		Next    string      `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, x := range found {
		out.Subnets = append(out.Subnets, x.xml())
	}
	return out, err
}

// zones are the availability zones of a region.
func zones(region string) []string { return []string{region + "a", region + "b", region + "c"} }

func (s *Service) describeZones(r *awsserver.Request) (any, error) {
	type zoneXML struct {
		Name   string `xml:"zoneName"`
		ID     string `xml:"zoneId"`
		State  string `xml:"zoneState"`
		Region string `xml:"regionName"`
		Type   string `xml:"zoneType"`
		OptIn  string `xml:"optInStatus"`
	}
	out := struct {
		Zones []zoneXML `xml:"availabilityZoneInfo>item"`
	}{}
	match := filters(r)
	for _, z := range zones(r.Region) {
		if match(map[string][]string{"zone-name": {z}, "state": {"available"}, "region-name": {r.Region}, "zone-type": {"availability-zone"},
			"opt-in-status": {"opt-in-not-required"}}) {
			out.Zones = append(out.Zones, zoneXML{z, zoneID(z), "available", r.Region, "availability-zone", "opt-in-not-required"})
		}
	}
	return out, nil
}

func (s *Service) createSubnet(r *awsserver.Request) (any, error) {
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	cidr, err := parseCIDR(r.Form.Get("CidrBlock"), 16, 28)
	if err != nil {
		return nil, awsserver.Errorf("InvalidSubnet.Range", "The CIDR '%s' is invalid.", r.Form.Get("CidrBlock"))
	}
	if !v.cidr.Contains(cidr.Addr()) || cidr.Bits() < v.cidr.Bits() {
		return nil, awsserver.Errorf("InvalidSubnet.Range", "The CIDR '%s' is invalid.", cidr)
	}
	in := 0
	for _, x := range s.subnets {
		if x.vpc != v.id {
			continue
		}
		in++
		if x.cidr.Overlaps(cidr) {
			return nil, awsserver.Errorf("InvalidSubnet.Conflict", "The CIDR '%s' conflicts with another subnet", cidr)
		}
	}
	if in >= maxSubnets {
		return nil, limit("SubnetLimitExceeded", "subnets")
	}
	zone := r.Form.Get("AvailabilityZone")
	if zone == "" {
		zone = zones(r.Region)[in%3]
	}
	if !slices.Contains(zones(r.Region), zone) {
		return nil, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter availabilityZone is invalid.", zone)
	}
	x := &subnet{owned: s.newOwned(r, "subnet-"), vpc: v.id, zone: zone, cidr: cidr}
	s.subnets[x.id] = x
	return struct {
		Subnet subnetXML `xml:"subnet"`
	}{x.xml()}, nil
}

func (s *Service) modifySubnet(r *awsserver.Request) (any, error) {
	x, err := find(r, s.subnets, r.Form.Get("SubnetId"), noSubnet, subnetID)
	if err != nil {
		return nil, err
	}
	public := r.Form.Get("MapPublicIpOnLaunch.Value")
	if public == "" {
		return nil, awsserver.Errorf("InvalidParameterCombination", "the lab can change mapPublicIpOnLaunch only")
	}
	x.public = public == "true"
	return returned{true}, nil
}

func (s *Service) deleteSubnet(r *awsserver.Request) (any, error) {
	x, err := find(r, s.subnets, r.Form.Get("SubnetId"), noSubnet, subnetID)
	if err != nil {
		return nil, err
	}
	for _, n := range s.nats {
		if n.subnet == x.id && n.state != natDeleted {
			return nil, dependent("subnet", x.id)
		}
	}
	for _, i := range s.instances {
		if i.subnet == x.id && i.state == instanceRunning {
			return nil, dependent("subnet", x.id)
		}
	}
	for _, t := range s.tables {
		for id, sn := range t.associations {
			if sn == x.id {
				delete(t.associations, id)
			}
		}
	}
	delete(s.subnets, x.id)
	return returned{true}, s.connect()
}
