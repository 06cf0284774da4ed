package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod/zdspb"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// ackTimeout bounds the wait for a proxy's answer; a proxy that exceeds it is disconnected.
const ackTimeout = 30 * time.Second

// ServerConfig configures a Server.
type ServerConfig struct {
	Path string       // the socket to listen on, replaced if it is there; required
	Log  *slog.Logger // required
}

// Server plays the CNI agent: it tells every proxy that connects of all pods, and the one that connected last of every
// change, as istio-cni does while one proxy replaces another.
type Server struct {
	cfg ServerConfig

	mu    sync.Mutex
	pods  map[string]*served // guarded by mu
	order []string           // guarded by mu; uids as they were added
	conns []*serverConn      // guarded by mu; the last one is current
}

type served struct {
	w  Workload
	ns *os.File
}

// serverConn is one proxy.
type serverConn struct {
	conn  *net.UnixConn
	queue chan *change
	done  chan struct{} // closed when the connection has ended
	acks  chan string
}

// maxQueued is how many changes may wait for a proxy to take them.
const maxQueued = 1024

// change is a message to one proxy.
type change struct {
	m      proto.Message
	ns     *os.File // owned; closed once sent
	result chan error
}

// NewServer returns a Server ready to Run.
func NewServer(cfg ServerConfig) (*Server, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("inpod: ServerConfig.Path is required")
	case cfg.Log == nil:
		return nil, errors.New("inpod: ServerConfig.Log is required")
	}
	return &Server{cfg: cfg, pods: make(map[string]*served)}, nil
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	if err := os.Remove(s.cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old zds socket: %w", err)
	}
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.cfg.Path, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("listen for proxies: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a proxy: %w", err)
		}
		wg.Go(func() {
			if err := s.serve(ctx, conn); err != nil && ctx.Err() == nil {
				s.cfg.Log.Warn("zds proxy disconnected", logattr.Err(err))
			}
		})
	}
}

// serve is the life of one proxy's connection.
func (s *Server) serve(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(ackTimeout))
	p, err := receive(conn)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	p.close()
	var hello zdspb.ZdsHello
	if err := proto.Unmarshal(p.data, &hello); err != nil || hello.GetVersion() != zdspb.Version_V1 {
		return violation("hello of version %d: %v", hello.GetVersion(), err)
	}
	_ = conn.SetReadDeadline(time.Time{})
	c := &serverConn{conn: conn, queue: make(chan *change, maxQueued), done: make(chan struct{}), acks: make(chan string, 1)}
	snapshot, err := s.register(c)
	defer s.unregister(c)
	defer drop(snapshot)
	if err != nil {
		return err
	}
	readErr := make(chan error, 1)
	go func() { readErr <- c.readAcks() }()
	defer func() { conn.Close(); <-readErr }()
	for len(snapshot) > 0 {
		ch := snapshot[0]
		snapshot = snapshot[1:]
		if err := c.exchange(ctx, ch, readErr); err != nil {
			return err
		}
	}
	for {
		select {
		case ch := <-c.queue:
			if err := c.exchange(ctx, ch, readErr); err != nil {
				return err
			}
		case err := <-readErr:
			readErr <- err
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// register makes c the current proxy and returns what it must be told first. Changes from then on go to its queue.
func (s *Server) register(c *serverConn) ([]*change, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	var all []*change
	for _, uid := range s.order {
		ch, err := addition(s.pods[uid])
		if err != nil {
			return all, err
		}
		all = append(all, ch)
	}
	return append(all, &change{
		m:      &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_SnapshotSent{SnapshotSent: &zdspb.SnapshotSent{}}},
		result: make(chan error, 1),
	}), nil
}

func (s *Server) unregister(c *serverConn) {
	s.mu.Lock()
	s.conns = slices.DeleteFunc(s.conns, func(o *serverConn) bool { return o == c })
	close(c.done)
	s.mu.Unlock()
	for {
		select {
		case ch := <-c.queue:
			drop([]*change{ch})
		default:
			return
		}
	}
}

func drop(changes []*change) {
	for _, ch := range changes {
		if ch.ns != nil {
			ch.ns.Close()
		}
	}
}

func addition(p *served) (*change, error) {
	ns, err := duplicate(p.ns)
	if err != nil {
		return nil, err
	}
	return &change{ns: ns, result: make(chan error, 1), m: &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Add{Add: &zdspb.AddWorkload{
		Uid: p.w.UID,
		WorkloadInfo: &zdspb.WorkloadInfo{
			Name: p.w.Name, Namespace: p.w.Namespace, ServiceAccount: p.w.ServiceAccount,
		},
	}}}}, nil
}

