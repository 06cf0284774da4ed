package cloud

import (
	"net/netip"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/netns"
)

// Network lets VPCs beyond the first be networks of the lab.
func Network(vpc *netns.VPC) ec2.Fabric { return network{vpc} }

type network struct{ vpc *netns.VPC }

func (n network) AddNetwork(p netip.Prefix) error    { return n.vpc.AddNetwork(p) }
func (n network) RemoveNetwork(p netip.Prefix) error { return n.vpc.RemoveNetwork(p) }

func (n network) SetRoutes(routes []ec2.Route) error {
	all := make([]netns.Route, 0, len(routes))
	for _, r := range routes {
		all = append(all, netns.Route(r))
	}
	return n.vpc.SetRoutes(all)
}
