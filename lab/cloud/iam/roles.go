package iam

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type roleXML struct {
	Path        string   `xml:"Path"`
	RoleName    string   `xml:"RoleName"`
	RoleID      string   `xml:"RoleId"`
	ARN         string   `xml:"Arn"`
	CreateDate  string   `xml:"CreateDate"`
	Trust       string   `xml:"AssumeRolePolicyDocument"`
	Description string   `xml:"Description,omitempty"`
	MaxSession  int      `xml:"MaxSessionDuration"`
	Tags        []tagXML `xml:"Tags>member,omitempty"`
}

func (r *role) xml() roleXML {
	return roleXML{Path: r.Path, RoleName: r.Name, RoleID: r.ID, ARN: r.ARN, CreateDate: iso(r.Created), Trust: encodedDocument(r.trustJSON),
		Description: r.Description, MaxSession: int(r.MaxSession.Seconds()), Tags: tagList(r.tags)}
}

// role returns a role of the account by the request's RoleName.
func (a *account) role(r *awsserver.Request) (*role, error) {
	name := r.Form.Get("RoleName")
	if ro := a.roles[name]; ro != nil {
		return ro, nil
	}
	return nil, noSuchEntity("The role with name %s cannot be found.", name)
}

func (s *Service) createRole(acct *account, r *awsserver.Request) (any, error) {
	name, path := r.Form.Get("RoleName"), pathOf(r)
	if err := validName("roleName", name); err != nil {
		return nil, err
	}
	if len(name) > maxRoleName {
		return nil, awsserver.Errorf("ValidationError", "1 validation error detected: Value at 'roleName' failed to satisfy constraint: Member must have length less than or equal to %d", maxRoleName)
	}
	if err := validPath(path); err != nil {
		return nil, err
	}
	if acct.roles[name] != nil {
		return nil, conflict("EntityAlreadyExists", "Role with name %s already exists.", name)
	}
	if len(acct.roles) >= maxRoles {
		return nil, conflict("LimitExceeded", "Cannot exceed quota for RolesPerAccount: %d", maxRoles)
	}
	ro := &role{ID: "AROA" + randomID(17), Name: name, Path: path, ARN: "arn:aws:iam::" + acct.id + ":role" + path + name,
		Description: r.Form.Get("Description"), Created: s.now(), MaxSession: time.Hour,
		inline: map[string]storedDocument{}, tags: formTags(r)}
	if d := r.Form.Get("MaxSessionDuration"); d != "" {
		life, err := time.ParseDuration(d + "s")
		if err != nil || life < time.Hour || life > 12*time.Hour {
			return nil, awsserver.Errorf("ValidationError", "MaxSessionDuration must be between 3600 and 43200")
		}
		ro.MaxSession = life
	}
	if err := s.setTrust(ro, r.Form.Get("AssumeRolePolicyDocument")); err != nil {
		return nil, err
	}
	acct.roles[name] = ro
	return struct {
		Role roleXML `xml:"Role"`
	}{ro.xml()}, nil
}

// setTrust checks a trust policy, also that the lab's own principals in it exist, and stores it.
func (s *Service) setTrust(ro *role, text string) error {
	doc, err := parseDocument(text, trustPolicy)
	if err != nil {
		return awsserver.Errorf("MalformedPolicyDocument", "%s", err)
	}
	for _, st := range doc.Statement {
		for _, p := range st.Principal.AWS {
			known := s.accounts[accountOf(p)]
			if known != nil && strings.Contains(p, ":role/") && s.roleByARNLocked(p) == nil {
				return awsserver.Errorf("MalformedPolicyDocument", "Invalid principal in policy: \"AWS\":%q", p)
			}
		}
	}
	ro.trust, ro.trustJSON = doc, text
	return nil
}

func (s *Service) getRole(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	return struct {
		Role roleXML `xml:"Role"`
	}{ro.xml()}, nil
}

