// Package listener takes in connections: no more than there is room for, no more
// from one address than is its share, and with TLS, if the server has a certificate.
//
// It promises that a connection that does nothing, or comes to nothing, keeps nobody
// waiting: Accept gives out one after the other, whatever those before them do. It
// must not know what is said on them.
package listener

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/plinqx/hypha/internal/ratelimit"
)

// Why says why a connection was closed as soon as it came.
type Why string

// The reasons.
const (
	// Total: there are as many connections as there may be.
	Total Why = "total"
	// Address: there are as many from this address.
	Address Why = "address"
)

// Reasons are all that there are.
func Reasons() []Why { return []Why{Total, Address} }

// Limits bound the connections that are open at once.
type Limits struct {
	// Total is the most in all, PerAddress the most from one IPv4 address or one
	// IPv6 network of 64 bits, which is what a single customer of a provider has. 0
	// is no limit.
	Total, PerAddress int
	// Shared reports an address that many clients stand behind, such as a proxy's:
	// PerAddress is not for it. Default: none is.
	Shared func(netip.Addr) bool
	// Refused is told of each connection that was closed as soon as it came. It must
	// not wait.
	Refused func(why Why)
}

// Limited is a listener with limits. It is safe for concurrent use.
type Limited struct {
	net.Listener
	o Limits

	mu   sync.Mutex
	open int
	of   map[netip.Prefix]int
}

// Limit puts limits on a listener.
func Limit(l net.Listener, o Limits) *Limited {
	if o.Shared == nil {
		o.Shared = func(netip.Addr) bool { return false }
	}
	if o.Refused == nil {
		o.Refused = func(Why) {}
	}
	return &Limited{Listener: l, o: o, of: make(map[netip.Prefix]int)}
}

// Open is how many connections are open.
func (l *Limited) Open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

// Accept waits for a connection that is within the limits. Those that are not are
// closed: to keep them waiting would keep all the others waiting that come after.
func (l *Limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := l.network(c.RemoteAddr())
		why := l.take(from)
		if why == "" {
			return &limited{Conn: c, l: l, from: from}, nil
		}
		l.o.Refused(why)
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // or the system would remember it for a minute
		}
		_ = c.Close()
	}
}

// network is what an address is counted by; not valid if it is not to be.
func (l *Limited) network(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr()
	if l.o.PerAddress == 0 || l.o.Shared(ip.Unmap().WithZone("")) {
		return netip.Prefix{}
	}
	return ratelimit.Network(ip)
}

func (l *Limited) take(from netip.Prefix) Why {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.o.Total > 0 && l.open >= l.o.Total:
		return Total
	case from.IsValid() && l.of[from] >= l.o.PerAddress:
		return Address
	}
	l.open++
	if from.IsValid() {
		l.of[from]++
	}
	return ""
}

func (l *Limited) give(from netip.Prefix) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if !from.IsValid() {
		return
	}
	if l.of[from]--; l.of[from] == 0 {
		delete(l.of, from)
	}
}

// limited is a connection that is counted until it is closed.
type limited struct {
	net.Conn
	l      *Limited
	from   netip.Prefix
	closed atomic.Bool
}

// Close closes the connection.
func (c *limited) Close() error {
	err := c.Conn.Close()
	if !c.closed.Swap(true) {
		c.l.give(c.from)
	}
	return err
}

// CloseWrite ends our side of the connection.
func (c *limited) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return net.ErrClosed
}
