package controller

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/install"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Options are the flags. Each flag --some-name is also the environment variable ISTHMUS_SOME_NAME; the flag wins.
type Options struct {
	ConfigFile  string
	Kubeconfig  string
	KubeContext string
	Namespace   string

	Once   bool
	DryRun bool

	BrokerAddress    string
	BrokerAudience   string
	BrokerSourceRate float64
	BrokerRoleRate   float64
	STSEndpoint      string

	WebIdentityEndpoint string

	RevokeInterval time.Duration
	LookupMaxAge   time.Duration

	IstiodAddress  string
	RootCert       string
	Token          string
	ServiceAccount string

	GatewayImage    string
	GatewayReplicas int

	MonitoringAddress string
	LeaseDuration     time.Duration
	KubeQPS           float64
	LogLevel          string
	LogFormat         string
	Version           bool
}

// ParseOptions reads flags and environment.
func ParseOptions(args, environ []string, output io.Writer) (Options, error) {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	var o Options
	fs := flag.NewFlagSet("isthmus-controller", flag.ContinueOnError)
	fs.SetOutput(output)
	fs.StringVar(&o.ConfigFile, "config", "/etc/isthmus/config.yaml", "configuration `file`: accounts, sweep interval, network")
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file`; empty means KUBECONFIG, then the pod's service account")
	fs.StringVar(&o.KubeContext, "kube-context", "", "kubeconfig `context`")
	fs.StringVar(&o.Namespace, "namespace", orDefault(env["POD_NAMESPACE"], kube.DefaultSystemNS), "`namespace` of istiod and of this controller")
	fs.BoolVar(&o.Once, "once", false, "sweep, plan and write once, print the plan, and exit")
	fs.BoolVar(&o.DryRun, "dry-run", false, "write nothing; with --once print the plan")
	fs.StringVar(&o.BrokerAddress, "broker-address", ":8443", "`address` of the broker; empty means no broker")
	fs.StringVar(&o.BrokerAudience, "broker-audience", "", "what proofs must be meant for; empty means the trust domain")
	fs.Float64Var(&o.BrokerSourceRate, "broker-source-rate", 100, "requests per second that one address may make")
	fs.Float64Var(&o.BrokerRoleRate, "broker-role-rate", 50, "requests per second that the tasks of one role may make")
	fs.StringVar(&o.STSEndpoint, "sts-endpoint", "", "`URL` of AWS STS for proofs; empty means each region's own")
	fs.StringVar(&o.WebIdentityEndpoint, "web-identity-endpoint", "", "`URL` asked for the keys of web identity tokens; empty means each account's issuer")
	fs.DurationVar(&o.RevokeInterval, "revoke-interval", 10*time.Second, "time between looks for tasks that ended")
	fs.DurationVar(&o.LookupMaxAge, "lookup-max-age", 24*time.Hour, "how long the broker decides by what was last read of ECS while ECS cannot be asked")
	fs.StringVar(&o.IstiodAddress, "istiod-address", "", "`address` of istiod's CA; empty means istiod.NAMESPACE.svc:15012")
	fs.StringVar(&o.RootCert, "root-cert", "/var/run/secrets/istio/root-cert.pem", "`file` with the mesh root")
	fs.StringVar(&o.Token, "token", "/var/run/secrets/tokens/istio-token", "`file` with this controller's own token for istiod")
	fs.StringVar(&o.ServiceAccount, "service-account", "isthmus-controller", "`name` of this controller's service account")
	fs.StringVar(&o.GatewayImage, "gateway-image", install.DefaultProxyImage, "`image` of ztunnel for east-west gateways")
	fs.IntVar(&o.GatewayReplicas, "gateway-replicas", 1, "pods behind each east-west gateway")
	fs.StringVar(&o.MonitoringAddress, "monitoring-address", ":15014", "`address` of /healthz, /readyz and /metrics; empty means none")
	fs.DurationVar(&o.LeaseDuration, "lease-duration", 15*time.Second, "how long a leader that fell silent keeps the lease")
	fs.Float64Var(&o.KubeQPS, "kube-qps", 50, "requests per second to the Kubernetes API")
	fs.StringVar(&o.LogLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&o.LogFormat, "log-format", "text", "text or json")
	fs.BoolVar(&o.Version, "version", false, "print the version and exit")

	var errs []error
	fs.VisitAll(func(f *flag.Flag) {
		name := "ISTHMUS_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		f.Usage += " [" + name + "]"
		if v, ok := env[name]; ok {
			if err := fs.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		return Options{}, configError("%v", err)
	}
	if err := fs.Parse(args); err != nil {
		return Options{}, err
	}
	if fs.NArg() > 0 {
		return Options{}, configError("unexpected argument %q", fs.Arg(0))
	}
	if o.IstiodAddress == "" {
		o.IstiodAddress = "istiod." + o.Namespace + ".svc:15012"
	}
	return o, o.validate()
}

func (o Options) validate() error {
	switch {
	case o.LeaseDuration < time.Second:
		return configError("--lease-duration: %v is too short", o.LeaseDuration)
	case o.RevokeInterval < time.Second:
		return configError("--revoke-interval: %v is too short", o.RevokeInterval)
	case o.LookupMaxAge < time.Minute:
		return configError("--lookup-max-age: %v is too short", o.LookupMaxAge)
	case o.KubeQPS <= 0 || o.BrokerSourceRate <= 0 || o.BrokerRoleRate <= 0:
		return configError("--kube-qps, --broker-source-rate and --broker-role-rate must be positive")
	case o.GatewayReplicas < 1 || o.GatewayReplicas > 100:
		return configError("--gateway-replicas: %d is not between 1 and 100", o.GatewayReplicas)
	case o.LogFormat != "text" && o.LogFormat != "json":
		return configError("--log-format: %q is neither text nor json", o.LogFormat)
	}
	return nil
}

func orDefault(v, def string) string {
	if v == "" {
		return def
	}
	return v
}
