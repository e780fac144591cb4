// Package send makes one HTTP attempt: it posts a body to a webhook's URL
// through the egress guard and says what came back. It follows no redirect,
// uses no proxy, keeps no cookie, and never sends a request twice.
//
// It promises that an attempt ends within its timeout plus a second whatever
// the receiver does, and that a receiver's answer takes bounded memory. It must
// not know what a retry is, nor where attempts are recorded.
package send

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The bounds of what is read of an answer.
const (
	maxHeader = 64 << 10    // bytes of status lines and headers, 1xx answers included
	maxBody   = 64 << 10    // bytes read of the body, so that a connection can be kept
	bodyTime  = time.Second // for the body, once the status has decided
	// spare is kept of bodyTime when the status came at the last moment, for
	// closing what is open.
	spare = 100 * time.Millisecond
)

// maxTries bounds how often one attempt takes a kept connection that turns out
// to be closed before anything was sent on it. Each try uses one such up, so it
// is reached only where a receiver spoils connections as fast as we make them.
const maxTries = 32

// Dial opens a connection to a host and port, or refuses to (package egress).
// It ends when its context does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Options are what a sender needs.
type Options struct {
	Dial Dial // required
	// TLS is for tests with certificates of their own; nil otherwise.
	TLS *tls.Config
	Now func() time.Time // default time.Now
}

// Sender is safe for concurrent use. Close frees its connections.
type Sender struct {
	o Options

	mu    sync.Mutex
	pools map[id.Tenant]*pool
	swept time.Time
}

// New makes a sender.
func New(o Options) *Sender {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Sender{o: o, pools: make(map[id.Tenant]*pool)}
}

// Request is what to send.
type Request struct {
	Tenant id.Tenant
	URL    *url.URL
	// Header is sent as it is. The connection may still read it for a moment
	// after Send has returned, so it must not be changed any more.
	Header http.Header
	Body   []byte // likewise
	// Timeout is for everything up to the end of the answer's headers.
	Timeout time.Duration
	// Redact hides values of ours that must not be kept should the receiver
	// send them back.
	Redact Redactor
}

// Send makes the attempt. It fills in all of the Attempt but Number, Trigger
// and Revision. When ctx ends the attempt is broken off.
func (s *Sender) Send(ctx context.Context, r Request) *hook.Attempt {
	a := &hook.Attempt{StartedAt: s.o.Now().UTC()}
	began := time.Now() // monotonic, for the durations
	caller := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := time.AfterFunc(r.Timeout, func() { cancel(errTimeout) })
	defer limit.Stop()

	resp, tr, err := s.roundTrip(withDialLimit(ctx, caller, began.Add(r.Timeout)), began, r)
	if err != nil {
		a.Duration = time.Since(began)
		a.Timings = tr.timings(a.Duration)
		a.Failure = failureOf(ctx, err, tr, r.Timeout)
		return a
	}
	a.StatusCode = resp.StatusCode
	// The status has decided. The body gets a moment of its own, and is cut off
	// by closing it: for a 101 nothing else ends a read.
	limit.Reset(min(bodyTime, r.Timeout+bodyTime-spare-time.Since(began)))
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	hide := r.Redact
	var body []byte
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body = readBody(resp.Body, hook.MaxKeptBody+hide.reach())
	}
	stop()
	_ = resp.Body.Close() // the answer is in; what closing says is of no use
	a.Duration = time.Since(began)
	a.Timings = tr.timings(a.Duration)
	a.Header = keptHeader(resp.Header, hide)
	a.Body = hide.body(body)
	a.Body = a.Body[:min(len(a.Body), hook.MaxKeptBody)]
	a.Failure = judge(a.StatusCode)
	if a.Failure != nil && a.Failure.Kind == hook.FailureProtocol {
		a.StatusCode = 0
	}
	return a
}

// errTimeout is why an attempt's context ended, when it was the attempt's own
// limit and not its caller.
var errTimeout = errors.New("the attempt took too long")

// roundTrip sends the request and reads the answer's head. The transport has no
// way to repeat the request (there is no GetBody), because after an HTTP/2
// error it would do so although the receiver may have acted on it. What it
// leaves to us is a kept connection that closed under our hands: then nothing
// was sent, and another connection is taken.
func (s *Sender) roundTrip(ctx context.Context, began time.Time, r Request) (*http.Response, *trace, error) {
	for try := 1; ; try++ {
		tr := &trace{began: began, ctx: ctx}
		req := (&http.Request{
			Method: http.MethodPost, URL: r.URL, Host: r.URL.Host, Header: r.Header,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Body: io.NopCloser(bytes.NewReader(r.Body)), ContentLength: int64(len(r.Body)),
		}).WithContext(httptrace.WithClientTrace(ctx, tr.client()))
		resp, err := s.transport(r.Tenant).RoundTrip(req)
		if err == nil || try == maxTries || ctx.Err() != nil || !tr.unsent() {
			return resp, tr, err
		}
	}
}
