package seal_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/plinqx/hypha/internal/seal"
)

func key(fill byte) []byte { return bytes.Repeat([]byte{fill}, seal.KeySize) }

func ring(t *testing.T, fills ...byte) *seal.Ring {
	t.Helper()
	var keys [][]byte
	for _, fill := range fills {
		keys = append(keys, key(fill))
	}
	r, err := seal.New(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSealedOpensOnlyWithItsKeyAndOwner(t *testing.T) {
	r, plain, owner := ring(t, 1), []byte("whsec_a secret"), []byte("ten_1/wh_1")
	sealed, err := r.Seal(plain, owner)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, plain) {
		t.Fatal("the secret can be read")
	}
	if again, _ := r.Seal(plain, owner); bytes.Equal(again, sealed) {
		t.Error("the same twice: the nonce was used again")
	}
	if got, err := r.Open(sealed, owner); err != nil || !bytes.Equal(got, plain) {
		t.Fatalf("%q, %v", got, err)
	}
	damaged := bytes.Clone(sealed)
	damaged[len(damaged)-1] ^= 1
	renamed := bytes.Clone(sealed)
	copy(renamed, ring(t, 2).Current().Head())
	for name, open := range map[string]func() ([]byte, error){
		"another key":              func() ([]byte, error) { return ring(t, 2).Open(sealed, owner) },
		"the id of another key":    func() ([]byte, error) { return ring(t, 2, 1).Open(renamed, owner) },
		"another owner":            func() ([]byte, error) { return r.Open(sealed, []byte("ten_1/wh_2")) },
		"damaged":                  func() ([]byte, error) { return r.Open(damaged, owner) },
		"cut short":                func() ([]byte, error) { return r.Open(sealed[:10], owner) },
		"cut short in its key":     func() ([]byte, error) { return r.Open(sealed[:3], owner) },
		"empty":                    func() ([]byte, error) { return r.Open(nil, owner) },
		"of a form to come":        func() ([]byte, error) { return r.Open(append([]byte{2}, sealed[1:]...), owner) },
		"with something behind it": func() ([]byte, error) { return r.Open(append(bytes.Clone(sealed), 0), owner) },
	} {
		if got, err := open(); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestTheFirstKeySealsAndAllOpen(t *testing.T) {
	old, owner := ring(t, 1), []byte("owner")
	before, err := old.Seal([]byte("before"), owner)
	if err != nil {
		t.Fatal(err)
	}
	both := ring(t, 2, 1)
	if got, err := both.Open(before, owner); err != nil || string(got) != "before" {
		t.Fatalf("%q, %v", got, err)
	}
	after, err := both.Seal([]byte("after"), owner)
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := seal.KeyOf(after); !ok || k != both.Current() || k != ring(t, 2).Current() || !bytes.HasPrefix(after, k.Head()) {
		t.Errorf("sealed under %v, %v", k, ok)
	}
	if _, err := old.Open(after, owner); !errors.Is(err, seal.ErrOpen) || !strings.Contains(err.Error(), both.Current().String()) {
		t.Errorf("the key that is missing is not named: %v", err)
	}
	if err := both.Replace(key(3), key(2)); err != nil {
		t.Fatal(err)
	}
	if both.Current() != ring(t, 3).Current() || !both.Has(ring(t, 2).Current()) || both.Has(old.Current()) || len(both.IDs()) != 2 {
		t.Errorf("the ring is %v", both.IDs())
	}
	for _, keys := range [][][]byte{{}, {key(1)[1:]}, {key(1), key(2), key(1)}} {
		if err := both.Replace(keys...); err == nil || both.Current() != ring(t, 3).Current() {
			t.Errorf("%d keys: %v, and the ring is %v", len(keys), err, both.IDs())
		}
	}
}

func TestParseKeys(t *testing.T) {
	one, two := hex.EncodeToString(key(1)), hex.EncodeToString(key(2))
	for text, want := range map[string]int{
		one: 1, one + "," + two: 2, " " + one + " , " + two + "\n": 2, strings.ToUpper(one): 1,
		"": 0, "abc": 0, one + ",": 0, one + one: 0, one + "," + one: 0, one + " " + two: 0,
	} {
		keys, err := seal.ParseKeys(text)
		if want > 0 && (err != nil || len(keys) != want || !bytes.Equal(keys[0], key(1)) && text != strings.ToUpper(one)) || want == 0 && err == nil {
			t.Errorf("%q: %d keys, %v", text, len(keys), err)
		}
		if err != nil && len(text) > 60 && strings.Contains(err.Error(), text[:60]) {
			t.Errorf("the error has the key in it: %v", err)
		}
	}
}

func TestFolderKeys(t *testing.T) {
	dir := t.TempDir()
	made, err := seal.FolderKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	read, err := seal.FolderKeys(dir)
	if err != nil || len(made) != 1 || len(read) != 1 || !bytes.Equal(made[0], read[0]) {
		t.Fatalf("made %x, read %x, %v", made, read, err)
	}
	path := filepath.Join(dir, seal.FileName)
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for _, mode := range []os.FileMode{0o644, 0o640, 0o604} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.FolderKeys(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("a key that others can read (%v): %v", mode, err)
		}
	}
}

func TestReadFile(t *testing.T) {
	one, two := hex.EncodeToString(key(1)), hex.EncodeToString(key(2))
	path := filepath.Join(t.TempDir(), "keys")
	for text, want := range map[string]string{
		one: "", one + "\n" + two + "\n": "", "# made in May\r\n\r\n" + one + "\r\n\n  " + two: "",
		"": "there is none", "# nothing\n": "there is none", one + "\nabc\n": "line 2", one + "\n" + one: "twice", one + "," + two: "line 1",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := seal.ReadFile(path)
		switch {
		case want == "" && (err != nil || !bytes.Equal(keys[0], key(1))):
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%q: %v; want %q in it", text, err, want)
		}
	}
}

func TestAddKeyKeepsWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	before, err := seal.FolderKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, seal.FileName)
	held, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append([]byte("# the first one\n"), held...), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 4; n++ {
		keys, err := seal.AddKey(path)
		if err != nil || len(keys) != n || !bytes.Equal(keys[n-1], before[0]) {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		read, err := seal.FolderKeys(dir)
		if err != nil || !slices.EqualFunc(read, keys, bytes.Equal) {
			t.Fatalf("the file has %d keys, %v", len(read), err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.HasSuffix(text, append([]byte("# the first one\n"), held...)) {
		t.Errorf("the file has %d bytes, %v", len(text), err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(path, []byte("damaged\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.AddKey(path); err == nil {
		t.Error("a key was put before what is no key")
	}
}

func TestFingerprintTellsKeysApart(t *testing.T) {
	one := key(1)
	seen := make(map[int64]bool)
	for i := range seal.KeySize {
		other := bytes.Clone(one)
		other[i] = 2
		for range 2 { // the same key, twice
			r, err := seal.New(other)
			if err != nil {
				t.Fatal(err)
			}
			seen[r.Fingerprints()[0]] = true
		}
	}
	if len(seen) != seal.KeySize {
		t.Errorf("%d fingerprints of %d keys", len(seen), seal.KeySize)
	}
}
