package signature

import (
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// The limits of a secret, in characters for one given as plain text and in
// decoded bytes for one with the whsec_ prefix. The latter are those of
// Standard Webhooks 1.0.
const (
	minPlainSecret = 16
	maxPlainSecret = 256
	minKeyBytes    = 24
	maxKeyBytes    = 64
	newKeyBytes    = 32
)

// The prefixes that tell what a key is, from Standard Webhooks 1.0.
const (
	secretPrefix     = "whsec_" // a symmetric secret, shared by sender and receiver
	signingKeyPrefix = "whsk_"  // an ed25519 private key, the sender's alone
	publicKeyPrefix  = "whpk_"  // an ed25519 public key, the receiver's
)

const mask = "****"

// ErrSecret is wrapped by every error about a secret or key that is not
// acceptable. The message says what is wrong with it and never quotes it.
var ErrSecret = errors.New("invalid secret")

// Secret is a shared secret that has passed [ParseSecret]. It prints masked
// through every fmt verb, slog and the text and JSON encoders; [Secret.Reveal]
// is the only way to its characters. The zero Secret signs nothing.
type Secret struct {
	// A func, because fmt cannot call Format on a Secret in an unexported field
	// of somebody else's struct, and prints what it finds instead: of a func
	// the address with every verb, of a pointer with some verbs the contents.
	open func() secretValue
}

type secretValue struct {
	text string
	key  []byte // what Standard Webhooks keys its HMAC with
}

func newSecret(text string, key []byte) Secret {
	v := secretValue{text: text, key: key}
	return Secret{func() secretValue { return v }}
}

// ParseSecret accepts a secret as a webhook's owner gives it: whsec_ and
// standard, padded base64 of 24 to 64 bytes, or else 16 to 256 printable ASCII
// characters (0x20 to 0x7E) that neither begin nor end with a space.
//
// It refuses what would later fail somewhere else, or protect nothing: keys of
// the asymmetric scheme (whsk_, whpk_), a prefix in the wrong case, base64 that
// only some libraries can read, and a value that was copied from a masked
// answer. Every error wraps [ErrSecret].
func ParseSecret(s string) (Secret, error) {
	if s == "" {
		return Secret{}, fmt.Errorf("%w: it is empty", ErrSecret)
	}
	if isMasked(s) {
		return Secret{}, fmt.Errorf("%w: it is a masked value; give the secret itself, or leave it out to have one made", ErrSecret)
	}
	if err := checkPrintable(s); err != nil {
		return Secret{}, err
	}
	switch prefix, exact := keyPrefix(s); {
	case prefix != "" && !exact:
		// Taken as plain text, it would be keyed with its characters here and
		// with its decoded bytes by a receiver who types the prefix right.
		return Secret{}, fmt.Errorf("%w: the prefix %s is written in lower case", ErrSecret, prefix)
	case prefix == signingKeyPrefix:
		return Secret{}, fmt.Errorf("%w: whsk_ marks a private key of the asymmetric scheme; a shared secret starts with whsec_", ErrSecret)
	case prefix == publicKeyPrefix:
		return Secret{}, fmt.Errorf("%w: whpk_ marks a public key, which anyone may know; a shared secret starts with whsec_", ErrSecret)
	case prefix == secretPrefix:
		key, err := decodeKey(s[len(secretPrefix):])
		if err != nil {
			return Secret{}, err
		}
		if len(key) < minKeyBytes || len(key) > maxKeyBytes {
			return Secret{}, fmt.Errorf("%w: a whsec_ secret holds %d to %d bytes, this one %d", ErrSecret, minKeyBytes, maxKeyBytes, len(key))
		}
		return newSecret(s, key), nil
	case len(s) < minPlainSecret || len(s) > maxPlainSecret:
		return Secret{}, fmt.Errorf("%w: it must have %d to %d characters, this one has %d", ErrSecret, minPlainSecret, maxPlainSecret, len(s))
	}
	return newSecret(s, []byte(s)), nil
}

// NewSecret makes a secret: whsec_ and 32 random bytes. It passes
// [ParseSecret]. An error means that the system has no randomness to give.
func NewSecret() (string, error) {
	key := make([]byte, newKeyBytes)
	if _, err := rand.Read(key); err != nil {
		return "", fmt.Errorf("make a secret: %w", err)
	}
	return secretPrefix + base64.StdEncoding.EncodeToString(key), nil
}

// Mask gives the form of a secret or key that may be shown: its prefix, if it
// has one of this package's, and four asterisks. An empty string stays empty,
// since it hides nothing. [ParseSecret] refuses every masked form.
func Mask(secret string) string {
	if secret == "" {
		return ""
	}
	if prefix, exact := keyPrefix(secret); exact {
		return prefix + mask
	}
	return mask
}

// Reveal returns the characters that [ParseSecret] was given. They belong in
// the sealed store and in the one answer that hands a new secret over.
func (s Secret) Reveal() string {
	if s.open == nil {
		return ""
	}
	return s.open().text
}

// Equal reports whether both hold the same characters, in a time that tells at
// most their lengths.
func (s Secret) Equal(other Secret) bool {
	return hmac.Equal([]byte(s.Reveal()), []byte(other.Reveal()))
}

// IsZero reports whether this is the zero Secret, which ParseSecret never gives.
func (s Secret) IsZero() bool { return s.open == nil }

// String gives the masked form.
func (s Secret) String() string { return Mask(s.Reveal()) }

// GoString gives the masked form, for %#v.
func (s Secret) GoString() string { return s.String() }

// Format writes the masked form whatever the verb, so that %x or %d does not
// show what %s hides.
func (s Secret) Format(f fmt.State, _ rune) { writeMasked(f, s.String()) }

// LogValue gives the masked form to log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText gives the masked form to encoders such as encoding/json.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// writeMasked drops the error: a fmt.State collects in memory and has nowhere
// to report one to.
func writeMasked(f fmt.State, masked string) { _, _ = io.WriteString(f, masked) }

// keyPrefix returns the prefix that s starts with in any case, or "", and
// whether s has it exactly as it is written.
func keyPrefix(s string) (prefix string, exact bool) {
	for _, prefix := range [...]string{secretPrefix, signingKeyPrefix, publicKeyPrefix} {
		if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
			return prefix, s[:len(prefix)] == prefix
		}
	}
	return "", false
}

