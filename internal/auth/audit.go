package auth

import (
	"context"
	"sync"
	"time"

	"github.com/plinqx/hypha/internal/audit"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// What the audit log is told of credentials and tenants.

// Actor is the principal as the audit log names it.
func (p *Principal) Actor() hook.AuditActor {
	switch {
	case p.Session != nil:
		return actorOf(&p.Session.User)
	case p.local != "":
		return hook.AuditActor{Kind: hook.ActorLocal, Name: p.local}
	case p.Operator:
		return hook.AuditActor{Kind: hook.ActorOperator, ID: p.Key.String(), Name: p.KeyName}
	default:
		return hook.AuditActor{Kind: hook.ActorAPIKey, ID: p.Key.String(), Name: p.KeyName}
	}
}

func actorOf(u *hook.User) hook.AuditActor {
	return hook.AuditActor{Kind: hook.ActorUser, ID: u.ID.String(), Name: u.Email}
}

func keyEntry(action hook.AuditAction, k *hook.APIKey, d audit.Diff) hook.AuditEntry {
	kind := hook.ObjectAPIKey
	if k.Tenant.IsZero() {
		kind = hook.ObjectOperatorKey
	}
	return hook.AuditEntry{Tenant: k.Tenant, Action: action, Object: hook.AuditObject{Kind: kind, ID: k.ID.String(), Name: k.Name}, Changes: d}
}

func noteNewKey(ctx context.Context, action hook.AuditAction, k *hook.APIKey, secretShown bool) context.Context {
	scopes := make([]string, len(k.Scopes))
	for i, s := range k.Scopes {
		scopes[i] = string(s)
	}
	var d audit.Diff
	d.Set("expiresAt", k.ExpiresAt)
	d.Set("scopes", scopes)
	e := keyEntry(action, k, d)
	e.SecretShown = secretShown
	return audit.Note(ctx, e)
}

func noteKey(ctx context.Context, action hook.AuditAction, held, k *hook.APIKey) context.Context {
	var d audit.Diff
	d.Changed("expiresAt", held.ExpiresAt, k.ExpiresAt)
	d.Changed("name", held.Name, k.Name)
	return audit.Note(ctx, keyEntry(action, held, d))
}

func (a *Auth) noteDeletedKey(ctx context.Context, tenant id.Tenant, key id.Key) context.Context {
	k := &hook.APIKey{ID: key, Tenant: tenant}
	if snap, err := a.o.Catalog.Tenant(ctx, tenant); err == nil { // else the store will say what is wrong
		if row, ok := snap.Key(key); ok {
			k = &row.APIKey
		}
	}
	return audit.Note(ctx, keyEntry(hook.AuditAPIKeyDeleted, k, nil))
}

// noteTenant is for the operators' own log: a tenant's goes with it. The first
// tenant is called what it will be called when it is whole.
func noteTenant(ctx context.Context, action hook.AuditAction, t *hook.Tenant, d audit.Diff) context.Context {
	name := t.Name
	if name == unfinished {
		name = DefaultTenant
	}
	return audit.Note(ctx, hook.AuditEntry{
		Action: action, Object: hook.AuditObject{Kind: hook.ObjectTenant, ID: t.ID.String(), Name: name}, Changes: d,
	})
}

func noteNewUser(ctx context.Context, u *hook.User, secretShown bool) context.Context {
	var d audit.Diff
	d.Set("role", string(u.Role))
	e := userEntry(hook.AuditUserCreated, u, d)
	e.SecretShown = secretShown
	return audit.Note(ctx, e)
}

func userEntry(action hook.AuditAction, u *hook.User, d audit.Diff) hook.AuditEntry {
	return hook.AuditEntry{Tenant: u.Tenant, Action: action, Object: hook.AuditObject{Kind: hook.ObjectUser, ID: u.ID.String(), Name: u.Email}, Changes: d}
}

// noteChangedUser is about a user that is there, by the address that it had.
func noteChangedUser(ctx context.Context, action hook.AuditAction, u *hook.User, d audit.Diff) context.Context {
	return audit.Note(ctx, userEntry(action, u, d))
}

// userDiff is what a change makes different.
func userDiff(held *hook.User, c *store.UserChange) (d audit.Diff) {
	if c.Email != nil {
		d.Changed("email", held.Email, *c.Email)
	}
	if c.PasswordHash != nil {
		d.Secret("password")
	}
	if c.Role != nil {
		d.Changed("role", string(held.Role), string(*c.Role))
	}
	return d
}

// noteSession is about a session that its own user starts, or ends.
func noteSession(ctx context.Context, action hook.AuditAction, s *hook.Session) context.Context {
	return audit.Note(ctx, hook.AuditEntry{
		Tenant: s.Tenant, Action: action, Actor: actorOf(&s.User),
		Object: hook.AuditObject{Kind: hook.ObjectSession, ID: s.ID.String(), Name: s.User.Email},
	})
}

// Failed log-ins are what a stranger can make as many of as there is room for. So
// the log has them of users that there are, and of each no more than one entry per
// interval, which says how many failures it stands for; and they are counted for
// so many users at a time. What is written is written later: whoever guesses must
// not find out by the time it takes which users there are.
const (
	failedLoginsEvery = 10 * time.Minute
	maxFailedUsers    = 100
)

// loginFailures counts failed log-ins until they are written.
type loginFailures struct {
	mu    sync.Mutex
	users map[id.User]*loginFailure
}

type loginFailure struct {
	entry   hook.AuditEntry // of the latest failure
	count   int64           // since an entry was written
	written time.Time       // when that was
}

func newLoginFailures() *loginFailures { return &loginFailures{users: make(map[id.User]*loginFailure)} }

// note counts a failure of the users whose address was given.
func (l *loginFailures) note(ctx context.Context, users []hook.User) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range users {
		u := &users[i]
		f, ok := l.users[u.ID]
		if !ok {
			if len(l.users) >= maxFailedUsers {
				continue
			}
			f = &loginFailure{}
			l.users[u.ID] = f
		}
		f.count++
		f.entry = *store.AuditOf(audit.Note(ctx, hook.AuditEntry{
			Tenant: u.Tenant, Action: hook.AuditUserFailed, Object: hook.AuditObject{Kind: hook.ObjectUser, ID: u.ID.String(), Name: u.Email},
		}))
	}
}

// due takes the entries that are to be written now, or all that there are, and
// forgets users of whom there is nothing to write.
func (l *loginFailures) due(now time.Time, all bool) []hook.AuditEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []hook.AuditEntry
	for user, f := range l.users {
		switch early := now.Sub(f.written) < failedLoginsEvery; {
		case early && !all:
		case f.count == 0:
			delete(l.users, user)
		default:
			f.entry.SetCount("failures", f.count)
			out = append(out, f.entry)
			f.count, f.written = 0, now
		}
	}
	return out
}

// recordFailures writes what is due of failed log-ins, or all of it.
func (a *Auth) recordFailures(ctx context.Context, all bool) {
	for _, e := range a.failures.due(a.o.Now(), all) {
		if err := a.o.Store.RecordAudit(store.WithAudit(ctx, e)); err != nil && hook.CodeOf(err) != hook.CodeNotFound {
			a.o.Logger.Warn("failed log-ins could not be written to the audit log", "user", e.Object.ID, "err", err)
		}
	}
}
