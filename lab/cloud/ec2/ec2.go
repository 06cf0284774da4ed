// Package ec2 is the part of EC2 that the lab has: VPCs with their subnets, gateways, route tables and peerings, and
// security groups, and instances for ECS. The lab begins with one VPC, that of its EKS cluster; further ones become networks of their own, and
// packets pass between two of them only where an active peering and the routes of both sides let them. Internet and NAT
// gateways and the rules of security groups are recorded and shown again, but do nothing to packets.
package ec2

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

// Bounds of what one account may hold; AWS's own quotas where it has one.
const (
	maxVPCs      = 20
	maxSubnets   = 200 // per VPC
	maxTables    = 200 // per VPC
	maxRoutes    = 500 // per route table
	maxGateways  = 50
	maxAddresses = 50
	maxPeerings  = 125
	maxGroups    = 2500
	maxRules     = 120 // per group and direction
)

// Addresses hands out addresses of the VPC; the lab's network implements it.
type Addresses interface {
	Allocate(subnet netip.Prefix) (netip.Addr, error)
	Release(addr netip.Addr)
}

// Route says whether packets from From reach To, both ranges of different VPCs. Of several that match a packet the first
// counts, and none means no.
type Route struct {
	From, To netip.Prefix
	Allow    bool
}

// Fabric is the network that VPCs beyond the first are made of.
type Fabric interface {
	AddNetwork(netip.Prefix) error
	RemoveNetwork(netip.Prefix) error
	SetRoutes([]Route) error
}

// Subnet is a subnet of the lab's first VPC.
type Subnet struct {
	ID, Name, Zone string
	CIDR           netip.Prefix
	Public         bool
}

// Config is what a Service needs.
type Config struct {
	AccountID string    // owner of the first VPC; required
	Region    string    // where the first VPC is; required
	Addresses Addresses // required
	// Fabric makes further VPCs real. Without it they are recorded, and tasks cannot start in them.
	Fabric  Fabric
	VPCID   string // "" means DefaultVPCID
	VPCCIDR netip.Prefix
	Subnets []Subnet // nil means DefaultSubnets(Region)
	// EKSCluster names the security group the EKS cluster would have; "" means none.
	EKSCluster string
}

// DefaultVPCID is the id of the lab's first VPC.
const DefaultVPCID = "vpc-0a1b2c3d4e5f60718"

// DefaultSubnets are the two subnets of the lab's first VPC that tasks may use.
func DefaultSubnets(region string) []Subnet {
	return []Subnet{
		{ID: "subnet-0a000000000000a01", Name: "isthmus-lab-PublicSubnet-a", Zone: region + "a", CIDR: netip.MustParsePrefix("10.0.128.0/20"), Public: true},
		{ID: "subnet-0b000000000000b02", Name: "isthmus-lab-PublicSubnet-b", Zone: region + "b", CIDR: netip.MustParsePrefix("10.0.144.0/20"), Public: true},
	}
}

// Service is EC2. It is safe for concurrent use and is the ecs package's Network.
type Service struct {
	cfg Config

	mu        sync.Mutex // guards everything below
	vpcs      map[string]*vpc
	subnets   map[string]*subnet
	gateways  map[string]*gateway
	addresses map[string]*address
	nats      map[string]*nat
	tables    map[string]*routeTable
	peerings  map[string]*peering
	groups    map[string]*group
	instances map[string]*instance
	machines  Machines // nil means that there are no instances
}

var _ ecs.Network = (*Service)(nil)

// owned is what every resource has.
type owned struct {
	id, account, region string
	tags                map[string]string
}

func (o *owned) common() *owned { return o }

// mine reports whether the resource is one of an account and region.
func (o *owned) mine(account, region string) bool { return o.account == account && o.region == region }

func (o *owned) sees(r *awsserver.Request) bool { return o.mine(r.Caller.AccountID, r.Region) }

type vpc struct {
	owned
	cidr               netip.Prefix
	isDefault          bool
	support, hostnames bool // enableDnsSupport, enableDnsHostnames
}

type subnet struct {
	owned
	vpc    string
	zone   string
	cidr   netip.Prefix
	public bool // mapPublicIpOnLaunch
}

