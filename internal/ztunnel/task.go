package ztunnel

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/capture/redirect"
	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// metadataURI is the variable in which ECS tells each container of every launch type where its metadata is.
const metadataURI = "ECS_CONTAINER_METADATA_URI_V4"

// maxMetadata limits the answer of the metadata endpoint.
const maxMetadata = 1 << 20

// redirectTask makes the kernel hand the connections of this network namespace to this proxy, as Istio's CNI agent does
// for a pod. The applications are not running yet: they wait for the proxy to be healthy.
func redirectTask(cfg Config) error {
	err := redirect.Install(nil, redirect.Config{
		Outbound: true, Inbound: true, DNS: cfg.DNS, SpoofSource: cfg.SpoofSource, IPv6: cfg.IPv6, ExcludeOutbound: linkLocal(),
	})
	if err != nil {
		return fmt.Errorf("ISTHMUS_REDIRECT, which needs root with NET_ADMIN: %w", err)
	}
	return nil
}

// linkLocal are the addresses at which the platform answers the task itself: credentials and metadata of the task and of
// its instance.
func linkLocal() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("169.254.170.2/32"), netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:ec2::254/128")}
}

// taskName is what a task's ARN says of it.
type taskName struct{ region, id string }

// taskARN asks the ECS agent for the task: the environment names its region on Fargate only, and its id nowhere. The
// agent may be slower than we are.
func (a *app) taskARN(ctx context.Context) (taskName, error) {
	uri := a.cfg.getenv(metadataURI)
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		task, err := readTask(ctx, uri)
		if err == nil {
			return task, nil
		}
		a.log.Warn("the task's region and id are not known yet", logattr.Err(err))
		select {
		case <-ctx.Done():
			return taskName{}, fmt.Errorf("stopped before the task's region and id were known: %w", err)
		case <-t.C:
		}
	}
}

func readTask(ctx context.Context, uri string) (taskName, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, uri+"/task", nil)
	if err != nil {
		return taskName{}, fmt.Errorf("%s: %w", metadataURI, err)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // no proxy, whatever the environment says
	if err != nil {
		return taskName{}, fmt.Errorf("read the task's metadata: %w", err)
	}
	defer resp.Body.Close()
	var task struct{ TaskARN string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxMetadata)).Decode(&task); err != nil {
		return taskName{}, fmt.Errorf("read the task's metadata: status %d: %w", resp.StatusCode, err)
	}
	if parts := strings.Split(task.TaskARN, ":"); len(parts) == 6 && parts[2] == "ecs" && parts[3] != "" {
		return taskName{region: parts[3], id: parts[5][strings.LastIndexByte(parts[5], '/')+1:]}, nil
	}
	return taskName{}, fmt.Errorf("read the task's metadata: %q is not a task", task.TaskARN)
}
