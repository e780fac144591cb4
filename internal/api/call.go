package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
)

// The headers that are ours.
const (
	headerRequestID = "X-Request-Id"
	headerTenant    = "X-Hypha-Tenant"
)

// constants are values of headers that are the same in every answer. They are
// shared: who wants another value replaces the slice, and changes nothing in it.
type constants struct{ noSniff, noStore, noReferrer, noContent, fiveMinutes, json []string }

const mediaJSON = "application/json"

func newConstants() constants {
	return constants{noSniff: []string{"nosniff"}, noStore: []string{"no-store"}, noReferrer: []string{"no-referrer"}, noContent: []string{"default-src 'none'; frame-ancestors 'none'"}, fiveMinutes: []string{"public, max-age=300"}, json: []string{mediaJSON}}
}

// call is one request at its endpoint.
type call struct {
	*http.Request
	ctx context.Context //nolint:containedctx // a call is a request, and a copy of that costs more than all else in here
	w   http.ResponseWriter
	// client is where the request came from; not valid where that is no IP.
	client netip.Addr
	// principal is who asks; nil where everybody may. cookie says that a cookie told.
	principal *auth.Principal
	cookie    bool
	// held is how many bytes of body the call has reserved, and reader what it
	// reads with: both go back at its end.
	held   int64
	reader *reader
}

// Context is the request's, with the limit of the call's time.
func (c *call) Context() context.Context { return c.ctx }

func (c *call) tenant() id.Tenant { return c.principal.Tenant }

// holder is whose share of the memory for bodies the call takes: nobody's is a
// share too.
func (c *call) holder() id.Tenant {
	if c.principal == nil {
		return id.Tenant{}
	}
	return c.principal.Tenant
}

func (c *call) param(name string) string { return chi.URLParam(c.Request, name) }

// network is whose share of what strangers may ask for the call takes.
func (c *call) network() netip.Prefix { return ratelimit.Network(c.client) }

// reply is a successful answer: a value to be shown as JSON, or a text that is
// there already.
type reply struct {
	status      int
	value       any
	raw         []byte
	contentType string // of raw and stream; "" is JSON
	// stream writes an answer that is too long to be there already.
	stream   func(http.ResponseWriter) error
	location string // where to go on, for a status of 3xx
}

// errClientLeft is why a long answer came to no end: nobody takes it any more.
var errClientLeft = errors.New("the client does not take the answer")

// exchange watches a request's answer.
type exchange struct {
	http.ResponseWriter
	route  string // the pattern, once the endpoint has been reached
	status int
	bytes  int64
	tenant id.Tenant
	err    error
	// failed says that the handler panicked, and cut that the answer had begun when
	// the server could not go on with it.
	failed, cut bool
}

// WriteHeader notes the status.
func (e *exchange) WriteHeader(status int) {
	if e.status == 0 {
		e.status = status
	}
	e.ResponseWriter.WriteHeader(status)
}

// Write counts.
func (e *exchange) Write(b []byte) (int, error) {
	if e.status == 0 {
		e.status = http.StatusOK
	}
	n, err := e.ResponseWriter.Write(b)
	e.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (e *exchange) Unwrap() http.ResponseWriter { return e.ResponseWriter }

// around is what every request goes through: its id, the headers of every
// answer, and the one line in the log. A panic ends here.
func (a *api) around(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		h := w.Header()
		requestID := requestID(r)
		h[headerRequestID] = []string{requestID}
		h["X-Content-Type-Options"] = a.constants.noSniff
		h["Cache-Control"] = a.constants.noStore
		// For whoever opens an answer in a browser: what is in its address stays there
		// (the provider sends people back with a code in it), and what is in the answer
		// is text, whatever it looks like.
		h["Referrer-Policy"] = a.constants.noReferrer
		h["Content-Security-Policy"] = a.constants.noContent
		e := &exchange{ResponseWriter: w}
		defer func() {
			cut := false
			if p := recover(); p != nil {
				cut = a.panicked(e, p)
			}
			a.finished(e, r, requestID, time.Since(start))
			if cut {
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(e, r)
	})
}

// panicked answers for a handler that could not. If it had begun to answer, the
// connection is cut, so that nobody takes half an answer for a whole one.
func (a *api) panicked(e *exchange, p any) (cut bool) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return true
	}
	e.failed = true
	// The line of the request is the one in the log that has the stack.
	err := fmt.Errorf("panic: %s\n%s", contain.Describe(p), debug.Stack())
	a.o.Panicked()
	if e.status != 0 {
		e.err = err
		return true
	}
	a.fail(e, err)
	return false
}

