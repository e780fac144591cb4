package auth

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
	"github.com/plinqx/hypha/internal/store"
)

// maxTried is how many users of one address a password is tried for: any tenant may
// have a user of any address, and each costs a hash.
const maxTried = 8

// Credentials are what somebody signs in with.
type Credentials struct {
	// Address is where the request came from; it is what guessing is limited by.
	Address         netip.Addr
	Email, Password string
	// Tenant is the tenant to sign in to; zero for whichever it is.
	Tenant id.Tenant
}

// Login is a new session. The token is nowhere else.
type Login struct {
	Token   string
	Session hook.Session
}

// Login signs a user in. Errors: hook.CodeUnauthorized for an unknown user and a
// wrong password alike, hook.CodeRateLimited after too many of them,
// hook.CodeUnavailable when too many sign in at once.
//
// An address that has a user in several tenants signs in to the first of them whose
// password it is, in the order of [Auth.usersByEmail], unless a tenant is named.
func (a *Auth) Login(ctx context.Context, c Credentials) (*Login, error) {
	guess := guessKey{network: ratelimit.Network(c.Address), email: normalEmail(c.Email)}
	// Who has no guess left costs nothing.
	if err := a.limits.checkGuess(guess, a.o.Now()); err != nil {
		return nil, err
	}
	users, err := a.usersByEmail(ctx, guess, c.Tenant)
	if err != nil {
		return nil, err
	}
	user, err := a.verify(ctx, guess, users, c.Password)
	if err != nil {
		return nil, err
	}
	if user == nil {
		a.failures.note(ctx, users)
		return nil, errWrongLogin()
	}
	l, err := a.startSession(ctx, user)
	if hook.CodeOf(err) == hook.CodeNotFound {
		return nil, errWrongLogin() // it was, and is no more
	}
	return l, err
}

// LoginVerified signs in who has shown elsewhere to have an email address: its user
// of the tenant that is named, or of the only one that has such a user. Nobody is
// made: hook.CodeUnauthorized if there is no such user, hook.CodeConflict if several
// tenants have one. To choose among those would be to let whoever has a tenant here
// say where others end up.
func (a *Auth) LoginVerified(ctx context.Context, email string, tenant id.Tenant) (*Login, error) {
	nobody := &hook.Error{Code: hook.CodeUnauthorized, Message: "There is no user with your email; ask an administrator to make one"}
	users, err := a.usersOf(ctx, normalEmail(email), tenant)
	if err != nil {
		return nil, err
	}
	switch len(users) {
	case 0:
		return nil, nobody
	case 1:
	default:
		return nil, errSeveralTenants(users)
	}
	l, err := a.startSession(ctx, &users[0])
	if hook.CodeOf(err) == hook.CodeNotFound {
		return nil, nobody // it was, and is no more
	}
	return l, err
}

// maxNamed is how many tenants an error names.
const maxNamed = 20

func errSeveralTenants(users []hook.User) error {
	names := make([]string, min(len(users), maxNamed))
	for i := range names {
		names[i] = users[i].Tenant.String()
	}
	return hook.Conflict("Several tenants have a user with your email; say which one to sign in to, with tenantId at the beginning: %s", strings.Join(names, ", "))
}

func errWrongLogin() error {
	return &hook.Error{Code: hook.CodeUnauthorized, Message: "Wrong email or password"}
}

// usersOf are the users of an address, of one tenant or of any (zero).
func (a *Auth) usersOf(ctx context.Context, email string, tenant id.Tenant) ([]hook.User, error) {
	users, err := a.o.Store.UsersByEmail(ctx, email)
	if err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		return nil, err
	}
	if !tenant.IsZero() {
		users = slices.DeleteFunc(users, func(u hook.User) bool { return u.Tenant != tenant })
	}
	return users, nil
}

