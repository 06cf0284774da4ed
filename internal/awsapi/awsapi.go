// Package awsapi holds the AWS calls that Isthmus makes, and everything that all of them share: credentials and role
// chaining, client-side request limits, paging, kinds of errors and a hook for metrics.
//
// It is the only package that knows the AWS SDK. Clients hold the SDK's methods one by one as function values and never
// the SDK's client itself: a client that is reachable from an interface makes the linker keep its whole API, which is
// megabytes per service. What comes back is in plain Go values of inventory or of this package.
package awsapi

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/logging"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// DefaultSessionName is the session name under which roles are assumed; CloudTrail shows it.
const DefaultSessionName = "isthmus-controller"

// Config says how to reach AWS. The zero value reads the environment, the shared files and the container or instance
// credentials as every AWS tool does, AWS_ENDPOINT_URL included.
type Config struct {
	Region  string // default region; "" means that of the environment
	Profile string // profile of the shared files; "" means that of the environment
	// Endpoint overrides the address of every service.
	Endpoint string
	// AccessKeyID, SecretAccessKey and SessionToken are fixed credentials; only tests use them.
	AccessKeyID, SecretAccessKey, SessionToken string
	// SessionName is used when assuming roles; "" means DefaultSessionName.
	SessionName string
	// RateShare is the share of AWS's own request limits that this process may use; 0 means 0.5. The limits of an
	// account are shared with its deployment pipelines.
	RateShare float64
	// MaxAttempts bounds the tries of one call; 0 means 3.
	MaxAttempts int
	// CallTimeout bounds one try of one call; 0 means 15 s.
	CallTimeout time.Duration
	// HTTPClient replaces the SDK's; nil means the SDK's own.
	HTTPClient *http.Client
	// Observe, if not nil, is called after each call. It must be quick and safe for concurrent use.
	Observe func(Call)
}

// Call describes one finished call for metrics.
type Call struct {
	Service   string // ECS, STS, ...
	Operation string // DescribeTasks, ...
	Region    string
	Account   string // as the Target told; may be empty
	Kind      Kind
	Took      time.Duration
	Waited    time.Duration // of it, waiting for the client-side limit
	Attempts  int
}

// Target is the account (by its role) and region that a client speaks to.
type Target struct {
	Region     string // "" means the session's
	RoleARN    string // "" means the session's own identity
	ExternalID string
	// Account is used to share request limits; "" means that of RoleARN.
	Account string
}

// AccountID returns the account by which request limits are shared; "" is the session's own.
func (t Target) AccountID() string {
	if t.Account != "" {
		return t.Account
	}
	arn, _ := inventory.ParseARN(t.RoleARN) // no role, no account
	return arn.Account
}

// Session holds the base credentials, the roles assumed from them and the request limits. It is safe for concurrent use.
type Session struct {
	cfg  Config
	base aws.Config

	limits *limitTable

	mu    sync.Mutex
	roles map[Target]aws.CredentialsProvider // guarded by mu; by RoleARN and ExternalID
}

// Open reads the configuration. It makes no network call.
func Open(ctx context.Context, cfg Config) (*Session, error) {
	if cfg.SessionName == "" {
		cfg.SessionName = DefaultSessionName
	}
	if cfg.RateShare <= 0 || cfg.RateShare > 1 {
		cfg.RateShare = 0.5
	}
	if cfg.MaxAttempts <= 0 {
		cfg.MaxAttempts = 3
	}
	if cfg.CallTimeout <= 0 {
		cfg.CallTimeout = 15 * time.Second
	}
	opts := []func(*config.LoadOptions) error{
		config.WithLogger(logging.Nop{}), // the SDK's remarks are not for our users; its errors reach us as errors
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = cfg.MaxAttempts
				o.MaxBackoff = 5 * time.Second
				// Our own limits keep the rate down; the SDK's retry quota would make one sick account starve others.
				o.RateLimiter = noQuota{}
			})
		}),
	}
	if cfg.Region != "" {
		opts = append(opts, config.WithRegion(cfg.Region))
	}
	if cfg.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(cfg.Profile))
	}
	if cfg.Endpoint != "" {
		opts = append(opts, config.WithBaseEndpoint(cfg.Endpoint))
	}
	if cfg.AccessKeyID != "" {
		opts = append(opts, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(cfg.AccessKeyID, cfg.SecretAccessKey, cfg.SessionToken)))
	}
	if cfg.HTTPClient != nil {
		opts = append(opts, config.WithHTTPClient(cfg.HTTPClient))
	}
	base, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("read aws configuration: %w", err)
	}
	return &Session{cfg: cfg, base: base, limits: newLimitTable(cfg.RateShare), roles: map[Target]aws.CredentialsProvider{}}, nil
}

// Region returns the session's default region; "" if there is none.
func (s *Session) Region() string { return s.base.Region }

// Credentials are temporary or fixed AWS credentials.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expires                                    time.Time // zero: they do not expire
}

// String keeps the secrets out of logs.
func (c Credentials) String() string { return "credentials of " + c.AccessKeyID }

// Credentials returns the credentials of a target, assuming its role if it has one.
func (s *Session) Credentials(ctx context.Context, t Target) (Credentials, error) {
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return Credentials{}, err
	}
	c, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return Credentials{}, fmt.Errorf("get aws credentials: %w", err)
	}
	out := Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	if c.CanExpire {
		out.Expires = c.Expires
	}
	return out, nil
}

// SDKConfig returns the SDK's configuration for a target, with our limits and measuring in it; packages below this one
// make their clients of it.
func (s *Session) SDKConfig(t Target) (aws.Config, error) {
	cfg := s.base.Copy()
	if t.Region != "" {
		cfg.Region = t.Region
	}
	if cfg.Region == "" {
		return aws.Config{}, fmt.Errorf("no aws region: set AWS_REGION or name a region in the configuration")
	}
	if t.RoleARN != "" {
		if _, err := inventory.ParseARN(t.RoleARN); err != nil {
			return aws.Config{}, fmt.Errorf("role of an aws account: %w", err)
		}
	}
	t.Account = t.AccountID()
	if t.RoleARN != "" {
		cfg.Credentials = s.role(t, cfg)
	}
	cfg.APIOptions = append(cfg.APIOptions, s.middleware(t.Account, cfg.Region))
	return cfg, nil
}

// role returns the one provider of a role's credentials, which caches and renews them ahead of expiry.
func (s *Session) role(t Target, cfg aws.Config) aws.CredentialsProvider {
	key := Target{RoleARN: t.RoleARN, ExternalID: t.ExternalID}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.roles[key]; p != nil {
		return p
	}
	stsConfig := s.base.Copy()
	stsConfig.Region = cfg.Region
	stsConfig.APIOptions = append(stsConfig.APIOptions, s.middleware(t.Account, cfg.Region))
	p := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(stsConfig), t.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = s.cfg.SessionName
		o.Duration = time.Hour // the most that role chaining allows
		if t.ExternalID != "" {
			o.ExternalID = aws.String(t.ExternalID)
		}
	})
	cache := aws.NewCredentialsCache(p, func(o *aws.CredentialsCacheOptions) {
		o.ExpiryWindow = 5 * time.Minute
		o.ExpiryWindowJitterFrac = 0.5
	})
	s.roles[key] = cache
	return cache
}

// noQuota is a retry quota without a limit.
type noQuota struct{}

func (noQuota) GetToken(context.Context, uint) (func() error, error) {
	return func() error { return nil }, nil
}
func (noQuota) AddTokens(uint) error { return nil }
