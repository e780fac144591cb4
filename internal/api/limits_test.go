package api_test

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/ratelimit"
)

// limited is a server with limits, at a time that stands.
type limited struct {
	*server
	mu      sync.Mutex
	now     time.Time
	refused []api.Limit
}

func newLimited(t *testing.T, limits api.RateLimits, change func(*api.Options)) *limited {
	t.Helper()
	l := &limited{now: time.Now()}
	l.server = newServer(t, func(o *api.Options) {
		o.RateLimits = limits
		o.Now = func() time.Time {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.now
		}
		o.RateLimited = func(by api.Limit) { l.refused = append(l.refused, by) }
		if change != nil {
			change(o)
		}
	})
	return l
}

func (l *limited) pass(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now = l.now.Add(d)
}

// from asks from an address, with a token ("" for none).
func (l *limited) from(address, token, method, target string, headers ...string) answer {
	l.t.Helper()
	req := httptest.NewRequest(method, target, nil)
	req.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(address), 1234).String()
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	return l.send(req, "")
}

// want holds the latest refusals against the limits that they were by.
func (l *limited) want(by ...api.Limit) {
	l.t.Helper()
	if !slices.Equal(l.refused, by) {
		l.t.Errorf("refused by %q, want %q", l.refused, by)
	}
	l.refused = nil
}

func (l *limited) wantRefused(a answer, retryAfter string) {
	l.t.Helper()
	if a.status != http.StatusTooManyRequests || a.text("error.code") != "RATE_LIMITED" || a.header.Get("Retry-After") != retryAfter {
		l.t.Errorf("%d, Retry-After %q, want 429 after %s\n%s", a.status, a.header.Get("Retry-After"), retryAfter, a.body)
	}
}

const webhooks = "/services/webhooks"

func TestRequestsAreLimitedByKey(t *testing.T) {
	l := newLimited(t, api.RateLimits{Requests: ratelimit.Rate{PerSecond: 0.5, AtOnce: 3}}, nil)
	_, other := l.newTenant()
	for range 3 {
		l.must(200, "GET", webhooks, "")
	}
	l.wantRefused(l.ask("GET", webhooks, ""), "2")
	l.wantRefused(l.ask("POST", webhooks, hookBody), "2")
	l.wantRefused(l.ask("GET", "/services/users", ""), "2")
	l.want(api.LimitRequests, api.LimitRequests, api.LimitRequests)

	l.must(200, "GET", webhooks, "", "Authorization: Bearer "+other)
	l.must(202, "POST", "/services/events", `{"type":"a","data":{}}`) // which has a limit of its own
	for range 10 {
		l.must(200, "GET", "/services/tenants", "", "Authorization: Bearer "+operatorKey)
		l.must(200, "GET", webhooks, "", "Authorization: Bearer "+operatorKey, "X-Hypha-Tenant: "+l.tenant.String())
	}
	l.want()
	l.pass(2 * time.Second)
	l.must(200, "GET", webhooks, "")
	l.wantRefused(l.ask("GET", webhooks, ""), "2")
}

// A user has what a user has, with however many sessions.
func TestRequestsAreLimitedByUser(t *testing.T) {
	l := newLimited(t, api.RateLimits{Requests: ratelimit.Rate{PerSecond: 1, AtOnce: 4}}, nil)
	signIn := func() string {
		t.Helper()
		return "Authorization: Bearer " + l.must(200, "POST", "/services/auth/login", `{"email":"`+email+`","password":"`+password+`"}`, "Authorization: ").text("token")
	}
	first, second := signIn(), signIn()
	for range 2 {
		l.must(200, "GET", "/services/auth/me", "", first)
		l.must(200, "GET", "/services/auth/me", "", second)
	}
	l.wantRefused(l.ask("GET", "/services/auth/me", "", first), "1")
	l.wantRefused(l.ask("GET", "/services/auth/me", "", second), "1")
	l.must(200, "GET", "/services/auth/me", "") // the API key's
}

func TestEventsAreLimitedByKey(t *testing.T) {
	l := newLimited(t, api.RateLimits{Events: ratelimit.Rate{PerSecond: 10, AtOnce: 20}}, nil)
	const one = `{"type":"a","data":{}}`
	batch := `{"events":[` + strings.TrimSuffix(strings.Repeat(one+",", 100), ",") + `]}`
	_, other := l.newTenant()
	l.must(202, "POST", "/services/events/batch", batch) // taken whole, and owed
	l.wantRefused(l.ask("POST", "/services/events", one), "9")
	l.wantRefused(l.ask("POST", "/services/events/batch", batch), "9")
	l.want(api.LimitEvents, api.LimitEvents)
	l.must(200, "GET", webhooks, "")
	l.must(202, "POST", "/services/events", one, "Authorization: Bearer "+other)
	l.pass(9 * time.Second)
	l.must(202, "POST", "/services/events", one)
	for range 5 {
		l.must(202, "POST", "/services/events/batch", batch, "Authorization: Bearer "+operatorKey, "X-Hypha-Tenant: "+l.tenant.String())
	}
}

