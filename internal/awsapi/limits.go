package awsapi

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// bucket is one of AWS's request buckets: so many requests at once, so many per second after that.
type bucket struct {
	burst  int
	refill float64
}

// AWS counts requests per account and region, together for all callers and for all calls of one category ("Request
// throttling for the Amazon ECS API"). Calls of other services, whose buckets are not published or are larger than
// anything done here, share one modest bucket per service.
var buckets = map[string]bucket{
	"ECS cluster read":            {50, 20},
	"ECS cluster modify":          {20, 1},
	"ECS service read":            {100, 20},
	"ECS service modify":          {50, 5},
	"ECS cluster resource read":   {100, 20},
	"ECS cluster resource modify": {100, 40},
	"ECS task definition read":    {50, 20},
	"ECS task definition modify":  {20, 1},
	"ECS tag read":                {50, 20},
	"ECS tag modify":              {20, 10},
}

var otherBucket = bucket{40, 20}

// categories says which bucket an ECS call draws from.
var categories = map[string]string{
	"ListClusters":               "ECS cluster read",
	"DescribeClusters":           "ECS cluster read",
	"CreateCluster":              "ECS cluster modify",
	"DeleteCluster":              "ECS cluster modify",
	"ListServices":               "ECS service read",
	"DescribeServices":           "ECS service read",
	"CreateService":              "ECS service modify",
	"UpdateService":              "ECS service modify",
	"DeleteService":              "ECS service modify",
	"ListTasks":                  "ECS cluster resource read",
	"DescribeTasks":              "ECS cluster resource read",
	"DescribeContainerInstances": "ECS cluster resource read",
	"RunTask":                    "ECS cluster resource modify",
	"StopTask":                   "ECS cluster resource modify",
	"ExecuteCommand":             "ECS cluster resource modify",
	"DescribeTaskDefinition":     "ECS task definition read",
	"ListTaskDefinitions":        "ECS task definition read",
	"RegisterTaskDefinition":     "ECS task definition modify",
	"DeregisterTaskDefinition":   "ECS task definition modify",
	"ListTagsForResource":        "ECS tag read",
	"TagResource":                "ECS tag modify",
}

// category returns the bucket that a call draws from.
func category(service, operation string) string {
	if service == "ECS" {
		if c, ok := categories[operation]; ok {
			return c
		}
	}
	return service
}

// limitTable holds one limiter per account, region and category. The number of entries is bounded by the configuration:
// accounts times regions times a dozen categories.
type limitTable struct {
	share float64

	mu sync.Mutex
	m  map[limitKey]*rate.Limiter // guarded by mu
}

type limitKey struct{ account, region, category string }

func newLimitTable(share float64) *limitTable {
	return &limitTable{share: share, m: map[limitKey]*rate.Limiter{}}
}

func (t *limitTable) limiter(account, region, cat string) *rate.Limiter {
	key := limitKey{account, region, cat}
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.m[key]
	if l == nil {
		b, ok := buckets[cat]
		if !ok {
			b = otherBucket
		}
		l = rate.NewLimiter(rate.Limit(b.refill*t.share), max(1, int(float64(b.burst)*t.share)))
		t.m[key] = l
	}
	return l
}

// wait blocks until the call may be sent and says for how long it blocked.
func (t *limitTable) wait(ctx context.Context, account, region, cat string) (time.Duration, error) {
	start := time.Now()
	err := t.limiter(account, region, cat).Wait(ctx)
	return time.Since(start), err
}
