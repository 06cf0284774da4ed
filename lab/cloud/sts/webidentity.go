package sts

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// Limits of sts:GetWebIdentityToken.
const (
	minTokenSeconds     = 60
	maxTokenSeconds     = 3600
	defaultTokenSeconds = 300
	maxAudiences        = 10
	maxAudience         = 1000
	maxRequestTags      = 50
)

// Ids of an issuer's two keys, as AWS names them.
const (
	rsaKeyID = "RSA_0"
	ecKeyID  = "EC384_0"
)

// signingKeys are those of one issuer.
type signingKeys struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
}

// issuers holds the keys of each account's issuer, which are made when they are first needed.
type issuers struct {
	mu   sync.Mutex
	keys map[string]*signingKeys // guarded by mu; by account
}

func (i *issuers) of(account string) (*signingKeys, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if k := i.keys[account]; k != nil {
		return k, nil
	}
	k := &signingKeys{}
	var err error
	if k.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	if k.ec, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		return nil, err
	}
	if i.keys == nil {
		i.keys = map[string]*signingKeys{}
	}
	i.keys[account] = k
	return k, nil
}

// sign makes a JWT in the compact form.
func (k *signingKeys) sign(algorithm string, claims any) (string, error) {
	id := ecKeyID
	if algorithm == "RS256" {
		id = rsaKeyID
	}
	header, err := json.Marshal(map[string]string{"kid": id, "typ": "JWT", "alg": algorithm})
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	text := b64(header) + "." + b64(payload)
	var signature []byte
	if algorithm == "RS256" {
		sum := sha256.Sum256([]byte(text))
		signature, err = rsa.SignPKCS1v15(nil, k.rsa, crypto.SHA256, sum[:])
	} else {
		sum := sha512.Sum384([]byte(text))
		signature = make([]byte, 96)
		r, s, signErr := ecdsa.Sign(rand.Reader, k.ec, sum[:])
		if err = signErr; err == nil {
			r.FillBytes(signature[:48])
			s.FillBytes(signature[48:])
		}
	}
	if err != nil {
		return "", err
	}
	return text + "." + b64(signature), nil
}

