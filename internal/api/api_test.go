package api_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
)

func TestStory(t *testing.T) {
	s := newServer(t, nil)
	created := s.must(201, "POST", "/services/webhooks", hookBody)
	webhook := created.text("id")
	if !strings.HasPrefix(created.text("secret"), "whsec_") {
		t.Errorf("the secret that was made is not shown: %s", created.body)
	}
	if got := created.text("headers.X-Api-Key"); got != "****" {
		t.Errorf("X-Api-Key = %q, want a mask", got)
	}
	one := "/services/webhooks/" + webhook
	if got := s.must(200, "GET", one, ""); strings.Contains(got.body, created.text("secret")) || got.get("secret") != nil {
		t.Errorf("the secret is shown again: %s", got.body)
	}
	s.must(200, "PATCH", one, `{"name":"Renamed <b>","pausedUntil":null}`)
	if got := s.must(200, "GET", "/services/webhooks", ""); got.text("data.0.name") != "Renamed <b>" || !strings.Contains(got.body, "<b>") {
		t.Errorf("list = %s", got.body)
	}

	event := s.must(202, "POST", "/services/events", `{"type":"order.paid", "data": {"n":12345678901234567890.5,  "m":1.0} , "metadata":{"a":"\u00e9"}}`)
	if event.get("deliveries") != 1.0 {
		t.Errorf("published = %s", event.body)
	}
	s.must(202, "POST", "/services/events/batch", `{"events":[{"type":"a.b","data":1},{"type":"order.x","data":[],"id":"mine"}]}`)
	if again := s.must(202, "POST", "/services/events", `{"type":"order.x","data":[],"id":"mine"}`); again.get("duplicate") != true {
		t.Errorf("the same id again = %s", again.body)
	}
	if other := s.must(409, "POST", "/services/events", `{"type":"order.x","data":[1],"id":"mine"}`); other.text("error.code") != "CONFLICT" {
		t.Errorf("the same id with another body = %s", other.body)
	}

	shown := s.must(200, "GET", "/services/events/"+event.text("id"), "")
	if !strings.Contains(shown.body, `"n":12345678901234567890.5`) || !strings.Contains(shown.body, `"\u00e9"`) {
		t.Errorf("data is not as it was published: %s", shown.body)
	}
	if got := shown.text("deliveries.0.outcome"); got != "pending" {
		t.Errorf("outcome = %q\n%s", got, shown.body)
	}
	delivery := shown.text("deliveries.0.deliveryId")
	s.must(200, "GET", "/services/events?type=order.paid", "")
	s.must(200, "GET", one+"/deliveries?status=PENDING&eventId=mine", "")
	s.must(200, "GET", "/services/webhooks/deliveries?eventType=order.paid", "")

	s.fail(delivery)
	detail := s.must(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
	for path, want := range map[string]any{
		"status": "FAILED", "attempts": 1.0, "error.kind": "status",
		"attemptList.0.timings.connect":                0.25,
		"attemptList.0.response.statusCode":            500.0,
		"attemptList.0.response.bodyBase64":            "b2gg/25v",
		"attemptList.0.response.body":                  nil,
		"attemptList.0.request.url":                    "https://example.com/in",
		"attemptList.0.request.headers.X-Api-Key":      "****",
		"attemptList.0.request.headers.X-Plinqx-Event": "order.paid",
		"attemptList.0.request.headers.Webhook-Id":     event.text("id"),
		"attemptList.0.response.headers.X-Server":      "a, b\ufffd",
		"event.data.m": 1.0,
		"attemptList.0.request.headers.X-Plinqx-Delivery":   delivery,
		"attemptList.0.request.headers.User-Agent":          "Hypha-Webhooks/test",
		"attemptList.0.request.bodyTruncated":               false,
		"lastAttempt.durationMs":                            1.0,
		"nextAttemptAt":                                     nil,
		"attemptList.0.request.headers.Content-Type":        "application/json",
		"attemptList.0.request.headers.X-Plinqx-Signature.": nil,
	} {
		if got := detail.get(path); got != want {
			t.Errorf("%s = %v, want %v", path, got, want)
		}
	}
	failed := s.must(200, "GET", "/services/webhooks/deliveries/failed", "")
	if failed.get("total") != 1.0 || failed.get("limit") != 50.0 || failed.text("data.0.id") != delivery {
		t.Errorf("failed = %s", failed.body)
	}
	stats := s.must(200, "GET", "/services/webhooks/stats?webhookId="+webhook, "")
	if stats.get("failedDeliveries") != 1.0 || stats.get("totalDeliveries") != 1.0 || stats.get("pendingDeliveries") != 1.0 {
		t.Errorf("stats = %s", stats.body)
	}
	if all := s.must(202, "POST", one+"/deliveries/retry-all-failed", ""); all.get("retried") != 1.0 {
		t.Errorf("retry-all-failed = %s", all.body)
	}
	s.must(202, "POST", "/services/webhooks/deliveries/"+delivery+"/retry", "{}")
	s.must(200, "POST", "/services/webhooks/deliveries/"+delivery+"/cancel", "")
	s.must(409, "POST", "/services/webhooks/deliveries/"+delivery+"/cancel", "")
	if test := s.must(200, "POST", one+"/test", ""); test.text("trigger") != "test" || test.text("deliveryId") == "" {
		t.Errorf("test = %s", test.body)
	}
	s.must(200, "POST", one+"/resume", "")
	s.must(202, "POST", one+"/discard-queue", "")
	s.must(204, "DELETE", one, "")
	s.must(404, "GET", one, "")
	if kept := s.must(200, "GET", one+"/deliveries", ""); kept.get("data.0.id") == nil {
		t.Errorf("a deleted webhook's history is gone: %s", kept.body)
	}
}

func TestEventOutcomesSayWhy(t *testing.T) {
	s := newServer(t, nil)
	add := func(name, events string) string {
		return s.must(201, "POST", "/services/webhooks", `{"name":"`+name+`","url":"https://example.com/in","events":["`+events+`"]}`).text("id")
	}
	wants, other, off, changed := add("wants", "a.*"), add("other", "b.c"), add("off", "a.b"), add("changed", "x.y")
	s.must(200, "PATCH", "/services/webhooks/"+off, `{"enabled":false}`)
	event := s.must(202, "POST", "/services/events", `{"type":"a.b","data":{}}`).text("id")
	// The event's time is that of its id, by the real clock; the server's is behind it.
	s.ticks.Add(2 * time.Minute.Milliseconds())
	later := add("later", "a.b")
	s.must(200, "PATCH", "/services/webhooks/"+off, `{"enabled":true}`)
	s.must(200, "PATCH", "/services/webhooks/"+changed, `{"events":["a.b"]}`)

	got := map[string]string{}
	shown := s.must(200, "GET", "/services/events/"+event, "")
	for _, d := range shown.get("deliveries").([]any) {
		m := d.(map[string]any)
		got[m["webhookId"].(string)] = m["outcome"].(string)
	}
	for id, want := range map[string]string{wants: "pending", other: "not_subscribed", off: "disabled", changed: "not_subscribed", later: "created_later"} {
		if got[id] != want {
			t.Errorf("outcome = %q, want %q\n%s", got[id], want, shown.body)
		}
	}
}

func TestRouting(t *testing.T) {
	s := newServer(t, nil)
	webhook := s.newWebhook()
	for _, tc := range []struct {
		method, target string
		status         int
		allow          string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/services", 404, ""},
		{"GET", "/services/nothing", 404, ""},
		{"GET", "/services/webhooks/", 404, ""},
		{"GET", "/services//webhooks", 404, ""},
		{"GET", "/Services/webhooks", 404, ""},
		{"GET", "/services/webhooks/1", 404, ""},
		{"GET", "/services/webhooks/null", 404, ""},
		{"GET", "/services/webhooks/%00", 404, ""},
		{"GET", "/services/webhooks/%0d%0aX-Evil:1", 404, ""},
		{"GET", "/services/webhooks/%2e%2e%2f", 404, ""},
		{"GET", "/services/webhooks/..;/admin", 404, ""},
		{"GET", "/services/webhooks/%252e%252e%252f", 404, ""},
		{"GET", "/services/webhooks/" + webhook + "%20", 404, ""},
		{"GET", "/services/webhooks/" + webhook + "%00.json", 404, ""},
		{"GET", "/services/webhooks/" + webhook + "/", 404, ""},
		{"GET", "/services/webhooks/" + webhook + "%2Fdeliveries", 404, ""},
		{"GET", "/services/webhooks/" + strings.ToUpper(webhook), 404, ""},
		{"GET", "/services/webhooks/" + webhook + "/secret", 404, ""},
		{"GET", "/services/webhooks/" + strings.Repeat("a", 5000), 404, ""},
		{"GET", "/services/webhooks/deliveries/wh_1", 404, ""},
		{"GET", "/services/events/a.b", 404, ""},
		{"GET", "/services/events/unknown", 404, ""},
		{"DELETE", "/services/webhooks/stats", 404, ""},
		{"HEAD", "/services/webhooks", 200, ""},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/metrics", 200, ""},
		{"GET", "/readyz", 200, ""},
		{"GET", "/services/openapi.yaml", 200, ""},
		{"DELETE", "/services/webhooks", 405, "GET, HEAD, POST"},
		{"OPTIONS", "/services/webhooks", 405, "GET, HEAD, POST"},
		{"TRACE", "/services/webhooks", 405, "GET, HEAD, POST"},
		{"CONNECT", "/services/webhooks", 405, "GET, HEAD, POST"},
		{"BREW", "/services/webhooks", 405, "GET, HEAD, POST"},
		{"BREW", "/nothing", 404, ""},
		{"GET", "/services/auth/login", 405, "POST"},
		{"PUT", "/services/webhooks/" + webhook, 405, "GET, HEAD, PATCH, DELETE"},
		{"GET", "/services/webhooks/" + webhook + "/test", 405, "POST"},
	} {
		t.Run(tc.method+" "+tc.target[:min(60, len(tc.target))], func(t *testing.T) {
			req := httptest.NewRequest(http.MethodGet, tc.target, nil)
			req.Method = tc.method
			req.Header.Set("Authorization", "Bearer "+adminKey)
			a := s.send(req, "")
			if a.status != tc.status || a.header.Get("Allow") != tc.allow {
				t.Errorf("= %d, Allow %q, want %d, %q\n%s", a.status, a.header.Get("Allow"), tc.status, tc.allow, a.body)
			}
			if a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("X-Request-Id") == "" || a.header.Get("Cache-Control") != "no-store" ||
				a.header.Get("Referrer-Policy") != "no-referrer" || a.header.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" {
				t.Errorf("headers = %v", a.header)
			}
			if tc.status >= 400 && (a.header.Get("Content-Type") != "application/json" || a.text("error.code") == "") {
				t.Errorf("the refusal is not the contract's: %v %s", a.header, a.body)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	s := newServer(t, nil)
	read := s.must(201, "POST", "/services/api-keys", `{"name":"reader","scopes":["webhooks:read"]}`)
	other, otherKey := s.newTenant()
	login := s.must(200, "POST", "/services/auth/login", `{"email":" ADMIN@example.com","password":"`+password+`"}`, "Authorization: ")
	session := "Authorization: Bearer " + login.text("token")
	operator := "Authorization: Bearer " + operatorKey
	for _, tc := range []struct {
		name, method, target, body string
		headers                    []string
		status                     int
	}{
		{"none", "GET", "/services/webhooks", "", []string{"Authorization: "}, 401},
		{"another scheme", "GET", "/services/webhooks", "", []string{"Authorization: Basic " + adminKey}, 401},
		{"scheme in small letters", "GET", "/services/webhooks", "", []string{"Authorization: bearer " + adminKey}, 200},
		{"no token", "GET", "/services/webhooks", "", []string{"Authorization: Bearer  "}, 401},
		{"two in one", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + adminKey + ", Bearer wrong"}, 401},
		{"one character off", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + adminKey[:len(adminKey)-1] + "x"}, 401},
		{"another case", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + strings.ToUpper(adminKey)}, 401},
		{"in the query", "GET", "/services/webhooks?access_token=" + adminKey, "", []string{"Authorization: "}, 401},
		{"in a cookie", "GET", "/services/webhooks", "", []string{"Authorization: ", "Cookie: session=" + login.text("token")}, 401},
		{"before the body", "POST", "/services/webhooks", "not JSON", []string{"Authorization: "}, 401},
		{"read only reads", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + read.text("key")}, 200},
		{"read only writes", "POST", "/services/webhooks", hookBody, []string{"Authorization: Bearer " + read.text("key")}, 403},
		{"read only publishes", "POST", "/services/events", `{"type":"a.b","data":1}`, []string{"Authorization: Bearer " + read.text("key")}, 403},
		{"read only makes keys", "POST", "/services/api-keys", `{"name":"x"}`, []string{"Authorization: Bearer " + read.text("key")}, 403},
		{"a session", "GET", "/services/auth/me", "", []string{session}, 200},
		{"a key", "GET", "/services/auth/me", "", nil, 200},
		{"a tenant's key at the tenants", "GET", "/services/tenants", "", nil, 403},
		{"one's own tenant", "GET", "/services/webhooks", "", []string{"X-Hypha-Tenant: " + s.tenant.String()}, 200},
		{"another tenant", "GET", "/services/webhooks", "", []string{"X-Hypha-Tenant: " + other}, 403},
		{"operator at the tenants", "GET", "/services/tenants", "", []string{operator}, 200},
		{"operator for nobody", "GET", "/services/webhooks", "", []string{operator}, 400},
		{"operator for a tenant", "POST", "/services/webhooks", hookBody, []string{operator, "X-Hypha-Tenant: " + other}, 201},
		{"operator for no tenant", "GET", "/services/webhooks", "", []string{operator, "X-Hypha-Tenant: ten_1"}, 404},
		{"operator has no session", "POST", "/services/auth/logout", "", []string{operator, "X-Hypha-Tenant: " + other}, 409},
		{"wrong password", "POST", "/services/auth/login", `{"email":"admin@example.com","password":"wrong"}`, []string{"Authorization: "}, 401},
		{"unknown user", "POST", "/services/auth/login", `{"email":"who@example.com","password":"wrong"}`, []string{"Authorization: "}, 401},
		{"sign out", "POST", "/services/auth/logout", "", []string{session}, 204},
		{"signed out", "GET", "/services/auth/me", "", []string{session}, 401},
		{"revoke", "DELETE", "/services/api-keys/" + read.text("id"), "", nil, 204},
		{"revoked", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + read.text("key")}, 401},
		{"the other's key", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + otherKey}, 200},
		{"the other goes", "DELETE", "/services/tenants/" + other, "", []string{operator}, 204},
		{"with its keys", "GET", "/services/webhooks", "", []string{"Authorization: Bearer " + otherKey}, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.ask(tc.method, tc.target, tc.body, tc.headers...)
			if a.status != tc.status {
				t.Errorf("= %d, want %d\n%s", a.status, tc.status, a.body)
			}
			if challenge := a.header.Get("WWW-Authenticate"); (challenge == "Bearer") != (tc.status == 401) {
				t.Errorf("WWW-Authenticate = %q", challenge)
			}
		})
	}
	if strings.Contains(s.log.String(), adminKey) {
		t.Error("the key is in the log")
	}
}

