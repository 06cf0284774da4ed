package ecs

import (
	"regexp"
	"slices"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Limits and defaults of task definitions.
const (
	maxDefinitionBytes = 64 << 10
	maxContainers      = 10
	defaultInterval    = 30
	defaultTimeout     = 5
	defaultRetries     = 3
	maxStopTimeout     = 120
)

func client(format string, args ...any) error { return awsserver.Errorf(errClient, format, args...) }

// check refuses what ECS refuses at registration.
func (td *taskDef) check(size int) error {
	switch {
	case td.Family == "":
		return client("Family cannot be null or empty.")
	case !regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`).MatchString(td.Family):
		return client("Family contains invalid characters.")
	case len(td.ContainerDefinitions) == 0:
		return client("Container list cannot be empty.")
	case len(td.ContainerDefinitions) > maxContainers:
		return client("Task definition has too many containers: the maximum is %d.", maxContainers)
	case size > maxDefinitionBytes:
		return client("Actual task definition length: %d. Maximum allowed length is %d.", size, maxDefinitionBytes)
	}
	if err := td.checkFargate(); err != nil {
		return err
	}
	names := map[string]bool{}
	essential := false
	for _, c := range td.ContainerDefinitions {
		if c == nil || c.Name == "" {
			return client("Container.name should not be null or empty.")
		}
		if c.Image == "" {
			return client("Container.image should not be null or empty.")
		}
		if names[c.Name] {
			return client("Container.name should be unique within a task definition, %q is used twice.", c.Name)
		}
		names[c.Name] = true
		essential = essential || c.isEssential()
		if err := c.check(td); err != nil {
			return err
		}
	}
	if !essential {
		return client("Invalid setting for container. At least one container must be essential.")
	}
	return td.checkDependencies(names)
}

func (td *taskDef) checkFargate() error {
	switch td.NetworkMode {
	case "", "awsvpc", "bridge", "host", "none":
	default:
		return client("Invalid network mode %q.", td.NetworkMode)
	}
	if !slices.Contains(td.Compatibilities, "FARGATE") {
		return nil
	}
	if td.NetworkMode != "awsvpc" {
		return client("Fargate only supports network mode ‘awsvpc’.")
	}
	if td.CPU == "" || td.Memory == "" {
		return client("Fargate requires that 'cpu' and 'memory' be defined at the task level.")
	}
	for _, v := range td.Volumes {
		if v.Host != nil && v.Host.SourcePath != "" {
			return client("host.sourcePath is not supported for Fargate tasks.")
		}
	}
	return nil
}

func (c *containerDef) check(td *taskDef) error {
	if h := c.HealthCheck; h != nil {
		if len(h.Command) == 0 {
			return client("healthCheck command cannot be empty")
		}
		if h.Interval == 0 {
			h.Interval = defaultInterval
		}
		if h.Timeout == 0 {
			h.Timeout = defaultTimeout
		}
		if h.Retries == 0 {
			h.Retries = defaultRetries
		}
		switch {
		case h.Interval < 5 || h.Interval > 300:
			return client("healthCheck interval must be between 5 and 300 seconds")
		case h.Timeout < 2 || h.Timeout > 60:
			return client("healthCheck timeout must be between 2 and 60 seconds")
		case h.Retries < 1 || h.Retries > 10:
			return client("healthCheck retries must be between 1 and 10")
		case h.StartPeriod < 0 || h.StartPeriod > 300:
			return client("healthCheck startPeriod must be between 0 and 300 seconds")
		}
	}
	if err := c.checkRights(slices.Contains(td.Compatibilities, launchFargate)); err != nil {
		return err
	}
	for _, limit := range []*int{c.StartTimeout, c.StopTimeout} {
		if limit != nil && (*limit < 0 || *limit > maxStopTimeout) {
			return client("startTimeout and stopTimeout must be between 0 and %d seconds.", maxStopTimeout)
		}
	}
	for _, m := range c.MountPoints {
		if !slices.ContainsFunc(td.Volumes, func(v volume) bool { return v.Name == m.SourceVolume }) {
			return client("Invalid 'mountPoints' for container %s: unknown volume '%s'.", c.Name, m.SourceVolume)
		}
	}
	return nil
}

// checkDependencies refuses unknown names, unknown conditions and cycles.
func (td *taskDef) checkDependencies(names map[string]bool) error {
	byName := map[string]*containerDef{}
	for _, c := range td.ContainerDefinitions {
		byName[c.Name] = c
		for _, d := range c.DependsOn {
			if !names[d.ContainerName] {
				return client("Invalid 'dependsOn' setting: container %s depends on unknown container %s.", c.Name, d.ContainerName)
			}
			switch d.Condition {
			case condStart:
			case condComplete, condSuccess, condHealthy:
			default:
				return client("Invalid 'dependsOn' condition %q for container %s.", d.Condition, c.Name)
			}
		}
	}
	for _, c := range td.ContainerDefinitions {
		for _, d := range c.DependsOn {
			on := byName[d.ContainerName]
			if d.Condition == condHealthy && on.HealthCheck == nil {
				return client("Invalid 'dependsOn' setting: container %s has no health check.", on.Name)
			}
			if (d.Condition == condComplete || d.Condition == condSuccess) && on.isEssential() {
				return client("Invalid 'dependsOn' setting: container %s is essential, so it cannot be waited for to %s.", on.Name, d.Condition)
			}
		}
		if reaches(byName, c.Name, c.Name, map[string]bool{}) {
			return client("Container dependency cycle detected at %s.", c.Name)
		}
	}
	return nil
}

// reaches reports whether the dependencies of from lead to target.
func reaches(byName map[string]*containerDef, from, target string, seen map[string]bool) bool {
	for _, d := range byName[from].DependsOn {
		if d.ContainerName == target {
			return true
		}
		if !seen[d.ContainerName] {
			seen[d.ContainerName] = true
			if reaches(byName, d.ContainerName, target, seen) {
				return true
			}
		}
	}
	return false
}
