package sqlite

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/storetest"
)

func TestStore(t *testing.T) { storetest.Run(t, harness) }

// harness opens stores in folders of the test. A crash is the files as they are
// at that moment, without the lock and the index of the log, which no process
// leaves to another.
func harness(t *testing.T) storetest.Harness {
	dir := t.TempDir()
	current := openAt(t, dir)
	return storetest.Harness{
		Store: current,
		Reopen: func() store.Store {
			next := t.TempDir()
			copyFiles(t, dir, next)
			if err := current.Close(); err != nil {
				t.Fatal(err)
			}
			dir, current = next, openAt(t, next)
			return current
		},
	}
}

func openAt(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func copyFiles(t *testing.T, from, to string) {
	for _, name := range []string{databaseFile, databaseFile + "-wal"} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
