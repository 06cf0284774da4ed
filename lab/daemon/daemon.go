// Package daemon is the lab as a whole: `isthmus-lab up` opens its ports on the host's loopback and starts the lab in
// namespaces of its own; inside, the daemon brings up network, control plane, node and cloud in order, reports its
// progress, and serves the control API. Everything dies with the daemon.
//
//	isthmus-lab up        host: opens listeners, starts the next, prints progress, returns
//	  isthmus-lab _init   process 1 of the lab's namespaces: mounts, reaps, nothing else
//	    isthmus-lab _serve  the daemon: everything in this package below Daemon
//	      isthmus-lab-kube etcd, kube-apiserver, …   the control plane, supervised
//	      containers of pods and tasks               the runtime's
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/lab/cloud"
	"github.com/isthmus-mesh/isthmus/lab/controlplane"
)

const (
	// startTimeout is how long the whole start may take on a slow machine.
	startTimeout = 3 * time.Minute
	// stopTimeout is how long an orderly stop may take. What is left then dies with process 1.
	stopTimeout = 3 * time.Second
)

// Config is what the daemon inherits from `up`.
type Config struct {
	// Dir is the lab's state directory. It is required.
	Dir Dir
	// Control is the listener of the control API. It is required.
	Control net.Listener
	// Kube and AWS are listeners on the host's loopback for the API server and the AWS endpoint. They are required.
	Kube, AWS net.Listener
	// Lock is the lab's lock, held for as long as the Daemon lives. It may be nil.
	Lock *os.File
	// Programs are the lab's other programs.
	Programs Programs
	// Log is required.
	Log *slog.Logger
}

// Daemon runs one lab.
type Daemon struct {
	cfg     Config
	journal *journal
	stop    context.CancelFunc

	mu       sync.Mutex
	plane    *controlplane.ControlPlane // guarded by mu; nil until it is started
	cloud    *cloud.Cloud               // guarded by mu; the same
	endpoint *endpoint                  // guarded by mu; the same
	parts    []*part                    // guarded by mu
	abort    context.CancelCauseFunc    // guarded by mu; fails the start
	timings  map[string]time.Duration   // guarded by mu
	shutdown sync.WaitGroup
}

// part is something of the lab that runs inside the daemon's own process.
type part struct {
	name    string
	started time.Time
	err     error // guarded by Daemon.mu: why it ended
	ended   bool  // guarded by Daemon.mu
}

// New returns a Daemon that Run runs.
func New(cfg Config) (*Daemon, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("daemon: Config.Dir is required")
	case cfg.Control == nil:
		return nil, errors.New("daemon: Config.Control is required")
	case cfg.Kube == nil || cfg.AWS == nil:
		return nil, errors.New("daemon: Config.Kube and Config.AWS are required")
	case cfg.Log == nil:
		return nil, errors.New("daemon: Config.Log is required")
	}
	return &Daemon{cfg: cfg, journal: newJournal(), timings: map[string]time.Duration{}}, nil
}

// runServe is the daemon's process.
func runServe(dir Dir) int {
	files := inherited(fdReport)
	report := files[fdReport-fdLock]
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	d, err := fromInherited(dir, files, log)
	if err != nil {
		writeReport(report, err)
		log.Error("lab not started", slog.Any("error", err))
		return 1
	}
	report.Close() // from here on the control API tells
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	// The daemon's garbage is small beside what its children hold; a lower target keeps the lab lean.
	debug.SetGCPercent(50)
	if err := d.Run(ctx); err != nil {
		log.Error("lab ended", slog.Any("error", err))
		return 1
	}
	return 0
}

// fromInherited makes the daemon from the descriptors it was started with.
func fromInherited(dir Dir, files []*os.File, log *slog.Logger) (*Daemon, error) {
	listener := func(fd int) (net.Listener, error) {
		f := files[fd-fdLock]
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("inherit a listener: %w", err)
		}
		return l, nil
	}
	control, err1 := listener(fdControl)
	kube, err2 := listener(fdKube)
	aws, err3 := listener(fdAWS)
	programs, err4 := FindPrograms()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	return New(Config{Dir: dir, Lock: files[0], Control: control, Kube: kube, AWS: aws, Programs: programs, Log: log})
}

