package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/pressly/goose/v3"
	driver "modernc.org/sqlite"
)

//go:embed migrations/*.sql
var migrations embed.FS

// migrate brings the schema to the version that this program knows. The
// migrator is not started when there is nothing to do: it would take longer
// than everything else at the start.
func (s *Store) migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	known, err := newestMigration(files)
	if err != nil {
		return err
	}
	current, err := s.schemaVersion()
	if err != nil {
		return fmt.Errorf("read the schema's version in %s: %w", s.path, err)
	}
	switch {
	case current == known:
		return nil
	case current > known:
		return fmt.Errorf("the database %s has schema version %d, and this program knows versions up to %d: it was written by a newer hypha; run that one, or name another data folder", s.path, current, known)
	}
	connector, err := driver.NewConnector(s.dsn("_synchronous=FULL"))
	if err != nil {
		return fmt.Errorf("open %s: %w", s.path, err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return errors.Join(fmt.Errorf("read the migrations: %w", err), db.Close())
	}
	if _, err := provider.Up(ctx); err != nil {
		return errors.Join(fmt.Errorf("migrate %s from schema version %d to %d: %w", s.path, current, known, err), provider.Close())
	}
	return provider.Close()
}

// schemaVersion is the newest migration that was applied; 0 for an empty
// database.
func (s *Store) schemaVersion() (int64, error) {
	var tables, version int64
	err := s.writer.scan("SELECT count(*) FROM sqlite_schema WHERE name = 'goose_db_version'", func(r row) { tables = r.int(0) })
	if err != nil || tables == 0 {
		return 0, err
	}
	err = s.writer.scan("SELECT max(version_id) FROM goose_db_version WHERE is_applied", func(r row) { version = r.int(0) })
	return version, err
}

func newestMigration(files fs.FS) (int64, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil || len(names) == 0 {
		return 0, fmt.Errorf("read the migrations: %w", errors.Join(err, fs.ErrNotExist))
	}
	number, _, _ := strings.Cut(names[len(names)-1], "_")
	return strconv.ParseInt(number, 10, 64)
}
