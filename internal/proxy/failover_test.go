package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// gone is an endpoint of the echo service that nobody serves any more, as a task that has just stopped.
func gone(addr string) *mesh.Workload {
	w := serverWorkload()
	w.UID, w.Name, w.Addresses = "gone-"+addr, "gone-"+addr, []netip.Addr{netip.MustParseAddr(addr)}
	return w
}

func curlEcho(t *testing.T) (out string, code int) {
	t.Helper()
	out, errOut, code := proxytest.Curl(t, append(captured(), "http://"+echoHost+"/")...)
	return out + errOut, code
}

// A connection whose endpoint has gone before the mesh knows goes to another one, so no call fails while tasks stop.
func TestFailoverToAnotherEndpoint(t *testing.T) {
	w := newWorld(t)
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{gone("10.1.0.5"), gone("10.1.0.6")}})
	for range 20 { // an endpoint is chosen at random: two in three choices are of one that has gone
		if out, code := curlEcho(t); code != 0 {
			t.Fatalf("curl = %d, %q", code, out)
		}
	}
}

func TestFailoverFromABlackHole(t *testing.T) {
	hole := netip.MustParseAddr("10.1.0.7")
	dialled := make(chan struct{}, 64)
	w := newWorld(t, func(client, _ *Config) {
		dial := client.Dial
		client.Dial = func(ctx context.Context, r DialRequest) (net.Conn, error) {
			if r.Addr.Addr() != hole {
				return dial(ctx, r)
			}
			dialled <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	heavy := gone(hole.String())
	heavy.Capacity = 1000 // all but sure to be chosen first
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{heavy}})
	if out, code := curlEcho(t); code != 0 {
		t.Fatalf("curl = %d, %q", code, out)
	}
	if len(dialled) == 0 {
		t.Error("the black hole was not tried, so the test shows nothing")
	}
}

func TestNoEndpointLeft(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.EndpointWait = 20 * time.Millisecond })
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{gone("10.1.0.5"), gone("10.1.0.6")}, RemovedAddresses: []string{serverWorkload().UID}})
	if out, code := curlEcho(t); code != 56 {
		t.Errorf("curl = %d, %q; want 56", code, out)
	}
	w.client.logged(t, "connection complete", `dst.workload="gone-10.1.0.`, "reason=CONNECT", "unreachable")
	if n := w.client.metric(t, endpointWaits, `outcome="none"`); n != 1 {
		t.Errorf("%v connections waited in vain, want 1", n)
	}
}

func TestNoEndpointWait(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.EndpointWait = -1 })
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{gone("10.1.0.5")}, RemovedAddresses: []string{serverWorkload().UID}})
	if out, code := curlEcho(t); code != 56 {
		t.Errorf("curl = %d, %q; want 56", code, out)
	}
	if n := w.client.metric(t, endpointWaits); n != 0 {
		t.Errorf("%v connections waited, want none", n)
	}
}

const endpointWaits = "isthmus_proxy_endpoint_waits_total"

// Tasks are replaced while calls are made all the time: the new one is up before the old one stops, but the mesh hears of
// it only after calls have found the old one gone. No call may fail.
func TestRollingDeployment(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.EndpointWait = meshtest.Wait })
	w.app.Close()
	serve := func(ip netip.Addr) {
		serveTCP(t, netip.AddrPortFrom(ip, 8080), func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	}
	serve(serverIP)
	serve(otherIP)

	stop := make(chan struct{})
	var callers sync.WaitGroup
	var calls atomic.Int64
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := w.call(); err != nil {
					t.Errorf("a call failed: %v", err)
					return
				}
				calls.Add(1)
			}
		})
	}
	old, oldTask, ip := w.server, serverWorkload(), otherIP
	for round := range 6 {
		task := serverWorkload()
		task.Name = fmt.Sprintf("echo-roll-%d", round)
		task.UID, task.Addresses = "uid-"+task.Name, []netip.Addr{ip}
		cfg := w.config(task.Name, task.Namespace, task.ServiceAccount)
		cfg.Workload.Fallback = task // as the broker tells a task
		next := w.start(cfg, ip)
		before := calls.Load()
		meshtest.Eventually(t, "calls to the old task", func() bool { return calls.Load() > before+10 || t.Failed() })
		old.cancel(nil)
		meshtest.Closes(t, "the old task stops", old.done)
		meshtest.Eventually(t, "a call that waits for the new task", func() bool { return w.client.proxy.endpoints.Waiting() > 0 || t.Failed() })
		w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{task}})
		before = calls.Load()
		meshtest.Eventually(t, "calls to the new task", func() bool { return calls.Load() > before+10 || t.Failed() })
		w.store.Apply(mesh.Update{RemovedAddresses: []string{oldTask.UID}})
		old, oldTask, ip = next, task, oldTask.Addresses[0]
	}
	close(stop)
	callers.Wait()
	if n := w.client.metric(t, endpointWaits, `outcome="found"`); n < 6 {
		t.Errorf("%v connections found an endpoint after a wait, want one in each round", n)
	}
}

