package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// auditWorld is what the recipes below make things in.
type auditWorld struct {
	t        *testing.T
	url      string
	receiver *arrivals
	tenant   string
	secrets  []string // that were given or shown
}

func (w *auditWorld) ask(status int, method, path, body string, headers ...string) told {
	w.t.Helper()
	if len(headers) == 0 {
		headers = []string{"Authorization: Bearer " + testKey}
	}
	a := ask(w.t, w.url, method, path, body, headers...)
	if a.status != status {
		w.t.Fatalf("%s %s = %d, want %d\n%s", method, path, a.status, status, a.body)
	}
	return a
}

func (w *auditWorld) webhook() string {
	w.t.Helper()
	a := w.ask(201, "POST", "/services/webhooks", hookOf(w.receiver.URL, "order.*"))
	w.secrets = append(w.secrets, a.text("secret"))
	return a.text("id")
}

func (w *auditWorld) key() string {
	w.t.Helper()
	a := w.ask(201, "POST", "/services/api-keys", `{"name":"CI"}`)
	w.secrets = append(w.secrets, a.text("key"))
	return a.text("id")
}

func (w *auditWorld) vaultSecret(name string) string {
	w.t.Helper()
	return w.ask(201, "POST", "/services/vault", fmt.Sprintf(`{"name":%q,"value":"some-vault-value"}`, name)).text("id")
}

func (w *auditWorld) newTenant() string {
	w.t.Helper()
	return w.ask(201, "POST", "/services/tenants", `{"name":"Acme"}`, "Authorization: Bearer "+operatorKey).text("id")
}

func (w *auditWorld) operatorKey() string {
	w.t.Helper()
	a := w.ask(201, "POST", "/services/operator-keys", `{"name":"Ops"}`, "Authorization: Bearer "+operatorKey)
	w.secrets = append(w.secrets, a.text("key"))
	return a.text("id")
}

// user is a user of that address, with the password "the password of it".
func (w *auditWorld) user(email string) string {
	w.t.Helper()
	return w.ask(201, "POST", "/services/users", fmt.Sprintf(`{"email":%q,"role":"Developer","password":"the password of it"}`, email)).text("id")
}

func (w *auditWorld) session() string {
	w.t.Helper()
	token := w.ask(200, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, testEmail, testPassword), "X-None: 1").text("token")
	w.secrets = append(w.secrets, token)
	return token
}

