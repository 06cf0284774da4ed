package ecs

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// launch is what makes a task.
type launch struct {
	cluster    *cluster
	service    *service
	deployment string
	def        *taskDef
	group      string
	startedBy  string
	launchType string
	platform   string
	network    networkConfig
	overrides  taskOverride
	rawOver    doc
	tags       map[string]string
	exec       bool
	instance   *instance
	bindings   map[string][]binding
}

// launchLocked makes a task in PROVISIONING and leaves it to Run to start it.
func (s *Service) launchLocked(l launch) *task {
	id := hexID(16)
	p := l.cluster.place
	t := &task{place: p, cluster: l.cluster, service: l.service, deployment: l.deployment, id: id, arn: p.arn("task", l.cluster.name, id),
		def: l.def, group: l.group, startedBy: l.startedBy, launchType: l.launchType, platform: l.platform, overrides: l.overrides, rawOver: l.rawOver,
		tags: l.tags, exec: l.exec, network: l.network, instance: l.instance, bindings: l.bindings, last: stateProvisioning, desired: stateRunning, version: 1, createdAt: s.now(),
		stop: make(chan struct{}), changed: make(chan struct{})}
	for _, cd := range l.def.ContainerDefinitions {
		t.containers = append(t.containers, &container{def: cd, arn: p.arn("container", l.cluster.name, id, awsserver.UUID()),
			metadataID: id + "-" + strconv.Itoa(len(t.containers)+1) + hexID(4), last: statePending, health: healthUnknown})
	}
	t.turn = p.launched
	p.launched++
	l.cluster.tasks[id] = t
	t.tellLocked()
	s.starting = append(s.starting, t)
	s.poke()
	return t
}

// stopLocked asks a task to stop, once.
func (s *Service) stopLocked(t *task, code, reason string) {
	if t.desired == stateStopped {
		return
	}
	t.desired, t.stopCode, t.stoppedReason = stateStopped, code, reason
	t.stoppingAt = s.now()
	close(t.stop)
	t.changeLocked()
	s.poke()
}

type runTaskInput struct {
	Cluster              string          `json:"cluster"`
	TaskDefinition       string          `json:"taskDefinition"`
	Count                *int            `json:"count"`
	Group                string          `json:"group"`
	StartedBy            string          `json:"startedBy"`
	LaunchType           string          `json:"launchType"`
	PlatformVersion      string          `json:"platformVersion"`
	Overrides            json.RawMessage `json:"overrides"`
	EnableExecuteCommand bool            `json:"enableExecuteCommand"`
	PropagateTags        string          `json:"propagateTags"`
	Tags                 []tag           `json:"tags"`
	NetworkConfiguration *struct {
		AWSVPC *networkConfig `json:"awsvpcConfiguration"`
	} `json:"networkConfiguration"`
}