// call has a captured connection echo one word.
func (w *world) call() error {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: clientIP.AsSlice()}}
	c, err := d.Dial("tcp", netip.AddrPortFrom(clientIP, mesh.OutboundPort).String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * meshtest.Wait))
	if _, err := io.WriteString(c, "word"); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 4))
	return err
}

// What has reached an application is never sent again, whatever happens to the connection then.
func TestDeliveredBytesAreNotSentAgain(t *testing.T) {
	var elsewhere atomic.Int64
	w := newWorld(t, func(client, _ *Config) {
		dial := client.Dial
		client.Dial = func(ctx context.Context, r DialRequest) (net.Conn, error) {
			if r.Addr.Addr() != serverIP {
				elsewhere.Add(1)
			}
			return dial(ctx, r)
		}
	})
	w.app.Close()
	var got atomic.Int64
	serveTCP(t, netip.AddrPortFrom(serverIP, 8080), func(c *net.TCPConn) {
		if _, err := io.ReadFull(c, make([]byte, 4)); err == nil {
			got.Add(1)
		}
		_ = c.SetLinger(0)
	})
	heavy := serverWorkload()
	heavy.Capacity = 1 << 30
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{heavy, gone("10.1.0.5")}})
	const calls = 5
	for range calls {
		if err := w.call(); err == nil {
			t.Error("a call to an application that resets was answered")
		}
	}
	if n := got.Load(); n != calls {
		t.Errorf("the application got %d calls, want %d", n, calls)
	}
	if n := elsewhere.Load(); n != 0 {
		t.Errorf("%d connections were made elsewhere", n)
	}
}

// Where there is no service there is nothing to wait for, and what the mesh does not know is dialled once.
func TestNothingIsWaitedForOutsideServices(t *testing.T) {
	w := newWorld(t, func(client, _ *Config) { client.EndpointWait = time.Hour })
	for _, dst := range []string{"10.1.0.4:1", "10.1.0.5:80"} { // nobody in the mesh; a workload without a service
		other := gone("10.1.0.5")
		other.Services = nil
		w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{other}})
		w.dst.Store(ptr(netip.MustParseAddrPort(dst)))
		if err := w.call(); err == nil {
			t.Errorf("%s was answered", dst)
		}
	}
}

// A refusal by policy is an answer: it must not be asked for again elsewhere.
func TestDenialIsNotTriedElsewhere(t *testing.T) {
	w := newWorld(t)
	other := gone("10.1.0.5")
	w.store.Apply(mesh.Update{Workloads: []*mesh.Workload{other}, Policies: []*mesh.Policy{denyAll()}})
	const calls = 5
	for range calls {
		if out, code := curlEcho(t); code != 56 {
			t.Errorf("curl = %d, %q; want 56", code, out)
		}
	}
	w.client.logged(t, "connection complete", "401 Unauthorized")
	if n := strings.Count(w.server.log.String(), "policy rejection"); n != calls {
		t.Errorf("the server was asked %d times, want %d", n, calls)
	}
}
