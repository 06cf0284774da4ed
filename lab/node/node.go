// Package node is the lab's node agent: a small kubelet that registers one Node, runs the pods that the scheduler
// puts on it with the lab's runtime, and serves exec, logs and port-forward to the API server. It also plays istio-cni
// for the pods of ambient namespaces.
//
// What pods may use is what a lab needs: init containers and sidecars, probes, the usual environment, emptyDir,
// configMap, secret, downwardAPI and projected volumes, and hostPath directories, which are directories of the lab.
// Users, capabilities and resource limits are not applied, because everything runs as the one user of the lab's user
// namespace. Host networking, devices and persistent volumes are refused with an error.
package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// PodIdentity says which service accounts have an EKS Pod Identity association.
type PodIdentity interface {
	// Association reports whether pods of the service account receive AWS credentials.
	Association(ctx context.Context, namespace, serviceAccount string) (ok bool)
}

// Config is what a Node needs.
type Config struct {
	// Kube is a client with the rights of a node, and the right to watch namespaces and to annotate pods. Required.
	Kube kubernetes.Interface
	// Runtime runs the pods. Required.
	Runtime *runtime.Runtime
	// Dir is a directory of the lab for volumes and hostPath directories. Required.
	Dir string
	// Log receives what the agent does. Required.
	Log *slog.Logger
	// Name is the name of the Node. Empty means lab-node.
	Name string
	// Address is the node's address. The zero value means 10.0.0.1.
	Address netip.Addr
	// Port is the port of the kubelet API. Zero means 10250.
	Port uint16
	// Certificate is the server certificate of the kubelet API. Nil means a self-signed one.
	Certificate *tls.Certificate
	// ClientCAs verify the API server's client certificate, whose common name must be one of ClientNames; empty means
	// kube-apiserver-kubelet-client. BearerTokens are accepted instead of a certificate. At least one of ClientCAs and
	// BearerTokens is required: the kubelet API runs commands.
	ClientCAs    *x509.CertPool
	ClientNames  []string
	BearerTokens []string
	// ClusterDNS is the resolver of the pods. The zero value means 10.0.0.2.
	ClusterDNS netip.Addr
	// ClusterDomain is the cluster's DNS domain. Empty means cluster.local.
	ClusterDomain string
	// KubernetesService is where pods find the API server. The zero value means what the Service
	// default/kubernetes says.
	KubernetesService netip.AddrPort
	// Region is the AWS region of the node. Empty means us-east-2.
	Region string
	// Zone is the availability zone of the node. Empty means Region followed by "a".
	Zone string
	// PodIdentity switches EKS Pod Identity on. Nil means no pod has an association.
	PodIdentity PodIdentity
	// RestartBackoff is the first pause before a container that has ended twice is started again. Every further end
	// doubles it, up to sixty times. Zero means one second.
	RestartBackoff time.Duration
	// VolumeRefresh is how often configMaps and secrets in volumes are read again. Zero means ten seconds.
	VolumeRefresh time.Duration
}

// Node is the node agent.
type Node struct {
	cfg      Config
	log      *slog.Logger
	recorder record.EventRecorder
	ambient  *ambient

	mu         sync.Mutex
	workers    map[types.UID]*worker       // guarded by mu
	namespaces corelisters.NamespaceLister // set by Run before the first pod
	version    string                      // set by Run before the first pod
	address    string                      // guarded by mu; of the kubelet API once it listens
	wg         sync.WaitGroup              // workers
}

// New returns a Node; Run starts it.
func New(cfg Config) (*Node, error) {
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"Kube", cfg.Kube == nil}, {"Runtime", cfg.Runtime == nil}, {"Dir", cfg.Dir == ""}, {"Log", cfg.Log == nil},
		{"ClientCAs or BearerTokens", cfg.ClientCAs == nil && len(cfg.BearerTokens) == 0},
	} {
		if f.missing {
			return nil, fmt.Errorf("node: Config.%s is required", f.name)
		}
	}
	setDefaults(&cfg)
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("node: directory %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	n := &Node{cfg: cfg, log: cfg.Log, workers: map[types.UID]*worker{}}
	if n.ambient, err = newAmbient(n); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return n, nil
}

func setDefaults(cfg *Config) {
	if cfg.Name == "" {
		cfg.Name = "lab-node"
	}
	if !cfg.Address.IsValid() {
		cfg.Address = netns.Router
	}
	if cfg.Port == 0 {
		cfg.Port = 10250
	}
	if len(cfg.ClientNames) == 0 {
		cfg.ClientNames = []string{"kube-apiserver-kubelet-client"}
	}
	if !cfg.ClusterDNS.IsValid() {
		cfg.ClusterDNS = netns.Resolver
	}
	if cfg.ClusterDomain == "" {
		cfg.ClusterDomain = "cluster.local"
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-2"
	}
	if cfg.Zone == "" {
		cfg.Zone = cfg.Region + "a"
	}
	if cfg.RestartBackoff == 0 {
		cfg.RestartBackoff = time.Second
	}
	if cfg.VolumeRefresh == 0 {
		cfg.VolumeRefresh = 10 * time.Second
	}
}

// hostPath returns the directory of the lab that stands for a directory of the node.
func (n *Node) hostPath(path string) string {
	return filepath.Join(n.cfg.Dir, "host", filepath.Clean("/"+path))
}

