package cloud_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs"
	awsec2 "github.com/aws/aws-sdk-go-v2/service/ec2"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	awseks "github.com/aws/aws-sdk-go-v2/service/eks"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// call is one operation of the endpoint as one of AWS's own clients makes it. The calls of the table stand in the order in which
// they can be made: what furnishes an account, what reads it, what clears it out.
type call struct {
	op string // SERVICE.OPERATION, as Cloud.Operations names it
	do func(c *caller) error
	// foreign is the code that the second account gets, which has no EKS cluster; "" means the call works there as in the first.
	foreign string
}

// table returns all calls.
func table() (furnish, read, clear []call) {
	for _, part := range []func() (a, b, c []call){ec2Calls, iamCalls, ecsCalls, eksCalls, logsCalls, queueCalls, busCalls, stackCalls} {
		a, b, c := part()
		furnish, read, clear = append(furnish, a...), append(read, b...), append(clear, c...)
	}
	return furnish, read, clear
}

// caller is an account's administrator with a client of each service, and what the calls so far made.
type caller struct {
	ctx   context.Context
	lab   *lab
	cfg   aws.Config
	id    string // the account
	ids   map[string]string
	last  []byte // the body of the last answer
	first bool   // the account that has the EKS cluster

	ec2  *awsec2.Client
	ecs  *awsecs.Client
	eks  *awseks.Client
	iam  *awsiam.Client
	sts  *sts.Client
	logs *cloudwatchlogs.Client
	sqs  *sqs.Client
	bus  *eventbridge.Client
}

func (l *lab) caller(id, key, secret string) *caller {
	c := &caller{ctx: l.t.Context(), lab: l, cfg: l.config(key, secret, ""), id: id, ids: map[string]string{}, first: id == account}
	c.cfg.HTTPClient = c
	c.ec2, c.ecs, c.eks, c.iam = awsec2.NewFromConfig(c.cfg), awsecs.NewFromConfig(c.cfg), awseks.NewFromConfig(c.cfg), awsiam.NewFromConfig(c.cfg)
	c.sts, c.logs, c.sqs, c.bus = sts.NewFromConfig(c.cfg), cloudwatchlogs.NewFromConfig(c.cfg), sqs.NewFromConfig(c.cfg), eventbridge.NewFromConfig(c.cfg)
	return c
}

func (l *lab) callers() (first, second *caller) {
	return l.caller(account, "AKIALABADMIN00000001", "secret-one"), l.caller(account2, "AKIALABADMIN00000002", "secret-two")
}

// Do sends a request of a client and keeps the body of its answer.
func (c *caller) Do(r *http.Request) (*http.Response, error) {
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if c.last, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(c.last))
	return resp, nil
}

func of[T any](v T) *T { return &v }

// get returns what an earlier call set.
func (c *caller) get(name string) *string { return of(c.ids[name]) }

func (c *caller) set(name string, value *string) error {
	if value == nil || *value == "" {
		return errors.New("the answer lacks the " + name)
	}
	c.ids[name] = *value
	return nil
}

// arn is the name of something in the caller's account.
func (c *caller) arn(service, resource string) string {
	return "arn:aws:" + service + ":" + region + ":" + c.id + ":" + resource
}

// want is the error of a call, or that its answer is not the right one.
func want(err error, good func() bool) error {
	if err != nil || good() {
		return err
	}
	return errors.New("the answer is not what was expected")
}

// again repeats a call as long as it fails with one of the codes.
func (c *caller) again(do func() error, codes ...string) error {
	deadline := time.Now().Add(30 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := do()
		if err == nil || !slices.Contains(codes, code(err)) || time.Now().After(deadline) {
			return err
		}
		<-tick.C
	}
}

