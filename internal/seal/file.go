package seal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// FileName is the file of keys in a data folder.
const FileName = "secret.key"

// A file of keys has one on each line, the one that seals first. Empty lines, and
// those that begin with #, are passed over.

// ReadFile reads a file of keys, which its owner alone may read.
func ReadFile(path string) (keys [][]byte, err error) {
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parseFile(path, text)
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("secret key: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("secret key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("secret key: others can read %s; run: chmod 600 %s", path, path)
	}
	const most = 64 << 10 // of a thousand keys
	if info.Size() > most {
		return "", fmt.Errorf("secret key: %s is larger than %d bytes; is it the right file?", path, most)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("secret key: %w", err)
	}
	return string(text), nil
}

func parseFile(path, text string) (keys [][]byte, err error) {
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, err := ParseKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		keys = append(keys, key)
	}
	if _, err := New(keys...); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return keys, nil
}

// FolderKeys reads the keys in a data folder, or makes one there, readable by its
// owner alone.
func FolderKeys(dir string) ([][]byte, error) {
	path := filepath.Join(dir, FileName)
	keys, err := ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	line, err := newLine()
	if err != nil {
		return nil, err
	}
	// A link fails where there is something: of two processes one makes the file,
	// and both use it.
	if err := writeWhole(path, line, os.Link); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return ReadFile(path)
}

// AddKey makes a key and puts it before those in a file, so that it is the one that
// seals for whoever reads the file next. It answers all keys of the file. A crash
// leaves the file as it was, or with the new key and all that it had.
func AddKey(path string) (keys [][]byte, err error) {
	held, err := readFile(path)
	if err != nil {
		return nil, err
	}
	if _, err := parseFile(path, held); err != nil {
		return nil, err
	}
	line, err := newLine()
	if err != nil {
		return nil, err
	}
	if err := writeWhole(path, line+held, os.Rename); err != nil {
		return nil, err
	}
	return ReadFile(path)
}

func newLine() (string, error) {
	key := make([]byte, KeySize)
	if _, err := rand.Read(key); err != nil {
		return "", fmt.Errorf("secret key: %w", err)
	}
	return hex.EncodeToString(key) + "\n", nil
}

// writeWhole writes beside the path and puts it in place, synced, so that a crash
// leaves a whole file or what was there.
func writeWhole(path, text string, place func(from, to string) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "secret-*.tmp") // 0600
	if err != nil {
		return fmt.Errorf("secret key: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // in place, or of no use
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = place(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("secret key: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
