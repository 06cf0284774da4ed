// Package stacks is CloudFormation and both Elastic Load Balancing APIs as the clean-up of the guide asks them: whether there
// is anything left to delete. The lab makes no stacks and no load balancers, so the answer is no, in AWS's words; creating one
// is refused as an operation that the lab lacks.
package stacks

import (
	"context"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// APIs returns the services for registration with the front.
func APIs() []awsserver.Service {
	return []awsserver.Service{
		{Name: "cloudformation", Protocol: awsserver.Query, Version: "2010-05-15", Namespace: "http://cloudformation.amazonaws.com/doc/2010-05-15/",
			Operations: map[string]awsserver.Operation{
				"DescribeStacks":         describeStacks,
				"ListStacks":             allowed("cloudformation:ListStacks", struct{ StackSummaries empty }{}),
				"DescribeStackResource":  noStack("cloudformation:DescribeStackResource"),
				"DescribeStackResources": noStack("cloudformation:DescribeStackResources"),
				"DeleteStack":            allowed("cloudformation:DeleteStack", nil),
			}},
		{Name: "elasticloadbalancing", Protocol: awsserver.Query, Version: "2012-06-01", Namespace: "http://elasticloadbalancing.amazonaws.com/doc/2012-06-01/",
			Operations: map[string]awsserver.Operation{
				"DescribeLoadBalancers": loadBalancers("LoadBalancerNames", "There is no ACTIVE Load Balancer named '%s'", struct{ LoadBalancerDescriptions empty }{}),
				"DeleteLoadBalancer":    allowed("elasticloadbalancing:DeleteLoadBalancer", struct{}{}),
			}},
		{Name: "elasticloadbalancing", Protocol: awsserver.Query, Version: "2015-12-01", Namespace: "http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/",
			Operations: map[string]awsserver.Operation{
				"DescribeLoadBalancers": loadBalancers("Names", "Load balancers '[%s]' not found", struct{ LoadBalancers empty }{}),
				"DeleteLoadBalancer":    allowed("elasticloadbalancing:DeleteLoadBalancer", struct{}{}),
			}},
	}
}

// empty is a list without members.
type empty struct{}

// firstPage refuses a token or marker, of which the lab never gave one: its lists are empty.
func firstPage(r *awsserver.Request) error {
	if token := r.Form.Get("NextToken") + r.Form.Get("Marker"); token != "" {
		return awsserver.Errorf("ValidationError", "The token '%s' is invalid", token)
	}
	return nil
}

// allowed answers the same to everyone who may ask. Deleting what is not there succeeds, as at AWS.
func allowed(action string, out any) awsserver.Operation {
	return func(_ context.Context, r *awsserver.Request) (any, error) {
		if err := r.Authorize(action, "*", nil); err != nil {
			return nil, err
		}
		return out, firstPage(r)
	}
}

func describeStacks(_ context.Context, r *awsserver.Request) (any, error) {
	if err := r.Authorize("cloudformation:DescribeStacks", "*", nil); err != nil {
		return nil, err
	}
	if name := r.Form.Get("StackName"); name != "" {
		return nil, awsserver.Errorf("ValidationError", "Stack with id %s does not exist", name)
	}
	return struct{ Stacks empty }{}, firstPage(r)
}

func noStack(action string) awsserver.Operation {
	return func(_ context.Context, r *awsserver.Request) (any, error) {
		if err := r.Authorize(action, "*", nil); err != nil {
			return nil, err
		}
		return nil, awsserver.Errorf("ValidationError", "Stack '%s' does not exist", r.Form.Get("StackName"))
	}
}

// loadBalancers answers an empty list, and that one asked for by name is not there.
func loadBalancers(member, message string, none any) awsserver.Operation {
	return func(_ context.Context, r *awsserver.Request) (any, error) {
		if err := r.Authorize("elasticloadbalancing:DescribeLoadBalancers", "*", nil); err != nil {
			return nil, err
		}
		if names := r.Form.Strings(member + ".member"); len(names) > 0 {
			return nil, awsserver.Errorf("LoadBalancerNotFound", message, names[0])
		}
		return none, firstPage(r)
	}
}
