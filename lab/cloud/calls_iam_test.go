package cloud_test

import (
	"net/url"
	"strings"

	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

const (
	anything = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ecs:List*","Resource":"*"}]}`
	roleName = "walk-role"
)

// rootOf is a trust policy for an account and for ECS.
func (c *caller) rootOf() *string {
	return of(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + c.id +
		`:root","Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}]}`)
}

func iamCalls() (furnish, read, clear []call) {
	furnish = []call{
		{op: "iam.CreateRole", do: func(c *caller) error {
			out, err := c.iam.CreateRole(c.ctx, &awsiam.CreateRoleInput{RoleName: of(roleName), AssumeRolePolicyDocument: of(taskTrust)})
			return want(err, func() bool { return c.set("role", out.Role.Arn) == nil })
		}},
		{op: "iam.UpdateAssumeRolePolicy", do: func(c *caller) error {
			_, err := c.iam.UpdateAssumeRolePolicy(c.ctx, &awsiam.UpdateAssumeRolePolicyInput{RoleName: of(roleName), PolicyDocument: c.rootOf()})
			return err
		}},
		{op: "iam.TagRole", do: func(c *caller) error {
			_, err := c.iam.TagRole(c.ctx, &awsiam.TagRoleInput{RoleName: of(roleName), Tags: []types.Tag{{Key: of("k"), Value: of("v")}}})
			return err
		}},
		{op: "iam.PutRolePolicy", do: func(c *caller) error {
			_, err := c.iam.PutRolePolicy(c.ctx, &awsiam.PutRolePolicyInput{RoleName: of(roleName), PolicyName: of("inline"), PolicyDocument: of(anything)})
			return err
		}},
		{op: "iam.CreatePolicy", do: func(c *caller) error {
			out, err := c.iam.CreatePolicy(c.ctx, &awsiam.CreatePolicyInput{PolicyName: of("walk-policy"), PolicyDocument: of(anything)})
			return want(err, func() bool { return c.set("policy", out.Policy.Arn) == nil })
		}},
		{op: "iam.CreatePolicyVersion", do: func(c *caller) error {
			out, err := c.iam.CreatePolicyVersion(c.ctx, &awsiam.CreatePolicyVersionInput{PolicyArn: c.get("policy"), PolicyDocument: of(anything), SetAsDefault: true})
			return want(err, func() bool { return *out.PolicyVersion.VersionId == "v2" && out.PolicyVersion.IsDefaultVersion })
		}},
		{op: "iam.AttachRolePolicy", do: func(c *caller) error {
			_, err := c.iam.AttachRolePolicy(c.ctx, &awsiam.AttachRolePolicyInput{RoleName: of(roleName), PolicyArn: c.get("policy")})
			return err
		}},
		{op: "iam.EnableOutboundWebIdentityFederation", do: func(c *caller) error {
			out, err := c.iam.EnableOutboundWebIdentityFederation(c.ctx, nil)
			return want(err, func() bool { return c.set("issuer", out.IssuerIdentifier) == nil })
		}},
		{op: "sts.GetWebIdentityToken", do: func(c *caller) error {
			out, err := c.sts.GetWebIdentityToken(c.ctx, &sts.GetWebIdentityTokenInput{Audience: []string{"walk"}, SigningAlgorithm: of("ES384")})
			return want(err, func() bool { return strings.Count(*out.WebIdentityToken, ".") == 2 })
		}},
		{op: "sts.AssumeRole", do: func(c *caller) error {
			out, err := c.sts.AssumeRole(c.ctx, &sts.AssumeRoleInput{RoleArn: c.get("role"), RoleSessionName: of("walk")})
			return want(err, func() bool {
				return *out.AssumedRoleUser.Arn == "arn:aws:sts::"+c.id+":assumed-role/"+roleName+"/walk"
			})
		}},
	}
	return furnish, iamReads(), iamClear()
}

func iamReads() []call {
	return []call{
		{op: "sts.GetCallerIdentity", do: func(c *caller) error {
			out, err := c.sts.GetCallerIdentity(c.ctx, nil)
			return want(err, func() bool { return *out.Account == c.id })
		}},
		{op: "iam.GetOutboundWebIdentityFederationInfo", do: func(c *caller) error {
			out, err := c.iam.GetOutboundWebIdentityFederationInfo(c.ctx, nil)
			return want(err, func() bool { return *out.IssuerIdentifier == c.ids["issuer"] && out.JwtVendingEnabled })
		}},
		{op: "iam.GetRole", do: func(c *caller) error {
			out, err := c.iam.GetRole(c.ctx, &awsiam.GetRoleInput{RoleName: of(roleName)})
			return want(err, func() bool {
				trust, uerr := url.QueryUnescape(*out.Role.AssumeRolePolicyDocument)
				return uerr == nil && trust == *c.rootOf() && len(out.Role.Tags) == 1
			})
		}},
		{op: "iam.ListRoles", do: func(c *caller) error {
			out, err := c.iam.ListRoles(c.ctx, nil)
			return want(err, func() bool { return len(out.Roles) == 1 && *out.Roles[0].Arn == c.ids["role"] })
		}},
		{op: "iam.ListRoleTags", do: func(c *caller) error {
			out, err := c.iam.ListRoleTags(c.ctx, &awsiam.ListRoleTagsInput{RoleName: of(roleName)})
			return want(err, func() bool { return len(out.Tags) == 1 })
		}},
		{op: "iam.GetRolePolicy", do: func(c *caller) error {
			out, err := c.iam.GetRolePolicy(c.ctx, &awsiam.GetRolePolicyInput{RoleName: of(roleName), PolicyName: of("inline")})
			return want(err, func() bool { return *out.PolicyName == "inline" })
		}},
		{op: "iam.ListRolePolicies", do: func(c *caller) error {
			out, err := c.iam.ListRolePolicies(c.ctx, &awsiam.ListRolePoliciesInput{RoleName: of(roleName)})
			return want(err, func() bool { return len(out.PolicyNames) == 1 })
		}},
		{op: "iam.GetPolicy", do: func(c *caller) error {
			out, err := c.iam.GetPolicy(c.ctx, &awsiam.GetPolicyInput{PolicyArn: c.get("policy")})
			return want(err, func() bool { return *out.Policy.AttachmentCount == 1 && *out.Policy.DefaultVersionId == "v2" })
		}},
		{op: "iam.ListPolicies", do: func(c *caller) error {
			out, err := c.iam.ListPolicies(c.ctx, &awsiam.ListPoliciesInput{Scope: types.PolicyScopeTypeLocal})
			return want(err, func() bool { return len(out.Policies) == 1 && *out.Policies[0].Arn == c.ids["policy"] })
		}},
		{op: "iam.GetPolicyVersion", do: func(c *caller) error {
			out, err := c.iam.GetPolicyVersion(c.ctx, &awsiam.GetPolicyVersionInput{PolicyArn: c.get("policy"), VersionId: of("v1")})
			return want(err, func() bool { return !out.PolicyVersion.IsDefaultVersion })
		}},
		{op: "iam.ListPolicyVersions", do: func(c *caller) error {
			out, err := c.iam.ListPolicyVersions(c.ctx, &awsiam.ListPolicyVersionsInput{PolicyArn: c.get("policy")})
			return want(err, func() bool { return len(out.Versions) == 2 })
		}},
		{op: "iam.ListAttachedRolePolicies", do: func(c *caller) error {
			out, err := c.iam.ListAttachedRolePolicies(c.ctx, &awsiam.ListAttachedRolePoliciesInput{RoleName: of(roleName)})
			return want(err, func() bool { return len(out.AttachedPolicies) == 1 })
		}},
		{op: "iam.ListInstanceProfilesForRole", do: func(c *caller) error {
			out, err := c.iam.ListInstanceProfilesForRole(c.ctx, &awsiam.ListInstanceProfilesForRoleInput{RoleName: of(roleName)})
			return want(err, func() bool { return len(out.InstanceProfiles) == 0 })
		}},
	}
}

func iamClear() []call {
	return []call{
		{op: "iam.DisableOutboundWebIdentityFederation", do: func(c *caller) error {
			_, err := c.iam.DisableOutboundWebIdentityFederation(c.ctx, nil)
			return err
		}},
		{op: "iam.DetachRolePolicy", do: func(c *caller) error {
			_, err := c.iam.DetachRolePolicy(c.ctx, &awsiam.DetachRolePolicyInput{RoleName: of(roleName), PolicyArn: c.get("policy")})
			return err
		}},
		{op: "iam.DeletePolicyVersion", do: func(c *caller) error {
			_, err := c.iam.DeletePolicyVersion(c.ctx, &awsiam.DeletePolicyVersionInput{PolicyArn: c.get("policy"), VersionId: of("v1")})
			return err
		}},
		{op: "iam.DeletePolicy", do: func(c *caller) error {
			_, err := c.iam.DeletePolicy(c.ctx, &awsiam.DeletePolicyInput{PolicyArn: c.get("policy")})
			return err
		}},
		{op: "iam.DeleteRolePolicy", do: func(c *caller) error {
			_, err := c.iam.DeleteRolePolicy(c.ctx, &awsiam.DeleteRolePolicyInput{RoleName: of(roleName), PolicyName: of("inline")})
			return err
		}},
		{op: "iam.UntagRole", do: func(c *caller) error {
			_, err := c.iam.UntagRole(c.ctx, &awsiam.UntagRoleInput{RoleName: of(roleName), TagKeys: []string{"k"}})
			return err
		}},
		{op: "iam.DeleteRole", do: func(c *caller) error {
			_, err := c.iam.DeleteRole(c.ctx, &awsiam.DeleteRoleInput{RoleName: of(roleName)})
			return err
		}},
	}
}
