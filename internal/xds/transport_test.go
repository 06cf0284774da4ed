package xds_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds"
	pb "github.com/isthmus-mesh/isthmus/internal/xds/discoverypb"
)

// A push of 70 MiB in one message, as the first one of a large mesh is, arrives. gRPC's own limit is 4 MiB.
func TestLargePush(t *testing.T) {
	const workloads, each = 70, 1 << 20
	istiod := meshtest.NewIstiod(t, nil)
	for i := range workloads {
		w := newWorkload(fmt.Sprint("w", i), fmt.Sprintf("10.0.0.%d", i))
		body, err := proto.Marshal(meshtest.WorkloadAddress(meshtest.EncodeWorkload(w)))
		if err != nil {
			t.Fatal(err)
		}
		// What a later Istio may add: fields that this program does not know are carried and skipped.
		body = protowire.AppendTag(body, 1000, protowire.BytesType)
		body = protowire.AppendBytes(body, make([]byte, each))
		istiod.SetRaw(xds.AddressType, w.UID, body)
	}
	m := &terminations{}
	c, store := start(t, istiod, func(cfg *xds.Config) { cfg.Metrics = m })
	meshtest.Closes(t, "synced", c.Synced())
	if n, _, _ := store.Snapshot().Counts(); n != workloads {
		t.Errorf("%d workloads, want %d", n, workloads)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bytes < workloads*each || len(m.reasons) != 0 {
		t.Errorf("%d bytes were received, and streams ended for %v", m.bytes, m.reasons)
	}
}

// A type that this program did not ask for is logged and acknowledged, and changes nothing.
func TestUnknownType(t *testing.T) {
	const strange = "type.googleapis.com/istio.workload.Strange"
	istiod := meshtest.NewIstiod(t, nil)
	istiod.Set(newWorkload("a", "10.0.128.1"))
	log := &meshtest.Buffer{}
	c, store := start(t, istiod, func(cfg *xds.Config) { cfg.Log = slog.New(slog.NewTextHandler(log, nil)) })
	meshtest.Closes(t, "synced", c.Synced())
	istiod.Push(&pb.DeltaDiscoveryResponse{TypeUrl: strange, RemovedResources: []string{"a"},
		Resources: []*pb.Resource{{Name: "b", Resource: &anypb.Any{TypeUrl: strange, Value: []byte("?")}}}})
	var answer *pb.DeltaDiscoveryRequest
	meshtest.Eventually(t, "an answer", func() bool {
		for _, r := range istiod.Requests() {
			if r.TypeUrl == strange {
				answer = r
			}
		}
		return answer != nil
	})
	if answer.ResponseNonce == "" || answer.ErrorDetail != nil || len(answer.ResourceNamesSubscribe) != 0 {
		t.Errorf("the answer is %v, want an acknowledgement", answer)
	}
	if store.Snapshot().Workload("a") == nil {
		t.Error("a removal of an unknown type removed a workload")
	}
	if !strings.Contains(log.String(), `level=ERROR msg="response of an unknown type ignored" scope=xds type=`+strange) {
		t.Errorf("it is not in the log:\n%s", log)
	}
	istiod.Set(newWorkload("c", "10.0.128.3"))
	meshtest.Eventually(t, "the stream goes on", has(store, "c"))
}

// errNotDialled ends an attempt to connect.
var errNotDialled = errors.New("not dialled")

// A connection attempt is given 5 seconds.
func TestConnectTimeout(t *testing.T) {
	istiod := meshtest.NewIstiod(t, nil)
	given := make(chan time.Duration, 1)
	start(t, istiod, func(cfg *xds.Config) {
		cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			deadline, _ := ctx.Deadline()
			select {
			case given <- time.Until(deadline):
			default:
			}
			return nil, errNotDialled
		}
	})
	select {
	case d := <-given:
		if d < 4*time.Second || d > 5*time.Second {
			t.Errorf("a connection attempt is given %v, want 5s", d)
		}
	case <-time.After(meshtest.Wait):
		t.Fatal("nothing was dialled")
	}
}

// A server that falls silent is asked for a sign of life after 30 seconds and given up 10 seconds later.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := meshtest.NewCA(t)
		conf := ca.ServerTLS(t, meshtest.IstiodName)
		var pinged, gone atomic.Pointer[time.Duration]
		var dials atomic.Int32
		began := time.Now()
		since := func() *time.Duration { d := time.Since(began); return &d }
		cfg := xds.Config{Address: "istiod.test:15012", ServerName: meshtest.IstiodName, Roots: ca.RootsFunc, ClusterID: "Kubernetes", Sink: state.NewStore(), Log: meshtest.Discard()}
		ctx, cancel := context.WithCancel(t.Context())
		var serving sync.WaitGroup
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			if dials.Add(1) > 1 {
				return nil, errNotDialled
			}
			client, server := net.Pipe()
			serving.Go(func() {
				defer server.Close()
				silent(tls.Server(server, conf), func() { pinged.CompareAndSwap(nil, since()) })
				gone.Store(since())
			})
			return client, nil
		}
		c, err := xds.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		time.Sleep(60 * time.Second) // of the bubble's clock
		for what, at := range map[string][2]any{"a ping": {&pinged, 30 * time.Second}, "the end of the connection": {&gone, 40 * time.Second}} {
			got := at[0].(*atomic.Pointer[time.Duration]).Load()
			if want := at[1].(time.Duration); got == nil || *got < want || *got > want+time.Second {
				t.Errorf("%s after %v, want %v", what, got, want)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run() = %v", err)
		}
		serving.Wait()
	})
}

// silent speaks HTTP/2 as far as it must, and answers neither requests nor pings. It returns when the connection ends.
func silent(c *tls.Conn, pinged func()) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil || !bytes.Equal(preface, []byte(http2.ClientPreface)) {
		return
	}
	fr := http2.NewFramer(c, c)
	if fr.WriteSettings() != nil {
		return
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() && fr.WriteSettingsAck() != nil {
				return
			}
		case *http2.PingFrame:
			pinged()
		}
	}
}

// The reasons of a refusal are for people: a few of them are sent.
func TestRejectionIsShort(t *testing.T) {
	istiod := meshtest.NewIstiod(t, nil)
	for i := range 50 {
		istiod.SetRaw(xds.AddressType, fmt.Sprintf("bad-%02d", i), []byte{0xff})
	}
	start(t, istiod, nil)
	meshtest.Eventually(t, "a refusal", func() bool { return len(istiod.Rejections()) > 0 })
	if text := istiod.Rejections()[0]; strings.Count(text, "bad-") != 20 || !strings.HasSuffix(text, "and 30 more") {
		t.Errorf("the refusal = %q", text)
	}
}
