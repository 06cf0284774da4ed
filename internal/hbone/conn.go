package hbone

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

const (
	maxControlBytes  = 256 << 10 // frames waiting to be sent that the peer provoked
	maxBuffered      = 32 << 20  // received and unread bytes of all streams of a connection
	maxEmptyFrames   = 1000      // DATA frames without data, in a row
	rememberedResets = 64        // streams whose late frames are ignored after this end reset them
	lingerTimeout    = time.Second
	abortTimeout     = 200 * time.Millisecond
)

// connConfig is what the two roles set differently.
type connConfig struct {
	client         bool
	maxStreams     int // advertised by a server; own bound of a client
	maxHeaderBytes int
	pingInterval   time.Duration
	pingTimeout    time.Duration
	serve          func(s *Stream, method string) // server: called for each request, must not block
	idleTimeout    time.Duration                  // client: a connection without streams ends after it
	closed         func()                         // the connection takes no more streams
	limits         Limits
}

// secured is what a connection needs of *tls.Conn after the handshake.
type secured interface {
	io.ReadWriter
	CloseWrite() error
}

// conn is one HTTP/2 connection over TLS.
//
// Goroutines: one reads (run). It never blocks on sending, for two ends that both wait to send would wait for ever; what
// it has to say goes to ctl, which it sends as far as the socket takes it at once (see reader.flush). Everyone else may
// send, under wmu.
//
// Lock order: wmu before mu. mu is never held while blocking.
type conn struct {
	cfg  connConfig
	tls  secured
	wire *wire
	peer mesh.Identity
	path []*x509.Certificate // the peer's verified path, leaf first; nil when nothing may revoke it

	wmu     sync.Mutex // held while putting bytes into TLS; whoever releases it last flushes
	waiters atomic.Int32
	spare   []byte // guarded by wmu; the ctl buffer not in use

	mu        sync.Mutex
	ctl       []byte      // guarded by mu; control frames to send, ahead of any DATA
	scheduled bool        // guarded by mu; somebody is going to send ctl
	late      *time.Timer // guarded by mu; sends ctl if nobody else does before; nil until first used
	streams   map[uint32]*Stream
	handlers  int // requests whose handler has not returned
	nextID    uint32
	lastPeer  uint32       // highest stream the peer opened
	err       error        // why the connection ended; set once
	aborted   *GoAwayError // guarded by mu; set while abort says goodbye: the reason, whatever goes wrong with that

	sendWindow   int64
	peerWindow   int64 // the peer's initial stream window
	peerMaxFrame int
	peerStreams  uint32
	gotSettings  bool
	settings     chan struct{} // closed when gotSettings

	recvWindow int64 // what the peer may still send
	buffered   int64 // received and unread, of all streams

	expires    time.Time // no stream is opened after; zero means never
	goAwayRecv bool      // the peer takes no new streams
	goAwaySent bool      // no stream above goAwayLast is served
	goAwayLast uint32
	draining   bool // ends when the last stream does
	finishing  bool
	reserved   int // streams promised to callers and not yet opened
	drainPing  chan struct{}

	enc    *hpack.Encoder // guarded by mu
	encBuf bytes.Buffer   // guarded by mu

	pingTimer *time.Timer
	idleTimer *time.Timer // nil unless the connection is pooled
	pingOut   bool
	resets    [rememberedResets]uint32
	resetNext int

	rd   reader
	done chan struct{} // closed with err set
}

