// Package framing refuses requests whose end can be read in two ways: those
// that have both a Content-Length and a Transfer-Encoding (RFC 9112, 6.1 and
// 6.3). Package net/http takes them, as it may, and drops the length before a
// handler can see it. But a proxy in front that goes by the length would see
// other requests on the connection than we do, which is how one client's
// request is smuggled into another's.
//
// With TLS it stands between that and HTTP, and reads what was decrypted. HTTP/2 has
// frames, and so one length of a request (RFC 9113, 8.1.1, which net/http holds
// clients to): such connections are left alone.
//
// It promises that no such request comes to a handler, and that bytes are
// otherwise left as they are. It must not know what the requests are about.
package framing

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// ErrAmbiguous is what reading from a connection ends with once a request on it
// has both lengths. An HTTP server answers it with 400 and closes.
var ErrAmbiguous = errors.New("a request has both a Content-Length and a Transfer-Encoding (RFC 9112, 6.1)")

// Listen is l, whose connections watch what is read from them. Those that are of TLS
// must have shaken hands: it shows which protocol they speak.
func Listen(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

// Accept waits for the next connection.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t, ok := c.(*tls.Conn)
	if !ok {
		return &conn{Conn: c}, nil
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		return t, nil // net/http knows HTTP/2 by the type
	}
	return &secureConn{conn{Conn: t}, t}, nil
}

// secureConn is a conn of TLS. Package net/http asks it what was negotiated.
type secureConn struct {
	conn
	tls *tls.Conn
}

// ConnectionState is that of the connection's TLS.
func (c *secureConn) ConnectionState() tls.ConnectionState { return c.tls.ConnectionState() }

// conn looks at the beginning of each line that comes in. It need not know
// where a head ends and a body begins: JSON can't have a line that begins with
// these names, for in a string there are no line breaks.
type conn struct {
	net.Conn
	watch   watch
	refused atomic.Bool // as watch says, for Close, which may come at any time
}

// Read reads, until a request is ambiguous. Like every connection's, it is for
// one goroutine at a time.
func (c *conn) Read(b []byte) (int, error) {
	if c.watch.ambiguous() {
		return 0, ErrAmbiguous
	}
	n, err := c.Conn.Read(b)
	c.watch.see(b[:n])
	if c.watch.ambiguous() {
		c.refused.Store(true)
		return 0, ErrAmbiguous
	}
	return n, err
}

// How long, and for how many bytes, a refused client may go on sending.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// Close closes the connection. Of a refused client that is still sending, a
// little is read first: the system would otherwise reset the connection, and the
// client might not get to read the answer (RFC 9112, 9.6).
func (c *conn) Close() error {
	if c.refused.Load() && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes)
	}
	return c.Conn.Close()
}

// CloseWrite ends our side of the connection. Package net/http asks for it after
// a refusal, so that a client that is still sending gets to read the answer.
func (c *conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

const (
	contentLength    = "content-length:"
	transferEncoding = "transfer-encoding:"
)

// watch is what was seen of a head.
type watch struct {
	line           [len(transferEncoding)]byte // the beginning of the line that came last
	n              int                         // how much of it there is, at most what fits
	length, coding bool                        // whether the head has them
}

func (w *watch) ambiguous() bool { return w.length && w.coding }

// see takes the next bytes. Once they are ambiguous, it stays so.
func (w *watch) see(b []byte) {
	for !w.ambiguous() {
		end := bytes.IndexByte(b, '\n')
		text := b
		if end >= 0 {
			text = b[:end]
		}
		w.n += copy(w.line[w.n:], text)
		w.judge(end >= 0)
		if end < 0 {
			return
		}
		w.n, b = 0, b[end+1:]
	}
}

// judge looks at the line, of which the end may not have come yet.
func (w *watch) judge(ended bool) {
	line := w.line[:w.n]
	switch {
	case hasPrefixFold(line, contentLength):
		w.length = true
	case hasPrefixFold(line, transferEncoding):
		w.coding = true
	case ended && (len(line) == 0 || len(line) == 1 && line[0] == '\r'):
		w.length, w.coding = false, false // the head ends
	}
}

func hasPrefixFold(line []byte, prefix string) bool {
	return len(line) >= len(prefix) && bytes.EqualFold(line[:len(prefix)], []byte(prefix))
}
