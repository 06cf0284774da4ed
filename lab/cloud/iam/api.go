package iam

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// handler is an IAM operation; the caller's account is locked and passed in.
type handler func(acct *account, r *awsserver.Request) (any, error)

// API returns IAM for registration with the front.
func (s *Service) API() awsserver.Service {
	ops := map[string]handler{
		"CreateRole": s.createRole, "GetRole": s.getRole, "DeleteRole": s.deleteRole, "ListRoles": s.listRoles,
		"UpdateAssumeRolePolicy": s.updateAssumeRolePolicy, "TagRole": s.tagRole, "UntagRole": s.untagRole, "ListRoleTags": s.listRoleTags,
		"PutRolePolicy": s.putRolePolicy, "GetRolePolicy": s.getRolePolicy, "ListRolePolicies": s.listRolePolicies,
		"DeleteRolePolicy": s.deleteRolePolicy,
		"CreatePolicy":     s.createPolicy, "GetPolicy": s.getPolicy, "ListPolicies": s.listPolicies, "DeletePolicy": s.deletePolicy,
		"CreatePolicyVersion": s.createPolicyVersion, "GetPolicyVersion": s.getPolicyVersion,
		"ListPolicyVersions": s.listPolicyVersions, "DeletePolicyVersion": s.deletePolicyVersion,
		"AttachRolePolicy": s.attachRolePolicy, "DetachRolePolicy": s.detachRolePolicy,
		"ListAttachedRolePolicies": s.listAttachedRolePolicies, "ListInstanceProfilesForRole": s.listInstanceProfilesForRole,
		"EnableOutboundWebIdentityFederation": s.enableFederation, "DisableOutboundWebIdentityFederation": s.disableFederation,
		"GetOutboundWebIdentityFederationInfo": s.federationInfo,
	}
	svc := awsserver.Service{
		Name: "iam", Protocol: awsserver.Query, Version: "2010-05-08", Namespace: "https://iam.amazonaws.com/doc/2010-05-08/",
		Operations: map[string]awsserver.Operation{},
	}
	for name, h := range ops {
		svc.Operations[name] = func(_ context.Context, r *awsserver.Request) (any, error) {
			if err := r.Authorize("iam:"+name, s.resourceOf(r), nil); err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			acct := s.accounts[r.Caller.AccountID]
			if acct == nil {
				return nil, fmt.Errorf("account %s has keys but no state", r.Caller.AccountID)
			}
			return h(acct, r)
		}
	}
	return svc
}

// resourceOf is the ARN a call is authorised on.
func (s *Service) resourceOf(r *awsserver.Request) string {
	if arn := r.Form.Get("PolicyArn"); arn != "" && r.Form.Get("RoleName") == "" {
		return arn
	}
	if name := r.Form.Get("PolicyName"); name != "" && r.Form.Get("RoleName") == "" {
		return "arn:aws:iam::" + r.Caller.AccountID + ":policy" + pathOf(r) + name
	}
	name := r.Form.Get("RoleName")
	if name == "" {
		return "*"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if acct := s.accounts[r.Caller.AccountID]; acct != nil && acct.roles[name] != nil {
		return acct.roles[name].ARN
	}
	return "arn:aws:iam::" + r.Caller.AccountID + ":role" + pathOf(r) + name
}

func pathOf(r *awsserver.Request) string {
	if p := r.Form.Get("Path"); p != "" {
		return p
	}
	return "/"
}

func noSuchEntity(format string, args ...any) error {
	return &awsserver.Error{Code: "NoSuchEntity", Status: http.StatusNotFound, Message: fmt.Sprintf(format, args...)}
}

func conflict(code, format string, args ...any) error {
	return &awsserver.Error{Code: code, Status: http.StatusConflict, Message: fmt.Sprintf(format, args...)}
}

func validName(kind, name string) error {
	if !regexp.MustCompile(`^[\w+=,.@-]{1,128}$`).MatchString(name) {
		return awsserver.Errorf("ValidationError", "The specified value for %s is invalid. It must contain only alphanumeric characters and/or the following: +=,.@_-", kind)
	}
	return nil
}

func validPath(p string) error {
	if !strings.HasPrefix(p, "/") || !strings.HasSuffix(p, "/") || len(p) > 512 {
		return awsserver.Errorf("ValidationError", "The specified value for path is invalid. It must begin and end with / and contain only alphanumeric characters and/or / characters.")
	}
	return nil
}

func iso(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// encodedDocument is how IAM returns a policy text: percent-encoded.
func encodedDocument(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

// page cuts a sorted list by Marker and MaxItems. The marker holds the name after which the next page begins.
func page[T any](r *awsserver.Request, all []T, name func(T) string) (items []T, marker string, truncated bool, err error) {
	limit := 100
	if m := r.Form.Get("MaxItems"); m != "" {
		if limit, err = strconv.Atoi(m); err != nil || limit < 1 || limit > 1000 {
			return nil, "", false, awsserver.Errorf("ValidationError", "MaxItems must be between 1 and 1000")
		}
	}
	slices.SortFunc(all, func(a, b T) int { return strings.Compare(name(a), name(b)) })
	after, ok := r.ReadPageToken(r.Form.Get("Marker"))
	if !ok {
		return nil, "", false, awsserver.Errorf("ValidationError", "Invalid Marker.")
	}
	if after != "" {
		all = slices.DeleteFunc(all, func(t T) bool { return name(t) <= after })
	}
	if len(all) > limit {
		return all[:limit], r.PageToken(name(all[limit-1])), true, nil
	}
	return all, "", false, nil
}

type tagXML struct {
	Key   string `xml:"Key"`
	Value string `xml:"Value"`
}

func tagList(m map[string]string) []tagXML {
	out := make([]tagXML, 0, len(m))
	for k, v := range m {
		out = append(out, tagXML{k, v})
	}
	slices.SortFunc(out, func(a, b tagXML) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func formTags(r *awsserver.Request) map[string]string {
	m := map[string]string{}
	for _, t := range r.Form.Items("Tags.member") {
		m[t.Get("Key")] = t.Get("Value")
	}
	return m
}
