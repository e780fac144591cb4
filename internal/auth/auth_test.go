package auth_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/catalog"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/seal"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// counted is the real store, counting look-ups.
type counted struct {
	*sqlite.Store
	keys, sessions atomic.Int64
	mu             sync.Mutex
	touched        []store.KeyUse
	failInsert     bool
	inserting      func() // of a session
	touchedSession []store.SessionUse
	afterRead      func() // of a session
	afterReadKey   func()
}

func (c *counted) KeyByHash(ctx context.Context, hash [32]byte) (*store.KeyRow, error) {
	c.keys.Add(1)
	k, err := c.Store.KeyByHash(ctx, hash)
	if f := c.afterReadKey; f != nil {
		c.afterReadKey = nil
		f()
	}
	return k, err
}

func (c *counted) SessionByHash(ctx context.Context, hash [32]byte) (*hook.Session, error) {
	c.sessions.Add(1)
	s, err := c.Store.SessionByHash(ctx, hash)
	if f := c.afterRead; f != nil {
		c.afterRead = nil
		f()
	}
	return s, err
}

func (c *counted) TouchKeys(ctx context.Context, used []store.KeyUse) error {
	c.mu.Lock()
	c.touched = append(c.touched, used...)
	c.mu.Unlock()
	return c.Store.TouchKeys(ctx, used)
}

func (c *counted) InsertUser(ctx context.Context, u hook.User, most int) error {
	if c.failInsert {
		return hook.Unavailable(time.Second, nil, "the power went")
	}
	return c.Store.InsertUser(ctx, u, most)
}

func (c *counted) InsertSession(ctx context.Context, s hook.Session, hash [32]byte, most int) error {
	if f := c.inserting; f != nil {
		c.inserting = nil
		f()
	}
	return c.Store.InsertSession(ctx, s, hash, most)
}

func (c *counted) TouchSessions(ctx context.Context, used []store.SessionUse) error {
	c.mu.Lock()
	c.touchedSession = append(c.touchedSession, used...)
	c.mu.Unlock()
	return c.Store.TouchSessions(ctx, used)
}

type fixture struct {
	*auth.Auth
	store   *counted
	catalog *catalog.Catalog
	clock   time.Time
	made    *auth.Bootstrapped
}

const operatorKey = "an-operators-key-for-tests"

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{clock: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f.store = &counted{Store: s}
	f.restart(t)
	if f.made, err = f.Bootstrap(t.Context(), auth.Bootstrap{OperatorKey: operatorKey}); err != nil {
		t.Fatal(err)
	}
	return f
}

// restart is another process over the same store.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	box, err := seal.New(make([]byte, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	f.catalog = catalog.New(f.store, box)
	if f.Auth, err = auth.New(auth.Options{Store: f.store, Catalog: f.catalog, Now: func() time.Time { return f.clock }}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) code(t *testing.T, token string) hook.Code {
	t.Helper()
	_, err := f.Authenticate(t.Context(), token)
	if err == nil {
		return ""
	}
	return hook.CodeOf(err)
}

func (f *fixture) key(t *testing.T, k auth.NewKey) (*auth.Principal, *auth.MadeKey) {
	t.Helper()
	admin, err := f.Authenticate(t.Context(), f.made.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := f.CreateKey(t.Context(), admin, k)
	if err != nil {
		t.Fatal(err)
	}
	return admin, made
}

func TestBootstrap(t *testing.T) {
	f := newFixture(t)
	if f.made.Tenant.Name != auth.DefaultTenant || f.made.Email != auth.DefaultEmail || !strings.HasPrefix(f.made.APIKey, "hypha_") || len(f.made.Password) < 40 {
		t.Errorf("made %+v", f.made)
	}
	p, err := f.Authenticate(t.Context(), f.made.APIKey)
	if err != nil || p.Tenant != f.made.Tenant.ID || !p.Can(hook.ScopeAdmin) || p.Operator || p.Can(hook.ScopeOperator) {
		t.Errorf("the key is %+v, %v", p, err)
	}
	if p, err = f.Authenticate(t.Context(), operatorKey); err != nil || !p.Operator || !p.Tenant.IsZero() {
		t.Errorf("the operator's key is %+v, %v", p, err)
	}
	if _, err := f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: f.made.Password}); err != nil {
		t.Errorf("sign-in: %v", err)
	}

	// A later start changes nothing, but for an operator's key that is new.
	f.restart(t)
	const second = "another-operators-key"
	made, err := f.Bootstrap(t.Context(), auth.Bootstrap{APIKey: "another-key-of-the-tenant", Email: "b@example.com", Password: "another one", OperatorKey: second})
	if made != nil || err != nil {
		t.Errorf("the second start made %+v, %v", made, err)
	}
	for token, want := range map[string]hook.Code{f.made.APIKey: "", operatorKey: "", second: "", "another-key-of-the-tenant": hook.CodeUnauthorized} {
		if got := f.code(t, token); got != want {
			t.Errorf("%s: %q, want %q", token, got, want)
		}
	}
}

