package cloud_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/smithy-go"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

func (l *lab) fault(f awsserver.Fault) {
	l.t.Helper()
	if err := l.cloud.Faults().Set(f); err != nil {
		l.t.Fatal(err)
	}
}

// listed returns how many clusters a client sees.
func listed(t *testing.T, c *awsecs.Client) int {
	t.Helper()
	return len(must(c.ListClusters(t.Context(), nil))(t).ClusterArns)
}

// TestFaultsAreAWSs sees the faults that refuse a call as AWS's own libraries name them, in three protocols.
func TestFaultsAreAWSs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	ecs, iam, ec2 := l.ecs(), awsiam.NewFromConfig(l.admin()), awsec2.NewFromConfig(l.admin())
	for _, c := range []struct {
		kind                awsserver.FaultKind
		inECS, inIAM, inEC2 string
		fault               smithy.ErrorFault
		retried             bool
	}{
		{awsserver.FaultThrottle, "ThrottlingException", "Throttling", "RequestLimitExceeded", smithy.FaultClient, true},
		{awsserver.FaultError, "ServerException", "InternalFailure", "InternalError", smithy.FaultServer, true},
		{awsserver.FaultDenied, "AccessDeniedException", "AccessDenied", "UnauthorizedOperation", smithy.FaultClient, false},
	} {
		l.fault(awsserver.Fault{Kind: c.kind})
		_, err := ecs.ListClusters(ctx, nil)
		wantCode(t, string(c.kind)+" in ECS", err, c.inECS)
		if got := retry.NewStandard().IsErrorRetryable(err); got != c.retried {
			t.Errorf("%s: the SDK would retry: %v, want %v", c.kind, got, c.retried)
		}
		_, err = iam.GetRole(ctx, &awsiam.GetRoleInput{RoleName: aws.String("x")})
		wantCode(t, string(c.kind)+" in IAM", err, c.inIAM)
		_, err = ec2.DescribeVpcs(ctx, nil)
		wantCode(t, string(c.kind)+" in EC2", err, c.inEC2)
		if n := l.cloud.Faults().Clear(awsserver.Fault{Kind: c.kind}); n != 1 {
			t.Errorf("Clear(%s) = %d, want 1", c.kind, n)
		}
		listed(t, ecs)
	}
}

func TestFaultsHitTheirCallsOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, ecs := t.Context(), l.ecs()
	second := awsecs.NewFromConfig(l.config("AKIALABADMIN00000002", "secret-two", ""))
	l.fault(awsserver.Fault{Kind: awsserver.FaultError, Account: account2, Call: "ECS.List*"})
	listed(t, ecs)
	_, err := second.ListClusters(ctx, nil)
	wantCode(t, "the account and call of the fault", err, "ServerException")
	must(second.DescribeClusters(ctx, nil))(t)
	l.cloud.Faults().Clear(awsserver.Fault{})

	l.fault(awsserver.Fault{Kind: awsserver.FaultThrottle, Every: 3, Until: l.clock.now().Add(time.Minute)})
	var failed []int
	for i := range 6 {
		if _, err := ecs.ListClusters(ctx, nil); err != nil {
			failed = append(failed, i)
		}
	}
	if !slices.Equal(failed, []int{2, 5}) {
		t.Errorf("calls %v failed, want every third", failed)
	}
	if all := l.cloud.Faults().List(); len(all) != 1 || all[0].Hits != 2 {
		t.Errorf("List() = %+v, want one fault with two hits", all)
	}
	l.clock.advance(2 * time.Minute)
	if all := l.cloud.Faults().List(); len(all) != 0 {
		t.Errorf("List() after its time = %+v", all)
	}
	for _, bad := range []awsserver.Fault{{Kind: "nonsense"}, {Kind: awsserver.FaultError, Call: "ListTasks"}, {Kind: awsserver.FaultSlow, By: -1}} {
		if err := l.cloud.Faults().Set(bad); err == nil {
			t.Errorf("Set(%+v) succeeded", bad)
		}
	}
}

