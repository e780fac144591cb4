package send

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"

	"github.com/plinqx/hypha/internal/hook"
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

var (
	// errTimeout is why an attempt over HTTP/2 was ended by us.
	errTimeout = errors.New("the attempt took too long")
	// errNoRoom is why nothing was sent on a new connection that stands.
	errNoRoom = errors.New("the receiver takes no request")
	// errFrames is why nothing was sent on one that doesn't.
	errFrames = errors.New("what came is not HTTP/2")
)

// newTransport makes what begins HTTP/2 on a connection. It dials nothing, and its
// own pool stays empty: that one would take as many connections for an attempt as
// a receiver spoils, and knows not why it spoilt them. The HTTP/2 is that of
// golang.org/x/net: the one inside of net/http (Go 1.26) locks itself in for ever
// when a receiver opens a request's window beyond its limit.
func newTransport() (*http2.Transport, error) {
	return http2.ConfigureTransports(&http.Transport{
		DisableCompression: true, // a compressed answer is kept as it came
		// HTTP/2 counts all heads of an answer together, as we do.
		MaxResponseHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingAnswer,
		},
	})
}

// beginHTTP2 speaks the first words on a connection on which the receiver chose
// HTTP/2. They end by the deadline.
func (s *Sender) beginHTTP2(c *conn, deadline time.Time) error {
	transport, err := s.http2()
	if err != nil {
		return err
	}
	_ = c.SetDeadline(deadline) // if it's closed, writing will tell
	if c.frames, err = transport.NewClientConn(c.Conn); err != nil {
		return err
	}
	_ = c.SetDeadline(time.Time{})
	return nil
}

// overHTTP2 makes an attempt on a connection that the pool has shared out, and
// gives it back. The request is not repeated, although HTTP/2 has errors after
// which it might be: the receiver may have acted on it. A kept connection on which
// nothing was sent is errUnsent.
func (s *Sender) overHTTP2(ctx context.Context, now time.Time, c *conn, r *Request, tr *trace) (answer, error) {
	keep := false
	defer func() { s.pool.leave(c, now, keep) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := time.AfterFunc(time.Until(tr.began.Add(r.Timeout)), func() { cancel(errTimeout) })
	defer limit.Stop()
	trace := tr.client()
	if !tr.kept {
		// Once it has its request on the way nobody can take the room for that.
		trace.WroteHeaders = func() {
			tr.end(&tr.headers)
			s.pool.share(c, now)
		}
	}
	req := (&http.Request{
		Method: http.MethodPost, URL: r.URL, Host: r.URL.Host, Header: r.Head.with(r.Header), // the connection may read it after we have returned
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(r.Body)), ContentLength: int64(len(r.Body)),
	}).WithContext(httptrace.WithClientTrace(ctx, trace))
	resp, err := c.frames.RoundTrip(req)
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errTimeout):
		// It may have died, or its other side take requests and never answer.
		return answer{}, errTimeout
	case ctx.Err() == nil && tr.headers.Load() == 0:
		if tr.kept {
			return answer{}, errUnsent
		}
		return answer{}, c.unsent(err)
	default:
		keep = true
		return answer{}, err
	}
	s.pool.share(c, now) // the answer may be here before we know that the head was sent
	a := answer{status: resp.StatusCode, header: resp.Header}
	// The status has decided. The body gets a moment of its own, and is cut off
	// by closing it. Reading and closing tell the receiver how much room there is,
	// which it may not let us: then there is nothing for it but the socket.
	rest := bodyLimit(tr, r.Timeout)
	limit.Reset(rest)
	stuck := time.AfterFunc(rest+writeGrace, c.breakOff)
	defer stuck.Stop()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	a.body, keep = readBody(resp.Body, resp.ContentLength, hook.MaxKeptBody+r.Redact.reach())
	stop()
	_ = resp.Body.Close() // the answer is in; what closing says is of no use
	return a, nil
}

// unsent says why nothing was sent on a new connection, where HTTP/2 has no more to
// say than that nothing can be.
func (c *conn) unsent(err error) error {
	switch err.Error() {
	case "http2: client conn could not be established":
		err = errFrames // it has ended, and not for want of anything to read
	case "http2: client conn not usable":
		err = errNoRoom
	case "http2: request header list larger than peer's advertised limit":
		return errNoRoom
	default:
		return err
	}
	if cut := c.plain.cut.Load(); cut != nil {
		return *cut
	}
	return err
}

// plaintext is what HTTP/2 is spoken on.
type plaintext struct {
	*tls.Conn
	cut atomic.Pointer[error] // what ended the reading, if anything did
}

// Read is part of [net.Conn].
func (p *plaintext) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if err != nil {
		p.cut.CompareAndSwap(nil, &err)
	}
	return n, err
}