// query makes a call of a service for which this module has no client: AWS Query, signed as all are.
func (c *caller) query(service, version, op string, more url.Values) error {
	form := url.Values{"Action": {op}, "Version": {version}}
	for k, v := range more {
		form[k] = v
	}
	body := form.Encode()
	r, err := http.NewRequestWithContext(c.ctx, http.MethodPost, c.lab.url, strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	creds, err := c.cfg.Credentials.Retrieve(c.ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(body))
	if err := v4.NewSigner().SignHTTP(c.ctx, creds, r, hex.EncodeToString(sum[:]), service, region, time.Now()); err != nil {
		return err
	}
	resp, err := c.Do(r)
	if err != nil || resp.StatusCode == http.StatusOK {
		return err
	}
	var e struct {
		Code    string `xml:"Error>Code"`
		Message string `xml:"Error>Message"`
	}
	if err := xml.Unmarshal(c.last, &e); err != nil {
		return fmt.Errorf("status %d: %s", resp.StatusCode, c.last)
	}
	return &smithy.GenericAPIError{Code: e.Code, Message: e.Message}
}

// TestCallsAreInTheTable: every call that the endpoint answers has a row, and every row an operation.
func TestCallsAreInTheTable(t *testing.T) {
	t.Parallel()
	furnish, read, clear := table()
	rows := map[string]bool{}
	for _, c := range slices.Concat(furnish, read, clear) {
		rows[c.op] = true
	}
	l := newLab(t)
	served := map[string]bool{}
	for _, op := range l.cloud.Operations() {
		served[op] = true
		if !rows[op] {
			t.Errorf("%s is answered and has no row", op)
		}
	}
	for op := range rows {
		if !served[op] {
			t.Errorf("%s has a row and is not answered", op)
		}
	}
	for _, op := range guideCalls() {
		if !served[op] {
			t.Errorf("%s is called by the guide and is not answered", op)
		}
	}
}

// guideCalls are those that the guide's scripts make for its scenarios 2 and 3, with what their waiters ask.
func guideCalls() []string {
	var all []string
	for service, ops := range map[string]string{
		"ecs": "CreateCluster DescribeClusters TagResource ListTagsForResource ListClusters DeleteCluster RegisterTaskDefinition DescribeTaskDefinition " +
			"ListTaskDefinitions DeregisterTaskDefinition CreateService DescribeServices ListServices UpdateService DeleteService ListTasks DescribeTasks ExecuteCommand StopTask RunTask",
		"ec2": "DescribeVpcs DescribeSubnets DescribeSecurityGroups CreateSecurityGroup AuthorizeSecurityGroupIngress AuthorizeSecurityGroupEgress RevokeSecurityGroupIngress " +
			"RevokeSecurityGroupEgress DeleteSecurityGroup CreateVpc DeleteVpc ModifyVpcAttribute CreateSubnet DeleteSubnet CreateInternetGateway AttachInternetGateway " +
			"DetachInternetGateway DeleteInternetGateway DescribeInternetGateways AllocateAddress ReleaseAddress CreateNatGateway DeleteNatGateway DescribeNatGateways " +
			"CreateRouteTable AssociateRouteTable DeleteRouteTable DescribeRouteTables CreateRoute ReplaceRoute CreateVpcPeeringConnection AcceptVpcPeeringConnection " +
			"DeleteVpcPeeringConnection DescribeVpcPeeringConnections",
		"iam": "CreateRole GetRole ListPolicies CreatePolicy GetPolicy CreatePolicyVersion DeletePolicy AttachRolePolicy DetachRolePolicy ListAttachedRolePolicies PutRolePolicy " +
			"DeleteRolePolicy UpdateAssumeRolePolicy DeleteRole",
		"eks":                             "DescribeCluster ListClusters ListPodIdentityAssociations CreatePodIdentityAssociation UpdatePodIdentityAssociation DeletePodIdentityAssociation",
		"logs":                            "CreateLogGroup DeleteLogGroup FilterLogEvents",
		"sts":                             "GetCallerIdentity AssumeRole",
		"cloudformation":                  "DescribeStacks DescribeStackResource DeleteStack",
		"elasticloadbalancing/2012-06-01": "DescribeLoadBalancers DeleteLoadBalancer",
		"elasticloadbalancing/2015-12-01": "DescribeLoadBalancers DeleteLoadBalancer",
	} {
		for op := range strings.FieldsSeq(ops) {
			all = append(all, service+"."+op)
		}
	}
	return all
}

// throttleCode is how a service says that it is called too often.
func throttleCode(service string) string {
	return map[string]string{"ecs": "ThrottlingException", "ec2": "RequestLimitExceeded", "iam": "Throttling", "sts": "Throttling", "eks": "ThrottlingException",
		"logs": "ThrottlingException", "events": "ThrottlingException", "sqs": "RequestThrottled", "cloudformation": "Throttling", "elasticloadbalancing": "Throttling"}[service]
}

// TestCalls makes every call of the table in two accounts by turns, under the same names: what one account has must not be the
// other's. Ahead of each, the call is throttled in the first account: it is refused in the words of its service, once, and AWS's
// libraries try again. At the end, with reads gone stale, everything is cleared out, and every read answers as before.
func TestCalls(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	one, two := l.callers()
	furnish, read, clear := table()
	for _, row := range slices.Concat(furnish, read) {
		l.row(row, one, two)
	}
	l.eventually("nothing changes any more", func() bool {
		before := replies(one, read)
		return slices.Equal(before, replies(one, read))
	})
	before := replies(one, read)
	l.fault(awsserver.Fault{Kind: awsserver.FaultStale, Account: account})
	for _, row := range clear {
		l.row(row, one, two)
	}
	stale := replies(one, read)
	l.cloud.Faults().Clear(awsserver.Fault{})
	fresh := replies(one, read)
	for i, row := range read {
		if stale[i] != before[i] {
			t.Errorf("%s, gone stale, answers\n%s, want what it did before:\n%s", row.op, stale[i], before[i])
		}
		if fixed := fixedReads(); fresh[i] == before[i] != fixed[row.op] {
			t.Errorf("%s, after everything is gone, answers\n%s, as before: %v, want %v", row.op, fresh[i], !fixed[row.op], fixed[row.op])
		}
	}
}

// row makes one call in both accounts.
func (l *lab) row(row call, one, two *caller) {
	l.t.Helper()
	service, name, _ := strings.Cut(row.op, ".")
	service, _, _ = strings.Cut(service, "/")
	fault := awsserver.Fault{Kind: awsserver.FaultThrottle, Account: account, Call: service + "." + name}
	l.fault(fault)
	err := row.do(one)
	if got, want := code(err), throttleCode(service); got != want || !retry.NewStandard().IsErrorRetryable(err) {
		l.t.Errorf("%s, throttled: %v, want the code %s, which clients try again", row.op, err, want)
	}
	for _, f := range l.cloud.Faults().List() {
		if f.Kind == awsserver.FaultThrottle && f.Hits != 1 {
			l.t.Errorf("%s was throttled %d times, want once", row.op, f.Hits)
		}
	}
	if err := row.do(two); code(err) != row.foreign || row.foreign == "" && err != nil {
		l.t.Errorf("%s in the second account, which is not throttled: %v, want the code %q", row.op, err, row.foreign)
	}
	l.cloud.Faults().Clear(fault)
	if err := row.do(one); err != nil {
		l.t.Errorf("%s: %v", row.op, err)
	}
}

// replies makes calls and returns what was answered, without what is new in every answer.
func replies(c *caller, rows []call) []string {
	perAnswer := regexp.MustCompile(`<[Rr]equestI[dD]>[^<]*</[Rr]equestI[dD]>`)
	var out []string
	for _, row := range rows {
		c.last = nil
		err := row.do(c)
		out = append(out, cmp.Or(code(err), "ok")+" "+perAnswer.ReplaceAllString(string(c.last), ""))
	}
	return out
}

// fixedReads are those whose answers do not depend on what an account has made.
func fixedReads() map[string]bool {
	return map[string]bool{"sts.GetCallerIdentity": true, "ec2.DescribeAvailabilityZones": true, "eks.ListClusters": true, "eks.DescribeCluster": true,
		"cloudformation.DescribeStacks": true, "cloudformation.ListStacks": true, "cloudformation.DescribeStackResource": true, "cloudformation.DescribeStackResources": true,
		"elasticloadbalancing/2012-06-01.DescribeLoadBalancers": true, "elasticloadbalancing/2015-12-01.DescribeLoadBalancers": true}
	// EC2 shows a deleted NAT gateway, peering and instance for a while, but with another state, so those are not here.
}
