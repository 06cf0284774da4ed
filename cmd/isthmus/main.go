// Command isthmus joins Amazon ECS clusters to an Istio ambient mesh.
package main

import (
	"os"

	"github.com/isthmus-mesh/isthmus/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args, os.Environ(), os.Stdin, os.Stdout, os.Stderr)) }