func TestBootstrapIsBegunAnewAfterACrash(t *testing.T) {
	f := newFixture(t)
	if err := f.DeleteTenant(t.Context(), f.made.Tenant.ID); err != nil {
		t.Fatal(err)
	}
	f.store.failInsert = true
	if made, err := f.Bootstrap(t.Context(), auth.Bootstrap{APIKey: "a-key-that-was-given"}); err == nil {
		t.Fatalf("made %+v without a store", made)
	}
	f.store.failInsert = false
	f.restart(t)
	made, err := f.Bootstrap(t.Context(), auth.Bootstrap{APIKey: "a-key-that-was-given"})
	if err != nil || made == nil {
		t.Fatalf("made %+v, %v", made, err)
	}
	tenants, err := f.Tenants(t.Context(), id.Tenant{}, 10)
	if err != nil || len(tenants) != 1 || tenants[0].Name != auth.DefaultTenant {
		t.Errorf("tenants = %+v, %v", tenants, err)
	}
	if got := f.code(t, "a-key-that-was-given"); got != "" {
		t.Errorf("the key: %s", got)
	}
}

func TestBootstrapRefuses(t *testing.T) {
	for name, b := range map[string]auth.Bootstrap{
		"a short key":        {APIKey: "short"},
		"a space in a key":   {OperatorKey: "a key with spaces in it"},
		"a session's prefix": {APIKey: "hyps_aaaaaaaaaaaaaaaaaaaa"},
		"one key for both":   {APIKey: "aaaaaaaaaaaaaaaaaaaaa", OperatorKey: "aaaaaaaaaaaaaaaaaaaaa"},
		"no address":         {Email: "admin"},
		"a name and address": {Email: "A <a@example.com>"},
		"a short password":   {Password: "1234567"},
		"the email":          {Email: "a@example.com", Password: "A@example.com"},
	} {
		f := newFixture(t)
		if made, err := f.Bootstrap(t.Context(), b); err == nil {
			t.Errorf("%s: made %+v", name, made)
		}
	}
}

func TestKeys(t *testing.T) {
	f := newFixture(t)
	admin, made := f.key(t, auth.NewKey{Name: "ci", Scopes: []hook.Scope{hook.ScopeEventsWrite}, ExpiresAt: f.clock.Add(time.Hour)})
	p, err := f.Authenticate(t.Context(), made.Secret)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Can(hook.ScopeEventsWrite) || p.Can(hook.ScopeWebhooksRead) {
		t.Errorf("scopes = %v", p.Scopes)
	}
	if made.Hint == "" || strings.Contains(made.Secret[len(made.Hint):], made.Hint) || len(made.Hint) > 10 {
		t.Errorf("hint = %q", made.Hint)
	}

	// The store is asked once; then the snapshot says.
	before := f.store.keys.Load()
	for range 100 {
		if got := f.code(t, made.Secret); got != "" {
			t.Fatal(got)
		}
	}
	if n := f.store.keys.Load() - before; n != 0 {
		t.Errorf("the store was asked %d times", n)
	}

	f.clock = f.clock.Add(time.Hour)
	if got := f.code(t, made.Secret); got != hook.CodeUnauthorized {
		t.Errorf("expired: %q", got)
	}
	never := time.Time{}
	if _, err := f.UpdateKey(t.Context(), admin.Tenant, made.ID, auth.KeyChange{ExpiresAt: &never}); err != nil {
		t.Fatal(err)
	}
	if got := f.code(t, made.Secret); got != "" {
		t.Errorf("without expiry: %q", got)
	}

	// A principal that was let in is out as soon as its key is revoked.
	snap, err := f.catalog.Tenant(t.Context(), admin.Tenant)
	if err != nil || p.Check(snap) == nil { // it still has the old expiry
		t.Errorf("Check of an expired one = nil, %v", err)
	}
	if p, err = f.Authenticate(t.Context(), made.Secret); err != nil || p.Check(snap) != nil {
		t.Fatal(err, p.Check(snap))
	}
	if err := f.DeleteKey(t.Context(), admin.Tenant, made.ID); err != nil {
		t.Fatal(err)
	}
	if got := f.code(t, made.Secret); got != hook.CodeUnauthorized {
		t.Errorf("revoked: %q", got)
	}
	if snap, err = f.catalog.Tenant(t.Context(), admin.Tenant); err != nil || hook.CodeOf(p.Check(snap)) != hook.CodeUnauthorized {
		t.Errorf("Check of a revoked one = %v, %v", p.Check(snap), err)
	}
}

