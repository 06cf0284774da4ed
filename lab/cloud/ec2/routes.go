package ec2

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// routeTable is a route table of a VPC. The route within the VPC is not in routes.
type routeTable struct {
	owned
	vpc          string
	main         bool
	routes       []route
	associations map[string]string // association id to subnet
	mainID       string            // association id of the main table
}

// route sends a destination to a gateway or a peering.
type route struct {
	destination netip.Prefix
	target      string
}

const noTable, tableID = "InvalidRouteTableID.NotFound", "routeTable ID"

func (s *Service) addTable(v *vpc, main bool) *routeTable {
	t := &routeTable{owned: s.owned("rtb-", v.account, v.region), vpc: v.id, main: main, associations: map[string]string{}}
	if main {
		t.mainID = s.newID("rtbassoc-")
	}
	s.tables[t.id] = t
	return t
}

type routeXML struct {
	Destination string `xml:"destinationCidrBlock"`
	Gateway     string `xml:"gatewayId,omitempty"`
	NAT         string `xml:"natGatewayId,omitempty"`
	Peering     string `xml:"vpcPeeringConnectionId,omitempty"`
	State       string `xml:"state"`
	Origin      string `xml:"origin"`
}

type associationXML struct {
	ID      string `xml:"routeTableAssociationId"`
	TableID string `xml:"routeTableId"`
	Subnet  string `xml:"subnetId,omitempty"`
	Main    bool   `xml:"main"`
	State   string `xml:"associationState>state"`
}

type tableXML struct {
	ID           string           `xml:"routeTableId"`
	VPCID        string           `xml:"vpcId"`
	OwnerID      string           `xml:"ownerId"`
	Routes       []routeXML       `xml:"routeSet>item"`
	Associations []associationXML `xml:"associationSet>item"`
	Tags         []tagXML         `xml:"tagSet>item"`
}

func (s *Service) tableXML(t *routeTable) tableXML {
	x := tableXML{ID: t.id, VPCID: t.vpc, OwnerID: t.account, Tags: tagSet(t.tags)}
	if v := s.vpcs[t.vpc]; v != nil {
		x.Routes = []routeXML{{Destination: v.cidr.String(), Gateway: "local", State: "active", Origin: "CreateRouteTable"}}
	}
	for _, ro := range t.routes {
		out := routeXML{Destination: ro.destination.String(), State: "active", Origin: "CreateRoute"}
		switch {
		case strings.HasPrefix(ro.target, "igw-"):
			out.Gateway = ro.target
			if g := s.gateways[ro.target]; g == nil || g.vpc != t.vpc {
				out.State = "blackhole"
			}
		case strings.HasPrefix(ro.target, "nat-"):
			out.NAT = ro.target
			if n := s.nats[ro.target]; n == nil || n.state != natAvailable {
				out.State = "blackhole"
			}
		default:
			out.Peering = ro.target
			if p := s.peerings[ro.target]; p == nil || p.status != peeringActive {
				out.State = "blackhole"
			}
		}
		x.Routes = append(x.Routes, out)
	}
	if t.main {
		x.Associations = append(x.Associations, associationXML{ID: t.mainID, TableID: t.id, Main: true, State: "associated"})
	}
	for _, id := range slices.Sorted(maps.Keys(t.associations)) {
		x.Associations = append(x.Associations, associationXML{ID: id, TableID: t.id, Subnet: t.associations[id], State: "associated"})
	}
	return x
}

