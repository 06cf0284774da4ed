package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod"
	"github.com/isthmus-mesh/isthmus/lab/netns"
	"github.com/isthmus-mesh/isthmus/lab/netns/netnstest"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

func TestMain(m *testing.M) {
	if handled, code := runtime.MaybeInit(os.Args); handled {
		os.Exit(code)
	}
	os.Exit(netnstest.Main(m))
}

// deadline bounds what a test waits for.
const deadline = 30 * time.Second

// testToken opens the kubelet API in the tests.
const testToken = "kubelet-token"

// realCNI is the name of nodes that serve a real ztunnel's socket.
const realCNI = "real-cni-node"

// testNode is a node agent with an API.
type testNode struct {
	*Node
	kube kubernetes.Interface
	cni  *fakeCNI
}

// fakeKube is an API without admission, garbage collection and defaults, which the tests therefore write out.
func fakeKube() *fake.Clientset {
	kube := fake.NewSimpleClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "mesh", Labels: map[string]string{dataplaneLabel: dataplaneAmbient}}},
		&corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 443}}},
		},
	)
	var mu sync.Mutex
	issued := 0
	kube.PrependReactor("create", "serviceaccounts/token", func(action clienttesting.Action) (bool, apiruntime.Object, error) {
		create, ok := action.(clienttesting.CreateAction)
		if !ok {
			return false, nil, errors.New("not a creation")
		}
		request, ok := create.GetObject().(*authenticationv1.TokenRequest)
		if !ok {
			return false, nil, errors.New("not a token request")
		}
		mu.Lock()
		defer mu.Unlock()
		issued++
		answer := request.DeepCopy()
		answer.Status.Token = fmt.Sprintf("token-%d for %v bound to %s", issued, request.Spec.Audiences, request.Spec.BoundObjectRef.Name)
		answer.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(time.Duration(*request.Spec.ExpirationSeconds) * time.Second))
		return true, answer, nil
	})
	return kube
}

// startNode runs a node agent against kube until the test ends, and then checks that nothing is left.
func startNode(t *testing.T, kube kubernetes.Interface, change func(*Config)) *testNode {
	t.Helper()
	return startNodeOn(t, newVPC(t), kube, change)
}

func newVPC(t *testing.T) *netns.VPC {
	t.Helper()
	vpc, err := netns.New(netns.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vpc.Close(); err != nil {
			t.Error(err)
		}
		if left, err := filepath.Glob("/proc/[0-9]*"); err != nil || len(left) != 1 {
			t.Errorf("processes left behind: %v", left)
		}
	})
	return vpc
}

// startNodeOn runs a node agent. Its pods are told to a fakeCNI unless change asks for the real one.
func startNodeOn(t *testing.T, vpc *netns.VPC, kube kubernetes.Interface, change func(*Config)) *testNode {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	images, err := runtime.NewCatalogue(runtime.CatalogueConfig{})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := runtime.New(runtime.Config{Dir: t.TempDir(), VPC: vpc, Images: images, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Kube: kube, Runtime: rt, Dir: t.TempDir(), Log: log, BearerTokens: []string{testToken},
		RestartBackoff: 50 * time.Millisecond, VolumeRefresh: 50 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cni := &fakeCNI{pods: map[string]inpod.Workload{}}
	if cfg.Name != realCNI {
		n.ambient.server = cni
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testNode{Node: n, kube: kube, cni: cni}
}

// testWriter writes to the test's log until the test has ended.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// fakeCNI records what the node tells the ztunnel.
type fakeCNI struct {
	mu      sync.Mutex
	pods    map[string]inpod.Workload // by UID
	netnses []string
	err     error
}

func (f *fakeCNI) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (f *fakeCNI) Add(_ context.Context, w inpod.Workload, ns *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	f.pods[w.UID] = w
	f.netnses = append(f.netnses, name)
	return err
}

func (f *fakeCNI) Remove(_ context.Context, uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, uid)
	return nil
}

func (f *fakeCNI) has(uid types.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.pods[string(uid)]
	return ok
}

// podSpec is a pod on the node, as the scheduler leaves it, whose one container runs a shell script.
func podSpec(name, script string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			NodeName: "lab-node", RestartPolicy: corev1.RestartPolicyAlways, ServiceAccountName: "web",
			Containers: []corev1.Container{{Name: "main", Image: "busybox:1.36", Command: []string{"/bin/sh", "-c", script}}},
		},
	}
}

func (n *testNode) create(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	made, err := n.kube.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (n *testNode) get(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	now, err := n.kube.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// until waits until the pod is as ok wants it, and returns it.
func (n *testNode) until(t *testing.T, pod *corev1.Pod, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var now *corev1.Pod
	eventually(t, what, func() bool {
		now = n.get(t, pod)
		return ok(now)
	}, func() string {
		b, err := json.MarshalIndent(now.Status, "", " ")
		return fmt.Sprint(string(b), err)
	})
	return now
}

func eventually(t *testing.T, what string, ok func() bool, state func() string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(deadline); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not %s in %v; state: %s", what, deadline, state())
		}
	}
}

func ready(pod *corev1.Pod) bool { return conditionTrue(pod, corev1.PodReady) }

// remove asks for the pod's end as the API server does, which the fake one cannot do.
func (n *testNode) remove(t *testing.T, pod *corev1.Pod, grace int64) {
	t.Helper()
	if _, ok := n.kube.(*fake.Clientset); ok {
		now := n.get(t, pod)
		at := metav1.Now()
		now.DeletionTimestamp, now.DeletionGracePeriodSeconds = &at, &grace
		if _, err := n.kube.CoreV1().Pods(pod.Namespace).Update(t.Context(), now, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	} else if err := n.kube.CoreV1().Pods(pod.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "gone", func() bool {
		_, err := n.kube.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, func() string { return fmt.Sprint(n.get(t, pod).Status) })
}

// output returns all that a container has printed.
func (n *testNode) output(t *testing.T, pod *corev1.Pod, container string) string {
	t.Helper()
	c, err := n.container(pod.Namespace, pod.Name, "", container, false)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := c.Logs(t.Context(), runtime.LogOptions{Tail: -1}, &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// run runs a command in a pod and returns its output.
func (n *testNode) run(t *testing.T, pod *corev1.Pod, command ...string) string {
	t.Helper()
	c, err := n.container(pod.Namespace, pod.Name, "", pod.Spec.Containers[0].Name, false)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	var out io.Writer = &b
	if _, err := c.Exec(t.Context(), runtime.ExecSpec{Command: command, Stdout: out, Stderr: out}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
