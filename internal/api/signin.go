package api

import (
	"context"
	"net/http"
	"time"

	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/oidc"
)

// The endpoints for people who sign in, and the cookie that a browser keeps a
// session in.

// cookieName has the prefix that makes browsers hold a cookie to what it is set
// with: Secure, the whole host and no other (RFC 6265bis, 4.1.3.2).
const cookieName = "__Host-hypha"

// setSessionCookie gives a browser the session. SameSite is Lax and not Strict so
// that a link to the portal finds its reader signed in; what changes anything is
// refused from other sites besides.
func setSessionCookie(w http.ResponseWriter, l *auth.Login) {
	lasts := l.Session.ExpiresAt.Sub(l.Session.CreatedAt)
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: l.Token, Path: "/", MaxAge: int(lasts / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

func clearSessionCookie(w http.ResponseWriter) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// signInCookieName is of the cookie of a sign-in through the provider, from its begin
// to its end.
const signInCookieName = "__Host-hypha-oidc"

func setSignInCookie(w http.ResponseWriter, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: signInCookieName, Value: value, Path: "/", MaxAge: maxAge,
		// The provider sends the browser back, from another site.
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// sessionCookie is the token of the cookie, "" without one. Of two, neither is: a
// browser sends one.
func sessionCookie(r *http.Request) string {
	given := r.CookiesNamed(cookieName)
	if len(given) != 1 {
		return ""
	}
	return given[0].Value
}

func (a *api) login(c *call) (reply, error) {
	cookie := false
	given, err := decode(a, c, a.o.MaxBody, func(o *object) auth.Credentials {
		o.require("email", "password")
		var v auth.Credentials
		if s := o.text("email"); s != nil {
			if v.Email = *s; len(v.Email) == 0 || len(v.Email) > auth.MaxEmail {
				o.add("email", "must have 1 to %d characters", auth.MaxEmail)
			}
		}
		v.Password = o.password("password")
		if s := o.text("tenantId"); s != nil {
			var err error
			if v.Tenant, err = id.ParseTenant(*s); err != nil {
				o.add("tenantId", "must be a tenant's id")
			}
		}
		if b := o.boolean("cookie"); b != nil {
			cookie = *b
		}
		return v
	}, nil)
	if err != nil {
		return reply{}, err
	}
	given.Address = c.client
	l, err := a.o.Auth.Login(c.Context(), given)
	if err != nil {
		a.countGuess(err)
		return reply{}, err
	}
	v := loginView{Token: l.Token, ExpiresAt: instant(l.Session.ExpiresAt), User: viewUser(&l.Session.User)}
	if cookie {
		// Scripts of the page have no use for it, and must not leak it.
		v.Token = ""
		setSessionCookie(c.w, l)
	}
	return reply{status: http.StatusOK, value: v}, nil
}

// password reads a password that is to be compared, not kept.
func (o *object) password(name string) string {
	s := o.text(name)
	if s == nil {
		return ""
	}
	if len(*s) == 0 || len(*s) > auth.MaxPassword {
		o.add(name, "must have 1 to %d bytes", auth.MaxPassword)
	}
	return *s
}

func (a *api) logout(c *call) (reply, error) { return a.end(c, a.o.Auth.Logout) }

func (a *api) logoutAll(c *call) (reply, error) { return a.end(c, a.o.Auth.LogoutAll) }

// end ends the session, or all of the user's.
func (a *api) end(c *call, logout func(context.Context, *auth.Principal) error) (reply, error) {
	if err := a.noBody(c); err != nil {
		return reply{}, err
	}
	if err := logout(c.Context(), c.principal); err != nil {
		return reply{}, err
	}
	if c.cookie {
		clearSessionCookie(c.w)
	}
	return reply{status: http.StatusNoContent}, nil
}

func (a *api) listSessions(c *call) (reply, error) {
	q := newQuery(c)
	limit, after := q.limit(), q.cursor()
	if err := q.err(); err != nil {
		return reply{}, err
	}
	sessions, err := a.o.Auth.Sessions(c.Context(), c.principal)
	if err != nil {
		return reply{}, err
	}
	rows, next := pageOf(sessions, func(s hook.Session) [16]byte { return s.ID }, after, limit)
	out := page[sessionView]{Data: make([]sessionView, len(rows)), NextCursor: q.next(next)}
	for i := range rows {
		out.Data[i] = viewSession(&rows[i])
		out.Data[i].Current = rows[i].ID == c.principal.Session.ID
	}
	return reply{status: http.StatusOK, value: out}, nil
}

func (a *api) changePassword(c *call) (reply, error) {
	change, err := decode(a, c, a.o.MaxBody, func(o *object) auth.PasswordChange {
		o.require("currentPassword", "newPassword")
		v := auth.PasswordChange{Address: c.client, Current: o.password("currentPassword")}
		if s := o.text("newPassword"); s != nil {
			v.New = *s
		}
		return v
	}, func(v auth.PasswordChange) []hook.Detail { return a.o.Auth.CheckPasswordChange(c.principal, v) })
	if err != nil {
		return reply{}, err
	}
	if err := a.o.Auth.ChangePassword(c.Context(), c.principal, change); err != nil {
		a.countGuess(err)
		return reply{}, err
	}
	return reply{status: http.StatusNoContent}, nil
}

// countGuess tells the metrics of a password that was not even tried.
func (a *api) countGuess(err error) {
	if hook.CodeOf(err) == hook.CodeRateLimited {
		a.o.RateLimited(LimitSignIns)
	}
}

func (a *api) me(c *call) (reply, error) {
	snap, err := a.o.Catalog.Tenant(c.Context(), c.tenant())
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, value: viewMe(c.principal, &snap.Tenant)}, nil
}

// oidcLogin sends a browser to the provider.
func (a *api) oidcLogin(c *call) (reply, error) {
	if a.o.Provider == nil {
		return reply{}, errNoRoute()
	}
	q := newQuery(c)
	wish := oidc.Wish{ReturnTo: "/"}
	if path, ok := q.text("returnTo"); ok {
		if wish.ReturnTo = path; oidc.CheckReturnTo(path) != "" {
			q.problems.add("returnTo", "%s", oidc.CheckReturnTo(path))
		}
	}
	if tenant, ok := q.text("tenantId"); ok {
		if _, err := id.ParseTenant(tenant); err != nil {
			q.problems.add("tenantId", "must be a tenant's id")
		}
		wish.Tenant = tenant
	}
	if err := q.err(); err != nil {
		return reply{}, err
	}
	location, cookie, err := a.o.Provider.Begin(c.Context(), wish)
	if err != nil {
		return reply{}, err
	}
	setSignInCookie(c.w, cookie, int(oidc.MaxAge/time.Second))
	return reply{status: http.StatusFound, location: location}, nil
}

// oidcCallback is where the provider sends a browser back to. Providers put more into
// the query than is asked for.
func (a *api) oidcCallback(c *call) (reply, error) {
	if a.o.Provider == nil {
		return reply{}, errNoRoute()
	}
	cookie := ""
	if given := c.CookiesNamed(signInCookieName); len(given) == 1 {
		cookie = given[0].Value
	}
	if len(cookie) > 0 {
		setSignInCookie(c.w, "", -1) // whatever comes of it, it has been used
	}
	who, err := a.o.Provider.Finish(c.Context(), cookie, c.URL.Query())
	if err != nil {
		return reply{}, err
	}
	var tenant id.Tenant
	if who.Tenant != "" {
		if tenant, err = id.ParseTenant(who.Tenant); err != nil {
			return reply{}, err
		}
	}
	l, err := a.o.Auth.LoginVerified(c.Context(), who.Email, tenant)
	if err != nil {
		return reply{}, err
	}
	setSessionCookie(c.w, l)
	return reply{status: http.StatusSeeOther, location: who.ReturnTo}, nil
}
