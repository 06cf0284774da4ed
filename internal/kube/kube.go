// Package kube is how Isthmus speaks to Kubernetes, and the only package that imports client-go.
//
// It uses none of client-go's typed clients: they, their discovery and their leader election link every API type of
// Kubernetes, which is half of a program's size.
//
// Objects travel as Object, the decoded JSON that the API serves; a Cache is a live copy of one kind; every write is a
// server-side apply by the field manager isthmus-controller that is skipped when it would change nothing. What a
// controller needs (leases, events, tokens, Gateway status) and what the command line needs (apply a file, exec,
// port-forward, logs) live in files of those names.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// FieldManager is the name under which Isthmus owns the fields it applies.
const FieldManager = "isthmus-controller"

// Labels and annotations that Isthmus writes or reads.
const (
	ManagedByLabel       = "app.kubernetes.io/managed-by"
	ManagedByValue       = "isthmus-controller"
	RoleAnnotation       = "ecs.solo.io/role-arn"
	TaskIDLabel          = "isthmus.dev/task-id"
	TaskARNAnnotation    = "isthmus.dev/task-arn"
	AllowDeletionsAnnot  = "isthmus.dev/allow-deletions"
	AmbientLabel         = "istio.io/dataplane-mode"
	NetworkLabel         = "topology.istio.io/network"
	ExposeIstiodLabel    = "istio.io/expose-istiod"
	GatewayClassName     = "istio-eastwest"
	GatewayController    = "isthmus.dev/istio-eastwest"
	RootCertConfigMap    = "istio-ca-root-cert"
	RootCertKey          = "root-cert.pem"
	DefaultSystemNS      = "istio-system"
	istioTokenAudience   = "istio-ca"
	minTokenLifetime     = 10 * time.Minute // the API server's own minimum
	defaultQPS           = 50
	defaultBurst         = 100
	defaultApplyParallel = 8
)

// Config says which cluster to speak to and how fast.
type Config struct {
	// Kubeconfig is the path of a kubeconfig file. Empty means KUBECONFIG, then the file in the home directory, and
	// inside a pod without either the pod's own service account.
	Kubeconfig string
	// Context is the kubeconfig context; empty means the current one.
	Context string
	// QPS and Burst bound requests per second on the client's side; 0 means 50 and 100.
	QPS   float32
	Burst int
	// Timeout bounds a single request that is neither a watch nor a stream; 0 means 30 s.
	Timeout time.Duration
	// UserAgent is sent with each request; empty means "isthmus".
	UserAgent string
	// Parallel bounds concurrent writes of ApplyAll and DeleteAll; 0 means 8.
	Parallel int
	// Log is required.
	Log *slog.Logger
}

// Client is a connection to one Kubernetes cluster. It is safe for concurrent use.
type Client struct {
	rest      *rest.Config   // nil in tests with fake clients
	namespace string         // of the kubeconfig context
	api       rest.Interface // of paths rather than objects; nil in tests with fake clients
	dyn       dynamic.Interface
	mapper    Mapper
	timeout   time.Duration
	parallel  int
	log       *slog.Logger
}

// New returns a Client. It reads the configuration but makes no request yet.
func New(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		return nil, errors.New("kube: Config.Log is required")
	}
	restCfg, namespace, err := restConfig(cfg)
	if err != nil {
		return nil, diag.Wrap(diag.KubeUnreachable, err)
	}
	restCfg.QPS, restCfg.Burst = cfg.QPS, cfg.Burst
	if restCfg.QPS == 0 {
		restCfg.QPS, restCfg.Burst = defaultQPS, defaultBurst
	}
	restCfg.UserAgent = cfg.UserAgent
	if restCfg.UserAgent == "" {
		restCfg.UserAgent = "isthmus"
	}
	// Warnings of the API server belong in our log, not on the process's standard error.
	restCfg.WarningHandlerWithContext = warnings{cfg.Log}
	// One limit for both clients below.
	restCfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(restCfg.QPS, restCfg.Burst)
	dyn, err := dynamic.NewForConfig(restCfg)
	if err != nil {
		return nil, diag.Wrap(diag.KubeUnreachable, fmt.Errorf("make client: %w", err))
	}
	raw := rest.CopyConfig(restCfg)
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, Namespaces.GroupVersion())
	raw.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	api, err := rest.UnversionedRESTClientFor(raw)
	if err != nil {
		return nil, diag.Wrap(diag.KubeUnreachable, fmt.Errorf("make client: %w", err))
	}
	c := NewForClients(dyn, newKinds(api), cfg.Log)
	c.api = api
	c.rest, c.namespace = restCfg, namespace
	if cfg.Timeout > 0 {
		c.timeout = cfg.Timeout
	}
	if cfg.Parallel > 0 {
		c.parallel = cfg.Parallel
	}
	return c, nil
}

