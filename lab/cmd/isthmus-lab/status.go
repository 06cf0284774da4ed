package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/daemon"
)

func (c commandLine) status(ctx context.Context, args []string) error {
	output := "table"
	if _, err := c.flags("status", args, 0, func(fs *flag.FlagSet) { fs.StringVar(&output, "o", output, "output: table or json") }); err != nil {
		return err
	}
	if output != "table" && output != "json" {
		fmt.Fprintf(c.stderr, "%s status: error: no output %q: there are table and json\n", program, output)
		return errUsage
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	status, err := daemon.NewClient(dir).Status(ctx)
	if err != nil {
		return err
	}
	dir.HostPIDs(&status)
	if output == "json" {
		encoder := json.NewEncoder(c.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(status)
	}
	fmt.Fprintf(c.stdout, "lab: %s\n\n", status.State)
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tKIND\tREADY\tPID\tRSS\tRESTARTS\tUP")
	for _, component := range status.Components {
		ready := "yes"
		switch {
		case component.Stopped:
			ready = "stopped"
		case !component.Ready && component.LastExit != "":
			ready = "no: " + component.LastExit
		case !component.Ready:
			ready = "no"
		}
		pid, rss, uptime := "-", "-", "-"
		if component.PID != 0 {
			pid = strconv.Itoa(component.PID)
		}
		if component.RSSBytes != 0 {
			rss = fmt.Sprintf("%.0f MiB", float64(component.RSSBytes)/(1<<20))
		}
		if !component.Started.IsZero() {
			uptime = time.Since(component.Started).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", component.Name, component.Kind, ready, pid, rss, component.Restarts, uptime)
	}
	return w.Flush()
}
