package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// The service that has one host name in both clusters.
const (
	shop     = "shop"
	shopHost = "shop.example"
	shopPort = shopHost + ":8080"
)

// testSharedHost gives services of two clusters one host name and calls it: the tasks in the caller's zone answer, while
// there are any, and then those of the other cluster, without a call lost on the way there and back.
func testSharedHost(t *testing.T, w *world) {
	from := w.task(t, cluster1, shell)
	zone := aws.ToString(from.AvailabilityZone)
	near, far := w.subnets(t, zone)
	definitions := []string{w.shopDefinition(t, "near"), w.shopDefinition(t, "far")}
	w.createShop(t, cluster1, definitions[0], near)
	w.createShop(t, cluster2, definitions[1], far)
	w.awaitShop(t, 2, 2)

	entries, err := w.kube.List(t.Context(), kube.ServiceEntries, "", "ecs.solo.io/host="+shopHost)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d service entries of %s (%v), want one for both clusters", len(entries), shopHost, err)
	}
	if sources := strings.Fields(entries[0].GetAnnotations()["isthmus.dev/source"]); len(sources) != 2 {
		t.Errorf("the service entry stands for %v, want the services of both clusters", sources)
	}
	await(t, short, "the tasks in the caller's zone "+zone+" answer", func() (bool, string) { return w.shopAnswers(t, from, "near") })
	c := w.startCaller(t, from, shopPort)

	w.scaleShop(t, cluster1, 0)
	w.awaitShop(t, 0, 2)
	await(t, short, "the other cluster answers", func() (bool, string) { return w.shopAnswers(t, from, "far") })
	c.awaitCalls(t, 20)

	w.scaleShop(t, cluster1, 2)
	w.awaitShop(t, 2, 2)
	await(t, short, "the caller's zone answers again", func() (bool, string) { return w.shopAnswers(t, from, "near") })
	c.awaitCalls(t, 20)

	// A zone is also left when its service goes for good: the entry stays, with its address, for the other's sake.
	w.deleteShop(t, cluster1)
	w.awaitShop(t, 0, 2)
	await(t, short, "the service entry stands for the other service alone", func() (bool, string) {
		o, err := w.kube.Get(t.Context(), kube.ServiceEntries, cluster1, entries[0].GetName())
		if err != nil {
			return false, err.Error()
		}
		if o.GetUID() != entries[0].GetUID() {
			t.Fatal("the service entry was made anew, which changes its address")
		}
		return len(strings.Fields(o.GetAnnotations()["isthmus.dev/source"])) == 1, fmt.Sprint(o.GetAnnotations())
	})
	c.awaitCalls(t, 20)
	calls := c.stop(t)
	t.Logf("%d calls", len(calls))
	for _, f := range calls {
		if f.failed() {
			t.Errorf("a call failed: code %d, %s", f.code, f.detail)
		}
	}
	w.deleteShop(t, cluster2)
	await(t, long, "nothing is left of "+shopHost, func() (bool, string) {
		list, err := w.kube.List(t.Context(), kube.ServiceEntries, "", "ecs.solo.io/host="+shopHost)
		return err == nil && len(list) == 0, fmt.Sprintf("%d service entries, %v", len(list), err)
	})
	for _, d := range definitions {
		if _, err := w.ecs.DeregisterTaskDefinition(t.Context(), &ecs.DeregisterTaskDefinitionInput{TaskDefinition: &d}); err != nil {
			t.Error(err)
		}
	}
}

