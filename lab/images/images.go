// Package images holds the programs of those container images that the lab provides itself. They are run by starting
// the lab's executable again, so that no image has to be downloaded.
package images

import (
	"context"
	"fmt"
	"io"
	"os/signal"
	"syscall"
)

// Argument is the first argument with which the lab's executable becomes the program of an image.
const Argument = "image"

// Run runs the program that args[0] names until it ends or a signal asks it to, and returns its exit code.
func Run(args, env []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stderr, "usage: isthmus-lab image echo-server|load")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args[0] {
	case "echo-server":
		if err := runEcho(ctx, env, stdout); err != nil {
			fmt.Fprintln(stderr, "echo-server:", err)
			return 1
		}
		return 0
	case "load":
		if err := runLoad(ctx, args[1:], stdout, stderr); err != nil {
			fmt.Fprintln(stderr, "load:", err)
			return 1
		}
		return 0
	}
	fmt.Fprintf(stderr, "isthmus-lab image: no program %q\n", args[0])
	return 2
}
