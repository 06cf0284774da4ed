// Command isthmus-lab runs a whole mesh on one Linux machine: a Kubernetes control plane, Istio, an AWS account with
// ECS, and the packets between them, in namespaces of its own.
package main

import (
	"os"

	"github.com/isthmus-mesh/isthmus/lab/daemon"
	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

func main() { os.Exit(run()) }

func run() int {
	// The program is also the lab's own init and daemon, and the init of every container.
	if handled, code := runtime.MaybeInit(os.Args); handled {
		return code
	}
	if handled, code := daemon.MaybeInternal(os.Args[1:]); handled {
		return code
	}
	c := commandLine{getenv: os.Getenv, stdout: os.Stdout, stderr: os.Stderr}
	return c.run(os.Args[1:])
}
