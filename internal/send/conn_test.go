package send

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/send/receivertest"
)

// TestPromptClose: to close a connection whose other side reads nothing does
// not outlast an attempt's second.
func TestPromptClose(t *testing.T) {
	r := receivertest.Start(t, receivertest.Step{TLS: "ok"})
	raw, err := net.Dial("tcp", r.URL[len("https://"):len(r.URL)-len("/hook")])
	if err != nil {
		t.Fatal(err)
	}
	deaf := &deafConn{Conn: raw}
	s := New(Options{TLS: r.ClientTLS(), Dial: func(context.Context, string, string) (net.Conn, error) { return deaf, nil }})
	c, err := s.dialTLS(t.Context(), "tcp", raw.RemoteAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_ = c.Close()
	if wait := deaf.deadline.Sub(began); wait <= 0 || wait > time.Second/2 {
		t.Errorf("closing may take %s", wait)
	}
}

// deafConn notes the first deadline that is set for writing.
type deafConn struct {
	net.Conn
	deadline time.Time
}

func (d *deafConn) SetWriteDeadline(t time.Time) error {
	if d.deadline.IsZero() {
		d.deadline = t
	}
	return d.Conn.SetWriteDeadline(t)
}

// TestDialing: of the connections that an attempt comes by over HTTP/2 it gets
// one to go on with, and no other is left open.
func TestDialing(t *testing.T) {
	var all []*silent
	made := func() *conn {
		c, s := unused(host{}, time.Now())
		all = append(all, s)
		return c
	}
	given, first := made(), made()
	d := &dialing{second: given}
	d.leave(first)
	d.leave(made()) // one too many
	if d.end() != first {
		t.Error("it was given another one")
	}
	d.leave(made()) // one too late
	for n, want := range []bool{true, false, true, true} {
		if got := all[n].closed.Load(); got != want {
			t.Errorf("connection %d is closed: %t", n+1, got)
		}
	}
	taken := made()
	d = &dialing{second: taken}
	if d.take() != taken || d.take() != nil || d.end() != nil || all[4].closed.Load() {
		t.Error("what the transport took is not its own")
	}
}
