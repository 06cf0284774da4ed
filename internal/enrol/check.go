package enrol

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// The ports that are the proxy's, now or in a later version.
const (
	firstProxyPort = 15000
	lastProxyPort  = 15090
)

// maxAppPorts is how many ports the platform's redirect takes.
const maxAppPorts = 15

// check refuses what ECS or the mesh could not run.
func check(def Definition, apps []map[string]any, opt Options) error {
	if mode, _ := def.Task["networkMode"].(string); mode != inventory.NetworkAWSVPC {
		return diag.Newf(diag.NetworkModeRefused, "network mode is %q; the proxy needs an address of the task's own", cmp.Or(mode, inventory.NetworkBridge))
	}
	if role, _ := def.Task["taskRoleArn"].(string); role == "" {
		return diag.Newf(diag.NoTaskRole, "the task definition has no taskRoleArn, so its tasks can prove no identity")
	}
	if len(apps)+1 > maxContainers {
		return diag.Newf(diag.TooManyContainers, "the task definition has %d containers and ECS accepts %d", len(apps), maxContainers)
	}
	if v := opt.PlatformVersion; fargate(def, opt) && olderThan(v, 1, 3) {
		return diag.Newf(diag.PlatformTooOld, "the service has platform version %s; containers wait for each other from 1.3.0 on", v)
	}
	ports, err := checkPorts(apps)
	if err != nil {
		return err
	}
	if ports == 0 && !opt.ClientOnly && def.Tags[TagPorts] == "" {
		return diag.New(diag.NoPortMappings, "no container of the task definition has a port mapping")
	}
	if err := checkCapture(def, apps, opt); err != nil {
		return err
	}
	if fargate(def, opt) {
		return checkFargate(def, apps, opt)
	}
	return nil
}

// fargate reports whether tasks of def run on Fargate, or would have to be able to.
func fargate(def Definition, opt Options) bool {
	return opt.LaunchType == inventory.LaunchFargate || slices.Contains(list(def.Task["requiresCompatibilities"]), any(inventory.LaunchFargate))
}

// checkPorts refuses ports of the proxy, and returns how many ports there are.
func checkPorts(apps []map[string]any) (ports int, err error) {
	for _, app := range apps {
		for _, p := range list(app["portMappings"]) {
			m, _ := p.(map[string]any)
			low, high, ok := mappedPorts(m)
			if !ok {
				continue
			}
			ports++
			if low > lastProxyPort || high < firstProxyPort {
				continue
			}
			clash := max(low, firstProxyPort)
			use := "reserves the ports from 15000 to 15090"
			if name := proxyPorts()[clash]; name != "" {
				use = "uses it for " + name
			}
			return ports, diag.Newf(diag.PortConflict, "container %q uses port %d; the proxy %s", app["name"], clash, use)
		}
	}
	return ports, nil
}

// mappedPorts returns the ports of a port mapping, which has one port or a range.
func mappedPorts(m map[string]any) (low, high int, ok bool) {
	if n, ok := number(m["containerPort"]); ok {
		return n, n, true
	}
	text, _ := m["containerPortRange"].(string)
	from, to, _ := strings.Cut(text, "-")
	low, err1 := strconv.Atoi(from)
	high, err2 := strconv.Atoi(to)
	return low, high, err1 == nil && err2 == nil
}

func proxyPorts() map[int]string {
	return map[int]string{
		mesh.AdminPort: "its admin interface", mesh.OutboundPort: "outbound capture", mesh.InboundPort: "inbound capture", mesh.HBONEPort: "HBONE",
		mesh.MetricsPort: "metrics", mesh.ReadinessPort: "readiness", mesh.DNSPort: "DNS", mesh.SOCKSPort: "SOCKS5",
	}
}

// checkCapture refuses ways of capture that the task cannot have.
func checkCapture(def Definition, apps []map[string]any, opt Options) error {
	switch opt.Capture {
	case CaptureRedirect:
		if fargate(def, opt) {
			return diag.New(diag.CaptureRefused, "capture redirect needs the capability NET_ADMIN, which Fargate gives to no container").
				WithFix("use --capture socks or --capture platform; for EC2 and Managed Instances take FARGATE out of requiresCompatibilities")
		}
	case CapturePlatform:
		if def.Task["proxyConfiguration"] != nil {
			return diag.New(diag.CaptureRefused, "the task definition has a proxyConfiguration already").WithFix("remove it, or use --capture socks")
		}
		if n := len(appPorts(apps)); n == 0 || n > maxAppPorts {
			return diag.Newf(diag.CaptureRefused, "capture platform takes the ports of the application, 1 to %d of them, and there are %d", maxAppPorts, n).
				WithFix("use --capture socks")
		}
	}
	return nil
}

// olderThan reports whether a platform version such as 1.4.0 is before major.minor. LATEST and what is no version is not.
func olderThan(version string, major, minor int) bool {
	parts := strings.Split(version, ".")
	if len(parts) < 2 {
		return false
	}
	a, err1 := strconv.Atoi(parts[0])
	b, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (a < major || a == major && b < minor)
}

// acyclic refuses containers that wait for each other: ECS would refuse the definition, and less clearly.
func acyclic(all []map[string]any) error {
	waits := map[string][]string{}
	for _, c := range all {
		name, _ := c["name"].(string)
		for _, d := range list(c["dependsOn"]) {
			m, _ := d.(map[string]any)
			on, _ := m["containerName"].(string)
			waits[name] = append(waits[name], on)
		}
	}
	var path []string
	done := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		if i := slices.Index(path, name); i >= 0 {
			return diag.Newf(diag.DependsOnCycle, "the containers wait for each other: %s", strings.Join(append(path[i:], name), " -> "))
		}
		if done[name] {
			return nil
		}
		path = append(path, name)
		for _, on := range waits[name] {
			if err := visit(on); err != nil {
				return err
			}
		}
		path, done[name] = path[:len(path)-1], true
		return nil
	}
	for _, c := range all {
		name, _ := c["name"].(string)
		if err := visit(name); err != nil {
			return err
		}
	}
	return nil
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
