package send_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/egress"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// panicking is a connection whose writes panic, from the one that is told.
type panicking struct {
	net.Conn
	from, writes int
	closed       *atomic.Int32
}

func (p *panicking) Write(b []byte) (int, error) {
	if p.writes++; p.writes >= p.from {
		panic(ownSecret)
	}
	return p.Conn.Write(b)
}

func (p *panicking) Close() error {
	p.closed.Add(1)
	return p.Conn.Close()
}

// A panic in the goroutine that writes a long body fails its attempt; one in the
// attempt's own goes to the caller. Either way the connection is closed, and the
// next attempt goes through.
func TestPanics(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from     int // the write that panics
		contains bool
	}{
		{"while the body is written", 2, true},
		{"while the head is written", 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := receivertest.Start(t, receivertest.Step{Send: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}, receivertest.Step{Keep: true})
			dial, broken := guard(t, egress.Options{Allow: loopback(), Resolver: r}), atomic.Bool{}
			var closed atomic.Int32
			var log bytes.Buffer
			counted := 0
			s := send.New(send.Options{
				TLS: r.ClientTLS(),
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					c, err := dial(ctx, network, address)
					if err == nil && broken.Load() {
						c = &panicking{Conn: c, from: tc.from, closed: &closed}
					}
					return c, err
				},
				Guard: contain.New(contain.Options{
					Logger: slog.New(slog.NewTextHandler(&log, nil)), Counted: func(contain.Where) { counted++ }, End: func() { t.Error("the process ends") },
				}),
			})
			t.Cleanup(s.Close)
			broken.Store(true)
			body := bytes.Repeat([]byte("x"), 1<<20)
			var recovered any
			func() {
				defer func() { recovered = recover() }()
				a := s.Send(t.Context(), request(t, r.URL, body, patience))
				if kindOf(a) != hook.FailureInternal || a.Failure.Message != "the attempt failed within the server" {
					t.Errorf("%d, %+v", a.StatusCode, a.Failure)
				}
			}()
			if (recovered == nil) != tc.contains || (counted == 1) != tc.contains {
				t.Errorf("recovered %v, counted %d", recovered, counted)
			}
			if closed.Load() == 0 {
				t.Error("the connection is open")
			}
			if strings.Contains(log.String(), ownSecret) {
				t.Errorf("logged:\n%s", &log)
			}
			broken.Store(false)
			if a := s.Send(t.Context(), request(t, r.URL, []byte("{}"), patience)); a.Failure != nil {
				t.Errorf("the next: %+v", a.Failure)
			}
		})
	}
}