// readAcks receives the answers; one is outstanding at most.
func (c *serverConn) readAcks() error {
	for {
		p, err := receive(c.conn)
		if err != nil {
			return err
		}
		p.close()
		var resp zdspb.WorkloadResponse
		if err := proto.Unmarshal(p.data, &resp); err != nil || resp.GetAck() == nil {
			return violation("not an ack: %v", err)
		}
		select {
		case c.acks <- resp.GetAck().GetError():
		default:
			return violation("ack without request")
		}
	}
}

// exchange sends a change and waits for its ack. The ack's own error goes to the one who made the change.
func (c *serverConn) exchange(ctx context.Context, ch *change, readErr chan error) error {
	err := send(c.conn, ch.m, ch.ns)
	drop([]*change{ch})
	if err != nil {
		return err
	}
	t := time.NewTimer(ackTimeout)
	defer t.Stop()
	select {
	case text := <-c.acks:
		if text != "" {
			ch.result <- fmt.Errorf("the proxy answered: %s", text)
		} else {
			ch.result <- nil
		}
		return nil
	case err := <-readErr:
		readErr <- err
		return err
	case <-t.C:
		return fmt.Errorf("no ack within %s", ackTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Connected reports whether a proxy is there.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) > 0
}

// Add tells of a pod, or of its new namespace; it keeps its own duplicate of ns. If a proxy is connected, it waits for the
// answer, and an error is the proxy's; the pod is kept all the same, and told to any later proxy.
func (s *Server) Add(ctx context.Context, w Workload, ns *os.File) error {
	own, err := duplicate(ns)
	if err != nil {
		return err
	}
	s.mu.Lock()
	p := s.pods[w.UID]
	if p == nil {
		p = &served{}
		s.pods[w.UID] = p
		s.order = append(s.order, w.UID)
	} else {
		p.ns.Close()
	}
	p.w, p.ns = w, own
	ch, err := addition(p)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	return s.tell(ctx, ch)
}

// Remove tells that a pod is gone.
func (s *Server) Remove(ctx context.Context, uid string) error {
	s.mu.Lock()
	p := s.pods[uid]
	if p == nil {
		s.mu.Unlock()
		return nil
	}
	delete(s.pods, uid)
	s.order = slices.DeleteFunc(s.order, func(o string) bool { return o == uid })
	p.ns.Close()
	return s.tell(ctx, &change{
		m:      &zdspb.WorkloadRequest{Payload: &zdspb.WorkloadRequest_Del{Del: &zdspb.DelWorkload{Uid: uid}}},
		result: make(chan error, 1),
	})
}

// tell queues a change for the current proxy and waits. It is called with mu held, which it releases.
func (s *Server) tell(ctx context.Context, ch *change) error {
	if len(s.conns) == 0 {
		s.mu.Unlock()
		drop([]*change{ch})
		return nil
	}
	c := s.conns[len(s.conns)-1]
	select {
	case c.queue <- ch:
	default:
		s.mu.Unlock()
		drop([]*change{ch})
		return errors.New("too many changes wait for the proxy")
	}
	s.mu.Unlock()
	select {
	case err := <-ch.result:
		return err
	case <-c.done: // the next proxy gets it in its snapshot
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close forgets all pods; it is called after Run has returned.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pods {
		p.ns.Close()
	}
	clear(s.pods)
	s.order = nil
	return nil
}
