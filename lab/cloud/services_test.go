package cloud_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/lab/cloud/eks"
)

func filter(name string, values ...string) ec2types.Filter {
	return ec2types.Filter{Name: aws.String(name), Values: values}
}

func TestVPC(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := awsec2.NewFromConfig(l.admin()), t.Context()
	vpcs := must(c.DescribeVpcs(ctx, &awsec2.DescribeVpcsInput{Filters: []ec2types.Filter{filter("is-default", "true")}}))(t).Vpcs
	if len(vpcs) != 1 || *vpcs[0].VpcId != ec2.DefaultVPCID || *vpcs[0].CidrBlock != "10.0.0.0/16" {
		t.Fatalf("VPCs = %+v", vpcs)
	}
	for _, x := range []struct {
		filters []ec2types.Filter
		want    int
	}{
		{[]ec2types.Filter{filter("vpc-id", ec2.DefaultVPCID), filter("tag:Name", "*Public*")}, 2},
		{[]ec2types.Filter{filter("tag:Name", "*Private*")}, 0},
		{[]ec2types.Filter{filter("availability-zone", "us-east-2b")}, 1},
		{[]ec2types.Filter{filter("no-such-filter", "x")}, 0},
	} {
		if got := must(c.DescribeSubnets(ctx, &awsec2.DescribeSubnetsInput{Filters: x.filters}))(t).Subnets; len(got) != x.want {
			t.Errorf("subnets with %s = %d, want %d", *x.filters[len(x.filters)-1].Name, len(got), x.want)
		}
	}
	_, err := c.DescribeSubnets(ctx, &awsec2.DescribeSubnetsInput{SubnetIds: []string{"subnet-none"}})
	wantCode(t, "unknown subnet", err, "InvalidSubnetID.NotFound")
}

func TestSecurityGroups(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := awsec2.NewFromConfig(l.admin()), t.Context()
	eksGroups := must(c.DescribeSecurityGroups(ctx, &awsec2.DescribeSecurityGroupsInput{Filters: []ec2types.Filter{filter("group-name", "eks-cluster-sg*")}}))(t).SecurityGroups
	if len(eksGroups) != 1 {
		t.Errorf("EKS security groups = %d, want 1", len(eksGroups))
	}
	made := must(c.CreateSecurityGroup(ctx, &awsec2.CreateSecurityGroupInput{GroupName: aws.String("ecs-demo-sg"), Description: aws.String("d"), VpcId: aws.String(ec2.DefaultVPCID)}))(t)
	_, err := c.CreateSecurityGroup(ctx, &awsec2.CreateSecurityGroupInput{GroupName: aws.String("ecs-demo-sg"), Description: aws.String("d"), VpcId: aws.String(ec2.DefaultVPCID)})
	wantCode(t, "the name again", err, "InvalidGroup.Duplicate")
	all := []ec2types.IpPermission{{IpProtocol: aws.String("-1"), IpRanges: []ec2types.IpRange{{CidrIp: aws.String("0.0.0.0/0")}}}}
	hbone := []ec2types.IpPermission{{IpProtocol: aws.String("tcp"), FromPort: aws.Int32(15008), ToPort: aws.Int32(15008), UserIdGroupPairs: []ec2types.UserIdGroupPair{{GroupId: eksGroups[0].GroupId}}}}
	must(c.AuthorizeSecurityGroupIngress(ctx, &awsec2.AuthorizeSecurityGroupIngressInput{GroupId: made.GroupId, IpPermissions: all}))(t)
	must(c.AuthorizeSecurityGroupIngress(ctx, &awsec2.AuthorizeSecurityGroupIngressInput{GroupId: made.GroupId, IpPermissions: hbone}))(t)
	_, err = c.AuthorizeSecurityGroupIngress(ctx, &awsec2.AuthorizeSecurityGroupIngressInput{GroupId: made.GroupId, IpPermissions: all})
	wantCode(t, "the rule again", err, "InvalidPermission.Duplicate")
	g := must(c.DescribeSecurityGroups(ctx, &awsec2.DescribeSecurityGroupsInput{GroupIds: []string{*made.GroupId}}))(t).SecurityGroups[0]
	if len(g.IpPermissions) != 2 || *g.IpPermissions[1].FromPort != 15008 || *g.IpPermissions[1].UserIdGroupPairs[0].GroupId != *eksGroups[0].GroupId || len(g.IpPermissionsEgress) != 1 {
		t.Errorf("rules = %+v, egress %+v", g.IpPermissions, g.IpPermissionsEgress)
	}
	_, err = c.DeleteSecurityGroup(ctx, &awsec2.DeleteSecurityGroupInput{GroupId: eksGroups[0].GroupId})
	wantCode(t, "delete a group a rule names", err, "DependencyViolation")
	must(c.RevokeSecurityGroupIngress(ctx, &awsec2.RevokeSecurityGroupIngressInput{GroupId: made.GroupId, IpPermissions: g.IpPermissions}))(t)
	must(c.RevokeSecurityGroupEgress(ctx, &awsec2.RevokeSecurityGroupEgressInput{GroupId: made.GroupId, IpPermissions: g.IpPermissionsEgress}))(t)
	_, err = c.RevokeSecurityGroupEgress(ctx, &awsec2.RevokeSecurityGroupEgressInput{GroupId: made.GroupId, IpPermissions: all})
	wantCode(t, "revoke what is not there", err, "InvalidPermission.NotFound")
	must(c.DeleteSecurityGroup(ctx, &awsec2.DeleteSecurityGroupInput{GroupId: made.GroupId}))(t)
	_, err = c.DescribeSecurityGroups(ctx, &awsec2.DescribeSecurityGroupsInput{GroupIds: []string{*made.GroupId}})
	wantCode(t, "after deletion", err, "InvalidGroup.NotFound")
}

