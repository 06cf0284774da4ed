package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

// kills is how often the controller is killed in one run.
const kills = 50

// mortal is a world whose controller is killed: from that moment on nothing that it asks of Kubernetes happens, not even
// what a process does at its end, and it is given no time.
type mortal struct {
	*churn
	kube   *kubetest.Cluster
	number int           // of the controllers so far
	slow   time.Duration // how long AWS takes to answer the controller of now

	mu     sync.Mutex
	dead   bool          // guarded by mu; the controller of now was killed
	budget int           // guarded by mu; writes of entries until that happens by itself; negative for never
	killed chan struct{} // guarded by mu; closed when it has happened by itself
	wrong  []string      // guarded by mu; what should never have been deleted
	midway int           // guarded by mu; controllers killed between the writes of a round
	writes int           // guarded by mu; of entries
}

var errKilled = errors.New("the process was killed")

// answer is asked before each call of Kubernetes.
func (m *mortal) answer(call string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errKilled
	}
	verb, rest, _ := strings.Cut(call, " ")
	kind, name, _ := strings.Cut(rest, " ")
	if (verb != "patch" && verb != "delete") || (kind != "serviceentries" && kind != "workloadentries") {
		return nil
	}
	if m.budget == 0 {
		m.dead = true
		m.midway++
		close(m.killed)
		return errKilled
	}
	m.budget--
	m.writes++
	if verb == "delete" && m.mustStay(name) {
		m.wrong = append(m.wrong, call)
	}
	return nil
}

// live runs a controller until it has made that many writes of entries or that time has passed, whichever is first.
func (m *mortal) live(ctx context.Context, t *testing.T, writes int, limit time.Duration, meanwhile func()) {
	t.Helper()
	m.number++
	killed := make(chan struct{})
	m.mu.Lock()
	m.dead, m.budget, m.killed = false, writes, killed
	m.mu.Unlock()
	reader := m.aws.Limited(func(ctx context.Context, _ string) error { // AWS takes its time, so that sweeps can be killed
		if !sleep(ctx, m.slow) {
			return ctx.Err()
		}
		return nil
	})
	ctl, err := New(Config{
		Options: Options{Namespace: "istio-system", LeaseDuration: time.Second, RevokeInterval: time.Second, GatewayReplicas: 1, ServiceAccount: "isthmus-controller"},
		Settings: settings.File{SweepInterval: settings.Duration(500 * time.Millisecond), ClusterName: "Kubernetes", TrustDomain: "cluster.local", DeletionLimitPercent: 50,
			Platforms: settings.Platforms{ECS: settings.ECS{Accounts: []settings.Account{{Role: "arn:aws:iam::" + accountA + ":role/istiod-local", Domain: "ecs.local"}}}}},
		Kube: m.kube.Client, Region: region, Identity: fmt.Sprint("controller-", m.number), Log: slog.New(slog.DiscardHandler),
		Source: func(settings.Account, string) (ecs.Source, error) { return reader, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- ctl.Run(ctx) }()
	meanwhile()
	timer := time.NewTimer(limit)
	select {
	case <-timer.C:
	case <-killed:
	}
	timer.Stop()
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	cancel()
	<-done // what it says no longer matters
}

// entries returns what the controller owns of its objects, and their uids.
func (m *mortal) entries(ctx context.Context, t *testing.T) (objects map[string]any, uids map[string]string) {
	t.Helper()
	objects, uids = map[string]any{}, map[string]string{}
	m.mu.Lock()
	m.dead, m.budget = false, -1
	m.mu.Unlock()
	for _, kind := range []kube.Kind{kube.ServiceEntries, kube.WorkloadEntries} {
		list, err := m.kube.Client.List(ctx, kind, "", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			objects[kube.Ref(o)] = map[string]any{"spec": o.Object["spec"], "labels": o.GetLabels(), "annotations": o.GetAnnotations()}
			uids[kube.Ref(o)] = string(o.GetUID())
		}
	}
	return objects, uids
}

// ages is a life under churn: the controller is killed again and again at random points, or not, and then left alone.
func (m *mortal) ages(t *testing.T, disturbed bool, rng *rand.Rand) map[string]any {
	ctx := t.Context()
	m.live(ctx, t, -1, 10*time.Second, func() {})
	_, before := m.entries(ctx, t)
	if len(before) == 0 {
		t.Fatal("the first controller made nothing")
	}
	steps := func() {
		for range churnsPerAge {
			m.step()
		}
	}
	all := func() {
		for range kills {
			steps()
		}
	}
	if !disturbed {
		m.live(ctx, t, -1, 0, all)
	}
	for i := 0; disturbed && i < kills; i++ {
		m.slow = time.Duration(5<<rng.IntN(8)) * time.Millisecond // some lead before they have read anything
		writes := -1                                              // by the clock: in a sweep, while it waits for the lease, between rounds
		if rng.IntN(3) > 0 {
			writes = rng.IntN(6) // between the writes of a round
		}
		m.live(ctx, t, writes, time.Duration(rng.IntN(5000))*time.Millisecond, steps)
	}
	m.slow = 20 * time.Millisecond
	m.live(ctx, t, -1, 5*time.Minute, func() {})
	objects, after := m.entries(ctx, t)
	for _, ref := range m.steady() {
		if before[ref] == "" || after[ref] != before[ref] {
			t.Errorf("%s was made anew, which changes its address: its uid was %q and is %q", ref, before[ref], after[ref])
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("%d controllers made %d writes; %d were killed at one", m.number, m.writes, m.midway)
	if disturbed && m.midway < kills/4 {
		t.Errorf("only %d of %d were killed between writes, which is too few to learn from", m.midway, kills)
	}
	if len(m.wrong) > 0 {
		t.Errorf("deleted, though nothing had happened to what it stands for: %v", m.wrong)
	}
	return objects
}

// A controller that is killed fifty times at random points, in sweeps, while it waits for the lease and between the
// writes of one round, while services are scaled, rolled, deleted and made again, leaves the objects of one that is not.
func TestKilledFiftyTimesEndsAsUndisturbed(t *testing.T) {
	run := func(t *testing.T, disturbed bool, seed uint64) (objects map[string]any) {
		synctest.Test(t, func(t *testing.T) {
			c := newChurn()
			m := &mortal{churn: c, kube: kubetest.New(t, namespaces(c.namespaces()...)), slow: 20 * time.Millisecond}
			m.kube.Fail(m.answer)
			objects = m.ages(t, disturbed, rand.New(rand.NewPCG(seed, 1))) //nolint:gosec // a test's choice
		})
		return objects
	}
	want := run(t, false, 0)
	kinds := map[string]int{}
	for ref := range want {
		kinds[strings.Fields(ref)[0]]++
	}
	t.Logf("undisturbed: %v", kinds)
	if kinds["ServiceEntry"] < 3 || kinds["WorkloadEntry"] < 5 {
		t.Fatalf("too little is left to compare: %v", slices.Sorted(maps.Keys(want)))
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			if diff := cmp.Diff(want, run(t, true, seed)); diff != "" {
				t.Errorf("objects (-undisturbed +killed %d times):\n%s", kills, diff)
			}
		})
	}
}
