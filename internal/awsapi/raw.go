package awsapi

import (
	"context"
	"time"
)

// Do makes a call that does not go through the SDK as if it did: under the request limits of call's account, region and
// category, tried again when AWS throttles or fails, and observed.
func (s *Session) Do(ctx context.Context, call Call, once func(ctx context.Context) error) error {
	start := time.Now()
	var err error
	for {
		var waited time.Duration
		waited, err = s.limits.wait(ctx, call.Account, call.Region, category(call.Service, call.Operation))
		call.Waited += waited
		call.Attempts++
		if err == nil {
			err = once(ctx)
		}
		call.Kind = KindOf(err)
		if call.Kind != Throttled && call.Kind != Unavailable || call.Attempts >= s.cfg.MaxAttempts || !pauseRaw(ctx, call.Attempts) {
			break
		}
	}
	call.Took = time.Since(start)
	if s.cfg.Observe != nil {
		s.cfg.Observe(call)
	}
	return err
}

// pauseRaw waits before another try; it returns false if ctx ended.
func pauseRaw(ctx context.Context, attempt int) bool {
	timer := time.NewTimer(time.Duration(attempt) * 500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