// NewForClients returns a Client over clients that exist already, as kubetest does with fakes. Exec, port-forward,
// logs and Ready need a real connection and return an error.
func NewForClients(dyn dynamic.Interface, mapper Mapper, log *slog.Logger) *Client {
	return &Client{
		namespace: metav1.NamespaceDefault, dyn: dyn, mapper: mapper, log: log,
		timeout: 30 * time.Second, parallel: defaultApplyParallel,
	}
}

func restConfig(cfg Config) (*rest.Config, string, error) {
	explicit := cfg.Kubeconfig != "" || cfg.Context != "" || os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != ""
	if !explicit {
		if in, err := rest.InClusterConfig(); err == nil {
			return in, inClusterNamespace(), nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cfg.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: cfg.Context})
	restCfg, err := loader.ClientConfig()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("read kubeconfig: %w", err)
	}
	return restCfg, namespace, nil
}

func inClusterNamespace() string {
	b, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil || len(b) == 0 {
		return metav1.NamespaceDefault
	}
	return string(b)
}

// Namespace returns the namespace of the kubeconfig context, or of the pod.
func (c *Client) Namespace() string { return c.namespace }

// Server returns the address of the API server, "" for a fake one.
func (c *Client) Server() string {
	if c.rest == nil {
		return ""
	}
	return c.rest.Host
}

// Ready asks the API server whether it is ready to serve.
func (c *Client) Ready(ctx context.Context) error {
	if c.rest == nil {
		return errNoConnection
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if _, err := c.api.Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return Explain(fmt.Errorf("ask %s whether it is ready: %w", c.rest.Host, err))
	}
	return nil
}

var errNoConnection = errors.New("kube: this client has no connection of its own")

// Explain gives an error of the API the code and fix that a person needs; other errors pass unchanged.
func Explain(err error) error {
	var coded *diag.Error
	var status apierrors.APIStatus
	switch {
	case err == nil, errors.As(err, &coded), errors.Is(err, context.Canceled):
		return err
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return diag.Wrap(diag.KubeForbidden, err)
	case meta.IsNoMatchError(err):
		return diag.Wrap(diag.WriteRefused, err).WithFix("install the CRD of this kind: Istio's with istioctl install, Gateway API's with kubectl apply -f standard-install.yaml")
	case errors.As(err, &status):
		return err // the server answered: it is reachable, and its message says what is wrong
	}
	return diag.Wrap(diag.KubeUnreachable, err)
}

// IsNotFound reports that the object, or its kind, does not exist.
func IsNotFound(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }

// IsConflict reports that the object was changed by somebody else meanwhile.
func IsConflict(err error) bool { return apierrors.IsConflict(err) }

// IsForbidden reports that the caller lacks a right.
func IsForbidden(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// RouteLogs sends the log of the Kubernetes libraries to log. They have one logger per process, so a program calls this
// once, at its start.
func RouteLogs(log *slog.Logger) { klog.SetSlogLogger(log) }

type warnings struct{ log *slog.Logger }

func (w warnings) HandleWarningHeaderWithContext(_ context.Context, code int, _ string, text string) {
	if code == 299 && text != "" {
		w.log.Debug("kubernetes api warning", slog.String("warning", text))
	}
}
