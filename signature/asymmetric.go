package signature

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"time"
)

// SigningKey is the private half of an ed25519 key pair, for signatures of
// version v1a of Standard Webhooks. Like a [Secret] it always prints masked.
// The zero SigningKey signs nothing.
type SigningKey struct {
	// A func for the reason given at Secret.
	open func() ed25519.PrivateKey
}

func newSigningKey(key ed25519.PrivateKey) SigningKey {
	return SigningKey{func() ed25519.PrivateKey { return key }}
}

// PublicKey is the public half: a receiver that holds it can check signatures
// and make none.
type PublicKey struct {
	key ed25519.PublicKey
}

// NewSigningKey makes a key pair. An error means that the system has no
// randomness to give.
func NewSigningKey() (SigningKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return SigningKey{}, fmt.Errorf("make a signing key: %w", err)
	}
	return newSigningKey(key), nil
}

// ParseSigningKey reads whsk_ and standard base64 of either the 32 bytes of the
// seed, or these and the 32 bytes of the public key, which must belong to the
// seed. Errors wrap [ErrSecret].
func ParseSigningKey(s string) (SigningKey, error) {
	raw, err := parseKey(s, signingKeyPrefix, "private")
	if err != nil {
		return SigningKey{}, err
	}
	if len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return SigningKey{}, fmt.Errorf("%w: a whsk_ key holds %d or %d bytes, this one %d", ErrSecret, ed25519.SeedSize, ed25519.PrivateKeySize, len(raw))
	}
	key := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	if len(raw) == ed25519.PrivateKeySize && !key.Equal(ed25519.PrivateKey(raw)) {
		return SigningKey{}, fmt.Errorf("%w: the private and public halves of the whsk_ key do not belong together", ErrSecret)
	}
	return newSigningKey(key), nil
}

// ParsePublicKey reads whpk_ and standard base64 of the 32 bytes of a public
// key. Errors wrap [ErrSecret].
func ParsePublicKey(s string) (PublicKey, error) {
	raw, err := parseKey(s, publicKeyPrefix, "public")
	if err != nil {
		return PublicKey{}, err
	}
	if len(raw) != ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("%w: a whpk_ key holds %d bytes, this one %d", ErrSecret, ed25519.PublicKeySize, len(raw))
	}
	return PublicKey{raw}, nil
}

func parseKey(s, prefix, half string) ([]byte, error) {
	if isMasked(s) {
		return nil, fmt.Errorf("%w: it is a masked value; give the key itself", ErrSecret)
	}
	if err := checkPrintable(s); err != nil {
		return nil, err
	}
	if found, exact := keyPrefix(s); found != prefix || !exact {
		return nil, fmt.Errorf("%w: a %s key starts with %s", ErrSecret, half, prefix)
	}
	return decodeKey(s[len(prefix):])
}

// Sign returns one entry for the webhook-signature header, "v1a," and base64 of
// the ed25519 signature. Id, time and body are those of [Signer.Sign], and so
// are the errors, with [ErrSecret] for the zero key.
func (k SigningKey) Sign(id string, at time.Time, body []byte) (string, error) {
	if k.open == nil {
		return "", fmt.Errorf("%w: the zero SigningKey; make it with ParseSigningKey or NewSigningKey", ErrSecret)
	}
	if err := checkSignable(id, at.Unix()); err != nil {
		return "", err
	}
	content := append(appendContentHead(nil, id, at.Unix()), body...)
	return v1a + "," + base64.StdEncoding.EncodeToString(ed25519.Sign(k.open(), content)), nil
}

// Public returns the half that is given to receivers.
func (k SigningKey) Public() PublicKey {
	if k.open == nil {
		return PublicKey{}
	}
	return PublicKey{ed25519.PublicKey(k.open()[ed25519.SeedSize:])}
}

// Reveal returns the key as whsk_ text, seed and public key: the form that the
// sealed store keeps.
func (k SigningKey) Reveal() string {
	if k.open == nil {
		return ""
	}
	return signingKeyPrefix + base64.StdEncoding.EncodeToString(k.open())
}

// String gives the masked form.
func (k SigningKey) String() string { return Mask(k.Reveal()) }

// GoString gives the masked form, for %#v.
func (k SigningKey) GoString() string { return k.String() }

// Format writes the masked form whatever the verb.
func (k SigningKey) Format(f fmt.State, _ rune) { writeMasked(f, k.String()) }

// LogValue gives the masked form to log/slog.
func (k SigningKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText gives the masked form to encoders such as encoding/json.
func (k SigningKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// String returns the key as whpk_ text. It is not masked: it is public.
func (k PublicKey) String() string {
	if len(k.key) == 0 {
		return ""
	}
	return publicKeyPrefix + base64.StdEncoding.EncodeToString(k.key)
}

// X returns the key in base64url without padding: the member "x" of its JSON Web
// Key (RFC 8037, section 2).
func (k PublicKey) X() string { return base64.RawURLEncoding.EncodeToString(k.key) }

// Thumbprint names the key: SHA-256 of its JSON Web Key in canonical form, in
// base64url without padding (RFC 7638; RFC 8037, appendix A.3). It is what the
// server calls the key's id, and kid.
func (k PublicKey) Thumbprint() string {
	sum := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + k.X() + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
