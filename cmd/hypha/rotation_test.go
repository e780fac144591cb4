package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/plinqx/hypha/signature"
)

// verifies reports what of a request verifies with a key: its Standard Webhooks
// signatures, and the prefixed pair, as a receiver would that holds nothing else.
func verifies(t *testing.T, a arrived, key string) (standard, prefixed bool) {
	t.Helper()
	v, err := signature.NewVerifier([]string{key})
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(a.header, a.body) == nil, v.VerifyPrefixed(a.header, a.body) == nil
}

func (c *contractTest) rotation(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	const first, third = "the-first-secret", "the-third-secret"
	id := tr.quietly(201, "POST", "/services/webhooks", fmt.Sprintf(`{"name":"Orders","url":%q,"events":["order.*"],"secret":%q}`, receiver.URL, first)).text("id")
	one := "/services/webhooks/" + id
	sent := 0
	publish := func() arrived {
		t.Helper()
		tr.quietly(202, "POST", "/services/events", fmt.Sprintf(`{"type":"order.paid","data":%d,"id":"order-%d"}`, sent, sent))
		sent++
		return receiver.awaitCount(t, sent)[sent-1]
	}
	expect := func(a arrived, what, key string, standard, prefixed bool) {
		t.Helper()
		if s, p := verifies(t, a, key); s != standard || p != prefixed {
			t.Errorf("%s verifies %t as Standard Webhooks and %t with the prefixed pair, want %t and %t", what, s, p, standard, prefixed)
		}
	}

	tr.section("Rotate: the server makes the new secret and shows it once; the one before signs for a day")
	rotated := tr.ask(200, "POST", one+"/rotate-secret", "")
	second := rotated.text("secret")
	if shown := tr.ask(200, "GET", one, ""); shown.get("secret") != nil || strings.Contains(string(shown.body), second) {
		t.Errorf("the secret is shown again: %s", shown.body)
	}
	tr.section("Until then both sign: a receiver verifies with the one that it has")
	a := publish()
	tr.arrival(a, "200 OK")
	expect(a, "the new secret", second, true, true)
	expect(a, "the old secret", first, true, true)
	tr.section("A secret that is given is not shown; with no grace, what is older stops at once")
	if a := tr.ask(200, "POST", one+"/rotate-secret", fmt.Sprintf(`{"secret":%q,"graceSeconds":0}`, third)); a.get("secret") != nil || a.get("secrets.1") != nil {
		t.Errorf("rotated: %s", a.body)
	}
	a = publish()
	tr.arrival(a, "200 OK")
	expect(a, "the new secret", third, true, true)
	expect(a, "the old secret", second, false, false)
	expect(a, "the oldest secret", first, false, false)
	tr.section("Refused: a secret that is in force, what is no secret, a grace of more than a week")
	tr.ask(400, "POST", one+"/rotate-secret", fmt.Sprintf(`{"secret":%q}`, third))
	tr.ask(400, "POST", one+"/rotate-secret", `{"secret":"whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","graceSeconds":604801}`)

	tr.section("Asked for v1a, the webhook has a key pair of its own; receivers get the public key")
	asked := tr.ask(200, "PATCH", one, `{"signatures":["v1","v1a"]}`)
	whpk, kid := asked.text("publicKeys.0.key"), asked.text("publicKeys.0.id")
	tr.section("It stands in a JSON Web Key set too, which asks for no credential")
	set := tr.ask(200, "GET", "/.well-known/hypha/keys.json", "", "Authorization: ")
	if set.text("keys.0.whpk") != whpk || set.text("keys.0.kid") != kid || set.header.Get("Cache-Control") != "public, max-age=300" {
		t.Errorf("keys.json: %v %s", set.header, set.body)
	}
	a = publish()
	tr.arrival(a, "200 OK")
	expect(a, "the public key", set.text("keys.0.whpk"), true, false)
	expect(a, "the secret", third, true, true)
	tr.section("A rotation replaces both; the old ones sign beside the new ones")
	rotated = tr.ask(200, "POST", one+"/rotate-secret", `{"graceSeconds":3600}`)
	a = publish()
	tr.arrival(a, "200 OK")
	expect(a, "the old public key", whpk, true, false)
	expect(a, "the new public key", rotated.text("publicKeys.0.key"), true, false)
	expect(a, "the old secret", third, true, true)
	expect(a, "the new secret", rotated.text("secret"), true, true)
	if set := tr.quietly(200, "GET", "/.well-known/hypha/keys.json", "", "Authorization: "); len(set.get("keys").([]any)) != 2 {
		t.Errorf("keys.json: %s", set.body)
	}
	tr.ask(200, "GET", "/.well-known/hypha/keys.json?kid="+kid, "", "Authorization: ")
	tr.section("v1a alone: nothing of v1 in webhook-signature; the prefixed pair is sent all the same")
	tr.ask(200, "PATCH", one, `{"signatures":["v1a"]}`)
	last := publish()
	tr.arrival(last, "200 OK")
	expect(last, "the new public key", rotated.text("publicKeys.0.key"), true, false)
	expect(last, "the new secret", rotated.text("secret"), false, true)
	expect(last, "the old secret", third, false, true)
	tr.section("The log shows the signatures that were sent, also after the next rotation")
	settled(tr, id, "SUCCESS", 1)
	tr.quietly(200, "POST", one+"/rotate-secret", `{"graceSeconds":0}`)
	tr.quietly(200, "PATCH", one, `{"signatures":["v1"]}`)
	for i, arrived := range receiver.awaitCount(t, sent) {
		var shown told
		delivery := ""
		eventually(t, "the delivery is recorded", func() bool {
			delivery = tr.quietly(200, "GET", fmt.Sprintf("/services/webhooks/deliveries?eventId=order-%d", i), "").text("data.0.id")
			shown = tr.quietly(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
			return shown.text("status") == "SUCCESS"
		})
		for _, name := range []string{"Webhook-Signature", "X-Plinqx-Signature", "X-Plinqx-Signature-Previous"} {
			if got, want := shown.text("attemptList.0.request.headers."+name), arrived.header.Get(name); got != want {
				t.Errorf("delivery %d: %s is shown as %q, and was %q", i, name, got, want)
			}
		}
		for _, secret := range []string{first, second, third, rotated.text("secret"), "whsk_"} {
			if strings.Contains(string(shown.body), secret) {
				t.Errorf("delivery %d shows the secret %s", i, secret)
			}
		}
		if i == sent-1 {
			tr.ask(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
		}
	}
	tr.section("Ten secrets may sign at once; then one has to end first, or all with graceSeconds 0")
	for range signature.MaxSecrets - 1 {
		tr.quietly(200, "POST", one+"/rotate-secret", "")
	}
	tr.ask(409, "POST", one+"/rotate-secret", "")
	tr.quietly(200, "POST", one+"/rotate-secret", `{"graceSeconds":0}`)
	tr.section("Where there are several tenants, keys.json is asked for one of them")
	other := tr.quietly(201, "POST", "/services/tenants", `{"name":"other"}`, "Authorization: Bearer "+operatorKey).text("id")
	eventually(t, "the server knows of its second tenant", func() bool {
		_, a := tr.exchange("GET", "/.well-known/hypha/keys.json", "", "Authorization: ")
		return a.status == http.StatusBadRequest
	})
	tr.ask(400, "GET", "/.well-known/hypha/keys.json", "", "Authorization: ")
	tr.ask(200, "GET", "/.well-known/hypha/keys.json?tenant="+other, "", "Authorization: ")
	tr.ask(404, "GET", "/.well-known/hypha/keys.json?tenant=ten_"+nobody, "", "Authorization: ")
	tr.save("rotation.txt", "Changing what signs")
}

// TestRotationsOnTwoNodesAtOnce rotates one webhook on two nodes that share a
// database, all at once: each rotation that was answered has its secret in force,
// on both.
func TestRotationsOnTwoNodesAtOnce(t *testing.T) {
	f := newFleet(t, databases.Database(t), 2)
	id, first := client{f.url(0), testKey}.createWebhook(t, f.receiver.URL+"/rotated", "rotated.*")
	var mu sync.Mutex
	secrets := []string{first}
	var wg sync.WaitGroup
	for i := range signature.MaxSecrets - 1 {
		wg.Go(func() {
			var made struct{ Secret string }
			c := client{f.url(i % 2), testKey}
			if _, err := c.do(http.MethodPost, "/webhooks/"+id+"/rotate-secret", `{}`, &made); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			secrets = append(secrets, made.Secret)
		})
	}
	wg.Wait()
	for node := range 2 {
		c := client{f.url(node), testKey}
		eventually(t, fmt.Sprintf("node %d knows all secrets", node), func() bool {
			var shown struct{ Secrets []any }
			c.must(t, http.MethodGet, "/webhooks/"+id, nil, &shown)
			return len(shown.Secrets) == signature.MaxSecrets
		})
		c.must(t, http.MethodPost, "/events", fmt.Sprintf(`{"type":"rotated.now","data":%d}`, node), nil)
		got := f.receiver.awaitCount(t, node+1)[node]
		for i, secret := range secrets {
			if standard, _ := verifies(t, got, secret); !standard {
				t.Errorf("node %d does not sign with secret %d of %d", node, i+1, len(secrets))
			}
		}
	}
}
