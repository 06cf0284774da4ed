package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// awsPort is where the AWS endpoint listens inside the lab.
const awsPort = "4566"

// testOutage takes away everything that calls between tasks must not need, all at once.
func testOutage(t *testing.T, w *world) {
	length := 30 * time.Second
	if os.Getenv("ISTHMUS_E2E_LONG") != "" {
		length = time.Minute
	}
	before := w.meshObjects(t)
	var phases []phase
	enter := func(name string) { phases = append(phases, phase{name, time.Now()}) }
	enter("before")
	callers := []*caller{
		w.startCaller(t, w.task(t, cluster2, shell), echoHost1),
		w.startCaller(t, w.task(t, cluster1, shell), echoHost2),
	}

	// A controller that cannot see ECS, whether it runs or comes back, must not take what it cannot see for gone.
	unchanged := func(when string) {
		if diff := cmp.Diff(before, w.meshObjects(t)); diff != "" {
			t.Errorf("%s, objects differ (-before +after):\n%s", when, diff)
		}
	}
	enter("AWS is away")
	endpoint := w.startHelper(t, helperBlock, awsPort)
	pass(t, 8*time.Second)
	unchanged("after some sweeps without AWS")

	enter("AWS, istiod and the controller are away")
	scale(t, w, "istiod", 0)
	scale(t, w, "isthmus-controller", 0)
	pass(t, length)

	enter("the controller is back, istiod and AWS are not")
	scale(t, w, "isthmus-controller", 1)
	await(t, long, "the controller's pod runs", func() (bool, string) {
		pods, err := w.kube.ListPods(t.Context(), "istio-system", "app=isthmus-controller")
		return err == nil && len(pods) == 1 && pods[0].Phase == "Running", fmt.Sprint(pods, err)
	})
	pass(t, 5*time.Second)
	unchanged("after the start of a controller without AWS")

	enter("istiod is back")
	scale(t, w, "istiod", 1)
	w.must(t, "kubectl", "rollout", "status", "-n", "istio-system", "deployment/istiod", "--timeout=120s")
	enter("AWS is back")
	endpoint.end(t)
	begin := time.Now()
	w.must(t, "kubectl", "rollout", "status", "-n", "istio-system", "deployment/isthmus-controller", "--timeout=120s")
	t.Logf("the controller is ready %s after AWS answers again", time.Since(begin).Round(time.Second/10))
	for _, c := range callers {
		c.awaitCalls(t, 20)
	}
	unchanged("after the outage")

	enter("everything works again")
	t.Logf("every proxy is connected to istiod again after %s", w.awaitProxies(t).Round(time.Second/10))
	for i, c := range callers {
		calls := c.stop(t)
		t.Logf("caller %d: %d calls", i+1, len(calls))
		if failed := reportCalls(t, calls, phases); len(failed) > 0 {
			t.Errorf("%d calls of caller %d failed, want none", len(failed), i+1)
		}
	}
	checkRecovered(t, w)
}

// awaitProxies waits until istiod lists the proxy of every task.
func (w *world) awaitProxies(t *testing.T) time.Duration {
	t.Helper()
	return await(t, long, "every proxy is connected to istiod", func() (bool, string) {
		out := w.run(t.Context(), "istioctl", "proxy-status")
		for _, s := range [][2]string{{cluster1, echo}, {cluster1, shell}, {cluster2, echo}, {cluster2, shell}} {
			if !hasLine(out.stdout, []string{taskID(w.task(t, s[0], s[1])) + "." + s[0]}) {
				return false, out.String()
			}
		}
		return true, ""
	})
}

// checkRecovered has a new task come into the mesh and leave it.
func checkRecovered(t *testing.T, w *world) {
	t.Helper()
	for _, n := range []int32{2, 1} {
		begin := time.Now()
		if _, err := w.ecs.UpdateService(t.Context(), &ecs.UpdateServiceInput{Cluster: aws.String(cluster2), Service: aws.String(echo), DesiredCount: aws.Int32(n)}); err != nil {
			t.Fatal(err)
		}
		w.awaitEntries(t, cluster2, echo, int(n))
		t.Logf("%d tasks are in the mesh %s after they were wanted", n, time.Since(begin).Round(time.Second/10))
	}
}

// scale sets the replicas of a Deployment of the system and waits until no more pods than that are left.
func scale(t *testing.T, w *world, name string, replicas int) {
	t.Helper()
	w.must(t, "kubectl", "scale", "-n", "istio-system", "deployment/"+name, fmt.Sprintf("--replicas=%d", replicas))
	if replicas > 0 {
		return
	}
	await(t, long, name+" has no pod", func() (bool, string) {
		pods, err := w.kube.ListPods(t.Context(), "istio-system", "app="+name)
		return err == nil && len(pods) == 0, fmt.Sprint(pods, err)
	})
}

// pass lets time go by: the length of an outage is what is tested.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		t.Fatal("interrupted")
	}
}

// meshObjects returns the uid of each ServiceEntry and WorkloadEntry: one that was deleted and made again has another.
func (w *world) meshObjects(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
		list, err := w.kube.List(t.Context(), kind, "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			all[kube.Ref(o)] = string(o.GetUID())
		}
	}
	return all
}
