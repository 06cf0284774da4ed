package ecs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// The lab asks for a container's health sooner than ECS would, so that a task is in service as soon as it can be: the
// first check comes after firstCheck, later ones in steps up to startCheck until the first success. ECS would wait a
// whole interval before the first. Once healthy, the definition's interval is kept.
const (
	firstCheck = 100 * time.Millisecond
	startCheck = time.Second
)

// watchHealth runs the health check until the container ends or ctx does.
//
// A failure counts only after the start period and, because the lab checks early, after one interval: a container
// that needs as long as ECS would have given it is not punished for the lab's impatience.
func (r *run) watchHealth(ctx context.Context, c *container, handle Container) {
	hc := c.def.HealthCheck
	if hc.Command[0] == "NONE" {
		return
	}
	began := time.Now()
	grace := time.Duration(max(hc.StartPeriod, hc.Interval)) * time.Second
	wait, failures, counted := firstCheck, 0, time.Time{}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-handle.Done():
			return
		case <-timer.C:
		}
		ok := r.checkHealth(ctx, c, handle)
		if ctx.Err() != nil {
			return
		}
		state := ""
		switch {
		case ok:
			failures, state = 0, healthHealthy
			wait = time.Duration(hc.Interval) * time.Second
		case time.Since(began) < grace && !r.wasHealthy(c):
			wait = min(2*wait, startCheck)
		default:
			// Early checks come faster than the interval; only one failure an interval counts.
			if counted.IsZero() || time.Since(counted) >= time.Duration(hc.Interval)*time.Second/2 {
				failures, counted = failures+1, time.Now()
			}
			if failures >= hc.Retries {
				state = healthUnhealthy
			}
			wait = time.Duration(hc.Interval) * time.Second
			if !r.wasHealthy(c) {
				wait = min(wait, 5*startCheck)
			}
		}
		r.setHealth(c, state)
		timer.Reset(wait)
	}
}

func (r *run) wasHealthy(c *container) bool {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return c.health == healthHealthy
}

func (r *run) setHealth(c *container, state string) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if state == "" || state == c.health || c.last == stateStopped {
		return
	}
	c.health = state
	r.t.stirLocked()
	r.s.poke()
	r.log.Debug("container health changed", slog.String("container", c.def.Name), slog.String("health", state))
}

// checkHealth runs the command once: exit code 0 within the timeout is health.
func (r *run) checkHealth(ctx context.Context, c *container, handle Container) bool {
	hc := c.def.HealthCheck
	command := hc.Command
	switch command[0] {
	case "CMD":
		command = command[1:]
	case "CMD-SHELL":
		if len(command) < 2 {
			return false
		}
		command = []string{"/bin/sh", "-c", command[1]}
	default: // Docker's older form: a bare list is a shell command
		command = append([]string{"/bin/sh", "-c"}, command...)
	}
	if len(command) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(hc.Timeout)*time.Second)
	defer cancel()
	code, err := handle.Exec(ctx, ExecSpec{Command: command, Stdout: io.Discard, Stderr: io.Discard})
	return err == nil && code == 0
}

// stream is the name of a container's log stream: prefix/container/task id.
func (r *run) stream(c *container) string {
	prefix := c.def.LogConfiguration.Options["awslogs-stream-prefix"]
	return orDefault(prefix, "ecs") + "/" + c.def.Name + "/" + r.t.id
}

func (r *run) logRegion(c *container) string {
	return orDefault(c.def.LogConfiguration.Options["awslogs-region"], r.t.place.region)
}

func (r *run) createStream(c *container) error {
	o := c.def.LogConfiguration.Options
	err := r.s.cfg.Logs.CreateStream(r.t.place.account, r.logRegion(c), o["awslogs-group"], r.stream(c), o["awslogs-create-group"] == "true")
	if err != nil {
		return fmt.Errorf("ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: "+
			"failed to create Cloudwatch log stream: %w : exit status 1", err)
	}
	return nil
}

// followLogs sends what the container prints to its log stream, until the container ends.
func (r *run) followLogs(ctx context.Context, c *container, handle Container) {
	w := &lineWriter{put: func(line string) {
		r.s.cfg.Logs.Put(r.t.place.account, r.logRegion(c), c.def.LogConfiguration.Options["awslogs-group"], r.stream(c), r.s.now(), line)
	}}
	if err := handle.Follow(ctx, w); err != nil {
		r.log.Debug("log of a container ended early", slog.String("container", c.def.Name), slog.String("error", err.Error()))
	}
	w.flush()
}

// maxLogLine is where a line without end is cut; CloudWatch's own limit is near.
const maxLogLine = 256 << 10

// lineWriter cuts a stream of bytes into lines.
type lineWriter struct {
	put func(string)
	buf []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	for _, b := range p {
		if b == '\n' || len(w.buf) >= maxLogLine {
			w.flush()
		}
		if b != '\n' && b != '\r' {
			w.buf = append(w.buf, b)
		}
	}
	return len(p), nil
}

func (w *lineWriter) flush() {
	if len(w.buf) > 0 {
		w.put(string(w.buf))
		w.buf = w.buf[:0]
	}
}
