package awsfake

import (
	"context"

	"github.com/isthmus-mesh/isthmus/internal/awsapi"
)

// Limited returns a reader whose every call first passes before, which may wait or refuse.
func (f *ECS) Limited(before func(ctx context.Context, operation string) error) *awsapi.ECS {
	c := f.Calls()
	c.ListClusters = limited("ListClusters", before, c.ListClusters)
	c.DescribeClusters = limited("DescribeClusters", before, c.DescribeClusters)
	c.ListServices = limited("ListServices", before, c.ListServices)
	c.DescribeServices = limited("DescribeServices", before, c.DescribeServices)
	c.ListTasks = limited("ListTasks", before, c.ListTasks)
	c.DescribeTasks = limited("DescribeTasks", before, c.DescribeTasks)
	c.DescribeTaskDefinition = limited("DescribeTaskDefinition", before, c.DescribeTaskDefinition)
	c.DescribeContainerInstances = limited("DescribeContainerInstances", before, c.DescribeContainerInstances)
	return awsapi.NewECSFromCalls(c)
}

func limited[In, Out, Option any](operation string, before func(context.Context, string) error, call func(context.Context, *In, ...Option) (*Out, error)) func(context.Context, *In, ...Option) (*Out, error) {
	return func(ctx context.Context, in *In, opt ...Option) (*Out, error) {
		if err := before(ctx, operation); err != nil {
			return nil, err
		}
		return call(ctx, in, opt...)
	}
}
