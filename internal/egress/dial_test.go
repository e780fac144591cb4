package egress

import (
	"context"
	"errors"
	"net"
	"net/http/httptrace"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// fakeDNS answers what its function says, and notes what it was asked.
type fakeDNS struct {
	answer func(network, host string) ([]netip.Addr, error)
	asked  []string
}

func (d *fakeDNS) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	d.asked = append(d.asked, network+" "+host)
	return d.answer(network, host)
}

func answers(addrs ...string) *fakeDNS {
	return &fakeDNS{answer: func(string, string) ([]netip.Addr, error) {
		var out []netip.Addr
		for _, a := range addrs {
			out = append(out, netip.MustParseAddr(a))
		}
		return out, nil
	}}
}

// errNotConnected ends every attempt before its packet would leave.
var errNotConnected = errors.New("stopped before connecting")

// door stands between a policy's dialer and the network: it notes the addresses
// that were about to be connected to, and lets none through.
type door struct {
	mu      sync.Mutex
	reached []string
}

func (d *door) control(_, address string, _ syscall.RawConn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reached = append(d.reached, address)
	return errNotConnected
}

func TestDial(t *testing.T) {
	tests := []struct {
		name     string
		options  Options
		dns      *fakeDNS
		network  string
		address  string
		asked    []string
		reached  []string
		blocked  bool
		resolved bool // the lookup fails
	}{
		{name: "a public name is asked for as absolute", dns: answers("8.8.8.8"), address: "example.com:443",
			asked: []string{"ip example.com."}, reached: []string{"8.8.8.8:443"}},
		{name: "so is one that has its dot", dns: answers("8.8.8.8"), address: "Example.COM.:443",
			asked: []string{"ip example.com."}, reached: []string{"8.8.8.8:443"}},
		{name: "and one beyond ASCII", dns: answers("8.8.8.8"), address: "b\u00fccher.example.com:443",
			asked: []string{"ip xn--bcher-kva.example.com."}, reached: []string{"8.8.8.8:443"}},
		{name: "addresses are tried in turn", dns: answers("2606:4700::1", "8.8.8.8", "8.8.8.8", "9.9.9.9"), address: "example.com:80",
			asked: []string{"ip example.com."}, reached: []string{"[2606:4700::1]:80", "8.8.8.8:80", "9.9.9.9:80"}},
		{name: "each once, in whichever form it came", dns: answers("::ffff:8.8.8.8", "8.8.8.8"), address: "example.com:80",
			asked: []string{"ip example.com."}, reached: []string{"8.8.8.8:80"}},
		{name: "eight of them", dns: answers("8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.4", "8.8.8.5", "8.8.8.6", "8.8.8.7", "8.8.8.8", "8.8.8.9"), address: "example.com:80",
			asked:   []string{"ip example.com."},
			reached: []string{"8.8.8.1:80", "8.8.8.2:80", "8.8.8.3:80", "8.8.8.4:80", "8.8.8.5:80", "8.8.8.6:80", "8.8.8.7:80", "8.8.8.8:80"}},
		{name: "one family, if asked", dns: answers("8.8.8.8"), network: "tcp4", address: "example.com:80",
			asked: []string{"ip4 example.com."}, reached: []string{"8.8.8.8:80"}},
		{name: "only the permitted of mixed addresses", dns: answers("127.0.0.1", "::1", "8.8.8.8", "fd00::1", "169.254.169.254"), address: "example.com:80",
			asked: []string{"ip example.com."}, reached: []string{"8.8.8.8:80"}},
		{name: "a public name for loopback", dns: answers("127.0.0.1"), address: "localtest.me:80",
			asked: []string{"ip localtest.me."}, blocked: true},
		{name: "the same in mapped form", dns: answers("::ffff:127.0.0.1"), address: "localtest.me:80",
			asked: []string{"ip localtest.me."}, blocked: true},
		{name: "a name for loopback through NAT64", dns: answers("64:ff9b::7f00:1"), address: "nat64.example.com:80",
			asked: []string{"ip nat64.example.com."}, blocked: true},
		{name: "an address with a zone", dns: answers("2606:4700::1%eth0"), address: "example.com:80",
			asked: []string{"ip example.com."}, blocked: true},
		{name: "Azure's wire server by name", dns: answers("168.63.129.16"), address: "example.com:80",
			asked: []string{"ip example.com."}, blocked: true},
		{name: "no addresses", dns: answers(), address: "example.com:80",
			asked: []string{"ip example.com."}, resolved: true},
		{name: "a refused name is not even asked for", dns: answers("8.8.8.8"), address: "a.internal:80", blocked: true},
		{name: "nor a refused spelling", dns: answers("8.8.8.8"), address: "0x7f.1:80", blocked: true},
		{name: "nor a refused port", dns: answers("8.8.8.8"), address: "example.com:22", blocked: true},
		{name: "a public address needs no resolver", dns: answers("127.0.0.1"), address: "8.8.8.8:80", reached: []string{"8.8.8.8:80"}},
		{name: "nor a public IPv6 address", dns: answers("127.0.0.1"), address: "[2606:4700::1]:80", reached: []string{"[2606:4700::1]:80"}},
		{name: "a private address", dns: answers("8.8.8.8"), address: "10.0.0.1:80", blocked: true},
		{name: "a mapped address", dns: answers("8.8.8.8"), address: "[::ffff:8.8.8.8]:80", blocked: true},
		{name: "localhost", dns: answers("8.8.8.8"), address: "localhost:80", blocked: true},
		{name: "localhost where allowed needs no resolver", options: Options{Allow: prefixes("127.0.0.0/8", "::1/128")}, dns: answers("8.8.8.8"),
			address: "localhost:9000", reached: []string{"127.0.0.1:9000", "[::1]:9000"}},
		{name: "a name for our own listener", options: Options{Allow: prefixes("127.0.0.0/8"), OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}},
			dns: answers("127.0.0.1"), address: "localtest.me:8080", asked: []string{"ip localtest.me."}, blocked: true},
		{name: "a denied public address", options: Options{Deny: prefixes("8.8.0.0/16")}, dns: answers("8.8.8.8", "9.9.9.9"), address: "example.com:80",
			asked: []string{"ip example.com."}, reached: []string{"9.9.9.9:80"}},
		{name: "a private name where private networks are allowed", options: Options{Allow: prefixes("10.0.0.0/8")}, dns: answers("10.1.2.3", "127.0.0.1"),
			address: "receiver:9000", asked: []string{"ip receiver."}, reached: []string{"10.1.2.3:9000"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var d door
			test.options.Resolver, test.options.Control = test.dns, d.control
			if test.network == "" {
				test.network = "tcp"
			}
			_, err := mustNew(t, test.options).DialContext(t.Context(), test.network, test.address)
			if !slices.Equal(test.dns.asked, test.asked) {
				t.Errorf("asked %q, want %q", test.dns.asked, test.asked)
			}
			if !slices.Equal(d.reached, test.reached) {
				t.Errorf("reached %q, want %q", d.reached, test.reached)
			}
			if errors.Is(err, ErrBlocked) != test.blocked {
				t.Errorf("error %v, want blocked: %t", err, test.blocked)
			}
			if test.blocked && err.Error() != ErrBlocked.Error() {
				t.Errorf("error %q tells more than %q", err, ErrBlocked)
			}
			if _, ok := errors.AsType[*net.DNSError](err); ok != test.resolved {
				t.Errorf("error %v, want a lookup's: %t", err, test.resolved)
			}
			if test.reached != nil && !errors.Is(err, errNotConnected) {
				t.Errorf("error %v, want the connection's", err)
			}
		})
	}
}

