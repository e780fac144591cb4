package signature

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// DefaultTolerance is how far the time of an attempt may lie from the
// receiver's clock, on either side. It bounds for how long a captured request
// can be played again. Standard Webhooks 1.0 recommends it.
const DefaultTolerance = 5 * time.Minute

// maxSignatures bounds the work that one request can ask for: public-key
// signatures are slow to check, and a header has room for thousands. A sender
// with all its secrets in force, in two versions, needs fewer.
const maxSignatures = 32

// Why a request did not verify. Errors wrap one of these, and say in their
// message which header is meant and what to look at. None of them holds a
// secret or the signature that would have been right, so they may be logged;
// who sent the request needs no more than the status 401.
var (
	// ErrNoSignature: a header that is needed is missing, or none of its
	// signatures is of a version that can be checked with the keys given.
	ErrNoSignature = errors.New("no signature")
	// ErrMalformed: a header is not what a sender would write, or was sent
	// twice.
	ErrMalformed = errors.New("malformed signature header")
	// ErrTooOld: the attempt was made longer ago than the tolerance.
	ErrTooOld = errors.New("timestamp too old")
	// ErrTooNew: the attempt lies further in the future than the tolerance.
	ErrTooNew = errors.New("timestamp too new")
	// ErrMismatch: no signature belongs to this body, id and time under any of
	// the keys given.
	ErrMismatch = errors.New("signature mismatch")
)

// Verify checks a request's Standard Webhooks headers against its body, with
// the default tolerance. The secrets are those that [NewVerifier] takes. With a
// nil error the body, the webhook-id and the webhook-timestamp come from
// someone who holds a secret.
//
// A receiver of many requests makes a [Verifier] once instead.
func Verify(headers http.Header, body []byte, secrets ...string) error {
	v, err := NewVerifier(secrets)
	if err != nil {
		return err
	}
	return v.Verify(headers, body)
}

// Verifier checks requests against a fixed set of keys. It is safe for
// concurrent use.
type Verifier struct {
	prefix    Prefix
	tolerance time.Duration
	now       func() time.Time
	secrets   []Secret
	public    []PublicKey
}

// Option changes how a [Verifier] judges.
type Option func(*Verifier) error

// WithTolerance sets how far a timestamp may be off, instead of
// [DefaultTolerance]. It must be positive: without a bound, a captured request
// would verify for ever.
func WithTolerance(d time.Duration) Option {
	return func(v *Verifier) error {
		if d <= 0 {
			return fmt.Errorf("tolerance %v: it must be positive", d)
		}
		v.tolerance = d
		return nil
	}
}

// WithClock sets the clock that timestamps are judged by, instead of
// [time.Now].
func WithClock(now func() time.Time) Option {
	return func(v *Verifier) error {
		if now == nil {
			return errors.New("the clock is nil")
		}
		v.now = now
		return nil
	}
}

// WithPrefix sets the prefix of the headers that [Verifier.VerifyPrefixed]
// reads, for a server that was set up with another one than X-Plinqx.
func WithPrefix(p Prefix) Option {
	return func(v *Verifier) error {
		v.prefix = p.orDefault()
		return nil
	}
}

// NewVerifier makes a Verifier of 1 to [MaxSecrets] keys: shared secrets as
// [ParseSecret] reads them, for signatures of version v1, and whpk_ public
// keys, for version v1a. While a secret is being rotated, give the new one and
// the old one. It fails with [ErrSecret] if a key is not acceptable, or if an
// option is not.
func NewVerifier(keys []string, options ...Option) (*Verifier, error) {
	if len(keys) == 0 || len(keys) > MaxSecrets {
		return nil, fmt.Errorf("%w: verifying needs 1 to %d secrets, not %d", ErrSecret, MaxSecrets, len(keys))
	}
	v := &Verifier{prefix: Prefix{}.orDefault(), tolerance: DefaultTolerance, now: time.Now}
	for i, key := range keys {
		if err := v.addKey(key); err != nil {
			return nil, fmt.Errorf("secret %d of %d: %w", i+1, len(keys), err)
		}
	}
	for _, option := range options {
		if err := option(v); err != nil {
			return nil, fmt.Errorf("make a verifier: %w", err)
		}
	}
	return v, nil
}

func (v *Verifier) addKey(key string) error {
	if prefix, exact := keyPrefix(key); prefix == publicKeyPrefix && exact {
		public, err := ParsePublicKey(key)
		if err != nil {
			return err
		}
		v.public = append(v.public, public)
		return nil
	}
	secret, err := ParseSecret(key)
	if err != nil {
		return err
	}
	v.secrets = append(v.secrets, secret)
	return nil
}

