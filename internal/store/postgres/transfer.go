package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/store/transfer"
)

// BeginTransfer implements transfer.Target.
func (s *Store) BeginTransfer(ctx context.Context) error {
	var begun, filled, peers bool
	_, err := one(ctx, s.pool, `SELECT EXISTS (SELECT 1 FROM transfers), EXISTS (SELECT 1 FROM tenants) OR EXISTS (SELECT 1 FROM credentials),
		EXISTS (SELECT 1 FROM nodes WHERE id <> $1 AND beat_at > clock_timestamp() - interval '10 seconds')`, []any{s.node.Load()}, &begun, &filled, &peers)
	switch {
	case err != nil:
		return edge(fmt.Errorf("look at the database: %w", err))
	case peers:
		return errors.New("other hypha processes use this database; stop them for as long as the copy takes")
	case filled && !begun:
		return errors.New("the database is not empty; a store is copied into an empty one")
	}
	return nil
}

// Transferred implements transfer.Target.
func (s *Store) Transferred(ctx context.Context, p transfer.Part) (at transfer.Progress, err error) {
	_, err = one(ctx, s.pool, "SELECT cursor, rows, done FROM transfers WHERE part = $1", []any{p.Name}, &at.Cursor, &at.Rows, &at.Done)
	return at, edge(err)
}

// WritePart implements transfer.Target.
func (s *Store) WritePart(ctx context.Context, p transfer.Part, rows []transfer.Row, now transfer.Progress) error {
	if err := s.needSpans(ctx, spanIDs(p, rows)...); err != nil {
		return edge(err)
	}
	ctx, cancel := context.WithTimeout(ctx, transferPatience)
	defer cancel()
	return edge(pgx.BeginFunc(ctx, s.pool, func(q pgx.Tx) error {
		if err := copyRows(ctx, q, p.Name, p.Columns, rows); err != nil {
			return err
		}
		if err := writeDirectory(ctx, q, p, rows); err != nil {
			return err
		}
		_, err := q.Exec(ctx, `INSERT INTO transfers (part, cursor, rows, done) VALUES ($1, $2, $3, $4)
			ON CONFLICT (part) DO UPDATE SET cursor = excluded.cursor, rows = excluded.rows, done = excluded.done`, p.Name, now.Cursor, now.Rows, now.Done)
		return err
	}))
}

// transferPatience is how long a page may take: it may hold large bodies.
const transferPatience = 6 * patience

// spanIDs are the ids by which a part's rows find their span of history.
func spanIDs(p transfer.Part, rows []transfer.Row) (ids [][16]byte) {
	column := map[string]string{"events": "id", "deliveries": "id", "attempts": "delivery_id"}[p.Name]
	for i, c := range p.Columns {
		if column == "" || c.Name != column {
			continue
		}
		for _, r := range rows {
			if v, ok := r[i].([16]byte); ok {
				ids = append(ids, v)
			}
		}
	}
	return ids
}

func copyRows(ctx context.Context, q pgx.Tx, table string, columns []transfer.Column, rows []transfer.Row) error {
	names := make([]string, len(columns))
	for i, c := range columns {
		names[i] = c.Name
	}
	_, err := q.CopyFrom(ctx, pgx.Identifier{table}, names, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) { return rows[i], nil }))
	return err
}

// writeDirectory writes what the directory has of a part: whose a credential is, and
// an e-mail address.
func writeDirectory(ctx context.Context, q pgx.Tx, p transfer.Part, rows []transfer.Row) error {
	var table string
	var from, to []string
	var kind any
	switch p.Name {
	case "api_keys":
		table, from, to, kind = "credentials", []string{"hash", "tenant_id", "id"}, []string{"hash", "tenant_id", "id", "kind"}, int64(0)
	case "sessions":
		table, from, to, kind = "credentials", []string{"hash", "tenant_id", "id"}, []string{"hash", "tenant_id", "id", "kind"}, int64(1)
	case "users":
		table, from, to = "emails", []string{"email", "tenant_id", "id"}, []string{"email", "tenant_id", "user_id"}
	default:
		return nil
	}
	at := map[string]int{}
	for i, c := range p.Columns {
		at[c.Name] = i
	}
	_, err := q.CopyFrom(ctx, pgx.Identifier{table}, to, pgx.CopyFromSlice(len(rows), func(i int) ([]any, error) {
		var out []any
		for _, name := range from {
			out = append(out, rows[i][at[name]])
		}
		if kind != nil {
			out = append(out, kind)
		}
		return out, nil
	}))
	return err
}

// CountPart implements transfer.Target.
func (s *Store) CountPart(ctx context.Context, p transfer.Part) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, transferPatience)
	defer cancel()
	table := pgx.Identifier{p.Name}.Sanitize()
	_, err = one(ctx, s.pool, "SELECT count(*) FROM "+table, nil, &n)
	return n, edge(err)
}

// EndTransfer implements transfer.Target.
func (s *Store) EndTransfer(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM transfers")
	return edge(err)
}