func TestKeyRules(t *testing.T) {
	f := newFixture(t)
	admin, weak := f.key(t, auth.NewKey{Name: "weak", Scopes: []hook.Scope{hook.ScopeWebhooksRead}})
	maker, err := f.Authenticate(t.Context(), weak.Secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		maker *auth.Principal
		key   auth.NewKey
		path  string // of the problem; "" for none
	}{
		{"no name", admin, auth.NewKey{}, "name"},
		{"a blank name", admin, auth.NewKey{Name: "  "}, "name"},
		{"a long name", admin, auth.NewKey{Name: strings.Repeat("é", 256)}, "name"},
		{"the longest name", admin, auth.NewKey{Name: strings.Repeat("é", 255)}, ""},
		{"a control character", admin, auth.NewKey{Name: "a\x1b[31m"}, "name"},
		{"an unknown scope", admin, auth.NewKey{Name: "x", Scopes: []hook.Scope{"everything"}}, "scopes[0]"},
		{"the operator's scope", admin, auth.NewKey{Name: "x", Scopes: []hook.Scope{hook.ScopeOperator}}, "scopes[0]"},
		{"no scopes", admin, auth.NewKey{Name: "x", Scopes: []hook.Scope{}}, "scopes"},
		{"a scope twice", admin, auth.NewKey{Name: "x", Scopes: []hook.Scope{hook.ScopeAdmin, hook.ScopeAdmin}}, "scopes[1]"},
		{"more than the maker", maker, auth.NewKey{Name: "x", Scopes: []hook.Scope{hook.ScopeWebhooksRead, hook.ScopeAdmin}}, "scopes[1]"},
		{"all of the maker", maker, auth.NewKey{Name: "x"}, ""},
		{"expired at birth", admin, auth.NewKey{Name: "x", ExpiresAt: f.clock}, "expiresAt"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			problems := f.CheckKey(tc.maker, tc.key)
			if got := paths(problems); got != tc.path {
				t.Errorf("problems at %q, want %q: %v", got, tc.path, problems)
			}
		})
	}
	made, err := f.CreateKey(t.Context(), maker, auth.NewKey{Name: "heir"})
	if err != nil || len(made.Scopes) != 1 || made.Scopes[0] != hook.ScopeWebhooksRead {
		t.Errorf("inherited %+v, %v", made, err)
	}
}

func paths(problems []hook.Detail) string {
	var all []string
	for _, d := range problems {
		all = append(all, d.Path)
	}
	return strings.Join(all, " ")
}

func TestUnknownTokens(t *testing.T) {
	f := newFixture(t)
	for _, token := range []string{
		"", "hypha_", "short", strings.Repeat("a", 513), "a token with spaces in it", "hypha_\x00aaaaaaaaaaaaaaaaaaaaaa",
		"hypha_unknown-and-long-enough", "hyps_unknown-and-long-enough", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
	} {
		if got := f.code(t, token); got != hook.CodeUnauthorized {
			t.Errorf("%.20q: %q", token, got)
		}
	}
}

func TestSessions(t *testing.T) {
	f := newFixture(t)
	l, err := f.Login(t.Context(), auth.Credentials{Email: " " + strings.ToUpper(f.made.Email), Password: f.made.Password})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.Session.ExpiresAt.Sub(f.clock); got != 24*time.Hour {
		t.Errorf("it lasts %s", got)
	}
	p, err := f.Authenticate(t.Context(), l.Token)
	if err != nil || p.Session == nil || p.Tenant != f.made.Tenant.ID || !p.Can(hook.ScopeAdmin) {
		t.Fatalf("the session is %+v, %v", p, err)
	}
	before := f.store.sessions.Load()
	for range 50 {
		f.code(t, l.Token)
	}
	if n := f.store.sessions.Load() - before; n != 0 {
		t.Errorf("within a second the store was asked %d times", n)
	}
	f.clock = f.clock.Add(time.Second)
	if f.code(t, l.Token); f.store.sessions.Load() == before {
		t.Error("after a second the store was not asked again")
	}
	if err := f.Logout(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if got := f.code(t, l.Token); got != hook.CodeUnauthorized {
		t.Errorf("signed out: %q", got)
	}

	if l, err = f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: f.made.Password}); err != nil {
		t.Fatal(err)
	}
	for range 23 {
		f.clock = f.clock.Add(time.Hour)
		f.code(t, l.Token)
	}
	f.clock = f.clock.Add(time.Hour - time.Millisecond)
	if got := f.code(t, l.Token); got != "" {
		t.Errorf("just before its end: %q", got)
	}
	f.clock = f.clock.Add(time.Millisecond)
	if got := f.code(t, l.Token); got != hook.CodeUnauthorized {
		t.Errorf("at its end: %q", got)
	}
}