func TestEKSCluster(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := awseks.NewFromConfig(l.admin()), t.Context()
	if names := must(c.ListClusters(ctx, nil))(t).Clusters; len(names) != 1 || names[0] != "demo" {
		t.Errorf("clusters = %v", names)
	}
	k := must(c.DescribeCluster(ctx, &awseks.DescribeClusterInput{Name: aws.String("demo")}))(t).Cluster
	if *k.ResourcesVpcConfig.VpcId != ec2.DefaultVPCID || *k.CertificateAuthority.Data != "UEVN" || k.Status != "ACTIVE" || *k.ResourcesVpcConfig.ClusterSecurityGroupId == "" || k.CreatedAt == nil {
		t.Errorf("cluster = %+v, VPC %+v", k, k.ResourcesVpcConfig)
	}
	_, err := c.DescribeCluster(ctx, &awseks.DescribeClusterInput{Name: aws.String("none")})
	wantCode(t, "unknown cluster", err, "ResourceNotFoundException")
}

// TestPodIdentity is the whole way from an association to ECS: pod token, agent, assumed role.
func TestPodIdentity(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := awseks.NewFromConfig(l.admin()), t.Context()
	pod := l.role("istiod-eks-ecs-demo", trust(`{"Service":"pods.eks.amazonaws.com"}`, "sts:AssumeRole", "sts:TagSession"))
	local := l.role("istiod-local", trust(`{"AWS":"`+pod+`"}`, "sts:AssumeRole", "sts:TagSession"))
	must(l.iam().AttachRolePolicy(ctx, &awsiam.AttachRolePolicyInput{RoleName: aws.String("istiod-local"), PolicyArn: aws.String("arn:aws:iam::aws:policy/AmazonECS_FullAccess")}))(t)
	l.inline("istiod-eks-ecs-demo", `{"Statement":[{"Effect":"Allow","Action":["sts:AssumeRole","sts:TagSession"],"Resource":"`+local+`"}]}`)
	if l.cloud.Association(ctx, "istio-system", "isthmus-controller") {
		t.Error("an association exists before it was made")
	}
	in := &awseks.CreatePodIdentityAssociationInput{ClusterName: aws.String("demo"), Namespace: aws.String("istio-system"), ServiceAccount: aws.String("isthmus-controller"), RoleArn: aws.String(pod)}
	a := must(c.CreatePodIdentityAssociation(ctx, in))(t).Association
	_, err := c.CreatePodIdentityAssociation(ctx, in)
	wantCode(t, "again", err, "ResourceInUseException")
	if !l.cloud.Association(ctx, "istio-system", "isthmus-controller") || l.cloud.Association(ctx, "default", "isthmus-controller") {
		t.Error("Association() does not follow the associations")
	}
	list := must(c.ListPodIdentityAssociations(ctx, &awseks.ListPodIdentityAssociationsInput{ClusterName: aws.String("demo"), Namespace: aws.String("istio-system")}))(t).Associations
	if len(list) != 1 || *list[0].AssociationId != *a.AssociationId {
		t.Errorf("associations = %v", list)
	}
	agent := l.cloud.PodIdentityAgent()
	if code, _ := get(t, agent, "/v1/credentials", "Authorization", "good"); code != http.StatusServiceUnavailable {
		t.Errorf("agent without Kubernetes = %d, want 503", code)
	}
	l.cloud.SetTokenReview(func(_ context.Context, token string) (eks.Subject, error) {
		switch token {
		case "good":
			return eks.Subject{Namespace: "istio-system", ServiceAccount: "isthmus-controller", PodName: "isthmus-controller-1", PodUID: "u"}, nil
		case "other":
			return eks.Subject{Namespace: "default", ServiceAccount: "default"}, nil
		}
		return eks.Subject{}, errors.New("token is not valid")
	})
	for token, want := range map[string]int{"": http.StatusBadRequest, "bad": http.StatusForbidden, "other": http.StatusNotFound} {
		if code, _ := get(t, agent, "/v1/credentials", "Authorization", token); code != want {
			t.Errorf("agent with token %q = %d, want %d", token, code, want)
		}
	}
	code, creds := get(t, agent, "/v1/credentials", "Authorization", "good")
	if code != http.StatusOK {
		t.Fatalf("agent = %d %v", code, creds)
	}
	cfg := l.config(creds["AccessKeyId"].(string), creds["SecretAccessKey"].(string), creds["Token"].(string))
	if who := must(sts.NewFromConfig(cfg).GetCallerIdentity(ctx, nil))(t); !strings.HasPrefix(*who.Arn, "arn:aws:sts::"+account+":assumed-role/istiod-eks-ecs-demo/eks-demo-isthmus") {
		t.Errorf("the pod is %s", *who.Arn)
	}
	second, _, err := l.as(cfg, local)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := awsecs.NewFromConfig(second).ListClusters(ctx, nil); err != nil {
		t.Errorf("ListClusters: %v", err)
	}
	must(c.UpdatePodIdentityAssociation(ctx, &awseks.UpdatePodIdentityAssociationInput{ClusterName: aws.String("demo"), AssociationId: a.AssociationId, RoleArn: aws.String(local)}))(t)
	d := must(c.DescribePodIdentityAssociation(ctx, &awseks.DescribePodIdentityAssociationInput{ClusterName: aws.String("demo"), AssociationId: a.AssociationId}))(t).Association
	if *d.RoleArn != local {
		t.Errorf("role after update = %s", *d.RoleArn)
	}
	if code, _ := get(t, agent, "/v1/credentials", "Authorization", "good"); code != http.StatusForbidden {
		t.Errorf("agent with a role that does not trust EKS = %d, want 403", code)
	}
	must(c.DeletePodIdentityAssociation(ctx, &awseks.DeletePodIdentityAssociationInput{ClusterName: aws.String("demo"), AssociationId: a.AssociationId}))(t)
	_, err = c.DescribePodIdentityAssociation(ctx, &awseks.DescribePodIdentityAssociationInput{ClusterName: aws.String("demo"), AssociationId: a.AssociationId})
	wantCode(t, "after deletion", err, "ResourceNotFoundException")
}

