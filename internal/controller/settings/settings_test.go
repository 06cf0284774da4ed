package settings

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

const guide = `
platforms:
  ecs:
    accounts:
      - role: arn:aws:iam::123456789012:role/istiod-local
        domain: ecs.local
`

func TestGuidesShapeIsEnough(t *testing.T) {
	f, err := Parse([]byte(guide))
	if err != nil {
		t.Fatal(err)
	}
	want := File{
		Platforms:     Platforms{ECS: ECS{Accounts: []Account{{Role: "arn:aws:iam::123456789012:role/istiod-local", Domain: "ecs.local"}}}},
		SweepInterval: Duration(10 * time.Second), ClusterName: "Kubernetes", TrustDomain: "cluster.local",
		DiscoveryTags: []string{"ecs.solo.io/discovery-enabled"}, DeletionLimitPercent: 50,
	}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a := f.Platforms.ECS.Accounts[0]
	if a.AccountID() != "123456789012" || a.Partition() != "aws" {
		t.Errorf("account %q partition %q", a.AccountID(), a.Partition())
	}
	text, err := f.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(text)
	if err != nil {
		t.Fatalf("what Marshal wrote does not parse: %v\n%s", err, text)
	}
	again.APIVersion, again.Kind = "", ""
	if diff := cmp.Diff(f, again); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
}

func TestParseRefuses(t *testing.T) {
	account := func(s string) string { return "platforms: {ecs: {accounts: [" + s + "]}}" }
	role := "role: 'arn:aws:iam::123456789012:role/r'"
	tests := []struct{ name, yaml, want string }{
		{"unknown field", account("{" + role + ", reigon: x}"), `unknown field "reigon"`},
		{"no role", account("{domain: ecs.local}"), "platforms.ecs.accounts[0].role: required"},
		{"bad role", account("{role: 'arn:aws:iam::12:role/r'}"), "is not arn:aws:iam::ACCOUNT:role/NAME"},
		{"a user", account("{role: 'arn:aws:iam::123456789012:user/r'}"), "is not arn:aws:iam::ACCOUNT:role/NAME"},
		{"other id", account("{" + role + ", id: '999999999999'}"), "is not the account of the role"},
		{"bad id", account("{id: '99'}"), "is not 12 digits"},
		{"bad domain", account("{" + role + ", domain: 'ECS.local'}"), "is not a domain in lower case"},
		{"bad region", account("{" + role + ", regions: [Ohio]}"), `regions[0]: "Ohio" is not a region`},
		{"region twice", account("{" + role + ", regions: [us-east-2, us-east-2]}"), "listed twice"},
		{"account twice", account("{" + role + "}, {" + role + "}"), "account 123456789012 is already platforms.ecs.accounts[0]"},
		{"issuer of another host", account("{" + role + ", webIdentity: {enabled: true, issuer: 'https://evil.example'}}"), "accounts[0].webIdentity.issuer: \"https://evil.example\" is not an issuer of AWS"},
		{"no issuer", account("{" + role + ", webIdentity: {enabled: true}}"), "webIdentity.issuer"},
		{"unknown field of webIdentity", account("{" + role + ", webIdentity: {isuer: x}}"), `unknown field "isuer"`},
		{"fast", "sweepInterval: 10ms", "sweepInterval: 10ms is not between"},
		{"no duration", "sweepInterval: soon", "is not a duration such as 10s"},
		{"other kind", "kind: Deployment", "apiVersion and kind"},
		{"percent", "deletionLimitPercent: 101", "deletionLimitPercent: 101"},
		{"trust domain", "trustDomain: 'a b'", "trustDomain"},
		{"not yaml", "{", "yaml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.yaml))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Parse = %v, want %q", err, tt.want)
			}
			if diag.CodeOf(err) != diag.ConfigInvalid {
				t.Errorf("Parse error %v has code %q", err, diag.CodeOf(err))
			}
		})
	}
}

func TestParseTellsAllProblemsAtOnce(t *testing.T) {
	_, err := Parse([]byte("sweepInterval: 1ms\ndeletionLimitPercent: -1\nplatforms: {ecs: {accounts: [{domain: x}, {role: y}]}}"))
	for _, want := range []string{"sweepInterval", "deletionLimitPercent", "accounts[0].role", "accounts[1].role"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s: %v", want, err)
		}
	}
}
