// Package settings is the configuration file of isthmus-controller: the part of it that has structure. It has the shape
// of the guide's Istio values, so that `platforms.ecs.accounts` may be copied from there unchanged.
package settings

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/identity/webidentity"
)

// APIVersion and Kind of the file; a file may leave both out.
const (
	APIVersion = "isthmus.dev/v1"
	Kind       = "ControllerConfig"
)

// Limits of the file.
const (
	MaxAccounts      = 100
	MaxRegions       = 40 // per account
	MinSweepInterval = time.Second
	MaxSweepInterval = time.Hour
)

// File is the whole file.
type File struct {
	APIVersion string    `json:"apiVersion,omitempty"`
	Kind       string    `json:"kind,omitempty"`
	Platforms  Platforms `json:"platforms"`
	// SweepInterval is how often each account is read; default 10s.
	SweepInterval Duration `json:"sweepInterval,omitempty"`
	// Network is the mesh network of tasks. It must be istiod's own; default: no network in the objects, which means it.
	Network string `json:"network,omitempty"`
	// ClusterName is istiod's cluster id; default Kubernetes.
	ClusterName string `json:"clusterName,omitempty"`
	// TrustDomain is the mesh's; default cluster.local.
	TrustDomain string `json:"trustDomain,omitempty"`
	// DiscoveryTags are the tags of which a cluster must have one with the value true; default ecs.solo.io/discovery-enabled.
	DiscoveryTags []string `json:"discoveryTags,omitempty"`
	// DefaultServiceAccount is that of tasks that no tag gives one; default none.
	DefaultServiceAccount string `json:"defaultServiceAccount,omitempty"`
	// DeletionLimitPercent is the share of an account's workloads that one change may remove; default 50.
	DeletionLimitPercent int `json:"deletionLimitPercent,omitempty"`
}

// Platforms are the places where workloads run.
type Platforms struct {
	ECS ECS `json:"ecs"`
}

// ECS is Amazon ECS.
type ECS struct {
	Accounts []Account `json:"accounts"`
}

// Account is one AWS account.
type Account struct {
	// Role is the ARN of the role to assume; its account is the account. Empty means the controller's own identity, and
	// then ID is required.
	Role string `json:"role,omitempty"`
	// ID is the account's 12 digits; only needed without Role.
	ID string `json:"id,omitempty"`
	// Domain ends the host names of the account's services; default ecs.local.
	Domain string `json:"domain,omitempty"`
	// Regions are read; default the controller's own region.
	Regions []string `json:"regions,omitempty"`
	// ExternalID is given when the role is assumed.
	ExternalID string `json:"externalId,omitempty"`
	// Network is the mesh network of the account's tasks; default that of the file.
	Network string `json:"network,omitempty"`
	// Namespaces maps ECS clusters to namespaces; a cluster that is not in it has the namespace of its name.
	Namespaces map[string]string `json:"namespaces,omitempty"`
	// AllowedNamespaces limits the namespaces that tags may choose; a trailing * matches any rest. Empty means all.
	AllowedNamespaces []string `json:"allowedNamespaces,omitempty"`
	// DiscoveryTags are the tags of which a cluster of the account must have one with the value true; default those of the
	// file.
	DiscoveryTags []string `json:"discoveryTags,omitempty"`
	// Events names a queue with EventBridge events of the account, which make changes known sooner; default none.
	Events *Events `json:"events,omitempty"`
	// WebIdentity accepts web identity tokens of the account's roles as proof of an identity; default not.
	WebIdentity *WebIdentity `json:"webIdentity,omitempty"`
}

// WebIdentity is the second way for tasks of an account to prove who they are.
type WebIdentity struct {
	// Enabled accepts such tokens.
	Enabled bool `json:"enabled,omitempty"`
	// Issuer is the account's own, as iam get-outbound-web-identity-federation-info tells it; required.
	Issuer string `json:"issuer"`
}

// Events is an SQS queue to which EventBridge sends the ECS events of an account.
type Events struct {
	// QueueURL is the queue's; required.
	QueueURL string `json:"queueUrl"`
	// Region is the queue's; default that in its URL.
	Region string `json:"region,omitempty"`
}

