package postgres

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/pgtest"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/storetest"
)

var server = pgtest.New(func(ctx context.Context, url string) error {
	_, err := Up(ctx, url)
	return err
})

// The model of the suite is played less often than on SQLite, for each step waits for
// the disk; HYPHA_SOAK=1 plays it as often.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("HYPHA_SOAK") == "" {
		if err := flag.Set("rapid.checks", "25"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(pgtest.Main(m, server))
}

func TestStore(t *testing.T) { storetest.Run(t, harness) }

// A crash is a node that has neither left nor beats any more; the next start takes
// over what it had.
func harness(t *testing.T) storetest.Harness {
	t.Parallel() // most of the time goes into waiting for the disk
	return harnessAt(t, server.Reused(t, wipe))
}

func harnessAt(t *testing.T, url string) storetest.Harness {
	current := openAt(t, url)
	return storetest.Harness{
		Store: current,
		Spans: true,
		Reopen: func() store.Store {
			crash(current)
			next := openAt(t, url)
			takeOver(t, next, current.Node())
			current = next
			return current
		},
	}
}

// wipe deletes all rows that a program wrote. Spans of the history stay.
func wipe(ctx context.Context, url string) error {
	pool, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.Exec(ctx, `DO $$ DECLARE t text; BEGIN
		FOR t IN SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
			AND NOT c.relispartition AND c.relname <> 'goose_db_version' AND c.relname <> 'settings'
		LOOP EXECUTE 'DELETE FROM ' || t; END LOOP;
		DELETE FROM settings WHERE name <> 'oldest_program';
	END $$`)
	return err
}

// with is a URL with a parameter more.
func with(t testing.TB, address, name, value string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func openAt(t testing.TB, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{URL: url, Node: t.Name(), Version: "test", Span: time.Hour})
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

// crash ends what a store does, and its connections, and nothing else: its lease
// stays, and what it holds.
func crash(s *Store) {
	s.closeOnce.Do(func() {
		s.cancel()
		s.wg.Wait()
		s.disconnect()
	})
}

func takeOver(t testing.TB, s *Store, node int64) {
	t.Helper()
	if ended, err := s.TakeOver(t.Context(), node, 0); err != nil || !ended {
		t.Fatalf("taking over from node %d: %v, %v", node, ended, err)
	}
}
