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
	CaptureRedirect Capture = "redirect" // ztunnel redirects by itself; needs NET_ADMIN, so not on Fargate
	CapturePlatform Capture = "platform" // ECS proxyConfiguration redirects inside the task
	CaptureNone     Capture = "none"     // inbound only
)

// Captures returns the ways of capture.
func Captures() []Capture {
	return []Capture{CaptureSOCKS, CaptureRedirect, CapturePlatform, CaptureNone}
}

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
	ProxyEnv       ProxyEnv
	Proof          Proof
	CPU            int // CPU units of the task that the proxy reserves; 0 means none
	MemoryMiB      int // soft reservation; 0 means 64
	StopTimeout    int // seconds the proxy may drain; 0 means 60
	// LaunchType and PlatformVersion are the service's, as far as they are known; "" is judged by the definition alone.
	LaunchType, PlatformVersion string
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
	was := before{Tags: ownTags(out.Tags)}
	for _, app := range apps {
		if isRouter(app) {
			continue // a log router that waited for the proxy could not carry the proxy's own logs
		}
		was.addProxyEnv(app, opt)
		app["dependsOn"] = append(list(app["dependsOn"]), map[string]any{"containerName": ContainerName, "condition": "HEALTHY"})
	}
	all := make([]any, 0, len(apps)+1)
	for _, app := range apps {
		all = append(all, app)
	}
	proxy := proxyContainer(apps, opt)
	if err := was.write(proxy); err != nil {
		return Definition{}, err
	}
	if err := acyclic(append(slices.Clone(apps), proxy)); err != nil {
		return Definition{}, err
	}
	out.Task["containerDefinitions"] = append(all, proxy)
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

// Remove returns def as it was before Enrol; a definition that was not enrolled comes back equal. Members that the API adds
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
	i := slices.IndexFunc(all, isProxy)
	enrolled := i >= 0
	var was before
	if enrolled {
		was = readBefore(all[i])
	}
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
			was.removeProxyEnv(c)
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
		was.restore(tags)
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
	o.ProxyEnv = cmp.Or(o.ProxyEnv, ProxyEnvNone)
	o.Proof = cmp.Or(o.Proof, ProofSignature)
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
	if !slices.Contains(Captures(), o.Capture) {
		return diag.Newf(diag.ProxySettingMissing, "capture %q is not one of %v", o.Capture, Captures())
	}
	if !slices.Contains(ProxyEnvs(), o.ProxyEnv) {
		return diag.Newf(diag.ProxySettingMissing, "proxy variables %q are not one of %v", o.ProxyEnv, ProxyEnvs())
	}
	if !slices.Contains(Proofs(), o.Proof) {
		return diag.Newf(diag.ProxySettingMissing, "proof %q is not one of %v", o.Proof, Proofs())
	}
	return nil
}
