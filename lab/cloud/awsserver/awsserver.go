// Package awsserver is the front of the lab's AWS endpoint: it accepts requests in the wire protocols real AWS
// clients speak (awsJson 1.0 and 1.1, AWS Query, EC2 Query, restJson), verifies their Signature Version 4,
// decides who is calling, and hands them to the operations the services registered. It knows no service.
//
// Everything a client sees of a failure is made here, because each protocol words the same failure differently.
package awsserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxBody bounds a request body. The largest legal one is a task definition of 64 KiB; log batches may be 1 MiB.
const maxBody = 2 << 20

// Protocol says how a service's requests and answers look on the wire.
type Protocol int

// The protocols of the services the lab offers.
const (
	JSON10 Protocol = iota + 1
	JSON11
	Query
	EC2Query
	RESTJSON
)

// Operation answers one call. The returned value is encoded in the service's protocol; a nil value is an empty answer.
// An *Error reaches the client as it is, any other error as an internal failure whose cause is only logged.
type Operation func(ctx context.Context, r *Request) (any, error)

// Route binds an operation of a REST service to a method and a path pattern of net/http's ServeMux.
type Route struct {
	Name      string // the operation's name
	Method    string
	Pattern   string // "/clusters/{name}"
	Operation Operation
}

// Service is everything the front needs to know of one AWS service.
type Service struct {
	Name       string // the signing name: "ecs", "sts"
	Protocol   Protocol
	Target     string // prefix of X-Amz-Target, for the JSON protocols
	Version    string // API version, for the Query protocols
	Namespace  string // XML namespace of answers, for the Query protocols
	Operations map[string]Operation
	Routes     []Route // for RESTJSON
}

// Identity is the holder of an access key.
type Identity struct {
	AccessKeyID string
	Secret      string
	Token       string    // the session token that must accompany the key; empty for a long-lived key
	Expires     time.Time // zero for a long-lived key
	AccountID   string
	ARN         string
	UserID      string
	RoleARN     string            // the role behind an assumed-role session, with its path
	Tags        map[string]string // session tags
}

// Access is one thing a caller wants to do.
type Access struct {
	Action   string // "ecs:ListTasks"
	Resource string // an ARN, or "*"
	Context  map[string][]string
}

// Decision is what the policies say of an Access.
type Decision int

// The decisions; the zero value is the safe one.
const (
	DeniedByDefault Decision = iota
	DeniedExplicitly
	Allowed
)

// Authority knows the access keys and the policies.
type Authority interface {
	Lookup(accessKeyID string) (Identity, bool)
	Authorize(who Identity, a Access) Decision
}

// Request is a verified call.
type Request struct {
	ID        string
	Service   string
	Operation string
	Region    string // of the signature's credential scope
	Caller    Identity
	Body      []byte            // the JSON document of the JSON protocols
	Form      Form              // the parameters of the Query protocols
	Path      map[string]string // path variables of RESTJSON
	Query     url.Values        // URL parameters of RESTJSON
	HTTP      *http.Request     // for Host and headers; its body is consumed

	authority Authority
}

// Decode reads the JSON document of the request into v, which must be a pointer.
func (r *Request) Decode(v any) error {
	if len(r.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.Body, v); err != nil {
		return &Error{Code: "SerializationException", Status: http.StatusBadRequest, Message: err.Error()}
	}
	return nil
}

// Authorize returns the error AWS would give when the caller's policies do not allow the action on the resource,
// which is an ARN or "*".
func (r *Request) Authorize(action, resource string, conditions map[string][]string) error {
	d := r.Decide(r.Access(action, resource, conditions))
	if d == Allowed {
		return nil
	}
	return AccessDenied(r.Caller.ARN, action, resource, d)
}

// Access describes what the caller wants to do, for resources that have a policy of their own.
func (r *Request) Access(action, resource string, conditions map[string][]string) Access {
	return Access{Action: action, Resource: resource, Context: r.conditions(conditions)}
}

// Decide asks the caller's policies, for resources that have a policy of their own.
func (r *Request) Decide(a Access) Decision { return r.authority.Authorize(r.Caller, a) }

// conditions adds the global condition keys to those of the operation.
func (r *Request) conditions(own map[string][]string) map[string][]string {
	all := map[string][]string{
		"aws:principalarn":     {r.Caller.ARN},
		"aws:principalaccount": {r.Caller.AccountID},
		"aws:requestedregion":  {r.Region},
	}
	if r.Caller.RoleARN != "" {
		all["aws:principalarn"] = []string{r.Caller.RoleARN}
	}
	for k, v := range r.Caller.Tags {
		all["aws:principaltag/"+strings.ToLower(k)] = []string{v}
	}
	for k, v := range own {
		all[strings.ToLower(k)] = v
	}
	return all
}

// Config is what a Server needs.
type Config struct {
	Services  []Service // required
	Authority Authority // required
	Faults    *Faults   // nil means none
	Now       func() time.Time
	Log       *slog.Logger // required
}

// Operations names all operations that are served, as SERVICE.OPERATION; a service that speaks several versions of its API
// is named with the version, as SERVICE/VERSION.
func (s *Server) Operations() []string {
	versions := map[string]int{}
	for _, svc := range s.cfg.Services {
		versions[svc.Name]++
	}
	var out []string
	for _, svc := range s.cfg.Services {
		name := svc.Name
		if versions[name] > 1 {
			name += "/" + svc.Version
		}
		for op := range svc.Operations {
			out = append(out, name+"."+op)
		}
		for _, route := range svc.Routes {
			out = append(out, name+"."+route.Name)
		}
	}
	slices.Sort(out)
	return out
}

// Server is the endpoint. It is an http.Handler safe for concurrent use.
type Server struct {
	cfg     Config
	targets map[string]Service // by X-Amz-Target prefix
	queries map[string]Service // by API version
	rest    *http.ServeMux
}

// New checks the services and returns the front for them.
func New(cfg Config) (*Server, error) {
	switch {
	case len(cfg.Services) == 0:
		return nil, errors.New("awsserver: Config.Services is required")
	case cfg.Authority == nil:
		return nil, errors.New("awsserver: Config.Authority is required")
	case cfg.Log == nil:
		return nil, errors.New("awsserver: Config.Log is required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, targets: map[string]Service{}, queries: map[string]Service{}, rest: http.NewServeMux()}
	for _, svc := range cfg.Services {
		switch svc.Protocol {
		case JSON10, JSON11:
			s.targets[svc.Target] = svc
		case Query, EC2Query:
			s.queries[svc.Version] = svc
		case RESTJSON:
			for _, route := range svc.Routes {
				s.rest.HandleFunc(route.Method+" "+route.Pattern, s.serveRoute(svc, route))
			}
		default:
			return nil, fmt.Errorf("awsserver: service %q has no protocol", svc.Name)
		}
	}
	return s, nil
}