// TestSignOutBesideARequest ends a session between its being read for another
// request and its being remembered.
func TestSignOutBesideARequest(t *testing.T) {
	f := newFixture(t)
	l, err := f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: f.made.Password})
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Authenticate(t.Context(), l.Token)
	if err != nil {
		t.Fatal(err)
	}
	f.clock = f.clock.Add(time.Second)
	f.store.afterRead = func() {
		if err := f.Logout(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	f.code(t, l.Token)
	if got := f.code(t, l.Token); got != hook.CodeUnauthorized {
		t.Errorf("after the sign-out: %q", got)
	}
}

func TestActingForATenant(t *testing.T) {
	f := newFixture(t)
	other, err := f.CreateTenant(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, token, tenant string
		want                hook.Code
	}{
		{"an operator", operatorKey, other.ID.String(), ""},
		{"an operator, for nobody", operatorKey, "ten_01jd6c3v7genxa5fhm2rj8wq4t", hook.CodeNotFound},
		{"an operator, for no id", operatorKey, "x", hook.CodeNotFound},
		{"a tenant's, for itself", f.made.APIKey, f.made.Tenant.ID.String(), ""},
		{"a tenant's, for another", f.made.APIKey, other.ID.String(), hook.CodeForbidden},
		{"a tenant's, for nobody", f.made.APIKey, "x", hook.CodeForbidden},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := f.Authenticate(t.Context(), tc.token)
			if err != nil {
				t.Fatal(err)
			}
			acting, err := f.ActFor(t.Context(), p, tc.tenant)
			if tc.want != "" {
				if hook.CodeOf(err) != tc.want {
					t.Errorf("= %v, want %s", err, tc.want)
				}
				return
			}
			if err != nil || acting.Tenant.String() != tc.tenant || !acting.Can(hook.ScopeWebhooksWrite) {
				t.Errorf("= %+v, %v", acting, err)
			}
		})
	}
}

func TestLastUseIsNotedToTheMinute(t *testing.T) {
	f := newFixture(t)
	f.Start()
	_, made := f.key(t, auth.NewKey{Name: "used"})
	f.clock = f.clock.Add(90 * time.Second)
	for range 10 {
		f.code(t, made.Secret)
	}
	want := time.Date(2026, 5, 1, 12, 1, 0, 0, time.UTC)
	// Shown before it is written, and written by Stop at the latest.
	if k, err := f.Key(t.Context(), made.Tenant, made.ID); err != nil || !k.LastUsedAt.Equal(want) {
		t.Errorf("shown %+v, %v", k, err)
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	uses := 0
	for _, u := range f.store.touched {
		if u.Key == made.ID {
			uses++
		}
	}
	if k, err := f.Key(t.Context(), made.Tenant, made.ID); err != nil || uses != 1 || !k.LastUsedAt.Equal(want) {
		t.Errorf("written %d times, %+v, %v", uses, k, err)
	}
}

func TestStartAndStop(t *testing.T) {
	f := newFixture(t)
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			a, err := auth.New(auth.Options{Store: f.store, Catalog: f.catalog, Now: time.Now})
			if err != nil {
				t.Fatal(err)
			}
			a.Start()
			if err := a.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A failed log-in is written behind the answer, of users that there are.
func TestFailedLoginsAreRecorded(t *testing.T) {
	f := newFixture(t)
	f.Start()
	for _, email := range []string{f.made.Email, f.made.Email, "nobody@example.com"} {
		if _, err := f.Login(t.Context(), auth.Credentials{Email: email, Password: "wrong"}); hook.CodeOf(err) != hook.CodeUnauthorized {
			t.Fatal(err)
		}
	}
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[id.Tenant]int{f.made.Tenant.ID: 1, {}: 0} {
		page, err := f.store.AuditEntries(t.Context(), store.AuditQuery{Tenant: tenant, Action: hook.AuditUserFailed, Limit: 10})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Entries) != want {
			t.Fatalf("tenant %s has %d entries, want %d", tenant, len(page.Entries), want)
		}
		for _, e := range page.Entries {
			if e.Object.Name != f.made.Email || len(e.Changes) != 1 || string(e.Changes[0].To) != "2" {
				t.Errorf("entry %+v", e)
			}
		}
	}
}
