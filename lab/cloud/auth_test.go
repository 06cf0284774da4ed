package cloud_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// signed sends a request signed by hand and returns its answer.
func (l *lab) signed(creds aws.Credentials, service string, at time.Time, r *http.Request, body string) (*http.Response, string) {
	l.t.Helper()
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(l.t.Context(), creds, r, hex.EncodeToString(sum[:]), service, region, at); err != nil {
		l.t.Fatal(err)
	}
	return l.send(r)
}

func (l *lab) send(r *http.Request) (*http.Response, string) {
	l.t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return resp, string(b)
}

func (l *lab) post(path, body string, header ...string) *http.Request {
	l.t.Helper()
	r, err := http.NewRequestWithContext(l.t.Context(), http.MethodPost, l.url+path, strings.NewReader(body))
	if err != nil {
		l.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func adminCreds() aws.Credentials {
	return aws.Credentials{AccessKeyID: "AKIALABADMIN00000001", SecretAccessKey: "secret-one"}
}

const ecsTarget = "AmazonEC2ContainerServiceV20141113."

func TestWrongSecretInEveryProtocol(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	bad := l.config("AKIALABADMIN00000001", "not-the-secret", "")
	ctx := t.Context()
	_, err := awsecs.NewFromConfig(bad).ListClusters(ctx, nil)
	wantCode(t, "ecs", err, "InvalidSignatureException")
	_, err = sts.NewFromConfig(bad).GetCallerIdentity(ctx, nil)
	wantCode(t, "sts", err, "SignatureDoesNotMatch")
	_, err = awsiam.NewFromConfig(bad).ListRoles(ctx, nil)
	wantCode(t, "iam", err, "SignatureDoesNotMatch")
	_, err = awsec2.NewFromConfig(bad).DescribeVpcs(ctx, nil)
	wantCode(t, "ec2", err, "AuthFailure")
	_, err = awseks.NewFromConfig(bad).ListClusters(ctx, nil)
	wantCode(t, "eks", err, "InvalidSignatureException")
}

func TestUnknownKeyAndWrongToken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, err := awsecs.NewFromConfig(l.config("AKIANOBODY0000000000", "x", "")).ListClusters(t.Context(), nil)
	wantCode(t, "unknown key", err, "UnrecognizedClientException")
	_, err = sts.NewFromConfig(l.config("AKIANOBODY0000000000", "x", "")).GetCallerIdentity(t.Context(), nil)
	wantCode(t, "unknown key at sts", err, "InvalidClientTokenId")
	_, err = awsecs.NewFromConfig(l.config("AKIALABADMIN00000001", "secret-one", "a-token")).ListClusters(t.Context(), nil)
	wantCode(t, "token with a long-lived key", err, "UnrecognizedClientException")
}

func TestUnsignedIsRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	resp, body := l.send(l.post("/", "{}", "X-Amz-Target", ecsTarget+"ListClusters", "Content-Type", "application/x-amz-json-1.1"))
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "MissingAuthenticationTokenException") {
		t.Errorf("unsigned ECS call = %d %s", resp.StatusCode, body)
	}
	resp, body = l.send(l.post("/", "Action=GetCallerIdentity&Version=2011-06-15", "Content-Type", "application/x-www-form-urlencoded"))
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "<Code>MissingAuthenticationToken</Code>") {
		t.Errorf("unsigned STS call = %d %s", resp.StatusCode, body)
	}
}

func TestClockSkew(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, c := range []struct {
		name string
		at   time.Duration
		want string // part of the answer; "" means success
	}{
		{"now", 0, ""},
		{"14 minutes old", -14 * time.Minute, ""},
		{"16 minutes old", -16 * time.Minute, "Signature expired"},
		{"14 minutes early", 14 * time.Minute, ""},
		{"16 minutes early", 16 * time.Minute, "Signature not yet current"},
	} {
		r := l.post("/", "{}", "X-Amz-Target", ecsTarget+"ListClusters", "Content-Type", "application/x-amz-json-1.1")
		resp, body := l.signed(adminCreds(), "ecs", time.Now().Add(c.at), r, "{}")
		if c.want == "" && resp.StatusCode != http.StatusOK || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s, want %q", c.name, resp.StatusCode, body, c.want)
		}
	}
}

