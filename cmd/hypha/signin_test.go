package main

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/oidc/oidctest"
)

// The contract of who may come in: keys, users and their sessions, tenants.

func (c *contractTest) credentials(t *testing.T) {
	_, tr := c.start(t, nil)
	tr.section("Sign in: a session token")
	login := tr.ask(200, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, testEmail, testPassword), "Authorization: ")
	session := login.text("token")
	tr.secrets[session] = "<session token>"
	tr.section("Who am I, with a session and with a key")
	tr.ask(200, "GET", "/services/auth/me", "", "Authorization: Bearer "+session)
	tr.ask(200, "GET", "/services/auth/me", "")
	tr.section("A wrong password and an unknown user are one answer")
	wrong := tr.ask(401, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":"wrong"}`, testEmail), "Authorization: ")
	if unknown := tr.ask(401, "POST", "/services/auth/login", `{"email":"nobody@example.com","password":"wrong"}`, "Authorization: "); string(unknown.body) != string(wrong.body) {
		t.Errorf("%s\n%s", wrong.body, unknown.body)
	}
	tr.section("Guessing is slowed down")
	for range 9 {
		tr.quietly(401, "POST", "/services/auth/login", `{"email":"nobody@example.com","password":"wrong"}`, "Authorization: ")
	}
	if a := tr.quietly(429, "POST", "/services/auth/login", `{"email":"nobody@example.com","password":"wrong"}`, "Authorization: "); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	tr.section("Sign out ends the session")
	tr.ask(204, "POST", "/services/auth/logout", "", "Authorization: Bearer "+session)
	tr.ask(401, "GET", "/services/auth/me", "", "Authorization: Bearer "+session)
	tr.section("A key has no session to end")
	tr.ask(409, "POST", "/services/auth/logout", "")

	tr.section("An API key is shown once")
	made := tr.ask(201, "POST", "/services/api-keys", `{"name":"CI","scopes":["webhooks:read","events:write"],"expiresAt":"2099-01-01T00:00:00Z"}`)
	key, id := made.text("key"), made.text("id")
	tr.secrets[key] = "<CI's key>"
	if a := tr.ask(200, "GET", "/services/api-keys/"+id, ""); strings.Contains(string(a.body), key) {
		t.Error("the key is shown again")
	}
	tr.section("It may do what its scopes say")
	tr.ask(200, "GET", "/services/webhooks", "", "Authorization: Bearer "+key)
	tr.ask(403, "GET", "/services/webhooks/stats", "", "Authorization: Bearer "+key)
	tr.section("Without scopes, it has all that its maker has")
	tr.ask(201, "POST", "/services/api-keys", `{"name":"everything"}`)
	tr.section("Change its name and expiry; null is never")
	tr.ask(200, "PATCH", "/services/api-keys/"+id, `{"name":"CI 2","expiresAt":null}`)
	tr.section("List, with last use and expiry")
	tr.ask(200, "GET", "/services/api-keys", "")
	tr.section("A key that has expired is refused, in the words for an unknown one")
	soon := time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	short := tr.quietly(201, "POST", "/services/api-keys", fmt.Sprintf(`{"name":"short","expiresAt":%q}`, soon)).text("key")
	tr.secrets[short] = "<expired key>"
	eventually(t, "the key expires", func() bool {
		_, a := tr.exchange("GET", "/services/webhooks", "", "Authorization: Bearer "+short)
		return a.status == 401
	})
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: Bearer "+short)
	tr.section("Revoke it: it is refused at once")
	tr.ask(204, "DELETE", "/services/api-keys/"+id, "")
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: Bearer "+key)
	tr.save("credentials.txt", "Credentials")
}

