package ecs

import (
	"cmp"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

const (
	maxEvents = 100
	// A service whose tasks keep failing starts them ever more slowly. ECS backs off to 15 minutes; the lab to one.
	firstBackoff = time.Second
	maxBackoff   = time.Minute
	// placeAgain is how soon a service looks for a place again for a task that found none.
	placeAgain = 2 * time.Second
	// impairedAfter is after how many failures in a row a service counts as unable to start its tasks.
	impairedAfter = 3
	// steadyAfter is how long a task must run not to count as a failed start.
	steadyAfter = 10 * time.Second
)

// deployLocked makes a new primary deployment; the one before goes on as ACTIVE until its tasks are replaced.
func (s *Service) deployLocked(sv *service, def *taskDef) {
	now := s.now()
	for _, d := range sv.deployments {
		d.status, d.desired, d.updatedAt = statusActive, 0, now
	}
	id := fmt.Sprintf("ecs-svc/%019d", rand.Int64())
	d := &deployment{id: id, status: statusPrimary, def: def, desired: sv.desired, createdAt: now, updatedAt: now, rollout: "IN_PROGRESS",
		reason: "ECS deployment " + id + " in progress."}
	sv.deployments = append([]*deployment{d}, sv.deployments...)
	sv.steady, sv.failures, sv.notBefore = false, 0, time.Time{}
	s.tellDeploymentLocked(sv, d, "INFO", "SERVICE_DEPLOYMENT_IN_PROGRESS")
}

// scheduleLocked brings every service a step nearer to what it should be.
func (s *Service) scheduleLocked() {
	for _, p := range s.places {
		for _, c := range p.clusters {
			if len(c.services) == 0 {
				continue
			}
			tasks := c.tasksByService()
			for _, sv := range c.services {
				s.scheduleServiceLocked(sv, tasks[sv])
			}
		}
	}
}

func (c *cluster) tasksByService() map[*service][]*task {
	out := map[*service][]*task{}
	for _, t := range c.tasks {
		if t.service != nil {
			out[t.service] = append(out[t.service], t)
		}
	}
	for _, ts := range out {
		slices.SortFunc(ts, compareTaskAge)
	}
	return out
}

func (s *Service) scheduleServiceLocked(sv *service, tasks []*task) {
	if sv.status == statusInactive {
		return
	}
	if len(sv.deployments) == 0 { // a service whose tasks an external controller starts, and none did
		if sv.status == statusDraining {
			sv.status, sv.changedAt = statusInactive, s.now()
		}
		return
	}
	s.learnFailuresLocked(sv, tasks)
	primary := sv.deployments[0]
	if primary.desired != sv.desired {
		primary.desired, primary.updatedAt = sv.desired, s.now()
	}
	var mine, old []*task
	for _, t := range tasks {
		switch {
		case !t.living():
		case t.deployment == primary.id && !t.leaving(): // those that leave a draining instance are replaced as those of an earlier deployment
			mine = append(mine, t)
		default:
			old = append(old, t)
		}
	}
	mine = s.stopUnhealthyLocked(sv, mine)
	started := s.startLocked(sv, primary, mine, old)
	s.stopSurplusLocked(sv, mine, old, started)
	s.settleLocked(sv, tasks)
}

// learnFailuresLocked looks at tasks that ended by themselves since the last pass.
func (s *Service) learnFailuresLocked(sv *service, tasks []*task) {
	for _, t := range tasks {
		if t.counted {
			continue
		}
		if t.serving() {
			if t.deployment == sv.deployments[0].id && t.createdAt.After(sv.failedAt) && s.now().Sub(t.startedAt) > steadyAfter {
				sv.failures = 0
			}
			continue
		}
		if t.desired != stateStopped || t.stopCode == stopScheduler || t.stopCode == stopUser {
			continue
		}
		t.counted = true
		d := sv.deployment(t.deployment)
		if d == nil {
			continue
		}
		d.updatedAt, sv.steady = s.now(), false
		if t.startedAt.IsZero() || t.stoppingAt.Sub(t.startedAt) < steadyAfter {
			d.failed++
			sv.failures++
			sv.failedAt = s.now()
			sv.notBefore = s.now().Add(min(firstBackoff<<min(sv.failures-1, 10), maxBackoff))
			s.event(sv, "(service %s) was unable to keep (task %s) running: %s", sv.name, t.id, t.stoppedReason)
			if sv.failures == impairedAfter {
				s.tellServiceLocked(sv, "WARN", "SERVICE_TASK_START_IMPAIRED", nil)
			}
			s.breakLocked(sv, d)
		}
	}
}

// breakLocked is the deployment circuit breaker: after enough failures the deployment is given up, and the last good
// one is deployed again if the service asks for that.
func (s *Service) breakLocked(sv *service, d *deployment) {
	if !sv.config.BreakerEnabled || d.status != statusPrimary || d.rollout != "IN_PROGRESS" || d.failed < max(3, min(200, (sv.desired+1)/2)) {
		return
	}
	d.rollout, d.launchFailed = "FAILED", true
	d.reason = "ECS deployment circuit breaker: tasks failed to start."
	s.event(sv, "(service %s) (deployment %s) deployment failed: tasks failed to start.", sv.name, d.id)
	s.tellDeploymentLocked(sv, d, "ERROR", "SERVICE_DEPLOYMENT_FAILED")
	if !sv.config.BreakerRollback {
		return
	}
	if sv.good == nil || sv.good == d.def {
		return
	}
	s.event(sv, "(service %s) rolling back to the last completed deployment (task definition %s).", sv.name, sv.good.arn)
	s.deployLocked(sv, sv.good)
}

func (sv *service) deployment(id string) *deployment {
	for _, d := range sv.deployments {
		if d.id == id {
			return d
		}
	}
	return nil
}

// stopUnhealthyLocked replaces tasks whose health check fails; it returns those that stay.
func (s *Service) stopUnhealthyLocked(sv *service, tasks []*task) []*task {
	return slices.DeleteFunc(slices.Clone(tasks), func(t *task) bool {
		if t.last != stateRunning || t.healthStatus() != healthUnhealthy {
			return false
		}
		s.stopLocked(t, stopScheduler, "Task failed container health checks")
		s.event(sv, "(service %s) (task %s) failed container health checks.", sv.name, t.id)
		sv.steady = false
		if d := sv.deployment(t.deployment); d != nil {
			d.failed++
			s.breakLocked(sv, d)
		}
		return true
	})
}

// startLocked starts what the primary deployment lacks, as far as maximumPercent leaves room; it returns how many.
func (s *Service) startLocked(sv *service, primary *deployment, mine, old []*task) int {
	if primary.launchFailed || s.now().Before(sv.notBefore) {
		return 0
	}
	most := max(sv.desired*sv.config.MaximumPercent/100, 1)
	n := min(sv.desired-len(mine), most-len(mine)-len(old))
	if n <= 0 {
		return 0
	}
	var ids []string
	for range n {
		l := launch{cluster: sv.cluster, service: sv, deployment: primary.id, def: primary.def, group: "service:" + sv.name,
			startedBy: primary.id, launchType: sv.launchType, platform: sv.platform, network: sv.network, rawOver: doc{}, tags: sv.taskTags(primary.def),
			exec: sv.execEnabled}
		if sv.launchType == launchEC2 {
			var why string
			if l.instance, l.bindings, why = sv.cluster.placeTask(primary.def); why != "" {
				s.event(sv, "(service %s) was unable to place a task because no container instance met all of its requirements. Reason: %s", sv.name, why)
				s.tellServiceLocked(sv, "ERROR", "SERVICE_TASK_PLACEMENT_FAILURE", doc{"reason": "RESOURCE"})
				sv.notBefore, sv.steady = s.now().Add(placeAgain), false
				break
			}
		}
		t := s.launchLocked(l)
		ids = append(ids, "(task "+t.id+")")
	}
	if n = len(ids); n == 0 {
		return 0
	}
	primary.updatedAt, sv.steady = s.now(), false
	s.event(sv, "(service %s) has started %d tasks: %s.", sv.name, n, strings.Join(ids, " "))
	return n
}

// taskTags are the tags a service's tasks get: none but what propagateTags says.
func (sv *service) taskTags(def *taskDef) map[string]string {
	switch sv.propagate {
	case "SERVICE":
		return copyTags(sv.tags)
	case "TASK_DEFINITION":
		return copyTags(def.tags)
	}
	return map[string]string{}
}

// stopSurplusLocked stops what is too much: tasks above desiredCount, and tasks of earlier deployments as far as
// enough healthy ones remain.
func (s *Service) stopSurplusLocked(sv *service, mine, old []*task, started int) {
	var victims []*task
	byUsefulness := func(a, b *task) int { return cmp.Or(rank(a)-rank(b), compareTaskAge(a, b)) }
	if over := len(mine) + started - sv.desired; over > 0 {
		slices.SortFunc(mine, byUsefulness)
		victims = append(victims, mine[:min(over, len(mine))]...)
	}
	if len(old) > 0 {
		healthy := 0
		for _, t := range slices.Concat(mine, old) {
			if t.serving() {
				healthy++
			}
		}
		primaryHeld := sv.deployments[0].launchFailed || s.now().Before(sv.notBefore)
		floor := (sv.desired*sv.config.MinimumHealthyPercent + 99) / 100
		spare := healthy - floor
		slices.SortFunc(old, byUsefulness)
		for _, t := range old {
			// A task that does not serve is free to go, except while nothing else could replace it: when the
			// primary already has its full number on the way.
			if !t.serving() {
				if len(mine)+started >= sv.desired {
					victims = append(victims, t)
				}
				continue
			}
			// Serving tasks go when healthy ones replace them, or when there is no room to start replacements.
			noRoom := started == 0 && len(mine) < sv.desired && !primaryHeld
			replaced := len(mine) >= sv.desired
			if spare > 0 && (replaced || noRoom) {
				spare--
				victims = append(victims, t)
			}
		}
	}
	if len(victims) == 0 {
		return
	}
	var ids []string
	for _, t := range victims {
		s.stopLocked(t, stopScheduler, "Scaling activity initiated by (deployment "+sv.deployments[0].id+")")
		ids = append(ids, "(task "+t.id+")")
	}
	sv.steady = false
	s.event(sv, "(service %s) has stopped %d running tasks: %s.", sv.name, len(victims), strings.Join(ids, " "))
}

// leaving reports whether the task is on an instance that drains.
func (t *task) leaving() bool { return t.instance != nil && t.instance.status == statusDraining }

// rank orders tasks for stopping: those that do not serve go first.
func rank(t *task) int {
	if t.serving() {
		return 1
	}
	return 0
}

// settleLocked notices the ends of deployments and of the service itself.
func (s *Service) settleLocked(sv *service, tasks []*task) {
	primary := sv.deployments[0]
	serving, others, left := 0, 0, 0
	for _, t := range tasks {
		if t.last != stateStopped {
			left++
		}
		switch {
		case t.deployment != primary.id && t.last != stateStopped:
			others++
		case t.deployment == primary.id && t.serving():
			serving++
		}
	}
	if sv.status == statusDraining {
		if left == 0 && len(s.starting) == 0 {
			sv.status, sv.changedAt, sv.deployments = statusInactive, s.now(), sv.deployments[:1]
			primary.status = statusInactive
		}
		return
	}
	sv.dropEmptyDeployments(tasks)
	if serving != sv.desired || others > 0 || left != serving {
		return
	}
	if primary.rollout == "IN_PROGRESS" {
		primary.rollout, primary.updatedAt = "COMPLETED", s.now()
		primary.reason = "ECS deployment " + primary.id + " completed."
		sv.deployments, sv.good = sv.deployments[:1], primary.def
		s.event(sv, "(service %s) (deployment %s) deployment completed.", sv.name, primary.id)
		s.tellDeploymentLocked(sv, primary, "INFO", "SERVICE_DEPLOYMENT_COMPLETED")
	}
	if !sv.steady {
		sv.steady = true
		s.event(sv, "(service %s) has reached a steady state.", sv.name)
		s.tellServiceLocked(sv, "INFO", "SERVICE_STEADY_STATE", nil)
		s.log.Debug("service is steady", slog.String("service", sv.name), slog.String("cluster", sv.cluster.name), slog.Int("tasks", serving))
	}
}

// dropEmptyDeployments forgets earlier deployments that have no task left.
func (sv *service) dropEmptyDeployments(tasks []*task) {
	sv.deployments = slices.DeleteFunc(sv.deployments, func(d *deployment) bool {
		return d.status != statusPrimary && !slices.ContainsFunc(tasks, func(t *task) bool { return t.deployment == d.id && t.last != stateStopped })
	})
}

// event records a service event, newest first.
func (s *Service) event(sv *service, format string, args ...any) {
	sv.events = slices.Insert(sv.events, 0, doc{"id": awsserver.UUID(), "createdAt": epoch(s.now()), "message": fmt.Sprintf(format, args...)})
	if len(sv.events) > maxEvents {
		sv.events = sv.events[:maxEvents]
	}
}
