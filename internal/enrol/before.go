package enrol

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// labelBefore is the docker label of the proxy's container in which Remove finds what Enrol replaced or added beyond its
// own container. It is there only if there was something.
const labelBefore = "isthmus.dev/before"

// before is what Enrol changed in a definition that Remove could not tell from the definition itself.
type before struct {
	Tags map[string]string   `json:"tags,omitempty"` // our tags as they were
	Env  map[string][]string `json:"env,omitempty"`  // container to the variables that it did not have
}

func ownTags(tags map[string]string) map[string]string {
	own := map[string]string{}
	for _, k := range []string{TagNamespace, TagServiceAccount} {
		if v, ok := tags[k]; ok {
			own[k] = v
		}
	}
	return own
}

func readBefore(proxy map[string]any) before {
	labels, _ := proxy["dockerLabels"].(map[string]any)
	text, _ := labels[labelBefore].(string)
	var b before
	if json.Unmarshal([]byte(text), &b) != nil {
		return before{} // no label, or one that a person spoilt
	}
	return b
}

func (b *before) write(proxy map[string]any) error {
	if len(b.Tags) == 0 && len(b.Env) == 0 {
		return nil
	}
	text, err := json.Marshal(b)
	if err != nil {
		return diag.Wrap(diag.TaskDefinitionBroken, err)
	}
	labels, _ := proxy["dockerLabels"].(map[string]any)
	labels[labelBefore] = string(text)
	return nil
}

// restore sets our tags back.
func (b *before) restore(tags map[string]string) {
	for _, k := range []string{TagNamespace, TagServiceAccount} {
		delete(tags, k)
		if v, ok := b.Tags[k]; ok {
			tags[k] = v
		}
	}
}

// ProxyEnv says which proxy variables Enrol gives to the application.
type ProxyEnv string

// The sets of proxy variables. Not every library survives each of them, so that none is the default.
const (
	ProxyEnvNone ProxyEnv = "none"
	ProxyEnvAll  ProxyEnv = "all"  // ALL_PROXY with SOCKS5
	ProxyEnvHTTP ProxyEnv = "http" // HTTP_PROXY and HTTPS_PROXY with HTTP CONNECT
)

// ProxyEnvs returns the sets of proxy variables.
func ProxyEnvs() []ProxyEnv { return []ProxyEnv{ProxyEnvNone, ProxyEnvAll, ProxyEnvHTTP} }

// NoProxy are the destinations that clients with proxy variables must reach by themselves: the task's credentials and
// metadata, which answer only to the task itself, AWS, and the task's own loopback.
const NoProxy = "169.254.170.2,169.254.169.254,169.254.170.23,127.0.0.1,localhost,.amazonaws.com"

// addProxyEnv gives an application its proxy variables. One that has some of its own, pointing to the proxy, is only kept
// from asking the proxy for its credentials.
func (b *before) addProxyEnv(app map[string]any, opt Options) {
	if opt.Capture == CaptureNone {
		return
	}
	name, _ := app["name"].(string)
	env := environment(app)
	set := func(key, value string) {
		if _, has := env[key]; has {
			return
		}
		env[key] = value
		app["environment"] = append(list(app["environment"]), map[string]any{"name": key, "value": value})
		if b.Env == nil {
			b.Env = map[string][]string{}
		}
		b.Env[name] = append(b.Env[name], key)
	}
	address := fmt.Sprintf("127.0.0.1:%d", mesh.SOCKSPort)
	switch opt.ProxyEnv {
	case ProxyEnvAll:
		set("ALL_PROXY", "socks5h://"+address)
	case ProxyEnvHTTP:
		for _, k := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
			set(k, "http://"+address)
		}
	}
	_, upper := env["NO_PROXY"]
	_, lower := env["no_proxy"]
	if !upper && !lower && usesProxy(env) {
		set("NO_PROXY", NoProxy)
		set("no_proxy", NoProxy)
	}
}

// usesProxy reports whether a proxy variable points to the proxy.
func usesProxy(env map[string]string) bool {
	for _, k := range []string{"ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"} {
		for _, v := range []string{env[k], env[strings.ToLower(k)]} {
			if strings.Contains(v, fmt.Sprintf("127.0.0.1:%d", mesh.SOCKSPort)) || strings.Contains(v, fmt.Sprintf("localhost:%d", mesh.SOCKSPort)) {
				return true
			}
		}
	}
	return false
}

func (b *before) removeProxyEnv(app map[string]any) {
	name, _ := app["name"].(string)
	added := b.Env[name]
	if len(added) == 0 {
		return
	}
	env := slices.DeleteFunc(list(app["environment"]), func(v any) bool {
		m, _ := v.(map[string]any)
		key, _ := m["name"].(string)
		return slices.Contains(added, key)
	})
	if len(env) == 0 {
		delete(app, "environment")
		return
	}
	app["environment"] = env
}

// proxyEnv is the set of variables that was asked for.
func (b *before) proxyEnv() ProxyEnv {
	for _, added := range b.Env {
		switch {
		case slices.Contains(added, "ALL_PROXY"):
			return ProxyEnvAll
		case slices.Contains(added, "HTTP_PROXY"), slices.Contains(added, "https_proxy"), slices.Contains(added, "HTTPS_PROXY"), slices.Contains(added, "http_proxy"):
			return ProxyEnvHTTP
		}
	}
	return ProxyEnvNone
}
