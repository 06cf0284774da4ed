package cloud_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
)

func TestClusters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := l.ecs(), t.Context()
	var want []string
	for i := range 7 {
		name := fmt.Sprintf("c%d", i)
		l.cluster(name)
		want = append(want, "arn:aws:ecs:"+region+":"+account+":cluster/"+name)
	}
	var got []string
	pages := 0
	for p := awsecs.NewListClustersPaginator(c, &awsecs.ListClustersInput{MaxResults: aws.Int32(3)}); p.HasMorePages(); pages++ {
		got = append(got, must(p.NextPage(ctx))(t).ClusterArns...)
	}
	if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
		t.Errorf("%d pages, clusters (-want +got):\n%s", pages, diff)
	}
	_, err := c.ListClusters(ctx, &awsecs.ListClustersInput{NextToken: aws.String("bogus")})
	wantCode(t, "bogus token", err, "InvalidParameterException")
	_, err = c.ListClusters(ctx, &awsecs.ListClustersInput{MaxResults: aws.Int32(101)})
	wantCode(t, "101 results", err, "InvalidParameterException")

	out := must(c.DescribeClusters(ctx, &awsecs.DescribeClustersInput{Clusters: []string{"c1", "nope"}}))(t)
	if len(out.Clusters) != 1 || len(out.Clusters[0].Tags) != 0 || len(out.Failures) != 1 || *out.Failures[0].Reason != "MISSING" {
		t.Errorf("DescribeClusters = %d clusters, failures %v", len(out.Clusters), out.Failures)
	}
	out = must(c.DescribeClusters(ctx, &awsecs.DescribeClustersInput{Clusters: []string{"c1"}, Include: []types.ClusterField{types.ClusterFieldTags}}))(t)
	if len(out.Clusters[0].Tags) != 1 || *out.Clusters[0].Tags[0].Key != "ecs.solo.io/discovery-enabled" {
		t.Errorf("tags = %v", out.Clusters[0].Tags)
	}
	must(c.DeleteCluster(ctx, &awsecs.DeleteClusterInput{Cluster: aws.String("c1")}))(t)
	if out = must(c.DescribeClusters(ctx, &awsecs.DescribeClustersInput{Clusters: []string{"c1"}}))(t); *out.Clusters[0].Status != "INACTIVE" {
		t.Errorf("status after DeleteCluster = %s", *out.Clusters[0].Status)
	}
	_, err = c.ListServices(ctx, &awsecs.ListServicesInput{Cluster: aws.String("c1")})
	wantCode(t, "ListServices in an inactive cluster", err, "ClusterNotFoundException")
	l.cluster("c1") // the name is free again
}

func TestTagsOfResources(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := l.ecs(), t.Context()
	l.cluster("c")
	for _, arn := range []string{"arn:aws:ecs:" + region + ":" + account + ":cluster/c", l.register("f", app("a"))} {
		must(c.TagResource(ctx, &awsecs.TagResourceInput{ResourceArn: aws.String(arn), Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}))(t)
		if tags := must(c.ListTagsForResource(ctx, &awsecs.ListTagsForResourceInput{ResourceArn: aws.String(arn)}))(t).Tags; len(tags) != 2 {
			t.Errorf("%s: tags = %v, want two", arn, tags)
		}
		must(c.UntagResource(ctx, &awsecs.UntagResourceInput{ResourceArn: aws.String(arn), TagKeys: []string{"k"}}))(t)
		if tags := must(c.ListTagsForResource(ctx, &awsecs.ListTagsForResourceInput{ResourceArn: aws.String(arn)}))(t).Tags; len(tags) != 1 {
			t.Errorf("%s: tags = %v, want one", arn, tags)
		}
	}
}

