package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Bounds of the load generator.
const (
	maxLoadRate     = 10000 // requests a second
	maxLoadInFlight = 4000
	maxLoadFailures = 100 // told one by one; the rest is only counted
)

// LoadResult is what the load generator prints when it ends.
type LoadResult struct {
	Sent   int `json:"sent"`
	OK     int `json:"ok"`
	Failed int `json:"failed"`
	// Skipped are requests that were due while too many were under way: the generator or the machine was too slow, and
	// the rate was not reached.
	Skipped int `json:"skipped"`
	// P50, P99 and Max are times of good requests in milliseconds.
	P50, P99, Max float64
	Failures      []LoadFailure `json:"failures,omitempty"`
}

// LoadFailure is one request that got no good answer.
type LoadFailure struct {
	At    time.Time `json:"at"` // when it was sent
	After float64   `json:"afterMilliseconds"`
	Error string    `json:"error"`
}

// loader sends requests at a steady rate, whether or not earlier ones have been answered, as many users would.
type loader struct {
	url      string
	interval time.Duration
	client   *http.Client

	mu     sync.Mutex
	result LoadResult // guarded by mu
	times  []float64  // guarded by mu
}

// runLoad reads the command line and sends requests until the time is over or ctx ends; it prints the result.
func runLoad(ctx context.Context, args []string, out, errw io.Writer) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	fs.SetOutput(errw)
	url := fs.String("url", "", "where to send requests")
	rate := fs.Int("rate", 200, "requests a second")
	last := fs.Duration("for", time.Minute, "how long")
	timeout := fs.Duration("timeout", 20*time.Second, "of one request")
	keep := fs.Bool("keep-alive", false, "use connections again, instead of a new one for each request")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *url == "" || *rate < 1 || *rate > maxLoadRate {
		return fmt.Errorf("want --url and a --rate between 1 and %d", maxLoadRate)
	}
	l := &loader{url: *url, interval: time.Second / time.Duration(*rate), client: &http.Client{Timeout: *timeout, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DisableKeepAlives: !*keep, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute,
	}}}
	ctx, cancel := context.WithTimeout(ctx, *last)
	defer cancel()
	return json.NewEncoder(out).Encode(l.run(ctx))
}

// run sends until ctx ends, then waits for what is under way.
func (l *loader) run(ctx context.Context) LoadResult {
	slots := make(chan struct{}, maxLoadInFlight)
	var flying sync.WaitGroup
	start := time.Now()
	t := time.NewTicker(max(l.interval, 5*time.Millisecond))
	defer t.Stop()
	for due := 0; ctx.Err() == nil; {
		// A late tick is made up for, so that the rate holds on a busy machine.
		for ; time.Duration(due)*l.interval <= time.Since(start); due++ {
			select {
			case slots <- struct{}{}:
			default:
				l.mu.Lock()
				l.result.Skipped++
				l.mu.Unlock()
				continue
			}
			flying.Go(func() {
				defer func() { <-slots }()
				l.one(context.WithoutCancel(ctx))
			})
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
	flying.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.times)
	at := func(share float64) float64 {
		if len(l.times) == 0 {
			return 0
		}
		return l.times[min(len(l.times)-1, int(share*float64(len(l.times))))]
	}
	l.result.P50, l.result.P99, l.result.Max = at(0.5), at(0.99), at(1)
	return l.result
}

// one sends one request and notes how it ended. Only a whole answer with status 200 is good.
func (l *loader) one(ctx context.Context) {
	begin := time.Now()
	err := l.get(ctx)
	took := float64(time.Since(begin).Microseconds()) / 1000
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.Sent++
	if err == nil {
		l.result.OK++
		l.times = append(l.times, took)
		return
	}
	l.result.Failed++
	if len(l.result.Failures) < maxLoadFailures {
		l.result.Failures = append(l.result.Failures, LoadFailure{At: begin.UTC(), After: took, Error: err.Error()})
	}
}

func (l *loader) get(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url, nil)
	if err != nil {
		return err
	}
	response, err := l.client.Do(request)
	if err != nil {
		return cmp.Or(errors.Unwrap(err), err) // without the URL, which is known
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}
