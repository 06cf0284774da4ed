package cloud_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	ststypes "github.com/aws/aws-sdk-go-v2/service/sts/types"
)

func (l *lab) iam() *awsiam.Client { return awsiam.NewFromConfig(l.admin()) }

func trust(principal string, actions ...string) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":` + principal + `,"Action":["` + strings.Join(actions, `","`) + `"]}]}`
}

func (l *lab) role(name, trust string) string {
	l.t.Helper()
	return *must(l.iam().CreateRole(l.t.Context(), &awsiam.CreateRoleInput{RoleName: aws.String(name), AssumeRolePolicyDocument: aws.String(trust)}))(l.t).Role.Arn
}

func (l *lab) inline(role, policy string) {
	l.t.Helper()
	must(l.iam().PutRolePolicy(l.t.Context(), &awsiam.PutRolePolicyInput{RoleName: aws.String(role), PolicyName: aws.String("inline"), PolicyDocument: aws.String(policy)}))(l.t)
}

// as assumes a role with the credentials of cfg and returns a configuration that signs as its session.
func (l *lab) as(cfg aws.Config, role string, change ...func(*sts.AssumeRoleInput)) (aws.Config, *sts.AssumeRoleOutput, error) {
	in := &sts.AssumeRoleInput{RoleArn: aws.String(role), RoleSessionName: aws.String("test-session")}
	for _, c := range change {
		c(in)
	}
	out, err := sts.NewFromConfig(cfg).AssumeRole(l.t.Context(), in)
	if err != nil {
		return aws.Config{}, nil, err
	}
	return l.config(*out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken), out, nil
}

const rootTrust = `{"AWS":"arn:aws:iam::` + account + `:root"}`

func TestAssumeRoleSession(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	arn := l.role("reader", trust(rootTrust, "sts:AssumeRole"))
	cfg, out, err := l.as(l.admin(), arn)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(*out.Credentials.AccessKeyId, "ASIA") || time.Until(*out.Credentials.Expiration) > time.Hour {
		t.Errorf("credentials = %s until %s", *out.Credentials.AccessKeyId, out.Credentials.Expiration)
	}
	who := must(sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil))(t)
	if want := "arn:aws:sts::" + account + ":assumed-role/reader/test-session"; *who.Arn != want || !strings.HasSuffix(*who.UserId, ":test-session") {
		t.Errorf("GetCallerIdentity() = %s %s, want %s", *who.Arn, *who.UserId, want)
	}

	_, err = awsecs.NewFromConfig(cfg).ListClusters(t.Context(), nil)
	wantCode(t, "no policy", err, "AccessDeniedException")
	want := "User: " + *who.Arn + " is not authorized to perform: ecs:ListClusters on resource: * because no identity-based policy allows the ecs:ListClusters action"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q", err, want)
	}
	l.inline("reader", `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"ecs:List*","Resource":"*"}}`)
	if _, err := awsecs.NewFromConfig(cfg).ListClusters(t.Context(), nil); err != nil {
		t.Errorf("with a policy: %v", err)
	}
	l.inline("reader", `{"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"ecs:ListClusters","Resource":"*"}]}`)
	_, err = awsecs.NewFromConfig(cfg).ListClusters(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "with an explicit deny in an identity-based policy") {
		t.Errorf("with a deny: %v", err)
	}
	noToken := l.config(*out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, "")
	_, err = awsecs.NewFromConfig(noToken).ListClusters(t.Context(), nil)
	wantCode(t, "session key without its token", err, "UnrecognizedClientException")
}

func TestExpiredSession(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cfg, _, err := l.as(l.admin(), l.role("short", trust(rootTrust, "sts:AssumeRole")), func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(900) })
	if err != nil {
		t.Fatal(err)
	}
	l.clock.advance(16 * time.Minute)
	_, err = awsecs.NewFromConfig(cfg).ListClusters(t.Context(), nil)
	wantCode(t, "ecs", err, "ExpiredTokenException")
	_, err = sts.NewFromConfig(cfg).GetCallerIdentity(t.Context(), nil)
	wantCode(t, "sts", err, "ExpiredToken")
}

func TestAssumeRoleRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	second := l.config("AKIALABADMIN00000002", "secret-two", "")
	plain := l.role("plain", trust(rootTrust, "sts:AssumeRole"))
	external := l.role("external", `{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::`+account2+`:root"},"Action":"sts:AssumeRole",`+
		`"Condition":{"StringEquals":{"sts:ExternalId":"blue"}}}]}`)
	service := l.role("service", trust(`{"Service":"ecs-tasks.amazonaws.com"}`, "sts:AssumeRole"))
	tag := func(in *sts.AssumeRoleInput) {
		in.Tags = []ststypes.Tag{{Key: aws.String("team"), Value: aws.String("blue")}}
	}
	for _, c := range []struct {
		name   string
		cfg    aws.Config
		role   string
		change func(*sts.AssumeRoleInput)
		want   string
	}{
		{"no such role", l.admin(), "arn:aws:iam::" + account + ":role/none", nil, "AccessDenied"},
		{"other account", second, plain, nil, "AccessDenied"},
		{"service only", l.admin(), service, nil, "AccessDenied"},
		{"tags without TagSession", l.admin(), plain, tag, "AccessDenied"},
		{"no external id", second, external, nil, "AccessDenied"},
		{"wrong external id", second, external, func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("red") }, "AccessDenied"},
		{"right external id", second, external, func(in *sts.AssumeRoleInput) { in.ExternalId = aws.String("blue") }, ""},
		{"session name", l.admin(), plain, func(in *sts.AssumeRoleInput) { in.RoleSessionName = aws.String("a b") }, "ValidationError"},
		{"too long", l.admin(), plain, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7200) }, "ValidationError"},
	} {
		if c.change == nil {
			c.change = func(*sts.AssumeRoleInput) {}
		}
		_, _, err := l.as(c.cfg, c.role, c.change)
		wantCode(t, c.name, err, c.want)
	}
}

