package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// Mapper tells the resource behind a kind. Its error for a kind that the server does not know satisfies
// meta.IsNoMatchError.
type Mapper interface {
	RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error)
}

// discoveryTimeout bounds one question about a group's kinds.
const discoveryTimeout = 10 * time.Second

// kinds is a Mapper that asks the API server for the kinds of a group and version once, and again when it is asked for
// one that it does not know: its CRD may be younger.
type kinds struct {
	api rest.Interface

	mu    sync.Mutex
	known map[schema.GroupVersionKind]*meta.RESTMapping // guarded by mu
}

func newKinds(api rest.Interface) *kinds {
	return &kinds{api: api, known: map[schema.GroupVersionKind]*meta.RESTMapping{}}
}

// RESTMapping implements Mapper.
func (k *kinds) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	if len(versions) == 0 {
		return nil, fmt.Errorf("find kind %s: no version", kind)
	}
	for _, version := range versions {
		gvk := kind.WithVersion(version)
		if m := k.get(gvk); m != nil {
			return m, nil
		}
		if err := k.read(gvk.GroupVersion()); err != nil {
			return nil, err
		}
		if m := k.get(gvk); m != nil {
			return m, nil
		}
	}
	return nil, &meta.NoKindMatchError{GroupKind: kind, SearchedVersions: versions}
}

func (k *kinds) get(gvk schema.GroupVersionKind) *meta.RESTMapping {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.known[gvk]
}

// read takes over the kinds of a group and version. One that does not exist has none.
func (k *kinds) read(gv schema.GroupVersion) error {
	path := "/apis/" + gv.String()
	if gv.Group == "" {
		path = "/api/" + gv.Version
	}
	ctx, cancel := context.WithTimeout(context.Background(), discoveryTimeout)
	defer cancel()
	body, err := k.api.Get().AbsPath(path).DoRaw(ctx)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the kinds of %s: %w", gv, err)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("read the kinds of %s: %w", gv, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, r := range list.APIResources {
		gvk := gv.WithKind(r.Kind)
		if k.known[gvk] != nil || r.Group != "" && r.Group != gv.Group || strings.Contains(r.Name, "/") {
			continue
		}
		m := &meta.RESTMapping{Resource: gv.WithResource(r.Name), GroupVersionKind: gvk, Scope: meta.RESTScopeRoot}
		if r.Namespaced {
			m.Scope = meta.RESTScopeNamespace
		}
		k.known[gvk] = m
	}
	return nil
}
