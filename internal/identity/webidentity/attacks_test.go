package webidentity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

func TestVerifyAcceptsWhatAWSSigns(t *testing.T) {
	c := newClock()
	v := newVerifier(t, newAuthority(), c)
	want := webidentity.Identity{
		Partition: "aws", Account: account, RoleName: "shop-web", RoleARN: role, Region: "us-east-2", Issuer: issuer,
		ID: "5b1d7d2c-7a0f-4f5c-9d31-0c0f6b3a7e11", Expires: c.Now().Add(time.Minute),
	}
	for name, change := range map[string]func(*draft){
		"ES384":                func(*draft) {},
		"RS256":                func(d *draft) { d.rs256() },
		"without a type":       func(d *draft) { delete(d.header, "typ") },
		"a list of one":        func(d *draft) { d.claims["aud"] = []any{d.claims["aud"]} },
		"not before":           func(d *draft) { d.claims["nbf"] = d.claims["iat"] },
		"no principal":         func(d *draft) { delete(d.aws, "principal_id") },
		"claims of a new kind": func(d *draft) { d.claims["new"], d.aws["newer"] = map[string]any{"a": 1}, []int{2} },
		"tags of another namespace": func(d *draft) {
			d.aws["request_tags"] = map[string]string{"namespace": "bank", "ecs.solo.io/service-account": "admin", "sub": "arn:aws:iam::123456789012:role/admin", "aws_account": "210987654321"}
			d.aws["principal_tags"] = d.aws["request_tags"]
		},
		"a clock behind": func(d *draft) {
			d.claims["iat"], d.claims["exp"] = c.Now().Add(50*time.Second).Unix(), c.Now().Add(110*time.Second).Unix()
		},
		"a clock ahead": func(d *draft) {
			d.claims["iat"], d.claims["exp"] = c.Now().Add(-110*time.Second).Unix(), c.Now().Add(-50*time.Second).Unix()
		},
	} {
		d := newDraft(c.Now())
		change(d)
		got, err := v.Verify(t.Context(), d.sign(), oneTimeKey)
		if err != nil {
			t.Errorf("%s: Verify() = %v", name, err)
			continue
		}
		want.Expires = got.Expires
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: Verify (-want +got):\n%s", name, diff)
		}
	}
}

type attack struct {
	name   string
	change func(*draft)
	want   error
}

func run(t *testing.T, attacks []attack) {
	t.Helper()
	c := newClock()
	v := newVerifier(t, newAuthority(), c)
	for _, a := range attacks {
		d := newDraft(c.Now())
		a.change(d)
		if got, err := v.Verify(t.Context(), d.sign(), oneTimeKey); !errors.Is(err, a.want) || got != (webidentity.Identity{}) {
			t.Errorf("%s: Verify() = %+v, %v, want %v", a.name, got, err, a.want)
		}
	}
	if _, err := v.Verify(t.Context(), newDraft(c.Now()).sign(), oneTimeKey); err != nil {
		t.Errorf("after the attacks an honest token is refused: %v", err)
	}
}

