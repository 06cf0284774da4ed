package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// counted is Metrics that remembers which limits were reached.
type counted struct {
	noMetrics
	mu     sync.Mutex
	limits []string
}

func (c *counted) LimitReached(limit string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limits = append(c.limits, limit)
}

func (c *counted) reached() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.limits, " ")
}

// Questions in flight are limited, over UDP and TCP together; one more is refused at once and counted.
func TestQueriesAreBounded(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{}, 10)
	m := &counted{}
	r := newResolver(t, func(c *Config) {
		c.Metrics = m
		c.Client = func(context.Context) (*mesh.Workload, error) { asked <- struct{}{}; <-release; return client(), nil }
	})
	s, err := NewServer(ServerConfig{Resolver: r, MaxQueries: 1})
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp := serving(t, s)
	q := new(mdns.Msg).SetQuestion("web.", mdns.TypeA)
	first := make(chan *mdns.Msg, 1)
	go func() {
		resp, _, err := (&mdns.Client{Net: "udp", Timeout: meshtest.Wait}).Exchange(q, udp)
		if err != nil {
			t.Error(err)
		}
		first <- resp
	}()
	<-asked
	for network, addr := range map[string]string{"udp": udp, "tcp": tcp} {
		resp, _, err := (&mdns.Client{Net: network, Timeout: meshtest.Wait}).Exchange(q, addr)
		if err != nil || resp.Rcode != mdns.RcodeServerFailure {
			t.Errorf("one question too many by %s = %v, %v; want SERVFAIL", network, resp, err)
		}
	}
	if got := m.reached(); got != "dns-queries dns-queries" {
		t.Errorf("limits reached: %q", got)
	}
	close(release)
	if resp := <-first; resp == nil || resp.Rcode != mdns.RcodeSuccess {
		t.Errorf("the first question = %v", resp)
	}
}

// serving runs s on sockets of the loopback.
func serving(t *testing.T, s *Server) (udp, tcp string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.PacketConns, s.cfg.Listeners = []net.PacketConn{pc}, []net.Listener{l}
	meshtest.Run(t, s.Run)
	return pc.LocalAddr().String(), l.Addr().String()
}

// A TCP connection is good for so many questions, then it is closed.
func TestTCPQueriesAreBounded(t *testing.T) {
	s, err := NewServer(ServerConfig{Resolver: newResolver(t, nil)})
	if err != nil {
		t.Fatal(err)
	}
	_, tcp := serving(t, s)
	c, err := mdns.DialTimeout("tcp", tcp, meshtest.Wait)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(meshtest.Wait))
	for i := range maxTCPQueries + 1 {
		err := c.WriteMsg(new(mdns.Msg).SetQuestion("web.", mdns.TypeA))
		if err == nil {
			_, err = c.ReadMsg()
		}
		if ended := err != nil; ended != (i == maxTCPQueries) {
			t.Fatalf("question %d: %v", i+1, err)
		}
	}
}

// What an answer and a resolver's file may hold.
func TestAnswersAreBounded(t *testing.T) {
	var text strings.Builder
	for i := range 10 {
		fmt.Fprintf(&text, "nameserver 10.0.0.%d\n", i)
	}
	text.WriteString("search a. b. c. d. e. f. g. h.\n")
	rc, err := ParseResolvConf(strings.NewReader(text.String()))
	if err != nil || len(rc.Nameservers) != maxNameservers || len(rc.Search) != maxSearch {
		t.Errorf("%d nameservers and %d search domains are taken, %v", len(rc.Nameservers), len(rc.Search), err)
	}
	cache := NewCache(0)
	q := question("big.example.org.", mdns.TypeTXT)
	big := reply(q, mdns.RcodeSuccess, 60)
	for range maxCachedAnswer/200 + 1 {
		big.Answer = append(big.Answer, &mdns.TXT{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: 60}, Txt: []string{strings.Repeat("x", 200)}})
	}
	if cache.put(q, big); cache.get(q) != nil {
		t.Error("an answer of more than 4 KiB is kept")
	}
	headless := &mesh.Service{Key: mesh.ServiceKey{Namespace: "big", Hostname: "many.big.svc.cluster.local"}}
	view := manyWorkloads{headless, 1500}
	r := newResolver(t, func(c *Config) { c.View = func() View { return view } })
	ans, ok := r.Lookup(client(), "many.big.svc.cluster.local.", false)
	if !ok || len(ans.Addrs) != maxHeadlessAnswers {
		t.Errorf("a headless service of 1500 workloads has %d addresses, %v; want %d", len(ans.Addrs), ok, maxHeadlessAnswers)
	}
}

// manyWorkloads is a View of one headless service.
type manyWorkloads struct {
	svc *mesh.Service
	n   int
}

func (m manyWorkloads) ServicesByHost(host string) []*mesh.Service {
	if host == m.svc.Key.Hostname {
		return []*mesh.Service{m.svc}
	}
	return nil
}

func (m manyWorkloads) EndpointWorkloads(mesh.ServiceKey) []*mesh.Workload {
	out := make([]*mesh.Workload, m.n)
	for i := range out {
		out[i] = &mesh.Workload{UID: fmt.Sprint(i), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}}
	}
	return out
}

// An upstream that keeps answering other questions is given up.
func TestStrayAnswers(t *testing.T) {
	up := startUpstream(t, func(w mdns.ResponseWriter, q *mdns.Msg) {
		for range 2 * maxStrayAnswers {
			stray := new(mdns.Msg).SetReply(q)
			stray.Id++
			_ = w.WriteMsg(stray)
		}
	})
	r := newResolver(t, func(c *Config) { c.Upstreams = []netip.AddrPort{up} })
	_, err := r.Forward(t.Context(), client(), new(mdns.Msg).SetQuestion("example.com.", mdns.TypeA), "udp")
	if err == nil || !strings.Contains(err.Error(), "only answers to other questions arrived") {
		t.Errorf("Forward = %v", err)
	}
}
