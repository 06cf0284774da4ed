package iam

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Session is the credentials of an assumed role.
type Session struct {
	Identity awsserver.Identity
	RoleID   string // AROA...
}

// AssumeInput is what a caller of sts:AssumeRole asks for.
type AssumeInput struct {
	RoleARN     string
	SessionName string
	ExternalID  string
	Policy      string            // a session policy, "" for none
	Tags        map[string]string // session tags
	Transitive  []string          // keys of Tags that later sessions inherit
	Duration    time.Duration     // 0 means one hour
}

// Assume makes a session of a role for a caller, after the trust policy of the role and the policies of the caller
// have both been asked.
func (s *Service) Assume(who awsserver.Identity, in AssumeInput, requestContext map[string][]string) (Session, error) {
	if err := checkAssumeInput(in); err != nil {
		return Session{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	caller, ok := s.keys[who.AccessKeyID]
	if !ok {
		return Session{}, awsserver.Errorf("InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	tags := maps.Clone(caller.transitive)
	if tags == nil {
		tags = map[string]string{}
	}
	for k, v := range in.Tags {
		if _, inherited := caller.transitive[k]; inherited {
			return Session{}, awsserver.Errorf("InvalidParameterValue", "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
		}
		tags[k] = v
	}
	ctx := maps.Clone(requestContext)
	if ctx == nil {
		ctx = map[string][]string{}
	}
	if in.ExternalID != "" {
		ctx["sts:externalid"] = []string{in.ExternalID}
	}
	ctx["sts:rolesessionname"] = []string{in.SessionName}
	for k, v := range tags {
		ctx["aws:requesttag/"+strings.ToLower(k)] = []string{v}
		ctx["aws:tagkeys"] = append(ctx["aws:tagkeys"], k)
	}
	r := s.roleByARNLocked(in.RoleARN)
	actions := []string{"sts:AssumeRole"}
	if len(tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	for _, action := range actions {
		a := awsserver.Access{Action: action, Resource: in.RoleARN, Context: ctx}
		if r == nil || !s.mayAssumeLocked(caller, r, a) {
			return Session{}, &awsserver.Error{Code: "AccessDenied", Status: 403, Message: fmt.Sprintf(
				"User: %s is not authorized to perform: %s on resource: %s", caller.id.ARN, action, in.RoleARN)}
		}
	}
	life, err := sessionLife(in.Duration, r, caller.role != nil)
	if err != nil {
		return Session{}, err
	}
	sess := s.newSessionLocked(r, in.SessionName, life, tags)
	for k := range tags {
		if _, inherited := caller.transitive[k]; inherited || slices.Contains(in.Transitive, k) {
			sess.transitive[k] = tags[k]
		}
	}
	if in.Policy != "" {
		doc, perr := parseDocument(in.Policy, identityPolicy)
		if perr != nil {
			return Session{}, awsserver.Errorf("MalformedPolicyDocument", "%s", perr)
		}
		sess.policy = &storedDocument{text: in.Policy, doc: doc}
	}
	return Session{Identity: sess.id, RoleID: r.ID}, nil
}

// ServiceSession asks for a role on behalf of an AWS service.
type ServiceSession struct {
	RoleARN     string
	Service     string // "ecs-tasks.amazonaws.com"
	SessionName string
	SourceARN   string
	Duration    time.Duration     // 0 means one hour
	Tags        map[string]string // all are transitive, as those of EKS Pod Identity are
}

// AssumeForService makes a session for a service such as ecs-tasks.amazonaws.com when the role's trust policy
// allows it.
func (s *Service) AssumeForService(in ServiceSession) (Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.roleByARNLocked(in.RoleARN)
	if r == nil {
		return Session{}, fmt.Errorf("role %s does not exist", in.RoleARN)
	}
	ctx := map[string][]string{"aws:sourceaccount": {accountOf(in.SourceARN)}, "aws:sourcearn": {in.SourceARN}}
	actions := []string{"sts:AssumeRole"}
	if len(in.Tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	for k, v := range in.Tags {
		ctx["aws:requesttag/"+strings.ToLower(k)] = []string{v}
	}
	for _, action := range actions {
		a := awsserver.Access{Action: action, Context: ctx}
		d := r.trust.trusts(a, func(p *principal) bool { return slices.Contains(p.Service, in.Service) })
		if d != awsserver.Allowed {
			return Session{}, fmt.Errorf("the trust policy of role %s does not allow %s for %s", in.RoleARN, action, in.Service)
		}
	}
	life := in.Duration
	if life == 0 {
		life = defaultSessionLife
	}
	sess := s.newSessionLocked(r, in.SessionName, life, in.Tags)
	maps.Copy(sess.transitive, in.Tags)
	return Session{Identity: sess.id, RoleID: r.ID}, nil
}

// Revoke forgets a session, for example when its task has stopped.
func (s *Service) Revoke(accessKeyID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sess := s.keys[accessKeyID]; sess != nil && sess.role != nil {
		delete(s.keys, accessKeyID)
	}
}

// mayAssumeLocked joins the role's trust policy and the caller's own policies. A trust policy that names the caller
// itself is enough within one account; one that names the account delegates to the caller's policies; across accounts
// both must allow.
func (s *Service) mayAssumeLocked(caller *session, r *role, a awsserver.Access) bool {
	account := caller.id.AccountID
	direct := r.trust.trusts(a, func(p *principal) bool {
		return p.Any || slices.ContainsFunc(p.AWS, func(v string) bool {
			return v == "*" || v == caller.id.ARN || v == caller.id.RoleARN && v != ""
		})
	})
	root := r.trust.trusts(a, func(p *principal) bool {
		return slices.Contains(p.AWS, account) || slices.Contains(p.AWS, "arn:aws:iam::"+account+":root")
	})
	if direct == awsserver.DeniedExplicitly || root == awsserver.DeniedExplicitly {
		return false
	}
	own := s.authorizeLocked(caller, a)
	switch {
	case own == awsserver.DeniedExplicitly:
		return false
	case direct == awsserver.Allowed && account == accountOf(r.ARN):
		return true
	case direct == awsserver.Allowed || root == awsserver.Allowed:
		return own == awsserver.Allowed
	}
	return false
}

// trusts evaluates a trust policy for a principal.
func (d document) trusts(a awsserver.Access, is func(*principal) bool) awsserver.Decision {
	out := awsserver.DeniedByDefault
	for i := range d.Statement {
		st := &d.Statement[i]
		if !is(st.Principal) || !st.matchesAction(a.Action) || !st.Condition.hold(a.Context) {
			continue
		}
		if st.Effect == "Deny" {
			return awsserver.DeniedExplicitly
		}
		out = awsserver.Allowed
	}
	return out
}

func (s *Service) roleByARNLocked(arn string) *role {
	acct := s.accounts[accountOf(arn)]
	if acct == nil {
		return nil
	}
	r := acct.roles[arn[strings.LastIndex(arn, "/")+1:]]
	if r == nil || r.ARN != arn {
		return nil
	}
	return r
}

// newSessionLocked registers fresh credentials.
func (s *Service) newSessionLocked(r *role, name string, life time.Duration, tags map[string]string) *session {
	now := s.now()
	s.makeRoomLocked(now)
	acct := accountOf(r.ARN)
	sess := &session{role: r, transitive: map[string]string{}, id: awsserver.Identity{
		AccessKeyID: "ASIA" + randomID(16),
		Secret:      randomID(40),
		Token:       "IQoJb3JpZ2luX2VjE" + randomID(240),
		Expires:     now.Add(life).Truncate(time.Second),
		AccountID:   acct,
		ARN:         fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", acct, r.Name, name),
		UserID:      r.ID + ":" + name,
		RoleARN:     r.ARN,
		Tags:        tags,
	}}
	s.keys[sess.id.AccessKeyID] = sess
	return sess
}

// makeRoomLocked keeps the table of keys within its bound: ended sessions go, and if that is not enough the one that
// would end first.
func (s *Service) makeRoomLocked(now time.Time) {
	if len(s.keys) < maxSessions {
		return
	}
	var first *session
	for k, old := range s.keys {
		switch {
		case old.role == nil: // an administrator
		case now.After(old.id.Expires):
			delete(s.keys, k)
		case first == nil || old.id.Expires.Before(first.id.Expires):
			first = old
		}
	}
	if len(s.keys) >= maxSessions && first != nil {
		delete(s.keys, first.id.AccessKeyID)
	}
}

func sessionLife(asked time.Duration, r *role, chained bool) (time.Duration, error) {
	switch {
	case asked == 0:
		return defaultSessionLife, nil
	case asked < 15*time.Minute:
		return 0, awsserver.Errorf("ValidationError", "1 validation error detected: Value at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900")
	case chained && asked > time.Hour:
		return 0, awsserver.Errorf("ValidationError", "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining")
	case asked > r.MaxSession:
		return 0, awsserver.Errorf("ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	return asked, nil
}

// validSessionName applies AWS's own pattern.
func validSessionName(s string) bool {
	return len(s) >= 2 && len(s) <= 64 && regexp.MustCompile(`^[\w+=,.@-]+$`).MatchString(s)
}

func checkAssumeInput(in AssumeInput) error {
	if !validSessionName(in.SessionName) {
		return awsserver.Errorf("ValidationError", "1 validation error detected: Value '%s' at 'roleSessionName' failed to satisfy constraint: "+
			"Member must satisfy regular expression pattern: [\\w+=,.@-]* with length between 2 and 64", in.SessionName)
	}
	if !strings.HasPrefix(in.RoleARN, "arn:aws:iam::") || !strings.Contains(in.RoleARN, ":role/") {
		return awsserver.Errorf("ValidationError", "%s is invalid", in.RoleARN)
	}
	if in.Duration > maxSessionLife {
		return awsserver.Errorf("ValidationError", "1 validation error detected: Value '%d' at 'durationSeconds' failed to satisfy constraint: Member must have value less than or equal to %d",
			in.Duration/time.Second, maxSessionLife/time.Second)
	}
	if len(in.Tags) > 50 {
		return awsserver.Errorf("ValidationError", "1 validation error detected: Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50")
	}
	return nil
}
