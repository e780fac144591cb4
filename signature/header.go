package signature

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// The headers of Standard Webhooks 1.0, in the form that [http.Header] keys
// have. On the wire case does not matter.
const (
	HeaderID        = "Webhook-Id"        // the event's id, the same on every attempt
	HeaderTimestamp = "Webhook-Timestamp" // Unix seconds of the attempt
	HeaderSignature = "Webhook-Signature" // space-separated "version,signature" pairs
)

const (
	defaultPrefix = "X-Plinqx"
	maxPrefix     = 64
)

// ErrPrefix is wrapped by the errors of [ParsePrefix].
var ErrPrefix = errors.New("invalid header prefix")

// Prefix names the headers of the prefixed pair. The zero Prefix is X-Plinqx.
type Prefix struct {
	text, timestamp, signature, previous string
}

// ParsePrefix reads the setting that takes the place of X-Plinqx: 1 to 64
// letters, digits and hyphens, starting with a letter, not ending with a
// hyphen. The empty string means the default. "webhook", in any case, is
// refused: its headers would be those of Standard Webhooks. Errors wrap
// [ErrPrefix].
func ParsePrefix(s string) (Prefix, error) {
	if s == "" {
		s = defaultPrefix
	}
	if len(s) > maxPrefix {
		return Prefix{}, fmt.Errorf("%w: it has %d characters, at most %d are allowed", ErrPrefix, len(s), maxPrefix)
	}
	for i := range len(s) {
		if c := s[i]; !isLetter(c) && (i == 0 || !isDigit(c) && c != '-') {
			return Prefix{}, fmt.Errorf("%w: character %d of %q: it is made of letters, digits and hyphens and starts with a letter", ErrPrefix, i+1, s)
		}
	}
	if strings.HasSuffix(s, "-") {
		return Prefix{}, fmt.Errorf("%w: %q must not end with a hyphen; one is added before each name", ErrPrefix, s)
	}
	if strings.EqualFold(s, "webhook") {
		return Prefix{}, fmt.Errorf("%w: %q gives the header names of Standard Webhooks, which are sent as well; choose another", ErrPrefix, s)
	}
	return newPrefix(s), nil
}

func newPrefix(s string) Prefix {
	text := http.CanonicalHeaderKey(s)
	return Prefix{
		text:      text,
		timestamp: text + "-Timestamp",
		signature: text + "-Signature",
		previous:  text + "-Signature-Previous",
	}
}

// String returns the prefix itself, without a hyphen at its end.
func (p Prefix) String() string { return p.orDefault().text }

// Timestamp names the header that holds the attempt's time in Unix seconds.
func (p Prefix) Timestamp() string { return p.orDefault().timestamp }

// Signature names the header that holds the signature made with the newest
// secret.
func (p Prefix) Signature() string { return p.orDefault().signature }

// Previous names the header that holds the signature made with the secret
// before, sent only while a rotation is in grace.
func (p Prefix) Previous() string { return p.orDefault().previous }

func (p Prefix) orDefault() Prefix {
	if p.text == "" {
		return newPrefix(defaultPrefix)
	}
	return p
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
