package webidentity

import (
	"fmt"
	"testing"
)

// The keys of accounts that come and go are kept for so many.
func TestAccountsAreBounded(t *testing.T) {
	v, err := NewVerifier(Config{Audience: "cluster.local", Issuer: func(string) (string, bool) { return "", false }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxAccounts {
		v.cache(fmt.Sprintf("%012d", i), "https://a.tokens.sts.global.api.aws")
		if n := len(v.caches); n > maxAccounts {
			t.Fatalf("the keys of %d accounts are kept, more than %d", n, maxAccounts)
		}
	}
}