func (s *Service) runTask(_ context.Context, r *awsserver.Request) (any, error) {
	var in runTaskInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	tags, err := tagMap(in.Tags)
	if err != nil {
		return nil, err
	}
	l := launch{startedBy: in.StartedBy, exec: in.EnableExecuteCommand, rawOver: doc{}}
	if len(in.Overrides) > 0 && string(in.Overrides) != "null" {
		if json.Unmarshal(in.Overrides, &l.overrides) != nil || json.Unmarshal(in.Overrides, &l.rawOver) != nil {
			return nil, invalid("Invalid overrides.")
		}
	}
	count := 1
	if in.Count != nil {
		count = *in.Count
	}
	if count < 1 || count > 10 {
		return nil, invalid("Count must be between 1 and 10.")
	}
	if err := s.authorizeRunTask(r, in, l.overrides); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	if l.cluster, err = p.activeCluster(in.Cluster); err != nil {
		return nil, err
	}
	if l.def, err = p.activeDef(in.TaskDefinition); err != nil {
		return nil, err
	}
	if l.network, err = s.checkNetwork(p, l.def, in.NetworkConfiguration != nil && in.NetworkConfiguration.AWSVPC != nil, func() networkConfig {
		return *in.NetworkConfiguration.AWSVPC
	}); err != nil {
		return nil, err
	}
	for _, o := range l.overrides.ContainerOverrides {
		if !slices.ContainsFunc(l.def.ContainerDefinitions, func(c *containerDef) bool { return c.Name == o.Name }) {
			return nil, invalid("Override for container named %s is not a container in the TaskDefinition.", o.Name)
		}
	}
	if len(l.cluster.tasks) >= maxTasks+maxStoppedTasks {
		return nil, awsserver.Errorf("LimitExceededException", "You've reached the limit on the number of tasks you can run concurrently")
	}
	if l.launchType, err = l.def.launchType(in.LaunchType); err != nil {
		return nil, err
	}
	l.group, l.platform = in.Group, platformVersion(in.PlatformVersion)
	if l.group == "" {
		l.group = "family:" + l.def.Family
	}
	if in.PropagateTags == "TASK_DEFINITION" {
		for k, v := range l.def.tags {
			if _, own := tags[k]; !own {
				tags[k] = v
			}
		}
	}
	out, failures := []doc{}, []doc{}
	for range count {
		if l.launchType == launchEC2 {
			if len(l.cluster.instances) == 0 {
				return nil, invalid("No Container Instances were found in your cluster.")
			}
			var why string
			if l.instance, l.bindings, why = l.cluster.placeTask(l.def); why != "" {
				failures = append(failures, doc{"arn": l.cluster.arn, "reason": "RESOURCE:PORTS", "detail": why})
				continue
			}
		}
		l.tags = copyTags(tags)
		out = append(out, s.launchLocked(l).describe(true))
	}
	return doc{"tasks": out, "failures": failures}, nil
}

func (s *Service) authorizeRunTask(r *awsserver.Request, in runTaskInput, o taskOverride) error {
	p, unlock := s.withPlace(r)
	td := p.taskDef(in.TaskDefinition)
	resource := p.arn("task-definition", last(in.TaskDefinition))
	var roles []string
	if td != nil {
		resource = td.arn
		roles = []string{td.TaskRoleARN, td.ExecutionRoleARN}
	}
	unlock()
	if err := r.Authorize("ecs:RunTask", resource, map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
		return err
	}
	return passRoles(r, append(roles, o.TaskRoleARN, o.ExecutionRoleARN)...)
}

