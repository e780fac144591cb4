package storetest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func userTests() tests {
	return tests{
		"users are found by their address":              usersByAddress,
		"users are listed, oldest first":                usersList,
		"a user is changed":                             usersChange,
		"a deleted user is gone, and its sessions":      usersDelete,
		"a tenant keeps an administrator":               usersLastAdministrator,
		"two who take the last two administrators away": usersConcurrent,
		"there is room for so many":                     usersMost,
		"a session":                                     usersSession,
		"a sign-in with what was changed meanwhile":     usersMovedPassword,
		"sessions end with the role and the password":   usersSessionsEnd,
		"a user's sessions end":                         usersEndSessions,
		"of many sessions, the oldest end":              usersManySessions,
		"the use of sessions is noted":                  usersTouch,
		"another tenant's user is an unknown one":       usersIsolation,
	}
}

// mostUsers is more users than any test makes, mostSessions likewise.
const mostUsers, mostSessions = 1000, 100

func (f *fixture) newUser(email string) hook.User {
	f.Helper()
	return f.newUserAs(email, hook.RoleDeveloper)
}

func (f *fixture) newUserAs(email string, role hook.Role) hook.User {
	f.Helper()
	u := hook.User{ID: f.makeID(), Tenant: f.tenant, Email: email, Role: role, PasswordHash: "$argon2id$x", CreatedAt: f.now}
	f.must(f.store.InsertUser(f.ctx, u, mostUsers))
	return u
}

