package signature

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// MaxSecrets is how many secrets may be in force for one webhook at a time, and
// how many signing keys beside them.
const MaxSecrets = 10

const (
	maxID = 128
	// Far in the future, and short enough that no arithmetic on it overflows.
	maxTimestamp = 999_999_999_999

	v1  = "v1"  // HMAC-SHA256
	v1a = "v1a" // ed25519
)

// ErrUnsignable is wrapped by the error for an id or a time that has no place
// in a signed text. The parts of that text are joined by dots, so an id with a
// dot in it could be read as another id and time, under the same signature.
var ErrUnsignable = errors.New("cannot be signed")

// Keys are what the attempts for one webhook are signed with.
type Keys struct {
	// Secrets are the shared secrets in force, newest first: 1 to [MaxSecrets].
	// They sign the prefixed pair, and the v1 entries of webhook-signature.
	Secrets []Secret
	// Signing are the private keys in force, newest first, at most [MaxSecrets].
	// Each adds a v1a entry to webhook-signature, behind those of v1; without
	// any, v1a is not sent.
	Signing []SigningKey
	// NoV1 leaves v1 out of webhook-signature, so that v1a stands there alone.
	// The prefixed pair is sent all the same.
	NoV1 bool
}

// Signer signs the attempts for one webhook, with the secrets in force. It is
// safe for concurrent use, and worth keeping: it holds on to the hash states of
// its secrets, so that signing costs two allocations and no key set-up. Signing
// keys cost more: a copy of the body, and tens of microseconds each. Changed
// secrets need a new Signer. The zero Signer is not usable; make one with
// [NewSigner] or [Keys.Signer].
type Signer struct {
	prefix  Prefix
	secrets []Secret
	signing []SigningKey
	noV1    bool

	// At most one idle bench is kept. Signing takes microseconds and the
	// attempt that follows milliseconds, so two rarely need one at once; who
	// finds none makes its own. A sync.Pool in every Signer would be visited by
	// every collection instead.
	idle atomic.Pointer[bench]
}

// bench is the reusable state of one signing.
type bench struct {
	prefixed []hash.Hash // keyed with the characters of the newest secret, and of the one before
	standard []hash.Hash // keyed with the decoded bytes of each secret
	content  []byte      // what is signed, up to the body
	values   []byte      // the header values, one after the other
	sum      []byte
}

// NewSigner makes a Signer of the secrets in force, newest first, for v1 alone.
// It fails with [ErrSecret] if there is none, if there are more than
// [MaxSecrets], or if one of them is the zero Secret.
func NewSigner(prefix Prefix, secrets ...Secret) (*Signer, error) {
	return Keys{Secrets: secrets}.Signer(prefix)
}

// Signer makes a Signer of the keys. It fails with [ErrSecret] if there is no
// secret, if there are more than [MaxSecrets] secrets or signing keys, if one of
// them is its type's zero value, or if NoV1 leaves nothing to send.
func (k Keys) Signer(prefix Prefix) (*Signer, error) {
	if len(k.Secrets) == 0 || len(k.Secrets) > MaxSecrets {
		return nil, fmt.Errorf("%w: a signer needs 1 to %d secrets, not %d", ErrSecret, MaxSecrets, len(k.Secrets))
	}
	for i, s := range k.Secrets {
		if s.IsZero() {
			return nil, fmt.Errorf("%w: secret %d of %d is the zero Secret; make it with ParseSecret", ErrSecret, i+1, len(k.Secrets))
		}
	}
	if len(k.Signing) > MaxSecrets || len(k.Signing) == 0 && k.NoV1 {
		return nil, fmt.Errorf("%w: a signer takes at most %d signing keys, and needs one where v1 is left out; it has %d", ErrSecret, MaxSecrets, len(k.Signing))
	}
	for i, s := range k.Signing {
		if s.open == nil {
			return nil, fmt.Errorf("%w: signing key %d of %d is the zero SigningKey; make it with ParseSigningKey or NewSigningKey", ErrSecret, i+1, len(k.Signing))
		}
	}
	return &Signer{prefix: prefix.orDefault(), secrets: slices.Clone(k.Secrets), signing: slices.Clone(k.Signing), noV1: k.NoV1}, nil
}