func b64(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

type webIdentityToken struct {
	WebIdentityToken string `xml:"WebIdentityToken" json:"WebIdentityToken"`
	Expiration       string `xml:"Expiration" json:"Expiration"`
}

// tokenInput is what a caller of sts:GetWebIdentityToken asks for.
type tokenInput struct {
	audiences []string
	algorithm string
	seconds   int
	tags      map[string]string
}

func readTokenInput(r *awsserver.Request) (tokenInput, error) {
	invalid := func(name, want string) (tokenInput, error) {
		return tokenInput{}, awsserver.Errorf("ValidationError", "1 validation error detected: Value at '%s' failed to satisfy constraint: %s", name, want)
	}
	in := tokenInput{audiences: r.Form.Strings("Audience.member"), algorithm: r.Form.Get("SigningAlgorithm"), seconds: defaultTokenSeconds, tags: map[string]string{}}
	if n := len(in.audiences); n < 1 || n > maxAudiences {
		return invalid("audience", "Member must have length between 1 and 10")
	}
	for _, a := range in.audiences {
		if a == "" || len(a) > maxAudience {
			return invalid("audience", "Member must have length between 1 and 1000")
		}
	}
	if in.algorithm != "RS256" && in.algorithm != "ES384" {
		return invalid("signingAlgorithm", "Member must satisfy enum value set: [RS256, ES384]")
	}
	if text := r.Form.Get("DurationSeconds"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < minTokenSeconds || n > maxTokenSeconds {
			return invalid("durationSeconds", "Member must have value between 60 and 3600")
		}
		in.seconds = n
	}
	for _, t := range r.Form.Items("Tags.member") {
		in.tags[t.Get("Key")] = t.Get("Value")
	}
	if len(in.tags) > maxRequestTags {
		return invalid("tags", "Member must have length less than or equal to 50")
	}
	return in, nil
}

// authorize asks the caller's policies, with the condition keys that AWS documents for the action.
func (in tokenInput) authorize(r *awsserver.Request) error {
	conditions := map[string][]string{
		"sts:identitytokenaudience": in.audiences, "sts:durationseconds": {strconv.Itoa(in.seconds)}, "sts:signingalgorithm": {in.algorithm},
	}
	for k, v := range in.tags {
		conditions["aws:requesttag/"+strings.ToLower(k)] = []string{v}
		conditions["aws:tagkeys"] = append(conditions["aws:tagkeys"], k)
	}
	if len(in.tags) > 0 {
		if err := r.Authorize("sts:TagGetWebIdentityToken", "*", conditions); err != nil {
			return err
		}
	}
	return r.Authorize("sts:GetWebIdentityToken", "*", conditions)
}

// getWebIdentityToken signs who the caller is: a role by its own ARN, whatever its session.
func (s *service) getWebIdentityToken(_ context.Context, r *awsserver.Request) (any, error) {
	in, err := readTokenInput(r)
	if err != nil {
		return nil, err
	}
	if err := in.authorize(r); err != nil {
		return nil, err
	}
	issuer, ok := s.iam.Issuer(r.Caller.AccountID)
	if !ok {
		return nil, &awsserver.Error{Code: "OutboundWebIdentityFederationDisabledException", Status: http.StatusForbidden,
			Message: "Outbound web identity federation is not enabled for account " + r.Caller.AccountID + "."}
	}
	now := s.now().Truncate(time.Second)
	expires := now.Add(time.Duration(in.seconds) * time.Second)
	if end := r.Caller.Expires; !end.IsZero() && expires.After(end) {
		return nil, &awsserver.Error{Code: "SessionDurationEscalationException", Status: http.StatusForbidden,
			Message: "The requested token duration would extend the session beyond its original expiration time."}
	}
	keys, err := s.issuers.of(r.Caller.AccountID)
	if err != nil {
		return nil, fmt.Errorf("keys of %s: %w", issuer, err)
	}
	subject := principalARN(r.Caller)
	own := map[string]any{"aws_account": r.Caller.AccountID, "source_region": r.Region, "principal_id": subject}
	if !r.Caller.Expires.IsZero() {
		own["original_session_exp"] = r.Caller.Expires.UTC().Format(time.RFC3339)
	}
	if len(r.Caller.Tags) > 0 {
		own["principal_tags"] = r.Caller.Tags
	}
	if len(in.tags) > 0 {
		own["request_tags"] = in.tags
	}
	var audience any = in.audiences
	if len(in.audiences) == 1 {
		audience = in.audiences[0]
	}
	token, err := keys.sign(in.algorithm, map[string]any{
		"iss": issuer, "sub": subject, "aud": audience, "iat": now.Unix(), "exp": expires.Unix(), "jti": awsserver.UUID(),
		"https://sts.amazonaws.com/": own,
	})
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return webIdentityToken{WebIdentityToken: token, Expiration: expires.UTC().Format(time.RFC3339)}, nil
}

// IsIssuer reports whether a request is for the issuer of an account, by the host that it is for.
func IsIssuer(r *http.Request) bool { return strings.HasSuffix(r.Host, iam.IssuerDomain) }

// ServeIssuer answers for the issuers of all accounts: the discovery document and the key set. They are public.
func (s *STS) ServeIssuer(w http.ResponseWriter, r *http.Request) {
	issuer := "https://" + r.Host
	account, ok := s.s.iam.AccountOfIssuer(issuer)
	if !ok || r.Method != http.MethodGet {
		http.NotFound(w, r)
		return
	}
	var doc any
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		doc = map[string]any{
			"issuer": issuer, "jwks_uri": issuer + "/.well-known/jwks.json", "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{"RS256", "ES384"},
			"claims_supported":                      []string{"sub", "iss", "aud", "exp", "iat", "jti", "https://sts.amazonaws.com/"},
		}
	case "/.well-known/jwks.json":
		keys, err := s.s.issuers.of(account)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		doc = keys.set()
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

// set is the public part of the keys as a JWK set. AWS names the algorithm of the EC key only.
func (k *signingKeys) set() any {
	point, err := k.ec.PublicKey.Bytes()
	if err != nil {
		return map[string]any{"keys": []any{}} // a key that was generated has a point
	}
	return map[string]any{"keys": []any{
		map[string]string{"kty": "RSA", "kid": rsaKeyID, "use": "sig", "e": "AQAB", "n": b64(k.rsa.N.Bytes())},
		map[string]string{"kty": "EC", "kid": ecKeyID, "use": "sig", "alg": "ES384", "crv": "P-384", "x": b64(point[1:49]), "y": b64(point[49:])},
	}}
}
