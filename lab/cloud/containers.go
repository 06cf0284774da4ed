package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// Containers lets ECS tasks run on the lab's runtime.
func Containers(rt *runtime.Runtime) ecs.Runtime { return containers{rt} }

type containers struct{ rt *runtime.Runtime }

// CheckImage asks the catalogue.
func (c containers) CheckImage(ref string) error {
	_, err := c.rt.Images().Resolve(ref)
	if errors.Is(err, runtime.ErrImageNotFound) {
		return fmt.Errorf("%s: %w", ref, ecs.ErrImageNotFound)
	}
	return err
}

// NewSandbox makes the network namespace of a task.
func (c containers) NewSandbox(ctx context.Context, spec ecs.SandboxSpec) (ecs.Sandbox, error) {
	s, err := c.rt.NewSandbox(ctx, runtime.SandboxSpec{ID: spec.ID, Hostname: spec.Hostname, Addr: spec.Addr})
	if err != nil {
		return nil, err
	}
	return sandbox{s}, nil
}

type sandbox struct{ *runtime.Sandbox }

// Start starts a container of the task.
func (s sandbox) Start(ctx context.Context, spec ecs.ContainerSpec) (ecs.Container, error) {
	mounts := make([]runtime.Mount, 0, len(spec.Mounts))
	for _, m := range spec.Mounts {
		mounts = append(mounts, runtime.Mount(m))
	}
	c, err := s.Sandbox.Start(ctx, runtime.ContainerSpec{ID: spec.ID, Name: spec.Name, Image: spec.Image, Entrypoint: spec.Entrypoint,
		Command: spec.Command, Env: spec.Env, WorkingDir: spec.WorkingDir, Mounts: mounts, TTY: spec.TTY, ReadOnlyRoot: spec.ReadOnlyRoot,
		Capabilities: spec.Capabilities})
	if err != nil {
		return nil, err
	}
	return container{c}, nil
}

type container struct{ *runtime.Container }

// Stop asks the container to end and, after the grace, makes it.
func (c container) Stop(ctx context.Context, grace time.Duration) error {
	return c.Container.Stop(ctx, grace)
}

// Exec runs a command in the container.
func (c container) Exec(ctx context.Context, spec ecs.ExecSpec) (int, error) {
	var sizes chan runtime.WindowSize
	if spec.Resize != nil {
		sizes = make(chan runtime.WindowSize)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go passSizes(ctx, spec.Resize, sizes)
	}
	return c.Container.Exec(ctx, runtime.ExecSpec{Command: spec.Command, TTY: spec.TTY, Stdin: spec.Stdin, Stdout: spec.Stdout,
		Stderr: spec.Stderr, Resize: sizes})
}

// passSizes turns one package's window sizes into the other's until ctx ends.
func passSizes(ctx context.Context, from <-chan ecs.WindowSize, to chan<- runtime.WindowSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-from:
			if !ok {
				return
			}
			select {
			case <-ctx.Done():
				return
			case to <- runtime.WindowSize(size):
			}
		}
	}
}

// Follow writes all the container prints, from its start to its end.
func (c container) Follow(ctx context.Context, w io.Writer) error {
	return c.Logs(ctx, runtime.LogOptions{Follow: true, Tail: -1}, w)
}
