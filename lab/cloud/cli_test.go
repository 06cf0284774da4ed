package cloud_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/isthmus-mesh/isthmus/internal/cli"
)

// environment sets up the environment of the test for this endpoint, in a directory of its own.
func (l *lab) environment(kubeconfig string) {
	l.t.Helper()
	for k, v := range map[string]string{"AWS_ENDPOINT_URL": l.url, "AWS_ACCESS_KEY_ID": "AKIALABADMIN00000001", "AWS_SECRET_ACCESS_KEY": "secret-one",
		"AWS_REGION": region, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "none", "AWS_SHARED_CREDENTIALS_FILE": "none", "KUBECONFIG": kubeconfig} {
		l.t.Setenv(k, v)
	}
	l.t.Chdir(l.t.TempDir())
}

// commandLine returns the command line in such an environment: it demands an exit code and gives back all that was written.
func (l *lab) commandLine(kubeconfig string) func(want int, args ...string) string {
	l.t.Helper()
	l.environment(kubeconfig)
	return func(want int, args ...string) string {
		l.t.Helper()
		var out, errw bytes.Buffer
		if code := cli.Run(args, []string{"AWS_REGION=" + region}, strings.NewReader(""), &out, &errw); code != want {
			l.t.Fatalf("isthmus %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, want, out.String(), errw.String())
		}
		return out.String() + errw.String()
	}
}

// TestInfrastructure runs the command line's infra commands against the endpoint: plan changes nothing, apply makes what
// plan said, a second apply has nothing to do, destroy takes back what apply made and leaves what was there before.
func TestInfrastructure(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	count := func(text, what string) int { return strings.Count(text, what) }

	planned := isthmus(0, "ecs", "infra", "plan")
	if n := count(planned, "create role"); n != 3 {
		t.Errorf("plan creates %d roles, want 3:\n%s", n, planned)
	}
	if again := isthmus(0, "ecs", "infra", "plan"); again != planned {
		t.Errorf("plan changed something:\n%s\nbefore:\n%s", again, planned)
	}
	applied := isthmus(0, "ecs", "infra", "apply")
	if strings.ReplaceAll(planned, " (dry run)", "") != applied {
		t.Errorf("apply did:\n%s\nplan said:\n%s", applied, planned)
	}
	if again := isthmus(0, "ecs", "infra"); !strings.HasSuffix(again, "everything is in place\n") || count(again, "\n") != 1 {
		t.Errorf("the second apply did:\n%s", again)
	}
	var file struct {
		Changes []string
		Roles   []struct {
			Name     string
			Policies map[string]json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(isthmus(0, "ecs", "infra", "plan", "-o", "json")), &file); err != nil || len(file.Roles) != 3 || len(file.Changes) != 0 {
		t.Errorf("plan -o json = %+v, %v", file, err)
	}

	isthmus(2, "ecs", "infra", "destroy")
	looked := isthmus(0, "ecs", "infra", "destroy", "--dry-run")
	destroyed := isthmus(0, "ecs", "infra", "destroy", "--yes")
	if strings.ReplaceAll(looked, " (dry run)", "") != destroyed || count(destroyed, "\nrole ") != 3 || count(destroyed, "association") != 1 || count(destroyed, "security group") != 1 {
		t.Errorf("destroy did:\n%s\nand had said:\n%s", destroyed, looked)
	}
	if again := isthmus(0, "ecs", "infra", "destroy", "--yes"); again != "" {
		t.Errorf("the second destroy did:\n%s", again)
	}
	if replanned := isthmus(0, "ecs", "infra", "plan"); count(replanned, "create") != count(planned, "create") {
		t.Errorf("after destroy plan says:\n%s\nat first it said:\n%s", replanned, planned)
	}
}

// TestInfrastructureWithWebIdentity checks that the task role of `isthmus ecs infra --web-identity` may have the token that
// ztunnel asks for, and no other; and that the right goes when it is no longer wanted.
func TestInfrastructureWithWebIdentity(t *testing.T) { //nolint:tparallel // it sets the environment
	l := newLab(t)
	isthmus := l.commandLine("none")
	enableFederation(t, l.admin())
	isthmus(0, "ecs", "infra", "apply", "--web-identity")
	l.cluster("c")
	l.registerWithRole("f", "arn:aws:iam::"+account+":role/ecs/ambient/eks-ecs-task-role", app("a"))
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	_, creds := get(t, l.cloud.TaskEndpoint(), l.rt.running("a")[0].env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"))
	task := l.config(creds["AccessKeyId"].(string), creds["SecretAccessKey"].(string), creds["Token"].(string))
	ask := func(change func(*sts.GetWebIdentityTokenInput)) error {
		t.Helper()
		_, err := askToken(t, task, change)
		return err
	}
	if again := isthmus(0, "ecs", "infra", "apply", "--web-identity"); !strings.HasSuffix(again, "everything is in place\n") {
		t.Errorf("the second apply did:\n%s", again)
	}
	if err := ask(nil); err != nil {
		t.Errorf("what ztunnel asks for: %v", err)
	}
	wantCode(t, "a token for somebody else", ask(func(in *sts.GetWebIdentityTokenInput) { in.Audience = []string{"https://api.example.com"} }), "AccessDenied")
	wantCode(t, "a token for another mesh", ask(func(in *sts.GetWebIdentityTokenInput) { in.Audience = []string{"isthmus-broker/other.mesh/x"} }), "AccessDenied")
	wantCode(t, "a longer token", ask(func(in *sts.GetWebIdentityTokenInput) { in.DurationSeconds = aws.Int32(300) }), "AccessDenied")
	isthmus(0, "ecs", "infra", "apply", "--web-identity=other.mesh")
	wantCode(t, "this mesh, after another was named", ask(nil), "AccessDenied")
	isthmus(0, "ecs", "infra", "apply")
	wantCode(t, "without --web-identity", ask(nil), "AccessDenied")
	isthmus(1, "ecs", "infra", "plan", "--web-identity=*")
}

// TestDestroyRefusesWhatIsInUse checks that roles which running services need stay.
func TestDestroyRefusesWhatIsInUse(t *testing.T) {
	l := newLab(t)
	l.environment("none")
	l.cluster("ecs-demo-1")
	l.service("ecs-demo-1", "web", l.register("web", app("web")), 1)
	var out, errw bytes.Buffer
	if code := cli.Run([]string{"ecs", "infra", "destroy", "--yes"}, nil, strings.NewReader(""), &out, &errw); code != 1 || !strings.Contains(errw.String(), "isthmus ecs cleanup") {
		t.Errorf("destroy with a service = exit code %d\n%s%s", code, out.String(), errw.String())
	}
}