// Run starts the lab and keeps it up until ctx ends or the control API asks to stop. When the start fails, the lab
// stays up for whoever asked for it to read why, and is stopped by them.
func (d *Daemon) Run(ctx context.Context) error {
	ctx, d.stop = context.WithCancel(ctx)
	defer d.stop()
	d.run(ctx, "control API", d.serveControl)
	started := time.Now()
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	startCtx, abort := context.WithCancelCause(startCtx)
	d.mu.Lock()
	d.abort = abort
	d.mu.Unlock()
	err := d.start(ctx, startCtx)
	if cause := context.Cause(startCtx); err != nil && cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		err = cause // the part that failed, rather than the step that waited for it
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e := diag.Wrap(diag.LabTimeout, err)
		e.Cause += d.troubles(ctx)
		err = e
	}
	d.mu.Lock()
	d.abort = nil
	d.mu.Unlock()
	abort(nil)
	cancel()
	switch {
	case ctx.Err() != nil:
	case err != nil:
		d.cfg.Log.Error("lab not started", slog.Any("error", err))
		d.journal.add(Event{State: StateFailed, Elapsed: time.Since(started), Failure: newFailure(err)})
	default:
		d.cfg.Log.Info("lab ready", slog.Duration("after", time.Since(started)))
		d.journal.add(Event{State: StateReady, Elapsed: time.Since(started)})
	}
	<-ctx.Done()
	d.journal.setState(StateStopping)
	d.waitParts()
	// The lock tells other programs that the lab lives; without this the collector would close the file before.
	runtime.KeepAlive(d.cfg.Lock)
	return nil
}

// troubles says what the pods wait for, when there are pods.
func (d *Daemon) troubles(ctx context.Context) string {
	d.mu.Lock()
	plane := d.plane
	d.mu.Unlock()
	if plane == nil {
		return ""
	}
	client, err := kubernetes.NewForConfig(plane.RESTConfig(controlplane.Admin))
	if err != nil {
		return ""
	}
	return podTroubles(ctx, client)
}

// run starts a part of the lab. A part that ends before the lab does is reported, and fails a start that is under way.
func (d *Daemon) run(ctx context.Context, name string, f func(context.Context) error) {
	p := &part{name: name, started: time.Now()}
	d.mu.Lock()
	d.parts = append(d.parts, p)
	d.mu.Unlock()
	d.shutdown.Go(func() {
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended by itself")
		}
		err = fmt.Errorf("%s: %w", name, err)
		d.cfg.Log.Error("part of the lab failed", slog.String("part", name), slog.Any("error", err))
		d.mu.Lock()
		p.ended, p.err = true, err
		abort := d.abort
		d.mu.Unlock()
		if abort != nil {
			abort(err)
		}
	})
}

// waitParts waits for all parts to end, but not for ever.
func (d *Daemon) waitParts() {
	done := make(chan struct{})
	go func() {
		d.shutdown.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		d.cfg.Log.Info("parts left running are ended with the lab")
	}
}

// step runs one step of the start and reports it.
func (d *Daemon) step(ctx context.Context, name string, f func(context.Context) error) error {
	d.journal.add(Event{Step: name, State: StateRunning})
	begin := time.Now()
	err := f(ctx)
	event := Event{Step: name, State: StateDone, Elapsed: time.Since(begin)}
	if err != nil {
		event.State, event.Failure = StateFailed, newFailure(err)
	}
	d.mu.Lock()
	d.timings[name] = event.Elapsed
	d.mu.Unlock()
	d.journal.add(event)
	d.cfg.Log.Info("step", slog.String("step", name), slog.Duration("took", event.Elapsed), slog.Any("error", err))
	return err
}

// closer adapts something that is only to be closed at the end to run.
func closer(c io.Closer) func(context.Context) error {
	return func(ctx context.Context) error {
		<-ctx.Done()
		return c.Close()
	}
}
