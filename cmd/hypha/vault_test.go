package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/seal"
)

func (c *contractTest) vault(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	tr.section("Keep a value by name. It is not shown, now or later")
	made := tr.ask(201, "POST", "/services/vault", `{"name":"ERP_TOKEN","value":"s3cret-of-the-ERP","description":"Of the ERP's integration user"}`)
	one := "/services/vault/" + made.text("id")
	if made.header.Get("Location") != one {
		t.Errorf("Location %q", made.header.Get("Location"))
	}
	tr.ask(200, "GET", one, "")
	tr.ask(200, "GET", "/services/vault", "")
	tr.section("Names: 1 to 64 of A-Z, a-z, 0-9, _ and -, each once. Values: what a header's value may be, and no mask")
	tr.ask(400, "POST", "/services/vault", `{"name":"a.b","value":"****"}`)
	tr.ask(400, "POST", "/services/vault", `{"name":"b","value":"two\nlines"}`)
	tr.ask(409, "POST", "/services/vault", `{"name":"ERP_TOKEN","value":"another"}`)
	tr.ask(400, "PATCH", one, `{"value":"****"}`)
	tr.ask(400, "PATCH", one, `{"name":"OTHER"}`)

	tr.section("A webhook's headers refer to it; answers show the reference")
	hooked := tr.ask(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":"ERP","url":%q,"events":["order.*"],
		"headers":{"Authorization":"Bearer {{vault.ERP_TOKEN}}","X-Route":"{{region}}/{{vault.ERP_TOKEN}}"}}`, receiver.URL+"/in"))
	webhook := "/services/webhooks/" + hooked.text("id")
	tr.section("A receiver gets the value; the log of the attempt has the reference")
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	got := receiver.awaitCount(t, 1)[0]
	if got.header.Get("Authorization") != "Bearer s3cret-of-the-ERP" || got.header.Get("X-Route") != "{{region}}/s3cret-of-the-ERP" {
		t.Errorf("the receiver got %v", got.header)
	}
	tr.arrival(got, "200 OK")
	delivery := settled(tr, hooked.text("id"), "SUCCESS", 1)
	tr.ask(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
	tr.section("A new value is in the next attempt")
	tr.ask(200, "PATCH", one, `{"value":"another s3cret","description":""}`)
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":2}`)
	if got := receiver.awaitCount(t, 2)[1]; got.header.Get("Authorization") != "Bearer another s3cret" {
		t.Errorf("the receiver got %v", got.header)
	}
	tr.section("What is not there, and what is nearly a reference, is refused; other braces are text")
	tr.ask(400, "PATCH", webhook, `{"headers":{"X-A":"{{vault.NONE}}","X-B":"{{ vault.ERP_TOKEN }}","X-C":"{{vault.ERP_TOKEN","X-D":"{{name}}"}}`)
	tr.section("It can't be deleted while a webhook refers to it")
	if a := tr.ask(409, "DELETE", one, ""); !strings.Contains(a.text("error.message"), hooked.text("id")) {
		t.Errorf("the webhook is not named: %s", a.body)
	}
	tr.ask(200, "PATCH", webhook, `{"headers":{}}`)
	tr.ask(204, "DELETE", one, "")
	tr.ask(404, "GET", one, "")
	tr.save("vault.txt", "The vault")
}

