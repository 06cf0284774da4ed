package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The kinds of jobs for an agent.
const (
	jobThroughput = "throughput" // Conns connections write Size bytes at a time
	jobLatency    = "latency"    // Conns connections send Size bytes and wait for as many
	jobConnect    = "connect"    // Conns workers connect, send and receive Size bytes, and close
	jobCold       = "cold"       // each address of Addrs once, one after the other
	jobHold       = "hold"       // open Conns connections, exchange Size bytes, and keep them
	jobRelease    = "release"    // close what is held
)

// job is one turn. Addr is where to connect; a valid SOCKS is asked to do it.
type job struct {
	Kind  string
	Addr  netip.AddrPort
	Addrs []netip.AddrPort
	SOCKS netip.AddrPort
	Conns int
	Size  int
	For   time.Duration
}

// outcome is what came of it. Count is bytes, requests or connections, by the kind.
type outcome struct {
	Count    float64
	Elapsed  time.Duration
	P50, P99 time.Duration
	Err      string
}

// agent makes load in its network namespace.
type agent struct{ held []*net.TCPConn }

// serveJobs does one job per line.
func serveJobs(in io.Reader, out io.Writer) error {
	a := &agent{}
	enc := json.NewEncoder(out)
	for dec := json.NewDecoder(in); ; {
		var j job
		if err := dec.Decode(&j); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		o, err := a.do(j)
		if err != nil {
			o.Err = err.Error()
		}
		if err := enc.Encode(o); err != nil {
			return err
		}
	}
}

func (a *agent) do(j job) (outcome, error) {
	switch j.Kind {
	case jobThroughput:
		return j.throughput()
	case jobLatency:
		return j.latency()
	case jobConnect:
		return j.connect()
	case jobCold:
		return j.cold()
	case jobHold:
		return a.hold(j)
	case jobRelease:
		for _, c := range a.held {
			_ = c.SetLinger(0)
			c.Close()
		}
		a.held = nil
		return outcome{}, nil
	}
	return outcome{}, fmt.Errorf("unknown job %q", j.Kind)
}

// stuck is how long a single read or write may take before the turn fails.
const stuck = 30 * time.Second

func (j *job) dial(to netip.AddrPort) (*net.TCPConn, error) {
	at := to
	if j.SOCKS.IsValid() {
		at = j.SOCKS
	}
	d := net.Dialer{Timeout: stuck}
	c, err := d.Dial("tcp4", at.String())
	if err != nil {
		return nil, err
	}
	tc := c.(*net.TCPConn)
	_ = tc.SetDeadline(time.Now().Add(stuck + j.For))
	if !j.SOCKS.IsValid() {
		return tc, nil
	}
	ip := to.Addr().As4()
	hello := []byte{5, 1, 0}
	ask := binary.BigEndian.AppendUint16(append([]byte{5, 1, 0, 1}, ip[:]...), to.Port())
	answer := make([]byte, 10)
	for _, step := range []struct{ send, recv []byte }{{hello, answer[:2]}, {ask, answer}} {
		if _, err := tc.Write(step.send); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(tc, step.recv); err != nil {
			return nil, err
		}
	}
	if answer[1] != 0 {
		return nil, fmt.Errorf("SOCKS refused with %d", answer[1])
	}
	return tc, nil
}

// open makes n connections, 32 at a time, and exchanges size bytes on each, so that all is set up.
func (j *job) open(n, size int) ([]*net.TCPConn, error) {
	conns := make([]*net.TCPConn, n)
	var next atomic.Int64
	err := parallel(min(n, 32), func(int) error {
		buf := make([]byte, size)
		for {
			i := int(next.Add(1)) - 1
			if i >= n {
				return nil
			}
			c, err := j.dial(j.Addr)
			if err != nil {
				return err
			}
			conns[i] = c
			if err := exchange(c, buf); err != nil {
				return err
			}
		}
	})
	if err != nil {
		closeAll(conns)
	}
	return conns, err
}

func closeAll(conns []*net.TCPConn) {
	for _, c := range conns {
		if c != nil {
			_ = c.SetLinger(0)
			c.Close()
		}
	}
}

