package sqlite

import (
	"context"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func readTenant(r row) hook.Tenant {
	return hook.Tenant{ID: readID[id.Tenant](r, 0), Name: r.text(1), CreatedAt: r.time(2), UpdatedAt: r.time(3)}
}

// InsertTenant adds a tenant. Its configuration begins at version 1.
func (s *Store) InsertTenant(ctx context.Context, v hook.Tenant) error {
	return s.write(ctx, func(t *tx) error {
		removed, err := t.one("SELECT 1 FROM removed_tenants WHERE id = ?", func(row) {}, v.ID[:])
		if err != nil {
			return err
		}
		if removed {
			return hook.Conflict("the tenant exists already")
		}
		_, err = t.exec("INSERT INTO tenants (id, name, created_at, updated_at, config_version) VALUES (?, ?, ?, ?, 1)",
			v.ID[:], v.Name, millis(v.CreatedAt), millis(v.UpdatedAt))
		if err != nil {
			return exists(err, "the tenant")
		}
		t.setVersion(v.ID, 1)
		return nil
	})
}

// UpdateTenant replaces a tenant's name.
func (s *Store) UpdateTenant(ctx context.Context, v hook.Tenant) error {
	return s.write(ctx, func(t *tx) error {
		n, err := t.exec("UPDATE tenants SET name = ?, updated_at = ? WHERE id = ?", v.Name, millis(v.UpdatedAt), v.ID[:])
		if err == nil && n == 0 {
			return hook.NotFound("Tenant")
		}
		return err
	})
}

// DeleteTenant removes a tenant. Its history is out of reach at once, and goes
// with Prune.
func (s *Store) DeleteTenant(ctx context.Context, tenant id.Tenant) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		if err := t.settleTenant(tenant); err != nil {
			return err
		}
		t.wantFold = true // so that Prune finds all of it
		for _, text := range [...]string{
			"DELETE FROM tenants WHERE id = ?",
			"INSERT INTO removed_tenants (id) VALUES (?)",
			"DELETE FROM webhooks WHERE tenant_id = ?",
			"DELETE FROM lanes WHERE tenant_id = ?",
			"DELETE FROM vault WHERE tenant_id = ?",
			"DELETE FROM vault_references WHERE tenant_id = ?",
			"DELETE FROM keys WHERE tenant_id = ?",
			"DELETE FROM sessions WHERE tenant_id = ?",
			"DELETE FROM users WHERE tenant_id = ?",
			"DELETE FROM jobs WHERE tenant_id = ?",
		} {
			if _, err := t.exec(text, tenant[:]); err != nil {
				return err
			}
		}
		t.setVersion(tenant, tenantGone)
		return nil
	})
}

// Tenant shows one tenant.
func (s *Store) Tenant(ctx context.Context, tenant id.Tenant) (*hook.Tenant, error) {
	var out hook.Tenant
	err := s.snapshot(ctx, func(c *conn) error {
		found, err := c.one("SELECT id, name, created_at, updated_at FROM tenants WHERE id = ?", func(r row) { out = readTenant(r) }, tenant[:])
		if err == nil && !found {
			err = hook.NotFound("Tenant")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// Tenants lists tenants, oldest first.
func (s *Store) Tenants(ctx context.Context, after id.Tenant, limit int) ([]hook.Tenant, error) {
	var out []hook.Tenant
	err := s.snapshot(ctx, func(c *conn) error {
		return c.scan("SELECT id, name, created_at, updated_at FROM tenants WHERE id > ? ORDER BY id LIMIT ?",
			func(r row) { out = append(out, readTenant(r)) }, after[:], limit)
	})
	return out, err
}

// KeyByHash finds whose key it is.
func (s *Store) KeyByHash(ctx context.Context, hash [32]byte) (*store.KeyRow, error) {
	var out *store.KeyRow
	err := s.snapshot(ctx, func(c *conn) error {
		return c.query("SELECT "+keyColumns+" FROM keys WHERE hash = ?", func(r row) (bool, error) {
			k, err := readKey(r)
			out = &k
			return false, err
		}, hash[:])
	})
	if err == nil && out == nil {
		err = hook.NotFound("API key")
	}
	return out, err
}

// InsertOperatorKey adds a key of no tenant.
func (s *Store) InsertOperatorKey(ctx context.Context, k store.KeyRow) error {
	k.Tenant = id.Tenant{}
	return s.write(ctx, func(t *tx) error { return t.insertKey(&k) })
}

// OperatorKeys lists the keys of no tenant.
func (s *Store) OperatorKeys(ctx context.Context) ([]store.KeyRow, error) {
	var out []store.KeyRow
	err := s.snapshot(ctx, func(c *conn) error {
		return c.query("SELECT "+keyColumns+" FROM keys WHERE tenant_id = ? ORDER BY id", func(r row) (bool, error) {
			k, err := readKey(r)
			out = append(out, k)
			return true, err
		}, make([]byte, len(id.Tenant{})))
	})
	return out, err
}

// UpdateOperatorKey replaces the name and the end of a key of no tenant.
func (s *Store) UpdateOperatorKey(ctx context.Context, k store.KeyRow) error {
	k.Tenant = id.Tenant{}
	return s.write(ctx, func(t *tx) error { return t.updateKey(&k) })
}

// DeleteOperatorKey removes a key of no tenant.
func (s *Store) DeleteOperatorKey(ctx context.Context, key id.Key) error {
	return s.write(ctx, func(t *tx) error { return t.deleteKey(id.Tenant{}, key) })
}

// TouchKeys notes when keys were last used. A key that is gone is passed over.
func (s *Store) TouchKeys(ctx context.Context, used []store.KeyUse) error {
	return s.write(ctx, func(t *tx) error {
		for i := range used {
			at := millis(used[i].At)
			_, err := t.exec("UPDATE keys SET last_used_at = ? WHERE tenant_id = ? AND id = ? AND (last_used_at IS NULL OR last_used_at < ?)",
				at, used[i].Tenant[:], used[i].Key[:], at)
			if err != nil {
				return err
			}
		}
		return nil
	})
}
