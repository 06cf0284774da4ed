package ecs

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi/awsfake"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{Account: "1"}); err == nil || err.Error() != "ecs: Config.Region is required" {
		t.Errorf("New = %v", err)
	}
}

func TestRunSweepsAtIntervalsAndOnKick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aws := awsfake.New("123456789012", "us-east-2")
		c := aws.AddCluster("ecs-demo-1", optedIn)
		r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: aws.Reader(), Log: slog.New(slog.DiscardHandler), Jitter: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		if s := r.Snapshot(); s.Sweeps != 1 || !s.Complete {
			t.Fatalf("Sweeps = %d, want 1", s.Sweeps)
		}
		time.Sleep(61 * time.Second) // virtual time
		synctest.Wait()
		if s := r.Snapshot(); s.Sweeps != 7 {
			t.Errorf("Sweeps = %d after a minute, want 7", s.Sweeps)
		}
		if got := aws.CallCount("ListClusters"); got != 2 {
			t.Errorf("ListClusters was called %d times in a minute, want 2", got)
		}
		aws.RunTask(c, "", "none")
		_, changed := r.Watch()
		start := time.Now()
		r.Kick()
		r.Kick()
		<-changed
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("a kick took %v", d)
		}
		if _, tasks := r.Snapshot().Counts(); tasks != 1 {
			t.Errorf("tasks = %d, want 1", tasks)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

// Clusters in which a task starts are looked at more often, the others are not; and that is no complete sweep.
func TestStartingTasksAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aws := awsfake.New("123456789012", "us-east-2")
		busy := aws.AddCluster("busy", optedIn)
		aws.AddCluster("quiet", optedIn)
		def := aws.AddDefinition(inventory.TaskDefinition{Family: "echo", Revision: 1, Containers: []inventory.ContainerDefinition{{Name: "ztunnel", HasHealthCheck: true}}})
		r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: aws.Reader(), Log: slog.New(slog.DiscardHandler), Jitter: -1})
		if err != nil {
			t.Fatal(err)
		}
		task := aws.RunTask(busy, "", def)
		aws.Edit(task, func(x *inventory.Task) { x.LastStatus, x.CreatedAt = inventory.TaskPending, time.Now() })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		synctest.Wait()
		before, complete := aws.CallCount("ListTasks"), r.Snapshot().CompleteSweeps
		time.Sleep(7 * time.Second) // virtual time: hot looks after 2, 4 and 6 s
		synctest.Wait()
		if got := aws.CallCount("ListTasks") - before; got != 3 {
			t.Errorf("ListTasks was called %d times in 7 s, want 3, of the busy cluster only", got)
		}
		if got := r.Snapshot().CompleteSweeps; got != complete {
			t.Errorf("CompleteSweeps = %d, want %d: looking at one cluster is no sweep", got, complete)
		}
		aws.Edit(task, func(x *inventory.Task) {
			x.LastStatus, x.Containers[0].HealthStatus = inventory.TaskRunning, inventory.Unknown
		})
		_, changed := r.Watch()
		start := time.Now()
		<-changed
		if d := time.Since(start); d > 2*time.Second || taskIn(r.Snapshot(), task).LastStatus != inventory.TaskRunning {
			t.Errorf("a running task was noticed after %v", d)
		}
		aws.Edit(task, func(x *inventory.Task) { x.Containers[0].HealthStatus = inventory.Healthy })
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := hot(r.Snapshot(), time.Now()); len(got) != 0 {
			t.Errorf("hot = %v although the task is healthy", got)
		}
		sweeps := r.Snapshot().CompleteSweeps
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := r.Snapshot().CompleteSweeps - sweeps; got < 3 || got > 4 {
			t.Errorf("%d complete sweeps in 30 s, want about 3", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestBackoff(t *testing.T) {
	for n, want := range map[int]time.Duration{1: 2 * time.Second, 2: 4 * time.Second, 4: 16 * time.Second, 9: 5 * time.Minute, 1000: 5 * time.Minute} {
		if got := backoff(n); got != want {
			t.Errorf("backoff(%d) = %v, want %v", n, got, want)
		}
	}
}

// Accounts that start in the same moment soon sweep at different ones, so that neither the API server, nor STS, nor the
// controller has work for all of them at once. Within an account a few clusters are read at a time.
func TestJitterSpreadsSweepsOverAccounts(t *testing.T) {
	const accounts, minutes = 60, 10
	busiest := func(jitter float64) int {
		perSecond := map[int]int{}
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var mu sync.Mutex
			ctx, cancel := context.WithCancel(t.Context())
			var runs sync.WaitGroup
			for i := range accounts {
				aws := awsfake.New(fmt.Sprintf("%012d", i+1), "us-east-2")
				aws.AddCluster("ecs-demo-1", optedIn)
				reader := aws.Limited(func(_ context.Context, op string) error {
					if at := time.Since(start); op == "ListTasks" && at > (minutes-1)*time.Minute {
						mu.Lock()
						perSecond[int(at/time.Second)]++
						mu.Unlock()
					}
					return nil
				})
				r, err := New(Config{Account: aws.Account, Region: aws.Region, Source: reader, Log: slog.New(slog.DiscardHandler), Jitter: jitter})
				if err != nil {
					t.Fatal(err)
				}
				runs.Go(func() { _ = r.Run(ctx) })
			}
			time.Sleep(minutes * time.Minute) // virtual
			cancel()
			runs.Wait()
		})
		return slices.Max(slices.Collect(maps.Values(perSecond)))
	}
	if n := busiest(-1); n != accounts {
		t.Errorf("without jitter %d of %d accounts were read in the busiest second of the last minute, want all", n, accounts)
	}
	if n := busiest(0); n > accounts/2 { // six on the average
		t.Errorf("%d of %d accounts were read in the busiest second of the last minute", n, accounts)
	}
}

// However many clusters an account has, few of them are read at a time.
func TestClustersAreReadAFewAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		aws := awsfake.New("123456789012", "us-east-2")
		for i := range 50 {
			aws.AddCluster(fmt.Sprint("c", i), optedIn)
		}
		var now, most atomic.Int32
		reader := aws.Limited(func(context.Context, string) error {
			n := now.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(100 * time.Millisecond) // virtual
			now.Add(-1)
			return nil
		})
		r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: reader, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Sweep(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if got := most.Load(); got != defaultParallel {
			t.Errorf("%d calls at once, want %d", got, defaultParallel)
		}
	})
}

// Memory and time of a sweep over 10,000 tasks in 20 clusters, of which nothing changed.
func BenchmarkQuietSweep(b *testing.B) {
	aws := awsfake.New("123456789012", "us-east-2")
	def := aws.AddDefinition(inventory.TaskDefinition{Family: "echo", Revision: 1})
	for i := range 20 {
		c := aws.AddCluster(fmt.Sprintf("c%02d", i), optedIn)
		aws.AddService(c, "svc", def)
		for range 500 {
			aws.RunTask(c, "svc", def)
		}
	}
	r, err := New(Config{Account: "123456789012", Region: "us-east-2", Source: aws.Reader(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	r.Sweep(b.Context(), true)
	b.ReportAllocs()
	for b.Loop() {
		r.Sweep(b.Context(), false)
	}
}