func TestDialRefusesOtherNetworks(t *testing.T) {
	p := mustNew(t, Options{Resolver: answers("8.8.8.8"), Control: new(door).control})
	for _, network := range []string{"udp", "unix", "ip", ""} {
		if _, err := p.DialContext(t.Context(), network, "8.8.8.8:80"); err == nil || errors.Is(err, errNotConnected) {
			t.Errorf("network %q: %v", network, err)
		}
	}
	if _, err := p.DialContext(t.Context(), "tcp", "8.8.8.8"); err == nil || errors.Is(err, errNotConnected) {
		t.Errorf("an address without port: %v", err)
	}
}

// TestGuard asks the last judge alone, as if everything before it had failed.
func TestGuard(t *testing.T) {
	var d door
	p := mustNew(t, Options{Control: d.control})
	for _, c := range []struct{ network, address string }{
		{"tcp4", "127.0.0.1:80"}, {"tcp4", "8.8.8.8:22"}, {"tcp6", "[::1]:80"}, {"tcp6", "[fe80::1%eth0]:80"},
		{"tcp6", "[::ffff:127.0.0.1]:80"}, {"udp4", "8.8.8.8:80"}, {"tcp4", "example.com:80"},
	} {
		if err := p.guard(c.network, c.address, nil); !errors.Is(err, ErrBlocked) {
			t.Errorf("guard(%s, %s) = %v, want blocked", c.network, c.address, err)
		}
	}
	if len(d.reached) > 0 {
		t.Errorf("the option's Control was called for refused addresses: %q", d.reached)
	}
	if err := p.guard("tcp4", "8.8.8.8:80", nil); !errors.Is(err, errNotConnected) {
		t.Errorf("guard of a public address: %v", err)
	}
}