// paused is a webhook that is paused, with a delivery that waits.
func (w *auditWorld) paused() (webhook, delivery string) {
	w.t.Helper()
	webhook = w.webhook()
	w.ask(200, "PATCH", "/services/webhooks/"+webhook, fmt.Sprintf(`{"pausedUntil":%q}`, inAnHour()))
	w.ask(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	return webhook, w.ask(200, "GET", "/services/webhooks/"+webhook+"/deliveries", "").text("data.0.id")
}

// noEntry are the operations that change something and leave no entry, and why.
func noEntry() map[string]string {
	return map[string]string{
		"publish":      "an event is on record itself, and there are too many",
		"publishBatch": "as publish",
		"testWebhook":  "a test is an event with a delivery, and on record as such",
	}
}

// recipe is how an operation succeeds: with which body, on what.
type recipe struct {
	action string
	actor  string // its kind; "" is apiKey
	// make makes what the operation is about, and answers the id for its path, the body
	// and the credentials.
	make func(w *auditWorld) (object, body string, headers []string)
}

func recipes() map[string]recipe {
	operator := []string{"Authorization: Bearer " + operatorKey}
	on := func(thing func(*auditWorld) string, body string) func(*auditWorld) (string, string, []string) {
		return func(w *auditWorld) (string, string, []string) { return thing(w), body, nil }
	}
	waiting := func(w *auditWorld) (string, string, []string) {
		_, delivery := w.paused()
		return delivery, "", nil
	}
	held := func(w *auditWorld) (string, string, []string) {
		webhook, _ := w.paused()
		return webhook, "", nil
	}
	return map[string]recipe{
		"login": {"session.started", "user", func(*auditWorld) (string, string, []string) {
			return "", fmt.Sprintf(`{"email":%q,"password":%q}`, testEmail, testPassword), []string{"X-None: 1"}
		}},
		"logout": {"session.ended", "user", func(w *auditWorld) (string, string, []string) {
			return "", "", []string{"Authorization: Bearer " + w.session()}
		}},
		"logoutAll": {"user.signed_out", "user", func(w *auditWorld) (string, string, []string) {
			return "", "", []string{"Authorization: Bearer " + w.session()}
		}},
		"changePassword": {"user.updated", "user", func(w *auditWorld) (string, string, []string) {
			w.user("own@example.com")
			w.secrets = append(w.secrets, "the password of it", "another password")
			token := w.ask(200, "POST", "/services/auth/login", `{"email":"own@example.com","password":"the password of it"}`, "X-None: 1").text("token")
			return "", `{"currentPassword":"the password of it","newPassword":"another password"}`, []string{"Authorization: Bearer " + token}
		}},
		"createUser": {"user.created", "", func(*auditWorld) (string, string, []string) {
			return "", `{"email":"new@example.com","role":"Viewer"}`, nil
		}},
		"updateUser": {"user.updated", "", on(func(w *auditWorld) string { return w.user("changed@example.com") }, `{"role":"Viewer","password":"another password"}`)},
		"deleteUser": {"user.deleted", "", on(func(w *auditWorld) string { return w.user("deleted@example.com") }, "")},
		"createKey":  {"apiKey.created", "", on(func(*auditWorld) string { return "" }, `{"name":"CI"}`)},
		"updateKey":  {"apiKey.updated", "", on((*auditWorld).key, `{"name":"CI 2"}`)},
		"deleteKey":  {"apiKey.deleted", "", on((*auditWorld).key, "")},
		"signOutUser": {"user.signed_out", "", on(func(w *auditWorld) string {
			id := w.user("signed-out@example.com")
			w.ask(200, "POST", "/services/auth/login", `{"email":"signed-out@example.com","password":"the password of it"}`, "X-None: 1")
			return id
		}, "")},
		"createOperatorKey": {"operatorKey.created", "operator", func(*auditWorld) (string, string, []string) { return "", `{"name":"Ops"}`, operator }},
		"updateOperatorKey": {"operatorKey.updated", "operator", func(w *auditWorld) (string, string, []string) { return w.operatorKey(), `{"name":"Ops 2"}`, operator }},
		"deleteOperatorKey": {"operatorKey.deleted", "operator", func(w *auditWorld) (string, string, []string) { return w.operatorKey(), "", operator }},
		"createTenant":      {"tenant.created", "operator", func(*auditWorld) (string, string, []string) { return "", `{"name":"Acme"}`, operator }},
		"updateTenant":      {"tenant.updated", "operator", func(w *auditWorld) (string, string, []string) { return w.newTenant(), `{"name":"Acme Inc."}`, operator }},
		"deleteTenant":      {"tenant.deleted", "operator", func(w *auditWorld) (string, string, []string) { return w.newTenant(), "", operator }},
		"createWebhook": {"webhook.created", "", func(w *auditWorld) (string, string, []string) {
			w.secrets = append(w.secrets, "given-webhook-secret", "given-header-value", "given-tag-value", "given-token")
			return "", fmt.Sprintf(`{"name":"Orders","url":%q,"events":["order.*"],"secret":"given-webhook-secret","headers":{"Authorization":"given-header-value","X-Tag":"given-tag-value"}}`,
				w.receiver.URL+"/?token=given-token"), nil
		}},
		"updateWebhook": {"webhook.updated", "", func(w *auditWorld) (string, string, []string) {
			w.secrets = append(w.secrets, "another-webhook-secret", "another-header-value", "another-token")
			return w.webhook(), fmt.Sprintf(`{"name":"x","url":%q,"secret":"another-webhook-secret","headers":{"X-Tag":"another-header-value"}}`, w.receiver.URL+"/?token=another-token"), nil
		}},
		"createVaultSecret": {"vaultSecret.created", "", func(w *auditWorld) (string, string, []string) {
			w.secrets = append(w.secrets, "given-vault-value")
			return "", `{"name":"GIVEN","value":"given-vault-value"}`, nil
		}},
		"updateVaultSecret": {"vaultSecret.updated", "", func(w *auditWorld) (string, string, []string) {
			w.secrets = append(w.secrets, "another-vault-value")
			return w.vaultSecret("CHANGED"), `{"value":"another-vault-value"}`, nil
		}},
		"deleteVaultSecret": {"vaultSecret.deleted", "", on(func(w *auditWorld) string { return w.vaultSecret("DELETED") }, "")},
		"createSecretKey":   {"secretKey.created", "operator", func(*auditWorld) (string, string, []string) { return "", "", operator }},
		"rekey":             {"secretKey.rekeyed", "operator", func(*auditWorld) (string, string, []string) { return "", "", operator }},
		"rotateSecret":      {"webhook.secret_rotated", "", on((*auditWorld).webhook, `{"graceSeconds":60}`)},
		"deleteWebhook":     {"webhook.deleted", "", on((*auditWorld).webhook, "")},
		"resumeWebhook":     {"webhook.resumed", "", held},
		"discardQueue":      {"webhook.queue_discarded", "", held},
		"retryAllFailed": {"webhook.failed_retried", "", func(w *auditWorld) (string, string, []string) {
			webhook, delivery := w.paused()
			w.ask(200, "POST", "/services/webhooks/deliveries/"+delivery+"/cancel", "")
			return webhook, "", nil
		}},
		"retryDelivery":  {"delivery.retried", "", waiting},
		"cancelDelivery": {"delivery.canceled", "", waiting},
	}
}

type auditedEntry struct {
	Action    string
	Actor     struct{ Kind, ID string }
	Object    struct{ ID string }
	Address   string
	RequestID string
}

// exported is a log, whole: the lines of its export, and their text.
func (w *auditWorld) exported(headers ...string) (entries []auditedEntry, text string) {
	w.t.Helper()
	text = string(w.ask(200, "GET", "/services/audit/export", "", append([]string{"Authorization: Bearer " + operatorKey}, headers...)...).body)
	for line := range strings.Lines(text) {
		var e auditedEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			w.t.Fatal(err)
		}
		entries = append(entries, e)
	}
	return entries, text
}