func (s *Service) deleteRole(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	if len(ro.attached) > 0 {
		return nil, conflict("DeleteConflict", "Cannot delete entity, must detach all policies first.")
	}
	if len(ro.inline) > 0 {
		return nil, conflict("DeleteConflict", "Cannot delete entity, must delete policies first.")
	}
	delete(acct.roles, ro.Name)
	for key, sess := range s.keys {
		if sess.role == ro {
			delete(s.keys, key)
		}
	}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) listRoles(acct *account, r *awsserver.Request) (any, error) {
	prefix := r.Form.Get("PathPrefix")
	var all []roleXML
	for _, ro := range acct.roles {
		if strings.HasPrefix(ro.Path, prefix) {
			all = append(all, ro.xml())
		}
	}
	items, marker, more, err := page(r, all, func(x roleXML) string { return x.RoleName })
	if err != nil {
		return nil, err
	}
	return struct {
		Roles       []roleXML `xml:"Roles>member"`
		IsTruncated bool      `xml:"IsTruncated"`
		Marker      string    `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}

func (s *Service) updateAssumeRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	return nil, s.setTrust(ro, r.Form.Get("PolicyDocument"))
}

func (s *Service) tagRole(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	maps.Copy(ro.tags, formTags(r))
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) untagRole(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	for _, k := range r.Form.Strings("TagKeys.member") {
		delete(ro.tags, k)
	}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) listRoleTags(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	items, marker, more, err := page(r, tagList(ro.tags), func(t tagXML) string { return t.Key })
	if err != nil {
		return nil, err
	}
	return struct {
		Tags        []tagXML `xml:"Tags>member"`
		IsTruncated bool     `xml:"IsTruncated"`
		Marker      string   `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}

func (s *Service) putRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	name := r.Form.Get("PolicyName")
	if err := validName("policyName", name); err != nil {
		return nil, err
	}
	text := r.Form.Get("PolicyDocument")
	doc, err := parseDocument(text, identityPolicy)
	if err != nil {
		return nil, awsserver.Errorf("MalformedPolicyDocument", "%s", err)
	}
	if _, exists := ro.inline[name]; !exists && len(ro.inline) >= maxAttached {
		return nil, conflict("LimitExceeded", "Cannot exceed quota for inline policies: %d", maxAttached)
	}
	ro.inline[name] = storedDocument{text: text, doc: doc}
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) getRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	name := r.Form.Get("PolicyName")
	d, ok := ro.inline[name]
	if !ok {
		return nil, noSuchEntity("The role policy with name %s cannot be found.", name)
	}
	return struct {
		RoleName       string `xml:"RoleName"`
		PolicyName     string `xml:"PolicyName"`
		PolicyDocument string `xml:"PolicyDocument"`
	}{ro.Name, name, encodedDocument(d.text)}, nil
}

func (s *Service) listRolePolicies(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	items, marker, more, err := page(r, slices.Collect(maps.Keys(ro.inline)), func(n string) string { return n })
	if err != nil {
		return nil, err
	}
	return struct {
		PolicyNames []string `xml:"PolicyNames>member"`
		IsTruncated bool     `xml:"IsTruncated"`
		Marker      string   `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}

func (s *Service) deleteRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	name := r.Form.Get("PolicyName")
	if _, ok := ro.inline[name]; !ok {
		return nil, noSuchEntity("The role policy with name %s cannot be found.", name)
	}
	delete(ro.inline, name)
	return nil, nil //nolint:nilnil // an empty answer
}

// listInstanceProfilesForRole is asked by clean-up scripts before DeleteRole; the lab has no instances.
func (s *Service) listInstanceProfilesForRole(acct *account, r *awsserver.Request) (any, error) {
	if _, err := acct.role(r); err != nil {
		return nil, err
	}
	if _, _, _, err := page(r, []string(nil), func(s string) string { return s }); err != nil {
		return nil, err
	}
	return struct {
		InstanceProfiles struct{} `xml:"InstanceProfiles"`
		IsTruncated      bool     `xml:"IsTruncated"`
	}{}, nil
}
