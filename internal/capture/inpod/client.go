package inpod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/capture/inpod/zdspb"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// The times are ztunnel's.
const (
	minBackoff = 20 * time.Millisecond
	maxBackoff = 15 * time.Second
	retryEvery = 5 * time.Second
)

// ClientConfig configures a Client.
type ClientConfig struct {
	Path    string       // the agent's socket; required
	Handler Handler      // required
	Log     *slog.Logger // required
	// RetryEvery is how often a pod that could not be served is tried again; 0 means 5 s.
	RetryEvery time.Duration
}

// Client speaks ZDS to the CNI agent.
type Client struct {
	cfg ClientConfig

	// The rest belongs to Run.
	pods   map[string]*pod
	synced bool
}

// pod is one that the agent named.
type pod struct {
	w       Workload
	id      netnsID
	seen    bool     // in the snapshot that is arriving
	pending *os.File // the namespace, while it could not be served; nil otherwise
}

// NewClient returns a Client ready to Run.
func NewClient(cfg ClientConfig) (*Client, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("inpod: ClientConfig.Path is required")
	case cfg.Handler == nil:
		return nil, errors.New("inpod: ClientConfig.Handler is required")
	case cfg.Log == nil:
		return nil, errors.New("inpod: ClientConfig.Log is required")
	}
	if cfg.RetryEvery == 0 {
		cfg.RetryEvery = retryEvery
	}
	return &Client{cfg: cfg, pods: make(map[string]*pod)}, nil
}

// Run connects, and connects again, until ctx ends. A violation of the protocol is an error. Pods are served on while the
// agent is away.
func (c *Client) Run(ctx context.Context) error {
	defer func() {
		for _, p := range c.pods {
			if p.pending != nil {
				p.pending.Close()
			}
		}
	}()
	backoff := minBackoff
	for {
		progress, err := c.session(ctx)
		c.setSynced(false)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errProtocol) {
			return err
		}
		if progress {
			backoff = minBackoff
		}
		c.cfg.Log.Debug("zds connection ended", logattr.Err(err), logattr.Deadline(backoff))
		if !c.pause(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// pause waits, and tries pending pods meanwhile.
func (c *Client) pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// session is one connection, from hello to its end. progress tells whether the agent said anything.
func (c *Client) session(ctx context.Context) (progress bool, err error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unixpacket", c.cfg.Path)
	if err != nil {
		return false, fmt.Errorf("connect to the CNI agent: %w", err)
	}
	conn, ok := raw.(*net.UnixConn)
	if !ok {
		raw.Close()
		return false, errors.New("connect to the CNI agent: not a unix socket")
	}
	sctx, cancel := context.WithCancel(ctx)
	packets, readErr := make(chan *packet), make(chan error, 1)
	readerDone := make(chan struct{})
	stop := context.AfterFunc(sctx, func() { conn.Close() })
	defer func() {
		cancel()
		stop()
		conn.Close()
		<-readerDone
	}()
	go func() {
		defer close(readerDone)
		readErr <- readPackets(sctx, conn, packets)
	}()
	if err := send(conn, &zdspb.ZdsHello{Version: zdspb.Version_V1}, nil); err != nil {
		return false, err
	}
	for _, p := range c.pods {
		p.seen = false
	}
	return c.serve(ctx, conn, packets, readErr)
}

func readPackets(ctx context.Context, conn *net.UnixConn, out chan<- *packet) error {
	for {
		p, err := receive(conn)
		if err != nil {
			return err
		}
		select {
		case out <- p:
		case <-ctx.Done():
			p.close()
			return ctx.Err()
		}
	}
}

func (c *Client) serve(ctx context.Context, conn *net.UnixConn, packets <-chan *packet, readErr <-chan error) (progress bool, err error) {
	retry := time.NewTicker(c.cfg.RetryEvery)
	defer retry.Stop()
	snapshot := false
	for {
		select {
		case <-ctx.Done():
			return progress, ctx.Err()
		case err := <-readErr:
			return progress, fmt.Errorf("read from the CNI agent: %w", err)
		case <-retry.C:
			c.retry(ctx)
			c.setSynced(snapshot && c.pending() == 0)
		case p := <-packets:
			progress = true
			r, err := decodeRequest(p)
			p.close()
			if err != nil {
				return progress, err
			}
			herr := c.handle(ctx, r)
			if r.kind == kindSnapshotSent {
				snapshot = true
			}
			ack := &zdspb.Ack{}
			if herr != nil {
				ack.Error = herr.Error()[:min(len(herr.Error()), MaxMessage/2)]
				c.cfg.Log.Warn("pod cannot be served", logattr.WorkloadUID(r.w.UID), logattr.WorkloadName(r.w.Namespace, r.w.Name), logattr.Err(herr))
			}
			err = send(conn, &zdspb.WorkloadResponse{Payload: &zdspb.WorkloadResponse_Ack{Ack: ack}}, nil)
			if err != nil {
				return progress, err
			}
			c.setSynced(snapshot && c.pending() == 0)
		}
	}
}

func (c *Client) handle(ctx context.Context, r request) error {
	switch r.kind {
	case kindAdd:
		return c.add(ctx, r)
	case kindKeep:
		if p := c.pods[r.w.UID]; p != nil {
			p.seen = true
		}
	case kindDel:
		c.remove(r.w.UID)
	case kindSnapshotSent:
		for uid, p := range c.pods {
			if !p.seen {
				c.remove(uid)
			}
		}
	}
	return nil
}

func (c *Client) add(ctx context.Context, r request) error {
	defer r.ns.Close()
	if r.w.UID == "" || !r.info {
		return errors.New("workload info is missing")
	}
	id, err := idOf(r.ns)
	if err != nil {
		return err
	}
	p := c.pods[r.w.UID]
	if p != nil && p.id == id && p.w == r.w && p.pending == nil {
		p.seen = true
		return nil
	}
	if p == nil {
		p = &pod{}
		c.pods[r.w.UID] = p
	} else if p.pending != nil {
		p.pending.Close()
		p.pending = nil
	}
	p.w, p.id, p.seen = r.w, id, true
	keep, err := duplicate(r.ns)
	if err != nil {
		return err
	}
	p.pending = keep
	return c.start(ctx, p)
}

// start hands a pending pod to the Handler.
func (c *Client) start(ctx context.Context, p *pod) error {
	ns, err := duplicate(p.pending)
	if err != nil {
		return err
	}
	if err := c.cfg.Handler.Add(ctx, p.w, ns); err != nil {
		return err
	}
	p.pending.Close()
	p.pending = nil
	return nil
}

func (c *Client) retry(ctx context.Context) {
	for _, p := range c.pods {
		if p.pending == nil {
			continue
		}
		if err := c.start(ctx, p); err != nil {
			c.cfg.Log.Warn("pod still cannot be served", logattr.WorkloadUID(p.w.UID), logattr.WorkloadName(p.w.Namespace, p.w.Name), logattr.Err(err))
		}
	}
}

func (c *Client) remove(uid string) {
	p := c.pods[uid]
	if p == nil {
		return
	}
	delete(c.pods, uid)
	if p.pending != nil {
		p.pending.Close()
	}
	// Also when it was pending: it may have been served before, in another namespace.
	c.cfg.Handler.Remove(uid)
}

func (c *Client) pending() int {
	n := 0
	for _, p := range c.pods {
		if p.pending != nil {
			n++
		}
	}
	return n
}

func (c *Client) setSynced(ok bool) {
	if ok != c.synced {
		c.synced = ok
		c.cfg.Handler.Synced(ok)
	}
}
