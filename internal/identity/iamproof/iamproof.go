// Package iamproof proves an IAM role to the broker of the mesh, and lets the broker check the proof.
//
// The proof is a signed sts:GetCallerIdentity request of which only the fields travel: the region, the access key id,
// the session token, the date, the signature and a public key. The broker builds the request itself, from these fields and
// its own constants, and sends it to AWS. So nothing that a caller writes can choose the host, the path, the action,
// the headers or their order, which is what went wrong in earlier designs of this kind; a request that differs in
// anything from the one that the task signed does not carry its signature.
//
//	POST https://sts.REGION.amazonaws.com/
//	accept: application/json
//	content-type: application/x-www-form-urlencoded; charset=utf-8
//	x-amz-date, x-amz-security-token
//	x-isthmus-audience: the mesh that the proof is meant for; another mesh's broker cannot use it
//	x-isthmus-bind: base64(SHA-256("isthmus-broker-v1\n" audience "\n" key))
//	body: Action=GetCallerIdentity&Version=2011-06-15
//
// AWS answers with the account, the role and the session name, which for an ECS task is the task's id. What that task
// may be is the broker's to decide. Its answer is sealed to the key, which is made for one proof: who copies a proof,
// and shows it to this replica of the broker or to another, gets an answer that cannot be opened.
package iamproof

