package ec2

import (
	"context"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// operation answers a call. The caller holds Service.mu.
type operation func(r *awsserver.Request) (any, error)

func (s *Service) operations() map[string]operation {
	return map[string]operation{
		"DescribeVpcs": s.describeVPCs, "CreateVpc": s.createVPC, "DeleteVpc": s.deleteVPC,
		"DescribeVpcAttribute": s.describeVPCAttribute, "ModifyVpcAttribute": s.modifyVPCAttribute,
		"DescribeSubnets": s.describeSubnets, "CreateSubnet": s.createSubnet, "DeleteSubnet": s.deleteSubnet, "ModifySubnetAttribute": s.modifySubnet,
		"DescribeAvailabilityZones": s.describeZones,

		"DescribeInternetGateways": s.describeGateways, "CreateInternetGateway": s.createGateway, "DeleteInternetGateway": s.deleteGateway,
		"AttachInternetGateway": s.attachGateway, "DetachInternetGateway": s.detachGateway,
		"DescribeAddresses": s.describeAddresses, "AllocateAddress": s.allocateAddress, "ReleaseAddress": s.releaseAddress,
		"DescribeNatGateways": s.describeNATs, "CreateNatGateway": s.createNAT, "DeleteNatGateway": s.deleteNAT,

		"DescribeRouteTables": s.describeTables, "CreateRouteTable": s.createTable, "DeleteRouteTable": s.deleteTable,
		"AssociateRouteTable": s.associateTable, "DisassociateRouteTable": s.disassociateTable,
		"CreateRoute": s.createRoute, "ReplaceRoute": s.replaceRoute, "DeleteRoute": s.deleteRoute,
		"DescribeVpcPeeringConnections": s.describePeerings, "CreateVpcPeeringConnection": s.createPeering,
		"AcceptVpcPeeringConnection": s.acceptPeering, "RejectVpcPeeringConnection": s.rejectPeering, "DeleteVpcPeeringConnection": s.deletePeering,

		"DescribeSecurityGroups": s.describeGroups, "CreateSecurityGroup": s.createGroup, "DeleteSecurityGroup": s.deleteGroup,
		"AuthorizeSecurityGroupIngress": s.changeRules, "AuthorizeSecurityGroupEgress": s.changeRules,
		"RevokeSecurityGroupIngress": s.changeRules, "RevokeSecurityGroupEgress": s.changeRules,
		"DescribeInstances": s.describeInstances, "RunInstances": s.runInstances, "TerminateInstances": s.terminateInstances,
		"CreateTags": s.createTags, "DeleteTags": s.deleteTags,
	}
}

// API returns EC2 for registration with the front.
func (s *Service) API() awsserver.Service {
	svc := awsserver.Service{Name: "ec2", Protocol: awsserver.EC2Query, Version: "2016-11-15",
		Namespace: "http://ec2.amazonaws.com/doc/2016-11-15/", Operations: map[string]awsserver.Operation{}}
	for name, op := range s.operations() {
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

// resource is something an account owns.
type resource interface {
	common() *owned
	sees(r *awsserver.Request) bool // whether the caller is one to whom it is shown
}

// find returns a resource of the caller, or EC2's error of the given kind and wording.
func find[R resource](r *awsserver.Request, all map[string]R, id, code, what string) (R, error) {
	x, ok := all[id]
	if !ok || !x.sees(r) {
		var none R
		return none, awsserver.Errorf(code, "The %s '%s' does not exist", what, id)
	}
	return x, nil
}

// selected returns the caller's resources that the ids under prefix and the filters choose, in the order of their ids, and
// the token for more of them. An id that does not exist is an error. Attributes may be nil for one that shall not be chosen.
func selected[R resource](r *awsserver.Request, all map[string]R, prefix, code, what string, attributes func(R) map[string][]string) ([]R, string, error) {
	ids, match := r.Form.Strings(prefix), filters(r)
	for _, id := range ids {
		if _, err := find(r, all, id, code, what); err != nil {
			return nil, "", err
		}
	}
	limit, after, err := paging(r, prefix, len(ids) > 0)
	if err != nil {
		return nil, "", err
	}
	var out []R
	for _, id := range slices.Sorted(maps.Keys(all)) {
		x := all[id]
		if !x.sees(r) || id <= after || len(ids) > 0 && !slices.Contains(ids, id) {
			continue
		}
		attrs := attributes(x)
		if attrs == nil || !match(tagAttrs(attrs, x.common().tags)) {
			continue
		}
		if len(out) == limit {
			return out, r.PageToken(out[limit-1].common().id), nil
		}
		out = append(out, x)
	}
	return out, "", nil
}

// mostRouteTables and mostOfAll bound the pages of Describe calls, leastOfAll is the least that can be asked for.
const (
	leastOfAll      = 5
	mostOfAll       = 1000
	mostRouteTables = 100
)

// paging reads MaxResults and NextToken. Without MaxResults everything is on one page.
func paging(r *awsserver.Request, prefix string, byID bool) (limit int, after string, err error) {
	after, ok := r.ReadPageToken(r.Form.Get("NextToken"))
	if !ok {
		return 0, "", awsserver.Errorf("InvalidNextToken", "The specified NextToken is not valid.")
	}
	text := r.Form.Get("MaxResults")
	if text == "" {
		return math.MaxInt, after, nil
	}
	most := mostOfAll
	if r.Operation == "DescribeRouteTables" {
		most = mostRouteTables
	}
	limit, err = strconv.Atoi(text)
	switch {
	case byID:
		return 0, "", awsserver.Errorf("InvalidParameterCombination", "The parameter %ss cannot be used with the parameter MaxResults", prefix)
	case err != nil || limit < leastOfAll:
		return 0, "", awsserver.Errorf("InvalidParameterValue", "Value ( %s ) for parameter maxResults is invalid. Expecting a value greater than %d.", text, leastOfAll)
	case limit > most:
		return 0, "", awsserver.Errorf("InvalidParameterValue", "Value ( %s ) for parameter maxResults is invalid. Expecting a value less than %d.", text, most)
	}
	return limit, after, nil
}

// count returns how many resources of the caller there are.
func count[R resource](r *awsserver.Request, all map[string]R) (n int) {
	for _, x := range all {
		if x.common().mine(r.Caller.AccountID, r.Region) {
			n++
		}
	}
	return n
}

// limit is the error of a quota that is used up.
func limit(code, what string) error {
	return awsserver.Errorf(code, "The maximum number of %s has been reached.", what)
}

// newOwned makes the common part of a resource of the caller, with the tags of the call.
func (s *Service) newOwned(r *awsserver.Request, prefix string) owned {
	o := s.owned(prefix, r.Caller.AccountID, r.Region)
	for _, spec := range r.Form.Items("TagSpecification") {
		for _, t := range spec.Items("Tag") {
			o.tags[t.Get("Key")] = t.Get("Value")
		}
	}
	return o
}

// parseCIDR reads an IPv4 range with no host bits set, as EC2 demands of VPCs and subnets.
func parseCIDR(text string, fewest, most int) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || !p.Addr().Is4() || p != p.Masked() {
		return netip.Prefix{}, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter cidrBlock is invalid. This is not a valid CIDR block.", text)
	}
	if p.Bits() < fewest || p.Bits() > most {
		return netip.Prefix{}, awsserver.Errorf("InvalidVpc.Range", "The CIDR '%s' is invalid.", text)
	}
	return p, nil
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

type returned struct {
	Return bool `xml:"return"`
}

// tagged finds any resource of the caller.
func (s *Service) tagged(r *awsserver.Request, id string) (*owned, error) {
	var o *owned
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "vpc":
		o = lookup(s.vpcs, id)
	case "subnet":
		o = lookup(s.subnets, id)
	case "igw":
		o = lookup(s.gateways, id)
	case "eipalloc":
		o = lookup(s.addresses, id)
	case "nat":
		o = lookup(s.nats, id)
	case "rtb":
		o = lookup(s.tables, id)
	case "pcx":
		o = lookup(s.peerings, id)
	case "i":
		o = lookup(s.instances, id)
	case "sg":
		o = lookup(s.groups, id)
	}
	if o == nil || !o.mine(r.Caller.AccountID, r.Region) {
		return nil, awsserver.Errorf("InvalidID", "The ID '%s' is not valid", id)
	}
	return o, nil
}

func lookup[R resource](all map[string]R, id string) *owned {
	if x, ok := all[id]; ok {
		return x.common()
	}
	return nil
}

func (s *Service) createTags(r *awsserver.Request) (any, error) {
	return s.eachTagged(r, func(o *owned, t awsserver.Form) { o.tags[t.Get("Key")] = t.Get("Value") })
}

func (s *Service) deleteTags(r *awsserver.Request) (any, error) {
	return s.eachTagged(r, func(o *owned, t awsserver.Form) {
		if !t.Has("Value") || o.tags[t.Get("Key")] == t.Get("Value") {
			delete(o.tags, t.Get("Key"))
		}
	})
}

// eachTagged does something with every resource and tag of the call, or nothing when a resource does not exist.
func (s *Service) eachTagged(r *awsserver.Request, do func(*owned, awsserver.Form)) (any, error) {
	var all []*owned
	for _, id := range r.Form.Strings("ResourceId") {
		o, err := s.tagged(r, id)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	for _, o := range all {
		for _, t := range r.Form.Items("Tag") {
			do(o, t)
		}
	}
	return returned{true}, nil
}