func (c *contractTest) secretKeys(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	tr.quietly(201, "POST", "/services/vault", `{"name":"TOKEN","value":"s3cret-value"}`)
	hooked := tr.quietly(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":"ERP","url":%q,"events":["order.*"],"headers":{"X-Key":"{{vault.TOKEN}}"}}`, receiver.URL+"/in"))
	tr.key = operatorKey
	tr.section("The key that seals secrets, and how much is sealed under it: a webhook, its revision, a vault secret")
	before := tr.ask(200, "GET", "/services/secret-keys", "")
	tr.section("Put a new key before it")
	made := tr.ask(201, "POST", "/services/secret-keys", "")
	tr.section("Seal all anew: the old key is not in use any more")
	done := tr.ask(200, "POST", "/services/secret-keys/rekey", "")
	if done.get("resealed") != 3.0 || done.text("keys.0.id") != made.text("keys.0.id") || made.text("keys.0.id") == before.text("keys.0.id") || done.text("keys.1.id") != before.text("keys.0.id") || done.get("keys.1.inUse") != 0.0 {
		t.Errorf("done: %s", done.body)
	}
	tr.section("Again: there is nothing to do")
	tr.ask(200, "POST", "/services/secret-keys/rekey", "")
	tr.section("It is the operator's matter")
	tr.ask(403, "GET", "/services/secret-keys", "", "Authorization: Bearer "+testKey)
	tr.key = testKey
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	if got := receiver.awaitCount(t, 1)[0]; got.header.Get("X-Key") != "s3cret-value" {
		t.Errorf("the receiver got %v", got.header)
	}
	settled(tr, hooked.text("id"), "SUCCESS", 1)
	tr.save("secret-keys.txt", "The keys that seal secrets")
}

// Secrets are sent, and echoed by the receiver in each way that there is. No answer of
// any route has one, and neither has the log.
func TestNoAnswerShowsASecret(t *testing.T) {
	const signing, header, vaulted, later = "signing-secret-9f27", "header-secret-41b8", "vaulted-secret-77e0", "later-secret-c315"
	secrets := []string{signing, header, vaulted, later}
	echo := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		text := strings.Join(secrets, " ")
		w.Header().Set("X-Echo", text+" "+r.Header.Get("X-Tag"))
		w.Header().Set("X-Authorization", r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusTeapot)
		_ = json.NewEncoder(w).Encode(map[string]any{"headers": r.Header, "all": text}) // who reads it may have gone
	})
	p := startProgram(t, []string{
		"HYPHA_BOOTSTRAP_API_KEY=" + testKey, "HYPHA_BOOTSTRAP_OPERATOR_KEY=" + operatorKey, "HYPHA_BOOTSTRAP_EMAIL=" + testEmail, "HYPHA_BOOTSTRAP_PASSWORD=" + testPassword,
	}, "serve", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--allow-egress", "127.0.0.0/8", "--log-level", "debug", "--retry-schedule", "100ms")
	bearer := "Authorization: Bearer " + testKey
	looked := 0
	look := func(method, path, body string) told {
		t.Helper()
		a := ask(t, p.url, method, path, body, bearer)
		looked++
		if a.status >= 300 {
			t.Errorf("%s %s: %d %s", method, path, a.status, a.body)
		}
		for _, secret := range secrets {
			if shown := fmt.Sprint(a.header) + string(a.body); strings.Contains(shown, secret) {
				t.Errorf("%s %s shows %s:\n%s", method, path, secret, shown)
			}
		}
		return a
	}
	secret := look("POST", "/services/vault", fmt.Sprintf(`{"name":"TOKEN","value":%q}`, vaulted))
	look("POST", "/services/vault", fmt.Sprintf(`{"name":"LATER","value":%q}`, later))
	hooked := look("POST", "/services/webhooks", fmt.Sprintf(`{"name":"n","url":%q,"events":["*"],"secret":%q,
		"headers":{"Authorization":"Bearer %s","X-Tag":"a {{vault.TOKEN}} b","X-Key":"{{vault.LATER}}","Cookie":"s={{vault.LATER}}"}}`, echo.URL, signing, header))
	webhook := "/services/webhooks/" + hooked.text("id")
	event := look("POST", "/services/events", `{"type":"a.b","data":1}`)
	look("POST", webhook+"/test", "")
	var delivery string
	eventually(t, "the delivery has failed twice", func() bool {
		a := look("GET", webhook+"/deliveries?eventId="+event.text("id"), "")
		delivery = a.text("data.0.id")
		return a.text("data.0.status") == "FAILED"
	})
	if a := look("GET", "/services/webhooks/deliveries/"+delivery, ""); strings.Count(string(a.body), `"X-Echo"`) != 2 || !strings.Contains(string(a.body), "{{vault.TOKEN}}") {
		t.Errorf("the attempts are not shown: %s", a.body)
	}
	// What was masked is sent back as it was read, and stays what it is.
	shown := look("GET", webhook, "")
	if got := shown.get("headers"); fmt.Sprint(got) != "map[Authorization:**** Cookie:**** X-Key:{{vault.LATER}} X-Tag:a {{vault.TOKEN}} b]" {
		t.Errorf("the headers are shown as %v", got)
	}
	headers, err := json.Marshal(shown.get("headers"))
	if err != nil {
		t.Fatal(err)
	}
	look("PATCH", webhook, fmt.Sprintf(`{"headers":%s,"name":"renamed"}`, headers))
	for path, body := range map[string]string{
		webhook: `{"secret":"****************"}`, webhook + " ": `{"headers":{"X-Secret":"****"}}`, "/services/vault/" + secret.text("id"): `{"value":"****"}`,
	} {
		if a := ask(t, p.url, "PATCH", strings.TrimSpace(path), body, bearer); a.status != http.StatusBadRequest {
			t.Errorf("PATCH %s %s: %d %s", path, body, a.status, a.body)
		}
	}
	look("PATCH", "/services/vault/"+secret.text("id"), `{"description":"of the ERP"}`)
	look("POST", webhook+"/test", "")

	ids := map[string]string{
		"webhook": hooked.text("id"), "delivery": delivery, "event": event.text("id"), "secret": secret.text("id"),
		"key": look("GET", "/services/api-keys", "").text("data.0.id"), "user": look("GET", "/services/users", "").text("data.0.id"),
	}
	for _, op := range operationsOf(t) {
		// Without a provider, its routes answer that there is nothing.
		if op.method == http.MethodGet && op.scope != "operator" && !strings.Contains(op.path, "/oidc/") {
			look(op.method, fill(t, op.path, ids), "")
		}
	}
	if looked < 30 {
		t.Errorf("%d answers were looked at", looked)
	}
	if err := p.stop(t); err != nil {
		t.Error(err)
	}
	for _, secret := range secrets {
		if log := p.stderr.String() + p.stdout.String(); strings.Contains(log, secret) {
			t.Errorf("the log has %s:\n%s", secret, log)
		}
	}
}

