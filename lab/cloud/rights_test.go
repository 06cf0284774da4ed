package cloud_test

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// TestCapabilitiesOfContainers: Fargate gives NET_ADMIN to nobody, neither at registration nor to a definition that was registered
// for EC2, and a container gets what its definition adds and drops.
func TestCapabilitiesOfContainers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	l.cluster("c")
	register := func(family string, on types.Compatibility, add, drop []string, privileged bool) (*awsecs.RegisterTaskDefinitionOutput, error) {
		c := app("a")
		c.LinuxParameters = &types.LinuxParameters{Capabilities: &types.KernelCapabilities{Add: add, Drop: drop}}
		if privileged {
			c.Privileged = aws.Bool(true)
		}
		return l.ecs().RegisterTaskDefinition(ctx, &awsecs.RegisterTaskDefinitionInput{Family: &family, NetworkMode: types.NetworkModeAwsvpc, Cpu: of("256"), Memory: of("512"),
			RequiresCompatibilities: []types.Compatibility{on}, ContainerDefinitions: []types.ContainerDefinition{c}})
	}
	for name, c := range map[string]struct {
		add        []string
		privileged bool
	}{"NET_ADMIN": {add: []string{"SYS_PTRACE", "NET_ADMIN"}}, "ALL": {add: []string{"ALL"}}, "privileged": {privileged: true}, "no such capability": {add: []string{"FLY"}}} {
		_, err := register("f", types.CompatibilityFargate, c.add, nil, c.privileged)
		wantCode(t, name+" on Fargate", err, "ClientException")
	}
	must(register("ptrace", types.CompatibilityFargate, []string{"SYS_PTRACE"}, []string{"ALL"}, false))(t)
	out := must(register("admin", types.CompatibilityEc2, []string{"NET_ADMIN"}, []string{"ALL"}, false))(t)
	if got := out.TaskDefinition.Compatibilities; !slices.Equal(got, []types.Compatibility{types.CompatibilityEc2}) {
		t.Errorf("compatibilities = %v", got)
	}
	launch := func(family string, on types.LaunchType) error {
		_, err := l.ecs().RunTask(ctx, &awsecs.RunTaskInput{Cluster: of("c"), TaskDefinition: &family, LaunchType: on, NetworkConfiguration: network()})
		return err
	}
	wantCode(t, "RunTask on Fargate with NET_ADMIN", launch("admin", types.LaunchTypeFargate), "InvalidParameterException")
	_, err := l.ecs().CreateService(ctx, &awsecs.CreateServiceInput{Cluster: of("c"), ServiceName: of("s"), TaskDefinition: of("admin"), DesiredCount: aws.Int32(1),
		LaunchType: types.LaunchTypeFargate, NetworkConfiguration: network()})
	wantCode(t, "CreateService on Fargate with NET_ADMIN", err, "InvalidParameterException")

	l.instances("c", 1)
	must(register("plain", types.CompatibilityEc2, nil, []string{"NET_RAW"}, false))(t)
	must(register("all", types.CompatibilityEc2, []string{"ALL"}, []string{"SYS_ADMIN"}, false))(t)
	must(register("free", types.CompatibilityEc2, nil, nil, true))(t)
	for family, check := range map[string]func(got []string) bool{
		"ptrace": func(got []string) bool { return slices.Equal(got, []string{"SYS_PTRACE"}) },
		"admin":  func(got []string) bool { return slices.Equal(got, []string{"NET_ADMIN"}) },
		"plain": func(got []string) bool {
			return len(got) == 13 && !slices.Contains(got, "NET_RAW") && slices.Contains(got, "CHOWN")
		},
		"all": func(got []string) bool {
			return !slices.Contains(got, "SYS_ADMIN") && slices.Contains(got, "NET_ADMIN")
		},
		"free": func(got []string) bool { return got == nil },
	} {
		before := len(l.rt.running("a"))
		on := types.LaunchTypeEc2
		if family == "ptrace" {
			on = types.LaunchTypeFargate
		}
		if err := launch(family, on); err != nil {
			t.Errorf("%s: %v", family, err)
			continue
		}
		l.eventually(family+" runs", func() bool { return len(l.rt.running("a")) == before+1 })
		found := slices.ContainsFunc(l.rt.running("a"), func(c *fakeContainer) bool { return check(c.spec.Capabilities) })
		if !found {
			t.Errorf("no container of %s has the capabilities that it should", family)
		}
	}
}
