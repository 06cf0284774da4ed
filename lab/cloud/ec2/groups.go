package ec2

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// group is a security group.
type group struct {
	owned
	vpc, name, description string
	ingress, egress        []rule
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

func (s *Service) addGroup(v *vpc, name, description string) *group {
	g := &group{owned: s.owned("sg-", v.account, v.region), vpc: v.id, name: name, description: description}
	g.egress = []rule{{id: s.newID("sgr-"), protocol: "-1", cidr: "0.0.0.0/0"}}
	s.groups[g.id] = g
	return g
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

const noGroup, groupID = "InvalidGroup.NotFound", "security group"

func (s *Service) describeGroups(r *awsserver.Request) (any, error) {
	names := r.Form.Strings("GroupName")
	found, next, err := selected(r, s.groups, "GroupId", noGroup, groupID, func(g *group) map[string][]string {
		if len(names) > 0 && !slices.Contains(names, g.name) {
			return nil
		}
		return map[string][]string{"group-id": {g.id}, "group-name": {g.name}, "vpc-id": {g.vpc}, "description": {g.description}, "owner-id": {g.account}}
	})
	out := struct {
		Groups []groupXML `xml:"securityGroupInfo>item"`
		Next   string     `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, g := range found {
		out.Groups = append(out.Groups, groupXML{OwnerID: g.account, GroupID: g.id, ARN: g.arn(), GroupName: g.name, Description: g.description,
			VPCID: g.vpc, Ingress: permissions(g.ingress, g.account), Egress: permissions(g.egress, g.account), Tags: tagSet(g.tags)})
	}
	return out, err
}

func (g *group) arn() string {
	return "arn:aws:ec2:" + g.region + ":" + g.account + ":security-group/" + g.id
}

// groupVPC is the VPC in which a call makes a group: the default one unless it names another.
func (s *Service) groupVPC(r *awsserver.Request) (*vpc, error) {
	if id := r.Form.Get("VpcId"); id != "" {
		return s.vpc(r, id)
	}
	for _, v := range s.vpcs {
		if v.isDefault && v.mine(r.Caller.AccountID, r.Region) {
			return v, nil
		}
	}
	return nil, awsserver.Errorf("VPCIdNotSpecified", "No default VPC for this user")
}

func (s *Service) createGroup(r *awsserver.Request) (any, error) {
	name := r.Form.Get("GroupName")
	if name == "" || r.Form.Get("GroupDescription") == "" {
		return nil, awsserver.Errorf("MissingParameter", "The request must contain the parameters GroupName and GroupDescription")
	}
	v, err := s.groupVPC(r)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, "sg-") {
		return nil, awsserver.Errorf("InvalidParameterValue", "Invalid value '%s' for groupName. Group names may not be in the format sg-*.", name)
	}
	for _, g := range s.groups {
		if g.vpc == v.id && g.name == name {
			return nil, awsserver.Errorf("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", name, v.id)
		}
	}
	if count(r, s.groups) >= maxGroups {
		return nil, limit("SecurityGroupLimitExceeded", "security groups")
	}
	g := s.addGroup(v, name, r.Form.Get("GroupDescription"))
	g.tags = s.newOwned(r, "").tags
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
		if g.mine(r.Caller.AccountID, r.Region) && (id != "" && g.id == id || id == "" && name != "" && g.name == name) {
			return g, nil
		}
	}
	return nil, awsserver.Errorf(noGroup, "The security group '%s' does not exist", id+name)
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
			ru.id = s.newID("sgr-")
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
