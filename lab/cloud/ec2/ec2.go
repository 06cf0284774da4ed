// Package ec2 is the small part of EC2 the lab has: one VPC that every account sees as its own, as if it were shared
// with it, and security groups. Rules of security groups are recorded and shown again, but not enforced on packets.
package ec2

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

const (
	maxGroups = 2500
	maxRules  = 120 // per group and direction
)

// Addresses hands out addresses of the VPC; the lab's network implements it.
type Addresses interface {
	Allocate(subnet netip.Prefix) (netip.Addr, error)
	Release(addr netip.Addr)
}

// Subnet is a subnet of the VPC.
type Subnet struct {
	ID, Name, Zone string
	CIDR           netip.Prefix
	Public         bool
}

// Config is what a Service needs.
type Config struct {
	AccountID string    // owner of the VPC; required
	Region    string    // where the VPC is; other regions are empty; required
	Addresses Addresses // required
	VPCID     string    // "" means vpc-0isthmus's fixed id
	VPCCIDR   netip.Prefix
	Subnets   []Subnet // nil means DefaultSubnets(Region)
	// EKSCluster names the security group the EKS cluster would have; "" means none.
	EKSCluster string
}

// DefaultVPCID is the id of the lab's VPC.
const DefaultVPCID = "vpc-0a1b2c3d4e5f60718"

// DefaultSubnets are the two subnets of the lab's VPC that tasks may use.
func DefaultSubnets(region string) []Subnet {
	return []Subnet{
		{ID: "subnet-0a000000000000a01", Name: "isthmus-lab-PublicSubnet-a", Zone: region + "a", CIDR: netip.MustParsePrefix("10.0.128.0/20"), Public: true},
		{ID: "subnet-0b000000000000b02", Name: "isthmus-lab-PublicSubnet-b", Zone: region + "b", CIDR: netip.MustParsePrefix("10.0.144.0/20"), Public: true},
	}
}

// Service is EC2. It is safe for concurrent use and is the ecs package's Network.
type Service struct {
	cfg Config

	mu     sync.Mutex
	groups map[string]*group // by id; guarded by mu
}

var _ ecs.Network = (*Service)(nil)

// group is a security group.
type group struct {
	id, name, description, account, region string
	tags                                   map[string]string
	ingress, egress                        []rule
}

// rule is one permission of a security group: one protocol, port range and peer.
type rule struct {
	id          string
	protocol    string
	from, to    string // empty for protocol -1
	cidr        string
	cidr6       string
	peerGroup   string
	description string
}

// New returns a Service with the VPC, its default security group in every account that asks, and the EKS one.
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
	s := &Service{cfg: cfg, groups: map[string]*group{}}
	s.addGroup(cfg.AccountID, cfg.Region, "default", "default VPC security group")
	if cfg.EKSCluster != "" {
		g := s.addGroup(cfg.AccountID, cfg.Region, "eks-cluster-sg-"+cfg.EKSCluster+"-1", "EKS created security group")
		g.tags["kubernetes.io/cluster/"+cfg.EKSCluster] = "owned"
	}
	return s, nil
}

func (s *Service) addGroup(account, region, name, description string) *group {
	g := &group{id: "sg-0" + hexID(8), name: name, description: description, account: account, region: region, tags: map[string]string{}}
	g.egress = []rule{{id: "sgr-0" + hexID(8), protocol: "-1", cidr: "0.0.0.0/0"}}
	s.groups[g.id] = g
	return g
}

// Subnet finds a subnet; every account of the lab may use them.
func (s *Service) Subnet(_, region, id string) (ecs.Subnet, bool) {
	if region != s.cfg.Region {
		return ecs.Subnet{}, false
	}
	i := slices.IndexFunc(s.cfg.Subnets, func(sn Subnet) bool { return sn.ID == id })
	if i < 0 {
		return ecs.Subnet{}, false
	}
	sn := s.cfg.Subnets[i]
	return ecs.Subnet{ID: sn.ID, Zone: sn.Zone, CIDR: sn.CIDR}, true
}

// SecurityGroupExists reports whether an account can use a security group.
func (s *Service) SecurityGroupExists(account, region, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[id]
	return g != nil && g.account == account && g.region == region
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
