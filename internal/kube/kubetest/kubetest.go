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

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	dynfake "k8s.io/client-go/dynamic/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Cluster is an in-memory Kubernetes API.
type Cluster struct {
	// Client is what the code under test gets.
	Client *kube.Client
	dyn    *dynfake.FakeDynamicClient

	changing sync.Mutex // held from reading an object to writing it, as the real API server's conflicts guarantee

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
	{kube.Events, "Event", true}, {kube.Leases, "Lease", true}, {kube.TokenReviews, "TokenReview", false}, {kube.ECSAccounts, "ECSAccount", false},
	{kube.Kind{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}, "CustomResourceDefinition", false},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"}, "ClusterRole", false},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}, "ClusterRoleBinding", false},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"}, "Role", true},
	{kube.Kind{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"}, "RoleBinding", true},
	{kube.Kind{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, "PodDisruptionBudget", true},
}

// New returns a Cluster that holds the objects of a YAML stream.
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
	for i, o := range objs {
		if o.GetUID() == "" {
			o.SetUID(types.UID("uid-" + strconv.Itoa(i+1)))
		}
	}
	c := &Cluster{dyn: dynfake.NewSimpleDynamicClientWithCustomListKinds(scheme, listKinds)}
	for _, o := range objs { // not through the constructor, which guesses plurals and guesses gateways wrong
		if err := c.dyn.Tracker().Create(kindOf(o), o, o.GetNamespace()); err != nil {
			t.Fatalf("kubetest: %s: %v", kube.Ref(o), err)
		}
	}
	c.dyn.PrependReactor("patch", "*", c.apply)
	c.dyn.PrependReactor("create", "serviceaccounts", c.createToken)
	c.dyn.PrependReactor("create", "secrets", c.createSecret)
	c.dyn.PrependReactor("create", "tokenreviews", c.reviewToken)
	c.dyn.PrependReactor("*", "*", c.observe)
	c.dyn.PrependWatchReactor("*", c.watch)
	c.Client = kube.NewForClients(c.dyn, mapper, slog.New(slog.DiscardHandler))
	return c
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
	c.changing.Lock()
	defer c.changing.Unlock()
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
	if err := c.dyn.Tracker().Delete(kube.Secrets, namespace, name); err != nil {
		t.Fatalf("kubetest: %v", err)
	}
}

// Events returns the events that were written, as "type reason kind/name: message".
func (c *Cluster) Events(t testing.TB) []string {
	t.Helper()
	list, err := c.dyn.Resource(kube.Events).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	var out []string
	for i := range list.Items {
		e := list.Items[i].Object
		text := func(path ...string) string { s, _, _ := unstructured.NestedString(e, path...); return s }
		out = append(out, fmt.Sprintf("%s %s %s/%s: %s", text("type"), text("reason"), text("involvedObject", "kind"), text("involvedObject", "name"), text("message")))
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
	c.changing.Lock()
	defer c.changing.Unlock()
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
	if s, ok := create.GetObject().(*kube.Object); ok && s.GetUID() == "" {
		s.SetUID(types.UID("uid-" + s.GetNamespace() + "-" + s.GetName()))
		s.SetCreationTimestamp(metav1.Now())
	}
	return false, nil, nil
}

// createToken answers a TokenRequest. The token is readable: token/NAMESPACE/SERVICE-ACCOUNT/SECRET-NAME.
func (c *Cluster) createToken(a ktesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(ktesting.CreateActionImpl)
	if !ok || a.GetSubresource() != "token" {
		return false, nil, nil
	}
	req, ok := create.GetObject().(*kube.Object)
	if !ok || req.GetKind() != "TokenRequest" {
		return true, nil, errors.New("kubetest: not a TokenRequest")
	}
	if _, err := c.dyn.Tracker().Get(kube.ServiceAccounts, a.GetNamespace(), create.Name); err != nil {
		return true, nil, err
	}
	kind, _, _ := unstructured.NestedString(req.Object, "spec", "boundObjectRef", "kind")
	secret, _, _ := unstructured.NestedString(req.Object, "spec", "boundObjectRef", "name")
	audiences, _, _ := unstructured.NestedStringSlice(req.Object, "spec", "audiences")
	if kind != "Secret" || len(audiences) != 1 || audiences[0] != "istio-ca" {
		return true, nil, apierrors.NewBadRequest("kubetest: token must be bound to a Secret and have audience istio-ca")
	}
	if _, err := c.dyn.Tracker().Get(kube.Secrets, a.GetNamespace(), secret); err != nil {
		return true, nil, err
	}
	seconds, _, _ := unstructured.NestedInt64(req.Object, "spec", "expirationSeconds")
	out := req.DeepCopy()
	out.Object["status"] = map[string]any{
		"token":               "token/" + a.GetNamespace() + "/" + create.Name + "/" + secret,
		"expirationTimestamp": time.Now().Add(time.Duration(seconds) * time.Second).UTC().Format(time.RFC3339),
	}
	return true, out, nil
}

func (c *Cluster) reviewToken(a ktesting.Action) (bool, runtime.Object, error) {
	create, ok := a.(ktesting.CreateAction)
	if !ok {
		return false, nil, nil
	}
	review, ok := create.GetObject().(*kube.Object)
	if !ok {
		return true, nil, errors.New("kubetest: not a TokenReview")
	}
	out := review.DeepCopy()
	token, _, _ := unstructured.NestedString(review.Object, "spec", "token")
	if parts := splitToken(token); parts != nil {
		if _, err := c.dyn.Tracker().Get(kube.Secrets, parts[0], parts[2]); err == nil {
			out.Object["status"] = map[string]any{"authenticated": true, "user": map[string]any{"username": "system:serviceaccount:" + parts[0] + ":" + parts[1]}}
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