func TestTamperedRequest(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	sign := func() *http.Request {
		r := l.post("/", "{}", "X-Amz-Target", ecsTarget+"ListClusters", "Content-Type", "application/x-amz-json-1.1", "X-Isthmus-Audience", "one")
		sum := sha256.Sum256([]byte("{}"))
		if err := v4.NewSigner().SignHTTP(t.Context(), adminCreds(), r, hex.EncodeToString(sum[:]), "ecs", region, time.Now()); err != nil {
			t.Fatal(err)
		}
		return r
	}
	for name, change := range map[string]func(*http.Request){
		"header": func(r *http.Request) { r.Header.Set("X-Isthmus-Audience", "two") },
		"target": func(r *http.Request) { r.Header.Set("X-Amz-Target", ecsTarget+"DeleteCluster") },
		"query":  func(r *http.Request) { r.URL.RawQuery = "a=b" },
		"body": func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader(`{"x":1}`))
			r.ContentLength = 7
		},
		"unsigned host": func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "host;", "", 1))
		},
	} {
		r := sign()
		change(r)
		if resp, body := l.send(r); !strings.Contains(body, "InvalidSignatureException") {
			t.Errorf("changed %s: %d %s, want InvalidSignatureException", name, resp.StatusCode, body)
		}
	}
	if resp, body := l.send(sign()); resp.StatusCode != http.StatusOK {
		t.Errorf("unchanged: %d %s", resp.StatusCode, body)
	}
	r := l.post("/", "{}", "X-Amz-Target", ecsTarget+"ListClusters", "Content-Type", "application/x-amz-json-1.1")
	if _, body := l.signed(adminCreds(), "sts", time.Now(), r, "{}"); !strings.Contains(body, "Credential should be scoped to correct service") {
		t.Errorf("wrong service in the scope: %s", body)
	}
}

func TestCallerIdentityInJSON(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const body = "Action=GetCallerIdentity&Version=2011-06-15"
	r := l.post("/", body, "Content-Type", "application/x-www-form-urlencoded; charset=utf-8", "Accept", "application/json")
	resp, text := l.signed(adminCreds(), "sts", time.Now(), r, body)
	var got struct {
		GetCallerIdentityResponse struct {
			GetCallerIdentityResult struct{ Account, Arn, UserId string }
			ResponseMetadata        struct{ RequestId string }
		}
	}
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if g := got.GetCallerIdentityResponse; g.GetCallerIdentityResult.Account != account || g.ResponseMetadata.RequestId == "" ||
		!strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Errorf("answer = %s %s", resp.Header.Get("Content-Type"), text)
	}
}

func TestPresignedCallerIdentity(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	p := sts.NewPresignClient(sts.NewFromConfig(l.admin()))
	req, err := p.PresignGetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string) (*http.Response, string) {
		r, err := http.NewRequestWithContext(t.Context(), req.Method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		return l.send(r)
	}
	if resp, body := get(req.URL); resp.StatusCode != http.StatusOK || !strings.Contains(body, account) {
		t.Errorf("presigned = %d %s", resp.StatusCode, body)
	}
	if resp, body := get(req.URL + "&x=y"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("changed presigned = %d %s, want 403", resp.StatusCode, body)
	}
	l.clock.advance(20 * time.Minute)
	if resp, body := get(req.URL); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "Signature expired") {
		t.Errorf("old presigned = %d %s, want 403", resp.StatusCode, body)
	}
}

func TestUnknownOperationSaysSo(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, err := l.ecs().ListAttributes(t.Context(), &awsecs.ListAttributesInput{TargetType: "container-instance"})
	wantCode(t, "ecs", err, "UnknownOperationException")
	if err == nil || !strings.Contains(err.Error(), "does not implement ecs:ListAttributes") {
		t.Errorf("error = %v, want it to name the operation", err)
	}
	_, err = awsec2.NewFromConfig(l.admin()).DescribeImages(t.Context(), nil)
	wantCode(t, "ec2", err, "InvalidAction")
}

// call makes an awsJson call with a document of the test's own and returns the answer's document.
func (l *lab) call(op, body string) (map[string]any, error) {
	l.t.Helper()
	r := l.post("/", body, "X-Amz-Target", ecsTarget+op, "Content-Type", "application/x-amz-json-1.1")
	resp, text := l.signed(adminCreds(), "ecs", l.clock.now(), r, body)
	out := map[string]any{}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		l.t.Fatalf("%v: %s", err, text)
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("%s: %v", resp.Header.Get("X-Amzn-Errortype"), out["message"])
	}
	return out, nil
}
