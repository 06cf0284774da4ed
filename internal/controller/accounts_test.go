package controller

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/broker"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

const taskRole = "arn:aws:iam::111111111111:role/ecs/ambient/task"

func TestDirectory(t *testing.T) {
	ctx := t.Context()
	a, b := newAccount(accountA, "ecs-demo-1"), newAccount(accountB, "ecs-demo-2")
	arn := a.RunTask(a.cluster, "echo", a.definition)
	now := time.Unix(1_800_000_000, 0)
	w := newWorld(t, kubetest.New(t, namespaces()), func(c *Config) { c.Now = func() time.Time { return now } }, a, b)
	acc := w.ctl.accounts
	id := inventory.LastPart(arn)
	if _, err := acc.FindTask(ctx, accountA, region, id); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("before the first sweep: %v, want ErrUnavailable", err)
	}
	if acc.Life(arn) != broker.Unknown {
		t.Error("life is known before the first sweep")
	}
	if err := w.ctl.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := acc.FindTask(ctx, accountA, "eu-west-1", id)
	if err != nil {
		t.Fatal(err)
	}
	want := broker.Task{
		ARN: arn, ID: id, ClusterARN: a.cluster, RoleARN: taskRole, LastStatus: "RUNNING", DesiredStatus: "RUNNING",
		Namespace: "ecs-demo-1", ServiceAccount: "echo-sa", WorkloadName: "ecs-task-" + accountA + "-us-east-2-ecs-demo-1-" + id,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("FindTask (-want +got):\n%s", diff)
	}
	// Seconds old and in no sweep yet: ECS is asked at once.
	young := a.RunTask(a.cluster, "echo", a.definition)
	if got, err := acc.FindTask(ctx, accountA, region, inventory.LastPart(young)); err != nil || got.Namespace != "ecs-demo-1" {
		t.Errorf("a task that no sweep has seen: %+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		account, id string
		want        error
	}{
		"another account's task":    {accountB, id, broker.ErrTaskUnknown},
		"an account not configured": {"999999999999", id, broker.ErrAccountUnknown},
		"no such task":              {accountA, strings.Repeat("f", 32), broker.ErrTaskUnknown},
		"not a task id":             {accountA, "eve", broker.ErrTaskUnknown},
	} {
		if _, err := acc.FindTask(ctx, tt.account, region, tt.id); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	life := func() broker.Life {
		t.Helper()
		if err := w.ctl.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		return acc.Life(arn)
	}
	if got := life(); got != broker.Alive {
		t.Errorf("running: %v", got)
	}
	a.StopTask(arn)
	if got := life(); got != broker.Alive {
		t.Errorf("stopping, containers still run: %v, want alive", got)
	}
	a.Break("DescribeTasks", "", errors.New("down"))
	_ = w.ctl.sweep(ctx)
	if got := acc.Life(arn); got == broker.Ended {
		t.Error("a task ended because AWS could not be asked")
	}
	a.Mend()
	now = now.Add(time.Hour) // past every back-off
	a.EndTask(arn)
	if got := life(); got != broker.Ended {
		t.Errorf("stopped: %v", got)
	}
}