func TestForgedSignaturesAreRefused(t *testing.T) {
	k := keys()
	strange, _ := rsa.GenerateKey(rand.Reader, 2048)
	strangeEC, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	hs256 := func(secret []byte) func(string) []byte {
		return func(text string) []byte {
			m := hmac.New(sha256.New, secret)
			m.Write([]byte(text))
			return m.Sum(nil)
		}
	}
	der, _ := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	bytes := func(n int) func(string) []byte { return func(string) []byte { return make([]byte, n) } }
	run(t, []attack{
		{"no algorithm", func(d *draft) { d.header["alg"] = "none"; d.key = bytes(1) }, webidentity.ErrMalformed},
		{"no algorithm, spelt oddly", func(d *draft) { d.header["alg"] = "nOnE"; d.key = bytes(1) }, webidentity.ErrMalformed},
		{"HS256 with the public key", func(d *draft) { d.header["alg"], d.header["kid"] = "HS256", "RSA_0"; d.key = hs256(public) }, webidentity.ErrMalformed},
		{"HMAC with the public key, called RS256", func(d *draft) { d.rs256(); d.key = hs256(public) }, webidentity.ErrSignature},
		{"PS256", func(d *draft) { d.rs256(); d.header["alg"] = "PS256" }, webidentity.ErrMalformed},
		{"ES256", func(d *draft) { d.header["alg"] = "ES256"; d.key = p256 }, webidentity.ErrMalformed},
		{"ES384 with the RSA key", func(d *draft) { d.header["kid"] = "RSA_0" }, webidentity.ErrSignature},
		{"RS256 with the EC key", func(d *draft) { d.rs256(); d.header["kid"] = "EC384_0" }, webidentity.ErrSignature},
		{"RS256 called ES384", func(d *draft) { d.header["kid"], d.key = "RSA_0", k.rsa }, webidentity.ErrSignature},
		{"another RSA key", func(d *draft) { d.rs256(); d.key = strange }, webidentity.ErrSignature},
		{"another EC key", func(d *draft) { d.key = strangeEC }, webidentity.ErrSignature},
		{"a signature of zeros", func(d *draft) { d.key = bytes(96) }, webidentity.ErrSignature},
		{"an RSA signature of zeros", func(d *draft) { d.rs256(); d.key = bytes(256) }, webidentity.ErrSignature},
		{"a short signature", func(d *draft) { d.key = bytes(64) }, webidentity.ErrSignature},
		{"the DER form of a signature", func(d *draft) {
			d.key = func(text string) []byte { return []byte{0x30, 6, 2, 1, 1, 2, 1, 1} }
		}, webidentity.ErrSignature},
		{"no key id", func(d *draft) { delete(d.header, "kid") }, webidentity.ErrMalformed},
		{"an empty key id", func(d *draft) { d.header["kid"] = "" }, webidentity.ErrMalformed},
		{"a path for a key id", func(d *draft) { d.header["kid"] = "../../etc/passwd" }, webidentity.ErrMalformed},
		{"a key that brings itself", func(d *draft) { d.header["jwk"] = ecJWK("EC384_0", &strangeEC.PublicKey); d.key = strangeEC }, webidentity.ErrMalformed},
		{"a key from elsewhere", func(d *draft) { d.header["jku"] = "https://evil.example/jwks.json" }, webidentity.ErrMalformed},
		{"a certificate from elsewhere", func(d *draft) { d.header["x5u"] = "https://evil.example/c.pem" }, webidentity.ErrMalformed},
		{"a critical extension", func(d *draft) { d.header["crit"] = []string{"exp"} }, webidentity.ErrMalformed},
		{"a payload that is not encoded", func(d *draft) { d.header["b64"] = false }, webidentity.ErrMalformed},
		{"another type of token", func(d *draft) { d.header["typ"] = "at+jwt" }, webidentity.ErrMalformed},
	})
}

