// Package send makes one HTTP attempt: it posts a body to a webhook's URL
// through the egress guard and says what came back. It follows no redirect,
// uses no proxy but the guard's, keeps no cookie, and never sends a request
// twice.
//
// It promises that an attempt ends within its timeout plus a second whatever
// the receiver does, and that a receiver's answer takes bounded memory. It must
// not know what a retry is, nor where attempts are recorded.
//
// HTTP/1.1 it speaks itself, in the goroutine of the attempt, and leaves to the
// standard library what is hard about it: to read what came. The transport of
// net/http moves each request through two goroutines more and a pool for all
// purposes; that was half of what an attempt cost (BenchmarkSend, both sides of
// the socket: 75 µs of CPU and 78 allocations with it, 40 µs and 14 without).
// HTTP/2 it leaves to golang.org/x/net, save for which connection a request goes on.
package send

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// The bounds of what is read of an answer.
const (
	maxHeader = 64 << 10 // bytes of status lines and headers, 1xx answers included
	// maxFields is how many fields a head may have: as many as HTTP/2 counts into
	// maxHeader (RFC 9113, section 6.5.2: 32 bytes are added for each).
	maxFields = maxHeader / 32
	minField  = len("a:\r\n")
	maxBody   = 64 << 10 // bytes read of the body, so that a connection can be kept
	// maxWireBody is for the body with what chunks have around them: the line of
	// their size may be longer than what is in them.
	maxWireBody = 8 * maxBody
	bodyTime    = time.Second // for the body, once the status has decided
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
	// Proxied says that Dial asks a proxy: what it does not end in time is the
	// proxy's failure.
	Proxied bool
	// TLS is for tests with certificates of their own; nil otherwise.
	TLS *tls.Config
	Now func() time.Time // default time.Now
	// Guard contains the panics of goroutines that an attempt starts: the attempt
	// fails. Those of its own go to whoever called Send. Default: they end the
	// process.
	Guard *contain.Guard
}

// Sender is safe for concurrent use. Close frees its connections.
type Sender struct {
	o    Options
	tls  *tls.Config
	work sync.Pool // of *work
	pool *pool
	// http2 makes the transport the first time that a receiver chooses HTTP/2.
	http2 func() (*http2.Transport, error)
}

// New makes a sender.
func New(o Options) *Sender {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Sender{o: o, tls: tlsConfig(o.TLS), pool: newPool(o.Now), http2: sync.OnceValues(newTransport)}
}

// Close closes the connections that are idle; those in use close when their
// attempt ends.
func (s *Sender) Close() {
	s.pool.close()
}

// Request is what to send.
type Request struct {
	Tenant id.Tenant
	URL    *url.URL
	// Head is what other requests to the URL have in common with this one; nil
	// for none.
	Head *Head
	// Header is the rest of the headers: those that the head says vary. The map
	// may be used again after Send has returned, but not its values: the
	// connection may still read those for a moment.
	Header http.Header
	Body   []byte // likewise not to be changed any more
	// Timeout is for everything up to the end of the answer's headers.
	Timeout time.Duration
	// Redact hides values of ours that must not be kept should the receiver
	// send them back.
	Redact Redactor
}

// Send makes the attempt. It fills in all of the Attempt but Number, Trigger
// and Revision. When ctx ends the attempt is broken off.
func (s *Sender) Send(ctx context.Context, r Request) *hook.Attempt {
	now := s.o.Now()
	if r.Head == nil {
		r.Head = NewHead(r.URL, nil, slices.Collect(maps.Keys(r.Header))...)
	}
	a := &hook.Attempt{StartedAt: now.UTC()}
	got, tr, err := s.attempt(ctx, now, &r, &trace{began: time.Now(), proxied: s.o.Proxied}) // monotonic, for the durations
	a.Duration = time.Since(tr.began)
	a.Timings = tr.timings(a.Duration)
	if err != nil {
		a.Failure = failureOf(ctx, err, tr, r.Timeout)
		return a
	}
	a.StatusCode = got.status
	a.Header = keptHeader(got.header, r.Redact)
	a.Body = r.Redact.body(got.body)
	a.Body = a.Body[:min(len(a.Body), hook.MaxKeptBody)]
	a.Failure = judge(a.StatusCode)
	if a.Failure != nil && a.Failure.Kind == hook.FailureProtocol {
		a.StatusCode = 0
	}
	return a
}

// attempt gets a connection, and does what is spoken on it. One that was kept may
// turn out to be closed: as long as nothing was sent, another takes its place.
func (s *Sender) attempt(ctx context.Context, now time.Time, r *Request, tr *trace) (answer, *trace, error) {
	h := host{tenant: r.Tenant, secure: r.URL.Scheme == "https", name: r.URL.Host}
	if !h.secure && r.URL.Scheme != "http" {
		return answer{}, tr, errRequest
	}
	w, err := s.prepare(r)
	defer s.work.Put(w)
	defer w.free()
	if err != nil {
		return answer{}, tr, err
	}
	for try := 1; ; try++ {
		c, err := s.connect(ctx, now, h, r, tr, try <= maxTries)
		if err != nil {
			return answer{}, tr, err
		}
		var a answer
		if c.http2 {
			a, err = s.overHTTP2(ctx, now, c, r, tr)
		} else {
			a, err = s.overHTTP1(ctx, now, c, r, w, tr)
		}
		if !errors.Is(err, errUnsent) {
			return a, tr, err
		}
		tr = &trace{began: tr.began, proxied: tr.proxied} // who had the one before may yet report to it
	}
}

// connect returns a kept connection, if one will do, or a new one.
func (s *Sender) connect(ctx context.Context, now time.Time, h host, r *Request, tr *trace, kept bool) (*conn, error) {
	if kept {
		if c := s.pool.take(h, now); c != nil {
			tr.got, tr.kept = true, true
			return c, nil
		}
	}
	c, err := s.dialFor(ctx, now, h, r, tr)
	if err != nil {
		return nil, err
	}
	tr.got = true
	if !c.http2 {
		return c, nil
	}
	if err := s.beginHTTP2(c, tr.began.Add(r.Timeout)); err != nil {
		c.discard()
		return nil, err
	}
	if !c.frames.ReserveNewRequest() {
		c.discard()
		return nil, errNoRoom // what has ended, HTTP/2 would still take one for
	}
	s.pool.own(c)
	return c, nil
}

// bodyLimit is what the body gets, once there is a status. Of a status that came
// at the last moment some is spared.
func bodyLimit(tr *trace, timeout time.Duration) time.Duration {
	return min(bodyTime, timeout+bodyTime-spare-time.Since(tr.began))
}
