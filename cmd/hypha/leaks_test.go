package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/egress/proxytest"
	"github.com/plinqx/hypha/internal/oidc/oidctest"
)

// leaks looks for secrets where none may be.
type leaks struct {
	*auditWorld
	known map[string]bool
	// misplaced are secrets that somebody put where they do not belong.
	misplaced int
	looked    int
}

// learn takes note of secrets.
func (l *leaks) learn(secrets ...string) {
	for _, s := range secrets {
		if s != "" {
			l.known[s] = true
		}
	}
}

// misplace makes a secret that is about to be put in a wrong place.
func (l *leaks) misplace() string {
	l.misplaced++
	secret := fmt.Sprintf("misplaced-%03d-pssst", l.misplaced)
	l.learn(secret)
	return secret
}

// forms are the ways in which a secret may stand in something: as it is, as JSON and
// URLs write it, and encoded, wherever in the encoded text it begins.
func forms(secret string) []string {
	quoted, err := json.Marshal(secret)
	if err != nil {
		panic(err) // of a string there is none
	}
	all := []string{secret, strings.Trim(string(quoted), `"`), url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret)))}
	for shift := range 3 {
		text := strings.Repeat("\x00", shift) + secret
		// Without what the neighbours have a part in.
		for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			all = append(all, e.EncodeToString([]byte(text[:len(text)/3*3]))[(shift*8+5)/6:])
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// look searches a text for all that is known, but for those that it may have.
func (l *leaks) look(where string, text []byte, may ...string) {
	l.t.Helper()
	l.looked++
	for secret := range l.known {
		if slices.Contains(may, secret) {
			continue
		}
		for _, form := range forms(secret) {
			if at := bytes.Index(text, []byte(form)); at >= 0 {
				l.t.Errorf("%s has %q, as %q:\n…%q…", where, secret, form, text[max(0, at-120):min(len(text), at+len(form)+40)])
				break
			}
		}
	}
}

// answered is an answer, looked at. It may have what it is the only one to show.
func (l *leaks) answered(method, path, body string, headers ...string) told {
	l.t.Helper()
	if len(headers) == 0 {
		headers = []string{"Authorization: Bearer " + testKey}
	}
	a := ask(l.t, l.url, method, path, body, headers...)
	shown := []string{a.text("key"), a.text("secret"), a.text("token"), a.text("password")}
	if method == http.MethodGet {
		shown = nil
	}
	l.learn(shown...)
	l.look(method+" "+path, []byte(fmt.Sprint(a.header)+"\n"+string(a.body)), shown...)
	return a
}

// TestNoSecretLeaks does everything that the server can do, on both stores, with
// secrets that it knows: in the right places, in wrong ones, and sent back by
// receivers. They must be in no answer, error answers included, no line of the log at
// its most talkative, no metric, no entry of the audit log, and nowhere at rest.
func TestNoSecretLeaks(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		dir := t.TempDir()
		l, p := runWithSecrets(t, nil, "--data", dir)
		lookAtFolder(t, l, "the folder of the server that runs", dir)
		if err := p.stop(t); err != nil {
			t.Error(err)
		}
		lookAtFolder(t, l, "the folder", dir)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		database := databases.Database(t)
		l, p := runWithSecrets(t, []string{"HYPHA_DATABASE_URL=" + database})
		if err := p.stop(t); err != nil {
			t.Error(err)
		}
		lookAtDatabase(t, l, database)
	})
}

func lookAtFolder(t *testing.T, l *leaks, what, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		l.look(what+", file "+d.Name(), text)
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%s has %d files: %v", what, files, err)
	}
}

