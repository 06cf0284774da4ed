package cli

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// systemNamespace is where istiod and isthmus-controller run.
const systemNamespace = "istio-system"

// controllerName is the name of the controller's Deployment, service account and configuration.
const controllerName = "isthmus-controller"

// fieldManager owns what the command line applies, apart from what the controller does.
const fieldManager = "isthmus"

// kube connects to the cluster that kubectl would use.
func (a *app) kube() (*kube.Client, error) {
	return kube.New(kube.Config{Kubeconfig: a.kubeconfig, Context: a.kubeCtx, Log: slog.New(slog.DiscardHandler)})
}

// apply server-side applies one object and says what that did.
func (a *app) apply(ctx context.Context, k *kube.Client, object map[string]any, dryRun bool) error {
	return a.applyAs(ctx, k, object, fieldManager, dryRun)
}

func (a *app) applyAs(ctx context.Context, k *kube.Client, object map[string]any, manager string, dryRun bool) error {
	o, err := kube.Encode(object)
	if err != nil {
		return err
	}
	text, err := o.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode %s: %w", kube.Ref(o), err)
	}
	results, err := k.ApplyYAML(ctx, text, kube.ApplyOptions{Manager: manager, DryRun: dryRun})
	for _, r := range results {
		if r.Err == nil {
			a.Notef("%s %s%s", r.Ref, r.Outcome, dryRunMark(dryRun))
		}
	}
	return err
}

func dryRunMark(dryRun bool) string {
	if dryRun {
		return " (dry run)"
	}
	return ""
}

// gatewayAddress returns the address at which the east-west gateway is reached.
func gatewayAddress(ctx context.Context, k *kube.Client, gateway string) (string, error) {
	ns, name, _ := strings.Cut(gateway, "/")
	o, err := k.Get(ctx, kube.Gateways, ns, name)
	if err != nil && !kube.IsNotFound(err) {
		return "", err
	}
	if err != nil || o == nil {
		return "", diag.Newf(diag.GatewayNotReady, "there is no Gateway %s", gateway)
	}
	var g kube.Gateway
	if err := kube.Decode(o, &g); err != nil {
		return "", err
	}
	for _, addr := range g.Status.Addresses {
		if addr.Value != "" {
			return addr.Value, nil
		}
	}
	return "", diag.Newf(diag.GatewayNotReady, "Gateway %s has no address in its status", gateway)
}

// podCommand runs a command in a pod and returns its exit code and what it wrote.
func podCommand(ctx context.Context, k *kube.Client, namespace, selector string, command ...string) (code int, stdout, stderr string, err error) {
	pods, err := k.ListPods(ctx, namespace, selector)
	if err != nil {
		return 0, "", "", err
	}
	for _, p := range pods {
		if !p.Ready {
			continue
		}
		var out, errw bytes.Buffer
		code, err := k.Exec(ctx, kube.ExecSpec{Namespace: namespace, Pod: p.Name, Command: command, Stdout: &out, Stderr: &errw})
		return code, out.String(), errw.String(), err
	}
	return 0, "", "", fmt.Errorf("no pod with %s in namespace %s is ready", selector, namespace)
}
