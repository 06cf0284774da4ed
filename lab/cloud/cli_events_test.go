package cloud_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// TestInfrastructureWithEvents checks that what `isthmus ecs infra --events` makes carries the events of the guide's clusters,
// and no others, to the queue, that it can be repeated, and that destroy leaves neither rule nor queue.
func TestInfrastructureWithEvents(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	queues := func() []string {
		t.Helper()
		return must(l.sqs().ListQueues(t.Context(), &sqs.ListQueuesInput{}))(t).QueueUrls
	}

	isthmus(0, "ecs", "infra", "apply", "--events")
	if again := isthmus(0, "ecs", "infra", "apply", "--events"); !strings.HasSuffix(again, "everything is in place\n") {
		t.Errorf("the second apply did:\n%s", again)
	}
	made := queues()
	if len(made) != 2 {
		t.Fatalf("queues = %v, want one and its dead letters", made)
	}
	url := made[0]
	if strings.HasSuffix(url, "-dlq") {
		url = made[1]
	}

	for _, cluster := range []string{"ecs-demo-1", "other"} {
		l.cluster(cluster)
		l.service(cluster, "web", l.register("web", app("a")), 1)
		l.steady(cluster, "web")
	}
	var tasks int
	for _, m := range l.receive(url) {
		if strings.Contains(*m.Body, ":cluster/other") {
			t.Errorf("an event of a cluster that is not ours: %s", *m.Body)
		}
		if strings.Contains(*m.Body, `"ECS Task State Change"`) && strings.Contains(*m.Body, ":cluster/ecs-demo-1") {
			tasks++
		}
	}
	if tasks == 0 {
		t.Error("no event of a task reached the queue")
	}

	for _, cluster := range []string{"ecs-demo-1", "other"} {
		must(l.ecs().DeleteService(t.Context(), &awsecs.DeleteServiceInput{Cluster: aws.String(cluster), Service: aws.String("web"), Force: aws.Bool(true)}))(t)
	}
	isthmus(0, "ecs", "infra", "destroy", "--yes")
	if left := queues(); len(left) != 0 {
		t.Errorf("destroy left the queues %v", left)
	}
}
