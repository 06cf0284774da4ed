package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// rollout is a service on its way to a task definition.
type rollout struct {
	admin            *awsadmin.Client
	cluster, service string
	want             string // ARN of the task definition; "" means whichever it has
	seen             bool   // a deployment of want was there: from then on its absence means something
}

// await waits until the service has one deployment, of what is wanted, and all of its tasks run. A deployment that ECS
// gives up, or takes back, ends the waiting with the reason.
func (r *rollout) await(ctx context.Context, timeout time.Duration, say func(string)) error {
	err := awaitSaying(ctx, timeout, fmt.Sprintf("service %s of cluster %s is not stable", r.service, r.cluster), say, r.look)
	var e *diag.Error
	if errors.As(err, &e) && e.Code == diag.RolloutFailed {
		told := *e
		told.Cause += r.events(context.WithoutCancel(ctx))
		return &told
	}
	return err
}

func (r *rollout) look(ctx context.Context) (stable bool, state string, err error) {
	s, err := service(ctx, r.admin, r.cluster, r.service)
	if err != nil {
		return false, "", err
	}
	if err := r.givenUp(ctx, s); err != nil {
		return false, "", err
	}
	var states []string
	for _, d := range s.Deployments {
		states = append(states, strings.TrimSpace(fmt.Sprintf("deployment of %s: %d of %d running, %d pending, %d failed %s", shortID(d.TaskDefinition), d.RunningCount, d.DesiredCount, d.PendingCount, d.FailedCount, d.RolloutReason)))
	}
	stable = len(s.Deployments) == 1 && s.RunningCount == s.DesiredCount && s.PendingCount == 0 && (r.want == "" || s.TaskDefinition == r.want)
	if d := s.Deployments; !stable && len(d) > 0 && d[0].FailedCount > 0 {
		if why := r.failure(ctx, d[0].TaskDefinition); why != "" {
			states = append(states, why)
		} else if ctx.Err() != nil {
			return false, "", nil // the state before, which had a reason, says more
		}
	}
	return stable, strings.Join(states, "; "), nil
}

// givenUp returns an error if ECS has ended the roll-over: its circuit breaker stopped it, with or without going back.
func (r *rollout) givenUp(ctx context.Context, s *inventory.Service) error {
	want := r.want
	if want == "" {
		want = s.TaskDefinition
	}
	i := slices.IndexFunc(s.Deployments, func(d inventory.Deployment) bool { return d.TaskDefinition == want })
	r.seen = r.seen || i >= 0
	var what string
	switch {
	case i >= 0 && s.Deployments[i].RolloutState == "FAILED":
		what = "ECS gave up the roll-over to " + shortID(want)
		if reason := s.Deployments[i].RolloutReason; reason != "" {
			what += ": " + strings.TrimSuffix(reason, ".")
		}
	case i < 0 && r.seen:
		what = "the roll-over to " + shortID(want) + " was replaced"
	default:
		return nil // under way, or a read from before the update
	}
	if s.TaskDefinition != want {
		what += "; the service is back at " + shortID(s.TaskDefinition)
	}
	if why := r.failure(ctx, want); why != "" {
		what += "; " + why
	}
	return diag.Newf(diag.RolloutFailed, "service %s of cluster %s: %s", r.service, r.cluster, what)
}

// failure returns why a task of the service and a revision ended that nobody had asked to end, or "" when nothing is
// known of one: it is an addition to an error and must not replace it.
func (r *rollout) failure(ctx context.Context, definition string) string {
	arns, err := r.admin.ListStoppedTasks(ctx, r.cluster, r.service)
	if err != nil || len(arns) == 0 {
		return ""
	}
	tasks, _, err := r.admin.DescribeTasks(ctx, r.cluster, arns)
	if err != nil {
		return ""
	}
	for _, t := range tasks {
		if t.TaskDefinitionARN != definition || t.StoppedReason == "" || t.StopCode == "ServiceSchedulerInitiated" || t.StopCode == "UserInitiated" {
			continue
		}
		why := "task " + shortID(t.ARN) + " stopped: " + t.StoppedReason
		for _, c := range t.Containers {
			if c.Reason != "" {
				why += fmt.Sprintf(" (container %s: %s)", c.Name, c.Reason)
			}
		}
		return why
	}
	return ""
}

// shownEvents is how many of a service's events an error repeats.
const shownEvents = 6

// events returns the latest that ECS has to say of the service, to be added to an error.
func (r *rollout) events(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d, err := r.admin.ServiceDetail(ctx, r.cluster, r.service)
	if err != nil || len(d.Events) == 0 {
		return ""
	}
	text := "; its latest events:"
	for _, e := range d.Events[:min(shownEvents, len(d.Events))] {
		text += "\n  " + e.At.Format(time.TimeOnly) + " " + e.Message
	}
	return text
}
