package send

import (
	"context"
	"crypto/tls"
	"net"
	"net/http/httptrace"
	"net/url"
	"time"

	"golang.org/x/net/http/httpguts"
)

// dialFor makes a connection for an attempt, within its limits.
func (s *Sender) dialFor(ctx context.Context, now time.Time, h host, r *Request, tr *trace) (*conn, error) {
	address, err := dialAddress(r.URL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithDeadline(ctx, tr.began.Add(r.Timeout))
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, tr.client())
	dial := s.dial
	if h.secure {
		dial = s.dialTLS
	}
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c.host, c.born = h, now
	return c, nil
}

// dialAddress is a URL's host and port.
func dialAddress(u *url.URL) (string, error) {
	authority, err := httpguts.PunycodeHostPort(u.Host)
	if err != nil {
		return "", errRequest
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	ascii := url.URL{Host: authority}
	return net.JoinHostPort(ascii.Hostname(), port), nil
}

func (s *Sender) dial(ctx context.Context, network, address string) (*conn, error) {
	c, err := s.o.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return newConn(c), nil
}

// dialTLS dials and shakes hands.
func (s *Sender) dialTLS(ctx context.Context, network, address string) (*conn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	c, err := s.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config := s.tls
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = name
	}
	t := httptrace.ContextClientTrace(ctx)
	if t != nil && t.TLSHandshakeStart != nil {
		t.TLSHandshakeStart()
	}
	c.tls = &records{Conn: c.socket}
	secure := tls.Client(c.tls, config)
	err = secure.HandshakeContext(ctx)
	state := secure.ConnectionState()
	if t != nil && t.TLSHandshakeDone != nil {
		t.TLSHandshakeDone(state, err)
	}
	if err != nil {
		_ = c.socket.Close() // the handshake's error says more
		return nil, &handshakeError{err}
	}
	if c.Conn = secure; state.NegotiatedProtocol == "h2" {
		c.http2, c.plain = true, &plaintext{Conn: secure}
		c.Conn, c.tls.meter = c.plain, newMeter()
	}
	return c, nil
}

// handshakeError marks what went wrong once a connection stood.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// tlsConfig is that of all connections.
func tlsConfig(given *tls.Config) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if given != nil {
		config = given.Clone()
		config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	return config
}