func TestGuardsRefusalTellsNoAddress(t *testing.T) {
	p := mustNew(t, Options{Control: new(door).control})
	private := netip.MustParseAddrPort("10.0.0.1:80")
	_, err := p.dialFirst(t.Context(), "tcp", "example.com:80", []netip.AddrPort{private})
	blocked, ok := errors.AsType[*BlockedError](err)
	if !ok || err.Error() != ErrBlocked.Error() {
		t.Fatalf("error %v, want a bare %q", err, ErrBlocked)
	}
	if blocked.Host != "example.com:80" || !slices.Equal(blocked.Addrs, []netip.Addr{private.Addr()}) {
		t.Errorf("the log would see %+v", blocked)
	}
}

func TestDialConnects(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	port := netip.MustParseAddrPort(listener.Addr().String()).Port()
	dns := answers("127.0.0.1")
	p := mustNew(t, Options{Allow: prefixes("127.0.0.0/8"), Ports: Ports{{port, port}}, Resolver: dns})

	var events []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		DNSStart:     func(i httptrace.DNSStartInfo) { events = append(events, "lookup "+i.Host) },
		DNSDone:      func(i httptrace.DNSDoneInfo) { events = append(events, "found "+i.Addrs[0].String()) },
		ConnectStart: func(_, addr string) { events = append(events, "connect") },
		ConnectDone:  func(_, addr string, err error) { events = append(events, "connected") },
	})
	conn, err := p.DialContext(ctx, "tcp", net.JoinHostPort("hooks.example.com", portText(port)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != listener.Addr().String() {
		t.Errorf("connected to %s, want %s", got, listener.Addr())
	}
	want := []string{"lookup hooks.example.com", "found 127.0.0.1", "connect", "connected"}
	if !slices.Equal(events, want) {
		t.Errorf("trace %q, want %q", events, want)
	}
}

// TestLookupHidesTheTrace keeps the standard resolver, which calls the trace by
// itself, from calling it a second time.
func TestLookupHidesTheTrace(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), key{}, "trace"), time.Hour)
	defer cancel()
	var seen context.Context
	p := mustNew(t, Options{Control: new(door).control, Resolver: resolverFunc(func(ctx context.Context) { seen = ctx })})
	_, _ = p.DialContext(ctx, "tcp", "example.com:80")
	if seen.Value(key{}) != nil {
		t.Error("the resolver sees the caller's values")
	}
	want, _ := ctx.Deadline()
	if got, ok := seen.Deadline(); !ok || got != want {
		t.Errorf("the resolver's deadline is %v, want %v", got, want)
	}
}

type resolverFunc func(context.Context)

