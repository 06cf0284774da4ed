package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/lab/daemon"
	"github.com/isthmus-mesh/isthmus/lab/scenario"
)

// scenario runs one of the guide's scenarios in a lab that is started for it, or in the one that runs.
func (c commandLine) scenario(ctx context.Context, args []string) error {
	keep := false
	rest, err := c.flags("run", args, 1, func(fs *flag.FlagSet) {
		fs.BoolVar(&keep, "keep", keep, "leave the lab up afterwards")
	})
	if err != nil {
		return err
	}
	number := "2"
	if len(rest) == 1 {
		number = rest[0]
	}
	s, err := scenario.Load(number)
	if err != nil {
		return err
	}
	dir, err := c.dir()
	if err != nil {
		return err
	}
	start := time.Now()
	fmt.Fprintf(c.stdout, "Scenario %s: %s\n\n", number, s.Title)
	progress := daemon.NewProgress(c.stderr, isTerminal(c.stderr) && c.getenv("TERM") != "dumb", daemon.IsUTF8(c.getenv))
	up, err := daemon.Up(ctx, dir, progress.Event)
	progress.Close()
	if err != nil {
		return err
	}
	if !keep && !up.AlreadyRunning {
		defer func() {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if _, err := daemon.Down(stop, dir); err != nil {
				diag.Print(c.stderr, program, err)
			}
		}()
	}
	timings, err := c.walk(ctx, dir, s)
	c.summary(up, timings, time.Since(start))
	var differs *scenario.Failure
	if errors.As(err, &differs) {
		return diag.Wrap(diag.LabExpectation, err).WithFix("look at the lab as it stands with `make demo KEEP=1`; its logs are in %s", dir.Logs())
	}
	if err == nil {
		fmt.Fprintf(c.stdout, "scenario %s: every step as in the guide\n", number)
	}
	return err
}

// walk runs the steps in a directory of their own, so that what they write stays with the lab.
func (c commandLine) walk(ctx context.Context, dir daemon.Dir, s scenario.Scenario) ([]scenario.Timing, error) {
	work, err := os.MkdirTemp("", "isthmus-scenario-")
	if err != nil {
		return nil, fmt.Errorf("make a working directory: %w", err)
	}
	defer os.RemoveAll(work)
	programs, examples, err := places()
	if err != nil {
		return nil, err
	}
	if err := os.Symlink(examples, filepath.Join(work, "examples")); err != nil {
		return nil, fmt.Errorf("link the examples: %w", err)
	}
	env, err := dir.Environ(os.Environ())
	if err != nil {
		return nil, err
	}
	env = append(env, "PATH="+strings.Join([]string{programs, dir.Bin(), c.getenv("PATH")}, ":"), "NO_COLOR=1")
	return scenario.Run(ctx, s, scenario.Options{Env: env, Dir: work, Out: c.stdout, Color: isTerminal(c.stdout) && c.getenv("NO_COLOR") == ""})
}

// places finds the directory of the programs and the examples: in the working directory, or beside the programs.
func places() (programs, examples string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", "", fmt.Errorf("find this program: %w", err)
	}
	programs = filepath.Dir(self)
	for _, dir := range []string{"examples", filepath.Join(programs, "..", "examples")} {
		if st, err := os.Stat(filepath.Join(dir, "eastwest-gateway.yaml")); err == nil && st.Mode().IsRegular() {
			examples, err = filepath.Abs(dir)
			return programs, examples, err
		}
	}
	return "", "", errors.New("the examples are neither in the working directory nor beside the programs: run from a clone of the repository")
}

// summary says where the time went.
func (c commandLine) summary(up daemon.UpResult, timings []scenario.Timing, total time.Duration) {
	fmt.Fprintf(c.stdout, "\n%8s  %s\n", daemon.Seconds(up.Took), "lab ready")
	for _, t := range timings {
		fmt.Fprintf(c.stdout, "%8s  %s %s\n", daemon.Seconds(t.Took), t.Step.Guide, t.Step.Title)
	}
	fmt.Fprintf(c.stdout, "%8s  in all\n", daemon.Seconds(total))
}