func TestForeignTokensAreRefused(t *testing.T) {
	now := newClock().Now()
	claim := func(key string, value any) func(*draft) { return func(d *draft) { d.claims[key] = value } }
	aws := func(key string, value any) func(*draft) { return func(d *draft) { d.aws[key] = value } }
	times := func(issued, expires time.Duration) func(*draft) {
		return func(d *draft) {
			d.claims["iat"], d.claims["exp"] = now.Add(issued).Unix(), now.Add(expires).Unix()
		}
	}
	other := strings.Replace(issuer, "a103a2cc", "b204b3dd", 1)
	run(t, []attack{
		{"another issuer", claim("iss", other), webidentity.ErrNotEnabled},
		{"an issuer that ends alike", claim("iss", "https://evil.example/"+issuer), webidentity.ErrNotEnabled},
		{"the issuer with a slash", claim("iss", issuer+"/"), webidentity.ErrNotEnabled},
		{"an account that is not configured", aws("aws_account", "210987654321"), webidentity.ErrNotEnabled},
		{"a role of another account", func(d *draft) {
			d.claims["sub"], d.aws["principal_id"] = "arn:aws:iam::210987654321:role/shop-web", "arn:aws:iam::210987654321:role/shop-web"
		}, webidentity.ErrSubject},
		{"the audience of another mesh", claim("aud", webidentity.Audience("other.mesh", oneTimeKey)), webidentity.ErrAudience},
		{"the audience of another key", claim("aud", webidentity.Audience(mesh, "another key")), webidentity.ErrAudience},
		{"the audience without a key", claim("aud", "isthmus-broker/"+mesh), webidentity.ErrAudience},
		{"the audience among others", claim("aud", []string{webidentity.Audience(mesh, oneTimeKey), "https://api.example.com"}), webidentity.ErrMalformed},
		{"no audience", claim("aud", nil), webidentity.ErrMalformed},
		{"expired", times(-3*time.Minute, -2*time.Minute), webidentity.ErrTime},
		{"not yet issued", times(2*time.Minute, 3*time.Minute), webidentity.ErrTime},
		{"not yet valid", claim("nbf", now.Add(2*time.Minute).Unix()), webidentity.ErrTime},
		{"too long lived", times(0, time.Hour), webidentity.ErrTime},
		{"for ever", claim("exp", 99999999999), webidentity.ErrTime},
		{"ended before it began", times(0, -time.Second), webidentity.ErrTime},
		{"a time that is no number", claim("exp", "1795950000"), webidentity.ErrMalformed},
		{"a time with a fraction", claim("exp", float64(now.Unix())+0.5), webidentity.ErrMalformed},
		{"a time as a power", claim("iat", json.RawMessage("1e9")), webidentity.ErrMalformed},
		{"no end", func(d *draft) { delete(d.claims, "exp") }, webidentity.ErrMalformed},
		{"no beginning", func(d *draft) { delete(d.claims, "iat") }, webidentity.ErrMalformed},
		{"no id", func(d *draft) { delete(d.claims, "jti") }, webidentity.ErrMalformed},
		{"a null id", claim("jti", nil), webidentity.ErrMalformed},
		{"no claims of AWS", func(d *draft) { delete(d.claims, awsSpace) }, webidentity.ErrMalformed},
		{"an account that is a number", aws("aws_account", 123456789012), webidentity.ErrMalformed},
		{"a user", func(d *draft) { d.claims["sub"] = "arn:aws:iam::123456789012:user/eve"; delete(d.aws, "principal_id") }, webidentity.ErrSubject},
		{"the root user", func(d *draft) { d.claims["sub"] = "arn:aws:iam::123456789012:root"; delete(d.aws, "principal_id") }, webidentity.ErrSubject},
		{"a session", func(d *draft) {
			d.claims["sub"] = "arn:aws:sts::123456789012:assumed-role/shop-web/eve"
			delete(d.aws, "principal_id")
		}, webidentity.ErrSubject},
		{"in the name of a role", aws("principal_id", "arn:aws:iam::123456789012:role/eve"), webidentity.ErrSubject},
		{"in the name of a role, by nobody", aws("principal_id", ""), webidentity.ErrMalformed},
		{"a role of a Lambda function", aws("lambda_source_function_arn", "arn:aws:lambda:us-east-2:123456789012:function:f"), webidentity.ErrSubject},
		{"a role of an instance", aws("ec2_source_instance_arn", "arn:aws:ec2:us-east-2:123456789012:instance/i-1"), webidentity.ErrSubject},
		{"a person", aws("identity_store_user_id", "00000000-0000"), webidentity.ErrSubject},
	})
}

