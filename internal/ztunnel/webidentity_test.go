package ztunnel

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
	"github.com/isthmus-mesh/isthmus/internal/meshtest"
)

// A task that is told to use the second proof asks STS for a token and shows it to the broker, with the id that ECS tells it.
func TestDedicatedThroughWebIdentity(t *testing.T) {
	const taskID = "0123456789abcdef0123456789abcdef"
	istiod := newMesh(t)
	ecs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"TaskARN":"arn:aws:ecs:us-east-2:123456789012:task/ecs-demo-1/`+taskID+`"}`)
	}))
	defer ecs.Close()
	var token string // of the one request of the one task
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if r.Host != "sts.us-east-2.amazonaws.com" || !strings.Contains(r.Header.Get("Authorization"), "ASIAIOSFODNN7EXAMPLE/") {
			t.Errorf("request to %s with %q", r.Host, r.Header.Get("Authorization"))
		}
		b64 := base64.RawURLEncoding.EncodeToString
		now := time.Now().Unix()
		token = b64([]byte(`{"alg":"ES384","kid":"EC384_0"}`)) + "." + b64(fmt.Appendf(nil, `{"iss":"https://a.tokens.sts.global.api.aws","sub":"arn:aws:iam::123456789012:role/r",`+
			`"aud":%q,"jti":"12345678","iat":%d,"exp":%d,"https://sts.amazonaws.com/":{"aws_account":"123456789012"}}`, r.Form.Get("Audience.member.1"), now, now+60)) + ".AAAA"
		fmt.Fprintf(w, `<GetWebIdentityTokenResponse><GetWebIdentityTokenResult><WebIdentityToken>%s</WebIdentityToken></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>`, token)
	}))
	defer sts.Close()
	broker := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		p, err := webidentity.ParseProof(text)
		if err != nil || r.URL.Path != webidentity.TokenPath || p.TaskID != taskID || p.Token != token {
			t.Errorf("the broker was sent %s to %s: %v", text, r.URL.Path, err)
		}
		sealed, err := iamproof.Seal(p.Key, iamproof.TokenResponse{Token: "from-the-broker", Expiration: time.Now().Add(time.Hour), Namespace: "default", ServiceAccount: "shell",
			WorkloadName: "ecs-task-1", TrustDomain: "cluster.local", ClusterID: "Kubernetes"})
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(sealed)
	}))
	cert := istiod.CA.Issue(t, meshtest.ID("istio-system", "isthmus-controller"))
	broker.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert.TLS}}
	broker.StartTLS()
	defer broker.Close()
	task := start(t, shellIP, istiod, "AUTH_TOKEN=", "ISTHMUS_BROKER_ADDRESS=https://"+broker.Listener.Addr().String(), "ISTHMUS_PROOF=web-identity",
		"ISTHMUS_STS_ENDPOINT="+sts.URL, metadataURI+"="+ecs.URL+"/v4/x",
		"AWS_ACCESS_KEY_ID=ASIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=secret", "AWS_SESSION_TOKEN=session")
	meshtest.Eventually(t, "the task is ready", task.ready)
	var bearer bool
	for _, md := range istiod.Calls() {
		bearer = bearer || strings.Join(md.Get("authorization"), "") == "Bearer from-the-broker"
	}
	if log := task.out.String(); !bearer || strings.Contains(log, token) {
		t.Errorf("istiod was shown the broker's token: %t, or the log holds the proof:\n%s", bearer, log)
	}
}
