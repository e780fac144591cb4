package sqlite

import (
	"context"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	userColumns = `u.tenant_id, u.id, u.email, u.role, u.password_hash, u.created_at, u.updated_at, u.last_login_at`

	sqlUser         = `SELECT ` + userColumns + ` FROM users u WHERE u.tenant_id = ? AND u.id = ?`
	sqlUsers        = `SELECT ` + userColumns + ` FROM users u WHERE u.tenant_id = ? AND u.id > ? ORDER BY u.id LIMIT ?`
	sqlUsersByEmail = `SELECT ` + userColumns + ` FROM users u WHERE u.email = ? ORDER BY u.tenant_id`
	sqlCountUsers   = `SELECT count(*) FROM users WHERE tenant_id = ?`
	sqlOtherAdmin   = `SELECT 1 FROM users WHERE tenant_id = ? AND role = ? AND id <> ? LIMIT 1`
	sqlInsertUser   = `INSERT INTO users (tenant_id, id, email, role, password_hash, created_at, updated_at, last_login_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`
	sqlUpdateUser   = `UPDATE users SET email = ?, role = ?, password_hash = ?, updated_at = ? WHERE tenant_id = ? AND id = ?`
	sqlDeleteUser   = `DELETE FROM users WHERE tenant_id = ? AND id = ?`

	sqlSession = `SELECT ` + userColumns + `, s.id, s.created_at, s.expires_at, s.last_used_at
		FROM sessions s JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id WHERE s.hash = ?`
	sqlSessions       = `SELECT id, created_at, expires_at, last_used_at FROM sessions WHERE tenant_id = ? AND user_id = ? ORDER BY id`
	sqlSignedIn       = `UPDATE users SET last_login_at = ? WHERE tenant_id = ? AND id = ? AND email = ? AND password_hash = ?`
	sqlInsertSession  = `INSERT INTO sessions (tenant_id, id, hash, user_id, created_at, expires_at, last_used_at) VALUES (?, ?, ?, ?, ?, ?, ?)`
	sqlTouchSession   = `UPDATE sessions SET last_used_at = ? WHERE tenant_id = ? AND id = ? AND (last_used_at IS NULL OR last_used_at < ?)`
	sqlDeleteSession  = `DELETE FROM sessions WHERE tenant_id = ? AND id = ?`
	sqlEndSessions    = `DELETE FROM sessions WHERE tenant_id = ? AND user_id = ? AND id <> ?`
	sqlEndOldSessions = `DELETE FROM sessions WHERE tenant_id = ? AND id IN
		(SELECT id FROM sessions WHERE tenant_id = ? AND user_id = ? ORDER BY id DESC LIMIT -1 OFFSET ?)`
)

func readUser(r row) hook.User {
	return hook.User{
		Tenant: readID[id.Tenant](r, 0), ID: readID[id.User](r, 1), Email: r.text(2), Role: hook.Role(r.text(3)),
		PasswordHash: r.text(4), CreatedAt: r.time(5), UpdatedAt: r.time(6), LastLoginAt: r.time(7),
	}
}

// oneUser reads one user: hook.CodeNotFound if there is none.
func (c *conn) oneUser(tenant id.Tenant, user id.User) (u hook.User, err error) {
	found, err := c.one(sqlUser, func(r row) { u = readUser(r) }, tenant[:], user[:])
	if err == nil && !found {
		err = hook.NotFound("User")
	}
	return u, err
}

const addressTaken = "a user of this address"

// InsertUser adds a user.
func (s *Store) InsertUser(ctx context.Context, u hook.User, most int) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(u.Tenant); err != nil {
			return err
		}
		var n int64
		if _, err := t.one(sqlCountUsers, func(r row) { n = r.int(0) }, u.Tenant[:]); err != nil {
			return err
		}
		if n >= int64(most) {
			return store.ErrTooMany
		}
		_, err := t.exec(sqlInsertUser, u.Tenant[:], u.ID[:], u.Email, string(u.Role), u.PasswordHash,
			millis(u.CreatedAt), millisOrNull(u.UpdatedAt), millisOrNull(u.LastLoginAt))
		return exists(err, addressTaken)
	})
}

