package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Outcome says what a write did.
type Outcome string

// The outcomes of a write.
const (
	Created   Outcome = "created"
	Changed   Outcome = "configured"
	Unchanged Outcome = "unchanged"
	Deleted   Outcome = "deleted"
	Absent    Outcome = "absent"
)

// Result is the outcome of one object of a batch.
type Result struct {
	// Ref is "Kind namespace/name".
	Ref     string
	Outcome Outcome
	Err     error
}

// ApplyOptions change how ApplyYAML works.
type ApplyOptions struct {
	// Namespace is given to namespaced objects that have none; empty means the context's.
	Namespace string
	// Manager is the field manager; empty means FieldManager.
	Manager string
	// DryRun asks the API server to validate and write nothing.
	DryRun bool
}

// resource returns the client for an object's kind and namespace.
func (c *Client) resource(gvk schema.GroupVersionKind, namespace string) (dynamic.ResourceInterface, error) {
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return nil, fmt.Errorf("find kind %s: %w", gvk.GroupKind(), err)
	}
	if m.Scope.Name() == meta.RESTScopeNameRoot {
		return c.dyn.Resource(m.Resource), nil
	}
	if namespace == "" {
		namespace = c.namespace
	}
	return c.dyn.Resource(m.Resource).Namespace(namespace), nil
}

// Get returns an object by kind and name, or an error for which IsNotFound is true.
func (c *Client) Get(ctx context.Context, kind Kind, namespace, name string) (*Object, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var o *Object
	var err error
	if namespace == "" {
		o, err = c.dyn.Resource(kind).Get(ctx, name, metav1.GetOptions{})
	} else {
		o, err = c.dyn.Resource(kind).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	if err != nil {
		return nil, fmt.Errorf("get %s %s/%s: %w", kind.Resource, namespace, name, err)
	}
	return o, nil
}

// List returns the objects of a kind; namespace "" means all namespaces.
func (c *Client) List(ctx context.Context, kind Kind, namespace, selector string) ([]*Object, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	var out []*Object
	opt := metav1.ListOptions{LabelSelector: selector, Limit: 500}
	for {
		list, err := c.dyn.Resource(kind).Namespace(namespace).List(ctx, opt)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", kind.Resource, err)
		}
		for i := range list.Items {
			out = append(out, &list.Items[i])
		}
		if opt.Continue = list.GetContinue(); opt.Continue == "" {
			return out, nil
		}
	}
}

// Apply makes the fields of want true by server-side apply. If have is given and already agrees, nothing is sent.
func (c *Client) Apply(ctx context.Context, want, have *Object) (Outcome, error) {
	if have != nil && Same(want, have) {
		return Unchanged, nil
	}
	after, err := c.apply(ctx, want, FieldManager, false)
	if err != nil {
		return "", err
	}
	return outcome(have, after), nil
}

func outcome(have, after *Object) Outcome {
	switch {
	case have == nil:
		return Created
	case after.GetResourceVersion() != "" && have.GetResourceVersion() == after.GetResourceVersion():
		return Unchanged
	}
	return Changed
}

func (c *Client) apply(ctx context.Context, want *Object, manager string, dryRun bool) (*Object, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	res, err := c.resource(want.GroupVersionKind(), want.GetNamespace())
	if err != nil {
		return nil, Explain(err)
	}
	body, err := json.Marshal(want.Object)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", Ref(want), err)
	}
	force := true
	opt := metav1.PatchOptions{FieldManager: manager, Force: &force}
	if dryRun {
		opt.DryRun = []string{metav1.DryRunAll}
	}
	after, err := res.Patch(ctx, want.GetName(), types.ApplyPatchType, body, opt)
	if err != nil {
		err = fmt.Errorf("apply %s: %w", Ref(want), err)
		if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) {
			return nil, diag.Wrap(diag.WriteRefused, err)
		}
		return nil, Explain(err)
	}
	return after, nil
}

// ApplyYAML applies each object of a YAML stream in order, the way `kubectl apply --server-side` does, and goes on after
// an error so that one report shows all of them.
func (c *Client) ApplyYAML(ctx context.Context, text []byte, opt ApplyOptions) ([]Result, error) {
	objs, err := ParseYAML(text)
	if err != nil {
		return nil, err
	}
	manager := opt.Manager
	if manager == "" {
		manager = FieldManager
	}
	results := make([]Result, 0, len(objs))
	var errs []error
	for _, o := range objs {
		res, err := c.resource(o.GroupVersionKind(), o.GetNamespace())
		if err == nil && o.GetNamespace() == "" && opt.Namespace != "" && c.namespaced(o.GroupVersionKind()) {
			o.SetNamespace(opt.Namespace)
			res, err = c.resource(o.GroupVersionKind(), opt.Namespace)
		}
		var have, after *Object
		if err == nil {
			if have, err = res.Get(ctx, o.GetName(), metav1.GetOptions{}); apierrors.IsNotFound(err) {
				have, err = nil, nil
			}
		}
		if err == nil {
			after, err = c.apply(ctx, o, manager, opt.DryRun)
		}
		r := Result{Ref: Ref(o), Err: Explain(err)}
		if err == nil {
			r.Outcome = outcome(have, after)
		} else {
			errs = append(errs, r.Err)
		}
		results = append(results, r)
	}
	return results, errors.Join(errs...)
}

