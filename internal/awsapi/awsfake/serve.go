package awsfake

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/schemas"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/aws/smithy-go/transport/http/protocol/awsjson"
)

// ServeHTTP answers ECS's own protocol (awsJson 1.1), so that a program of its own can be pointed here with
// AWS_ENDPOINT_URL_ECS. It checks no signature.
func (f *ECS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	call := f.operations()[op]
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	switch {
	case err != nil:
	case call == nil:
		err = apiError("UnknownOperationException", "no such operation")
	default:
		body, err = call(r.Context(), body)
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if err != nil {
		var coded smithy.APIError
		if !errors.As(err, &coded) {
			coded = &smithy.GenericAPIError{Code: "ServerException", Message: err.Error()}
		}
		w.WriteHeader(http.StatusBadRequest)
		body, _ = json.Marshal(map[string]string{"__type": coded.ErrorCode(), "message": coded.ErrorMessage()}) // strings always encode
	}
	_, _ = w.Write(body) // a client that has gone is a client's business
}

type operation func(ctx context.Context, body []byte) ([]byte, error)

func (f *ECS) operations() map[string]operation {
	c := f.Calls()
	return map[string]operation{
		"ListClusters": served(c.ListClusters), "DescribeClusters": served(c.DescribeClusters),
		"ListServices": served(c.ListServices), "DescribeServices": served(c.DescribeServices),
		"ListTasks": served(c.ListTasks), "DescribeTasks": served(c.DescribeTasks),
		"DescribeTaskDefinition": served(c.DescribeTaskDefinition), "DescribeContainerInstances": served(c.DescribeContainerInstances),
	}
}

// served makes an operation of a call. The names of an input's fields are those of its members but for the case of a
// letter, which encoding/json does not mind; the output is written by the SDK's own schemas.
func served[In, Out any](call func(context.Context, *In, ...func(*ecs.Options)) (*Out, error)) operation {
	return func(ctx context.Context, body []byte) ([]byte, error) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, apiError("SerializationException", err.Error())
		}
		out, err := call(ctx, &in)
		if err != nil {
			return nil, err
		}
		req, ok := smithyhttp.NewStackRequest().(*smithyhttp.Request)
		if !ok {
			return nil, errors.New("the SDK's request is another type than it was")
		}
		schema := smithy.NewOperationSchema(schemas.ListTasks, schemas.ListTasksResponse, nil) // any: the output knows its own
		if err := awsjson.New11(schemas.AmazonEC2ContainerServiceV20141113).SerializeRequest(ctx, schema, any(out).(smithy.Serializable), req); err != nil {
			return nil, err
		}
		return io.ReadAll(req.GetStream())
	}
}
