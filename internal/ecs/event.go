package ecs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
)

// Hint says that something in a cluster may have changed.
type Hint struct {
	Account string
	Region  string
	Cluster string // ARN
	// Task is the ARN of the task that changed; "" for a service or the whole cluster.
	Task string
	// Instance is the ARN of a container instance that takes no more tasks; "" for none. Its tasks will be told to stop.
	Instance string
	// Version is the task's version according to the event; 0 is unknown.
	Version int64
}

// maxEvent bounds an event; EventBridge's own bound is 256 KiB.
const maxEvent = 256 << 10

// Kinds of events (EventBridge's detail-type) that matter here.
const (
	eventTask       = "ECS Task State Change"
	eventService    = "ECS Service Action"
	eventDeployment = "ECS Deployment State Change"
	eventInstance   = "ECS Container Instance State Change"
)

// ParseEvent reads an EventBridge event of Amazon ECS as it comes out of an SQS queue, and tells what it hints at. It
// takes nothing else from the event: what became of the task is asked of ECS. The version at the top of an event is that
// of EventBridge's format; the one in the detail is the task's.
func ParseEvent(body []byte) (Hint, error) {
	if len(body) > maxEvent {
		return Hint{}, fmt.Errorf("parse event: larger than %d bytes", maxEvent)
	}
	var e struct {
		Source     string   `json:"source"`
		DetailType string   `json:"detail-type"`
		Account    string   `json:"account"`
		Region     string   `json:"region"`
		Resources  []string `json:"resources"`
		Detail     struct {
			TaskARN     string      `json:"taskArn"`
			ClusterARN  string      `json:"clusterArn"`
			Version     json.Number `json:"version"`
			InstanceARN string      `json:"containerInstanceArn"`
			Status      string      `json:"status"` // of a container instance
		} `json:"detail"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return Hint{}, fmt.Errorf("parse event: %w", err)
	}
	if e.Source != "aws.ecs" {
		return Hint{}, fmt.Errorf("parse event: source %.64q is not aws.ecs", e.Source)
	}
	var about string
	switch e.DetailType {
	case eventTask:
		about = e.Detail.TaskARN
	case eventInstance:
		// One comes whenever a task starts or stops on an instance; only the end of an instance is news here.
		if e.Detail.Status == "ACTIVE" || e.Detail.Status == "REGISTERING" {
			return Hint{}, fmt.Errorf("parse event: an instance that is %s says nothing here", e.Detail.Status)
		}
		about = e.Detail.InstanceARN
	case eventService, eventDeployment:
		if len(e.Resources) > 0 {
			about = e.Resources[0]
		}
	default:
		return Hint{}, fmt.Errorf("parse event: detail-type %.64q says nothing here", e.DetailType)
	}
	arn, err := inventory.ParseARN(about)
	if err != nil {
		return Hint{}, fmt.Errorf("parse event: %w", err)
	}
	if arn.Service != "ecs" || arn.Account != e.Account || arn.Region != e.Region {
		return Hint{}, fmt.Errorf("parse event: %.128q is not of account %.12q in %.32q", about, e.Account, e.Region)
	}
	h := Hint{Account: arn.Account, Region: arn.Region, Cluster: e.Detail.ClusterARN}
	if h.Cluster == "" {
		h.Cluster = inventory.ClusterARNOf(about)
	}
	if h.Cluster == "" || inventory.ClusterARNOf(about) != "" && inventory.ClusterARNOf(about) != h.Cluster {
		return Hint{}, errors.New("parse event: it does not say of which cluster it is")
	}
	switch e.DetailType {
	case eventInstance:
		if !strings.HasPrefix(arn.Resource, "container-instance/") {
			return Hint{}, fmt.Errorf("parse event: %.128q is not a container instance", about)
		}
		h.Instance = about
	case eventTask:
		if !strings.HasPrefix(arn.Resource, "task/") {
			return Hint{}, fmt.Errorf("parse event: %.128q is not a task", about)
		}
		h.Task = about
		h.Version, _ = e.Detail.Version.Int64() // absent or odd: unknown
	}
	return h, nil
}
