// Package kubetest makes kube.Clients over in-memory clients for tests: server-side apply merges, tokens are issued for
// service accounts that exist, and a token stops being valid when the Secret it is bound to goes.
package kubetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	dynfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Cluster is an in-memory Kubernetes API. Objects of the typed client (service accounts, secrets, events, leases) and of
// the dynamic client (everything written through Apply) are two worlds.
type Cluster struct {
	// Client is what the code under test gets.
	Client *kube.Client
	core   *fake.Clientset
	dyn    *dynfake.FakeDynamicClient

	mu      sync.Mutex
	writes  []string           // guarded by mu
	fail    func(string) error // guarded by mu
	version int                // guarded by mu
}

// Kinds is every kind the fake knows, with its scope.
var kinds = []struct {
	kind       kube.Kind
	name       string
	namespaced bool
}{
	{kube.ServiceEntries, "ServiceEntry", true}, {kube.WorkloadEntries, "WorkloadEntry", true}, {kube.AuthzPolicies, "AuthorizationPolicy", true},
	{kube.Gateways, "Gateway", true}, {kube.GatewayClasses, "GatewayClass", false}, {kube.Namespaces, "Namespace", false},
	{kube.Services, "Service", true}, {kube.ServiceAccounts, "ServiceAccount", true}, {kube.Secrets, "Secret", true},
	{kube.ConfigMaps, "ConfigMap", true}, {kube.Deployments, "Deployment", true}, {kube.Pods, "Pod", true},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, "ClusterRole", false},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}, "ClusterRoleBinding", false},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, "Role", true},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}, "RoleBinding", true},
	{kube.Kind{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, "PodDisruptionBudget", true},
}

// New returns a Cluster that holds the objects of a YAML stream. Service accounts, secrets, namespaces and config maps
// are put into both worlds.
func New(t testing.TB, yaml string) *Cluster {
	t.Helper()
	objs, err := kube.ParseYAML([]byte(yaml))
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	scheme := runtime.NewScheme()
	listKinds := map[schema.GroupVersionResource]string{}
	mapper := meta.NewDefaultRESTMapper(nil)
	for _, k := range kinds {
		gvk := k.kind.GroupVersion().WithKind(k.name)
		scheme.AddKnownTypeWithName(gvk, &kube.Object{})
		listKinds[k.kind] = k.name + "List"
		scope := meta.RESTScopeRoot
		if k.namespaced {
			scope = meta.RESTScopeNamespace
		}
		mapper.AddSpecific(gvk, k.kind, k.kind, scope)
	}
	var coreObjs []runtime.Object
	for i, o := range objs {
		if o.GetUID() == "" {
			o.SetUID(types.UID("uid-" + strconv.Itoa(i+1)))
		}
		if typed := typedOf(t, o); typed != nil {
			coreObjs = append(coreObjs, typed)
		}
	}
	c := &Cluster{
		core: fake.NewClientset(coreObjs...),
		dyn:  dynfake.NewSimpleDynamicClientWithCustomListKinds(scheme, listKinds),
	}
	for _, o := range objs { // not through the constructor, which guesses plurals and guesses gateways wrong
		if err := c.dyn.Tracker().Create(kindOf(o), o, o.GetNamespace()); err != nil {
			t.Fatalf("kubetest: %s: %v", kube.Ref(o), err)
		}
	}
	c.dyn.PrependReactor("patch", "*", c.apply)
	c.dyn.PrependReactor("*", "*", c.observe)
	c.dyn.PrependWatchReactor("*", c.watch)
	c.core.PrependReactor("create", "serviceaccounts", c.createToken)
	c.core.PrependReactor("create", "secrets", c.createSecret)
	c.core.PrependReactor("create", "tokenreviews", c.reviewToken)
	c.core.PrependReactor("*", "*", c.observe)
	c.Client = kube.NewForClients(c.core, c.dyn, mapper, slog.New(slog.DiscardHandler))
	return c
}

func typedOf(t testing.TB, o *kube.Object) runtime.Object {
	var into runtime.Object
	switch o.GetKind() {
	case "ServiceAccount":
		into = &corev1.ServiceAccount{}
	case "Secret":
		into = &corev1.Secret{}
	case "ConfigMap":
		into = &corev1.ConfigMap{}
	case "Namespace":
		into = &corev1.Namespace{}
	case "Pod":
		into = &corev1.Pod{}
	default:
		return nil
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
		t.Fatalf("kubetest: %s: %v", kube.Ref(o), err)
	}
	return into
}

// Fail makes calls fail: f gets "verb resource namespace/name" and returns nil for those that should work.
func (c *Cluster) Fail(f func(call string) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = f
}

