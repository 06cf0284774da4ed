package iam

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

func TestEvaluate(t *testing.T) {
	t.Parallel()
	const cluster = "arn:aws:ecs:us-east-2:123456789012:cluster/demo"
	ctx := map[string][]string{"ecs:cluster": {cluster}, "aws:requesttag/team": {"blue"}, "aws:tagkeys": {"team", "env"}, "n": {"5"}}
	for _, c := range []struct {
		name, statements string
		action, resource string
		want             awsserver.Decision
	}{
		{"nothing", `{"Effect":"Allow","Action":"s3:*","Resource":"*"}`, "ecs:ListTasks", "*", awsserver.DeniedByDefault},
		{"action wildcard", `{"Effect":"Allow","Action":"ecs:List*","Resource":"*"}`, "ecs:ListTasks", "*", awsserver.Allowed},
		{"action without case", `{"Effect":"Allow","Action":"ECS:listtasks","Resource":"*"}`, "ecs:ListTasks", "*", awsserver.Allowed},
		{"resource with case", `{"Effect":"Allow","Action":"*","Resource":"arn:x:A"}`, "ecs:X", "arn:x:a", awsserver.DeniedByDefault},
		{"resource wildcard", `{"Effect":"Allow","Action":"*","Resource":"arn:aws:ecs:*:*:cluster/d?mo"}`, "ecs:X", cluster, awsserver.Allowed},
		{"star resource of the call", `{"Effect":"Allow","Action":"*","Resource":"` + cluster + `"}`, "ecs:X", "*", awsserver.DeniedByDefault},
		{"deny wins", `{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":"ecs:X","Resource":"*"}`, "ecs:X", "*", awsserver.DeniedExplicitly},
		{"not action", `{"Effect":"Allow","NotAction":"iam:*","Resource":"*"}`, "iam:PassRole", "*", awsserver.DeniedByDefault},
		{"not resource", `{"Effect":"Allow","Action":"*","NotResource":"arn:a"}`, "x:y", "arn:b", awsserver.Allowed},
		{"arn like", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ArnLike":{"ecs:cluster":"arn:aws:ecs:*:*:cluster/de*"}}}`, "x:y", "*", awsserver.Allowed},
		{"arn equals other", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ArnEquals":{"ecs:cluster":"` + cluster + `2"}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"missing key", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"none":"x"}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"missing key if exists", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEqualsIfExists":{"none":"x"}}}`, "x:y", "*", awsserver.Allowed},
		{"missing key negated", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringNotEquals":{"none":"x"}}}`, "x:y", "*", awsserver.Allowed},
		{"negated list", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringNotEquals":{"aws:RequestTag/team":["red","blue"]}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"key without case", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringLike":{"AWS:requesttag/Team":"b*"}}}`, "x:y", "*", awsserver.Allowed},
		{"two conditions", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringLike":{"aws:RequestTag/team":"b*","none":"*"}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"null true", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"Null":{"none":"true"}}}`, "x:y", "*", awsserver.Allowed},
		{"null false", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"Null":{"none":false}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"all values", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ForAllValues:StringEquals":{"aws:TagKeys":["team"]}}}`, "x:y", "*", awsserver.DeniedByDefault},
		{"any value", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"ForAnyValue:StringEquals":{"aws:TagKeys":["env"]}}}`, "x:y", "*", awsserver.Allowed},
		{"numbers", `{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"NumericLessThan":{"n":6}}}`, "x:y", "*", awsserver.Allowed},
	} {
		doc, err := parseDocument(`{"Version":"2012-10-17","Statement":[`+c.statements+`]}`, identityPolicy)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := evaluate([]document{doc}, awsserver.Access{Action: c.action, Resource: c.resource, Context: ctx}); got != c.want {
			t.Errorf("%s: evaluate() = %d, want %d", c.name, got, c.want)
		}
	}
}

func TestParseDocumentRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		kind kind
	}{
		"not JSON":               {`{`, identityPolicy},
		"no statement":           {`{"Statement":[]}`, identityPolicy},
		"effect":                 {`{"Statement":{"Effect":"Maybe","Action":"*","Resource":"*"}}`, identityPolicy},
		"no action":              {`{"Statement":{"Effect":"Allow","Resource":"*"}}`, identityPolicy},
		"no vendor":              {`{"Statement":{"Effect":"Allow","Action":"List","Resource":"*"}}`, identityPolicy},
		"no resource":            {`{"Statement":{"Effect":"Allow","Action":"*"}}`, identityPolicy},
		"principal":              {`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Principal":"*"}}`, identityPolicy},
		"trust without":          {`{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole"}}`, trustPolicy},
		"trust with resource":    {`{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":"*","Resource":"*"}}`, trustPolicy},
		"unknown operator":       {`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"IpAddress":{"a":"b"}}}}`, identityPolicy},
		"unknown member":         {`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Actoin":"x"}}`, identityPolicy},
		"unknown principal type": {`{"Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"Robot":"x"}}}`, trustPolicy},
	} {
		if _, err := parseDocument(c.text, c.kind); err == nil {
			t.Errorf("%s: parseDocument(%s) succeeded", name, c.text)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["a:*"],"Resource":"*","Condition":{"Bool":{"k":true}}}}`)
	f.Fuzz(func(_ *testing.T, text string) {
		for _, k := range []kind{identityPolicy, trustPolicy} {
			if d, err := parseDocument(text, k); err == nil && k == identityPolicy {
				evaluate([]document{d}, awsserver.Access{Action: "a:b", Resource: "arn:x"})
			}
		}
	})
}
