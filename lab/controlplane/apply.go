package controlplane

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"sigs.k8s.io/yaml"
)

// FieldManager owns the fields that the lab applies.
const FieldManager = "isthmus-lab"

// appliesAtOnce bounds how many objects are on their way to the API server at the same time.
const appliesAtOnce = 8

//go:embed manifests/gateway-api/*.yaml
var gatewayAPI embed.FS

// documentEnd separates the documents of a YAML stream. The charts of Istio contain no such line inside a value.
var documentEnd = regexp.MustCompile(`(?m)^---[ \t]*$`)

// crdResource is the resource of CustomResourceDefinitions.
func crdResource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
}

// Parse reads the objects of a YAML stream; documents without an object are passed over.
func Parse(stream []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for _, document := range documentEnd.Split(string(stream), -1) {
		if strings.TrimSpace(document) == "" {
			continue
		}
		text, err := yaml.YAMLToJSON([]byte(document))
		if err != nil {
			return nil, fmt.Errorf("read YAML: %w", err)
		}
		if bytes.Equal(text, []byte("null")) {
			continue
		}
		o := &unstructured.Unstructured{}
		if err := o.UnmarshalJSON(text); err != nil {
			return nil, fmt.Errorf("read object: %w", err)
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// GatewayAPI returns the objects of the Gateway API's standard channel.
func GatewayAPI() ([]*unstructured.Unstructured, error) {
	names, err := fs.Glob(gatewayAPI, "manifests/gateway-api/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("list Gateway API definitions: %w", err)
	}
	var all []*unstructured.Unstructured
	for _, name := range names {
		text, err := gatewayAPI.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		objects, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

// SplitCRDs parts CustomResourceDefinitions from everything else.
func SplitCRDs(objects []*unstructured.Unstructured) (crds, others []*unstructured.Unstructured) {
	for _, o := range objects {
		if o.GetKind() == "CustomResourceDefinition" {
			crds = append(crds, o)
		} else {
			others = append(others, o)
		}
	}
	return crds, others
}

// Applier writes objects to an API server.
type Applier struct {
	client    dynamic.Interface
	discovery discovery.DiscoveryInterface
}

// NewApplier returns an Applier that uses config.
func NewApplier(config *rest.Config) (*Applier, error) {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make dynamic client: %w", err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make discovery client: %w", err)
	}
	return &Applier{client: client, discovery: d}, nil
}

// CreateCRDs creates the definitions all at once and returns when the API server serves them. A definition that exists
// is left as it is.
func (a *Applier) CreateCRDs(ctx context.Context, crds []*unstructured.Unstructured) error {
	client := a.client.Resource(crdResource())
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(appliesAtOnce)
	for _, crd := range crds {
		group.Go(func() error {
			_, err := client.Create(groupCtx, crd, metav1.CreateOptions{FieldManager: FieldManager})
			if err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("create definition %s: %w", crd.GetName(), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return Poll(ctx, func(ctx context.Context) error {
		list, err := client.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		established := map[string]bool{}
		for i := range list.Items {
			established[list.Items[i].GetName()] = conditionTrue(&list.Items[i], "Established")
		}
		for _, crd := range crds {
			if !established[crd.GetName()] {
				return fmt.Errorf("definition %s is not established", crd.GetName())
			}
		}
		return nil
	})
}

// Apply applies the objects server-side, namespaces first and everything else in parallel. All kinds must be served.
func (a *Applier) Apply(ctx context.Context, objects []*unstructured.Unstructured) error {
	groups, err := restmapper.GetAPIGroupResources(a.discovery)
	if err != nil {
		return fmt.Errorf("discover the API: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	var namespaces, others []*unstructured.Unstructured
	for _, o := range objects {
		if o.GetKind() == "Namespace" {
			namespaces = append(namespaces, o)
		} else {
			others = append(others, o)
		}
	}
	if err := a.applyAll(ctx, mapper, namespaces); err != nil {
		return err
	}
	return a.applyAll(ctx, mapper, others)
}

func (a *Applier) applyAll(ctx context.Context, mapper meta.RESTMapper, objects []*unstructured.Unstructured) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(appliesAtOnce)
	for _, o := range objects {
		group.Go(func() error {
			if err := a.apply(ctx, mapper, o); err != nil {
				return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
			}
			return nil
		})
	}
	return group.Wait()
}

func (a *Applier) apply(ctx context.Context, mapper meta.RESTMapper, o *unstructured.Unstructured) error {
	kind := o.GroupVersionKind()
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	var client dynamic.ResourceInterface = a.client.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		namespace := o.GetNamespace()
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		client = a.client.Resource(mapping.Resource).Namespace(namespace)
	}
	_, err = client.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: FieldManager, Force: true})
	return err
}

// conditionTrue reports whether status.conditions holds the condition with status True.
func conditionTrue(o *unstructured.Unstructured, kind string) bool {
	conditions, _, err := unstructured.NestedSlice(o.Object, "status", "conditions")
	if err != nil {
		return false
	}
	for _, c := range conditions {
		m, ok := c.(map[string]any)
		if ok && m["type"] == kind && m["status"] == "True" {
			return true
		}
	}
	return false
}

// NewNamespace returns a Namespace object with labels.
func NewNamespace(name string, labels map[string]string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("v1")
	o.SetKind("Namespace")
	o.SetName(name)
	o.SetLabels(labels)
	return o
}
