package ecs

// Deployment controllers of a service.
const (
	controllerECS        = "ECS"
	controllerCodeDeploy = "CODE_DEPLOY"
	controllerExternal   = "EXTERNAL"
)

// controller is the deployment controller that a CreateService asks for.
func (in serviceInput) controller() (string, error) {
	switch t := orDefault(in.DeploymentController.Type, controllerECS); t {
	case controllerECS, controllerCodeDeploy:
		return t, nil
	case controllerExternal:
		if in.TaskDefinition != "" {
			return "", invalid("TaskDefinition, loadBalancers, networkConfiguration, launchType and platformVersion belong to the task sets of a service with an EXTERNAL deployment controller.")
		}
		return t, nil
	default:
		return "", invalid("Invalid deployment controller type %s", t)
	}
}

// refuseDeployment returns why ECS itself makes no new deployment of a service that another controller deploys.
func (sv *service) refuseDeployment(in serviceInput) error {
	what := ""
	switch {
	case sv.controller == controllerECS:
	case in.TaskDefinition != "":
		what = "update task definition"
	case in.ForceNewDeployment:
		what = "force a new deployment"
	case in.NetworkConfiguration != nil:
		what = "update network parameters"
	case in.PlatformVersion != "":
		what = "update platform version"
	}
	switch {
	case what == "":
		return nil
	case sv.controller == controllerCodeDeploy:
		return invalid("Unable to %s on services with a CODE_DEPLOY deployment controller. Use AWS CodeDeploy to trigger a new deployment.", what)
	}
	return invalid("Unable to %s on services with an %s deployment controller. Use the CreateTaskSet and DeleteTaskSet actions.", what, sv.controller)
}

// taskSets are the generations of the tasks of a service that ECS does not deploy by itself. The lab has no CodeDeploy and no
// CreateTaskSet, so there is the one that CreateService made, or none.
func (sv *service) taskSets() []doc {
	out := []doc{}
	for _, dep := range sv.deployments {
		running, pending := sv.counts(dep.id)
		stability := "STABILIZING"
		if running == dep.desired && pending == 0 {
			stability = "STEADY_STATE"
		}
		out = append(out, prune(doc{"id": dep.id, "taskSetArn": sv.cluster.place.arn("task-set", sv.cluster.name, sv.name, dep.id), "serviceArn": sv.arn,
			"clusterArn": sv.cluster.arn, "startedBy": sv.controller, "status": dep.status, "taskDefinition": dep.def.arn, "computedDesiredCount": dep.desired,
			"runningCount": running, "pendingCount": pending, "createdAt": epoch(dep.createdAt), "updatedAt": epoch(dep.updatedAt), "launchType": sv.launchType,
			"platformVersion": sv.platform, "platformFamily": "Linux", "networkConfiguration": sv.networkDoc(),
			"scale": doc{"value": 100.0, "unit": "PERCENT"}, "stabilityStatus": stability, "stabilityStatusAt": epoch(dep.updatedAt),
			"loadBalancers": orEmpty(sv.extra["loadBalancers"]), "serviceRegistries": orEmpty(sv.extra["serviceRegistries"]), "tags": []tag{}}))
	}
	return out
}

func orEmpty(v any) any {
	if v == nil {
		return []any{}
	}
	return v
}
