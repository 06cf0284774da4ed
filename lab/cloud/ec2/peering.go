package ec2

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// peering connects two VPCs, perhaps of two accounts. It is owned by the requester, and both sides see it.
type peering struct {
	owned
	requester, accepter peer
	status              string
}

// peer is one side of a peering.
type peer struct {
	account, region, vpc string
	cidr                 netip.Prefix
}

// The states of a peering that the lab goes through.
const (
	peeringPending  = "pending-acceptance"
	peeringActive   = "active"
	peeringRejected = "rejected"
	peeringDeleted  = "deleted"
)

type peerXML struct {
	OwnerID string `xml:"ownerId"`
	VPCID   string `xml:"vpcId"`
	CIDR    string `xml:"cidrBlock,omitempty"`
	Region  string `xml:"region"`
}

type peeringXML struct {
	ID        string   `xml:"vpcPeeringConnectionId"`
	Requester peerXML  `xml:"requesterVpcInfo"`
	Accepter  peerXML  `xml:"accepterVpcInfo"`
	Code      string   `xml:"status>code"`
	Message   string   `xml:"status>message"`
	Tags      []tagXML `xml:"tagSet>item"`
}

func (p *peering) xml() peeringXML {
	side := func(x peer) peerXML { return peerXML{x.account, x.vpc, x.cidr.String(), x.region} }
	message := map[string]string{peeringPending: "Pending Acceptance by " + p.accepter.account, peeringActive: "Active",
		peeringRejected: "Rejected by " + p.accepter.account, peeringDeleted: "Deleted"}[p.status]
	return peeringXML{ID: p.id, Requester: side(p.requester), Accepter: side(p.accepter), Code: p.status, Message: message, Tags: tagSet(p.tags)}
}

// sees reports whether a caller is one of the two sides.
func (p *peering) sees(r *awsserver.Request) bool {
	return p.requester.account == r.Caller.AccountID && p.requester.region == r.Region ||
		p.accepter.account == r.Caller.AccountID && p.accepter.region == r.Region
}

const noPeering, peeringID = "InvalidVpcPeeringConnectionID.NotFound", "vpcPeeringConnection ID"

func (s *Service) peering(r *awsserver.Request) (*peering, error) {
	return find(r, s.peerings, r.Form.Get("VpcPeeringConnectionId"), noPeering, peeringID)
}

