// Package enrol turns an ECS task definition into one whose tasks are in the mesh, and back. It is pure: a task
// definition in its wire form (the JSON of the ECS API, as maps) goes in and another comes out, and whatever it does
// not know is kept as it was.
//
// What is added: a container "ztunnel", a dependency of the other containers on its health, and the tags by which
// discovery and the broker know namespace and service account. Enrolling an enrolled definition renders it anew, so
// that settings of another cluster or an older version never survive.
package enrol

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Names that mark an enrolled task definition; discovery and the broker read the same.
const (
	ContainerName     = "ztunnel"
	ProxyLabel        = "isthmus.dev/proxy" // docker label of our container, value "true"
	TagServiceAccount = "ecs.solo.io/service-account"
	TagNamespace      = "ecs.solo.io/namespace"
	TagPorts          = "ecs.solo.io/ports"
)

// Limits of the ECS API for one task definition.
const (
	maxContainers      = 10
	maxDefinitionBytes = 64 << 10
)

// Definition is a task definition and its tags, which the ECS API keeps beside it.
type Definition struct {
	Task map[string]any    // members of RegisterTaskDefinition
	Tags map[string]string // tag key to value
}

// Capture says how the connections of the application reach the proxy.
type Capture string

// The ways of capture.
const (
	CaptureSOCKS    Capture = "socks"    // SOCKS5 and HTTP CONNECT on 127.0.0.1:15080; no privilege needed
	CapturePlatform Capture = "platform" // ECS proxyConfiguration redirects inside the task
	CaptureNone     Capture = "none"     // inbound only
)

// Options say what the proxy of the enrolled task is told.
type Options struct {
	Image          string // required; image of ztunnel
	Gateway        string // required; host or address of the east-west gateway, without port
	GatewayPort    uint16 // 0 means 15012
	RootPEM        string // required; the mesh's root certificates
	Namespace      string // required; namespace of the task's identity
	ServiceAccount string // required; service account of the task's identity
	Network        string // the mesh network of the task
	ClusterID      string // "" means "Kubernetes"
	TrustDomain    string // "" means "cluster.local"
	Capture        Capture
	ClientOnly     bool // a service without ports is meant
	MemoryMiB      int  // soft reservation; 0 means 64
	StopTimeout    int  // seconds the proxy may drain; 0 means 60
}

// Enrol returns def with the proxy in it. def is not changed.
func Enrol(def Definition, opt Options) (Definition, error) {
	opt = withDefaults(opt)
	if err := validate(opt); err != nil {
		return Definition{}, err
	}
	out, err := Remove(def)
	if err != nil {
		return Definition{}, err
	}
	apps, err := containers(out.Task)
	if err != nil {
		return Definition{}, err
	}
	if err := check(out, apps, opt); err != nil {
		return Definition{}, err
	}
	for _, app := range apps {
		if _, router := app["firelensConfiguration"]; router {
			continue // a log router that waited for the proxy could not carry the proxy's own logs
		}
		app["dependsOn"] = append(list(app["dependsOn"]), map[string]any{"containerName": ContainerName, "condition": "HEALTHY"})
	}
	all := make([]any, 0, len(apps)+1)
	for _, app := range apps {
		all = append(all, app)
	}
	out.Task["containerDefinitions"] = append(all, proxyContainer(apps, opt))
	if opt.Capture == CapturePlatform {
		out.Task["proxyConfiguration"] = proxyConfiguration(apps)
	}
	out.Tags[TagServiceAccount], out.Tags[TagNamespace] = opt.ServiceAccount, opt.Namespace
	b, err := json.Marshal(out.Task)
	if err != nil {
		return Definition{}, diag.Wrap(diag.TaskDefinitionBroken, err)
	}
	if len(b) > maxDefinitionBytes {
		return Definition{}, diag.Newf(diag.TaskDefinitionTooBig, "the enrolled task definition is %d bytes, ECS accepts %d", len(b), maxDefinitionBytes)
	}
	return out, nil
}

