package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// LeaseConfig describes a lease of which one process at a time is the leader.
type LeaseConfig struct {
	// Namespace, Name and Identity are required; Identity is unique per process.
	Namespace string
	Name      string
	Identity  string
	// Duration is how long a leader that fell silent keeps the lease; 0 means 15 s.
	Duration time.Duration
	// OnLeader is told who leads now; nil means nobody cares.
	OnLeader func(identity string, us bool)
}

// Lead runs lead while this process holds the lease, and competes again when it was lost, until ctx ends or lead returns
// an error of its own. The lease is given back at the end, so that another replica takes over at once.
func (c *Client) Lead(ctx context.Context, cfg LeaseConfig, lead func(ctx context.Context) error) error {
	if cfg.Namespace == "" || cfg.Name == "" || cfg.Identity == "" {
		return errors.New("kube: LeaseConfig.Namespace, Name and Identity are required")
	}
	if cfg.Duration == 0 {
		cfg.Duration = 15 * time.Second
	}
	for ctx.Err() == nil {
		if err := c.leadOnce(ctx, cfg, lead); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) leadOnce(ctx context.Context, cfg LeaseConfig, lead func(ctx context.Context) error) error {
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: cfg.Namespace, Name: cfg.Name},
		Client:     c.core.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity},
	}
	// The elector has a context of its own. Ending it gives the lease back, which must not happen before lead has
	// returned: two leaders would write at once.
	electCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	done := make(chan error, 1)
	led := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		select {
		case <-led: // lead's context has ended too; its return ends the elector
		default:
			stop()
		}
	})()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock:            lock,
		LeaseDuration:   cfg.Duration,
		RenewDeadline:   cfg.Duration * 2 / 3,
		RetryPeriod:     cfg.Duration / 8,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leadCtx context.Context) {
				defer stop()
				close(led)
				c.log.Info("leading", slog.String("lease", cfg.Name), slog.String("identity", cfg.Identity))
				both, cancel := context.WithCancel(leadCtx)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				done <- lead(both)
			},
			OnStoppedLeading: func() {},
			OnNewLeader: func(identity string) {
				if cfg.OnLeader != nil {
					cfg.OnLeader(identity, identity == cfg.Identity)
				}
			},
		},
	})
	if err != nil {
		return fmt.Errorf("prepare lease %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	elector.Run(electCtx)
	select {
	case <-led:
		// OnStartedLeading runs in a goroutine of its own; nothing we started may outlive us.
		err := <-done
		c.log.Info("not leading any more", slog.String("lease", cfg.Name))
		if err != nil {
			return fmt.Errorf("while leading: %w", err)
		}
	default:
	}
	return nil
}