// New returns a Service with the first VPC and its security groups.
func New(cfg Config) (*Service, error) {
	switch {
	case cfg.AccountID == "":
		return nil, errors.New("ec2: Config.AccountID is required")
	case cfg.Region == "":
		return nil, errors.New("ec2: Config.Region is required")
	case cfg.Addresses == nil:
		return nil, errors.New("ec2: Config.Addresses is required")
	}
	if cfg.VPCID == "" {
		cfg.VPCID = DefaultVPCID
	}
	if !cfg.VPCCIDR.IsValid() {
		cfg.VPCCIDR = netip.MustParsePrefix("10.0.0.0/16")
	}
	if cfg.Subnets == nil {
		cfg.Subnets = DefaultSubnets(cfg.Region)
	}
	s := &Service{cfg: cfg, vpcs: map[string]*vpc{}, subnets: map[string]*subnet{}, gateways: map[string]*gateway{}, addresses: map[string]*address{},
		nats: map[string]*nat{}, tables: map[string]*routeTable{}, peerings: map[string]*peering{}, groups: map[string]*group{}, instances: map[string]*instance{}}
	s.furnish()
	return s, nil
}

// furnish makes the first VPC as eksctl leaves it: public subnets that share a route table, and the main route table,
// which everything else in the VPC uses, the pods included.
func (s *Service) furnish() {
	cfg := s.cfg
	tags := map[string]string{"Name": "isthmus-lab/VPC"}
	if cfg.EKSCluster != "" {
		tags["alpha.eksctl.io/cluster-name"] = cfg.EKSCluster
	}
	v := &vpc{owned: s.owned("", cfg.AccountID, cfg.Region), cidr: cfg.VPCCIDR, isDefault: true, support: true, hostnames: true}
	v.id, v.tags = cfg.VPCID, tags
	s.vpcs[v.id] = v
	igw := &gateway{owned: s.owned("igw-", v.account, v.region), vpc: v.id}
	igw.tags["Name"] = "isthmus-lab/InternetGateway"
	s.gateways[igw.id] = igw
	s.addTable(v, true).tags["Name"] = "isthmus-lab/PrivateRouteTable"
	public := s.addTable(v, false)
	public.tags["Name"] = "isthmus-lab/PublicRouteTable"
	public.routes = append(public.routes, route{destination: netip.MustParsePrefix("0.0.0.0/0"), target: igw.id})
	for _, sn := range cfg.Subnets {
		x := &subnet{owned: s.owned("", v.account, v.region), vpc: v.id, zone: sn.Zone, cidr: sn.CIDR, public: sn.Public}
		x.id, x.tags = sn.ID, map[string]string{"Name": sn.Name, "kubernetes.io/role/elb": "1"}
		s.subnets[x.id] = x
		public.associations[s.newID("rtbassoc-")] = x.id
	}
	s.addGroup(v, "default", "default VPC security group")
	if cfg.EKSCluster != "" {
		g := s.addGroup(v, "eks-cluster-sg-"+cfg.EKSCluster+"-1", "EKS created security group")
		g.tags["kubernetes.io/cluster/"+cfg.EKSCluster] = "owned"
	}
}

// owned makes the common part of a new resource.
func (s *Service) owned(prefix, account, region string) owned {
	return owned{id: s.newID(prefix), account: account, region: region, tags: map[string]string{}}
}

func (s *Service) newID(prefix string) string { return prefix + "0" + hexID(8) }

// Subnet finds a subnet of an account.
func (s *Service) Subnet(account, region, id string) (ecs.Subnet, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sn := s.subnets[id]
	if sn == nil || !sn.mine(account, region) {
		return ecs.Subnet{}, false
	}
	return ecs.Subnet{ID: sn.id, Zone: sn.zone, CIDR: sn.cidr}, true
}

// SecurityGroupExists reports whether an account can use a security group.
func (s *Service) SecurityGroupExists(account, region, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[id]
	return g != nil && g.mine(account, region)
}

// Allocate takes an address of a subnet.
func (s *Service) Allocate(subnet netip.Prefix) (netip.Addr, error) {
	a, err := s.cfg.Addresses.Allocate(subnet)
	if err != nil {
		return a, fmt.Errorf("take an address of %s: %w", subnet, err)
	}
	return a, nil
}

// Release returns an address.
func (s *Service) Release(addr netip.Addr) { s.cfg.Addresses.Release(addr) }

// EKSSecurityGroup returns the id of the EKS cluster's security group, "" when there is none.
func (s *Service) EKSSecurityGroup() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		if g.name == "eks-cluster-sg-"+s.cfg.EKSCluster+"-1" {
			return g.id
		}
	}
	return ""
}

func hexID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}
