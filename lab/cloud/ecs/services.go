package ecs

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

var errNoService = awsserver.Errorf("ServiceNotFoundException", "Service not found.") //nolint:gochecknoglobals // a constant error

// serviceInput is the part of CreateService and UpdateService the lab obeys. Pointers tell "not given" from zero.
type serviceInput struct {
	Cluster              string `json:"cluster"`
	ServiceName          string `json:"serviceName"` // CreateService
	Service              string `json:"service"`     // UpdateService
	TaskDefinition       string `json:"taskDefinition"`
	DesiredCount         *int   `json:"desiredCount"`
	LaunchType           string `json:"launchType"`
	PlatformVersion      string `json:"platformVersion"`
	SchedulingStrategy   string `json:"schedulingStrategy"`
	EnableExecuteCommand *bool  `json:"enableExecuteCommand"`
	PropagateTags        string `json:"propagateTags"`
	ForceNewDeployment   bool   `json:"forceNewDeployment"`
	Tags                 []tag  `json:"tags"`
	NetworkConfiguration *struct {
		AWSVPC *networkConfig `json:"awsvpcConfiguration"`
	} `json:"networkConfiguration"`
	DeploymentController struct {
		Type string `json:"type"`
	} `json:"deploymentController"`
	DeploymentConfiguration *struct {
		MaximumPercent           *int `json:"maximumPercent"`
		MinimumHealthyPercent    *int `json:"minimumHealthyPercent"`
		DeploymentCircuitBreaker *struct {
			Enable   bool `json:"enable"`
			Rollback bool `json:"rollback"`
		} `json:"deploymentCircuitBreaker"`
	} `json:"deploymentConfiguration"`
}

// obeyed are the request members that the service's own fields hold; the others are kept as they came.
func obeyed() []string {
	return []string{"cluster", "serviceName", "service", "taskDefinition", "desiredCount", "launchType", "platformVersion", "enableExecuteCommand",
		"propagateTags", "forceNewDeployment", "tags", "networkConfiguration", "deploymentConfiguration", "deploymentController", "clientToken", "schedulingStrategy"}
}

func serviceARN(r *awsserver.Request, clusterRef, ref string) string {
	if strings.HasPrefix(ref, "arn:") {
		return ref
	}
	return "arn:aws:ecs:" + r.Region + ":" + r.Caller.AccountID + ":service/" + last(clusterARN(r, clusterRef)) + "/" + ref
}

func (s *Service) authorizeService(r *awsserver.Request, clusterRef, ref string, more map[string][]string) error {
	ctx := map[string][]string{"ecs:cluster": {clusterARN(r, clusterRef)}}
	for k, v := range more {
		ctx[k] = v
	}
	p, unlock := s.withPlace(r)
	if c := p.clusterLocked(clusterRef); c != nil && c.service(ref) != nil {
		ctx = resourceTags(c.service(ref).tags, ctx)
	}
	unlock()
	return r.Authorize("ecs:"+r.Operation, serviceARN(r, clusterRef, ref), ctx)
}

// service finds a service of the cluster by name or ARN; the latest of that name, whatever its status.
func (c *cluster) service(ref string) *service {
	sv := c.services[last(ref)]
	if sv == nil || strings.HasPrefix(ref, "arn:") && sv.arn != ref {
		return nil
	}
	return sv
}