// isMasked recognises a secret that was copied from an answer: nothing but
// asterisks or bullets after an optional prefix, or four of either in a row.
func isMasked(s string) bool {
	if strings.Contains(s, mask) || strings.Contains(s, "••••") {
		return true
	}
	prefix, _ := keyPrefix(s)
	rest := s[len(prefix):]
	return rest != "" && strings.Trim(rest, "*•") == ""
}

// checkPrintable says where the first unacceptable character is, not what it
// is: next to its position that is all a reader needs, and it is part of a
// secret.
func checkPrintable(s string) error {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '\n' || c == '\r':
			return fmt.Errorf("%w: character %d is a line break, often left over from a file; remove it", ErrSecret, i+1)
		case c == ' ' && (i == 0 || i == len(s)-1):
			return fmt.Errorf("%w: it begins or ends with a space, often left over from copying; remove it", ErrSecret)
		case c < 0x20 || c > 0x7E:
			return fmt.Errorf("%w: character %d is not a printable ASCII character", ErrSecret, i+1)
		}
	}
	return nil
}

// decodeKey reads the base64 part of a key. Strict refuses stray trailing bits
// (RFC 4648, section 3.5): some libraries read such text and some do not, and a
// secret must work in all of them.
func decodeKey(encoded string) ([]byte, error) {
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil {
		// The decoder's own message is left out: it quotes positions of a
		// secret at best, and helps nobody more than this does.
		return nil, fmt.Errorf("%w: what follows the prefix must be standard base64 (+ and /) with its = padding", ErrSecret)
	}
	return key, nil
}