// Sign sets the signature headers of one attempt in dst, which must not be nil,
// replacing any that are there: the pair of the prefix and its -Previous with two secrets or more
// (removed with one), and those of Standard Webhooks with one "v1" signature
// for each secret, unless that was left out, and one "v1a" signature for each
// signing key.
//
// The id is the event's, 1 to 128 of [A-Za-z0-9_-]. The time is that of this
// attempt, counted in whole seconds. The body is what will be sent, byte for
// byte. An id or time outside of that leaves dst as it was and gives an error
// that wraps [ErrUnsignable].
func (s *Signer) Sign(dst http.Header, id string, at time.Time, body []byte) error {
	timestamp := at.Unix()
	if err := checkSignable(id, timestamp); err != nil {
		return err
	}

	b := s.idle.Swap(nil)
	if b == nil {
		b = s.newBench()
	}
	b.content = appendContentHead(b.content[:0], id, timestamp)
	prefixedContent := b.content[len(id)+1:]

	out := strconv.AppendInt(b.values[:0], timestamp, 10)
	timestampEnd := len(out)
	for _, mac := range b.prefixed {
		out = hex.AppendEncode(out, b.mac(mac, prefixedContent, body))
	}
	prefixedEnd := len(out)
	for i, mac := range b.standard {
		if i > 0 {
			out = append(out, ' ')
		}
		out = append(out, v1...)
		out = append(out, ',')
		out = base64.StdEncoding.AppendEncode(out, b.mac(mac, b.content, body))
	}
	if len(s.signing) > 0 {
		out = s.appendAsymmetric(out, b.content, body)
	}
	b.values = out

	// One string and one slice hold all values: six of each would be the
	// larger part of what signing costs.
	all := string(out)
	s.idle.Store(b)
	values := []string{all[:timestampEnd], id, all[prefixedEnd:], all[timestampEnd : timestampEnd+hexLen], all[prefixedEnd-hexLen : prefixedEnd]}
	dst[s.prefix.timestamp] = values[0:1:1]
	dst[HeaderTimestamp] = values[0:1:1]
	dst[HeaderID] = values[1:2:2]
	dst[HeaderSignature] = values[2:3:3]
	dst[s.prefix.signature] = values[3:4:4]
	if len(s.secrets) > 1 {
		dst[s.prefix.previous] = values[4:5:5]
	} else {
		delete(dst, s.prefix.previous)
	}
	return nil
}

const hexLen = 2 * sha256.Size

// appendAsymmetric appends the v1a entries, with a space in front of each that
// follows another. Ed25519 reads its text twice, so it wants it in one piece:
// that is not kept, for a body may be large and webhooks many.
func (s *Signer) appendAsymmetric(out, head, body []byte) []byte {
	content := slices.Concat(head, body)
	for i, key := range s.signing {
		if i > 0 || !s.noV1 {
			out = append(out, ' ')
		}
		out = append(out, v1a...)
		out = append(out, ',')
		out = base64.StdEncoding.AppendEncode(out, ed25519.Sign(key.open(), content))
	}
	return out
}

func (s *Signer) newBench() *bench {
	b := &bench{sum: make([]byte, 0, sha256.Size)}
	for i, secret := range s.secrets {
		v := secret.open()
		if i < 2 {
			b.prefixed = append(b.prefixed, hmac.New(sha256.New, []byte(v.text)))
		}
		if !s.noV1 {
			b.standard = append(b.standard, hmac.New(sha256.New, v.key))
		}
	}
	return b
}

// mac returns a slice that is valid until the next call.
func (b *bench) mac(h hash.Hash, head, body []byte) []byte {
	h.Reset()
	h.Write(head)
	h.Write(body)
	b.sum = h.Sum(b.sum[:0])
	return b.sum
}

// appendContentHead appends what Standard Webhooks signs, up to the body:
// id, dot, timestamp, dot. The prefixed pair signs the same without the id and
// its dot.
func appendContentHead(dst []byte, id string, timestamp int64) []byte {
	dst = append(dst, id...)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, timestamp, 10)
	return append(dst, '.')
}

func checkSignable(id string, timestamp int64) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrUnsignable, err)
	}
	if timestamp < 0 || timestamp > maxTimestamp {
		return fmt.Errorf("%w: the time of the attempt, %d in Unix seconds, must lie between 0 and %d", ErrUnsignable, timestamp, int64(maxTimestamp))
	}
	return nil
}

// checkID is the one rule for ids, in signing and in verifying.
func checkID(id string) error {
	if id == "" || len(id) > maxID {
		return fmt.Errorf("an id has 1 to %d characters, this one %d", maxID, len(id))
	}
	for i := range len(id) {
		if c := id[i]; !isLetter(c) && !isDigit(c) && c != '_' && c != '-' {
			return fmt.Errorf("character %d of id %q: an id is made of letters, digits, _ and - (a dot would let it be read as another id and time)", i+1, id)
		}
	}
	return nil
}
