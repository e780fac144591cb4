package main

import (
	"strings"
	"testing"
)

func (c *contractTest) rotation(t *testing.T) {
	receiver := newArrivals(t, nil)
	_, tr := c.start(t, nil)
	made := tr.quietly(201, "POST", "/services/webhooks", `{"name":"Orders","url":"`+receiver.URL+`","events":["order.*"],"signatures":["v1","v1a"]}`)
	one := "/services/webhooks/" + made.text("id")
	tr.section("A new secret, shown once. The one before signs on for an hour, and so does the key")
	rotated := tr.ask(200, "POST", one+"/rotate-secret", `{"graceSeconds":3600}`)
	if !strings.HasPrefix(rotated.text("secret"), "whsec_") || rotated.text("secret") == made.text("secret") {
		t.Errorf("the new secret: %s", rotated.body)
	}
	tr.section("One of your own is not shown. Without grace, all before it are over")
	own := tr.ask(200, "POST", one+"/rotate-secret", `{"secret":"your-own-webhook-secret","graceSeconds":0}`)
	if own.get("secret") != nil {
		t.Errorf("a secret that was given is shown: %s", own.body)
	}
	tr.ask(400, "POST", one+"/rotate-secret", `{"secret":"your-own-webhook-secret","graceSeconds":604801}`)
	tr.ask(404, "POST", "/services/webhooks/wh_"+nobody+"/rotate-secret", `{}`)
	tr.section("The public keys that v1a signatures are verified with, for everybody")
	keys := tr.ask(200, "GET", "/.well-known/hypha/keys.json", "", "X-None: 1")
	if keys.text("keys.0.whpk") != own.text("publicKeys.0.key") || keys.get("keys.1") != nil {
		t.Errorf("the keys: %s\nthe webhook: %s", keys.body, own.body)
	}
	tr.section("What is sent has a signature of each")
	tr.quietly(200, "POST", one+"/rotate-secret", `{}`)
	tr.quietly(202, "POST", "/services/events", `{"type":"order.paid","data":1}`)
	sent := receiver.awaitCount(t, 1)[0].header
	if n := strings.Count(sent.Get("webhook-signature"), "v1,"); n != 2 || strings.Count(sent.Get("webhook-signature"), "v1a,") != 2 || sent.Get("X-Plinqx-Signature-Previous") == "" {
		t.Errorf("the signatures: %v", sent)
	}
	tr.save("rotation.txt", "Changing what signs")
}
