package iam

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

type policyXML struct {
	PolicyName       string `xml:"PolicyName"`
	PolicyID         string `xml:"PolicyId"`
	ARN              string `xml:"Arn"`
	Path             string `xml:"Path"`
	DefaultVersionID string `xml:"DefaultVersionId"`
	AttachmentCount  int    `xml:"AttachmentCount"`
	IsAttachable     bool   `xml:"IsAttachable"`
	Description      string `xml:"Description,omitempty"`
	CreateDate       string `xml:"CreateDate"`
	UpdateDate       string `xml:"UpdateDate"`
}

type versionXML struct {
	Document         string `xml:"Document,omitempty"`
	VersionID        string `xml:"VersionId"`
	IsDefaultVersion bool   `xml:"IsDefaultVersion"`
	CreateDate       string `xml:"CreateDate"`
}

// managedEpoch is the creation date shown for AWS managed policies.
func managedEpoch() time.Time { return time.Date(2015, 2, 6, 18, 40, 0, 0, time.UTC) }

func (a *account) attachments(arn string) int {
	n := 0
	for _, ro := range a.roles {
		if slices.Contains(ro.attached, arn) {
			n++
		}
	}
	return n
}

func (a *account) policyXML(p *policy) policyXML {
	return policyXML{PolicyName: p.Name, PolicyID: p.ID, ARN: p.ARN, Path: p.Path, DefaultVersionID: p.defaultVersion,
		AttachmentCount: a.attachments(p.ARN), IsAttachable: true, Description: p.Description, CreateDate: iso(p.Created), UpdateDate: iso(p.Updated)}
}

// managed returns an AWS managed policy or one of the account's own.
func (a *account) managed(arn string) (policyXML, error) {
	if _, ok := awsManaged(arn); ok {
		name := strings.TrimPrefix(arn, "arn:aws:iam::aws:policy/")
		cut := strings.LastIndex(name, "/") + 1
		at := iso(managedEpoch())
		return policyXML{PolicyName: name[cut:], PolicyID: "ANPAI" + strings.ToUpper(strings.ReplaceAll(name[cut:], "_", "")), ARN: arn,
			Path: "/" + name[:cut], DefaultVersionID: "v1", AttachmentCount: a.attachments(arn), IsAttachable: true, CreateDate: at, UpdateDate: at}, nil
	}
	if p := a.policies[arn]; p != nil {
		return a.policyXML(p), nil
	}
	return policyXML{}, noSuchEntity("Policy %s does not exist or is not attachable.", arn)
}

func (a *account) policy(r *awsserver.Request) (*policy, error) {
	arn := r.Form.Get("PolicyArn")
	if p := a.policies[arn]; p != nil {
		return p, nil
	}
	return nil, noSuchEntity("Policy %s was not found.", arn)
}

func (s *Service) createPolicy(acct *account, r *awsserver.Request) (any, error) {
	name, path := r.Form.Get("PolicyName"), pathOf(r)
	if err := validName("policyName", name); err != nil {
		return nil, err
	}
	if err := validPath(path); err != nil {
		return nil, err
	}
	text := r.Form.Get("PolicyDocument")
	doc, err := parseDocument(text, identityPolicy)
	if err != nil {
		return nil, awsserver.Errorf("MalformedPolicyDocument", "%s", err)
	}
	for _, p := range acct.policies {
		if p.Name == name {
			return nil, conflict("EntityAlreadyExists", "A policy called %s already exists. Duplicate names are not allowed.", name)
		}
	}
	if len(acct.policies) >= maxPolicies {
		return nil, conflict("LimitExceeded", "Cannot exceed quota for PoliciesPerAccount: %d", maxPolicies)
	}
	now := s.now()
	p := &policy{ID: "ANPA" + randomID(17), Name: name, Path: path, ARN: "arn:aws:iam::" + acct.id + ":policy" + path + name,
		Description: r.Form.Get("Description"), Created: now, Updated: now, defaultVersion: "v1", next: 2,
		versions: []policyVersion{{ID: "v1", Created: now, storedDocument: storedDocument{text: text, doc: doc}}}}
	acct.policies[p.ARN] = p
	return struct {
		Policy policyXML `xml:"Policy"`
	}{acct.policyXML(p)}, nil
}