func (f *fixture) newSession(u hook.User, name string) hook.Session {
	f.Helper()
	s := hook.Session{ID: f.makeID(), Tenant: u.Tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
	f.must(f.store.InsertSession(f.ctx, s, hash(name), mostSessions))
	return s
}

// signedIn are those of some sessions that there are.
func (f *fixture) signedIn(names ...string) (there []string) {
	f.Helper()
	for _, name := range names {
		_, err := f.store.SessionByHash(f.ctx, hash(name))
		if err == nil {
			there = append(there, name)
			continue
		}
		f.wantCode(err, hook.CodeNotFound)
	}
	return there
}

func (f *fixture) change(u hook.User) store.UserChange {
	return store.UserChange{Tenant: u.Tenant, User: u.ID, Now: f.now}
}

func usersList(_ *testing.T, f *fixture) {
	want := []hook.User{f.newUser("c@example.com"), f.newUser("a@example.com"), f.newUser("b@example.com")}
	page, err := f.store.Users(f.ctx, f.tenant, id.User{}, 2)
	f.must(err)
	f.equal("the first page", page, want[:2])
	page, err = f.store.Users(f.ctx, f.tenant, page[1].ID, 2)
	f.must(err)
	f.equal("the second page", page, want[2:])
	one, err := f.store.User(f.ctx, f.tenant, want[1].ID)
	f.must(err)
	f.equal("one", *one, want[1])
	_, err = f.store.User(f.ctx, f.tenant, f.makeID())
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.Users(f.ctx, f.makeID(), id.User{}, 2)
	f.wantCode(err, hook.CodeNotFound)
}

func usersChange(_ *testing.T, f *fixture) {
	want := f.newUser("a@example.com")
	f.newUser("b@example.com")
	c := f.change(want)
	email, role, password := "c@example.com", hook.RoleViewer, "$argon2id$y"
	c.Now = f.now.Add(time.Hour)
	c.Email, c.Role, c.PasswordHash, c.Was = &email, &role, &password, want.PasswordHash
	want.Email, want.Role, want.PasswordHash, want.UpdatedAt = email, role, password, c.Now
	got, err := f.store.UpdateUser(f.ctx, c)
	f.must(err)
	f.equal("what was made of it", *got, want)
	f.crash()
	got, err = f.store.User(f.ctx, f.tenant, want.ID)
	f.must(err)
	f.equal("what is there", *got, want)
	for address, there := range map[string][]hook.User{"a@example.com": nil, email: {want}} {
		found, err := f.store.UsersByEmail(f.ctx, address)
		f.must(err)
		f.equal("users of "+address, found, there)
	}
	// Its own address again is no conflict, another's is one and changes nothing.
	_, err = f.store.UpdateUser(f.ctx, c)
	if !errors.Is(err, store.ErrPasswordMoved) {
		f.Fatalf("a change for a password that is another: %v; want ErrPasswordMoved", err)
	}
	c.Was = ""
	_, err = f.store.UpdateUser(f.ctx, c)
	f.must(err)
	taken, admin := "b@example.com", hook.RoleAdministrator
	c.Email, c.Role = &taken, &admin
	_, err = f.store.UpdateUser(f.ctx, c)
	f.wantCode(err, hook.CodeConflict)
	got, err = f.store.User(f.ctx, f.tenant, want.ID)
	f.must(err)
	f.equal("what is there after a conflict", *got, want)
	found, err := f.store.UsersByEmail(f.ctx, email)
	f.must(err)
	f.equal("users of the address after a conflict", found, []hook.User{want})
	c.User = f.makeID()
	_, err = f.store.UpdateUser(f.ctx, c)
	f.wantCode(err, hook.CodeNotFound)
	// An address that was given up is free.
	f.newUser("a@example.com")
}

func usersDelete(_ *testing.T, f *fixture) {
	u, other := f.newUser("a@example.com"), f.newUser("b@example.com")
	f.newSession(u, "s")
	f.newSession(other, "t")
	f.must(f.store.DeleteUser(f.ctx, f.tenant, u.ID))
	f.crash()
	f.equal("sessions", f.signedIn("s", "t"), []string{"t"})
	_, err := f.store.User(f.ctx, f.tenant, u.ID)
	f.wantCode(err, hook.CodeNotFound)
	found, err := f.store.UsersByEmail(f.ctx, u.Email)
	f.must(err)
	f.equal("users of the address", found, []hook.User(nil))
	f.wantCode(f.store.DeleteUser(f.ctx, f.tenant, u.ID), hook.CodeNotFound)
	f.newUser(u.Email)
	// What a session's hash was is free: nothing is left of it in the directory.
	f.newSession(other, "s")
}

func (f *fixture) wantLast(what string, err error) {
	f.Helper()
	if !errors.Is(err, store.ErrLastAdministrator) {
		f.Fatalf("%s: %v; want ErrLastAdministrator", what, err)
	}
}

func usersLastAdministrator(_ *testing.T, f *fixture) {
	first := f.newUserAs("a@example.com", hook.RoleAdministrator)
	f.newUser("b@example.com")
	viewer, admin, password := hook.RoleViewer, hook.RoleAdministrator, "$argon2id$y"
	f.newSession(first, "s")
	other := *f
	other.tenant = other.newTenant()
	other.newUserAs("a@example.com", hook.RoleAdministrator) // of another tenant: it does not count
	f.ids = other.ids

	demote := f.change(first)
	demote.Role = &viewer
	_, err := f.store.UpdateUser(f.ctx, demote)
	f.wantLast("demoted", err)
	f.wantLast("deleted", f.store.DeleteUser(f.ctx, f.tenant, first.ID))
	f.equal("sessions", f.signedIn("s"), []string{"s"})
	same := f.change(first)
	same.Role, same.PasswordHash = &admin, &password
	_, err = f.store.UpdateUser(f.ctx, same)
	f.must(err)

	second := f.newUserAs("c@example.com", hook.RoleAdministrator)
	_, err = f.store.UpdateUser(f.ctx, demote)
	f.must(err)
	f.wantLast("the one that is left", f.store.DeleteUser(f.ctx, f.tenant, second.ID))
	f.must(f.store.DeleteUser(f.ctx, f.tenant, first.ID))
}

// usersConcurrent lets two ask at once, each to take another's administrator away.
func usersConcurrent(_ *testing.T, f *fixture) {
	viewer := hook.RoleViewer
	for range 10 {
		a, b := f.newUserAs("a@example.com", hook.RoleAdministrator), f.newUserAs("b@example.com", hook.RoleAdministrator)
		errs := make([]error, 2)
		var asked sync.WaitGroup
		asked.Go(func() {
			c := f.change(a)
			c.Role = &viewer
			_, errs[0] = f.store.UpdateUser(f.ctx, c)
		})
		asked.Go(func() { errs[1] = f.store.DeleteUser(f.ctx, f.tenant, b.ID) })
		asked.Wait()
		if (errs[0] == nil) == (errs[1] == nil) {
			f.Fatalf("both got %v; want one to be refused", errs)
		}
		f.wantLast("one of them", errors.Join(errs...))
		// As it was.
		third := f.newUserAs("c@example.com", hook.RoleAdministrator)
		for _, u := range []hook.User{a, b} {
			if err := f.store.DeleteUser(f.ctx, f.tenant, u.ID); err != nil {
				f.wantCode(err, hook.CodeNotFound)
			}
		}
		f.wantLast("the last", f.store.DeleteUser(f.ctx, f.tenant, third.ID))
		f.tenant = f.newTenant()
	}
}

func usersMost(_ *testing.T, f *fixture) {
	insert := func(email string) error {
		u := hook.User{ID: f.makeID(), Tenant: f.tenant, Email: email, Role: hook.RoleViewer, PasswordHash: "$argon2id$x", CreatedAt: f.now}
		return f.store.InsertUser(f.ctx, u, 2)
	}
	f.must(insert("a@example.com"))
	f.must(insert("b@example.com"))
	if err := insert("c@example.com"); !errors.Is(err, store.ErrTooMany) {
		f.Fatalf("the third of two: %v; want ErrTooMany", err)
	}
	f.tenant = f.newTenant()
	f.must(insert("c@example.com"))
}

func usersByAddress(_ *testing.T, f *fixture) {
	first := f.newUser("a@example.com")
	f.newUser("b@example.com")
	again := first
	again.ID = f.makeID()
	f.wantCode(f.store.InsertUser(f.ctx, again, mostUsers), hook.CodeConflict)
	f.tenant = f.newTenant()
	second := f.newUser("a@example.com")
	got, err := f.store.UsersByEmail(f.ctx, "a@example.com")
	f.must(err)
	f.equal("users", got, []hook.User{first, second})
	got, err = f.store.UsersByEmail(f.ctx, "nobody@example.com")
	f.must(err)
	f.equal("users", got, []hook.User(nil))
	f.tenant = f.makeID()
	again.Tenant = f.tenant
	f.wantCode(f.store.InsertUser(f.ctx, again, mostUsers), hook.CodeNotFound)
}

func usersSession(_ *testing.T, f *fixture) {
	u := f.newUser("a@example.com")
	want := hook.Session{ID: f.makeID(), Tenant: f.tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
	f.must(f.store.InsertSession(f.ctx, want, hash("s"), mostSessions))
	want.User.LastLoginAt = f.now
	f.crash()
	got, err := f.store.SessionByHash(f.ctx, hash("s"))
	f.must(err)
	f.equal("session", *got, want)
	_, err = f.store.SessionByHash(f.ctx, hash("t"))
	f.wantCode(err, hook.CodeNotFound)
	f.must(f.store.DeleteSession(f.ctx, f.tenant, want.ID))
	_, err = f.store.SessionByHash(f.ctx, hash("s"))
	f.wantCode(err, hook.CodeNotFound)
	f.wantCode(f.store.DeleteSession(f.ctx, f.tenant, want.ID), hook.CodeNotFound)
	want.User.ID, want.ID = f.makeID(), f.makeID()
	f.wantCode(f.store.InsertSession(f.ctx, want, hash("u"), mostSessions), hook.CodeNotFound)
}

func usersMovedPassword(_ *testing.T, f *fixture) {
	u := f.newUser("a@example.com")
	c := f.change(u)
	password, email := "$argon2id$y", "b@example.com"
	c.PasswordHash = &password
	signIn := func(u hook.User, name string) error {
		s := hook.Session{ID: f.makeID(), Tenant: u.Tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
		return f.store.InsertSession(f.ctx, s, hash(name), mostSessions)
	}
	changed, err := f.store.UpdateUser(f.ctx, c)
	f.must(err)
	f.wantCode(signIn(u, "s"), hook.CodeNotFound)
	f.must(signIn(*changed, "s"))
	c.PasswordHash, c.Email = nil, &email
	_, err = f.store.UpdateUser(f.ctx, c)
	f.must(err)
	f.wantCode(signIn(*changed, "t"), hook.CodeNotFound)
	f.equal("sessions", f.signedIn("s", "t"), []string{"s"})
}

func usersSessionsEnd(_ *testing.T, f *fixture) {
	u, other := f.newUser("a@example.com"), f.newUser("b@example.com")
	f.newSession(other, "other")
	email, password, same, role := "c@example.com", "$argon2id$y", hook.RoleDeveloper, hook.RoleViewer
	for _, tc := range []struct {
		name   string
		change func(*store.UserChange)
		ends   bool
	}{
		{"another address", func(c *store.UserChange) { c.Email = &email }, false},
		{"the same role", func(c *store.UserChange) { c.Role = &same }, false},
		{"another role", func(c *store.UserChange) { c.Role = &role }, true},
		{"a password", func(c *store.UserChange) { c.PasswordHash = &password }, true},
	} {
		now, err := f.store.User(f.ctx, f.tenant, u.ID)
		f.must(err)
		kept := f.newSession(*now, tc.name+", kept")
		f.newSession(*now, tc.name)
		c := f.change(u)
		c.Keep = kept.ID
		tc.change(&c)
		_, err = f.store.UpdateUser(f.ctx, c)
		f.must(err)
		want := []string{tc.name + ", kept", "other"}
		if !tc.ends {
			want = append([]string{tc.name}, want...)
		}
		f.equal("sessions after "+tc.name, f.signedIn(tc.name, tc.name+", kept", "other"), want)
	}
	// What a session may do is read with its user.
	got, err := f.store.SessionByHash(f.ctx, hash("a password, kept"))
	f.must(err)
	if got.User.Role != role || got.User.Email != email {
		f.Fatalf("the session's user is %+v", got.User)
	}
}

func usersEndSessions(_ *testing.T, f *fixture) {
	u, other := f.newUser("a@example.com"), f.newUser("b@example.com")
	f.newSession(u, "1")
	kept := f.newSession(u, "2")
	f.newSession(u, "3")
	f.newSession(other, "other")
	f.must(f.store.EndSessions(f.ctx, f.tenant, u.ID, kept.ID))
	f.equal("sessions", f.signedIn("1", "2", "3", "other"), []string{"2", "other"})
	list, err := f.store.Sessions(f.ctx, f.tenant, u.ID)
	f.must(err)
	kept.User = hook.User{ID: u.ID, Tenant: u.Tenant}
	f.equal("the list", list, []hook.Session{kept})
	f.must(f.store.EndSessions(f.ctx, f.tenant, u.ID, id.Session{}))
	f.equal("sessions", f.signedIn("2", "other"), []string{"other"})
	f.must(f.store.EndSessions(f.ctx, f.tenant, u.ID, id.Session{})) // none is none
	f.wantCode(f.store.EndSessions(f.ctx, f.makeID(), u.ID, id.Session{}), hook.CodeNotFound)
}

func usersManySessions(_ *testing.T, f *fixture) {
	u, other := f.newUser("a@example.com"), f.newUser("b@example.com")
	f.newSession(other, "other")
	for i := range 5 {
		s := hook.Session{ID: f.makeID(), Tenant: u.Tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
		f.must(f.store.InsertSession(f.ctx, s, hash(itoa(i)), 3))
	}
	f.equal("sessions", f.signedIn("0", "1", "2", "3", "4", "other"), []string{"2", "3", "4", "other"})
}

func usersTouch(_ *testing.T, f *fixture) {
	s := f.newSession(f.newUser("a@example.com"), "s")
	at := f.now.Add(time.Minute)
	f.must(f.store.TouchSessions(f.ctx, []store.SessionUse{
		{Tenant: f.tenant, Session: s.ID, At: at}, {Tenant: f.tenant, Session: s.ID, At: f.now},
		{Tenant: f.tenant, Session: f.makeID(), At: f.now},
	}))
	f.must(f.store.TouchSessions(f.ctx, nil))
	f.crash()
	got, err := f.store.SessionByHash(f.ctx, hash("s"))
	f.must(err)
	f.equal("last use", got.LastUsedAt, at)
}

func usersIsolation(t *testing.T, f *fixture) {
	u := f.newUser("a@example.com")
	s := f.newSession(u, "s")
	before, err := f.store.SessionByHash(f.ctx, hash("s"))
	f.must(err)
	mallory := f.newTenant()
	role := hook.RoleViewer
	for name, ask := range map[string]func() error{
		"User": func() error { _, err := f.store.User(f.ctx, mallory, u.ID); return err },
		"UpdateUser": func() error {
			_, err := f.store.UpdateUser(f.ctx, store.UserChange{Tenant: mallory, User: u.ID, Role: &role, Now: f.now})
			return err
		},
		"DeleteUser": func() error { return f.store.DeleteUser(f.ctx, mallory, u.ID) },
	} {
		if err := ask(); hook.CodeOf(err) != hook.CodeNotFound || err == nil {
			t.Errorf("%s: %v; want not found", name, err)
		}
	}
	f.must(f.store.EndSessions(f.ctx, mallory, u.ID, id.Session{}))
	f.must(f.store.TouchSessions(f.ctx, []store.SessionUse{{Tenant: mallory, Session: s.ID, At: f.now.Add(time.Hour)}}))
	users, err := f.store.Users(f.ctx, mallory, id.User{}, 9)
	f.must(err)
	f.equal("users", users, []hook.User(nil))
	sessions, err := f.store.Sessions(f.ctx, mallory, u.ID)
	f.must(err)
	f.equal("sessions", sessions, []hook.Session(nil))
	after, err := f.store.SessionByHash(f.ctx, hash("s"))
	f.must(err)
	f.equal("the session", after, before)
}