// Writes returns the calls that changed something, as "verb resource namespace/name", and forgets them.
func (c *Cluster) Writes() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.writes
	c.writes = nil
	return out
}

// Put stores an object of the dynamic world, as another client would.
func (c *Cluster) Put(t testing.TB, yaml string) {
	t.Helper()
	objs, err := kube.ParseYAML([]byte(yaml))
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	for _, o := range objs {
		kind := kindOf(o)
		err := c.dyn.Tracker().Update(kind, o, o.GetNamespace())
		if apierrors.IsNotFound(err) {
			err = c.dyn.Tracker().Create(kind, o, o.GetNamespace())
		}
		if err != nil {
			t.Fatalf("kubetest: put %s: %v", kube.Ref(o), err)
		}
	}
}

// DeleteSecret removes a Secret behind the client's back.
func (c *Cluster) DeleteSecret(t testing.TB, namespace, name string) {
	t.Helper()
	if err := c.core.Tracker().Delete(kube.Secrets, namespace, name); err != nil {
		t.Fatalf("kubetest: %v", err)
	}
}

// Events returns the events that were written, as "type reason kind/name: message".
func (c *Cluster) Events(t testing.TB) []string {
	t.Helper()
	list, err := c.core.CoreV1().Events(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, fmt.Sprintf("%s %s %s/%s: %s", e.Type, e.Reason, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Message))
	}
	return out
}

func kindOf(o *kube.Object) kube.Kind {
	for _, k := range kinds {
		if k.name == o.GetKind() && k.kind.Group == o.GroupVersionKind().Group {
			return k.kind
		}
	}
	return kube.Kind{}
}

func (c *Cluster) observe(a ktesting.Action) (bool, runtime.Object, error) {
	name := a.GetNamespace() + "/"
	switch x := a.(type) {
	case interface{ GetName() string }:
		name += x.GetName()
	case ktesting.CreateAction:
		if acc, err := meta.Accessor(x.GetObject()); err == nil {
			name += acc.GetName()
		}
	}
	call := a.GetVerb() + " " + a.GetResource().Resource
	if a.GetSubresource() != "" {
		call += "/" + a.GetSubresource()
	}
	call += " " + name
	c.mu.Lock()
	defer c.mu.Unlock()
	switch a.GetVerb() {
	case "create", "update", "patch", "delete":
		c.writes = append(c.writes, call)
	}
	if c.fail != nil {
		if err := c.fail(call); err != nil {
			return true, nil, err
		}
	}
	return false, nil, nil
}

// apply merges a server-side apply into the stored object; the spec is replaced as a whole, as only one manager writes.
func (c *Cluster) apply(a ktesting.Action) (bool, runtime.Object, error) {
	p, ok := a.(ktesting.PatchAction)
	if !ok || p.GetPatchType() != types.ApplyPatchType {
		return false, nil, nil
	}
	var fields map[string]any
	if err := json.Unmarshal(p.GetPatch(), &fields); err != nil {
		return true, nil, err
	}
	want := &kube.Object{Object: fields}
	tracker := c.dyn.Tracker()
	stored, err := tracker.Get(a.GetResource(), a.GetNamespace(), p.GetName())
	c.mu.Lock()
	c.version++
	version := strconv.Itoa(c.version)
	c.mu.Unlock()
	if apierrors.IsNotFound(err) {
		if p.GetSubresource() != "" {
			return true, nil, err
		}
		want.SetUID(types.UID("uid-v" + version))
		want.SetResourceVersion(version)
		want.SetGeneration(1)
		return true, want, tracker.Create(a.GetResource(), want, a.GetNamespace())
	}
	if err != nil {
		return true, nil, err
	}
	have, ok := stored.(*kube.Object)
	if !ok {
		return true, nil, errors.New("kubetest: stored object is not unstructured")
	}
	have = have.DeepCopy()
	for k, v := range fields {
		if k == "metadata" {
			continue
		}
		if k != "status" || p.GetSubresource() == "status" {
			have.Object[k] = v
		}
	}
	if p.GetSubresource() == "" {
		have.SetLabels(merged(have.GetLabels(), want.GetLabels()))
		have.SetAnnotations(merged(have.GetAnnotations(), want.GetAnnotations()))
	}
	have.SetResourceVersion(version)
	return true, have, tracker.Update(a.GetResource(), have, a.GetNamespace())
}

