package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/lab/netns"
)

// SandboxSpec describes a sandbox: what the containers of one pod or task share.
type SandboxSpec struct {
	// ID is unique within the Runtime.
	ID string
	// Hostname is what the containers see as their host name. Empty means ID.
	Hostname string
	// Addr is an address allocated from the VPC. The zero value means one of the pod subnet.
	Addr netip.Addr
	// Nameservers go into /etc/resolv.conf. Empty means the lab's resolver.
	Nameservers []netip.Addr
	// Searches are the search domains of /etc/resolv.conf.
	Searches []string
	// Options are those of /etc/resolv.conf. Nil means, with any Searches, ndots:5 as in Kubernetes.
	Options []string
	// Hosts are further lines of /etc/hosts, beside localhost and the sandbox itself.
	Hosts map[string]netip.Addr
}

// Sandbox is a network namespace with an address, and the containers that share it.
type Sandbox struct {
	rt   *Runtime
	spec SandboxSpec
	port *netns.Port

	mu         sync.Mutex
	containers map[string]*Container // guarded by mu; by ID
	closed     bool                  // guarded by mu

	closeOnce sync.Once
	closeErr  error
}

func (s *Sandbox) open() error {
	vpc := s.rt.cfg.VPC
	if s.spec.Hostname == "" {
		s.spec.Hostname = s.spec.ID
	}
	if len(s.spec.Nameservers) == 0 {
		s.spec.Nameservers = []netip.Addr{netns.Resolver}
	}
	if !s.spec.Addr.IsValid() {
		a, err := vpc.Allocate(netns.Pods)
		if err != nil {
			return err
		}
		s.spec.Addr = a
	}
	port, err := vpc.Attach(s.spec.Addr)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.port = port
	closed := s.closed
	s.mu.Unlock()
	if closed { // the Runtime was closed meanwhile, and did not see the port
		return errors.Join(errors.New("the runtime is closed"), port.Close())
	}
	for name, text := range map[string]string{"resolv.conf": s.resolvConf(), "hosts": s.hosts(), "hostname": s.spec.Hostname + "\n"} {
		if err := os.MkdirAll(s.dir(), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.dir(), name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// dir holds the files of the sandbox that its containers see in /etc.
func (s *Sandbox) dir() string { return filepath.Join(s.rt.cfg.Dir, "sandboxes", s.spec.ID) }

func (s *Sandbox) resolvConf() string {
	var b strings.Builder
	for _, n := range s.spec.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", n)
	}
	options := s.spec.Options
	if len(s.spec.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.spec.Searches, " "))
		if options == nil {
			options = []string{"ndots:5"}
		}
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

func (s *Sandbox) hosts() string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n%s\t%s\n", s.spec.Addr, s.spec.Hostname)
	names := make([]string, 0, len(s.spec.Hosts))
	for n := range s.spec.Hosts {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "%s\t%s\n", s.spec.Hosts[n], n)
	}
	return b.String()
}

// ID returns the identifier of the sandbox.
func (s *Sandbox) ID() string { return s.spec.ID }

// Addr returns the address of the sandbox.
func (s *Sandbox) Addr() netip.Addr { return s.spec.Addr }

// NetNS returns a new descriptor of the sandbox's network namespace. The caller closes it.
func (s *Sandbox) NetNS() (*os.File, error) { return s.port.NetNS() }

// Dial connects from inside the sandbox's network namespace, as a process of the sandbox would. The host of addr must
// be an IP address or "localhost": names are not resolved.
func (s *Sandbox) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %q in sandbox %s: %w", addr, s.spec.ID, err)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return nil, fmt.Errorf("dial %q in sandbox %s: not an IP address", addr, s.spec.ID)
	}
	var conn net.Conn
	err = s.port.Do(func() error {
		// One literal address: the dialer opens its socket on this very thread.
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, net.JoinHostPort(host, port))
		return err
	})
	if err != nil {
		if conn != nil {
			_ = conn.Close() // the thread could not return to its namespace; the connection is of no use
		}
		return nil, fmt.Errorf("dial in sandbox %s: %w", s.spec.ID, err)
	}
	return conn, nil
}

// Listen opens a listening socket inside the sandbox's network namespace. The host of addr must be an IP address.
func (s *Sandbox) Listen(network, addr string) (net.Listener, error) {
	var l net.Listener
	err := s.port.Do(func() error {
		var err error
		l, err = net.Listen(network, addr) //nolint:noctx // it does not block
		return err
	})
	if err != nil {
		if l != nil {
			_ = l.Close() // the thread could not return to its namespace
		}
		return nil, fmt.Errorf("listen in sandbox %s: %w", s.spec.ID, err)
	}
	return l, nil
}

// Close kills everything in the sandbox, removes its network interface and releases its address.
func (s *Sandbox) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		port := s.port
		cs := make([]*Container, 0, len(s.containers))
		for _, c := range s.containers {
			cs = append(cs, c)
		}
		s.mu.Unlock()
		for _, c := range cs {
			c.kill()
		}
		for _, c := range cs {
			<-c.Done()
			c.removeLog()
		}
		var errs []error
		if port != nil {
			errs = append(errs, port.Close())
		}
		if s.spec.Addr.IsValid() {
			s.rt.cfg.VPC.Release(s.spec.Addr)
		}
		errs = append(errs, os.RemoveAll(s.dir()))
		s.rt.mu.Lock()
		delete(s.rt.sandboxes, s.spec.ID)
		s.rt.mu.Unlock()
		s.closeErr = errors.Join(errs...)
		s.rt.cfg.Log.Debug("sandbox closed", slog.String("sandbox", s.spec.ID))
	})
	return s.closeErr
}
