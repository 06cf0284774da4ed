package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	pb "github.com/isthmus-mesh/isthmus/internal/xds/discoverypb"
)

// Limits and times of the transport; those that ztunnel has are ztunnel's.
const (
	maxMessage       = 200 << 20 // the first response holds the whole mesh
	connectTimeout   = 5 * time.Second
	pingEvery        = 30 * time.Second
	pingTimeout      = 10 * time.Second
	maxRejectedNames = 20 // of a NACK's message
	// maxClaims limits how much of a request is spent on naming what is held. istiod refuses requests of more than
	// 4 MiB; beyond that everything is asked for again instead.
	maxClaims = 3 << 20
)

// KeepAlive is how the connections to the control plane are probed; Config.Dial sees to it.
func KeepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9}
}

// The reasons for the end of a stream.
const (
	reasonConnection = "ConnectionError"
	reasonError      = "Error"
	reasonReconnect  = "Reconnect"
	reasonComplete   = "Complete"
)

// subscription is what the client holds of one type. Only Run's goroutine touches it.
type subscription struct {
	typeURL string
	decode  func([]*pb.Resource) decoded
	held    map[string]string // name -> version of what was accepted
	synced  bool              // a response was acknowledged once

	// replace says that the next response is complete, and what it does not hold is gone.
	replace bool
}

// decoded is the outcome of one response.
type decoded struct {
	update   mesh.Update
	rejected map[string]error // by resource name
}

// stream makes one connection and serves it to its end.
func (c *Client) stream(ctx context.Context) (reason string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := c.connect()
	if err != nil {
		return reasonConnection, err
	}
	defer conn.Close()
	ctx, token, err := c.authorize(ctx)
	if err != nil {
		return reasonConnection, err
	}
	defer func() {
		if grpcstatus.Code(err) == codes.Unauthenticated && c.cfg.TokenRejected != nil {
			c.cfg.TokenRejected(token)
		}
	}()
	stream, err := pb.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return reasonConnection, fmt.Errorf("connect to istiod: %w", cause(err))
	}
	if err := c.subscribe(stream); err != nil {
		return terminated(err)
	}
	c.log.Info("stream to istiod opened", logattr.Address(c.target))
	for {
		response, err := stream.Recv()
		if err != nil {
			return terminated(err)
		}
		if err := stream.Send(c.handle(response)); err != nil && !errors.Is(err, io.EOF) {
			return terminated(err)
		} // after io.EOF, Recv tells the reason
	}
}

// connect prepares a connection. Nothing is kept from the one before: roots and names are today's.
func (c *Client) connect() (*grpc.ClientConn, error) {
	roots, err := c.cfg.Roots()
	if err != nil {
		return nil, fmt.Errorf("load the roots for istiod: %w", err)
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: c.cfg.ServerName, RootCAs: roots}
	c.cfg.TLS(tlsConfig)
	// The passthrough resolver leaves names to the dialler, and proxies from the environment out.
	return grpc.NewClient("passthrough:///"+c.target,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return c.cfg.Dial(ctx, "tcp", addr) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.DefaultConfig, MinConnectTimeout: connectTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
	)
}

// authorize returns the context with the metadata of a stream, and the token in it.
func (c *Client) authorize(ctx context.Context) (_ context.Context, token string, err error) {
	pairs := []string{"clusterid", c.cfg.ClusterID}
	if c.cfg.Token != nil {
		if token, err = c.cfg.Token(ctx); err != nil {
			return ctx, "", fmt.Errorf("get a token for istiod: %w", err)
		}
		if token == "" {
			return ctx, "", errors.New("get a token for istiod: it is empty")
		}
		pairs = append(pairs, "authorization", "Bearer "+token)
	}
	for name, value := range c.cfg.Headers {
		pairs = append(pairs, strings.ToLower(name), value)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...), token, nil
}

// node is istiod's description of the client.
func (c *Client) node() (*pb.Node, error) {
	n := c.cfg.Node
	ip := "1.1.1.1"
	if n.InstanceIP.IsValid() {
		ip = n.InstanceIP.Unmap().String()
	}
	fields := map[string]any{
		"NAME":         n.Name,
		"NAMESPACE":    n.Namespace,
		"INSTANCE_IPS": ip,
		"NODE_NAME":    n.NodeName,
	}
	for k, v := range n.Metadata {
		fields[k] = v
	}
	meta, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, err
	}
	return &pb.Node{
		Id:       "ztunnel~" + ip + "~" + n.Name + "." + n.Namespace + "~" + n.Namespace + ".svc.cluster.local",
		Metadata: meta,
	}, nil
}

// subscribe asks for all resources of each type, naming those that are held.
func (c *Client) subscribe(stream pb.AggregatedDiscoveryService_DeltaAggregatedResourcesClient) error {
	node, err := c.node()
	if err != nil {
		return err
	}
	for _, s := range c.types {
		claims, ok := s.claims()
		s.replace = !ok
		if err := stream.Send(&pb.DeltaDiscoveryRequest{Node: node, TypeUrl: s.typeURL, InitialResourceVersions: claims}); err != nil {
			if errors.Is(err, io.EOF) { // the reason is with the receiving side
				_, err = stream.Recv()
			}
			return err
		}
	}
	return nil
}

