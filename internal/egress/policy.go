package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"code.dny.dev/ssrf"
)

// Options says what a [Policy] permits beyond the public internet, and with
// what it works. The zero value permits public addresses on [DefaultPorts].
type Options struct {
	// Allow lists networks that may be reached although they are not public,
	// such as 127.0.0.0/8 on a laptop. A network that holds an embedded IPv4
	// address in a known place (64:ff9b::/96, 2002::/16, ::/96, 2001::/32,
	// ::ffff:0:0:0/96, ISATAP) opens only such addresses of it whose IPv4 address
	// is permitted too. In 64:ff9b:1::/48 the place is the operator's choice (RFC
	// 8215), so there only what is never reached is refused, in each place that it
	// may be; the translator has to filter the rest. Link-local addresses and those
	// of clouds' metadata services are not opened by any network.
	Allow []netip.Prefix

	// Deny lists networks that are never reached. It wins over Allow.
	Deny []netip.Prefix

	// Ports that may be connected to; empty means [DefaultPorts].
	Ports Ports

	// OwnListeners are the addresses that this process listens on, as bound
	// (so with the real port, never 0). They are never reached, even inside
	// Allow: a webhook must not turn this server's own API upon itself. An
	// unspecified address, such as 0.0.0.0:8080, stands for that port on every
	// address of this machine.
	OwnListeners []netip.AddrPort

	// Proxy, if set, is asked for every connection. The rules of URLs hold as
	// without it: ports, refused names, and addresses written as such. But what a
	// name leads to is the proxy's to judge, and so is what "localhost" means
	// where that is allowed. The proxy itself is dialled wherever it stands.
	Proxy *Proxy

	// Resolver turns names into addresses; nil means [net.DefaultResolver]. It is
	// not asked where there is a proxy.
	Resolver Resolver

	// InterfaceAddrs lists this machine's addresses, which an unspecified one
	// among OwnListeners stands for; nil means [net.InterfaceAddrs].
	InterfaceAddrs func() ([]net.Addr, error)

	// Control, if set, runs on every socket after its address was permitted
	// and before it is connected, as [net.Dialer.Control] does. Its error ends
	// the attempt at that address.
	Control func(network, address string, c syscall.RawConn) error
}

