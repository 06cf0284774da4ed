package ec2

import (
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// instance is an EC2 instance. In the lab it is a network namespace with an address, made by whoever the Machines are.
type instance struct {
	owned
	vpc, subnet, zone string
	addr              netip.Addr
	kind, image       string
	groups            []string
	state             string
	reservation       string
	launched          time.Time
	ended             time.Time
}

// The states of an instance that the lab goes through, which takes it no time.
const (
	instanceRunning    = "running"
	instanceTerminated = "terminated"
)

// maxInstances bounds the instances of an account that are not terminated; shownFor is how long terminated ones stay visible.
const (
	maxInstances = 64
	shownFor     = time.Hour
)

// Machine is an instance as those see it who run it.
type Machine struct {
	ID, Account, Region, Zone, Type string
	Addr                            netip.Addr
	UserData                        string
}

// Machines run instances.
type Machines interface {
	Boot(m Machine) error
	Terminate(account, region, id string)
}

// SetMachines says who runs instances; without it there are none.
func (s *Service) SetMachines(m Machines) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machines = m
}

const noInstance, instanceID = "InvalidInstanceID.NotFound", "instance ID"

type stateXML struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

func stateOf(name string) stateXML {
	return stateXML{map[string]int{"pending": 0, instanceRunning: 16, "shutting-down": 32, instanceTerminated: 48}[name], name}
}

type instanceXML struct {
	ID       string     `xml:"instanceId"`
	Image    string     `xml:"imageId"`
	State    stateXML   `xml:"instanceState"`
	DNS      string     `xml:"privateDnsName"`
	Type     string     `xml:"instanceType"`
	Launched string     `xml:"launchTime"`
	Zone     string     `xml:"placement>availabilityZone"`
	Subnet   string     `xml:"subnetId,omitempty"`
	VPC      string     `xml:"vpcId,omitempty"`
	Addr     string     `xml:"privateIpAddress,omitempty"`
	Groups   []groupRef `xml:"groupSet>item"`
	Tags     []tagXML   `xml:"tagSet>item"`
}

type groupRef struct {
	ID string `xml:"groupId"`
}

func (i *instance) xml() instanceXML {
	x := instanceXML{ID: i.id, Image: i.image, State: stateOf(i.state), Type: i.kind, Launched: i.launched.UTC().Format(time.RFC3339), Zone: i.zone, Tags: tagSet(i.tags)}
	if i.state == instanceRunning { // a terminated one has lost its place
		x.Subnet, x.VPC, x.Addr = i.subnet, i.vpc, i.addr.String()
		x.DNS = "ip-" + strings.ReplaceAll(x.Addr, ".", "-") + "." + i.region + ".compute.internal"
	}
	for _, g := range i.groups {
		x.Groups = append(x.Groups, groupRef{g})
	}
	return x
}

type reservationXML struct {
	ID        string        `xml:"reservationId"`
	OwnerID   string        `xml:"ownerId"`
	Instances []instanceXML `xml:"instancesSet>item"`
}

func (s *Service) describeInstances(r *awsserver.Request) (any, error) {
	for id, i := range s.instances {
		if i.state == instanceTerminated && time.Since(i.ended) > shownFor {
			delete(s.instances, id)
		}
	}
	found, next, err := selected(r, s.instances, "InstanceId", noInstance, instanceID, func(i *instance) map[string][]string {
		return map[string][]string{"instance-id": {i.id}, "instance-state-name": {i.state}, "vpc-id": {i.vpc}, "subnet-id": {i.subnet},
			"private-ip-address": {i.addr.String()}, "instance-type": {i.kind}, "availability-zone": {i.zone}, "image-id": {i.image}, "reservation-id": {i.reservation}}
	})
	out := struct {
		Reservations []reservationXML `xml:"reservationSet>item"`
		Next         string           `xml:"nextToken,omitempty"`
	}{Next: next}
	for _, i := range found {
		out.Reservations = append(out.Reservations, reservationXML{i.reservation, i.account, []instanceXML{i.xml()}})
	}
	return out, err
}

