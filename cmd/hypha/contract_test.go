package main

import (
	"cmp"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/api/openapitest"
)

// contractTest runs the topics of the contract, and knows which operations they
// used.
type contractTest struct {
	check   *openapitest.Validator
	covered map[string]bool
}

// start runs a server for one topic, and opens its transcript.
func (c *contractTest) start(t *testing.T, change func(*settings)) (*server, *transcript) {
	t.Helper()
	v := startServer(t, func(s *settings) {
		s.RetrySchedule = []time.Duration{100 * time.Millisecond, 100 * time.Millisecond}
		if change != nil {
			change(s)
		}
	})
	return v, &transcript{
		t: t, check: c.check, covered: c.covered, base: v.url(), key: testKey,
		secrets: map[string]string{testKey: "<API key>", operatorKey: "<operator's key>"},
	}
}

// hookOf is the body of a create.
func hookOf(url string, events ...string) string {
	return fmt.Sprintf(`{"name":"Orders","url":%q,"events":["%s"]}`, url, strings.Join(events, `","`))
}

// inAnHour is a time as the API writes them.
func inAnHour() string { return time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000Z") }

// settled waits until a delivery has come to a status, and answers its id.
func settled(tr *transcript, webhook, status string, attempts int) string {
	tr.t.Helper()
	var a told
	eventually(tr.t, fmt.Sprintf("a delivery of %s is %s after %d attempts", webhook, status, attempts), func() bool {
		a = tr.quietly(200, "GET", "/services/webhooks/"+webhook+"/deliveries?limit=1", "")
		return a.text("data.0.status") == status && a.get("data.0.attempts") == float64(attempts)
	})
	return a.text("data.0.id")
}

// receiver answers as a function says.
func receiver(t *testing.T, answer http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s
}

// TestContract goes through the contract, topic by topic, on real servers that
// deliver to real receivers. What is said is in testdata/contract.
func TestContract(t *testing.T) {
	c := &contractTest{check: openapitest.New(t, api.OpenAPI()), covered: map[string]bool{}}
	for _, topic := range []struct {
		name string
		run  func(*contractTest, *testing.T)
	}{
		{"seed", (*contractTest).seed}, {"basics", (*contractTest).basics}, {"errors", (*contractTest).errors},
		{"credentials", (*contractTest).credentials}, {"users", (*contractTest).users}, {"sessions", (*contractTest).sessions},
		{"provider", (*contractTest).provider},
		{"tenants", (*contractTest).tenants}, {"operator keys", (*contractTest).operatorKeys}, {"webhooks", (*contractTest).webhooks},
		{"rotation", (*contractTest).rotation}, {"vault", (*contractTest).vault}, {"secret keys", (*contractTest).secretKeys},
		{"holding back", (*contractTest).holdingBack}, {"events", (*contractTest).events}, {"idempotency", (*contractTest).idempotency},
		{"batches", (*contractTest).batches}, {"receiving", (*contractTest).receiving}, {"failures", (*contractTest).failures},
		{"deliveries", (*contractTest).deliveries}, {"retry all", (*contractTest).retryAll}, {"expiry", (*contractTest).expiry},
		{"audit log", (*contractTest).auditLog}, {"running", (*contractTest).running},
	} {
		t.Run(topic.name, func(t *testing.T) { topic.run(c, t) })
	}
	if t.Failed() {
		return // what was not reached is not missing
	}
	for _, op := range c.check.Operations() {
		if !c.covered[op] {
			t.Errorf("%s never succeeded in the contract test", op)
		}
	}
}

// seed runs the seed page's own example, and what it says of each endpoint.
func (c *contractTest) seed(t *testing.T) {
	_, tr := c.start(t, nil)
	login := tr.quietly(200, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, testEmail, testPassword), "Authorization: ")
	tr.key = login.text("token")
	tr.secrets[tr.key] = "YOUR_SESSION_TOKEN"

	tr.section("The page's own example works as it stands; the secret that was given is not shown")
	made := tr.ask(201, "POST", "/services/webhooks", `{
    "name": "My Webhook",
    "url": "https://example.com/webhook",
    "events": ["invocation.completed", "approval.requested"],
    "secret": "your-webhook-secret"
  }`)
	id := made.text("id")
	if made.get("secret") != nil || made.get("timeoutMs") != 30000.0 || made.get("enabled") != true {
		t.Errorf("made %s", made.body)
	}
	tr.section("List webhooks: without a limit, all of them")
	tr.ask(200, "GET", "/services/webhooks", "")
	tr.section("Get a webhook")
	if one := tr.ask(200, "GET", "/services/webhooks/"+id, ""); one.text("id") != id {
		t.Errorf("got %s", one.body)
	}
	tr.section("Update a webhook")
	tr.ask(200, "PATCH", "/services/webhooks/"+id, `{"name": "Renamed", "url": "https://example.com/other", "events": ["tool.error"], "enabled": false}`)
	tr.section("Statistics: the success rate is 0 with no attempts")
	tr.ask(200, "GET", "/services/webhooks/stats", "")
	tr.section("Failed deliveries: limit 50, offset 0")
	if failed := tr.ask(200, "GET", "/services/webhooks/deliveries/failed", ""); failed.get("limit") != 50.0 || failed.get("offset") != 0.0 {
		t.Errorf("failed: %s", failed.body)
	}
	tr.quietly(200, "PATCH", "/services/webhooks/"+id, `{"enabled": true}`)
	tr.section("Retry all that failed")
	tr.ask(202, "POST", "/services/webhooks/"+id+"/deliveries/retry-all-failed", "")
	tr.section("Delete a webhook")
	tr.ask(204, "DELETE", "/services/webhooks/"+id, "")
	tr.section("Errors have one format")
	tr.ask(404, "GET", "/services/webhooks/"+id, "")
	tr.save("seed.txt", "The Webhooks API page, word by word")
}

