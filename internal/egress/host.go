package egress

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// host is what a URL's host means: an address or else a name.
type host struct {
	addr netip.Addr
	name string // lower-case ASCII, without the trailing dot
}

// String is the host as a proxy is told it.
func (h host) String() string {
	if h.addr.IsValid() {
		return h.addr.String()
	}
	return h.name
}

// errNotPublic answers for every address and name that policy refuses. It is
// one text for all of them, so that nobody can map a network by asking.
var errNotPublic = errors.New("must name a public host: this server does not send to this one; use an address or name that is reachable on the public internet")

var (
	errNoHost     = errors.New("has no host: write it as https://host/path")
	errBadHost    = errors.New("has a host that is not a valid name: use letters, digits and hyphens in labels of 1 to 63 characters, 253 in all")
	errBadBracket = errors.New("has brackets that do not hold an IPv6 address: write for example https://[2001:4860:4860::8888]/")
	errMapped     = errors.New("has an IPv4 address written as IPv6: write it as IPv4")
	errNumeric    = errors.New("has a host that ends in a number but is not a plain IPv4 address: write four decimal numbers without leading zeros, or a name")
	errColon      = errors.New("has several colons in its host: write host:port once, and an IPv6 address in brackets")
	errEscape     = errors.New("has a percent sign in its host: write the host without escapes or zones")
)

// parseHost reads the host of a URL, an IPv6 address in its brackets. It
// accepts one spelling only where parsers disagree about what a host means.
func parseHost(raw string) (host, error) {
	switch {
	case raw == "":
		return host{}, errNoHost
	case strings.Contains(raw, "%"):
		return host{}, errEscape
	case raw[0] == '[':
		return parseIPv6(raw)
	case strings.Contains(raw, ":"):
		return host{}, errColon
	}

	name, ascii := strings.ToLower(raw), isASCII(raw)
	if !ascii {
		// The profile that the HTTP client uses (UTS #46, as RFC 5891 lookup),
		// so that the name judged here is the name asked for there. Mapping
		// turns circled letters, full-width digits and ideographic dots into
		// the plain ones that they would act as.
		var err error
		if name, err = idna.Lookup.ToASCII(raw); err != nil {
			return host{}, errBadHost
		}
	}
	name, dotted := strings.CutSuffix(name, ".")
	if endsInNumber(name) {
		addr, err := netip.ParseAddr(name)
		if err != nil || !addr.Is4() || dotted || !ascii {
			return host{}, errNumeric
		}
		return host{addr: addr}, nil
	}
	// Nobody writes localhost in circled letters in good faith, not even where
	// it is allowed.
	if !validName(name) || !ascii && name == localhost {
		return host{}, errBadHost
	}
	return host{name: name}, nil
}

func parseIPv6(raw string) (host, error) {
	inner, closed := strings.CutSuffix(raw[1:], "]")
	addr, err := netip.ParseAddr(inner)
	switch {
	case !closed || err != nil || !addr.Is6() || addr.Zone() != "":
		return host{}, errBadBracket
	case addr.Is4In6():
		return host{}, errMapped
	}
	return host{addr: addr}, nil
}

// endsInNumber is the test of the WHATWG URL standard ("ends in a number
// checker"): such a host is an IPv4 address to browsers and to many libraries,
// in decimal, octal or hexadecimal, with one to four parts.
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if last == "" {
		return false
	}
	if strings.Trim(last, "0123456789") == "" {
		return true
	}
	hex, ok := strings.CutPrefix(last, "0x")
	return ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// validName reports whether a lower-case name can be asked of DNS: RFC 1123
// labels, with the underscore that some real hosts have in theirs.
func validName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) < 1 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
		if strings.HasPrefix(label, "xn--") {
			// A label that does not come out of the mapping as it went in is
			// shown as one name and looked up as another.
			if ascii, err := idna.Lookup.ToASCII(label); err != nil || ascii != label {
				return false
			}
		}
	}
	return true
}

// permitsName reports whether a name may be looked up at all. Localhost is not
// asked here: it has fixed addresses, which are judged.
func (p *Policy) permitsName(name string) bool {
	if underAny(name, neverNames()) {
		return false
	}
	private := !strings.Contains(name, ".") || underAny(name, privateSuffixes())
	return !private || p.privateNames
}

// neverNames are names that no setting opens: loopback by definition, no DNS
// names at all, or metadata services.
func neverNames() []string {
	return []string{
		"localhost",   // RFC 6761, 6.3; the bare name is handled before
		"localdomain", // hosts files: localhost.localdomain
		"invalid",     // RFC 6761, 6.4
		"onion",       // RFC 7686
		"alt",         // RFC 9476
		"in-addr.arpa", "ip6.arpa",
		"metadata", "instance-data", "rancher-metadata",
		"metadata.google.internal", "metadata.goog",
		"metadata.azure.internal", "metadata.ec2.internal", "instance-data.ec2.internal",
		"metadata.tencentyun.com", "metadata.packet.net", "metadata.platformequinix.com",
		"api.metadata.cloud.ibm.com", "api.service.softlayer.com", "metadata.exoscale.com",
	}
}

// privateSuffixes are top-level names that the public DNS does not have and that
// private networks use.
func privateSuffixes() []string {
	return []string{
		"local",                // RFC 6762; cluster.local
		"internal",             // reserved by ICANN for private use
		"arpa",                 // home.arpa (RFC 8375), and infrastructure that serves no web pages
		"test",                 // RFC 6761, 6.2
		"corp", "home", "mail", // never delegated, because so much in private use
		"intranet", "intra", "lan", "private", "priv", "localnet", "workgroup",
		"svc", "consul", "docker",
	}
}

// underAny reports whether name is one of the suffixes or a name under one.
func underAny(name string, suffixes []string) bool {
	return slices.ContainsFunc(suffixes, func(suffix string) bool {
		rest, ok := strings.CutSuffix(name, suffix)
		return ok && (rest == "" || rest[len(rest)-1] == '.')
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
