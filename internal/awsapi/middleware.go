package awsapi

import (
	"context"
	"fmt"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"
)

type callStats struct {
	waited   time.Duration
	attempts int
}

type callStatsKey struct{}

// middleware returns the steps that every call of a client passes: once per call the measuring, once per attempt the
// request limit and the time limit. Limiting attempts rather than calls keeps retries inside AWS's buckets too.
func (s *Session) middleware(account, region string) func(*middleware.Stack) error {
	return func(stack *middleware.Stack) error {
		err := stack.Initialize.Add(middleware.InitializeMiddlewareFunc("IsthmusMeasure",
			func(ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
				stats := &callStats{}
				start := time.Now()
				out, md, err := next.HandleInitialize(context.WithValue(ctx, callStatsKey{}, stats), in)
				if s.cfg.Observe != nil {
					s.cfg.Observe(Call{
						Service: awsmiddleware.GetServiceID(ctx), Operation: awsmiddleware.GetOperationName(ctx), Region: region, Account: account,
						Kind: KindOf(err), Took: time.Since(start), Waited: stats.waited, Attempts: stats.attempts,
					})
				}
				return out, md, err
			}), middleware.After)
		if err != nil {
			return fmt.Errorf("add measuring: %w", err)
		}
		return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("IsthmusLimit",
			func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
				waited, err := s.limits.wait(ctx, account, region, category(awsmiddleware.GetServiceID(ctx), awsmiddleware.GetOperationName(ctx)))
				if stats, ok := ctx.Value(callStatsKey{}).(*callStats); ok {
					stats.waited += waited
					stats.attempts++
				}
				if err != nil {
					return middleware.FinalizeOutput{}, middleware.Metadata{}, fmt.Errorf("wait for the request limit: %w", err)
				}
				ctx, cancel := context.WithTimeout(ctx, s.cfg.CallTimeout)
				defer cancel()
				return next.HandleFinalize(ctx, in)
			}), "Retry", middleware.After)
	}
}