func TestTaskDefinitionKeepsUnknownMembers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	if _, err := l.call("RegisterTaskDefinition", `{"family":"f","networkMode":"awsvpc","cpu":"256","memory":"512","futureTop":{"a":[1,2.50]},
		"containerDefinitions":[{"name":"a","image":"x","futureInner":"kept","portMappings":[{"containerPort":80,"futurePort":true}]}]}`); err != nil {
		t.Fatal(err)
	}
	out, err := l.call("DescribeTaskDefinition", `{"taskDefinition":"f:1"}`)
	if err != nil {
		t.Fatal(err)
	}
	td := out["taskDefinition"].(map[string]any)
	c := td["containerDefinitions"].([]any)[0].(map[string]any)
	port := c["portMappings"].([]any)[0].(map[string]any)
	want := map[string]any{"containerPort": 80.0, "hostPort": 80.0, "protocol": "tcp", "futurePort": true}
	if diff := cmp.Diff(want, port); diff != "" {
		t.Errorf("port mapping (-want +got):\n%s", diff)
	}
	if c["futureInner"] != "kept" || td["futureTop"] == nil || c["essential"] != true {
		t.Errorf("task definition lost members: %v", td)
	}
}

func TestTaskDefinitions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := l.ecs(), t.Context()
	for range 11 {
		l.register("f", app("a"))
	}
	l.register("f-other", app("a"))
	list := must(c.ListTaskDefinitions(ctx, &awsecs.ListTaskDefinitionsInput{FamilyPrefix: aws.String("f"), Sort: types.SortOrderDesc, MaxResults: aws.Int32(10)}))(t)
	if len(list.TaskDefinitionArns) != 10 || !strings.HasSuffix(list.TaskDefinitionArns[0], ":11") || list.NextToken == nil {
		t.Errorf("ListTaskDefinitions = %v, want the ten newest of family f only", list.TaskDefinitionArns)
	}
	list = must(c.ListTaskDefinitions(ctx, &awsecs.ListTaskDefinitionsInput{FamilyPrefix: aws.String("f"), Sort: types.SortOrderDesc, MaxResults: aws.Int32(10), NextToken: list.NextToken}))(t)
	if len(list.TaskDefinitionArns) != 1 || !strings.HasSuffix(list.TaskDefinitionArns[0], ":1") || list.NextToken != nil {
		t.Errorf("second page = %v", list.TaskDefinitionArns)
	}
	must(c.DeregisterTaskDefinition(ctx, &awsecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String("f:11")}))(t)
	td := must(c.DescribeTaskDefinition(ctx, &awsecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("f"), Include: []types.TaskDefinitionField{types.TaskDefinitionFieldTags}}))(t)
	if td.TaskDefinition.Revision != 10 || len(td.Tags) != 1 {
		t.Errorf("latest = revision %d, tags %v", td.TaskDefinition.Revision, td.Tags)
	}
	if td = must(c.DescribeTaskDefinition(ctx, &awsecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("f:11")}))(t); td.TaskDefinition.Status != types.TaskDefinitionStatusInactive || td.TaskDefinition.DeregisteredAt == nil {
		t.Errorf("f:11 = %s, want INACTIVE", td.TaskDefinition.Status)
	}
	_, err := c.DescribeTaskDefinition(ctx, &awsecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("none")})
	wantCode(t, "unknown family", err, "ClientException")
	if err == nil || !strings.Contains(err.Error(), "Unable to describe task definition.") {
		t.Errorf("error = %v", err)
	}
}

