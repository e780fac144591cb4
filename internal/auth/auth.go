// Package auth says who asks and what they may do: API keys, users, their
// sessions, scopes, and the tenants that all of them belong to.
//
// It promises:
//
//   - No credential is stored or logged: of keys and session tokens only the
//     SHA-256 (they have 256 random bits, so nothing slower is needed), of
//     passwords argon2id.
//   - A key is looked up in the store once; after that, the catalogue's snapshot
//     says whether it is still in force. A key that was revoked here is refused
//     at once.
//   - Whoever guesses learns nothing: wrong, unknown, revoked and expired are one
//     answer, and a log-in costs the same work whether the user exists or not.
//     Guessing is slowed down, and never ends a session nor keeps those out who
//     have signed in from where they are before.
//   - A session may do what its user may now: that is read with it, once a second
//     at most. One that was ended here is refused at once.
//   - Guessing costs no memory: what is unknown is not remembered, and every
//     table has a bound.
//
// It must not know HTTP, nor what the scopes are asked for.
package auth

import (
	"cmp"
	"context"
	"crypto/subtle"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Store is the part of the store that is needed here.
type Store interface {
	store.Directory
	store.Users

	TenantConfig(ctx context.Context, tenant id.Tenant) (*store.TenantConfig, error)
	InsertKey(ctx context.Context, k store.KeyRow) (version int64, err error)
	UpdateKey(ctx context.Context, k store.KeyRow) (version int64, err error)
	DeleteKey(ctx context.Context, tenant id.Tenant, key id.Key) (version int64, err error)
	RecordAudit(ctx context.Context) error
}

// Options are what Auth needs. The first three are required.
type Options struct {
	Store   Store
	Catalog *catalog.Catalog
	Now     func() time.Time
	Logger  *slog.Logger
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
	// SessionLifetime is how long a sign-in lasts, used or not; default
	// DefaultSessionLifetime. SessionIdle is how long it lasts without being used,
	// to the minute; default DefaultSessionIdle.
	SessionLifetime, SessionIdle time.Duration
}

// The bounds of what is held in memory.
const (
	// directoryTTL is how long a session or an operator's key is trusted
	// without asking the store again. One that is ended here is refused at once.
	directoryTTL = time.Second
	maxCached    = 50_000
	// touchEvery is how often the last uses of keys and sessions are written.
	touchEvery = 15 * time.Second
)

// Auth is safe for concurrent use. Between Start and Stop it writes down when
// keys and sessions were last used.
type Auth struct {
	o         Options
	passwords *passwords
	limits    *loginLimits
	failures  *loginFailures
	editing   sync.Mutex // one change of a key at a time

	mu       sync.RWMutex
	keys     map[[32]byte]*knownKey
	sessions map[[32]byte]knownSession
	// ended counts the sessions and the operators' keys that were ended here, so
	// that one that was read before is not held after.
	ended uint64

	usesMu      sync.Mutex
	uses        map[id.Key]store.KeyUse
	sessionUses map[id.Session]sessionUse

	quit, done chan struct{}
}

// knownKey says whose key a hash is.
type knownKey struct {
	tenant id.Tenant
	key    id.Key
	minute atomic.Int64 // of the last use that was noted, Unix
	// operator is the row of an operator's key, which no snapshot holds, as it
	// was when it was read.
	operator *store.KeyRow
	read     time.Time
}

// New makes an Auth.
func New(o Options) (*Auth, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.SessionLifetime == 0 {
		o.SessionLifetime = DefaultSessionLifetime
	}
	if o.SessionIdle == 0 {
		o.SessionIdle = DefaultSessionIdle
	}
	p, err := newPasswords()
	if err != nil {
		return nil, err
	}
	return &Auth{
		o: o, passwords: p, limits: newLoginLimits(), failures: newLoginFailures(),
		keys:     make(map[[32]byte]*knownKey),
		sessions: make(map[[32]byte]knownSession),
		uses:     make(map[id.Key]store.KeyUse),
		quit:     make(chan struct{}),
		done:     make(chan struct{}),

		sessionUses: make(map[id.Session]sessionUse),
	}, nil
}

// Principal is who asks.
type Principal struct {
	// Tenant is whom the request is for; zero for an operator who acts for none.
	Tenant id.Tenant
	Scopes []hook.Scope
	// Key is the API key's id, zero with a session.
	Key     id.Key
	KeyName string
	// Session is the user's sign-in, nil with an API key.
	Session *hook.Session
	// Operator says that the key manages tenants and may act for any of them.
	Operator bool
	// ExpiresAt is when the credential ends; zero: never.
	ExpiresAt time.Time

	hash [32]byte
	now  func() time.Time
	// local is the account of who came by the admin socket, and has no key.
	local string
}

// Can reports whether the principal may do what needs the scope.
func (p *Principal) Can(want hook.Scope) bool { return hook.Allows(p.Scopes, want) }

// Check reports whether the credential is still in force in a newer
// configuration than the one it was let in with: nil, or hook.CodeUnauthorized.
func (p *Principal) Check(snap *catalog.Snapshot) error {
	if expired(p.ExpiresAt, p.now()) {
		return errUnauthorized()
	}
	if p.Operator || p.Session != nil {
		return nil
	}
	row, ok := snap.Key(p.Key)
	if !ok || subtle.ConstantTimeCompare(row.Hash[:], p.hash[:]) != 1 || expired(row.ExpiresAt, p.now()) {
		return errUnauthorized()
	}
	return nil
}

func expired(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

func errUnauthorized() error {
	return &hook.Error{Code: hook.CodeUnauthorized, Message: "Invalid or expired API key"}
}

// ErrForbidden is the answer for somebody who is known and may not do this.
func ErrForbidden() error {
	return &hook.Error{Code: hook.CodeForbidden, Message: "Insufficient permissions"}
}

// Authenticate answers whose token it is: an API key or a session's. The error
// is hook.CodeUnauthorized for whatever is not in force.
func (a *Auth) Authenticate(ctx context.Context, token string) (*Principal, error) {
	return a.AuthenticateIf(ctx, token, func() error { return nil })
}

// AuthenticateIf is Authenticate for somebody who may be a stranger: of a token that
// nothing is known of here, or that can be none, may is asked first, and its error is
// the answer. Those that are known don't depend on it.
func (a *Auth) AuthenticateIf(ctx context.Context, token string, may func() error) (*Principal, error) {
	if !plausible(token) {
		return nil, cmp.Or(may(), errUnauthorized())
	}
	hash := hashToken(token)
	if isSessionToken(token) {
		return a.session(ctx, hash, may)
	}
	return a.key(ctx, hash, may)
}

// AuthenticateSession is AuthenticateIf where a token may be a session's alone: in a
// cookie, which browsers send by themselves.
func (a *Auth) AuthenticateSession(ctx context.Context, token string, may func() error) (*Principal, error) {
	if !isSessionToken(token) {
		return nil, cmp.Or(may(), errUnauthorized())
	}
	return a.AuthenticateIf(ctx, token, may)
}

func (a *Auth) key(ctx context.Context, hash [32]byte, may func() error) (*Principal, error) {
	now := a.o.Now()
	a.mu.RLock()
	known := a.keys[hash]
	a.mu.RUnlock()
	if known == nil {
		if err := may(); err != nil {
			return nil, err
		}
	}
	if known != nil && known.operator != nil && now.Sub(known.read) >= directoryTTL {
		known = nil
	}
	fresh := known == nil
	if fresh {
		var err error
		if known, err = a.readKey(ctx, hash, now); err != nil {
			return nil, err
		}
	}
	p, err := a.principal(ctx, known, hash, fresh)
	if err != nil {
		if hook.CodeOf(err) == hook.CodeUnauthorized {
			a.forgetKey(hash)
		}
		return nil, err
	}
	a.noteUse(known, now)
	return p, nil
}

// readKey asks the store whose key it is, and remembers the answer.
func (a *Auth) readKey(ctx context.Context, hash [32]byte, now time.Time) (*knownKey, error) {
	a.mu.RLock()
	ended := a.ended
	a.mu.RUnlock()
	row, err := a.o.Store.KeyByHash(ctx, hash)
	if err != nil {
		return nil, refuseUnknown(err)
	}
	if subtle.ConstantTimeCompare(row.Hash[:], hash[:]) != 1 {
		return nil, errUnauthorized()
	}
	known := &knownKey{tenant: row.Tenant, key: row.ID}
	if row.Tenant.IsZero() {
		known.operator, known.read = row, now
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if old := a.keys[hash]; old != nil {
		known.minute.Store(old.minute.Load())
	}
	if known.operator == nil || a.ended == ended {
		makeRoom(a.keys)
		a.keys[hash] = known
	}
	return known, nil
}

func (a *Auth) forgetKey(hash [32]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.keys, hash)
}

// makeRoom drops any entry of a full table: what is dropped is read again.
func makeRoom[V any](table map[[32]byte]V) {
	if len(table) < maxCached {
		return
	}
	for k := range table {
		delete(table, k)
		return
	}
}

// principal makes the principal of a key that is in force. A fresh key was in
// the store a moment ago: if the snapshot lacks it, the snapshot is behind.
func (a *Auth) principal(ctx context.Context, known *knownKey, hash [32]byte, fresh bool) (*Principal, error) {
	p := &Principal{Tenant: known.tenant, Key: known.key, hash: hash, now: a.o.Now}
	row := known.operator
	if row == nil {
		snap, err := a.o.Catalog.Tenant(ctx, known.tenant)
		if err != nil {
			return nil, refuseUnknown(err)
		}
		held, ok := snap.Key(known.key)
		if !ok && fresh {
			if snap, err = a.o.Catalog.Refresh(ctx, known.tenant, snap.Version); err != nil {
				return nil, refuseUnknown(err)
			}
			held, ok = snap.Key(known.key)
		}
		if !ok {
			return nil, errUnauthorized()
		}
		row = &held
		if err := p.Check(snap); err != nil {
			return nil, err
		}
	}
	if expired(row.ExpiresAt, a.o.Now()) {
		return nil, errUnauthorized()
	}
	p.Scopes, p.KeyName, p.ExpiresAt = row.Scopes, row.Name, row.ExpiresAt
	p.Operator = row.Tenant.IsZero() && slices.Contains(row.Scopes, hook.ScopeOperator)
	return p, nil
}

// refuseUnknown makes "not found" a refusal, which says the same whatever was
// not found; other errors stay what they are.
func refuseUnknown(err error) error {
	if hook.CodeOf(err) == hook.CodeNotFound {
		return errUnauthorized()
	}
	return err
}

// ActFor answers the principal that acts for a tenant. Who belongs to one can
// act for no other (hook.CodeForbidden); an operator can for any there is
// (hook.CodeNotFound for a text that is no tenant's id).
func (a *Auth) ActFor(ctx context.Context, p *Principal, tenant string) (*Principal, error) {
	want, parseErr := id.ParseTenant(tenant)
	if !p.Operator {
		if parseErr != nil || want != p.Tenant {
			return nil, ErrForbidden()
		}
		return p, nil
	}
	if parseErr != nil {
		return nil, hook.NotFound("Tenant")
	}
	snap, err := a.o.Catalog.Tenant(ctx, want)
	if hook.CodeOf(err) == hook.CodeNotFound {
		return nil, hook.NotFound("Tenant")
	}
	if err != nil {
		return nil, err
	}
	acting := *p
	acting.Tenant = snap.Tenant.ID
	return &acting, nil
}

// Start begins to write down the last uses of keys and sessions, and failed log-ins.
// Stop ends it.
func (a *Auth) Start() {
	go func() {
		defer close(a.done)
		a.writeUses()
	}()
}

// Stop ends what Start began, and writes what is not written yet. It must be
// called once, after Start. It returns ctx's error if that ends first.
func (a *Auth) Stop(ctx context.Context) error {
	close(a.quit)
	select {
	case <-a.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.recordFailures(ctx, true)
	return a.flushUses(ctx)
}

func (a *Auth) writeUses() {
	ticker := time.NewTicker(touchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-a.quit:
			return
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), touchEvery)
		_ = a.o.Guard.Try(contain.Background, "the writing of last uses", func() error { // logs; the rest is for the next time
			if err := a.flushUses(ctx); err != nil {
				a.o.Logger.Warn("the last uses of API keys and sessions could not be written and will be tried again", "err", err)
			}
			return nil
		})
		_ = a.o.Guard.Try(contain.Background, "the writing of refused sign-ins", func() error {
			a.recordFailures(ctx, false)
			return nil
		})
		cancel()
	}
}

// noteUse notes that a key was used, to the minute: more often would be a write
// for every request.
func (a *Auth) noteUse(k *knownKey, now time.Time) {
	minute := now.Unix() / 60
	last := k.minute.Load()
	if last >= minute || !k.minute.CompareAndSwap(last, minute) {
		return
	}
	a.noteUses(store.KeyUse{Tenant: k.tenant, Key: k.key, At: time.Unix(minute*60, 0).UTC()})
}

// noteUses keeps uses to be written, the latest of each key.
func (a *Auth) noteUses(uses ...store.KeyUse) {
	a.usesMu.Lock()
	defer a.usesMu.Unlock()
	for _, u := range uses {
		if old, ok := a.uses[u.Key]; !ok || old.At.Before(u.At) {
			a.uses[u.Key] = u
		}
	}
}

func (a *Auth) flushUses(ctx context.Context) error {
	a.usesMu.Lock()
	uses := make([]store.KeyUse, 0, len(a.uses))
	for _, u := range a.uses {
		uses = append(uses, u)
	}
	clear(a.uses)
	a.usesMu.Unlock()
	if len(uses) > 0 {
		if err := a.o.Store.TouchKeys(ctx, uses); err != nil {
			a.noteUses(uses...)
			return err
		}
	}
	return a.flushSessionUses(ctx)
}

func (a *Auth) now() time.Time { return a.o.Now().UTC().Truncate(time.Millisecond) }
