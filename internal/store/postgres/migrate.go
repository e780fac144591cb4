package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Schema says how a database's schema stands to this program.
type Schema struct {
	// Current is the version of the database, 0 for an empty one; Known is the
	// newest that this program knows.
	Current, Known int64
	// OldestProgram is the version that a program must know to serve the database:
	// none older than that may.
	OldestProgram int64
	// Pending are the migrations that this program would run, in order.
	Pending []string
}

// Servable is an error if this program is too old for the database.
func (v *Schema) Servable() error {
	if v.OldestProgram <= v.Known {
		return nil
	}
	return fmt.Errorf("the database has schema version %d, which programs serve that know version %d, and this one knows versions up to %d: a newer hypha has migrated it; run that one or a newer one",
		v.Current, v.OldestProgram, v.Known)
}

// Migrate brings the schema to the newest version that this program knows. Any
// number of programs may call it at once: one migrates, and the others wait.
//
// A database that is newer than the program is left as it is, and served, unless its
// setting oldest_program says that it can't be. So nodes are upgraded one by one: the
// first new one migrates while old ones work on. A migration therefore only adds what
// old programs don't miss and new ones can do without at first: tables, indexes,
// columns with a default. What it makes superfluous goes with the release after,
// whose migration raises oldest_program to the version at which nobody used it any
// more; a cluster must have run the release between.
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	// The migrator takes longer than all else at the start, and mostly has nothing
	// to do.
	schema, err := readSchema(ctx, pool)
	if err != nil {
		return err
	}
	if len(schema.Pending) == 0 {
		return schema.Servable()
	}
	return pgx.BeginFunc(ctx, pool, func(lock pgx.Tx) error {
		// The lock is a transaction's, for a proxy in between that knows no
		// sessions. Who waits for a long migration must not lose patience.
		_, err := lock.Exec(ctx, `SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true),
			set_config('idle_in_transaction_session_timeout', '0', true), pg_advisory_xact_lock(7000, 0)`, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return fmt.Errorf("wait for others to migrate the database: %w", err)
		}
		if schema, err = readSchema(ctx, pool); err != nil {
			return err
		}
		if len(schema.Pending) == 0 {
			return schema.Servable()
		}
		return migrate(ctx, pool, schema)
	})
}

// migrate runs what is pending, each migration in a transaction.
func migrate(ctx context.Context, pool *pgxpool.Pool, schema *Schema) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	db := stdlib.OpenDBFromPool(pool)
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return errors.Join(fmt.Errorf("read the migrations: %w", err), db.Close())
	}
	if _, err := provider.Up(ctx); err != nil {
		return errors.Join(fmt.Errorf("migrate the database from schema version %d to %d: %w", schema.Current, schema.Known, err), provider.Close())
	}
	return provider.Close()
}

// readSchema asks the database how it stands.
func readSchema(ctx context.Context, q querier) (*Schema, error) {
	v := &Schema{}
	var there bool
	_, err := one(ctx, q, "SELECT to_regclass('goose_db_version') IS NOT NULL", nil, &there)
	if err == nil && there {
		_, err = one(ctx, q, "SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied", nil, &v.Current)
	}
	if err == nil && v.Current > 0 {
		_, err = one(ctx, q, "SELECT value FROM settings WHERE name = 'oldest_program'", nil, &v.OldestProgram)
	}
	if err != nil {
		return nil, fmt.Errorf("read the version of the database's schema: %w", err)
	}
	names, err := fs.Glob(migrations, "migrations/*.sql") // in order
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	for _, name := range names {
		name = strings.TrimPrefix(name, "migrations/")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read the migrations: %w", err)
		}
		v.Known = version
		if version > v.Current {
			v.Pending = append(v.Pending, name)
		}
	}
	return v, nil
}

// Status says how the database at a URL stands to this program.
func Status(ctx context.Context, url string) (*Schema, error) {
	pool, err := connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	return readSchema(ctx, pool)
}

// Up is Migrate for the database at a URL, and says how it stood before.
func Up(ctx context.Context, url string) (before *Schema, err error) {
	pool, err := connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	if before, err = readSchema(ctx, pool); err != nil {
		return nil, err
	}
	return before, Migrate(ctx, pool)
}
