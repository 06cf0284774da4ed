// Package iam is the lab's IAM: accounts, roles, managed and inline policies, the sessions made from roles, and the
// evaluator that decides every call to the endpoint from those policies. It is the endpoint's awsserver.Authority.
package iam

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Bounds of what one account may hold; AWS's own quotas where it has one.
const (
	maxRoles           = 1000
	maxRoleName        = 64
	maxPolicies        = 1500
	maxPolicyVersions  = 5
	maxAttached        = 20
	maxSessions        = 20000
	maxPolicyDocument  = 10240
	defaultSessionLife = time.Hour
	maxSessionLife     = 12 * time.Hour
)

// Config is what a Service needs.
type Config struct {
	Now func() time.Time // nil means time.Now
}

// Service holds the accounts. It is safe for concurrent use.
type Service struct {
	now func() time.Time

	mu       sync.Mutex
	accounts map[string]*account // guarded by mu
	keys     map[string]*session // by access key id; guarded by mu
}

var _ awsserver.Authority = (*Service)(nil)

// account is one AWS account. All of it is guarded by Service.mu.
type account struct {
	id       string
	roles    map[string]*role   // by name
	policies map[string]*policy // customer managed, by ARN

	federation federation
}

// role is an IAM role.
type role struct {
	ID, Name, Path, ARN, Description string
	Created                          time.Time
	MaxSession                       time.Duration
	trust                            document
	trustJSON                        string
	inline                           map[string]storedDocument
	attached                         []string // policy ARNs
	tags                             map[string]string
}

// policy is a managed policy.
type policy struct {
	ID, Name, Path, ARN, Description string
	Created, Updated                 time.Time
	versions                         []policyVersion // oldest first
	defaultVersion                   string
	next                             int
}

type policyVersion struct {
	ID      string
	Created time.Time
	storedDocument
}

// storedDocument is a policy document with the text it came from.
type storedDocument struct {
	text string
	doc  document
}

// session is what an access key stands for: an account's administrator or an assumed role.
type session struct {
	id         awsserver.Identity
	role       *role           // nil for an administrator
	policy     *storedDocument // a session policy, nil for none
	transitive map[string]string
}

// New returns a Service without accounts.
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{now: cfg.Now, accounts: map[string]*account{}, keys: map[string]*session{}}, nil
}

// AddAccount makes an account with one administrator, the IAM user "lab-admin", who may do everything.
func (s *Service) AddAccount(id, accessKeyID, secret string) error {
	switch {
	case len(id) != 12:
		return fmt.Errorf("iam: account id %q does not have 12 digits", id)
	case accessKeyID == "":
		return errors.New("iam: the administrator's access key id is required")
	case secret == "":
		return errors.New("iam: the administrator's secret access key is required")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.keys[accessKeyID]; ok {
		return fmt.Errorf("iam: access key %s is already in use", accessKeyID)
	}
	if _, ok := s.accounts[id]; ok {
		return fmt.Errorf("iam: account %s exists already", id)
	}
	s.accounts[id] = &account{id: id, roles: map[string]*role{}, policies: map[string]*policy{}}
	s.keys[accessKeyID] = &session{id: awsserver.Identity{
		AccessKeyID: accessKeyID, Secret: secret, AccountID: id,
		ARN: "arn:aws:iam::" + id + ":user/lab-admin", UserID: "AIDA" + randomID(16),
	}}
	return nil
}

// Accounts returns the ids of all accounts.
func (s *Service) Accounts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make([]string, 0, len(s.accounts))
	for id := range s.accounts {
		ids = append(ids, id)
	}
	return ids
}

// Lookup returns the identity of an access key. Expired sessions are still found, for an hour, so that the caller
// can be told of the expiry rather than of an unknown key.
func (s *Service) Lookup(accessKeyID string) (awsserver.Identity, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess, ok := s.keys[accessKeyID]
	if !ok {
		return awsserver.Identity{}, false
	}
	return sess.id, true
}