// The audit log of a tenant grows no faster than this, whoever of it makes the changes.
func TestChangesAreLimitedByTenant(t *testing.T) {
	l := newLimited(t, api.RateLimits{Changes: ratelimit.Rate{PerSecond: 1, AtOnce: 3}}, nil)
	second := "Authorization: Bearer " + l.must(201, "POST", "/services/api-keys", `{"name":"second"}`).text("key")
	webhook := l.newWebhook()
	l.must(200, "PATCH", webhooks+"/"+webhook, `{"name":"other"}`, second)
	for _, tc := range []struct{ method, path, body string }{
		{"POST", webhooks, hookBody},
		{"PATCH", webhooks + "/" + webhook, `{"name":"third"}`},
		{"POST", webhooks + "/" + webhook + "/rotate-secret", `{}`},
		{"POST", webhooks + "/" + webhook + "/deliveries/retry-all-failed", ""},
		{"DELETE", webhooks + "/" + webhook, ""},
	} {
		l.wantRefused(l.ask(tc.method, tc.path, tc.body, second), "1")
	}
	l.want(api.LimitChanges, api.LimitChanges, api.LimitChanges, api.LimitChanges, api.LimitChanges)
	if got := l.must(200, "GET", webhooks+"/"+webhook, "").text("name"); got != "other" {
		t.Errorf("what was refused was done: %q", got)
	}
	l.must(202, "POST", "/services/events", `{"type":"a","data":{}}`)
	_, other := l.newTenant()
	l.must(201, "POST", webhooks, hookBody, "Authorization: Bearer "+other)
	l.must(204, "DELETE", webhooks+"/"+webhook, "", "Authorization: Bearer "+operatorKey, "X-Hypha-Tenant: "+l.tenant.String())
}

func TestStrangersAreLimitedByNetwork(t *testing.T) {
	l := newLimited(t, api.RateLimits{Strangers: ratelimit.Rate{PerSecond: 1, AtOnce: 5}}, nil)
	const here, neighbour, there = "2001:db8:1:2::1", "2001:db8:1:2::ffff", "2001:db8:1:3::1"
	l.must(200, "GET", webhooks, "") // now the key is known
	_, fresh := l.newTenant()

	for _, guess := range []string{"hypha_guess", "hyps_guess", "", "hypha_other"} {
		if a := l.from(here, guess, "GET", webhooks); a.status != http.StatusUnauthorized {
			t.Fatalf("a guess of %q: %d %s", guess, a.status, a.body)
		}
	}
	if a := l.from(here, "", "GET", "/services/openapi.yaml"); a.status != http.StatusOK {
		t.Fatal(a.status, a.body)
	}
	for _, target := range []string{webhooks, "/services/openapi.yaml", "/.well-known/hypha/keys.json"} {
		l.wantRefused(l.from(neighbour, "hypha_guess", "GET", target), "1")
	}
	// A cookie is a credential like another.
	l.wantRefused(l.from(here, "", "GET", webhooks, "Cookie: __Host-hypha=hyps_guess"), "1")
	l.want(api.LimitStrangers, api.LimitStrangers, api.LimitStrangers, api.LimitStrangers)

	for _, probe := range []string{"/healthz", "/readyz"} {
		for range 10 {
			if a := l.from(here, "", "GET", probe); a.status != http.StatusOK {
				t.Errorf("%s: %d %s", probe, a.status, a.body)
			}
		}
	}
	if a := l.from(here, adminKey, "GET", webhooks); a.status != http.StatusOK {
		t.Errorf("who is known is kept out by a neighbour's guesses: %d %s", a.status, a.body)
	}
	l.wantRefused(l.from(here, fresh, "GET", "/services/auth/me"), "1")
	if a := l.from(there, fresh, "GET", "/services/auth/me"); a.status != http.StatusOK {
		t.Errorf("from elsewhere: %d %s", a.status, a.body)
	}
	if a := l.from(here, fresh, "GET", "/services/auth/me"); a.status != http.StatusOK {
		t.Errorf("now that it is known: %d %s", a.status, a.body)
	}
	l.pass(time.Second)
	if a := l.from(here, "hypha_guess", "GET", webhooks); a.status != http.StatusUnauthorized {
		t.Errorf("a second later: %d %s", a.status, a.body)
	}
}

