package egress

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxURLLength is the most characters that a webhook's URL may have.
const MaxURLLength = 2048

// CheckURL judges the URL of a webhook, as given at create or change. It returns
// the URL parsed and ready to request: nothing in it is changed, except that a
// host beyond ASCII is in its ASCII form, and such characters of the query are
// escaped. What is stored and shown is raw itself.
//
// Names are not resolved here; a name's addresses are judged by
// [Policy.DialContext] each time. An error is the first thing found wrong, in
// words for the person who wrote the URL, to follow the field's name ("url has
// no host: ...").
func (p *Policy) CheckURL(raw string) (*url.URL, error) {
	if err := checkCharacters(raw); err != nil {
		return nil, err
	}
	scheme, rest, ok := strings.Cut(raw, ":")
	scheme = strings.ToLower(scheme)
	if !ok || scheme != "http" && scheme != "https" || !strings.HasPrefix(rest, "//") {
		return nil, errors.New("must begin with http:// or https://")
	}
	if strings.Contains(rest, "#") {
		return nil, errors.New("has a fragment (#...), which is never sent: remove it")
	}
	authority := rest[len("//"):]
	if end := strings.IndexAny(authority, "/?"); end >= 0 {
		authority = authority[:end]
	}
	if strings.Contains(authority, "@") {
		return nil, errors.New("has credentials before an @: remove them, and send them in a header such as Authorization instead")
	}
	rawHost, port, err := splitPort(authority, scheme)
	if err != nil {
		return nil, err
	}
	h, err := parseHost(rawHost)
	if err != nil {
		return nil, err
	}

	u, err := url.Parse(raw)
	if err != nil {
		// The parser's text quotes the URL at length and says no more than this.
		return nil, errors.New("is not a valid URL: check it for a percent sign without two hexadecimal digits after it")
	}
	// The request goes to the host that the library saw: it must be the one
	// that was judged.
	if u.Host != authority || u.Scheme != scheme || u.User != nil || u.Opaque != "" {
		return nil, errors.New("is not a valid URL: write it as https://host/path")
	}
	if !validEscapes(u.RawQuery) {
		return nil, errors.New("has a percent sign in its query without two hexadecimal digits after it: write %25 for a percent sign")
	}
	u.RawQuery = escapeNonASCII(u.RawQuery)
	if !isASCII(rawHost) {
		u.Host = h.name + authority[len(rawHost):]
	}

	if !p.ports.Contains(port) {
		return nil, fmt.Errorf("has a port that is not allowed, %d: use one of %s", port, p.ports)
	}
	if !p.permits(h, port) {
		return nil, errNotPublic
	}
	return u, nil
}

// permits judges a host as far as that is possible without asking DNS.
func (p *Policy) permits(h host, port uint16) bool {
	switch {
	case !p.ports.Contains(port):
		return false
	case h.addr.IsValid():
		return p.judge(netip.AddrPortFrom(h.addr, port))
	case h.name == localhost:
		for _, addr := range loopback() {
			if p.judge(netip.AddrPortFrom(addr, port)) {
				return true
			}
		}
		return false
	}
	return p.permitsName(h.name)
}

// checkCharacters refuses what no URL contains, before any parser can forgive it.
func checkCharacters(raw string) error {
	switch {
	case raw == "":
		return errors.New("is empty: write it as https://host/path")
	case !utf8.ValidString(raw):
		return errors.New("is not valid UTF-8")
	case utf8.RuneCountInString(raw) > MaxURLLength:
		return fmt.Errorf("is longer than %d characters", MaxURLLength)
	}
	for _, r := range raw {
		switch {
		case r == '\\':
			return errors.New(`has a backslash: write / between the parts of a path, or %5C for a backslash`)
		case r == ' ' || !unicode.IsPrint(r):
			// Invisible and direction-changing characters are among these: they
			// make a URL look like another one.
			return fmt.Errorf("has a space or an invisible character (U+%04X): remove it, or write it percent-encoded", r)
		}
	}
	return nil
}

// splitPort takes the port off an authority that has no userinfo. Without one,
// it is the scheme's.
func splitPort(authority, scheme string) (rawHost string, port uint16, err error) {
	rawHost, rest := authority, ""
	if strings.HasPrefix(authority, "[") {
		closing := strings.LastIndexByte(authority, ']')
		if closing < 0 {
			return "", 0, errBadBracket
		}
		rawHost, rest = authority[:closing+1], authority[closing+1:]
		if rest != "" && rest[0] != ':' {
			return "", 0, errBadBracket
		}
	} else if colon := strings.IndexByte(authority, ':'); colon >= 0 {
		rawHost, rest = authority[:colon], authority[colon:]
		if strings.Contains(rest[1:], ":") {
			return "", 0, errColon
		}
	}
	switch {
	case rest != "":
		var ok bool
		if port, ok = parsePort(rest[1:]); !ok {
			return "", 0, errors.New("has a port that is not a number from 1 to 65535: write it without sign and leading zeros, or leave the colon out")
		}
	case scheme == "http":
		port = 80
	default:
		port = 443
	}
	return rawHost, port, nil
}

// validEscapes reports whether every percent sign begins an escape.
func validEscapes(s string) bool {
	_, err := url.PathUnescape(s)
	return err == nil
}

// escapeNonASCII percent-encodes what a request line cannot carry.
func escapeNonASCII(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if s[i] < utf8.RuneSelf {
			b.WriteByte(s[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", s[i])
		}
	}
	return b.String()
}