// Remove returns def without the proxy; a definition that was not enrolled comes back equal. Members that the API adds
// on reading and refuses on registering are dropped. def is not changed.
func Remove(def Definition) (Definition, error) {
	task, err := clone(def.Task)
	if err != nil {
		return Definition{}, err
	}
	dropReadOnly(task)
	all, err := containers(task)
	if err != nil {
		return Definition{}, err
	}
	enrolled := slices.ContainsFunc(all, isProxy)
	kept := make([]any, 0, len(all))
	for _, c := range all {
		if isProxy(c) {
			continue
		}
		if c["name"] == ContainerName {
			return Definition{}, diag.Newf(diag.ForeignProxy, "a container of this task definition is named %q already and is not ours", ContainerName)
		}
		if enrolled {
			removeDependency(c)
		}
		kept = append(kept, c)
	}
	task["containerDefinitions"] = kept
	tags := maps.Clone(def.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	if enrolled {
		if pc, ok := task["proxyConfiguration"].(map[string]any); ok && pc["containerName"] == ContainerName {
			delete(task, "proxyConfiguration")
		}
		delete(tags, TagNamespace)
	}
	return Definition{Task: task, Tags: tags}, nil
}

// Enrolled reports whether def holds our proxy.
func Enrolled(def Definition) bool {
	all, err := containers(def.Task)
	return err == nil && slices.ContainsFunc(all, isProxy)
}

// Equal reports whether registering b would make a revision that differs from a.
func Equal(a, b Definition) bool {
	ca, errA := canonical(a)
	cb, errB := canonical(b)
	return errA == nil && errB == nil && string(ca) == string(cb)
}

func canonical(d Definition) ([]byte, error) {
	task, err := clone(d.Task)
	if err != nil {
		return nil, err
	}
	dropReadOnly(task)
	return json.MarshalIndent(map[string]any{"task": dropEmpty(task), "tags": d.Tags}, "", "  ")
}

// dropReadOnly removes the members that the API adds on reading and refuses on registering.
func dropReadOnly(task map[string]any) {
	for _, k := range []string{"compatibilities", "deregisteredAt", "deleteRequestedAt", "registeredAt", "registeredBy", "requiresAttributes", "revision", "status", "taskDefinitionArn"} {
		delete(task, k)
	}
}

// dropEmpty removes members that say nothing: the API answers with empty lists where none were sent, and with cpu 0 for a
// container that reserves none.
func dropEmpty(v any) any {
	switch t := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range t {
			x = dropEmpty(x)
			if l, ok := x.([]any); ok && len(l) == 0 || x == nil || k == "cpu" && x == 0.0 {
				continue
			}
			out[k] = x
		}
		return out
	case []any:
		out := make([]any, 0, len(t))
		for _, x := range t {
			out = append(out, dropEmpty(x))
		}
		return out
	}
	return v
}

func withDefaults(o Options) Options {
	o.ClusterID = cmp.Or(o.ClusterID, "Kubernetes")
	o.TrustDomain = cmp.Or(o.TrustDomain, mesh.DefaultTrustDomain)
	o.Capture = cmp.Or(o.Capture, CaptureSOCKS)
	o.GatewayPort = cmp.Or(o.GatewayPort, mesh.XDSPort)
	o.MemoryMiB = cmp.Or(o.MemoryMiB, 64)
	o.StopTimeout = cmp.Or(o.StopTimeout, 60)
	return o
}

func validate(o Options) error {
	for _, f := range []struct{ name, value string }{{"image", o.Image}, {"gateway address", o.Gateway}, {"mesh root certificate", o.RootPEM}, {"namespace", o.Namespace}, {"service account", o.ServiceAccount}} {
		if f.value == "" {
			return diag.Newf(diag.ProxySettingMissing, "the %s of the proxy is not known", f.name)
		}
	}
	switch o.Capture {
	case CaptureSOCKS, CapturePlatform, CaptureNone:
		return nil
	}
	return diag.Newf(diag.ProxySettingMissing, "capture %q is not one of socks, platform, none", o.Capture)
}

// check refuses what ECS or the mesh could not run.
func check(def Definition, apps []map[string]any, opt Options) error {
	if mode, _ := def.Task["networkMode"].(string); mode != "awsvpc" {
		return diag.Newf(diag.NetworkModeRefused, "network mode is %q; the proxy needs an address of the task's own", cmp.Or(mode, "bridge"))
	}
	if role, _ := def.Task["taskRoleArn"].(string); role == "" {
		return diag.Newf(diag.NoTaskRole, "the task definition has no taskRoleArn, so its tasks can prove no identity")
	}
	if len(apps)+1 > maxContainers {
		return diag.Newf(diag.TooManyContainers, "the task definition has %d containers and ECS accepts %d", len(apps), maxContainers)
	}
	ports := 0
	for _, app := range apps {
		for _, p := range list(app["portMappings"]) {
			m, _ := p.(map[string]any)
			n, ok := number(m["containerPort"])
			if !ok {
				continue
			}
			ports++
			if use, clash := proxyPorts()[n]; clash {
				return diag.Newf(diag.PortConflict, "container %q uses port %d, which is the proxy's %s port", app["name"], n, use)
			}
		}
	}
	if ports == 0 && !opt.ClientOnly && def.Tags[TagPorts] == "" {
		return diag.New(diag.NoPortMappings, "no container of the task definition has a port mapping")
	}
	return nil
}

func proxyPorts() map[int]string {
	return map[int]string{
		mesh.AdminPort: "admin", mesh.OutboundPort: "outbound capture", mesh.InboundPort: "inbound capture", mesh.HBONEPort: "HBONE",
		mesh.MetricsPort: "metrics", mesh.ReadinessPort: "readiness", mesh.DNSPort: "DNS", mesh.SOCKSPort: "SOCKS5",
	}
}

func number(v any) (int, bool) {
	switch n := v.(type) {
	case float64:
		return int(n), true
	case int:
		return n, true
	case json.Number:
		i, err := strconv.Atoi(n.String())
		return i, err == nil
	}
	return 0, false
}
