package meshtest

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	capb "github.com/isthmus-mesh/isthmus/internal/identity/istioca/capb"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	pb "github.com/isthmus-mesh/isthmus/internal/xds/discoverypb"
)

// The resource types that an Istiod serves.
const (
	AddressType       = "type.googleapis.com/istio.workload.Address"
	AuthorizationType = "type.googleapis.com/istio.security.Authorization"
)

// IstiodName is the DNS name in an Istiod's certificate, beside 127.0.0.1.
const IstiodName = "istiod.istio-system.svc"

// Istiod is a server of what a ztunnel needs of istiod: delta ADS and the certificate service, on one TLS port of the
// loopback. It answers as the real one does: workloads and services carry a version and policies do not; a client that
// names what it holds is told what changed and what is gone; nothing else is remembered of a client.
type Istiod struct {
	CA *CA // signs certificates

	address string
	serving *grpc.Server

	mu        sync.Mutex
	resources map[string]map[string]resource // by type and name
	requests  []*pb.DeltaDiscoveryRequest
	calls     []metadata.MD // of streams and certificate requests
	refuse    error
	streams   map[*adsStream]bool
}

type resource struct {
	version string // "" for policies
	body    []byte
	hash    uint64
}

// NewIstiod starts an Istiod that serves an empty mesh until the test ends. A nil ca makes a new one.
func NewIstiod(t testing.TB, ca *CA) *Istiod {
	t.Helper()
	if ca == nil {
		ca = NewCA(t)
	}
	s := &Istiod{
		CA:        ca,
		resources: map[string]map[string]resource{AddressType: {}, AuthorizationType: {}},
		streams:   make(map[*adsStream]bool),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	s.address = l.Addr().String()
	s.serving = grpc.NewServer(
		grpc.Creds(credentials.NewTLS(ca.ServerTLS(t, IstiodName, "127.0.0.1"))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second}),
	)
	pb.RegisterAggregatedDiscoveryServiceServer(s.serving, ads{istiod: s})
	capb.RegisterIstioCertificateServiceServer(s.serving, authority{istiod: s})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.serving.Serve(l)
	}()
	t.Cleanup(func() {
		s.serving.Stop()
		<-ended
	})
	return s
}

// Address returns host:port.
func (s *Istiod) Address() string { return s.address }

// Set adds or replaces *mesh.Workload, *mesh.Service and *mesh.Policy values, in one push.
func (s *Istiod) Set(values ...any) {
	s.change(func() {
		for _, v := range values {
			switch v := v.(type) {
			case *mesh.Workload:
				s.put(AddressType, v.UID, WorkloadAddress(EncodeWorkload(v)))
			case *mesh.Service:
				s.put(AddressType, v.Key.String(), ServiceAddress(EncodeService(v)))
			case *mesh.Policy:
				s.put(AuthorizationType, v.Key.String(), EncodePolicy(v))
			default:
				panic(fmt.Sprintf("Istiod.Set: unexpected %T", v))
			}
		}
	})
}

// SetRaw adds or replaces a resource that holds any bytes.
func (s *Istiod) SetRaw(typeURL, name string, body []byte) {
	s.change(func() { s.putBytes(typeURL, name, body) })
}

// Push sends a response as it is on all streams; it gets a nonce. It is for what the real istiod does not say.
func (s *Istiod) Push(r *pb.DeltaDiscoveryResponse) {
	s.change(func() {
		for stream := range s.streams {
			stream.raw = append(stream.raw, r)
		}
	})
}

// Remove removes resources of any type by name.
func (s *Istiod) Remove(names ...string) {
	s.change(func() {
		for _, byName := range s.resources {
			for _, name := range names {
				delete(byName, name)
			}
		}
	})
}

// Refuse ends all streams with err and refuses every call with it from then on; nil allows them again.
func (s *Istiod) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = err
	if err != nil {
		s.end(err)
	}
}

// Disconnect ends all streams, as a restart of istiod does.
func (s *Istiod) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(status.Error(codes.Unavailable, "transport is closing"))
}

// Requests returns all discovery requests so far.
func (s *Istiod) Requests() []*pb.DeltaDiscoveryRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Forget forgets what was asked so far and returns how many certificates were signed since the last time: a long test would
// otherwise measure what this double remembers.
func (s *Istiod) Forget() (certificates int) {
	s.mu.Lock()
	s.requests, s.calls = nil, nil
	s.mu.Unlock()
	s.CA.locked(func() { certificates, s.CA.requests = len(s.CA.requests), nil })
	return certificates
}

// Rejections returns the messages of all rejections so far.
func (s *Istiod) Rejections() []string {
	var messages []string
	for _, r := range s.Requests() {
		if r.ErrorDetail != nil {
			messages = append(messages, r.ErrorDetail.Message)
		}
	}
	return messages
}

// Calls returns the metadata of each stream and each certificate request so far.
func (s *Istiod) Calls() []metadata.MD {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Streams returns how many discovery streams are open.
func (s *Istiod) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

func (s *Istiod) put(typeURL, name string, m proto.Message) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("Istiod.Set(%s): %v", name, err))
	}
	s.putBytes(typeURL, name, body)
}

func (s *Istiod) putBytes(typeURL, name string, body []byte) {
	h := fnv.New64a()
	_, _ = h.Write(body)
	r := resource{body: body, hash: h.Sum64()}
	if typeURL == AddressType {
		r.version = fmt.Sprintf("%016x", r.hash)
	}
	s.resources[typeURL][name] = r
}

