package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/signature"
)

// key is one of the set, as it stands there.
type key struct{ Kty, Crv, X, Use, Alg, Kid, Whpk string }

type keySet struct {
	Keys       []key
	NextCursor *string
}

const (
	keys   = "/.well-known/hypha/keys.json"
	nobody = "Authorization: "
)

func (s *server) keySet(query string) keySet {
	s.t.Helper()
	a := s.must(200, "GET", keys+query, "", nobody)
	var set keySet
	if err := json.Unmarshal([]byte(a.body), &set); err != nil {
		s.t.Fatal(err)
	}
	if got := a.header.Get("Cache-Control"); got != "public, max-age=300" {
		s.t.Errorf("Cache-Control %q", got)
	}
	return set
}

func kids(set keySet) []string {
	var out []string
	for _, k := range set.Keys {
		out = append(out, k.Kid)
	}
	return out
}

func (s *server) newSigning(headers ...string) answer {
	s.t.Helper()
	return s.must(201, "POST", "/services/webhooks", `{"name":"n","url":"https://example.com/in","events":["order.*"],"signatures":["v1a","v1"]}`, headers...)
}

func TestRotateSecret(t *testing.T) {
	s := newServer(t, nil)
	path := "/services/webhooks/" + s.newSigning().text("id") + "/rotate-secret"
	for _, tc := range []struct {
		name, body string
		headers    []string
		made       bool
	}{
		{"no body", "", nil, true},
		{"an empty object", "{}", nil, true},
		{"a secret", `{"secret":"a-secret-of-sixteen","graceSeconds":3600}`, nil, false},
		{"no grace", `{"graceSeconds":0}`, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.must(200, "POST", path, tc.body, tc.headers...)
			if made := strings.HasPrefix(a.text("secret"), "whsec_"); made != tc.made || strings.Contains(a.body, "a-secret-of-sixteen") {
				t.Errorf("answered %s", a.body)
			}
			if strings.Contains(a.body, "whsk_") {
				t.Errorf("a private key is shown: %s", a.body)
			}
			if a.get("secrets.0.until") != nil || a.get("secrets.0.createdAt") == nil || (a.get("secrets.1") == nil) != (tc.name == "no grace") {
				t.Errorf("secrets: %v", a.get("secrets"))
			}
			if !cmp.Equal(a.get("secrets.1.until"), a.get("publicKeys.1.until")) {
				t.Errorf("the secret before ends at %v, the key before at %v", a.get("secrets.1.until"), a.get("publicKeys.1.until"))
			}
		})
	}
	for body, want := range map[string][]string{
		`{"secret":null}`:         {"secret: must be a string"},
		`{"graceSeconds":null}`:   {"graceSeconds: must be an integer"},
		`{"graceSeconds":"60"}`:   {"graceSeconds: must be an integer"},
		`{"graceSeconds":1.5}`:    {"graceSeconds: must be an integer"},
		`{"graceSeconds":604801}`: {"graceSeconds: must be from 0 to 604800"},
		`{"Secret":"x"}`:          {"Secret: is not a field of this request; did you mean secret?"},
		`{"graceSeconds":-1,"secret":"short"}`: {"graceSeconds: must be from 0 to 604800",
			"secret: invalid secret: it must have 16 to 256 characters, this one has 5"},
	} {
		if got := s.ask("POST", path, body); got.status != 400 || !slices.Equal(got.problems(), want) {
			t.Errorf("%s = %d %q, want %q", body, got.status, got.problems(), want)
		}
	}
	for range signature.MaxSecrets - 1 {
		s.must(200, "POST", path, "")
	}
	if full := s.must(409, "POST", path, ""); full.text("error.code") != "CONFLICT" {
		t.Errorf("an eleventh: %s", full.body)
	}
}

