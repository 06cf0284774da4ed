package ec2

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// API returns EC2 for registration with the front.
func (s *Service) API() awsserver.Service {
	ops := map[string]func(r *awsserver.Request) (any, error){
		"DescribeVpcs": s.describeVPCs, "DescribeSubnets": s.describeSubnets, "DescribeSecurityGroups": s.describeGroups,
		"CreateSecurityGroup": s.createGroup, "DeleteSecurityGroup": s.deleteGroup,
		"AuthorizeSecurityGroupIngress": s.changeRules, "AuthorizeSecurityGroupEgress": s.changeRules,
		"RevokeSecurityGroupIngress": s.changeRules, "RevokeSecurityGroupEgress": s.changeRules,
		"DescribeVpcAttribute": s.describeVPCAttribute, "CreateTags": s.createTags,
	}
	svc := awsserver.Service{Name: "ec2", Protocol: awsserver.EC2Query, Version: "2016-11-15",
		Namespace: "http://ec2.amazonaws.com/doc/2016-11-15/", Operations: map[string]awsserver.Operation{}}
	for name, op := range ops {
		svc.Operations[name] = func(_ context.Context, r *awsserver.Request) (any, error) {
			resource := "*"
			if id := r.Form.Get("GroupId"); id != "" && !strings.HasPrefix(name, "Describe") {
				resource = "arn:aws:ec2:" + r.Region + ":" + r.Caller.AccountID + ":security-group/" + id
			}
			if err := r.Authorize("ec2:"+name, resource, nil); err != nil {
				return nil, err
			}
			if r.Form.Get("DryRun") == "true" {
				return nil, &awsserver.Error{Code: "DryRunOperation", Status: 412, Message: "Request would have succeeded, but DryRun flag is set."}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return op(r)
		}
	}
	return svc
}

// filters reads Filter.N and returns a test of a resource's attributes. A value may hold * and ?. A filter the
// resource has no attribute for matches nothing, so that a filter the lab does not know is never silently ignored.
func filters(r *awsserver.Request) func(attrs map[string][]string) bool {
	type filter struct {
		name   string
		values []string
	}
	var list []filter
	for _, f := range r.Form.Items("Filter") {
		list = append(list, filter{f.Get("Name"), f.Strings("Value")})
	}
	return func(attrs map[string][]string) bool {
		for _, f := range list {
			ok := slices.ContainsFunc(f.values, func(want string) bool {
				return slices.ContainsFunc(attrs[f.name], func(got string) bool { return awsserver.Wildcard(want, got) })
			})
			if !ok {
				return false
			}
		}
		return true
	}
}

type tagXML struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func tagSet(m map[string]string) []tagXML {
	out := []tagXML{}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, tagXML{k, m[k]})
	}
	return out
}

func tagAttrs(attrs map[string][]string, tags map[string]string) map[string][]string {
	for k, v := range tags {
		attrs["tag:"+k] = []string{v}
		attrs["tag-key"] = append(attrs["tag-key"], k)
	}
	return attrs
}

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

func (s *Service) vpcTags() map[string]string {
	tags := map[string]string{"Name": "isthmus-lab/VPC"}
	if s.cfg.EKSCluster != "" {
		tags["alpha.eksctl.io/cluster-name"] = s.cfg.EKSCluster
	}
	return tags
}

func (s *Service) describeVPCs(r *awsserver.Request) (any, error) {
	out := struct {
		VPCs []vpcXML `xml:"vpcSet>item"`
	}{}
	ids := r.Form.Strings("VpcId")
	for _, id := range ids {
		if id != s.cfg.VPCID || r.Region != s.cfg.Region {
			return nil, awsserver.Errorf("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", id)
		}
	}
	attrs := tagAttrs(map[string][]string{"vpc-id": {s.cfg.VPCID}, "cidr": {s.cfg.VPCCIDR.String()}, "state": {"available"}, "is-default": {"true"},
		"isDefault": {"true"}, "owner-id": {s.cfg.AccountID}}, s.vpcTags())
	if r.Region == s.cfg.Region && filters(r)(attrs) {
		out.VPCs = []vpcXML{{VPCID: s.cfg.VPCID, OwnerID: s.cfg.AccountID, State: "available", CIDR: s.cfg.VPCCIDR.String(), DHCP: "dopt-0a1b2c3d",
			Tenancy: "default", IsDefault: true, Tags: tagSet(s.vpcTags())}}
	}
	return out, nil
}

