package egress

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrBlocked is matched by every error of [Policy.DialContext] that means that
// the destination is not permitted, and by no other.
var ErrBlocked = errors.New("the destination is not allowed")

// BlockedError is the error of a dial that was not permitted. Its text is that
// of [ErrBlocked] and no more, as customers see it; the fields are for the
// operator's log, who may want to allow the address.
type BlockedError struct {
	// Host is the name or address that was to be dialled, with its port.
	Host string
	// Addrs are the addresses that were refused: none if the name itself was.
	Addrs []netip.Addr
}

// Error returns the text of [ErrBlocked].
func (e *BlockedError) Error() string { return ErrBlocked.Error() }

// LogValue is all that the operator should know.
func (e *BlockedError) LogValue() slog.Value {
	return slog.GroupValue(slog.String("host", e.Host), slog.Any("addresses", e.Addrs))
}

// Is reports whether target is [ErrBlocked].
func (e *BlockedError) Is(target error) bool { return target == ErrBlocked }

const (
	localhost = "localhost"

	// maxAddrs bounds the connections that one dial tries. A name's owner
	// chooses its addresses, and could otherwise have us knock at hundreds of
	// doors that are not theirs.
	maxAddrs = 8

	// minAddrTime is what every address but the last gets at least, out of the
	// time that is left: two retransmissions of the first packet fit in.
	minAddrTime = 2 * time.Second
)

// loopback are the addresses of localhost. They are fixed, as RFC 6761 section
// 6.3 asks, so that no resolver has a say in them.
func loopback() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

// DialContext connects to address ("host:port") over network "tcp", "tcp4" or
// "tcp6"; it fits [http.Transport.DialContext]. Names are resolved as absolute,
// so that search domains do not apply. The addresses that are permitted are
// tried in turn until the context's deadline, which is shared out among them;
// the others are passed over. Each socket's address is judged once more by the
// kernel's own view of it, immediately before the connection.
//
// Where there is a proxy, it is asked instead, and no name is resolved here.
//
// If nothing is permitted, the error is a [*BlockedError]. If the name cannot be
// resolved, it is a [*net.DNSError] that does not name the server asked. If the
// proxy did not make the connection, it is a [*ProxyError]. Otherwise it is the
// first address's.
//
// The hooks of [httptrace.ContextClientTrace] are called: DNSStart and DNSDone
// around a lookup (DNSDone tells the permitted addresses only), ConnectStart and
// ConnectDone around each connection.
func (p *Policy) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	lookup, ok := map[string]string{"tcp": "ip", "tcp4": "ip4", "tcp6": "ip6"}[network]
	if !ok {
		return nil, net.UnknownNetworkError(network)
	}
	rawHost, rawPort, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if strings.Contains(rawHost, ":") {
		rawHost = "[" + rawHost + "]"
	}
	port, ok := parsePort(rawPort)
	// The rules of the URL are asked again: an operator may have tightened them
	// since the webhook was made.
	h, err := parseHost(rawHost)
	if !ok || err != nil || !p.permits(h, port) {
		blocked := &BlockedError{Host: address}
		if h.addr.IsValid() {
			blocked.Addrs = []netip.Addr{h.addr}
		}
		return nil, blocked
	}

	if p.proxy != nil {
		return p.proxy.dial(ctx, net.JoinHostPort(h.String(), rawPort))
	}
	var candidates []netip.AddrPort
	switch {
	case h.addr.IsValid():
		candidates = []netip.AddrPort{netip.AddrPortFrom(h.addr, port)}
	case h.name == localhost:
		for _, addr := range loopback() {
			if destination := netip.AddrPortFrom(addr, port); p.judge(destination) {
				candidates = append(candidates, destination)
			}
		}
	default:
		if candidates, err = p.resolve(ctx, lookup, h.name, port); err != nil {
			return nil, err
		}
	}
	return p.dialFirst(ctx, network, address, candidates)
}