func (c *contractTest) basics(t *testing.T) {
	_, tr := c.start(t, nil)
	tr.section("One object answers bare. Every answer has Content-Type, X-Content-Type-Options and X-Request-Id")
	tr.ask(201, "POST", "/services/webhooks", hookOf("https://example.com/in", "order.*"))
	tr.section("A request id of the caller's is used")
	if a := tr.ask(200, "GET", "/services/webhooks", "", "X-Request-Id: mine-42"); a.header.Get("X-Request-Id") != "mine-42" {
		t.Errorf("X-Request-Id %q", a.header.Get("X-Request-Id"))
	}
	for _, refused := range []struct{ what, body string }{
		{"Unknown fields are refused", `{"name":"n","url":"https://example.com/in","events":["a.b"],"colour":"red"}`},
		{"Duplicate keys are refused", `{"name":"n","name":"m","url":"https://example.com/in","events":["a.b"]}`},
		{"Wrong-case keys are refused", `{"Name":"n","url":"https://example.com/in","events":["a.b"]}`},
		{"Trailing bytes are refused", `{"name":"n","url":"https://example.com/in","events":["a.b"]} x`},
		{"null where a value is needed is refused", `{"name":null,"url":"https://example.com/in","events":["a.b"]}`},
		{"All problems come at once, not the first one only", `{"url":"http://10.0.0.1/","events":["a b","x.*.y"],"secret":"short","timeoutMs":5,"headers":{"Host":"x"}}`},
	} {
		tr.section("%s", refused.what)
		tr.ask(400, "POST", "/services/webhooks", refused.body)
	}
	tr.section("Bodies must say application/json")
	tr.ask(415, "POST", "/services/webhooks", hookOf("https://example.com/in", "a.b"), "Content-Type: text/plain")
	tr.ask(415, "POST", "/services/webhooks", hookOf("https://example.com/in", "a.b"), "Content-Type: ")
	tr.quietly(201, "POST", "/services/webhooks", hookOf("https://example.com/two", "order.*"))
	tr.quietly(201, "POST", "/services/webhooks", hookOf("https://example.com/three", "order.*"))
	tr.section("The lists of the seed have total, limit and offset, and take a cursor as well")
	first := tr.ask(200, "GET", "/services/webhooks?limit=1&offset=1", "")
	tr.quietly(201, "POST", "/services/webhooks", hookOf("https://example.com/four", "order.*"))
	next := tr.ask(200, "GET", "/services/webhooks?limit=1&cursor="+first.text("nextCursor"), "")
	if next.text("data.0.url") != "https://example.com/three" {
		t.Errorf("the page after: %s", next.body)
	}
	tr.section("Every other list has data and nextCursor, and is stable while rows arrive")
	for i := range 3 {
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":"unwanted.event","data":%d,"id":"ev-%d"}`, i, i))
	}
	page := tr.ask(200, "GET", "/services/events?limit=2", "")
	tr.quietly(202, "POST", "/services/events", `{"type":"unwanted.event","data":9,"id":"ev-new"}`)
	rest := tr.ask(200, "GET", "/services/events?limit=2&cursor="+page.text("nextCursor"), "")
	if rest.text("data.0.id") != "ev-0" || rest.get("nextCursor") != nil {
		t.Errorf("the page after: %s", rest.body)
	}
	tr.section("A parameter that there is not is refused, and so is one out of its range")
	tr.ask(400, "GET", "/services/webhooks?limit=1001&page=2", "")
	tr.save("basics.txt", "Requests and answers")
}