// TestEveryChangeIsAudited does every operation of the document that changes
// something, on both stores: each leaves exactly one entry, that names who did it, to
// what and from where; one that is refused leaves none. No secret is in any entry.
func TestEveryChangeIsAudited(t *testing.T) {
	t.Run("embedded", func(t *testing.T) { everyChange(t, nil) })
	t.Run("PostgreSQL", func(t *testing.T) {
		everyChange(t, func(s *settings) { s.DatabaseURL, s.SecretKey = databases.Database(t), strings.Repeat("5a", 32) })
	})
}

func everyChange(t *testing.T, change func(*settings)) {
	v := startServer(t, change)
	w := &auditWorld{t: t, url: v.url(), receiver: newArrivals(t, nil), secrets: []string{testKey, operatorKey, testPassword}}
	w.tenant = w.ask(200, "GET", "/services/auth/me", "").text("tenant.id")
	wanted := map[string]auditedEntry{} // by the request's id
	for _, op := range operationsOf(t) {
		if op.method == http.MethodGet || noEntry()[op.id] != "" {
			continue
		}
		r, ok := recipes()[op.id]
		if !ok {
			t.Errorf("%s changes something: note it in the audit log, and say here how it succeeds (or in noEntry why it leaves none)", op)
			continue
		}
		object, body, headers := r.make(w)
		if headers == nil {
			headers = []string{"Authorization: Bearer " + testKey}
		}
		path := op.path
		if i := strings.Index(path, "{"); i >= 0 {
			path = path[:i] + object + path[strings.Index(path, "}")+1:]
		}
		refused := ask(t, w.url, op.method, path, body, "Authorization: Bearer nobody", "X-Request-Id: refused-"+op.id)
		if op.id != "login" && refused.status != http.StatusUnauthorized {
			t.Errorf("%s by nobody: %d", op, refused.status)
		}
		a := ask(t, w.url, op.method, path, body, append(headers, "X-Request-Id: did-"+op.id)...)
		if op.id == "createSecretKey" && change != nil {
			// The others on the database must have it first, so it is refused: that leaves none.
			if a.status != http.StatusConflict {
				t.Errorf("%s: %d %s", op, a.status, a.body)
			}
			continue
		}
		if a.status >= 300 {
			t.Errorf("%s: %d %s", op, a.status, a.body)
			continue
		}
		if object == "" {
			object = a.text("id")
		}
		w.secrets = append(w.secrets, a.text("key"), a.text("secret"), a.text("token"), a.text("password"))
		want := auditedEntry{Action: r.action, Address: "127.0.0.1", RequestID: "did-" + op.id}
		want.Actor.Kind, want.Object.ID = r.actor, object
		if r.actor == "" {
			want.Actor.Kind = "apiKey"
		}
		wanted[want.RequestID] = want
	}
	entries, text := w.exported("X-Hypha-Tenant: " + w.tenant)
	operators, more := w.exported()
	for _, e := range append(entries, operators...) {
		if id, ok := strings.CutPrefix(e.RequestID, "refused-"); ok && id != "login" {
			t.Errorf("what was refused is in the log: %+v", e)
		}
		if !strings.HasPrefix(e.RequestID, "did-") {
			continue
		}
		want, ok := wanted[e.RequestID]
		if !ok {
			t.Errorf("two entries of one request, or of none: %+v", e)
			continue
		}
		delete(wanted, e.RequestID)
		if e.Actor.ID == "" {
			t.Errorf("%s: the actor has no id", e.RequestID)
		}
		if want.Object.ID == "" { // of a session there is no telling
			want.Object.ID = e.Object.ID
		}
		want.Actor.ID = e.Actor.ID
		if e != want {
			t.Errorf("%s: the log has %+v, want %+v", e.RequestID, e, want)
		}
	}
	for request := range wanted {
		t.Errorf("%s left no entry", request)
	}
	for _, secret := range w.secrets {
		if secret != "" && strings.Contains(text+more, secret) {
			t.Errorf("the log holds the secret %q", secret)
		}
	}
}

