package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/cli/dump"
	"github.com/isthmus-mesh/isthmus/internal/cli/output"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/proxy/why"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/xds/local"
)

func (a *app) whyCommand() *cobra.Command {
	var f dumpFlags
	var q why.Query
	format := output.NewChoice("text", "text", "json", "yaml")
	c := &cobra.Command{
		Use: "why --from SOURCE DESTINATION:PORT", Short: "Would this connection be allowed, and which policy says so",
		Long: `Say whether policies let a connection pass, before anybody tries: the policies that the destination's proxy asks, in
order, the rule that decides or the first field that does not match, and what dry runs would have done.

SOURCE is CLUSTER/SERVICE, NAMESPACE/NAME of a pod, task, Deployment or service, a hostname, an address, or a SPIFFE id.
DESTINATION is CLUSTER/SERVICE, NAMESPACE/NAME, a hostname or an address, each with the port that the client calls.

The answer is that of a ztunnel: by default one of the DaemonSet in istio-system, with --pod another pod, with --task the
one of an ECS task, with --file a saved config dump. Istio's own ztunnel is asked for its config dump instead, which is
judged here. The exit code is 0 if the connection is allowed and 3 if it is denied.`,
		Example: `  isthmus why --from ecs-demo-1/shell-task ecs-demo-2/echo-service:8080
  isthmus why --from default/eks-shell echo-service.ecs-demo-1.ecs.local:8080 --task ecs-demo-1/echo-service
  isthmus why --from spiffe://cluster.local/ns/default/sa/eks-shell 10.0.128.9:8080 --source-address 10.0.1.5 -o json`,
		Args: exactArgs("DESTINATION:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.Destination = args[0]
			answer, err := a.askWhy(cmd.Context(), f, q)
			if err != nil {
				return err
			}
			if word := format.String(); word != "text" {
				err = output.Encode(a.Out, word, answer)
			} else {
				a.writeWhy(answer)
			}
			if err == nil && answer.Verdict != why.Allowed {
				return exitError{exitProblems}
			}
			return err
		},
	}
	c.Flags().StringVar(&q.Source, "from", "", "who connects (required)")
	c.Flags().StringVar(&q.SourceAddr, "source-address", "", "the address that the destination sees (default the source's own)")
	c.Flags().StringVarP(&f.file, "file", "f", "", "judge by a saved dump; - is standard input")
	c.Flags().StringVar(&f.pod, "pod", "", "ztunnel pod to ask, as name or namespace/name (default one of the DaemonSet's)")
	c.Flags().StringVar(&f.task, "task", "", "ECS task to ask, as cluster/service")
	c.Flags().VarP(&format, "output", "o", "text, json or yaml")
	c.MarkFlagsMutuallyExclusive("file", "pod", "task")
	_ = c.MarkFlagRequired("from")
	return c
}

// askWhy asks a proxy, or a dump where a proxy does not answer such questions.
func (a *app) askWhy(ctx context.Context, f dumpFlags, q why.Query) (*why.Answer, error) {
	if f.file == "" {
		code, body, err := a.askProxy(ctx, f, "/why?"+url.Values{"source": {q.Source}, "destination": {q.Destination}, "sourceAddress": {q.SourceAddr}}.Encode())
		if err != nil {
			return nil, err
		}
		answer, err := readWhy(code, body)
		if answer != nil || err != nil {
			return answer, err
		}
		a.Notef("isthmus: the proxy answers no such question, as Istio's own: judging by its config dump")
	}
	d, err := a.readDump(ctx, f)
	if err != nil {
		return nil, err
	}
	return whyOfDump(d, q)
}

// readWhy reads a proxy's answer; it is nil without an error when the proxy answers no such question.
func readWhy(code int, body []byte) (*why.Answer, error) {
	text, usage, ours := strings.Cut(string(body), "\nusage: GET /why")
	switch {
	case code == http.StatusOK:
		var answer why.Answer
		if err := json.Unmarshal(body, &answer); err != nil || answer.Verdict == "" {
			return nil, diag.Newf(diag.ProxyDumpUnreadable, "the proxy's answer is no verdict: %v", err)
		}
		return &answer, nil
	case ours && usage != "":
		return nil, unanswered(code == http.StatusNotFound, text)
	case code == http.StatusNotFound:
		return nil, nil
	}
	return nil, diag.Newf(diag.ProxyDumpUnreadable, "the proxy answers with status %d", code)
}

// maxAnswer bounds what is read of a proxy's answer.
const maxAnswer = 16 << 20

// askProxy asks the admin port of the proxy that the flags choose.
func (a *app) askProxy(ctx context.Context, f dumpFlags, path string) (code int, body []byte, err error) {
	if f.task != "" {
		return a.askTask(ctx, f.task, path)
	}
	k, err := a.kube()
	if err != nil {
		return 0, nil, err
	}
	resp, _, err := askPod(ctx, k, f.pod, path)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, body, err
}

// askTask asks from within a task, by curl, which tells the status after the body.
func (a *app) askTask(ctx context.Context, task, path string) (code int, body []byte, err error) {
	clusterName, name, err := splitService(task)
	if err != nil {
		return 0, nil, err
	}
	_, admin, err := a.open(ctx)
	if err != nil {
		return 0, nil, err
	}
	command := []string{"curl", "-sS", "--noproxy", "*", "-w", `\n%{http_code}`, fmt.Sprintf("http://127.0.0.1:%d%s", mesh.AdminPort, path)}
	out, exit, err := taskCommand(ctx, admin, clusterName, name, "", shellJoin(command))
	if err != nil {
		return 0, nil, err
	}
	i := strings.LastIndexByte(out, '\n')
	code, perr := strconv.Atoi(strings.TrimSpace(out[i+1:]))
	if exit != 0 || i < 0 || perr != nil {
		return 0, nil, diag.Newf(diag.ProxyDumpUnreadable, "curl in a task of %s/%s: %s", clusterName, name, out)
	}
	return code, []byte(out[:i]), nil
}

func unanswered(unknown bool, text string) error {
	if unknown {
		return diag.New(diag.WhyUnanswered, strings.TrimSpace(text))
	}
	return usageError{errors.New(strings.TrimSpace(text))}
}

// whyOfDump judges as the proxy would that gave the dump.
func whyOfDump(d *dump.Dump, q why.Query) (*why.Answer, error) {
	text, err := json.Marshal(d.Raw)
	if err != nil {
		return nil, err
	}
	u, err := local.ParseDump(bytes.NewReader(text))
	if err != nil {
		return nil, diag.Wrap(diag.ProxyDumpUnreadable, err)
	}
	var settings struct {
		Network, ClusterDomain, MissingPolicies string
	}
	if raw, ok := d.Raw["config"]; ok {
		if err := json.Unmarshal(raw, &settings); err != nil {
			return nil, diag.Wrap(diag.ProxyDumpUnreadable, err)
		}
	}
	// Istio's proxies have no such setting, and pass over policies that they do not know.
	q.Network, q.Domain, q.AllowMissing = settings.Network, settings.ClusterDomain, settings.MissingPolicies != "deny"
	store := state.NewStore()
	store.Apply(u)
	answer, err := why.Explain(store.Snapshot(), q)
	if refused, ok := errors.AsType[*why.Error](err); ok {
		return nil, unanswered(refused.NotFound, refused.Text)
	}
	return answer, err
}
