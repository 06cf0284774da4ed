package cloud_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ec2"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

// TestGuideCalls makes, with the AWS CLI, the calls of the guide that no other test of this package makes: those of the
// clean-up with everything, of EKS's waiters and associations, of container instances, and "logs tail". Each has the answer
// or the error that the scripts look for.
func TestGuideCalls(t *testing.T) {
	t.Parallel()
	cli := clients.AWSCLI(t)
	l := newLab(t)
	l.cluster("c")
	w := cloudwatchlogs.NewFromConfig(l.admin())
	must(w.CreateLogGroup(t.Context(), &cloudwatchlogs.CreateLogGroupInput{LogGroupName: aws.String("/ecs/x")}))(t)
	must(w.CreateLogStream(t.Context(), &cloudwatchlogs.CreateLogStreamInput{LogGroupName: aws.String("/ecs/x"), LogStreamName: aws.String("s")}))(t)
	must(w.PutLogEvents(t.Context(), &cloudwatchlogs.PutLogEventsInput{LogGroupName: aws.String("/ecs/x"), LogStreamName: aws.String("s"),
		LogEvents: []logtypes.InputLogEvent{{Message: aws.String("hello"), Timestamp: aws.Int64(time.Now().UnixMilli())}}}))(t)
	for _, c := range []struct {
		args string
		want string // the output, or a part of the error
		fail bool
	}{
		{"cloudformation describe-stacks --query length(Stacks)", "0", false},
		{"cloudformation describe-stacks --stack-name eksctl-demo-cluster", "(ValidationError)", true},
		{"cloudformation describe-stack-resource --stack-name eksctl-demo-cluster --logical-resource-id Role1", "(ValidationError)", true},
		{"cloudformation delete-stack --stack-name eksctl-demo-cluster", "", false},
		{"cloudformation wait stack-delete-complete --stack-name eksctl-demo-cluster", "", false},
		{"elb describe-load-balancers --query length(LoadBalancerDescriptions)", "0", false},
		{"elb describe-load-balancers --load-balancer-names x", "(LoadBalancerNotFound)", true},
		{"elb delete-load-balancer --load-balancer-name x", "", false},
		{"elbv2 describe-load-balancers --query length(LoadBalancers)", "0", false},
		{"elbv2 delete-load-balancer --load-balancer-arn arn:aws:elasticloadbalancing:us-east-2:123456789012:loadbalancer/net/x/1", "", false},
		{"ec2 describe-instances --query length(Reservations)", "0", false},
		{"ec2 describe-instances --instance-ids i-0123456789abcdef0", "(InvalidInstanceID.NotFound)", true},
		{"ec2 describe-vpcs --vpc-ids vpc-none", "(InvalidVpcID.NotFound)", true},
		{"ecs list-container-instances --cluster c --query length(containerInstanceArns)", "0", false},
		{"ecs list-container-instances --cluster none", "(ClusterNotFoundException)", true},
		{"ecs describe-container-instances --cluster c --container-instances x --query failures[0].reason", "MISSING", false},
		{"eks list-clusters --query clusters[0]", "demo", false},
		{"eks wait cluster-active --name demo", "", false},
		{"eks describe-cluster --name none", "(ResourceNotFoundException)", true},
		{"ec2 describe-subnets --filters Name=vpc-id,Values=" + ec2.DefaultVPCID + " --query length(Subnets)", "2", false},
		{"logs filter-log-events --log-group-name /ecs/none", "(ResourceNotFoundException)", true},
		{"logs tail /ecs/x --since 1h --format short", "hello", false},
	} {
		t.Run(strings.ReplaceAll(c.args, "/", "_"), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := l.aws(ctx, cli, strings.Fields(c.args)...).CombinedOutput()
			got := strings.TrimSpace(string(out))
			if (err != nil) != c.fail {
				t.Fatalf("aws %s: %v\n%s", c.args, err, got)
			}
			if exact := !c.fail && !strings.Contains(c.args, "logs tail"); exact && got != c.want || !strings.Contains(got, c.want) {
				t.Errorf("aws %s = %q, want %q", c.args, got, c.want)
			}
		})
	}
}
