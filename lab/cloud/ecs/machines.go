package ecs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Machine is an EC2 instance.
type Machine struct {
	ID, Account, Region, Zone, Type string
	Addr                            netip.Addr
	UserData                        string
}

// Namespace is what a sandbox of an instance, or of a container in bridge mode, can do besides; the lab's runtime has it.
type Namespace interface {
	Addr() netip.Addr
	// Listen opens a listening socket inside the network namespace.
	Listen(network, addr string) (net.Listener, error)
	// Dial connects from inside the network namespace.
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
}

// machine is an instance that the lab runs: a network namespace with the instance's address.
type machine struct {
	Machine
	cluster string // that its agent registers with; "" means that it has no agent
	sandbox Sandbox
	gone    bool
}

// inbox is what EC2 has told of machines. It has a mutex of its own: EC2 calls with its own held, which this package waits for
// with its mutex held.
type inbox struct {
	mu     sync.Mutex
	booted []*machine // guarded by mu
	ended  []string   // guarded by mu
}

// clusterName is how user data tells an agent its cluster.
func clusterName(userData string) string {
	m := regexp.MustCompile(`(?m)\bECS_CLUSTER=["']?([A-Za-z0-9_-]{1,255})`).FindStringSubmatch(userData)
	if m == nil {
		return ""
	}
	return m[1]
}

// Boot starts a machine. One whose user data names a cluster, as ECS_CLUSTER, becomes a container instance of it.
func (s *Service) Boot(m Machine) error {
	sandbox, err := s.cfg.Runtime.NewSandbox(context.Background(), SandboxSpec{ID: m.ID, Hostname: hostName(m.Addr, m.Region), Addr: m.Addr})
	if err != nil {
		return fmt.Errorf("boot %s: %w", m.ID, err)
	}
	s.inbox.mu.Lock()
	s.inbox.booted = append(s.inbox.booted, &machine{Machine: m, cluster: clusterName(m.UserData), sandbox: sandbox})
	s.inbox.mu.Unlock()
	s.poke()
	return nil
}

func hostName(addr netip.Addr, region string) string {
	return "ip-" + strings.ReplaceAll(addr.String(), ".", "-") + "." + region + ".compute.internal"
}

// Terminate ends a machine, after the tasks that run on it.
func (s *Service) Terminate(_, _, id string) {
	s.inbox.mu.Lock()
	s.inbox.ended = append(s.inbox.ended, id)
	s.inbox.mu.Unlock()
	s.poke()
}

// machinesLocked brings the container instances up to date with the machines. It returns the sandboxes that are not needed any more.
func (s *Service) machinesLocked() (closing []Sandbox) {
	s.inbox.mu.Lock()
	booted, ended := s.inbox.booted, s.inbox.ended
	s.inbox.booted, s.inbox.ended = nil, nil
	s.inbox.mu.Unlock()
	for _, m := range booted {
		s.machines[m.ID] = m
	}
	for _, id := range ended {
		if m := s.machines[id]; m != nil {
			m.gone = true
		}
	}
	for id, m := range s.machines {
		p := s.placeLocked(m.Account, m.Region)
		i := p.instanceOf(m)
		switch {
		case !m.gone && i == nil && m.cluster != "":
			if c := p.clusters[m.cluster]; c != nil && c.status == statusActive {
				s.registerLocked(c, m)
			}
		case m.gone && i != nil:
			s.loseLocked(i)
		}
		if m.gone && !s.busyLocked(p, m) {
			delete(s.machines, id)
			closing = append(closing, m.sandbox)
		}
	}
	return closing
}

// busyLocked reports whether a machine has tasks that are not stopped.
func (s *Service) busyLocked(p *place, m *machine) bool {
	for _, c := range p.clusters {
		for _, t := range c.tasks {
			if t.instance != nil && t.instance.machine == m && t.last != stateStopped {
				return true
			}
		}
	}
	return false
}

// hostSandbox runs the containers of a task in the network namespace of its instance.
type hostSandbox struct {
	machine Sandbox
	mu      sync.Mutex
	mine    []Container // guarded by mu
}

