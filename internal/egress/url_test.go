package egress

import (
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
)

func mustNew(t testing.TB, o Options) *Policy {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return p
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestInputs(t *testing.T) {
	type row struct {
		Rule    string            `json:"rule"`
		Accept  bool              `json:"accept"`
		ID      string            `json:"id"`
		Why     string            `json:"why"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
	}
	data, err := os.ReadFile("testdata/inputs.json")
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	if err := json.Unmarshal(data, &rows); err != nil {
		t.Fatal(err)
	}
	standard := mustNew(t, Options{})
	laptop := mustNew(t, Options{Allow: prefixes("127.0.0.0/8")})
	for _, r := range rows {
		t.Run(r.ID, func(t *testing.T) {
			if r.Rule == "headers" {
				if problems := CheckHeaders(r.Headers, "X-Plinqx"); (len(problems) == 0) != r.Accept {
					t.Errorf("%s: problems %v, want accepted: %t", r.Why, problems, r.Accept)
				}
				return
			}
			for name, p := range map[string]*Policy{"standard": standard, "laptop": laptop} {
				if p == laptop && strings.Contains(strings.ToLower(r.URL), "//localhost/") {
					continue // which a laptop is allowed to reach
				}
				if _, err := p.CheckURL(r.URL); (err == nil) != r.Accept {
					t.Errorf("%s (%s): CheckURL(%q): %v, want accepted: %t", r.Why, name, r.URL, err, r.Accept)
				}
			}
		})
	}
}

// specialRanges are the networks that are not the public internet: the IANA
// special-purpose registries of RFC 6890 and what has been added since.
func specialRanges() []netip.Prefix {
	return prefixes(
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
		"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24",
		"203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
		"::/3", // ::/128, ::1/128, ::ffff:0:0/96, 64:ff9b::/96, 64:ff9b:1::/48, 100::/64, 100:0:0:1::/64
		"2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
		"4000::/2", "8000::/1", // 5f00::/16, fc00::/7, fe80::/10, fec0::/10, ff00::/8
	)
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// bracketed writes an address as the host of a URL.
func bracketed(addr netip.Addr) string {
	if addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return addr.String()
}

func TestBoundariesOfSpecialRanges(t *testing.T) {
	p := mustNew(t, Options{})
	special := specialRanges()
	for _, r := range special {
		for _, inside := range []netip.Addr{r.Addr(), r.Addr().Next(), lastOf(r).Prev(), lastOf(r)} {
			if !r.Contains(inside) {
				continue // beside a range of one address
			}
			if _, err := p.CheckURL("https://" + bracketed(inside) + "/"); err == nil {
				t.Errorf("%s of %s was accepted", inside, r)
			}
		}
		for _, outside := range []netip.Addr{r.Addr().Prev(), lastOf(r).Next()} {
			if !outside.IsValid() || containsAny(special, outside) {
				continue
			}
			if _, err := p.CheckURL("https://" + bracketed(outside) + "/"); err != nil {
				t.Errorf("%s beside %s was refused: %v", outside, r, err)
			}
		}
	}
}

func TestURL(t *testing.T) {
	const ok, refused = true, false
	long := strings.Repeat("a", 63)
	tests := []struct {
		url    string
		accept bool
	}{
		// The scheme.
		{"http://example.com/", ok},
		{"HTTPS://Example.COM/in", ok},
		{"ftp://example.com/", refused},
		{"file:///etc/passwd", refused},
		{"gopher://example.com/", refused},
		{"ws://example.com/", refused},
		{"data:text/html,x", refused},
		{"https:example.com", refused},
		{"https:/example.com/", refused},
		{"//example.com/", refused},
		{"/hook", refused},
		{"https", refused},
		{"https:", refused},
		{"https://", refused},
		{"https:////example.com/", refused},
		{"https://?a=b", refused},
		{"https://:443/", refused},
		{"httpſ://example.com/", refused},
		{"", refused},

		// What browsers and curl strip or turn.
		{" https://example.com/", refused},
		{"https://example.com/ ", refused},
		{"https://example.com/\n", refused},
		{"https://example.com/\r\nX-A: b", refused},
		{"ht\ttps://example.com/", refused},
		{"https://example.com/\x00", refused},
		{"https://example.com/\x7f", refused},
		{"https://example.com/a b", refused},
		{"https://example.com/a\u00a0b", refused},
		{"https://example.com/a\u2028b", refused},
		{"https://exam\u200bple.com/", refused},
		{"https://exam\u00adple.com/", refused},
		{"https://example.com/\u202egpj.exe", refused},
		{"\ufeffhttps://example.com/", refused},
		{"https://example.com/\xff", refused},
		{`https:\\example.com\`, refused},
		{`https://example.com\@127.0.0.1/`, refused},
		{`https://example.com/a\b`, refused},
		{"https://example.com/%zz", refused},
		{"https://example.com/?a=%", refused},
		{"https://example.com/?a=%25&b=1+2", ok},
		{"https://example.com/a%20b%2Fc/../d//e", ok},
		{"https://example.com/caf\u00e9?q=caf\u00e9", ok},
		{"https://example.com", ok},
		{"https://example.com?a=b", ok},

		// Userinfo and fragment.
		{"https://@example.com/", refused},
		{"https://:@example.com/", refused},
		{"https://user@example.com/", refused},
		{"https://a@b@example.com/", refused},
		{"https://example.com:80@127.0.0.1/", refused},
		{"https://example.com%40127.0.0.1/", refused},
		{"https://example.com%00.internal/", refused},
		{"https://example.com%0d%0a.internal/", refused},
		{"https://example.com%09/", refused},
		{"https://127.0.0.1%3a80/", refused},
		{"https://exa\tmple.com/", refused},
		{"https://example.com\n.internal/", refused},
		{"https://example.com\\.internal/", refused},
		{"https:/\\example.com/", refused},
		{"https:///example.com@127.0.0.1/", refused},
		{"https://example.com/?a=@b", ok},
		{"https://example.com/#", refused},
		{"https://example.com#", refused},
		{"https://example.com/?a#b", refused},
		{"https://example.com/%23", ok},

		// The length.
		{"https://example.com/" + strings.Repeat("a", MaxURLLength-len("https://example.com/")), ok},
		{"https://example.com/" + strings.Repeat("a", MaxURLLength-len("https://example.com/")+1), refused},

		// Ports.
		{"https://example.com:80/", ok},
		{"https://example.com:1024/", ok},
		{"https://example.com:65535/", ok},
		{"https://[2001:4860:4860::8888]:8443/", ok},
		{"https://example.com:1023/", refused},
		{"https://example.com:25/", refused},
		{"https://example.com:65536/", refused},
		{"https://example.com:99999999999999999999/", refused},
		{"https://example.com:/", refused},
		{"https://example.com:00/", refused},
		{"https://example.com:0443/", refused},
		{"https://example.com:+443/", refused},
		{"https://example.com:0x1bb/", refused},
		{"https://example.com:4４3/", refused},
		{"https://example.com:https/", refused},
		{"https://example.com:443:443/", refused},
		{"https://example.com:-1/", refused},
		{"https://example.com:4 43/", refused},
		{"https://example.com:443\t/", refused},
		{"https://example.com:%34%34%33/", refused},
		{"https://example.com:8e3/", refused},
		{"https://example.com:8_443/", refused},
		{"https://example.com:\u0664\u0664\u0663/", refused},
		{"https://example.com:0/", refused},
		{"https://[2001:4860:4860::8888]:/", refused},

		// IPv6 in its forms.
		{"https://[2606:4700:4700::1111]/", ok},
		{"https://[2001:4860:4860:0:0:0:0:8888]/", ok},
		{"https://2606:4700:4700::1111/", refused},
		{"https://[]/", refused},
		{"https://[::1/", refused},
		{"https://::1]/", refused},
		{"https://[[::1]]/", refused},
		{"https://[127.0.0.1]/", refused},
		{"https://[8.8.8.8]/", refused},
		{"https://[v1.x]/", refused},
		{"https://[example.com]/", refused},
		{"https://[fe80::1%25eth0]/", refused},
		{"https://[fe80::1%eth0]/", refused},
		{"https://[2606:4700:4700::1111%25eth0]/", refused},
		{"https://[::]/", refused},
		{"https://[::ffff:8.8.8.8]/", refused},
		{"https://[::ffff:0:127.0.0.1]/", refused},
		{"https://[::127.0.0.1]/", refused},
		{"https://[::8.8.8.8]/", refused},
		{"https://[64:ff9b::8.8.8.8]/", refused},
		{"https://[64:ff9b:1::a9fe:a9fe]/", refused},
		{"https://[2002:7f00:1::]/", refused},
		{"https://[2002:808:808::]/", refused},
		{"https://[2001:20::1]/", refused},
		{"https://[2606:4700::5efe:10.0.0.1]/", refused},
		{"https://[2606:4700::200:5efe:10.0.0.1]/", refused},
		{"https://[2606:4700::5efe:8.8.8.8]/", ok},
		{"https://[fec0::1]/", refused},
		{"https://[5f00::1]/", refused},
		{"https://[fe80::a9fe:a9fe]/", refused},
		{"https://[fd00:ec2::254]/", refused},

		// Numbers that some parser takes for an IPv4 address.
		{"https://8.8.8.8/", ok},
		{"https://8.8.8.8./", refused},
		{"https://08.8.8.8/", refused},
		{"https://8.8.8.010/", refused},
		{"https://0x8.8.8.8/", refused},
		{"https://8.8.2056/", refused},
		{"https://134744072/", refused},
		{"https://0x08080808/", refused},
		{"https://01002004010/", refused},
		{"https://127.1/", refused},
		{"https://0/", refused},
		{"https://0x/", refused},
		{"https://0177.0.0.1/", refused},
		{"https://127.0.0.1./", refused},
		{"https://127.0.0.1../", refused},
		{"https://127.0.0.1.5/", refused},
		{"https://256.256.256.256/", refused},
		{"https://8.8.8.8.example.0x7f/", refused},
		{"https://example.com.1/", refused},
		{"https://example.08/", refused},
		{"https://1.2.3.0XFF/", refused},
		{"https://8.8.8.8.nip.io/", ok},
		{"https://127.0.0.1.example.com/", ok},
		{"https://0x7f.example.com/", ok},
		{"https://123.com/", ok},

		// Names.
		{"https://example.com./", ok},
		{"https://example.org/", ok},
		{"https://hooks.example.com/", ok},
		{"https://hooks.example/", ok},
		{"https://r3---sn-a.example.com/", ok},
		{"https://my_app.example.com/", ok},
		{"https://mylocalhost.com/", ok},
		{"https://notinternal.com/", ok},
		{"https://internal.example.com/", ok},
		{"https://localhost.example.com/", ok},
		{"https://" + long + ".example.com/", ok},
		{"https://" + long + "a.example.com/", refused},
		{"https://" + strings.Repeat(long[:49]+".", 5) + "com/", ok},
		{"https://" + strings.Repeat(long[:49]+".", 5) + "info/", refused},
		{"https://example.com../", refused},
		{"https://.example.com/", refused},
		{"https://example..com/", refused},
		{"https://./", refused},
		{"https://-a.example.com/", refused},
		{"https://a-.example.com/", refused},
		{"https://*.example.com/", refused},
		{"https://exam!ple.com/", refused},
		{"https://example.com,10.0.0.1/", refused},
		{"https://example.com;.internal/", refused},
		{"https://exam%70le.com/", refused},
		{"https://127.0.0.1%2f.example.com/", refused},
		{"https://%6c%6f%63%61%6c%68%6f%73%74/", refused},
		{"https://<script>.example.com/", refused},
		{"https://localhost/", refused},
		{"https://localhost./", refused},
		{"https://localhost:8443/", refused},
		{"https://a.localhost/", refused},
		{"https://localhost.localdomain/", refused},
		{"https://localhost6/", refused},
		{"https://intranet/", refused},
		{"https://com/", refused},
		{"https://printer.local/", refused},
		{"https://db.INTERNAL./", refused},
		{"https://host.docker.internal/", refused},
		{"https://metadata.google.internal/computeMetadata/v1/", refused},
		{"https://metadata/", refused},
		{"https://metadata.tencentyun.com/", refused},
		{"https://wiki.intranet/", refused},
		{"https://nas.lan/", refused},
		{"https://a.home/", refused},
		{"https://a.corp/", refused},
		{"https://a.private/", refused},
		{"https://kubernetes.default.svc/", refused},
		{"https://a.test/", refused},
		{"https://a.invalid/", refused},
		{"https://1.0.0.127.in-addr.arpa/", refused},
		{"https://1.ip6.arpa/", refused},

		{"https://localhost4/", refused},

		// Names beyond ASCII mean what they are mapped to.
		{"https://b\u00fccher.example.com/", ok},
		{"https://xn--bcher-kva.example.com/", ok},
		{"https://XN--BCHER-KVA.example.com/", ok},
		{"https://\u4f8b\u3048.jp/", ok},
		{"https://example\u3002com/", ok},
		{"https://xn--a.example.com/", refused},
		{"https://xn--localhost-.example.com/", refused},
		{"https://\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54/", refused},
		{"https://a\u3002localhost/", refused},
		{"https://a\uff0einternal/", refused},
		{"https://\uff11\uff12\uff17.0.0.1/", refused},
		{"https://\u2460\u2461\u2466.0.0.1/", refused},
		{"https://127\u30020\u30020\u30021/", refused},
		{"https://\uff18.8.8.8/", refused},
		{"https://8\u30028\u30028\u30028/", refused},
		{"https://\u0661\u0662\u0667.0.0.1/", refused},
		{"https://example.com\uff0f@127.0.0.1/", refused},
		{"https://example.com\uff0fa.com/", refused},
		{"https://example.com\u2100.com/", refused},
		{"https://example.com\uff1a80.com/", refused},
		{"https://example.com\uff03.com/", refused},
		{"https://\U0001f4a9.example.com/", ok},
	}
	p := mustNew(t, Options{})
	for _, test := range tests {
		t.Run("", func(t *testing.T) {
			u, err := p.CheckURL(test.url)
			if (err == nil) != test.accept {
				t.Fatalf("CheckURL(%+q): %v, want accepted: %t", test.url, err, test.accept)
			}
			if err == nil && !isASCII(u.RequestURI()) {
				t.Errorf("CheckURL(%+q): request target %q is not ASCII", test.url, u.RequestURI())
			}
		})
	}
}

func TestURLUnderOperatorSettings(t *testing.T) {
	const ok, refused = true, false
	loopbackAllowed := Options{Allow: prefixes("127.0.0.0/8", "::1/128"), OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")}}
	everything := Options{
		Allow: prefixes("0.0.0.0/0", "::/0"),
		Deny:  prefixes("10.9.0.0/16", "8.8.8.8/32", "fd99::/16"),
		OwnListeners: []netip.AddrPort{
			netip.MustParseAddrPort("0.0.0.0:8080"),
			netip.MustParseAddrPort("[fe80::7%eth0]:9443"),
			netip.MustParseAddrPort("[::ffff:10.1.1.1]:9090"),
		},
		InterfaceAddrs: func() ([]net.Addr, error) {
			return []net.Addr{&net.IPNet{IP: net.IPv4(192, 168, 1, 5), Mask: net.CIDRMask(24, 32)}}, nil
		},
	}
	tests := []struct {
		name    string
		options Options
		url     string
		accept  bool
	}{
		{"a laptop's receiver", loopbackAllowed, "http://127.0.0.1:9000/", ok},
		{"and by name", loopbackAllowed, "http://localhost:9000/in", ok},
		{"in any case, with a dot", loopbackAllowed, "http://LocalHost.:9000/in", ok},
		{"and by IPv6", loopbackAllowed, "http://[::1]:9000/", ok},
		{"our own API", loopbackAllowed, "http://127.0.0.1:8080/services/webhooks", refused},
		{"its neighbour on ::1 is not ours", loopbackAllowed, "http://localhost:8080/", ok},
		{"another spelling is still refused", loopbackAllowed, "http://127.1:9000/", refused},
		{"and the mapped form", loopbackAllowed, "http://[::ffff:127.0.0.1]:9000/", refused},
		{"ports still count", loopbackAllowed, "http://127.0.0.1:22/", refused},
		{"other networks are not opened", loopbackAllowed, "http://10.0.0.1/", refused},
		{"nor private names", loopbackAllowed, "http://intranet/", refused},
		{"nor names under localhost", loopbackAllowed, "http://a.localhost:9000/", refused},
		{"the unspecified address", loopbackAllowed, "http://0.0.0.0:9000/", refused},

		{"localhost is ours when only IPv4 is allowed", Options{Allow: prefixes("127.0.0.0/8"), OwnListeners: loopbackAllowed.OwnListeners}, "http://localhost:8080/", refused},
		{"a piece of loopback without 127.0.0.1", Options{Allow: prefixes("127.0.0.2/32")}, "http://localhost:9000/", refused},
		{"private names where private networks are allowed", Options{Allow: prefixes("10.0.0.0/8")}, "http://receiver.default.svc.cluster.local/", ok},
		{"single labels too", Options{Allow: prefixes("172.16.0.0/12")}, "http://receiver:9000/", ok},
		{"metadata names never", Options{Allow: prefixes("10.0.0.0/8")}, "http://metadata.google.internal/", refused},

		{"deny wins over allow", everything, "http://10.9.1.1/", refused},
		{"beside the denied network", everything, "http://10.10.1.1/", ok},
		{"deny wins over public", everything, "http://8.8.8.8/", refused},
		{"denied inside NAT64", everything, "http://[64:ff9b::8.8.8.8]/", refused},
		{"allowed inside NAT64", everything, "http://[64:ff9b::9.9.9.9]/", ok},
		{"denied inside 6to4", everything, "http://[2002:a09:101::]/", refused},
		{"denied inside Teredo", everything, "http://[2001:0:4136:e378:8000:63bf:f5f6:fefe]/", refused},
		{"denied inside an IPv4-compatible address", everything, "http://[::10.9.1.1]/", refused},
		{"denied inside ISATAP", everything, "http://[fd00::5efe:10.9.1.1]/", refused},
		{"loopback is no IPv4-compatible address", everything, "http://[::1]:9000/", ok},
		{"metadata is never allowed", everything, "http://169.254.169.254/", refused},
		{"nor through NAT64", everything, "http://[64:ff9b::a9fe:a9fe]/", refused},
		{"nor by IPv6", everything, "http://[fd00:ec2::254]/", refused},
		{"nor Azure's, in 6to4", everything, "http://[2002:a83f:8110::]/", refused},
		{"unspecified is never allowed", everything, "http://0.0.0.0/", refused},
		{"nor its IPv6", everything, "http://[::]/", refused},
		{"a wildcard listener on loopback", everything, "http://127.9.9.9:8080/", refused},
		{"on IPv6 loopback", everything, "http://[::1]:8080/", refused},
		{"on an interface", everything, "http://192.168.1.5:8080/", refused},
		{"not on another machine", everything, "http://192.168.1.6:8080/", ok},
		{"nor on another port", everything, "http://192.168.1.5:8081/", ok},
		{"a listener with a zone", everything, "http://[fe80::7]:9443/", refused},
		{"a listener in mapped form", everything, "http://10.1.1.1:9090/", refused},
		{"a wildcard listener where interfaces cannot be read", Options{
			OwnListeners:   []netip.AddrPort{netip.MustParseAddrPort("[::]:8080")},
			InterfaceAddrs: func() ([]net.Addr, error) { return nil, os.ErrPermission },
		}, "http://8.8.8.8:8080/", refused},
		{"ports as set", Options{Ports: Ports{{443, 443}}}, "https://example.com/", ok},
		{"and no others", Options{Ports: Ports{{443, 443}}}, "http://example.com/", refused},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if _, err := mustNew(t, test.options).CheckURL(test.url); (err == nil) != test.accept {
				t.Errorf("CheckURL(%q): %v, want accepted: %t", test.url, err, test.accept)
			}
		})
	}
}