func (a *api) finished(e *exchange, r *http.Request, requestID string, took time.Duration) {
	route := e.route
	if rc := chi.RouteContext(r.Context()); route == "" && rc != nil {
		route = rc.RoutePattern()
	}
	if e.status == 0 {
		e.status = http.StatusOK
	}
	a.o.Observe(Exchange{Method: r.Method, Route: route, Status: e.status, Bytes: e.bytes, Duration: took})

	level := slog.LevelDebug
	switch {
	case e.failed || e.status == http.StatusInternalServerError:
		level = slog.LevelError
	case e.cut, e.status > http.StatusInternalServerError && !refusal(e.err):
		level = slog.LevelInfo
	}
	if !a.o.Logger.Enabled(r.Context(), level) {
		return
	}
	// The query is left out: people put tokens there.
	attrs := []slog.Attr{
		slog.String("request_id", requestID), slog.String("method", r.Method), slog.String("path", loggedPath(r)),
		slog.String("route", route), slog.Int("status", e.status), slog.Int64("bytes", e.bytes),
		slog.Duration("took", took), slog.String("from", r.RemoteAddr),
	}
	if len(a.o.TrustedProxies) > 0 {
		attrs = append(attrs, slog.String("client", clientAddress(r, a.o.TrustedProxies).String()))
	}
	if !e.tenant.IsZero() {
		attrs = append(attrs, slog.String("tenant", e.tenant.String()))
	}
	if e.err != nil {
		attrs = append(attrs, slog.String("err", e.err.Error()))
	}
	a.o.Logger.LogAttrs(r.Context(), level, "request", attrs...)
}

// maxLoggedPath is how much of a path the log shows, in bytes: our own are shorter.
const maxLoggedPath = 512

// loggedPath is a request's path, without what begins like a secret of ours: people
// put keys where their ids belong.
func loggedPath(r *http.Request) string {
	path := r.URL.EscapedPath()
	if len(path) > maxLoggedPath {
		path = path[:maxLoggedPath] + "…"
	}
	if !strings.Contains(path, "_") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if auth.IsToken(s) || strings.HasPrefix(s, "whsec_") || strings.HasPrefix(s, "whsk_") {
			segments[i] = "****"
		}
	}
	return strings.Join(segments, "/")
}

// refusal reports whether an error says that there is too much to do, and not
// that anything went wrong: under load there are thousands a second, which the
// metrics count.
func refusal(err error) bool {
	var known *hook.Error
	return errors.As(err, &known) && known.Cause == nil
}

// requestID is the caller's id for the request, if it can be written in a log as
// it stands, or else a new one.
func requestID(r *http.Request) string {
	if given := r.Header[headerRequestID]; len(given) == 1 && hook.ValidPublisherID(given[0]) {
		return given[0]
	}
	return rand.Text()
}

// handler is what stands between the router and an endpoint.
func (a *api) handler(e endpoint) http.Handler {
	timeout := a.o.Timeout
	if e.pattern == testPath {
		timeout = a.o.TestTimeout
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if x, ok := w.(*exchange); ok {
			x.route = e.pattern
		}
		c := &call{Request: r, ctx: ctx, w: w, client: clientAddress(r, a.o.TrustedProxies)}
		defer a.release(c)
		rep, err := a.enter(c, &e)
		if err != nil {
			a.fail(w, err)
			return
		}
		if rep.stream != nil {
			a.stream(w, r, rep)
			return
		}
		a.succeed(w, rep)
	})
}