func TestTaskDefinitionRefusals(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for name, body := range map[string]string{
		"no containers":      `{"family":"f"}`,
		"no image":           `{"family":"f","containerDefinitions":[{"name":"a"}]}`,
		"same name":          `{"family":"f","containerDefinitions":[{"name":"a","image":"x"},{"name":"a","image":"x"}]}`,
		"cycle":              `{"family":"f","containerDefinitions":[{"name":"a","image":"x","dependsOn":[{"containerName":"b","condition":"START"}]},{"name":"b","image":"x","dependsOn":[{"containerName":"a","condition":"START"}]}]}`,
		"itself":             `{"family":"f","containerDefinitions":[{"name":"a","image":"x","dependsOn":[{"containerName":"a","condition":"START"}]}]}`,
		"unknown dependency": `{"family":"f","containerDefinitions":[{"name":"a","image":"x","dependsOn":[{"containerName":"z","condition":"START"}]}]}`,
		"healthy without":    `{"family":"f","containerDefinitions":[{"name":"a","image":"x","dependsOn":[{"containerName":"b","condition":"HEALTHY"}]},{"name":"b","image":"x"}]}`,
		"interval":           `{"family":"f","containerDefinitions":[{"name":"a","image":"x","healthCheck":{"command":["CMD","x"],"interval":1}}]}`,
		"stop timeout":       `{"family":"f","containerDefinitions":[{"name":"a","image":"x","stopTimeout":121}]}`,
		"none essential":     `{"family":"f","containerDefinitions":[{"name":"a","image":"x","essential":false}]}`,
		"fargate bridge":     `{"family":"f","networkMode":"bridge","requiresCompatibilities":["FARGATE"],"containerDefinitions":[{"name":"a","image":"x"}]}`,
		"fargate no cpu":     `{"family":"f","networkMode":"awsvpc","requiresCompatibilities":["FARGATE"],"containerDefinitions":[{"name":"a","image":"x"}]}`,
		"too many":           `{"family":"f","containerDefinitions":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a","image":"x"},`, 11), ",") + `]}`,
		"too long":           `{"family":"f","containerDefinitions":[{"name":"a","image":"` + strings.Repeat("x", 65<<10) + `"}]}`,
	} {
		if out, err := l.call("RegisterTaskDefinition", body); err == nil || !strings.HasPrefix(err.Error(), "ClientException") {
			t.Errorf("%s: %v %v, want a ClientException", name, out, err)
		}
	}
}

func TestServiceLife(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, ctx := l.ecs(), t.Context()
	l.cluster("c")
	def := l.register("f", app("a"))
	out := must(c.DescribeServices(ctx, &awsecs.DescribeServicesInput{Cluster: aws.String("c"), Services: []string{"s"}}))(t)
	if len(out.Failures) != 1 || *out.Failures[0].Reason != "MISSING" {
		t.Errorf("failures = %v", out.Failures)
	}
	_, err := c.DescribeServices(ctx, &awsecs.DescribeServicesInput{Cluster: aws.String("nope"), Services: []string{"s"}})
	wantCode(t, "unknown cluster", err, "ClusterNotFoundException")
	l.service("c", "s", def, 1)
	l.steady("c", "s")
	_, err = c.CreateService(ctx, &awsecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String("s"), TaskDefinition: aws.String(def), DesiredCount: aws.Int32(1), NetworkConfiguration: network()})
	wantCode(t, "CreateService again", err, "InvalidParameterException")
	_, err = c.DeleteService(ctx, &awsecs.DeleteServiceInput{Cluster: aws.String("c"), Service: aws.String("s")})
	wantCode(t, "DeleteService while scaled", err, "InvalidParameterException")
	_, err = c.DeleteCluster(ctx, &awsecs.DeleteClusterInput{Cluster: aws.String("c")})
	wantCode(t, "DeleteCluster with a service", err, "ClusterContainsServicesException")

	must(c.UpdateService(ctx, &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), DesiredCount: aws.Int32(3)}))(t)
	l.steady("c", "s")
	if n := len(l.tasks("c", "s")); n != 3 {
		t.Errorf("tasks after scaling = %d, want 3", n)
	}
	must(c.UpdateService(ctx, &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), DesiredCount: aws.Int32(0)}))(t)
	l.steady("c", "s")
	must(c.DeleteService(ctx, &awsecs.DeleteServiceInput{Cluster: aws.String("c"), Service: aws.String("s")}))(t)
	l.eventually("service is INACTIVE", func() bool { return *l.describeService("c", "s").Status == "INACTIVE" })
	if list := must(c.ListServices(ctx, &awsecs.ListServicesInput{Cluster: aws.String("c")}))(t); len(list.ServiceArns) != 0 {
		t.Errorf("ListServices = %v, want none", list.ServiceArns)
	}
	_, err = c.UpdateService(ctx, &awsecs.UpdateServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), DesiredCount: aws.Int32(1)})
	wantCode(t, "UpdateService when inactive", err, "ServiceNotActiveException")
	l.service("c", "s", def, 1) // the name is free again
	l.steady("c", "s")
	must(c.DeleteService(ctx, &awsecs.DeleteServiceInput{Cluster: aws.String("c"), Service: aws.String("s"), Force: aws.Bool(true)}))(t)
	l.eventually("forced deletion", func() bool { return *l.describeService("c", "s").Status == "INACTIVE" })
	must(c.DeleteCluster(ctx, &awsecs.DeleteClusterInput{Cluster: aws.String("c")}))(t)
}

