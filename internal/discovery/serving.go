package discovery

import (
	"fmt"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// labelProxy marks, among docker labels, the container that is our proxy.
const labelProxy = "isthmus.dev/proxy"

// serving says whether traffic may be sent to a task, and if not, why. It follows the life cycle of ECS tasks:
//
//	state                                                serves   an object that exists
//	desired STOPPED, or DEACTIVATING and later           no       goes
//	service DRAINING or gone                             no       goes
//	network interface detaching                          no       goes
//	a checked container UNHEALTHY                        no       goes
//	RUNNING, a checked container UNKNOWN                 no       stays: ECS has not said that it is unwell
//	RUNNING, no address or definition known (yet)        no       stays
//	before RUNNING                                       no       stays (there is none)
//	RUNNING, all checked containers HEALTHY              yes
//
// A container without a health check is always UNKNOWN to ECS, so only those that have one count. The deployment that a
// task belongs to never counts: a task of an old deployment serves until ECS wants it stopped.
func (w *eval) serving(v inventory.TaskView) (Skip, bool) {
	t := v.Task
	no := func(drop bool, format string, args ...any) (Skip, bool) {
		return Skip{Reason: fmt.Sprintf(format, args...), Drop: drop}, false
	}
	switch {
	case t.Stopping():
		return no(true, "ecs is stopping the task (%s, wanted %s)%s", t.LastStatus, t.DesiredStatus, stopCause(t))
	case v.Service != nil && v.Service.Status == inventory.StatusDraining:
		return no(true, "its service is draining")
	case t.InterfaceLeaving():
		return no(true, "its network interface is being detached")
	case t.LastStatus != inventory.TaskRunning:
		return no(false, "it is not running yet (%s)", t.LastStatus)
	case t.LaunchType == inventory.LaunchExternal:
		w.problem(t.ARN, diag.ExternalTask, "run the task on Fargate or EC2, or write a WorkloadEntry for its host by hand",
			"the task has launch type EXTERNAL (ECS Anywhere), of which AWS tells no address")
		return no(true, "launch type EXTERNAL has no address")
	case v.Definition == nil:
		return no(false, "its task definition could not be read")
	case v.Service == nil && t.ServiceName() != "":
		return no(false, "it says that it belongs to service %q, which ecs has not confirmed", t.ServiceName())
	}
	for i := range v.Definition.Containers {
		d := &v.Definition.Containers[i]
		if !d.HasHealthCheck {
			continue
		}
		health := inventory.Unknown
		if c := t.ContainerNamed(d.Name); c != nil && c.HealthStatus != "" {
			health = c.HealthStatus
		}
		if health != inventory.Healthy {
			return no(health == inventory.Unhealthy, "container %q is %s", d.Name, health)
		}
	}
	return Skip{}, true
}

// stopCause says why ECS stops a task, in ECS's words: the code of the cause, and its text.
func stopCause(t *inventory.Task) string {
	var out string
	for _, s := range []string{t.StopCode, t.StoppedReason} {
		if s != "" {
			out += ": " + s
		}
	}
	return out
}

// proxyDefinition returns the definition of the container that is our proxy, or nil.
func proxyDefinition(cfg Config, d *inventory.TaskDefinition) *inventory.ContainerDefinition {
	if d == nil {
		return nil
	}
	for i := range d.Containers {
		c := &d.Containers[i]
		if c.Name == cfg.ProxyContainer || c.DockerLabels[labelProxy] == "true" {
			return c
		}
	}
	return nil
}

// proxied reports whether the task's proxy takes HBONE: it is there, it has a health check, and ECS says HEALTHY.
// Without that the mesh would send mTLS to a port where nobody listens.
func (c Config) proxied(v inventory.TaskView) bool {
	d := proxyDefinition(c, v.Definition)
	if d == nil || !d.HasHealthCheck {
		return false
	}
	run := v.Task.ContainerNamed(d.Name)
	return run != nil && run.HealthStatus == inventory.Healthy
}

// reach says under which address and ports a task is reached: its own (awsvpc), or its host's (bridge and host mode),
// where each published port may be another number.
func (w *eval) reach(v inventory.TaskView, svc *service) (addr netip.Addr, own bool, ports map[string]uint32, skip Skip) {
	if addrs := v.Task.Addresses(); len(addrs) > 0 {
		return addrs[0], true, nil, Skip{}
	}
	mode := v.Definition.NetworkMode
	if mode == inventory.NetworkAWSVPC || v.Task.ContainerInstance == "" {
		return netip.Addr{}, false, nil, Skip{Reason: "it has no address yet"}
	}
	if !v.Task.HostAddr.IsValid() {
		w.problem(v.Task.ARN, diag.NetworkModePlain, "use network mode awsvpc, or let discovery read EC2 hosts: ec2Hosts: true in isthmus.yaml, then isthmus ecs infra apply",
			"the task uses network mode %s and is not reached: the address of its host is not known", orBridge(mode))
		return netip.Addr{}, false, nil, Skip{Reason: "the address of its host is not known"}
	}
	w.problem(v.Task.ARN, diag.NetworkModePlain, "use network mode awsvpc to give the task its own address and identity",
		"the task uses network mode %s and is a plain TCP endpoint: it shares its host's address and has no identity", orBridge(mode))
	if mode == inventory.NetworkHost || svc == nil {
		return v.Task.HostAddr, false, nil, Skip{}
	}
	ports = map[string]uint32{}
	for _, p := range svc.ports {
		if host := hostPort(v.Task, targetOf(p)); host != 0 {
			ports[p.Name] = host
		}
	}
	if len(ports) == 0 {
		return netip.Addr{}, false, nil, Skip{Reason: "none of its ports is published on the host"}
	}
	return v.Task.HostAddr, false, ports, Skip{}
}

func hostPort(t *inventory.Task, containerPort uint32) uint32 {
	for _, c := range t.Containers {
		for _, b := range c.Bindings {
			if uint32(b.ContainerPort) == containerPort && b.Protocol == "tcp" {
				return uint32(b.HostPort)
			}
		}
	}
	return 0
}

func targetOf(p Port) uint32 {
	if p.TargetPort != 0 {
		return p.TargetPort
	}
	return p.Number
}

func orBridge(mode string) string {
	if mode == "" {
		return inventory.NetworkBridge
	}
	return mode
}