func copyTags(m map[string]string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

func orDefault(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

// platformVersion is what LATEST means today.
func platformVersion(v string) string {
	if v == "" || v == "LATEST" {
		return "1.4.0"
	}
	return v
}

// activeDef finds a task definition that new tasks may use.
func (p *place) activeDef(ref string) (*taskDef, error) {
	td := p.taskDef(ref)
	if td == nil {
		return nil, client("TaskDefinition not found.")
	}
	if td.status != statusActive {
		return nil, client("TaskDefinition is inactive")
	}
	return td, nil
}

func taskARN(r *awsserver.Request, clusterRef, ref string) string {
	if strings.HasPrefix(ref, "arn:") {
		return ref
	}
	return "arn:aws:ecs:" + r.Region + ":" + r.Caller.AccountID + ":task/" + last(clusterARN(r, clusterRef)) + "/" + ref
}

func (s *Service) stopTask(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster string `json:"cluster"`
		Task    string `json:"task"`
		Reason  string `json:"reason"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:StopTask", taskARN(r, in.Cluster, in.Task), map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	t := c.task(in.Task)
	if t == nil {
		return nil, invalid("The referenced task was not found.")
	}
	s.stopLocked(t, stopUser, orDefault(in.Reason, "Task stopped by user"))
	return doc{"task": t.describe(false)}, nil
}

// task finds a task of the cluster by id or ARN.
func (c *cluster) task(ref string) *task {
	t := c.tasks[last(ref)]
	if t == nil || strings.HasPrefix(ref, "arn:") && t.arn != ref {
		return nil
	}
	return t
}

type listTasksInput struct {
	Cluster           string `json:"cluster"`
	ContainerInstance string `json:"containerInstance"`
	Family            string `json:"family"`
	ServiceName       string `json:"serviceName"`
	StartedBy         string `json:"startedBy"`
	DesiredStatus     string `json:"desiredStatus"`
	LaunchType        string `json:"launchType"`
	MaxResults        int    `json:"maxResults"`
	NextToken         string `json:"nextToken"`
}

func (s *Service) listTasks(_ context.Context, r *awsserver.Request) (any, error) {
	var in listTasksInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListTasks", "*", map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
		return nil, err
	}
	if in.StartedBy != "" && (in.Family != "" || in.ServiceName != "" || in.ContainerInstance != "" || in.LaunchType != "") {
		return nil, invalid("startedBy must be the only filter specified.")
	}
	switch in.DesiredStatus {
	case "":
		in.DesiredStatus = stateRunning
	case stateRunning, statePending, stateStopped:
	default:
		return nil, invalid("Invalid desiredStatus %s", in.DesiredStatus)
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	if in.ServiceName != "" && c.services[last(in.ServiceName)] == nil {
		return nil, errNoService
	}
	var arns []string
	for _, t := range c.tasks {
		if t.matches(in) {
			arns = append(arns, t.arn)
		}
	}
	slices.Sort(arns)
	return listAnswer(r, "taskArns", arns, in.NextToken, in.MaxResults)
}

// matches applies the filters of ListTasks. PENDING is never desired, so it matches nothing, as at AWS.
func (t *task) matches(in listTasksInput) bool {
	switch {
	case t.desired != in.DesiredStatus, in.ContainerInstance != "" && (t.instance == nil || t.instance.id != last(in.ContainerInstance)),
		in.Family != "" && t.def.Family != in.Family,
		in.StartedBy != "" && t.startedBy != in.StartedBy,
		in.LaunchType != "" && t.launchType != in.LaunchType,
		in.ServiceName != "" && (t.service == nil || t.service.name != last(in.ServiceName)):
		return false
	}
	return true
}

func (s *Service) describeTasks(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster string   `json:"cluster"`
		Tasks   []string `json:"tasks"`
		Include []string `json:"include"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if len(in.Tasks) == 0 {
		return nil, invalid("Tasks cannot be empty.")
	}
	if len(in.Tasks) > 100 {
		return nil, invalid("Tasks cannot have more than 100 elements.")
	}
	for _, ref := range in.Tasks {
		ctx := map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}
		if err := r.Authorize("ecs:DescribeTasks", taskARN(r, in.Cluster, ref), ctx); err != nil {
			return nil, err
		}
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	found, failures := []doc{}, []doc{}
	for _, ref := range in.Tasks {
		if t := c.task(ref); t != nil {
			found = append(found, t.describe(slices.Contains(in.Include, "TAGS")))
		} else {
			failures = append(failures, missing(taskARN(r, in.Cluster, ref)))
		}
	}
	return doc{"tasks": found, "failures": failures}, nil
}

func (t *task) describe(withTags bool) doc {
	d := doc{"taskArn": t.arn, "clusterArn": t.cluster.arn, "taskDefinitionArn": t.def.arn, "group": t.group, "startedBy": t.startedBy,
		"lastStatus": t.last, "desiredStatus": t.desired, "version": t.version, "launchType": t.launchType, "platformVersion": t.platform,
		"platformFamily": "Linux", "cpu": t.def.CPU, "memory": t.def.Memory, "healthStatus": t.healthStatus(), "enableExecuteCommand": t.exec,
		"stopCode": t.stopCode, "stoppedReason": t.stoppedReason, "tags": []tag{}, "overrides": t.describeOverrides(), "attachments": []doc{},
		"attributes": []doc{{"name": "ecs.cpu-architecture", "value": "x86_64"}},
		"createdAt":  epoch(t.createdAt), "connectivityAt": epoch(t.connectivityAt), "pullStartedAt": epoch(t.pullStartedAt),
		"pullStoppedAt": epoch(t.pullStoppedAt), "startedAt": epoch(t.startedAt), "stoppingAt": epoch(t.stoppingAt),
		"executionStoppedAt": epoch(t.executionStoppedAt), "stoppedAt": epoch(t.stoppedAt)}
	if !t.connectivityAt.IsZero() {
		d["connectivity"] = "CONNECTED"
	}
	d["availabilityZone"] = t.zone()
	if t.eni != nil {
		d["attachments"] = []doc{t.eni.describe()}
	}
	if t.instance != nil {
		d["containerInstanceArn"] = t.instance.arn
		d = without(d, "platformVersion", "platformFamily")
	}
	if withTags {
		d["tags"] = sortedTags(t.tags)
	}
	cs := []doc{}
	for _, c := range t.containers {
		cs = append(cs, c.describe(t))
	}
	d["containers"] = cs
	return prune(d)
}

// zone is where the task is, "" until it is known.
func (t *task) zone() string {
	switch {
	case t.eni != nil:
		return t.eni.subnet.Zone
	case t.instance != nil:
		return t.instance.machine.Zone
	}
	return ""
}

func (t *task) describeOverrides() doc {
	d := doc{"inferenceAcceleratorOverrides": []any{}}
	for k, v := range t.rawOver {
		d[k] = v
	}
	list, _ := d["containerOverrides"].([]any)
	for _, c := range t.containers {
		if !slices.ContainsFunc(list, func(o any) bool { m, ok := o.(doc); return ok && m["name"] == c.def.Name }) {
			list = append(list, doc{"name": c.def.Name})
		}
	}
	d["containerOverrides"] = list
	return d
}

func (e *eni) describe() doc {
	return doc{"id": e.attachmentID, "type": "ElasticNetworkInterface", "status": e.status, "details": []doc{
		{"name": "subnetId", "value": e.subnet.ID}, {"name": "networkInterfaceId", "value": e.id}, {"name": "macAddress", "value": e.mac},
		{"name": "privateDnsName", "value": e.dnsName}, {"name": "privateIPv4Address", "value": e.addr}}}
}

func (c *container) describe(t *task) doc {
	d := doc{"containerArn": c.arn, "taskArn": t.arn, "name": c.def.Name, "image": c.def.Image, "lastStatus": c.last,
		"healthStatus": c.health, "runtimeId": c.runtimeID, "reason": c.reason, "cpu": strconv.Itoa(c.def.CPU),
		"networkBindings": []any{}, "networkInterfaces": []doc{}}
	if c.exitCode != nil {
		d["exitCode"] = *c.exitCode
	}
	if c.def.Memory != nil {
		d["memory"] = strconv.Itoa(*c.def.Memory)
	}
	if t.eni != nil {
		d["networkInterfaces"] = []doc{{"attachmentId": t.eni.attachmentID, "privateIpv4Address": t.eni.addr}}
	}
	if list := t.bindings[c.def.Name]; len(list) > 0 && c.started {
		var all []any
		for _, b := range list {
			all = append(all, b.describe())
		}
		d["networkBindings"] = all
	}
	if t.exec {
		agent := doc{"name": "ExecuteCommandAgent", "lastStatus": c.agentStatus()}
		if c.last == stateRunning {
			agent["lastStartedAt"] = epoch(c.startedAt)
		}
		d["managedAgents"] = []doc{agent}
	}
	return prune(d)
}

// agentStatus is the state of the exec agent, which lives and dies with its container.
func (c *container) agentStatus() string {
	switch c.last {
	case stateRunning, stateStopped:
		return c.last
	}
	return statePending
}

// compareTaskAge orders tasks, oldest first.
func compareTaskAge(a, b *task) int {
	return cmp.Or(a.createdAt.Compare(b.createdAt), strings.Compare(a.id, b.id))
}
