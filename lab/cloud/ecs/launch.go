package ecs

import "slices"

// launchType is the launch type of a task of the definition: the one asked for, or the only one that its network mode leaves.
func (td *taskDef) launchType(asked string) (string, error) {
	only := td.NetworkMode != modeAWSVPC || len(td.Compatibilities) > 0 && !slices.Contains(td.Compatibilities, launchFargate)
	switch {
	case asked == "" && only:
		return launchEC2, nil
	case asked == "":
		return launchFargate, td.refuseFargate()
	case asked == launchFargate && td.NetworkMode != modeAWSVPC:
		return "", invalid("Task definition does not support launch_type FARGATE.")
	case asked == launchFargate:
		return asked, td.refuseFargate()
	}
	return asked, nil
}

// checkNetwork checks the subnets and security groups of an awsvpc configuration. Tasks in other network modes have none.
func (s *Service) checkNetwork(p *place, td *taskDef, given bool, get func() networkConfig) (networkConfig, error) {
	if td.NetworkMode != modeAWSVPC {
		if given {
			return networkConfig{}, invalid("Network Configuration is not valid for the given networkMode of this task definition.")
		}
		return networkConfig{}, nil
	}
	if !given {
		return networkConfig{}, invalid("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
	}
	n := get()
	if len(n.Subnets) == 0 || len(n.Subnets) > 16 {
		return n, invalid("subnets must have between 1 and 16 elements.")
	}
	for _, id := range n.Subnets {
		if _, ok := s.cfg.Network.Subnet(p.account, p.region, id); !ok {
			return n, invalid("Error retrieving subnet information for [%s]: The subnet ID '%s' does not exist (ErrorCode: InvalidSubnetID.NotFound)", id, id)
		}
	}
	for _, id := range n.SecurityGroups {
		if !s.cfg.Network.SecurityGroupExists(p.account, p.region, id) {
			return n, invalid("Error retrieving security group information for [%s]: The security group '%s' does not exist (ErrorCode: InvalidGroup.NotFound)", id, id)
		}
	}
	return n, nil
}
