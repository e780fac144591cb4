package send

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/id"
)

// connectionLife is how long a connection is used at most, so that a name that
// moved to another address is followed.
const connectionLife = 5 * time.Minute

// What a tenant's pool may keep and buffer.
const (
	maxIdle        = 512      // kept connections of a tenant, the longest unused goes first
	maxIdlePerHost = 128      // twice the most that one webhook has in flight
	streamWindow   = 64 << 10 // bytes that an HTTP/2 receiver may send ahead, per request
	connWindow     = 1 << 20  // and per connection
)

// An HTTP/2 connection carries every request to its host, so one that died in
// silence has to be noticed: when nothing came for a while, it is asked.
const (
	pingAfter  = 10 * time.Second
	pingAnswer = 5 * time.Second
)

// pool is a tenant's connections: a tenant never waits for another's.
type pool struct {
	transport *http.Transport
	born      time.Time
}

// Close closes the connections that are idle; those in use close when their
// attempt ends.
func (s *Sender) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pools {
		p.transport.CloseIdleConnections()
	}
	clear(s.pools)
}

func (s *Sender) transport(tenant id.Tenant) http.RoundTripper {
	now := s.o.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.swept) > connectionLife {
		s.swept = now
		for t, p := range s.pools {
			if now.Sub(p.born) > connectionLife {
				// Those in use are closed when their attempt ends.
				p.transport.CloseIdleConnections()
				delete(s.pools, t)
			}
		}
	}
	p := s.pools[tenant]
	if p == nil || now.Sub(p.born) > connectionLife {
		if p != nil {
			p.transport.CloseIdleConnections()
		}
		p = &pool{transport: s.newTransport(), born: now}
		s.pools[tenant] = p
	}
	return p.transport
}

func (s *Sender) newTransport() *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.o.TLS != nil {
		config = s.o.TLS.Clone()
		config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	return &http.Transport{
		Proxy:       nil, // an environment's proxy would go around the guard
		DialContext: s.dial,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.dialTLS(ctx, network, address, config)
		},
		TLSClientConfig:        config, // dialTLS has the say; this configures HTTP/2
		ForceAttemptHTTP2:      true,
		DisableCompression:     true, // a compressed answer is kept as it came
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdlePerHost,
		IdleConnTimeout:        90 * time.Second,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     streamWindow,
			MaxReceiveBufferPerConnection: connWindow,
			SendPingTimeout:               pingAfter,
			PingTimeout:                   pingAnswer,
		},
	}
}

// dialLimit is when an attempt's dial has to end.
type dialLimit struct {
	caller   context.Context
	deadline time.Time
}

type dialLimitKey struct{}

// withDialLimit hands the limits of an attempt through to its dial. The
// transport detaches a dial from the request that asked for it, so without this
// a receiver that accepts and then keeps silent would hold a connection for
// every attempt long after it has ended.
func withDialLimit(ctx, caller context.Context, deadline time.Time) context.Context {
	return context.WithValue(ctx, dialLimitKey{}, dialLimit{caller, deadline})
}

// limited is a dial's context with the limits of its attempt.
func limited(ctx context.Context) (context.Context, context.CancelFunc) {
	l, ok := ctx.Value(dialLimitKey{}).(dialLimit)
	if !ok {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithDeadline(ctx, l.deadline)
	stop := context.AfterFunc(l.caller, cancel)
	return ctx, func() { stop(); cancel() }
}

func (s *Sender) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := limited(ctx)
	defer cancel()
	c, err := s.o.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c}, nil
}

// dialTLS dials and shakes hands within the limits of the attempt.
func (s *Sender) dialTLS(ctx context.Context, network, address string, config *tls.Config) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := limited(ctx)
	defer cancel()
	plain, err := s.o.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = host
	}
	t := httptrace.ContextClientTrace(ctx)
	if t != nil && t.TLSHandshakeStart != nil {
		t.TLSHandshakeStart()
	}
	c := tls.Client(promptClose{plain}, config)
	err = c.HandshakeContext(ctx)
	state := c.ConnectionState()
	if t != nil && t.TLSHandshakeDone != nil {
		t.TLSHandshakeDone(state, err)
	}
	if err != nil {
		_ = plain.Close() // the handshake's error says more
		return nil, &handshakeError{err}
	}
	if state.NegotiatedProtocol == "h2" {
		return c, nil // the transport knows HTTP/2 by the type
	}
	return &conn{Conn: c}, nil
}

// handshakeError marks what went wrong once a connection stood.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// promptClose bounds the farewell of TLS: closing sends an alert, for which
// crypto/tls waits five seconds when the receiver reads nothing.
type promptClose struct{ net.Conn }

// SetWriteDeadline is called by nobody but the closing.
func (c promptClose) SetWriteDeadline(t time.Time) error {
	if latest := time.Now().Add(spare); t.After(latest) {
		t = latest
	}
	return c.Conn.SetWriteDeadline(t)
}

// conn is an HTTP/1 connection that knows whether anything was written, and
// whether its reader has reached the end of what came.
type conn struct {
	net.Conn
	written atomic.Int64

	mu      sync.Mutex
	reading bool          // a Read waits for the network
	closed  bool          // for good
	changed chan struct{} // if not nil, closed at the next change of the two
}

func (c *conn) set(reading, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading, c.closed = reading, c.closed || closed
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Read notes that all that came before has been looked at.
func (c *conn) Read(p []byte) (int, error) {
	c.set(true, false)
	defer c.set(false, false)
	return c.Conn.Read(p)
}

// Write counts.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// Close lets those go who wait for the reader.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.set(false, true)
	return err
}

// drained waits until nothing unread is left of what came. The transport hands
// a kept connection out a moment before it looks whether the receiver sent more
// than its answer; a request written in that moment would get the surplus for
// its answer. If there is a surplus, the transport closes the connection.
func (c *conn) drained(ctx context.Context) {
	for {
		c.mu.Lock()
		if c.reading || c.closed {
			c.mu.Unlock()
			return
		}
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