// User shows one user.
func (s *Store) User(ctx context.Context, tenant id.Tenant, user id.User) (*hook.User, error) {
	var out hook.User
	err := s.read(ctx, tenant, func(c *conn) (err error) {
		out, err = c.oneUser(tenant, user)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// Users lists a tenant's users, oldest first.
func (s *Store) Users(ctx context.Context, tenant id.Tenant, after id.User, limit int) ([]hook.User, error) {
	var out []hook.User
	err := s.read(ctx, tenant, func(c *conn) error {
		return c.scan(sqlUsers, func(r row) { out = append(out, readUser(r)) }, tenant[:], after[:], limit)
	})
	return out, err
}

// UpdateUser changes a user.
func (s *Store) UpdateUser(ctx context.Context, c store.UserChange) (*hook.User, error) {
	var u hook.User
	err := s.write(ctx, func(t *tx) (err error) {
		if err := t.need(c.Tenant); err != nil {
			return err
		}
		if u, err = t.oneUser(c.Tenant, c.User); err != nil {
			return err
		}
		if c.Was != "" && c.Was != u.PasswordHash {
			return store.ErrPasswordMoved
		}
		ends := c.PasswordHash != nil
		if c.Role != nil && *c.Role != u.Role {
			if err := t.leaveAdministrator(&u); err != nil {
				return err
			}
			ends, u.Role = true, *c.Role
		}
		if c.Email != nil {
			u.Email = *c.Email
		}
		if c.PasswordHash != nil {
			u.PasswordHash = *c.PasswordHash
		}
		u.UpdatedAt = c.Now
		if _, err := t.exec(sqlUpdateUser, u.Email, string(u.Role), u.PasswordHash, millis(u.UpdatedAt), c.Tenant[:], c.User[:]); err != nil {
			return exists(err, addressTaken)
		}
		if !ends {
			return nil
		}
		_, err = t.exec(sqlEndSessions, c.Tenant[:], c.User[:], c.Keep[:])
		return err
	})
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// leaveAdministrator is an error if a user who is to be none any more is the
// tenant's last administrator.
func (t *tx) leaveAdministrator(u *hook.User) error {
	if u.Role != hook.RoleAdministrator {
		return nil
	}
	other, err := t.one(sqlOtherAdmin, func(row) {}, u.Tenant[:], string(hook.RoleAdministrator), u.ID[:])
	if err == nil && !other {
		err = store.ErrLastAdministrator
	}
	return err
}

// DeleteUser removes a user.
func (s *Store) DeleteUser(ctx context.Context, tenant id.Tenant, user id.User) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		u, err := t.oneUser(tenant, user)
		if err != nil {
			return err
		}
		if err := t.leaveAdministrator(&u); err != nil {
			return err
		}
		if _, err := t.exec(sqlDeleteUser, tenant[:], user[:]); err != nil {
			return err
		}
		_, err = t.exec(sqlEndSessions, tenant[:], user[:], make([]byte, len(id.Session{})))
		return err
	})
}

// UsersByEmail finds the users of an address.
func (s *Store) UsersByEmail(ctx context.Context, email string) ([]hook.User, error) {
	var out []hook.User
	err := s.snapshot(ctx, func(c *conn) error {
		return c.scan(sqlUsersByEmail, func(r row) { out = append(out, readUser(r)) }, email)
	})
	return out, err
}

// InsertSession notes a sign-in.
func (s *Store) InsertSession(ctx context.Context, v hook.Session, hash [32]byte, most int) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(v.Tenant); err != nil {
			return err
		}
		n, err := t.exec(sqlSignedIn, millis(v.CreatedAt), v.Tenant[:], v.User.ID[:], v.User.Email, v.User.PasswordHash)
		if err != nil {
			return err
		}
		if n == 0 {
			return hook.NotFound("User")
		}
		_, err = t.exec(sqlInsertSession, v.Tenant[:], v.ID[:], hash[:], v.User.ID[:], millis(v.CreatedAt), millis(v.ExpiresAt), millisOrNull(v.LastUsedAt))
		if err != nil {
			return exists(err, "the session")
		}
		_, err = t.exec(sqlEndOldSessions, v.Tenant[:], v.Tenant[:], v.User.ID[:], most)
		return err
	})
}

// SessionByHash finds a session, ended or not, with its user.
func (s *Store) SessionByHash(ctx context.Context, hash [32]byte) (*hook.Session, error) {
	var out hook.Session
	err := s.snapshot(ctx, func(c *conn) error {
		found, err := c.one(sqlSession, func(r row) {
			out = hook.Session{User: readUser(r), ID: readID[id.Session](r, 8), CreatedAt: r.time(9), ExpiresAt: r.time(10), LastUsedAt: r.time(11)}
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

// Sessions lists the sessions of a user.
func (s *Store) Sessions(ctx context.Context, tenant id.Tenant, user id.User) ([]hook.Session, error) {
	var out []hook.Session
	err := s.read(ctx, tenant, func(c *conn) error {
		return c.scan(sqlSessions, func(r row) {
			out = append(out, hook.Session{
				ID: readID[id.Session](r, 0), Tenant: tenant, User: hook.User{ID: user, Tenant: tenant},
				CreatedAt: r.time(1), ExpiresAt: r.time(2), LastUsedAt: r.time(3),
			})
		}, tenant[:], user[:])
	})
	return out, err
}

// TouchSessions notes when sessions were last used. One that is gone is passed
// over.
func (s *Store) TouchSessions(ctx context.Context, used []store.SessionUse) error {
	return s.write(ctx, func(t *tx) error {
		for i := range used {
			at := millis(used[i].At)
			if _, err := t.exec(sqlTouchSession, at, used[i].Tenant[:], used[i].Session[:], at); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteSession ends a session.
func (s *Store) DeleteSession(ctx context.Context, tenant id.Tenant, session id.Session) error {
	return s.write(ctx, func(t *tx) error {
		n, err := t.exec(sqlDeleteSession, tenant[:], session[:])
		if err == nil && n == 0 {
			return hook.NotFound("Session")
		}
		return err
	})
}

// EndSessions ends the sessions of a user.
func (s *Store) EndSessions(ctx context.Context, tenant id.Tenant, user id.User, but id.Session) error {
	return s.write(ctx, func(t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		_, err := t.exec(sqlEndSessions, tenant[:], user[:], but[:])
		return err
	})
}
