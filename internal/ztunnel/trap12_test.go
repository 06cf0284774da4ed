package ztunnel

import (
	"os"
	"path/filepath"
	"testing"
)

// Trap 12: whoever writes a token file by hand, or with an editor, ends it with a newline, which no header may hold.
func TestTrap12TokenFileWithANewline(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for _, text := range []string{"header.payload.signature", "header.payload.signature\n", "header.payload.signature\r\n", " header.payload.signature \n\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := tokenOf(file)(t.Context()); err != nil || got != "header.payload.signature" {
			t.Errorf("token of %q = %q, %v", text, got, err)
		}
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := tokenOf(file)(t.Context()); err == nil {
		t.Errorf("an empty file became the token %q", got)
	}
}