func TestCheckURLKeepsWhatWasWritten(t *testing.T) {
	const raw = "HTTPS://Example.com:8443/a%2Fb/../c;d=e//?q=%41&x=a+b"
	u, err := mustNew(t, Options{}).CheckURL(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := u.String(), "https"+raw[len("https"):]; got != want {
		t.Errorf("CheckURL returned %q, want %q", got, want)
	}
	u, err = mustNew(t, Options{}).CheckURL("https://b\u00fccher.example.com:8443/\u00e9?q=\u00e9")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := u.String(), "https://xn--bcher-kva.example.com:8443/%C3%A9?q=%C3%A9"; got != want {
		t.Errorf("CheckURL returned %q, want %q", got, want)
	}
}

func TestRefusalsOfHostsAreAlike(t *testing.T) {
	p := mustNew(t, Options{
		Allow:        prefixes("127.0.0.0/8", "10.0.0.0/8"),
		Deny:         prefixes("10.1.0.0/16"),
		OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080")},
	})
	for _, raw := range []string{
		"http://192.168.0.1/", "http://10.1.0.1/", "http://127.0.0.1:8080/", "http://169.254.169.254/",
		"http://[fd00::1]/", "http://metadata.google.internal/", "http://a.onion/",
	} {
		if _, err := p.CheckURL(raw); err == nil || err.Error() != errNotPublic.Error() {
			t.Errorf("CheckURL(%q) = %v: it tells this refusal from another", raw, err)
		}
	}
}

func TestRefusalsSayWhatToChange(t *testing.T) {
	p := mustNew(t, Options{})
	for raw, want := range map[string]string{
		"":                                         "is empty",
		"example.com/hook":                         "http:// or https://",
		"https:///hook":                            "has no host",
		"https://example.com/#a":                   "fragment",
		"https://user:pw@example.com/":             "credentials before an @",
		"https://example.com:22/":                  "not allowed, 22: use one of 80,443,1024-65535",
		"https://example.com:a/":                   "port that is not a number",
		"https://exam%70le.com/":                   "percent sign in its host",
		"https://[fe80::1%25eth0]/":                "percent sign in its host",
		"https://[::1/":                            "brackets",
		"https://[::1]x/":                          "brackets",
		"https://2606:4700::1/":                    "several colons",
		"https://example.com:80:80/":               "several colons",
		"https://[::ffff:8.8.8.8]/":                "IPv4 address written as IPv6",
		"https://0x7f.1/":                          "plain IPv4 address",
		"https://exam!ple.com/":                    "not a valid name",
		"https://example.com/a b":                  "U+0020",
		"https://example.com/\u200b":               "U+200B",
		`https://example.com/\`:                    "backslash",
		"https://example.com/%zz":                  "percent sign without",
		"https://example.com/?%zz":                 "percent sign in its query",
		"https://10.0.0.1/":                        "must name a public host",
		"https://a.b/" + strings.Repeat("a", 2048): "longer than 2048",
	} {
		if _, err := p.CheckURL(raw); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckURL(%+q) = %v, want a text about %q", raw, err, want)
		} else if strings.Contains(err.Error(), "pw") {
			t.Errorf("CheckURL(%+q) repeats the password: %v", raw, err)
		}
	}
}

func TestNewReportsAllProblemsTogether(t *testing.T) {
	_, err := New(Options{
		Allow:        []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), {}},
		Deny:         []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")},
		Ports:        Ports{{0, 5}, {9, 3}},
		OwnListeners: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), {}},
	})
	if err == nil {
		t.Fatal("New accepted all of it")
	}
	problems := strings.Split(err.Error(), "\n")
	for i, want := range []string{"did you mean 127.0.0.0/8?", "allowed network is not a CIDR", "denied network ::ffff:10.0.0.0/104", "0-5", "9-3", "127.0.0.1:0", "invalid"} {
		if i >= len(problems) || !strings.Contains(problems[i], want) {
			t.Fatalf("problem %d does not tell of %q in:\n%v", i, want, err)
		}
	}
}

func TestParsePorts(t *testing.T) {
	ports, err := ParsePorts("80, 443,1024-65535")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := ports.String(), DefaultPorts().String(); got != want {
		t.Errorf("ports %s, want %s", got, want)
	}
	for port, want := range map[uint16]bool{0: false, 79: false, 80: true, 81: false, 443: true, 1023: false, 1024: true, 65535: true} {
		if ports.Contains(port) != want {
			t.Errorf("Contains(%d) = %t, want %t", port, !want, want)
		}
	}
	if _, err := ParsePorts("443,0,x,9-3,1-2-3,65536,+5,-,"); err == nil || strings.Count(err.Error(), "\n") != 7 {
		t.Errorf("want one problem for each of eight elements, got:\n%v", err)
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"https://example.com/in", "http://127.0.0.1/", "https://[::ffff:a9fe:a9fe]:80/", "https://u:p@h/#f",
		"http://\u24dbocalhost/", "https://xn--bcher-kva.example.com:8443/?q=%41", "http://0x7f.1", `https://a.com\@b/`,
	} {
		f.Add(seed)
	}
	p := mustNew(f, Options{})
	special := specialRanges()
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := p.CheckURL(raw)
		if err != nil {
			return
		}
		if u.User != nil || u.Fragment != "" || u.Opaque != "" || u.Scheme != "http" && u.Scheme != "https" {
			t.Errorf("%+q passed as %#v", raw, u)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && (addr.Zone() != "" || containsAny(special, addr.Unmap())) {
			t.Errorf("%+q passed with the address %s", raw, addr)
		}
		if len(u.String()) > MaxURLLength {
			return // by the escapes of characters that counted once
		}
		if again, err := p.CheckURL(u.String()); err != nil || again.Host != u.Host {
			t.Errorf("%+q passed, but not as the %+q that it was parsed to: %v", raw, u.String(), err)
		}
	})
}
