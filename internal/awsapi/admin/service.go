package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// ServiceDetail is what enrolment must know of a service beyond what discovery reads.
type ServiceDetail struct {
	LaunchType      string // also of a service with capacity providers, as far as these are AWS's own; "" if it is not known
	PlatformVersion string // of Fargate, "" elsewhere
	Controller      string // deployment controller: ECS, CODE_DEPLOY or EXTERNAL
	Breaker         bool   // the deployment circuit breaker is on
	Rollback        bool   // and takes the service back to what ran before
	Events          []ServiceEvent
}

// ServiceEvent is one line of a service's own log, newest first.
type ServiceEvent struct {
	At      time.Time
	Message string
}

// wireService is the part of a service as the API writes it that ServiceDetail is made of.
type wireService struct {
	LaunchType       string `json:"launchType"`
	PlatformVersion  string `json:"platformVersion"`
	CapacityStrategy []struct {
		Provider string `json:"capacityProvider"`
	} `json:"capacityProviderStrategy"`
	Controller struct {
		Type string `json:"type"`
	} `json:"deploymentController"`
	Configuration struct {
		Breaker struct {
			Enable   bool `json:"enable"`
			Rollback bool `json:"rollback"`
		} `json:"deploymentCircuitBreaker"`
	} `json:"deploymentConfiguration"`
	Events []struct {
		CreatedAt float64 `json:"createdAt"` // seconds
		Message   string  `json:"message"`
	} `json:"events"`
}

// ServiceDetail describes one service.
func (a *Client) ServiceDetail(ctx context.Context, cluster, service string) (ServiceDetail, error) {
	var out struct {
		Services []wireService `json:"services"`
	}
	if err := a.raw(ctx, "DescribeServices", map[string]any{"cluster": cluster, "services": []string{service}}, &out); err != nil {
		return ServiceDetail{}, fmt.Errorf("describe service %s in %s: %w", service, cluster, err)
	}
	if len(out.Services) != 1 {
		return ServiceDetail{}, fmt.Errorf("describe service %s in %s: %d answers", service, cluster, len(out.Services))
	}
	s := out.Services[0]
	d := ServiceDetail{LaunchType: s.LaunchType, PlatformVersion: s.PlatformVersion, Controller: s.Controller.Type,
		Breaker: s.Configuration.Breaker.Enable, Rollback: s.Configuration.Breaker.Rollback}
	for _, c := range s.CapacityStrategy {
		if slices.Contains([]string{"FARGATE", "FARGATE_SPOT"}, c.Provider) {
			d.LaunchType = inventory.LaunchFargate
		}
	}
	for _, e := range s.Events {
		d.Events = append(d.Events, ServiceEvent{At: time.UnixMilli(int64(e.CreatedAt * 1000)).UTC(), Message: e.Message})
	}
	return d, nil
}
