package seal_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/plinqx/hypha/internal/seal"
)

func box(t *testing.T, fill byte) *seal.Box {
	t.Helper()
	b, err := seal.New(bytes.Repeat([]byte{fill}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealedOpensOnlyWithItsKeyAndOwner(t *testing.T) {
	b, plain, owner := box(t, 1), []byte("whsec_a secret"), []byte("ten_1/wh_1")
	sealed, err := b.Seal(plain, owner)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Fatal("the secret can be read")
	}
	if again, _ := b.Seal(plain, owner); bytes.Equal(again, sealed) {
		t.Error("the same twice: the nonce was used again")
	}
	if got, err := b.Open(sealed, owner); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%q, %v", got, err)
	}
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)-1] ^= 1
	for name, open := range map[string]func() ([]byte, error){
		"another key":   func() ([]byte, error) { return box(t, 2).Open(sealed, owner) },
		"another owner": func() ([]byte, error) { return b.Open(sealed, []byte("ten_1/wh_2")) },
		"damaged":       func() ([]byte, error) { return b.Open(damaged, owner) },
		"cut short":     func() ([]byte, error) { return b.Open(sealed[:10], owner) },
		"empty":         func() ([]byte, error) { return b.Open(nil, owner) },
	} {
		if got, err := open(); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	made, err := seal.KeyFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	read, err := seal.KeyFile(dir)
	if err != nil || !bytes.Equal(made, read) {
		t.Fatalf("made %x, read %x, %v", made, read, err)
	}
	path := filepath.Join(dir, "secret.key")
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.KeyFile(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestFingerprintTellsKeysApart(t *testing.T) {
	one := bytes.Repeat([]byte{1}, seal.KeySize)
	seen := make(map[int64]bool)
	for i := range seal.KeySize {
		other := bytes.Clone(one)
		other[i] = 2
		for range 2 { // the same key, twice
			box, err := seal.New(other)
			if err != nil {
				t.Fatal(err)
			}
			seen[box.Fingerprint()] = true
		}
	}
	if len(seen) != seal.KeySize {
		t.Errorf("%d fingerprints of %d keys", len(seen), seal.KeySize)
	}
}
