package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/contain"
)

// Handshake says how connections come to speak TLS.
type Handshake struct {
	Config *tls.Config // required
	// Timeout is how long a handshake may take; default 10 s.
	Timeout time.Duration
	// Logger is told at debug of handshakes that failed. Default: nobody is.
	Logger *slog.Logger
	// Guard contains the panics of handshakes. Default: they end the process.
	Guard *contain.Guard
}

// secure is a listener whose connections have shaken hands.
type secure struct {
	net.Listener
	o      Handshake
	ctx    context.Context //nolint:containedctx // the listener's life
	cancel context.CancelFunc
	wg     sync.WaitGroup
	came   chan arrival
}

type arrival struct {
	conn net.Conn
	err  error
}

// Secure makes connections speak TLS. Accept gives them out, each a *tls.Conn, once
// they have shaken hands, so that what is said on them can be watched: each shakes
// hands in a goroutine of its own, which ends with Close at the latest.
func Secure(l net.Listener, o Handshake) net.Listener {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &secure{Listener: l, o: o, came: make(chan arrival)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.take)
	return s
}

// Accept waits for the next connection that has shaken hands.
func (s *secure) Accept() (net.Conn, error) {
	select {
	case a := <-s.came:
		return a.conn, a.err
	case <-s.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the listener and the handshakes that have not come to an end.
func (s *secure) Close() error {
	s.cancel()
	err := s.Listener.Close()
	s.wg.Wait()
	return err
}

// give hands out a connection, or an error, to the next Accept.
func (s *secure) give(a arrival) bool {
	select {
	case s.came <- a:
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *secure) take() {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			// Whoever accepts decides how long to wait, if there are no files left, say.
			if !s.give(arrival{err: err}) || errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		s.wg.Go(func() { s.shake(c) })
	}
}

func (s *secure) shake(c net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, s.o.Timeout)
	defer cancel()
	t := tls.Server(c, s.o.Config)
	err := s.o.Guard.Try(contain.Request, "a TLS handshake", func() error { return t.HandshakeContext(ctx) })
	if err == nil && s.give(arrival{conn: t}) {
		return
	}
	if err != nil {
		s.o.Logger.Debug("a TLS handshake failed", "from", c.RemoteAddr().String(), "err", err)
		var record tls.RecordHeaderError
		if errors.As(err, &record) && record.Conn != nil && plainHTTP(record.RecordHeader) {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(c, "HTTP/1.0 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nThis port speaks HTTPS: the address must begin with https://\n")
		}
	}
	_ = c.Close()
}

// plainHTTP reports whether what should be TLS begins as a request does.
func plainHTTP(begin [5]byte) bool {
	switch string(begin[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO":
		return true
	default:
		return false
	}
}