// Start starts a container among those of the instance.
func (h *hostSandbox) Start(ctx context.Context, spec ContainerSpec) (Container, error) {
	c, err := h.machine.Start(ctx, spec)
	if err == nil {
		h.mu.Lock()
		h.mine = append(h.mine, c)
		h.mu.Unlock()
	}
	return c, err
}

// Close kills the containers of the task; the instance stays.
func (h *hostSandbox) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return killAll(h.mine)
}

func killAll(cs []Container) (err error) {
	for _, c := range cs {
		if serr := c.Stop(context.Background(), 0); serr != nil && err == nil {
			err = serr
		}
		<-c.Done()
	}
	return err
}

// bridgeSandbox gives each container a network namespace of its own and carries what comes to the host ports of the instance to
// the ports of the container. Docker does that by translating addresses; the lab copies, so that the container sees connections
// come from the instance.
type bridgeSandbox struct {
	s    *Service
	task *task
	log  *slog.Logger

	mu     sync.Mutex
	own    []Sandbox             // guarded by mu
	opened []net.Listener        // guarded by mu
	conns  map[net.Conn]struct{} // guarded by mu
	wg     sync.WaitGroup
}

// Start makes the container's namespace, starts it, and opens its host ports.
func (b *bridgeSandbox) Start(ctx context.Context, spec ContainerSpec) (Container, error) {
	sandbox, err := b.s.cfg.Runtime.NewSandbox(ctx, SandboxSpec{ID: "ecs-" + spec.ID, Hostname: spec.ID[:min(12, len(spec.ID))]})
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.own = append(b.own, sandbox)
	b.mu.Unlock()
	c, err := sandbox.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	host, ok := b.task.instance.machine.sandbox.(Namespace)
	inside, ok2 := sandbox.(Namespace)
	if !ok || !ok2 {
		return c, nil // a runtime without networks
	}
	for _, bind := range b.task.bindings[spec.Name] {
		if bind.protocol != "tcp" {
			b.log.Info("the lab carries TCP to containers in bridge mode only", slog.String("container", spec.Name), slog.Int("port", bind.containerPort))
			continue
		}
		l, err := host.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", bind.hostPort))
		if err != nil {
			return c, fmt.Errorf("driver failed programming external connectivity: %w", err)
		}
		b.mu.Lock()
		b.opened = append(b.opened, l)
		b.mu.Unlock()
		b.wg.Go(func() { b.carry(l, host, netip.AddrPortFrom(inside.Addr(), uint16(bind.containerPort)).String()) }) //nolint:gosec // a checked port
	}
	return c, nil
}

// dialTimeout bounds how long a connection to a container may take; it is on the same machine.
const dialTimeout = 5 * time.Second

// carry copies between the connections that come to l and new ones to the container, until l is closed.
func (b *bridgeSandbox) carry(l net.Listener, host Namespace, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
			defer cancel()
			out, err := host.Dial(ctx, "tcp4", to)
			if err != nil {
				_ = in.Close() // refused, as the container does
				return
			}
			b.join(in, out)
		})
	}
}

// join copies both ways until both have ended.
func (b *bridgeSandbox) join(in, out net.Conn) {
	b.mu.Lock()
	b.conns[in], b.conns[out] = struct{}{}, struct{}{}
	b.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1]) // an end of either side ends its direction
			if c, ok := way[0].(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite()
			}
		})
	}
	both.Wait()
	b.mu.Lock()
	delete(b.conns, in)
	delete(b.conns, out)
	b.mu.Unlock()
	_, _ = in.Close(), out.Close()
}

// Close ends the containers and what is carried to them.
func (b *bridgeSandbox) Close() error {
	b.mu.Lock()
	own := b.own
	for _, l := range b.opened {
		_ = l.Close()
	}
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	var err error
	for _, s := range own {
		if serr := s.Close(); serr != nil && err == nil {
			err = serr
		}
	}
	b.wg.Wait()
	return err
}