func newConn(tc secured, w *wire, peer mesh.Identity, cfg connConfig) *conn {
	cfg.limits = cfg.limits.orDefaults()
	c := &conn{
		cfg: cfg, tls: tc, wire: w, peer: peer,
		streams:    make(map[uint32]*Stream),
		nextID:     1,
		sendWindow: defaultWindow, peerWindow: defaultWindow, peerMaxFrame: defaultMaxFrame, peerStreams: assumedStreams,
		settings: make(chan struct{}), done: make(chan struct{}),
		recvWindow: int64(cfg.limits.ConnWindow),
	}
	c.enc = hpack.NewEncoder(&c.encBuf)
	stream, frame := uint32(c.cfg.limits.StreamWindow), uint32(c.cfg.limits.FrameSize)
	c.rd.init(c)
	if cfg.client {
		c.ctl = append(c.ctl, clientPreface...)
		c.ctl = appendSettings(c.ctl,
			settingEnablePush, 0, settingInitialWindowSize, stream,
			settingMaxFrameSize, frame, settingMaxHeaderListSize, uint32(cfg.maxHeaderBytes))
	} else {
		c.ctl = appendSettings(c.ctl,
			settingMaxConcurrentStreams, uint32(cfg.maxStreams), settingInitialWindowSize, stream,
			settingMaxFrameSize, frame, settingMaxHeaderListSize, uint32(cfg.maxHeaderBytes))
	}
	if more := c.cfg.limits.ConnWindow - defaultWindow; more > 0 {
		c.ctl = appendWindowUpdate(c.ctl, 0, uint32(more))
	}
	c.mu.Lock() // a timer may fire before it has been stored; what it calls waits here
	defer c.mu.Unlock()
	c.pingTimer = time.AfterFunc(cfg.pingInterval, c.pingTick)
	if cfg.idleTimeout > 0 {
		c.idleTimer = time.AfterFunc(cfg.idleTimeout, c.retire)
	}
	return c
}

// run reads until the connection ends and returns why; nil is an orderly end.
func (c *conn) run() error {
	if !c.cfg.client {
		c.rd.idle = true // the preface: with the first answer, if the client's first request is here already
	}
	err := c.rd.loop()
	var ga *GoAwayError
	if errors.As(err, &ga) && !ga.Remote {
		c.abort(ga)
		return err
	}
	c.mu.Lock()
	orderly := len(c.streams) == 0 && (errors.Is(err, io.EOF) || c.finishing)
	c.mu.Unlock()
	cause := err
	if errors.Is(err, io.EOF) { // to a stream this is no end: the peer has not said that it is done
		cause = io.ErrUnexpectedEOF
	}
	c.fail(fmt.Errorf("%w: %w", ErrConnectionLost, cause))
	if orderly {
		return nil
	}
	return err
}

// abort tells the peer why, as far as it listens, and ends the connection.
func (c *conn) abort(ga *GoAwayError) {
	c.wire.SetWriteDeadline(time.Now().Add(lingerTimeout))
	c.mu.Lock()
	c.ctl = appendGoAway(c.ctl, c.lastPeer, ga.Code, ga.Reason)
	c.aborted = ga
	c.mu.Unlock()
	c.flushNow()
	// Closing with bytes unread would make the kernel send a reset, which can overtake what was just sent.
	if cw, ok := c.wire.Conn.(interface{ CloseWrite() error }); ok && cw.CloseWrite() == nil {
		c.wire.SetReadDeadline(time.Now().Add(abortTimeout))
		_, _ = io.CopyN(io.Discard, c.wire.Conn, connWindow)
	}
	c.fail(ga)
}

// fail ends the connection and everything on it with err.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.aborted != nil {
		err = c.aborted
	}
	c.err = err
	c.pingTimer.Stop()
	if c.idleTimer != nil {
		c.idleTimer.Stop()
	}
	if c.late != nil {
		c.late.Stop()
	}
	for _, s := range c.streams {
		s.failLocked(err)
	}
	close(c.done)
	c.mu.Unlock()
	c.wire.Close()
	if c.cfg.closed != nil {
		c.cfg.closed()
	}
}

// grantLocked tells the peer that it may send more on the connection, once that is worth a frame. Credit is given on
// receipt as long as the streams together hold little, so that a few stalled ones cannot starve the others.
func (c *conn) grantLocked() (must bool) {
	window := int64(c.cfg.limits.ConnWindow)
	target := min(window, maxBuffered-c.buffered)
	if give := target - c.recvWindow; give >= window/4 {
		c.recvWindow += give
		return c.queueLocked(func(b []byte) []byte { return appendWindowUpdate(b, 0, uint32(give)) })
	}
	return false
}

// consumedLocked accounts for n bytes of s that have left its queue.
func (c *conn) consumedLocked(s *Stream, n int) (must bool) {
	c.buffered -= int64(n)
	if s.recvErr == nil {
		window := int64(c.cfg.limits.StreamWindow)
		if give := window - int64(s.q.size) - s.recvWindow; give >= window/4 {
			s.recvWindow += give
			must = c.queueLocked(func(b []byte) []byte { return appendWindowUpdate(b, s.id, uint32(give)) })
		}
	}
	return c.grantLocked() || must
}