// runInstances makes instances and boots them. What they are to do is in their user data, as with the images that AWS makes for
// ECS.
func (s *Service) runInstances(r *awsserver.Request) (any, error) {
	n, err := strconv.Atoi(r.Form.Get("MaxCount"))
	switch {
	case err != nil || n < 1:
		return nil, awsserver.Errorf("InvalidParameterValue", "Value (%s) for parameter maxCount is invalid.", r.Form.Get("MaxCount"))
	case s.machines == nil:
		return nil, awsserver.Errorf("Unsupported", "The lab runs no instances here.")
	case s.runningInstances(r)+n > maxInstances:
		return nil, awsserver.Errorf("InstanceLimitExceeded", "You have requested more instances (%d) than your current instance limit of %d allows.", n, maxInstances)
	}
	subnetID0 := r.Form.Get("SubnetId")
	if subnetID0 == "" {
		subnetID0 = r.Form.Get("NetworkInterface.1.SubnetId")
	}
	sn, err := s.instanceSubnet(r, subnetID0)
	if err != nil {
		return nil, err
	}
	groups := r.Form.Strings("SecurityGroupId")
	for _, g := range groups {
		if _, err := find(r, s.groups, g, noGroup, groupID); err != nil {
			return nil, err
		}
	}
	data, err := base64.StdEncoding.DecodeString(r.Form.Get("UserData"))
	if err != nil {
		return nil, awsserver.Errorf("InvalidUserData.Malformed", "Invalid BASE64 encoding of user data.")
	}
	out := reservationXML{ID: s.newID("r-"), OwnerID: r.Caller.AccountID}
	for range n {
		addr, err := s.cfg.Addresses.Allocate(sn.cidr)
		if err != nil {
			return nil, awsserver.Errorf("InsufficientFreeAddressesInSubnet", "There are not enough free addresses in subnet '%s'.", sn.id)
		}
		i := &instance{owned: s.newOwned(r, "i-"), vpc: sn.vpc, subnet: sn.id, zone: sn.zone, addr: addr, kind: orElse(r.Form.Get("InstanceType"), "m1.small"),
			image: r.Form.Get("ImageId"), groups: groups, state: instanceRunning, reservation: out.ID, launched: time.Now()}
		m := Machine{ID: i.id, Account: i.account, Region: i.region, Zone: i.zone, Type: i.kind, Addr: addr, UserData: string(data)}
		if err := s.machines.Boot(m); err != nil {
			s.cfg.Addresses.Release(addr)
			return nil, awsserver.Errorf("InsufficientInstanceCapacity", "The lab cannot start this instance: %s", err)
		}
		s.instances[i.id] = i
		out.Instances = append(out.Instances, i.xml())
	}
	return out, nil
}

func orElse(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

func (s *Service) runningInstances(r *awsserver.Request) (n int) {
	for _, i := range s.instances {
		if i.state == instanceRunning && i.sees(r) {
			n++
		}
	}
	return n
}

// instanceSubnet is where an instance goes: the subnet it names, or one of the default VPC.
func (s *Service) instanceSubnet(r *awsserver.Request, id string) (*subnet, error) {
	if id != "" {
		return find(r, s.subnets, id, noSubnet, subnetID)
	}
	for _, sn := range s.cfg.Subnets {
		if x := s.subnets[sn.ID]; x != nil && x.sees(r) {
			return x, nil
		}
	}
	return nil, awsserver.Errorf("MissingInput", "No subnets found for the default VPC. Please specify a subnet.")
}

type changeXML struct {
	ID   string   `xml:"instanceId"`
	Now  stateXML `xml:"currentState"`
	Then stateXML `xml:"previousState"`
}

func (s *Service) terminateInstances(r *awsserver.Request) (any, error) {
	ids := r.Form.Strings("InstanceId")
	if len(ids) == 0 {
		return nil, awsserver.Errorf("MissingParameter", "The request must contain the parameter InstanceId")
	}
	var all []*instance
	for _, id := range slices.Compact(ids) {
		i, err := find(r, s.instances, id, noInstance, instanceID)
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	out := struct {
		Changes []changeXML `xml:"instancesSet>item"`
	}{}
	for _, i := range all {
		was := i.state
		if was == instanceRunning {
			i.state, i.ended = instanceTerminated, time.Now()
			s.machines.Terminate(i.account, i.region, i.id)
			out.Changes = append(out.Changes, changeXML{i.id, stateOf("shutting-down"), stateOf(was)})
			continue
		}
		out.Changes = append(out.Changes, changeXML{i.id, stateOf(i.state), stateOf(was)})
	}
	return out, nil
}
