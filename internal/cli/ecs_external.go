package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/workshop"
)

// Names that the guide gives to the network of the external account.
const (
	peeringName    = "istio-multi-account-peering"
	privatePattern = "istio-ecs-private-*"
)

// gatewayPorts are what tasks of another VPC need of the EKS cluster: HBONE, and istiod behind the east-west gateway.
var gatewayPorts = []int32{mesh.HBONEPort, 15012} //nolint:gochecknoglobals // a constant list

// assumeExternal is the name of the policy that lets the controller's role assume the discovery role of another account.
func assumeExternal(account string) string { return "AssumeIstiodExternal-" + account }

// place is where the tasks of a configuration are.
type place struct {
	vpc     string
	subnets []string
	group   string // "" while it is missing
	public  bool   // tasks need an address of the internet to fetch images
}

// findPlace looks up the VPC, subnets and security group of the tasks: the EKS cluster's VPC, or that of an external
// account.
func (a *app) findPlace(ctx context.Context, admin *awsadmin.Client, cfg config.Config) (place, error) {
	p, pattern := place{public: true}, "*Public*"
	if cfg.Home == nil {
		eks, err := eksCluster(ctx, admin, cfg)
		if err != nil {
			return p, err
		}
		p.vpc = eks.VPC
	} else {
		vpc, _, err := admin.FindVPC(ctx, cfg.Home.VPC)
		if err != nil {
			return p, awsError(err)
		}
		if vpc == "" {
			return p, fmt.Errorf("the account has no vpc %s: run isthmus ecs infra with this configuration first", cfg.Home.VPC)
		}
		p.vpc, p.public, pattern = vpc, false, privatePattern
	}
	var err error
	if p.subnets, err = admin.Subnets(ctx, p.vpc, pattern); err != nil {
		return p, awsError(err)
	}
	if p.group, err = admin.SecurityGroup(ctx, p.vpc, securityGroup(cfg)); err != nil {
		return p, awsError(err)
	}
	if p.group == "" || len(p.subnets) == 0 {
		return p, fmt.Errorf("vpc %s has %d subnets %s and security group %s %q: run isthmus ecs infra first",
			p.vpc, len(p.subnets), pattern, securityGroup(cfg), p.group)
	}
	return p, nil
}

// externalVPC is the network of the external account as the guide lays it out: three private subnets and a public one.
func externalVPC(cfg config.Config) (awsadmin.VPC, error) {
	all, err := netip.ParsePrefix(cfg.Home.VPCRange)
	if err != nil {
		return awsadmin.VPC{}, fmt.Errorf("range of vpc %s: %w", cfg.Home.VPC, err)
	}
	v := awsadmin.VPC{Name: cfg.Home.VPC, Range: cfg.Home.VPCRange, Gateway: "istio-ecs-igw", NAT: "istio-ecs-nat",
		Public: "istio-ecs-public-rt", Private: "istio-ecs-private-rt", Tags: madeBy(cfg)}
	base := all.Addr().As4()
	for i, s := range []struct {
		name   string
		zone   string
		public bool
	}{{"istio-ecs-private-a", "a", false}, {"istio-ecs-private-b", "b", false}, {"istio-ecs-private-c", "c", false}, {"istio-ecs-public", "a", true}} {
		addr := base
		addr[2] += byte(i + 1) // a /20 has sixteen of them
		v.Subnets = append(v.Subnets, awsadmin.SubnetSpec{Name: s.name, Range: netip.PrefixFrom(netip.AddrFrom4(addr), 24).String(),
			Zone: cfg.Region + s.zone, Public: s.public})
	}
	return v, nil
}

// externalRoles are the roles of an external account: that of discovery, which the controller's role of the home account
// may assume, and that of the tasks.
func externalRoles(cfg config.Config, account, home string) (roles []awsadmin.Role, controllerARN string) {
	all, _ := infraRoles(cfg, account)
	controllerARN = roleARN(cfg, home, cfg.ControllerRoleName())
	roles = all[1:]
	roles[0].Trust = trust(map[string]any{"AWS": controllerARN}, nil)
	return roles, controllerARN
}

