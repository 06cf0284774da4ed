package ztunnel

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// environment reads variables and collects what is wrong with them.
type environment struct {
	values map[string]string
	mesh   proxyConfig
	errs   []error
}

func (e *environment) get(key string) string { return e.values[key] }

// meta returns an entry of the proxy's metadata: ISTIO_META_key, else proxyMetadata's, else otherwise.
func (e *environment) meta(key, otherwise string) string {
	if v, ok := e.values[metadataPrefix+key]; ok && v != "" {
		return v
	}
	if v := e.mesh.ProxyMetadata[key]; v != "" {
		return v
	}
	return otherwise
}

func (e *environment) or(key, otherwise string) string {
	if v, ok := e.values[key]; ok && v != "" {
		return v
	}
	return otherwise
}

func (e *environment) fail(key, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s: "+format, append([]any{key}, args...)...))
}

func (e *environment) boolean(key string, otherwise bool) bool {
	switch v := e.values[key]; v {
	case "":
		return otherwise
	case "true":
		return true
	case "false":
		return false
	default:
		e.fail(key, "%q is neither true nor false", v)
		return otherwise
	}
}

func (e *environment) duration(key string, otherwise time.Duration) time.Duration {
	v := e.values[key]
	if v == "" {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		e.fail(key, "%q is not a duration such as 5s, 10m or 24h", v)
		return otherwise
	}
	return d
}

func (e *environment) integer(key string, otherwise, low, high int) int {
	v := e.values[key]
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.fail(key, "%q is not a number from %d to %d", v, low, high)
		return otherwise
	}
	return n
}

func (e *environment) prefixed(prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range e.values {
		if name, ok := strings.CutPrefix(k, prefix); ok && name != "" {
			out[name] = v
		}
	}
	return out
}

// proxyConfig is the part of Istio's ProxyConfig that a ztunnel heeds; the rest of it is for Envoy.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   uint16            `json:"proxyAdminPort"`
	StatsPort        uint16            `json:"statsPort"`
	Concurrency      *int              `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// meshConfigFile is where Istio mounts its mesh configuration. Its path is relative, as ztunnel's is.
const meshConfigFile = "./etc/istio/config/mesh"

// maxMeshConfig limits the size of that file.
const maxMeshConfig = 4 << 20

// proxyConfig reads the mesh configuration file, if there is one, and PROXY_CONFIG, which wins.
func (e *environment) proxyConfig(c *Config) {
	if path, ok := mounted(meshConfigFile); ok {
		text, err := readLimited(path, maxMeshConfig)
		var file struct {
			DefaultConfig proxyConfig `json:"defaultConfig"`
		}
		if err == nil {
			err = yaml.Unmarshal(text, &file)
		}
		if err != nil {
			e.fail(path, "%v", err)
		}
		e.mesh = file.DefaultConfig
	}
	metadata := e.mesh.ProxyMetadata
	e.mesh.ProxyMetadata = nil
	if err := yaml.Unmarshal([]byte(e.get("PROXY_CONFIG")), &e.mesh); err != nil {
		e.fail("PROXY_CONFIG", "%v", err)
	}
	for k, v := range metadata {
		if _, own := e.mesh.ProxyMetadata[k]; !own {
			if e.mesh.ProxyMetadata == nil {
				e.mesh.ProxyMetadata = map[string]string{}
			}
			e.mesh.ProxyMetadata[k] = v
		}
	}
	if p := e.mesh.ProxyAdminPort; p != 0 {
		c.Listen.Admin = localhost + ":" + strconv.Itoa(int(p))
	}
	if p := e.mesh.StatsPort; p != 0 {
		c.Listen.Metrics = ":" + strconv.Itoa(int(p))
	}
}

// threads returns how many threads may run Go code: 0 means what Go finds out by itself, cgroup limits included.
func (e *environment) threads(cores int) int {
	v := e.get("ZTUNNEL_WORKER_THREADS")
	if v == "" && e.mesh.Concurrency != nil {
		v = strconv.Itoa(*e.mesh.Concurrency)
	}
	if v == "" || v == "0" {
		return 0
	}
	if percent, ok := strings.CutSuffix(v, "%"); ok {
		n, err := strconv.Atoi(percent)
		if err != nil || n < 1 || n > 100 {
			e.fail("ZTUNNEL_WORKER_THREADS", "%q is not a percentage from 1%% to 100%%", v)
		}
		return max(1, (cores*n+99)/100)
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 1024 {
		e.fail("ZTUNNEL_WORKER_THREADS", "%q is neither a number of threads nor a percentage", v)
	}
	return n
}
