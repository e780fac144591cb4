package egress

import "net/netip"

// isMetadata reports whether addr is where a cloud tells its machines their
// credentials and configuration. No webhook has business there, so not even the
// operator's allow list opens these: it is too easily written one bit too wide.
// Some are public by their number and on no list of special addresses.
func isMetadata(addr netip.Addr) bool {
	// Most are link-local, and every cloud adds some: 169.254.169.254,
	// 169.254.170.2 and .23 (AWS ECS and EKS), 169.254.0.23 (Tencent),
	// 169.254.42.42 (Scaleway), fe80::a9fe:a9fe (OpenStack). Nothing that a
	// webhook could mean is.
	if addr.IsLinkLocalUnicast() {
		return true
	}
	switch addr.String() {
	case "168.63.129.16", // Azure wire server
		"100.100.100.200",    // Alibaba
		"192.0.0.192",        // Oracle, classic
		"fd20:ce::254",       // Google
		"fd00:c1::a9fe:a9fe", // Oracle
		"fd00:42::42",        // Scaleway
		"fd00:a9fe:a9fe::1",  // Akamai
		"fd00:100::100:200":  // Alibaba
		return true
	}
	// AWS keeps this block for its services: metadata, EKS pod identity, DNS, time.
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x00, 0x0e, 0xc2}), 32).Contains(addr)
}

// privateNetworks are those in which organisations number their own machines
// and run a resolver that knows private names.
func privateNetworks() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),     // RFC 1918
		netip.MustParsePrefix("172.16.0.0/12"),  // RFC 1918
		netip.MustParsePrefix("192.168.0.0/16"), // RFC 1918
		netip.MustParsePrefix("100.64.0.0/10"),  // RFC 6598
		netip.MustParsePrefix("fc00::/7"),       // RFC 4193
	}
}

// embedded returns the IPv4 address that an IPv6 address carries in a place
// that a standard fixes.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	last := netip.AddrFrom4([4]byte(b[12:16]))
	switch {
	case inBlock(b, 12, 0x00, 0x64, 0xff, 0x9b): // 64:ff9b::/96, NAT64 (RFC 6052)
		return last, true
	case inBlock(b, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff): // ::ffff:0:0:0/96, IPv4-translated (RFC 2765, 2.1)
		return last, true
	case inBlock(b, 12): // ::/96, IPv4-compatible (RFC 4291, 2.5.5.1)
		// ::1 is no IPv4 address, but loopback.
		return last, !addr.IsLoopback()
	case inBlock(b, 2, 0x20, 0x02): // 2002::/16, 6to4 (RFC 3056)
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case inBlock(b, 4, 0x20, 0x01): // 2001::/32, Teredo (RFC 4380)
		// The client's address is stored with every bit inverted.
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), true
	case b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP (RFC 5214, 6.1)
		return last, true
	}
	return netip.Addr{}, false
}

// translated returns the IPv4 addresses that an address of 64:ff9b:1::/48 may
// carry: where, is the choice of whoever runs the translator (RFC 8215; RFC 6052,
// section 2.2, for prefixes of 48, 56, 64 and 96 bits). One of these is meant, so
// none may be what nobody may reach; but not all can be asked to be permitted.
// Those that begin with a zero are none: there the prefix goes on.
func translated(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	if !inBlock(b, 6, 0x00, 0x64, 0xff, 0x9b, 0x00, 0x01) {
		return nil
	}
	var inner []netip.Addr
	for _, place := range [][4]byte{{b[6], b[7], b[9], b[10]}, {b[7], b[9], b[10], b[11]}, {b[9], b[10], b[11], b[12]}, {b[12], b[13], b[14], b[15]}} {
		if place[0] != 0 {
			inner = append(inner, netip.AddrFrom4(place))
		}
	}
	return inner
}

// inBlock reports whether the first size bytes of b are prefix, then zeros.
func inBlock(b [16]byte, size int, prefix ...byte) bool {
	for i := range size {
		var want byte
		if i < len(prefix) {
			want = prefix[i]
		}
		if b[i] != want {
			return false
		}
	}
	return true
}