// A secret that is changed on one node is in what the other sends within a second.
func TestVaultSecretChangesOnAllNodes(t *testing.T) {
	receiver := newArrivals(t, nil)
	database, key := databases.Database(t), strings.Repeat("5a", 32)
	node := func(name string) *server {
		return startServer(t, func(s *settings) { s.DatabaseURL, s.SecretKey, s.NodeName = database, key, name })
	}
	a, b := client{node("a").url(), testKey}, client{node("b").url(), testKey}
	var secret struct{ ID string }
	a.must(t, http.MethodPost, "/vault", `{"name":"TOKEN","value":"value-0"}`, &secret)
	// The other node does not know it yet, but sees for itself.
	var hooked struct{ ID string }
	eventually(t, "the other node takes the reference", func() bool {
		status, _ := b.do(http.MethodPost, "/webhooks", fmt.Sprintf(`{"name":"n","url":%q,"events":["*"],"headers":{"X-Key":"{{vault.TOKEN}}"}}`, receiver.URL), &hooked)
		return status == http.StatusCreated
	})
	if status, _ := a.do(http.MethodDelete, "/vault/"+secret.ID, nil, nil); status != http.StatusConflict {
		t.Errorf("deleted while the other node's webhook refers to it: %d", status)
	}
	for round := 1; round < 4; round++ {
		value := fmt.Sprint("value-", round)
		a.must(t, http.MethodPatch, "/vault/"+secret.ID, fmt.Sprintf(`{"value":%q}`, value), nil)
		changed := time.Now()
		for {
			b.must(t, http.MethodPost, "/webhooks/"+hooked.ID+"/test", nil, nil)
			got := receiver.awaitCount(t, 1)
			if got[len(got)-1].header.Get("X-Key") == value {
				break
			}
			if time.Since(changed) > 5*time.Second { // a second, and what a busy machine adds
				t.Fatalf("the other node still sends %q", got[len(got)-1].header.Get("X-Key"))
			}
		}
	}
}