func TestPublicKeys(t *testing.T) {
	s := newServer(t, nil)
	if set := s.keySet(""); set.Keys == nil || len(set.Keys) != 0 {
		t.Errorf("without webhooks: %v", set)
	}
	s.newWebhook() // v1 alone has no key
	first, second := s.newSigning(), s.newSigning()
	rotated := s.must(200, "POST", "/services/webhooks/"+first.text("id")+"/rotate-secret", "")
	want := []string{rotated.text("publicKeys.0.id"), first.text("publicKeys.0.id"), second.text("publicKeys.0.id")}
	slices.Sort(want)
	set := s.keySet("")
	if diff := cmp.Diff(want, kids(set)); diff != "" || set.NextCursor != nil {
		t.Fatalf("keys (-want +got):\n%s", diff)
	}
	for _, k := range set.Keys {
		public, err := signature.ParsePublicKey(k.Whpk)
		if err != nil {
			t.Fatal(err)
		}
		if k != (key{"OKP", "Ed25519", public.X(), "sig", "EdDSA", public.Thumbprint(), public.String()}) {
			t.Errorf("key %+v", k)
		}
	}
	if body := s.must(200, "GET", keys, "", nobody).body; strings.Contains(body, "wh_") || strings.Contains(body, "whsk_") {
		t.Errorf("shows a webhook's id, or a private key: %s", body)
	}
	if got := s.keySet("?kid=" + want[1]); !slices.Equal(kids(got), want[1:2]) {
		t.Errorf("one key: %v", kids(got))
	}
	for _, other := range []string{"x", strings.Repeat("z", 43), want[2] + "a"} {
		if got := s.keySet("?kid=" + other); len(got.Keys) != 0 {
			t.Errorf("%s: %v", other, kids(got))
		}
	}

	// Page by page, each key once, and no cursor that tells of webhooks.
	var paged []string
	for query := "?limit=1"; ; {
		page := s.keySet(query)
		paged = append(paged, kids(page)...)
		if page.NextCursor == nil {
			break
		}
		query = "?limit=1&cursor=" + *page.NextCursor
	}
	if diff := cmp.Diff(want, paged); diff != "" {
		t.Errorf("pages (-want +got):\n%s", diff)
	}

	// A key is there as long as it signs.
	s.must(200, "PATCH", "/services/webhooks/"+first.text("id"), `{"signatures":["v1"]}`)
	if got := s.keySet(""); !slices.Equal(kids(got), []string{second.text("publicKeys.0.id")}) {
		t.Errorf("v1a is not asked for any more: %v", kids(got))
	}
	s.must(204, "DELETE", "/services/webhooks/"+second.text("id"), "")
	if got := s.keySet(""); len(got.Keys) != 0 {
		t.Errorf("the webhook is deleted: %v", kids(got))
	}
}

func TestPublicKeysEndWithTheGrace(t *testing.T) {
	var ahead time.Duration
	s := newServer(t, func(o *api.Options) { o.Now = func() time.Time { return time.Now().Add(ahead) } })
	webhook := s.newSigning()
	one := "/services/webhooks/" + webhook.text("id")
	rotated := s.must(200, "POST", one+"/rotate-secret", `{"graceSeconds":3600}`)
	if got := s.keySet("?limit=2"); len(got.Keys) != 2 || got.NextCursor != nil {
		t.Fatalf("in grace: %v", kids(got))
	}
	ahead = 2 * time.Hour
	if got := s.keySet("?limit=1"); !slices.Equal(kids(got), []string{rotated.text("publicKeys.0.id")}) || got.NextCursor != nil {
		t.Errorf("after the grace: %v", kids(got))
	}
	if shown := s.must(200, "GET", one, ""); shown.get("secrets.1") != nil || shown.get("publicKeys.1") != nil || shown.get("secrets.0") == nil {
		t.Errorf("after the grace: %s", shown.body)
	}
}

func TestPublicKeysOfWhichTenant(t *testing.T) {
	var ahead time.Duration
	s := newServer(t, func(o *api.Options) { o.Now = func() time.Time { return time.Now().Add(ahead) } })
	mine := s.newSigning().text("publicKeys.0.id")
	tenant := s.tenant.String()
	for _, query := range []string{"", "?tenant=" + tenant} {
		if got := s.keySet(query); !slices.Equal(kids(got), []string{mine}) {
			t.Errorf("%q: %v", query, kids(got))
		}
	}
	other, theirKey := s.newTenant()
	theirs := s.newSigning("Authorization: Bearer " + theirKey).text("publicKeys.0.id")
	ahead = 2 * time.Second // that there is one tenant is believed for a second
	if a := s.must(400, "GET", keys, "", nobody); len(a.problems()) != 1 || !strings.HasPrefix(a.problems()[0], "tenant: is required: this server has several tenants") {
		t.Errorf("no tenant: %s", a.body)
	}
	if got := s.keySet("?tenant=" + tenant); !slices.Equal(kids(got), []string{mine}) {
		t.Errorf("mine: %v", kids(got))
	}
	if got := s.keySet("?tenant=" + other); !slices.Equal(kids(got), []string{theirs}) {
		t.Errorf("theirs: %v", kids(got))
	}
	// Another tenant's key is nobody's.
	if got := s.keySet("?tenant=" + other + "&kid=" + mine); len(got.Keys) != 0 {
		t.Errorf("mine among theirs: %v", kids(got))
	}
	// A credential changes nothing.
	if a := s.must(400, "GET", keys, ""); a.header.Get("Cache-Control") != "no-store" {
		t.Errorf("with a credential: %v", a.header)
	}
	unknown := s.ask("GET", keys+"?tenant=ten_01jd6c3v7genxa5fhm2rj8wq4t", "", nobody)
	malformed := s.ask("GET", keys+"?tenant=x", "", nobody)
	if unknown.status != 404 || unknown.body != malformed.body || unknown.header.Get("Cache-Control") != "no-store" {
		t.Errorf("unknown: %d %s\nmalformed: %s", unknown.status, unknown.body, malformed.body)
	}
	for _, query := range []string{"?tenant=", "?tenant=" + tenant + "&tenant=" + tenant, "?limit=0", "?limit=1001", "?cursor=x", "?webhook=x", "?kid=", "?%zz"} {
		s.must(400, "GET", keys+query, "", nobody)
	}
}

