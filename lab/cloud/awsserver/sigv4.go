package awsserver

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	algorithm   = "AWS4-HMAC-SHA256"
	amzDateForm = "20060102T150405Z"
	maxSkew     = 15 * time.Minute
	// maxPresign is the longest life of a presigned URL, AWS's own bound.
	maxPresign = 7 * 24 * time.Hour
)

// signature is what a request claims about its own signing.
type signature struct {
	keyID, date, region, service string
	signedHeaders                []string
	value                        string
	at                           time.Time
	amzDate                      string
	token                        string
	presigned                    bool
	life                         time.Duration // of a presigned URL
}

// parseSignature reads the signature from the Authorization header or, for a presigned URL, from the query.
func parseSignature(r *http.Request) (signature, error) {
	if q := r.URL.Query(); q.Get("X-Amz-Signature") != "" && r.Header.Get("Authorization") == "" {
		return parsePresigned(q)
	}
	auth := r.Header.Get("Authorization")
	if auth == "" {
		return signature{}, &Error{Code: codeMissingToken, Status: http.StatusForbidden, Message: "Missing Authentication Token"}
	}
	rest, ok := strings.CutPrefix(auth, algorithm+" ")
	if !ok {
		return signature{}, Errorf(codeIncomplete, "Unsupported AWS 'algorithm': only %s is accepted.", algorithm)
	}
	sig := signature{token: r.Header.Get("X-Amz-Security-Token")}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			sig.setScope(value)
		case "SignedHeaders":
			sig.signedHeaders = strings.Split(value, ";")
		case "Signature":
			sig.value = value
		}
	}
	sig.amzDate = r.Header.Get("X-Amz-Date")
	return sig, sig.check()
}

func parsePresigned(q url.Values) (signature, error) {
	sig := signature{presigned: true, value: q.Get("X-Amz-Signature"), amzDate: q.Get("X-Amz-Date"), token: q.Get("X-Amz-Security-Token")}
	if q.Get("X-Amz-Algorithm") != algorithm {
		return sig, Errorf(codeIncomplete, "Unsupported AWS 'algorithm': only %s is accepted.", algorithm)
	}
	sig.setScope(q.Get("X-Amz-Credential"))
	sig.signedHeaders = strings.Split(q.Get("X-Amz-SignedHeaders"), ";")
	sig.life = maxSkew
	if e := q.Get("X-Amz-Expires"); e != "" {
		d, err := time.ParseDuration(e + "s")
		if err != nil || d < 0 || d > maxPresign {
			return sig, Errorf(codeIncomplete, "X-Amz-Expires must be between 0 and 604800 seconds.")
		}
		sig.life = d
	}
	return sig, sig.check()
}

// setScope splits KEY/DATE/REGION/SERVICE/aws4_request; a wrong shape leaves the fields empty for check to find.
func (s *signature) setScope(v string) {
	p := strings.Split(v, "/")
	if len(p) == 5 && p[4] == "aws4_request" {
		s.keyID, s.date, s.region, s.service = p[0], p[1], p[2], p[3]
	}
}

