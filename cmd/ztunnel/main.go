// Command ztunnel is the data plane of the mesh: in an ECS task, on a node, or as the east-west gateway.
package main

import (
	"os"

	"github.com/isthmus-mesh/isthmus/internal/ztunnel"
)

func main() {
	os.Exit(ztunnel.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
