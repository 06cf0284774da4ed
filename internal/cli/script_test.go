package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"isthmus":  func() { os.Exit(Run(os.Args[1:], os.Environ(), os.Stdin, os.Stdout, os.Stderr)) },
		"istioctl": func() { os.Exit(Main(os.Args, os.Environ(), os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the command line as a person would; each script is a story with the output it must have.
func TestScripts(t *testing.T) {
	aws := httptest.NewServer(http.HandlerFunc(fakeAWS))
	t.Cleanup(aws.Close)
	testscript.Run(t, testscript.Params{Dir: "testdata/script", UpdateScripts: os.Getenv("UPDATE") != "", Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status}, Setup: func(e *testscript.Env) error {
		programs, _, _ := strings.Cut(e.Getenv("PATH"), string(os.PathListSeparator))
		e.Setenv("PROGRAMS", programs) // the programs under test and nothing else
		for _, kv := range [][2]string{{"AWS_ENDPOINT_URL", aws.URL}, {"AWS_ACCESS_KEY_ID", "AKIAGOOD"}, {"AWS_SECRET_ACCESS_KEY", "secret"},
			{"AWS_EC2_METADATA_DISABLED", "true"}, {"KUBECONFIG", "none"}, {"AWS_CONFIG_FILE", "none"}, {"AWS_SHARED_CREDENTIALS_FILE", "none"}} {
			e.Setenv(kv[0], kv[1])
		}
		return nil
	}})
}

// status runs a command that must end with an exit code.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND [ARGUMENTS]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = strconv.Itoa(exit.ExitCode())
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// fakeAWS answers as far as the scripts get. The access key says what kind of caller it has.
func fakeAWS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	auth := r.Header.Get("Authorization")
	query := func(status int, xml string) {
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, xml)
	}
	failure := func(code, message string) {
		query(http.StatusForbidden, "<ErrorResponse><Error><Type>Sender</Type><Code>"+code+"</Code><Message>"+message+"</Message></Error></ErrorResponse>")
	}
	target := r.Header.Get("X-Amz-Target")
	switch {
	case strings.Contains(auth, "AKIAEXPIRED"):
		failure("ExpiredToken", "The security token included in the request is expired")
	case strings.Contains(auth, "AKIADENIED") && strings.Contains(string(body), "GetCallerIdentity"):
		failure("AccessDenied", "explicit deny")
	case strings.Contains(auth, "AKIASLOW"):
		select { // a test ends before this, or fails
		case <-r.Context().Done():
		case <-time.After(10 * time.Second):
		}
	case strings.Contains(string(body), "GetCallerIdentity"):
		query(http.StatusOK, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/t</Arn><UserId>U</UserId><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`)
	case strings.HasPrefix(r.URL.Path, "/clusters/"):
		w.Header().Set("X-Amzn-ErrorType", "ResourceNotFoundException")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"message":"No cluster found"}`)
	case strings.HasSuffix(target, ".ListClusters"):
		fmt.Fprint(w, `{"clusterArns":["arn:aws:ecs:us-east-2:123456789012:cluster/ecs-live-1"]}`)
	case strings.HasSuffix(target, ".ListServices"):
		fmt.Fprint(w, `{"serviceArns":["arn:aws:ecs:us-east-2:123456789012:service/ecs-live-1/web"]}`)
	case strings.HasSuffix(target, ".DescribeClusters"):
		fmt.Fprint(w, `{"clusters":[],"failures":[]}`)
	default:
		w.WriteHeader(http.StatusBadRequest)
	}
}