// QueueRegion returns the region of the queue.
func (e Events) QueueRegion() string {
	if e.Region != "" {
		return e.Region
	}
	if m := queuePattern.FindStringSubmatch(e.QueueURL); m != nil {
		return m[1]
	}
	return ""
}

// OwnedBy reports whether the queue is one of the account's, by its URL.
func (e Events) OwnedBy(account string) bool { return strings.Contains(e.QueueURL, "/"+account+"/") }

// Duration is a time.Duration that is written as 10s.
type Duration time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(b []byte) error {
	v, err := time.ParseDuration(strings.Trim(string(b), `"`))
	if err != nil {
		return fmt.Errorf("%s is not a duration such as 10s", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) {
	return []byte(`"` + time.Duration(d).String() + `"`), nil
}

// AccountID returns the 12 digits.
func (a Account) AccountID() string {
	if a.ID != "" {
		return a.ID
	}
	if m := rolePattern.FindStringSubmatch(a.Role); m != nil {
		return m[2]
	}
	return ""
}

// Partition returns aws, aws-cn or aws-us-gov.
func (a Account) Partition() string {
	if m := rolePattern.FindStringSubmatch(a.Role); m != nil {
		return m[1]
	}
	return "aws"
}

var (
	rolePattern    = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):iam::([0-9]{12}):role/[\w+=,.@/-]{1,576}$`)
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
	domainPattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	regionPattern  = regexp.MustCompile(`^[a-z]{2}(-[a-z]{3,12}){1,2}-[1-9][0-9]?$`)
	namePattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelPattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9-])?$`)
	queuePattern   = regexp.MustCompile(`^https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/[0-9]{12}/[A-Za-z0-9_-]{1,80}(?:\.fifo)?$`)
	tagPattern     = regexp.MustCompile(`^[\w./:+=@ -]{1,128}$`)
)

// Parse decodes and checks a file and fills in the defaults. An unknown field is an error, and all problems are told at
// once.
func Parse(text []byte) (File, error) {
	var f File
	if err := yaml.UnmarshalStrict(text, &f); err != nil {
		return File{}, diag.Wrap(diag.ConfigInvalid, err)
	}
	f.defaults()
	if err := f.validate(); err != nil {
		return File{}, diag.Wrap(diag.ConfigInvalid, err)
	}
	return f, nil
}

// Marshal writes a file.
func (f File) Marshal() ([]byte, error) {
	if f.APIVersion == "" {
		f.APIVersion, f.Kind = APIVersion, Kind
	}
	return yaml.Marshal(f)
}

func (f *File) defaults() {
	if f.SweepInterval == 0 {
		f.SweepInterval = Duration(10 * time.Second)
	}
	if f.ClusterName == "" {
		f.ClusterName = "Kubernetes"
	}
	if f.TrustDomain == "" {
		f.TrustDomain = "cluster.local"
	}
	if len(f.DiscoveryTags) == 0 {
		f.DiscoveryTags = []string{"ecs.solo.io/discovery-enabled"}
	}
	if f.DeletionLimitPercent == 0 {
		f.DeletionLimitPercent = 50
	}
	for i := range f.Platforms.ECS.Accounts {
		f.Platforms.ECS.Accounts[i].defaults()
	}
}

func (a *Account) defaults() {
	if a.Domain == "" {
		a.Domain = "ecs.local"
	}
}

// Check fills in the defaults of an account that does not come from a file, and checks it.
func (a *Account) Check() error {
	a.defaults()
	if err := errors.Join(a.validate("spec")...); err != nil {
		return diag.Wrap(diag.ConfigInvalid, err)
	}
	return nil
}

