package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
)

// Registering an account touches that account alone and keeps what only the controller's file knows about it.
func TestRegistered(t *testing.T) {
	role := func(account, name string) string { return "arn:aws:iam::" + account + ":role/" + name }
	home := settings.Account{Role: role("123456789012", "istiod-local"), Domain: "ecs.local"}
	old := settings.Account{Role: role("210987654321", "old"), Domain: "old.example", ExternalID: "x"}
	want := settings.Account{Role: role("210987654321", "istiod-external"), Domain: "ecs.external", Regions: []string{"us-east-2"}}
	kept := want
	kept.ExternalID = "x"
	for _, c := range []struct {
		name   string
		have   []settings.Account
		remove bool
		want   []settings.Account
	}{
		{"new", []settings.Account{home}, false, []settings.Account{home, want}},
		{"again", []settings.Account{home, want}, false, []settings.Account{home, want}},
		{"changed", []settings.Account{old, home}, false, []settings.Account{kept, home}},
		{"removed", []settings.Account{home, old}, true, []settings.Account{home}},
		{"removed twice", []settings.Account{home}, true, []settings.Account{home}},
	} {
		if diff := cmp.Diff(c.want, registered(c.have, want, c.remove)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
