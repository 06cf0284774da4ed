package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
)

// The names by which Istio says which pods are part of the ambient mesh, and that one is.
const (
	dataplaneLabel        = "istio.io/dataplane-mode"
	dataplaneAmbient      = "ambient"
	sidecarAnnotation     = "sidecar.istio.io/status"
	redirectionAnnotation = "ambient.istio.io/redirection"
	redirectionEnabled    = "enabled"
	ztunnelApp            = "ztunnel"
)

// zdsSocket is where the node's ztunnel finds the CNI agent.
const zdsSocket = "/var/run/ztunnel/ztunnel.sock"

// maxSocketPath is the longest path that fits into a Unix socket address.
const maxSocketPath = 107

// ambient plays istio-cni: it redirects the traffic of a pod inside the pod's network namespace to the listeners that
// the node's ztunnel opens there, and hands that namespace to the ztunnel.
type ambient struct {
	n      *Node
	server cniAgent
	path   string   // of the socket
	dir    *os.File // the directory of the socket, when its path is too long to be used

	mu      sync.Mutex
	members map[types.UID]bool // guarded by mu; the pods that are part of the mesh
}

// cniAgent tells the node's ztunnel about pods. It is an inpod.Server, except in tests.
type cniAgent interface {
	Run(ctx context.Context) error
	Add(ctx context.Context, w inpod.Workload, ns *os.File) error
	Remove(ctx context.Context, uid string) error
}

var _ cniAgent = (*inpod.Server)(nil)

func newAmbient(n *Node) (*ambient, error) {
	a := &ambient{n: n, members: map[types.UID]bool{}}
	path := n.hostPath(zdsSocket)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		a.dir = dir
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	a.path = path
	server, err := inpod.NewServer(inpod.ServerConfig{Path: path, Log: n.log})
	if err != nil {
		return nil, err
	}
	a.server = server
	return a, nil
}

// run serves the ztunnel of the node until ctx ends. Its failure is not the node's: pods outside of the mesh go on.
func (a *ambient) run(ctx context.Context) {
	if a.dir != nil {
		defer a.dir.Close()
	}
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 5*time.Second) {
		err := a.server.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		a.n.log.Warn("the socket for ztunnel is not served", slog.Any("error", err))
		wait(ctx, pause)
	}
}

// wanted reports whether a pod is to be part of the mesh. A label of the pod outweighs that of the namespace.
func wanted(pod *corev1.Pod, namespaceLabels map[string]string) bool {
	if pod.Spec.HostNetwork || pod.Labels["app"] == ztunnelApp && pod.Namespace == "istio-system" {
		return false
	}
	if _, sidecar := pod.Annotations[sidecarAnnotation]; sidecar {
		return false
	}
	if mode, ok := pod.Labels[dataplaneLabel]; ok {
		return mode == dataplaneAmbient
	}
	return namespaceLabels[dataplaneLabel] == dataplaneAmbient
}

// joinMesh makes the pod part of the mesh if it should be. It is called before the pod's first container starts, so
// that nothing a program sends can pass beside the mesh.
func (w *worker) joinMesh(ctx context.Context) error {
	want, err := w.meshWanted()
	if err != nil || !want {
		return err
	}
	return w.n.ambient.join(ctx, w)
}

func (w *worker) meshWanted() (bool, error) {
	ns, err := w.n.namespaces.Get(w.namespace)
	if err != nil {
		return false, fmt.Errorf("read namespace: %w", err)
	}
	return wanted(w.latest(), ns.Labels), nil
}

// followMesh lets the pod join and leave the mesh as labels change, until ctx ends.
func (w *worker) followMesh(ctx context.Context) {
	pause := time.Duration(0)
	for {
		var again <-chan time.Time
		if pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-w.changed:
		case <-again:
		case <-ctx.Done():
			return
		}
		if err := w.syncMesh(ctx); err != nil && ctx.Err() == nil {
			w.log().Warn("place in the mesh not changed", slog.Any("error", err))
			pause = min(max(2*pause, 200*time.Millisecond), 5*time.Second)
			continue
		}
		pause = 0
	}
}

func (w *worker) syncMesh(ctx context.Context) error {
	want, err := w.meshWanted()
	if err != nil {
		return err
	}
	if want {
		return w.n.ambient.join(ctx, w)
	}
	if !w.n.ambient.leave(ctx, w) {
		return nil
	}
	s, err := w.open()
	if err != nil {
		return err
	}
	ns, err := s.NetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	return errors.Join(redirect.Remove(ns), w.annotate(ctx, nil))
}

// join makes the pod part of the mesh. When it is already, nothing happens.
func (a *ambient) join(ctx context.Context, w *worker) error {
	a.mu.Lock()
	member := a.members[w.uid]
	a.mu.Unlock()
	if member {
		return nil
	}
	s, err := w.open()
	if err != nil {
		return err
	}
	ns, err := s.NetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	// The proxy first: its listeners are there before the first connection is redirected to them.
	pod := w.latest()
	workload := inpod.Workload{UID: string(w.uid), Name: pod.Name, Namespace: pod.Namespace, ServiceAccount: pod.Spec.ServiceAccountName}
	adding, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := a.server.Add(adding, workload, ns); err != nil {
		return fmt.Errorf("hand the pod to ztunnel: %w", err)
	}
	a.mu.Lock()
	a.members[w.uid] = true
	a.mu.Unlock()
	if err := redirect.Install(ns, redirect.ForPod(pod.Annotations)); err != nil {
		a.leave(ctx, w)
		return fmt.Errorf("redirect the pod's traffic: %w", err)
	}
	enabled := redirectionEnabled
	if err := w.annotate(ctx, &enabled); err != nil {
		a.leave(ctx, w)
		return err
	}
	w.log().Info("pod joined the mesh")
	return nil
}

// leave takes the pod away from the ztunnel. It reports whether the pod was part of the mesh.
func (a *ambient) leave(ctx context.Context, w *worker) bool {
	a.mu.Lock()
	member := a.members[w.uid]
	delete(a.members, w.uid)
	a.mu.Unlock()
	if !member {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if err := a.server.Remove(ctx, string(w.uid)); err != nil && ctx.Err() == nil {
		w.log().Warn("pod not taken away from ztunnel", slog.Any("error", err))
	}
	w.log().Info("pod left the mesh")
	return true
}

// How long a pod that starts and a pod that ends wait for the ztunnel.
const (
	joinTimeout  = 10 * time.Second
	leaveTimeout = 2 * time.Second
)

// annotate sets or removes the annotation by which istiod learns that the pod is captured.
func (w *worker) annotate(ctx context.Context, value *string) error {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": w.uid, "annotations": map[string]*string{redirectionAnnotation: value},
	}})
	if err != nil {
		return fmt.Errorf("encode annotation: %w", err)
	}
	_, err = w.n.cfg.Kube.CoreV1().Pods(w.namespace).Patch(ctx, w.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("annotate pod: %w", err)
	}
	return nil
}