func (c *contractTest) users(t *testing.T) {
	_, tr := c.start(t, nil)
	tr.section("Make a user; the server makes the password and shows it once")
	made := tr.ask(201, "POST", "/services/users", `{"email":"Dana@Example.com","role":"Developer"}`)
	id, password := made.text("id"), made.text("password")
	if len(password) != 43 || made.text("email") != "dana@example.com" {
		t.Errorf("made %s", made.body)
	}
	signIn := func(want int, email, password string) string {
		t.Helper()
		token := tr.quietly(want, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password), "Authorization: ").text("token")
		if token != "" {
			tr.secrets[token] = "<session token>"
		}
		return token
	}
	token := signIn(200, "dana@example.com", password)
	tr.section("Show it, with its last sign-in")
	if a := tr.ask(200, "GET", "/services/users/"+id, ""); a.get("password") != nil || a.get("lastLoginAt") == nil {
		t.Errorf("shown: %s", a.body)
	}
	tr.section("What is wrong is said together; a password is not the email")
	tr.ask(400, "POST", "/services/users", `{"email":"not an address","role":"developer","password":"short"}`)
	tr.ask(400, "POST", "/services/users", `{"email":"erin@example.com","role":"Viewer","password":"Erin@example.com"}`)
	tr.section("An email is one user's of a tenant")
	tr.ask(409, "POST", "/services/users", `{"email":"dana@example.com","role":"Viewer"}`)
	tr.section("A role says what a session may do")
	tr.ask(403, "GET", "/services/users", "", "Authorization: Bearer "+token)
	tr.ask(201, "POST", "/services/webhooks", hookOf("https://example.com/in", "order.*"), "Authorization: Bearer "+token)
	tr.section("Another role ends the sessions, at once")
	tr.ask(200, "PATCH", "/services/users/"+id, `{"role":"Viewer"}`)
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: Bearer "+token)
	token = signIn(200, "dana@example.com", password)
	tr.quietly(200, "GET", "/services/webhooks", "", "Authorization: Bearer "+token)
	tr.quietly(403, "POST", "/services/webhooks", hookOf("https://example.com/in", "order.*"), "Authorization: Bearer "+token)
	tr.section("So does another password; another email does not")
	tr.ask(200, "PATCH", "/services/users/"+id, `{"email":"dana@example.org"}`)
	tr.quietly(200, "GET", "/services/auth/me", "", "Authorization: Bearer "+token)
	tr.ask(200, "PATCH", "/services/users/"+id, `{"password":"a new password"}`)
	tr.quietly(401, "GET", "/services/auth/me", "", "Authorization: Bearer "+token)
	signIn(401, "dana@example.com", "a new password")
	token = signIn(200, "dana@example.org", "a new password")
	tr.section("List, oldest first")
	list := tr.ask(200, "GET", "/services/users?limit=1", "")
	admin := list.text("data.0.id")
	if rest := tr.ask(200, "GET", "/services/users?limit=1&cursor="+list.text("nextCursor"), ""); rest.text("data.0.id") != id || rest.get("nextCursor") != nil {
		t.Errorf("the rest: %s", rest.body)
	}
	tr.section("An administrator ends all sessions of a user, at once; the user may sign in again")
	tr.ask(204, "POST", "/services/users/"+id+"/sign-out", "")
	tr.ask(401, "GET", "/services/auth/me", "", "Authorization: Bearer "+token)
	token = signIn(200, "dana@example.org", "a new password")
	tr.section("A tenant's last administrator can be neither deleted nor made anything else")
	tr.ask(409, "PATCH", "/services/users/"+admin, `{"role":"Developer"}`)
	tr.ask(409, "DELETE", "/services/users/"+admin, "")
	tr.section("Delete a user: the sessions end")
	tr.ask(204, "DELETE", "/services/users/"+id, "")
	tr.ask(401, "GET", "/services/auth/me", "", "Authorization: Bearer "+token)
	tr.ask(404, "GET", "/services/users/"+id, "")
	tr.save("users.txt", "Users")
}

