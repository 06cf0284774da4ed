// Package sts is the lab's Security Token Service: who am I, sessions of roles, and web identity tokens with the issuers
// that publish their keys. The decisions are package iam's; this package speaks the protocol and signs.
package sts

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// Config is what the service needs.
type Config struct {
	IAM *iam.Service     // required
	Now func() time.Time // nil means time.Now
}

// STS is the service.
type STS struct{ s *service }

// New returns STS.
func New(cfg Config) (*STS, error) {
	if cfg.IAM == nil {
		return nil, errors.New("sts: Config.IAM is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &STS{&service{iam: cfg.IAM, now: cfg.Now}}, nil
}

// API returns STS for registration with the front.
func (s *STS) API() awsserver.Service {
	return awsserver.Service{
		Name: "sts", Protocol: awsserver.Query, Version: "2011-06-15", Namespace: "https://sts.amazonaws.com/doc/2011-06-15/",
		Operations: map[string]awsserver.Operation{
			"GetCallerIdentity":   s.s.getCallerIdentity,
			"AssumeRole":          s.s.assumeRole,
			"GetWebIdentityToken": s.s.getWebIdentityToken,
		},
	}
}

type service struct {
	iam     *iam.Service
	now     func() time.Time
	issuers issuers
}

type callerIdentity struct {
	Account string `xml:"Account" json:"Account"`
	ARN     string `xml:"Arn" json:"Arn"`
	UserID  string `xml:"UserId" json:"UserId"`
}

// getCallerIdentity needs no permission and cannot be denied, as at AWS.
func (s *service) getCallerIdentity(_ context.Context, r *awsserver.Request) (any, error) {
	return callerIdentity{Account: r.Caller.AccountID, ARN: r.Caller.ARN, UserID: r.Caller.UserID}, nil
}

type credentials struct {
	AccessKeyID     string `xml:"AccessKeyId" json:"AccessKeyId"`
	SecretAccessKey string `xml:"SecretAccessKey" json:"SecretAccessKey"`
	SessionToken    string `xml:"SessionToken" json:"SessionToken"`
	Expiration      string `xml:"Expiration" json:"Expiration"`
}

type assumedRoleUser struct {
	AssumedRoleID string `xml:"AssumedRoleId" json:"AssumedRoleId"`
	ARN           string `xml:"Arn" json:"Arn"`
}

type assumeRoleResult struct {
	Credentials      credentials     `xml:"Credentials" json:"Credentials"`
	AssumedRoleUser  assumedRoleUser `xml:"AssumedRoleUser" json:"AssumedRoleUser"`
	PackedPolicySize int             `xml:"PackedPolicySize" json:"PackedPolicySize"`
}

func (s *service) assumeRole(_ context.Context, r *awsserver.Request) (any, error) {
	in := iam.AssumeInput{
		RoleARN: r.Form.Get("RoleArn"), SessionName: r.Form.Get("RoleSessionName"),
		ExternalID: r.Form.Get("ExternalId"), Policy: r.Form.Get("Policy"),
		Tags: map[string]string{}, Transitive: r.Form.Strings("TransitiveTagKeys.member"),
	}
	for _, t := range r.Form.Items("Tags.member") {
		in.Tags[t.Get("Key")] = t.Get("Value")
	}
	if d := r.Form.Get("DurationSeconds"); d != "" {
		n, err := strconv.Atoi(d)
		if err != nil {
			return nil, awsserver.Errorf("ValidationError", "DurationSeconds %q is not a number", d)
		}
		in.Duration = time.Duration(n) * time.Second
	}
	sess, err := s.iam.Assume(r.Caller, in, map[string][]string{
		"aws:principalarn": {principalARN(r.Caller)}, "aws:principalaccount": {r.Caller.AccountID}, "aws:requestedregion": {r.Region},
	})
	if err != nil {
		return nil, err
	}
	id := sess.Identity
	return assumeRoleResult{
		Credentials: credentials{AccessKeyID: id.AccessKeyID, SecretAccessKey: id.Secret, SessionToken: id.Token,
			Expiration: id.Expires.UTC().Format(time.RFC3339)},
		AssumedRoleUser: assumedRoleUser{AssumedRoleID: id.UserID, ARN: id.ARN},
	}, nil
}

// principalARN is the value of the condition key aws:PrincipalArn: the role, not its session.
func principalARN(id awsserver.Identity) string {
	if id.RoleARN != "" {
		return id.RoleARN
	}
	return id.ARN
}
