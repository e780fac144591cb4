package listener_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/listener"
)

// doorstep is a listener to which tests bring connections, from any address.
type doorstep chan net.Conn

func (d doorstep) Accept() (net.Conn, error) {
	c, ok := <-d
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (d doorstep) Close() error   { return nil }
func (d doorstep) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

type caller struct {
	net.Conn
	from net.Addr
}

func (c caller) RemoteAddr() net.Addr { return c.from }

// from is a connection from an address, and its other end.
func from(t *testing.T, address string) (ours, theirs net.Conn) {
	t.Helper()
	ours, theirs = net.Pipe()
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return caller{ours, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))}, theirs
}

const let = listener.Why("")

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits listener.Limits
		come   []string
		want   []listener.Why
	}{
		{"none", listener.Limits{}, []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"}, []listener.Why{let, let, let}},
		{"in all", listener.Limits{Total: 2}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"}, []listener.Why{let, let, listener.Total}},
		{
			"of an address", listener.Limits{Total: 9, PerAddress: 2},
			[]string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.2:1"}, []listener.Why{let, let, listener.Address, let},
		},
		{
			"of an IPv6 network", listener.Limits{PerAddress: 2},
			[]string{"[2001:db8::1]:1", "[2001:db8::ffff:1]:1", "[2001:db8:0:0:9::1]:1", "[2001:db8:0:1::1]:1"}, []listener.Why{let, let, listener.Address, let},
		},
		{
			"of an IPv4 address in an IPv6 one", listener.Limits{PerAddress: 1},
			[]string{"[::ffff:192.0.2.1]:1", "192.0.2.1:1", "[::ffff:192.0.2.2]:1"}, []listener.Why{let, listener.Address, let},
		},
		{
			"of an address of a link", listener.Limits{PerAddress: 1},
			[]string{"[fe80::1%a]:1", "[fe80::2%b]:1"}, []listener.Why{let, listener.Address},
		},
		{
			"but not of a proxy", listener.Limits{Total: 4, PerAddress: 1, Shared: func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.9") }},
			[]string{"192.0.2.9:1", "[::ffff:192.0.2.9]:2", "192.0.2.1:1", "192.0.2.1:2", "192.0.2.9:3", "192.0.2.9:4"}, []listener.Why{let, let, let, listener.Address, let, listener.Total},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []listener.Why
			tc.limits.Refused = func(why listener.Why) { got = append(got, why) }
			door := make(doorstep, len(tc.come))
			l := listener.Limit(door, tc.limits)
			let := 0
			for i, address := range tc.come {
				ours, theirs := from(t, address)
				door <- ours
				if tc.want[i] == "" {
					if _, err := l.Accept(); err != nil {
						t.Fatal(err)
					}
					got, let = append(got, ""), let+1
					continue
				}
				// It is closed, and Accept waits on: what comes next is let in.
				done := make(chan error, 1)
				go func() { _, err := l.Accept(); done <- err }()
				if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("%s reads %v", address, err)
				}
				close(door)
				if err := <-done; !errors.Is(err, net.ErrClosed) {
					t.Fatal(err)
				}
				door = make(doorstep, len(tc.come))
				l.Listener = door
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%q, want %q", got, tc.want)
			}
			if l.Open() != let {
				t.Errorf("%d open, want %d", l.Open(), let)
			}
		})
	}
}

// A connection that was closed makes room, once.
func TestRoomAgain(t *testing.T) {
	door := make(doorstep, 9)
	l := listener.Limit(door, listener.Limits{Total: 2, PerAddress: 1, Refused: func(why listener.Why) { t.Errorf("refused: %s", why) }})
	for range 5 {
		ours, _ := from(t, "192.0.2.1:1")
		door <- ours
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_ = c.Close()
		}
		if l.Open() != 0 {
			t.Fatalf("%d open", l.Open())
		}
	}
}

// Over the limit a client is told at once, whatever the others do.
func TestClosedAtOnce(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := listener.Limit(inner, listener.Limits{Total: 1})
	t.Cleanup(func() { _ = l.Close() })
	came := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	first := <-came
	// The system may tell of the end before there is a connection.
	if second, err := net.Dial("tcp", inner.Addr().String()); err == nil {
		_ = second.SetReadDeadline(time.Now().Add(time.Minute)) // the test's patience
		if n, err := second.Read(make([]byte, 1)); err == nil || errTimeout(err) != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		_ = second.Close()
	}
	_ = first.Close()
	if l.Open() != 0 {
		t.Error("a connection that was closed is counted")
	}
	dial()
	_ = (<-came).Close()
}

// errTimeout is err if it is a timeout, nil otherwise.
func errTimeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return err
	}
	return nil
}
