package cloud_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"

	"github.com/isthmus-mesh/isthmus/lab/cloud/ecs"
	"github.com/isthmus-mesh/isthmus/test/clients"
)

// TestSessionManagerPlugin runs AWS's own client against the data channel, the way "aws ecs execute-command" starts it.
func TestSessionManagerPlugin(t *testing.T) {
	t.Parallel()
	plugin := filepath.Join(clients.SessionManagerPlugin(t), "session-manager-plugin")
	l := newLab(t)
	l.rt.exec = func(_ *fakeContainer, spec ecs.ExecSpec) (int, error) {
		if _, err := fmt.Fprintf(spec.Stdout, "ready\r\n"); err != nil {
			return 0, err
		}
		line := make([]byte, 100)
		n, err := spec.Stdin.Read(line)
		if err != nil {
			return 0, err
		}
		_, err = fmt.Fprintf(spec.Stdout, "%s got %q, %s\r\n", spec.Command, line[:n], strings.Repeat("x", 5000))
		return 7, err
	}
	l.cluster("c")
	l.register("f", app("a"))
	arn := l.run("c", "f")
	l.eventually("the task runs", func() bool { return *l.task("c", arn).LastStatus == "RUNNING" })
	out := must(l.ecs().ExecuteCommand(t.Context(), &awsecs.ExecuteCommandInput{Cluster: aws.String("c"), Task: aws.String(arn), Command: aws.String("sh -c date"), Interactive: true}))(t)
	session, err := json.Marshal(map[string]string{"SessionId": *out.Session.SessionId, "StreamUrl": *out.Session.StreamUrl, "TokenValue": *out.Session.TokenValue})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), plugin, string(session), region, "StartSession", "", `{"Target":"ecs:c_x_y"}`, l.url)
	cmd.WaitDelay = 5 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	cmd.Stdout, cmd.Stderr = &got, &got
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "typed\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("plugin: %v", err)
	}
	for _, want := range []string{"Starting session with SessionId", "ready\r\n", `[sh -c date] got "typed`, strings.Repeat("x", 5000) + "\r\n", "Exiting session with sessionId"} {
		if !strings.Contains(got.String(), want) {
			t.Errorf("output lacks %.40q:\n%s", want, got.String())
		}
	}
}