func exchange(c *net.TCPConn, buf []byte) error {
	if len(buf) == 0 {
		return nil
	}
	if _, err := c.Write(buf); err != nil {
		return err
	}
	_, err := io.ReadFull(c, buf)
	return err
}

func parallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *job) throughput() (outcome, error) {
	conns, err := j.open(j.Conns, 0)
	if err != nil {
		return outcome{}, err
	}
	defer closeAll(conns)
	var total atomic.Int64
	start := time.Now()
	err = parallel(j.Conns, func(i int) error {
		buf := make([]byte, j.Size)
		sent := 0
		for end := start.Add(j.For); time.Now().Before(end); sent += len(buf) {
			if _, err := conns[i].Write(buf); err != nil {
				return err
			}
		}
		total.Add(int64(sent))
		if err := conns[i].CloseWrite(); err != nil {
			return err
		}
		// The end comes back when the server has read everything.
		if _, err := conns[i].Read(buf); !errors.Is(err, io.EOF) {
			return fmt.Errorf("the stream ended with %w", err)
		}
		return nil
	})
	return outcome{Count: float64(total.Load()), Elapsed: time.Since(start)}, err
}

func (j *job) latency() (outcome, error) {
	conns, err := j.open(j.Conns, j.Size)
	if err != nil {
		return outcome{}, err
	}
	defer closeAll(conns)
	took := make([][]time.Duration, j.Conns)
	start := time.Now()
	err = parallel(j.Conns, func(i int) error {
		buf := make([]byte, j.Size)
		for now := start; now.Sub(start) < j.For; {
			if err := exchange(conns[i], buf); err != nil {
				return err
			}
			then := now
			now = time.Now()
			took[i] = append(took[i], now.Sub(then))
		}
		return nil
	})
	return summary(slices.Concat(took...), time.Since(start)), err
}

func summary(took []time.Duration, elapsed time.Duration) outcome {
	o := outcome{Count: float64(len(took)), Elapsed: elapsed}
	if len(took) > 0 {
		slices.Sort(took)
		o.P50, o.P99 = took[len(took)/2], took[len(took)*99/100]
	}
	return o
}

func (j *job) connect() (outcome, error) {
	var total atomic.Int64
	warm, err := j.open(1, j.Size)
	if err != nil {
		return outcome{}, err
	}
	closeAll(warm)
	start := time.Now()
	err = parallel(j.Conns, func(int) error {
		buf := make([]byte, j.Size)
		for end := start.Add(j.For); time.Now().Before(end); {
			c, err := j.dial(j.Addr)
			if err != nil {
				return err
			}
			err = exchange(c, buf)
			if err == nil {
				err = c.CloseWrite()
			}
			if err == nil {
				if _, err = c.Read(buf); errors.Is(err, io.EOF) {
					err = nil
				}
			}
			_ = c.SetLinger(0) // both ends have said goodbye; do not keep the port
			c.Close()
			if err != nil {
				return err
			}
			total.Add(1)
		}
		return nil
	})
	return outcome{Count: float64(total.Load()), Elapsed: time.Since(start)}, err
}

func (j *job) cold() (outcome, error) {
	var took []time.Duration
	buf := make([]byte, j.Size)
	start := time.Now()
	for _, to := range j.Addrs {
		from := time.Now()
		c, err := j.dial(to)
		if err != nil {
			return outcome{}, err
		}
		err = exchange(c, buf)
		took = append(took, time.Since(from))
		_ = c.SetLinger(0)
		c.Close()
		if err != nil {
			return outcome{}, err
		}
	}
	return summary(took, time.Since(start)), nil
}

func (a *agent) hold(j job) (outcome, error) {
	start := time.Now()
	conns, err := j.open(j.Conns, j.Size)
	for _, c := range conns {
		if c != nil {
			_ = c.SetDeadline(time.Time{})
		}
	}
	if err != nil {
		return outcome{}, err
	}
	a.held = conns
	return outcome{Count: float64(len(conns)), Elapsed: time.Since(start)}, nil
}
