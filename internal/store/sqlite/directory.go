package sqlite

import (
	"context"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	userColumns = `tenant_id, id, email, role, password_hash, created_at`

	sqlSession = `SELECT u.tenant_id, u.id, u.email, u.role, u.password_hash, u.created_at, s.id, s.created_at, s.expires_at
		FROM sessions s JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id WHERE s.hash = ?`
)

func readTenant(r row) hook.Tenant {
	return hook.Tenant{ID: readID[id.Tenant](r, 0), Name: r.text(1), CreatedAt: r.time(2), UpdatedAt: r.time(3)}
}

func readUser(r row) hook.User {
	return hook.User{
		Tenant: readID[id.Tenant](r, 0), ID: readID[id.User](r, 1), Email: r.text(2), Role: hook.Role(r.text(3)),
		PasswordHash: r.text(4), CreatedAt: r.time(5),
	}
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

// InsertUser adds a user.
func (s *Store) InsertUser(ctx context.Context, u hook.User) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(u.Tenant); err != nil {
			return err
		}
		_, err := t.exec("INSERT INTO users ("+userColumns+") VALUES (?, ?, ?, ?, ?, ?)",
			u.Tenant[:], u.ID[:], u.Email, string(u.Role), u.PasswordHash, millis(u.CreatedAt))
		return exists(err, "a user of this address")
	})
}

// UsersByEmail finds the users of an address.
func (s *Store) UsersByEmail(ctx context.Context, email string) ([]hook.User, error) {
	var out []hook.User
	err := s.snapshot(ctx, func(c *conn) error {
		return c.scan("SELECT "+userColumns+" FROM users WHERE email = ? ORDER BY tenant_id", func(r row) { out = append(out, readUser(r)) }, email)
	})
	return out, err
}

// InsertSession notes a sign-in.
func (s *Store) InsertSession(ctx context.Context, v hook.Session, hash [32]byte) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(v.Tenant); err != nil {
			return err
		}
		n, err := t.exec("INSERT INTO sessions (tenant_id, id, hash, user_id, created_at, expires_at) SELECT tenant_id, ?, ?, id, ?, ? FROM users WHERE tenant_id = ? AND id = ?",
			v.ID[:], hash[:], millis(v.CreatedAt), millis(v.ExpiresAt), v.Tenant[:], v.User.ID[:])
		if err == nil && n == 0 {
			return hook.NotFound("User")
		}
		return exists(err, "the session")
	})
}

// SessionByHash finds a session, ended or not, with its user.
func (s *Store) SessionByHash(ctx context.Context, hash [32]byte) (*hook.Session, error) {
	var out hook.Session
	err := s.snapshot(ctx, func(c *conn) error {
		found, err := c.one(sqlSession, func(r row) {
			out = hook.Session{User: readUser(r), ID: readID[id.Session](r, 6), CreatedAt: r.time(7), ExpiresAt: r.time(8)}
			out.Tenant = out.User.Tenant
		}, hash[:])
		if err == nil && !found {
			err = hook.NotFound("Session")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// DeleteSession ends a session.
func (s *Store) DeleteSession(ctx context.Context, tenant id.Tenant, session id.Session) error {
	return s.write(ctx, func(t *tx) error {
		n, err := t.exec("DELETE FROM sessions WHERE tenant_id = ? AND id = ?", tenant[:], session[:])
		if err == nil && n == 0 {
			return hook.NotFound("Session")
		}
		return err
	})
}
