// Command isthmus-lab-kube is the upstream control plane of the lab in one binary. Its first argument, or the
// name it is called by, selects which unmodified upstream program it is.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	istioctl "istio.io/istio/istioctl/cmd"
	pilot "istio.io/istio/pilot/cmd/pilot-discovery/app"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kas "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() { os.Exit(run()) }

func run() int {
	name := filepath.Base(os.Args[0])
	if name == "isthmus-lab-kube" {
		if len(os.Args) < 2 {
			fmt.Fprintln(os.Stderr, "usage: isthmus-lab-kube etcd|kube-apiserver|kube-controller-manager|kube-scheduler|pilot-discovery|kubectl|istioctl [arguments]")
			return 2
		}
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	switch name {
	case "etcd":
		return etcd(os.Args[1:])
	case "kube-apiserver":
		return cli.Run(kas.NewAPIServerCommand())
	case "kube-controller-manager":
		return cli.Run(kcm.NewControllerManagerCommand())
	case "kube-scheduler":
		return cli.Run(scheduler.NewSchedulerCommand())
	case "pilot-discovery":
		return execute(pilot.NewRootCommand())
	case "kubectl":
		return cli.Run(kubectl.NewDefaultKubectlCommand())
	case "istioctl":
		return execute(istioctl.GetRootCmd(os.Args[1:]))
	}
	fmt.Fprintf(os.Stderr, "isthmus-lab-kube: no program %q here\n", name)
	return 2
}

func execute(c *cobra.Command) int {
	if err := c.Execute(); err != nil {
		return 1
	}
	return 0
}
