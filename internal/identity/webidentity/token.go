package webidentity

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

// The two algorithms of sts:GetWebIdentityToken.
const (
	rs256 = "RS256"
	es384 = "ES384"
)

// token is a token that has the right form. Nothing in it is believed yet.
type token struct {
	algorithm string
	keyID     string
	signed    []byte // what the signature is of
	signature []byte
	claims    claims
}

// claims are the parts of the payload that are read.
type claims struct {
	issuer, subject, audience, id string
	issued, notBefore, expires    time.Time // notBefore may be zero
	account, principal, region    string
	foreign                       string // a claim that no ECS task's token has, or ""
}

// awsClaims is the key of the object with AWS's own claims.
const awsClaims = "https://sts.amazonaws.com/"

// foreignClaims are present in tokens of sessions that did not come from an ECS task: a Lambda function, an instance's
// own role, a job of Glue, a federated user or a person of IAM Identity Center.
var foreignClaims = []string{
	"lambda_source_function_arn", "ec2_source_instance_arn", "ec2_role_delivery", "glue_credential_issuing_service",
	"federated_provider", "identity_store_user_id", "identity_store_arn", "source_identity",
}

var (
	keyIDPattern   = regexp.MustCompile(`^[A-Za-z0-9._=-]{1,128}$`)
	tokenIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{8,128}$`)
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
	datePattern    = regexp.MustCompile(`^[1-9][0-9]{0,10}$`)
)

func malformed(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrMalformed)...)
}

// parse reads a token in the compact form of JWS, without any of the leniencies of which such parsers died: each part
// in the one encoding that it has, each key of an object once, no header that is not known, no header that says where
// to find or how to choose a key.
func parse(text string) (token, error) {
	if text == "" || len(text) > MaxToken {
		return token{}, malformed("%d characters", len(text))
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return token{}, malformed("%d parts", len(parts))
	}
	var raw [3][]byte
	for i, part := range parts {
		var err error
		if raw[i], err = decode(part); err != nil {
			return token{}, malformed("part %d", i+1)
		}
	}
	t := token{signed: []byte(parts[0] + "." + parts[1]), signature: raw[2]}
	if err := t.header(raw[0]); err != nil {
		return token{}, err
	}
	if err := t.claims.read(raw[1]); err != nil {
		return token{}, err
	}
	return t, nil
}

// decode reads base64url without padding. Go's decoder passes over line ends and, unless told, over spare bits; here
// every text but one is an error.
func decode(s string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(raw) == 0 || base64.RawURLEncoding.EncodeToString(raw) != s {
		return nil, ErrMalformed
	}
	return raw, nil
}

func (t *token) header(raw []byte) error {
	fields, err := object(raw)
	if err != nil {
		return err
	}
	for key, value := range fields {
		text, ok := str(value)
		switch {
		case !ok:
			return malformed("header %.32q", key)
		case key == "alg":
			t.algorithm = text
		case key == "kid":
			t.keyID = text
		case key == "typ" && text == "JWT":
		default: // jwk, jku, x5u, x5c, crit, b64, ... and whatever comes to be
			return malformed("header %.32q", key)
		}
	}
	if t.algorithm != rs256 && t.algorithm != es384 {
		return malformed("algorithm %.32q", t.algorithm)
	}
	if !keyIDPattern.MatchString(t.keyID) {
		return malformed("no key id")
	}
	return nil
}

// read reads the payload. Claims that are not known are passed over, as the standard wants it: AWS adds some now and
// then, and what is not read decides nothing.
func (c *claims) read(raw []byte) error {
	fields, err := object(raw)
	if err != nil {
		return err
	}
	aws, err := object(fields[awsClaims])
	if err != nil {
		return err
	}
	for _, f := range []struct {
		in       map[string]json.RawMessage
		key      string
		to       *string
		optional bool
	}{
		{fields, "iss", &c.issuer, false}, {fields, "sub", &c.subject, false}, {fields, "jti", &c.id, false},
		{aws, "aws_account", &c.account, false}, {aws, "principal_id", &c.principal, true}, {aws, "source_region", &c.region, true},
	} {
		value, present := f.in[f.key]
		if text, ok := str(value); ok {
			*f.to = text
		} else if present || !f.optional {
			return malformed("claim %s", f.key)
		}
	}
	if !tokenIDPattern.MatchString(c.id) || !accountPattern.MatchString(c.account) {
		return malformed("claim jti or aws_account")
	}
	if c.audience, err = audienceOf(fields["aud"]); err != nil {
		return err
	}
	for key, to := range map[string]*time.Time{"iat": &c.issued, "exp": &c.expires, "nbf": &c.notBefore} {
		value, present := fields[key]
		if !present && key == "nbf" {
			continue
		}
		if !datePattern.Match(value) {
			return malformed("claim %s", key)
		}
		seconds, _ := strconv.ParseInt(string(value), 10, 64) // eleven digits
		*to = time.Unix(seconds, 0)
	}
	for _, key := range foreignClaims {
		if _, present := aws[key]; present {
			c.foreign = key
		}
	}
	return nil
}

// audienceOf reads the audience: a text, or a list of exactly one.
func audienceOf(raw json.RawMessage) (string, error) {
	if text, ok := str(raw); ok {
		return text, nil
	}
	var list []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &list) != nil || len(list) != 1 {
		return "", malformed("claim aud does not hold exactly one audience")
	}
	text, ok := str(list[0])
	if !ok {
		return "", malformed("claim aud")
	}
	return text, nil
}

// str reads a JSON string that is not empty. Nothing else counts as one, null least of all.
func str(raw json.RawMessage) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, s != ""
}

// object reads one JSON object as strictly as everything else here.
func object(raw []byte) (map[string]json.RawMessage, error) {
	fields, err := strictjson.Object(raw)
	if err != nil {
		return nil, malformed("%v", err)
	}
	return fields, nil
}
