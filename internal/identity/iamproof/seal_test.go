package iamproof_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

func TestSeal(t *testing.T) {
	p := proof(t)
	sealed, err := iamproof.Seal(p.Key, iamproof.TokenResponse{Token: "secret-token", Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(sealed), "secret-token") || strings.Contains(string(sealed), "shop") {
		t.Errorf("the answer is readable: %s", sealed)
	}
	if got, err := p.Open(sealed); err != nil || got.Token != "secret-token" {
		t.Errorf("Open() = %+v, %v", got, err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := iamproof.ParseProof(text)
	if err != nil || copied.Key != p.Key {
		t.Fatalf("ParseProof() = %+v, %v", copied, err)
	}
	other := proof(t)
	for name, open := range map[string]func([]byte) (iamproof.TokenResponse, error){"a copy": copied.Open, "another proof": other.Open} {
		if _, err := open(sealed); err == nil {
			t.Errorf("%s opened the answer", name)
		}
	}
	for i := range sealed {
		broken := []byte(string(sealed))
		broken[i] ^= 1
		if got, err := p.Open(broken); err == nil && got.Token != "secret-token" {
			t.Fatalf("an answer with byte %d changed was opened: %+v", i, got)
		}
	}
	for _, plain := range []string{`{"token":"x","namespace":"y"}`, `{}`, `{"sealed":""}`, `{"sealed":"AAAA"}`, `[]`, ""} {
		if got, err := p.Open([]byte(plain)); err == nil {
			t.Errorf("Open(%s) = %+v, want an error: nothing may pass that is not sealed", plain, got)
		}
	}
	for _, key := range []string{"", "AAAA", strings.Repeat("A", 43) + "=", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="} {
		if _, err := iamproof.Seal(key, iamproof.TokenResponse{}); !errors.Is(err, iamproof.ErrMalformed) {
			t.Errorf("Seal with key %q = %v, want an error", key, err)
		}
	}
}
