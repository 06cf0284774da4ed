package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
	"github.com/isthmus-mesh/isthmus/internal/kube/kubetest"
)

const serviceEntry = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: echo
  namespace: ecs-demo-1
  labels: {app.kubernetes.io/managed-by: isthmus-controller}
spec:
  hosts: [echo.ecs-demo-1.ecs.local]
  ports: [{number: 8080, name: http, protocol: HTTP}]
`

func parse(t *testing.T, yaml string) *kube.Object {
	t.Helper()
	objs, err := kube.ParseYAML([]byte(yaml))
	if err != nil || len(objs) != 1 {
		t.Fatalf("ParseYAML = %d objects, %v; want 1", len(objs), err)
	}
	return objs[0]
}

func TestParseYAML(t *testing.T) {
	tests := []struct {
		name, yaml string
		want       []string
		wantErr    string
	}{
		{name: "two documents and an empty one", yaml: serviceEntry + "\n---\n# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n", want: []string{"ServiceEntry ecs-demo-1/echo", "Namespace shop"}},
		{name: "a list is unfolded", yaml: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n", want: []string{"Namespace a", "Namespace b"}},
		{name: "no name", yaml: "apiVersion: v1\nkind: Namespace\n", wantErr: "document 1: Namespace has no metadata.name"},
		{name: "no kind", yaml: "a: 1\n---\n", wantErr: "document 1: apiVersion and kind are required"},
		{name: "not yaml", yaml: "a: 1\n---\n{", wantErr: "document 1: apiVersion"},
		{name: "empty", yaml: "\n---\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objs, err := kube.ParseYAML([]byte(tt.yaml))
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("ParseYAML error = %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range objs {
				got = append(got, kube.Ref(o))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSame(t *testing.T) {
	tests := []struct {
		name   string
		change func(have *kube.Object)
		want   bool
	}{
		{"as written", func(*kube.Object) {}, true},
		{"server fields", func(o *kube.Object) { o.SetUID("x"); o.SetResourceVersion("9"); o.SetGeneration(3) }, true},
		{"somebody else's label", func(o *kube.Object) { label(o, "team", "blue") }, true},
		{"status", func(o *kube.Object) { o.Object["status"] = map[string]any{"addresses": []any{}} }, true},
		{"a stale label of ours", func(o *kube.Object) { label(o, "ecs.solo.io/host", "old") }, false},
		{"our label changed", func(o *kube.Object) { label(o, kube.ManagedByLabel, "me") }, false},
		{"a field more in the spec", func(o *kube.Object) { o.Object["spec"].(map[string]any)["resolution"] = "STATIC" }, false},
		{"a port more", func(o *kube.Object) {
			spec := o.Object["spec"].(map[string]any)
			spec["ports"] = append(slices.Clone(spec["ports"].([]any)), map[string]any{"number": int64(1), "name": "x"})
		}, false},
		{"another number type", func(o *kube.Object) {
			o.Object["spec"].(map[string]any)["ports"].([]any)[0].(map[string]any)["number"] = int64(8080)
		}, true},
		{"another number", func(o *kube.Object) {
			o.Object["spec"].(map[string]any)["ports"].([]any)[0].(map[string]any)["number"] = int64(8081)
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want, have := parse(t, serviceEntry), parse(t, serviceEntry)
			tt.change(have)
			if got := kube.Same(want, have); got != tt.want {
				t.Errorf("Same = %v, want %v", got, tt.want)
			}
		})
	}
}

func label(o *kube.Object, k, v string) {
	l := o.GetLabels()
	l[k] = v
	o.SetLabels(l)
}

func TestApplyWritesOnlyDifferences(t *testing.T) {
	ctx := t.Context()
	c := kubetest.New(t, "")
	want := parse(t, serviceEntry)
	if out, err := c.Client.Apply(ctx, want, nil); err != nil || out != kube.Created {
		t.Fatalf("Apply = %q, %v; want created", out, err)
	}
	have, err := c.Client.Get(ctx, kube.ServiceEntries, "ecs-demo-1", "echo")
	if err != nil {
		t.Fatal(err)
	}
	c.Writes()
	if out, err := c.Client.Apply(ctx, want, have); err != nil || out != kube.Unchanged {
		t.Fatalf("Apply again = %q, %v; want unchanged", out, err)
	}
	if w := c.Writes(); len(w) != 0 {
		t.Errorf("an apply that changes nothing wrote %v", w)
	}
	label(want, "app", "echo")
	if out, err := c.Client.Apply(ctx, want, have); err != nil || out != kube.Changed {
		t.Fatalf("Apply changed = %q, %v; want configured", out, err)
	}
}

func TestWriteAllGoesOnAfterAnError(t *testing.T) {
	ctx := t.Context()
	c := kubetest.New(t, serviceEntry)
	c.Fail(func(call string) error {
		if strings.HasPrefix(call, "patch serviceentries") && strings.HasSuffix(call, "/bad") {
			return errors.New("webhook says no")
		}
		return nil
	})
	var writes []kube.Write
	for _, name := range []string{"a", "bad", "c"} {
		o := parse(t, serviceEntry)
		o.SetName(name)
		writes = append(writes, kube.Write{Kind: kube.ServiceEntries, Want: o})
	}
	writes = append(writes, kube.Write{Kind: kube.ServiceEntries, Have: parse(t, serviceEntry)})
	results := c.Client.WriteAll(ctx, writes)
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s %s %v", r.Ref, r.Outcome, r.Err != nil))
	}
	want := []string{
		"ServiceEntry ecs-demo-1/a created false", "ServiceEntry ecs-demo-1/bad  true",
		"ServiceEntry ecs-demo-1/c created false", "ServiceEntry ecs-demo-1/echo deleted false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestApplyAndDeleteYAML(t *testing.T) {
	ctx := t.Context()
	c := kubetest.New(t, "")
	text := []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: nothing.io/v1\nkind: Unknown\nmetadata: {name: u}\n")
	results, err := c.Client.ApplyYAML(ctx, text, kube.ApplyOptions{Namespace: "shop"})
	if err == nil || len(results) != 3 {
		t.Fatalf("ApplyYAML = %v, %v; want 3 results and the unknown kind's error", results, err)
	}
	if results[0].Ref != "ConfigMap shop/a" || results[0].Outcome != kube.Created || results[1].Outcome != kube.Created {
		t.Errorf("ApplyYAML = %+v", results)
	}
	if diag.CodeOf(results[2].Err) != diag.WriteRefused {
		t.Errorf("unknown kind: error %v has no code", results[2].Err)
	}
	results, err = c.Client.DeleteYAML(ctx, text, kube.ApplyOptions{Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if results[0].Outcome != kube.Absent || results[2].Outcome != kube.Deleted {
		t.Errorf("DeleteYAML = %+v, want the unknown kind absent and the config map deleted", results)
	}
}

func TestDeleteByLabel(t *testing.T) {
	ctx := t.Context()
	other := strings.ReplaceAll(strings.ReplaceAll(serviceEntry, "name: echo", "name: other"), "isthmus-controller", "helm")
	c := kubetest.New(t, serviceEntry+"---"+other)
	if _, err := c.Client.DeleteByLabel(ctx, kube.ServiceEntries, "", ""); err == nil {
		t.Error("an empty selector was accepted")
	}
	results, err := c.Client.DeleteByLabel(ctx, kube.ServiceEntries, "", kube.ManagedByLabel+"="+kube.ManagedByValue)
	if err != nil || len(results) != 1 || results[0].Ref != "ServiceEntry ecs-demo-1/echo" {
		t.Fatalf("DeleteByLabel = %v, %v; want only ours", results, err)
	}
	if left, err := c.Client.List(ctx, kube.ServiceEntries, "", ""); err != nil || len(left) != 1 {
		t.Errorf("%d objects left, %v; want 1", len(left), err)
	}
}

func TestCacheFollows(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := kubetest.New(t, serviceEntry)
	k, err := c.Client.NewCache(kube.CacheConfig{Kind: kube.ServiceEntries})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	if err := k.Wait(ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if k.Get("ecs-demo-1", "echo") == nil || len(k.List()) != 1 {
		t.Fatalf("cache holds %d objects, want echo", len(k.List()))
	}
	o := parse(t, serviceEntry)
	o.SetName("second")
	if _, err := c.Client.Apply(ctx, o, nil); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(10 * time.Second)
	for {
		changed := k.Changed()
		if k.Get("ecs-demo-1", "second") != nil {
			break
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("the cache did not see the new object")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestCacheSaysWhyItIsEmpty(t *testing.T) {
	c := kubetest.New(t, "")
	c.Fail(func(call string) error {
		if strings.HasPrefix(call, "list workloadentries") {
			return errors.New("the server could not find the requested resource")
		}
		return nil
	})
	k, err := c.Client.NewCache(kube.CacheConfig{Kind: kube.WorkloadEntries})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	err = k.Wait(ctx, 500*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "could not find the requested resource") {
		t.Errorf("Wait = %v, want the API server's answer", err)
	}
	cancel()
	<-done
}

// Trap 11: Kubernetes refuses a token that is bound to a Secret as soon as the Secret goes; against a real API server this
// is in package controller (TestWithItsOwnRights).
func TestTrap11TokenLivesAsLongAsItsSecret(t *testing.T) {
	ctx := t.Context()
	c := kubetest.New(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: web, namespace: shop, annotations: {ecs.solo.io/role-arn: 'arn:aws:iam::1:role/x'}}\n")
	sa, err := c.Client.ServiceAccount(ctx, "shop", "web")
	if err != nil || sa.RoleARN != "arn:aws:iam::1:role/x" {
		t.Fatalf("ServiceAccount = %+v, %v", sa, err)
	}
	if _, err := c.Client.ServiceAccount(ctx, "shop", "none"); !kube.IsNotFound(err) {
		t.Errorf("absent service account: %v, want not found", err)
	}
	spec := kube.TokenSpec{Namespace: "shop", ServiceAccount: "web", Secret: "isthmus-task-abc", TaskID: "abc", TaskARN: "arn:task/abc", TTL: time.Hour}
	tok, err := c.Client.IssueToken(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client.IssueToken(ctx, spec); err != nil {
		t.Errorf("second token for the same Secret: %v", err)
	}
	if user, ok, err := c.Client.ReviewToken(ctx, tok.Value); err != nil || !ok || user != "system:serviceaccount:shop:web" {
		t.Errorf("ReviewToken = %q, %v, %v", user, ok, err)
	}
	other := spec
	other.TaskARN = "arn:task/other"
	if _, err := c.Client.IssueToken(ctx, other); err == nil || !strings.Contains(err.Error(), "belongs to something else") {
		t.Errorf("a Secret of another task was accepted: %v", err)
	}
	secrets, err := c.Client.TaskSecrets(ctx)
	if err != nil || len(secrets) != 1 || secrets[0].TaskID != "abc" || secrets[0].TaskARN != "arn:task/abc" {
		t.Fatalf("TaskSecrets = %+v, %v", secrets, err)
	}
	if err := c.Client.RevokeTask(ctx, secrets[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.RevokeTask(ctx, secrets[0]); err != nil {
		t.Errorf("revoking twice: %v", err)
	}
	if _, ok, err := c.Client.ReviewToken(ctx, tok.Value); err != nil || ok {
		t.Errorf("after revocation ReviewToken = %v, %v; want refused", ok, err)
	}
}

func TestReportCountsInsteadOfRepeating(t *testing.T) {
	c := kubetest.New(t, "")
	e := kube.Event{About: kube.NamespaceObject("ecs-demo-1"), Warning: true, Reason: "NamespaceMissing", Message: strings.Repeat("x", 2000)}
	for range 3 {
		if err := c.Client.Report(t.Context(), e, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Events(t); len(got) != 1 || !strings.HasPrefix(got[0], "Warning NamespaceMissing Namespace/ecs-demo-1: xxx") {
		t.Errorf("events = %.80q, want one", got)
	}
}

func TestLeadOneAtATime(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := kubetest.New(t, "")
	cfg := func(id string) kube.LeaseConfig {
		return kube.LeaseConfig{Namespace: "istio-system", Name: "l", Identity: id, Duration: 2 * time.Second}
	}
	firstCtx, stopFirst := context.WithCancel(ctx)
	leading, second := make(chan struct{}), make(chan struct{})
	firstReturned := make(chan struct{})
	firstDone, secondDone := make(chan error, 1), make(chan error, 1)
	go func() {
		firstDone <- c.Client.Lead(firstCtx, cfg("a"), func(ctx context.Context) error {
			close(leading)
			<-ctx.Done()
			close(firstReturned)
			return nil
		})
	}()
	<-leading
	go func() {
		secondDone <- c.Client.Lead(ctx, cfg("b"), func(context.Context) error {
			select {
			case <-firstReturned:
			default:
				t.Error("two leaders at once")
			}
			close(second)
			return errors.New("enough")
		})
	}()
	stopFirst()
	if err := <-firstDone; err != nil {
		t.Errorf("first Lead = %v", err)
	}
	select {
	case <-second:
	case <-ctx.Done():
		t.Fatal("the second never led")
	}
	if err := <-secondDone; err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("second Lead = %v, want its own error", err)
	}
}

func TestNewReadsKubeconfig(t *testing.T) {
	var path string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path = r.URL.Path
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{name: c, cluster: {insecure-skip-tls-verify: true, server: '" + srv.URL + "'}}]\nusers: [{name: u, user: {token: secret}}, {name: v, user: {token: wrong}}]\ncontexts: [{name: a, context: {cluster: c, user: u, namespace: shop}}, {name: b, context: {cluster: c, user: v}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	c, err := kube.New(kube.Config{Kubeconfig: file, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if c.Namespace() != "shop" || c.Server() != srv.URL {
		t.Errorf("namespace %q server %q", c.Namespace(), c.Server())
	}
	if err := c.Ready(t.Context()); err != nil || path != "/readyz" {
		t.Errorf("Ready = %v, asked %q", err, path)
	}
	c, err = kube.New(kube.Config{Kubeconfig: file, Context: "b", Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); diag.CodeOf(err) != diag.KubeForbidden {
		t.Errorf("Ready with a wrong token = %v, want %s", err, diag.KubeForbidden)
	}
	srv.Close()
	if err := c.Ready(t.Context()); diag.CodeOf(err) != diag.KubeUnreachable {
		t.Errorf("Ready without a server = %v, want %s", err, diag.KubeUnreachable)
	}
	if _, err := kube.New(kube.Config{Kubeconfig: filepath.Join(t.TempDir(), "none"), Log: log}); diag.CodeOf(err) != diag.KubeUnreachable {
		t.Errorf("New without a file = %v, want %s", err, diag.KubeUnreachable)
	}
	if _, err := kube.New(kube.Config{Kubeconfig: file}); err == nil || !strings.Contains(err.Error(), "Config.Log is required") {
		t.Errorf("New without a log = %v", err)
	}
}

func TestEncodeDropsServerFields(t *testing.T) {
	type meta struct {
		Name            string `json:"name"`
		UID             string `json:"uid,omitempty"`
		ResourceVersion string `json:"resourceVersion,omitempty"`
	}
	type thing struct {
		Kind     string `json:"kind"`
		Metadata meta   `json:"metadata"`
	}
	o, err := kube.Encode(thing{Kind: "T", Metadata: meta{Name: "n", UID: "u", ResourceVersion: "3"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"kind": "T", "metadata": map[string]any{"name": "n"}}
	if diff := cmp.Diff(want, o.Object); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var back thing
	if err := kube.Decode(o, &back); err != nil || back.Metadata.Name != "n" {
		t.Errorf("Decode = %+v, %v", back, err)
	}
	if _, err := kube.Encode(thing{}); err == nil {
		t.Error("Encode accepted an object without a name")
	}
}
