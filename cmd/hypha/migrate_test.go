package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestMigrate(t *testing.T) {
	database := databases.Database(t)
	migrate := func(what string) (string, error) {
		var out bytes.Buffer
		look := func(name string) (string, bool) {
			if name != "HYPHA_DATABASE_URL" {
				return "", false
			}
			return database, true
		}
		err := run(t.Context(), []string{"migrate", what}, look, strings.NewReader(""), &out, io.Discard)
		return out.String(), err
	}
	for _, step := range []struct{ what, want string }{
		{"status", "schema version of the database: 0\n"},
		{"status", "pending: 00001_schema.sql\n"},
		{"up", "Migrated from schema version 0 to "},
		{"up", "nothing to do"},
		{"status", "pending: nothing\n"},
	} {
		got, err := migrate(step.what)
		if err != nil || !strings.Contains(got, step.want) {
			t.Errorf("migrate %s: %v, %q; want %q", step.what, err, got, step.want)
		}
	}
	// A later program has been here, whose tables this one can't serve.
	c, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(t.Context()) }()
	if _, err := c.Exec(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, true); UPDATE settings SET value = 99 WHERE name = 'oldest_program'", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"status", "up"} {
		if _, err := migrate(what); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Errorf("migrate %s of a newer database: %v", what, err)
		}
	}
}

func TestMigrateNeedsADatabase(t *testing.T) {
	if _, err := runCLI(t, nil, "migrate", "up"); err == nil || !strings.Contains(err.Error(), "--database-url") {
		t.Errorf("without one: %v", err)
	}
}