func TestListServicesPages(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	def := l.register("f", app("a"))
	for i := range 12 {
		l.service("c", fmt.Sprintf("s%02d", i), def, 0)
	}
	if n := len(must(l.ecs().ListServices(t.Context(), &awsecs.ListServicesInput{Cluster: aws.String("c")}))(t).ServiceArns); n != 10 {
		t.Errorf("default page = %d, want 10", n)
	}
	var all []string
	for p := awsecs.NewListServicesPaginator(l.ecs(), &awsecs.ListServicesInput{Cluster: aws.String("c"), MaxResults: aws.Int32(5)}); p.HasMorePages(); {
		all = append(all, must(p.NextPage(t.Context()))(t).ServiceArns...)
	}
	if len(all) != 12 || len(slices.Compact(all)) != 12 {
		t.Errorf("all pages = %d services, want 12", len(all))
	}
	names := make([]string, 11)
	for i := range names {
		names[i] = fmt.Sprintf("s%02d", i)
	}
	_, err := l.ecs().DescribeServices(t.Context(), &awsecs.DescribeServicesInput{Cluster: aws.String("c"), Services: names})
	wantCode(t, "DescribeServices of 11", err, "InvalidParameterException")
}

// run starts one standalone task and returns its ARN.
func (l *lab) run(cluster, def string) string {
	l.t.Helper()
	out := must(l.ecs().RunTask(l.t.Context(), &awsecs.RunTaskInput{Cluster: aws.String(cluster), TaskDefinition: aws.String(def), NetworkConfiguration: network(),
		EnableExecuteCommand: true, StartedBy: aws.String("me"), Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}))(l.t)
	if len(out.Tasks) != 1 {
		l.t.Fatalf("RunTask() = %d tasks, failures %v", len(out.Tasks), out.Failures)
	}
	return *out.Tasks[0].TaskArn
}

func (l *lab) task(cluster, arn string) types.Task {
	l.t.Helper()
	return must(l.ecs().DescribeTasks(l.t.Context(), &awsecs.DescribeTasksInput{Cluster: aws.String(cluster), Tasks: []string{arn}, Include: []types.TaskField{types.TaskFieldTags}}))(l.t).Tasks[0]
}

func (l *lab) containerOf(cluster, arn, name string) types.Container {
	l.t.Helper()
	for _, c := range l.task(cluster, arn).Containers {
		if *c.Name == name {
			return c
		}
	}
	l.t.Fatalf("no container %s", name)
	return types.Container{}
}

