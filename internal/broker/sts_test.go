package broker

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// fakeSTS verifies SigV4 for real: it knows the secret keys of the sessions it gave out, signs what it received again
// with AWS's own signer, and answers with the identity of the session.
type fakeSTS struct {
	*httptest.Server
	now func() time.Time

	mu       sync.Mutex
	sessions map[string]stsSession // guarded by mu; by access key id
	calls    int                   // guarded by mu
	override http.HandlerFunc      // guarded by mu; answers instead
}

type stsSession struct {
	secret, token string
	arn           string
}

func newFakeSTS(t *testing.T, now func() time.Time) *fakeSTS {
	s := &fakeSTS{now: now, sessions: map[string]stsSession{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// session makes credentials whose caller identity has the ARN.
func (s *fakeSTS) session(arn string) aws.Credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.sessions)
	c := aws.Credentials{
		AccessKeyID:     "ASIA" + strings.Repeat("A", 14) + string(rune('A'+n/26)) + string(rune('A'+n%26)),
		SecretAccessKey: fmt.Sprintf("secret-%d", n), SessionToken: fmt.Sprintf("token+/=%d", n),
	}
	s.sessions[c.AccessKeyID] = stsSession{secret: c.SecretAccessKey, token: c.SessionToken, arn: arn}
	return c
}

func (s *fakeSTS) answerWith(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.override = h
}

func (s *fakeSTS) callCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *fakeSTS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.calls++
	override := s.override
	s.mu.Unlock()
	if override != nil {
		override(w, r)
		return
	}
	arn, code := s.verify(r)
	w.Header().Set("Content-Type", "application/json")
	if code != "" {
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprintf(w, `{"Error":{"Code":%q,"Message":"refused","Type":"Sender"},"RequestId":"r"}`, code)
		return
	}
	_, _ = io.WriteString(w, identity(arn))
}

// identity is AWS's answer for an ARN.
func identity(arn string) string {
	parts := strings.Split(arn, ":")
	account, name := parts[4], arn[strings.LastIndexByte(arn, '/')+1:]
	return fmt.Sprintf(`{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":%q,"Arn":%q,"UserId":"AROAEXAMPLEEXAMPLE123:%s"},"ResponseMetadata":{"RequestId":"r"}}}`, account, arn, name)
}

// verify returns the caller's ARN, or AWS's error code.
func (s *fakeSTS) verify(r *http.Request) (arn, code string) {
	auth := r.Header.Get("Authorization")
	var credential, signedHeaders, signature string
	for _, part := range strings.Split(strings.TrimPrefix(auth, "AWS4-HMAC-SHA256 "), ", ") {
		k, v, _ := strings.Cut(part, "=")
		switch k {
		case "Credential":
			credential = v
		case "SignedHeaders":
			signedHeaders = v
		case "Signature":
			signature = v
		}
	}
	scope := strings.Split(credential, "/")
	if len(scope) != 5 || scope[3] != "sts" {
		return "", "IncompleteSignature"
	}
	s.mu.Lock()
	sess, ok := s.sessions[scope[0]]
	s.mu.Unlock()
	if !ok {
		return "", "InvalidClientTokenId"
	}
	if r.Header.Get("X-Amz-Security-Token") != sess.token {
		return "", "InvalidClientTokenId"
	}
	date, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return "", "IncompleteSignature"
	}
	if d := s.now().Sub(date); d > 15*time.Minute || d < -15*time.Minute {
		return "", "SignatureDoesNotMatch"
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || string(body) != "Action=GetCallerIdentity&Version=2011-06-15" {
		return "", "InvalidAction"
	}
	if r.Host != "sts."+scope[2]+".amazonaws.com" {
		return "", "SignatureDoesNotMatch"
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.RequestURI(), strings.NewReader(string(body)))
	if err != nil {
		return "", "InternalFailure"
	}
	for _, name := range strings.Split(signedHeaders, ";") {
		if name != "host" && name != "content-length" && name != "x-amz-date" && name != "x-amz-security-token" {
			again.Header[http.CanonicalHeaderKey(name)] = r.Header.Values(name)
		}
	}
	hash := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: scope[0], SecretAccessKey: sess.secret, SessionToken: sess.token}
	if err := v4.NewSigner().SignHTTP(context.Background(), creds, again, hex.EncodeToString(hash[:]), "sts", scope[2], date); err != nil {
		return "", "InternalFailure"
	}
	_, want, _ := strings.Cut(again.Header.Get("Authorization"), "Signature=")
	if subtle.ConstantTimeCompare([]byte(want), []byte(signature)) != 1 {
		return "", "SignatureDoesNotMatch"
	}
	return sess.arn, ""
}
