package cloud_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// TestDeploymentControllers: a service says who deploys it, shows its generations as that controller does, and refuses to be
// deployed by anybody else.
func TestDeploymentControllers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx, ecs := t.Context(), l.ecs()
	l.cluster("demo")
	def := l.register("echo", app("echo"))
	create := func(kind types.DeploymentControllerType, def *string) error {
		in := &awsecs.CreateServiceInput{Cluster: aws.String("demo"), ServiceName: aws.String(string(kind)), TaskDefinition: def, DesiredCount: aws.Int32(1),
			DeploymentController: &types.DeploymentController{Type: kind}}
		if def != nil {
			in.LaunchType, in.NetworkConfiguration = types.LaunchTypeFargate, network()
		}
		_, err := ecs.CreateService(ctx, in)
		return err
	}
	wantCode(t, "a controller that does not exist", create("SOMEBODY", &def), "InvalidParameterException")
	wantCode(t, "an external controller and a task definition", create(types.DeploymentControllerTypeExternal, &def), "InvalidParameterException")
	for kind, def := range map[types.DeploymentControllerType]*string{types.DeploymentControllerTypeEcs: &def,
		types.DeploymentControllerTypeCodeDeploy: &def, types.DeploymentControllerTypeExternal: nil} {
		if err := create(kind, def); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	l.steady("demo", "ECS")
	blue := func() types.Service { return l.describeService("demo", "CODE_DEPLOY") }
	l.eventually("the task set is stable", func() bool {
		sets := blue().TaskSets
		return len(sets) == 1 && sets[0].StabilityStatus == types.StabilityStatusSteadyState && sets[0].RunningCount == 1
	})
	if sv := blue(); sv.DeploymentController.Type != types.DeploymentControllerTypeCodeDeploy || len(sv.Deployments) != 0 ||
		*sv.TaskSets[0].TaskDefinition != def || *sv.TaskSets[0].Status != "PRIMARY" || sv.TaskSets[0].Scale.Value != 100 || *sv.TaskDefinition != def {
		t.Errorf("a service of CodeDeploy is %+v with task sets %+v", sv, sv.TaskSets)
	}
	if sv := l.describeService("demo", "EXTERNAL"); sv.DeploymentController.Type != types.DeploymentControllerTypeExternal || sv.TaskDefinition != nil ||
		len(sv.Deployments)+len(sv.TaskSets) != 0 || sv.LaunchType != "" || sv.DesiredCount != 1 || sv.RunningCount != 0 {
		t.Errorf("a service of an external controller is %+v", sv)
	}
	if sv := l.describeService("demo", "ECS"); sv.DeploymentController.Type != types.DeploymentControllerTypeEcs || len(sv.TaskSets) != 0 || len(sv.Deployments) != 1 {
		t.Errorf("a service of ECS is %+v", sv)
	}
	for name, in := range map[string]awsecs.UpdateServiceInput{"a new definition": {TaskDefinition: &def}, "a forced deployment": {ForceNewDeployment: true},
		"a new network": {NetworkConfiguration: network()}} {
		for _, kind := range []string{"CODE_DEPLOY", "EXTERNAL"} {
			in.Cluster, in.Service = aws.String("demo"), aws.String(kind)
			_, err := ecs.UpdateService(ctx, &in)
			wantCode(t, name+" of a service of "+kind, err, "InvalidParameterException")
		}
	}
	must(ecs.UpdateService(ctx, &awsecs.UpdateServiceInput{Cluster: aws.String("demo"), Service: aws.String("CODE_DEPLOY"), DesiredCount: aws.Int32(2)}))(t)
	l.eventually("two tasks", func() bool { return blue().RunningCount == 2 && blue().TaskSets[0].RunningCount == 2 })
	for _, kind := range []string{"CODE_DEPLOY", "EXTERNAL"} {
		must(ecs.DeleteService(ctx, &awsecs.DeleteServiceInput{Cluster: aws.String("demo"), Service: aws.String(kind), Force: aws.Bool(true)}))(t)
		l.eventually(kind+" is inactive", func() bool { return *l.describeService("demo", kind).Status == "INACTIVE" })
	}
}
