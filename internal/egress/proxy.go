package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/proxy"
)

// maxProxyAnswer bounds what is read of a proxy's answers before its tunnel
// stands, in bytes, interim answers included.
const maxProxyAnswer = 16 << 10

// Proxy is a forward proxy that is asked for every connection: an HTTP one by
// CONNECT (RFC 9110, section 9.3.6), also for receivers without TLS, so that it
// sees of a request no more than it must; or a SOCKS5 one (RFC 1928, RFC 1929).
// Names go to it as they are: it resolves them.
type Proxy struct {
	secure  bool // CONNECT over TLS
	socks   bool
	address string // host and port
	user    *url.Userinfo
	tls     *tls.Config // for one that is spoken to over TLS
}

var errNotProxy = errors.New("is not the URL of a proxy, such as http://proxy.example.com:3128, https://user:password@proxy.example.com or socks5://10.0.0.3:1080: without a path, and with percent escapes for what is not a letter or a digit in user and password")

// ParseProxy reads the URL of a proxy: http, https, socks5 or socks5h (which is
// the same, since names are never resolved here), with the port 80, 443 or 1080
// if it has none, and with the user and the password to show if it has those. An
// error does not repeat the URL, which may hold a password.
func ParseProxy(raw string) (*Proxy, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" || u.Opaque != "" || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(raw, "?#") {
		return nil, errNotProxy
	}
	port, ok := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	if !ok {
		return nil, errNotProxy
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if _, ok := parsePort(port); !ok || strings.HasSuffix(u.Host, ":") {
		return nil, errors.New("has a port that is not a number from 1 to 65535")
	}
	// url.Parse takes colons and brackets within a name too, as of an IPv6 address
	// whose brackets were forgotten.
	if host := u.Hostname(); strings.ContainsAny(host, ":[]") {
		if _, err := netip.ParseAddr(host); err != nil || u.Host[0] != '[' {
			return nil, errNotProxy
		}
	}
	p := &Proxy{secure: u.Scheme == "https", socks: strings.HasPrefix(u.Scheme, "socks5"), address: net.JoinHostPort(u.Hostname(), port), user: u.User}
	if p.secure {
		p.tls = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	if p.user == nil {
		return p, nil
	}
	name, password := p.credentials()
	switch {
	case name == "":
		return nil, errors.New("has a password and no user: write user:password@ before the host")
	case !p.socks && strings.Contains(name, ":"):
		return nil, errors.New("has a user with a colon, which can't be sent to an HTTP proxy (RFC 7617)")
	case p.socks && (len(name) > 255 || len(password) > 255):
		return nil, errors.New("has a user or a password of more than 255 bytes, which can't be sent to a SOCKS5 proxy (RFC 1929)")
	}
	return p, nil
}

// String is the proxy's URL without user and password.
func (p *Proxy) String() string {
	scheme := "http"
	switch {
	case p.secure:
		scheme = "https"
	case p.socks:
		scheme = "socks5"
	}
	return scheme + "://" + p.address
}

// LogValue is what the log has of a proxy.
func (p *Proxy) LogValue() slog.Value { return slog.StringValue(p.String()) }

func (p *Proxy) credentials() (name, password string) {
	password, _ = p.user.Password()
	return p.user.Username(), password
}

// ProxyReason says why a proxy did not make a connection.
type ProxyReason uint8

// The reasons.
const (
	// ProxyFailed: it can't be reached, refuses us, or does not answer as a proxy
	// does.
	ProxyFailed ProxyReason = iota
	// ProxyForbids: it does not let this destination be reached.
	ProxyForbids
	// ProxyUnreached: it says that it could not reach the destination.
	ProxyUnreached
	// ProxySilent: it was asked for the destination, and gave no answer in time or
	// closed the connection. Either of the two may be why.
	ProxySilent
)

// ProxyError is the error of a dial that the proxy did not carry out. Its text is
// for customers; what it has more is for the operator's log. It does not unwrap:
// what is wrong on the way to the proxy is nothing of the destination's.
type ProxyError struct {
	Reason ProxyReason
	// Proxy is its URL, without user and password.
	Proxy string
	// Host is the name or address that was asked for, with its port.
	Host string
	// Err says what went wrong. Nothing that the proxy wrote is quoted: it may
	// write the password that it was shown.
	Err error
}

// Error says no more than that the proxy is at fault.
func (e *ProxyError) Error() string { return "the proxy did not make the connection" }

// LogValue is all that the operator should know.
func (e *ProxyError) LogValue() slog.Value {
	return slog.GroupValue(slog.String("proxy", e.Proxy), slog.String("host", e.Host), slog.String("err", e.Err.Error()))
}

// faultError is an error with what it says of the proxy.
type faultError struct {
	reason ProxyReason
	text   string
}

func (f *faultError) Error() string { return f.text }

// dial has the proxy connect to target, a host and port. The trace's connection
// lasts until the tunnel stands.
func (p *Proxy) dial(ctx context.Context, target string) (net.Conn, error) {
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.ConnectStart != nil {
		trace.ConnectStart("tcp", target)
	}
	// The dialer would call the trace with the proxy's own lookup and address.
	conn, err := p.tunnel(withoutValues{ctx}, target)
	if err != nil {
		failed := &ProxyError{Proxy: p.String(), Host: target, Err: err}
		if fault, ok := errors.AsType[*faultError](err); ok {
			failed.Reason = fault.reason
		}
		err = failed
	}
	if trace != nil && trace.ConnectDone != nil {
		trace.ConnectDone("tcp", target, err)
	}
	return conn, err
}

func (p *Proxy) tunnel(ctx context.Context, target string) (net.Conn, error) {
	var dialer net.Dialer
	socket, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	// Whatever the proxy does, it can't hold us for longer than the context.
	stop := context.AfterFunc(ctx, func() { _ = socket.SetDeadline(time.Unix(1, 0)) })
	conn, err := p.ask(ctx, socket, target)
	if !stop() && err == nil {
		err = ctx.Err() // the connection has a deadline in the past, or gets one yet
	}
	if err != nil {
		_ = socket.Close() // what went wrong is known
		return nil, err
	}
	return conn, nil
}

// ask has the tunnel made on a connection to the proxy, and returns what to speak
// to the destination on.
func (p *Proxy) ask(ctx context.Context, socket net.Conn, target string) (net.Conn, error) {
	conn := socket
	if p.secure {
		secure := tls.Client(socket, p.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("the TLS handshake with the proxy: %w", err)
		}
		conn = &secureTunnel{Conn: secure, socket: socket}
	}
	a := newAsking(conn)
	ask := p.connect
	if p.socks {
		ask = p.connectSOCKS
	}
	switch err := ask(ctx, a, target); {
	case err != nil:
		return nil, err
	case a.in.Buffered() > 0:
		// The destination can't have spoken: it was told nothing yet. What would
		// be taken for its answer may be the proxy's.
		return nil, errors.New("more came behind the proxy's answer, before anything was sent through it")
	}
	return conn, nil
}

// connect asks an HTTP proxy.
func (p *Proxy) connect(_ context.Context, a *asking, target string) error {
	request := "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n"
	if p.user != nil {
		name, password := p.credentials()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(a.Conn, request+"\r\n"); err != nil {
		return cutOff(err, a.some)
	}
	for {
		answer, err := http.ReadResponse(a.in, &http.Request{Method: http.MethodConnect}) //nolint:bodyclose // an answer to CONNECT has none that is ours: a tunnel begins there
		switch {
		case err != nil && a.err != nil:
			return cutOff(a.err, a.some)
		case err != nil:
			return errors.New("the proxy's answer is not HTTP") // the error would quote it
		}
		switch status := answer.StatusCode; {
		case status >= 100 && status <= 199 && status != http.StatusSwitchingProtocols:
		case status >= 200 && status <= 299:
			return nil
		default:
			return &faultError{statusReason(status), strings.TrimSpace(fmt.Sprintf("the proxy answered %d %s", status, http.StatusText(status)))}
		}
	}
}

// statusReason sorts what proxies answer instead of a tunnel. The standard has
// no more to say than that it is an error; this is what they use.
func statusReason(status int) ProxyReason {
	switch {
	case status == http.StatusForbidden:
		return ProxyForbids
	case status >= 500 && status <= 599:
		return ProxyUnreached
	default:
		return ProxyFailed
	}
}

// connectSOCKS asks a SOCKS5 proxy.
func (p *Proxy) connectSOCKS(ctx context.Context, a *asking, target string) error {
	var auth *proxy.Auth
	if p.user != nil {
		name, password := p.credentials()
		auth = &proxy.Auth{User: name, Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", p.address, auth, connected{a})
	if err != nil {
		return err
	}
	through, ok := dialer.(proxy.ContextDialer)
	if !ok {
		return errors.New("the SOCKS5 dialer takes no context")
	}
	_, err = through.DialContext(ctx, "tcp", target)
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case err == nil:
		return nil
	case a.err != nil:
		return cutOff(a.err, a.some)
	case ok && strings.HasPrefix(op.Op, "socks"):
		err = op.Err // the rest of its text is the two addresses
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "write" {
		return cutOff(err, a.some)
	}
	return &faultError{replyReason(err.Error()), "SOCKS5: " + err.Error()}
}

// replyReason sorts the replies of RFC 1928, section 6. The library tells them
// apart by their text alone.
func replyReason(text string) ProxyReason {
	reply, ok := strings.CutPrefix(text, "unknown error ")
	switch {
	case !ok:
		return ProxyFailed
	case reply == "connection not allowed by ruleset":
		return ProxyForbids
	case slices.Contains([]string{"general SOCKS server failure", "network unreachable", "host unreachable", "connection refused", "TTL expired"}, reply):
		return ProxyUnreached
	default:
		return ProxyFailed
	}
}

// errProxyAnswer is what follows the last byte that is read of a proxy's answer.
var errProxyAnswer = fmt.Errorf("the proxy's answer is over %d KiB", maxProxyAnswer>>10)

// cutOff is what an answer's end comes to that is none: err ended the connection,
// and some of the answer had come or not.
func cutOff(err error, some bool) error {
	late := errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
	switch {
	case errors.Is(err, errProxyAnswer):
		return err
	case late && some:
		return &faultError{ProxySilent, "the proxy's answer was not complete in time"}
	case late:
		return &faultError{ProxySilent, "the proxy did not answer in time"}
	case some:
		return errors.New("the proxy closed the connection within its answer")
	default:
		return &faultError{ProxySilent, "the proxy closed the connection without an answer"}
	}
}

// asking is a connection whose tunnel does not stand yet. What is read of it goes
// through a buffer, so that what is left over can be seen, and is bounded.
type asking struct {
	net.Conn
	in   *bufio.Reader
	left int   // bytes that may be read yet
	some bool  // something came
	err  error // what ended it
}

func newAsking(conn net.Conn) *asking {
	a := &asking{Conn: conn, left: maxProxyAnswer}
	a.in = bufio.NewReader(readerFunc(a.fill))
	return a
}

func (a *asking) Read(p []byte) (int, error) { return a.in.Read(p) }

func (a *asking) fill(p []byte) (n int, err error) {
	if a.left <= 0 {
		a.err = errProxyAnswer
		return 0, a.err
	}
	n, err = a.Conn.Read(p[:min(len(p), a.left)])
	a.left -= n
	a.some = a.some || n > 0
	a.err = err
	return n, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// connected is a dialer for a connection that there is.
type connected struct{ conn net.Conn }

// Dial is part of [proxy.Dialer].
func (c connected) Dial(string, string) (net.Conn, error) { return c.conn, nil }

// DialContext is part of [proxy.ContextDialer].
func (c connected) DialContext(context.Context, string, string) (net.Conn, error) { return c.conn, nil }

// secureTunnel is a tunnel inside of TLS to the proxy.
type secureTunnel struct {
	*tls.Conn
	socket net.Conn
}

// Close closes the socket alone: crypto/tls would wait up to five seconds for a
// proxy that reads nothing to take its farewell.
func (s *secureTunnel) Close() error { return s.socket.Close() }