func TestFaultsOfReads(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, ecs, f := t.Context(), l.ecs(), l.cloud.Faults()
	cluster := func(name string) {
		must(ecs.CreateCluster(ctx, &awsecs.CreateClusterInput{ClusterName: &name}))(t)
	}
	cluster("one")
	cluster("two")
	cluster("three")
	if n := listed(t, ecs); n != 3 {
		t.Fatalf("%d clusters", n)
	}
	l.fault(awsserver.Fault{Kind: awsserver.FaultEmpty, Call: "ecs.ListClusters"})
	if n := listed(t, ecs); n != 0 {
		t.Errorf("empty: %d clusters, want 0", n)
	}
	f.Clear(awsserver.Fault{})
	l.fault(awsserver.Fault{Kind: awsserver.FaultPartial})
	page := must(ecs.ListClusters(ctx, &awsecs.ListClustersInput{MaxResults: aws.Int32(2)}))(t)
	if len(page.ClusterArns) != 1 || page.NextToken != nil {
		t.Errorf("partial: %d clusters of a page of two and token %v, want one and none", len(page.ClusterArns), page.NextToken)
	}
	f.Clear(awsserver.Fault{})

	listed(t, ecs)
	l.fault(awsserver.Fault{Kind: awsserver.FaultStale})
	cluster("four")
	if n := listed(t, ecs) + listed(t, ecs); n != 6 {
		t.Errorf("stale: two reads see %d clusters together, want 3 each", n)
	}
	if got := must(ecs.DescribeClusters(ctx, &awsecs.DescribeClustersInput{Clusters: []string{"four"}}))(t).Clusters; len(got) != 1 {
		t.Errorf("stale: a read that was never made before sees %d clusters, want 1", len(got))
	}
	f.Clear(awsserver.Fault{})
	if n := listed(t, ecs); n != 4 {
		t.Errorf("after stale: %d clusters, want 4", n)
	}
	l.fault(awsserver.Fault{Kind: awsserver.FaultEventual, By: 3 * time.Second})
	cluster("five")
	if a, b := listed(t, ecs), listed(t, ecs); a+b != 9 {
		t.Errorf("eventual: reads see %d and %d clusters, want 4 and 5", a, b)
	}
	l.clock.advance(4 * time.Second)
	if a, b := listed(t, ecs), listed(t, ecs); a+b != 10 {
		t.Errorf("eventual, later: reads see %d and %d clusters, want 5 and 5", a, b)
	}
}

// TestClockSkewFault: with the endpoint's clock ahead a signature is too old, and AWS's library corrects its own clock by what
// the answer says.
func TestClockSkewFault(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(awsserver.Fault{Kind: awsserver.FaultSkew})
	_, err := l.ecs().ListClusters(t.Context(), nil)
	wantCode(t, "no second try", err, "InvalidSignatureException")
	cfg := l.admin()
	cfg.Retryer = func() aws.Retryer { return retry.NewStandard() }
	if _, err := awsecs.NewFromConfig(cfg).ListClusters(t.Context(), nil); err != nil {
		t.Errorf("with the SDK's second try = %v, want its clock corrected", err)
	}
}

func TestSlowAndDown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.fault(awsserver.Fault{Kind: awsserver.FaultSlow, By: 150 * time.Millisecond})
	start := time.Now()
	listed(t, l.ecs())
	if took := time.Since(start); took < 150*time.Millisecond {
		t.Errorf("slow: answered after %s", took)
	}
	l.cloud.Faults().Clear(awsserver.Fault{})
	l.fault(awsserver.Fault{Kind: awsserver.FaultDown, Call: "ECS.*"})
	_, err := l.ecs().ListClusters(t.Context(), nil)
	var api smithy.APIError
	if err == nil || errors.As(err, &api) {
		t.Errorf("down: %v, want a failure of the connection", err)
	}
	must(l.iam().ListPolicies(t.Context(), nil))(t)
}

// TestRequestLimits spends the burst of one category, and sees that another has its own and that time refills it.
func TestRequestLimits(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, ecs := t.Context(), l.ecs()
	l.fault(awsserver.Fault{Kind: awsserver.FaultLimits})
	made := 0
	var err error
	for range 70 { // the clock goes on meanwhile, and some tokens come back
		if _, err = ecs.TagResource(ctx, &awsecs.TagResourceInput{ResourceArn: aws.String("arn:aws:ecs:us-east-2:123456789012:cluster/none"), Tags: []types.Tag{{Key: aws.String("k")}}}); code(err) == "ThrottlingException" {
			break
		}
		made++
	}
	wantCode(t, "the burst is spent", err, "ThrottlingException")
	if made < 20 {
		t.Errorf("%d calls before the limit, want the burst of 20 at least", made)
	}
	listed(t, ecs)
	l.clock.advance(time.Second)
	if _, err := ecs.TagResource(ctx, &awsecs.TagResourceInput{ResourceArn: aws.String("arn:aws:ecs:us-east-2:123456789012:cluster/none"), Tags: []types.Tag{{Key: aws.String("k")}}}); code(err) == "ThrottlingException" {
		t.Error("a second later the bucket is still empty")
	}
}