// TestTextsThatOnlyLookLikeTokens has attacks on the parser itself; each would be a good token to a lenient one.
func TestTextsThatOnlyLookLikeTokens(t *testing.T) {
	c := newClock()
	v := newVerifier(t, newAuthority(), c)
	good := newDraft(c.Now()).sign()
	parts := strings.Split(good, ".")
	header, _ := json.Marshal(newDraft(c.Now()).header)
	payload, _ := json.Marshal(newDraft(c.Now()).claims)
	d := newDraft(c.Now())
	resign := func(header, payload string) string { return d.signParts(b64([]byte(header)), b64([]byte(payload))) }
	same := strings.TrimSuffix(string(payload), "}")
	for name, text := range map[string]string{
		"nothing":               "",
		"one part":              parts[0],
		"two parts":             parts[0] + "." + parts[1],
		"an empty signature":    parts[0] + "." + parts[1] + ".",
		"four parts":            good + "." + parts[2],
		"five parts":            good + ".." + parts[2],
		"the JSON form":         `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`,
		"a line end within":     parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"a line end after":      good + "\n",
		"a space before":        " " + good,
		"padding":               parts[0] + "=." + parts[1] + "." + parts[2],
		"the other alphabet":    parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:],
		"oversize":              resign(string(header), same+`,"x":"`+strings.Repeat("x", webidentity.MaxToken)+`"}`),
		"a subject twice":       resign(string(header), same+`,"sub":"arn:aws:iam::123456789012:role/admin"}`),
		"an account twice":      resign(string(header), strings.Replace(string(payload), `"aws_account":"`, `"aws_account":"210987654321","aws_account":"`, 1)),
		"AWS's claims twice":    resign(string(header), same+`,"https://sts.amazonaws.com/":{}}`),
		"a key escaped":         resign(string(header), same+`,"s\u0075b":"arn:aws:iam::123456789012:role/admin"}`),
		"an algorithm twice":    resign(`{"alg":"none",`+string(header[1:]), string(payload)),
		"an algorithm by case":  resign(`{"ALG":"none",`+string(header[1:]), string(payload)),
		"two objects":           resign(string(header), string(payload)+string(payload)),
		"something after":       resign(string(header), string(payload)+"x"),
		"a bracket after":       resign(string(header), string(payload)+"}"),
		"an array":              resign(string(header), "["+string(payload)+"]"),
		"not UTF-8":             resign(string(header), same+",\"x\":\"\xff\"}"),
		"a header with a line":  resign(string(header)+"\n{}", string(payload)),
		"an object cut off":     resign(string(header), same),
		"a payload of nothing":  d.signParts(b64(header), ""),
		"null for AWS's claims": resign(string(header), strings.Replace(string(payload), awsSpace+`":{`, awsSpace+`":null,"y":{`, 1)),
	} {
		if got, err := v.Verify(t.Context(), text, oneTimeKey); !errors.Is(err, webidentity.ErrMalformed) || got != (webidentity.Identity{}) {
			t.Errorf("%s: Verify() = %+v, %v, want %v", name, got, err, webidentity.ErrMalformed)
		}
	}
	// A last character that differs only in bits that no byte has would be another text of the same token.
	last := parts[1][len(parts[1])-1]
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		text := parts[0] + "." + parts[1][:len(parts[1])-1] + string(c) + "." + parts[2]
		if _, err := v.Verify(t.Context(), text, oneTimeKey); (err == nil) != (byte(c) == last) {
			t.Errorf("last character %c instead of %c: Verify() = %v", c, last, err)
		}
	}
}

func TestAnotherSignatureIsTheSameToken(t *testing.T) {
	c := newClock()
	v := newVerifier(t, newAuthority(), c)
	text := newDraft(c.Now()).sign()
	one, err := v.Verify(t.Context(), text, oneTimeKey)
	if err != nil {
		t.Fatal(err)
	}
	two, err := v.Verify(t.Context(), negate(text), oneTimeKey)
	if err != nil {
		t.Fatalf("ECDSA has two signatures for a text, and both are good: %v", err)
	}
	if negate(text) == text || one.ReplayKey() != two.ReplayKey() {
		t.Error("the second signature of a token is not remembered as the same token")
	}
	d := newDraft(c.Now())
	d.claims["jti"] = "another-token"
	if other, err := v.Verify(t.Context(), d.sign(), oneTimeKey); err != nil || other.ReplayKey() == one.ReplayKey() {
		t.Errorf("another token: %v, or the same replay key", err)
	}
}
