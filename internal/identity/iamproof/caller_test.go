package iamproof_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/identity/iamproof"
)

const (
	taskID  = "0123456789abcdef0123456789abcdef"
	roleARN = "arn:aws:sts::123456789012:assumed-role/eks-ecs-task-role/" + taskID
	userID  = "AROAQWERTYUIOPASDFGHJ:" + taskID
)

func answer(account, arn, user string) string {
	return fmt.Sprintf(`{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Account":%q,"Arn":%q,"UserId":%q},"ResponseMetadata":{"RequestId":"x"}}}`, account, arn, user)
}

func TestParseCallerIdentity(t *testing.T) {
	got, err := iamproof.ParseCallerIdentity([]byte(answer("123456789012", roleARN, userID)), "application/json; charset=utf-8")
	want := iamproof.CallerIdentity{Partition: "aws", Account: "123456789012", RoleName: "eks-ecs-task-role", SessionName: taskID, UserID: userID}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("ParseCallerIdentity: %v (-want +got):\n%s", err, diff)
	}
	if got.RoleID() != "AROAQWERTYUIOPASDFGHJ" {
		t.Errorf("RoleID() = %s", got.RoleID())
	}
	for _, partition := range []string{"aws-cn", "aws-us-gov"} {
		arn := strings.Replace(roleARN, "arn:aws:", "arn:"+partition+":", 1)
		got, err := iamproof.ParseCallerIdentity([]byte(answer("123456789012", arn, userID)), "application/json")
		if err != nil || got.Partition != partition {
			t.Errorf("ParseCallerIdentity(%s) = %+v, %v", partition, got, err)
		}
	}
}

func TestParseCallerIdentityRefuses(t *testing.T) {
	const acc = "123456789012"
	good := answer(acc, roleARN, userID)
	tests := []struct {
		name, body, media string
		want              error
	}{
		{"XML", "<GetCallerIdentityResponse/>", "text/xml", iamproof.ErrAnswer},
		{"XML said to be JSON", "<GetCallerIdentityResponse/>", "application/json", iamproof.ErrAnswer},
		{"no media type", good, "", iamproof.ErrAnswer},
		{"HTML", good, "text/html", iamproof.ErrAnswer},
		{"nothing", "", "application/json", iamproof.ErrAnswer},
		{"a list", "[]", "application/json", iamproof.ErrAnswer},
		{"text after it", good + "{}", "application/json", iamproof.ErrAnswer},
		{"too large", strings.Repeat(" ", 65<<10) + good, "application/json", iamproof.ErrAnswer},
		{"another action's answer", strings.ReplaceAll(good, "GetCallerIdentity", "AssumeRole"), "application/json", iamproof.ErrAnswer},
		{"key twice", strings.Replace(good, `"Account":`, `"Account":"999999999999","Account":`, 1), "application/json", iamproof.ErrAnswer},
		{"result twice", strings.Replace(good, `"GetCallerIdentityResult":`, `"GetCallerIdentityResult":{},"GetCallerIdentityResult":`, 1), "application/json", iamproof.ErrAnswer},
		{"key in another case", strings.Replace(good, `"Account"`, `"account"`, 1), "application/json", iamproof.ErrAnswer},
		{"no ARN", strings.Replace(good, `"Arn"`, `"Other"`, 1), "application/json", iamproof.ErrAnswer},
		{"null ARN", strings.Replace(good, `"`+roleARN+`"`, `null`, 1), "application/json", iamproof.ErrAnswer},
		{"number as account", strings.Replace(good, `"`+acc+`"`, acc, 1), "application/json", iamproof.ErrAnswer},
		{"cut off", good[:len(good)-3], "application/json", iamproof.ErrAnswer},
		{"user", answer(acc, "arn:aws:iam::123456789012:user/bob", "AIDAQWERTYUIOPASDFGHJ"), "application/json", iamproof.ErrNotAssumed},
		{"root", answer(acc, "arn:aws:iam::123456789012:root", acc), "application/json", iamproof.ErrNotAssumed},
		{"federated user", answer(acc, "arn:aws:sts::123456789012:federated-user/bob", acc+":bob"), "application/json", iamproof.ErrNotAssumed},
		{"role itself", answer(acc, "arn:aws:iam::123456789012:role/x", userID), "application/json", iamproof.ErrNotAssumed},
		{"longer resource type", answer(acc, "arn:aws:sts::123456789012:assumed-role-x/r/"+taskID, userID), "application/json", iamproof.ErrNotAssumed},
		{"another partition", answer(acc, strings.Replace(roleARN, "aws", "evil", 1), userID), "application/json", iamproof.ErrAnswer},
		{"a region in it", answer(acc, "arn:aws:sts:us-east-2:123456789012:assumed-role/r/"+taskID, userID), "application/json", iamproof.ErrAnswer},
		{"role with a path", answer(acc, "arn:aws:sts::123456789012:assumed-role/p/r/"+taskID, userID), "application/json", iamproof.ErrAnswer},
		{"no session", answer(acc, "arn:aws:sts::123456789012:assumed-role/r", userID), "application/json", iamproof.ErrAnswer},
		{"empty role", answer(acc, "arn:aws:sts::123456789012:assumed-role//"+taskID, userID), "application/json", iamproof.ErrAnswer},
		{"colon in the session", answer(acc, roleARN+":x", userID+":x"), "application/json", iamproof.ErrAnswer},
		{"newline in the session", answer(acc, roleARN+"\n", userID+"\n"), "application/json", iamproof.ErrAnswer},
		{"account of another", answer("999999999999", roleARN, userID), "application/json", iamproof.ErrAnswer},
		{"short account", answer("12345", "arn:aws:sts::12345:assumed-role/r/"+taskID, userID), "application/json", iamproof.ErrAnswer},
		{"user id of another session", answer(acc, roleARN, "AROAQWERTYUIOPASDFGHJ:other"), "application/json", iamproof.ErrAnswer},
		{"user id without a session", answer(acc, roleARN, "AROAQWERTYUIOPASDFGHJ"), "application/json", iamproof.ErrAnswer},
		{"not an ARN", answer(acc, "role", userID), "application/json", iamproof.ErrAnswer},
	}
	for _, tt := range tests {
		if got, err := iamproof.ParseCallerIdentity([]byte(tt.body), tt.media); !errors.Is(err, tt.want) {
			t.Errorf("%s: ParseCallerIdentity() = %+v, %v, want %v", tt.name, got, err, tt.want)
		}
	}
}

func FuzzParseCallerIdentity(f *testing.F) {
	f.Add([]byte(answer("123456789012", roleARN, userID)))
	f.Add([]byte(`{"GetCallerIdentityResponse":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := iamproof.ParseCallerIdentity(body, "application/json")
		if err != nil {
			return
		}
		arn := fmt.Sprintf("arn:%s:sts::%s:assumed-role/%s/%s", c.Partition, c.Account, c.RoleName, c.SessionName)
		again, err := iamproof.ParseCallerIdentity([]byte(answer(c.Account, arn, c.UserID)), "application/json")
		if err != nil || again != c {
			t.Errorf("ParseCallerIdentity of what it said = %+v, %v, want %+v", again, err, c)
		}
	})
}
