package main

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"crypto/hmac"
	"crypto/sha256"
)

// What arrives is what was published, byte for byte, and a foreign library
// finds the signature right. (Package signature has the vectors, and the
// verifier of npm.)
func TestWireFormat(t *testing.T) {
	receiver := newArrivals(t, nil)
	v := startServer(t, nil)
	c := client{v.url(), testKey}
	_, secret := c.createWebhook(t, receiver.URL+"/own", "wire.*")
	const plain = "a-plain-webhook-secret"
	c.must(t, http.MethodPost, "/webhooks", map[string]any{
		"name": "plain", "url": receiver.URL + "/plain", "events": []string{"wire.test"}, "secret": plain,
		"headers": map[string]string{"Authorization": "Bearer theirs", "X-Tag": "one"},
	}, nil)

	for name, data := range map[string]string{
		"key order":         `{"b":1,"a":2}`,
		"numbers":           `{"n":12345678901234567890.5,"m":1.0,"e":1E5,"z":-0}`,
		"markup":            `{"h":"<b>&</b>","q":"\"\\\/"}`,
		"line separators":   "{\"s\":\"\u2028\u2029\"}",
		"escaped":           `{"s":"\u2028\u003c\ud83d\ude80"}`,
		"inner white space": "{ \"a\" :\t[ 1 ,\n 2 ] }",
		"empty":             `{}`,
		"text":              `"just a text"`,
		"array":             `[1,[2,[3]]]`,
		"large":             `{"x":"` + strings.Repeat("a", 900_000) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			receiver.mu.Lock()
			before := len(receiver.got)
			receiver.mu.Unlock()
			const metadata = `{"z":"<&>","a":1e3}`
			var made struct{ ID, Timestamp string }
			c.must(t, http.MethodPost, "/events", `{"type":"wire.test","data":`+data+`,"metadata":`+metadata+`}`, &made)
			got := receiver.awaitCount(t, before+2)[before:]
			want := fmt.Sprintf(`{"id":"%s","type":"wire.test","timestamp":"%s","data":%s,"metadata":%s}`, made.ID, made.Timestamp, data, metadata)
			for _, a := range got {
				if string(a.body) != want {
					t.Fatalf("%s got %.300q, want %.300q", a.path, a.body, want)
				}
				key := secret
				if a.path == "/plain" {
					key = plain
				}
				checkHeaders(t, a, made.ID, key)
			}
		})
	}
}

func checkHeaders(t *testing.T, a arrived, event, secret string) {
	t.Helper()
	h := a.header
	for name, want := range map[string]string{
		"Content-Type": "application/json", "X-Plinqx-Event": "wire.test", "Webhook-Id": event,
		"X-Plinqx-Timestamp": h.Get("Webhook-Timestamp"),
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(h.Get("User-Agent"), "Hypha-Webhooks/") || !strings.HasPrefix(h.Get("X-Plinqx-Delivery"), "dlv_") {
		t.Errorf("headers: %v", h)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s.%s", h.Get("X-Plinqx-Timestamp"), a.body)
	if got := h.Get("X-Plinqx-Signature"); got != hex.EncodeToString(mac.Sum(nil)) {
		t.Errorf("X-Plinqx-Signature is wrong: %s", got)
	}
	var foreign *standardwebhooks.Webhook
	var err error
	if strings.HasPrefix(secret, "whsec_") {
		foreign, err = standardwebhooks.NewWebhook(secret)
	} else {
		foreign, err = standardwebhooks.NewWebhookRaw([]byte(secret))
		if h.Get("Authorization") != "Bearer theirs" || h.Get("X-Tag") != "one" {
			t.Errorf("the webhook's own headers did not come: %v", h)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := foreign.Verify(a.body, h); err != nil {
		t.Errorf("the foreign library: %v", err)
	}
}

// Every attempt has the same body and id, and a timestamp of its own.
func TestAttemptsOfADelivery(t *testing.T) {
	n := 0
	receiver := newArrivals(t, func(arrived) int {
		if n++; n < 3 {
			return http.StatusInternalServerError
		}
		return http.StatusNoContent
	})
	v := startServer(t, func(s *settings) { s.RetrySchedule = []time.Duration{time.Second, time.Second} })
	c := client{v.url(), testKey}
	webhook, _ := c.createWebhook(t, receiver.URL, "*")
	c.must(t, http.MethodPost, "/events", `{"type":"wire.retry","data":{"n":1},"id":"my-own-id"}`, nil)
	got := receiver.awaitCount(t, 3)
	for _, a := range got {
		if string(a.body) != string(got[0].body) || a.header.Get("webhook-id") != "my-own-id" ||
			a.header.Get("X-Plinqx-Delivery") != got[0].header.Get("X-Plinqx-Delivery") {
			t.Errorf("an attempt differs: %v %s", a.header, a.body)
		}
	}
	if got[0].header.Get("webhook-signature") == got[2].header.Get("webhook-signature") {
		t.Error("the third attempt, two seconds later, has the first one's signature")
	}
	var list struct {
		Data []struct {
			ID, Status string
			Attempts   int
		}
	}
	eventually(t, "the delivery is recorded as SUCCESS", func() bool {
		c.must(t, http.MethodGet, "/webhooks/"+webhook+"/deliveries", nil, &list)
		return len(list.Data) == 1 && list.Data[0].Status == "SUCCESS" && list.Data[0].Attempts == 3
	})
	var one struct {
		AttemptList []struct {
			Number   int
			Trigger  string
			Response *struct{ StatusCode int }
			Error    *struct{ Kind string }
		}
	}
	c.must(t, http.MethodGet, "/webhooks/deliveries/"+list.Data[0].ID, nil, &one)
	if len(one.AttemptList) != 3 {
		t.Fatalf("%d attempts are on record: %+v", len(one.AttemptList), one.AttemptList)
	}
	for i, want := range []struct {
		status int
		kind   string
	}{{http.StatusInternalServerError, "status"}, {http.StatusInternalServerError, "status"}, {http.StatusNoContent, ""}} {
		at, kind := one.AttemptList[i], ""
		if at.Error != nil {
			kind = at.Error.Kind
		}
		if at.Number != i+1 || at.Trigger != "auto" || at.Response == nil || at.Response.StatusCode != want.status || kind != want.kind {
			t.Errorf("attempt %d: number %d, trigger %s, response %+v, error kind %q; want auto, %d, %q", i+1, at.Number, at.Trigger, at.Response, kind, want.status, want.kind)
		}
	}
}
