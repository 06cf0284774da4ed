package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/version"
)

// guideMark ends the version under the name istioctl. Scripts written for the guide look for it to tell an istioctl that
// has the ecs commands from one that has not; it says nothing more.
const guideMark = "-solo"

// isIstioctl reports whether a program was called by the name istioctl.
func isIstioctl(argv0 string) bool { return filepath.Base(argv0) == "istioctl" }

// istioctlRoot is the command line under the name istioctl: the commands that the guide uses are ours, any other is handed
// to the next istioctl in PATH.
func (a *app) istioctlRoot() *cobra.Command {
	root := a.root()
	root.Use = "istioctl"
	root.Short = "isthmus by the name of istioctl: ecs, ztunnel-config and version are answered here, the rest by Istio's own"
	root.Long = root.Short + "."
	root.Example = "  istioctl ecs add-service echo-service --cluster ecs-demo-1 --namespace ecs-demo-1 --service-account ecs-demo-sa-local --external\n  istioctl ztunnel-config workloads"
	for _, c := range root.Commands() {
		switch c.Name() {
		case "ecs", "ztunnel-config", "help", "completion":
		default:
			root.RemoveCommand(c)
		}
	}
	root.Version = ""
	root.AddCommand(a.istioctlVersion())
	for _, name := range []string{"admin", "analyze", "authz", "bug-report", "dashboard", "experimental", "install", "kube-inject", "manifest", "multicluster", "operator",
		"profile", "proxy-config", "proxy-status", "remote-clusters", "tag", "uninstall", "upgrade", "validate", "waypoint", "x", "pc", "ps"} {
		root.AddCommand(a.istioctlPassOn(name))
	}
	return root
}

func (a *app) istioctlVersion() *cobra.Command {
	var short, remote bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Long:    "Print the version of isthmus. The ending " + guideMark + " is what scripts written for the guide look for: it means that this istioctl has the ecs commands.",
		Example: "  istioctl version --short",
		RunE: func(*cobra.Command, []string) error {
			a.Printf("client version: isthmus-%s%s\n", version.String(), guideMark)
			return nil
		},
	}
	c.Flags().BoolVarP(&short, "short", "s", false, "accepted for istioctl's sake: the version is always short")
	c.Flags().BoolVar(&remote, "remote", false, "accepted for istioctl's sake: only the client's version is printed")
	return c
}

func (a *app) istioctlPassOn(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: "Handed to the next istioctl in PATH", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := a.nextIstioctl()
			if err != nil {
				return err
			}
			c := exec.CommandContext(cmd.Context(), path, append([]string{name}, args...)...)
			c.Stdin, c.Stdout, c.Stderr, c.Env = a.In, a.Out, a.Err, a.environ
			c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
			return c.Run()
		},
	}
}

// nextIstioctl finds the first istioctl in PATH that is another program than this one.
func (a *app) nextIstioctl() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	own, err := os.Stat(self)
	if err != nil {
		return "", err
	}
	for _, dir := range filepath.SplitList(a.getenv("PATH")) {
		path := filepath.Join(dir, "istioctl")
		st, err := os.Stat(path)
		if err == nil && filepath.IsAbs(path) && isExecutable(path) && !os.SameFile(st, own) {
			return path, nil
		}
	}
	return "", errors.New("this istioctl is isthmus, and PATH has none of Istio's own to hand the command to")
}