// pingTick runs when a ping is due, and when its answer is overdue.
func (c *conn) pingTick() {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if !c.pingOut {
		c.pingOut = true
		c.pingTimer.Reset(c.cfg.pingTimeout)
		must := c.queueLocked(func(b []byte) []byte { return appendPing(b, 0, livenessPing) })
		c.mu.Unlock()
		c.goFlush(must)
		return
	}
	c.mu.Unlock()
	cause := fmt.Errorf("%w: no answer to ping: %w", ErrConnectionLost, os.ErrDeadlineExceeded)
	if c.cfg.client {
		c.fail(cause)
		return
	}
	c.wire.SetWriteDeadline(time.Now().Add(lingerTimeout))
	c.mu.Lock()
	c.ctl = appendGoAway(c.ctl, c.lastPeer, NoError, "")
	c.mu.Unlock()
	c.flushNow()
	c.fail(cause)
}

var (
	livenessPing = [8]byte{'i', 's', 't', 'h', 'm', 'u', 's', 0}
	drainPing    = [8]byte{'i', 's', 't', 'h', 'm', 'u', 's', 1}
)

// removeLocked forgets a stream that is done in both directions.
func (c *conn) removeLocked(s *Stream) {
	if c.streams[s.id] != s {
		return
	}
	delete(c.streams, s.id)
	if len(c.streams) > 0 || c.reserved > 0 || c.err != nil {
		return
	}
	if c.draining {
		go c.finish()
		return
	}
	if c.idleTimer != nil {
		c.idleTimer.Reset(c.cfg.idleTimeout)
	}
}

// finish ends a connection without streams in an orderly way: GOAWAY, close_notify, and a short wait for the peer.
func (c *conn) finish() {
	c.mu.Lock()
	if c.err != nil || c.finishing || len(c.streams) > 0 || c.reserved > 0 {
		c.mu.Unlock()
		return
	}
	c.finishing, c.draining = true, true
	if !c.goAwaySent || c.goAwayLast == maxStreamID {
		c.goAwaySent, c.goAwayLast = true, c.lastPeer
		last := c.lastPeer
		c.ctl = appendGoAway(c.ctl, last, NoError, "")
	}
	c.mu.Unlock()
	if c.cfg.closed != nil {
		c.cfg.closed()
	}
	c.wire.SetDeadline(time.Now().Add(lingerTimeout))
	_ = c.flush()
	c.wmu.Lock()
	_ = c.wire.uncork()
	_ = c.tls.CloseWrite()
	if cw, ok := c.wire.Conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
	c.wmu.Unlock()
}

// drain begins a graceful end: the peer is told to open no more streams, and after it has had the time to hear of it,
// which streams will be served.
func (c *conn) drain() {
	c.mu.Lock()
	if c.err != nil || c.goAwaySent {
		c.mu.Unlock()
		return
	}
	c.goAwaySent, c.goAwayLast = true, maxStreamID
	answered := make(chan struct{})
	c.drainPing = answered
	must := c.queueLocked(func(b []byte) []byte {
		return appendPing(appendGoAway(b, maxStreamID, NoError, ""), 0, drainPing)
	})
	c.mu.Unlock()
	if must {
		_ = c.flush()
	}
	t := time.NewTimer(lingerTimeout)
	defer t.Stop()
	select {
	case <-answered:
	case <-t.C:
	case <-c.done:
		return
	}
	c.mu.Lock()
	if c.err != nil || c.finishing {
		c.mu.Unlock()
		return
	}
	c.goAwayLast, c.draining = c.lastPeer, true
	must = c.queueLocked(func(b []byte) []byte { return appendGoAway(b, c.lastPeer, NoError, "") })
	empty := len(c.streams) == 0
	c.mu.Unlock()
	if must {
		_ = c.flush()
	}
	if empty {
		c.finish()
	}
}

func (c *conn) localAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *conn) remoteAddr() net.Addr { return c.wire.RemoteAddr() }
