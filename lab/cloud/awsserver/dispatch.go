package awsserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

func itoa(n int) string { return strconv.Itoa(n) }

// exchange is one request on its way through the front.
type exchange struct {
	w        http.ResponseWriter
	r        *http.Request
	body     []byte
	id       string
	protocol Protocol
	service  Service
	op       string
	json     bool // a Query request that asked for a JSON answer

	account string // of the access key, before anything is verified
	region  string
	faults  map[FaultKind]*standing
	skew    time.Duration // of the endpoint's clock, by a fault
}

// ServeHTTP answers one AWS request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{w: w, r: r, id: UUID(), protocol: JSON11}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.fail(x, &Error{Code: "RequestEntityTooLargeException", Status: http.StatusRequestEntityTooLarge, Message: "The request body is too large or broken."})
		return
	}
	x.body = body
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		s.serveJSON(x, target)
		return
	}
	if form, ok := queryForm(r, body); ok {
		s.serveQuery(x, form)
		return
	}
	x.protocol = RESTJSON
	r.Body = io.NopCloser(bytes.NewReader(body))
	if _, pattern := s.rest.Handler(r); pattern == "" {
		s.fail(x, &Error{Code: codeUnknownOperation, Status: http.StatusNotFound,
			Message: fmt.Sprintf("the lab's AWS endpoint has no operation for %s %s", r.Method, r.URL.Path)})
		return
	}
	s.rest.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)))
}

// exchangeKey carries the exchange through the ServeMux of the REST services, whose handlers see only the request.
type exchangeKey struct{}

func (s *Server) serveJSON(x *exchange, target string) {
	prefix, op, _ := strings.Cut(target, ".")
	svc, ok := s.targets[prefix]
	if !ok {
		s.fail(x, Errorf(codeUnknownOperation, "the lab's AWS endpoint has no service %q", prefix))
		return
	}
	x.protocol, x.service, x.op = svc.Protocol, svc, op
	s.call(x, svc.Operations[op], Request{Body: x.body})
}

// queryForm reports whether the request is one of the Query protocols and returns its parameters.
func queryForm(r *http.Request, body []byte) (Form, bool) {
	form := r.URL.Query()
	if r.Method == http.MethodPost && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		posted, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, false
		}
		for k, v := range posted {
			form[k] = v
		}
	}
	return Form(form), form.Get("Action") != ""
}

func (s *Server) serveQuery(x *exchange, form Form) {
	x.protocol = Query
	svc, ok := s.queries[form.Get("Version")]
	if !ok {
		s.fail(x, Errorf(codeUnknownOperation, "the lab's AWS endpoint has no service with API version %q", form.Get("Version")))
		return
	}
	x.protocol, x.service, x.op = svc.Protocol, svc, form.Get("Action")
	x.json = svc.Protocol == Query && strings.Contains(x.r.Header.Get("Accept"), "application/json")
	s.call(x, svc.Operations[x.op], Request{Form: form})
}

func (s *Server) serveRoute(svc Service, route Route) http.HandlerFunc {
	var names []string
	for part := range strings.SplitSeq(route.Pattern, "/") {
		if strings.HasPrefix(part, "{") {
			names = append(names, strings.Trim(part, "{}"))
		}
	}
	return func(w http.ResponseWriter, r *http.Request) {
		x, ok := r.Context().Value(exchangeKey{}).(*exchange)
		if !ok {
			http.Error(w, "not an AWS request", http.StatusInternalServerError)
			return
		}
		x.service, x.op = svc, route.Name
		vars := make(map[string]string, len(names))
		for _, n := range names {
			vars[n] = r.PathValue(n)
		}
		s.call(x, route.Operation, Request{Body: x.body, Path: vars, Query: r.URL.Query()})
	}
}