func (s *Service) describeVPCAttribute(r *awsserver.Request) (any, error) {
	type flag struct {
		Value bool `xml:"value"`
	}
	out := struct {
		VPCID     string `xml:"vpcId"`
		Support   *flag  `xml:"enableDnsSupport,omitempty"`
		Hostnames *flag  `xml:"enableDnsHostnames,omitempty"`
	}{VPCID: s.cfg.VPCID}
	if r.Form.Get("VpcId") != s.cfg.VPCID {
		return nil, awsserver.Errorf("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", r.Form.Get("VpcId"))
	}
	switch r.Form.Get("Attribute") {
	case "enableDnsSupport":
		out.Support = &flag{true}
	case "enableDnsHostnames":
		out.Hostnames = &flag{true}
	default:
		return nil, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter attribute is invalid.", r.Form.Get("Attribute"))
	}
	return out, nil
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

func (s *Service) describeSubnets(r *awsserver.Request) (any, error) {
	ids, match := r.Form.Strings("SubnetId"), filters(r)
	out := struct {
		Subnets []subnetXML `xml:"subnetSet>item"`
	}{}
	for _, id := range ids {
		if !slices.ContainsFunc(s.cfg.Subnets, func(sn Subnet) bool { return sn.ID == id }) || r.Region != s.cfg.Region {
			return nil, awsserver.Errorf("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", id)
		}
	}
	if r.Region != s.cfg.Region {
		return out, nil
	}
	for i, sn := range s.cfg.Subnets {
		if len(ids) > 0 && !slices.Contains(ids, sn.ID) {
			continue
		}
		tags := map[string]string{"Name": sn.Name, "kubernetes.io/role/elb": "1"}
		public := strconv.FormatBool(sn.Public)
		attrs := tagAttrs(map[string][]string{"subnet-id": {sn.ID}, "vpc-id": {s.cfg.VPCID}, "availability-zone": {sn.Zone}, "state": {"available"},
			"cidr-block": {sn.CIDR.String()}, "cidrBlock": {sn.CIDR.String()}, "map-public-ip-on-launch": {public}, "owner-id": {s.cfg.AccountID}}, tags)
		if !match(attrs) {
			continue
		}
		out.Subnets = append(out.Subnets, subnetXML{SubnetID: sn.ID, ARN: "arn:aws:ec2:" + r.Region + ":" + s.cfg.AccountID + ":subnet/" + sn.ID,
			State: "available", OwnerID: s.cfg.AccountID, VPCID: s.cfg.VPCID, CIDR: sn.CIDR.String(), Available: 1<<(32-sn.CIDR.Bits()) - 5,
			Zone: sn.Zone, ZoneID: "use2-az" + strconv.Itoa(i+1), Public: sn.Public, Tags: tagSet(tags)})
	}
	return out, nil
}

type rangeXML struct {
	CIDR        string `xml:"cidrIp,omitempty"`
	CIDR6       string `xml:"cidrIpv6,omitempty"`
	GroupID     string `xml:"groupId,omitempty"`
	UserID      string `xml:"userId,omitempty"`
	Description string `xml:"description,omitempty"`
}

type permissionXML struct {
	Protocol string     `xml:"ipProtocol"`
	From     string     `xml:"fromPort,omitempty"`
	To       string     `xml:"toPort,omitempty"`
	Groups   []rangeXML `xml:"groups>item"`
	Ranges   []rangeXML `xml:"ipRanges>item"`
	Ranges6  []rangeXML `xml:"ipv6Ranges>item"`
	Prefixes []rangeXML `xml:"prefixListIds>item"`
}

type groupXML struct {
	OwnerID     string          `xml:"ownerId"`
	GroupID     string          `xml:"groupId"`
	ARN         string          `xml:"securityGroupArn"`
	GroupName   string          `xml:"groupName"`
	Description string          `xml:"groupDescription"`
	VPCID       string          `xml:"vpcId"`
	Ingress     []permissionXML `xml:"ipPermissions>item"`
	Egress      []permissionXML `xml:"ipPermissionsEgress>item"`
	Tags        []tagXML        `xml:"tagSet>item"`
}

// permissions groups rules by protocol and ports, as EC2 shows them.
func permissions(rules []rule, account string) []permissionXML {
	out := []permissionXML{}
	for _, ru := range rules {
		i := slices.IndexFunc(out, func(p permissionXML) bool { return p.Protocol == ru.protocol && p.From == ru.from && p.To == ru.to })
		if i < 0 {
			out = append(out, permissionXML{Protocol: ru.protocol, From: ru.from, To: ru.to})
			i = len(out) - 1
		}
		x := rangeXML{Description: ru.description}
		switch {
		case ru.cidr != "":
			x.CIDR = ru.cidr
			out[i].Ranges = append(out[i].Ranges, x)
		case ru.cidr6 != "":
			x.CIDR6 = ru.cidr6
			out[i].Ranges6 = append(out[i].Ranges6, x)
		default:
			x.GroupID, x.UserID = ru.peerGroup, account
			out[i].Groups = append(out[i].Groups, x)
		}
	}
	return out
}

func (s *Service) describeGroups(r *awsserver.Request) (any, error) {
	s.ensureDefault(r)
	ids, names, match := r.Form.Strings("GroupId"), r.Form.Strings("GroupName"), filters(r)
	for _, id := range ids {
		if g := s.groups[id]; g == nil || g.account != r.Caller.AccountID || g.region != r.Region {
			return nil, awsserver.Errorf("InvalidGroup.NotFound", "The security group '%s' does not exist", id)
		}
	}
	out := struct {
		Groups []groupXML `xml:"securityGroupInfo>item"`
	}{}
	for _, id := range slices.Sorted(maps.Keys(s.groups)) {
		g := s.groups[id]
		attrs := tagAttrs(map[string][]string{"group-id": {g.id}, "group-name": {g.name}, "vpc-id": {s.cfg.VPCID}, "description": {g.description},
			"owner-id": {g.account}}, g.tags)
		if g.account != r.Caller.AccountID || g.region != r.Region || len(ids) > 0 && !slices.Contains(ids, id) ||
			len(names) > 0 && !slices.Contains(names, g.name) || !match(attrs) {
			continue
		}
		out.Groups = append(out.Groups, groupXML{OwnerID: g.account, GroupID: g.id, ARN: g.arn(), GroupName: g.name, Description: g.description,
			VPCID: s.cfg.VPCID, Ingress: permissions(g.ingress, g.account), Egress: permissions(g.egress, g.account), Tags: tagSet(g.tags)})
	}
	return out, nil
}

// ensureDefault gives an account its default security group when it first looks.
func (s *Service) ensureDefault(r *awsserver.Request) {
	for _, g := range s.groups {
		if g.account == r.Caller.AccountID && g.region == r.Region && g.name == "default" {
			return
		}
	}
	if r.Region == s.cfg.Region {
		s.addGroup(r.Caller.AccountID, r.Region, "default", "default VPC security group")
	}
}

func (g *group) arn() string {
	return "arn:aws:ec2:" + g.region + ":" + g.account + ":security-group/" + g.id
}

func (s *Service) createGroup(r *awsserver.Request) (any, error) {
	name, vpc := r.Form.Get("GroupName"), r.Form.Get("VpcId")
	if name == "" || r.Form.Get("GroupDescription") == "" {
		return nil, awsserver.Errorf("MissingParameter", "The request must contain the parameters GroupName and GroupDescription")
	}
	if vpc != "" && vpc != s.cfg.VPCID || r.Region != s.cfg.Region {
		return nil, awsserver.Errorf("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", vpc)
	}
	if strings.HasPrefix(name, "sg-") {
		return nil, awsserver.Errorf("InvalidParameterValue", "Invalid value '%s' for groupName. Group names may not be in the format sg-*.", name)
	}
	mine := 0
	for _, g := range s.groups {
		if g.account != r.Caller.AccountID {
			continue
		}
		mine++
		if g.name == name {
			return nil, awsserver.Errorf("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", name, s.cfg.VPCID)
		}
	}
	if mine >= maxGroups {
		return nil, awsserver.Errorf("SecurityGroupLimitExceeded", "The maximum number of security groups has been reached.")
	}
	g := s.addGroup(r.Caller.AccountID, r.Region, name, r.Form.Get("GroupDescription"))
	for _, spec := range r.Form.Items("TagSpecification") {
		for _, t := range spec.Items("Tag") {
			g.tags[t.Get("Key")] = t.Get("Value")
		}
	}
	return struct {
		Return  bool     `xml:"return"`
		GroupID string   `xml:"groupId"`
		ARN     string   `xml:"securityGroupArn"`
		Tags    []tagXML `xml:"tagSet>item"`
	}{true, g.id, g.arn(), tagSet(g.tags)}, nil
}

// group finds the group a call is about, by id or by name.
func (s *Service) group(r *awsserver.Request) (*group, error) {
	id, name := r.Form.Get("GroupId"), r.Form.Get("GroupName")
	for _, g := range s.groups {
		if g.account == r.Caller.AccountID && g.region == r.Region && (id != "" && g.id == id || id == "" && name != "" && g.name == name) {
			return g, nil
		}
	}
	return nil, awsserver.Errorf("InvalidGroup.NotFound", "The security group '%s' does not exist", id+name)
}

type returned struct {
	Return bool `xml:"return"`
}

func (s *Service) deleteGroup(r *awsserver.Request) (any, error) {
	g, err := s.group(r)
	if err != nil {
		return nil, err
	}
	if g.name == "default" {
		return nil, awsserver.Errorf("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", g.id)
	}
	for _, other := range s.groups {
		if other != g && slices.ContainsFunc(slices.Concat(other.ingress, other.egress), func(ru rule) bool { return ru.peerGroup == g.id }) {
			return nil, awsserver.Errorf("DependencyViolation", "resource %s has a dependent object", g.id)
		}
	}
	delete(s.groups, g.id)
	return returned{true}, nil
}

func (s *Service) createTags(r *awsserver.Request) (any, error) {
	for _, id := range r.Form.Strings("ResourceId") {
		g := s.groups[id]
		if g == nil || g.account != r.Caller.AccountID {
			return nil, awsserver.Errorf("InvalidID", "The ID '%s' is not valid or cannot be tagged in the lab", id)
		}
		for _, t := range r.Form.Items("Tag") {
			g.tags[t.Get("Key")] = t.Get("Value")
		}
	}
	return returned{true}, nil
}

// changeRules adds or removes rules of a group; the operation's name says which.
func (s *Service) changeRules(r *awsserver.Request) (any, error) {
	g, err := s.group(r)
	if err != nil {
		return nil, err
	}
	list := &g.ingress
	if strings.HasSuffix(r.Operation, "Egress") {
		list = &g.egress
	}
	if ids := r.Form.Strings("SecurityGroupRuleId"); len(ids) > 0 && strings.HasPrefix(r.Operation, "Revoke") {
		*list = slices.DeleteFunc(*list, func(ru rule) bool { return slices.Contains(ids, ru.id) })
		return returned{true}, nil
	}
	rules, err := parseRules(r)
	if err != nil {
		return nil, err
	}
	for _, ru := range rules {
		same := func(o rule) bool {
			return o.protocol == ru.protocol && o.from == ru.from && o.to == ru.to && o.cidr == ru.cidr && o.cidr6 == ru.cidr6 && o.peerGroup == ru.peerGroup
		}
		i := slices.IndexFunc(*list, same)
		switch {
		case strings.HasPrefix(r.Operation, "Revoke") && i < 0:
			return nil, awsserver.Errorf("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
		case strings.HasPrefix(r.Operation, "Revoke"):
			*list = slices.Delete(*list, i, i+1)
		case i >= 0:
			return nil, awsserver.Errorf("InvalidPermission.Duplicate", "the specified rule \"peer: %s, %s, ALLOW\" already exists", ru.cidr+ru.cidr6+ru.peerGroup, ru.protocol)
		case len(*list) >= maxRules:
			return nil, awsserver.Errorf("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
		default:
			ru.id = "sgr-0" + hexID(8)
			*list = append(*list, ru)
		}
	}
	return returned{true}, nil
}

// parseRules reads both forms of a permission: IpPermissions.N, and the flat one of a single rule.
func parseRules(r *awsserver.Request) ([]rule, error) {
	items := r.Form.Items("IpPermissions")
	if len(items) == 0 {
		flat := awsserver.Form{}
		for _, name := range []string{"IpProtocol", "FromPort", "ToPort"} {
			flat[name] = []string{r.Form.Get(name)}
		}
		if c := r.Form.Get("CidrIp"); c != "" {
			flat["IpRanges.1.CidrIp"] = []string{c}
		}
		items = []awsserver.Form{flat}
	}
	var out []rule
	for _, p := range items {
		base := rule{protocol: p.Get("IpProtocol"), from: p.Get("FromPort"), to: p.Get("ToPort")}
		if base.protocol == "" {
			return nil, awsserver.Errorf("MissingParameter", "The request must contain the parameter ipProtocol")
		}
		if base.protocol == "-1" {
			base.from, base.to = "", ""
		}
		n := len(out)
		for _, x := range p.Items("IpRanges") {
			ru := base
			ru.cidr, ru.description = x.Get("CidrIp"), x.Get("Description")
			if _, err := netip.ParsePrefix(ru.cidr); err != nil {
				return nil, awsserver.Errorf("InvalidParameterValue", "CIDR block %s is malformed", ru.cidr)
			}
			out = append(out, ru)
		}
		for _, x := range p.Items("Ipv6Ranges") {
			ru := base
			ru.cidr6, ru.description = x.Get("CidrIpv6"), x.Get("Description")
			out = append(out, ru)
		}
		for _, key := range []string{"UserIdGroupPairs", "Groups"} {
			for _, x := range p.Items(key) {
				ru := base
				ru.peerGroup, ru.description = x.Get("GroupId"), x.Get("Description")
				out = append(out, ru)
			}
		}
		if len(out) == n {
			return nil, awsserver.Errorf("InvalidParameterValue", "Invalid permission: %s", fmt.Sprintf("no range or group for protocol %s", base.protocol))
		}
	}
	return out, nil
}