// subnets returns a subnet in a zone and one in another.
func (w *world) subnets(t *testing.T, zone string) (near, far string) {
	t.Helper()
	var network []string
	for _, cluster := range []string{cluster1, cluster2} {
		out, err := w.ecs.DescribeServices(t.Context(), &ecs.DescribeServicesInput{Cluster: &cluster, Services: []string{echo}})
		if err != nil || len(out.Services) != 1 {
			t.Fatal(out, err)
		}
		network = append(network, out.Services[0].NetworkConfiguration.AwsvpcConfiguration.Subnets...)
	}
	out, err := w.ec2.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{SubnetIds: network})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range out.Subnets {
		if aws.ToString(s.AvailabilityZone) == zone {
			near = aws.ToString(s.SubnetId)
		} else {
			far = aws.ToString(s.SubnetId)
		}
	}
	if near == "" || far == "" {
		t.Fatalf("of the subnets %v none is in zone %s, or none is not", network, zone)
	}
	return near, far
}

// shopDefinition registers the definition of cluster 1's enrolled echo service once more, with tags that choose host name
// and namespace, and a mark in the application's environment.
func (w *world) shopDefinition(t *testing.T, mark string) string {
	t.Helper()
	d, tags := w.definition(t)
	for i := range d.ContainerDefinitions {
		if c := &d.ContainerDefinitions[i]; aws.ToString(c.Name) != proxyContainer {
			c.Environment = append(c.Environment, types.KeyValuePair{Name: aws.String("E2E_SHOP"), Value: aws.String(mark)})
		}
	}
	for key, value := range map[string]string{"ecs.solo.io/hostname": shopHost, "ecs.solo.io/namespace": cluster1} {
		tags = slices.DeleteFunc(tags, func(t types.Tag) bool { return aws.ToString(t.Key) == key })
		tags = append(tags, types.Tag{Key: aws.String(key), Value: aws.String(value)})
	}
	d.Family = aws.String(shop + "-" + mark)
	return w.register(t, d, tags)
}

func (w *world) createShop(t *testing.T, cluster, definition, subnet string) {
	t.Helper()
	if _, err := w.ecs.CreateService(t.Context(), &ecs.CreateServiceInput{
		Cluster: &cluster, ServiceName: aws.String(shop), TaskDefinition: &definition, DesiredCount: aws.Int32(2), LaunchType: types.LaunchTypeFargate, EnableExecuteCommand: true,
		NetworkConfiguration: &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{subnet}, AssignPublicIp: types.AssignPublicIpEnabled}},
	}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) scaleShop(t *testing.T, cluster string, n int32) {
	t.Helper()
	if _, err := w.ecs.UpdateService(t.Context(), &ecs.UpdateServiceInput{Cluster: &cluster, Service: aws.String(shop), DesiredCount: &n}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) deleteShop(t *testing.T, cluster string) {
	t.Helper()
	if _, err := w.ecs.DeleteService(t.Context(), &ecs.DeleteServiceInput{Cluster: &cluster, Service: aws.String(shop), Force: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
}

// awaitShop waits until the service has that many tasks in the mesh in each cluster. All are in one namespace.
func (w *world) awaitShop(t *testing.T, first, second int) {
	t.Helper()
	await(t, long, fmt.Sprintf("%d and %d tasks of %s are in the mesh", first, second, shop), func() (bool, string) {
		all, err := w.entries(t.Context(), cluster1, shop)
		if err != nil {
			return false, err.Error()
		}
		n := map[string]int{}
		for _, o := range all {
			if o.GetAnnotations()["ambient.istio.io/redirection"] == "enabled" {
				n[o.GetLabels()["ecs.solo.io/cluster"]]++
			}
		}
		return n[cluster1] == first && n[cluster2] == second && len(all) == first+second, fmt.Sprint(n)
	})
}

// shopAnswers calls ten times and reports whether only tasks with that mark answer.
func (w *world) shopAnswers(t *testing.T, from types.Task, mark string) (bool, string) {
	t.Helper()
	out := w.mustExec(t, from, `for i in 1 2 3 4 5 6 7 8 9 10; do curl -sS --max-time 20 http://`+shopPort+` | tr ',' '\n' | grep E2E_SHOP; done || true`)
	return strings.Count(out, `"E2E_SHOP":"`+mark+`"`) == 10, out
}