// Authorize evaluates the caller's identity policies, and the session policy if there is one.
func (s *Service) Authorize(who awsserver.Identity, a awsserver.Access) awsserver.Decision {
	s.mu.Lock()
	defer s.mu.Unlock()
	sess, ok := s.keys[who.AccessKeyID]
	if !ok {
		return awsserver.DeniedByDefault
	}
	return s.authorizeLocked(sess, a)
}

func (s *Service) authorizeLocked(sess *session, a awsserver.Access) awsserver.Decision {
	if sess.role == nil {
		return awsserver.Allowed
	}
	d := evaluate(s.documentsLocked(sess.role), a)
	if d == awsserver.Allowed && sess.policy != nil {
		d = evaluate([]document{sess.policy.doc}, a)
	}
	return d
}

// documentsLocked returns every policy document that applies to a role.
func (s *Service) documentsLocked(r *role) []document {
	docs := make([]document, 0, len(r.inline)+len(r.attached))
	for _, d := range r.inline {
		docs = append(docs, d.doc)
	}
	acct := s.accounts[accountOf(r.ARN)]
	for _, arn := range r.attached {
		if d, ok := awsManaged(arn); ok {
			docs = append(docs, d.doc)
		} else if p := acct.policies[arn]; p != nil {
			docs = append(docs, p.current().doc)
		}
	}
	return docs
}

func (p *policy) current() policyVersion {
	for _, v := range p.versions {
		if v.ID == p.defaultVersion {
			return v
		}
	}
	return policyVersion{}
}

// accountOf returns the account part of an ARN, "" when there is none.
func accountOf(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}

// randomID returns n random upper-case letters and digits, as AWS's unique ids have them.
func randomID(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return string(b)
}

// awsManaged returns one of the policies AWS itself offers in every account.
func awsManaged(arn string) (storedDocument, bool) {
	name, ok := strings.CutPrefix(arn, "arn:aws:iam::aws:policy/")
	if !ok {
		return storedDocument{}, false
	}
	text, ok := awsManagedText(name)
	if !ok {
		return storedDocument{}, false
	}
	doc, err := parseDocument(text, identityPolicy)
	return storedDocument{text: text, doc: doc}, err == nil
}

// awsManagedNames lists the AWS managed policies of the lab, in the order ListPolicies shows them.
func awsManagedNames() []string {
	return []string{
		"AdministratorAccess", "AmazonECS_FullAccess", "ReadOnlyAccess",
		"service-role/AmazonECSTaskExecutionRolePolicy",
	}
}

// awsManagedText gives the lab's own, shorter text of an AWS managed policy: the services the lab has, same effect.
func awsManagedText(name string) (string, bool) {
	switch name {
	case "AdministratorAccess":
		return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`, true
	case "AmazonECS_FullAccess":
		return `{"Version":"2012-10-17","Statement":[` +
			`{"Sid":"Manage","Effect":"Allow","Action":["ecs:*","ec2:Describe*","ec2:CreateSecurityGroup","ec2:AuthorizeSecurityGroupIngress",` +
			`"logs:CreateLogGroup","logs:DescribeLogGroups","logs:FilterLogEvents","iam:ListRoles","iam:ListAttachedRolePolicies"],"Resource":"*"},` +
			`{"Sid":"PassTaskRole","Effect":"Allow","Action":"iam:PassRole","Resource":"*",` +
			`"Condition":{"StringLike":{"iam:PassedToService":"ecs-tasks.amazonaws.com"}}}]}`, true
	case "ReadOnlyAccess":
		return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecs:Describe*","ecs:List*","ec2:Describe*",` +
			`"eks:Describe*","eks:List*","iam:Get*","iam:List*","logs:Describe*","logs:Get*","logs:FilterLogEvents"],"Resource":"*"}]}`, true
	case "service-role/AmazonECSTaskExecutionRolePolicy":
		return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr:GetAuthorizationToken","ecr:BatchCheckLayerAvailability",` +
			`"ecr:GetDownloadUrlForLayer","ecr:BatchGetImage","logs:CreateLogStream","logs:PutLogEvents"],"Resource":"*"}]}`, true
	}
	return "", false
}