func (s *Service) describeTables(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.tables, "RouteTableId", noTable, tableID, func(t *routeTable) map[string][]string {
		attrs := map[string][]string{"route-table-id": {t.id}, "vpc-id": {t.vpc}, "owner-id": {t.account}, "association.main": {"false"}}
		if t.main {
			attrs["association.main"] = []string{"true"}
		}
		for _, sn := range t.associations {
			attrs["association.subnet-id"] = append(attrs["association.subnet-id"], sn)
		}
		for _, x := range s.tableXML(t).Routes {
			attrs["route.destination-cidr-block"] = append(attrs["route.destination-cidr-block"], x.Destination)
			attrs["route.state"] = append(attrs["route.state"], x.State)
			if x.Peering != "" {
				attrs["route.vpc-peering-connection-id"] = append(attrs["route.vpc-peering-connection-id"], x.Peering)
			}
		}
		return attrs
	})
	out := struct {
		Tables []tableXML `xml:"routeTableSet>item"`
		Next   string     `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, t := range found {
		out.Tables = append(out.Tables, s.tableXML(t))
	}
	return out, err
}

func (s *Service) createTable(r *awsserver.Request) (any, error) {
	v, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	in := 0
	for _, t := range s.tables {
		if t.vpc == v.id {
			in++
		}
	}
	if in >= maxTables {
		return nil, limit("RouteTableLimitExceeded", "route tables")
	}
	t := s.addTable(v, false)
	t.tags = s.newOwned(r, "").tags
	return struct {
		Table tableXML `xml:"routeTable"`
	}{s.tableXML(t)}, nil
}

func (s *Service) table(r *awsserver.Request) (*routeTable, error) {
	return find(r, s.tables, r.Form.Get("RouteTableId"), noTable, tableID)
}

func (s *Service) deleteTable(r *awsserver.Request) (any, error) {
	t, err := s.table(r)
	if err != nil {
		return nil, err
	}
	if t.main || len(t.associations) > 0 {
		return nil, dependent("routeTable", t.id)
	}
	delete(s.tables, t.id)
	return returned{true}, nil
}

func (s *Service) associateTable(r *awsserver.Request) (any, error) {
	t, err := s.table(r)
	if err != nil {
		return nil, err
	}
	sn, err := find(r, s.subnets, r.Form.Get("SubnetId"), noSubnet, subnetID)
	if err != nil {
		return nil, err
	}
	if sn.vpc != t.vpc {
		return nil, awsserver.Errorf("InvalidParameterValue", "Route table %s and subnet %s belong to different networks", t.id, sn.id)
	}
	for _, other := range s.tables {
		for id, x := range other.associations {
			if x == sn.id && other == t {
				return association(id), nil
			}
			if x == sn.id {
				return nil, awsserver.Errorf("Resource.AlreadyAssociated", "the specified association for route table %s conflicts with an existing association", t.id)
			}
		}
	}
	id := s.newID("rtbassoc-")
	t.associations[id] = sn.id
	return association(id), s.connect()
}

func association(id string) any {
	return struct {
		ID    string `xml:"associationId"`
		State string `xml:"associationState>state"`
	}{id, "associated"}
}

func (s *Service) disassociateTable(r *awsserver.Request) (any, error) {
	id := r.Form.Get("AssociationId")
	for _, t := range s.tables {
		if _, ok := t.associations[id]; ok && t.mine(r.Caller.AccountID, r.Region) {
			delete(t.associations, id)
			return returned{true}, s.connect()
		}
	}
	return nil, awsserver.Errorf("InvalidAssociationID.NotFound", "The association ID '%s' does not exist", id)
}

// routeCall reads the table and the destination of a call about one route.
func (s *Service) routeCall(r *awsserver.Request) (t *routeTable, destination netip.Prefix, at int, err error) {
	if t, err = s.table(r); err != nil {
		return nil, destination, 0, err
	}
	if destination, err = netip.ParsePrefix(r.Form.Get("DestinationCidrBlock")); err != nil {
		return nil, destination, 0, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter destinationCidrBlock is invalid.", r.Form.Get("DestinationCidrBlock"))
	}
	destination = destination.Masked()
	return t, destination, slices.IndexFunc(t.routes, func(x route) bool { return x.destination == destination }), nil
}

// target reads where a route of table t leads.
func (s *Service) target(r *awsserver.Request, t *routeTable) (string, error) {
	if id := r.Form.Get("VpcPeeringConnectionId"); id != "" {
		p := s.peerings[id]
		if p == nil || p.requester.vpc != t.vpc && p.accepter.vpc != t.vpc {
			return "", awsserver.Errorf("InvalidVpcPeeringConnectionID.NotFound", "The vpcPeeringConnection ID '%s' does not exist", id)
		}
		return id, nil
	}
	if id := r.Form.Get("GatewayId"); id != "" {
		_, err := find(r, s.gateways, id, noGateway, gatewayID)
		return id, err
	}
	if id := r.Form.Get("NatGatewayId"); id != "" {
		_, err := find(r, s.nats, id, noNAT, natID)
		return id, err
	}
	return "", awsserver.Errorf("MissingParameter", "The request must contain a gateway, a NAT gateway or a VPC peering connection")
}

func (s *Service) createRoute(r *awsserver.Request) (any, error) {
	t, destination, at, err := s.routeCall(r)
	if err != nil {
		return nil, err
	}
	target, err := s.target(r, t)
	if err != nil {
		return nil, err
	}
	if v := s.vpcs[t.vpc]; v != nil && v.cidr.Contains(destination.Addr()) && destination.Bits() >= v.cidr.Bits() {
		return nil, awsserver.Errorf("InvalidParameterValue", "The destination CIDR block %s is equal to or more specific than one of this VPC's CIDR blocks.", destination)
	}
	switch {
	case at >= 0 && t.routes[at].target == target:
		return returned{true}, nil
	case at >= 0:
		return nil, awsserver.Errorf("RouteAlreadyExists", "The route identified by %s already exists.", destination)
	case len(t.routes) >= maxRoutes:
		return nil, limit("RouteLimitExceeded", "routes")
	}
	t.routes = append(t.routes, route{destination, target})
	return returned{true}, s.connect()
}

func (s *Service) replaceRoute(r *awsserver.Request) (any, error) {
	t, destination, at, err := s.routeCall(r)
	if err != nil {
		return nil, err
	}
	target, err := s.target(r, t)
	if err != nil {
		return nil, err
	}
	if at < 0 {
		return nil, awsserver.Errorf("InvalidParameterValue", "There is no route defined for '%s' in the route table.", destination)
	}
	t.routes[at].target = target
	return returned{true}, s.connect()
}

func (s *Service) deleteRoute(r *awsserver.Request) (any, error) {
	t, destination, at, err := s.routeCall(r)
	if err != nil {
		return nil, err
	}
	if at < 0 {
		return nil, awsserver.Errorf("InvalidRoute.NotFound", "no route with destination-cidr-block %s in route table %s", destination, t.id)
	}
	t.routes = slices.Delete(t.routes, at, at+1)
	return returned{true}, s.connect()
}
