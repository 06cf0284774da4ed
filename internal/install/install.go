// Package install renders the Kubernetes manifests of Isthmus: the controller with exactly the rights it needs, and the
// workload behind an east-west Gateway. `isthmus install`, the Helm chart's test and the lab all render from here, so
// there is one description of what runs.
package install

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
)

//go:embed templates/*.tmpl
var files embed.FS

// Default names and images.
const (
	DefaultNamespace  = "istio-system"
	DefaultImage      = "isthmus/controller:dev"
	DefaultProxyImage = "isthmus/ztunnel:dev"
	Name              = "isthmus-controller"
	BrokerName        = "isthmus-broker"
)

// Config is what can be chosen about an installation.
type Config struct {
	// Namespace is istiod's; empty means istio-system.
	Namespace string
	// Image and ProxyImage are those of the controller and of the east-west gateway; empty means the defaults.
	Image           string
	ProxyImage      string
	ImagePullPolicy string // empty means IfNotPresent
	ImagePullSecret string
	// Replicas is the number of controllers; 0 means 2.
	Replicas int
	// Settings is the controller's configuration file.
	Settings settings.File
	// RoleARN is an IAM role for the service account (IRSA). Empty with EKS Pod Identity, as in the guide.
	RoleARN string
	// TaskNamespaces limits the broker's rights to these namespaces; they must exist. Empty means all.
	TaskNamespaces []string
	// Env is added to the controller's environment, for example AWS_REGION or AWS_ENDPOINT_URL.
	Env map[string]string
	// Args are added to the controller's command line.
	Args []string
	// MemoryLimit is GOMEMLIMIT; empty means 900MiB, under the container's limit of 1 GiB.
	MemoryLimit string
}

type pair struct{ Name, Value string }

type controllerView struct {
	Config
	ConfigYAML string
	ConfigHash string
	EnvList    []pair
}

var (
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	imagePattern = regexp.MustCompile(`^[\w.:/@-]{1,512}$`)
	envPattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	labelPattern = regexp.MustCompile(`^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$`)
)

// Render returns the manifests of the controller as YAML.
func (c Config) Render() ([]byte, error) {
	c.Namespace = cmp.Or(c.Namespace, DefaultNamespace)
	c.Image = cmp.Or(c.Image, DefaultImage)
	c.ProxyImage = cmp.Or(c.ProxyImage, DefaultProxyImage)
	c.ImagePullPolicy = cmp.Or(c.ImagePullPolicy, "IfNotPresent")
	c.Replicas = cmp.Or(c.Replicas, 2)
	c.MemoryLimit = cmp.Or(c.MemoryLimit, "900MiB")
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	text, err := c.Settings.Marshal()
	if err != nil {
		return nil, fmt.Errorf("install: encode settings: %w", err)
	}
	// What we write must be what the controller accepts; finding out here is earlier than in a crash loop.
	if _, err := settings.Parse(text); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	sum := sha256.Sum256(text)
	view := controllerView{Config: c, ConfigYAML: strings.TrimRight(string(text), "\n"), ConfigHash: hex.EncodeToString(sum[:8]), EnvList: sorted(c.Env)}
	definition, err := CRDs()
	if err != nil {
		return nil, err
	}
	rest, err := execute("controller.yaml.tmpl", view)
	return append(definition, rest...), err
}

// CRDs returns the definition of ECSAccount as YAML, which Config.Render includes. It ends in a document separator.
func CRDs() ([]byte, error) { return execute("ecsaccount.yaml.tmpl", nil) }

func (c Config) validate() error {
	var errs []error
	for _, n := range append([]string{c.Namespace}, c.TaskNamespaces...) {
		if !namePattern.MatchString(n) {
			errs = append(errs, fmt.Errorf("%q is not a namespace", n))
		}
	}
	for _, i := range []string{c.Image, c.ProxyImage} {
		if !imagePattern.MatchString(i) {
			errs = append(errs, fmt.Errorf("%q is not an image", i))
		}
	}
	if c.ImagePullSecret != "" && !namePattern.MatchString(c.ImagePullSecret) {
		errs = append(errs, fmt.Errorf("%q is not a secret", c.ImagePullSecret))
	}
	if !slices.Contains([]string{"Always", "IfNotPresent", "Never"}, c.ImagePullPolicy) {
		errs = append(errs, fmt.Errorf("%q is not an image pull policy", c.ImagePullPolicy))
	}
	if c.Replicas < 1 || c.Replicas > 10 {
		errs = append(errs, fmt.Errorf("%d replicas: want 1 to 10", c.Replicas))
	}
	for k := range c.Env {
		if !envPattern.MatchString(k) {
			errs = append(errs, fmt.Errorf("%q is not an environment variable", k))
		}
	}
	return errors.Join(errs...)
}

