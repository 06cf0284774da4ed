package enrol

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// Proof says how the proxy proves the task's role to the broker.
type Proof string

// The proofs. A web identity token is taken only where the account allows it and the role is one service account.
const (
	ProofSignature   Proof = "signature"
	ProofWebIdentity Proof = "web-identity"
)

// Proofs returns the proofs.
func Proofs() []Proof { return []Proof{ProofSignature, ProofWebIdentity} }

// proofVariable tells the proxy; without it the proof is a signature.
const proofVariable = "ISTHMUS_PROOF"

// proxyContainer renders the container definition of ztunnel.
func proxyContainer(apps []map[string]any, opt Options) map[string]any {
	gateway := "https://" + net.JoinHostPort(opt.Gateway, strconv.Itoa(int(opt.GatewayPort)))
	env := [][2]string{
		{"PROXY_MODE", "dedicated"},
		{"NETWORK", opt.Network},
		{"CLUSTER_ID", opt.ClusterID},
		{"TRUST_DOMAIN", opt.TrustDomain},
		{"XDS_ADDRESS", gateway},
		{"CA_ADDRESS", gateway},
		{"ALT_XDS_HOSTNAME", "istiod.istio-system.svc"},
		{"ALT_CA_HOSTNAME", "istiod.istio-system.svc"},
		{"XDS_ROOT_CA", opt.RootPEM},
		{"CA_ROOT_CA", opt.RootPEM},
		{"ISTHMUS_BROKER_ADDRESS", gateway},
		{"UNSTABLE_ENABLE_SOCKS5", strconv.FormatBool(opt.Capture != CaptureNone)}, // also for clients that were set up for it
		{"ISTHMUS_REDIRECT", strconv.FormatBool(opt.Capture == CaptureRedirect)},
		{"TERMINATION_GRACE_PERIOD_SECONDS", strconv.Itoa(opt.StopTimeout)},
	}
	if opt.Proof != ProofSignature {
		env = append(env, [2]string{proofVariable, string(opt.Proof)})
	}
	vars := make([]any, 0, len(env))
	for _, e := range env {
		vars = append(vars, map[string]any{"name": e[0], "value": e[1]})
	}
	user, capabilities := "1337:1337", map[string]any{"drop": []any{"ALL"}}
	if opt.Capture == CaptureRedirect {
		// A capability that is added is root's only: it is in the bounding set of others, and no use to them.
		user, capabilities["add"] = "0:0", []any{"NET_ADMIN"}
	}
	c := map[string]any{
		"name":                   ContainerName,
		"image":                  opt.Image,
		"essential":              true,
		"user":                   user,
		"readonlyRootFilesystem": true,
		"memoryReservation":      float64(opt.MemoryMiB),
		"environment":            vars,
		"portMappings":           []any{map[string]any{"containerPort": float64(mesh.HBONEPort), "hostPort": float64(mesh.HBONEPort), "protocol": "tcp", "name": "hbone"}},
		"healthCheck": map[string]any{
			"command": []any{"CMD", "/usr/local/bin/ztunnel", "health"}, "interval": 5.0, "timeout": 2.0, "retries": 3.0, "startPeriod": 60.0,
		},
		"linuxParameters": map[string]any{"capabilities": capabilities},
		"ulimits":         []any{map[string]any{"name": "nofile", "softLimit": 65535.0, "hardLimit": 65535.0}},
		"stopTimeout":     float64(opt.StopTimeout),
		"dockerLabels":    map[string]any{ProxyLabel: "true"},
	}
	if opt.CPU > 0 {
		c["cpu"] = float64(opt.CPU)
	}
	if logs := logConfiguration(apps); logs != nil {
		c["logConfiguration"] = logs
	}
	return c
}

// logConfiguration is that of the first application container with a stream prefix of the proxy's own. Logs that go
// through a log router are not copied: the router may not depend on the proxy, nor the proxy on the router.
func logConfiguration(apps []map[string]any) map[string]any {
	for _, app := range apps {
		logs, ok := app["logConfiguration"].(map[string]any)
		if !ok || logs["logDriver"] == "awsfirelens" {
			continue
		}
		out, err := clone(logs)
		if err != nil {
			return nil
		}
		if options, ok := out["options"].(map[string]any); ok && options["awslogs-group"] != nil {
			options["awslogs-stream-prefix"] = ContainerName
		}
		return out
	}
	return nil
}

// appPorts are the ports of the application's port mappings, ranges apart.
func appPorts(apps []map[string]any) (ports []string) {
	for _, app := range apps {
		for _, p := range list(app["portMappings"]) {
			m, _ := p.(map[string]any)
			if n, ok := number(m["containerPort"]); ok {
				ports = append(ports, strconv.Itoa(n))
			}
		}
	}
	return ports
}

