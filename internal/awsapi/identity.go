package awsapi

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// Caller is who AWS says we are.
type Caller struct{ Account, ARN string }

// WhoAmI asks STS for the account and ARN of a target's credentials. A target with a role assumes it first, so that
// this is also the test of whether an account is set up for us.
func (s *Session) WhoAmI(ctx context.Context, t Target) (Caller, error) {
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return Caller{}, err
	}
	out, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return Caller{}, fmt.Errorf("ask sts who we are: %w", err)
	}
	return Caller{Account: aws.ToString(out.Account), ARN: aws.ToString(out.Arn)}, nil
}
