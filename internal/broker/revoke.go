package broker

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Life says whether a task still lives.
type Life uint8

// The answers about a task's life.
const (
	// Unknown means that nobody can tell right now; nothing is revoked on that.
	Unknown Life = iota
	Alive
	Ended
)

// Lives tells whether tasks live.
type Lives interface {
	Life(taskARN string) Life
}

// Secrets is Kubernetes as the Revoker needs it; *kube.Client is one.
type Secrets interface {
	TaskSecrets(ctx context.Context) ([]kube.TaskSecret, error)
	RevokeTask(ctx context.Context, s kube.TaskSecret) error
}

// RevokerConfig is what a Revoker needs.
type RevokerConfig struct {
	Lives   Lives   // required
	Secrets Secrets // required
	// Interval is the time between rounds; 0 means 5 s. Changed, if not nil, starts a round at once.
	Interval time.Duration
	Changed  func() <-chan struct{}
	Log      *slog.Logger // required
	// Observe, if not nil, is told how many Secrets were found and how many deleted.
	Observe func(found, revoked int)
}

// Revoker deletes the Secrets of tasks that have ended, which makes their tokens worthless at once. Only the leader runs
// it. It is not on the way of any connection: a task keeps its certificate until that expires.
type Revoker struct{ cfg RevokerConfig }

// NewRevoker returns a Revoker.
func NewRevoker(cfg RevokerConfig) (*Revoker, error) {
	if cfg.Lives == nil || cfg.Secrets == nil || cfg.Log == nil {
		return nil, errors.New("broker: RevokerConfig.Lives, Secrets and Log are required")
	}
	if cfg.Interval <= 0 {
		cfg.Interval = 5 * time.Second
	}
	if cfg.Changed == nil {
		cfg.Changed = func() <-chan struct{} { return nil }
	}
	cfg.Log = cfg.Log.With(slog.String("scope", "broker"))
	return &Revoker{cfg}, nil
}

// Run revokes until ctx ends. Rounds are at least a second apart, however often something changes.
func (r *Revoker) Run(ctx context.Context) error {
	for {
		changed := r.cfg.Changed()
		if err := r.Round(ctx); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("revocation round failed", slog.String("error", err.Error()))
		}
		if !pause(ctx, min(time.Second, r.cfg.Interval), nil) || !pause(ctx, r.cfg.Interval, changed) {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration, early <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-early:
	case <-t.C:
	}
	return true
}

// Round looks at every task's Secret once.
func (r *Revoker) Round(ctx context.Context) error {
	secrets, err := r.cfg.Secrets.TaskSecrets(ctx)
	if err != nil {
		return err
	}
	var errs []error
	revoked := 0
	for _, s := range secrets {
		if r.cfg.Lives.Life(s.TaskARN) != Ended {
			continue
		}
		if err := r.cfg.Secrets.RevokeTask(ctx, s); err != nil {
			errs = append(errs, err)
			continue
		}
		revoked++
		r.cfg.Log.Info("tokens of a task revoked", slog.String("task_arn", s.TaskARN), slog.String("namespace", s.Namespace))
	}
	if r.cfg.Observe != nil {
		r.cfg.Observe(len(secrets), revoked)
	}
	return errors.Join(errs...)
}