// proxyConfiguration asks ECS itself to redirect the task's connections to the proxy.
func proxyConfiguration(apps []map[string]any) map[string]any {
	property := func(name, value string) any { return map[string]any{"name": name, "value": value} }
	return map[string]any{
		"type": "APPMESH", "containerName": ContainerName,
		"properties": []any{
			property("IgnoredUID", "1337"),
			property("AppPorts", strings.Join(appPorts(apps), ",")),
			property("ProxyIngressPort", strconv.Itoa(mesh.InboundPort)),
			property("ProxyEgressPort", strconv.Itoa(mesh.OutboundPort)),
			property("EgressIgnoredIPs", "169.254.170.2,169.254.169.254"),
		},
	}
}

func isProxy(c map[string]any) bool {
	labels, _ := c["dockerLabels"].(map[string]any)
	return labels[ProxyLabel] == "true"
}

// isRouter reports whether a container carries the logs of the others.
func isRouter(c map[string]any) bool { return c["firelensConfiguration"] != nil }

func removeDependency(c map[string]any) {
	deps := slices.DeleteFunc(list(c["dependsOn"]), func(d any) bool {
		m, _ := d.(map[string]any)
		return m["containerName"] == ContainerName
	})
	if len(deps) == 0 {
		delete(c, "dependsOn")
		return
	}
	c["dependsOn"] = deps
}

// containers returns the containers of a task definition; they are task's own, to be changed in place.
func containers(task map[string]any) ([]map[string]any, error) {
	all := list(task["containerDefinitions"])
	if len(all) == 0 {
		return nil, diag.New(diag.TaskDefinitionBroken, "the task definition has no containerDefinitions")
	}
	out := make([]map[string]any, 0, len(all))
	for i, c := range all {
		m, ok := c.(map[string]any)
		name, named := m["name"].(string)
		if !ok || !named || name == "" {
			return nil, diag.Newf(diag.TaskDefinitionBroken, "container %d of the task definition is not an object with a name", i)
		}
		out = append(out, m)
	}
	return out, nil
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func clone(m map[string]any) (map[string]any, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, diag.Wrap(diag.TaskDefinitionBroken, err)
	}
	var out map[string]any
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, diag.Wrap(diag.TaskDefinitionBroken, err)
	}
	if out == nil {
		return nil, diag.New(diag.TaskDefinitionBroken, "the task definition is empty")
	}
	return out, nil
}

// Diff describes in one line each what b has that a has not; values longer than a line are named, not shown.
func Diff(a, b Definition) []string {
	var out []string
	diff(&out, "", toAny(a), toAny(b))
	return out
}

func toAny(d Definition) map[string]any {
	m := map[string]any{}
	if task, err := clone(d.Task); err == nil {
		dropReadOnly(task)
		m["task"] = dropEmpty(task)
	}
	tags := map[string]any{}
	for k, v := range d.Tags {
		tags[k] = v
	}
	m["tags"] = tags
	return m
}

func diff(out *[]string, path string, a, b any) {
	switch bt := b.(type) {
	case map[string]any:
		at, _ := a.(map[string]any)
		for _, k := range sortedKeys(at, bt) {
			p := strings.TrimPrefix(path+"."+k, ".")
			av, inA := at[k]
			bv, inB := bt[k]
			switch {
			case !inA:
				*out = append(*out, fmt.Sprintf("+ %s: %s", p, brief(bv)))
			case !inB:
				*out = append(*out, fmt.Sprintf("- %s: %s", p, brief(av)))
			default:
				diff(out, p, av, bv)
			}
		}
	case []any:
		at, _ := a.([]any)
		diff(out, path, byName(at), byName(bt))
	default:
		if brief(a) != brief(b) {
			*out = append(*out, fmt.Sprintf("~ %s: %s -> %s", path, brief(a), brief(b)))
		}
	}
}

// byName keys the elements of a list by their name, so that a list that grew at the front differs in one line.
func byName(l []any) map[string]any {
	out := map[string]any{}
	for i, v := range l {
		key := strconv.Itoa(i)
		if m, ok := v.(map[string]any); ok {
			name, _ := m["name"].(string)
			dep, _ := m["containerName"].(string)
			key = cmp.Or(name, dep, key)
		}
		out[key] = v
	}
	return out
}

func sortedKeys(a, b map[string]any) []string {
	var keys []string
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func brief(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	if len(b) > 100 {
		return string(b[:97]) + "..."
	}
	return string(b)
}