// home opens the account of the EKS cluster of an external configuration.
func (a *app) home(ctx context.Context, cfg config.Config) (admin *awsadmin.Client, account string, err error) {
	if admin, err = a.aws(ctx, cfg.OfHome()); err != nil {
		return nil, "", err
	}
	account, _, err = admin.Account(ctx)
	return admin, account, awsError(err)
}

// externalInfra is infra for an external account: roles in both accounts, the external account's network, and the peering
// with the network of the EKS cluster.
func (a *app) externalInfra(ctx context.Context, admin *awsadmin.Client, cfg config.Config, account string, dryRun bool) (changes []string, err error) {
	home, homeAccount, err := a.home(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if homeAccount == account {
		return nil, fmt.Errorf("profiles %q and %q are both of account %s: an external account is another one than that of the eks cluster", cfg.Profile, cfg.Home.Profile, account)
	}
	eks, err := eksCluster(ctx, home, cfg.OfHome())
	if err != nil {
		return nil, err
	}
	note := func(did []string, err error) error {
		changes = append(changes, did...)
		return awsError(err)
	}
	roles, controllerARN := externalRoles(cfg, account, homeAccount)
	for _, r := range roles {
		_, did, err := admin.EnsureRole(ctx, r, dryRun)
		if err := note(did, err); err != nil {
			return changes, err
		}
	}
	assume := document(statement("Assume", []string{"sts:AssumeRole", "sts:TagSession"}, []string{roleARN(cfg, account, cfg.DiscoveryRole)}, nil))
	put, err := home.EnsureRolePolicy(ctx, cfg.ControllerRoleName(), assumeExternal(account), assume, dryRun)
	if err != nil {
		return changes, awsError(err)
	}
	if put {
		changes = append(changes, "let role "+controllerARN+" assume "+cfg.DiscoveryRole+" of account "+account)
	}
	want, err := externalVPC(cfg)
	if err != nil {
		return changes, err
	}
	vpc, did, err := admin.EnsureVPC(ctx, want, dryRun)
	if err := note(did, err); err != nil {
		return changes, err
	}
	homeRange, err := home.VPCRange(ctx, eks.VPC)
	if err != nil {
		return changes, awsError(err)
	}
	did, err = awsadmin.EnsurePeering(ctx, peeringName, awsadmin.PeerVPC{Account: account, VPC: vpc, Range: want.Range, Client: admin},
		awsadmin.PeerVPC{Account: homeAccount, VPC: eks.VPC, Range: homeRange, Client: home}, madeBy(cfg), dryRun)
	if err := note(did, err); err != nil {
		return changes, err
	}
	if vpc == "" { // only a plan
		return a.eventInfra(ctx, admin, cfg, account, append(changes, "create security group "+securityGroup(cfg), "create log group "+workshop.LogGroup), dryRun)
	}
	if err := note(a.externalGroups(ctx, admin, home, cfg, vpc, eks.VPC, homeRange, dryRun)); err != nil {
		return changes, err
	}
	return a.eventInfra(ctx, admin, cfg, account, changes, dryRun)
}

// externalGroups opens port 15008 between the two networks, and istiod's port at the EKS cluster, and makes the log group.
func (a *app) externalGroups(ctx context.Context, admin, home *awsadmin.Client, cfg config.Config, vpc, homeVPC, homeRange string, dryRun bool) (changes []string, err error) {
	_, created, err := admin.EnsureSecurityGroup(ctx, vpc, securityGroup(cfg), "ECS tasks of the mesh", mesh.HBONEPort, homeRange, dryRun)
	if err != nil {
		return nil, err
	}
	if created {
		changes = append(changes, fmt.Sprintf("create security group %s with port %d open to %s", securityGroup(cfg), mesh.HBONEPort, homeRange))
	}
	for _, open := range []struct {
		admin        *awsadmin.Client
		vpc, pattern string
		ports        []int32
	}{
		{admin, vpc, securityGroup(cfg), gatewayPorts[:1]}, {home, homeVPC, securityGroup(cfg), gatewayPorts[:1]}, {home, homeVPC, "eks-cluster-sg*", gatewayPorts},
	} {
		did, err := open.admin.OpenPorts(ctx, open.vpc, open.pattern, cfg.Home.VPCRange, open.ports, dryRun)
		changes = append(changes, did...)
		if err != nil {
			return changes, err
		}
	}
	closed, err := closeGroup(ctx, admin, cfg, vpc, dryRun)
	changes = append(changes, closed...)
	if err != nil {
		return changes, err
	}
	found, err := admin.FindLogGroup(ctx, workshop.LogGroup)
	if err != nil || found {
		return changes, err
	}
	if !dryRun {
		if _, err := admin.EnsureLogGroup(ctx, workshop.LogGroup); err != nil {
			return changes, err
		}
	}
	return append(changes, "create log group "+workshop.LogGroup), nil
}

// externalNetwork removes what externalInfra made beside roles and log group, last made first.
func (d *destroyer) externalNetwork(ctx context.Context) error {
	account, _, err := d.admin.Account(ctx)
	if err != nil {
		return err
	}
	home, homeAccount, err := (&app{}).home(ctx, d.cfg)
	if err != nil {
		return err
	}
	has, err := home.FindRolePolicy(ctx, d.cfg.ControllerRoleName(), assumeExternal(account))
	if err == nil && has && !d.dryRun {
		err = home.DeleteRolePolicy(ctx, d.cfg.ControllerRoleName(), assumeExternal(account))
	}
	if err != nil {
		return err
	}
	if has {
		d.removed("policy %s of role %s", assumeExternal(account), d.cfg.ControllerRoleName())
	}
	vpc, cidr, err := d.admin.FindVPC(ctx, d.cfg.Home.VPC)
	if err != nil || vpc == "" {
		return err
	}
	eks, err := eksCluster(ctx, home, d.cfg.OfHome())
	if err != nil {
		return err
	}
	found, err := awsadmin.DeletePeering(ctx, awsadmin.PeerVPC{Account: account, VPC: vpc, Range: cidr, Client: d.admin},
		awsadmin.PeerVPC{Account: homeAccount, VPC: eks.VPC, Client: home}, d.dryRun)
	if err != nil {
		return err
	}
	if found {
		d.removed("peering %s with its routes", peeringName)
	}
	if err := d.deleteGroup(ctx, vpc); err != nil {
		return err
	}
	if !d.dryRun {
		if err := d.admin.DeleteVPC(ctx, vpc); err != nil {
			return err
		}
	}
	d.removed("vpc %s with its subnets and gateways", d.cfg.Home.VPC)
	return nil
}

// guideConfig is the configuration of the external account that goes with one of the first account.
func guideConfig(loaded config.Config, environ []string) (config.Config, error) {
	c := config.External()
	c.ClusterName, c.Region, c.OwnerName, c.Network, c.Gateway, c.ProxyImage, c.Events, c.Keep, c.EC2Hosts = loaded.ClusterName, loaded.Region, loaded.OwnerName, loaded.Network, loaded.Gateway, loaded.ProxyImage, loaded.Events, loaded.Keep, loaded.EC2Hosts
	c.FirstCluster = max(loaded.FirstCluster, 1) + loaded.Clusters
	c.Home.Account, c.Home.Profile = loaded.Account, loaded.Profile
	for _, kv := range environ {
		switch name, value, _ := strings.Cut(kv, "="); {
		case value == "":
		case name == "EXTERNAL_ACCOUNT":
			c.Account = value
		case name == "EXTERNAL_ACCOUNT_PROFILE":
			c.Profile = value
		}
	}
	return c, c.Validate()
}
