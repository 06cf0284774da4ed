package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"

	"github.com/isthmus-mesh/isthmus/lab/daemon"
)

func (c commandLine) logs(ctx context.Context, args []string) error {
	follow, tail := false, -1
	rest, err := c.flags("logs", args, 1, func(fs *flag.FlagSet) {
		fs.BoolVar(&follow, "f", follow, "go on printing what is added")
		fs.IntVar(&tail, "tail", tail, "lines to begin with; -1 means all")
	})
	if err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	if len(rest) == 0 {
		names, err := dir.LogNames()
		if err != nil {
			return err
		}
		for _, name := range append(names, daemon.PodApps()...) {
			fmt.Fprintln(c.stdout, name)
		}
		return nil
	}
	for _, app := range daemon.PodApps() {
		if rest[0] == app { // its log is where kubectl finds it
			options := []string{"logs", "-n", "istio-system", "deployment/" + app, "--tail", strconv.Itoa(tail)}
			if app == "ztunnel" {
				options[3] = "daemonset/" + app
			}
			if follow {
				options = append(options, "-f")
			}
			return dir.Exec("kubectl", options)
		}
	}
	return dir.PrintLog(ctx, c.stdout, rest[0], tail, follow)
}