func (f resolverFunc) LookupNetIP(ctx context.Context, _, _ string) ([]netip.Addr, error) {
	f(ctx)
	return nil, nil
}

func TestLookupErrorsTellNothingOfOurNetwork(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
		net.DNSError
	}{
		{"not found", &net.DNSError{Err: "no such host", Server: "10.0.0.2:53", IsNotFound: true}, "lookup example.com: no such host", net.DNSError{IsNotFound: true}},
		{"timeout", &net.DNSError{Err: "read udp 10.0.0.4:3333->10.0.0.2:53: i/o timeout", Server: "10.0.0.2:53", IsTimeout: true, IsTemporary: true}, "lookup example.com: timed out", net.DNSError{IsTimeout: true, IsTemporary: true}},
		{"broken", &net.DNSError{Err: "server misbehaving", Server: "10.0.0.2:53"}, "lookup example.com: lookup failed", net.DNSError{}},
		{"deadline", context.DeadlineExceeded, "lookup example.com: timed out", net.DNSError{IsTimeout: true}},
		{"canceled", context.Canceled, "lookup example.com: canceled", net.DNSError{}},
		{"another", errors.New("dial 10.0.0.2:53"), "lookup example.com: lookup failed", net.DNSError{}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dns := &fakeDNS{answer: func(string, string) ([]netip.Addr, error) { return nil, test.err }}
			_, err := mustNew(t, Options{Resolver: dns, Control: new(door).control}).DialContext(t.Context(), "tcp", "example.com:80")
			if err == nil || err.Error() != test.want {
				t.Fatalf("error %v, want %q", err, test.want)
			}
			got, ok := errors.AsType[*net.DNSError](err)
			if !ok || got.IsNotFound != test.IsNotFound || got.IsTimeout != test.IsTimeout || got.IsTemporary != test.IsTemporary {
				t.Errorf("error %+v, want the kind of %+v", got, test.DNSError)
			}
			if !errors.Is(err, test.err) {
				t.Errorf("the original, %v, cannot be unwrapped", test.err)
			}
		})
	}
}

func TestAddressesShareTheTime(t *testing.T) {
	for _, test := range []struct {
		remaining time.Duration
		left      int
		want      time.Duration
	}{
		{30 * time.Second, 2, 15 * time.Second},
		{30 * time.Second, 3, 10 * time.Second},
		{30 * time.Second, 1, 30 * time.Second},
		{5 * time.Second, 5, 2 * time.Second},
	} {
		if got := addrTime(test.remaining, test.left); got != test.want {
			t.Errorf("addrTime(%v, %d) = %v, want %v", test.remaining, test.left, got, test.want)
		}
	}
}

func TestDialTriesAllWithinADeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	var d door
	p := mustNew(t, Options{Resolver: answers("8.8.8.8", "9.9.9.9"), Control: d.control})
	if _, err := p.DialContext(ctx, "tcp", "example.com:80"); !errors.Is(err, errNotConnected) {
		t.Errorf("error %v, want the connection's", err)
	}
	if want := []string{"8.8.8.8:80", "9.9.9.9:80"}; !slices.Equal(d.reached, want) {
		t.Errorf("reached %q, want %q", d.reached, want)
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var tried int
	p := mustNew(t, Options{Resolver: answers("8.8.8.8", "9.9.9.9"), Control: func(string, string, syscall.RawConn) error {
		tried++
		cancel()
		return errNotConnected
	}})
	if _, err := p.DialContext(ctx, "tcp", "example.com:80"); err == nil {
		t.Error("connected")
	}
	if tried != 1 {
		t.Errorf("tried %d addresses, want 1: the context had ended", tried)
	}
}