// claims returns the names and versions that are held. If they are too many for a request, ok is false.
func (s *subscription) claims() (_ map[string]string, ok bool) {
	const overhead = 8 // of a map entry on the wire
	size := 0
	for name, version := range s.held {
		if size += len(name) + len(version) + overhead; size > maxClaims {
			return nil, false
		}
	}
	return s.held, true
}

// handle applies a response and returns the answer to it.
func (c *Client) handle(r *pb.DeltaDiscoveryResponse) *pb.DeltaDiscoveryRequest {
	answer := &pb.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	c.cfg.Metrics.Received(r.TypeUrl, proto.Size(r))
	i := slices.IndexFunc(c.types, func(s *subscription) bool { return s.typeURL == r.TypeUrl })
	if i < 0 {
		c.log.Error("response of an unknown type ignored", slog.String("type", r.TypeUrl))
		return answer
	}
	s := c.types[i]
	began := time.Now()
	d := s.decode(r.Resources)
	s.take(r, &d)
	c.cfg.Sink.Apply(d.update)
	c.log.Debug("update applied", slog.String("type", s.typeURL), logattr.Count(len(r.Resources)-len(d.rejected)),
		slog.Int("removed", len(d.update.RemovedAddresses)+len(d.update.RemovedPolicies)), logattr.Elapsed(time.Since(began)))
	if len(d.rejected) > 0 {
		message := rejection(d.rejected)
		c.log.Warn("resources rejected", slog.String("type", s.typeURL), logattr.ErrText(message))
		answer.ErrorDetail = &status.Status{Message: message}
		return answer
	}
	if !s.synced {
		s.synced = true
		c.checkSynced()
	}
	return answer
}

// take records what is held from now on, and adds the removals to the update.
func (s *subscription) take(r *pb.DeltaDiscoveryResponse, d *decoded) {
	removed := r.RemovedResources
	if s.replace {
		s.replace = false
		removed = append(slices.Clone(removed), s.missing(r.Resources)...)
	}
	if s.held == nil {
		s.held = make(map[string]string, len(r.Resources))
	}
	for _, res := range r.Resources {
		if _, bad := d.rejected[res.Name]; bad {
			// The former version stays in force but is not claimed, or it would never be sent again.
			delete(s.held, res.Name)
			continue
		}
		s.held[res.Name] = res.Version
	}
	for _, name := range removed {
		delete(s.held, name)
	}
	if s.typeURL == AuthorizationType {
		d.update.RemovedPolicies = removed
		return
	}
	d.update.RemovedAddresses = removed
}

// missing returns what is held but not in a complete response.
func (s *subscription) missing(resources []*pb.Resource) []string {
	present := make(map[string]bool, len(resources))
	for _, r := range resources {
		present[r.Name] = true
	}
	var names []string
	for name := range s.held {
		if !present[name] {
			names = append(names, name)
		}
	}
	return names
}

func (c *Client) checkSynced() {
	for _, s := range c.types {
		if !s.synced {
			return
		}
	}
	c.syncedOnce.Do(func() {
		c.log.Info("first state of the mesh is complete")
		close(c.synced)
	})
}

func rejection(rejected map[string]error) string {
	reasons := make([]string, 0, len(rejected))
	for name, err := range rejected {
		reasons = append(reasons, name+": "+err.Error())
	}
	slices.Sort(reasons)
	if n := len(reasons); n > maxRejectedNames {
		reasons = append(reasons[:maxRejectedNames], fmt.Sprintf("and %d more", n-maxRejectedNames))
	}
	return strings.Join(reasons, "; ")
}

// terminated sorts the end of a stream into ztunnel's reasons.
func terminated(err error) (string, error) {
	if errors.Is(err, io.EOF) {
		return reasonComplete, nil
	}
	s, ok := grpcstatus.FromError(err)
	if !ok {
		return reasonError, err
	}
	err = cause(err)
	switch s.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return reasonReconnect, err
	case codes.Unavailable:
		for _, text := range []string{"transport is closing", "received prior goaway", "error reading from server", "EOF"} {
			if strings.Contains(s.Message(), text) {
				return reasonReconnect, err
			}
		}
		if strings.Contains(s.Message(), "connection error") {
			return reasonConnection, err
		}
	}
	return reasonError, err
}

// cause words a gRPC error for a log: the code and the text, and what usually helps.
func cause(err error) error {
	s, ok := grpcstatus.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Unauthenticated:
		return fmt.Errorf("istiod did not accept the token (audience istio-ca, cluster id, expiry?): %w", err)
	case codes.PermissionDenied:
		return fmt.Errorf("istiod refused this node; its namespace must be the token's: %w", err)
	}
	return err
}