func (c *contractTest) errors(t *testing.T) {
	receiver := newArrivals(t, nil)
	dir := t.TempDir()
	_, tr := c.start(t, func(s *settings) { s.Data, s.MaxQueued, s.MaxEventBytes = dir, 1, 1024 })
	id := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.*")).text("id")
	tr.quietly(200, "PATCH", "/services/webhooks/"+id, fmt.Sprintf(`{"pausedUntil":%q}`, inAnHour()))
	reader := tr.quietly(201, "POST", "/services/api-keys", `{"name":"reader","scopes":["webhooks:read"]}`).text("key")

	tr.section("VALIDATION_ERROR 400: the request is malformed; details says where")
	tr.ask(400, "POST", "/services/events", `{"type":"order paid","data":{}}`)
	tr.section("UNAUTHORIZED 401: no, wrong, revoked or expired credentials")
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: ")
	tr.ask(401, "GET", "/services/webhooks", "", "Authorization: Bearer wrong")
	tr.section("FORBIDDEN 403: known, but not allowed")
	tr.ask(403, "POST", "/services/webhooks", hookOf(receiver.URL, "a.b"), "Authorization: Bearer "+reader)
	tr.section("NOT_FOUND 404: no such thing in this tenant")
	tr.ask(404, "GET", "/services/webhooks/wh_01jd6c3v7genxa5fhm2rj8wq4t", "")
	tr.ask(404, "GET", "/services/nothing", "")
	tr.section("METHOD_NOT_ALLOWED 405: with Allow")
	tr.ask(405, "PUT", "/services/webhooks/"+id, "")
	tr.section("CONFLICT 409: an idempotency key used again with another body")
	tr.quietly(202, "POST", "/services/events", `{"type":"other.kind","data":1}`, "Idempotency-Key: k1")
	tr.ask(409, "POST", "/services/events", `{"type":"other.kind","data":2}`, "Idempotency-Key: k1")
	tr.section("PAYLOAD_TOO_LARGE 413: over the limit, which is 1 KiB here")
	tr.ask(413, "POST", "/services/events", `{"type":"order.paid","data":"`+strings.Repeat("a", 1024)+`"}`)
	tr.section("UNSUPPORTED_MEDIA_TYPE 415: not JSON")
	tr.ask(415, "POST", "/services/events", `type=order.paid`, "Content-Type: application/x-www-form-urlencoded")
	tr.section("RATE_LIMITED 429: with Retry-After; here the tenant may have one delivery queued")
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	if a := tr.ask(429, "POST", "/services/events", `{"type":"order.paid","data":2}`); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	tr.section("UNAVAILABLE 503: overloaded, draining or, here, the store can't be written; with Retry-After")
	write, err := storeFile(t, dir).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if a := tr.ask(503, "POST", "/services/events", `{"type":"other.kind","data":3}`, "Idempotency-Key: k3"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if _, err := write.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	if a := tr.quietly(202, "POST", "/services/events", `{"type":"other.kind","data":3}`, "Idempotency-Key: k3"); a.get("duplicate") != nil {
		t.Errorf("what was refused is there: %s", a.body)
	}

	dir = t.TempDir()
	t.Run("before", func(t *testing.T) {
		_, other := c.start(t, func(s *settings) { s.Data = dir })
		other.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.*"))
	})
	damageSecrets(t, dir)
	t.Run("damaged", func(t *testing.T) {
		_, other := c.start(t, func(s *settings) { s.Data = dir })
		other.section("INTERNAL_ERROR 500: never with internals in the message; here what is sealed is damaged")
		other.ask(500, "GET", "/services/webhooks", "")
		tr.out.WriteString(other.out.String())
	})
	tr.secrets[reader] = "<reader's key>"
	tr.save("errors.txt", "Errors")
}

// damageSecrets changes a bit of what is sealed of each webhook.
func damageSecrets(t *testing.T, dir string) {
	t.Helper()
	db := storeFile(t, dir)
	var sealed []byte
	if err := db.QueryRowContext(t.Context(), "SELECT sealed FROM webhooks").Scan(&sealed); err != nil {
		t.Fatal(err)
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := db.ExecContext(t.Context(), "UPDATE webhooks SET sealed = ?", sealed); err != nil {
		t.Fatal(err)
	}
}

// storeFile opens the file of a server's store, to do to it what no request can.
func storeFile(t *testing.T, dir string) *sql.DB {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("store files: %v, %v", files, err)
	}
	db, err := sql.Open("sqlite", "file:"+files[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func (c *contractTest) webhooks(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	tr.section("Create with every field; the server makes the secret and shows it once; credential-like headers are masked")
	made := tr.ask(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":"Orders","url":%q,"events":["order.paid","invoice.*"],
		"headers":{"Authorization":"Bearer theirs","X-Tag":"blue"},"timeoutMs":5000,"description":"To the ERP","enabled":true}`, receiver.URL+"/in"))
	id := made.text("id")
	if !strings.HasPrefix(made.text("secret"), "whsec_") || made.header.Get("Location") != "/services/webhooks/"+id {
		t.Errorf("made %v %s", made.header, made.body)
	}
	if one := tr.ask(200, "GET", "/services/webhooks/"+id, ""); one.get("secret") != nil {
		t.Errorf("the secret is shown again: %s", one.body)
	}
	tr.section("Secrets: 16 to 256 printable ASCII characters, or whsec_ and base64 of 24 to 64 bytes; no other keys, no mask")
	for _, secret := range []string{"too short", "whsec_c2hvcnQ=", "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "****************"} {
		tr.ask(400, "PATCH", "/services/webhooks/"+id, fmt.Sprintf(`{"secret":%q}`, secret))
	}
	tr.section("URLs: http or https, a public host, no userinfo, no fragment")
	for _, url := range []string{"ftp://example.com/", "https://user:pass@example.com/", "https://example.com/#top", "http://10.0.0.1/", "http://metadata.google.internal/"} {
		tr.ask(400, "PATCH", "/services/webhooks/"+id, fmt.Sprintf(`{"url":%q}`, url))
	}
	tr.section("Headers: none that frames or routes the request, none of ours, no idempotency key")
	tr.ask(400, "PATCH", "/services/webhooks/"+id, `{"headers":{"Host":"x","Content-Length":"1","webhook-id":"x","X-Plinqx-Event":"x","Idempotency-Key":"x","X-Idempotency-Key":"x","X A":"x","X-B":"a\nb"}}`)
	tr.section("Change any subset; a header whose value is the mask keeps the value it has")
	tr.ask(200, "PATCH", "/services/webhooks/"+id, `{"description":"","headers":{"Authorization":"****","X-Tag":"red"}}`)
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	if got := receiver.awaitCount(t, 1)[0].header; got.Get("Authorization") != "Bearer theirs" || got.Get("X-Tag") != "red" {
		t.Errorf("the receiver got %v", got)
	}
	settled(tr, id, "SUCCESS", 1)
	tr.section("Disabled by hand")
	tr.ask(200, "PATCH", "/services/webhooks/"+id, `{"enabled":false}`)
	tr.section("Delete: it is gone from the list, and its history stays readable by id")
	tr.ask(204, "DELETE", "/services/webhooks/"+id, "")
	tr.ask(404, "PATCH", "/services/webhooks/"+id, `{"name":"x"}`)
	kept := tr.ask(200, "GET", "/services/webhooks/"+id+"/deliveries", "")
	tr.quietly(200, "GET", "/services/webhooks/deliveries/"+kept.text("data.0.id"), "")
	tr.save("webhooks.txt", "Webhooks")
}

func (c *contractTest) holdingBack(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	id := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/in", "order.*")).text("id")
	one := "/services/webhooks/" + id
	hour := inAnHour()
	tr.section("Pause: what is published waits")
	tr.ask(200, "PATCH", one, fmt.Sprintf(`{"pausedUntil":%q}`, hour))
	tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":1},"id":"paused-1"}`)
	tr.ask(200, "GET", one+"/deliveries", "")
	tr.section("Resume: it goes on")
	tr.ask(200, "POST", one+"/resume", "")
	tr.arrival(receiver.awaitCount(t, 1)[0], "200 OK")
	settled(tr, id, "SUCCESS", 1)

	tr.section("Disabled: no new events, and what was queued waits")
	tr.quietly(200, "PATCH", one, fmt.Sprintf(`{"pausedUntil":%q}`, hour))
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":2},"id":"queued-1"}`)
	tr.ask(200, "PATCH", one, `{"enabled":false,"pausedUntil":null}`)
	if a := tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":3},"id":"unwanted-1"}`); a.get("deliveries") != 0.0 {
		t.Errorf("a disabled webhook gets it: %s", a.body)
	}
	queued := tr.quietly(200, "GET", "/services/webhooks/deliveries?eventId=queued-1", "").text("data.0.id")
	tr.section("Retrying one by hand is refused while it is disabled")
	tr.ask(409, "POST", "/services/webhooks/deliveries/"+queued+"/retry", "")
	tr.section("A test is sent all the same, and answers with the attempt")
	if a := tr.ask(200, "POST", one+"/test", ""); a.text("trigger") != "test" || a.get("response.statusCode") != 200.0 {
		t.Errorf("test: %s", a.body)
	}
	tr.arrival(receiver.awaitCount(t, 2)[1], "200 OK")
	tr.section("Enabled again: it goes on")
	tr.ask(200, "PATCH", one, `{"enabled":true}`)
	if got := receiver.awaitCount(t, 3)[2]; got.header.Get("webhook-id") != "queued-1" {
		t.Errorf("the third to arrive is %v", got.header)
	}
	eventually(t, "it is recorded", func() bool {
		return tr.quietly(200, "GET", "/services/webhooks/deliveries/"+queued, "").text("status") == "SUCCESS"
	})

	tr.section("Discard the queue: what waits is given up, and the count is answered")
	tr.quietly(200, "PATCH", one, fmt.Sprintf(`{"pausedUntil":%q}`, hour))
	for i := range 3 {
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":"order.paid","data":%d}`, i))
	}
	if a := tr.ask(202, "POST", one+"/discard-queue", ""); a.get("discarded") != 3.0 {
		t.Errorf("discarded: %s", a.body)
	}
	eventually(t, "all three are given up", func() bool {
		return tr.quietly(200, "GET", "/services/webhooks/deliveries/failed", "").get("total") == 3.0
	})
	tr.ask(200, "GET", one+"/deliveries?limit=1", "")
	tr.save("holding-back.txt", "Pause, disable, test, discard")
}

func (c *contractTest) events(t *testing.T) {
	receiver := newArrivals(t, func(a arrived) int {
		if a.path == "/broken" {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	_, tr := c.start(t, func(s *settings) { s.RetrySchedule = []time.Duration{time.Hour} })
	create := func(name, url, event string) string {
		return tr.quietly(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":%q,"url":%q,"events":[%q]}`, name, url, event)).text("id")
	}
	good, broken := create("good", receiver.URL+"/good", "invocation.*"), create("broken", receiver.URL+"/broken", "*")
	create("other", receiver.URL+"/other", "tool.called")
	off := create("off", receiver.URL+"/off", "invocation.completed")
	tr.quietly(200, "PATCH", "/services/webhooks/"+off, `{"enabled":false}`)

	tr.section("Publish: accepted once the event and its deliveries are on disk")
	event := tr.ask(202, "POST", "/services/events", `{"type":"invocation.completed","data":{"z":1,"a":[1.0,12345678901234567890]},"metadata":{"source":"docs"},"timestamp":"2001-02-03T04:05:06+01:00"}`).text("id")
	receiver.awaitCount(t, 2)
	settled(tr, good, "SUCCESS", 1)
	settled(tr, broken, "RETRYING", 1)
	create("later", receiver.URL+"/later", "*")
	tr.section("The event, and for each webhook what became of it and why")
	shown := tr.ask(200, "GET", "/services/events/"+event, "")
	got := map[string]string{}
	for i := range 5 {
		got[shown.text(fmt.Sprintf("deliveries.%d.webhookName", i))] = shown.text(fmt.Sprintf("deliveries.%d.outcome", i))
	}
	for name, want := range map[string]string{"good": "delivered", "broken": "retrying", "other": "not_subscribed", "off": "disabled", "later": "created_later"} {
		if got[name] != want {
			t.Errorf("%s: outcome %q, want %q", name, got[name], want)
		}
	}
	tr.section("An id of the publisher's is the event's id; an event that no webhook wants is kept too")
	tr.quietly(200, "PATCH", "/services/webhooks/"+broken, `{"events":["invocation.failed"]}`)
	later := tr.quietly(200, "GET", "/services/webhooks?offset=4", "").text("data.0.id")
	tr.quietly(200, "PATCH", "/services/webhooks/"+later, `{"events":["invocation.failed"]}`)
	if a := tr.ask(202, "POST", "/services/events", `{"type":"platform.own-type","data":"any JSON value","id":"my_own-id"}`); a.text("id") != "my_own-id" || a.get("deliveries") != 0.0 {
		t.Errorf("published %s", a.body)
	}
	tr.quietly(200, "GET", "/services/events/my_own-id", "")
	tr.section("Types are dot-separated segments; ids and keys have no dot; null is no data; duplicate keys and lone surrogates are refused")
	tr.ask(400, "POST", "/services/events", `{"type":"a..b","data":null,"id":"a.b","metadata":[],"timestamp":"yesterday"}`, "Idempotency-Key: a.b")
	tr.ask(400, "POST", "/services/events", `{"type":"a.b","data":{"list":[{"k":1,"k":2}]}}`)
	tr.ask(400, "POST", "/services/events", `{"type":"a.b","data":{"s":"\ud800"}}`)
	tr.section("The product's ten types")
	for _, kind := range []string{
		"approval.requested", "approval.completed", "approval.expired", "tool.called", "tool.error", "invocation.started",
		"invocation.completed", "invocation.failed", "connection.health_changed", "connection.credential_expiring",
	} {
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":%q,"data":{}}`, kind))
	}
	tr.section("List events by type and time, newest first, without their data")
	tr.ask(200, "GET", "/services/events?type=platform.own-type&since=2001-01-01T00:00:00Z&until=2099-01-01T00:00:00Z", "")
	tr.ask(200, "GET", "/services/events?limit=2", "")
	tr.save("events.txt", "Events")
}

func (c *contractTest) idempotency(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	hook := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.paid")).text("id")
	const key = "Idempotency-Key: "
	const body, other = `{"type":"order.paid","data":{"n":1}}`, `{"type":"order.paid","data":{"n":2}}`
	tr.section("A key, once")
	first := tr.ask(202, "POST", "/services/events", body, key+"k-1")
	again := func(want int, body string, headers ...string) {
		t.Helper()
		a := tr.ask(want, "POST", "/services/events", body, headers...)
		if want == 202 && (a.get("duplicate") != true || a.text("id") != first.text("id") && a.text("id") != "own-1" || a.get("deliveries") != 1.0) {
			t.Errorf("again: %s", a.body)
		}
	}
	tr.section("The same key and body: the same answer again")
	again(202, body, key+"k-1")
	tr.section("White space around members is no other body; other bytes of data are")
	again(202, `{ "data" : {"n":1}, "type" : "order.paid" }`, key+"k-1")
	again(409, `{"type":"order.paid","data":{"n": 1}}`, key+"k-1")
	tr.section("The same key, and another type, data, metadata or timestamp: conflict")
	again(409, other, key+"k-1")
	again(409, `{"type":"order.lost","data":{"n":1}}`, key+"k-1")
	again(409, `{"type":"order.paid","data":{"n":1},"metadata":{}}`, key+"k-1")
	again(409, `{"type":"order.paid","data":{"n":1},"timestamp":"2001-01-01T00:00:00Z"}`, key+"k-1")
	tr.section("An id does the same")
	tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":1},"id":"own-1"}`)
	again(202, `{"type":"order.paid","data":{"n":1},"id":"own-1"}`)
	again(409, `{"type":"order.paid","data":{"n":2},"id":"own-1"}`)
	tr.section("Given both, both must name one event")
	again(409, `{"type":"order.paid","data":{"n":1},"id":"own-1"}`, key+"k-1")
	tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":3},"id":"own-2"}`, key+"k-2")
	tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":3},"id":"own-2"}`, key+"k-2")
	tr.section("Another tenant may use the same key and id")
	tenant := tr.quietly(201, "POST", "/services/tenants", `{"name":"other"}`, "Authorization: Bearer "+operatorKey).text("id")
	acting := []string{"Authorization: Bearer " + operatorKey, "X-Hypha-Tenant: " + tenant}
	if a := tr.ask(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":9},"id":"own-1"}`, append(acting, key+"k-1")...); a.get("duplicate") != nil {
		t.Errorf("a duplicate of another tenant's: %s", a.body)
	}
	// Nothing was delivered twice.
	eventually(t, "three deliveries are done", func() bool {
		a := tr.quietly(200, "GET", "/services/webhooks/stats?webhookId="+hook, "")
		return a.get("totalDeliveries") == 3.0 && a.get("pendingDeliveries") == 0.0
	})
	if got := receiver.awaitCount(t, 3); len(got) != 3 {
		t.Errorf("%d requests arrived, want 3", len(got))
	}
	tr.save("idempotency.txt", "Publishing again")
}

func (c *contractTest) batches(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	id := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.*")).text("id")
	const batch = `{"events":[{"type":"order.paid","data":1,"id":"b-1"},{"type":"order.paid","data":2,"id":"b-2"},{"type":"other.kind","data":3,"id":"b-3"}]}`
	tr.section("One result for each event, in order")
	tr.ask(202, "POST", "/services/events/batch", batch, "Idempotency-Key: batch-1")
	tr.section("The header's key covers the batch")
	tr.ask(202, "POST", "/services/events/batch", batch, "Idempotency-Key: batch-1")
	tr.ask(409, "POST", "/services/events/batch", `{"events":[{"type":"order.paid","data":1,"id":"b-1"}]}`, "Idempotency-Key: batch-1")
	tr.section("Events that are there already are told from new ones")
	tr.ask(202, "POST", "/services/events/batch", `{"events":[{"type":"order.paid","data":2,"id":"b-2"},{"type":"other.kind","data":4,"id":"b-4"}]}`)
	tr.section("All or nothing: one conflict refuses all, and names the event")
	tr.ask(409, "POST", "/services/events/batch", `{"events":[{"type":"order.paid","data":5,"id":"b-5"},{"type":"order.paid","data":"other","id":"b-1"}]}`)
	tr.ask(404, "GET", "/services/events/b-5", "")
	tr.section("So does one that is malformed; all problems are told")
	tr.ask(400, "POST", "/services/events/batch", `{"events":[{"type":"order.paid","data":6,"id":"b-6"},{"type":"a b"},7]}`)
	tr.ask(404, "GET", "/services/events/b-6", "")
	tr.section("From 1 to 1,000 events")
	tr.ask(400, "POST", "/services/events/batch", `{"events":[]}`)
	many := func(n int) string {
		return `{"events":[` + strings.TrimSuffix(strings.Repeat(`{"type":"other.kind","data":0},`, n), ",") + `]}`
	}
	tr.quietly(202, "POST", "/services/events/batch", many(1000))
	if a := tr.quietly(400, "POST", "/services/events/batch", many(1001)); a.text("error.details.0.path") != "events" {
		t.Errorf("1,001 events: %s", a.body)
	}
	eventually(t, "two deliveries are done", func() bool {
		a := tr.quietly(200, "GET", "/services/webhooks/stats?webhookId="+id, "")
		return a.get("totalDeliveries") == 2.0 && a.get("pendingDeliveries") == 0.0
	})
	tr.save("batches.txt", "Batches")
}

func (c *contractTest) receiving(t *testing.T) {
	var mu sync.Mutex
	tries := 0
	receiver := newArrivals(t, func(a arrived) int {
		mu.Lock()
		defer mu.Unlock()
		if a.path == "/flaky" {
			if tries++; tries < 3 {
				return []int{http.StatusServiceUnavailable, http.StatusMovedPermanently}[tries-1]
			}
		}
		return http.StatusOK
	})
	_, tr := c.start(t, nil)
	tr.section("What a receiver gets: the very bytes that were published")
	tr.ask(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":"In","url":%q,"events":["invocation.completed"],"secret":"your-webhook-secret","headers":{"X-Tag":"blue"}}`, receiver.URL+"/in?a=b"))
	tr.ask(202, "POST", "/services/events", `{"type":"invocation.completed","data":{"z":1.0,  "a":"<\u00e9>"},"metadata":{"b":1,"a":2},"timestamp":"2001-02-03T04:05:06.7Z","id":"inv-1"}`)
	got := receiver.awaitCount(t, 1)[0]
	tr.arrival(got, "200 OK")
	if want := `{"id":"inv-1","type":"invocation.completed","timestamp":"2001-02-03T04:05:06.700Z","data":{"z":1.0,  "a":"<\u00e9>"},"metadata":{"b":1,"a":2}}`; string(got.body) != want {
		t.Errorf("the body is %s\nwant %s", got.body, want)
	}
	tr.section("Anything but a 2xx is tried again, redirects too: the same id and body, a timestamp and signatures of its own")
	flaky := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/flaky", "tool.called")).text("id")
	tr.quietly(202, "POST", "/services/events", `{"type":"tool.called","data":{"n":1},"id":"tool-1"}`)
	for i, a := range receiver.awaitCount(t, 4)[1:4] {
		tr.arrival(a, []string{"503 Service Unavailable", "301 Moved Permanently", "200 OK"}[i])
	}
	tr.section("Every attempt is on record")
	delivery := settled(tr, flaky, "SUCCESS", 3)
	tr.ask(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
	tr.save("receiving.txt", "What a receiver gets")
}

func (c *contractTest) failures(t *testing.T) {
	hold := make(chan struct{})
	s := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		switch r.URL.Path {
		case "/gone":
			w.WriteHeader(http.StatusGone)
		case "/busy":
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		case "/slow":
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		case "/text":
			w.Header().Set("X-Server", "theirs")
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, strings.Repeat("no ", 6000))
		case "/cut":
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(http.StatusOK)
		}
	})
	defer close(hold)
	_, tr := c.start(t, nil)
	create := func(path string) string {
		name := strings.TrimPrefix(path, "/")
		return tr.quietly(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":%q,"url":%q,"events":["%s.now"],"timeoutMs":1000}`, name, s.URL+path, name)).text("id")
	}
	publish := func(path string) {
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":"%s.now","data":{}}`, strings.TrimPrefix(path, "/")))
	}

	tr.section("410 Gone disables the webhook: gone")
	gone := create("/gone")
	publish("/gone")
	eventually(t, "the webhook is disabled", func() bool {
		return tr.quietly(200, "GET", "/services/webhooks/"+gone, "").text("disabledReason") == "gone"
	})
	tr.ask(200, "GET", "/services/webhooks/"+gone, "")
	settled(tr, gone, "RETRYING", 1)
	tr.ask(200, "GET", "/services/webhooks/"+gone+"/deliveries", "")

	tr.section("Retry-After of a 429 or 503 holds back the webhook")
	busy := create("/busy")
	publish("/busy")
	settled(tr, busy, "RETRYING", 1)
	eventually(t, "the webhook is paused", func() bool {
		return tr.quietly(200, "GET", "/services/webhooks/"+busy, "").get("pausedUntil") != nil
	})
	a := tr.ask(200, "GET", "/services/webhooks/"+busy, "")
	until, err := time.Parse(time.RFC3339, a.text("pausedUntil"))
	if err != nil || until.Before(time.Now().Add(50*time.Minute)) || until.After(time.Now().Add(70*time.Minute)) {
		t.Errorf("paused until %s, %v", a.text("pausedUntil"), err)
	}

	for _, tc := range []struct{ path, kind, sentence string }{
		{"/slow", "timeout", "No answer in time"},
		{"/cut", "connect", "The connection is cut"},
		{"/text", "status", "A status that is no 2xx; the body's first 16 KiB are kept"},
	} {
		tr.section("%s: it is tried again by the schedule, and then given up", tc.sentence)
		id := create(tc.path)
		publish(tc.path)
		delivery := settled(tr, id, "FAILED", 3)
		if a := tr.ask(200, "GET", "/services/webhooks/deliveries/"+delivery, ""); a.text("error.kind") != tc.kind || a.text("attemptList.2.error.kind") != tc.kind {
			t.Errorf("%s: %s", tc.path, a.body)
		}
	}

	tr.section("A host that does not answer, and one that may not be called: a test tells")
	closed := httptest.NewServer(http.NotFoundHandler())
	nobody := tr.quietly(201, "POST", "/services/webhooks", hookOf(closed.URL, "never.sent")).text("id")
	closed.Close()
	if a := tr.ask(200, "POST", "/services/webhooks/"+nobody+"/test", ""); a.text("error.kind") != "connect" {
		t.Errorf("test: %s", a.body)
	}
	tr.save("failures.txt", "When a receiver fails")
}

func (c *contractTest) deliveries(t *testing.T) {
	hold := make(chan struct{})
	receiver := newArrivals(t, func(a arrived) int {
		switch a.path {
		case "/broken":
			return http.StatusBadGateway
		case "/held":
			<-hold
		}
		return http.StatusOK
	})
	_, tr := c.start(t, func(s *settings) { s.RetrySchedule = []time.Duration{time.Hour} })
	good := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/good", "order.*")).text("id")
	broken := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/broken", "order.*")).text("id")
	paused := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/paused", "order.*")).text("id")
	tr.quietly(200, "PATCH", "/services/webhooks/"+paused, fmt.Sprintf(`{"pausedUntil":%q}`, inAnHour()))
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":{"n":1},"id":"o-1"}`)
	receiver.awaitCount(t, 2)
	settled(tr, good, "SUCCESS", 1)
	retrying := settled(tr, broken, "RETRYING", 1)
	pending := settled(tr, paused, "PENDING", 0)

	tr.section("The statuses: PENDING, RETRYING, SUCCESS")
	tr.ask(200, "GET", "/services/webhooks/deliveries", "")
	tr.section("By webhook, status, type, event and time")
	filter := "?status=RETRYING&eventType=order.paid&eventId=o-1&since=2001-01-01T00:00:00Z&until=2099-01-01T00:00:00Z&limit=10"
	tr.ask(200, "GET", "/services/webhooks/deliveries"+filter, "")
	tr.ask(200, "GET", "/services/webhooks/"+good+"/deliveries"+filter, "")
	tr.section("One, with its event and every attempt")
	tr.ask(200, "GET", "/services/webhooks/deliveries/"+retrying, "")
	tr.section("Retry: the schedule starts again, now")
	tr.ask(202, "POST", "/services/webhooks/deliveries/"+retrying+"/retry", "")
	settled(tr, broken, "RETRYING", 2)
	if a := tr.quietly(200, "GET", "/services/webhooks/deliveries/"+retrying, ""); a.text("attemptList.1.trigger") != "manual" {
		t.Errorf("the second attempt: %s", a.body)
	}
	tr.section("Cancel: FAILED, canceled; a finished one can't be")
	if a := tr.ask(200, "POST", "/services/webhooks/deliveries/"+pending+"/cancel", ""); a.text("status") != "FAILED" || a.text("error.kind") != "canceled" {
		t.Errorf("canceled: %s", a.body)
	}
	tr.ask(409, "POST", "/services/webhooks/deliveries/"+pending+"/cancel", "")

	tr.section("In flight: a retry changes nothing, and it is too late to cancel")
	held := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL+"/held", "held.now")).text("id")
	before := len(receiver.awaitCount(t, 3))
	tr.quietly(202, "POST", "/services/events", `{"type":"held.now","data":{}}`)
	receiver.awaitCount(t, before+1)
	flying := tr.quietly(200, "GET", "/services/webhooks/"+held+"/deliveries", "").text("data.0.id")
	tr.ask(202, "POST", "/services/webhooks/deliveries/"+flying+"/retry", "")
	tr.ask(409, "POST", "/services/webhooks/deliveries/"+flying+"/cancel", "")
	close(hold)
	settled(tr, held, "SUCCESS", 1)
	if got := receiver.awaitCount(t, before+1); len(got) != before+1 {
		t.Errorf("%d requests arrived, want %d", len(got), before+1)
	}
	tr.save("deliveries.txt", "Deliveries")
}

func (c *contractTest) retryAll(t *testing.T) {
	var mu sync.Mutex
	up := false
	receiver := newArrivals(t, func(arrived) int {
		mu.Lock()
		defer mu.Unlock()
		if up {
			return http.StatusOK
		}
		return http.StatusInternalServerError
	})
	_, tr := c.start(t, func(s *settings) { s.RetrySchedule = []time.Duration{100 * time.Millisecond} })
	id := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.*")).text("id")
	for i := range 3 {
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":"order.paid","data":%d,"id":"r-%d"}`, i, i))
	}
	eventually(t, "three failed", func() bool {
		return tr.quietly(200, "GET", "/services/webhooks/deliveries/failed", "").get("total") == 3.0
	})
	tr.section("Failed deliveries, newest first; an unfiltered total is exact")
	tr.ask(200, "GET", "/services/webhooks/deliveries/failed?limit=2&webhookId="+id, "")
	tr.ask(200, "GET", "/services/webhooks/deliveries/failed?limit=2&offset=2", "")
	tr.ask(200, "GET", "/services/webhooks/deliveries/failed?eventType=order.lost&since=2001-01-01T00:00:00Z&until=2099-01-01T00:00:00Z", "")
	tr.section("Statistics count attempts: two for each delivery")
	if a := tr.ask(200, "GET", "/services/webhooks/stats?webhookId="+id+"&since=2001-01-01T00:00:00Z&until=2099-01-01T00:00:00Z", ""); a.get("failedDeliveries") != 6.0 || a.get("successRate") != 0.0 {
		t.Errorf("stats: %s", a.body)
	}
	mu.Lock()
	up = true
	mu.Unlock()
	tr.section("Retry all that failed: durable, paced, complete")
	// A pause keeps it running, so that it can be asked for again.
	tr.quietly(200, "PATCH", "/services/webhooks/"+id, fmt.Sprintf(`{"pausedUntil":%q}`, inAnHour()))
	first := tr.ask(202, "POST", "/services/webhooks/"+id+"/deliveries/retry-all-failed", "")
	if first.get("retried") != 3.0 {
		t.Errorf("retried: %s", first.body)
	}
	tr.section("A second call while it runs answers the same replayId")
	if again := tr.ask(202, "POST", "/services/webhooks/"+id+"/deliveries/retry-all-failed", ""); string(again.body) != string(first.body) {
		t.Errorf("again: %s", again.body)
	}
	tr.quietly(200, "POST", "/services/webhooks/"+id+"/resume", "")
	eventually(t, "all succeeded", func() bool {
		return len(tr.quietly(200, "GET", "/services/webhooks/"+id+"/deliveries?status=SUCCESS", "").get("data").([]any)) == 3
	})
	one := tr.quietly(200, "GET", "/services/webhooks/deliveries?eventId=r-0", "").text("data.0.id")
	tr.section("Each is tried anew: trigger replay, numbers go on")
	if a := tr.ask(200, "GET", "/services/webhooks/deliveries/"+one, ""); a.text("attemptList.2.trigger") != "replay" || a.get("attemptList.2.number") != 3.0 {
		t.Errorf("attempts: %s", a.body)
	}
	if a := tr.ask(200, "GET", "/services/webhooks/stats", ""); a.get("totalDeliveries") != 9.0 || a.get("successfulDeliveries") != 3.0 || a.get("pendingDeliveries") != 0.0 {
		t.Errorf("stats: %s", a.body)
	}
	tr.section("With nothing that failed, nothing is retried")
	if a := tr.ask(202, "POST", "/services/webhooks/"+id+"/deliveries/retry-all-failed", ""); a.get("retried") != 0.0 || a.text("replayId") == first.text("replayId") {
		t.Errorf("retried: %s", a.body)
	}
	tr.section("A webhook that is disabled retries nothing")
	tr.quietly(200, "PATCH", "/services/webhooks/"+id, `{"enabled":false}`)
	tr.ask(409, "POST", "/services/webhooks/"+id+"/deliveries/retry-all-failed", "")
	tr.save("retry-all.txt", "Failed deliveries, statistics, retry all")
}

// expiry moves a delivery's end in the store: waiting for it takes a minute at
// least.
func (c *contractTest) expiry(t *testing.T) {
	dir := t.TempDir()
	receiver := newArrivals(t, nil)
	var id string
	t.Run("published", func(t *testing.T) {
		_, tr := c.start(t, func(s *settings) { s.Data = dir })
		id = tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "order.*")).text("id")
		tr.quietly(200, "PATCH", "/services/webhooks/"+id, fmt.Sprintf(`{"pausedUntil":%q}`, inAnHour()))
		tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	})
	db := storeFile(t, dir)
	result, err := db.Exec("UPDATE deliveries SET expires_at = created_at + 1")
	if err != nil {
		t.Fatal(err)
	}
	n, err := result.RowsAffected()
	if err := cmp.Or(err, db.Close()); err != nil || n != 1 {
		t.Fatalf("%d rows, %v", n, err)
	}
	_, tr := c.start(t, func(s *settings) { s.Data = dir })
	tr.section("An unfinished delivery expires, waiting included: FAILED, expired, never sent")
	settled(tr, id, "FAILED", 0)
	if a := tr.ask(200, "GET", "/services/webhooks/"+id+"/deliveries", ""); a.text("data.0.error.kind") != "expired" {
		t.Errorf("deliveries: %s", a.body)
	}
	tr.save("expiry.txt", "Expiry")
}

func (c *contractTest) running(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	id := tr.quietly(201, "POST", "/services/webhooks", hookOf(receiver.URL, "*")).text("id")
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	settled(tr, id, "SUCCESS", 1)
	tr.section("Alive, and ready for traffic; no credentials are asked for")
	tr.ask(200, "GET", "/healthz", "", "Authorization: ")
	tr.ask(200, "GET", "/readyz", "", "Authorization: ")
	tr.section("The contract itself")
	if a := tr.quietly(200, "GET", "/services/openapi.yaml", "", "Authorization: "); string(a.body) != string(api.OpenAPI()) {
		t.Error("the document that is served is another")
	}
	tr.section("Metrics for Prometheus: the server's own")
	metrics := tr.quietly(200, "GET", "/metrics", "", "Authorization: ")
	var own []string
	for line := range strings.Lines(string(metrics.body)) {
		if strings.HasPrefix(line, "# HELP hypha_") {
			own = append(own, line)
		}
	}
	slices.Sort(own)
	tr.out.WriteString("\n" + strings.Join(own, ""))
	if strings.Contains(string(metrics.body), id) || !strings.Contains(string(metrics.body), `hypha_attempts_total{result="success"} 1`) {
		t.Error("the metrics name a webhook, or do not count the attempt")
	}
	tr.save("running.txt", "Running it")
}
