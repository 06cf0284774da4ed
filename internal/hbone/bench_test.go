package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// The benchmarks put two proxies between a client and an echo-less application, as in life: client - first relay -
// second relay - application. tunnel uses HBONE between the relays, tls one TLS 1.3 connection per client connection
// and nothing else, tcp plain TCP.

// relay starts the second and the first relay and returns the address of the first.
func relay(b *testing.B, kind, app string) string {
	b.Helper()
	switch kind {
	case "tunnel":
		return tunnelRelay(b, app)
	case "tls":
		return tlsRelay(b, app)
	case "tcp":
		second := listen(b, func(c *net.TCPConn) { forward(c, dialTCP(app)) })
		return listen(b, func(c *net.TCPConn) { forward(c, dialTCP(second)) })
	}
	return app
}

func listen(b *testing.B, serve func(c *net.TCPConn)) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return l.Addr().String()
}

func dialTCP(addr string) *net.TCPConn {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil
	}
	return c.(*net.TCPConn)
}

type duplexConn interface {
	net.Conn
	CloseWrite() error
}

func forward(a, z duplexConn) {
	defer a.Close()
	defer z.Close()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(z, a); _ = z.CloseWrite() })
	_, _ = io.Copy(a, z)
	_ = a.CloseWrite()
	wg.Wait()
}

func tlsRelay(b *testing.B, app string) string {
	b.Helper()
	ca := newAuthority(b)
	server, err := serverTLS(ca.issue(b, bob), nil)
	if err != nil {
		b.Fatal(err)
	}
	client := clientTLS(ca.issue(b, alice), []mesh.Identity{bob}, nil)
	server.DynamicRecordSizingDisabled, client.DynamicRecordSizingDisabled = false, false
	second := listen(b, func(c *net.TCPConn) { forward(tls.Server(c, server), dialTCP(app)) })
	return listen(b, func(c *net.TCPConn) {
		d := dialTCP(second)
		if d == nil {
			c.Close()
			return
		}
		forward(c, tls.Client(d, client))
	})
}

func tunnelRelay(b *testing.B, app string) string {
	b.Helper()
	w := newWorld(b, func(_ context.Context, ss *ServerStream) {
		up := dialTCP(app)
		if s, err := ss.Accept(nil); err == nil {
			tunnel(up, s)
		}
	}, options{})
	return listen(b, func(c *net.TCPConn) {
		s, _, err := w.pool.Connect(context.Background(), w.key(), Request{Authority: app})
		if err != nil {
			c.Close()
			return
		}
		tunnel(c, s)
	})
}

// tunnel is forward as package relay does it.
func tunnel(c *net.TCPConn, s *Stream) {
	defer c.Close()
	defer s.Close()
	ended := make(chan struct{})
	s.Deliver(c, func(error) {
		_ = c.CloseWrite()
		close(ended)
	})
	_, _ = io.Copy(s, c)
	_ = s.CloseWrite()
	<-ended
}

// cpuTime is what the process has used so far: client, both relays and application.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func eachKind(b *testing.B, f func(b *testing.B, kind string)) {
	b.Helper()
	for _, kind := range []string{"direct", "tcp", "tls", "tunnel"} {
		b.Run(kind, func(b *testing.B) {
			before := cpuTime()
			f(b, kind)
			// On a busy machine this says more than the time that passed; the setup in it is small.
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkThroughput sends 64 KiB writes one way.
func BenchmarkThroughput(b *testing.B) {
	for _, streams := range []int{1, 32} {
		b.Run(map[int]string{1: "streams=1", 32: "streams=32"}[streams], func(b *testing.B) {
			eachKind(b, func(b *testing.B, kind string) {
				app := listen(b, func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{io.Discard}, onlyReader{c}); c.Close() })
				addr := relay(b, kind, app)
				const size = 64 << 10
				b.SetBytes(size)
				b.ReportAllocs()
				var wg sync.WaitGroup
				per := (b.N + streams - 1) / streams
				b.ResetTimer()
				for range streams {
					wg.Go(func() {
						c := dialTCP(addr)
						defer c.Close()
						p := make([]byte, size)
						for range per {
							if _, err := c.Write(p); err != nil {
								b.Error(err)
								return
							}
						}
						_ = c.CloseWrite()
						if _, err := c.Read(p); !errors.Is(err, io.EOF) {
							b.Errorf("end: %v", err)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// BenchmarkRequest sends 100 bytes and waits for 100 back.
func BenchmarkRequest(b *testing.B) {
	for _, conns := range []int{1, 64} {
		b.Run(map[int]string{1: "conns=1", 64: "conns=64"}[conns], func(b *testing.B) {
			eachKind(b, func(b *testing.B, kind string) {
				app := listen(b, func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}); c.Close() })
				addr := relay(b, kind, app)
				var wg sync.WaitGroup
				per := (b.N + conns - 1) / conns
				open := make([]*net.TCPConn, conns)
				p := make([]byte, 100)
				for i := range open {
					open[i] = dialTCP(addr)
					_, _ = open[i].Write(p)
					_, _ = io.ReadFull(open[i], p)
				}
				b.ReportAllocs()
				b.ResetTimer()
				for _, c := range open {
					wg.Go(func() {
						defer c.Close()
						p := make([]byte, 100)
						for range per {
							_, _ = c.Write(p)
							if _, err := io.ReadFull(c, p); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// BenchmarkNewConnection connects, exchanges 100 bytes and closes, eight at a time.
func BenchmarkNewConnection(b *testing.B) {
	eachKind(b, func(b *testing.B, kind string) {
		app := listen(b, func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}); c.Close() })
		addr := relay(b, kind, app)
		const workers = 8
		var wg sync.WaitGroup
		b.ReportAllocs()
		b.ResetTimer()
		for range workers {
			wg.Go(func() {
				p := make([]byte, 100)
				for range (b.N + workers - 1) / workers {
					c := dialTCP(addr)
					if c == nil {
						b.Error("dial failed")
						return
					}
					_, _ = c.Write(p)
					if _, err := io.ReadFull(c, p); err != nil {
						b.Error(err)
						return
					}
					_ = c.CloseWrite()
					_, _ = c.Read(p)
					_ = c.SetLinger(0)
					c.Close()
				}
			})
		}
		wg.Wait()
	})
}

// BenchmarkIdleMemory holds b.N idle connections through both relays and reports what one costs the Go heap and stacks,
// in both relays, client and application together.
func BenchmarkIdleMemory(b *testing.B) {
	eachKind(b, func(b *testing.B, kind string) {
		app := listen(b, func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}); c.Close() })
		addr := relay(b, kind, app)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		p := make([]byte, 100)
		open := make([]*net.TCPConn, b.N)
		for i := range open {
			c := dialTCP(addr)
			if c == nil {
				b.Fatal("dial failed")
			}
			defer c.Close()
			_, _ = c.Write(p)
			if _, err := io.ReadFull(c, p); err != nil {
				b.Fatal(err)
			}
			open[i] = c
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		used := after.HeapAlloc + after.StackInuse - before.HeapAlloc - before.StackInuse
		b.ReportMetric(float64(used)/float64(b.N), "B/conn")
	})
}
