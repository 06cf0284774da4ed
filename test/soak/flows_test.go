package soak_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// ledger counts what happened and remembers what must not have.
type ledger struct {
	onFault func() // called at the first one, on another goroutine

	mu     sync.Mutex
	counts map[string]int // guarded by mu
	wrong  []string       // guarded by mu; the first few
}

func (l *ledger) count(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts[what]++
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts["FAULTS"]++; l.counts["FAULTS"] == 1 && l.onFault != nil {
		go l.onFault()
	}
	if len(l.wrong) < 20 {
		l.wrong = append(l.wrong, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

func (l *ledger) problems() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.wrong)
}

// all returns the counts.
func (l *ledger) all() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

// atLeast checks that enough happened for the soak to mean something.
func (l *ledger) atLeast(t *testing.T, length time.Duration) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	perMinute := map[string]int{"steady ok": 150, "toggled ok": 30, "toggled denied": 30, "mortal ok": 30, "bob denied": 100, "toggles": 6,
		"rewordings": 6, "deaths": 6, "istiod restarts": 6, "certificates": 25, "held words": 60, "held ended": 3, "bulk MiB": 60}
	for what, n := range perMinute {
		if want := int(length.Minutes() * float64(n)); l.counts[what] < want {
			t.Errorf("%s: %d, want at least %d", what, l.counts[what], want)
		}
	}
}

// flows are the clients.
type flows struct {
	w    *world
	l    *ledger
	stop chan struct{}
	wg   sync.WaitGroup
	// epoch and denied tell what has been seen of the toggled server since the last toggle. An attempt remembers the
	// epoch when it begins, and says nothing if it has changed when it ends.
	mu      sync.Mutex
	epoch   int       // guarded by mu; counts toggles
	closed  bool      // guarded by mu; what the toggle asked for
	settled bool      // guarded by mu; an attempt has seen that it is so
	since   time.Time // guarded by mu; when that was
}

const (
	workers    = 3 // per kind of flow
	longLived  = 4
	maxPayload = 200 << 10
)

func newFlows(w *world, l *ledger) *flows {
	f := &flows{w: w, l: l, stop: make(chan struct{}), settled: true}
	l.onFault = w.remember
	w.arrived = func(server, who string) {
		if who != "alice" {
			l.fault("%q came through to %s", who, server)
		}
	}
	return f
}

// start runs all flows until the function it returns is called.
func (f *flows) start() func() {
	loop := func(n int, body func()) {
		for range n {
			f.wg.Go(func() {
				for {
					select {
					case <-f.stop:
						return
					default:
						body()
					}
				}
			})
		}
	}
	loop(workers, func() {
		if err := f.visit(aliceIP, "alice", "steady"); err != nil {
			f.l.fault("alice to steady: %v", err)
			return
		}
		f.l.count("steady ok")
	})
	loop(workers, f.toggled)
	loop(workers, func() { // a dead peer is no fault, a wrong byte is
		switch err := f.visit(aliceIP, "alice", "mortal"); {
		case err == nil:
			f.l.count("mortal ok")
		case errors.Is(err, errCorrupt):
			f.l.fault("alice to mortal: %v", err)
		default:
			f.l.count("mortal away")
		}
	})
	turn := atomic.Int64{}
	loop(1, func() {
		server := []string{"steady", "toggled", "mortal"}[turn.Add(1)%3]
		if err := f.visit(bobIP, "bob", server); err == nil {
			f.l.fault("bob was served by %s", server)
			return
		}
		f.l.count("bob denied")
	})
	loop(1, f.held)
	loop(1, f.bulk)
	for range longLived {
		f.wg.Go(f.lasting)
	}
	return func() {
		close(f.stop)
		f.wg.Wait()
	}
}

// toggled checks that the server's policy, once it has been seen to work, works for every attempt after that.
func (f *flows) toggled() {
	f.mu.Lock()
	epoch, settled := f.epoch, f.settled
	f.mu.Unlock()
	err := f.visit(aliceIP, "alice", "toggled")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.epoch != epoch {
		return
	}
	asWanted := (err != nil) == f.closed
	switch {
	case errors.Is(err, errCorrupt):
		f.l.fault("alice to toggled: %v", err)
	case asWanted:
		if !f.settled {
			f.settled, f.since = true, time.Now()
		}
	case settled:
		f.l.fault("alice to toggled: denied is %v, and this attempt ended with %v", f.closed, err)
		return
	}
	if err == nil {
		f.l.count("toggled ok")
	} else {
		f.l.count("toggled denied")
	}
}

// toggle says what attempts are to expect from now on, once one has seen it.
func (f *flows) toggle(closed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	f.closed, f.settled = closed, false
}

func (f *flows) isSettled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled
}

var errCorrupt = errors.New("other bytes came back than were sent")

func dial(from netip.Addr, who, server string) (*net.TCPConn, error) {
	socks, err := proxy.SOCKS5("tcp", netip.AddrPortFrom(from, socksPort).String(), nil, &net.Dialer{Timeout: 10 * time.Second})
	if err != nil {
		return nil, err
	}
	c, err := socks.Dial("tcp", host(server)+":80")
	if err != nil {
		return nil, err
	}
	tc := c.(*net.TCPConn) // Dial, unlike DialContext, returns the bare connection
	_ = tc.SetDeadline(time.Now().Add(20 * time.Second))
	var hello [8]byte
	binary.BigEndian.PutUint16(hello[6:], uint16(copy(hello[:6], who)))
	if _, err := tc.Write(hello[:]); err != nil {
		tc.Close()
		return nil, err
	}
	return tc, nil
}

// visit connects, sends some bytes in pieces, reads them back, and leaves in one of three ways.
func (f *flows) visit(from netip.Addr, who, server string) error {
	c, err := dial(from, who, server)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer c.Close()
	sent := make([]byte, 1+rand.IntN(maxPayload)>>(rand.IntN(12)))
	seed := rand.Uint64()
	for i := range sent {
		sent[i] = byte(seed >> (8 * (i % 8)) * uint64(i/8+1))
	}
	wrote := make(chan error, 1)
	go func() {
		var err error
		for p := sent; len(p) > 0 && err == nil; {
			n := min(len(p), 1+rand.IntN(32<<10))
			_, err = c.Write(p[:n])
			p = p[n:]
		}
		wrote <- err
	}()
	got := make([]byte, len(sent))
	_, err = io.ReadFull(c, got)
	if err != nil {
		c.Close()
		<-wrote
		return fmt.Errorf("read: %w", err)
	}
	if err := <-wrote; err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if !bytes.Equal(sent, got) {
		return errCorrupt
	}
	switch rand.IntN(3) {
	case 0: // say goodbye and wait for the answer
		if err := c.CloseWrite(); err != nil {
			return fmt.Errorf("half-close: %w", err)
		}
		if n, err := c.Read(got); n != 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("after the half-close came %d bytes and %w", n, err)
		}
	case 1: // go without a word
		_ = c.SetLinger(0)
	}
	return nil
}
