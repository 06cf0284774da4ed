package ecs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Conditions of dependsOn.
const (
	condStart    = "START"
	condComplete = "COMPLETE"
	condSuccess  = "SUCCESS"
	condHealthy  = "HEALTHY"
)

const (
	defaultStartTimeout = 3 * time.Minute  // Fargate's
	defaultStopTimeout  = 30 * time.Second // Fargate's
)

// awaitDependencies blocks until every container this one depends on is where its condition wants it. Each dependency
// has its own startTimeout.
func (r *run) awaitDependencies(ctx context.Context, c *container) error {
	for _, d := range c.def.DependsOn {
		on := r.t.container(d.ContainerName)
		limit := defaultStartTimeout
		if on.def.StartTimeout != nil && *on.def.StartTimeout > 0 {
			limit = time.Duration(*on.def.StartTimeout) * time.Second
		}
		err := r.wait(ctx, limit, func() (bool, error) { return on.satisfies(d.Condition) })
		if errors.Is(err, errTimedOut) {
			err = fmt.Errorf("dependency graph: container %s did not reach %s within its startTimeout of %s", on.def.Name, d.Condition, limit)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// satisfies says whether the container meets a condition, or that it never will.
func (c *container) satisfies(condition string) (bool, error) {
	ended := c.last == stateStopped
	never := func(why string) (bool, error) {
		return false, fmt.Errorf("dependency graph: container %s will not reach %s: %s", c.def.Name, condition, why)
	}
	if ended && c.exitCode == nil {
		return never("it did not start")
	}
	switch condition {
	case condStart:
		return c.started, nil
	case condComplete:
		return ended, nil
	case condSuccess:
		if ended && *c.exitCode != 0 {
			return never(fmt.Sprintf("it exited with code %d", *c.exitCode))
		}
		return ended, nil
	case condHealthy:
		switch {
		case ended:
			return never("it exited")
		case c.health == healthUnhealthy:
			return never("its health check fails")
		}
		return c.health == healthHealthy, nil
	}
	return never("the condition is unknown")
}

func (t *task) container(name string) *container {
	for _, c := range t.containers {
		if c.def.Name == name {
			return c
		}
	}
	return nil
}

// shutDown stops the containers in the reverse of their starting order, then takes the task apart.
func (r *run) shutDown(ctx context.Context) {
	t := r.t
	r.update(func() {
		if t.desired == stateRunning { // the lab is going down
			t.desired, t.stopCode, t.stoppedReason, t.stoppingAt = stateStopped, "TerminationNotice", "the lab is shutting down", r.s.now()
			close(t.stop)
		}
		if t.last == stateRunning || t.last == stateActivating {
			t.last = stateDeactivating
		}
	})
	r.update(func() { t.last = stateStopping })
	if r.sandbox != nil {
		if ctx.Err() == nil {
			r.stopContainers(ctx)
		}
		if err := r.sandbox.Close(); err != nil {
			r.log.Warn("sandbox of a task did not close", slog.String("error", err.Error()))
		}
	}
	r.wg.Wait()
	r.update(func() {
		t.last, t.executionStoppedAt = stateDeprovisioning, r.s.now()
		if t.eni != nil {
			t.eni.status = "DETACHING"
		}
		for _, c := range t.containers {
			c.last, c.health = stateStopped, healthUnknown
		}
	})
	if t.eni != nil && r.sandbox == nil {
		r.releaseAddr() // else the sandbox has released it
	}
	if r.s.cfg.Dir != "" {
		_ = os.RemoveAll(r.volumeDir()) // what stays is removed with the lab's directory
	}
	r.s.forgetTask(t)
	r.update(func() {
		t.last, t.stoppedAt = stateStopped, r.s.now()
		t.tags = map[string]string{} // as at AWS, a stopped task has lost its tags
		if t.eni != nil {
			t.eni.status = "DELETED"
		}
	})
}

// stopContainers asks every running container to end, each only after those that depend on it have ended.
func (r *run) stopContainers(ctx context.Context) {
	var wg sync.WaitGroup
	for _, c := range r.t.containers {
		wg.Go(func() {
			if err := r.waitStopped(ctx, c); err != nil {
				return // the lab goes down: closing the sandbox kills what is left
			}
			r.s.mu.Lock()
			handle := c.handle
			r.s.mu.Unlock()
			if handle == nil {
				return
			}
			grace := defaultStopTimeout
			if c.def.StopTimeout != nil {
				grace = time.Duration(*c.def.StopTimeout) * time.Second
			}
			if err := handle.Stop(ctx, grace); err != nil && ctx.Err() == nil {
				r.log.Warn("container did not stop", slog.String("container", c.def.Name), slog.String("error", err.Error()))
			}
		})
	}
	wg.Wait()
}

// waitStopped waits until all containers that depend on c have ended.
func (r *run) waitStopped(ctx context.Context, c *container) error {
	for {
		r.s.mu.Lock()
		waiting := false
		for _, other := range r.t.containers {
			for _, d := range other.def.DependsOn {
				if d.ContainerName == c.def.Name && other.last != stateStopped {
					waiting = true
				}
			}
		}
		changed := r.t.changed
		r.s.mu.Unlock()
		if !waiting {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
