// Command isthmus-controller connects Amazon ECS to an Istio ambient mesh: it discovers services and tasks, hands tasks
// the token for their identity, and serves east-west gateways. See internal/controller.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/isthmus-mesh/isthmus/internal/controller"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal asks for an orderly end; the second finds the default handler and ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(controller.Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