func (c *Client) namespaced(gvk schema.GroupVersionKind) bool {
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	return err == nil && m.Scope.Name() == meta.RESTScopeNameNamespace
}

// DeleteYAML deletes each object of a YAML stream, the last one first; objects that are gone already are no error.
func (c *Client) DeleteYAML(ctx context.Context, text []byte, opt ApplyOptions) ([]Result, error) {
	objs, err := ParseYAML(text)
	if err != nil {
		return nil, err
	}
	var results []Result
	var errs []error
	for i := len(objs) - 1; i >= 0; i-- {
		o := objs[i]
		if o.GetNamespace() == "" {
			o.SetNamespace(opt.Namespace)
		}
		r := Result{Ref: Ref(o)}
		if res, err := c.resource(o.GroupVersionKind(), o.GetNamespace()); meta.IsNoMatchError(err) {
			r.Outcome = Absent
		} else if err != nil {
			r.Err = Explain(err)
		} else {
			r.Outcome, r.Err = c.remove(ctx, res, o.GetName(), nil)
		}
		if r.Err != nil {
			errs = append(errs, r.Err)
		}
		results = append(results, r)
	}
	return results, errors.Join(errs...)
}

// Delete deletes one object. If have is given, only that very version is deleted: an object that somebody changed or
// re-created since we looked gives a conflict instead.
func (c *Client) Delete(ctx context.Context, kind Kind, namespace, name string, have *Object) (Outcome, error) {
	var res dynamic.ResourceInterface = c.dyn.Resource(kind)
	if namespace != "" {
		res = c.dyn.Resource(kind).Namespace(namespace)
	}
	return c.remove(ctx, res, name, have)
}

func (c *Client) remove(ctx context.Context, res dynamic.ResourceInterface, name string, have *Object) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	background := metav1.DeletePropagationBackground
	opt := metav1.DeleteOptions{PropagationPolicy: &background}
	if have != nil && have.GetUID() != "" {
		uid := have.GetUID()
		opt.Preconditions = &metav1.Preconditions{UID: &uid}
	}
	switch err := res.Delete(ctx, name, opt); {
	case apierrors.IsNotFound(err):
		return Absent, nil
	case err != nil:
		return "", Explain(fmt.Errorf("delete %s: %w", name, err))
	}
	return Deleted, nil
}

// DeleteByLabel deletes every object of a kind that the selector selects; namespace "" means all namespaces.
func (c *Client) DeleteByLabel(ctx context.Context, kind Kind, namespace, selector string) ([]Result, error) {
	if selector == "" {
		return nil, errors.New("kube: DeleteByLabel needs a selector") // an empty one would select everything
	}
	objs, err := c.List(ctx, kind, namespace, selector)
	if err != nil {
		if IsNotFound(err) {
			return nil, nil
		}
		return nil, Explain(err)
	}
	results := c.each(len(objs), func(i int) Result {
		out, err := c.Delete(ctx, kind, objs[i].GetNamespace(), objs[i].GetName(), objs[i])
		return Result{Ref: Ref(objs[i]), Outcome: out, Err: err}
	})
	return results, joined(results)
}

// Write is one change of a batch: Want is applied, or Have is deleted when Want is nil.
type Write struct {
	Kind Kind
	Want *Object
	Have *Object
}

// WriteAll makes all changes with bounded parallelism and returns one result for each, in order. An error of one does
// not stop the others.
func (c *Client) WriteAll(ctx context.Context, writes []Write) []Result {
	return c.each(len(writes), func(i int) Result {
		w := writes[i]
		if w.Want == nil {
			out, err := c.Delete(ctx, w.Kind, w.Have.GetNamespace(), w.Have.GetName(), w.Have)
			return Result{Ref: Ref(w.Have), Outcome: out, Err: err}
		}
		out, err := c.Apply(ctx, w.Want, w.Have)
		return Result{Ref: Ref(w.Want), Outcome: out, Err: err}
	})
}

func (c *Client) each(n int, do func(i int) Result) []Result {
	results := make([]Result, n)
	slots := make(chan struct{}, c.parallel)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = do(i)
		})
	}
	wg.Wait()
	return results
}

func joined(results []Result) error {
	var errs []error
	for _, r := range results {
		errs = append(errs, r.Err)
	}
	return errors.Join(errs...)
}
