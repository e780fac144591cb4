package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// carriers are the ways to write an IPv4 address into an IPv6 one.
func carriers(a netip.Addr) map[string]netip.Addr {
	b := a.As4()
	v6 := func(format string, args ...any) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, args...)) }
	hi, lo := uint16(b[0])<<8|uint16(b[1]), uint16(b[2])<<8|uint16(b[3])
	return map[string]netip.Addr{
		"plain":                         a,
		"mapped":                        v6("::ffff:%x:%x", hi, lo),
		"IPv4-compatible":               v6("::%x:%x", hi, lo),
		"IPv4-translated":               v6("::ffff:0:%x:%x", hi, lo),
		"NAT64":                         v6("64:ff9b::%x:%x", hi, lo),
		"6to4":                          v6("2002:%x:%x::1", hi, lo),
		"Teredo":                        v6("2001:0:808:808:0:0:%x:%x", ^hi, ^lo),
		"ISATAP":                        v6("2606:4700::5efe:%x:%x", hi, lo),
		"ISATAP with the universal bit": v6("2606:4700::200:5efe:%x:%x", hi, lo),
		"local NAT64, 48 bits":          v6("64:ff9b:1:%x:%x:%x::", hi, lo>>8, lo<<8),
		"local NAT64, 56 bits":          v6("64:ff9b:1:%x:%x:%x::", hi>>8, hi&0xff, lo),
		"local NAT64, 64 bits":          v6("64:ff9b:1:0:%x:%x:%x:0", hi>>8, hi<<8|lo>>8, lo<<8),
		"local NAT64, 96 bits":          v6("64:ff9b:1::%x:%x", hi, lo),
	}
}

// openToAll allows all that can be allowed.
func openToAll() Options { return Options{Allow: prefixes("0.0.0.0/0", "::/0")} }

// refusedEverywhere sees that an address is refused in a URL, and behind a name.
func refusedEverywhere(t *testing.T, o Options, addr netip.Addr, port string) {
	t.Helper()
	var d door
	o.Resolver, o.Control = answers(addr.String()), d.control
	p := mustNew(t, o)
	if _, err := p.CheckURL("http://" + net.JoinHostPort(addr.String(), port) + "/"); err == nil {
		t.Errorf("%s was accepted in a URL", addr)
	}
	if _, err := p.DialContext(t.Context(), "tcp", net.JoinHostPort("hooks.example.com", port)); !errors.Is(err, ErrBlocked) || len(d.reached) > 0 {
		t.Errorf("%s behind a name: %v, reached %q", addr, err, d.reached)
	}
}

// The metadata services of clouds are not reached, whatever is allowed and
// however they are written.
func TestMetadataIsNeverReached(t *testing.T) {
	for _, text := range []string{
		"169.254.169.254", // AWS, Google, Azure, Oracle, DigitalOcean, Hetzner, OpenStack, IBM, Linode, Vultr, ...
		"169.254.169.253", // AWS DNS
		"169.254.169.123", // AWS time
		"169.254.170.2",   // AWS ECS
		"169.254.170.23",  // AWS EKS
		"169.254.0.23",    // Tencent
		"169.254.42.42",   // Scaleway
		"169.254.1.1",     // and whatever comes
		"168.63.129.16",   // Azure
		"100.100.100.200", // Alibaba
		"192.0.0.192",     // Oracle, classic
	} {
		for name, addr := range carriers(netip.MustParseAddr(text)) {
			t.Run(text+" "+name, func(t *testing.T) { refusedEverywhere(t, openToAll(), addr, "80") })
		}
	}
	for _, text := range []string{
		"fd00:ec2::254", "fd00:ec2::23", "fd00:ec2::253", // AWS
		"fd20:ce::254",       // Google
		"fd00:c1::a9fe:a9fe", // Oracle
		"fd00:42::42",        // Scaleway
		"fd00:a9fe:a9fe::1",  // Akamai
		"fd00:100::100:200",  // Alibaba
		"fe80::a9fe:a9fe",    // OpenStack
		"fe80::1",
	} {
		t.Run(text, func(t *testing.T) { refusedEverywhere(t, openToAll(), netip.MustParseAddr(text), "80") })
	}
}