// dialFirst connects to the first candidate that answers.
func (p *Policy) dialFirst(ctx context.Context, network, address string, candidates []netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{Control: p.guard}
	var first error
	for i, candidate := range candidates {
		conn, err := dialWithin(ctx, &dialer, network, candidate, len(candidates)-i)
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, ErrBlocked) {
			// The dialer's text around it names the address.
			err = &BlockedError{Host: address, Addrs: []netip.Addr{candidate.Addr()}}
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// dialWithin connects to one candidate, which gets its share of the time that
// is left for it and those after it.
func dialWithin(ctx context.Context, dialer *net.Dialer, network string, candidate netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, addrTime(time.Until(deadline), left))
		defer cancel()
	}
	return dialer.DialContext(ctx, network, candidate.String())
}

// addrTime is how long the next of left addresses may take.
func addrTime(remaining time.Duration, left int) time.Duration {
	return max(remaining/time.Duration(left), minAddrTime)
}

// guard is the dialer's Control: the last word before a socket is connected.
func (p *Policy) guard(network, address string, c syscall.RawConn) error {
	destination, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" || !p.judge(destination) {
		return &BlockedError{Host: address}
	}
	if p.control == nil {
		return nil
	}
	return p.control(network, address, c)
}

// resolve looks up a name and returns those of its addresses that are permitted,
// at most maxAddrs, in the resolver's order of preference.
func (p *Policy) resolve(ctx context.Context, lookup, name string, port uint16) ([]netip.AddrPort, error) {
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.DNSStart != nil {
		trace.DNSStart(httptrace.DNSStartInfo{Host: name})
	}
	// The standard resolver calls the trace as well: without the context's
	// values it does not find it.
	addrs, err := p.resolver.LookupNetIP(withoutValues{ctx}, lookup, name+".")
	if err != nil {
		err = dnsError(name, err)
	} else if len(addrs) == 0 {
		err = &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	var permitted []netip.AddrPort
	var blocked []netip.Addr
	for _, addr := range addrs {
		// The standard resolver returns IPv4 addresses in their IPv6 form.
		destination := netip.AddrPortFrom(addr.Unmap(), port)
		if !p.judge(destination) {
			blocked = append(blocked, addr)
		} else if len(permitted) < maxAddrs && !slices.Contains(permitted, destination) {
			permitted = append(permitted, destination)
		}
	}
	if err == nil && len(permitted) == 0 {
		err = &BlockedError{Host: net.JoinHostPort(name, portText(port)), Addrs: blocked}
	}
	if trace != nil && trace.DNSDone != nil {
		info := httptrace.DNSDoneInfo{Err: err}
		for _, destination := range permitted {
			info.Addrs = append(info.Addrs, net.IPAddr{IP: destination.Addr().AsSlice()})
		}
		trace.DNSDone(info)
	}
	if err != nil {
		return nil, err
	}
	return permitted, nil
}

// dnsError says why a lookup failed without the addresses of our resolvers,
// which the original's text has. The original can still be unwrapped.
func dnsError(name string, err error) *net.DNSError {
	safe := &net.DNSError{UnwrapErr: err, Err: "lookup failed", Name: name}
	if original, ok := errors.AsType[*net.DNSError](err); ok {
		safe.IsTimeout, safe.IsTemporary, safe.IsNotFound = original.IsTimeout, original.IsTemporary, original.IsNotFound
	}
	switch {
	case safe.IsNotFound:
		safe.Err = "no such host"
	case errors.Is(err, context.Canceled):
		safe.Err = "canceled"
	case safe.IsTimeout || errors.Is(err, context.DeadlineExceeded):
		safe.Err, safe.IsTimeout = "timed out", true
	}
	return safe
}

// withoutValues is a context with its parent's end but none of its values.
type withoutValues struct{ context.Context }

// Value returns nil.
func (withoutValues) Value(any) any { return nil }
