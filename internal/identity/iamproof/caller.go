package iamproof

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"regexp"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

// MaxCallerIdentity limits the size of an answer of AWS.
const MaxCallerIdentity = 64 << 10

// The kinds of errors of ParseCallerIdentity.
var (
	ErrAnswer     = errors.New("not an answer of sts:GetCallerIdentity")
	ErrNotAssumed = errors.New("the caller is not an assumed role")
)

// CallerIdentity is who AWS says signed a proof.
type CallerIdentity struct {
	Partition string // aws, aws-cn, aws-us-gov
	Account   string // 12 digits
	// RoleName is the last element of the role's path: the ARN of an assumed role does not hold the path.
	RoleName string
	// SessionName is the task's id for the role of an ECS task.
	SessionName string
	// UserID is "ROLE-UNIQUE-ID:SESSION-NAME".
	UserID string
}

// RoleID returns the unique id of the role, which a role of the same name that is made later does not have.
func (c CallerIdentity) RoleID() string {
	id, _, _ := strings.Cut(c.UserID, ":")
	return id
}

var (
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
	rolePattern    = regexp.MustCompile(`^[\w+=,.@-]{1,64}$`)
	sessionPattern = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)
	userIDPattern  = regexp.MustCompile(`^[A-Z0-9]{16,128}:[\w+=,.@-]{2,64}$`)
)

// ParseCallerIdentity reads the body of an answer with status 200. It accepts exactly what AWS sends: JSON, each key
// once and spelt exactly so, an assumed role, and three fields that agree with each other. Where this is too strict
// for a new kind of answer, refusing is the safe side.
func ParseCallerIdentity(body []byte, contentType string) (CallerIdentity, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" && media != "application/x-amz-json-1.0" && media != "application/x-amz-json-1.1" {
		return CallerIdentity{}, fmt.Errorf("content type %.64q: %w", contentType, ErrAnswer)
	}
	if len(body) > MaxCallerIdentity {
		return CallerIdentity{}, fmt.Errorf("%d bytes: %w", len(body), ErrAnswer)
	}
	top, err := object(body)
	if err != nil {
		return CallerIdentity{}, err
	}
	response, err := object(top["GetCallerIdentityResponse"])
	if err != nil {
		return CallerIdentity{}, err
	}
	result, err := object(response["GetCallerIdentityResult"])
	if err != nil {
		return CallerIdentity{}, err
	}
	var account, arn, userID string
	for key, to := range map[string]*string{"Account": &account, "Arn": &arn, "UserId": &userID} {
		if err := json.Unmarshal(result[key], to); err != nil {
			return CallerIdentity{}, fmt.Errorf("field %s: %w", key, ErrAnswer)
		}
	}
	return parseAssumedRole(account, arn, userID)
}

func parseAssumedRole(account, arn, userID string) (CallerIdentity, error) {
	parts := strings.Split(arn, ":")
	if len(parts) != 6 || parts[0] != "arn" || parts[3] != "" {
		return CallerIdentity{}, fmt.Errorf("ARN %.256q: %w", arn, ErrAnswer)
	}
	switch parts[1] {
	case "aws", "aws-cn", "aws-us-gov":
	default:
		return CallerIdentity{}, fmt.Errorf("partition of ARN %.256q: %w", arn, ErrAnswer)
	}
	resource := strings.Split(parts[5], "/")
	if parts[2] != "sts" || resource[0] != "assumed-role" {
		return CallerIdentity{}, fmt.Errorf("%.256q: %w", arn, ErrNotAssumed)
	}
	if len(resource) != 3 || !rolePattern.MatchString(resource[1]) || !sessionPattern.MatchString(resource[2]) {
		return CallerIdentity{}, fmt.Errorf("ARN %.256q: %w", arn, ErrAnswer)
	}
	if !accountPattern.MatchString(account) || account != parts[4] {
		return CallerIdentity{}, fmt.Errorf("account %.64q of ARN %.256q: %w", account, arn, ErrAnswer)
	}
	if !userIDPattern.MatchString(userID) || !strings.HasSuffix(userID, ":"+resource[2]) {
		return CallerIdentity{}, fmt.Errorf("user id %.128q of ARN %.256q: %w", userID, arn, ErrAnswer)
	}
	return CallerIdentity{
		Partition:   parts[1],
		Account:     account,
		RoleName:    resource[1],
		SessionName: resource[2],
		UserID:      userID,
	}, nil
}

// object reads a JSON object exactly.
func object(text []byte) (map[string]json.RawMessage, error) {
	fields, err := strictjson.Object(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	return fields, nil
}