// The server key of a fleet is changed node by node. No order of keys with which one
// node could not open what another seals gets through.
func TestChangingTheKeyOfAFleet(t *testing.T) {
	database := databases.Database(t)
	key := func(fill byte) string { return strings.Repeat(hex.EncodeToString([]byte{fill}), seal.KeySize) }
	one, two, three := key(1), key(2), key(3)
	ids := func(keys string) []seal.KeyID {
		t.Helper()
		parsed, err := seal.ParseKeys(keys)
		if err != nil {
			t.Fatal(err)
		}
		ring, err := seal.New(parsed...)
		if err != nil {
			t.Fatal(err)
		}
		return ring.IDs()
	}
	args := func(name, keys string) ([]string, []string) {
		return []string{
			"HYPHA_BOOTSTRAP_API_KEY=" + testKey, "HYPHA_BOOTSTRAP_OPERATOR_KEY=" + operatorKey, "HYPHA_DATABASE_URL=" + database, "HYPHA_SECRET_KEY=" + keys,
		}, []string{"serve", "--listen", "127.0.0.1:0", "--node-name", name}
	}
	start := func(name, keys string) *programProcess {
		t.Helper()
		env, line := args(name, keys)
		return startProgram(t, env, line...)
	}
	refused := func(name, keys, why string) {
		t.Helper()
		env, line := args(name, keys)
		p := spawn(t, env, line...)
		<-p.exited
		if log := p.stderr.String(); p.err == nil || !strings.Contains(log, why) {
			t.Errorf("%s with %v: %v; want it to say %q:\n%s", name, ids(keys), p.err, why, log)
		}
	}
	stop := func(p *programProcess) {
		t.Helper()
		if err := p.stop(t); err != nil {
			t.Error(err)
		}
	}
	opens := func(p *programProcess) {
		t.Helper()
		client{p.url, testKey}.must(t, http.MethodGet, "/webhooks", nil, nil)
	}
	a := start("a", one)
	refused("b", two, "of the other nodes") // before anything is sealed
	b := start("b", one)
	client{a.url, testKey}.createWebhook(t, "https://hooks.example.com/in", "*")
	refused("c", two, ids(one)[0].String()) // it could not open what is there
	refused("c", two+","+one, "does not have the secret key "+ids(two)[0].String())

	// Step one: all nodes get the new key behind the old one.
	stop(a)
	a = start("a", one+","+two)
	refused("c", two+","+one, "the node b does not have")
	stop(b)
	b = start("b", one+","+two)
	// Step two: it comes first, node by node.
	stop(a)
	a = start("a", two+","+one)
	client{a.url, testKey}.createWebhook(t, "https://hooks.example.com/in", "*")
	opens(b)
	refused("c", one, ids(two)[0].String())
	// Sealed anew too early: the other node seals with the old key still.
	client{a.url, operatorKey}.must(t, http.MethodPost, "/secret-keys/rekey", nil, nil)
	refused("c", two, "the node b seals with")
	client{b.url, testKey}.createWebhook(t, "https://hooks.example.com/in", "*")
	stop(b)
	b = start("b", two+","+one)
	opens(b)
	refused("c", three+","+two, ids(one)[0].String()) // it is in use still
	// Step three: all is sealed anew, and the old key goes.
	var done struct {
		Resealed int64
		Keys     []struct {
			ID    string
			InUse int64
		}
	}
	client{a.url, operatorKey}.must(t, http.MethodPost, "/secret-keys/rekey", nil, &done)
	if done.Resealed != 2 || len(done.Keys) != 2 || done.Keys[1].ID != ids(one)[0].String() || done.Keys[1].InUse != 0 {
		t.Errorf("sealed anew: %+v", done)
	}
	opens(b)
	for _, p := range []**programProcess{&a, &b} {
		stop(*p)
		*p = start("n", two)
		opens(*p)
	}
}
