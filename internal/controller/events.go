package controller

import (
	"context"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// Queue is where an account's events come from; *awsapi.Queue is one. Receive waits for some time until there are
// messages; Delete takes those that were read off the queue.
type Queue interface {
	Receive(ctx context.Context) (bodies []string, receipts []string, err error)
	Delete(ctx context.Context, receipts []string) error
}

// Pauses after an error of a queue. The last is short because the queue, or the role that may read it, is often made after the
// controller has started, and the first deployments come right then.
const (
	queueRetryFirst = time.Second
	queueRetryLast  = 10 * time.Second
)

// listen reads an account's event queue until ctx ends. An event is only a hint of what to read again: it may come
// twice, late, in any order or not at all, and what it says is never taken for the truth. So one that cannot be read is
// dropped like one that was, and a queue that fails costs nothing but the time until the next sweep.
func (a *accounts) listen(ctx context.Context, acct settings.Account, e settings.Events) {
	log := a.cfg.Log.With(slog.String("scope", "events"), slog.String("account", acct.AccountID()), slog.String("queue", e.QueueURL))
	q, err := a.cfg.Queue(acct, e)
	if err != nil {
		log.Warn("event queue not read", logattr.Err(err))
		return
	}
	pause := queueRetryFirst
	for ctx.Err() == nil {
		bodies, receipts, err := q.Receive(ctx)
		for _, body := range bodies {
			hint, err := ecs.ParseEvent([]byte(body))
			a.cfg.Metrics.Event(err == nil)
			if err != nil {
				log.Debug("event not understood", logattr.Err(err))
				continue
			}
			a.hint(hint)
		}
		if err == nil && len(receipts) > 0 {
			err = q.Delete(ctx, receipts)
		}
		if err == nil {
			pause = queueRetryFirst
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log.Warn("event queue not read", logattr.Err(err), slog.Duration("pause", pause))
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, queueRetryLast)
	}
}

// hint makes the reflector of an event's account and region read again what the event is about. A queue may carry the
// events of several accounts and regions; those of others are nobody's business here.
func (a *accounts) hint(h ecs.Hint) {
	for _, s := range a.list() {
		if s.id == h.Account && s.region == h.Region {
			s.reflector.Hint(h)
		}
	}
}
