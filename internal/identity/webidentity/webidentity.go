// Package webidentity is the second way to prove an IAM role to the broker of the mesh: a web identity token that AWS STS
// signs for the role (sts:GetWebIdentityToken), which the broker checks without asking AWS about each one.
//
// The package holds both sides: what a task asks STS for (Request), and the Verifier of the broker. What a token is
// worth is decided here, in this order, and the first thing that is wrong ends it:
//
//	form        three parts in strict base64url, bounded, RS256 or ES384, a key id, no header that brings a key along
//	issuer      the account that the token names is configured, and the token's issuer is the one pinned to it
//	time        issued and not expired by the broker's clock, and never meant to live longer than MaxLife
//	audience    this mesh, and the one-time key of this request: a copied token answers nobody but its owner
//	signature   a key that the pinned issuer publishes, of the algorithm's own type
//	subject     an IAM role of the account, in its own name, used from nothing that is known not to be an ECS task
//
// A token names a role and never a task. Whether the role alone says who somebody is, is the broker's to decide. Tags of
// the request are the caller's own words and are not read.
package webidentity

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

// Limits of a token.
const (
	// MaxToken is the size of a token; AWS's own limit for web identity tokens.
	MaxToken = 20_000
	// MaxLife is the longest life that a token may have been given. Request asks for the shortest that AWS offers.
	MaxLife = 5 * time.Minute
	// MaxClockSkew is how far the clocks of AWS and of the broker may be apart.
	MaxClockSkew = time.Minute
	// ReplayWindow is how long the broker must remember a token that it has accepted.
	ReplayWindow = MaxLife + 2*MaxClockSkew
)

// The kinds of errors of Verifier.Verify.
var (
	ErrMalformed  = errors.New("not a web identity token of AWS")
	ErrNotEnabled = errors.New("web identity tokens of the account are not accepted")
	ErrTime       = errors.New("not valid now")
	ErrAudience   = errors.New("meant for somebody else")
	ErrKeys       = errors.New("the issuer's keys are not known")
	ErrSignature  = errors.New("signature not valid")
	ErrSubject    = errors.New("the subject is not a task's role of the account")
)

// Identity is what a token proves.
type Identity struct {
	Partition string // aws
	Account   string // 12 digits
	RoleName  string // the last element of the role's path
	RoleARN   string // with the path
	Region    string // whose STS was asked
	// ID is unique among the tokens of an issuer, and Issuer that of the account: together they identify the token.
	Issuer  string
	ID      string
	Expires time.Time
}

// ReplayKey identifies the token for a replay cache. The signature is not part of it: another signature of the same
// token is the same token.
func (i Identity) ReplayKey() [sha256.Size]byte {
	return sha256.Sum256([]byte("web identity\n" + i.Issuer + "\n" + i.ID))
}

// TokenPath is where the broker answers.
const TokenPath = iamproof.TokenPath + "/web-identity"

// Proof is the body of the broker's token request.
type Proof struct {
	// Token is the web identity token.
	Token string `json:"token"`
	// TaskID is the task that the caller says it is. It proves nothing: it says whose end is to be the end of the answer.
	TaskID string `json:"taskId"`
	// Key is the one-time key to which the answer is sealed; the token's audience holds its hash.
	Key string `json:"key"`
}

// ParseProof reads a proof from the wire. Its fields must be there, each once, and nothing else; the error wraps
// ErrMalformed and repeats nothing that may be secret.
func ParseProof(text []byte) (Proof, error) {
	var p Proof
	if err := strictjson.Strings(text, map[string]*string{"token": &p.Token, "taskId": &p.TaskID, "key": &p.Key}); err != nil {
		return Proof{}, malformed("%v", err)
	}
	if !inventory.IsTaskID(p.TaskID) || iamproof.CheckKey(p.Key) != nil {
		return Proof{}, malformed("task id or key")
	}
	return p, nil
}

// LogValue keeps the token out of logs.
func (p Proof) LogValue() slog.Value { return slog.GroupValue(slog.String("taskId", p.TaskID)) }

// audiencePrefix begins the audience of every token for a broker; the policies of task roles name it.
const audiencePrefix = "isthmus-broker/"

// Audience is what a token must be meant for: the mesh, and the one-time key that the answer is for.
func Audience(meshAudience, key string) string {
	sum := sha256.Sum256([]byte("isthmus-web-identity-v1\n" + meshAudience + "\n" + key))
	return audiencePrefix + meshAudience + "/" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// AudiencePattern matches the audiences of all tokens for a mesh, for the condition key sts:IdentityTokenAudience.
func AudiencePattern(meshAudience string) string { return audiencePrefix + meshAudience + "/*" }

// issuerPattern is the form of the issuers that AWS gives to accounts. It is documented for the partition aws only.
var issuerPattern = regexp.MustCompile(`^https://[0-9a-z]([0-9a-z-]{0,61}[0-9a-z])?\.tokens\.sts\.global\.api\.aws$`)

// CheckIssuer says whether a URL is the issuer of an AWS account. Nothing but AWS can answer at such a URL, so that a
// configuration can neither make the broker ask another host nor make it believe one.
func CheckIssuer(issuer string) error {
	if !issuerPattern.MatchString(issuer) {
		return fmt.Errorf("%.256q is not an issuer of AWS, https://ID.tokens.sts.global.api.aws", issuer)
	}
	return nil
}