func lookAtDatabase(t *testing.T, l *leaks, database string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	names, err := conn.Query(t.Context(), "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(names, pgx.RowTo[string])
	if err != nil || len(tables) < 5 {
		t.Fatalf("tables %q, %v", tables, err)
	}
	for _, table := range tables {
		var text string
		// Of rows as text, bytes are hexadecimal.
		if err := conn.QueryRow(t.Context(), "SELECT coalesce(string_agg(r::text, E'\\n'), '') FROM "+pgx.Identifier{table}.Sanitize()+" r").Scan(&text); err != nil {
			t.Fatal(err)
		}
		l.look("table "+table, []byte(text))
	}
}

// runWithSecrets starts the program and has it do everything. What it printed is
// looked at when it has stopped.
func runWithSecrets(t *testing.T, env []string, args ...string) (*leaks, *programProcess) {
	t.Helper()
	theirs := oidctest.New(t)
	key := strings.Repeat("5e", 32)
	p := startProgram(t, append(env,
		"HYPHA_BOOTSTRAP_API_KEY="+testKey, "HYPHA_BOOTSTRAP_OPERATOR_KEY="+operatorKey, "HYPHA_BOOTSTRAP_EMAIL="+testEmail, "HYPHA_BOOTSTRAP_PASSWORD="+testPassword,
		"HYPHA_SECRET_KEY="+key, "HYPHA_OIDC_CLIENT_SECRET="+oidctest.ClientSecret,
	), append([]string{"serve", "--listen", "127.0.0.1:0", "--allow-egress", "127.0.0.0/8", "--log-level", "debug", "--retry-schedule", "100ms",
		"--oidc-issuer", theirs.URL, "--oidc-client-id", oidctest.ClientID, "--public-url", "https://hooks.example.com"}, args...)...)
	l := &leaks{auditWorld: &auditWorld{t: t, url: p.url, receiver: newArrivals(t, nil)}, known: map[string]bool{}}
	l.learn(testKey, operatorKey, testPassword, key, oidctest.ClientSecret,
		"given-webhook-secret", "another-webhook-secret", "given-header-value", "given-vault-value", "another-vault-value", "some-vault-value",
		"the password of it", "another password")
	t.Cleanup(func() {
		l.look("stdout", []byte(p.stdout.String()))
		l.look("the log", []byte(p.stderr.String()))
		if !strings.Contains(p.stderr.String(), "level=DEBUG") {
			t.Error("the log is not at its most talkative")
		}
	})

	for _, op := range operationsOf(t) {
		r, ok := recipes()[op.id]
		if !ok {
			continue
		}
		object, body, headers := r.make(l.auditWorld)
		if a := l.answered(op.method, inPath(op.path, object), body, headers...); a.status >= 300 && a.status != http.StatusConflict {
			t.Errorf("%s: %d %s", op, a.status, a.body)
		}
	}
	for _, s := range l.secrets {
		// The audit log hides more than what is a secret elsewhere: a URL and a tag are shown.
		if !strings.HasSuffix(s, "-token") && s != "given-tag-value" && s != "another-header-value" {
			l.learn(s)
		}
	}
	l.sent()
	l.signedIn(theirs)
	l.inWrongPlaces(t)
	series, text := scrape(t, p.url)
	if series[`hypha_attempts_total{result="status"}`] == 0 {
		t.Error("nothing has failed")
	}
	l.look("the metrics", []byte(text))
	l.answered("GET", "/services/audit/export", "")
	l.answered("GET", "/services/audit/export", "", "Authorization: Bearer "+operatorKey)
	if l.looked < 150 {
		t.Errorf("%d texts were looked at", l.looked)
	}
	return l, p
}

// inPath puts an id in the place of the path's parameter.
func inPath(path, id string) string {
	if i := strings.Index(path, "{"); i >= 0 {
		return path[:i] + id + path[strings.Index(path, "}")+1:]
	}
	return path
}

// sent has secrets sent to receivers that fail in each way that there is, some of
// them with all that they know, and reads about it.
func (l *leaks) sent() {
	l.t.Helper()
	const header, vaulted, signing = "header-secret-41b8", "vaulted-secret-77e0", "signing-secret-9f27"
	l.learn(header, vaulted, signing)
	echo := func(w http.ResponseWriter, r *http.Request, status int) {
		for name, values := range r.Header {
			w.Header()["X-Echo-"+name] = values
		}
		w.Header().Set("Location", "/?token="+header+"&secret="+signing)
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, "%q %s %s", r.Header, signing, vaulted) // who reads it may have gone
	}
	answering := func(status int) string {
		return receiver(l.t, func(w http.ResponseWriter, r *http.Request) { echo(w, r, status) }).URL
	}
	unknownIssuer := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { echo(w, r, 200) }))
	unknownIssuer.Config.ErrorLog = log.New(io.Discard, "", 0) // it is refused, and would say so
	unknownIssuer.StartTLS()
	l.t.Cleanup(unknownIssuer.Close)
	cut := receiver(l.t, func(_ http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) })
	garbage := "http://" + proxytest.Serve(l.t, func(c net.Conn) { _, _ = io.WriteString(c, header+" "+signing+"\r\n\r\n") })
	closed := receiver(l.t, nil)
	closed.Close()
	l.answered("POST", "/services/vault", fmt.Sprintf(`{"name":"SENT","value":%q}`, vaulted))
	ids := map[string]string{}
	for name, to := range map[string]string{
		"success": answering(200), "failure": answering(500), "redirect": answering(302), "not TLS": strings.Replace(answering(200), "http:", "https:", 1),
		"unknown issuer": unknownIssuer.URL, "cut off": cut.URL, "garbage": garbage, "nobody": closed.URL,
	} {
		made := l.answered("POST", "/services/webhooks", fmt.Sprintf(`{"name":%q,"url":%q,"events":["leaks.*"],"secret":%q,
			"headers":{"Authorization":"Bearer %s","X-Api-Key":"{{vault.SENT}}","Cookie":"a={{vault.SENT}}; b=c"}}`, name, to, signing, header))
		if made.status != http.StatusCreated {
			l.t.Fatalf("%s: %d %s", name, made.status, made.body)
		}
		ids["webhook"] = made.text("id")
		l.answered("POST", "/services/webhooks/"+ids["webhook"]+"/test", "")
	}
	ids["event"] = l.answered("POST", "/services/events", `{"type":"leaks.all","data":{}}`).text("id")
	eventually(l.t, "all eight are done", func() bool {
		a := l.answered("GET", "/services/webhooks/deliveries?eventId="+ids["event"], "")
		rows, _ := a.get("data").([]any)
		done := 0
		for i := range rows {
			if status := a.text(fmt.Sprintf("data.%d.status", i)); status == "SUCCESS" || status == "FAILED" {
				done++
			}
			ids["delivery"] = a.text(fmt.Sprintf("data.%d.id", i))
			l.answered("GET", "/services/webhooks/deliveries/"+ids["delivery"], "")
		}
		return done == 8
	})
	for what, path := range map[string]string{"key": "/services/api-keys", "user": "/services/users", "secret": "/services/vault"} {
		ids[what] = l.answered("GET", path, "").text("data.0.id")
	}
	ids["tenant"] = l.answered("GET", "/services/auth/me", "").text("tenant.id")
	ids["operatorKey"] = l.answered("GET", "/services/operator-keys", "", "Authorization: Bearer "+operatorKey).text("data.0.id")
	for _, op := range operationsOf(l.t) {
		if op.method != http.MethodGet || strings.Contains(op.path, "/oidc/") {
			continue
		}
		headers := []string{"Authorization: Bearer " + testKey}
		if op.scope == "operator" {
			headers = []string{"Authorization: Bearer " + operatorKey}
		}
		path := fill(l.t, op.path, ids)
		if op.public {
			path += "?tenant=" + ids["tenant"] // of two
		}
		if a := l.answered("GET", path, "", headers...); a.status != http.StatusOK {
			l.t.Errorf("%s: %d %s", op, a.status, a.body)
		}
	}
}

