package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/dump"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// dumpFlags say whose config dump is wanted.
type dumpFlags struct {
	file      string
	pod       string
	task      string
	namespace string
}

func (a *app) ztunnelConfigCommand() *cobra.Command {
	return group(&cobra.Command{
		Use: "ztunnel-config", Aliases: []string{"zc"}, Short: "What a ztunnel knows, in istioctl's columns (guide part 4)",
		Long: `Show what a ztunnel knows: by default one of the DaemonSet in istio-system, with --pod another pod, with --task the one
of an ECS task (through ECS Exec), with --file a saved /config_dump.`,
		Example: `  isthmus ztunnel-config services
  isthmus ztunnel-config workloads -n ecs-demo-1
  isthmus ztunnel-config policies --task ecs-demo-1/echo-service
  isthmus ztunnel-config all --raw > dump.json && istioctl ztunnel-config workloads --file dump.json`,
	},
		a.dumpCommand("services", "service", "Services, their addresses and endpoints", (*dump.Dump).WriteServices),
		a.dumpCommand("workloads", "workload", "Workloads and the protocol that reaches them", (*dump.Dump).WriteWorkloads),
		a.dumpCommand("policies", "policy", "Authorization policies", (*dump.Dump).WritePolicies),
		a.dumpCommand("certificates", "certificate", "Certificates of the workloads it serves", func(d *dump.Dump, w io.Writer) { d.WriteCertificates(w, time.Now()) }),
		a.dumpAllCommand(),
		a.whyCommand(),
	)
}

func (f *dumpFlags) register(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "read a saved dump; - is standard input")
	c.Flags().StringVar(&f.pod, "pod", "", "ztunnel pod, as name or namespace/name (default one of the DaemonSet's)")
	c.Flags().StringVar(&f.task, "task", "", "ECS task, as cluster/service")
	c.Flags().StringVarP(&f.namespace, "namespace", "n", "", "only what is in this namespace")
	c.MarkFlagsMutuallyExclusive("file", "pod", "task")
}

// podArgument accepts the name of a pod the way istioctl takes it: NAME or NAME.NAMESPACE.
func (f *dumpFlags) podArgument(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usageError{fmt.Errorf("unexpected argument %q", args[1])}
	}
	if len(args) == 0 {
		return nil
	}
	if f.pod != "" || f.task != "" || f.file != "" {
		return usageError{fmt.Errorf("name the pod %q, or use --pod, --task or --file", args[0])}
	}
	f.pod = args[0]
	if name, ns, ok := strings.Cut(args[0], "."); ok {
		f.pod = ns + "/" + name
	}
	return nil
}

func (a *app) dumpCommand(name, alias, short string, write func(*dump.Dump, io.Writer)) *cobra.Command {
	var f dumpFlags
	format := output.NewChoice("table", "table", "short", "json", "yaml")
	c := &cobra.Command{
		Use: name + " [POD[.NAMESPACE]]", Aliases: []string{alias}, Short: short, Args: f.podArgument,
		Example: "  isthmus ztunnel-config " + name + "\n  isthmus ztunnel-config " + name + " -n ecs-demo-1 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readDump(cmd.Context(), f)
			if err != nil {
				return err
			}
			switch word := format.String(); word {
			case "json", "yaml":
				items, err := d.Items(name, f.namespace)
				if err != nil {
					return err
				}
				return output.Encode(a.Out, word, items)
			}
			write(d.Select(f.namespace), a.Out)
			return nil
		},
	}
	f.register(c)
	c.Flags().VarP(&format, "output", "o", "table, json or yaml; short is table, as istioctl says it")
	return c
}

func (a *app) dumpAllCommand() *cobra.Command {
	var f dumpFlags
	var raw bool
	c := &cobra.Command{
		Use: "all [POD[.NAMESPACE]]", Short: "Everything at once", Args: f.podArgument,
		Example: "  isthmus ztunnel-config all\n  isthmus ztunnel-config all --raw > dump.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := a.readDump(cmd.Context(), f)
			if err != nil {
				return err
			}
			if raw {
				return output.Encode(a.Out, "json", d.Raw)
			}
			d = d.Select(f.namespace)
			for i, write := range []func(io.Writer){d.WriteWorkloads, d.WriteServices, d.WritePolicies, func(w io.Writer) { d.WriteCertificates(w, time.Now()) }} {
				if i > 0 {
					a.Printf("\n")
				}
				write(a.Out)
			}
			return nil
		},
	}
	f.register(c)
	c.Flags().BoolVar(&raw, "raw", false, "the dump as the proxy gives it")
	return c
}

func (a *app) readDump(ctx context.Context, f dumpFlags) (d *dump.Dump, err error) {
	if f.file == "-" {
		return parseDump(a.In) // however long a person takes
	}
	err = a.Patiently("ask the proxy what it knows", func() error {
		d, err = a.askForDump(ctx, f)
		return err
	})
	return d, err
}

func (a *app) askForDump(ctx context.Context, f dumpFlags) (*dump.Dump, error) {
	switch {
	case f.file != "":
		file, err := os.Open(f.file)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return parseDump(file)
	case f.task != "":
		cluster, service, err := splitService(f.task)
		if err != nil {
			return nil, err
		}
		return a.taskDump(ctx, cluster, service)
	}
	k, err := a.kube()
	if err != nil {
		return nil, err
	}
	return podDump(ctx, k, f.pod)
}

func parseDump(r io.Reader) (*dump.Dump, error) {
	d, err := dump.Parse(r)
	if err != nil {
		return nil, diag.Wrap(diag.ProxyDumpUnreadable, err)
	}
	return d, nil
}

// podDump reads the dump of a ztunnel pod.
func podDump(ctx context.Context, k *kube.Client, pod string) (*dump.Dump, error) {
	resp, pod, err := askPod(ctx, k, pod, "/config_dump")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, diag.Newf(diag.ProxyDumpUnreadable, "pod %s answers %s", pod, resp.Status)
	}
	return parseDump(resp.Body)
}

// askPod asks the admin port of a ztunnel pod through the API server, by default one of the DaemonSet's, and returns the
// pod that answered.
func askPod(ctx context.Context, k *kube.Client, pod, path string) (*http.Response, string, error) {
	namespace := systemNamespace
	if ns, name, ok := strings.Cut(pod, "/"); ok {
		namespace, pod = ns, name
	}
	if pod == "" {
		pods, err := k.ListPods(ctx, namespace, "app=ztunnel")
		if err != nil {
			return nil, "", err
		}
		for _, p := range pods {
			if p.Ready {
				pod = p.Name
				break
			}
		}
		if pod == "" {
			return nil, "", diag.New(diag.ProxyDumpUnreadable, "no ztunnel pod in istio-system is ready")
		}
	}
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return k.Dial(ctx, namespace, pod, mesh.AdminPort)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ztunnel"+path, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("ask the proxy of pod %s/%s: %w", namespace, pod, err)
	}
	return resp, namespace + "/" + pod, nil
}
