// Package seal keeps secrets unreadable at rest: XChaCha20-Poly1305 under the
// server's keys. What is sealed carries the id of its key, so that keys can be
// changed, and is bound to the thing it belongs to, so that it opens nowhere
// else.
//
// A Ring holds the keys: the first one seals, and the others open what was sealed
// under them before. It must not know where keys come from beyond the text of a
// setting or a file, nor what is sealed.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the size of a key in bytes.
const KeySize = chacha20poly1305.KeySize

// version leads everything sealed, so that the form can change.
const version = 1

// HeadSize is how many bytes lead everything sealed that are the same for one key:
// the version and the key's id.
const HeadSize = 1 + len(KeyID{})

// KeyID names a key: the first bytes of its SHA-256. It is no secret.
type KeyID [4]byte

// String is the id as people see it: 8 hexadecimal digits.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// MarshalText is String, for JSON and the log.
func (k KeyID) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// KeyOf is the id of the key that something was sealed under; ok is false if it was
// not sealed here at all.
func KeyOf(sealed []byte) (k KeyID, ok bool) {
	if len(sealed) < HeadSize || sealed[0] != version {
		return k, false
	}
	return KeyID(sealed[1:HeadSize]), true
}

// Head is how everything begins that is sealed under a key.
func (k KeyID) Head() []byte { return append([]byte{version}, k[:]...) }

// key is one key, ready to be used.
type key struct {
	id          KeyID
	fingerprint int64
	aead        cipher.AEAD
}

// Ring seals under its first key, and opens what was sealed under any. It is safe
// for concurrent use.
type Ring struct {
	keys atomic.Pointer[[]key]
}

// ErrOpen says that a sealed text can't be opened: it was sealed under a key that is
// not in the ring, for another thing, or is damaged.
var ErrOpen = errors.New("sealed under another key, or damaged")

// New makes a ring of keys of KeySize bytes. The first one seals.
func New(keys ...[]byte) (*Ring, error) {
	r := new(Ring)
	return r, r.Replace(keys...)
}

// Replace puts other keys in the place of those of the ring, all at once. After an
// error the ring is what it was.
func (r *Ring) Replace(keys ...[]byte) error {
	if len(keys) == 0 {
		return errors.New("secret key: there is none")
	}
	ring := make([]key, 0, len(keys))
	for _, k := range keys {
		made, err := newKey(k)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(ring, func(other key) bool { return other.id == made.id }) {
			return fmt.Errorf("secret key: %s is given twice; give each key once", made.id)
		}
		ring = append(ring, made)
	}
	r.keys.Store(&ring)
	return nil
}

func newKey(k []byte) (key, error) {
	aead, err := chacha20poly1305.NewX(k)
	if err != nil {
		return key{}, fmt.Errorf("secret key: want %d bytes, got %d", KeySize, len(k))
	}
	sum := sha256.Sum256(k)
	// Of another text than the id: what both tell together is no more of the key.
	check := sha256.Sum256(append([]byte("hypha: which key this is\n"), k...))
	return key{id: KeyID(sum[:]), fingerprint: int64(binary.BigEndian.Uint64(check[:])), aead: aead}, nil
}

// IDs are the ids of the ring's keys. The first one's key seals.
func (r *Ring) IDs() []KeyID {
	var ids []KeyID
	for _, k := range *r.keys.Load() {
		ids = append(ids, k.id)
	}
	return ids
}

// Current is the id of the key that seals.
func (r *Ring) Current() KeyID { return (*r.keys.Load())[0].id }

// Has reports whether a key is in the ring.
func (r *Ring) Has(id KeyID) bool { return slices.Contains(r.IDs(), id) }

// Fingerprints tell keys apart, and tell nothing about them. They are in the order
// of IDs, and longer than those: two keys that have the same are the same.
func (r *Ring) Fingerprints() []int64 {
	var all []int64
	for _, k := range *r.keys.Load() {
		all = append(all, k.fingerprint)
	}
	return all
}

// Seal encrypts plain for the thing that owner names.
func (r *Ring) Seal(plain, owner []byte) ([]byte, error) {
	k := &(*r.keys.Load())[0]
	out := make([]byte, HeadSize+chacha20poly1305.NonceSizeX, HeadSize+chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	copy(out, k.id.Head())
	nonce := out[HeadSize:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return k.aead.Seal(out, nonce, plain, owner), nil
}

// Open decrypts what Seal made for the same owner. The error is ErrOpen, and names
// the key where it is that which is missing.
func (r *Ring) Open(sealed, owner []byte) ([]byte, error) {
	id, ok := KeyOf(sealed)
	if !ok || len(sealed) < HeadSize+chacha20poly1305.NonceSizeX {
		return nil, ErrOpen
	}
	ring := *r.keys.Load()
	i := slices.IndexFunc(ring, func(k key) bool { return k.id == id })
	if i < 0 {
		return nil, fmt.Errorf("%w: the key %s is not among the server's", ErrOpen, id)
	}
	nonce, text := sealed[HeadSize:HeadSize+chacha20poly1305.NonceSizeX], sealed[HeadSize+chacha20poly1305.NonceSizeX:]
	plain, err := ring[i].aead.Open(nil, nonce, text, owner)
	if err != nil {
		return nil, ErrOpen
	}
	return plain, nil
}

// ParseKey reads a key of 64 hexadecimal digits.
func ParseKey(text string) ([]byte, error) {
	key, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("secret key: want %d hexadecimal digits", 2*KeySize)
	}
	return key, nil
}

// ParseKeys reads keys with commas between them. The first one is to seal.
func ParseKeys(text string) (keys [][]byte, err error) {
	for part := range strings.SplitSeq(text, ",") {
		key, err := ParseKey(part)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	_, err = New(keys...)
	return keys, err
}