import (
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

// TokenPath is where the broker answers.
const TokenPath = "/v1/token"

// MaxClockSkew is how far the date of a proof may be from the broker's clock, in either direction. AWS itself allows
// 15 minutes.
const MaxClockSkew = 5 * time.Minute

// ReplayWindow is how long AWS accepts a signature, and so how long a broker must remember the ones that it has seen.
const ReplayWindow = 15*time.Minute + MaxClockSkew

// Limits of the fields of a proof.
const (
	maxAudience     = 255
	maxSessionToken = 16 << 10
)

// The kinds of errors of Proof.Validate.
var (
	ErrMalformed    = errors.New("malformed proof")
	ErrRegion       = errors.New("not an AWS region")
	ErrNotTemporary = errors.New("not a temporary access key")
	ErrDate         = errors.New("date out of range")
)

// Proof is what travels of the signed request; it is also the body of the broker's token request.
type Proof struct {
	Region       string `json:"region"`
	AccessKeyID  string `json:"accessKeyId"`
	SessionToken string `json:"sessionToken"`
	AMZDate      string `json:"amzDate"`
	Signature    string `json:"signature"`
	// Key is the X25519 public key to which the answer is sealed, in base64. It is made for this proof.
	Key string `json:"key"`

	private *ecdh.PrivateKey // of Key; nil in a proof that came over the wire
}

// ParseProof reads a proof from the wire. Its fields must be there, each once, and nothing else; the error wraps
// ErrMalformed and repeats nothing that may be secret. Validate checks what the fields hold.
func ParseProof(text []byte) (Proof, error) {
	var p Proof
	err := strictjson.Strings(text, map[string]*string{
		"region": &p.Region, "accessKeyId": &p.AccessKeyID, "sessionToken": &p.SessionToken,
		"amzDate": &p.AMZDate, "signature": &p.Signature, "key": &p.Key,
	})
	if err != nil {
		return Proof{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return p, nil
}

// LogValue keeps the secrets of a proof out of logs.
func (p Proof) LogValue() slog.Value {
	return slog.GroupValue(slog.String("region", p.Region), slog.String("accessKeyId", p.AccessKeyID), slog.String("amzDate", p.AMZDate))
}

// TokenResponse is the broker's answer: a token for istiod, and who the task is.
type TokenResponse struct {
	Token          string    `json:"token"`
	Expiration     time.Time `json:"expiration"`
	Namespace      string    `json:"namespace"`
	ServiceAccount string    `json:"serviceAccount"`
	WorkloadName   string    `json:"workloadName"`
	TaskARN        string    `json:"taskArn"`
	TrustDomain    string    `json:"trustDomain"`
	ClusterID      string    `json:"clusterId"`
	Network        string    `json:"network"`
}

// LogValue keeps the token out of logs.
func (t TokenResponse) LogValue() slog.Value {
	return slog.GroupValue(slog.String("namespace", t.Namespace), slog.String("serviceAccount", t.ServiceAccount),
		slog.String("workloadName", t.WorkloadName), slog.String("taskArn", t.TaskARN), slog.Time("expiration", t.Expiration))
}

// TokenError is the broker's refusal.
type TokenError struct {
	// Code is a code of package diag, such as IST2202.
	Code string `json:"code"`
	// Message says what is wrong, for a person.
	Message string `json:"message"`
	// Status is the HTTP status; it is not part of the body.
	Status int `json:"-"`
}

// Error implements error.
func (e *TokenError) Error() string {
	if e.Code == "" {
		return fmt.Sprintf("the broker answered with status %d: %s", e.Status, e.Message)
	}
	return fmt.Sprintf("the broker refused: %s [%s]", e.Message, e.Code)
}

var (
	regionPattern = regexp.MustCompile(`^[a-z]{2}(-gov)?-[a-z]{3,12}-[1-9][0-9]?$`)
	keyPattern    = regexp.MustCompile(`^ASIA[A-Z2-7]{12,28}$`)
	sigPattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	datePattern   = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z$`)
	// tokenPattern is base64 in either alphabet: what AWS sends is opaque, but always fit for a header.
	tokenPattern = regexp.MustCompile(`^[A-Za-z0-9+/=_.-]+$`)
)

// Partition returns the AWS partition of a region: aws, aws-cn or aws-us-gov. It is "" for what is no region's name,
// and for the isolated partitions, whose hosts are not public.
func Partition(region string) string {
	if !regionPattern.MatchString(region) {
		return ""
	}
	switch {
	case strings.HasPrefix(region, "us-gov-"):
		return "aws-us-gov"
	case strings.Contains(region, "-gov-"), strings.Contains(region, "-iso"):
		return ""
	case strings.HasPrefix(region, "cn-"):
		return "aws-cn"
	}
	return "aws"
}

// STSHost returns the name of a region's STS endpoint.
func STSHost(region string) (string, error) {
	switch Partition(region) {
	case "":
		return "", fmt.Errorf("%q: %w", region, ErrRegion)
	case "aws-cn":
		return "sts." + region + ".amazonaws.com.cn", nil
	}
	return "sts." + region + ".amazonaws.com", nil
}

// Validate checks all that can be known of a proof before AWS is asked. The error wraps one of the kinds above.
func (p Proof) Validate(now time.Time) error {
	if Partition(p.Region) == "" {
		return fmt.Errorf("region %.64q: %w", p.Region, ErrRegion)
	}
	if !keyPattern.MatchString(p.AccessKeyID) {
		// The key id is not secret, but a mistyped one may be something else: it is not repeated.
		return fmt.Errorf("access key id of %d characters: %w", len(p.AccessKeyID), ErrNotTemporary)
	}
	switch {
	case p.SessionToken == "" || len(p.SessionToken) > maxSessionToken || !tokenPattern.MatchString(p.SessionToken):
		return fmt.Errorf("session token: %w", ErrMalformed)
	case !sigPattern.MatchString(p.Signature):
		return fmt.Errorf("signature: %w", ErrMalformed)
	case !datePattern.MatchString(p.AMZDate):
		return fmt.Errorf("date: %w", ErrMalformed)
	}
	if _, err := parseKey(p.Key); err != nil {
		return err
	}
	date, err := time.Parse(amzDateFormat, p.AMZDate)
	if err != nil {
		return fmt.Errorf("date: %w", ErrMalformed)
	}
	if skew := now.Sub(date); skew > MaxClockSkew || skew < -MaxClockSkew {
		return fmt.Errorf("signed at %s, the broker's clock says %s, at most %v apart is accepted: %w",
			date.Format(time.RFC3339), now.UTC().Format(time.RFC3339), MaxClockSkew, ErrDate)
	}
	return nil
}

// ReplayKey identifies the proof for a replay cache, without keeping the signature itself around.
func (p Proof) ReplayKey() [sha256.Size]byte { return sha256.Sum256([]byte(p.Signature)) }

// bind ties the signature to the audience and the key.
func bind(audience, key string) string {
	sum := sha256.Sum256([]byte("isthmus-broker-v1\n" + audience + "\n" + key))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func checkAudience(audience string) error {
	if audience == "" || len(audience) > maxAudience {
		return fmt.Errorf("audience must have 1 to %d characters", maxAudience)
	}
	for _, c := range []byte(audience) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("audience %q: only printable ASCII without spaces can be signed", audience)
		}
	}
	return nil
}
