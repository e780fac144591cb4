package send

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// What an HTTP/2 receiver may send ahead, in bytes.
const (
	streamWindow = 64 << 10 // per request
	connWindow   = 1 << 20  // per connection
)

// An HTTP/2 connection carries every request to its host, so one that died in
// silence has to be noticed: when nothing came for a while, it is asked.
const (
	pingAfter  = 10 * time.Second
	pingAnswer = 5 * time.Second
)

// errHTTP1 is why a dial for HTTP/2 failed: the host chose HTTP/1.1.
var errHTTP1 = errors.New("the host does not speak HTTP/2")

// multiplexed is a tenant's connections to those hosts that chose HTTP/2.
type multiplexed struct {
	transport *http.Transport
	hosts     map[string]struct{}
	born      time.Time
}

// transports are the tenants'. Each lives as long as a connection may, and what
// is known of its hosts goes with it.
type transports struct {
	mu    sync.Mutex
	of    map[id.Tenant]*multiplexed
	swept time.Time
}

// know reports whether a host is known to speak HTTP/2.
func (t *transports) know(h host, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.of[h.tenant]
	if m == nil || now.Sub(m.born) > connectionLife {
		return false
	}
	_, ok := m.hosts[h.name]
	return ok
}

// learn notes that a host speaks HTTP/2, and returns what to speak it with.
func (t *transports) learn(h host, now time.Time, create func() (*http.Transport, error)) (*http.Transport, error) {
	var old []*multiplexed
	defer func() { closeAll(old) }() // after the unlocking: nobody waits for it
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.swept) > connectionLife {
		t.swept = now
		for tenant, m := range t.of {
			if now.Sub(m.born) > connectionLife {
				old = append(old, m)
				delete(t.of, tenant)
			}
		}
	}
	m := t.of[h.tenant]
	if m != nil && now.Sub(m.born) > connectionLife {
		old = append(old, m)
		m = nil
	}
	if m == nil {
		transport, err := create()
		if err != nil {
			return nil, err
		}
		m = &multiplexed{transport: transport, hosts: make(map[string]struct{}), born: now}
		t.of[h.tenant] = m
	}
	m.hosts[h.name] = struct{}{}
	return m.transport, nil
}

// closeAll closes what was forgotten. Connections in use are closed when their
// attempt ends.
func closeAll(old []*multiplexed) {
	for _, m := range old {
		m.transport.CloseIdleConnections()
	}
}

// forget takes back what was learnt of a host.
func (t *transports) forget(h host) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.of[h.tenant]; m != nil {
		delete(m.hosts, h.name)
	}
}

func (t *transports) close() {
	t.mu.Lock()
	old := slices.Collect(maps.Values(t.of))
	clear(t.of)
	t.mu.Unlock()
	closeAll(old)
}

// newTransport makes what speaks HTTP/2. It speaks nothing else: a host that
// chooses HTTP/1.1 is left to us. The HTTP/2 is that of golang.org/x/net: the one
// inside of net/http (Go 1.26) locks itself in for ever when a receiver opens a
// request's window beyond its limit, and every later attempt with it.
func (s *Sender) newTransport() (*http.Transport, error) {
	t := &http.Transport{
		Proxy:              nil, // the guard's is in the dial; an environment's would go around it
		DialContext:        s.o.Dial,
		DialTLSContext:     s.dialHTTP2,
		TLSClientConfig:    s.tls.Clone(), // the dial has the say; this configures HTTP/2, which writes to it
		DisableCompression: true,          // a compressed answer is kept as it came
		// HTTP/2 counts all heads of an answer together, as we do.
		MaxResponseHeaderBytes: maxHeader,
		IdleConnTimeout:        idleLife,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingAnswer,
		},
	}
	return t, http2.ConfigureTransport(t) //nolint:staticcheck // Protocols would choose the other one
}

// overHTTP2 makes an attempt through the tenant's transport, which is given c if
// it wants a connection; c may be nil. If the host turns out to speak HTTP/1.1
// by now, nothing was sent, and the attempt goes on as one of those.
func (s *Sender) overHTTP2(ctx context.Context, now time.Time, h host, r *Request, c *conn, tr *trace) (answer, *trace, error) {
	d := &dialing{h: h, now: now, caller: ctx, deadline: tr.began.Add(r.Timeout), second: c}
	a, tr, err := s.roundTrip(ctx, d, r, tr)
	first := d.end()
	if errors.Is(err, errHTTP1) && first != nil {
		s.transports.forget(h)
		return s.overHTTP1(ctx, now, h, r, first, tr)
	}
	first.discard()
	return a, tr, err
}