func TestLogGroups(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := cloudwatchlogs.NewFromConfig(l.admin()), t.Context()
	g, s := aws.String("/ecs/x"), aws.String("one")
	must(c.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: g}))(t)
	_, err := c.CreateLogGroup(ctx, &cloudwatchlogs.CreateLogGroupInput{LogGroupName: g})
	wantCode(t, "again", err, "ResourceAlreadyExistsException")
	must(c.CreateLogStream(ctx, &cloudwatchlogs.CreateLogStreamInput{LogGroupName: g, LogStreamName: s}))(t)
	base := time.Now().Add(-time.Minute).Truncate(time.Millisecond)
	var events []logtypes.InputLogEvent
	for i, m := range []string{"alpha <b>&", "beta", "gamma alpha"} {
		events = append(events, logtypes.InputLogEvent{Timestamp: aws.Int64(base.Add(time.Duration(i) * time.Second).UnixMilli()), Message: aws.String(m)})
	}
	must(c.PutLogEvents(ctx, &cloudwatchlogs.PutLogEventsInput{LogGroupName: g, LogStreamName: s, LogEvents: events}))(t)
	for _, x := range []struct {
		pattern string
		from    *int64
		want    int
	}{{"", nil, 3}, {"alpha", nil, 2}, {`"gamma alpha"`, nil, 1}, {"alpha -gamma", nil, 1}, {"", aws.Int64(base.Add(time.Second).UnixMilli()), 2}} {
		in := &cloudwatchlogs.FilterLogEventsInput{LogGroupName: g, StartTime: x.from}
		if x.pattern != "" {
			in.FilterPattern = aws.String(x.pattern)
		}
		if got := must(c.FilterLogEvents(ctx, in))(t).Events; len(got) != x.want {
			t.Errorf("filter %q from %v = %d events, want %d", x.pattern, x.from, len(got), x.want)
		}
	}
	_, err = c.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: g, FilterPattern: aws.String("{ $.a = 1 }")})
	wantCode(t, "a pattern the lab lacks", err, "InvalidParameterException")
	first := must(c.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: g, LogStreamName: s, StartFromHead: aws.Bool(true), Limit: aws.Int32(2)}))(t)
	second := must(c.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: g, LogStreamName: s, StartFromHead: aws.Bool(true), NextToken: first.NextForwardToken}))(t)
	end := must(c.GetLogEvents(ctx, &cloudwatchlogs.GetLogEventsInput{LogGroupName: g, LogStreamName: s, NextToken: second.NextForwardToken}))(t)
	if len(first.Events) != 2 || *first.Events[0].Message != "alpha <b>&" || len(second.Events) != 1 || len(end.Events) != 0 || *end.NextForwardToken != *second.NextForwardToken {
		t.Errorf("pages = %d, %d, %d events", len(first.Events), len(second.Events), len(end.Events))
	}
	if streams := must(c.DescribeLogStreams(ctx, &cloudwatchlogs.DescribeLogStreamsInput{LogGroupName: g}))(t).LogStreams; len(streams) != 1 || *streams[0].LastEventTimestamp != base.Add(2*time.Second).UnixMilli() {
		t.Errorf("streams = %+v", streams)
	}
	if groups := must(c.DescribeLogGroups(ctx, &cloudwatchlogs.DescribeLogGroupsInput{LogGroupNamePrefix: aws.String("/ecs")}))(t).LogGroups; len(groups) != 1 {
		t.Errorf("groups = %d, want 1", len(groups))
	}
	must(c.DeleteLogGroup(ctx, &cloudwatchlogs.DeleteLogGroupInput{LogGroupName: g}))(t)
	_, err = c.FilterLogEvents(ctx, &cloudwatchlogs.FilterLogEventsInput{LogGroupName: g})
	wantCode(t, "after deletion", err, "ResourceNotFoundException")
}
