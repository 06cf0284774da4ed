package controller

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/ecs"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/telemetry/control"
	"github.com/isthmus-mesh/isthmus/internal/version"
)

const program = "isthmus-controller"

// Main is the program: it returns the exit code. 0 is good, 1 a failure, 2 wrong usage.
func Main(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	o, err := ParseOptions(args, environ, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		diag.Print(stderr, program, err)
		return 2
	}
	if o.Version {
		fmt.Fprintln(stdout, program, version.String())
		return 0
	}
	if err := run(ctx, o, stdout, stderr); err != nil && ctx.Err() == nil {
		diag.Print(stderr, program, err)
		return 1
	}
	return 0
}

func run(ctx context.Context, o Options, stdout, stderr io.Writer) error {
	log, err := newLogger(o, stderr)
	if err != nil {
		return err
	}
	kube.RouteLogs(log.With(slog.String("scope", "client-go")))
	text, err := os.ReadFile(o.ConfigFile)
	if err != nil {
		return diag.Wrap(diag.ConfigUnreadable, err)
	}
	file, err := settings.Parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", o.ConfigFile, err)
	}
	client, err := kube.New(kube.Config{
		Kubeconfig: o.Kubeconfig, Context: o.KubeContext, QPS: float32(o.KubeQPS), Burst: int(2 * o.KubeQPS), UserAgent: program + "/" + version.String(), Log: log,
	})
	if err != nil {
		return err
	}
	var ctl *Controller
	metrics := control.New(func() time.Duration { return ctl.SnapshotAge() })
	session, err := awsapi.Open(ctx, awsapi.Config{
		Observe: func(call awsapi.Call) { metrics.AWSCall(call.Service, call.Operation, call.Kind.String(), call.Took) },
	})
	if err != nil {
		return diag.Wrap(diag.CloudUnreachable, err)
	}
	ctl, err = New(Config{
		Options: o, Settings: file, Kube: client, Region: session.Region(), Identity: replicaName(), Metrics: metrics, Log: log,
		Source: func(a settings.Account, region string) (ecs.Source, error) {
			return awsapi.NewECS(session, targetOf(a, region))
		},
		Hosts: func(a settings.Account, region string) (ecs.HostSource, error) {
			return awsapi.NewHosts(session, targetOf(a, region))
		},
		Queue: func(a settings.Account, e settings.Events) (Queue, error) {
			return awsapi.NewQueue(session, targetOf(a, e.QueueRegion()), e.QueueURL)
		},
	})
	if err != nil {
		return err
	}
	log.Info("starting", slog.String("version", version.String()), slog.Int("accounts", len(file.Platforms.ECS.Accounts)),
		slog.Duration("sweep_interval", time.Duration(file.SweepInterval)), slog.String("namespace", o.Namespace))
	if o.Once {
		return ctl.Once(ctx, stdout, !o.DryRun)
	}
	err = ctl.Run(ctx)
	log.Info("stopped")
	return err
}

func targetOf(a settings.Account, region string) awsapi.Target {
	return awsapi.Target{Region: region, RoleARN: a.Role, ExternalID: a.ExternalID, Account: a.AccountID()}
}

func newLogger(o Options, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.LogLevel)); err != nil {
		return nil, configError("--log-level: %q is not debug, info, warn or error", o.LogLevel)
	}
	opt := &slog.HandlerOptions{Level: level}
	if o.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opt)), nil
	}
	return slog.New(slog.NewTextHandler(w, opt)), nil
}

// replicaName names this process in the lease: a restarted container of one pod must not take itself for its predecessor.
func replicaName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	return fmt.Sprintf("%s_%d_%d", orDefault(os.Getenv("POD_NAME"), host), os.Getpid(), time.Now().UnixNano()%1_000_000)
}