// Verify checks webhook-id, webhook-timestamp and webhook-signature against the
// body, as Standard Webhooks 1.0 says. One signature that is right is enough.
// Signatures of unknown versions, and of versions for which no key was given,
// are passed over. Errors wrap one of this package's Err values.
func (v *Verifier) Verify(headers http.Header, body []byte) error {
	signatures, err := single(headers, HeaderSignature)
	if err != nil {
		return err
	}
	id, err := single(headers, HeaderID)
	if err != nil {
		return err
	}
	if err := checkID(id); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, HeaderID, err)
	}
	timestamp, err := v.timestamp(headers, HeaderTimestamp)
	if err != nil {
		return err
	}

	var shared, asymmetric []string
	total := 0
	for entry := range strings.SplitSeq(signatures, " ") {
		if total++; total > maxSignatures {
			return fmt.Errorf("%w: %s holds more than %d signatures", ErrMalformed, HeaderSignature, maxSignatures)
		}
		switch version, signature, _ := strings.Cut(entry, ","); version {
		case v1:
			shared = append(shared, signature)
		case v1a:
			asymmetric = append(asymmetric, signature)
		}
	}
	if len(v.secrets) == 0 {
		shared = nil
	}
	if len(v.public) == 0 {
		asymmetric = nil
	}
	if len(shared) == 0 && len(asymmetric) == 0 {
		return fmt.Errorf("%w: %s holds no signature that the given keys can check (v1 needs a shared secret, v1a a whpk_ key)", ErrNoSignature, HeaderSignature)
	}

	head := appendContentHead(nil, id, timestamp)
	if v.matchShared(shared, head, body) || v.matchAsymmetric(asymmetric, head, body) {
		return nil
	}
	return mismatch(HeaderSignature)
}

// VerifyPrefixed checks the prefixed pair, X-Plinqx-Timestamp and
// X-Plinqx-Signature, or X-Plinqx-Signature-Previous in place of the latter:
// a receiver that still holds the old secret goes on verifying while a rotation
// is in grace. It uses the shared secrets alone. Errors are those of
// [Verifier.Verify].
//
// This pair does not sign the webhook-id. Who tells repeated deliveries apart
// by it needs Verify, or someone could replay a request under another id.
func (v *Verifier) VerifyPrefixed(headers http.Header, body []byte) error {
	if len(v.secrets) == 0 {
		return fmt.Errorf("%w: the %s headers are signed with a shared secret, and none was given", ErrNoSignature, v.prefix)
	}
	newest, err := single(headers, v.prefix.signature)
	if err != nil {
		return err
	}
	signatures := []string{newest}
	if len(headers.Values(v.prefix.previous)) > 0 {
		previous, err := single(headers, v.prefix.previous)
		if err != nil {
			return err
		}
		signatures = append(signatures, previous)
	}
	timestamp, err := v.timestamp(headers, v.prefix.timestamp)
	if err != nil {
		return err
	}

	head := append(strconv.AppendInt(nil, timestamp, 10), '.')
	for _, secret := range v.secrets {
		expected := hex.AppendEncode(nil, macOf([]byte(secret.open().text), head, body))
		if containsEqual(signatures, expected) {
			return nil
		}
	}
	return mismatch(v.prefix.signature)
}

func (v *Verifier) matchShared(signatures []string, head, body []byte) bool {
	if len(signatures) == 0 {
		return false
	}
	for _, secret := range v.secrets {
		// Compared in encoded form: decoding would accept several spellings
		// of one signature.
		expected := base64.StdEncoding.AppendEncode(nil, macOf(secret.open().key, head, body))
		if containsEqual(signatures, expected) {
			return true
		}
	}
	return false
}

func (v *Verifier) matchAsymmetric(signatures []string, head, body []byte) bool {
	if len(signatures) == 0 {
		return false
	}
	content := append(head, body...)
	for _, encoded := range signatures {
		signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil {
			continue
		}
		for _, public := range v.public {
			if ed25519.Verify(public.key, content, signature) {
				return true
			}
		}
	}
	return false
}

// timestamp reads Unix seconds and judges them. Only the one spelling that a
// sender writes is taken (no sign, no leading zero), because the number, not
// the text, goes into what is verified.
func (v *Verifier) timestamp(headers http.Header, name string) (int64, error) {
	text, err := single(headers, name)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 || seconds > maxTimestamp || strconv.FormatInt(seconds, 10) != text {
		return 0, fmt.Errorf("%w: %s must be a plain number of Unix seconds", ErrMalformed, name)
	}
	switch age := v.now().Sub(time.Unix(seconds, 0)); {
	case age > v.tolerance:
		return 0, fmt.Errorf("%w: %s is %v in the past, %v are allowed; the request was delayed or replayed, or this machine's clock is fast", ErrTooOld, name, age.Round(time.Second), v.tolerance)
	case age < -v.tolerance:
		return 0, fmt.Errorf("%w: %s is %v in the future, %v are allowed; this machine's clock may be slow", ErrTooNew, name, (-age).Round(time.Second), v.tolerance)
	}
	return seconds, nil
}

// single wants exactly one value: of two, the application might read the one
// that was not verified.
func single(headers http.Header, name string) (string, error) {
	switch values := headers.Values(name); {
	case len(values) > 1:
		return "", fmt.Errorf("%w: %s was sent %d times", ErrMalformed, name, len(values))
	case len(values) == 0 || values[0] == "":
		return "", fmt.Errorf("%w: the header %s is missing", ErrNoSignature, name)
	default:
		return values[0], nil
	}
}

func macOf(key, head, body []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(head)
	h.Write(body)
	return h.Sum(nil)
}

func containsEqual(signatures []string, expected []byte) bool {
	for _, signature := range signatures {
		if hmac.Equal([]byte(signature), expected) {
			return true
		}
	}
	return false
}

func mismatch(name string) error {
	return fmt.Errorf("%w: nothing in %s belongs to this request; check that the secret is this webhook's, and that the body is the bytes that were received, not parsed and written again", ErrMismatch, name)
}