// Resolver looks up the addresses of a name. [net.Resolver] is one.
type Resolver interface {
	// LookupNetIP returns the addresses of host. The network is "ip", "ip4" or
	// "ip6"; the host is an absolute name, with its trailing dot.
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Policy judges URLs and addresses, and dials. It does not change after [New]
// and may be used from several goroutines at once.
type Policy struct {
	deny           []netip.Prefix
	ports          Ports
	own            []netip.AddrPort
	proxy          *Proxy // nil for none
	resolver       Resolver
	interfaceAddrs func() ([]net.Addr, error)
	control        func(network, address string, c syscall.RawConn) error

	guardian *ssrf.Guardian

	// privateNames is set where the operator allows private networks: then
	// names that only a private resolver knows have a use, and their addresses
	// are judged on the dial as any other.
	privateNames bool
}

// New builds a Policy. All problems of the options are reported together, in an
// error made by [errors.Join].
func New(o Options) (*Policy, error) {
	var problems []error
	for _, list := range []struct {
		name     string
		prefixes []netip.Prefix
	}{{"allowed", o.Allow}, {"denied", o.Deny}} {
		for _, prefix := range list.prefixes {
			if err := checkPrefix(prefix); err != nil {
				problems = append(problems, fmt.Errorf("%s network %w", list.name, err))
			}
		}
	}
	for _, r := range o.Ports {
		if r.First == 0 || r.First > r.Last {
			problems = append(problems, fmt.Errorf("port range %d-%d is empty or holds port 0: write it from a low to a high port, 1 to 65535", r.First, r.Last))
		}
	}
	for _, listener := range o.OwnListeners {
		if !listener.IsValid() || listener.Port() == 0 {
			problems = append(problems, fmt.Errorf("own listener %s has no address or no port: give the address as it was bound", listener))
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}

	p := &Policy{
		deny:           slices.Clone(o.Deny),
		ports:          slices.Clone(o.Ports),
		proxy:          o.Proxy,
		resolver:       o.Resolver,
		interfaceAddrs: o.InterfaceAddrs,
		control:        o.Control,
	}
	if len(p.ports) == 0 {
		p.ports = DefaultPorts()
	}
	if p.resolver == nil {
		p.resolver = net.DefaultResolver
	}
	if p.interfaceAddrs == nil {
		p.interfaceAddrs = net.InterfaceAddrs
	}
	for _, listener := range o.OwnListeners {
		p.own = append(p.own, netip.AddrPortFrom(plain(listener.Addr()), listener.Port()))
	}

	var allow4, allow6 []netip.Prefix
	for _, prefix := range o.Allow {
		if prefix.Addr().Is4() {
			allow4 = append(allow4, prefix)
		} else {
			allow6 = append(allow6, prefix)
		}
		p.privateNames = p.privateNames || overlapsAny(prefix, privateNetworks())
	}
	p.guardian = ssrf.New(
		// The ports are judged here: the library's list would need all 64,000.
		ssrf.WithAnyPort(),
		ssrf.WithAllowedV4Prefixes(allow4...),
		ssrf.WithAllowedV6Prefixes(allow6...),
	)
	return p, nil
}

// checkPrefix says what is wrong with a network that an operator wrote.
func checkPrefix(prefix netip.Prefix) error {
	switch {
	case !prefix.IsValid():
		return errors.New("is not a CIDR: write for example 10.0.0.0/8 or fd00::/8")
	case prefix.Addr().Is4In6():
		return fmt.Errorf("%s is IPv4 written as IPv6: write it as IPv4, for example 10.0.0.0/8", prefix)
	case prefix != prefix.Masked():
		return fmt.Errorf("%s has address bits beyond its length: did you mean %s?", prefix, prefix.Masked())
	}
	return nil
}

// judge reports whether a connection to destination is permitted. The order
// matters: what is refused to everybody comes first, then the operator's deny
// list, and only then the library, which asks its allow list before its deny
// list.
func (p *Policy) judge(destination netip.AddrPort) bool {
	if !p.ports.Contains(destination.Port()) {
		return false
	}
	addr := destination.Addr()
	// A zone picks an interface of this machine, which is nobody else's to pick.
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	return p.judgePlain(netip.AddrPortFrom(addr.Unmap(), destination.Port()))
}

// judgePlain judges a destination whose address is no mapped one.
func (p *Policy) judgePlain(destination netip.AddrPort) bool {
	addr := destination.Addr()
	if p.never(destination) || p.guardian.SafeAddr(addr) != nil {
		return false
	}
	for _, inner := range translated(addr) {
		if p.never(netip.AddrPortFrom(inner, destination.Port())) {
			return false
		}
	}
	// A tunnel or translator would carry the connection on to this address.
	if inner, ok := embedded(addr); ok {
		return p.judgePlain(netip.AddrPortFrom(inner, destination.Port()))
	}
	return true
}

// never reports whether a destination is refused whatever is allowed. A
// connection to the unspecified address ends at this machine.
func (p *Policy) never(destination netip.AddrPort) bool {
	addr := destination.Addr()
	return addr.IsUnspecified() || isMetadata(addr) || containsAny(p.deny, addr) || p.isOwn(destination)
}

// isOwn reports whether destination is one of our own listeners.
func (p *Policy) isOwn(destination netip.AddrPort) bool {
	for _, listener := range p.own {
		if listener.Port() != destination.Port() {
			continue
		}
		if listener.Addr() == destination.Addr() {
			return true
		}
		if listener.Addr().IsUnspecified() && p.isThisMachine(destination.Addr()) {
			return true
		}
	}
	return false
}

// isThisMachine reports whether addr is one of this machine's. The interfaces
// are read anew each time, because addresses come and go; callers ask only when
// the port is one of ours. If they cannot be read, the answer is yes.
func (p *Policy) isThisMachine(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	addrs, err := p.interfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range addrs {
		var ip net.IP
		switch a := a.(type) {
		case *net.IPNet:
			ip = a.IP
		case *net.IPAddr: // what some systems have for anycast addresses
			ip = a.IP
		}
		if own, ok := netip.AddrFromSlice(ip); ok && own.Unmap() == addr {
			return true
		}
	}
	return false
}

// plain removes what two spellings of one address may differ in.
func plain(addr netip.Addr) netip.Addr {
	return addr.Unmap().WithZone("")
}

func containsAny(prefixes []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func overlapsAny(prefix netip.Prefix, prefixes []netip.Prefix) bool {
	return slices.ContainsFunc(prefixes, prefix.Overlaps)
}
