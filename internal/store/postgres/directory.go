package postgres

import (
	"context"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// The directory says of what is known before its tenant is, a credential or an
// e-mail address, whose it is. It is written in the transaction that writes the row
// of the tenant, and read together with that.

const (
	sqlInsertTenant = `INSERT INTO tenants (id, name, created_at, updated_at, config_version) VALUES ($1, $2, $3, $4, 1)`
	sqlUpdateTenant = `UPDATE tenants SET name = $2, updated_at = $3 WHERE id = $1 AND NOT removed`
	sqlRemoveTenant = `UPDATE tenants SET removed = true, config_version = config_version + 1, changed_at = clock_timestamp() WHERE id = $1`
	sqlShowTenant   = `SELECT id, name, created_at, updated_at FROM tenants WHERE id = $1 AND NOT removed`
	sqlTenants      = `SELECT id, name, created_at, updated_at FROM tenants WHERE id > $1 AND NOT removed ORDER BY id LIMIT $2`

	sqlKeyByHash = `SELECT ` + apiKeyColumns + ` FROM credentials c JOIN api_keys k ON k.tenant_id = c.tenant_id AND k.id = c.id
		WHERE c.hash = $1 AND c.kind = $2 AND k.hash = c.hash`
	// sqlTouchKeys takes the latest use of each key: a statement that updates a row
	// from several would take any.
	sqlTouchKeys = `UPDATE api_keys k SET last_used_at = v.at
		FROM (SELECT tenant_id, id, max(at) AS at FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS v(tenant_id, id, at) GROUP BY tenant_id, id) v
		WHERE k.tenant_id = v.tenant_id AND k.id = v.id AND (k.last_used_at IS NULL OR k.last_used_at < v.at)`
)

// tenantRow is where the columns of a tenant go.
type tenantRow struct {
	hook.Tenant
	created, updated int64
}

func (c *tenantRow) to() []any { return []any{(*[16]byte)(&c.ID), &c.Name, &c.created, &c.updated} }

func (c *tenantRow) read() hook.Tenant {
	v := c.Tenant
	v.CreatedAt, v.UpdatedAt = atMillis(c.created), atMillis(c.updated)
	return v
}

// ask runs a question of one statement, which is a snapshot by itself.
func (s *Store) ask(ctx context.Context, text string, args, to []any, row func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return edge(each(ctx, s.pool, text, args, to, row))
}

// InsertTenant adds a tenant. Its configuration begins at version 1. The id of one
// that was removed is taken for as long as anything is left of it.
func (s *Store) InsertTenant(ctx context.Context, v hook.Tenant) error {
	return s.writeAlone(ctx, v.ID, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, sqlInsertTenant, uuid(v.ID), v.Name, millis(v.CreatedAt), millis(v.UpdatedAt))
		t.notify()
		return exists(err, "the tenant")
	})
}

// UpdateTenant replaces a tenant's name.
func (s *Store) UpdateTenant(ctx context.Context, v hook.Tenant) error {
	return s.write(ctx, []id.Tenant{v.ID}, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, sqlUpdateTenant, uuid(v.ID), v.Name, millis(v.UpdatedAt))
		if err == nil && n == 0 {
			return hook.NotFound("Tenant")
		}
		return err
	})
}

