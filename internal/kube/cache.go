package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unique"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
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
	// Track makes Take work.
	Track bool
}

// Cache is a live, read-only copy of the objects of one kind, kept by list and watch.
type Cache struct {
	cfg      CacheConfig
	informer cache.SharedIndexInformer
	log      *slog.Logger
	handled  func() bool // whether all objects of the first list were noted
	synced   chan struct{}

	mu      sync.Mutex
	changed chan struct{}   // guarded by mu; closed and replaced at each change
	dirty   map[string]bool // guarded by mu; keys of objects that changed since Take, if the cache tracks them
	lastErr error           // guarded by mu; the newest list or watch error, nil once synced
}

// NewCache returns a Cache; Run must be called for it to fill.
func (c *Client) NewCache(cfg CacheConfig) (*Cache, error) {
	if cfg.Kind.Resource == "" {
		return nil, errors.New("kube: CacheConfig.Kind is required")
	}
	res := c.dyn.Resource(cfg.Kind).Namespace(cfg.Namespace)
	informer := cache.NewSharedIndexInformerWithOptions(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = cfg.Selector, cfg.Field
			return res.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = cfg.Selector, cfg.Field
			return res.Watch(ctx, o)
		},
	}, c.dyn), &Object{}, cache.SharedIndexInformerOptions{ObjectDescription: cfg.Kind.String()})
	k := &Cache{cfg: cfg, informer: informer, log: c.log, synced: make(chan struct{}), changed: make(chan struct{})}
	if err := informer.SetTransform(func(v any) (any, error) {
		if o, ok := v.(*Object); ok {
			return Compact(o), nil
		}
		return v, nil
	}); err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	if err := informer.SetWatchErrorHandler(k.watchError); err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	if cfg.Track {
		k.dirty = map[string]bool{}
	}
	reg, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    k.note,
		UpdateFunc: func(_, v any) { k.note(v) },
		DeleteFunc: k.note,
	})
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", cfg.Kind.Resource, err)
	}
	k.handled = reg.HasSynced
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

// note takes over that an object changed.
func (k *Cache) note(v any) {
	if k.cfg.Track {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(v); err == nil {
			k.mu.Lock()
			k.dirty[key] = true
			k.mu.Unlock()
		}
	}
	k.notify(nil)
}

// Name names an object of a Cache.
type Name struct{ Namespace, Name string }

// Take returns the objects that changed since the last Take, nil for those that are gone. The first Take after Synced
// returns everything. It works for one taker, and only with CacheConfig.Track.
func (k *Cache) Take() map[Name]*Object {
	k.mu.Lock()
	dirty := k.dirty
	if k.cfg.Track {
		k.dirty = map[string]bool{}
	}
	k.mu.Unlock()
	out := make(map[Name]*Object, len(dirty))
	for key := range dirty {
		namespace, name, err := cache.SplitMetaNamespaceKey(key)
		if err == nil {
			out[Name{namespace, name}] = k.Get(namespace, name)
		}
	}
	return out
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
		if cache.WaitForCacheSync(ctx.Done(), k.handled) {
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

// Compact makes an object smaller, as a Cache keeps it: without managed fields, which are larger than all the rest, and
// with strings that objects share. It changes the object and returns it.
func Compact(o *Object) *Object {
	o.SetManagedFields(nil)
	o.Object, _ = shared(o.Object).(map[string]any)
	return o
}

// shared returns the value with each of its strings replaced by the one copy of it that all caches share: field names,
// labels and most values are the same in thousands of objects.
func shared(v any) any {
	switch x := v.(type) {
	case string:
		return unique.Make(x).Value()
	case map[string]any:
		out := make(map[string]any, len(x))
		for k, e := range x {
			out[unique.Make(k).Value()] = shared(e)
		}
		return out
	case []any:
		for i := range x {
			x[i] = shared(x[i])
		}
	}
	return v
}
