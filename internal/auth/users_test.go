package auth_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const password = "correct horse battery"

func (f *fixture) user(t *testing.T, tenant id.Tenant, email string, role hook.Role) *auth.MadeUser {
	t.Helper()
	given := password
	u, err := f.CreateUser(t.Context(), tenant, auth.NewUser{Email: email, Role: role, Password: &given})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// signIn answers a token and its principal.
func (f *fixture) signIn(t *testing.T, email, password string) (string, *auth.Principal) {
	t.Helper()
	l, err := f.Login(t.Context(), auth.Credentials{Email: email, Password: password})
	if err != nil {
		t.Fatalf("sign in as %s: %v", email, err)
	}
	p, err := f.Authenticate(t.Context(), l.Token)
	if err != nil {
		t.Fatal(err)
	}
	return l.Token, p
}

func TestUserRules(t *testing.T) {
	f := newFixture(t)
	text := func(s string) *string { return &s }
	for _, tc := range []struct {
		name string
		user auth.NewUser
		path string // of the problem; "" for none
	}{
		{"as it should be", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text(password)}, ""},
		{"without a password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer}, ""},
		{"in upper case, with spaces", auth.NewUser{Email: " A@Example.COM ", Role: hook.RoleViewer}, ""},
		{"beyond ASCII", auth.NewUser{Email: "ä@bücher.example", Role: hook.RoleViewer}, ""},
		{"no address", auth.NewUser{Email: "a", Role: hook.RoleViewer}, "email"},
		{"an empty address", auth.NewUser{Role: hook.RoleViewer}, "email"},
		{"a name and an address", auth.NewUser{Email: "A <a@example.com>", Role: hook.RoleViewer}, "email"},
		{"two addresses", auth.NewUser{Email: "a@example.com, b@example.com", Role: hook.RoleViewer}, "email"},
		{"a zero in the address", auth.NewUser{Email: "a\x00@example.com", Role: hook.RoleViewer}, "email"},
		{"a line break in the address", auth.NewUser{Email: "a\n@example.com", Role: hook.RoleViewer}, "email"},
		{"no UTF-8", auth.NewUser{Email: "a\xff@example.com", Role: hook.RoleViewer}, "email"},
		{"the longest address", auth.NewUser{Email: strings.Repeat("a", 308) + "@example.com", Role: hook.RoleViewer}, ""},
		{"a longer address", auth.NewUser{Email: strings.Repeat("a", 309) + "@example.com", Role: hook.RoleViewer}, "email"},
		{"no role", auth.NewUser{Email: "a@example.com"}, "role"},
		{"a role in lower case", auth.NewUser{Email: "a@example.com", Role: "viewer"}, "role"},
		{"a scope for a role", auth.NewUser{Email: "a@example.com", Role: "admin"}, "role"},
		{"a short password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text("1234567")}, "password"},
		{"an empty password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text("")}, "password"},
		{"a long password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text(strings.Repeat("x", 1025))}, "password"},
		{"the longest password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text(strings.Repeat("x", 1024))}, ""},
		{"the address for a password", auth.NewUser{Email: "a@example.com", Role: hook.RoleViewer, Password: text("A@example.com ")}, "password"},
		{"nothing right", auth.NewUser{Password: text("x")}, "email role password"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := paths(f.CheckUser(tc.user)); got != tc.path {
				t.Errorf("problems at %q, want %q", got, tc.path)
			}
		})
	}
	// A change of the password alone is held against the address that is there.
	u := f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	_, err := f.UpdateUser(t.Context(), u.Tenant, u.ID, auth.UserChange{Password: text("a@EXAMPLE.com")})
	if hook.CodeOf(err) != hook.CodeValidation {
		t.Errorf("the address for a password: %v", err)
	}
	_, p := f.signIn(t, "a@example.com", password)
	if got := paths(f.CheckPasswordChange(p, auth.PasswordChange{Current: password, New: "a@example.com"})); got != "newPassword" {
		t.Errorf("one's own address for a password: problems at %q", got)
	}
}

func TestWhatEndsAUsersSessions(t *testing.T) {
	f := newFixture(t)
	u := f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleDeveloper)
	developer, viewer, email, other := hook.RoleDeveloper, hook.RoleViewer, "b@example.com", "another password"
	change := func(c auth.UserChange) func() error {
		return func() error {
			_, err := f.UpdateUser(t.Context(), u.Tenant, u.ID, c)
			return err
		}
	}
	for _, tc := range []struct {
		name  string
		do    func() error
		want  hook.Code
		email string
		pass  string
	}{
		{"nothing", change(auth.UserChange{}), "", "a@example.com", password},
		{"the same role", change(auth.UserChange{Role: &developer}), "", "a@example.com", password},
		{"another email", change(auth.UserChange{Email: &email}), "", "a@example.com", password},
		{"another role", change(auth.UserChange{Role: &viewer}), hook.CodeUnauthorized, email, password},
		{"another password", change(auth.UserChange{Password: &other}), hook.CodeUnauthorized, email, password},
		{"deleted", func() error { return f.DeleteUser(t.Context(), u.Tenant, u.ID) }, hook.CodeUnauthorized, email, other},
	} {
		token, _ := f.signIn(t, tc.email, tc.pass)
		if err := tc.do(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		// At once: the clock stands still.
		if got := f.code(t, token); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// TestAnotherNodeFollowsWithinASecond changes a user through one node, and asks
// another that knows the session.
func TestAnotherNodeFollowsWithinASecond(t *testing.T) {
	f := newFixture(t)
	u := f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleDeveloper)
	token, _ := f.signIn(t, "a@example.com", password)
	other := *f
	other.restart(t)
	if got := other.code(t, token); got != "" {
		t.Fatalf("the other node: %s", got)
	}
	viewer := hook.RoleViewer
	if _, err := f.UpdateUser(t.Context(), u.Tenant, u.ID, auth.UserChange{Role: &viewer}); err != nil {
		t.Fatal(err)
	}
	f.clock = f.clock.Add(time.Second)
	other.clock = f.clock
	if got := other.code(t, token); got != hook.CodeUnauthorized {
		t.Errorf("the other node after a second: %q", got)
	}
}

func TestLastAdministrator(t *testing.T) {
	f := newFixture(t)
	tenant := f.made.Tenant.ID
	users, err := f.Users(t.Context(), tenant, id.User{}, 9)
	if err != nil || len(users) != 1 {
		t.Fatalf("users = %v, %v", users, err)
	}
	viewer := hook.RoleViewer
	_, err = f.UpdateUser(t.Context(), tenant, users[0].ID, auth.UserChange{Role: &viewer})
	for what, err := range map[string]error{"demoted": err, "deleted": f.DeleteUser(t.Context(), tenant, users[0].ID)} {
		if hook.CodeOf(err) != hook.CodeConflict || !strings.Contains(err.Error(), "another user") {
			t.Errorf("%s: %v", what, err)
		}
	}
	f.user(t, tenant, "b@example.com", hook.RoleAdministrator)
	if err := f.DeleteUser(t.Context(), tenant, users[0].ID); err != nil {
		t.Errorf("with another administrator: %v", err)
	}
}

// TestSignInBesideAPasswordChange changes the password between its being verified
// and the session's being written.
func TestSignInBesideAPasswordChange(t *testing.T) {
	f := newFixture(t)
	u := f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	other := "another password"
	f.store.inserting = func() {
		if _, err := f.UpdateUser(t.Context(), u.Tenant, u.ID, auth.UserChange{Password: &other}); err != nil {
			t.Error(err)
		}
	}
	if l, err := f.Login(t.Context(), auth.Credentials{Email: u.Email, Password: password}); hook.CodeOf(err) != hook.CodeUnauthorized {
		t.Errorf("signed in with the old password: %+v, %v", l, err)
	}
}

func TestChangePassword(t *testing.T) {
	f := newFixture(t)
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	first, _ := f.signIn(t, "a@example.com", password)
	second, p := f.signIn(t, "a@example.com", password)
	err := f.ChangePassword(t.Context(), p, auth.PasswordChange{Current: "wrong", New: "another password"})
	if e, ok := errors.AsType[*hook.Error](err); !ok || e.Code != hook.CodeValidation || paths(e.Details) != "currentPassword" {
		t.Errorf("a wrong current password: %v", err)
	}
	if got := f.code(t, first); got != "" {
		t.Errorf("a wrong guess ended a session: %s", got)
	}
	if err := f.ChangePassword(t.Context(), p, auth.PasswordChange{Current: password, New: "another password"}); err != nil {
		t.Fatal(err)
	}
	if a, b := f.code(t, first), f.code(t, second); a != hook.CodeUnauthorized || b != "" {
		t.Errorf("the other session: %q, this one: %q", a, b)
	}
	f.signIn(t, "a@example.com", "another password")
	// It is guessed no faster than at the door.
	var last error
	for range 11 {
		last = f.ChangePassword(t.Context(), p, auth.PasswordChange{Current: "wrong", New: "a third password"})
	}
	if hook.CodeOf(last) != hook.CodeRateLimited {
		t.Errorf("after eleven guesses: %v", last)
	}
	// The administrator sees it: one entry, with all of them.
	f.Start()
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, err := f.store.AuditEntries(t.Context(), store.AuditQuery{Tenant: p.Tenant, Action: hook.AuditUserFailed, Limit: 9})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Object.Name != "a@example.com" {
		t.Errorf("the audit log has %+v, %v", page, err)
	}
	if got := f.code(t, second); got != "" {
		t.Errorf("guesses ended the session: %s", got)
	}
	key, err := f.Authenticate(t.Context(), f.made.APIKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.ChangePassword(t.Context(), key, auth.PasswordChange{Current: password, New: "a third password"}); hook.CodeOf(err) != hook.CodeConflict {
		t.Errorf("with an API key: %v", err)
	}
}

func TestIdleSessions(t *testing.T) {
	f := newFixture(t)
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	token, p := f.signIn(t, "a@example.com", password)
	// Used, it goes on.
	for range 4 {
		f.clock = f.clock.Add(2*time.Hour - time.Millisecond)
		if got := f.code(t, token); got != "" {
			t.Fatalf("used within two hours: %s", got)
		}
	}
	// So it does for another node, once the use is written.
	f.Start()
	if err := f.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.restart(t)
	f.clock = f.clock.Add(2*time.Hour - time.Millisecond)
	if got := f.code(t, token); got != "" {
		t.Fatalf("used within two hours, of another node: %s", got)
	}
	f.clock = f.clock.Add(2 * time.Hour)
	if got := f.code(t, token); got != hook.CodeUnauthorized {
		t.Errorf("not used for two hours: %q", got)
	}
	if list, err := f.Sessions(t.Context(), p); err != nil || len(list) != 0 {
		t.Errorf("it is listed: %v, %v", list, err)
	}
}

func TestSessionUseIsWrittenOnceAMinute(t *testing.T) {
	f := newFixture(t)
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	token, p := f.signIn(t, "a@example.com", password)
	flush := func() {
		t.Helper()
		f.restart(t)
		f.Start()
		for range 10 {
			f.clock = f.clock.Add(6 * time.Second)
			f.code(t, token)
		}
		if err := f.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		flush()
	}
	if n := len(f.store.touchedSession); n != 5 {
		t.Errorf("in five minutes it was written %d times", n)
	}
	if list, err := f.Sessions(t.Context(), p); err != nil || len(list) != 1 || !list[0].LastUsedAt.Equal(f.clock) {
		t.Errorf("it is listed as %+v, %v; now it is %v", list, err, f.clock)
	}
}

func TestSignOutEverywhere(t *testing.T) {
	f := newFixture(t)
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	first, p := f.signIn(t, "a@example.com", password)
	second, _ := f.signIn(t, "a@example.com", password)
	admin, _ := f.signIn(t, f.made.Email, f.made.Password)
	if first == second {
		t.Error("two sign-ins got one session")
	}
	if list, err := f.Sessions(t.Context(), p); err != nil || len(list) != 2 || list[0].ID != p.Session.ID {
		t.Errorf("sessions = %+v, %v", list, err)
	}
	if err := f.LogoutAll(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]hook.Code{first: hook.CodeUnauthorized, second: hook.CodeUnauthorized, admin: ""} {
		if got := f.code(t, token); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestCookiesHoldSessionsAlone(t *testing.T) {
	f := newFixture(t)
	token, _ := f.signIn(t, f.made.Email, f.made.Password)
	for value, want := range map[string]hook.Code{token: "", f.made.APIKey: hook.CodeUnauthorized, operatorKey: hook.CodeUnauthorized, "": hook.CodeUnauthorized} {
		_, err := f.AuthenticateSession(t.Context(), value, func() error { return nil })
		if got := hook.CodeOf(err); err != nil && got != want || err == nil && want != "" {
			t.Errorf("%.6s: %v, want %q", value, err, want)
		}
	}
}

func TestSignInToOneOfSeveralTenants(t *testing.T) {
	f := newFixture(t)
	other, err := f.CreateTenant(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	f.user(t, other.ID, "a@example.com", hook.RoleAdministrator)
	f.user(t, other.ID, "b@example.com", hook.RoleViewer)
	for _, tc := range []struct {
		name   string
		tenant id.Tenant
		email  string
		want   id.Tenant // zero: refused
	}{
		{"nobody has signed in: the oldest", id.Tenant{}, "a@example.com", f.made.Tenant.ID},
		{"the one that is named", other.ID, "a@example.com", other.ID},
		{"whoever signed in last", id.Tenant{}, "a@example.com", other.ID},
		{"one that has no such user", f.made.Tenant.ID, "b@example.com", id.Tenant{}},
	} {
		f.clock = f.clock.Add(time.Second)
		l, err := f.Login(t.Context(), auth.Credentials{Email: tc.email, Password: password, Tenant: tc.tenant})
		if tc.want.IsZero() {
			if hook.CodeOf(err) != hook.CodeUnauthorized {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || l.Session.Tenant != tc.want {
			t.Errorf("%s: %+v, %v", tc.name, l, err)
		}
	}
}

func TestFailedLoginsAreLimited(t *testing.T) {
	f := newFixture(t)
	here, there := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1")
	login := func(from netip.Addr, email, password string) error {
		_, err := f.Login(t.Context(), auth.Credentials{Address: from, Email: email, Password: password})
		return err
	}
	var wrong, unknown error
	for range 10 {
		wrong, unknown = login(here, f.made.Email, "wrong"), login(here, "nobody@example.com", "wrong")
		if hook.CodeOf(wrong) != hook.CodeUnauthorized || wrong.Error() != unknown.Error() {
			t.Fatalf("a wrong password: %v\nan unknown user: %v", wrong, unknown)
		}
	}
	// The right password too: else it could be found in spite of the limit.
	err := login(netip.MustParseAddr("2001:db8::2"), f.made.Email, f.made.Password)
	if hook.CodeOf(err) != hook.CodeRateLimited {
		t.Errorf("the eleventh, from the same /64: %v", err)
	}
	if e, ok := errors.AsType[*hook.Error](err); !ok || e.RetryAfter <= 0 || e.RetryAfter > 30*time.Second {
		t.Errorf("the eleventh: %+v", err)
	}
	if err := login(here, "nobody@example.com", "wrong"); hook.CodeOf(err) != hook.CodeRateLimited {
		t.Errorf("the eleventh of nobody: %v", err)
	}
	if err := login(there, f.made.Email, f.made.Password); err != nil {
		t.Errorf("from elsewhere: %v", err)
	}
	f.clock = f.clock.Add(30 * time.Second)
	if err := login(here, f.made.Email, f.made.Password); err != nil {
		t.Errorf("half a minute later: %v", err)
	}
}

// Any tenant may make users of any address. However many do, and however often they
// sign in, whoever has signed in from where they are still can.
func TestPlantedUsersLockNobodyOut(t *testing.T) {
	f := newFixture(t)
	home, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("203.0.113.1")
	login := func(from netip.Addr, password string, tenant id.Tenant) (id.Tenant, hook.Code) {
		f.clock = f.clock.Add(time.Minute) // whoever fails has a guess again
		l, err := f.Login(t.Context(), auth.Credentials{Address: from, Email: "ada@example.com", Password: password, Tenant: tenant})
		if err != nil {
			return id.Tenant{}, hook.CodeOf(err)
		}
		return l.Session.Tenant, ""
	}
	planted := "a password of the planter"
	var hostile []id.Tenant
	for range 9 {
		tenant, err := f.CreateTenant(t.Context(), "hostile")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.CreateUser(t.Context(), tenant.ID, auth.NewUser{Email: "ada@example.com", Password: &planted, Role: hook.RoleViewer}); err != nil {
			t.Fatal(err)
		}
		hostile = append(hostile, tenant.ID)
	}
	hers, err := f.CreateTenant(t.Context(), "hers")
	if err != nil {
		t.Fatal(err)
	}
	f.user(t, hers.ID, "ada@example.com", hook.RoleViewer)

	if _, code := login(home, password, id.Tenant{}); code != hook.CodeUnauthorized {
		t.Errorf("nine are tried before her: %q", code) // or this test shows nothing
	}
	if got, code := login(home, password, hers.ID); got != hers.ID {
		t.Errorf("to the tenant that she names: %q", code)
	}
	for _, tenant := range hostile {
		if got, code := login(elsewhere, planted, tenant); got != tenant {
			t.Fatal(code)
		}
	}
	if got, code := login(home, password, id.Tenant{}); got != hers.ID {
		t.Errorf("from where she has signed in: %q", code)
	}
}

// Who has proved an address elsewhere is asked for the tenant if several have a user
// of it: none of them decides.
func TestVerifiedInSeveralTenants(t *testing.T) {
	f := newFixture(t)
	other, err := f.CreateTenant(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	if l, err := f.LoginVerified(t.Context(), "A@example.com", id.Tenant{}); err != nil || l.Session.Tenant != f.made.Tenant.ID {
		t.Fatalf("the only one: %+v, %v", l, err)
	}
	f.user(t, other.ID, "a@example.com", hook.RoleAdministrator)
	_, err = f.LoginVerified(t.Context(), "a@example.com", id.Tenant{})
	if hook.CodeOf(err) != hook.CodeConflict || !strings.Contains(err.Error(), other.ID.String()) || !strings.Contains(err.Error(), f.made.Tenant.ID.String()) {
		t.Errorf("of two: %v", err)
	}
	for _, tenant := range []id.Tenant{f.made.Tenant.ID, other.ID} {
		if l, err := f.LoginVerified(t.Context(), "a@example.com", tenant); err != nil || l.Session.Tenant != tenant {
			t.Errorf("the one that is named: %+v, %v", l, err)
		}
	}
	if _, err := f.LoginVerified(t.Context(), "b@example.com", other.ID); hook.CodeOf(err) != hook.CodeUnauthorized {
		t.Errorf("nobody: %v", err)
	}
}

// TestASpray guesses one password for many addresses from one network: it is held,
// and those who have signed in from there are not.
func TestASpray(t *testing.T) {
	f := newFixture(t)
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f.user(t, f.made.Tenant.ID, "familiar@example.com", hook.RoleViewer)
	f.user(t, f.made.Tenant.ID, "stranger@example.com", hook.RoleViewer)
	login := func(from netip.Addr, email, password string) hook.Code {
		_, err := f.Login(t.Context(), auth.Credentials{Address: from, Email: email, Password: password})
		if err == nil {
			return ""
		}
		return hook.CodeOf(err)
	}
	if got := login(here, "familiar@example.com", password); got != "" {
		t.Fatal(got)
	}
	for i := range 100 {
		f.Guessed(here, fmt.Sprintf("%d@example.com", i))
	}
	for _, tc := range []struct {
		name, email, password string
		from                  netip.Addr
		want                  hook.Code
	}{
		{"one more", "nobody@example.com", password, here, hook.CodeRateLimited},
		{"one who has not signed in from here", "stranger@example.com", password, here, hook.CodeRateLimited},
		{"one who has", "familiar@example.com", password, here, ""},
		{"one who has, with a wrong password", "familiar@example.com", "wrong", here, hook.CodeUnauthorized},
		{"from elsewhere", "stranger@example.com", password, there, ""},
	} {
		if got := login(tc.from, tc.email, tc.password); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	f.clock = f.clock.Add(10 * time.Second)
	if got := login(here, "stranger@example.com", password); got != "" {
		t.Errorf("ten seconds later: %s", got)
	}
}

// TestGuessesFromManyNetworks guesses one address from many networks: that is held,
// and the owner is not, where the owner has signed in before.
func TestGuessesFromManyNetworks(t *testing.T) {
	f := newFixture(t)
	home := netip.MustParseAddr("192.0.2.1")
	u := f.user(t, f.made.Tenant.ID, "a@example.com", hook.RoleViewer)
	// Somebody else has a user of the same address in a tenant of their own.
	other, err := f.CreateTenant(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	theirs, lair := "their own password", netip.MustParseAddr("198.51.100.7")
	if _, err := f.CreateUser(t.Context(), other.ID, auth.NewUser{Email: u.Email, Role: hook.RoleViewer, Password: &theirs}); err != nil {
		t.Fatal(err)
	}
	login := func(from netip.Addr, password string) (*auth.Login, hook.Code) {
		l, err := f.Login(t.Context(), auth.Credentials{Address: from, Email: u.Email, Password: password})
		if err == nil {
			return l, ""
		}
		return nil, hook.CodeOf(err)
	}
	l, got := login(home, password)
	if got != "" {
		t.Fatal(got)
	}
	if _, got := login(lair, theirs); got != "" {
		t.Fatal(got)
	}
	from := netip.MustParseAddr("203.0.113.0")
	for range 49 {
		from = from.Next()
		f.Guessed(from, u.Email)
	}
	if _, got := login(from.Next(), "wrong"); got != hook.CodeUnauthorized {
		t.Errorf("the fiftieth guess: %s", got)
	}
	for _, tc := range []struct {
		name string
		from netip.Addr
		pass string
		want hook.Code
	}{
		{"from yet another network", from.Next(), "wrong", hook.CodeRateLimited},
		{"the right one, from yet another network", from.Next(), password, hook.CodeRateLimited},
		{"the owner, at home", home, password, ""},
		{"the other user of the address, where that one is at home", lair, theirs, ""},
		{"the owner's password, there", lair, password, hook.CodeUnauthorized},
	} {
		if _, got := login(tc.from, tc.pass); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := f.code(t, l.Token); got != "" {
		t.Errorf("guesses ended the session: %s", got)
	}
}

// TestASuccessGivesNoGuessesBack: else whoever has a user of the same address would
// guess without end.
func TestASuccessGivesNoGuessesBack(t *testing.T) {
	f := newFixture(t)
	for range 5 {
		_, _ = f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: "wrong"})
	}
	f.signIn(t, f.made.Email, f.made.Password)
	for range 5 {
		_, _ = f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: "wrong"})
	}
	if _, err := f.Login(t.Context(), auth.Credentials{Email: f.made.Email, Password: f.made.Password}); hook.CodeOf(err) != hook.CodeRateLimited {
		t.Errorf("after ten guesses: %v", err)
	}
}
