package webidentity

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzParse feeds texts to the parser. Whatever it accepts has one text only, an algorithm of the two, a key id, and
// claims that a plain decoder reads in the same way.
func FuzzParse(f *testing.F) {
	enc := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	header := `{"alg":"ES384","kid":"EC384_0","typ":"JWT"}`
	payload := `{"iss":"https://a.tokens.sts.global.api.aws","sub":"arn:aws:iam::123456789012:role/r","aud":"isthmus-broker/m/k","jti":"12345678",` +
		`"iat":1795950000,"exp":1795950060,"https://sts.amazonaws.com/":{"aws_account":"123456789012","principal_id":"arn:aws:iam::123456789012:role/r"}}`
	for _, seed := range []string{
		enc(header) + "." + enc(payload) + ".AAAA",
		enc(strings.Replace(header, "ES384", "RS256", 1)) + "." + enc(payload) + ".AAAA",
		enc(strings.Replace(header, "ES384", "none", 1)) + "." + enc(payload) + ".AAAA",
		enc(strings.Replace(header, "{", `{"jku":"https://evil.example",`, 1)) + "." + enc(payload) + ".AAAA",
		enc(header) + "." + enc(strings.Replace(payload, `"aud":"isthmus-broker/m/k"`, `"aud":["isthmus-broker/m/k"]`, 1)) + ".AAAA",
		enc(header) + "." + enc(strings.Replace(payload, `"exp"`, `"nbf":1795950000,"exp"`, 1)) + ".AAAA",
		enc(header) + "." + enc(strings.Replace(payload, "{", `{"sub":"x",`, 1)) + ".AAAA",
		enc(header) + "." + enc(strings.Replace(payload, "1795950060", "1e10", 1)) + ".AAAA",
		enc(header) + "." + enc(strings.Replace(payload, "sub", `s\u0075b`, 1)) + ".AAAA",
		"..", "a.b.c", enc(header) + "." + enc(payload) + ".", enc("{}") + "." + enc("[]") + ".AA",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parse(text)
		if err != nil {
			return
		}
		parts := strings.Split(text, ".")
		if string(got.signed)+"."+base64.RawURLEncoding.EncodeToString(got.signature) != text || len(text) > MaxToken {
			t.Errorf("%q is accepted and is not its own text", text)
		}
		if got.algorithm != rs256 && got.algorithm != es384 || got.keyID == "" {
			t.Errorf("%q is accepted with %q and key %q", text, got.algorithm, got.keyID)
		}
		raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
		var plain map[string]any
		if err := json.Unmarshal(raw, &plain); err != nil {
			t.Fatalf("%q is accepted and is not JSON: %v", raw, err)
		}
		c := got.claims
		if plain["iss"] != c.issuer || plain["sub"] != c.subject || plain["jti"] != c.id || c.issuer == "" || c.subject == "" || c.audience == "" {
			t.Errorf("%q is read as %+v", raw, c)
		}
		if aws, _ := plain[awsClaims].(map[string]any); aws["aws_account"] != c.account || !accountPattern.MatchString(c.account) {
			t.Errorf("%q is read as of account %q", raw, c.account)
		}
		if c.issued.IsZero() || c.expires.IsZero() || c.checkTime(time.Unix(1<<40, 0)) == nil {
			t.Errorf("%q is valid for ever", raw)
		}
	})
}

// FuzzParseKeys feeds key sets to the parser. Whatever it accepts has keys of the two kinds, each strong enough.
func FuzzParseKeys(f *testing.F) {
	for _, seed := range []string{
		`{"keys":[{"e":"AQAB","kid":"RSA_0","kty":"RSA","n":"3AvB0UECoYssZEgSMTa4SYvfqstJxkhbBBSKAFRUW6f_McJ9CAXkTi6YkG0NGm77ZIRW12_gOLKZJUHWp9CMAbmk0O4sMIx8K6Ap7-6qjkt7FYvl4mkQVJd-pU-yE3SJn0S5xEbCYXulgrrGN8POysTblqN0BfrdDAYTVhWQ47rbm--3QrRcVN9XCjlMBVXYauaN6KlszKL6NTe7GWilauYBsVHw7d4ekliuEGGA6zJNGz595KD7yofRc1euFs86KgiFj0mpudCqG39jIlBJ4vZSJPw1Rsvhg8THqlxhmurVYr9TuckLJa5fpEL78xGs3Ar4GIM6w0sxLDbdY-KdCQ","use":"sig"}]}`,
		`{"keys":[{"alg":"ES384","crv":"P-384","kid":"EC384_0","kty":"EC","use":"sig","x":"ad_olFw0n3XBA114sefjlirPf2gX6bKqT-kD2lQzfQzkWW1TetKIUWah3md-UgV9","y":"w6GzW2Oen4G7Ei1bFaDkBpPSulvkSznb6YtG79NWK9UjgDqfN6am9lUs-bF8VN7v"}]}`,
		`{"keys":[]}`, `{"keys":[{}]}`, `{"keys":null}`, `{"keys":[{"kty":"EC","kid":"a","use":"sig","crv":"P-384","x":"AA","y":"AA"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := parseKeys(raw)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxKeys {
			t.Errorf("%q is a set of %d keys", raw, len(keys))
		}
		for id, k := range keys {
			switch {
			case id == "", (k.rsa == nil) == (k.ec == nil):
				t.Errorf("key %q of %q is of no one kind", id, raw)
			case k.rsa != nil && (k.rsa.N.BitLen() < minRSABits || k.rsa.E != onlyExponent):
				t.Errorf("key %q of %q is weak", id, raw)
			case k.ec != nil:
				if _, err := k.ec.ECDH(); err != nil {
					t.Errorf("key %q of %q: %v", id, raw, err)
				}
			}
		}
	})
}
