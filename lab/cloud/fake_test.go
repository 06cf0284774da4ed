package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
)

// fakeRuntime runs nothing: its containers live until they are stopped or told to exit, and answer Exec by a rule.
type fakeRuntime struct {
	mu         sync.Mutex
	containers map[string]*fakeContainer // by id
	history    []string                  // "start name", "stop name"
	freed      []netip.Addr
	next       byte
	// exec answers commands; nil means exit code 0.
	exec func(c *fakeContainer, spec ecs.ExecSpec) (int, error)
	// execContext, if not nil, answers in its place and hears when the command is to end.
	execContext func(ctx context.Context, c *fakeContainer, spec ecs.ExecSpec) (int, error)
	// exitAtOnce gives the exit code of containers that end as soon as they have started, by name.
	exitAtOnce map[string]int
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{containers: map[string]*fakeContainer{}, exitAtOnce: map[string]int{}}
}

func (f *fakeRuntime) Allocate(subnet netip.Prefix) (netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next++
	b := subnet.Addr().As4()
	b[3] = f.next + 9
	return netip.AddrFrom4(b), nil
}

func (f *fakeRuntime) Release(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.freed = append(f.freed, a)
}

func (f *fakeRuntime) CheckImage(ref string) error {
	if strings.HasPrefix(ref, "unknown/") {
		return fmt.Errorf("%s: %w", ref, ecs.ErrImageNotFound)
	}
	return nil
}

func (f *fakeRuntime) NewSandbox(_ context.Context, spec ecs.SandboxSpec) (ecs.Sandbox, error) {
	return &fakeSandbox{f: f, spec: spec}, nil
}

func (f *fakeRuntime) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history = append(f.history, s)
}

func (f *fakeRuntime) noted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.history)
}

// running returns the living containers of a name.
func (f *fakeRuntime) running(name string) []*fakeContainer {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*fakeContainer
	for _, c := range f.containers {
		select {
		case <-c.done:
		default:
			if c.spec.Name == name {
				out = append(out, c)
			}
		}
	}
	return out
}

type fakeSandbox struct {
	f    *fakeRuntime
	spec ecs.SandboxSpec
	mine []*fakeContainer
	mu   sync.Mutex
}

func (s *fakeSandbox) Start(_ context.Context, spec ecs.ContainerSpec) (ecs.Container, error) {
	if strings.HasPrefix(spec.Image, "broken/") {
		return nil, errors.New("exec format error")
	}
	c := &fakeContainer{f: s.f, spec: spec, sandbox: s.spec, done: make(chan struct{})}
	s.mu.Lock()
	s.mine = append(s.mine, c)
	s.mu.Unlock()
	s.f.mu.Lock()
	s.f.containers[spec.ID] = c
	code, ends := s.f.exitAtOnce[spec.Name]
	s.f.mu.Unlock()
	s.f.note("start " + spec.Name)
	if ends {
		c.exit(code)
	}
	return c, nil
}

func (s *fakeSandbox) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.mine {
		c.exit(137)
	}
	s.f.Release(s.spec.Addr)
	return nil
}

type fakeContainer struct {
	f       *fakeRuntime
	spec    ecs.ContainerSpec
	sandbox ecs.SandboxSpec
	once    sync.Once
	done    chan struct{}
	code    int
}

func (c *fakeContainer) exit(code int) {
	c.once.Do(func() {
		c.code = code
		close(c.done)
	})
}

func (c *fakeContainer) Done() <-chan struct{}     { return c.done }
func (c *fakeContainer) ExitStatus() (int, string) { return c.code, "" }
func (c *fakeContainer) env(name string) (value string) {
	for _, kv := range c.spec.Env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

func (c *fakeContainer) Stop(context.Context, time.Duration) error {
	c.f.note("stop " + c.spec.Name)
	c.exit(0)
	return nil
}

func (c *fakeContainer) Exec(ctx context.Context, spec ecs.ExecSpec) (int, error) {
	c.f.mu.Lock()
	exec, withContext := c.f.exec, c.f.execContext
	c.f.mu.Unlock()
	if withContext != nil {
		return withContext(ctx, c, spec)
	}
	if exec == nil {
		return 0, nil
	}
	return exec(c, spec)
}

func (c *fakeContainer) Follow(ctx context.Context, w io.Writer) error {
	if _, err := io.WriteString(w, "hello from "+c.spec.Name+"\nwithout end"); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	return nil
}
