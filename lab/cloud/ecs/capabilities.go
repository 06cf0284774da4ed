package ecs

import "slices"

const allCapabilities = "ALL"

// dockerCapabilities are those that a container has by default.
func dockerCapabilities() []string {
	return []string{
		"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
	}
}

// knownCapabilities are those that a task definition may name.
func knownCapabilities() []string {
	return append(dockerCapabilities(), allCapabilities, "AUDIT_CONTROL", "BLOCK_SUSPEND", "DAC_READ_SEARCH", "IPC_LOCK", "IPC_OWNER", "LEASE", "LINUX_IMMUTABLE",
		"MAC_ADMIN", "MAC_OVERRIDE", "NET_ADMIN", "NET_BROADCAST", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
		"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM")
}

// capabilities are those that the container gets: Docker's own without those dropped, and those added. Nil means all that the
// runtime has to give.
func (c *containerDef) capabilities() []string {
	var add, drop []string
	if c.Linux != nil {
		add, drop = c.Linux.Capabilities.Add, c.Linux.Capabilities.Drop
	}
	if c.Privileged || slices.Contains(add, allCapabilities) && len(drop) == 0 {
		return nil
	}
	out := []string{}
	switch {
	case slices.Contains(add, allCapabilities):
		for _, name := range knownCapabilities() {
			if name != allCapabilities {
				out = append(out, name)
			}
		}
		add = nil
	case !slices.Contains(drop, allCapabilities):
		out = dockerCapabilities()
	}
	out = slices.DeleteFunc(out, func(name string) bool { return slices.Contains(drop, name) })
	for _, name := range add {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// checkRights refuses capabilities that do not exist, and on Fargate what it gives to no container. The code is AWS's; the words
// of the refusal are the lab's.
func (c *containerDef) checkRights(fargate bool) error {
	if fargate && c.Privileged {
		return client("Fargate compatible task definitions do not support privileged containers: container %s.", c.Name)
	}
	if c.Linux == nil {
		return nil
	}
	caps := c.Linux.Capabilities
	for _, name := range slices.Concat(caps.Add, caps.Drop) {
		if !slices.Contains(knownCapabilities(), name) {
			return client("Invalid setting for container '%s'. At 'linuxParameters.capabilities', %s is not a capability.", c.Name, name)
		}
	}
	for _, name := range caps.Add {
		if fargate && name != "SYS_PTRACE" {
			return client("Invalid setting for container '%s'. At 'linuxParameters.capabilities.add', %s is not supported: tasks launched on Fargate only support adding the SYS_PTRACE kernel capability.", c.Name, name)
		}
	}
	return nil
}

// refuseFargate returns why a definition that was not registered for Fargate alone cannot be launched there.
func (td *taskDef) refuseFargate() error {
	for _, c := range td.ContainerDefinitions {
		if c.checkRights(true) != nil {
			return invalid("Task definition does not support launch_type FARGATE.")
		}
	}
	return nil
}