// stream answers piece by piece. If it can't come to the end, it cuts the
// connection, so that nobody takes a part for the whole.
func (a *api) stream(w http.ResponseWriter, r *http.Request, rep reply) {
	w.Header().Set("Content-Type", rep.contentType)
	w.WriteHeader(rep.status)
	if r.Method == http.MethodHead {
		return
	}
	err := rep.stream(w)
	if err == nil {
		return
	}
	if e, ok := w.(*exchange); ok {
		e.err, e.cut = err, !errors.Is(err, errClientLeft) && r.Context().Err() == nil
	}
	panic(http.ErrAbortHandler)
}

// enter lets the caller in, or not, and does what is asked.
func (a *api) enter(c *call, e *endpoint) (reply, error) {
	if err := a.o.CrossOrigin.Check(c.Request); err != nil {
		return reply{}, &hook.Error{Code: hook.CodeForbidden, Message: "This request comes from a page of another site", Cause: err}
	}
	if e.access == everybody && !e.probed() && !auth.CameByAdminSocket(c.Context()) {
		if err := a.limits.stranger(c.network()); err != nil {
			return reply{}, err
		}
	}
	if e.access != everybody {
		if err := a.authenticate(c, e.access); err != nil {
			return reply{}, err
		}
		if err := a.limits.known(c.principal, e); err != nil {
			return reply{}, err
		}
		if e.scope != "" && !c.principal.Can(e.scope) {
			return reply{}, auth.ErrForbidden()
		}
		if e.access == tenants && c.principal.Tenant.IsZero() {
			return reply{}, hook.Invalid(hook.Detail{Path: headerTenant, Message: "is required with an operator's key: the id of the tenant to act for"})
		}
	}
	if e.access == either && c.principal.Tenant.IsZero() && !c.principal.Operator {
		return reply{}, auth.ErrForbidden()
	}
	if e.audited() {
		if e.access != everybody {
			if err := a.limits.change(c.principal); err != nil {
				return reply{}, err
			}
		}
		c.attribute()
	}
	if !e.query && c.URL.RawQuery != "" && e.access != everybody {
		if err := newQuery(c).err(); err != nil {
			return reply{}, err
		}
	}
	return e.serve(c)
}

func (a *api) authenticate(c *call, who access) error {
	p, err := a.identify(c)
	if err != nil {
		return err
	}
	if acting := c.Header[headerTenant]; len(acting) > 0 && who != operators {
		if len(acting) > 1 {
			return hook.Invalid(hook.Detail{Path: headerTenant, Message: "is given twice"})
		}
		if p, err = a.o.Auth.ActFor(c.Context(), p, acting[0]); err != nil {
			return err
		}
	}
	c.principal = p
	if e, ok := c.w.(*exchange); ok {
		e.tenant = p.Tenant
	}
	return nil
}

// identify answers whose the request's credential is: the bearer token, or else the
// cookie. Who comes by the admin socket needs none.
func (a *api) identify(c *call) (*auth.Principal, error) {
	var token string
	if _, given := c.Header["Authorization"]; given {
		token = bearer(c.Header)
	} else {
		token = sessionCookie(c.Request)
		c.cookie = token != ""
	}
	// Who has the machine need not guess.
	local := auth.CameByAdminSocket(c.Context())
	if local && token == "" && c.Header["Authorization"] == nil {
		return a.o.Auth.Local(c.Context())
	}
	may := func() error {
		if local {
			return nil
		}
		return a.limits.mayGuess(c.network())
	}
	var p *auth.Principal
	var err error
	if c.cookie {
		p, err = a.o.Auth.AuthenticateSession(c.Context(), token, may)
	} else {
		p, err = a.o.Auth.AuthenticateIf(c.Context(), token, may)
	}
	if err != nil && !local && hook.CodeOf(err) == hook.CodeUnauthorized {
		a.limits.guessed(c.network())
	}
	return p, err
}