func (f *File) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if f.APIVersion != "" && f.APIVersion != APIVersion || f.Kind != "" && f.Kind != Kind {
		bad("apiVersion and kind: got %q and %q, want %s and %s", f.APIVersion, f.Kind, APIVersion, Kind)
	}
	if d := time.Duration(f.SweepInterval); d < MinSweepInterval || d > MaxSweepInterval {
		bad("sweepInterval: %v is not between %v and %v", d, MinSweepInterval, MaxSweepInterval)
	}
	if f.Network != "" && !namePattern.MatchString(f.Network) {
		bad("network: %q is not a name", f.Network)
	}
	if !namePattern.MatchString(f.ClusterName) {
		bad("clusterName: %q is not a name", f.ClusterName)
	}
	if !domainPattern.MatchString(f.TrustDomain) {
		bad("trustDomain: %q is not a domain", f.TrustDomain)
	}
	if f.DefaultServiceAccount != "" && !domainPattern.MatchString(f.DefaultServiceAccount) {
		bad("defaultServiceAccount: %q is not a name", f.DefaultServiceAccount)
	}
	if f.DeletionLimitPercent < 1 || f.DeletionLimitPercent > 100 {
		bad("deletionLimitPercent: %d is not between 1 and 100", f.DeletionLimitPercent)
	}
	for i, tag := range f.DiscoveryTags {
		if !tagPattern.MatchString(tag) {
			bad("discoveryTags[%d]: %q is not a tag key", i, tag)
		}
	}
	if n := len(f.Platforms.ECS.Accounts); n > MaxAccounts {
		bad("platforms.ecs.accounts: %d accounts, at most %d are supported", n, MaxAccounts)
	}
	seen := map[string]int{}
	for i, a := range f.Platforms.ECS.Accounts {
		at := fmt.Sprintf("platforms.ecs.accounts[%d]", i)
		errs = append(errs, a.validate(at)...)
		if id := a.AccountID(); id != "" {
			if first, ok := seen[id]; ok {
				bad("%s: account %s is already platforms.ecs.accounts[%d]; list its regions there", at, id, first)
			}
			seen[id] = i
		}
	}
	return errors.Join(errs...)
}

func (a Account) validate(at string) []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(at+format, args...)) }
	if a.Role == "" && a.ID == "" {
		bad(".role: required (arn:aws:iam::ACCOUNT:role/NAME)")
	}
	m := rolePattern.FindStringSubmatch(a.Role)
	if a.Role != "" && m == nil {
		bad(".role: %q is not arn:aws:iam::ACCOUNT:role/NAME", a.Role)
	}
	for cluster, ns := range a.Namespaces {
		if !labelPattern.MatchString(ns) {
			bad(".namespaces: %q of cluster %q is not a namespace", ns, cluster)
		}
	}
	for i, ns := range a.AllowedNamespaces {
		if !labelPattern.MatchString(strings.TrimSuffix(ns, "*")) && ns != "*" {
			bad(".allowedNamespaces[%d]: %q is not a namespace", i, ns)
		}
	}
	if a.Network != "" && !namePattern.MatchString(a.Network) {
		bad(".network: %q is not a name", a.Network)
	}
	if a.ID != "" && !accountPattern.MatchString(a.ID) {
		bad(".id: %q is not 12 digits", a.ID)
	}
	if a.ID != "" && m != nil && m[2] != a.ID {
		bad(".id: %s is not the account of the role, %s", a.ID, m[2])
	}
	if !domainPattern.MatchString(a.Domain) {
		bad(".domain: %q is not a domain in lower case", a.Domain)
	}
	for i, tag := range a.DiscoveryTags {
		if !tagPattern.MatchString(tag) {
			bad(".discoveryTags[%d]: %q is not a tag key", i, tag)
		}
	}
	if e := a.Events; e != nil {
		if u, err := url.Parse(e.QueueURL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			bad(".events.queueUrl: %q is not a URL", e.QueueURL)
		} else if r := e.QueueRegion(); !regionPattern.MatchString(r) {
			bad(".events.region: required, because the queue's URL does not tell it")
		}
	}
	if w := a.WebIdentity; w != nil {
		if err := webidentity.CheckIssuer(w.Issuer); err != nil {
			bad(".webIdentity.issuer: %v", err)
		}
	}
	if len(a.Regions) > MaxRegions {
		bad(".regions: %d regions, at most %d are supported", len(a.Regions), MaxRegions)
	}
	for i, r := range a.Regions {
		if !regionPattern.MatchString(r) {
			bad(".regions[%d]: %q is not a region", i, r)
		}
		if slices.Contains(a.Regions[:i], r) {
			bad(".regions[%d]: %s is listed twice", i, r)
		}
	}
	return errs
}
