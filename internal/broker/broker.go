// Package broker gives an ECS task the token with which istiod will certify it: proof of an IAM role in, short-lived
// Kubernetes ServiceAccount token out.
//
// The proof is a signed sts:GetCallerIdentity (package iamproof). AWS says which role signed and, in the session name,
// which task; ECS says whether that task exists, runs with that role and in which cluster; the cluster and the tags say
// which namespace and service account it is; Kubernetes says whether that service account is open to the role. Every one
// of these must agree, and the first that does not ends the request with a code of package diag:
//
//	step                        refused with            asked
//	request, limits             2001-2003, 2301, 2303   nobody
//	region, key, clock          2101-2103               nobody
//	used before                 2104                    own memory
//	signature                   2105-2107               AWS STS
//	a role of a task            2108                    AWS STS
//	account configured          2201                    configuration
//	task exists                 2202, 2210              ECS (discovery's snapshot, else at once)
//	too many for the role       2302                    own memory
//	task runs with that role    2203                    ECS
//	task is alive               2204                    ECS
//	names a service account     2206                    ECS tags
//	service account is open     2207-2209               Kubernetes
//	token                       2304                    Kubernetes
//
// An account may allow a second proof, a web identity token that STS signed (package webidentity). It names the role and
// no task, so it says who somebody is only where every task with the role is the same service account; after its own
// steps follow those above from "task exists" on, with the task that the caller says it is. Any task that it can truly
// or falsely name is the same service account: the name only decides whose end ends the token.
//
//	step                        refused with            asked
//	accepted for the account    2501                    configuration
//	form, time, audience        2502-2504               nobody
//	signature                   2505, 2507              the issuer's keys
//	a role of the account       2506                    nobody
//	one service account only    2508, 2210              ECS (discovery's snapshots)
//
// The token is bound to a Secret of the task; the Revoker deletes it when the task ends, and with it the token's worth.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/time/rate"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Errors of a Directory.
var (
	// ErrAccountUnknown means that the account is not configured.
	ErrAccountUnknown = errors.New("account is not configured")
	// ErrTaskUnknown means that ECS lists no such task in an opted-in cluster.
	ErrTaskUnknown = errors.New("no such task")
	// ErrUnavailable means that ECS could not be asked and nothing is known yet.
	ErrUnavailable = errors.New("ecs cannot be asked")
	// ErrLimited means that too many unknown tasks were asked for.
	ErrLimited = errors.New("too many look-ups")
	// ErrPlacement means that the task's tags do not say who it is; the error's text names the tag.
	ErrPlacement = errors.New("task has no place in the mesh")
)

// Task is what ECS and the configuration say of a task.
type Task struct {
	ARN           string
	ID            string
	ClusterARN    string
	RoleARN       string // effective: the override, else the definition's
	LastStatus    string
	DesiredStatus string

	Namespace      string
	ServiceAccount string // "" when no tag says
	WorkloadName   string
}

// Directory finds tasks. The region is a hint: it is asked first.
type Directory interface {
	FindTask(ctx context.Context, account, region, id string) (Task, error)
}

// Issuer is Kubernetes as the broker needs it; *kube.Client is one.
type Issuer interface {
	ServiceAccount(ctx context.Context, namespace, name string) (kube.ServiceAccount, error)
	IssueToken(ctx context.Context, spec kube.TokenSpec) (kube.Token, error)
}

var _ Issuer = (*kube.Client)(nil)

// Config is what a Broker needs.
type Config struct {
	Directory Directory // required
	Issuer    Issuer    // required
	// Audience is the mesh that proofs must be meant for; required. The trust domain, unless both sides are told else.
	Audience string
	// TrustDomain, ClusterID and Network are told to the task.
	TrustDomain string // required
	ClusterID   string // required
	Network     string
	// STSEndpoint replaces the region's own STS: a VPC endpoint, another partition, or an emulator. Only an operator sets
	// it; a caller cannot choose where its proof is verified.
	STSEndpoint string
	// TokenTTL is the lifetime of tokens; 0 means 1 h.
	TokenTTL time.Duration
	Limits   Limits
	Log      *slog.Logger // required
	// Observe, if not nil, is told each outcome.
	Observe func(Outcome)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// WebIdentity accepts web identity tokens as well; nil means that there is no such method.
	WebIdentity *WebIdentity
	// Transport carries requests to STS; nil means one without proxies and with its own connections.
	Transport http.RoundTripper
}

