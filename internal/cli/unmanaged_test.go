package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// unmanaged is an ECS with one service that another deployment controller rolls over. It writes down what it is asked.
type unmanaged struct {
	controller string
	mu         sync.Mutex
	calls      []string // guarded by mu
}

func (u *unmanaged) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	u.mu.Lock()
	u.calls = append(u.calls, op)
	u.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body)
	const arn = "arn:aws:ecs:us-east-2:123456789012:"
	switch op {
	case "DescribeClusters":
		fmt.Fprint(w, `{"clusters":[{"clusterArn":"`+arn+`cluster/ecs-live-1","clusterName":"ecs-live-1","status":"ACTIVE","tags":[{"key":"ecs.solo.io/discovery-enabled","value":"true"}]}]}`)
	case "DescribeServices":
		fmt.Fprintf(w, `{"services":[{"serviceArn":"`+arn+`service/ecs-live-1/web","serviceName":"web","clusterArn":"`+arn+`cluster/ecs-live-1","status":"ACTIVE","launchType":"FARGATE",
			"taskDefinition":"`+arn+`task-definition/web:1","deploymentController":{"type":%q}}]}`, u.controller)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}

// A service that CodeDeploy or a person's own system rolls over is refused, with what to do instead, before anything of
// it is read or changed: UpdateService would be refused by AWS, after a task definition was registered for nothing.
func TestServicesOfOtherDeploymentControllersAreRefused(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, controller := range []string{"CODE_DEPLOY", "EXTERNAL"} {
		for _, command := range []string{"add-service", "remove-service"} {
			for _, dryRun := range []string{"--dry-run=true", "--dry-run=false"} {
				t.Run(controller+" "+command+" "+dryRun, func(t *testing.T) {
					u := &unmanaged{controller: controller}
					srv := httptest.NewServer(u)
					defer srv.Close()
					for k, v := range map[string]string{"AWS_ENDPOINT_URL": srv.URL, "AWS_ACCESS_KEY_ID": "AKIAGOOD", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-2",
						"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none", "KUBECONFIG": kubeconfig} {
						t.Setenv(k, v)
					}
					t.Chdir(t.TempDir())
					var out, errw bytes.Buffer
					code := Run([]string{"ecs", command, "web", "--cluster", "ecs-live-1", dryRun}, nil, strings.NewReader(""), &out, &errw)
					for _, want := range []string{"[IST3119]", "deployment controller " + controller, "isthmus ecs render"} {
						if code != 1 || !strings.Contains(errw.String(), want) {
							t.Fatalf("exit code %d, want 1 and %q in:\n%s%s", code, want, out.String(), errw.String())
						}
					}
					for _, call := range u.calls {
						if !slices.Contains([]string{"DescribeClusters", "DescribeServices"}, call) {
							t.Errorf("%s was called", call)
						}
					}
				})
			}
		}
	}
}