func (s *Service) createService(_ context.Context, r *awsserver.Request) (any, error) {
	var in serviceInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	raw, err := decodeDoc(r)
	if err != nil {
		return nil, err
	}
	tags, err := tagMap(in.Tags)
	if err != nil {
		return nil, err
	}
	switch {
	case !regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`).MatchString(in.ServiceName):
		return nil, invalid("Invalid service name: up to 255 letters, numbers, underscores, and hyphens are allowed.")
	case in.SchedulingStrategy == "DAEMON":
		return nil, invalid("The daemon scheduling strategy is not supported for AWS Fargate tasks.")
	case in.DesiredCount == nil || *in.DesiredCount < 0 || *in.DesiredCount > maxTasks:
		return nil, invalid("Invalid desired count: between 0 and %d is required.", maxTasks)
	}
	controller, err := in.controller()
	if err != nil {
		return nil, err
	}
	if err := s.authorizeService(r, in.Cluster, in.ServiceName, requestTags(tags)); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	if old := c.services[in.ServiceName]; old != nil {
		switch old.status {
		case statusActive:
			return nil, invalid("Creation of service was not idempotent.")
		case statusDraining:
			return nil, invalid("Unable to Start a service that is still Draining.")
		}
		c.gone = append(c.gone, old)
	}
	if len(c.services) >= maxServices {
		return nil, awsserver.Errorf("LimitExceededException", "The limit for services per cluster was exceeded.")
	}
	now := s.now()
	sv := &service{cluster: c, name: in.ServiceName, arn: p.arn("service", c.name, in.ServiceName), status: statusActive, changedAt: now,
		createdAt: now, createdBy: r.Caller.ARN, tags: tags, extra: doc{}, propagate: "NONE", controller: controller,
		config: deploymentConfig{MaximumPercent: 200, MinimumHealthyPercent: 100}, launchType: "FARGATE", platform: "1.4.0"}
	if err := s.applyService(p, sv, in, raw); err != nil {
		return nil, err
	}
	c.services[sv.name] = sv
	s.poke()
	return doc{"service": sv.describe(true)}, nil
}

// applyService checks the input against the place and, only if all of it is good, changes the service.
func (s *Service) applyService(p *place, sv *service, in serviceInput, raw doc) error {
	network, def := sv.network, (*taskDef)(nil)
	if len(sv.deployments) > 0 {
		def = sv.deployments[0].def
	}
	oldDef, force := def, in.ForceNewDeployment || len(sv.deployments) == 0
	var err error
	if (in.TaskDefinition != "" || def == nil) && sv.controller != controllerExternal {
		if def, err = p.activeDef(in.TaskDefinition); err != nil {
			return err
		}
	}
	if given := in.NetworkConfiguration != nil && in.NetworkConfiguration.AWSVPC != nil; def != nil && (given || len(sv.deployments) == 0) {
		if network, err = s.checkNetwork(p, def, given, func() networkConfig { return *in.NetworkConfiguration.AWSVPC }); err != nil {
			return err
		}
		force = true
	}
	config := sv.config
	if err := config.apply(in); err != nil {
		return err
	}
	switch in.PropagateTags {
	case "":
	case "NONE", "SERVICE", "TASK_DEFINITION":
		sv.propagate = in.PropagateTags
	default:
		return invalid("Invalid propagateTags %s", in.PropagateTags)
	}
	if in.DesiredCount != nil {
		if *in.DesiredCount < 0 || *in.DesiredCount > maxTasks {
			return invalid("Invalid desired count: between 0 and %d is required.", maxTasks)
		}
		sv.desired = *in.DesiredCount
		sv.steady = false
	}
	if in.EnableExecuteCommand != nil {
		sv.execEnabled = *in.EnableExecuteCommand
	}
	sv.network, sv.config = network, config
	if def != nil && (in.LaunchType != "" || len(sv.deployments) == 0) {
		if sv.launchType, err = def.launchType(in.LaunchType); err != nil {
			return err
		}
	}
	if in.PlatformVersion != "" {
		sv.platform = platformVersion(in.PlatformVersion)
	}
	for k, v := range without(raw, obeyed()...) {
		sv.extra[k] = v
	}
	if (force || def != oldDef) && def != nil {
		s.deployLocked(sv, def)
	}
	return nil
}

func (d *deploymentConfig) apply(in serviceInput) error {
	dc := in.DeploymentConfiguration
	if dc == nil {
		return nil
	}
	if dc.MaximumPercent != nil {
		d.MaximumPercent = *dc.MaximumPercent
	}
	if dc.MinimumHealthyPercent != nil {
		d.MinimumHealthyPercent = *dc.MinimumHealthyPercent
	}
	if b := dc.DeploymentCircuitBreaker; b != nil {
		d.BreakerEnabled, d.BreakerRollback = b.Enable, b.Rollback
	}
	if d.MinimumHealthyPercent < 0 || d.MaximumPercent < 1 || d.MaximumPercent <= d.MinimumHealthyPercent {
		return invalid("Both maximumPercent and minimumHealthyPercent cannot be %d as this will block deployments: the maximum must exceed the minimum.", d.MaximumPercent)
	}
	return nil
}

func (s *Service) updateService(_ context.Context, r *awsserver.Request) (any, error) {
	var in serviceInput
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	raw, err := decodeDoc(r)
	if err != nil {
		return nil, err
	}
	if err := s.authorizeService(r, in.Cluster, in.Service, nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	sv := c.service(in.Service)
	if sv == nil {
		return nil, errNoService
	}
	if sv.status != statusActive {
		return nil, awsserver.Errorf("ServiceNotActiveException", "Service was not ACTIVE.")
	}
	if err := sv.refuseDeployment(in); err != nil {
		return nil, err
	}
	if err := s.applyService(p, sv, in, raw); err != nil {
		return nil, err
	}
	s.poke()
	return doc{"service": sv.describe(true)}, nil
}

func (s *Service) deleteService(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster string `json:"cluster"`
		Service string `json:"service"`
		Force   bool   `json:"force"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := s.authorizeService(r, in.Cluster, in.Service, nil); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	sv := c.service(in.Service)
	if sv == nil || sv.status == statusInactive {
		return nil, errNoService
	}
	if sv.desired > 0 && !in.Force {
		return nil, invalid("The service cannot be stopped while it is scaled above 0.")
	}
	if sv.status == statusActive {
		sv.status, sv.desired, sv.changedAt = statusDraining, 0, s.now()
	}
	s.poke()
	return doc{"service": sv.describe(true)}, nil
}

func (s *Service) describeServices(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster  string   `json:"cluster"`
		Services []string `json:"services"`
		Include  []string `json:"include"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if len(in.Services) == 0 {
		return nil, invalid("Services cannot be empty.")
	}
	if len(in.Services) > 10 {
		return nil, invalid("Services cannot have more than 10 elements.")
	}
	for _, ref := range in.Services {
		if err := s.authorizeService(r, in.Cluster, ref, nil); err != nil {
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
	for _, ref := range in.Services {
		if sv := c.service(ref); sv != nil {
			found = append(found, sv.describe(slices.Contains(in.Include, "TAGS")))
		} else {
			failures = append(failures, missing(serviceARN(r, in.Cluster, ref)))
		}
	}
	return doc{"services": found, "failures": failures}, nil
}

func (s *Service) listServices(_ context.Context, r *awsserver.Request) (any, error) {
	var in struct {
		Cluster    string `json:"cluster"`
		LaunchType string `json:"launchType"`
		Strategy   string `json:"schedulingStrategy"`
		MaxResults int    `json:"maxResults"`
		NextToken  string `json:"nextToken"`
	}
	if err := r.Decode(&in); err != nil {
		return nil, err
	}
	if err := r.Authorize("ecs:ListServices", "*", map[string][]string{"ecs:cluster": {clusterARN(r, in.Cluster)}}); err != nil {
		return nil, err
	}
	p, unlock := s.withPlace(r)
	defer unlock()
	c, err := p.activeCluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	var arns []string
	for _, sv := range c.services {
		if sv.status != statusInactive && (in.LaunchType == "" || sv.launchType == in.LaunchType) && in.Strategy != "DAEMON" {
			arns = append(arns, sv.arn)
		}
	}
	slices.Sort(arns)
	return listAnswer(r, "serviceArns", arns, in.NextToken, in.MaxResults)
}

func (sv *service) describe(withTags bool) doc {
	running, pending := sv.counts("")
	d := doc{"loadBalancers": []any{}, "serviceRegistries": []any{}, "placementConstraints": []any{}, "placementStrategy": []any{}}
	for k, v := range sv.extra {
		d[k] = v
	}
	for k, v := range (doc{"serviceArn": sv.arn, "serviceName": sv.name, "clusterArn": sv.cluster.arn, "status": sv.status,
		"desiredCount": sv.desired, "runningCount": running, "pendingCount": pending, "launchType": sv.launchType, "platformVersion": sv.platform,
		"platformFamily": "Linux", "schedulingStrategy": "REPLICA", "createdAt": epoch(sv.createdAt), "createdBy": sv.createdBy,
		"enableExecuteCommand": sv.execEnabled, "enableECSManagedTags": false, "propagateTags": sv.propagate, "events": slices.Clone(sv.events),
		"networkConfiguration": sv.networkDoc(), "deploymentController": doc{"type": sv.controller},
		"deploymentConfiguration": doc{"maximumPercent": sv.config.MaximumPercent, "minimumHealthyPercent": sv.config.MinimumHealthyPercent,
			"deploymentCircuitBreaker": doc{"enable": sv.config.BreakerEnabled, "rollback": sv.config.BreakerRollback}}}) {
		d[k] = v
	}
	if sv.controller == controllerExternal { // its task sets have these
		d = without(d, "networkConfiguration", "launchType", "platformVersion", "platformFamily")
	}
	if sv.events == nil {
		d["events"] = []doc{}
	}
	if len(sv.deployments) > 0 {
		d["taskDefinition"] = sv.deployments[0].def.arn
	}
	ds := []doc{}
	if sv.controller != controllerECS { // whose generations are task sets, and not deployments
		d["taskSets"] = sv.taskSets()
	}
	for _, dep := range sv.deployments {
		if sv.controller != controllerECS {
			break
		}
		r, p := sv.counts(dep.id)
		ds = append(ds, prune(doc{"id": dep.id, "status": dep.status, "taskDefinition": dep.def.arn, "desiredCount": dep.desired, "runningCount": r,
			"pendingCount": p, "failedTasks": dep.failed, "createdAt": epoch(dep.createdAt), "updatedAt": epoch(dep.updatedAt), "rolloutState": dep.rollout,
			"rolloutStateReason": dep.reason, "launchType": sv.launchType, "platformVersion": sv.platform,
			"networkConfiguration": sv.networkDoc()}))
	}
	d["deployments"] = ds
	if withTags {
		d["tags"] = sortedTags(sv.tags)
	}
	return prune(d)
}

// networkDoc is the network configuration, nil where tasks have none.
func (sv *service) networkDoc() any {
	if len(sv.network.Subnets) == 0 {
		return nil
	}
	return doc{"awsvpcConfiguration": sv.network}
}

// counts returns how many tasks of a deployment, or of all with "", run and how many are on their way to it.
func (sv *service) counts(deployment string) (running, pending int) {
	for _, t := range sv.cluster.tasks {
		if t.service != sv || deployment != "" && t.deployment != deployment {
			continue
		}
		switch t.last {
		case stateRunning:
			running++
		case stateProvisioning, statePending, stateActivating:
			if t.desired == stateRunning {
				pending++
			}
		}
	}
	return running, pending
}
