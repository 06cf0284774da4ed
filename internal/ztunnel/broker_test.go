package ztunnel

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
	"github.com/isthmus-mesh/isthmus/internal/proxy/proxytest"
)

// startBroker plays the broker: it refuses the first requests and then says who the task is.
func startBroker(t *testing.T, istiod *meshtest.Istiod, refusals int32) *httptest.Server {
	t.Helper()
	var asked atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		proof, err := iamproof.ParseProof(text)
		if err != nil || proof.Region != "us-east-2" || proof.Signature == "" {
			t.Errorf("the broker was sent no proof: %+v, %v", proof, err)
		}
		if asked.Add(1) <= refusals {
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(iamproof.TokenError{Code: "IST2103", Message: "the role is not mapped"})
			return
		}
		sealed, err := iamproof.Seal(proof.Key, iamproof.TokenResponse{Token: "from-the-broker", Expiration: time.Now().Add(time.Hour), Namespace: "default", ServiceAccount: "shell",
			WorkloadName: "ecs-task-1", TrustDomain: "cluster.local", ClusterID: "Kubernetes", Network: "eks"})
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(sealed)
	}))
	cert := istiod.CA.Issue(t, meshtest.ID("istio-system", "isthmus-controller"))
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert.TLS}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// A task that discovery has not seen yet gets its identity from the broker and can make connections at once.
func TestDedicatedThroughBroker(t *testing.T) {
	istiod := newMesh(t)
	istiod.Remove("Kubernetes/networking.istio.io/WorkloadEntry/default/shell-1")
	broker := startBroker(t, istiod, 1)
	echo := start(t, echoIP, istiod, "PROXY_WORKLOAD_INFO=ecs-demo-1/echo-1/echo")
	task := start(t, shellIP, istiod, "AUTH_TOKEN=", "NETWORK=", "CLUSTER_ID=", "ISTHMUS_BROKER_ADDRESS=https://"+broker.Listener.Addr().String(), "AWS_REGION=us-east-2",
		"AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=secret", "AWS_SESSION_TOKEN=session")
	meshtest.Eventually(t, "both are ready", func() bool { return task.ready() && echo.ready() })
	out, errOut, code := proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
	if out != "hello" {
		t.Fatalf("curl = %d, %q, %q", code, out, errOut)
	}
	meshtest.Eventually(t, "the access log names the synthesised workload", func() bool {
		return strings.Contains(task.out.String(), `src.workload="ecs-task-1" src.namespace="default" src.identity="spiffe://cluster.local/ns/default/sa/shell"`)
	})
	if log := task.out.String(); !strings.Contains(log, "IST2103") || strings.Contains(log, "from-the-broker") || strings.Contains(log, "session") {
		t.Error("the log must tell why the broker refused, and must not hold secrets")
	}
	var bearer bool
	for _, md := range istiod.Calls() {
		bearer = bearer || strings.Join(md.Get("authorization"), "") == "Bearer from-the-broker"
	}
	if !bearer {
		t.Error("istiod was never shown the broker's token")
	}
	// Discovery catches up: the real record replaces the synthesised one.
	real := workload("ecs-task-1", "default", "shell", shellIP)
	real.CanonicalName = "shell-service"
	istiod.Set(real)
	meshtest.Eventually(t, "the discovered workload is used", func() bool {
		proxytest.Curl(t, "--proxy", fmt.Sprintf("socks5h://%s:%d", shellIP, mesh.SOCKSPort), "http://"+echoHost+"/")
		_, text, err := task.get(mesh.MetricsPort, "/metrics")
		return err == nil && strings.Contains(text, `source_canonical_service="shell-service"`)
	})
}

// A token that istiod does not accept any more, because it was revoked, is replaced at once and not at its end.
func TestRevokedTokenIsReplaced(t *testing.T) {
	istiod := newMesh(t)
	broker := startBroker(t, istiod, 0)
	task := startWith(t, shellIP, istiod, func(c *Config) { c.tokenAge = time.Nanosecond }, "AUTH_TOKEN=",
		"ISTHMUS_BROKER_ADDRESS=https://"+broker.Listener.Addr().String(), "AWS_REGION=us-east-2",
		"AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=secret", "AWS_SESSION_TOKEN=session")
	meshtest.Eventually(t, "the task is ready", task.ready)
	issued := func() int { return strings.Count(task.out.String(), "token issued by the broker") }
	if issued() != 1 {
		t.Fatalf("%d tokens were issued at the start, want 1", issued())
	}
	istiod.Refuse(status.Error(codes.Unauthenticated, "token was revoked"))
	meshtest.Eventually(t, "another token is fetched", func() bool { return issued() > 1 })
	istiod.Refuse(nil)
	meshtest.Eventually(t, "the stream is back", func() bool { return istiod.Streams() == 1 })
}

// A broker with the right certificate authority but another identity must not learn the proof.
func TestBrokerOfWrongIdentity(t *testing.T) {
	istiod := newMesh(t)
	broker := startBroker(t, istiod, 0)
	task := start(t, shellIP, istiod, "AUTH_TOKEN=", "ISTHMUS_BROKER_ADDRESS=https://"+broker.Listener.Addr().String(), "AWS_REGION=us-east-2",
		"ISTHMUS_BROKER_IDENTITY=spiffe://cluster.local/ns/istio-system/sa/somebody",
		"AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=secret", "AWS_SESSION_TOKEN=session")
	meshtest.Eventually(t, "the refusal is logged", func() bool { return strings.Contains(task.out.String(), "verify the broker") })
	if task.ready() {
		t.Error("a proxy without identity is ready")
	}
}
