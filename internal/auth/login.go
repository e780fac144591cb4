package auth

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
)

// SessionLifetime is how long a sign-in lasts, used or not.
const SessionLifetime = 24 * time.Hour

// A user's failed log-ins from one address: so many at once, then one per
// interval. At most maxLimits pairs are remembered.
const (
	failuresAtOnce  = 10
	failureInterval = 30 * time.Second
	maxLimits       = 10_000
)

// Credentials are what somebody signs in with.
type Credentials struct {
	// Address is where the request came from; it is what guessing is limited by.
	Address         netip.Addr
	Email, Password string
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
// An address that has a user in several tenants signs in to the oldest of them
// whose password it is.
func (a *Auth) Login(ctx context.Context, c Credentials) (*Login, error) {
	email := normalEmail(c.Email)
	guess := guessKey{address: network(c.Address), email: email}
	if err := a.limits.check(guess, a.o.Now()); err != nil {
		return nil, err
	}
	users, err := a.o.Store.UsersByEmail(ctx, email)
	if err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		return nil, err
	}
	user, err := a.verify(ctx, guess, users, c.Password)
	if err != nil {
		return nil, err
	}
	if user == nil {
		a.failures.note(ctx, users)
		return nil, &hook.Error{Code: hook.CodeUnauthorized, Message: "Wrong email or password"}
	}
	return a.startSession(ctx, user)
}

// verify answers the user whose password it is, or nil. Somebody unknown costs
// what a user of one tenant costs.
func (a *Auth) verify(ctx context.Context, guess guessKey, users []hook.User, password string) (*hook.User, error) {
	done, err := a.passwords.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	// Again: those who waited with this one have failed meanwhile.
	if err := a.limits.check(guess, a.o.Now()); err != nil {
		return nil, err
	}
	if len(users) == 0 || len(password) > MaxPassword {
		if _, err := verifyPassword(a.passwords.dummy, password[:min(len(password), MaxPassword)]); err != nil {
			return nil, err
		}
		a.limits.failed(guess, a.o.Now())
		return nil, nil
	}
	for i := range users {
		ok, err := verifyPassword(users[i].PasswordHash, password)
		if err != nil {
			return nil, err
		}
		if ok {
			a.limits.succeeded(guess)
			return &users[i], nil
		}
	}
	a.limits.failed(guess, a.o.Now())
	return nil, nil
}

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
	s := hook.Session{ID: sessionID, Tenant: user.Tenant, User: *user, CreatedAt: now, ExpiresAt: now.Add(SessionLifetime)}
	if err := a.o.Store.InsertSession(noteSession(ctx, hook.AuditSessionStarted, &s), s, hashToken(token)); err != nil {
		return nil, err
	}
	return &Login{Token: token, Session: s}, nil
}

// Logout ends the principal's session: it is refused from now on. An API key has
// none (hook.CodeConflict).
func (a *Auth) Logout(ctx context.Context, p *Principal) error {
	if p.Session == nil {
		return hook.Conflict("An API key has no session to end; delete the key to revoke it")
	}
	err := a.o.Store.DeleteSession(noteSession(ctx, hook.AuditSessionEnded, p.Session), p.Session.Tenant, p.Session.ID)
	if err != nil && hook.CodeOf(err) != hook.CodeNotFound {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended++
	delete(a.sessions, p.hash)
	return nil
}

func normalEmail(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

// network is what one party can be assumed to have: an IPv4 address, a /64 of
// IPv6.
func network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // no address: all of those share one limit
	}
	return p
}

// loginLimits bounds failed log-ins. Only failures are remembered, so filling
// the table costs as much hashing as the table has rows.
type loginLimits struct {
	mu      sync.Mutex
	guesses map[guessKey]*guesses
}

type guessKey struct {
	address netip.Prefix
	email   string
}

type guesses struct {
	limiter *rate.Limiter
	last    time.Time
}

func newLoginLimits() *loginLimits { return &loginLimits{guesses: make(map[guessKey]*guesses)} }

// check refuses who has no failure left.
func (l *loginLimits) check(k guessKey, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.guesses[k]
	if !ok {
		return nil
	}
	missing := 1 - g.limiter.TokensAt(now)
	if missing <= 0 {
		return nil
	}
	return &hook.Error{
		Code: hook.CodeRateLimited, Message: "Too many failed sign-ins; try again later",
		RetryAfter: time.Duration(missing * float64(failureInterval)),
	}
}

func (l *loginLimits) failed(k guessKey, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g, ok := l.guesses[k]
	if !ok {
		if len(l.guesses) >= maxLimits {
			l.makeRoom(now)
		}
		g = &guesses{limiter: rate.NewLimiter(rate.Every(failureInterval), failuresAtOnce)}
		l.guesses[k] = g
	}
	g.last = now
	g.limiter.AllowN(now, 1)
}

func (l *loginLimits) succeeded(k guessKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.guesses, k)
}

// makeRoom drops what has recovered, or else what failed longest ago.
func (l *loginLimits) makeRoom(now time.Time) {
	var oldest guessKey
	first := true
	for k, g := range l.guesses {
		if g.limiter.TokensAt(now) >= failuresAtOnce {
			delete(l.guesses, k)
			continue
		}
		if first || g.last.Before(l.guesses[oldest].last) {
			oldest, first = k, false
		}
	}
	if len(l.guesses) >= maxLimits {
		delete(l.guesses, oldest)
	}
}
