package send

import (
	"bufio"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/net/http2"
)

// farewell is what closing a TLS connection may wait for its alert to leave. It
// always can at once, save where the receiver reads nothing: crypto/tls would
// give that one five seconds. Whoever closes may have a whole list to close.
const farewell = time.Millisecond

// conn is a connection. One of HTTP/1.1 one attempt has at a time; between them it
// is kept. One of HTTP/2 is shared.
type conn struct {
	net.Conn          // what HTTP is spoken on
	socket   net.Conn // what stands at the bottom: the same one without TLS
	tls      *records // what TLS is spoken on; nil without
	probe    *probe   // nil where the socket can't be asked
	breakOff func()   // ends whatever waits for the socket
	host     host
	born     time.Time // as Options.Now says

	// Of HTTP/2.
	http2    bool              // the receiver chose it
	plain    *plaintext        // the same as Conn
	frames   *http2.ClientConn // once it has begun
	attempts int               // that have it now; the pool's, as is the rest
	shared   bool              // others than who made it may use it
	retired  bool              // nobody begins to use it any more

	// While it is unused.
	used time.Time // since when, by our own clock
	at   [lists]place
}

func newConn(socket net.Conn) *conn {
	return &conn{
		Conn: socket, socket: socket, probe: newProbe(socket),
		breakOff: func() { _ = socket.Close() }, // nobody is left to be told
	}
}

// discard closes a connection, if there is one. What closing says is of no use.
func (c *conn) discard() {
	if c != nil {
		_ = c.Close()
	}
}

// old reports whether the connection has been used long enough.
func (c *conn) old(now time.Time) bool { return now.Sub(c.born) > connectionLife }

// quiet reports whether nothing has come on a kept connection. What came is its
// end, or more than an answer: the next request would get that for its own.
func (c *conn) quiet() bool {
	if c.probe != nil {
		return c.probe.quiet()
	}
	// No way to ask without waiting: a deadline in the past reads nothing.
	if c.socket.SetReadDeadline(time.Now().Add(time.Millisecond)) != nil {
		return false
	}
	var b [1]byte
	n, err := c.socket.Read(b[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// settled reports whether nothing is left over of what was read off the socket:
// neither in the reader nor, where the socket can't tell, inside TLS.
func (c *conn) settled(in *bufio.Reader) bool {
	if in.Buffered() > 0 {
		return false
	}
	if c.tls == nil {
		return true
	}
	c.tls.dry = true
	_, err := in.Peek(1)
	c.tls.dry = false
	return errors.Is(err, errDry) && c.tls.between()
}

// write reports whether anything was sent, were it one byte.
func (c *conn) write(p []byte) (sent bool, err error) {
	if c.tls == nil {
		n, err := c.Write(p)
		return n > 0, err
	}
	before := c.tls.wrote
	_, err = c.Write(p)
	return c.tls.wrote > before, err
}

// records is the socket below TLS. It follows the records that come
// (RFC 8446, section 5.1), to know whether one has come in part.
type records struct {
	net.Conn
	wrote int64  // bytes; the writer's alone
	meter *meter // of what is read; nil if that is bounded elsewhere

	dry    bool    // reading finds nothing, instead of waiting
	header [5]byte // of a record: its length is in the last two
	have   int     // bytes of the header
	rest   int     // bytes to come of what follows it
}

func (r *records) Read(p []byte) (int, error) {
	if r.dry {
		return 0, errDry
	}
	if r.meter != nil {
		if r.meter.spent() {
			return 0, errFlood
		}
		n, err := r.Conn.Read(p)
		r.meter.spend(n)
		return n, err
	}
	n, err := r.Conn.Read(p)
	r.follow(p[:n])
	return n, err
}

func (r *records) follow(p []byte) {
	for len(p) > 0 {
		if r.rest > 0 {
			n := min(r.rest, len(p))
			r.rest -= n
			p = p[n:]
			continue
		}
		n := copy(r.header[r.have:], p)
		r.have += n
		p = p[n:]
		if r.have == len(r.header) {
			r.have, r.rest = 0, int(r.header[3])<<8|int(r.header[4])
		}
	}
}

// between reports whether what came ends with a record.
func (r *records) between() bool { return r.have == 0 && r.rest == 0 }

func (r *records) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	r.wrote += int64(n)
	return n, err
}

// SetWriteDeadline is called by nobody but the closing.
func (r *records) SetWriteDeadline(t time.Time) error {
	if latest := time.Now().Add(farewell); t.After(latest) {
		t = latest
	}
	return r.Conn.SetWriteDeadline(t)
}

// dryError is what reading a dry socket finds. To crypto/tls it is a timeout,
// after which a connection can be used on.
type dryError string

const errDry dryError = "nothing more has come"

func (e dryError) Error() string { return string(e) }

// Timeout is part of [net.Error].
func (dryError) Timeout() bool { return true }

// Temporary is part of [net.Error].
func (dryError) Temporary() bool { return true }
