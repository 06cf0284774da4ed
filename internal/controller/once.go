package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// Once sweeps every account, plans, and with write set applies the plan as the leader; then it prints the plan. An
// account that could not be read is an error at the end, after everything else was done.
func (c *Controller) Once(ctx context.Context, out io.Writer, write bool) error {
	r, stop, err := c.startReconciler(ctx)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.readAccounts(ctx); err != nil {
		return err
	}
	sweepErr := c.sweep(ctx)
	p := r.look()
	if evidence := p.changes.WantEvidence(); len(evidence) > 0 {
		// What exists in Kubernetes and not in ECS: ask ECS about exactly these.
		c.accounts.expect(evidence)
		sweepErr = c.sweep(ctx)
		p = r.look()
	}
	if err := p.changes.Render(out, false); err != nil {
		return fmt.Errorf("print plan: %w", err)
	}
	for _, problem := range p.problems {
		fmt.Fprintf(out, "problem: %s: %s [%s]\n  fix: %s\n", problem.Object, problem.Cause, problem.Code, problem.Fix)
	}
	if !write {
		return sweepErr
	}
	lease := kube.LeaseConfig{Namespace: c.cfg.Options.Namespace, Name: "isthmus-controller", Identity: c.cfg.Identity, Duration: c.cfg.Options.LeaseDuration}
	done := errors.New("done")
	var writeErr error
	err = c.cfg.Kube.Lead(ctx, lease, func(ctx context.Context) error {
		_, writeErr = r.write(ctx, p)
		return done
	})
	if err != nil && !errors.Is(err, done) {
		return err
	}
	return errors.Join(sweepErr, writeErr)
}

// sweep reads every account once, all at the same time.
func (c *Controller) sweep(ctx context.Context) error {
	scopes := c.accounts.list()
	errs := make([]error, len(scopes))
	var g errgroup.Group
	for i, s := range scopes {
		g.Go(func() error {
			if _, err := s.reflector.Sweep(ctx, true); err != nil {
				errs[i] = fmt.Errorf("account %s in %s: %w", s.id, s.region, err)
			}
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
	return errors.Join(errs...)
}

// startReconciler starts a reconciler's caches and waits for them.
func (c *Controller) startReconciler(ctx context.Context) (*reconciler, func(), error) {
	r, err := newReconciler(c)
	if err != nil {
		return nil, nil, err
	}
	cacheCtx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	for _, k := range r.caches() {
		g.Go(func() error { return k.Run(cacheCtx) })
	}
	stop := func() { cancel(); _ = g.Wait() }
	for _, k := range r.caches() {
		if err := k.Wait(ctx, 30*time.Second); err != nil {
			stop()
			return nil, nil, kube.Explain(err)
		}
	}
	return r, stop, nil
}

// dryRun plans as the leader would and logs each plan that differs from the one before; it writes nothing.
func (c *Controller) dryRun(ctx context.Context) error {
	r, stop, err := c.startReconciler(ctx)
	if err != nil {
		return err
	}
	defer stop()
	last := ""
	for {
		changed := c.accounts.changed()
		p := r.look()
		if text := p.changes.String(); text != last {
			last = text
			c.log.Info("dry run", slog.String("plan", text))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}