// Nor by name, where private names are allowed too.
func TestMetadataNamesAreNeverAsked(t *testing.T) {
	for _, name := range []string{
		"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
		"metadata.azure.internal", "metadata.ec2.internal", "metadata.tencentyun.com", "api.metadata.cloud.ibm.com", "api.service.softlayer.com",
		"metadata.packet.net", "metadata.platformequinix.com", "metadata.exoscale.com", "rancher-metadata",
	} {
		for _, spelled := range []string{name, name + ".", strings.ToUpper(name), "x." + name, strings.Replace(name, "a", "\uff41", 1), strings.ReplaceAll(name, ".", "\u3002")} {
			o := openToAll()
			dns := answers("8.8.8.8")
			o.Resolver, o.Control = dns, new(door).control
			p := mustNew(t, o)
			if _, err := p.CheckURL("http://" + spelled + "/latest/meta-data"); err == nil {
				t.Errorf("%q was accepted", spelled)
			}
			if _, err := p.DialContext(t.Context(), "tcp", spelled+":80"); !errors.Is(err, ErrBlocked) || len(dns.asked) > 0 {
				t.Errorf("%q: %v, asked %q", spelled, err, dns.asked)
			}
		}
	}
	// Names inside of a cluster or a company are refused unless private networks
	// are allowed.
	for _, name := range []string{"kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "vault.service.consul", "host.docker.internal", "gateway.docker.internal", "db", "wpad"} {
		if _, err := mustNew(t, Options{}).CheckURL("http://" + name + "/"); err == nil {
			t.Errorf("%q was accepted", name)
		}
	}
}

// Our own listeners are not reached, on any address of this machine that a
// wildcard stands for, and in no carrier.
func TestOwnListenersAreNeverReached(t *testing.T) {
	machine, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	addrs := prefixes("127.0.0.1/32", "127.9.9.9/32", "::1/128")
	for _, a := range machine {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && !prefix.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, prefix)
		}
	}
	for _, listener := range []string{"0.0.0.0:8080", "[::]:8080"} {
		for _, own := range addrs {
			o := openToAll()
			o.OwnListeners = []netip.AddrPort{netip.MustParseAddrPort(listener)}
			forms := map[string]netip.Addr{"plain": own.Addr()}
			if own.Addr().Is4() {
				forms = carriers(own.Addr())
			}
			for name, addr := range forms {
				t.Run(fmt.Sprintf("%s as %s, %s", listener, own.Addr(), name), func(t *testing.T) {
					refusedEverywhere(t, o, addr, "8080")
				})
			}
			if _, err := mustNew(t, o).CheckURL("http://" + net.JoinHostPort(own.Addr().String(), "8081") + "/"); err != nil {
				t.Errorf("another port of %s: %v", own.Addr(), err)
			}
		}
	}
	// A listener on one address, in all carriers of it.
	o := openToAll()
	o.OwnListeners = []netip.AddrPort{netip.MustParseAddrPort("10.1.1.1:9090")}
	for name, addr := range carriers(netip.MustParseAddr("10.1.1.1")) {
		t.Run("10.1.1.1 "+name, func(t *testing.T) { refusedEverywhere(t, o, addr, "9090") })
	}
}

// A denied network is denied in all carriers; an allowed one is open in those
// whose own network is allowed as well, and in no others.
func TestNetworksAndCarriers(t *testing.T) {
	denied := openToAll()
	denied.Deny = prefixes("10.9.0.0/16")
	for name, addr := range carriers(netip.MustParseAddr("10.9.1.1")) {
		t.Run("denied, "+name, func(t *testing.T) { refusedEverywhere(t, denied, addr, "80") })
	}
	open := func(o Options, addr netip.Addr) bool {
		var d door
		o.Resolver, o.Control = answers(addr.String()), d.control
		_, err := mustNew(t, o).DialContext(t.Context(), "tcp", "hooks.example.com:80")
		return errors.Is(err, errNotConnected)
	}
	for name, addr := range carriers(netip.MustParseAddr("10.8.1.1")) {
		if got, want := open(Options{Allow: prefixes("10.0.0.0/8")}, addr), name == "plain" || name == "mapped" || strings.HasPrefix(name, "ISATAP"); got != want {
			t.Errorf("10.0.0.0/8 allowed, %s: open %t, want %t", name, got, want)
		}
		if !open(openToAll(), addr) {
			t.Errorf("all allowed, %s: closed", name)
		}
		if open(Options{Allow: prefixes("::/0")}, addr) != strings.HasPrefix(name, "local NAT64") {
			t.Errorf("all of IPv6 allowed, and of IPv4 what is public, %s", name)
		}
	}
	for name, addr := range carriers(netip.MustParseAddr("8.8.8.8")) {
		if got, want := open(Options{}, addr), name == "plain" || name == "mapped" || strings.HasPrefix(name, "ISATAP"); got != want {
			t.Errorf("nothing allowed, 8.8.8.8 %s: open %t, want %t", name, got, want)
		}
	}
}
