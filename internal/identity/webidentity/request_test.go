package webidentity_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

const taskID = "0123456789abcdef0123456789abcdef"

var creds = aws.Credentials{AccessKeyID: "ASIAQWERTYUIOPASDFGH", SecretAccessKey: "secret", SessionToken: "IQoJb3JpZ2luX2VjEJr//////////wEaCXVz"}

// stsServer answers sts:GetWebIdentityToken for whoever has signed well. answer may change what it says.
func stsServer(t *testing.T, answer func(w http.ResponseWriter, form url.Values) bool) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := signedBy(r, body); err != nil {
			t.Errorf("%v", err)
		}
		form, _ := url.ParseQuery(string(body))
		want := url.Values{"Action": {"GetWebIdentityToken"}, "Version": {"2011-06-15"}, "DurationSeconds": {"60"}, "SigningAlgorithm": {"ES384"}, "Audience.member.1": form["Audience.member.1"]}
		if diff := cmp.Diff(want, form); diff != "" || r.URL.Path != "/" || r.Host != "sts.us-east-2.amazonaws.com" {
			t.Errorf("request to %s%s (-want +got):\n%s", r.Host, r.URL, diff)
		}
		if answer != nil && answer(w, form) {
			return
		}
		d := newDraft(time.Now())
		d.claims["aud"] = form.Get("Audience.member.1")
		w.Header().Set("Content-Type", "text/xml")
		fmt.Fprintf(w, `<GetWebIdentityTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetWebIdentityTokenResult><WebIdentityToken>%s</WebIdentityToken>`+
			`<Expiration>2026-11-29T09:01:00Z</Expiration></GetWebIdentityTokenResult><ResponseMetadata><RequestId>x</RequestId></ResponseMetadata></GetWebIdentityTokenResponse>`, d.sign())
	}))
	t.Cleanup(s.Close)
	return s
}

// signedBy signs a request again with AWS's own signer and compares.
func signedBy(r *http.Request, body []byte) error {
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return err
	}
	again, _ := http.NewRequest(r.Method, "https://"+r.Host+r.URL.Path, strings.NewReader(string(body)))
	again.Header.Set("Content-Type", r.Header.Get("Content-Type"))
	if err := v4.NewSigner().SignHTTP(context.Background(), creds, again, hash(body), "sts", "us-east-2", at); err != nil {
		return err
	}
	if got, want := r.Header.Get("Authorization"), again.Header.Get("Authorization"); got != want {
		return fmt.Errorf("signed %q, want %q", got, want)
	}
	return nil
}

func hash(b []byte) string { sum := sha256.Sum256(b); return hex.EncodeToString(sum[:]) }

func newClient(t *testing.T, s *httptest.Server) *webidentity.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c, err := webidentity.NewClient(webidentity.ClientConfig{
		Credentials: func(context.Context) (aws.Credentials, error) { return creds, nil }, Region: "us-east-2", Audience: mesh, TaskID: taskID,
		Endpoint: s.URL, TLS: &tls.Config{RootCAs: pool},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestProve is the whole way: what a task asks STS for is what the broker's verifier accepts, with this key only.
func TestProve(t *testing.T) {
	c := newClient(t, stsServer(t, nil))
	v, err := webidentity.NewVerifier(webidentity.Config{Audience: mesh, Issuer: pinned, Transport: newAuthority()})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 2 {
		asking, err := c.Prove(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p, err := webidentity.ParseProof(asking.Body)
		if err != nil || asking.Path != webidentity.TokenPath || p.TaskID != taskID || seen[p.Key] {
			t.Fatalf("Prove() = %s to %s, %v, or a key that was used before", asking.Body, asking.Path, err)
		}
		seen[p.Key] = true
		if who, err := v.Verify(t.Context(), p.Token, p.Key); err != nil || who.RoleARN != role {
			t.Errorf("Verify() = %+v, %v", who, err)
		}
	}
}

func TestProveTellsWhatIsWrong(t *testing.T) {
	refused := func(status int, code string) func(http.ResponseWriter, url.Values) bool {
		return func(w http.ResponseWriter, _ url.Values) bool {
			w.WriteHeader(status)
			fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>no</Message></Error></ErrorResponse>`, code)
			return true
		}
	}
	says := func(text string) func(http.ResponseWriter, url.Values) bool {
		return func(w http.ResponseWriter, _ url.Values) bool { fmt.Fprint(w, text); return true }
	}
	token := func(text string) string {
		return `<GetWebIdentityTokenResponse><GetWebIdentityTokenResult><WebIdentityToken>` + text + `</WebIdentityToken></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>`
	}
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, url.Values) bool
		want   string
	}{
		"no permission": {refused(403, "AccessDenied"), "allow sts:GetWebIdentityToken in the task role"},
		"not enabled":   {refused(403, "OutboundWebIdentityFederationDisabledException"), "aws iam enable-outbound-web-identity-federation"},
		"throttled":     {refused(400, "Throttling"), `refused with "Throttling"`},
		"an error page": {func(w http.ResponseWriter, _ url.Values) bool { w.WriteHeader(502); return true }, "status 502"},
		"a redirect": {func(w http.ResponseWriter, _ url.Values) bool {
			w.Header().Set("Location", "/x")
			w.WriteHeader(307)
			return true
		}, "status 307"},
		"another answer":  {says("<GetCallerIdentityResponse/>"), "it is not that of sts:GetWebIdentityToken"},
		"no token":        {says(token("")), "not a web identity token"},
		"no token of AWS": {says(token("a.b.c")), "not a web identity token"},
		"without end":     {says(strings.Repeat(" ", 70<<10)), "more than 65536 bytes"},
		"another's token": {func(w http.ResponseWriter, _ url.Values) bool {
			return says(token(newDraft(time.Now()).sign()))(w, nil)
		}, "for another audience"},
		"a token with space": {says(token("\n" + newDraft(time.Now()).sign())), "not a web identity token"},
	} {
		_, err := newClient(t, stsServer(t, tt.answer)).Prove(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), creds.SessionToken) {
			t.Errorf("%s: Prove() = %v, want %q", name, err, tt.want)
		}
	}
}

func TestClientConfig(t *testing.T) {
	good := webidentity.ClientConfig{Credentials: func(context.Context) (aws.Credentials, error) { return creds, nil }, Region: "us-east-2", Audience: mesh, TaskID: taskID}
	for name, change := range map[string]func(*webidentity.ClientConfig){
		"no credentials":   func(c *webidentity.ClientConfig) { c.Credentials = nil },
		"no region":        func(c *webidentity.ClientConfig) { c.Region = "" },
		"a host as region": func(c *webidentity.ClientConfig) { c.Region = "evil.example/" },
		"no audience":      func(c *webidentity.ClientConfig) { c.Audience = "" },
		"no task":          func(c *webidentity.ClientConfig) { c.TaskID = "" },
		"an endpoint":      func(c *webidentity.ClientConfig) { c.Endpoint = "sts" },
	} {
		c := good
		change(&c)
		if _, err := webidentity.NewClient(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := webidentity.NewClient(good); err != nil {
		t.Error(err)
	}
}