func (s *Service) getPolicy(acct *account, r *awsserver.Request) (any, error) {
	p, err := acct.managed(r.Form.Get("PolicyArn"))
	if err != nil {
		return nil, noSuchEntity("Policy %s was not found.", r.Form.Get("PolicyArn"))
	}
	return struct {
		Policy policyXML `xml:"Policy"`
	}{p}, nil
}

func (s *Service) listPolicies(acct *account, r *awsserver.Request) (any, error) {
	scope := r.Form.Get("Scope")
	if scope != "" && scope != "All" && scope != "AWS" && scope != "Local" {
		return nil, awsserver.Errorf("ValidationError", "Scope must be All, AWS or Local")
	}
	prefix := r.Form.Get("PathPrefix")
	var all []policyXML
	if scope != "AWS" {
		for _, p := range acct.policies {
			all = append(all, acct.policyXML(p))
		}
	}
	if scope != "Local" {
		for _, n := range awsManagedNames() {
			p, err := acct.managed("arn:aws:iam::aws:policy/" + n)
			if err != nil {
				return nil, err
			}
			all = append(all, p)
		}
	}
	onlyAttached := r.Form.Get("OnlyAttached") == "true"
	all = slices.DeleteFunc(all, func(p policyXML) bool {
		return !strings.HasPrefix(p.Path, prefix) || onlyAttached && p.AttachmentCount == 0
	})
	items, marker, more, err := page(r, all, func(p policyXML) string { return p.ARN })
	if err != nil {
		return nil, err
	}
	return struct {
		Policies    []policyXML `xml:"Policies>member"`
		IsTruncated bool        `xml:"IsTruncated"`
		Marker      string      `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}

func (s *Service) deletePolicy(acct *account, r *awsserver.Request) (any, error) {
	p, err := acct.policy(r)
	if err != nil {
		return nil, err
	}
	if acct.attachments(p.ARN) > 0 {
		return nil, conflict("DeleteConflict", "Cannot delete a policy attached to entities.")
	}
	if len(p.versions) > 1 {
		return nil, conflict("DeleteConflict", "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The default version is deleted with the policy.")
	}
	delete(acct.policies, p.ARN)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) createPolicyVersion(acct *account, r *awsserver.Request) (any, error) {
	p, err := acct.policy(r)
	if err != nil {
		return nil, err
	}
	text := r.Form.Get("PolicyDocument")
	doc, err := parseDocument(text, identityPolicy)
	if err != nil {
		return nil, awsserver.Errorf("MalformedPolicyDocument", "%s", err)
	}
	if len(p.versions) >= maxPolicyVersions {
		return nil, conflict("LimitExceeded", "A managed policy can have up to %d versions. Before you create a new version, you must delete an existing version.", maxPolicyVersions)
	}
	now := s.now()
	v := policyVersion{ID: "v" + strconv.Itoa(p.next), Created: now, storedDocument: storedDocument{text: text, doc: doc}}
	p.next++
	p.versions = append(p.versions, v)
	if r.Form.Get("SetAsDefault") == "true" {
		p.defaultVersion = v.ID
	}
	p.Updated = now
	return struct {
		PolicyVersion versionXML `xml:"PolicyVersion"`
	}{versionXML{VersionID: v.ID, IsDefaultVersion: p.defaultVersion == v.ID, CreateDate: iso(now)}}, nil
}

func (s *Service) getPolicyVersion(acct *account, r *awsserver.Request) (any, error) {
	id, arn := r.Form.Get("VersionId"), r.Form.Get("PolicyArn")
	if d, ok := awsManaged(arn); ok && id == "v1" {
		return struct {
			PolicyVersion versionXML `xml:"PolicyVersion"`
		}{versionXML{Document: encodedDocument(d.text), VersionID: id, IsDefaultVersion: true, CreateDate: iso(managedEpoch())}}, nil
	}
	p, err := acct.policy(r)
	if err != nil {
		return nil, err
	}
	for _, v := range p.versions {
		if v.ID == id {
			return struct {
				PolicyVersion versionXML `xml:"PolicyVersion"`
			}{versionXML{Document: encodedDocument(v.text), VersionID: id, IsDefaultVersion: p.defaultVersion == id, CreateDate: iso(v.Created)}}, nil
		}
	}
	return nil, noSuchEntity("Policy %s version %s does not exist or is not attachable.", arn, id)
}

func (s *Service) listPolicyVersions(acct *account, r *awsserver.Request) (any, error) {
	p, err := acct.policy(r)
	if err != nil {
		return nil, err
	}
	var all []versionXML
	for _, v := range p.versions {
		all = append(all, versionXML{VersionID: v.ID, IsDefaultVersion: v.ID == p.defaultVersion, CreateDate: iso(v.Created)})
	}
	items, marker, more, err := page(r, all, func(v versionXML) string { return v.VersionID })
	if err != nil {
		return nil, err
	}
	return struct {
		Versions    []versionXML `xml:"Versions>member"`
		IsTruncated bool         `xml:"IsTruncated"`
		Marker      string       `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}

func (s *Service) deletePolicyVersion(acct *account, r *awsserver.Request) (any, error) {
	p, err := acct.policy(r)
	if err != nil {
		return nil, err
	}
	id := r.Form.Get("VersionId")
	if id == p.defaultVersion {
		return nil, conflict("DeleteConflict", "Cannot delete the default version of a policy.")
	}
	i := slices.IndexFunc(p.versions, func(v policyVersion) bool { return v.ID == id })
	if i < 0 {
		return nil, noSuchEntity("Policy %s version %s does not exist or is not attachable.", p.ARN, id)
	}
	p.versions = slices.Delete(p.versions, i, i+1)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) attachRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	arn := r.Form.Get("PolicyArn")
	if _, err := acct.managed(arn); err != nil {
		return nil, err
	}
	if slices.Contains(ro.attached, arn) {
		return nil, nil //nolint:nilnil // attaching twice is no change
	}
	if len(ro.attached) >= maxAttached {
		return nil, conflict("LimitExceeded", "Cannot exceed quota for PoliciesPerRole: %d", maxAttached)
	}
	ro.attached = append(ro.attached, arn)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) detachRolePolicy(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	arn := r.Form.Get("PolicyArn")
	i := slices.Index(ro.attached, arn)
	if i < 0 {
		return nil, noSuchEntity("Policy %s was not found.", arn)
	}
	ro.attached = slices.Delete(ro.attached, i, i+1)
	return nil, nil //nolint:nilnil // an empty answer
}

func (s *Service) listAttachedRolePolicies(acct *account, r *awsserver.Request) (any, error) {
	ro, err := acct.role(r)
	if err != nil {
		return nil, err
	}
	type attached struct {
		PolicyName string `xml:"PolicyName"`
		PolicyARN  string `xml:"PolicyArn"`
	}
	var all []attached
	for _, arn := range ro.attached {
		all = append(all, attached{arn[strings.LastIndex(arn, "/")+1:], arn})
	}
	items, marker, more, err := page(r, all, func(a attached) string { return a.PolicyARN })
	if err != nil {
		return nil, err
	}
	return struct {
		AttachedPolicies []attached `xml:"AttachedPolicies>member"`
		IsTruncated      bool       `xml:"IsTruncated"`
		Marker           string     `xml:"Marker,omitempty"`
	}{items, more, marker}, nil
}
