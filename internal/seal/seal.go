// Package seal keeps secrets unreadable at rest: XChaCha20-Poly1305 under the
// server's key. What is sealed carries the id of its key, so that keys can be
// changed, and is bound to the thing it belongs to, so that it opens nowhere
// else.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the size of a key in bytes.
const KeySize = chacha20poly1305.KeySize

// keyIDSize is how many bytes of the key's SHA-256 name it.
const keyIDSize = 4

// version leads everything sealed, so that the form can change.
const version = 1

// Box seals and opens. It is safe for concurrent use.
type Box struct {
	id          [keyIDSize]byte
	fingerprint int64
	aead        cipher.AEAD
}

// ErrOpen says that a sealed text can't be opened: it was sealed under another
// key, for another thing, or is damaged.
var ErrOpen = errors.New("sealed under another key, or damaged")

// New makes a box with a key of KeySize bytes.
func New(key []byte) (*Box, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("secret key: want %d bytes, got %d", KeySize, len(key))
	}
	sum := sha256.Sum256(key)
	// Of another text than the id: what both tell together is no more of the key.
	check := sha256.Sum256(append([]byte("hypha: which key this is\n"), key...))
	return &Box{id: [keyIDSize]byte(sum[:]), fingerprint: int64(binary.BigEndian.Uint64(check[:])), aead: aead}, nil
}

// Fingerprint tells keys apart, and tells nothing about the key: two boxes have the
// same if they have the same key.
func (b *Box) Fingerprint() int64 { return b.fingerprint }

// Seal encrypts plain for the thing that owner names.
func (b *Box) Seal(plain, owner []byte) ([]byte, error) {
	head := 1 + keyIDSize
	out := make([]byte, head+chacha20poly1305.NonceSizeX, head+chacha20poly1305.NonceSizeX+len(plain)+chacha20poly1305.Overhead)
	out[0] = version
	copy(out[1:], b.id[:])
	nonce := out[head:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return b.aead.Seal(out, nonce, plain, owner), nil
}

// Open decrypts what Seal made for the same owner. The error is ErrOpen.
func (b *Box) Open(sealed, owner []byte) ([]byte, error) {
	head := 1 + keyIDSize
	if len(sealed) < head+chacha20poly1305.NonceSizeX || sealed[0] != version || [keyIDSize]byte(sealed[1:]) != b.id {
		return nil, ErrOpen
	}
	nonce, text := sealed[head:head+chacha20poly1305.NonceSizeX], sealed[head+chacha20poly1305.NonceSizeX:]
	plain, err := b.aead.Open(nil, nonce, text, owner)
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

// KeyFile reads the key in dir, or makes one there, readable by its owner alone.
func KeyFile(dir string) ([]byte, error) {
	path := filepath.Join(dir, "secret.key")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKeyFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("secret key: others can read %s; run: chmod 600 %s", path, path)
	}
	key, err := ParseKey(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// makeKeyFile writes beside the path and links, so that a crash leaves a whole
// key or none, and of two processes one makes it and both use it.
func makeKeyFile(path string) ([]byte, error) {
	key := make([]byte, KeySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "secret-*.tmp") // 0600
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // linked or of no use
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	if errors.Is(err, fs.ErrExist) {
		return KeyFile(filepath.Dir(path))
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("secret key: %w", err)
	}
	return key, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