// TestSystemIsAudited looks for what the server does by itself.
func TestSystemIsAudited(t *testing.T) {
	receiver := newArrivals(t, func(arrived) int { return http.StatusGone })
	v := startServer(t, nil)
	w := &auditWorld{t: t, url: v.url(), receiver: receiver}
	webhook := w.webhook()
	w.ask(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	eventually(t, "the log has it", func() bool {
		a := w.ask(200, "GET", "/services/audit?actor=system&object="+webhook, "")
		if a.text("data.0.action") != "webhook.disabled" {
			return false
		}
		if got := fmt.Sprint(a.get("data.0.changes")); got != "[map[field:disabledReason from:<nil> to:gone] map[field:enabled from:true to:false]]" || a.get("data.0.address") != nil {
			t.Errorf("the entry is %s", a.body)
		}
		return true
	})
}

func (c *contractTest) auditLog(t *testing.T) {
	_, tr := c.start(t, nil)
	made := tr.quietly(201, "POST", "/services/webhooks", `{"name":"Orders","url":"https://example.com/in?token=x","events":["order.*"]}`)
	one := "/services/webhooks/" + made.text("id")
	tr.quietly(200, "PATCH", one, `{"enabled":false,"secret":"your-webhook-secret","headers":{"X-Tag":"blue"}}`)
	tr.section("Who changed what, newest first. Of secrets, the names of fields alone")
	a := tr.ask(200, "GET", "/services/audit?limit=2", "")
	if a.get("data.1.secretShown") != true || strings.Contains(string(a.body), "your-webhook-secret") {
		t.Errorf("the log: %s", a.body)
	}
	tr.section("What changes nothing, and what is refused, leaves no entry")
	tr.ask(200, "PATCH", one, `{"enabled":false}`)
	tr.ask(400, "PATCH", one, `{"enabled":1}`)
	if again := tr.quietly(200, "GET", "/services/audit?limit=2", ""); string(again.body) != string(a.body) {
		t.Errorf("the log: %s", again.body)
	}
	tr.section("By actor, action, object and time")
	tr.ask(200, "GET", "/services/audit?object="+made.text("id")+"&action=webhook.created&since=2001-01-01T00:00:00Z", "")
	tr.ask(400, "GET", "/services/audit?action=webhook.exploded&actor=a.b", "")
	tr.section("An operator's key sees the operators' own log, and a tenant's with X-Hypha-Tenant")
	tr.ask(200, "GET", "/services/audit", "", "Authorization: Bearer "+operatorKey)
	tr.section("All of it, as JSON lines, oldest first")
	lines := tr.ask(200, "GET", "/services/audit/export?until=2099-01-01T00:00:00Z", "")
	if n := strings.Count(string(lines.body), "\n"); n != 4 || lines.header.Get("Content-Type") != "application/x-ndjson" {
		t.Errorf("%d lines of %s", n, lines.header.Get("Content-Type"))
	}
	tr.save("audit.txt", "The audit log")
}