func (c *contractTest) sessions(t *testing.T) {
	_, tr := c.start(t, nil)
	login := fmt.Sprintf(`{"email":%q,"password":%q,"cookie":true}`, testEmail, testPassword)
	signIn := func() string {
		t.Helper()
		token := tr.quietly(200, "POST", "/services/auth/login", strings.Replace(login, "true", "false", 1), "Authorization: ").text("token")
		tr.secrets[token] = "<session token>"
		return "Authorization: Bearer " + token
	}
	tr.section("A browser keeps its session in a cookie, and no script sees it")
	in := tr.ask(200, "POST", "/services/auth/login", login, "Authorization: ")
	cookie, _, _ := strings.Cut(in.header.Get("Set-Cookie"), ";")
	if in.get("token") != nil || !strings.HasPrefix(cookie, "__Host-hypha=hyps_") {
		t.Errorf("signed in: %v %s", in.header, in.body)
	}
	tr.section("It counts where there is no Authorization; an API key is none that a cookie may hold")
	browser := []string{"Authorization: ", "Cookie: " + cookie, "Sec-Fetch-Site: same-origin"}
	tr.ask(200, "GET", "/services/auth/me", "", browser...)
	tr.quietly(401, "GET", "/services/auth/me", "", "Authorization: Bearer wrong", "Cookie: "+cookie)
	tr.quietly(401, "GET", "/services/auth/me", "", "Authorization: ", "Cookie: __Host-hypha="+testKey)
	tr.quietly(401, "GET", "/services/auth/me", "", "Authorization: ", "Cookie: "+cookie+"; "+cookie)
	tr.section("What a page of another site sends is refused")
	other := []string{"Authorization: ", "Cookie: " + cookie, "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"}
	tr.ask(403, "POST", "/services/auth/logout-all", "", other...)
	tr.quietly(403, "POST", "/services/auth/logout", "", "Authorization: ", "Cookie: "+cookie, "Origin: null")
	tr.quietly(403, "POST", "/services/auth/login", login, "Authorization: ", "Origin: https://evil.example")
	tr.section("One's own sessions, everywhere")
	second := signIn()
	tr.ask(200, "GET", "/services/auth/sessions", "", second)
	tr.section("Another password: the current one must be given, and the other sessions end")
	tr.ask(400, "POST", "/services/auth/password", `{"currentPassword":"wrong","newPassword":"another password"}`, second)
	tr.ask(204, "POST", "/services/auth/password", fmt.Sprintf(`{"currentPassword":%q,"newPassword":"another password"}`, testPassword), second)
	tr.quietly(200, "GET", "/services/auth/me", "", second)
	tr.ask(401, "GET", "/services/auth/me", "", browser...)
	login = strings.Replace(login, testPassword, "another password", 1)
	tr.section("Sign out takes the cookie away")
	cookie, _, _ = strings.Cut(tr.quietly(200, "POST", "/services/auth/login", login, "Authorization: ").header.Get("Set-Cookie"), ";")
	browser[1] = "Cookie: " + cookie
	tr.ask(204, "POST", "/services/auth/logout", "", browser...)
	tr.quietly(401, "GET", "/services/auth/me", "", browser...)
	tr.section("Sign out everywhere")
	third := signIn()
	tr.ask(204, "POST", "/services/auth/logout-all", "", third)
	tr.ask(401, "GET", "/services/auth/me", "", second)
	tr.section("An API key has neither sessions nor a password")
	if a := tr.ask(200, "GET", "/services/auth/sessions", ""); len(a.get("data").([]any)) != 0 {
		t.Errorf("a key's sessions: %s", a.body)
	}
	tr.ask(409, "POST", "/services/auth/logout-all", "")
	tr.ask(409, "POST", "/services/auth/password", `{"currentPassword":"wrong","newPassword":"another password"}`)
	tr.save("sessions.txt", "Sessions")
}