// A credential that has ended is one that nobody knows.
func TestTheRevokedAreStrangers(t *testing.T) {
	l := newLimited(t, api.RateLimits{Strangers: ratelimit.Rate{PerSecond: 1, AtOnce: 2}}, nil)
	made := l.must(201, "POST", "/services/api-keys", `{"name":"short"}`)
	key := made.text("key")
	if a := l.from("203.0.113.7", key, "GET", webhooks); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	l.must(204, "DELETE", "/services/api-keys/"+made.text("id"), "")
	for range 2 {
		if a := l.from("203.0.113.7", key, "GET", webhooks); a.status != http.StatusUnauthorized {
			t.Fatal(a.status, a.body)
		}
	}
	l.wantRefused(l.from("203.0.113.7", key, "GET", webhooks), "1")
}

// Whoever asks for the keys of tenants that there are not keeps no other from asking.
func TestUnknownTenantsAreLimitedByNetwork(t *testing.T) {
	l := newLimited(t, api.RateLimits{}, nil)
	tenant, _ := l.newTenant()
	keys := func(of string) string { return "/.well-known/hypha/keys.json?tenant=" + of }
	refused := false
	for range 30 {
		unknown, err := id.NewTenant()
		if err != nil {
			t.Fatal(err)
		}
		a := l.from("203.0.113.7", "", "GET", keys(unknown.String()))
		refused = refused || a.status == http.StatusTooManyRequests
	}
	if !refused {
		t.Fatal("30 tenants were looked up at once")
	}
	if a := l.from("203.0.113.8", "", "GET", keys(tenant)); a.status != http.StatusOK {
		t.Errorf("another network: %d %s", a.status, a.body)
	}
	if a := l.from("203.0.113.7", "", "GET", keys(tenant)); a.status != http.StatusOK {
		t.Errorf("what is in memory by now: %d %s", a.status, a.body)
	}
}

// Behind a proxy of ours, networks are those of the clients, and nobody can pretend to
// be another.
func TestStrangersBehindAProxy(t *testing.T) {
	l := newLimited(t, api.RateLimits{Strangers: ratelimit.Rate{PerSecond: 1, AtOnce: 1}}, func(o *api.Options) {
		o.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	guess := func(remote, forwarded string) int {
		return l.from(remote, "hypha_guess", "GET", webhooks, "X-Forwarded-For: "+forwarded).status
	}
	for _, tc := range []struct {
		name, remote, forwarded string
		want                    int
	}{
		{"one client", "10.0.0.1", "203.0.113.7", 401},
		{"the same, by another proxy", "10.0.0.2", "203.0.113.7", 429},
		{"the same, with a story", "10.0.0.1", "198.51.100.99, 203.0.113.7", 429},
		{"another", "10.0.0.1", "203.0.113.8", 401},
		{"no proxy of ours", "198.51.100.1", "203.0.113.9", 401},
		{"the same, with another story", "198.51.100.1", "203.0.113.10", 429},
	} {
		if got := guess(tc.remote, tc.forwarded); got != tc.want {
			t.Errorf("%s: %d, want %d", tc.name, got, tc.want)
		}
	}
	if log := l.log.String(); !strings.Contains(log, "from=10.0.0.2:1234 client=203.0.113.7") {
		t.Errorf("the log does not say who that was:\n%s", log)
	}
	webhook := l.from("10.0.0.1", adminKey, "POST", webhooks+"/x/resume", "X-Forwarded-For: 203.0.113.20")
	if webhook.status != http.StatusNotFound {
		t.Fatal(webhook.status, webhook.body)
	}
	req := httptest.NewRequest("POST", webhooks, strings.NewReader(hookBody))
	req.RemoteAddr = "10.0.0.1:1234"
	req.Header = http.Header{"Authorization": {"Bearer " + adminKey}, "Content-Type": {"application/json"}, "X-Forwarded-For": {"203.0.113.20"}}
	if a := l.send(req, hookBody); a.status != http.StatusCreated {
		t.Fatal(a.status, a.body)
	}
	if got := l.must(200, "GET", "/services/audit?limit=1", "").text("data.0.address"); got != "203.0.113.20" {
		t.Errorf("the audit log says %q", got)
	}
}

// Sign-ins that are not even tried are counted as such.
func TestRefusedSignInsAreCounted(t *testing.T) {
	l := newLimited(t, api.RateLimits{}, nil)
	for range 11 {
		l.ask("POST", "/services/auth/login", `{"email":"nobody@example.com","password":"wrong"}`, "Authorization: ")
	}
	l.want(api.LimitSignIns)
}
