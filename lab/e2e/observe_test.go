package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"

	"github.com/isthmus-mesh/isthmus/internal/kube"
)

const denyPolicy = `{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: e2e-deny, namespace: ecs-demo-1},
spec: {action: DENY, rules: [{from: [{source: {namespaces: [ecs-demo-2]}}]}]}}`

// testIstioctl has upstream's istioctl read our proxies' state, from a file and through the API server.
func testIstioctl(t *testing.T, w *world) {
	w.apply(t, strings.ReplaceAll(denyPolicy, "ecs-demo-2", "nowhere"))
	t.Cleanup(func() {
		w.run(context.WithoutCancel(t.Context()), "kubectl", "delete", "authorizationpolicy", "-n", cluster1, "e2e-deny")
	})
	file := filepath.Join(t.TempDir(), "dump.json")
	await(t, short, "the dump of ztunnel holds the policy", func() (bool, string) {
		dump := w.must(t, "isthmus", "ztunnel-config", "all", "--raw")
		if err := os.WriteFile(file, []byte(dump), 0o600); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(dump, "e2e-deny"), "it does not"
	})
	for _, c := range []struct {
		kind string
		want [][]string // each of these sets of words is on one line
	}{
		{"workloads", [][]string{
			{"ecs-demo-1", taskID(w.task(t, cluster1, echo)), address(w.task(t, cluster1, echo)), "HBONE"},
			{"ecs-demo-2", taskID(w.task(t, cluster2, shell)), address(w.task(t, cluster2, shell)), "HBONE"},
			{"default", "eks-shell", "lab-node", "HBONE"},
			{"istio-system", "istiod", "lab-node", "TCP"},
		}},
		{"services", [][]string{
			{"ecs-demo-1", "ecs-service-123456789012-us-east-2-ecs-demo-1-echo-service", "240.240.", "1/1"},
			{"ecs-demo-2", "ecs-service-123456789012-us-east-2-ecs-demo-2-shell-task", "240.240.", "1/1"},
			{"default", "eks-echo", "10.96.", "1/1"},
		}},
		{"policies", [][]string{{"ecs-demo-1", "e2e-deny", "Deny", "Namespace"}}},
	} {
		for _, args := range [][]string{{"--file", file}, nil} {
			out := w.must(t, "istioctl", append([]string{"ztunnel-config", c.kind}, args...)...)
			for _, words := range c.want {
				if !hasLine(out, words) {
					t.Errorf("istioctl ztunnel-config %s %v has no line with %q:\n%s", c.kind, args, words, out)
				}
			}
		}
	}
	// The policy denies a namespace that nobody is in, and the proxies say so: asked by the API server, from within a task,
	// and by what istioctl reads.
	for _, args := range [][]string{nil, {"--task", cluster1 + "/" + echo}, {"--file", file}} {
		await(t, short, fmt.Sprintf("isthmus why %v knows the policy", args), func() (bool, string) {
			out := w.must(t, "isthmus", append([]string{"why", "--from", cluster2 + "/" + shell, cluster1 + "/" + echo + ":8080"}, args...)...)
			return strings.HasPrefix(out, "allowed: spiffe://cluster.local/ns/"+cluster2+"/") && hasLine(out, []string{"e2e-deny", "Deny", "no match", "is not nowhere"}), out
		})
	}
	status := w.must(t, "istioctl", "proxy-status")
	for _, service := range [][2]string{{cluster1, echo}, {cluster1, shell}, {cluster2, echo}, {cluster2, shell}} {
		if id := taskID(w.task(t, service[0], service[1])); !hasLine(status, []string{id + "." + service[0], "istiod-"}) {
			t.Errorf("istioctl proxy-status does not list task %s of %s:\n%s", id, service, status)
		}
	}
}

func hasLine(text string, words []string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return true
		}
	}
	return false
}