func TestListTasksFilters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	l.service("c", "s", l.register("f", app("a")), 1)
	l.register("g", app("b"))
	alone := l.run("c", "g")
	l.steady("c", "s")
	l.eventually("the task runs", func() bool { return *l.task("c", alone).LastStatus == "RUNNING" })
	ctx, c := t.Context(), l.ecs()
	for _, x := range []struct {
		name string
		in   awsecs.ListTasksInput
		want int
	}{
		{"all", awsecs.ListTasksInput{}, 2},
		{"service", awsecs.ListTasksInput{ServiceName: aws.String("s")}, 1},
		{"family", awsecs.ListTasksInput{Family: aws.String("g")}, 1},
		{"startedBy", awsecs.ListTasksInput{StartedBy: aws.String("me")}, 1},
		{"pending", awsecs.ListTasksInput{DesiredStatus: types.DesiredStatusPending}, 0},
		{"stopped", awsecs.ListTasksInput{DesiredStatus: types.DesiredStatusStopped}, 0},
		{"ec2", awsecs.ListTasksInput{LaunchType: types.LaunchTypeEc2}, 0},
	} {
		x.in.Cluster = aws.String("c")
		if got := len(must(c.ListTasks(ctx, &x.in))(t).TaskArns); got != x.want {
			t.Errorf("%s: %d tasks, want %d", x.name, got, x.want)
		}
	}
	_, err := c.ListTasks(ctx, &awsecs.ListTasksInput{Cluster: aws.String("c"), StartedBy: aws.String("me"), Family: aws.String("g")})
	wantCode(t, "startedBy with another filter", err, "InvalidParameterException")
	_, err = c.ListTasks(ctx, &awsecs.ListTasksInput{Cluster: aws.String("c"), ServiceName: aws.String("none")})
	wantCode(t, "unknown service", err, "ServiceNotFoundException")
	must(c.StopTask(ctx, &awsecs.StopTaskInput{Cluster: aws.String("c"), Task: aws.String(alone)}))(t)
	if got := must(c.ListTasks(ctx, &awsecs.ListTasksInput{Cluster: aws.String("c"), Family: aws.String("g")}))(t); len(got.TaskArns) != 0 {
		t.Error("a task is still listed once it shall stop")
	}
	l.eventually("stopped", func() bool { return *l.task("c", alone).LastStatus == "STOPPED" })
	l.clock.advance(2 * time.Hour)
	l.eventually("the stopped task is forgotten", func() bool {
		out, err := l.call("DescribeTasks", `{"cluster":"c","tasks":["`+alone+`"]}`)
		return err == nil && len(out["tasks"].([]any)) == 0 && len(out["failures"].([]any)) == 1
	})
}

func TestPropagateTags(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	def := l.register("f", app("a"))
	for propagate, want := range map[types.PropagateTags]string{types.PropagateTagsNone: "", types.PropagateTagsService: "svc", types.PropagateTagsTaskDefinition: "ecs.solo.io/service-account"} {
		name := "s-" + strings.ToLower(string(propagate))
		must(l.ecs().CreateService(t.Context(), &awsecs.CreateServiceInput{Cluster: aws.String("c"), ServiceName: aws.String(name), TaskDefinition: aws.String(def),
			DesiredCount: aws.Int32(1), NetworkConfiguration: network(), PropagateTags: propagate, Tags: []types.Tag{{Key: aws.String("svc"), Value: aws.String("1")}}}))(t)
		l.steady("c", name)
		tags := l.tasks("c", name)[0].Tags
		if want == "" && len(tags) != 0 || want != "" && (len(tags) != 1 || *tags[0].Key != want) {
			t.Errorf("propagateTags %s: tags = %v, want %q", propagate, tags, want)
		}
	}
}

func TestNetworkIsChecked(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	l.register("f", app("a"))
	for name, nc := range map[string]*types.NetworkConfiguration{
		"none":           nil,
		"unknown subnet": {AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{"subnet-none"}}},
		"unknown group":  {AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: network().AwsvpcConfiguration.Subnets, SecurityGroups: []string{"sg-none"}}},
	} {
		_, err := l.ecs().RunTask(t.Context(), &awsecs.RunTaskInput{Cluster: aws.String("c"), TaskDefinition: aws.String("f"), NetworkConfiguration: nc})
		wantCode(t, name, err, "InvalidParameterException")
	}
}

func TestAccountsAreApart(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.cluster("c")
	other := awsecs.NewFromConfig(l.config("AKIALABADMIN00000002", "secret-two", ""))
	if out := must(other.ListClusters(t.Context(), nil))(t); len(out.ClusterArns) != 0 {
		t.Errorf("the other account sees %v", out.ClusterArns)
	}
	elsewhere := l.admin()
	elsewhere.Region = "eu-west-1"
	if out := must(awsecs.NewFromConfig(elsewhere).ListClusters(t.Context(), nil))(t); len(out.ClusterArns) != 0 {
		t.Errorf("the other region sees %v", out.ClusterArns)
	}
}