// roundTrip sends the request and reads the answer. The transport has no way to
// repeat the request (there is no GetBody), because after an HTTP/2 error it
// would do so although the receiver may have acted on it. What it leaves to us
// is a kept connection that closed under our hands: then nothing was sent, and
// another connection is taken.
func (s *Sender) roundTrip(ctx context.Context, d *dialing, r *Request, tr *trace) (answer, *trace, error) {
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, dialingKey{}, d))
	defer cancel(nil)
	limit := time.AfterFunc(time.Until(d.deadline), func() { cancel(errTimeout) })
	defer limit.Stop()
	transport, err := s.transports.learn(d.h, d.now, s.newTransport)
	if err != nil {
		return answer{}, tr, err
	}
	var resp *http.Response
	for try := 1; ; try++ {
		req := (&http.Request{
			Method: http.MethodPost, URL: r.URL, Host: r.URL.Host, Header: r.Head.with(r.Header), // the connection may read it after we have returned
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Body: io.NopCloser(bytes.NewReader(r.Body)), ContentLength: int64(len(r.Body)),
		}).WithContext(httptrace.WithClientTrace(ctx, tr.client()))
		if resp, err = transport.RoundTrip(req); err == nil {
			break
		}
		timedOut := errors.Is(context.Cause(ctx), errTimeout)
		tr.leave(timedOut)
		if timedOut {
			return answer{}, tr, errTimeout
		}
		if try == maxTries || ctx.Err() != nil || !tr.unsent() {
			return answer{}, tr, err
		}
		tr = &trace{began: tr.began, proxied: tr.proxied}
	}
	a := answer{status: resp.StatusCode, header: resp.Header}
	// The status has decided. The body gets a moment of its own, and is cut off
	// by closing it. Reading and closing tell the receiver how much room there is,
	// which it may not let us: then there is nothing for it but the socket.
	rest := bodyLimit(tr, r.Timeout)
	limit.Reset(rest)
	stuck := time.AfterFunc(rest+writeGrace, tr.on.breakOff)
	defer stuck.Stop()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	var whole bool
	a.body, whole = readBody(resp.Body, resp.ContentLength, hook.MaxKeptBody+r.Redact.reach())
	stop()
	_ = resp.Body.Close() // the answer is in; what closing says is of no use
	tr.leave(!whole)
	return a, tr, nil
}

type dialingKey struct{}

// dialing is what an attempt hands through the transport to a dial of its own.
// The transport detaches a dial from the request that asked for it, so without
// this a receiver that accepts and then keeps silent would hold a connection for
// every attempt long after it has ended.
type dialing struct {
	h        host
	now      time.Time
	caller   context.Context
	deadline time.Time

	mu     sync.Mutex
	over   bool
	second *conn // speaks HTTP/2, and is to be used
	first  *conn // speaks HTTP/1.1, and was come by
}

// limited is a dial's context with the limits of its attempt.
func (d *dialing) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithDeadline(ctx, d.deadline)
	stop := context.AfterFunc(d.caller, cancel)
	return ctx, func() { stop(); cancel() }
}

// take hands out the connection that is to be used, once.
func (d *dialing) take() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.second
	d.second = nil
	return c
}

// leave keeps a connection for the attempt, unless that has no use for it.
func (d *dialing) leave(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.over || d.first != nil {
		c.discard()
		return
	}
	d.first = c
}

// end returns the HTTP/1.1 connection that was come by, if one was.
func (d *dialing) end() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.over = true
	d.second.discard()
	return d.first
}

// dialHTTP2 is the transport's dial.
func (s *Sender) dialHTTP2(ctx context.Context, network, address string) (net.Conn, error) {
	d, ok := ctx.Value(dialingKey{}).(*dialing)
	if !ok {
		return nil, errors.New("a dial for no attempt")
	}
	if c := d.take(); c != nil {
		return c.Conn, nil
	}
	ctx, cancel := d.limited(ctx)
	defer cancel()
	var c *conn
	err := s.o.Guard.Try(contain.Delivery, "the dial of a transport", func() (err error) { // in a goroutine of that
		c, err = s.dialTLS(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.http2 {
		return c.Conn, nil // the transport knows HTTP/2 by the type
	}
	c.host, c.born = d.h, d.now
	d.leave(c)
	return nil, errHTTP1
}
