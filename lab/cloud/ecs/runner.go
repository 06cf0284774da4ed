package ecs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// sessionLife is how long a task's credentials are valid; the handler renews them before they end.
const sessionLife = 6 * time.Hour

// logDrain is how long the log of an ended container may take to be read to its end.
const logDrain = 2 * time.Second

// run is one task on its way: what its goroutines share beside the task itself.
type run struct {
	s       *Service
	t       *task
	sandbox Sandbox
	log     *slog.Logger
	wg      sync.WaitGroup // the goroutines of the containers
}

// startError is a reason not to start that the user of the API shall read.
type startError struct{ reason string }

func (e *startError) Error() string { return e.reason }

// runTaskLife takes a task from PROVISIONING to STOPPED. It returns when nothing of the task is left running.
func (s *Service) runTaskLife(ctx context.Context, t *task) {
	r := &run{s: s, t: t, log: s.log.With(slog.String("task", t.id), slog.String("cluster", t.cluster.name))}
	// alive ends when the task shall stop or the lab does: nothing new is started after that.
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := r.start(alive); err != nil {
		r.failToStart(err)
	}
	s.mu.Lock()
	stop := t.stop
	s.mu.Unlock()
	select {
	case <-stop:
	case <-ctx.Done():
	}
	cancel()
	r.shutDown(ctx)
}

// start provisions the task and sets all its containers going; it returns once they all run.
func (r *run) start(ctx context.Context) error {
	if err := r.provision(ctx); err != nil {
		return err
	}
	for _, c := range r.t.containers {
		r.wg.Go(func() { r.runContainer(ctx, c) })
	}
	err := r.wait(ctx, 0, func() (bool, error) {
		for _, c := range r.t.containers {
			if !c.started {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return nil //nolint:nilerr // the task was stopped while it started; whoever stopped it gave the reason
	}
	r.update(func() {
		if r.t.desired == stateRunning {
			r.t.last = stateActivating
		}
	})
	r.update(func() {
		if r.t.desired == stateRunning {
			r.t.last, r.t.startedAt = stateRunning, r.s.now()
		}
	})
	return nil
}

// provision gives the task its address, its network namespace and its credentials.
func (r *run) provision(ctx context.Context) error {
	t := r.t
	if mode := t.def.NetworkMode; mode == modeAWSVPC {
		if err := r.addInterface(); err != nil {
			return err
		}
	}
	if arn := t.roleARN(); arn != "" {
		if err := r.s.renewSession(t); err != nil {
			return &startError{fmt.Sprintf("ECS was unable to assume the role '%s' that was provided for this task. Please verify that the role "+
				"being passed has the proper trust relationship and permissions and that your IAM user has permissions to pass this role. (%s)", arn, err)}
		}
	}
	r.update(func() { t.last, t.pullStartedAt = statePending, r.s.now() })
	for _, c := range t.containers {
		if err := r.s.cfg.Runtime.CheckImage(c.def.Image); err != nil {
			reason := fmt.Sprintf("CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref %s: %s", c.def.Image, err)
			r.update(func() { c.reason = reason })
			return &startError{reason}
		}
		if len(c.def.Secrets) > 0 || len(c.def.EnvironmentFiles) > 0 {
			return &startError{"ResourceInitializationError: unable to pull secrets or registry auth: container " + c.def.Name +
				" asks for secrets or environment files, and the lab has no Secrets Manager, Parameter Store or S3"}
		}
	}
	var err error
	if r.sandbox, err = r.makeSandbox(ctx); err != nil {
		return &startError{"ResourceInitializationError: " + err.Error()}
	}
	r.update(func() {
		t.pullStoppedAt, t.connectivityAt = r.s.now(), r.s.now()
		if t.eni != nil {
			t.eni.status = "ATTACHED"
		}
	})
	return nil
}

// makeSandbox makes what the containers of the task run in, by its network mode.
func (r *run) makeSandbox(ctx context.Context) (Sandbox, error) {
	t := r.t
	switch mode := orDefault(t.def.NetworkMode, modeBridge); mode {
	case modeAWSVPC:
		return r.s.cfg.Runtime.NewSandbox(ctx, SandboxSpec{ID: "ecs-" + t.id, Hostname: t.eni.dnsName, Addr: r.s.addrOf(t)})
	case modeHost:
		return &hostSandbox{machine: t.instance.machine.sandbox}, nil
	case modeBridge:
		return &bridgeSandbox{s: r.s, task: t, log: r.log, conns: map[net.Conn]struct{}{}}, nil
	default:
		return nil, fmt.Errorf("the lab runs no tasks with network mode %s", mode)
	}
}

// addInterface picks a subnet, by turns over the list of the task's configuration, and takes an address of it.
func (r *run) addInterface() error {
	t, s := r.t, r.s
	var errs []error
	for i := range t.network.Subnets {
		id := t.network.Subnets[(t.turn+i)%len(t.network.Subnets)]
		sn, ok := s.cfg.Network.Subnet(t.place.account, t.place.region, id)
		if !ok {
			errs = append(errs, fmt.Errorf("subnet %s is gone", id))
			continue
		}
		addr, err := s.cfg.Network.Allocate(sn.CIDR)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b := addr.As4()
		e := &eni{id: "eni-0" + hexID(8), attachmentID: awsserver.UUID(), mac: fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3]),
			addr: addr.String(), subnet: sn, status: "ATTACHING",
			dnsName: "ip-" + strings.ReplaceAll(addr.String(), ".", "-") + "." + t.place.region + ".compute.internal"}
		r.update(func() { t.eni = e })
		return nil
	}
	return &startError{"Timeout waiting for network interface provisioning to complete: " + errors.Join(errs...).Error()}
}

// update changes the task under the mutex and tells everyone who waits.
func (r *run) update(change func()) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	change()
	r.t.changeLocked()
	r.s.poke()
}