// Gateway is the workload behind one Gateway of class istio-eastwest.
type Gateway struct {
	// Gateway is the Gateway's name, Namespace its namespace and UID its uid, for the owner reference.
	Gateway   string
	Namespace string
	UID       string
	// Image is ztunnel's; empty means the default. Replicas 0 means 1.
	Image    string
	Replicas int

	Network       string
	ClusterID     string // empty means Kubernetes
	TrustDomain   string // empty means cluster.local
	IstiodAddress string // empty means https://istiod.NAMESPACE.svc:15012
	// Ports are those of the listeners.
	Ports []GatewayPort
	// TLSRoutes are the routes of the TLS passthrough listener: server name to host:port.
	TLSRoutes map[string]string
	// Labels and Annotations are those of the Gateway's spec.infrastructure and the network label.
	Labels      map[string]string
	Annotations map[string]string
}

// GatewayPort is one port of the gateway's Service.
type GatewayPort struct {
	Name   string
	Port   int32
	Target int32
}

// gatewayFields lets the view embed Gateway while .Gateway stays the name in the template.
type gatewayFields = Gateway

type gatewayView struct {
	gatewayFields
	Name           string
	TLSRoutes      string
	LabelList      []pair
	AnnotationList []pair
	ContainerPorts []GatewayPort
}

// GatewayName returns the name of what stands behind a Gateway, as Istio forms it: NAME-CLASS.
func GatewayName(gateway string) string { return gateway + "-istio-eastwest" }

// Render returns the gateway's ServiceAccount, Deployment and Service as YAML.
func (g Gateway) Render() ([]byte, error) {
	g.Image = cmp.Or(g.Image, DefaultProxyImage)
	g.Replicas = cmp.Or(g.Replicas, 1)
	g.ClusterID = cmp.Or(g.ClusterID, "Kubernetes")
	g.TrustDomain = cmp.Or(g.TrustDomain, "cluster.local")
	g.IstiodAddress = cmp.Or(g.IstiodAddress, "https://istiod."+cmp.Or(g.Namespace, DefaultNamespace)+".svc:15012")
	if !namePattern.MatchString(g.Gateway) || !namePattern.MatchString(g.Namespace) || len(GatewayName(g.Gateway)) > 63 {
		return nil, fmt.Errorf("install: gateway %q/%q: not a name, or too long", g.Namespace, g.Gateway)
	}
	if !imagePattern.MatchString(g.Image) {
		return nil, fmt.Errorf("install: %q is not an image", g.Image)
	}
	if len(g.Ports) == 0 {
		return nil, errors.New("install: Gateway.Ports is required")
	}
	for _, m := range []map[string]string{g.Labels, g.Annotations} {
		for k := range m {
			if !labelPattern.MatchString(k) {
				return nil, fmt.Errorf("install: %q is not a label key", k)
			}
		}
	}
	view := gatewayView{gatewayFields: g, Name: GatewayName(g.Gateway), LabelList: sorted(g.Labels), AnnotationList: sorted(g.Annotations)}
	for _, r := range sorted(g.TLSRoutes) {
		if view.TLSRoutes != "" {
			view.TLSRoutes += ","
		}
		view.TLSRoutes += r.Name + "=" + r.Value
	}
	for _, p := range g.Ports {
		if !namePattern.MatchString(p.Name) || p.Port < 1 || p.Port > 65535 || p.Target < 1 || p.Target > 65535 {
			return nil, fmt.Errorf("install: gateway port %+v is not valid", p)
		}
		if !slices.ContainsFunc(view.ContainerPorts, func(o GatewayPort) bool { return o.Target == p.Target }) {
			view.ContainerPorts = append(view.ContainerPorts, GatewayPort{Name: fmt.Sprintf("p%d", p.Target), Target: p.Target})
		}
	}
	return execute("gateway.yaml.tmpl", view)
}

func sorted(m map[string]string) []pair {
	out := make([]pair, 0, len(m))
	for k, v := range m {
		out = append(out, pair{k, v})
	}
	slices.SortFunc(out, func(a, b pair) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func execute(name string, view any) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{"q": quote, "indent": indent}).ParseFS(files, "templates/"+name)
	if err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, view); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	return b.Bytes(), nil
}

// quote returns a YAML string: JSON's quoting is also YAML's, so nothing in a value can become structure.
func quote(s string) (string, error) {
	b, err := json.Marshal(s)
	return string(b), err
}

func indent(n int, s string) string {
	pad := strings.Repeat(" ", n)
	return pad + strings.ReplaceAll(s, "\n", "\n"+pad)
}