// usersByEmail are the users of an address whom a password is tried for, in turn:
// first those who have signed in from the guess's network before, of those and of
// the others who signed in last, and then those of the oldest tenants. Any tenant
// may make a user of any address, and so could push others out of the first
// maxTried: but not those who are known here.
func (a *Auth) usersByEmail(ctx context.Context, guess guessKey, tenant id.Tenant) ([]hook.User, error) {
	users, err := a.usersOf(ctx, guess.email, tenant)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(users, func(x, y hook.User) int {
		xs, ys := a.limits.isFamiliar(guess.network, x.ID), a.limits.isFamiliar(guess.network, y.ID)
		switch {
		case xs && !ys:
			return -1
		case ys && !xs:
			return 1
		default:
			return y.LastLoginAt.Compare(x.LastLoginAt)
		}
	})
	return users[:min(len(users), maxTried)], nil
}

// verify answers the user whose password it is, or nil. Somebody unknown, and
// somebody without a password, cost what a user of one tenant costs.
func (a *Auth) verify(ctx context.Context, guess guessKey, users []hook.User, password string) (*hook.User, error) {
	done, err := a.passwords.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	// Those who waited with this one have failed meanwhile.
	if users, err = a.limits.check(guess, users, a.o.Now()); err != nil {
		return nil, err
	}
	if len(users) == 0 || len(password) > MaxPassword {
		users = []hook.User{{}}
	}
	for i := range users {
		hash, dummy := users[i].PasswordHash, false
		if hash == "" || len(password) > MaxPassword {
			hash, dummy = a.passwords.dummy, true
		}
		ok, err := verifyPassword(hash, password[:min(len(password), MaxPassword)])
		if err != nil {
			return nil, err
		}
		if ok && !dummy {
			a.limits.succeeded(guess.network, users[i].ID)
			return &users[i], nil
		}
	}
	a.limits.failed(guess, a.o.Now())
	return nil, nil
}

// PasswordChange is a user's own change of the password.
type PasswordChange struct {
	Address      netip.Addr // where the request came from
	Current, New string
}

// CheckPasswordChange lists what is wrong with a change.
func (a *Auth) CheckPasswordChange(p *Principal, c PasswordChange) []hook.Detail {
	email := ""
	if p.Session != nil {
		email = p.Session.User.Email
	}
	return checkPassword("newPassword", email, c.New)
}

// ChangePassword gives the principal's user another password, and ends the user's
// other sessions. The current password must be given: whoever finds a session open
// does not have it. Guesses count as those of a log-in do. An API key has no
// password (hook.CodeConflict).
func (a *Auth) ChangePassword(ctx context.Context, p *Principal, c PasswordChange) error {
	if p.Session == nil {
		return hook.Conflict("An API key has no password; this is for those who signed in")
	}
	if problems := a.CheckPasswordChange(p, c); len(problems) > 0 {
		return hook.Invalid(problems...)
	}
	now, err := a.o.Store.User(ctx, p.Tenant, p.Session.User.ID)
	if err != nil {
		return refuseUnknown(err)
	}
	guess := guessKey{network: ratelimit.Network(c.Address), email: now.Email}
	user, err := a.verify(ctx, guess, []hook.User{*now}, c.Current)
	if err != nil {
		return err
	}
	wrong := hook.Invalid(hook.Detail{Path: "currentPassword", Message: "is not your password"})
	if user == nil {
		a.failures.note(ctx, []hook.User{*now})
		return wrong
	}
	hash, err := a.passwords.hash(ctx, c.New)
	if err != nil {
		return err
	}
	change := store.UserChange{Tenant: p.Tenant, User: user.ID, Now: a.now(), PasswordHash: &hash, Was: user.PasswordHash, Keep: p.Session.ID}
	_, err = a.o.Store.UpdateUser(noteChangedUser(ctx, hook.AuditUserUpdated, user, userDiff(user, &change)), change)
	if errors.Is(err, store.ErrPasswordMoved) {
		return wrong
	}
	if err != nil {
		return refuseUnknown(err)
	}
	a.forgetSessionsOf(user.ID)
	return nil
}