// wait blocks until ready, which is called under the mutex after every change, says so or fails. A timeout of 0
// waits as long as ctx.
func (r *run) wait(ctx context.Context, timeout time.Duration, ready func() (bool, error)) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimedOut)
		defer cancel()
	}
	for {
		r.s.mu.Lock()
		ok, err := ready()
		changed, stop := r.t.changed, r.t.stop
		r.s.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stop:
			return context.Canceled
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errTimedOut = errors.New("timed out")

// failToStart ends a task that could not be started.
func (r *run) failToStart(err error) {
	reason := "TaskFailedToStart: " + err.Error()
	var se *startError
	if errors.As(err, &se) {
		reason = se.reason
	}
	r.log.Info("task did not start", slog.String("reason", reason))
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.stopLocked(r.t, stopFailedToStart, reason)
}

// runContainer waits for the container's dependencies, starts it, and stays until it has ended.
func (r *run) runContainer(ctx context.Context, c *container) {
	if err := r.awaitDependencies(ctx, c); err != nil {
		r.containerFailed(ctx, c, err)
		return
	}
	handle, err := r.startContainer(ctx, c)
	if err != nil {
		r.containerFailed(ctx, c, err)
		return
	}
	r.update(func() {
		c.last, c.started, c.handle, c.startedAt = stateRunning, true, handle, r.s.now()
	})
	health, endHealth := context.WithCancel(ctx)
	var follow sync.WaitGroup
	defer endHealth()
	if c.def.HealthCheck != nil {
		follow.Go(func() { r.watchHealth(health, c, handle) })
	}
	logs, endLogs := context.WithCancel(context.WithoutCancel(ctx)) // the last lines of a container being stopped still count
	defer endLogs()
	if lc := c.def.LogConfiguration; lc != nil && lc.LogDriver == "awslogs" {
		follow.Go(func() { r.followLogs(logs, c, handle) })
	}
	<-handle.Done()
	endHealth()
	giveUp := time.AfterFunc(logDrain, endLogs)
	defer giveUp.Stop()
	r.containerEnded(c, handle)
	follow.Wait()
}

func (r *run) containerEnded(c *container, handle Container) {
	code, signal := handle.ExitStatus()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	c.last, c.exitCode, c.finishedAt = stateStopped, &code, r.s.now()
	if strings.Contains(strings.ToLower(signal), "oom") {
		c.reason = "OutOfMemoryError: Container killed due to memory usage"
	}
	r.t.changeLocked()
	if c.def.isEssential() {
		r.s.stopLocked(r.t, stopEssential, "Essential container in task exited")
	}
}

// containerFailed records that a container never started; that ends the task when the container is essential.
func (r *run) containerFailed(ctx context.Context, c *container, err error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	c.last, c.started = stateStopped, true
	stopping := r.t.desired == stateStopped || ctx.Err() != nil
	if !stopping {
		c.reason = err.Error()
	}
	r.t.changeLocked()
	if !stopping && c.def.isEssential() {
		r.s.stopLocked(r.t, stopFailedToStart, err.Error())
	}
}

func (r *run) startContainer(ctx context.Context, c *container) (Container, error) {
	mounts, err := r.mounts(c)
	if err != nil {
		return nil, err
	}
	if lc := c.def.LogConfiguration; lc != nil && lc.LogDriver == "awslogs" {
		if err := r.createStream(c); err != nil {
			return nil, err
		}
	}
	runtimeID := r.t.id + "-" + hexID(5)
	r.s.mu.Lock()
	c.runtimeID, c.createdAt = runtimeID, r.s.now()
	r.s.metadata[c.metadataID] = &containerRef{task: r.t, container: c}
	r.t.changeLocked()
	r.s.mu.Unlock()
	command := c.def.Command
	for _, o := range r.t.overrides.ContainerOverrides {
		if o.Name == c.def.Name && len(o.Command) > 0 {
			command = o.Command
		}
	}
	handle, err := r.sandbox.Start(ctx, ContainerSpec{ID: runtimeID, Name: c.def.Name, Image: c.def.Image, Entrypoint: c.def.EntryPoint,
		Command: command, Env: r.environment(c), WorkingDir: c.def.WorkingDirectory, Mounts: mounts, TTY: c.def.PseudoTerminal,
		ReadOnlyRoot: c.def.ReadOnlyRoot, Capabilities: c.def.capabilities()})
	if err != nil {
		return nil, fmt.Errorf("CannotStartContainerError: %w", err)
	}
	return handle, nil
}

// environment is what the definition and the overrides say, and what the agent adds.
func (r *run) environment(c *container) []string {
	t := r.t
	env := map[string]string{
		"AWS_REGION":                             t.place.region,
		"AWS_DEFAULT_REGION":                     t.place.region,
		"AWS_EXECUTION_ENV":                      "AWS_ECS_" + t.launchType,
		"ECS_CONTAINER_METADATA_URI":             r.s.cfg.MetadataURL + "/v3/" + c.metadataID,
		"ECS_CONTAINER_METADATA_URI_V4":          r.s.cfg.MetadataURL + "/v4/" + c.metadataID,
		"ECS_AGENT_URI":                          r.s.cfg.MetadataURL + "/api/" + c.metadataID,
		"AWS_ENDPOINT_URL":                       r.s.cfg.EndpointURL,
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "",
	}
	if t.credentialID != "" {
		env["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = "/v2/credentials/" + t.credentialID
	}
	if t.launchType != launchFargate { // elsewhere the agent does not tell the region
		env["AWS_REGION"], env["AWS_DEFAULT_REGION"] = "", ""
	}
	for _, kv := range c.def.Environment {
		env[kv.Name] = kv.Value
	}
	for _, o := range t.overrides.ContainerOverrides {
		if o.Name == c.def.Name {
			for _, kv := range o.Environment {
				env[kv.Name] = kv.Value
			}
		}
	}
	out := make([]string, 0, len(env))
	for k, v := range env {
		if v != "" || hasName(c.def.Environment, k) {
			out = append(out, k+"="+v)
		}
	}
	return out
}

func hasName(list []keyPair, name string) bool {
	for _, kv := range list {
		if kv.Name == name {
			return true
		}
	}
	return false
}

// mounts makes the task's empty volumes, which its containers share.
func (r *run) mounts(c *container) ([]Mount, error) {
	var out []Mount
	for _, m := range c.def.MountPoints {
		if r.s.cfg.Dir == "" {
			return nil, errors.New("CannotCreateVolumeError: this lab has no directory for volumes")
		}
		for _, v := range r.t.def.Volumes {
			if v.Name == m.SourceVolume && (v.EFS != nil || v.Docker != nil || v.FSX != nil || v.Host != nil && v.Host.SourcePath != "") {
				return nil, fmt.Errorf("CannotCreateVolumeError: volume %s: the lab has empty task volumes only", v.Name)
			}
		}
		dir := filepath.Join(r.volumeDir(), last(m.SourceVolume))
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return nil, fmt.Errorf("CannotCreateVolumeError: %w", err)
		}
		out = append(out, Mount{Source: dir, Target: m.ContainerPath, ReadOnly: m.ReadOnly})
	}
	return out, nil
}

func (r *run) volumeDir() string { return filepath.Join(r.s.cfg.Dir, "volumes", r.t.id) }
