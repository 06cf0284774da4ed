package iam

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// ResourcePolicy is the policy of a resource, such as a queue, which says who may do what with it.
type ResourcePolicy struct{ doc document }

// ParseResourcePolicy reads and checks a policy document of a resource.
func ParseResourcePolicy(text string) (*ResourcePolicy, error) {
	d, err := parseDocument(text, resourcePolicy)
	if err != nil {
		return nil, err
	}
	return &ResourcePolicy{doc: d}, nil
}

// ForService decides on something an AWS service wants to do, such as events.amazonaws.com. A nil policy allows nothing.
func (p *ResourcePolicy) ForService(service string, a awsserver.Access) awsserver.Decision {
	return p.decide(a, func(pr *principal) bool { return pr.Any || slices.Contains(pr.Service, service) })
}

// ForIdentity decides on something the holder of an access key wants to do.
func (p *ResourcePolicy) ForIdentity(who awsserver.Identity, a awsserver.Access) awsserver.Decision {
	return p.decide(a, func(pr *principal) bool {
		return pr.Any || slices.ContainsFunc(pr.AWS, func(v string) bool {
			return v == "*" || v == who.AccountID || v == "arn:aws:iam::"+who.AccountID+":root" || v == who.ARN || v == who.RoleARN && v != ""
		})
	})
}

func (p *ResourcePolicy) decide(a awsserver.Access, is func(*principal) bool) awsserver.Decision {
	out := awsserver.DeniedByDefault
	if p == nil {
		return out
	}
	for i := range p.doc.Statement {
		st := &p.doc.Statement[i]
		if !is(st.Principal) || !st.matchesAction(a.Action) || !st.matchesResource(a.Resource) || !st.Condition.hold(a.Context) {
			continue
		}
		if st.Effect == "Deny" {
			return awsserver.DeniedExplicitly
		}
		out = awsserver.Allowed
	}
	return out
}
