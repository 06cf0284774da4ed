package controller

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/discovery"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/ecs/inventory"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

var _ ecs.HostSource = hosts{}

type hosts map[string]string

func (h hosts) HostAddresses(_ context.Context, _ string, instances []string) (map[string]string, error) {
	out := map[string]string{}
	for _, i := range slices.Sorted(slices.Values(instances)) {
		if a, ok := h[i]; ok {
			out[i] = a
		}
	}
	return out, nil
}

// A task in bridge mode is a plain endpoint at its host's address and port, and the list of problems says so.
func TestBridgeModeIsAPlainEndpoint(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	def := a.AddDefinition(inventory.TaskDefinition{
		Family: "old", Revision: 1, NetworkMode: inventory.NetworkBridge, Tags: inventory.Tags{"ecs.solo.io/service-account": "echo-sa"},
		Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}},
	})
	a.AddService(a.cluster, "old", def)
	arn := a.RunTask(a.cluster, "old", def)
	instance := "arn:aws:ecs:us-east-2:" + accountA + ":container-instance/ecs-demo-1/1"
	a.Edit(arn, func(task *inventory.Task) {
		task.LaunchType, task.ContainerInstance, task.Attachments = inventory.LaunchEC2, instance, nil
		for i := range task.Containers {
			task.Containers[i].Addrs, task.Containers[i].Bindings = nil, []inventory.Binding{{ContainerPort: 8080, HostPort: 32768, Protocol: "tcp"}}
		}
	})
	cluster := kubetest.New(t, namespaces("ecs-demo-1"))
	w := newWorld(t, cluster, func(c *Config) {
		c.Hosts = func(settings.Account, string) (ecs.HostSource, error) { return hosts{instance: "10.0.1.7"}, nil }
	}, a)
	w.run()
	w.wait("the endpoint", func() bool {
		list, err := cluster.Client.List(t.Context(), kube.WorkloadEntries, "ecs-demo-1", "")
		if err != nil || len(list) != 1 {
			return false
		}
		var e discovery.WorkloadEntry
		if err := kube.Decode(list[0], &e); err != nil {
			t.Fatal(err)
		}
		return e.Spec.Address == "10.0.1.7" && e.Spec.Ports["tcp-8080"] == 32768 && e.Metadata.Annotations[discovery.AnnotationHBONE] == ""
	})
	w.wait("the account says so", func() bool {
		st := accountStatus(t, cluster, "config-"+accountA)
		return st.Problems == 1 && len(st.Reasons) == 1 && st.Reasons[0].Code == diag.NetworkModePlain && strings.Contains(st.Reasons[0].Message, "network mode bridge")
	})
}

// Host mode, IPv6 and launch type EXTERNAL side by side: what has an address is an endpoint, and the account says of the
// rest how many there are, why, and what to do.
func TestAccountTellsOfTasksWithoutMesh(t *testing.T) {
	a := newAccount(accountA, "ecs-demo-1")
	define := func(family, mode string) string {
		def := a.AddDefinition(inventory.TaskDefinition{
			Family: family, Revision: 1, NetworkMode: mode, Tags: inventory.Tags{"ecs.solo.io/service-account": "echo-sa"},
			Containers: []inventory.ContainerDefinition{{Name: "app", Essential: true, PortMappings: []inventory.PortMapping{{ContainerPort: 8080, Protocol: "tcp"}}}},
		})
		a.AddService(a.cluster, family, def)
		return def
	}
	instance := "arn:aws:ecs:us-east-2:" + accountA + ":container-instance/ecs-demo-1/1"
	run := func(family, mode, launch, ip6 string) string {
		arn := a.RunTask(a.cluster, family, define(family, mode))
		a.Edit(arn, func(task *inventory.Task) {
			task.LaunchType, task.Attachments = launch, nil
			for i := range task.Containers {
				task.Containers[i].Addrs = nil
				if ip6 != "" {
					task.Containers[i].Addrs = []netip.Addr{netip.MustParseAddr(ip6)}
				}
			}
			if ip6 == "" {
				task.ContainerInstance = instance
			}
		})
		return arn
	}
	run("host", inventory.NetworkHost, inventory.LaunchEC2, "")
	run("six", inventory.NetworkAWSVPC, inventory.LaunchFargate, "2001:db8::7")
	anywhere := run("anywhere", inventory.NetworkBridge, inventory.LaunchExternal, "")
	run("anywhere-else", inventory.NetworkBridge, inventory.LaunchExternal, "")

	cluster := kubetest.New(t, namespaces("ecs-demo-1"))
	w := newWorld(t, cluster, func(c *Config) {
		c.Hosts = func(settings.Account, string) (ecs.HostSource, error) { return hosts{instance: "10.0.1.7"}, nil }
	}, a)
	w.run()
	w.wait("the endpoints", func() bool {
		return slices.Equal(w.addresses(), []string{"ecs-demo-1/10.0.1.7/echo-sa/", "ecs-demo-1/2001:db8::7/echo-sa/"})
	})
	w.wait("the reasons", func() bool { return accountStatus(t, cluster, "config-"+accountA).Problems == 3 })
	want := []ProblemReason{
		{Code: diag.ExternalTask, Count: 2, Object: anywhere, Message: "the task has launch type EXTERNAL (ECS Anywhere), of which AWS tells no address",
			Fix: "run the task on Fargate or EC2, or write a WorkloadEntry for its host by hand"},
		{Code: diag.NetworkModePlain, Count: 1, Message: "the task uses network mode host and is a plain TCP endpoint: it shares its host's address and has no identity",
			Fix: "use network mode awsvpc to give the task its own address and identity"},
	}
	got := accountStatus(t, cluster, "config-"+accountA).Reasons
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(ProblemReason{}, "Object")); diff != "" || got[0].Object != anywhere {
		t.Errorf("reasons, of which the first should be about %s (-want +got):\n%s", anywhere, diff)
	}
}