// bearer is the token of a request (RFC 6750, 2.1), "" without one. Tokens in
// the query (2.3) are not read: URLs end in logs.
func bearer(h http.Header) string {
	given := h["Authorization"]
	if len(given) != 1 {
		return ""
	}
	scheme, token, ok := strings.Cut(given[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

func (a *api) succeed(w http.ResponseWriter, rep reply) {
	if rep.location != "" {
		w.Header().Set("Location", rep.location)
	}
	if rep.status == http.StatusNoContent || rep.location != "" {
		w.WriteHeader(rep.status)
		return
	}
	if rep.raw == nil {
		var err error
		if rep.raw, err = marshal(rep.value); err != nil {
			a.fail(w, fmt.Errorf("write the answer: %w", err))
			return
		}
	}
	contentType := a.constants.json
	if rep.contentType != "" {
		contentType = []string{rep.contentType}
	}
	write(w, rep.status, contentType, rep.raw)
}

// write ends every answer with a newline, for those who read it in a terminal.
func write(w http.ResponseWriter, status int, contentType []string, body []byte) {
	if !bytes.HasSuffix(body, []byte("\n")) {
		body = append(slices.Clip(body), '\n')
	}
	h := w.Header()
	h["Content-Type"] = contentType
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // whom would it be told to
}

// marshal shows a value as JSON. What came from outside may be no UTF-8: it is
// shown with replacement characters. What was published as JSON keeps its
// spelling.
func marshal(v any) ([]byte, error) {
	return json.Marshal(v, json.Deterministic(true), jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true), jsontext.PreserveRawStrings(true))
}

// fail answers an error. It is the one place that turns errors into HTTP.
func (a *api) fail(w http.ResponseWriter, err error) {
	shown := show(err)
	if e, ok := w.(*exchange); ok {
		e.err = err
	}
	h := w.Header()
	switch shown.Code {
	case hook.CodeUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case hook.CodeRateLimited, hook.CodeUnavailable:
		h.Set("Retry-After", strconv.FormatInt(max(1, int64((shown.RetryAfter+time.Second-1)/time.Second)), 10))
	default:
	}
	body, err := marshal(errorView{Error: errorBody{Message: shown.Message, Code: shown.Code, Details: shown.Details}})
	if err != nil {
		body = []byte(`{"error":{"message":"Internal error","code":"INTERNAL_ERROR"}}`)
	}
	write(w, statusOf(shown.Code), a.constants.json, body)
}

type errorView struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Message string        `json:"message"`
	Code    hook.Code     `json:"code"`
	Details []hook.Detail `json:"details,omitempty"`
}

// maxDetails is how many problems one answer lists.
const maxDetails = 100

// show is what a caller sees of an error.
func show(err error) hook.Error {
	var known *hook.Error
	switch {
	case errors.As(err, &known) && known.Code != hook.CodeInternal:
		shown := *known
		if shown.Code == hook.CodeNotFound && shown.Message != "" {
			// The same words, whoever found that there is nothing.
			shown.Message = strings.ToUpper(shown.Message[:1]) + shown.Message[1:]
		}
		if len(shown.Details) > maxDetails {
			more := len(shown.Details) - maxDetails
			shown.Details = append(shown.Details[:maxDetails:maxDetails], hook.Detail{Message: fmt.Sprintf("and %d problems more", more)})
		}
		return shown
	case errors.Is(err, context.DeadlineExceeded):
		return hook.Error{Code: hook.CodeUnavailable, Message: "This took too long; try again", RetryAfter: time.Second}
	case errors.Is(err, context.Canceled):
		return hook.Error{Code: hook.CodeUnavailable, Message: "The request was canceled", RetryAfter: time.Second}
	default:
		return hook.Error{Code: hook.CodeInternal, Message: "Internal error"}
	}
}

// statusOf is the HTTP status of a code.
func statusOf(code hook.Code) int {
	switch code {
	case hook.CodeValidation:
		return http.StatusBadRequest
	case hook.CodeUnauthorized:
		return http.StatusUnauthorized
	case hook.CodeForbidden:
		return http.StatusForbidden
	case hook.CodeNotFound:
		return http.StatusNotFound
	case hook.CodeMethodNotAllowed:
		return http.StatusMethodNotAllowed
	case hook.CodeConflict:
		return http.StatusConflict
	case hook.CodePayloadTooLarge:
		return http.StatusRequestEntityTooLarge
	case hook.CodeUnsupportedMediaType:
		return http.StatusUnsupportedMediaType
	case hook.CodeRateLimited:
		return http.StatusTooManyRequests
	case hook.CodeUnavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
