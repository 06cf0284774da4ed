// Command bench measures the data plane against what else could stand in its place, all in one run on one machine:
// a direct connection, two plain TCP relays, two TLS 1.3 relays, and, where they are installed, HAProxy, stunnel and
// Istio's ztunnel. README.md in this folder tells what each figure means.
//
//	go run ./bench            # all figures: about 20 minutes on two idle cores
//	go run ./bench --quick    # about half a minute, for a first look
//
// It needs the go command, to build ztunnel, and user namespaces; no privileges.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// inside marks the process that has its own namespaces; role, a helper process and what it is.
const (
	inside = "ISTHMUS_BENCH_INSIDE"
	role   = "ISTHMUS_BENCH_ROLE"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// options are what the command line says.
type options struct {
	quick       bool
	rounds      int
	duration    time.Duration
	idle        int
	figures     string
	contestants string
	isthmus     string
	ztunnel     string
	out         string
	note        string
	footprint   bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&o.quick, "quick", false, "a first look in about half a minute: fewer figures, shorter, four rounds")
	fs.IntVar(&o.rounds, "rounds", 0, "how often each contestant has its turn (20; 4 with --quick)")
	fs.DurationVar(&o.duration, "duration", 0, "how long a turn measures (500ms; 200ms with --quick)")
	fs.IntVar(&o.idle, "idle", 0, "idle connections for the memory figure (10000; 1000 with --quick)")
	fs.StringVar(&o.figures, "figures", "", "measure only the figures whose name contains one of these, comma-separated; $ stands for the end of a name")
	fs.StringVar(&o.contestants, "contestants", "", "only these, comma-separated; socks is only here when named")
	fs.StringVar(&o.isthmus, "isthmus", "", "our ztunnel; built if not given")
	fs.StringVar(&o.ztunnel, "ztunnel", "", "Istio's ztunnel; takes part if given")
	fs.StringVar(&o.out, "out", "", "also write the report to this file")
	fs.StringVar(&o.note, "note", "", "a remark for the report's head, such as what else the machine was doing")
	fs.BoolVar(&o.footprint, "footprint", true, "measure memory and CPU with large meshes")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	orDefault(&o.rounds, o.quick, 4, 20)
	orDefault(&o.duration, o.quick, 200*time.Millisecond, 500*time.Millisecond)
	orDefault(&o.idle, o.quick, 1000, 10_000)
	if o.rounds > maxRounds {
		return o, fmt.Errorf("--rounds: at most %d, for there are no more peers that nobody has met", maxRounds)
	}
	return o, nil
}

func orDefault[T comparable](v *T, quick bool, short, long T) {
	var zero T
	if *v == zero {
		*v = long
		if quick {
			*v = short
		}
	}
}

func run(args []string, stdout, stderr io.Writer) int {
	if r := os.Getenv(role); r != "" {
		return runRole(r, os.Stdin, stdout, stderr)
	}
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil && os.Getenv(inside) == "" {
		return enter(o, args, stderr)
	}
	if err == nil {
		err = compete(o, stdout, stderr)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: error: %v\n", err)
		return 1
	}
	return 0
}

// enter builds ztunnel, while there is a network to fetch modules from, and runs this program again in a user and a
// network namespace of its own.
func enter(o options, args []string, stderr io.Writer) int {
	dir, err := os.MkdirTemp("", "isthmus-bench-")
	if err != nil {
		fmt.Fprintf(stderr, "bench: error: %v\n", err)
		return 1
	}
	defer os.RemoveAll(dir)
	if o.isthmus == "" {
		o.isthmus = filepath.Join(dir, "ztunnel")
		// As the Makefile builds it.
		build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", o.isthmus,
			"github.com/isthmus-mesh/isthmus/cmd/ztunnel")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = stderr
		if err := build.Run(); err != nil {
			fmt.Fprintf(stderr, "bench: error: build ztunnel: %v\n", err)
			return 1
		}
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintf(stderr, "bench: error: %v\n", err)
		return 1
	}
	cmd := exec.Command(self, append(args, "--isthmus", o.isthmus)...)
	cmd.Env = append(os.Environ(), inside+"="+dir, "ISTHMUS_BENCH_COMMIT="+commit())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	// The terminal's interrupt reaches the child too; this process waits for it, to remove the directory.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	runtime.LockOSThread() // Pdeathsig is tied to the thread that starts the child
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: error: user and network namespaces are needed and not available here: %v\n", err)
		return 1
	}
	return 0
}

// commit names the state of the source, as far as git knows.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// compete sets everybody up, measures, and reports.
func compete(o options, stdout, stderr io.Writer) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	h := &harness{ctx: ctx, dir: os.Getenv(inside), stderr: stderr}
	defer h.cleanup()
	defer func() {
		if f, ok := recover().(failure); ok {
			err = f.err
		} else if f != (failure{}) {
			panic(f)
		}
	}()
	raiseDescriptorLimit()
	b := &bench{o: o, h: h, rep: newReport(o)}
	b.setUp()
	b.measure()
	if o.footprint {
		b.footprint()
	}
	w := stdout
	if o.out != "" {
		f, ferr := os.Create(o.out)
		if ferr != nil {
			return ferr
		}
		defer f.Close()
		w = io.MultiWriter(stdout, f)
	}
	return b.rep.write(w)
}
