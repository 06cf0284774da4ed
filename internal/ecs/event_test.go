package ecs

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

const (
	eventAccount = "111122223333"
	eventCluster = "arn:aws:ecs:us-west-2:" + eventAccount + ":cluster/shop"
	eventTaskARN = "arn:aws:ecs:us-west-2:" + eventAccount + ":task/shop/0123456789abcdef0123456789abcdef"
)

// taskEvent has the shape of a real one: ISO times, the attachment's short type, the body's version beside the task's.
const taskEvent = `{"version":"0","id":"9bcdac79-b31f-4d3d-9410-fbd727c29fab","detail-type":"ECS Task State Change","source":"aws.ecs","account":"` + eventAccount + `",
"time":"2026-11-06T16:41:06Z","region":"us-west-2","resources":["` + eventTaskARN + `"],
"detail":{"attachments":[{"id":"1","type":"eni","status":"ATTACHED","details":[{"name":"privateIPv4Address","value":"10.0.0.7"}]}],
"availabilityZone":"us-west-2b","clusterArn":"` + eventCluster + `","connectivity":"CONNECTED","connectivityAt":"2026-11-06T16:40:00.609Z",
"containers":[{"name":"app","lastStatus":"RUNNING","networkInterfaces":[{"attachmentId":"1","privateIpv4Address":"10.0.0.7"}]}],
"createdAt":"2026-11-06T16:39:59.409Z","desiredStatus":"RUNNING","group":"service:web","lastStatus":"RUNNING","overrides":{"containerOverrides":[{"name":"app"}]},
"startedBy":"ecs-svc/1","taskArn":"` + eventTaskARN + `","taskDefinitionArn":"arn:aws:ecs:us-west-2:` + eventAccount + `:task-definition/web:1","version":4}}`

const eventInstanceARN = "arn:aws:ecs:us-west-2:" + eventAccount + ":container-instance/shop/f00d"

// instanceEvent is what ECS says when its agent has put an instance of which EC2 takes the capacity back to draining.
func instanceEvent(status string) string {
	return `{"version":"0","detail-type":"ECS Container Instance State Change","source":"aws.ecs","account":"` + eventAccount + `","region":"us-west-2",
		"detail":{"containerInstanceArn":"` + eventInstanceARN + `","clusterArn":"` + eventCluster + `","ec2InstanceId":"i-1","status":"` + status + `","agentConnected":true,
		"runningTasksCount":3,"version":18,"versionInfo":{"agentVersion":"1.99.0"}}}`
}