// TestGuideRoleChain is the guide's: a role for a pod assumes istiod-local, which may read ECS.
func TestGuideRoleChain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	pod := l.role("istiod-eks-ecs-demo", trust(rootTrust, "sts:AssumeRole", "sts:TagSession"))
	local := l.role("istiod-local", trust(`{"AWS":"`+pod+`"}`, "sts:AssumeRole"))
	must(l.iam().AttachRolePolicy(t.Context(), &awsiam.AttachRolePolicyInput{RoleName: aws.String("istiod-local"),
		PolicyArn: aws.String("arn:aws:iam::aws:policy/AmazonECS_FullAccess")}))(t)
	l.inline("istiod-eks-ecs-demo", `{"Statement":[{"Effect":"Allow","Action":["sts:AssumeRole","sts:TagSession"],"Resource":"`+local+`"}]}`)
	// As a Pod Identity session, it carries a transitive tag.
	first, _, err := l.as(l.admin(), pod, func(in *sts.AssumeRoleInput) {
		in.Tags = []ststypes.Tag{{Key: aws.String("kubernetes-namespace"), Value: aws.String("istio-system")}}
		in.TransitiveTagKeys = []string{"kubernetes-namespace"}
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = l.as(first, local)
	wantCode(t, "trust without TagSession", err, "AccessDenied")
	if err == nil || !strings.Contains(err.Error(), "sts:TagSession") {
		t.Errorf("error = %v, want it to name sts:TagSession", err)
	}
	must(l.iam().UpdateAssumeRolePolicy(t.Context(), &awsiam.UpdateAssumeRolePolicyInput{RoleName: aws.String("istiod-local"),
		PolicyDocument: aws.String(trust(`{"AWS":"`+pod+`"}`, "sts:AssumeRole", "sts:TagSession"))}))(t)
	second, _, err := l.as(first, local)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := awsecs.NewFromConfig(second).ListClusters(t.Context(), nil); err != nil {
		t.Errorf("ListClusters as istiod-local: %v", err)
	}
	_, err = awsecs.NewFromConfig(first).ListClusters(t.Context(), nil)
	wantCode(t, "the pod's own role", err, "AccessDeniedException")
	_, _, err = l.as(first, local, func(in *sts.AssumeRoleInput) { in.DurationSeconds = aws.Int32(7200) })
	wantCode(t, "chained for two hours", err, "ValidationError")
}

// TestLeastPrivilege is the policy of the discovery as the documentation gives it.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("ecs-demo-1")
	l.cluster("other")
	base := "arn:aws:ecs:" + region + ":" + account
	l.role("discovery", trust(rootTrust, "sts:AssumeRole"))
	l.inline("discovery", `{"Version":"2012-10-17","Statement":[
	 {"Effect":"Allow","Action":["ecs:ListClusters","ecs:DescribeTaskDefinition"],"Resource":"*"},
	 {"Effect":"Allow","Action":"ecs:DescribeClusters","Resource":"`+base+`:cluster/ecs-demo*"},
	 {"Effect":"Allow","Action":["ecs:ListServices","ecs:ListTasks"],"Resource":"*","Condition":{"ArnLike":{"ecs:cluster":"`+base+`:cluster/ecs-demo*"}}},
	 {"Effect":"Allow","Action":["ecs:DescribeServices","ecs:DescribeTasks"],"Resource":["`+base+`:service/ecs-demo*/*","`+base+`:task/ecs-demo*/*"]}]}`)
	cfg, _, err := l.as(l.admin(), "arn:aws:iam::"+account+":role/discovery")
	if err != nil {
		t.Fatal(err)
	}
	c := awsecs.NewFromConfig(cfg)
	ctx := t.Context()
	for _, x := range []struct {
		cluster, want string
	}{{"ecs-demo-1", ""}, {"other", "AccessDeniedException"}} {
		_, err = c.DescribeClusters(ctx, &awsecs.DescribeClustersInput{Clusters: []string{x.cluster}})
		wantCode(t, "DescribeClusters "+x.cluster, err, x.want)
		_, err = c.ListServices(ctx, &awsecs.ListServicesInput{Cluster: aws.String(x.cluster)})
		wantCode(t, "ListServices "+x.cluster, err, x.want)
		_, err = c.ListTasks(ctx, &awsecs.ListTasksInput{Cluster: aws.String(x.cluster)})
		wantCode(t, "ListTasks "+x.cluster, err, x.want)
		_, err = c.DescribeServices(ctx, &awsecs.DescribeServicesInput{Cluster: aws.String(x.cluster), Services: []string{"x"}})
		wantCode(t, "DescribeServices "+x.cluster, err, x.want)
		_, err = c.DescribeTasks(ctx, &awsecs.DescribeTasksInput{Cluster: aws.String(x.cluster), Tasks: []string{"x"}})
		wantCode(t, "DescribeTasks "+x.cluster, err, x.want)
	}
	_, err = c.CreateCluster(ctx, &awsecs.CreateClusterInput{ClusterName: aws.String("ecs-demo-9")})
	wantCode(t, "CreateCluster", err, "AccessDeniedException")
}