func (c *contractTest) provider(t *testing.T) {
	theirs := oidctest.New(t)
	_, tr := c.start(t, func(s *settings) {
		s.OIDCIssuer, s.OIDCClientID, s.OIDCClientSecret, s.PublicURL = theirs.URL, oidctest.ClientID, oidctest.ClientSecret, "https://hooks.example.com"
	})
	tr.key = testKey
	tr.quietly(201, "POST", "/services/users", `{"email":"alice@example.com","role":"Developer"}`)
	// mark stands for what is new in each sign-in.
	mark := func(query url.Values) {
		for _, name := range []string{"code", "state", "nonce", "code_challenge"} {
			if v := query.Get(name); v != "" {
				tr.secrets[v] = "<" + strings.ReplaceAll(name, "_", " ") + ">"
			}
		}
	}
	begin := func() (cookie string, answer url.Values) {
		t.Helper()
		a := tr.ask(302, "GET", "/services/auth/oidc/login?returnTo=/webhooks", "", "Authorization: ")
		location, err := url.Parse(a.header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		mark(location.Query())
		cookie, _, _ = strings.Cut(a.header.Get("Set-Cookie"), ";")
		answer = theirs.Consent(location.String())
		mark(answer)
		return cookie, answer
	}
	tr.section("The browser is sent to the provider")
	cookie, answer := begin()
	tr.section("It comes back, and is signed in as the user with the email that the provider has verified")
	in := tr.ask(303, "GET", "/services/auth/oidc/callback?"+answer.Encode(), "", "Authorization: ", "Cookie: "+cookie)
	session := in.header.Values("Set-Cookie")
	if len(session) != 2 || !strings.HasPrefix(session[1], "__Host-hypha=hyps_") || in.header.Get("Location") != "/webhooks" {
		t.Fatalf("signed in: %v", in.header)
	}
	signedIn, _, _ := strings.Cut(session[1], ";")
	if me := tr.quietly(200, "GET", "/services/auth/me", "", "Authorization: ", "Cookie: "+signedIn); me.text("user.email") != "alice@example.com" {
		t.Errorf("signed in as %s", me.body)
	}
	tr.section("The same answer again is refused, and so is one without the browser's cookie")
	tr.ask(401, "GET", "/services/auth/oidc/callback?"+answer.Encode(), "", "Authorization: ", "Cookie: "+cookie)
	tr.quietly(401, "GET", "/services/auth/oidc/callback?"+answer.Encode(), "", "Authorization: ")
	tr.section("Nobody is made: who is no user is told so")
	theirs.SignsIn("mallory@example.com", nil)
	cookie, answer = begin()
	tr.ask(401, "GET", "/services/auth/oidc/callback?"+answer.Encode(), "", "Authorization: ", "Cookie: "+cookie)
	tr.section("It ends on this server")
	tr.ask(400, "GET", "/services/auth/oidc/login?returnTo=//evil.example&next=1", "", "Authorization: ")
	tr.secrets[theirs.URL] = "https://accounts.example.com"
	tr.secrets[url.QueryEscape(theirs.URL)] = "https%3A%2F%2Faccounts.example.com"
	tr.save("provider.txt", "Sign-in through an OpenID provider")

	_, without := c.start(t, nil)
	for _, path := range []string{"/services/auth/oidc/login", "/services/auth/oidc/callback?code=x&state=y"} {
		without.quietly(404, "GET", path, "", "Authorization: ")
	}
}

func (c *contractTest) tenants(t *testing.T) {
	_, tr := c.start(t, nil)
	tr.key = operatorKey
	tr.section("An operator's key manages tenants")
	id := tr.ask(201, "POST", "/services/tenants", `{"name":"Acme"}`).text("id")
	tr.ask(200, "GET", "/services/tenants", "")
	tr.ask(200, "GET", "/services/tenants/"+id, "")
	tr.ask(200, "PATCH", "/services/tenants/"+id, `{"name":"Acme Inc."}`)
	tr.section("It acts for a tenant with X-Hypha-Tenant, and needs it for what belongs to one")
	tr.ask(400, "GET", "/services/webhooks", "")
	tr.ask(404, "GET", "/services/webhooks", "", "X-Hypha-Tenant: ten_01jd6c3v7genxa5fhm2rj8wq4t")
	tr.ask(201, "POST", "/services/webhooks", hookOf("https://example.com/in", "order.*"), "X-Hypha-Tenant: "+id)
	key := tr.ask(201, "POST", "/services/api-keys", `{"name":"Acme's"}`, "X-Hypha-Tenant: "+id).text("key")
	tr.secrets[key] = "<Acme's key>"
	tr.section("A tenant's key sees its own tenant alone")
	if a := tr.ask(200, "GET", "/services/webhooks", "", "Authorization: Bearer "+key); a.get("total") != 1.0 {
		t.Errorf("Acme's webhooks: %s", a.body)
	}
	tr.ask(200, "GET", "/services/webhooks", "", "Authorization: Bearer "+testKey)
	tr.ask(403, "GET", "/services/webhooks", "", "Authorization: Bearer "+testKey, "X-Hypha-Tenant: "+id)
	tr.ask(403, "GET", "/services/tenants", "", "Authorization: Bearer "+key)
	tr.section("Delete a tenant: its credentials go with it")
	tr.ask(204, "DELETE", "/services/tenants/"+id, "")
	tr.ask(404, "GET", "/services/tenants/"+id, "")
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: Bearer "+key)
	tr.save("tenants.txt", "Tenants and operators")
}
