package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/daemon"
)

// fault sets, ends and lists the faults of the AWS endpoint.
func (c commandLine) fault(ctx context.Context, args []string) error {
	var f awsserver.Fault
	var last time.Duration
	off := false
	// The kind stands before the flags, where the flag package would stop at it.
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		f.Kind, args = awsserver.FaultKind(args[0]), args[1:]
	}
	_, err := c.flags("fault", args, 0, func(fs *flag.FlagSet) {
		fs.StringVar(&f.Account, "account", "", "only calls of this AWS account, by its number or as home or external")
		fs.StringVar(&f.Call, "call", "", "only these calls, such as ECS.ListTasks or ECS.*")
		fs.IntVar(&f.Every, "every", 0, "only every so many-th of these calls")
		fs.DurationVar(&f.By, "by", 0, "how slow, how old or how far ahead")
		fs.DurationVar(&last, "for", 0, "end by itself after this time")
		fs.BoolVar(&off, "off", false, "end the faults of this kind, account and call; without any of them, all")
		fs.Usage = func() { c.faultUsage(fs) }
	})
	if err != nil {
		return err
	}
	switch f.Account {
	case "home":
		f.Account = daemon.Account
	case daemon.ExternalProfile:
		f.Account = daemon.ExternalAccount
	}
	if last > 0 {
		f.Until = time.Now().Add(last)
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	client := daemon.NewClient(dir)
	var all []awsserver.Fault
	switch {
	case off:
		all, err = client.ClearFaults(ctx, f)
	case f.Kind != "":
		all, err = client.SetFault(ctx, f)
	default:
		all, err = client.Faults(ctx)
	}
	if err != nil {
		return err
	}
	return c.printFaults(all)
}

func (c commandLine) printFaults(all []awsserver.Fault) error {
	if len(all) == 0 {
		fmt.Fprintln(c.stderr, "no faults: the AWS endpoint works as it should")
		return nil
	}
	t := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FAULT\tACCOUNT\tCALL\tEVERY\tBY\tFOR\tHITS")
	for _, f := range all {
		every, by, left := "1", "-", "-"
		if f.Every > 1 {
			every = fmt.Sprint(f.Every)
		}
		if f.By > 0 {
			by = f.By.String()
		}
		if !f.Until.IsZero() {
			left = time.Until(f.Until).Round(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", f.Kind, orAll(f.Account), orAll(f.Call), every, by, left, f.Hits)
	}
	return t.Flush()
}

func orAll(s string) string {
	if s == "" {
		return "all"
	}
	return s
}

func (c commandLine) faultUsage(fs *flag.FlagSet) {
	fmt.Fprintf(c.stderr, "Let the lab's AWS endpoint misbehave; without a fault, list those that stand.\n\nExamples:\n"+
		"  %[1]s fault throttle --call ECS.ListTasks --for 30s\n  %[1]s fault denied --account external\n  %[1]s fault --off\n\nFaults:\n", program)
	for _, k := range awsserver.FaultKinds() {
		fmt.Fprintf(c.stderr, "  %-10s %s\n", k.Kind, k.Does)
	}
	fmt.Fprintln(c.stderr, "\nFlags:")
	fs.PrintDefaults()
}