// call verifies the signature, runs the operation and writes its answer.
func (s *Server) call(x *exchange, op Operation, req Request) {
	sig, err := parseSignature(x.r)
	if err != nil {
		s.fail(x, err)
		return
	}
	claimed, _ := s.cfg.Authority.Lookup(sig.keyID) // only to know whose faults to consider
	x.region = sig.region
	if s.before(x, claimed.AccountID) {
		return
	}
	if sig.service != x.service.Name {
		s.fail(x, Errorf(codeInvalidSignature, "Credential should be scoped to correct service: '%s'. ", x.service.Name))
		return
	}
	who, err := s.verify(x.r, x.body, sig, s.cfg.Now().Add(x.skew))
	if err != nil {
		s.fail(x, err)
		return
	}
	if err := s.refuse(x, who); err != nil {
		s.fail(x, err)
		return
	}
	if op == nil {
		s.fail(x, Errorf(codeUnknownOperation, "the lab's AWS endpoint does not implement %s:%s", x.service.Name, x.op))
		return
	}
	req.ID, req.Service, req.Operation, req.Region = x.id, x.service.Name, x.op, sig.region
	req.Caller, req.HTTP, req.authority = who, x.r, s.cfg.Authority
	out, err := op(x.r.Context(), &req)
	if err != nil {
		s.write(x, s.after(x, s.failure(x, err)))
		return
	}
	body, contentType, err := encode(x, out)
	if err != nil {
		s.fail(x, fmt.Errorf("encode the answer of %s: %w", x.op, err))
		return
	}
	s.write(x, s.after(x, reply{status: http.StatusOK, contentType: contentType, body: body}))
}

// reply is what a client gets, but for the request id.
type reply struct {
	status                int
	contentType           string
	errorType, queryError string // headers; "" leaves them out
	body                  []byte
}

// requestKey tells one read from another: what was asked, by body or by URL.
func (x *exchange) requestKey() []byte { return append([]byte(x.r.URL.RequestURI()+"\x00"), x.body...) }

// fail writes an error in the protocol of the exchange.
func (s *Server) fail(x *exchange, err error) { s.write(x, s.failure(x, err)) }

// failure puts an error into the protocol of the exchange.
func (s *Server) failure(x *exchange, err error) reply {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		s.cfg.Log.LogAttrs(x.r.Context(), slog.LevelError, "aws call broke inside the lab",
			slog.String("service", x.service.Name), slog.String("operation", x.op), slog.String("error", err.Error()))
		e = &Error{Code: codeInternal, Status: http.StatusInternalServerError, Message: "The request processing has failed because of an unknown error."}
	}
	s.cfg.Log.LogAttrs(x.r.Context(), slog.LevelDebug, "aws call refused", slog.String("service", x.service.Name),
		slog.String("operation", x.op), slog.String("code", e.Code), slog.String("message", e.Message))
	code, status := e.inProtocol(x.protocol)
	out := reply{status: status}
	out.body, out.contentType = encodeError(x, e, code, status)
	if x.protocol == JSON10 || x.protocol == JSON11 || x.protocol == RESTJSON {
		out.errorType = code
	}
	if e.QueryCode != "" {
		out.queryError = e.QueryCode + ";Sender"
	}
	return out
}

func (s *Server) write(x *exchange, out reply) {
	h := x.w.Header()
	h.Set("Content-Type", out.contentType)
	h.Set("X-Amzn-Requestid", x.id)
	h.Set("Content-Length", itoa(len(out.body)))
	if out.errorType != "" {
		h.Set("X-Amzn-Errortype", out.errorType)
	}
	if out.queryError != "" {
		h.Set("X-Amzn-Query-Error", out.queryError)
	}
	x.w.WriteHeader(out.status)
	if _, err := x.w.Write(out.body); err != nil {
		s.cfg.Log.LogAttrs(x.r.Context(), slog.LevelDebug, "aws client went away", slog.String("error", err.Error()))
	}
}

// UUID returns a random UUID.
func UUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// marshalJSON is json.Marshal without HTML escaping, which AWS does not do.
func marshalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
