package auth

import (
	"context"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// How long a sign-in lasts, unless others are set: used or not, and without being
// used. A session that is used is noted once a minute, so it must not end sooner.
const (
	DefaultSessionLifetime = 24 * time.Hour
	DefaultSessionIdle     = 2 * time.Hour
	MinSessionIdle         = 5 * time.Minute

	sessionUseEvery = time.Minute
	// maxSessions is how many sessions a user has; of more, the oldest end.
	maxSessions = 100
)

type knownSession struct {
	session *hook.Session
	read    time.Time
}

// sessionUse is the last use of a session. One that was written is kept for as long
// as what was read of the session before may be trusted.
type sessionUse struct {
	store.SessionUse
	written bool
}

// session answers whose a session is, if it has not ended. may is that of AuthenticateIf.
func (a *Auth) session(ctx context.Context, hash [32]byte, may func() error) (*Principal, error) {
	now := a.o.Now()
	a.mu.RLock()
	known, ok := a.sessions[hash]
	ended := a.ended
	a.mu.RUnlock()
	if !ok {
		if err := may(); err != nil {
			return nil, err
		}
	}
	if !ok || now.Sub(known.read) >= directoryTTL {
		s, err := a.o.Store.SessionByHash(ctx, hash)
		if err != nil {
			a.forgetSession(hash)
			return nil, refuseUnknown(err)
		}
		known = knownSession{session: s, read: now}
		a.mu.Lock()
		if a.ended == ended {
			makeRoom(a.sessions)
			a.sessions[hash] = known
		}
		a.mu.Unlock()
	}
	s := known.session
	used := a.lastUse(s)
	if expired(s.ExpiresAt, now) || expired(used.Add(a.o.SessionIdle), now) {
		a.forgetSession(hash)
		return nil, errUnauthorized()
	}
	if now.Sub(used) >= sessionUseEvery {
		a.noteSessionUse(store.SessionUse{Tenant: s.Tenant, Session: s.ID, At: now.UTC().Truncate(time.Millisecond)})
	}
	return &Principal{
		Tenant: s.Tenant, Scopes: s.User.Role.Scopes(), Session: s, ExpiresAt: s.ExpiresAt,
		hash: hash, now: a.o.Now,
	}, nil
}

// lastUse is when a session was used last, as far as is known here: to the minute.
func (a *Auth) lastUse(s *hook.Session) time.Time {
	used := s.CreatedAt
	if s.LastUsedAt.After(used) {
		used = s.LastUsedAt
	}
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	if u, ok := a.sessionUses[s.ID]; ok && u.At.After(used) {
		used = u.At
	}
	return used
}

// noteSessionUse keeps a use to be written, if it is the latest of the session.
func (a *Auth) noteSessionUse(u store.SessionUse) {
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	if old, ok := a.sessionUses[u.Session]; !ok || old.At.Before(u.At) {
		a.sessionUses[u.Session] = sessionUse{SessionUse: u}
	}
}

func (a *Auth) flushSessionUses(ctx context.Context) error {
	now := a.o.Now()
	var uses []store.SessionUse
	a.usesMu.Lock()
	for session, u := range a.sessionUses {
		switch {
		case !u.written:
			uses = append(uses, u.SessionUse)
		case now.Sub(u.At) >= sessionUseEvery:
			delete(a.sessionUses, session)
		}
	}
	a.usesMu.Unlock()
	if len(uses) == 0 {
		return nil
	}
	if err := a.o.Store.TouchSessions(ctx, uses); err != nil {
		return err
	}
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	for _, u := range uses {
		if a.sessionUses[u.Session].SessionUse == u {
			a.sessionUses[u.Session] = sessionUse{SessionUse: u, written: true}
		}
	}
	return nil
}

func (a *Auth) forgetSession(hash [32]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sessions, hash)
}

// forgetSessions lets go of what is known of sessions: they are read again.
func (a *Auth) forgetSessions(which func(*hook.Session) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended++
	for hash, s := range a.sessions {
		if which(s.session) {
			delete(a.sessions, hash)
		}
	}
}

func (a *Auth) forgetSessionsOf(user id.User) {
	a.forgetSessions(func(s *hook.Session) bool { return s.User.ID == user })
}

// startSession signs a user in who has shown who it is. hook.CodeNotFound: the user
// is not any more what it was when it was read.
func (a *Auth) startSession(ctx context.Context, user *hook.User) (*Login, error) {
	token, err := newToken(sessionPrefix)
	if err != nil {
		return nil, err
	}
	sessionID, err := id.NewSession()
	if err != nil {
		return nil, err
	}
	now := a.now()
	s := hook.Session{ID: sessionID, Tenant: user.Tenant, User: *user, CreatedAt: now, ExpiresAt: now.Add(a.o.SessionLifetime)}
	if err := a.o.Store.InsertSession(noteSession(ctx, hook.AuditSessionStarted, &s), s, hashToken(token), maxSessions); err != nil {
		return nil, err
	}
	s.User.LastLoginAt = now
	return &Login{Token: token, Session: s}, nil
}

// Logout ends the principal's session: it is refused from now on. An API key has
// none (hook.CodeConflict).
func (a *Auth) Logout(ctx context.Context, p *Principal) error {
	if p.Session == nil {
		return errNoSession()
	}
	err := a.o.Store.DeleteSession(noteSession(ctx, hook.AuditSessionEnded, p.Session), p.Session.Tenant, p.Session.ID)
	if err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		return err
	}
	a.forgetSessions(func(s *hook.Session) bool { return s.ID == p.Session.ID })
	return nil
}

func errNoSession() error {
	return hook.Conflict("An API key has no session to end; delete the key to revoke it")
}

// LogoutAll ends all sessions of the principal's user, this one too.
func (a *Auth) LogoutAll(ctx context.Context, p *Principal) error {
	if p.Session == nil {
		return errNoSession()
	}
	if err := a.o.Store.EndSessions(noteChangedUser(ctx, hook.AuditUserSignedOut, &p.Session.User, nil), p.Tenant, p.Session.User.ID, id.Session{}); err != nil {
		return err
	}
	a.forgetSessionsOf(p.Session.User.ID)
	return nil
}

// SignOutUser ends all sessions of a user: they are refused from now on.
// hook.CodeNotFound if the tenant has none of that id.
func (a *Auth) SignOutUser(ctx context.Context, tenant id.Tenant, user id.User) error {
	held, err := a.o.Store.User(ctx, tenant, user)
	if err != nil {
		return err
	}
	sessions, err := a.o.Store.Sessions(ctx, tenant, user)
	if err != nil || len(sessions) == 0 {
		return err
	}
	if err := a.o.Store.EndSessions(noteChangedUser(ctx, hook.AuditUserSignedOut, held, nil), tenant, user, id.Session{}); err != nil {
		return err
	}
	a.forgetSessionsOf(user)
	return nil
}

// Sessions lists the sessions of the principal's user that have not ended, oldest
// first. An API key has none.
func (a *Auth) Sessions(ctx context.Context, p *Principal) ([]hook.Session, error) {
	if p.Session == nil {
		return nil, nil
	}
	all, err := a.o.Store.Sessions(ctx, p.Tenant, p.Session.User.ID)
	if err != nil {
		return nil, err
	}
	now := a.o.Now()
	for i := range all {
		all[i].LastUsedAt = a.lastUse(&all[i])
	}
	return slices.DeleteFunc(all, func(s hook.Session) bool {
		return expired(s.ExpiresAt, now) || expired(s.LastUsedAt.Add(a.o.SessionIdle), now)
	}), nil
}