// Limits bound what callers can make the broker do. Zero values mean the defaults.
type Limits struct {
	// SourceRate and SourceBurst bound requests of one address; 100/s and 500. The east-west gateway passes connections
	// on, so all tasks behind it share its address.
	SourceRate  float64
	SourceBurst int
	// RoleRate and RoleBurst bound requests of one role; 50/s and 200.
	RoleRate  float64
	RoleBurst int
	// InFlight bounds concurrent requests; 128.
	InFlight int
	// TableSize bounds each of the tables of sources and roles; 10,000.
	TableSize int
	// Replays bounds the memory of used proofs; 200,000. When it is full, no token is issued until the oldest expires.
	Replays int
	// STSTimeout bounds one call of STS; 5 s.
	STSTimeout time.Duration
}

const (
	maxBody        = 64 << 10
	defaultTTL     = time.Hour
	secretPrefix   = "isthmus-task-"
	logPerSecond   = 20
	defaultSTSTime = 5 * time.Second
	roleUseRetry   = time.Second
	maxNamedUsers  = 3 // of a role that has several
)

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	if l.SourceRate <= 0 {
		l.SourceRate = 100
	}
	if l.RoleRate <= 0 {
		l.RoleRate = 50
	}
	def(&l.SourceBurst, 500)
	def(&l.RoleBurst, 200)
	def(&l.InFlight, 128)
	def(&l.TableSize, 10_000)
	def(&l.Replays, 200_000)
	if l.STSTimeout <= 0 {
		l.STSTimeout = defaultSTSTime
	}
	return l
}

// Outcome is how one request ended.
type Outcome struct {
	// Code is "" when a token was issued.
	Code diag.Code
	Took time.Duration
}

// Broker answers token requests. It is an http.Handler and safe for concurrent use.
type Broker struct {
	cfg     Config
	log     *slog.Logger
	sts     *http.Client
	slots   chan struct{}
	sources *limitTable
	roles   *limitTable
	replays *replayCache
	logRate *rate.Limiter
	web     *webVerifier // nil without the second method
}

// New returns a Broker.
func New(cfg Config) (*Broker, error) {
	switch {
	case cfg.Directory == nil:
		return nil, errors.New("broker: Config.Directory is required")
	case cfg.Issuer == nil:
		return nil, errors.New("broker: Config.Issuer is required")
	case cfg.Audience == "":
		return nil, errors.New("broker: Config.Audience is required")
	case cfg.TrustDomain == "":
		return nil, errors.New("broker: Config.TrustDomain is required")
	case cfg.ClusterID == "":
		return nil, errors.New("broker: Config.ClusterID is required")
	case cfg.Log == nil:
		return nil, errors.New("broker: Config.Log is required")
	}
	if cfg.STSEndpoint != "" {
		u, err := url.Parse(cfg.STSEndpoint)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
			return nil, fmt.Errorf("broker: Config.STSEndpoint: %q is not an http(s) URL", cfg.STSEndpoint)
		}
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.TokenTTL <= 0 {
		cfg.TokenTTL = defaultTTL
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Transport == nil {
		cfg.Transport = &http.Transport{
			Proxy:               nil, // a proxy from the environment would see, and could answer, every proof
			MaxIdleConnsPerHost: 16,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: cfg.Limits.STSTimeout,
			ForceAttemptHTTP2:   true,
		}
	}
	web, err := newWebVerifier(cfg)
	if err != nil {
		return nil, err
	}
	l := cfg.Limits
	return &Broker{
		web: web,
		cfg: cfg,
		log: cfg.Log.With(slog.String("scope", "broker")),
		sts: &http.Client{
			Transport:     cfg.Transport,
			Timeout:       l.STSTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		slots:   make(chan struct{}, l.InFlight),
		sources: newLimitTable(rate.Limit(l.SourceRate), l.SourceBurst, l.TableSize),
		roles:   newLimitTable(rate.Limit(l.RoleRate), l.RoleBurst, l.TableSize),
		replays: newReplayCache(l.Replays),
		logRate: rate.NewLimiter(logPerSecond, logPerSecond*2),
	}, nil
}
