package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// Client talks to the control API of the lab in a state directory.
type Client struct {
	dir  Dir
	http *http.Client
}

// NewClient returns a client for the lab in dir, whether or not one runs there.
func NewClient(dir Dir) *Client {
	dial := func(context.Context, string, string) (net.Conn, error) { return dir.dialControl() }
	return &Client{dir: dir, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// do sends one request. A lab that cannot be reached is diag.LabNotRunning.
func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	return c.send(ctx, method, path, nil)
}

func (c *Client) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the lab: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		e := diag.Newf(diag.LabNotRunning, "no lab answers in %s", c.dir)
		e.Err = err
		return nil, e
	}
	if response.StatusCode >= http.StatusBadRequest {
		defer response.Body.Close()
		var f failure
		if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&f); err != nil {
			return nil, fmt.Errorf("the lab answered %s", response.Status)
		}
		return nil, f.err()
	}
	return response, nil
}

// Status returns the state of the lab.
func (c *Client) Status(ctx context.Context) (Status, error) {
	response, err := c.do(ctx, http.MethodGet, "/v1/status")
	if err != nil {
		return Status{}, err
	}
	defer response.Body.Close()
	var s Status
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("read the lab's status: %w", err)
	}
	return s, nil
}

// Follow calls f for every event of the start, those of the past included, and returns the last of them. An error
// means that the lab ended before its start did.
func (c *Client) Follow(ctx context.Context, f func(Event)) (Event, error) {
	response, err := c.do(ctx, http.MethodGet, "/v1/events")
	if err != nil {
		return Event{}, err
	}
	defer response.Body.Close()
	for decoder := json.NewDecoder(response.Body); ; {
		var e Event
		if err := decoder.Decode(&e); err != nil {
			if ctx.Err() != nil {
				return Event{}, ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, fmt.Errorf("follow the start of the lab: %w", err)
		}
		f(e)
		if e.Step == "" {
			return e, nil
		}
	}
}

// Stop asks the lab to end. It does not wait.
func (c *Client) Stop(ctx context.Context) error { return c.post(ctx, "/v1/stop") }

// Act does an action to a component.
func (c *Client) Act(ctx context.Context, component, action string) error {
	return c.post(ctx, "/v1/components/"+url.PathEscape(component)+"/"+action)
}

func (c *Client) post(ctx context.Context, path string) error {
	response, err := c.do(ctx, http.MethodPost, path)
	if err != nil {
		return err
	}
	return response.Body.Close()
}
