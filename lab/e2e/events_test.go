package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
)

// atOnce is how soon the mesh has to know of a change that an event tells of; on a machine without other work it is a fraction
// of a second.
const atOnce = 3 * time.Second

// testEvents stops a task while sweeps are a minute apart: that it is gone, and that another has taken its place, only the lab's
// queue can tell the controller in time.
func testEvents(t *testing.T, w *world) {
	tasks := w.awaitEntries(t, cluster1, echo, 1)
	w.sweepEvery(t, "1s", "1m0s")
	defer w.sweepEvery(t, "1m0s", "1s")
	old := taskID(tasks[0])
	if _, err := w.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String(cluster1), Task: tasks[0].TaskArn}); err != nil {
		t.Fatal(err)
	}
	known := func(what string, done func(names []string) bool) time.Duration {
		return await(t, short, what, func() (bool, string) {
			found, err := w.entries(t.Context(), cluster1, echo)
			var names []string
			for _, o := range found {
				names = append(names, o.GetName())
			}
			return err == nil && done(names), fmt.Sprint(names, err)
		})
	}
	isOld := func(name string) bool { return strings.HasSuffix(name, old) }
	took := known("the mesh knows of the end of the task", func(names []string) bool { return !slices.ContainsFunc(names, isOld) })
	t.Logf("a stopped task is known after %s, with sweeps a minute apart", took.Round(time.Millisecond))
	if took > atOnce {
		t.Errorf("a stopped task is known after %s, want %s at most", took, atOnce)
	}
	took = known("the mesh knows the task in its place", func(names []string) bool { return len(names) == 1 && !isOld(names[0]) })
	t.Logf("the task in its place is known %s later", took.Round(time.Millisecond))
}

// sweepEvery restarts the controller with another interval between sweeps.
func (w *world) sweepEvery(t *testing.T, from, to string) {
	t.Helper()
	script := `set -e
kubectl get configmap -n istio-system isthmus-controller -o yaml | sed 's/sweepInterval: "\?'"$0"'"\?/sweepInterval: '"$1"'/' | kubectl apply --server-side --force-conflicts -f - >&2
kubectl get configmap -n istio-system isthmus-controller -o yaml | grep -q "sweepInterval: $1"
kubectl rollout restart -n istio-system deployment/isthmus-controller >&2
kubectl rollout status -n istio-system deployment/isthmus-controller --timeout=120s >&2`
	w.must(t, "bash", "-c", script, from, to)
	// The sweep at its start is over before what the test does.
	await(t, short, "the controller has swept", func() (bool, string) {
		out := w.run(t.Context(), "kubectl", "logs", "-n", "istio-system", "deployment/isthmus-controller")
		return strings.Contains(out.stdout, "sweep_interval="+to) && strings.Contains(out.stdout, "ecs inventory changed"), out.stdout
	})
}