func TestParseEvent(t *testing.T) {
	service := func(kind, detail string) string {
		return `{"version":"0","detail-type":"` + kind + `","source":"aws.ecs","account":"` + eventAccount + `","region":"us-west-2",
			"resources":["arn:aws:ecs:us-west-2:` + eventAccount + `:service/shop/web"],"detail":{` + detail + `}}`
	}
	ofCluster := Hint{Account: eventAccount, Region: "us-west-2", Cluster: eventCluster}
	ofTask := Hint{Account: eventAccount, Region: "us-west-2", Cluster: eventCluster, Task: eventTaskARN, Version: 4}
	tests := []struct {
		name, body string
		want       Hint
		err        string
	}{
		{"task", taskEvent, ofTask, ""},
		{"steady", service("ECS Service Action", `"eventType":"INFO","eventName":"SERVICE_STEADY_STATE","clusterArn":"`+eventCluster+`","createdAt":"2026-11-06T16:41:06.123Z"`), ofCluster, ""},
		{"deployment", service("ECS Deployment State Change", `"eventType":"INFO","eventName":"SERVICE_DEPLOYMENT_COMPLETED","deploymentId":"ecs-svc/1"`), ofCluster, ""},
		{"no json", "hello", Hint{}, "parse event"},
		{"another source", strings.Replace(taskEvent, "aws.ecs", "aws.ec2", 1), Hint{}, `source "aws.ec2" is not aws.ecs`},
		{"another kind", strings.Replace(taskEvent, "ECS Task State Change", "ECS Service Deployment Hook State Change", 1), Hint{}, "says nothing here"},
		{"instance draining", instanceEvent("DRAINING"), Hint{Account: eventAccount, Region: "us-west-2", Cluster: eventCluster, Instance: eventInstanceARN}, ""},
		{"instance deregistered", instanceEvent("INACTIVE"), Hint{Account: eventAccount, Region: "us-west-2", Cluster: eventCluster, Instance: eventInstanceARN}, ""},
		{"instance with one task more", instanceEvent("ACTIVE"), Hint{}, "says nothing here"},
		{"a task for an instance", strings.Replace(instanceEvent("DRAINING"), eventInstanceARN, eventTaskARN, 1), Hint{}, "is not a container instance"},
		{"another account", strings.Replace(taskEvent, `"account":"`+eventAccount, `"account":"999999999999`, 1), Hint{}, "is not of account"},
		{"another region", strings.Replace(taskEvent, `"region":"us-west-2"`, `"region":"eu-west-1"`, 1), Hint{}, "is not of account"},
		{"another cluster", strings.Replace(taskEvent, `"clusterArn":"`+eventCluster, `"clusterArn":"`+eventCluster+"2", 1), Hint{}, "of which cluster"},
		{"no task", strings.Replace(taskEvent, `"taskArn":"`+eventTaskARN, `"taskArn":"`, 1), Hint{}, "invalid arn"},
		{"a service for a task", strings.Replace(taskEvent, `"taskArn":"`+eventTaskARN, `"taskArn":"arn:aws:ecs:us-west-2:`+eventAccount+`:service/shop/web`, 1), Hint{}, "is not a task"},
		{"huge", strings.Repeat(" ", maxEvent) + taskEvent, Hint{}, "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseEvent([]byte(tt.body))
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("error = %v, want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// Whatever a queue holds, a hint that comes out of it names one task or cluster, of the account and region it says.
func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(taskEvent))
	f.Add([]byte(`{"source":"aws.ecs","detail-type":"ECS Service Action","resources":["arn:aws:ecs:r:a:service/c/s"],"account":"a","region":"r"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		h, err := ParseEvent(body)
		if err != nil {
			if h != (Hint{}) {
				t.Fatalf("an error and a hint: %+v", h)
			}
			return
		}
		if h.Cluster == "" {
			t.Fatalf("no cluster: %+v", h)
		}
		if h.Task != "" {
			arn, err := inventory.ParseARN(h.Task)
			if err != nil || arn.Account != h.Account || arn.Region != h.Region {
				t.Fatalf("%+v: %v", h, err)
			}
		}
	})
}

// keyed is an account in which Run has swept once and will not again for an hour.
type keyed struct {
	*awsfake.ECS
	r       *Reflector
	cluster string
	def     string
}

func newKeyed(t *testing.T) *keyed {
	t.Helper()
	k := &keyed{ECS: awsfake.New("123456789012", "us-east-2")}
	k.cluster = k.AddCluster("ecs-demo-1", optedIn)
	k.def = k.AddDefinition(inventory.TaskDefinition{Family: "web", Revision: 1, Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true}}})
	k.AddService(k.cluster, "web", k.def)
	var err error
	k.r, err = New(Config{Account: k.Account, Region: k.Region, Source: k.Reader(), Log: slog.New(slog.DiscardHandler), Interval: time.Hour, FullInterval: time.Hour, HotInterval: time.Hour, Jitter: -1})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *keyed) hint(arn string, version int64) {
	k.r.Hint(Hint{Account: k.Account, Region: k.Region, Cluster: k.cluster, Task: arn, Version: version})
}

func (k *keyed) version(arn string) int64 { t, _ := k.Task(arn); return t.Version }

// A hint reads one task, whatever else there is; one about what is known reads nothing.
func TestHintsReadOnlyWhatTheyAreAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t)
		for range 300 {
			k.RunTask(k.cluster, "web", k.def)
		}
		go func() { _ = k.r.Run(t.Context()) }()
		synctest.Wait()
		sweeps := k.r.Snapshot().CompleteSweeps
		settle := func() { time.Sleep(2 * time.Second); synctest.Wait() } // virtual

		arn := k.RunTask(k.cluster, "web", k.def)
		before := k.CallCount("DescribeTasks")
		k.hint(arn, k.version(arn))
		k.hint(arn, k.version(arn))
		settle()
		c := k.r.Snapshot().Clusters[k.cluster]
		if c.Tasks[arn] == nil || c.Members[arn] != "web" {
			t.Fatalf("the task is not known, or not as the service's: %q", c.Members[arn])
		}
		if n := k.CallCount("DescribeTasks") - before; n != 1 {
			t.Errorf("%d DescribeTasks for two hints about one task, want 1", n)
		}
		before = k.CallCount("")
		k.hint(arn, k.version(arn)-1)
		k.hint(arn, k.version(arn))
		k.r.Hint(Hint{Cluster: eventCluster, Task: eventTaskARN})
		settle()
		if n := k.CallCount("") - before; n != 0 {
			t.Errorf("%d calls for hints about what is known or not ours", n)
		}
		k.StopTask(arn)
		k.hint(arn, k.version(arn))
		settle()
		if !k.r.Snapshot().Clusters[k.cluster].Tasks[arn].Stopping() {
			t.Error("the task does not stop")
		}
		k.EndTask(arn)
		k.hint(arn, k.version(arn))
		settle()
		if snap := k.r.Snapshot(); snap.Clusters[k.cluster].Tasks[arn] != nil || snap.Gone[arn] != inventory.Terminal {
			t.Error("the task is not gone")
		}
		if got := k.r.Snapshot().CompleteSweeps; got != sweeps {
			t.Errorf("hints counted as %d sweeps", got-sweeps)
		}
	})
}

// ECS's reads may lag behind its events: a reading older than the event is not the last word, and never goes back.
func TestHintsAreTriedAgainWhileReadsLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t)
		arn := k.RunTask(k.cluster, "web", k.def)
		go func() { _ = k.r.Run(t.Context()) }()
		synctest.Wait()
		k.FreezeAs(arn, func(*inventory.Task) {}) // reads are stuck here
		k.StopTask(arn)
		before := k.CallCount("DescribeTasks")
		k.hint(arn, k.version(arn))
		time.Sleep(150 * time.Millisecond) // virtual: the first read, which is too old
		synctest.Wait()
		k.Mend()
		time.Sleep(time.Second)
		synctest.Wait()
		if !k.r.Snapshot().Clusters[k.cluster].Tasks[arn].Stopping() {
			t.Error("the newer state was never read")
		}
		if n := k.CallCount("DescribeTasks") - before; n < 2 || n > hintRetries {
			t.Errorf("%d reads, want 2 or %d", n, hintRetries)
		}
	})
}

// A look that fails says nothing: the cluster stays as complete as it was, and a sweep follows.
func TestHintsThatFailLeaveItToTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t)
		arn := k.RunTask(k.cluster, "web", k.def)
		go func() { _ = k.r.Run(t.Context()) }()
		synctest.Wait()
		k.StopTask(arn)
		k.FailNext("DescribeTasks", errors.New("down"))
		k.hint(arn, k.version(arn))
		time.Sleep(5 * time.Second)
		synctest.Wait()
		snap := k.r.Snapshot()
		if c := snap.Clusters[k.cluster]; !c.Complete || !snap.Complete || !c.Tasks[arn].Stopping() {
			t.Errorf("complete %v and %v, stopping %v; want all true", c.Complete, snap.Complete, c.Tasks[arn].Stopping())
		}
	})
}

// A spot interruption on EC2: the instance drains, of which only its own tasks are read again; each of them serves until
// ECS wants that very task stopped, and is followed to its end.
func TestDrainingInstanceMakesItsTasksBeReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeyed(t)
		instance := "arn:aws:ecs:us-east-2:123456789012:container-instance/ecs-demo-1/f00d"
		var on []string
		for i := range 30 {
			arn := k.RunTask(k.cluster, "web", k.def)
			if i < 3 {
				k.Edit(arn, func(x *inventory.Task) { x.LaunchType, x.ContainerInstance = inventory.LaunchEC2, instance })
				on = append(on, arn)
			}
		}
		go func() { _ = k.r.Run(t.Context()) }()
		synctest.Wait()
		settle := func() { time.Sleep(2 * time.Second); synctest.Wait() } // virtual
		drains := func() { k.r.Hint(Hint{Account: k.Account, Region: k.Region, Cluster: k.cluster, Instance: instance}) }
		task := func(arn string) *Task { return k.r.Snapshot().Clusters[k.cluster].Tasks[arn] }

		before := k.CallCount("")
		drains()
		settle()
		if n := k.CallCount("") - before; n != 1 {
			t.Errorf("%d calls, want one DescribeTasks", n)
		}
		for _, arn := range on {
			if task(arn).Stopping() {
				t.Error("a task stops, though ECS only drains its instance")
			}
		}
		k.Edit(on[0], func(x *inventory.Task) {
			x.DesiredStatus, x.StopCode, x.StoppedReason = inventory.TaskStopped, "SpotInterruption", "Host EC2 (instance i-1) stopped."
		})
		drains()
		settle()
		if x := task(on[0]); !x.Stopping() || x.LastStatus != inventory.TaskRunning || x.StopCode != "SpotInterruption" {
			t.Errorf("the interrupted task = %+v, want it RUNNING and to be stopped", x)
		}
		if task(on[1]).Stopping() {
			t.Error("its neighbour stops as well")
		}
		before = k.CallCount("")
		k.r.Hint(Hint{Account: k.Account, Region: k.Region, Cluster: k.cluster, Instance: instance + "0"})
		settle()
		if n := k.CallCount("") - before; n != 0 {
			t.Errorf("%d calls for an instance without tasks", n)
		}
	})
}