// testIdentity reads in the log of the called task's proxy who called.
func testIdentity(t *testing.T, w *world) {
	caller, called := w.task(t, cluster2, shell), w.task(t, cluster1, echo)
	begin := time.Now().Add(-time.Second)
	w.must(t, "isthmus", "ecs", "call", "--from", cluster2+"/"+shell, echoHost1)
	want := []string{
		"connection complete",
		"src.addr=" + address(caller) + ":",
		`src.identity="spiffe://cluster.local/ns/ecs-demo-2/sa/ecs-demo-sa-local"`,
		`src.namespace="ecs-demo-2"`,
		`src.workload="ecs-task-123456789012-us-east-2-ecs-demo-2-` + taskID(caller) + `"`,
		"dst.addr=" + address(called) + ":15008",
		"dst.hbone_addr=" + address(called) + ":8080",
		`dst.namespace="ecs-demo-1"`,
		`dst.identity="spiffe://cluster.local/ns/ecs-demo-1/sa/ecs-demo-sa-local"`,
		`dst.service="echo-service.ecs-demo-1.ecs.local"`,
		`direction="inbound"`,
	}
	await(t, short, "the proxy of the called task logs the call", func() (bool, string) {
		lines := w.proxyLog(t, taskID(called), begin)
		return hasLine(lines, want), "no line with all of " + strings.Join(want, ", ") + " in\n" + lines
	})
}

// proxyLog returns the access log of a task's proxy since a time, as it arrived in CloudWatch Logs.
func (w *world) proxyLog(t *testing.T, task string, since time.Time) string {
	t.Helper()
	var b strings.Builder
	pages := cloudwatchlogs.NewFilterLogEventsPaginator(w.logs, &cloudwatchlogs.FilterLogEventsInput{
		LogGroupName: aws.String(logGroup), LogStreamNamePrefix: aws.String("ztunnel"), StartTime: aws.Int64(since.UnixMilli()),
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			if strings.HasSuffix(aws.ToString(e.LogStreamName), "/"+task) && strings.Contains(aws.ToString(e.Message), "\taccess\t") {
				b.WriteString(strings.TrimRight(aws.ToString(e.Message), "\n") + "\n")
			}
		}
	}
	return b.String()
}

// testPolicyLatency measures how long a policy takes from kubectl to the first refused call, and back.
func testPolicyLatency(t *testing.T, w *world) {
	c := w.startCaller(t, w.task(t, cluster2, shell), echoHost1)
	for _, step := range []struct {
		name string
		args []string
		open bool
	}{
		{"deny", nil, false},
		{"allow again", []string{"delete", "authorizationpolicy", "-n", cluster1, "e2e-deny"}, true},
	} {
		before := len(c.calls(t))
		begin := time.Now()
		if step.args == nil {
			w.apply(t, denyPolicy)
		} else {
			w.must(t, "kubectl", step.args...)
		}
		applied := time.Now()
		var at time.Time
		await(t, short, "a call shows the policy's effect", func() (bool, string) {
			for _, one := range c.calls(t)[before:] {
				if one.failed() != step.open && one.at.After(begin) {
					at = one.at
					if one.failed() && (one.code != 56 || !strings.Contains(one.detail, "Connection reset by peer")) {
						t.Errorf("a refused call ended with %d %q, want 56 and a reset", one.code, one.detail)
					}
					return true, ""
				}
			}
			return false, "none does"
		})
		t.Logf("%s: first such call %s after kubectl began, %s after it ended", step.name, at.Sub(begin).Round(time.Millisecond), at.Sub(applied).Round(time.Millisecond))
		if took := at.Sub(applied); took > 5*time.Second {
			t.Errorf("%s took %s, want less than 5s", step.name, took)
		}
	}
	c.stop(t)
	if left, err := w.kube.List(t.Context(), kube.AuthzPolicies, "", ""); err != nil || len(left) > 0 {
		t.Errorf("policies left: %v, %v", left, err)
	}
}