func merged(have, want map[string]string) map[string]string {
	out := map[string]string{}
	for _, m := range []map[string]string{have, want} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

// createSecret gives a new Secret the uid that a real API server would.
func (c *Cluster) createSecret(a ktesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(ktesting.CreateAction)
	if !ok {
		return false, nil, nil
	}
	if s, ok := create.GetObject().(*corev1.Secret); ok && s.UID == "" {
		s.UID = types.UID("uid-" + s.Namespace + "-" + s.Name)
		s.CreationTimestamp = metav1.Now()
	}
	return false, nil, nil
}

// createToken answers a TokenRequest. The token is readable: token/NAMESPACE/SERVICE-ACCOUNT/SECRET-NAME.
func (c *Cluster) createToken(a ktesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(ktesting.CreateActionImpl)
	if !ok || a.GetSubresource() != "token" {
		return false, nil, nil
	}
	req, ok := create.GetObject().(*authv1.TokenRequest)
	if !ok {
		return true, nil, errors.New("kubetest: not a TokenRequest")
	}
	if _, err := c.core.Tracker().Get(kube.ServiceAccounts, a.GetNamespace(), create.Name); err != nil {
		return true, nil, err
	}
	bound := req.Spec.BoundObjectRef
	if bound == nil || bound.Kind != "Secret" || len(req.Spec.Audiences) != 1 || req.Spec.Audiences[0] != "istio-ca" {
		return true, nil, apierrors.NewBadRequest("kubetest: token must be bound to a Secret and have audience istio-ca")
	}
	if _, err := c.core.Tracker().Get(kube.Secrets, a.GetNamespace(), bound.Name); err != nil {
		return true, nil, err
	}
	out := req.DeepCopy()
	out.Status.Token = "token/" + a.GetNamespace() + "/" + create.Name + "/" + bound.Name
	out.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(time.Duration(*req.Spec.ExpirationSeconds) * time.Second))
	return true, out, nil
}

func (c *Cluster) reviewToken(a ktesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(ktesting.CreateAction)
	if !ok {
		return false, nil, nil
	}
	review, ok := create.GetObject().(*authv1.TokenReview)
	if !ok {
		return true, nil, errors.New("kubetest: not a TokenReview")
	}
	out := review.DeepCopy()
	parts := splitToken(review.Spec.Token)
	if parts != nil {
		if _, err := c.core.Tracker().Get(kube.Secrets, parts[0], parts[2]); err == nil {
			out.Status.Authenticated = true
			out.Status.User.Username = "system:serviceaccount:" + parts[0] + ":" + parts[1]
		}
	}
	return true, out, nil
}

func splitToken(token string) []string {
	parts := strings.Split(token, "/")
	if len(parts) != 4 || parts[0] != "token" {
		return nil
	}
	return parts[1:]
}

// watch starts with what is there already and honours the selectors, as the real API does when it is asked to watch from
// the version of a list; the library's own fake loses what happens between a list and its watch.
func (c *Cluster) watch(a ktesting.Action) (bool, watch.Interface, error) {
	w, ok := a.(ktesting.WatchActionImpl)
	if !ok {
		return false, nil, nil
	}
	kind, namespace := a.GetResource(), a.GetNamespace()
	under, err := c.dyn.Tracker().Watch(kind, namespace)
	if err != nil {
		return true, nil, err
	}
	selected := func(o runtime.Object) bool {
		u, ok := o.(*kube.Object)
		return ok && (w.WatchRestrictions.Labels == nil || w.WatchRestrictions.Labels.Matches(labels.Set(u.GetLabels()))) &&
			(w.WatchRestrictions.Fields == nil || w.WatchRestrictions.Fields.Matches(fields.Set{"metadata.name": u.GetName(), "metadata.namespace": u.GetNamespace()}))
	}
	var have []runtime.Object
	for _, k := range kinds {
		if k.kind != kind {
			continue
		}
		list, err := c.dyn.Tracker().List(kind, kind.GroupVersion().WithKind(k.name), namespace)
		if err != nil {
			return true, nil, err
		}
		if have, err = meta.ExtractList(list); err != nil {
			return true, nil, err
		}
	}
	events := make(chan watch.Event, len(have)+100)
	out := watch.NewProxyWatcher(events)
	go func() {
		defer under.Stop()
		send := func(e watch.Event) bool {
			if !selected(e.Object) {
				return true
			}
			select {
			case events <- e:
				return true
			case <-out.StopChan():
				return false
			}
		}
		for _, o := range have {
			if !send(watch.Event{Type: watch.Added, Object: o}) {
				return
			}
		}
		for {
			select {
			case e, ok := <-under.ResultChan():
				if !ok || !send(e) {
					return
				}
			case <-out.StopChan():
				return
			}
		}
	}()
	return true, out, nil
}