// change changes the resources and wakes the streams.
func (s *Istiod) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	for stream := range s.streams {
		stream.notify()
	}
}

// end ends all streams; the caller holds mu.
func (s *Istiod) end(err error) {
	for stream := range s.streams {
		stream.cancel(err)
	}
}

// admit notes a call and says whether it may go on.
func (s *Istiod) admit(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, md)
	return s.refuse
}

type ads struct {
	pb.UnimplementedAggregatedDiscoveryServiceServer
	istiod *Istiod
}

// adsStream is one client. sent is what it has been told, by type; only the sending goroutine touches it.
type adsStream struct {
	istiod *Istiod
	server pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	wake   chan struct{}
	cancel context.CancelCauseFunc
	sent   map[string]map[string]uint64
	nonce  int
	raw    []*pb.DeltaDiscoveryResponse // guarded by istiod.mu; to be sent as they are
}

func (a ads) DeltaAggregatedResources(server pb.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if err := a.istiod.admit(server.Context()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(server.Context())
	defer cancel(nil)
	s := &adsStream{istiod: a.istiod, server: server, wake: make(chan struct{}, 1), cancel: cancel, sent: make(map[string]map[string]uint64)}
	a.istiod.mu.Lock()
	a.istiod.streams[s] = true
	a.istiod.mu.Unlock()
	defer func() {
		a.istiod.mu.Lock()
		delete(a.istiod.streams, s)
		a.istiod.mu.Unlock()
	}()
	requests := make(chan *pb.DeltaDiscoveryRequest)
	go func() {
		for {
			r, err := server.Recv()
			if err != nil {
				cancel(err)
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-requests:
			if err := s.request(r); err != nil {
				return err
			}
		case <-s.wake:
			for _, typeURL := range slices.Sorted(maps.Keys(s.sent)) {
				if err := s.push(typeURL, false, nil); err != nil {
					return err
				}
			}
			if err := s.pushRaw(); err != nil {
				return err
			}
		}
	}
}

func (s *adsStream) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *adsStream) request(r *pb.DeltaDiscoveryRequest) error {
	s.istiod.mu.Lock()
	s.istiod.requests = append(s.istiod.requests, r)
	s.istiod.mu.Unlock()
	if r.ResponseNonce != "" {
		return nil // an acknowledgement
	}
	if len(s.sent) == 0 && r.Node == nil {
		return status.Error(codes.InvalidArgument, "the first request has no node")
	}
	if _, known := s.sent[r.TypeUrl]; !known {
		s.sent[r.TypeUrl] = make(map[string]uint64)
	}
	return s.push(r.TypeUrl, true, r.InitialResourceVersions)
}

// push sends the difference between the resources and what the client was told. The first push of a type is sent even
// if there is nothing to say; claims is what the client says it holds.
func (s *adsStream) push(typeURL string, first bool, claims map[string]string) error {
	response := &pb.DeltaDiscoveryResponse{TypeUrl: typeURL}
	sent := s.sent[typeURL]
	s.istiod.mu.Lock()
	now := s.istiod.resources[typeURL]
	for _, name := range slices.Sorted(maps.Keys(now)) {
		r := now[name]
		if sent[name] == r.hash {
			continue
		}
		sent[name] = r.hash
		if version := claims[name]; version != "" && version == r.version {
			continue
		}
		response.Resources = append(response.Resources, &pb.Resource{
			Name: name, Version: r.version, Resource: &anypb.Any{TypeUrl: typeURL, Value: r.body},
		})
	}
	for name := range claims {
		if _, told := sent[name]; !told {
			sent[name] = 0
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sent)) {
		if _, there := now[name]; !there {
			delete(sent, name)
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	s.istiod.mu.Unlock()
	if !first && len(response.Resources) == 0 && len(response.RemovedResources) == 0 {
		return nil
	}
	s.nonce++
	response.Nonce = fmt.Sprint(s.nonce)
	return s.server.Send(response)
}

func (s *adsStream) pushRaw() error {
	s.istiod.mu.Lock()
	all := s.raw
	s.raw = nil
	s.istiod.mu.Unlock()
	for _, r := range all {
		s.nonce++
		r = proto.CloneOf(r) // it goes to other streams too
		r.Nonce = fmt.Sprint(s.nonce)
		if err := s.server.Send(r); err != nil {
			return err
		}
	}
	return nil
}

type authority struct {
	capb.UnimplementedIstioCertificateServiceServer
	istiod *Istiod
}

func (a authority) CreateCertificate(ctx context.Context, r *capb.IstioCertificateRequest) (*capb.IstioCertificateResponse, error) {
	if err := a.istiod.admit(ctx); err != nil {
		return nil, err
	}
	var impersonate mesh.Identity
	if v, ok := r.GetMetadata().GetFields()["ImpersonatedIdentity"]; ok {
		id, err := mesh.ParseIdentity(v.GetStringValue())
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		impersonate = id
	}
	chain, err := a.istiod.CA.Sign(ctx, []byte(r.Csr), time.Duration(r.ValidityDuration)*time.Second, impersonate)
	if err != nil {
		var grpcError interface{ GRPCStatus() *status.Status }
		if errors.As(err, &grpcError) {
			return nil, err
		}
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &capb.IstioCertificateResponse{CertChain: chain}, nil
}