// DeleteTenant removes a tenant. Its history is out of reach at once, and goes
// with Prune.
func (s *Store) DeleteTenant(ctx context.Context, tenant id.Tenant) error {
	return s.writeAlone(ctx, tenant, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		t.notify()
		for _, text := range [...]string{
			sqlRemoveTenant,
			"DELETE FROM credentials c USING api_keys k WHERE k.tenant_id = $1 AND c.hash = k.hash",
			"DELETE FROM credentials c USING sessions s WHERE s.tenant_id = $1 AND c.hash = s.hash",
			"DELETE FROM emails e USING users u WHERE u.tenant_id = $1 AND e.email = u.email AND e.tenant_id = $1",
			"DELETE FROM webhooks WHERE tenant_id = $1",
			"DELETE FROM lanes WHERE tenant_id = $1",
			"DELETE FROM vault WHERE tenant_id = $1",
			"DELETE FROM vault_references WHERE tenant_id = $1",
			"DELETE FROM api_keys WHERE tenant_id = $1",
			"DELETE FROM sessions WHERE tenant_id = $1",
			"DELETE FROM users WHERE tenant_id = $1",
			"DELETE FROM jobs WHERE tenant_id = $1",
		} {
			if _, err := t.exec(ctx, text, uuid(tenant)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Tenant shows one tenant.
func (s *Store) Tenant(ctx context.Context, tenant id.Tenant) (*hook.Tenant, error) {
	var v tenantRow
	var out *hook.Tenant
	err := s.ask(ctx, sqlShowTenant, []any{uuid(tenant)}, v.to(), func() error {
		found := v.read()
		out = &found
		return nil
	})
	if err == nil && out == nil {
		err = hook.NotFound("Tenant")
	}
	return out, err
}

// Tenants lists tenants, oldest first.
func (s *Store) Tenants(ctx context.Context, after id.Tenant, limit int) ([]hook.Tenant, error) {
	var out []hook.Tenant
	var v tenantRow
	err := s.ask(ctx, sqlTenants, []any{uuid(after), int64(limit)}, v.to(), func() error {
		out = append(out, v.read())
		return nil
	})
	return out, err
}

// KeyByHash finds whose key it is.
func (s *Store) KeyByHash(ctx context.Context, hash [32]byte) (*store.KeyRow, error) {
	var k apiKeyRow
	var out *store.KeyRow
	err := s.ask(ctx, sqlKeyByHash, []any{hash[:], kindAPIKey}, k.to(), func() error {
		found, err := k.read()
		out = &found
		return err
	})
	if err == nil && out == nil {
		err = hook.NotFound("API key")
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// InsertOperatorKey adds a key of no tenant.
func (s *Store) InsertOperatorKey(ctx context.Context, k store.KeyRow) error {
	k.Tenant = id.Tenant{}
	return s.write(ctx, nil, func(ctx context.Context, t *tx) error { return t.insertKey(ctx, &k) })
}

// OperatorKeys lists the keys of no tenant.
func (s *Store) OperatorKeys(ctx context.Context) ([]store.KeyRow, error) {
	var k apiKeyRow
	var out []store.KeyRow
	err := s.ask(ctx, sqlAPIKeys, []any{uuid(id.Tenant{})}, k.to(), func() error {
		found, err := k.read()
		out = append(out, found)
		return err
	})
	return out, err
}

// UpdateOperatorKey replaces the name and the end of a key of no tenant.
func (s *Store) UpdateOperatorKey(ctx context.Context, k store.KeyRow) error {
	k.Tenant = id.Tenant{}
	return s.write(ctx, nil, func(ctx context.Context, t *tx) error { return t.updateKey(ctx, &k) })
}

// DeleteOperatorKey removes a key of no tenant.
func (s *Store) DeleteOperatorKey(ctx context.Context, key id.Key) error {
	return s.write(ctx, nil, func(ctx context.Context, t *tx) error { return t.deleteKey(ctx, id.Tenant{}, key) })
}

// TouchKeys notes when keys were last used. A key that is gone is passed over.
func (s *Store) TouchKeys(ctx context.Context, used []store.KeyUse) error {
	var tenants, keys []pgtype.UUID
	var at []int64
	for i := range used {
		tenants, keys, at = append(tenants, uuid(used[i].Tenant)), append(keys, uuid(used[i].Key)), append(at, millis(used[i].At))
	}
	if len(at) == 0 {
		return nil
	}
	return s.write(ctx, nil, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, sqlTouchKeys, tenants, keys, at)
		return err
	})
}
