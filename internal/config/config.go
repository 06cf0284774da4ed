// Package config is the configuration of the isthmus command line: one file for accounts, region and names, the guide's
// variables (those of its env-config.sh) on top, and flags on top of those.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// FileName is the configuration file looked for in the working directory when none is named.
const FileName = "isthmus.yaml"

// APIVersion and Kind head the file.
const (
	APIVersion = "isthmus.dev/v1alpha1"
	Kind       = "Config"
)

// Config is everything the command line needs to know about an installation.
type Config struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`

	// ClusterName is the guide's CLUSTER_NAME: the EKS cluster, and the middle of each ECS cluster's name.
	ClusterName string `json:"clusterName"`
	// Account is the 12-digit id of the AWS account (LOCAL_ACCOUNT); empty means "ask AWS".
	Account string `json:"account,omitempty"`
	// Profile is the AWS profile (LOCAL_ACCOUNT_PROFILE).
	Profile string `json:"profile,omitempty"`
	// Region is the AWS region (AWS_REGION).
	Region string `json:"region"`
	// OwnerName tags what is made (OWNER_NAME).
	OwnerName string `json:"ownerName,omitempty"`
	// Clusters is the number of ECS clusters, and FirstCluster the number of the first; 0 means 1. An external account
	// goes on counting where the account of the EKS cluster ends.
	Clusters     int `json:"clusters"`
	FirstCluster int `json:"firstCluster,omitempty"`
	// Domain ends the host name of each ECS service.
	Domain string `json:"domain"`
	// Network is the mesh network of the tasks; it must be istiod's own.
	Network string `json:"network"`
	// ServiceAccount is the service account of the ECS services in each namespace.
	ServiceAccount string `json:"serviceAccount"`
	// TaskRole is the path and name of the role of the ECS tasks.
	TaskRole string `json:"taskRole"`
	// DiscoveryRole is the name of the role that discovery assumes.
	DiscoveryRole string `json:"discoveryRole"`
	// ControllerRole is the name of the role of the controller's pod (EKS Pod Identity).
	ControllerRole string `json:"controllerRole,omitempty"`
	// Gateway is the east-west gateway, as namespace/name.
	Gateway string `json:"gateway"`
	// Events has ECS tell the controller of changes, by EventBridge and SQS, instead of waiting for the next sweep.
	Events bool `json:"events,omitempty"`
	// WebIdentity is the mesh (the broker's audience, which is the trust domain unless it was told another) for which the
	// task role may have web identity tokens; empty means that it may not.
	WebIdentity string `json:"webIdentity,omitempty"`
	// EC2Hosts lets discovery read the EC2 hosts of tasks in bridge and host network mode, which are plain endpoints at the
	// addresses of these.
	EC2Hosts bool `json:"ec2Hosts,omitempty"`
	// Keep is what `isthmus ecs infra apply` leaves though it did not make it: policies of roles by name or ARN, and rules
	// of the security group in the words of `infra plan`, such as "tcp port 443 from 10.0.0.0/8".
	Keep []string `json:"keep,omitempty"`
	// ProxyImage is the image of ztunnel in ECS tasks.
	ProxyImage string `json:"proxyImage"`

	// Home is set when the EKS cluster is in another account than this configuration's ECS clusters: then Account and
	// Profile are those of the guide's external account, and its ECS clusters are in a VPC of their own that is peered
	// with the EKS cluster's.
	Home *Home `json:"home,omitempty"`
}

// Home is the account of the EKS cluster as an external account sees it.
type Home struct {
	// Account is its 12-digit id (LOCAL_ACCOUNT); empty means "ask AWS".
	Account string `json:"account,omitempty"`
	// Profile is its AWS profile (LOCAL_ACCOUNT_PROFILE).
	Profile string `json:"profile,omitempty"`
	// VPC is the name of the VPC of the external account, and VPCRange its addresses.
	VPC      string `json:"vpc"`
	VPCRange string `json:"vpcRange"`
}

// Default returns the configuration of the guide.
func Default() Config {
	return Config{
		APIVersion: APIVersion, Kind: Kind,
		ClusterName: "demo", Region: "us-east-2", Clusters: 2, Domain: "ecs.local", Network: "eks",
		ServiceAccount: "ecs-demo-sa-local", TaskRole: "/ecs/ambient/eks-ecs-task-role", DiscoveryRole: "istiod-local",
		Gateway: "istio-system/eastwest", ProxyImage: "isthmus/ztunnel:dev",
	}
}

// External returns the guide's configuration of the second account in scenario 3.
func External() Config {
	c := Default()
	c.Clusters, c.FirstCluster = 1, 3
	c.Domain, c.ServiceAccount, c.DiscoveryRole = "ecs.external", "ecs-demo-sa-external", "istiod-external"
	c.Profile = "external"
	c.Home = &Home{VPC: "istio-ecs-external-vpc", VPCRange: "10.1.0.0/16"}
	return c
}

// OfHome is the configuration with which the account of the EKS cluster is reached. Without Home it is c itself.
func (c Config) OfHome() Config {
	if c.Home != nil {
		c.Account, c.Profile, c.Home = c.Home.Account, c.Home.Profile, nil
	}
	return c
}

// ECSClusters returns the names of the ECS clusters: ecs-<ClusterName>-1 and so on.
func (c Config) ECSClusters() []string {
	out := make([]string, c.Clusters)
	for i := range out {
		out[i] = fmt.Sprintf("ecs-%s-%d", c.ClusterName, max(c.FirstCluster, 1)+i)
	}
	return out
}

// ControllerRoleName is ControllerRole, or the guide's istiod-eks-ecs-<ClusterName>.
func (c Config) ControllerRoleName() string {
	if c.ControllerRole != "" {
		return c.ControllerRole
	}
	return "istiod-eks-ecs-" + c.ClusterName
}

// TaskRoleName is the last element of TaskRole.
func (c Config) TaskRoleName() string { return c.TaskRole[strings.LastIndex(c.TaskRole, "/")+1:] }

// TaskRolePath is TaskRole up to and with its last slash.
func (c Config) TaskRolePath() string {
	if i := strings.LastIndex(c.TaskRole, "/"); i >= 0 {
		return c.TaskRole[:i+1]
	}
	return "/"
}

// Load reads the file at path over the defaults, then lays the guide's variables of environ over it. An empty path means
// FileName in dir, which may be missing. Unknown fields are an error.
func Load(dir, path string, environ []string) (Config, error) {
	c := Default()
	named := path != ""
	if !named {
		path = filepath.Join(dir, FileName)
	}
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := yaml.UnmarshalStrict(b, &c); err != nil {
			return Config{}, fmt.Errorf("read %s: %w", path, err)
		}
	case named || !errors.Is(err, os.ErrNotExist):
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	if err := c.overlay(environ); err != nil {
		return Config{}, err
	}
	return c, c.Validate()
}

// overlay sets what the environment says. The names are those of the guide's env-config.sh.
func (c *Config) overlay(environ []string) error {
	text := map[string]*string{
		"CLUSTER_NAME": &c.ClusterName, "LOCAL_ACCOUNT": &c.Account, "LOCAL_ACCOUNT_PROFILE": &c.Profile, "AWS_REGION": &c.Region,
		"OWNER_NAME": &c.OwnerName, "ISTHMUS_DOMAIN": &c.Domain, "ISTHMUS_NETWORK": &c.Network, "ISTHMUS_SERVICE_ACCOUNT": &c.ServiceAccount,
		"ISTHMUS_TASK_ROLE": &c.TaskRole, "ISTHMUS_DISCOVERY_ROLE": &c.DiscoveryRole, "ISTHMUS_CONTROLLER_ROLE": &c.ControllerRole,
		"ISTHMUS_GATEWAY": &c.Gateway, "ISTHMUS_PROXY_IMAGE": &c.ProxyImage,
	}
	if c.Home != nil {
		// What the variables call local is home, and what tells two accounts apart comes from the file alone.
		text["LOCAL_ACCOUNT"], text["LOCAL_ACCOUNT_PROFILE"] = &c.Home.Account, &c.Home.Profile
		text["EXTERNAL_ACCOUNT"], text["EXTERNAL_ACCOUNT_PROFILE"] = &c.Account, &c.Profile
		for _, name := range []string{"ISTHMUS_DOMAIN", "ISTHMUS_SERVICE_ACCOUNT", "ISTHMUS_TASK_ROLE", "ISTHMUS_DISCOVERY_ROLE"} {
			delete(text, name)
		}
	}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if v == "" {
			continue
		}
		if field, ok := text[k]; ok {
			*field = v
		}
		if k == "ISTHMUS_CLUSTERS" && c.Home == nil {
			n, err := strconv.Atoi(v)
			if err != nil {
				return fmt.Errorf("ISTHMUS_CLUSTERS=%q is not a number", v)
			}
			c.Clusters = n
		}
	}
	return nil
}

var (
	nameRE    = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]{0,99}$`)
	accountRE = regexp.MustCompile(`^[0-9]{12}$`)
	regionRE  = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]$`)
	domainRE  = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	// audienceRE has neither * nor ?, which a policy would take for a wildcard.
	audienceRE = regexp.MustCompile(`^[A-Za-z0-9._:/-]{1,255}$`)

	roleRE = regexp.MustCompile(`^/?([\w+=,.@-]+/)*[\w+=,.@-]{1,64}$`)
)

// maxFirstCluster bounds FirstCluster, so that names stay short.
const maxFirstCluster = 9999

// validate returns every problem of the home account. The VPC's range must leave room for the guide's four subnets.
func (h Home) validate() (errs []error) {
	if h.Account != "" && !accountRE.MatchString(h.Account) {
		errs = append(errs, fmt.Errorf("home.account %q: want 12 digits", h.Account))
	}
	if !nameRE.MatchString(h.VPC) {
		errs = append(errs, fmt.Errorf("home.vpc %q: want the name of the external account's VPC", h.VPC))
	}
	if p, err := netip.ParsePrefix(h.VPCRange); err != nil || p != p.Masked() || !p.Addr().Is4() || p.Bits() < 16 || p.Bits() > 20 {
		errs = append(errs, fmt.Errorf("home.vpcRange %q: want an IPv4 range between /16 and /20, such as 10.1.0.0/16", h.VPCRange))
	}
	return errs
}

// maxClusters bounds Clusters; AWS's default quota is far above it.
const maxClusters = 100

// Validate returns every problem of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, value, want string) {
		errs = append(errs, fmt.Errorf("%s %q: want %s", field, value, want))
	}
	if c.APIVersion != APIVersion || c.Kind != Kind {
		bad("apiVersion and kind", c.APIVersion+" "+c.Kind, APIVersion+" "+Kind)
	}
	if !nameRE.MatchString(c.ClusterName) {
		bad("clusterName", c.ClusterName, "letters, digits and hyphens, at most 100")
	}
	if c.Account != "" && !accountRE.MatchString(c.Account) {
		bad("account", c.Account, "12 digits")
	}
	if !regionRE.MatchString(c.Region) {
		bad("region", c.Region, "an AWS region such as us-east-2")
	}
	if !domainRE.MatchString(c.Domain) {
		bad("domain", c.Domain, "a DNS name such as ecs.local")
	}
	if c.Clusters < 1 || c.Clusters > maxClusters {
		bad("clusters", strconv.Itoa(c.Clusters), fmt.Sprintf("1 to %d", maxClusters))
	}
	if c.FirstCluster < 0 || c.FirstCluster > maxFirstCluster {
		bad("firstCluster", strconv.Itoa(c.FirstCluster), fmt.Sprintf("0 to %d", maxFirstCluster))
	}
	if c.WebIdentity != "" && !audienceRE.MatchString(c.WebIdentity) {
		bad("webIdentity", c.WebIdentity, "the mesh's trust domain, such as cluster.local")
	}
	if c.Home != nil {
		errs = append(errs, c.Home.validate()...)
	}
	if !roleRE.MatchString(c.TaskRole) {
		bad("taskRole", c.TaskRole, "a role name with an optional path")
	}
	if !roleRE.MatchString(c.DiscoveryRole) {
		bad("discoveryRole", c.DiscoveryRole, "a role name")
	}
	if ns, name, ok := strings.Cut(c.Gateway, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		bad("gateway", c.Gateway, "namespace/name")
	}
	if !domainRE.MatchString(c.ServiceAccount) {
		bad("serviceAccount", c.ServiceAccount, "a Kubernetes name")
	}
	return errors.Join(errs...)
}

// Marshal returns c as the text of a configuration file.
func (c Config) Marshal() ([]byte, error) {
	b, err := yaml.Marshal(c)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString("# Configuration of the isthmus command line. The variables of the guide's env-config.sh, where set, win over it.\n")
	out.Write(b)
	return out.Bytes(), nil
}
