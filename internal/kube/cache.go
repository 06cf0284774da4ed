package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
)

// CacheConfig says which objects a Cache follows.
type CacheConfig struct {
	// Kind is required.
	Kind Kind
	// Namespace limits the cache; empty means all namespaces.
	Namespace string
	// Selector is a label selector; empty selects everything.
	Selector string
	// Field is a field selector such as metadata.name=x; empty selects everything.
	Field string
}

// Cache is a live, read-only copy of the objects of one kind, kept by list and watch.
type Cache struct {
	cfg      CacheConfig
	informer cache.SharedIndexInformer
	log      *slog.Logger
	synced   chan struct{}

	mu      sync.Mutex
	changed chan struct{} // guarded by mu; closed and replaced at each change
	lastErr error         // guarded by mu; the newest list or watch error, nil once synced
}

// NewCache returns a Cache; Run must be called for it to fill.
func (c *Client) NewCache(cfg CacheConfig) (*Cache, error) {
	if cfg.Kind.Resource == "" {
		return nil, errors.New("kube: CacheConfig.Kind is required")
	}
	tweak := func(o *metav1.ListOptions) { o.LabelSelector, o.FieldSelector = cfg.Selector, cfg.Field }
	informer := dynamicinformer.NewFilteredDynamicInformer(c.dyn, cfg.Kind, cfg.Namespace, 0, cache.Indexers{}, tweak).Informer()
	k := &Cache{cfg: cfg, informer: informer, log: c.log, synced: make(chan struct{}), changed: make(chan struct{})}
	// Managed fields are larger than the object itself and nobody reads them here.
	if err := informer.SetTransform(func(v any) (any, error) {
		if o, ok := v.(*Object); ok {
			o.SetManagedFields(nil)
		}
		return v, nil
	}); err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	if err := informer.SetWatchErrorHandler(k.watchError); err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	notify := func() { k.notify(nil) }
	if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { notify() },
		UpdateFunc: func(_, _ any) { notify() },
		DeleteFunc: func(any) { notify() },
	}); err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	return k, nil
}

// watchError keeps the newest error, and logs it when it differs from the one before: a kind whose CRD is missing would
// otherwise fill the log.
func (k *Cache) watchError(_ *cache.Reflector, err error) {
	k.mu.Lock()
	repeated := k.lastErr != nil && k.lastErr.Error() == err.Error()
	k.lastErr = err
	k.mu.Unlock()
	if !repeated {
		k.log.Warn("watch interrupted", slog.String("kind", k.cfg.Kind.Resource), slog.String("error", err.Error()))
	}
}

func (k *Cache) notify(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lastErr = err
	close(k.changed)
	k.changed = make(chan struct{})
}

// Run follows the objects until ctx ends.
func (k *Cache) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), k.informer.HasSynced) {
			close(k.synced)
			k.notify(nil)
		}
	})
	k.informer.Run(ctx.Done())
	wg.Wait()
	return nil
}

// Synced is closed once the cache holds everything that the first list returned.
func (k *Cache) Synced() <-chan struct{} { return k.synced }

// Wait blocks until the cache is synced, ctx ends, or limit passes; 0 means no limit. The error of a limit that passed
// says what the API server answered last.
func (k *Cache) Wait(ctx context.Context, limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	select {
	case <-k.synced:
		return nil
	case <-ctx.Done():
		if err := k.Err(); err != nil {
			return fmt.Errorf("read %s: %w", k.cfg.Kind.Resource, err)
		}
		return fmt.Errorf("read %s: %w", k.cfg.Kind.Resource, ctx.Err())
	}
}

// Err returns what the newest list or watch failed with, or nil.
func (k *Cache) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lastErr
}

// Changed returns a channel that closes at the next change. Take the channel before reading the objects.
func (k *Cache) Changed() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed
}

// Get returns the object of that name, or nil. The caller must not change it.
func (k *Cache) Get(namespace, name string) *Object {
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	v, ok, err := k.informer.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil
	}
	o, _ := v.(*Object)
	return o
}

// List returns all objects, in no order. The caller must not change them.
func (k *Cache) List() []*Object {
	vs := k.informer.GetStore().List()
	out := make([]*Object, 0, len(vs))
	for _, v := range vs {
		if o, ok := v.(*Object); ok {
			out = append(out, o)
		}
	}
	return out
}