func TestAnotherTenantsThingsAreUnknown(t *testing.T) {
	s := newServer(t, nil)
	webhook := s.newWebhook()
	event := s.must(202, "POST", "/services/events", `{"type":"order.a","data":1}`).text("id")
	delivery := s.must(200, "GET", "/services/webhooks/deliveries", "").text("data.0.id")
	key := s.must(200, "GET", "/services/api-keys", "").text("data.0.id")
	_, stranger := s.newTenant()
	unknown := strings.NewReplacer(
		webhook, "wh_01jd6c3v7genxa5fhm2rj8wq4t", delivery, "dlv_01jd6c3v7genxa5fhm2rj8wq4t",
		event, "evt_01jd6c3v7genxa5fhm2rj8wq4t", key, "key_01jd6c3v7genxa5fhm2rj8wq4t")
	for _, target := range []string{
		"GET /services/webhooks/" + webhook,
		"PATCH /services/webhooks/" + webhook,
		"DELETE /services/webhooks/" + webhook,
		"POST /services/webhooks/" + webhook + "/test",
		"POST /services/webhooks/" + webhook + "/rotate-secret",
		"POST /services/webhooks/" + webhook + "/resume",
		"POST /services/webhooks/" + webhook + "/discard-queue",
		"GET /services/webhooks/" + webhook + "/deliveries",
		"POST /services/webhooks/" + webhook + "/deliveries/retry-all-failed",
		"GET /services/webhooks/deliveries/" + delivery,
		"POST /services/webhooks/deliveries/" + delivery + "/retry",
		"POST /services/webhooks/deliveries/" + delivery + "/cancel",
		"GET /services/events/" + event,
		"GET /services/api-keys/" + key,
		"PATCH /services/api-keys/" + key,
		"DELETE /services/api-keys/" + key,
	} {
		method, path, _ := strings.Cut(target, " ")
		body := ""
		if method == "PATCH" {
			body = `{"name":"x"}`
		}
		theirs := s.ask(method, path, body, "Authorization: Bearer "+stranger)
		nobodys := s.ask(method, unknown.Replace(path), body, "Authorization: Bearer "+stranger)
		malformed := s.ask(method, strings.NewReplacer(webhook, "x", delivery, "x", event, "x.y", key, "x").Replace(path), body, "Authorization: Bearer "+stranger)
		if theirs.status != 404 || theirs.body != nobodys.body || theirs.body != malformed.body {
			t.Errorf("%s = %d %s\nunknown: %s\nmalformed: %s", target, theirs.status, theirs.body, nobodys.body, malformed.body)
		}
	}
}

func TestPanicHarmsItsRequestAlone(t *testing.T) {
	panicked := 0
	s := newServer(t, func(o *api.Options) { o.Replays, o.Panicked = nil, func() { panicked++ } })
	webhook := s.newWebhook()
	a := s.must(500, "POST", "/services/webhooks/"+webhook+"/discard-queue", "", "X-Request-Id: mine-1")
	if strings.TrimSpace(a.body) != `{"error":{"message":"Internal error","code":"INTERNAL_ERROR"}}` || a.header.Get("X-Request-Id") != "mine-1" {
		t.Errorf("= %v %s", a.header, a.body)
	}
	log := s.log.String()
	if strings.Count(log, "panic: ") != 1 || !strings.Contains(log, "level=ERROR msg=request request_id=mine-1") {
		t.Errorf("log = %s", log)
	}
	s.must(200, "GET", "/services/webhooks", "")
	if panicked != 1 {
		t.Errorf("counted %d", panicked)
	}
	if got := s.must(200, "GET", "/services/webhooks", "", "X-Request-Id: a b").header.Get("X-Request-Id"); got == "a b" || got == "" {
		t.Errorf("X-Request-Id = %q, want one of the server's", got)
	}
}
