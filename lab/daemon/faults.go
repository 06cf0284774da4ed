package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// maxFaultRequest bounds the request that sets a fault.
const maxFaultRequest = 16 << 10

var errNoEndpoint = errors.New("the AWS endpoint is not started yet")

// faults returns the faults of the AWS endpoint, once there is one.
func (d *Daemon) faults() (*awsserver.Faults, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cloud == nil {
		return nil, errNoEndpoint
	}
	return d.cloud.Faults(), nil
}

// handleFaults answers GET with the faults that stand, PUT sets one, and DELETE ends those that match.
func (d *Daemon) handleFaults(w http.ResponseWriter, r *http.Request) {
	all, err := d.faults()
	if err == nil {
		switch r.Method {
		case http.MethodPut:
			var f awsserver.Fault
			if err = json.NewDecoder(io.LimitReader(r.Body, maxFaultRequest)).Decode(&f); err == nil {
				err = all.Set(f)
			}
		case http.MethodDelete:
			q := r.URL.Query()
			all.Clear(awsserver.Fault{Kind: awsserver.FaultKind(q.Get("kind")), Account: q.Get("account"), Call: q.Get("call")})
		}
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, newFailure(err))
		return
	}
	writeJSON(w, http.StatusOK, all.List())
}

// Faults returns the faults that stand at the lab's AWS endpoint.
func (c *Client) Faults(ctx context.Context) ([]awsserver.Fault, error) {
	return c.faults(ctx, http.MethodGet, "/v1/faults", nil)
}

// SetFault lets a fault stand and returns all that do.
func (c *Client) SetFault(ctx context.Context, f awsserver.Fault) ([]awsserver.Fault, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode the fault: %w", err)
	}
	return c.faults(ctx, http.MethodPut, "/v1/faults", b)
}

// ClearFaults ends the faults with the kind, account and call of like, of which each may be empty, and returns the others.
func (c *Client) ClearFaults(ctx context.Context, like awsserver.Fault) ([]awsserver.Fault, error) {
	q := url.Values{"kind": {string(like.Kind)}, "account": {like.Account}, "call": {like.Call}}
	return c.faults(ctx, http.MethodDelete, "/v1/faults?"+q.Encode(), nil)
}

func (c *Client) faults(ctx context.Context, method, path string, body []byte) ([]awsserver.Fault, error) {
	response, err := c.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var all []awsserver.Fault
	if err := json.NewDecoder(response.Body).Decode(&all); err != nil {
		return nil, fmt.Errorf("read the lab's faults: %w", err)
	}
	return all, nil
}
