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
