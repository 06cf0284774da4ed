// Package admin makes the AWS calls with which the command line and the lab set things up, beyond what discovery may do.
//
// It is apart from awsapi so that the controller, which only reads, links none of it: IAM, EKS, EC2 and CloudWatch Logs
// are megabytes of code and rights that the controller must not have.
package admin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// Client makes the administrative calls of one account and region. It is safe for concurrent use.
type Client struct {
	*awsapi.ECS
	cfg     aws.Config
	session *awsapi.Session
	account string // whose request limits raw calls draw from; "" is the session's own
	calls   calls
	ecs     struct { // where raw ECS calls go
		url    string
		region string
	}
}

// New returns the calls of a target.
func New(ctx context.Context, s *awsapi.Session, t awsapi.Target) (*Client, error) {
	cfg, err := s.SDKConfig(t)
	if err != nil {
		return nil, err
	}
	read, err := awsapi.NewECS(s, t)
	if err != nil {
		return nil, err
	}
	a := &Client{ECS: read, cfg: cfg, session: s, account: t.AccountID(), calls: newCalls(cfg)}
	opt := ecs.NewFromConfig(cfg).Options()
	ep, err := opt.EndpointResolverV2.ResolveEndpoint(ctx, ecs.EndpointParameters{Region: aws.String(cfg.Region), Endpoint: opt.BaseEndpoint})
	if err != nil {
		return nil, fmt.Errorf("find the ecs endpoint of %s: %w", cfg.Region, err)
	}
	a.ecs.url, a.ecs.region = ep.URI.String(), cfg.Region
	return a, nil
}

// Region is the region of the calls.
func (a *Client) Region() string { return a.cfg.Region }

// Account returns the account id and ARN of the caller.
func (a *Client) Account(ctx context.Context) (account, arn string, err error) {
	out, err := a.calls.getCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", "", fmt.Errorf("ask aws who we are: %w", err)
	}
	return aws.ToString(out.Account), aws.ToString(out.Arn), nil
}

// maxRawAnswer bounds the answer of a raw call; a task definition is at most 64 KiB.
const maxRawAnswer = 4 << 20

// TaskDefinition returns a task definition in its wire form, so that members younger than the SDK survive, and its tags.
// The reference is a family, family:revision or an ARN.
func (a *Client) TaskDefinition(ctx context.Context, ref string) (definition map[string]any, tags map[string]string, err error) {
	var out struct {
		TaskDefinition map[string]any `json:"taskDefinition"`
		Tags           []wireTag      `json:"tags"`
	}
	in := map[string]any{"taskDefinition": ref, "include": []string{"TAGS"}}
	if err := a.raw(ctx, "DescribeTaskDefinition", in, &out); err != nil {
		return nil, nil, fmt.Errorf("describe task definition %s: %w", ref, err)
	}
	tags = map[string]string{}
	for _, t := range out.Tags {
		tags[t.Key] = t.Value
	}
	return out.TaskDefinition, tags, nil
}

type wireTag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func wireTags(tags map[string]string) []wireTag {
	out := make([]wireTag, 0, len(tags))
	for k, v := range tags {
		out = append(out, wireTag{k, v})
	}
	return out
}

// RegisterTaskDefinition registers a task definition in its wire form and returns the ARN of the revision.
func (a *Client) RegisterTaskDefinition(ctx context.Context, definition map[string]any, tags map[string]string) (string, error) {
	in := map[string]any{}
	for k, v := range definition {
		in[k] = v
	}
	if len(tags) > 0 {
		in["tags"] = wireTags(tags)
	}
	var out struct {
		TaskDefinition struct {
			ARN string `json:"taskDefinitionArn"`
		} `json:"taskDefinition"`
	}
	if err := a.raw(ctx, "RegisterTaskDefinition", in, &out); err != nil {
		return "", fmt.Errorf("register task definition %v: %w", definition["family"], err)
	}
	return out.TaskDefinition.ARN, nil
}

// raw makes one ECS call in the JSON 1.1 protocol without the SDK's types. Like the SDK's calls it keeps to the request
// limits, is observed, and is tried again when AWS throttles or fails.
func (a *Client) raw(ctx context.Context, operation string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	call := awsapi.Call{Service: "ECS", Operation: operation, Region: a.ecs.region, Account: a.account}
	return a.session.Do(ctx, call, func(ctx context.Context) error { return a.rawOnce(ctx, operation, body, out) })
}

func (a *Client) rawOnce(ctx context.Context, operation string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.ecs.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if req.URL.Path == "" {
		req.URL.Path = "/"
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "AmazonEC2ContainerServiceV20141113."+operation)
	creds, err := a.cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return fmt.Errorf("get aws credentials: %w", err)
	}
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(sum[:]), "ecs", a.ecs.region, time.Now()); err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	var client aws.HTTPClient = &http.Client{Timeout: time.Minute}
	if a.cfg.HTTPClient != nil {
		client = a.cfg.HTTPClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxRawAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return rawError(resp.StatusCode, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode the answer: %w", err)
	}
	return nil
}

// rawError reads the error shape of the JSON protocols.
func rawError(status int, body []byte) error {
	var e struct {
		Type     string `json:"__type"`
		Message  string `json:"message"`
		Message2 string `json:"Message"`
	}
	if json.Unmarshal(body, &e) != nil || e.Type == "" {
		if status >= http.StatusInternalServerError {
			return &smithy.GenericAPIError{Code: "InternalFailure", Message: fmt.Sprintf("http status %d", status)}
		}
		return fmt.Errorf("http status %d", status)
	}
	if i := strings.LastIndex(e.Type, "#"); i >= 0 {
		e.Type = e.Type[i+1:]
	}
	if e.Message == "" {
		e.Message = e.Message2
	}
	return &smithy.GenericAPIError{Code: e.Type, Message: e.Message}
}