// Ids that nothing has are asked of the store at a bounded rate; what is in memory
// is answered all the same.
func TestPublicKeysFlood(t *testing.T) {
	now := time.Now()
	s := newServer(t, func(o *api.Options) { o.Now = func() time.Time { return now } })
	s.newSigning()
	counts := map[int]int{}
	for i := range 100 {
		tenant := id.Tenant{9, byte(i)}
		a := s.ask("GET", keys+"?tenant="+tenant.String(), "", nobody)
		counts[a.status]++
		if a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") != "1" {
			t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
		}
	}
	if diff := cmp.Diff(map[int]int{404: 20, 429: 80}, counts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := s.keySet("?tenant=" + s.tenant.String()); len(got.Keys) != 1 {
		t.Errorf("the tenant that there is: %v", kids(got))
	}
	if got := s.keySet(""); len(got.Keys) != 1 {
		t.Errorf("the only tenant: %v", kids(got))
	}
	now = now.Add(time.Second)
	if a := s.ask("GET", keys+"?tenant="+id.Tenant{8}.String(), "", nobody); a.status != 404 {
		t.Errorf("a second later: %d", a.status)
	}
}

// The log shows a request with the signatures that it was sent with, whatever the
// webhook signs with by now.
func TestOldAttemptsKeepTheirSignatures(t *testing.T) {
	s := newServer(t, nil)
	webhook := s.must(201, "POST", "/services/webhooks", `{"name":"n","url":"https://example.com/in","events":["order.*"],"secret":"the-first-of-secrets","signatures":["v1","v1a"]}`)
	one := "/services/webhooks/" + webhook.text("id")
	rotate := func(secret string, grace int) answer {
		return s.must(200, "POST", one+"/rotate-secret", fmt.Sprintf(`{"secret":%q,"graceSeconds":%d}`, secret, grace))
	}
	first := webhook.text("publicKeys.0.key")
	second := rotate("the-second-of-secrets", 3600).text("publicKeys.0.key")
	s.must(202, "POST", "/services/events", `{"type":"order.a","data":1,"id":"e-1"}`)
	delivery := s.must(200, "GET", "/services/webhooks/deliveries", "").text("data.0.id")
	// One attempt of each revision, and one after the grace of the second.
	now := time.Now()
	attempts := []struct {
		revision int64
		at       time.Time
		verifies []string
		previous string
	}{
		{1, now, []string{"the-first-of-secrets", first}, ""},
		{2, now, []string{"the-second-of-secrets", "the-first-of-secrets", second, first}, "the-first-of-secrets"},
		{2, now.Add(2 * time.Hour), []string{"the-second-of-secrets", second}, ""},
	}
	for i, at := range attempts {
		s.attempt(delivery, i+1, at.revision, at.at)
	}
	s.must(200, "PATCH", one, `{"signatures":["v1"]}`)
	rotate("the-third-of-secrets", 0)
	detail := s.must(200, "GET", "/services/webhooks/deliveries/"+delivery, "")
	if strings.Contains(detail.body, "of-secrets") || strings.Contains(detail.body, "whsk_") {
		t.Errorf("a secret is shown: %s", detail.body)
	}
	for i, want := range attempts {
		shown := fmt.Sprintf("attemptList.%d.request.", i)
		h := http.Header{}
		members, _ := detail.get(shown + "headers").(map[string]any)
		for name, value := range members {
			h.Set(name, fmt.Sprint(value))
		}
		if entries := strings.Fields(h.Get("webhook-signature")); len(entries) != len(want.verifies) {
			t.Errorf("attempt %d: %d signatures, want %d", i, len(entries), len(want.verifies))
		}
		at := signature.WithClock(func() time.Time { return want.at })
		for _, key := range want.verifies {
			v, err := signature.NewVerifier([]string{key}, at)
			if err != nil {
				t.Fatal(err)
			}
			if err := v.Verify(h, []byte(detail.text(shown+"body"))); err != nil {
				t.Errorf("attempt %d, %s: %v", i, key, err)
			}
		}
		if got := h.Get("X-Plinqx-Signature-Previous"); (got != "") != (want.previous != "") {
			t.Errorf("attempt %d: previous %q", i, got)
		}
	}
}

// attempt records one that failed and is to be made again.
func (s *server) attempt(delivery string, number int, revision int64, at time.Time) {
	s.t.Helper()
	d, err := id.ParseDelivery(delivery)
	if err != nil {
		s.t.Fatal(err)
	}
	row, err := s.store.Delivery(s.t.Context(), s.tenant, d)
	if err != nil {
		s.t.Fatal(err)
	}
	b := store.Batch{Outcomes: []*store.Outcome{{
		Tenant: s.tenant, Webhook: row.Webhook, Delivery: d, Change: hook.Postponed, Try: number, At: at, Due: at.Add(time.Hour),
		Attempt: hook.Attempt{
			Number: number, Trigger: hook.TriggerAuto, StartedAt: at, Duration: time.Millisecond, Revision: revision, StatusCode: 500,
			Failure: &hook.Failure{Kind: hook.FailureStatus, Message: "answered 500"},
		},
	}}}
	if err := s.store.Apply(s.t.Context(), &b); err != nil {
		s.t.Fatal(err)
	}
}
