package ecs

import (
	"maps"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Bus takes what happens to tasks and services; *events.Service behind an adapter does. Publish must not wait for this
// package, which calls it with its mutex held.
type Bus interface {
	// Listening reports whether anybody wants events of an account and region.
	Listening(account, region string) bool
	Publish(account, region, detailType string, resources []string, detail any)
}

// Kinds of events.
const (
	eventTask       = "ECS Task State Change"
	eventInstance   = "ECS Container Instance State Change"
	eventService    = "ECS Service Action"
	eventDeployment = "ECS Deployment State Change"
)

// isoTime is how events write times, which the API writes as numbers.
const isoTime = "2006-01-02T15:04:05.000Z"

// tellLocked publishes the present state of a task. It is what DescribeTasks answers with ISO times, with the short name of
// the network interface's type, and without health and tags.
func (t *task) tellLocked() {
	p := t.place
	if p.bus == nil || !p.bus.Listening(p.account, p.region) {
		return
	}
	d := t.describe(false)
	for _, k := range []string{"healthStatus", "tags"} {
		delete(d, k)
	}
	if list, ok := d["attachments"].([]doc); ok {
		for _, a := range list {
			a["type"] = "eni"
		}
	}
	if list, ok := d["containers"].([]doc); ok {
		for _, c := range list {
			delete(c, "healthStatus")
			delete(c, "managedAgents")
			delete(c, "networkBindings")
		}
	}
	d["updatedAt"] = awsserver.Epoch{Time: p.now()}
	p.bus.Publish(p.account, p.region, eventTask, []string{t.arn}, iso(d))
}

// tellLocked publishes the present state of a container instance.
func (i *instance) tellLocked() {
	i.version++
	p := i.cluster.place
	if p.bus == nil || !p.bus.Listening(p.account, p.region) {
		return
	}
	d := i.describe(false)
	d["clusterArn"], d["updatedAt"] = i.cluster.arn, awsserver.Epoch{Time: p.now()}
	p.bus.Publish(p.account, p.region, eventInstance, []string{i.arn}, iso(d))
}

// iso copies a document with its times as text.
func iso(v any) any {
	switch v := v.(type) {
	case awsserver.Epoch:
		return v.UTC().Format(isoTime)
	case doc:
		out := maps.Clone(v)
		for k, x := range out {
			out[k] = iso(x)
		}
		return out
	case []doc:
		out := make([]any, 0, len(v))
		for _, x := range v {
			out = append(out, iso(x))
		}
		return out
	}
	return v
}

// tellServiceLocked publishes an action of the service scheduler.
func (s *Service) tellServiceLocked(sv *service, level, name string, more doc) {
	p := sv.cluster.place
	if p.bus == nil || !p.bus.Listening(p.account, p.region) {
		return
	}
	detail := doc{"eventType": level, "eventName": name, "clusterArn": sv.cluster.arn, "createdAt": s.isoNow()}
	maps.Copy(detail, more)
	p.bus.Publish(p.account, p.region, eventService, []string{sv.arn}, detail)
}

// tellDeploymentLocked publishes what became of a deployment.
func (s *Service) tellDeploymentLocked(sv *service, d *deployment, level, name string) {
	p := sv.cluster.place
	if p.bus == nil || !p.bus.Listening(p.account, p.region) {
		return
	}
	p.bus.Publish(p.account, p.region, eventDeployment, []string{sv.arn},
		doc{"eventType": level, "eventName": name, "deploymentId": d.id, "updatedAt": s.isoNow(), "reason": d.reason})
}

func (s *Service) isoNow() string { return s.now().UTC().Truncate(time.Millisecond).Format(isoTime) }