// signedIn signs in through the provider, and with what is no answer of its.
func (l *leaks) signedIn(theirs *oidctest.Provider) {
	l.t.Helper()
	begin := l.answered("GET", "/services/auth/oidc/login", "", "X-None: 1")
	cookie, _, _ := strings.Cut(begin.header.Get("Set-Cookie"), ";")
	answer := theirs.Consent(begin.header.Get("Location"))
	l.learn(answer.Get("code"))
	l.answered("GET", "/services/auth/oidc/callback?"+answer.Encode(), "", "Cookie: "+cookie)
	code := l.misplace()
	l.answered("GET", "/services/auth/oidc/callback?code="+code+"&state="+l.misplace(), "", "Cookie: "+cookie)
	l.answered("GET", "/services/auth/oidc/callback?error="+l.misplace()+"&error_description="+l.misplace(), "", "Cookie: __Host-hypha-oidc="+l.misplace())
}

// inWrongPlaces puts secrets where people have put them.
func (l *leaks) inWrongPlaces(t *testing.T) {
	t.Helper()
	webhook := "/services/webhooks/" + l.webhook()
	for _, tc := range []struct {
		name, method, path string
		body               string // %s is the secret
		header             string // likewise
	}{
		{"a key in the query", "GET", "/services/webhooks?api_key=%s", "", ""},
		{"a key as a parameter that there is", "GET", "/services/webhooks?limit=%s", "", ""},
		{"a cursor", "GET", "/services/events?cursor=%s", "", ""},
		{"a key in place of its id", "GET", "/services/api-keys/hypha_%s", "", ""},
		{"likewise, to delete", "DELETE", "/services/api-keys/hypha_%s", "", ""},
		{"a session in a path", "DELETE", "/services/sessions/hyps_%s", "", ""},
		{"a signing secret in place of the webhook", "GET", "/services/webhooks/whsec_%s", "", ""},
		{"basic credentials", "GET", "/services/webhooks", "", "Authorization: Basic %s"},
		{"a wrong key", "GET", "/services/webhooks", "", "Authorization: Bearer hypha_%s"},
		{"a key without its scheme", "GET", "/services/webhooks", "", "Authorization: hypha_%s"},
		{"a wrong session", "GET", "/services/webhooks", "", "Cookie: __Host-hypha=hyps_%s"},
		{"a cookie of another", "GET", "/services/webhooks", "", "Cookie: session=%s"},
		{"a key for the tenant", "GET", "/services/webhooks", "", "X-Hypha-Tenant: %s"},
		{"an idempotency key", "POST", "/services/events", `{"type":"a","data":{}}`, "Idempotency-Key: %s."},
		{"a request's id", "GET", "/services/webhooks", "", "X-Request-Id: %s."},
		{"a wrong password", "POST", "/services/auth/login", `{"email":"` + testEmail + `","password":"%s"}`, "X-None: 1"},
		{"a password for the email", "POST", "/services/auth/login", `{"email":"%s","password":"x"}`, "X-None: 1"},
		{"a password cut short", "POST", "/services/auth/login", `{"email":"` + testEmail + `","password":"%s`, "X-None: 1"},
		{"a password without quotes", "POST", "/services/auth/login", `{"email":"` + testEmail + `","password":%s}`, "X-None: 1"},
		{"a password in a list", "POST", "/services/auth/login", `{"email":"` + testEmail + `","password":["%s"]}`, "X-None: 1"},
		{"a short password", "POST", "/services/users", `{"email":"x@example.com","role":"None","password":"%s"}`, ""},
		{"a signing secret that is none", "POST", "/services/webhooks", `{"name":"x","url":"https://example.com","events":["*"],"secret":"\u0001%s"}`, ""},
		{"a signing secret of another kind", "PATCH", webhook, `{"secret":"whsk_%s"}`, ""},
		{"a signing secret that is a number", "PATCH", webhook, `{"secret":{"value":"%s"}}`, ""},
		{"a rotation's", "POST", webhook + "/rotate-secret", `{"secret":"whsec_%s"}`, ""},
		{"a header's value", "PATCH", webhook, `{"headers":{"Authorization":"Bearer %s\n"}}`, ""},
		{"a header's value, beyond ASCII", "PATCH", webhook, `{"headers":{"Authorization":"Bearer %sü"}}`, ""},
		{"a header that we set", "PATCH", webhook, `{"headers":{"Host":"%s"}}`, ""},
		{"two of one header", "PATCH", webhook, `{"headers":{"X-Key":"%[1]s","x-key":"%[1]s"}}`, ""},
		{"one header twice", "PATCH", webhook, `{"headers":{"X-Key":"%[1]s","X-Key":"%[1]s"}}`, ""},
		{"a reference to what there is not", "PATCH", webhook, `{"headers":{"Authorization":"%s {{vault.NOTHING}}"}}`, ""},
		{"a user in the URL", "PATCH", webhook, `{"url":"https://user:%s@example.com/"}`, ""},
		{"the same, spoilt", "PATCH", webhook, `{"url":"https://user:%s@exa mple.com:x/%%zz"}`, ""},
		{"a vault's value", "POST", "/services/vault", `{"name":"X","value":"%s\u0000"}`, ""},
		{"a vault's value for its name", "POST", "/services/vault", `{"name":"%s!","value":"x"}`, ""},
		{"the wrong kind of body", "POST", "/services/vault", `name=X&value=%s`, "Content-Type: application/x-www-form-urlencoded"},
		{"no JSON", "POST", "/services/vault", `%s`, ""},
		{"something behind the JSON", "POST", "/services/vault", `{"name":"Y","value":"y"} %s`, ""},
		{"a literal", "POST", "/services/events", `{"type":"a","data":%s}`, ""},
		{"a number", "POST", "/services/events", `{"type":"a","data":0%s}`, ""},
		{"a method", "PUT", "/services/webhooks?secret=%s", `{"secret":"%s"}`, ""},
	} {
		secret := l.misplace()
		put := func(s string) string {
			if !strings.Contains(s, "%") {
				return s
			}
			return fmt.Sprintf(s, secret)
		}
		headers := []string{"Authorization: Bearer " + testKey}
		if tc.header != "" {
			headers = append(headers, put(tc.header))
		}
		if tc.header == "X-None: 1" || strings.HasPrefix(tc.header, "Authorization") || strings.HasPrefix(tc.header, "Cookie") {
			headers = headers[1:]
		}
		if a := l.answered(tc.method, put(tc.path), put(tc.body), headers...); a.status < 400 && !strings.HasPrefix(tc.header, "X-Request-Id") {
			t.Errorf("%s: %d %s", tc.name, a.status, a.body)
		}
	}
}