// TestNothingElseIsReached is the promise of the package: whatever host passes
// CheckURL, and whatever the resolver answers from one call to the next, what is
// connected to is public or allowed, and not denied.
func TestNothingElseIsReached(t *testing.T) {
	special := specialRanges()
	allow, deny := prefixes("127.0.0.0/8", "10.0.0.0/8", "fd00::/8", "64:ff9b::/96"), prefixes("10.9.0.0/16", "9.0.0.0/8", "fd00:9::/32")
	own := netip.MustParseAddrPort("127.0.0.1:8080")
	never := []string{"169.254.169.254", "168.63.129.16", "fd00:ec2::254", "64:ff9b::a9fe:a9fe", "64:ff9b::a09:101", "0.0.0.0", "::"}

	permitted := func(destination netip.AddrPort, allowed bool) bool {
		addr := destination.Addr().Unmap()
		if slices.Contains(never, addr.String()) || allowed && (containsAny(deny, addr) || destination == own) {
			return false
		}
		return !containsAny(special, addr) || allowed && containsAny(allow, addr)
	}

	v4 := rapid.Custom(func(t *rapid.T) netip.Addr {
		r := rapid.SampledFrom(append(prefixes("8.0.0.0/8", "9.0.0.0/8", "10.9.0.0/16", "0.0.0.0/0"), special[:19]...)).Draw(t, "range")
		b, low := r.Addr().As4(), rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "host")
		for bit := r.Bits(); bit < 32; bit++ {
			b[bit/8] |= low[bit/8] & (0x80 >> (bit % 8))
		}
		return netip.AddrFrom4(b)
	})
	addr := rapid.OneOf(v4,
		rapid.Map(v4, func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 16, 16), func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }),
		rapid.SampledFrom(func() []netip.Addr {
			var out []netip.Addr
			for _, s := range append(never, "127.0.0.1", "::1", "fd00::1", "fd00:9::1", "fe80::1%lo", "64:ff9b::808:808", "2606:4700::1", "8.8.8.8") {
				out = append(out, netip.MustParseAddr(s))
			}
			return out
		}()),
	)
	hosts := rapid.OneOf(
		rapid.StringMatching(`[a-z0-9_.-]{1,20}(\.(com|local|internal|1|0x1))?\.?`),
		rapid.StringMatching("[\u24d0-\u24e9\uff10-\uff19a-z.\u3002]{1,9}(\\.com)?"),
		rapid.SampledFrom([]string{"localhost", "example.com", "b\u00fccher.example.com", "receiver"}),
		rapid.Map(addr, bracketed),
	)
	p := func(allowed bool, dns Resolver, d *door) *Policy {
		o := Options{Resolver: dns, Control: d.control}
		if allowed {
			o.Allow, o.Deny, o.OwnListeners = allow, deny, []netip.AddrPort{own}
		}
		return mustNew(t, o)
	}
	var reached int
	rapid.Check(t, func(t *rapid.T) {
		allowed := rapid.Bool().Draw(t, "allowed")
		var d door
		dns := &fakeDNS{answer: func(string, string) ([]netip.Addr, error) {
			return rapid.SliceOfN(addr, 0, 12).Draw(t, "answer"), nil
		}}
		policy := p(allowed, dns, &d)
		port := rapid.SampledFrom([]string{"80", "8080", "9000"}).Draw(t, "port")
		u, err := policy.CheckURL("http://" + hosts.Draw(t, "host") + ":" + port + "/")
		if err != nil {
			return
		}
		for range 2 {
			_, err := policy.DialContext(context.Background(), "tcp", net.JoinHostPort(u.Hostname(), port))
			if err == nil {
				t.Fatal("connected through a closed door")
			}
			_, unresolved := errors.AsType[*net.DNSError](err)
			if len(d.reached) == 0 && !unresolved && !errors.Is(err, ErrBlocked) {
				t.Fatalf("nothing was reached, and the error is %v", err)
			}
		}
		for _, name := range dns.asked {
			if !strings.HasSuffix(name, ".") {
				t.Errorf("asked for %q, which search domains apply to", name)
			}
		}
		for _, address := range d.reached {
			if !permitted(netip.MustParseAddrPort(address), allowed) {
				t.Errorf("reached %s", address)
			}
		}
		reached += len(d.reached)
	})
	if reached == 0 {
		t.Error("nothing was ever reached: the test says nothing")
	}
}
