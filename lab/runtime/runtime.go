// Package runtime runs the lab's containers: processes of the host's own file system, each in mount, process, host
// name and IPC namespaces of its own, joined to the network namespace of a sandbox (a pod or a task).
//
// There are no image files. A Catalogue maps the names of images to programs of the host, and every container sees
// the host's /usr, /bin, /lib and /etc read-only with a private /tmp, /run, /var, /proc and /dev. A small init, which
// is the running executable started again, is process 1 of every container: it builds the root, starts the program,
// forwards signals, reaps orphans and starts what Exec asks for. Programs that use this package must therefore call
// MaybeInit before anything else.
//
// Everything works without privileges inside a user namespace, and nothing outlives the Runtime.
package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/isthmus-mesh/isthmus/lab/netns"
)

// Config is what a Runtime needs.
type Config struct {
	// Dir is a directory of the lab for container logs and mount points. It is created when missing. Required.
	Dir string
	// VPC is the network that sandboxes join. Required.
	VPC *netns.VPC
	// Images maps image names to programs. Required.
	Images *Catalogue
	// Log receives starts and ends. Required.
	Log *slog.Logger
	// Executable is the program started as init; it must call MaybeInit. Empty means the running executable.
	Executable string
}

// Runtime makes sandboxes. Its methods may be called from several goroutines.
type Runtime struct {
	cfg     Config
	spawner *spawner

	mu        sync.Mutex
	sandboxes map[string]*Sandbox // guarded by mu; by ID
	closed    bool                // guarded by mu
}

// New returns a Runtime. The /proc of the process must be that of its own process namespace.
func New(cfg Config) (*Runtime, error) {
	for _, f := range []struct {
		name    string
		missing bool
	}{{"Dir", cfg.Dir == ""}, {"VPC", cfg.VPC == nil}, {"Images", cfg.Images == nil}, {"Log", cfg.Log == nil}} {
		if f.missing {
			return nil, fmt.Errorf("runtime: Config.%s is required", f.name)
		}
	}
	if cfg.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("runtime: find the running executable: %w", err)
		}
		cfg.Executable = exe
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("runtime: directory %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	for _, d := range []string{rootMountPoint(dir), filepath.Join(dir, "logs")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("runtime: %w", err)
		}
	}
	return &Runtime{cfg: cfg, spawner: newSpawner(), sandboxes: map[string]*Sandbox{}}, nil
}

// Images returns the catalogue of the Runtime.
func (r *Runtime) Images() *Catalogue { return r.cfg.Images }

// Sandbox returns the open sandbox of that ID, or nil.
func (r *Runtime) Sandbox(id string) *Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sandboxes[id]
}

// NewSandbox makes a network namespace attached to the VPC. When spec.Addr is the zero value an address of the pod
// subnet is allocated; otherwise the caller has allocated it. Either way Close releases it.
func (r *Runtime) NewSandbox(ctx context.Context, spec SandboxSpec) (*Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if spec.ID == "" {
		return nil, errors.New("runtime: SandboxSpec.ID is required")
	}
	s := &Sandbox{rt: r, spec: spec, containers: map[string]*Container{}}
	r.mu.Lock()
	switch {
	case r.closed:
		r.mu.Unlock()
		return nil, errors.New("runtime: closed")
	case r.sandboxes[spec.ID] != nil:
		r.mu.Unlock()
		return nil, fmt.Errorf("sandbox %q exists already", spec.ID)
	}
	r.sandboxes[spec.ID] = s
	r.mu.Unlock()
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("make sandbox %q: %w", spec.ID, err), s.Close())
	}
	r.cfg.Log.Debug("sandbox made", slog.String("sandbox", spec.ID), slog.String("addr", s.Addr().String()))
	return s, nil
}

// Close ends every sandbox and everything that runs in them. It does not close the VPC.
func (r *Runtime) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	open := make([]*Sandbox, 0, len(r.sandboxes))
	for _, s := range r.sandboxes {
		open = append(open, s)
	}
	r.mu.Unlock()
	errs := make([]error, len(open))
	var wg sync.WaitGroup
	for i, s := range open {
		wg.Go(func() { errs[i] = s.Close() })
	}
	wg.Wait()
	r.spawner.close()
	return errors.Join(errs...)
}

// rootMountPoint is an empty directory on which every container's init mounts its root, each in its own namespace.
func rootMountPoint(dir string) string { return filepath.Join(dir, "root") }