func TestRolesAndPolicies(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := l.iam(), t.Context()
	_, err := c.GetRole(ctx, &awsiam.GetRoleInput{RoleName: aws.String("eks-ecs-task-role")})
	wantCode(t, "GetRole before", err, "NoSuchEntity")
	doc := trust(`{"Service":"ecs-tasks.amazonaws.com"}`, "sts:AssumeRole")
	role := must(c.CreateRole(ctx, &awsiam.CreateRoleInput{RoleName: aws.String("eks-ecs-task-role"), Path: aws.String("/ecs/ambient/"),
		AssumeRolePolicyDocument: aws.String(doc), Tags: []iamtypes.Tag{{Key: aws.String("a"), Value: aws.String("b")}}}))(t).Role
	if want := "arn:aws:iam::" + account + ":role/ecs/ambient/eks-ecs-task-role"; *role.Arn != want {
		t.Errorf("role ARN = %s, want %s", *role.Arn, want)
	}
	got := must(c.GetRole(ctx, &awsiam.GetRoleInput{RoleName: role.RoleName}))(t).Role
	if text, err := url.QueryUnescape(*got.AssumeRolePolicyDocument); err != nil || text != doc {
		t.Errorf("trust policy = %q, want %q", text, doc)
	}
	if len(got.Tags) != 1 || *got.MaxSessionDuration != 3600 {
		t.Errorf("tags %v, max session %d", got.Tags, *got.MaxSessionDuration)
	}
	_, err = c.CreateRole(ctx, &awsiam.CreateRoleInput{RoleName: role.RoleName, AssumeRolePolicyDocument: aws.String(doc)})
	wantCode(t, "CreateRole again", err, "EntityAlreadyExists")
	_, err = c.CreateRole(ctx, &awsiam.CreateRoleInput{RoleName: aws.String("bad"), AssumeRolePolicyDocument: aws.String(`{"Statement":[]}`)})
	wantCode(t, "CreateRole with a bad document", err, "MalformedPolicyDocument")

	text := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"logs:*","Resource":"*"}]}`
	pol := must(c.CreatePolicy(ctx, &awsiam.CreatePolicyInput{PolicyName: aws.String("eks-ecs-task-policy"), Path: aws.String("/ecs/ambient/"), PolicyDocument: aws.String(text)}))(t).Policy
	must(c.AttachRolePolicy(ctx, &awsiam.AttachRolePolicyInput{RoleName: role.RoleName, PolicyArn: pol.Arn}))(t)
	must(c.CreatePolicyVersion(ctx, &awsiam.CreatePolicyVersionInput{PolicyArn: pol.Arn, PolicyDocument: aws.String(text), SetAsDefault: true}))(t)
	if p := must(c.GetPolicy(ctx, &awsiam.GetPolicyInput{PolicyArn: pol.Arn}))(t).Policy; *p.DefaultVersionId != "v2" || *p.AttachmentCount != 1 {
		t.Errorf("policy = %s, attached %d", *p.DefaultVersionId, *p.AttachmentCount)
	}
	if list := must(c.ListPolicies(ctx, &awsiam.ListPoliciesInput{Scope: iamtypes.PolicyScopeTypeLocal}))(t).Policies; len(list) != 1 {
		t.Errorf("local policies = %d, want 1", len(list))
	}
	if list := must(c.ListAttachedRolePolicies(ctx, &awsiam.ListAttachedRolePoliciesInput{RoleName: role.RoleName}))(t).AttachedPolicies; len(list) != 1 || *list[0].PolicyName != "eks-ecs-task-policy" {
		t.Errorf("attached = %v", list)
	}
	l.inline("eks-ecs-task-role", text)
	inline := must(c.GetRolePolicy(ctx, &awsiam.GetRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("inline")}))(t)
	if got, err := url.QueryUnescape(*inline.PolicyDocument); err != nil || got != text {
		t.Errorf("inline policy = %q", got)
	}
	_, err = c.DeleteRole(ctx, &awsiam.DeleteRoleInput{RoleName: role.RoleName})
	wantCode(t, "DeleteRole with policies", err, "DeleteConflict")
	_, err = c.DeletePolicy(ctx, &awsiam.DeletePolicyInput{PolicyArn: pol.Arn})
	wantCode(t, "DeletePolicy while attached", err, "DeleteConflict")
	must(c.DetachRolePolicy(ctx, &awsiam.DetachRolePolicyInput{RoleName: role.RoleName, PolicyArn: pol.Arn}))(t)
	must(c.DeletePolicyVersion(ctx, &awsiam.DeletePolicyVersionInput{PolicyArn: pol.Arn, VersionId: aws.String("v1")}))(t)
	must(c.DeletePolicy(ctx, &awsiam.DeletePolicyInput{PolicyArn: pol.Arn}))(t)
	must(c.DeleteRolePolicy(ctx, &awsiam.DeleteRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("inline")}))(t)
	must(c.DeleteRole(ctx, &awsiam.DeleteRoleInput{RoleName: role.RoleName}))(t)
	if p := must(c.GetPolicy(ctx, &awsiam.GetPolicyInput{PolicyArn: aws.String("arn:aws:iam::aws:policy/AmazonECS_FullAccess")}))(t).Policy; *p.PolicyName != "AmazonECS_FullAccess" {
		t.Errorf("managed policy = %s", *p.PolicyName)
	}
}
