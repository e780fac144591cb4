package postgres

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// execute runs a statement as nobody's transaction.
func execute(t *testing.T, url, text string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	must(t, err)
	_, err = c.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol)
	must(t, errors.Join(err, c.Close(t.Context())))
}

func emptyDatabase(t *testing.T) string {
	t.Helper()
	url := server.Database(t)
	execute(t, url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
	return url
}

func TestMigrateFromManyNodes(t *testing.T) {
	url := emptyDatabase(t)
	before, err := Status(t.Context(), url)
	must(t, err)
	if before.Current != 0 || len(before.Pending) == 0 || before.Known == 0 {
		t.Errorf("an empty database has the schema %+v", before)
	}
	const nodes = 5
	errs := make(chan error, nodes)
	for range nodes {
		go func() {
			_, err := Up(context.Background(), url)
			errs <- err
		}()
	}
	for range nodes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	after, err := Status(t.Context(), url)
	must(t, err)
	if after.Current != after.Known || len(after.Pending) != 0 || after.Servable() != nil {
		t.Errorf("the schema is %+v", after)
	}
	openAt(t, url)
}

// Nodes are upgraded one by one: an old program serves what a new one has migrated,
// until a migration says that it can't.
func TestNewerDatabase(t *testing.T) {
	url := server.Database(t)
	execute(t, url, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (1000, true)")
	openAt(t, url)
	execute(t, url, "UPDATE settings SET value = 999 WHERE name = 'oldest_program'")
	_, err := Open(t.Context(), Options{URL: url})
	if err == nil {
		t.Fatal("a program that is too old was let in")
	}
	for _, want := range [...]string{"1000", "999", "newer hypha"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := Up(t.Context(), url); err == nil {
		t.Error("migrate up says that all is well")
	}
}