// Run registers the node and runs its pods until ctx ends; then it kills them. Pod objects are left as they are: a
// lab that ends takes its API server with it.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := os.MkdirAll(n.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil) // before waiting
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: n.cfg.Kube.CoreV1().Events("")})
	n.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: n.cfg.Name})
	if err := n.resolveKubernetesService(ctx); err != nil {
		return err
	}
	listener, err := n.listen(ctx)
	if err != nil {
		return err
	}
	wg.Go(func() { n.fail(cancel, "kubelet API", n.serve(ctx, listener)) })
	wg.Go(func() { n.ambient.run(ctx) })
	if err := n.register(ctx); err != nil {
		cancel(err)
		return err
	}
	wg.Go(func() { n.heartbeat(ctx) })
	namespaces, err := n.watchNamespaces(ctx)
	if err != nil {
		return ended(ctx, err)
	}
	n.namespaces = namespaces
	if err := n.watchPods(ctx); err != nil {
		return ended(ctx, err)
	}
	n.log.Info("node agent ready", slog.String("node", n.cfg.Name), slog.String("address", n.Address()))
	<-ctx.Done()
	n.wg.Wait()
	return ended(ctx, nil)
}

// fail ends the agent when a part of it failed.
func (n *Node) fail(cancel context.CancelCauseFunc, part string, err error) {
	if err != nil {
		cancel(fmt.Errorf("%s: %w", part, err))
	}
}

// ended returns why the agent ended: nil when it was asked to.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
			return nil
		}
		return fmt.Errorf("node: %w", cause)
	}
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	return nil
}

// resolveKubernetesService finds out where pods reach the API server.
func (n *Node) resolveKubernetesService(ctx context.Context) error {
	if n.cfg.KubernetesService.IsValid() {
		return nil
	}
	return retry(ctx, func() error {
		s, err := n.cfg.Kube.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return fmt.Errorf("find the Service of the API server: %w", err)
		}
		ip, err := netip.ParseAddr(s.Spec.ClusterIP)
		if err != nil || len(s.Spec.Ports) == 0 {
			return fmt.Errorf("the Service default/kubernetes has address %q and %d ports", s.Spec.ClusterIP, len(s.Spec.Ports))
		}
		n.cfg.KubernetesService = netip.AddrPortFrom(ip, uint16(s.Spec.Ports[0].Port))
		return nil
	})
}

// retryLimit bounds how long the agent waits for the API server when it starts.
const retryLimit = 30 * time.Second

// retry repeats f with growing pauses until it succeeds, ctx ends or retryLimit has passed.
func retry(ctx context.Context, f func() error) error {
	end := time.Now().Add(retryLimit)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		if !wait(ctx, pause) {
			return err
		}
	}
}

// wait waits for d. It reports false when ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watchNamespaces follows the labels of namespaces, which decide about the mesh.
func (n *Node) watchNamespaces(ctx context.Context) (corelisters.NamespaceLister, error) {
	factory := informers.NewSharedInformerFactory(n.cfg.Kube, 0)
	informer := factory.Core().V1().Namespaces()
	changed := func(any) { n.namespaceChanged() }
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) }, DeleteFunc: changed,
	}); err != nil {
		return nil, fmt.Errorf("watch namespaces: %w", err)
	}
	lister := informer.Lister()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
		return nil, errors.New("watch namespaces: not synchronised")
	}
	return lister, nil
}

func (n *Node) namespaceChanged() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.workers {
		w.nudge()
	}
}

// watchPods follows the pods of the node.
func (n *Node) watchPods(ctx context.Context) error {
	selector := fields.OneTermEqualSelector("spec.nodeName", n.cfg.Name).String()
	factory := informers.NewSharedInformerFactoryWithOptions(n.cfg.Kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = selector
	}))
	informer := factory.Core().V1().Pods().Informer()
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { n.podChanged(ctx, o) },
		UpdateFunc: func(_, o any) { n.podChanged(ctx, o) },
		DeleteFunc: func(o any) {
			if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = tombstone.Obj
			}
			if pod, ok := o.(*corev1.Pod); ok {
				n.podGone(pod)
			}
		},
	}); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return errors.New("watch pods: not synchronised")
	}
	return nil
}

// podChanged hands a pod to its worker.
func (n *Node) podChanged(ctx context.Context, o any) {
	pod, ok := o.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != n.cfg.Name {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[pod.UID]; w != nil {
		w.update(pod)
		return
	}
	if ctx.Err() != nil || (finished(pod) && pod.DeletionTimestamp == nil) {
		return
	}
	w := newWorker(n, pod)
	n.workers[pod.UID] = w
	n.wg.Go(func() {
		w.run(ctx)
		n.mu.Lock()
		delete(n.workers, pod.UID)
		n.mu.Unlock()
	})
}

// podGone ends the worker of a pod whose object was removed without asking the node.
func (n *Node) podGone(pod *corev1.Pod) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.workers[pod.UID]; w != nil {
		w.gone()
	}
}

// worker returns the worker of a pod by name, or nil. With a uid it must match.
func (n *Node) worker(namespace, name, uid string) *worker {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, w := range n.workers {
		if w.namespace == namespace && w.name == name && (uid == "" || uid == string(id)) {
			return w
		}
	}
	return nil
}

// finished reports whether a pod will never run again.
func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
