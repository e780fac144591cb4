package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What may leave a tenant without an administrator, or with too many users, is
// judged by a transaction that no other of the tenant runs beside: two nodes that
// each take one of the last two administrators away would both see the other.

const (
	userColumns = `u.tenant_id, u.id, u.email, u.role, u.password_hash, u.created_at, u.updated_at, u.last_login_at`

	sqlUser         = `SELECT ` + userColumns + ` FROM users u WHERE u.tenant_id = $1 AND u.id = $2`
	sqlUsers        = `SELECT ` + userColumns + ` FROM users u WHERE u.tenant_id = $1 AND u.id > $2 ORDER BY u.id LIMIT $3`
	sqlCountUsers   = `SELECT count(*) FROM users WHERE tenant_id = $1`
	sqlOtherAdmin   = `SELECT 1 FROM users WHERE tenant_id = $1 AND role = $2 AND id <> $3 LIMIT 1`
	sqlInsertUser   = `INSERT INTO users (tenant_id, id, email, role, password_hash, created_at, updated_at, last_login_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	sqlUpdateUser   = `UPDATE users SET email = $3, role = $4, password_hash = $5, updated_at = $6 WHERE tenant_id = $1 AND id = $2`
	sqlDeleteUser   = `DELETE FROM users WHERE tenant_id = $1 AND id = $2`
	sqlInsertEmail  = `INSERT INTO emails (email, tenant_id, user_id) VALUES ($1, $2, $3)`
	sqlDeleteEmail  = `DELETE FROM emails WHERE email = $1 AND tenant_id = $2`
	sqlUsersByEmail = `SELECT ` + userColumns + ` FROM emails e JOIN users u ON u.tenant_id = e.tenant_id AND u.id = e.user_id
		WHERE e.email = $1 ORDER BY u.tenant_id`

	sqlSession = `SELECT ` + userColumns + `, s.id, s.created_at, s.expires_at, s.last_used_at
		FROM credentials c JOIN sessions s ON s.tenant_id = c.tenant_id AND s.id = c.id JOIN users u ON u.tenant_id = s.tenant_id AND u.id = s.user_id
		WHERE c.hash = $1 AND c.kind = $2 AND s.hash = c.hash`
	sqlSessions      = `SELECT id, created_at, expires_at, last_used_at FROM sessions WHERE tenant_id = $1 AND user_id = $2 ORDER BY id`
	sqlSignedIn      = `UPDATE users SET last_login_at = $3 WHERE tenant_id = $1 AND id = $2 AND email = $4 AND password_hash = $5`
	sqlInsertSession = `INSERT INTO sessions (tenant_id, id, hash, user_id, created_at, expires_at, last_used_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	// sqlTouchSessions takes the latest use of each, as sqlTouchKeys does.
	sqlTouchSessions = `UPDATE sessions s SET last_used_at = v.at
		FROM (SELECT tenant_id, id, max(at) AS at FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS v(tenant_id, id, at) GROUP BY tenant_id, id) v
		WHERE s.tenant_id = v.tenant_id AND s.id = v.id AND (s.last_used_at IS NULL OR s.last_used_at < v.at)`
	sqlDeleteSession = `WITH ended AS (DELETE FROM sessions WHERE tenant_id = $1 AND id = $2 RETURNING hash)
		DELETE FROM credentials WHERE hash IN (SELECT hash FROM ended)`
	sqlEndSessions = `WITH ended AS (DELETE FROM sessions WHERE tenant_id = $1 AND user_id = $2 AND id <> $3 RETURNING hash)
		DELETE FROM credentials WHERE hash IN (SELECT hash FROM ended)`
	sqlEndOldSessions = `WITH ended AS (DELETE FROM sessions WHERE tenant_id = $1 AND id IN
			(SELECT id FROM sessions WHERE tenant_id = $1 AND user_id = $2 ORDER BY id DESC OFFSET $3) RETURNING hash)
		DELETE FROM credentials WHERE hash IN (SELECT hash FROM ended)`
)

// userRow is where userColumns go.
type userRow struct {
	hook.User
	role           string
	created        int64
	updated, login pgtype.Int8
}

func (c *userRow) to() []any {
	return []any{(*[16]byte)(&c.Tenant), (*[16]byte)(&c.ID), &c.Email, &c.role, &c.PasswordHash, &c.created, &c.updated, &c.login}
}

func (c *userRow) read() hook.User {
	u := c.User
	u.Role, u.CreatedAt, u.UpdatedAt, u.LastLoginAt = hook.Role(c.role), atMillis(c.created), fromMillis(c.updated), fromMillis(c.login)
	return u
}

// sessionRow is where the columns of a session go.
type sessionRow struct {
	id               id.Session
	created, expires int64
	used             pgtype.Int8
}

func (c *sessionRow) to() []any {
	return []any{(*[16]byte)(&c.id), &c.created, &c.expires, &c.used}
}

func (c *sessionRow) read(u hook.User) hook.Session {
	return hook.Session{ID: c.id, Tenant: u.Tenant, User: u, CreatedAt: atMillis(c.created), ExpiresAt: atMillis(c.expires), LastUsedAt: fromMillis(c.used)}
}

// oneUser reads one user: hook.CodeNotFound if there is none.
func (t *tx) oneUser(ctx context.Context, tenant id.Tenant, user id.User) (hook.User, error) {
	var u userRow
	found, err := t.one(ctx, sqlUser, []any{uuid(tenant), uuid(user)}, u.to()...)
	if err == nil && !found {
		err = hook.NotFound("User")
	}
	return u.read(), err
}

const addressTaken = "a user of this address"

// InsertUser adds a user.
func (s *Store) InsertUser(ctx context.Context, u hook.User, most int) error {
	return s.writeAlone(ctx, u.Tenant, func(ctx context.Context, t *tx) error {
		if err := t.need(u.Tenant); err != nil {
			return err
		}
		var n int64
		if _, err := t.one(ctx, sqlCountUsers, []any{uuid(u.Tenant)}, &n); err != nil {
			return err
		}
		if n >= int64(most) {
			return store.ErrTooMany
		}
		_, err := t.exec(ctx, sqlInsertUser, uuid(u.Tenant), uuid(u.ID), u.Email, string(u.Role), u.PasswordHash,
			millis(u.CreatedAt), millisOrNull(u.UpdatedAt), millisOrNull(u.LastLoginAt))
		if err == nil {
			_, err = t.exec(ctx, sqlInsertEmail, u.Email, uuid(u.Tenant), uuid(u.ID))
		}
		return exists(err, addressTaken)
	})
}

// User shows one user.
func (s *Store) User(ctx context.Context, tenant id.Tenant, user id.User) (*hook.User, error) {
	var u userRow
	var out *hook.User
	err := s.ask(ctx, sqlUser, []any{uuid(tenant), uuid(user)}, u.to(), func() error {
		found := u.read()
		out = &found
		return nil
	})
	if err == nil && out == nil {
		err = hook.NotFound("User")
	}
	return out, err
}

// Users lists a tenant's users, oldest first.
func (s *Store) Users(ctx context.Context, tenant id.Tenant, after id.User, limit int) ([]hook.User, error) {
	var out []hook.User
	err := s.read(ctx, tenant, func(ctx context.Context, q pgx.Tx) error {
		var u userRow
		return each(ctx, q, sqlUsers, []any{uuid(tenant), uuid(after), int64(limit)}, u.to(), func() error {
			out = append(out, u.read())
			return nil
		})
	})
	return out, err
}

// UpdateUser changes a user.
func (s *Store) UpdateUser(ctx context.Context, c store.UserChange) (*hook.User, error) {
	var u hook.User
	err := s.writeAlone(ctx, c.Tenant, func(ctx context.Context, t *tx) (err error) {
		if err := t.need(c.Tenant); err != nil {
			return err
		}
		if u, err = t.oneUser(ctx, c.Tenant, c.User); err != nil {
			return err
		}
		if c.Was != "" && c.Was != u.PasswordHash {
			return store.ErrPasswordMoved
		}
		ends := c.PasswordHash != nil
		if c.Role != nil && *c.Role != u.Role {
			if err := t.leaveAdministrator(ctx, &u); err != nil {
				return err
			}
			ends, u.Role = true, *c.Role
		}
		if c.Email != nil && *c.Email != u.Email {
			if err := t.moveEmail(ctx, &u, *c.Email); err != nil {
				return err
			}
		}
		if c.PasswordHash != nil {
			u.PasswordHash = *c.PasswordHash
		}
		u.UpdatedAt = c.Now
		if _, err := t.exec(ctx, sqlUpdateUser, uuid(c.Tenant), uuid(c.User), u.Email, string(u.Role), u.PasswordHash, millis(u.UpdatedAt)); err != nil {
			return err
		}
		if !ends {
			return nil
		}
		_, err = t.exec(ctx, sqlEndSessions, uuid(c.Tenant), uuid(c.User), uuid(c.Keep))
		return err
	})
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// moveEmail gives a user another address, in the directory first.
func (t *tx) moveEmail(ctx context.Context, u *hook.User, email string) error {
	_, err := t.exec(ctx, sqlDeleteEmail, u.Email, uuid(u.Tenant))
	if err == nil {
		_, err = t.exec(ctx, sqlInsertEmail, email, uuid(u.Tenant), uuid(u.ID))
	}
	u.Email = email
	return exists(err, addressTaken)
}

// leaveAdministrator is an error if a user who is to be none any more is the
// tenant's last administrator.
func (t *tx) leaveAdministrator(ctx context.Context, u *hook.User) error {
	if u.Role != hook.RoleAdministrator {
		return nil
	}
	other, err := t.one(ctx, sqlOtherAdmin, []any{uuid(u.Tenant), string(hook.RoleAdministrator), uuid(u.ID)}, new(int))
	if err == nil && !other {
		err = store.ErrLastAdministrator
	}
	return err
}

// DeleteUser removes a user.
func (s *Store) DeleteUser(ctx context.Context, tenant id.Tenant, user id.User) error {
	return s.writeAlone(ctx, tenant, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		u, err := t.oneUser(ctx, tenant, user)
		if err != nil {
			return err
		}
		if err := t.leaveAdministrator(ctx, &u); err != nil {
			return err
		}
		if _, err := t.exec(ctx, sqlDeleteUser, uuid(tenant), uuid(user)); err != nil {
			return err
		}
		if _, err := t.exec(ctx, sqlDeleteEmail, u.Email, uuid(tenant)); err != nil {
			return err
		}
		_, err = t.exec(ctx, sqlEndSessions, uuid(tenant), uuid(user), uuid(id.Session{}))
		return err
	})
}

// UsersByEmail finds the users of an address.
func (s *Store) UsersByEmail(ctx context.Context, email string) ([]hook.User, error) {
	if !storable(email) {
		return nil, nil
	}
	var out []hook.User
	var u userRow
	err := s.ask(ctx, sqlUsersByEmail, []any{email}, u.to(), func() error {
		out = append(out, u.read())
		return nil
	})
	return out, err
}

// InsertSession notes a sign-in.
func (s *Store) InsertSession(ctx context.Context, v hook.Session, hash [32]byte, most int) error {
	return s.write(ctx, []id.Tenant{v.Tenant}, func(ctx context.Context, t *tx) error {
		if err := t.need(v.Tenant); err != nil {
			return err
		}
		n, err := t.exec(ctx, sqlSignedIn, uuid(v.Tenant), uuid(v.User.ID), millis(v.CreatedAt), v.User.Email, v.User.PasswordHash)
		if err != nil {
			return err
		}
		if n == 0 {
			return hook.NotFound("User")
		}
		_, err = t.exec(ctx, sqlInsertSession, uuid(v.Tenant), uuid(v.ID), hash[:], uuid(v.User.ID), millis(v.CreatedAt), millis(v.ExpiresAt), millisOrNull(v.LastUsedAt))
		if err == nil {
			_, err = t.exec(ctx, sqlInsertSecret, hash[:], kindSession, uuid(v.Tenant), uuid(v.ID))
		}
		if err != nil {
			return exists(err, "the session")
		}
		_, err = t.exec(ctx, sqlEndOldSessions, uuid(v.Tenant), uuid(v.User.ID), int64(most))
		return err
	})
}

// SessionByHash finds a session, ended or not, with its user.
func (s *Store) SessionByHash(ctx context.Context, hash [32]byte) (*hook.Session, error) {
	var u userRow
	var v sessionRow
	var out *hook.Session
	err := s.ask(ctx, sqlSession, []any{hash[:], kindSession}, append(u.to(), v.to()...), func() error {
		found := v.read(u.read())
		out = &found
		return nil
	})
	if err == nil && out == nil {
		err = hook.NotFound("Session")
	}
	return out, err
}

// Sessions lists the sessions of a user.
func (s *Store) Sessions(ctx context.Context, tenant id.Tenant, user id.User) ([]hook.Session, error) {
	var out []hook.Session
	err := s.read(ctx, tenant, func(ctx context.Context, q pgx.Tx) error {
		var v sessionRow
		return each(ctx, q, sqlSessions, []any{uuid(tenant), uuid(user)}, v.to(), func() error {
			out = append(out, v.read(hook.User{ID: user, Tenant: tenant}))
			return nil
		})
	})
	return out, err
}

// TouchSessions notes when sessions were last used. One that is gone is passed
// over.
func (s *Store) TouchSessions(ctx context.Context, used []store.SessionUse) error {
	var tenants, sessions []pgtype.UUID
	var at []int64
	for i := range used {
		tenants, sessions, at = append(tenants, uuid(used[i].Tenant)), append(sessions, uuid(used[i].Session)), append(at, millis(used[i].At))
	}
	if len(at) == 0 {
		return nil
	}
	return s.write(ctx, nil, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, sqlTouchSessions, tenants, sessions, at)
		return err
	})
}

// DeleteSession ends a session.
func (s *Store) DeleteSession(ctx context.Context, tenant id.Tenant, session id.Session) error {
	return s.write(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, sqlDeleteSession, uuid(tenant), uuid(session))
		if err == nil && n == 0 {
			return hook.NotFound("Session")
		}
		return err
	})
}

// EndSessions ends the sessions of a user.
func (s *Store) EndSessions(ctx context.Context, tenant id.Tenant, user id.User, but id.Session) error {
	return s.write(ctx, []id.Tenant{tenant}, func(ctx context.Context, t *tx) error {
		if err := t.need(tenant); err != nil {
			return err
		}
		_, err := t.exec(ctx, sqlEndSessions, uuid(tenant), uuid(user), uuid(but))
		return err
	})
}
