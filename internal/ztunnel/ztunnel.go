// Package ztunnel turns an environment into a running proxy: it reads the configuration and wires the roles.
//
//	shared     one proxy for all pods of a node; the CNI agent hands over a network namespace per pod
//	dedicated  one proxy beside one workload, for example in an ECS task
//	gateway    the east-west gateway
//
// What starts when: the admin ports first, so that a proxy that cannot get further can be asked why; then the control
// plane; and, once the first complete state has arrived, the data path. On SIGTERM the data path stops accepting at
// once and drains; the rest stops after it.
package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

const usage = `usage: ztunnel [command]

commands:
  proxy     run the proxy (the default); it is configured by its environment
  health    exit with 0 if the proxy on this host is ready
  version   print the version
`

// Main runs a command and returns the exit code. Logs go to stdout, as ztunnel's do; complaints go to stderr.
func Main(args, environ []string, stdout, stderr io.Writer) int {
	command := "proxy"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "proxy": // further arguments are ignored: Istio's chart passes some
		if err := runProxy(environ, stdout); err != nil {
			fmt.Fprintf(stderr, "ztunnel: error: %v\n", err)
			return 1
		}
		return 0
	case "health":
		if err := checkHealth(); err != nil {
			fmt.Fprintf(stderr, "ztunnel: %v\n", err)
			return 1
		}
		return 0
	case "version":
		fmt.Fprintln(stdout, version.String())
		return 0
	case "help", "-h", "--help":
		fmt.Fprint(stdout, usage)
		return 0
	}
	fmt.Fprintf(stderr, "ztunnel: unknown command %q\n%s", command, usage)
	return 2
}

// healthTimeout bounds the health command: ECS and Docker count a slow answer as a failure anyway.
const healthTimeout = 2 * time.Second

func checkHealth() error {
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	url := fmt.Sprintf("http://127.0.0.1:%d/healthz/ready", mesh.ReadinessPort)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{Proxy: nil, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return fmt.Errorf("not reachable: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(text))
	}
	return nil
}

// runProxy runs the proxy until a signal ends it.
func runProxy(environ []string, stdout io.Writer) error {
	cfg, err := ParseConfig(environ)
	if err != nil {
		return fmt.Errorf("configuration:\n%w", err)
	}
	raiseDescriptorLimit()
	if cfg.Threads > 0 {
		runtime.GOMAXPROCS(cfg.Threads)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	limitMemory(ctx, cfg.getenv)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		stop(fmt.Errorf("received %s", <-signals))
		<-signals
		os.Exit(1) // whoever asks twice does not want to wait for the drain
	}()
	return Run(ctx, cfg, stdout)
}

// Run runs a proxy until ctx ends and its connections have been drained. Log lines go to out.
func Run(ctx context.Context, cfg Config, out io.Writer) error {
	levels, err := telemetry.NewLevels(cfg.LogFilter)
	if err != nil {
		return err
	}
	w := telemetry.NewQueuedWriter(out)
	defer w.Close()
	log := slog.New(telemetry.NewHandler(w, cfg.LogFormat, levels))
	a, err := newApp(cfg, log, levels)
	if err != nil {
		return err
	}
	log.Info("proxy starting", logattr.Mode(string(cfg.Mode)), logattr.Version(version.String()))
	for _, warning := range cfg.Warnings {
		log.Warn("setting ignored", logattr.Outcome(warning))
	}
	err = a.run(ctx)
	if err != nil {
		log.Error("proxy stopped", logattr.Err(err))
		return err
	}
	log.Info("proxy stopped")
	return nil
}

// listen opens a TCP listener. An address without host means every address, IPv6 included where there is IPv6.
func (a *app) listen(ctx context.Context, address string) (net.Listener, error) {
	return listenIn(ctx, nil, a.listenConfig(false), a.cfg.IPv6, address)
}
