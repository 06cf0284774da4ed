package cli

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

func (a *app) labCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lab", Short: "A real mesh with ECS clusters on this machine: up, down, status, env, logs, run",
		Long:    "isthmus lab runs isthmus-lab, which it finds beside itself or in PATH, with the same arguments.",
		Example: "  isthmus lab up\n  eval \"$(isthmus lab env)\"\n  isthmus lab status\n  isthmus lab run 2\n  isthmus lab down",
		// Every flag belongs to isthmus-lab.
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := sibling("isthmus-lab")
			if err != nil {
				return diag.Wrap(diag.LabProgramAbsent, err)
			}
			c := exec.CommandContext(cmd.Context(), path, args...)
			c.Stdin, c.Stdout, c.Stderr, c.Env = a.In, a.Out, a.Streams.Err, a.environ
			c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
			return c.Run()
		},
	}
}

// sibling finds a program beside the running executable, then in PATH.
func sibling(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if p := filepath.Join(filepath.Dir(self), name); isExecutable(p) {
				return p, nil
			}
		}
	}
	return exec.LookPath(name)
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
