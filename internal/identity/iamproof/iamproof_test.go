package iamproof_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

const (
	keyID    = "ASIAQWERTYUIOPASDFGH"
	secret   = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	session  = "IQoJb3JpZ2luX2VjEJr//////////wEaCXVzLWVhc3QtMiJHMEUCIQ=="
	region   = "us-east-2"
	audience = "cluster.local"
)

var creds = aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret, SessionToken: session}

func proof(t *testing.T) iamproof.Proof {
	t.Helper()
	p, err := iamproof.Sign(t.Context(), creds, region, audience)
	if err != nil {
		t.Fatalf("Sign() = %v", err)
	}
	return p
}

// verifySigV4 computes the signature of a request as AWS documents it, from the request alone, and compares. It is
// written from the documentation and shares nothing with the signer.
func verifySigV4(req *http.Request, secret string) error {
	auth := req.Header.Get("Authorization")
	fields := map[string]string{}
	for _, part := range strings.Split(strings.TrimPrefix(auth, "AWS4-HMAC-SHA256 "), ", ") {
		k, v, _ := strings.Cut(part, "=")
		fields[k] = v
	}
	scope := strings.SplitN(fields["Credential"], "/", 2)[1]
	names := strings.Split(fields["SignedHeaders"], ";")
	if !slices.IsSorted(names) {
		return errors.New("signed headers are not sorted")
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return err
	}
	var headers strings.Builder
	for _, name := range names {
		value := strings.Join(req.Header.Values(name), ",")
		switch name {
		case "host":
			value = req.Host
		case "content-length":
			value = fmt.Sprint(req.ContentLength)
		}
		if value == "" {
			return fmt.Errorf("signed header %s is missing", name)
		}
		fmt.Fprintf(&headers, "%s:%s\n", name, strings.TrimSpace(value))
	}
	hash := func(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
	canonical := strings.Join([]string{req.Method, req.URL.EscapedPath(), req.URL.RawQuery, headers.String(), fields["SignedHeaders"], hash(body)}, "\n")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", req.Header.Get("X-Amz-Date"), scope, hash([]byte(canonical))}, "\n")
	mac := func(key []byte, s string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	key := []byte("AWS4" + secret)
	for _, part := range strings.Split(scope, "/") {
		key = mac(key, part)
	}
	if want := hex.EncodeToString(mac(key, text)); want != fields["Signature"] {
		return errors.New("SignatureDoesNotMatch")
	}
	return nil
}

func TestRebuiltRequestCarriesTheSignature(t *testing.T) {
	for region, host := range map[string]string{
		"us-east-2":      "sts.us-east-2.amazonaws.com",
		"ap-southeast-4": "sts.ap-southeast-4.amazonaws.com",
		"cn-north-1":     "sts.cn-north-1.amazonaws.com.cn",
		"us-gov-west-1":  "sts.us-gov-west-1.amazonaws.com",
	} {
		for _, override := range []string{"", "http://10.0.0.1:4566", "https://vpce-1.sts.example.com/ignored?path=too"} {
			p, err := iamproof.Sign(t.Context(), creds, region, audience)
			if err != nil {
				t.Fatalf("Sign(%s) = %v", region, err)
			}
			if err := p.Validate(time.Now()); err != nil {
				t.Errorf("Validate(%s) = %v", region, err)
			}
			// Only the JSON travels.
			text, _ := json.Marshal(p)
			var travelled iamproof.Proof
			if err := json.Unmarshal(text, &travelled); err != nil {
				t.Fatal(err)
			}
			req, err := travelled.Request(audience, override)
			if err != nil {
				t.Fatalf("Request(%s, %q) = %v", region, override, err)
			}
			if err := verifySigV4(req, secret); err != nil {
				t.Errorf("%s via %q: %v", region, override, err)
			}
			if req.Host != host || req.URL.Path != "/" || req.URL.RawQuery != "" || req.Method != http.MethodPost {
				t.Errorf("request %s %s with host %s, want POST / to %s", req.Method, req.URL, req.Host, host)
			}
			if override == "" && req.URL.String() != "https://"+host+"/" {
				t.Errorf("request goes to %s, want %s", req.URL, host)
			}
		}
	}
}

func TestHeadersAreFixed(t *testing.T) {
	req, err := proof(t).Request(audience, "")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, values := range req.Header {
		if len(values) != 1 {
			t.Errorf("header %s has %d values, want 1", name, len(values))
		}
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"Accept", "Authorization", "Content-Type", "X-Amz-Date", "X-Amz-Security-Token", "X-Isthmus-Audience", "X-Isthmus-Bind"}
	if !slices.Equal(names, want) {
		t.Errorf("headers %v, want %v", names, want)
	}
	const signed = "SignedHeaders=accept;content-length;content-type;host;x-amz-date;x-amz-security-token;x-isthmus-audience;x-isthmus-bind, "
	if auth := req.Header.Get("Authorization"); !strings.Contains(auth, signed) {
		t.Errorf("Authorization = %s, want %s in it", auth, signed)
	}
	body, _ := io.ReadAll(req.Body)
	if string(body) != "Action=GetCallerIdentity&Version=2011-06-15" {
		t.Errorf("body = %s", body)
	}
}

// TestChangedProofsDoNotVerify changes each thing that a thief or a liar could, and expects AWS to refuse.
func TestChangedProofsDoNotVerify(t *testing.T) {
	other, err := iamproof.Sign(t.Context(), creds, "us-west-2", "other.mesh")
	if err != nil {
		t.Fatal(err)
	}
	attacks := map[string]func(*iamproof.Proof) (audience string){
		"another audience":   func(*iamproof.Proof) string { return "other.mesh" },
		"another key":        func(p *iamproof.Proof) string { p.Key = other.Key; return audience },
		"another region":     func(p *iamproof.Proof) string { p.Region = "eu-west-1"; return audience },
		"another session":    func(p *iamproof.Proof) string { p.SessionToken += "AA"; return audience },
		"another signature":  func(p *iamproof.Proof) string { p.Signature = other.Signature; return audience },
		"a later date":       func(p *iamproof.Proof) string { p.AMZDate = "20991231T235959Z"; return audience },
		"the day only":       func(p *iamproof.Proof) string { p.AMZDate = "20000101" + p.AMZDate[8:]; return audience },
		"all but the region": func(p *iamproof.Proof) string { r := p.Region; *p = other; p.Region = r; return "other.mesh" },
	}
	for name, attack := range attacks {
		p := proof(t)
		aud := attack(&p)
		req, err := p.Request(aud, "")
		if err != nil {
			t.Errorf("%s: Request() = %v", name, err)
			continue
		}
		if err := verifySigV4(req, secret); err == nil {
			t.Errorf("%s: the signature still verifies", name)
		}
	}
}

func TestValidate(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	good := proof(t)
	good.AMZDate = "20261123T120000Z"
	if err := good.Validate(now); err != nil {
		t.Fatalf("Validate() = %v", err)
	}
	tests := []struct {
		name   string
		want   error
		change func(*iamproof.Proof)
	}{
		{"long-lived key", iamproof.ErrNotTemporary, func(p *iamproof.Proof) { p.AccessKeyID = "AKIAQWERTYUIOPASDFGH" }},
		{"key with a slash", iamproof.ErrNotTemporary, func(p *iamproof.Proof) { p.AccessKeyID = "ASIAQWERTYUI/20260101/x" }},
		{"key with a header", iamproof.ErrNotTemporary, func(p *iamproof.Proof) { p.AccessKeyID = "ASIAQWERTYUIOPASDFGH\r\nHost: evil" }},
		{"key with a comma", iamproof.ErrNotTemporary, func(p *iamproof.Proof) { p.AccessKeyID = keyID + ", SignedHeaders=host" }},
		{"no key", iamproof.ErrNotTemporary, func(p *iamproof.Proof) { p.AccessKeyID = "" }},
		{"foreign host", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "evil.example.com/?" }},
		{"region with a path", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "us-east-2.evil" }},
		{"region with a user", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "a@us-east-2" }},
		{"region with a port", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "us-east-2:80" }},
		{"region with a newline", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "us-east-2\n" }},
		{"global", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "aws-global" }},
		{"isolated partition", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "us-iso-east-1" }},
		{"no region", iamproof.ErrRegion, func(p *iamproof.Proof) { p.Region = "" }},
		{"stale", iamproof.ErrDate, func(p *iamproof.Proof) { p.AMZDate = "20261123T115459Z" }},
		{"future", iamproof.ErrDate, func(p *iamproof.Proof) { p.AMZDate = "20261123T120501Z" }},
		{"another date format", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.AMZDate = "2026-11-23T12:00:00Z" }},
		{"impossible date", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.AMZDate = "20261323T120000Z" }},
		{"date with a newline", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.AMZDate += "\n" }},
		{"no session", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.SessionToken = "" }},
		{"huge session", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.SessionToken = strings.Repeat("A", 16<<10+1) }},
		{"session with a header", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.SessionToken = "a\r\nX-Isthmus-Audience: other" }},
		{"no signature", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Signature = "" }},
		{"upper-case signature", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Signature = strings.Repeat("A", 64) }},
		{"signature and more", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Signature += ", x" }},
		{"short key", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Key = "AAAA" }},
		{"no key", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Key = "" }},
		{"key with newlines", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Key = p.Key[:20] + "\n" + p.Key[20:] }},
		{"key in another spelling", iamproof.ErrMalformed, func(p *iamproof.Proof) { p.Key = strings.Repeat("A", 42) + "B=" }},
	}
	for _, tt := range tests {
		p := good
		tt.change(&p)
		if err := p.Validate(now); !errors.Is(err, tt.want) {
			t.Errorf("%s: Validate() = %v, want %v", tt.name, err, tt.want)
		}
	}
	for _, date := range []string{"20261123T115501Z", "20261123T120459Z"} {
		p := good
		p.AMZDate = date
		if err := p.Validate(now); err != nil {
			t.Errorf("Validate() at %s = %v", date, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	tests := []struct {
		name             string
		change           func(*aws.Credentials)
		region, audience string
	}{
		{"a long-lived key", func(c *aws.Credentials) { c.AccessKeyID = "AKIAQWERTYUIOPASDFGH" }, region, audience},
		{"no session", func(c *aws.Credentials) { c.SessionToken = "" }, region, audience},
		{"no region", func(*aws.Credentials) {}, "", audience},
		{"no audience", func(*aws.Credentials) {}, region, ""},
		{"audience with a newline", func(*aws.Credentials) {}, region, "a\nb"},
		{"long audience", func(*aws.Credentials) {}, region, strings.Repeat("a", 256)},
	}
	for _, tt := range tests {
		c := creds
		tt.change(&c)
		if _, err := iamproof.Sign(t.Context(), c, tt.region, tt.audience); err == nil {
			t.Errorf("%s: Sign() = nil, want an error", tt.name)
		}
	}
}

func TestProofIsNotLogged(t *testing.T) {
	p := proof(t)
	if text := p.LogValue().String(); strings.Contains(text, p.Signature) || strings.Contains(text, p.SessionToken) {
		t.Errorf("LogValue() = %s, has a secret", text)
	}
	r := iamproof.TokenResponse{Token: "secret-token"}
	if text := r.LogValue().String(); strings.Contains(text, r.Token) {
		t.Errorf("LogValue() = %s, has the token", text)
	}
	if a, b := proof(t), proof(t); a.Key == b.Key || a.ReplayKey() == b.ReplayKey() {
		t.Error("two proofs are the same")
	}
}

// FuzzRequest checks that what Validate lets through can be nothing but a request of the fixed form to AWS.
func FuzzRequest(f *testing.F) {
	f.Add(region, keyID, session, "20261123T120000Z", strings.Repeat("a", 64), "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
	f.Add("cn-north-1", keyID, "x", "20261123T120000Z", strings.Repeat("0", 64), "")
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, region, key, session, date, signature, public string) {
		p := iamproof.Proof{Region: region, AccessKeyID: key, SessionToken: session, AMZDate: date, Signature: signature, Key: public}
		if p.Validate(now) != nil {
			return
		}
		req, err := p.Request(audience, "")
		if err != nil {
			t.Fatalf("Request() of a valid proof = %v", err)
		}
		var text strings.Builder
		if err := req.Write(&text); err != nil {
			t.Fatalf("Write() = %v", err)
		}
		if n := strings.Count(text.String(), "\r\n"); n != 12 {
			t.Errorf("request has %d lines, want 12:\n%s", n, text.String())
		}
		if !strings.HasSuffix(req.URL.Host, ".amazonaws.com") && !strings.HasSuffix(req.URL.Host, ".amazonaws.com.cn") || req.Host != req.URL.Host {
			t.Errorf("request goes to %s", req.URL.Host)
		}
	})
}
