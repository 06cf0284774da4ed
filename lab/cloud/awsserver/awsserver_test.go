package awsserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-cmp/cmp"
)

// oneUser is an Authority with one key that may do what begins with "x:".
type oneUser struct{}

func (oneUser) Lookup(key string) (Identity, bool) {
	return Identity{AccessKeyID: key, Secret: "secret", AccountID: "1", ARN: "arn:user"}, key == "AK"
}

func (oneUser) Authorize(_ Identity, a Access) Decision {
	if strings.HasPrefix(a.Action, "x:") {
		return Allowed
	}
	return DeniedByDefault
}

func newServer(t *testing.T, op Operation) *Server {
	t.Helper()
	s, err := New(Config{Authority: oneUser{}, Log: slog.New(slog.DiscardHandler), Services: []Service{
		{Name: "json", Protocol: JSON11, Target: "T", Operations: map[string]Operation{"Op": op}},
		{Name: "query", Protocol: Query, Version: "v1", Namespace: "urn:q", Operations: map[string]Operation{"Op": op}},
		{Name: "ec2", Protocol: EC2Query, Version: "v2", Namespace: "urn:e", Operations: map[string]Operation{"Op": op}},
		{Name: "rest", Protocol: RESTJSON, Routes: []Route{{Name: "Op", Method: "GET", Pattern: "/things/{id}", Operation: op}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func send(t *testing.T, s *Server, service, method, url, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	sum := sha256.Sum256([]byte(body))
	creds := aws.Credentials{AccessKeyID: "AK", SecretAccessKey: "secret"}
	if err := v4.NewSigner().SignHTTP(t.Context(), creds, r, hex.EncodeToString(sum[:]), service, "r", time.Now()); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestSignatureOfOddRequests checks the canonical form against the SDK's signer where they could differ.
func TestSignatureOfOddRequests(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(_ context.Context, r *Request) (any, error) { return map[string]string{"id": r.Path["id"]}, nil })
	for _, path := range []string{"/things/a", "/things/a%20b", "/things/a%2Fb", "/things/a%3Ab?x=1&x=0&y=%2F&z", "/things/%E2%82%AC?q=a+b&q=a%20c", "/things/a~b_c.d-e"} {
		w := send(t, s, "rest", "GET", "http://h.example:99"+path, "", "X-Spaces", "  a   b  ", "X-Twice", "1")
		if w.Code != http.StatusOK {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestErrorsInEveryProtocol(t *testing.T) {
	t.Parallel()
	boom := func(err error) *Server {
		return newServer(t, func(context.Context, *Request) (any, error) { return nil, err })
	}
	denied := newServer(t, func(_ context.Context, r *Request) (any, error) { return nil, r.Authorize("y:Do", "arn:thing", nil) })
	mine := boom(&Error{Code: "NoSuchThing", Message: "not <here>", Status: 404, Fields: map[string]any{"extra": 1}})
	broken := boom(errors.New("secret detail"))
	for _, c := range []struct {
		name    string
		s       *Server
		service string
		status  int
		code    string
	}{
		{"own", mine, "json", 404, "NoSuchThing"}, {"own", mine, "query", 404, "NoSuchThing"}, {"own", mine, "ec2", 404, "NoSuchThing"}, {"own", mine, "rest", 404, "NoSuchThing"},
		{"denied", denied, "json", 400, "AccessDeniedException"}, {"denied", denied, "query", 403, "AccessDenied"},
		{"denied", denied, "ec2", 403, "UnauthorizedOperation"}, {"denied", denied, "rest", 403, "AccessDeniedException"},
		{"broken", broken, "json", 500, "InternalFailure"}, {"broken", broken, "query", 500, "InternalFailure"},
	} {
		var w *httptest.ResponseRecorder
		switch c.service {
		case "json":
			w = send(t, c.s, "json", "POST", "/", "{}", "X-Amz-Target", "T.Op")
		case "rest":
			w = send(t, c.s, "rest", "GET", "/things/a", "")
		default:
			version := map[string]string{"query": "v1", "ec2": "v2"}[c.service]
			w = send(t, c.s, c.service, "POST", "/", "Action=Op&Version="+version, "Content-Type", "application/x-www-form-urlencoded")
		}
		if w.Code != c.status || !strings.Contains(w.Body.String()+w.Header().Get("X-Amzn-Errortype"), c.code) || w.Header().Get("X-Amzn-Requestid") == "" {
			t.Errorf("%s in %s: %d %s, want %d %s", c.name, c.service, w.Code, w.Body, c.status, c.code)
		}
		if strings.Contains(w.Body.String(), "secret detail") {
			t.Errorf("%s in %s: the cause reached the client", c.name, c.service)
		}
	}
	var doc map[string]any
	if err := json.Unmarshal(send(t, mine, "json", "POST", "/", "{}", "X-Amz-Target", "T.Op").Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"__type": "NoSuchThing", "message": "not <here>", "extra": 1.0}, doc); diff != "" {
		t.Errorf("JSON error (-want +got):\n%s", diff)
	}
}

func TestAnswersInXML(t *testing.T) {
	t.Parallel()
	type out struct {
		Name  string   `xml:"name"`
		Items []string `xml:"set>item"`
	}
	s := newServer(t, func(context.Context, *Request) (any, error) { return out{"a&b", []string{"1", "2"}}, nil })
	empty := newServer(t, func(context.Context, *Request) (any, error) { return nil, nil })
	const form = "application/x-www-form-urlencoded"
	for _, c := range []struct {
		s             *Server
		service, body string
		want          string
	}{
		{s, "query", "Action=Op&Version=v1", `<OpResponse xmlns="urn:q"><OpResult><name>a&amp;b</name><set><item>1</item><item>2</item></set></OpResult><ResponseMetadata><RequestId>ID</RequestId></ResponseMetadata></OpResponse>`},
		{s, "ec2", "Action=Op&Version=v2", `<OpResponse xmlns="urn:e"><requestId>ID</requestId><name>a&amp;b</name><set><item>1</item><item>2</item></set></OpResponse>`},
		{empty, "query", "Action=Op&Version=v1", `<OpResponse xmlns="urn:q"><ResponseMetadata><RequestId>ID</RequestId></ResponseMetadata></OpResponse>`},
	} {
		w := send(t, c.s, c.service, "POST", "/", c.body, "Content-Type", form)
		got := strings.ReplaceAll(w.Body.String(), w.Header().Get("X-Amzn-Requestid"), "ID")
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.service, diff)
		}
	}
}

func TestTooLargeBody(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(context.Context, *Request) (any, error) { return nil, nil })
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/", bytes.NewReader(make([]byte, maxBody+1)))
	r.Header.Set("X-Amz-Target", "T.Op")
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, r); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("status = %d, want 413", w.Code)
	}
}

func TestForm(t *testing.T) {
	t.Parallel()
	f := Form{"A.1": {"x"}, "A.10": {"z"}, "A.2": {"y"}, "A.0": {"no"}, "A.x": {"no"}, "A.99999": {"no"}, "T.member.1.Key": {"k"}, "T.member.1.Value": {"v"}}
	if diff := cmp.Diff([]string{"x", "y", "z"}, f.Strings("A")); diff != "" {
		t.Errorf("Strings() (-want +got):\n%s", diff)
	}
	items := f.Items("T.member")
	if len(items) != 1 || items[0].Get("Key") != "k" || items[0].Get("Value") != "v" {
		t.Errorf("Items() = %v", items)
	}
}

func TestWildcard(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"", "", true}, {"", "a", false}, {"a*c", "abbc", true}, {"a*c", "abb", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"*a*b*", "xxaxxbxx", true}, {"**", "x", true}, {"a*", "a", true}, {strings.Repeat("*a", 50) + "b", strings.Repeat("a", 5000), false},
	} {
		if got := Wildcard(c.pattern, c.s); got != c.want {
			t.Errorf("Wildcard(%.20q, %.20q) = %v, want %v", c.pattern, c.s, got, c.want)
		}
	}
}

func FuzzParseSignature(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AK/20260101/r/s/aws4_request, SignedHeaders=host;x-amz-date, Signature=00", "20260101T000000Z")
	f.Fuzz(func(t *testing.T, auth, date string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", nil)
		r.Header["Authorization"], r.Header["X-Amz-Date"] = []string{auth}, []string{date}
		if sig, err := parseSignature(r); err == nil {
			canonicalRequest(r, nil, sig)
		}
	})
}
