package controller

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions([]string{"--sts-endpoint=http://flag:1"}, []string{"ISTHMUS_STS_ENDPOINT=http://env:1", "ISTHMUS_LEASE_DURATION=3s", "POD_NAMESPACE=mesh"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.STSEndpoint != "http://flag:1" || o.LeaseDuration != 3*time.Second || o.Namespace != "mesh" || o.IstiodAddress != "istiod.mesh.svc:15012" {
		t.Errorf("options %+v", o)
	}
	for name, tt := range map[string]struct {
		args, env []string
		want      string
	}{
		"unknown flag": {[]string{"--nonsense"}, nil, "not defined"},
		"argument":     {[]string{"serve"}, nil, "unexpected argument"},
		"bad env":      {nil, []string{"ISTHMUS_LEASE_DURATION=soon"}, "ISTHMUS_LEASE_DURATION"},
		"bad format":   {[]string{"--log-format=xml"}, nil, "neither text nor json"},
		"short lease":  {[]string{"--lease-duration=1ms"}, nil, "too short"},
		"replicas":     {[]string{"--gateway-replicas=0"}, nil, "not between"},
		"rate":         {[]string{"--broker-role-rate=-1"}, nil, "must be positive"},
	} {
		if _, err := ParseOptions(tt.args, tt.env, io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// Trap 12: a token file that ends with a newline is one without it.
func TestTrap12OwnTokenWithANewline(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{"own-token": "own-token", "own-token\n": "own-token", "\n": ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readToken(file); got != want || (err != nil) != (want == "") {
			t.Errorf("token of %q = %q, %v", text, got, err)
		}
	}
}

func TestMainExitCodes(t *testing.T) {
	var out, errOut bytes.Buffer
	if code := Main(t.Context(), []string{"--version"}, nil, &out, &errOut); code != 0 || !strings.HasPrefix(out.String(), "isthmus-controller ") {
		t.Errorf("--version: %d %q", code, &out)
	}
	if code := Main(t.Context(), []string{"--nonsense"}, nil, &out, &errOut); code != 2 {
		t.Errorf("wrong usage: %d, want 2", code)
	}
	errOut.Reset()
	if code := Main(t.Context(), []string{"--config=" + t.TempDir() + "/none.yaml"}, nil, &out, &errOut); code != 1 || !strings.Contains(errOut.String(), "[IST3002]") || !strings.Contains(errOut.String(), "fix:") {
		t.Errorf("no configuration: %d\n%s", code, &errOut)
	}
	if code := Main(t.Context(), []string{"--help"}, nil, &out, &errOut); code != 0 || !strings.Contains(errOut.String(), "[ISTHMUS_STS_ENDPOINT]") {
		t.Errorf("--help: %d, does not name the variables", code)
	}
}