func (s *Service) describePeerings(r *awsserver.Request) (any, error) {
	found, next, err := selected(r, s.peerings, "VpcPeeringConnectionId", noPeering, peeringID, func(p *peering) map[string][]string {
		return map[string][]string{"vpc-peering-connection-id": {p.id}, "status-code": {p.status},
			"requester-vpc-info.vpc-id": {p.requester.vpc}, "requester-vpc-info.owner-id": {p.requester.account}, "requester-vpc-info.cidr-block": {p.requester.cidr.String()},
			"accepter-vpc-info.vpc-id": {p.accepter.vpc}, "accepter-vpc-info.owner-id": {p.accepter.account}, "accepter-vpc-info.cidr-block": {p.accepter.cidr.String()}}
	})
	out := struct {
		Peerings []peeringXML `xml:"vpcPeeringConnectionSet>item"`
		Next     string       `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, p := range found {
		out.Peerings = append(out.Peerings, p.xml())
	}
	return out, err
}

type onePeering struct {
	Peering peeringXML `xml:"vpcPeeringConnection"`
}

func (s *Service) createPeering(r *awsserver.Request) (any, error) {
	mine, err := s.vpc(r, r.Form.Get("VpcId"))
	if err != nil {
		return nil, err
	}
	account, region := cmp.Or(r.Form.Get("PeerOwnerId"), r.Caller.AccountID), cmp.Or(r.Form.Get("PeerRegion"), r.Region)
	other := s.vpcs[r.Form.Get("PeerVpcId")]
	if other == nil || !other.mine(account, region) {
		// AWS takes such a request and lets it fail later; here it fails at once, with the reason.
		return nil, awsserver.Errorf(noVPC, "The vpc ID '%s' of account %s does not exist", r.Form.Get("PeerVpcId"), account)
	}
	if mine.cidr.Overlaps(other.cidr) {
		return nil, awsserver.Errorf("InvalidVpcPeeringConnectionState.Overlap", "The VPCs' ranges %s and %s overlap", mine.cidr, other.cidr)
	}
	if count(r, s.peerings) >= maxPeerings {
		return nil, limit("VpcPeeringConnectionLimitExceeded", "peering connections")
	}
	for _, p := range s.peerings {
		same := p.requester.vpc == mine.id && p.accepter.vpc == other.id || p.requester.vpc == other.id && p.accepter.vpc == mine.id
		if same && p.status == peeringActive {
			return nil, awsserver.Errorf("VpcPeeringConnectionAlreadyExists", "The VPCs are peered already by %s", p.id)
		}
		if same && p.status == peeringPending && p.requester.vpc == mine.id {
			return onePeering{p.xml()}, nil
		}
	}
	side := func(v *vpc) peer { return peer{v.account, v.region, v.id, v.cidr} }
	p := &peering{owned: s.newOwned(r, "pcx-"), requester: side(mine), accepter: side(other), status: peeringPending}
	s.peerings[p.id] = p
	return onePeering{p.xml()}, nil
}

// acceptPeering and rejectPeering are for the accepter alone.
func (s *Service) acceptPeering(r *awsserver.Request) (any, error) {
	p, err := s.answer(r, peeringActive)
	if err != nil {
		return nil, err
	}
	return onePeering{p.xml()}, s.connect()
}

func (s *Service) rejectPeering(r *awsserver.Request) (any, error) {
	_, err := s.answer(r, peeringRejected)
	return returned{true}, err
}

func (s *Service) answer(r *awsserver.Request, status string) (*peering, error) {
	p, err := s.peering(r)
	if err != nil {
		return nil, err
	}
	if p.accepter.account != r.Caller.AccountID || p.accepter.region != r.Region {
		return nil, awsserver.Errorf("OperationNotPermitted", "User %s cannot accept or reject peering %s", r.Caller.AccountID, p.id)
	}
	if p.status != peeringPending && p.status != status {
		return nil, awsserver.Errorf("InvalidStateTransition", "Invalid state transition for %s, attempted to transition from %s to %s", p.id, p.status, status)
	}
	p.status = status
	return p, nil
}

func (s *Service) deletePeering(r *awsserver.Request) (any, error) {
	p, err := s.peering(r)
	if err != nil {
		return nil, err
	}
	p.status = peeringDeleted // it stays visible, as in AWS
	return returned{true}, s.connect()
}

// connect lets packets pass between VPCs as peerings and route tables say.
func (s *Service) connect() error {
	if s.cfg.Fabric == nil {
		return nil
	}
	if err := s.cfg.Fabric.SetRoutes(s.crossings()); err != nil {
		return fmt.Errorf("change routes between networks: %w", err)
	}
	return nil
}

// crossings are the ways between VPCs. A subnet with a table of its own comes before the rest of its VPC, which uses the
// main table, and is shut off from what only that one leads to.
func (s *Service) crossings() []Route {
	var own, rest []Route
	for _, id := range slices.Sorted(maps.Keys(s.tables)) {
		t := s.tables[id]
		v := s.vpcs[t.vpc]
		if v == nil {
			continue
		}
		if t.main {
			rest = append(rest, s.waysOut(t, v.cidr)...)
		}
		for _, assoc := range slices.Sorted(maps.Keys(t.associations)) {
			sn := s.subnets[t.associations[assoc]]
			if sn == nil {
				continue
			}
			own = append(own, s.waysOut(t, sn.cidr)...)
			for _, other := range slices.Sorted(maps.Keys(s.vpcs)) {
				if other != v.id {
					own = append(own, Route{From: sn.cidr, To: s.vpcs[other].cidr})
				}
			}
		}
	}
	return append(own, rest...)
}

// waysOut are the ways that a route table opens for packets from a range of its VPC.
func (s *Service) waysOut(t *routeTable, from netip.Prefix) []Route {
	var out []Route
	for _, ro := range t.routes {
		p := s.peerings[ro.target]
		if p == nil || p.status != peeringActive {
			continue
		}
		to := p.accepter.cidr
		if p.accepter.vpc == t.vpc {
			to = p.requester.cidr
		}
		if !to.Overlaps(ro.destination) {
			continue
		}
		if ro.destination.Bits() > to.Bits() {
			to = ro.destination
		}
		out = append(out, Route{From: from, To: to, Allow: true})
	}
	return out
}
