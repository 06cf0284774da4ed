package dns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// ServerConfig configures a Server. At least one of PacketConns and Listeners should be set.
type ServerConfig struct {
	Resolver    *Resolver // required
	PacketConns []net.PacketConn
	Listeners   []net.Listener
	MaxQueries  int // questions answered at once; 0 means 1024; more are refused with SERVFAIL
}

// Server answers DNS questions over UDP and TCP.
type Server struct {
	cfg     ServerConfig
	r       *Resolver
	queries chan struct{} // one token per question
}

// tcpTimeout is how long a TCP client may take to ask.
const tcpTimeout = 5 * time.Second

// drainTimeout is how long questions in progress may take after the server was told to stop.
const drainTimeout = 2 * time.Second

// NewServer returns a server. It owns the sockets of cfg from now on: Run closes them.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Resolver == nil {
		return nil, errors.New("dns: ServerConfig.Resolver is required")
	}
	if cfg.MaxQueries == 0 {
		cfg.MaxQueries = defaultMaxQueries
	}
	return &Server{cfg: cfg, r: cfg.Resolver, queries: make(chan struct{}, cfg.MaxQueries)}, nil
}

// Run serves until ctx ends, then lets the questions in progress finish.
func (s *Server) Run(ctx context.Context) error {
	var servers []*mdns.Server
	for _, pc := range s.cfg.PacketConns {
		servers = append(servers, &mdns.Server{PacketConn: pc, Handler: s.handler(ctx, "udp"), UDPSize: mdns.DefaultMsgSize})
	}
	for _, l := range s.cfg.Listeners {
		servers = append(servers, &mdns.Server{Listener: l, Handler: s.handler(ctx, "tcp"), ReadTimeout: tcpTimeout,
			WriteTimeout: tcpTimeout, IdleTimeout: func() time.Duration { return tcpTimeout }, MaxTCPQueries: maxTCPQueries})
	}
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, srv := range servers {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() {
			defer close(ended)
			if err := srv.ActivateAndServe(); err != nil && ctx.Err() == nil {
				errs[i] = err
			}
		})
		wg.Go(func() {
			select {
			case <-ctx.Done():
			case <-ended:
				return
			}
			select {
			case <-started:
			case <-ended:
				return
			}
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
			defer cancel()
			_ = srv.ShutdownContext(stop) // a question that outlives the deadline is dropped: its client asks again
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Server) handler(ctx context.Context, protocol string) mdns.Handler {
	return mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		select {
		case s.queries <- struct{}{}:
			defer func() { <-s.queries }()
		default:
			s.r.cfg.Metrics.LimitReached("dns-queries")
			_ = w.WriteMsg(refuse(q, mdns.RcodeServerFailure))
			return
		}
		resp := s.Respond(ctx, q, protocol)
		if protocol == "udp" {
			resp.Truncate(int(udpSize(q)))
		}
		_ = w.WriteMsg(resp) // the client is gone when this fails; it will ask again
	})
}

// Respond answers one message. It never returns nil.
func (s *Server) Respond(ctx context.Context, q *mdns.Msg, protocol string) *mdns.Msg {
	switch {
	case q.Response:
		return refuse(q, mdns.RcodeFormatError)
	case q.Opcode != mdns.OpcodeQuery:
		return refuse(q, mdns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return refuse(q, mdns.RcodeFormatError)
	}
	client, err := s.r.cfg.Client(ctx)
	if err != nil {
		return refuse(q, mdns.RcodeServerFailure)
	}
	s.r.cfg.Metrics.DNSRequest(queryType(q), protocol, client.CanonicalName, client.CanonicalRevision)
	question := q.Question[0]
	if (question.Qtype == mdns.TypeA || question.Qtype == mdns.TypeAAAA) && question.Qclass == mdns.ClassINET {
		if ans, ok := s.r.Lookup(client, question.Name, question.Qtype == mdns.TypeAAAA); ok {
			s.log(client, question, "mesh", len(ans.Addrs))
			return answer(q, ans)
		}
	}
	resp, err := s.r.Forward(ctx, client, q, protocol)
	if err != nil {
		s.log(client, question, "upstream failed: "+err.Error(), 0)
		return refuse(q, mdns.RcodeServerFailure)
	}
	s.log(client, question, "upstream", len(resp.Answer))
	return resp
}

func (s *Server) log(client *mesh.Workload, q mdns.Question, result string, n int) {
	s.r.cfg.Log.LogAttrs(context.Background(), slog.LevelDebug, "dns question answered",
		slog.String("src.workload", client.Name), slog.String("src.namespace", client.Namespace),
		slog.String("query", mdns.TypeToString[q.Qtype]), slog.String("domain", q.Name),
		slog.String("result", result), slog.Int("endpoints", n))
}

func refuse(q *mdns.Msg, rcode int) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetRcode(q, rcode)
	m.RecursionAvailable = true
	echoEDNS(q, m)
	return m
}

func answer(q *mdns.Msg, ans Answer) *mdns.Msg {
	m := new(mdns.Msg)
	m.SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	owner := q.Question[0].Name
	ttl := uint32(TTL / time.Second)
	if ans.CNAME != "" {
		target := mdns.Fqdn(ans.CNAME)
		m.Answer = append(m.Answer, &mdns.CNAME{Hdr: mdns.RR_Header{Name: owner, Rrtype: mdns.TypeCNAME, Class: mdns.ClassINET, Ttl: ttl}, Target: target})
		owner = target
	}
	for _, a := range ans.Addrs {
		m.Answer = append(m.Answer, record(owner, a, ttl))
	}
	echoEDNS(q, m)
	return m
}

func record(owner string, a netip.Addr, ttl uint32) mdns.RR {
	hdr := mdns.RR_Header{Name: owner, Class: mdns.ClassINET, Ttl: ttl}
	if a.Is4() {
		hdr.Rrtype = mdns.TypeA
		return &mdns.A{Hdr: hdr, A: a.AsSlice()}
	}
	hdr.Rrtype = mdns.TypeAAAA
	return &mdns.AAAA{Hdr: hdr, AAAA: a.AsSlice()}
}

func echoEDNS(q, m *mdns.Msg) {
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(max(opt.UDPSize(), mdns.MinMsgSize), opt.Do())
	}
}