func (s *signature) check() error {
	if s.keyID == "" || s.value == "" || len(s.signedHeaders) == 0 || s.amzDate == "" {
		return Errorf(codeIncomplete, "Authorization header requires 'Credential', 'Signature', 'SignedHeaders' and an 'X-Amz-Date' header.")
	}
	at, err := time.Parse(amzDateForm, s.amzDate)
	if err != nil || !strings.HasPrefix(s.amzDate, s.date) {
		return Errorf(codeIncomplete, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: %q vs %q.", s.date, s.amzDate)
	}
	if !slices.Contains(s.signedHeaders, "host") {
		return Errorf(codeInvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	if !s.presigned && !slices.Contains(s.signedHeaders, "x-amz-date") {
		return Errorf(codeInvalidSignature, "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization.")
	}
	s.at = at
	return nil
}

// verify decides whose request this is. The order of the checks is the one clients can observe at AWS: key, token,
// expiry, then the signature itself, then its age, so that a forged request learns nothing about the clock.
func (s *Server) verify(r *http.Request, body []byte, sig signature, now time.Time) (Identity, error) {
	id, ok := s.cfg.Authority.Lookup(sig.keyID)
	if !ok || subtle.ConstantTimeCompare([]byte(id.Token), []byte(sig.token)) != 1 {
		return Identity{}, &Error{Code: codeUnrecognized, Status: http.StatusBadRequest, Message: "The security token included in the request is invalid."}
	}
	now = now.UTC()
	if !id.Expires.IsZero() && !now.Before(id.Expires) {
		return Identity{}, Errorf(codeExpiredToken, "The security token included in the request is expired")
	}
	want := sig.compute(id.Secret, canonicalRequest(r, body, sig))
	if subtle.ConstantTimeCompare([]byte(want), []byte(sig.value)) != 1 {
		return Identity{}, Errorf(codeInvalidSignature, "The request signature we calculated does not match the signature you provided. "+
			"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	life := maxSkew
	if sig.presigned {
		life = sig.life
	}
	if now.After(sig.at.Add(life)) {
		limit := now.Add(-life)
		return Identity{}, Errorf(codeInvalidSignature, "Signature expired: %s is now earlier than %s (%s - %d min.)",
			sig.amzDate, limit.Format(amzDateForm), now.Format(amzDateForm), int(life.Minutes()))
	}
	if sig.at.After(now.Add(maxSkew)) {
		return Identity{}, Errorf(codeInvalidSignature, "Signature not yet current: %s is still later than %s (%s + 15 min.)",
			sig.amzDate, now.Add(maxSkew).Format(amzDateForm), now.Format(amzDateForm))
	}
	return id, nil
}

// compute signs a canonical request.
func (s *signature) compute(secret, canonical string) string {
	scope := strings.Join([]string{s.date, s.region, s.service, "aws4_request"}, "/")
	toSign := strings.Join([]string{algorithm, s.amzDate, scope, hexSHA256([]byte(canonical))}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, "aws4_request"} {
		key = sign(key, part)
	}
	return hex.EncodeToString(sign(key, toSign))
}

func sign(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

func hexSHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// canonicalRequest writes the request in the one form both sides hash.
func canonicalRequest(r *http.Request, body []byte, sig signature) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n")
	b.WriteString(canonicalPath(r.URL) + "\n")
	b.WriteString(canonicalQuery(r.URL.Query()) + "\n")
	headers := slices.Sorted(slices.Values(sig.signedHeaders))
	for _, h := range headers {
		b.WriteString(h + ":" + canonicalHeader(r, h, len(body)) + "\n")
	}
	b.WriteString("\n" + strings.Join(headers, ";") + "\n")
	b.WriteString(hexSHA256(body))
	return b.String()
}

// canonicalPath is the path encoded twice, as every service except S3 does it.
func canonicalPath(u *url.URL) string {
	p := u.EscapedPath()
	if p == "" {
		return "/"
	}
	return escape(p, true)
}

func canonicalQuery(q url.Values) string {
	var pairs []string
	for k, vs := range q {
		if k == "X-Amz-Signature" {
			continue
		}
		for _, v := range vs {
			pairs = append(pairs, escape(k, false)+"="+escape(v, false))
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func canonicalHeader(r *http.Request, name string, bodyLen int) string {
	switch name {
	case "host":
		return r.Host
	case "content-length":
		return itoa(bodyLen)
	}
	vs := slices.Clone(r.Header.Values(name))
	for i, v := range vs {
		vs[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(vs, ",")
}

// escape percent-encodes all but RFC 3986's unreserved characters.
func escape(s string, keepSlash bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', strings.IndexByte("-_.~", c) >= 0, keepSlash && c == '/':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}
