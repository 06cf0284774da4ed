package cloud_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
)

// TestBusToBus sends events of another account and of another region to one queue, over the default buses, with the rights that
// AWS asks for: the rule's role must be let put events, and a bus of another account must let it.
func TestBusToBus(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	url := l.queue("central", "central")
	l.rule("central", `{"source":["far"]}`, queueARN("central"))
	bus := func(account, region string) string {
		return "arn:aws:events:" + region + ":" + account + ":event-bus/default"
	}
	home := bus(account, region)

	second := l.config("AKIALABADMIN00000002", "secret-two", "")
	elsewhere := l.admin()
	elsewhere.Region = "eu-west-1"
	roles := map[string]string{}
	forward := func(name string, cfg aws.Config, to string) *eventbridge.Client {
		t.Helper()
		eb, id := eventbridge.NewFromConfig(cfg), awsiam.NewFromConfig(cfg)
		trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"events.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
		roles[name] = *must(id.CreateRole(ctx, &awsiam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &trust}))(t).Role.Arn
		must(eb.PutRule(ctx, &eventbridge.PutRuleInput{Name: &name, EventPattern: aws.String(`{"source":["far"]}`)}))(t)
		put := func(target ebtypes.Target) string {
			out := must(eb.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: &name, Targets: []ebtypes.Target{target}}))(t)
			if len(out.FailedEntries) > 0 {
				return *out.FailedEntries[0].ErrorCode
			}
			return ""
		}
		if got := put(ebtypes.Target{Id: aws.String("bus"), Arn: &to}); got != "ValidationException" {
			t.Errorf("%s: a target without a role: code %q", name, got)
		}
		if got := put(ebtypes.Target{Id: aws.String("bus"), Arn: &to, RoleArn: of(roles[name])}); got != "" {
			t.Errorf("%s: code %q", name, got)
		}
		return eb
	}
	let := func(cfg aws.Config, role, to string) {
		t.Helper()
		policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"events:PutEvents","Resource":"` + to + `"}]}`
		must(awsiam.NewFromConfig(cfg).PutRolePolicy(ctx, &awsiam.PutRolePolicyInput{RoleName: &role, PolicyName: aws.String("p"), PolicyDocument: &policy}))(t)
	}
	came := func(from *eventbridge.Client) (origins []string) {
		t.Helper()
		out := must(from.PutEvents(ctx, &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{{Source: aws.String("far"), DetailType: aws.String("x"), Detail: aws.String(`{"a":1}`)}}}))(t)
		for _, m := range l.receive(url) {
			var e struct{ ID, Account, Region, Source string }
			if err := json.Unmarshal([]byte(*m.Body), &e); err != nil || e.ID != *out.Entries[0].EventId || e.Source != "far" {
				t.Errorf("the event came as %s, %v", *m.Body, err)
			}
			origins = append(origins, e.Account+" "+e.Region)
		}
		return origins
	}
	check := func(what string, got []string, want ...string) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: events of %v came, want those of %v", what, got, want)
		}
	}

	region2 := forward("to-region", elsewhere, home)
	check("another region, without a right of the role", came(region2))
	let(elsewhere, "to-region", home)
	check("another region", came(region2), account+" eu-west-1")

	account2Bus := forward("to-account", second, home)
	let(second, "to-account", home)
	check("another account, without a right from the bus", came(account2Bus))
	central := l.bridge()
	must(central.PutPermission(ctx, &eventbridge.PutPermissionInput{Action: aws.String("events:PutEvents"), Principal: aws.String("999999999999"), StatementId: aws.String("them")}))(t)
	check("another account, that is not the one the bus lets", came(account2Bus))
	must(central.PutPermission(ctx, &eventbridge.PutPermissionInput{Action: aws.String("events:PutEvents"), Principal: aws.String(account2), StatementId: aws.String("them")}))(t)
	check("another account", came(account2Bus), account2+" "+region)

	// What came over a bus goes no further, and not back.
	onward := forward("onward", l.admin(), bus(account, "eu-west-1"))
	let(l.admin(), "onward", bus(account, "eu-west-1"))
	check("to the bus it came from and on", came(account2Bus), account2+" "+region)
	check("from home to another region and back, which is no further", came(onward), account+" "+region)

	must(central.RemovePermission(ctx, &eventbridge.RemovePermissionInput{StatementId: aws.String("them")}))(t)
	check("another account, after its right is gone", came(account2Bus))
	policy := `{"Version":"2012-10-17","Statement":[{"Sid":"role","Effect":"Allow","Principal":{"AWS":"` + roles["to-account"] + `"},"Action":"events:PutEvents","Resource":"` + home + `"}]}`
	must(central.PutPermission(ctx, &eventbridge.PutPermissionInput{Policy: &policy}))(t)
	check("the role of another account by a policy", came(account2Bus), account2+" "+region)
	for name, target := range map[string]string{"its own bus": home, "a bus that is not there": "arn:aws:events:" + region + ":" + account + ":event-bus/mine"} {
		out := must(central.PutTargets(ctx, &eventbridge.PutTargetsInput{Rule: aws.String("central"), Targets: []ebtypes.Target{{Id: aws.String("x"), Arn: of(target), RoleArn: of(roles["onward"])}}}))(t)
		if out.FailedEntryCount != 1 {
			t.Errorf("a rule could send to %s", name)
		}
	}
}
