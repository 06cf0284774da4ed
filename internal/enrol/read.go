package enrol

import (
	"cmp"
	"net"
	"strconv"
)

// Read returns the options with which a definition was enrolled; ok is false if it was not. What a person changed in the
// proxy's container by hand, beyond what Options can say, is not in them, so that Enrol with them undoes it.
func Read(def Definition) (opt Options, ok bool) {
	all, err := containers(def.Task)
	if err != nil {
		return Options{}, false
	}
	for _, c := range all {
		if !isProxy(c) {
			continue
		}
		env := environment(c)
		opt.Image, _ = c["image"].(string)
		opt.MemoryMiB, _ = number(c["memoryReservation"])
		opt.StopTimeout, _ = number(c["stopTimeout"])
		opt.CPU, _ = number(c["cpu"])
		opt.Network, opt.ClusterID, opt.TrustDomain, opt.RootPEM = env["NETWORK"], env["CLUSTER_ID"], env["TRUST_DOMAIN"], env["XDS_ROOT_CA"]
		if host, port, err := net.SplitHostPort(trimScheme(env["XDS_ADDRESS"])); err == nil {
			opt.Gateway = host
			if n, err := strconv.ParseUint(port, 10, 16); err == nil {
				opt.GatewayPort = uint16(n)
			}
		}
		opt.Capture = CaptureNone
		if env["UNSTABLE_ENABLE_SOCKS5"] == "true" {
			opt.Capture = CaptureSOCKS
		}
		if env["ISTHMUS_REDIRECT"] == "true" {
			opt.Capture = CaptureRedirect
		}
		if pc, has := def.Task["proxyConfiguration"].(map[string]any); has && pc["containerName"] == ContainerName {
			opt.Capture = CapturePlatform
		}
		opt.Namespace, opt.ServiceAccount = def.Tags[TagNamespace], def.Tags[TagServiceAccount]
		was := readBefore(c)
		opt.ProxyEnv = was.proxyEnv()
		opt.Proof = cmp.Or(Proof(env[proofVariable]), ProofSignature)
		opt.ClientOnly = true // whether it has ports was judged when it was enrolled
		return opt, true
	}
	return Options{}, false
}

func environment(container map[string]any) map[string]string {
	env := map[string]string{}
	for _, v := range list(container["environment"]) {
		m, _ := v.(map[string]any)
		name, _ := m["name"].(string)
		value, _ := m["value"].(string)
		env[name] = value
	}
	return env
}

func trimScheme(url string) string {
	const scheme = "https://"
	if len(url) > len(scheme) && url[:len(scheme)] == scheme {
		return url[len(scheme):]
	}
	return url
}
