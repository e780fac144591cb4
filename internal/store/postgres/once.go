package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// What follows is for the start of a process, of which there may be many at once.

// sqlAlone takes the one lock of class 7005. What is done under it asks the database
// over other connections, and may take longer than a transaction should.
const sqlAlone = `SELECT set_config('idle_in_transaction_session_timeout', '60000', true), pg_advisory_xact_lock(7005, 0)`

// Alone runs f while no other process runs an f. The lock is a transaction's, so
// that a proxy that pools transactions may stand between; f is not part of it.
func (s *Store) Alone(ctx context.Context, f func(context.Context) error) error {
	var failed error
	err := pgx.BeginFunc(ctx, s.pool, func(q pgx.Tx) error {
		if _, err := one(ctx, q, sqlAlone, nil, new(string), nil); err != nil {
			return fmt.Errorf("wait for other nodes that start: %w", err)
		}
		failed = f(ctx)
		return nil
	})
	if failed != nil {
		return failed
	}
	return edge(err)
}

// Setting reads what all processes have agreed on under a name.
func (s *Store) Setting(ctx context.Context, name string) (value int64, found bool, err error) {
	found, err = one(ctx, s.pool, "SELECT value FROM settings WHERE name = $1", []any{name}, &value)
	return value, found, edge(err)
}

// Settle keeps a setting, in the place of one of that name. Who goes by what it was
// before is Alone.
func (s *Store) Settle(ctx context.Context, name string, value int64) error {
	_, err := s.pool.Exec(ctx, "INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value)
	if err != nil {
		return edge(fmt.Errorf("keep a setting: %w", err))
	}
	return nil
}
