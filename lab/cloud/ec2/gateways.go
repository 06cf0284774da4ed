package ec2

import (
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// gateway is an internet gateway.
type gateway struct {
	owned
	vpc string // "" while it is attached to none
}

// address is an elastic IP address.
type address struct {
	owned
	ip  string
	nat string // the NAT gateway that has it; "" while none does
}

// nat is a NAT gateway.
type nat struct {
	owned
	vpc, subnet, address string
	state                string
	created              time.Time
}

// The states of a NAT gateway that the lab goes through. It is made and unmade at once, where AWS takes minutes.
const (
	natAvailable = "available"
	natDeleted   = "deleted"
)

const noGateway, gatewayID = "InvalidInternetGatewayID.NotFound", "internetGateway ID"

type attachmentXML struct {
	VPCID string `xml:"vpcId"`
	State string `xml:"state"`
}

type gatewayXML struct {
	ID          string          `xml:"internetGatewayId"`
	OwnerID     string          `xml:"ownerId"`
	Attachments []attachmentXML `xml:"attachmentSet>item"`
	Tags        []tagXML        `xml:"tagSet>item"`
}

func (g *gateway) xml() gatewayXML {
	x := gatewayXML{ID: g.id, OwnerID: g.account, Tags: tagSet(g.tags)}
	if g.vpc != "" {
		x.Attachments = []attachmentXML{{g.vpc, "available"}}
	}
	return x
}

func (s *Service) describeGateways(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.gateways, "InternetGatewayId", noGateway, gatewayID, func(g *gateway) map[string][]string {
		attrs := map[string][]string{"internet-gateway-id": {g.id}, "owner-id": {g.account}}
		if g.vpc != "" {
			attrs["attachment.vpc-id"], attrs["attachment.state"] = []string{g.vpc}, []string{"available"}
		}
		return attrs
	})
	out := struct {
		Gateways []gatewayXML `xml:"internetGatewaySet>item"`
		Next     string       `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, g := range found {
		out.Gateways = append(out.Gateways, g.xml())
	}
	return out, err
}

func (s *Service) createGateway(r *awsserver.Request) (any, error) {
	if count(r, s.gateways) >= maxGateways {
		return nil, limit("InternetGatewayLimitExceeded", "internet gateways")
	}
	g := &gateway{owned: s.newOwned(r, "igw-")}
	s.gateways[g.id] = g
	return struct {
		Gateway gatewayXML `xml:"internetGateway"`
	}{g.xml()}, nil
}

func (s *Service) attachGateway(r *awsserver.Request) (any, error) {
	g, err := find(r, s.gateways, r.Form.Get("InternetGatewayId"), noGateway, gatewayID)
	if err != nil {
		return nil, err
	}
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	for _, other := range s.gateways {
		if other.vpc == v.id || other == g && g.vpc != "" {
			return nil, awsserver.Errorf("Resource.AlreadyAssociated", "resource %s is already attached to network %s", other.id, other.vpc)
		}
	}
	g.vpc = v.id
	return returned{true}, nil
}

func (s *Service) detachGateway(r *awsserver.Request) (any, error) {
	g, err := find(r, s.gateways, r.Form.Get("InternetGatewayId"), noGateway, gatewayID)
	if err != nil {
		return nil, err
	}
	if g.vpc == "" || g.vpc != r.Form.Get("VpcId") {
		return nil, awsserver.Errorf("Gateway.NotAttached", "resource %s is not attached to network %s", g.id, r.Form.Get("VpcId"))
	}
	g.vpc = ""
	return returned{true}, nil
}

func (s *Service) deleteGateway(r *awsserver.Request) (any, error) {
	g, err := find(r, s.gateways, r.Form.Get("InternetGatewayId"), noGateway, gatewayID)
	if err != nil {
		return nil, err
	}
	if g.vpc != "" {
		return nil, dependent("internetGateway", g.id)
	}
	delete(s.gateways, g.id)
	return returned{true}, nil
}

const noAddress, addressID = "InvalidAllocationID.NotFound", "allocation ID"

type addressXML struct {
	IP     string   `xml:"publicIp"`
	ID     string   `xml:"allocationId"`
	Domain string   `xml:"domain"`
	Tags   []tagXML `xml:"tagSet>item"`
}

func (s *Service) describeAddresses(r *awsserver.Request) (any, error) {
	found, _, err := selected(r, s.addresses, "AllocationId", noAddress, addressID, func(a *address) map[string][]string {
		return map[string][]string{"allocation-id": {a.id}, "public-ip": {a.ip}, "domain": {"vpc"}}
	})
	out := struct {
		Addresses []addressXML `xml:"addressesSet>item"`
	}{}
	for _, a := range found {
		out.Addresses = append(out.Addresses, addressXML{a.ip, a.id, "vpc", tagSet(a.tags)})
	}
	return out, err
}

func (s *Service) allocateAddress(r *awsserver.Request) (any, error) {
	if count(r, s.addresses) >= maxAddresses {
		return nil, limit("AddressLimitExceeded", "addresses")
	}
	a := &address{owned: s.newOwned(r, "eipalloc-")}
	// 203.0.113.0/24 is for documentation: nobody takes it for a real one.
	for n := 1; a.ip == "" && n < 255; n++ {
		ip := fmt.Sprintf("203.0.113.%d", n)
		taken := false
		for _, other := range s.addresses {
			taken = taken || other.ip == ip
		}
		if !taken {
			a.ip = ip
		}
	}
	if a.ip == "" {
		return nil, awsserver.Errorf("InsufficientAddressCapacity", "There are not enough free addresses.")
	}
	s.addresses[a.id] = a
	return addressXML{a.ip, a.id, "vpc", tagSet(a.tags)}, nil
}

func (s *Service) releaseAddress(r *awsserver.Request) (any, error) {
	a, err := find(r, s.addresses, r.Form.Get("AllocationId"), noAddress, addressID)
	if err != nil {
		return nil, err
	}
	if a.nat != "" {
		return nil, awsserver.Errorf("InvalidIPAddress.InUse", "Address with allocation id %s cannot be released because it is in use.", a.id)
	}
	delete(s.addresses, a.id)
	return returned{true}, nil
}

const noNAT, natID = "NatGatewayNotFound", "NAT gateway"

type natAddressXML struct {
	AllocationID string `xml:"allocationId"`
	PublicIP     string `xml:"publicIp"`
	Status       string `xml:"status"`
}

type natXML struct {
	ID        string          `xml:"natGatewayId"`
	VPCID     string          `xml:"vpcId"`
	SubnetID  string          `xml:"subnetId"`
	State     string          `xml:"state"`
	Type      string          `xml:"connectivityType"`
	Created   string          `xml:"createTime"`
	Addresses []natAddressXML `xml:"natGatewayAddressSet>item"`
	Tags      []tagXML        `xml:"tagSet>item"`
}

func (s *Service) natXML(n *nat) natXML {
	x := natXML{ID: n.id, VPCID: n.vpc, SubnetID: n.subnet, State: n.state, Type: "public", Created: n.created.UTC().Format(time.RFC3339), Tags: tagSet(n.tags)}
	if a := s.addresses[n.address]; a != nil && n.state == natAvailable {
		x.Addresses = []natAddressXML{{a.id, a.ip, "succeeded"}}
	}
	return x
}

func (s *Service) describeNATs(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.nats, "NatGatewayId", noNAT, natID, func(n *nat) map[string][]string {
		return map[string][]string{"nat-gateway-id": {n.id}, "vpc-id": {n.vpc}, "subnet-id": {n.subnet}, "state": {n.state}}
	})
	out := struct {
		NATs []natXML `xml:"natGatewaySet>item"`
		Next string   `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, n := range found {
		out.NATs = append(out.NATs, s.natXML(n))
	}
	return out, err
}

func (s *Service) createNAT(r *awsserver.Request) (any, error) {
	sn, err := find(r, s.subnets, r.Form.Get("SubnetId"), noSubnet, subnetID)
	if err != nil {
		return nil, err
	}
	a, err := find(r, s.addresses, r.Form.Get("AllocationId"), noAddress, addressID)
	if err != nil {
		return nil, err
	}
	if a.nat != "" {
		return nil, awsserver.Errorf("Resource.AlreadyAssociated", "Elastic IP address %s is already associated", a.id)
	}
	if !slices.ContainsFunc(s.gatewayList(), func(g *gateway) bool { return g.vpc == sn.vpc }) {
		return nil, awsserver.Errorf("Gateway.NotAttached", "Network %s has no Internet gateway attached", sn.vpc)
	}
	n := &nat{owned: s.newOwned(r, "nat-"), vpc: sn.vpc, subnet: sn.id, address: a.id, state: natAvailable, created: time.Now()}
	a.nat = n.id
	s.nats[n.id] = n
	return struct {
		NAT natXML `xml:"natGateway"`
	}{s.natXML(n)}, nil
}

func (s *Service) gatewayList() (all []*gateway) {
	for _, g := range s.gateways {
		all = append(all, g)
	}
	return all
}

func (s *Service) deleteNAT(r *awsserver.Request) (any, error) {
	n, err := find(r, s.nats, r.Form.Get("NatGatewayId"), noNAT, natID)
	if err != nil {
		return nil, err
	}
	n.state = natDeleted // it stays visible, as in AWS
	if a := s.addresses[n.address]; a != nil {
		a.nat = ""
	}
	return struct {
		ID string `xml:"natGatewayId"`
	}{n.id}, nil
}
