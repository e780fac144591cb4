package store

import (
	"context"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// Users is who may sign in, and as what they are signed in.
//
// A tenant that has an administrator keeps one: whatever would take the last
// away is ErrLastAdministrator, however many ask at once.
type Users interface {
	// InsertUser adds a user: hook.CodeConflict if the tenant has one of this
	// address, ErrTooMany if it has most users already.
	InsertUser(ctx context.Context, u hook.User, most int) error
	User(ctx context.Context, tenant id.Tenant, user id.User) (*hook.User, error)
	// Users lists a tenant's users, oldest first, after one (zero: from the
	// first).
	Users(ctx context.Context, tenant id.Tenant, after id.User, limit int) ([]hook.User, error)
	// UpdateUser changes a user and answers what it is then: hook.CodeConflict if
	// another has the address, ErrPasswordMoved.
	UpdateUser(ctx context.Context, c UserChange) (*hook.User, error)
	// DeleteUser removes a user, and ends the sessions.
	DeleteUser(ctx context.Context, tenant id.Tenant, user id.User) error
	// UsersByEmail finds the users of an address, one per tenant at most, those of
	// the oldest tenant first.
	UsersByEmail(ctx context.Context, email string) ([]hook.User, error)

	// InsertSession notes a sign-in, which is the user's last one from now on. The
	// user must be as it was when it was found, in address and password: who signs
	// in with a password while it is changed is not signed in (hook.CodeNotFound).
	// Of more sessions than most, the user's oldest end.
	InsertSession(ctx context.Context, s hook.Session, hash [32]byte, most int) error
	// SessionByHash finds a session, ended or not, with its user as it is now.
	SessionByHash(ctx context.Context, hash [32]byte) (*hook.Session, error)
	// Sessions lists the sessions of a user, oldest first. Of the user they hold the
	// id alone.
	Sessions(ctx context.Context, tenant id.Tenant, user id.User) ([]hook.Session, error)
	// TouchSessions notes when sessions were last used.
	TouchSessions(ctx context.Context, used []SessionUse) error
	DeleteSession(ctx context.Context, tenant id.Tenant, session id.Session) error
	// EndSessions ends the sessions of a user, but for one (zero: all of them).
	EndSessions(ctx context.Context, tenant id.Tenant, user id.User, but id.Session) error
}

// UserChange is what is to be changed of a user: a nil field stays. A password, and
// a role that is another, end the user's sessions.
type UserChange struct {
	Tenant id.Tenant
	User   id.User
	Now    time.Time

	Email        *string
	Role         *hook.Role
	PasswordHash *string
	// Was is the hash that the password must still have; "" for any.
	Was string
	// Keep is a session that does not end.
	Keep id.Session
}

// SessionUse is the use of a session.
type SessionUse struct {
	Tenant  id.Tenant
	Session id.Session
	At      time.Time
}
