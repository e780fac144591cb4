package api_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// logged are the lines "actor action object: fields" of a log, oldest first.
func (s *server) logged(query string, headers ...string) []string {
	s.t.Helper()
	var page struct {
		Data []struct {
			Actor   struct{ Kind, Name string }
			Action  string
			Object  struct{ Kind, Name string }
			Changes []struct{ Field string }
		}
	}
	if err := json.Unmarshal([]byte(s.must(200, "GET", "/services/audit"+query, "", headers...).body), &page); err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, e := range slices.Backward(page.Data) {
		var fields []string
		for _, c := range e.Changes {
			fields = append(fields, c.Field)
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s: %s %s [%s]", e.Actor.Kind, e.Actor.Name, e.Action, e.Object.Name, strings.Join(fields, " "))))
	}
	return out
}

func TestAuditLogSaysWhoDidWhat(t *testing.T) {
	s := newServer(t, nil)
	webhook := s.newWebhook()
	one := "/services/webhooks/" + webhook
	s.must(200, "PATCH", one, `{"name":"Renamed","secret":"your-webhook-secret","headers":{"X-Api-Key":"other","X-Tag":"t"},"url":"https://example.com/in?token=x"}`)
	s.must(200, "PATCH", one, `{"url":"https://example.com/in?token=y"}`)
	s.must(200, "PATCH", one, `{"name":"Renamed","enabled":true}`) // as it is
	s.must(200, "PATCH", one, `{}`)
	s.must(200, "PATCH", one, fmt.Sprintf(`{"pausedUntil":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	s.must(200, "POST", one+"/resume", "")
	s.must(200, "POST", one+"/resume", "") // it is not paused
	s.must(400, "PATCH", one, `{"name":""}`)
	key := s.must(201, "POST", "/services/api-keys", `{"name":"CI","scopes":["webhooks:read"]}`)
	s.must(200, "PATCH", "/services/api-keys/"+key.text("id"), `{"name":"CI"}`) // as it is
	s.must(200, "PATCH", "/services/api-keys/"+key.text("id"), `{"name":"CI 2"}`)
	s.must(204, "DELETE", "/services/api-keys/"+key.text("id"), "")
	s.must(404, "DELETE", "/services/api-keys/"+key.text("id"), "")
	session := "Authorization: Bearer " + s.must(200, "POST", "/services/auth/login", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password), "Authorization: ").text("token")
	s.must(204, "DELETE", one, "", session)
	s.must(204, "POST", "/services/auth/logout", "", session)
	acting := []string{"Authorization: Bearer " + operatorKey, "X-Hypha-Tenant: " + s.tenant.String()}
	s.must(201, "POST", "/services/webhooks", hookBody, acting...)
	want := []string{
		"system : apiKey.created bootstrap [expiresAt scopes]",
		"system : user.created admin@example.com [role]",
		"apiKey bootstrap: webhook.created My hook [enabled events headers.X-Api-Key headers.X-Tag url]",
		"apiKey bootstrap: webhook.updated My hook [headers.X-Api-Key name secret url]",
		"apiKey bootstrap: webhook.updated Renamed [url]",
		"apiKey bootstrap: webhook.paused Renamed [pausedUntil]",
		"apiKey bootstrap: webhook.resumed Renamed [pausedUntil]",
		"apiKey bootstrap: apiKey.created CI [expiresAt scopes]",
		"apiKey bootstrap: apiKey.updated CI [name]",
		"apiKey bootstrap: apiKey.deleted CI 2 []",
		"user admin@example.com: session.started admin@example.com []",
		"user admin@example.com: webhook.deleted Renamed []",
		"user admin@example.com: session.ended admin@example.com []",
		"operator bootstrap: webhook.created My hook [enabled events headers.X-Api-Key headers.X-Tag url]",
	}
	if diff := cmp.Diff(want, s.logged("")); diff != "" {
		t.Errorf("the log (-want +got):\n%s", diff)
	}
	a := s.must(200, "GET", "/services/audit?object="+webhook+"&action=webhook.updated", "")
	if got := fmt.Sprint(a.get("data.1.changes")); !strings.Contains(got, "map[field:headers.X-Api-Key] map[field:name from:My hook to:Renamed] map[field:secret] map[field:url from:https://example.com/in to:https://example.com/in?…]") {
		t.Errorf("changes: %s", got)
	}
	for _, secret := range []string{"your-webhook-secret", "other", "token=", "correct horse"} {
		if all := s.must(200, "GET", "/services/audit?limit=1000", "").body; strings.Contains(all, secret) {
			t.Errorf("the log holds %q: %s", secret, all)
		}
	}
}

func TestAuditLogSaysFromWhere(t *testing.T) {
	s := newServer(t, nil)
	agent := "User-Agent: me\u202e/1.0 (" + strings.Repeat("é", 300) + ")"
	s.must(201, "POST", "/services/webhooks", hookBody, "X-Request-Id: mine-42", agent)
	got := s.must(200, "GET", "/services/audit?limit=1", "")
	if got.text("data.0.requestId") != "mine-42" || got.text("data.0.address") != "192.0.2.1" || got.get("data.0.secretShown") != true ||
		got.text("data.0.tenantId") != s.tenant.String() {
		t.Errorf("entry: %s", got.body)
	}
	if shown := got.text("data.0.userAgent"); len([]rune(shown)) != hook.MaxUserAgent || !strings.HasPrefix(shown, "me/1.0 (éé") {
		t.Errorf("user agent %q", shown)
	}
	// A secret that the caller gave is not shown.
	given := strings.Replace(hookBody, "{", `{"secret":"your-webhook-secret",`, 1)
	s.must(201, "POST", "/services/webhooks", given)
	if got := s.must(200, "GET", "/services/audit?limit=1", ""); got.get("data.0.secretShown") != false {
		t.Errorf("entry: %s", got.body)
	}
	// What an operator does is there, and not from where, but for operators.
	acting := []string{"Authorization: Bearer " + operatorKey, "X-Hypha-Tenant: " + s.tenant.String()}
	s.must(201, "POST", "/services/webhooks", hookBody, acting...)
	if got := s.must(200, "GET", "/services/audit?limit=1", ""); got.text("data.0.actor.kind") != "operator" || got.get("data.0.address") != nil || got.get("data.0.userAgent") != nil {
		t.Errorf("for the tenant: %s", got.body)
	}
	if got := s.must(200, "GET", "/services/audit?limit=1", "", acting...); got.text("data.0.address") != "192.0.2.1" {
		t.Errorf("for the operator: %s", got.body)
	}
}

func TestOperatorsHaveALogOfTheirOwn(t *testing.T) {
	s := newServer(t, nil)
	operator := "Authorization: Bearer " + operatorKey
	tenant, _ := s.newTenant()
	s.must(200, "PATCH", "/services/tenants/"+tenant, `{"name":"other"}`, operator) // as it is
	s.must(200, "PATCH", "/services/tenants/"+tenant, `{"name":"Acme"}`, operator)
	if diff := cmp.Diff([]string{"operator bootstrap: apiKey.created other's [expiresAt scopes]"}, s.logged("", operator, "X-Hypha-Tenant: "+tenant)); diff != "" {
		t.Errorf("the tenant's (-want +got):\n%s", diff)
	}
	s.must(204, "DELETE", "/services/tenants/"+tenant, "", operator)
	s.must(404, "GET", "/services/audit", "", operator, "X-Hypha-Tenant: "+tenant)
	want := []string{
		"system : operatorKey.created bootstrap [expiresAt scopes]",
		"system : tenant.created default []",
		"operator bootstrap: tenant.created other []",
		"operator bootstrap: tenant.updated other [name]",
		"operator bootstrap: tenant.deleted Acme []",
	}
	if diff := cmp.Diff(want, s.logged("", operator)); diff != "" {
		t.Errorf("the operators' (-want +got):\n%s", diff)
	}
}

func TestAuditLogIsPagedAndFiltered(t *testing.T) {
	s := newServer(t, nil)
	for range 3 {
		s.newWebhook()
	}
	var got []string
	for path := "/services/audit?limit=2&action=webhook.created"; ; {
		a := s.must(200, "GET", path, "")
		for i := range 2 {
			if name := a.text(fmt.Sprintf("data.%d.id", i)); name != "" {
				got = append(got, name)
			}
		}
		next := a.text("nextCursor")
		if next == "" {
			break
		}
		path = "/services/audit?limit=2&action=webhook.created&cursor=" + next
	}
	if len(got) != 3 || !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b, a) }) {
		t.Errorf("entries %v", got)
	}
	if got := s.logged("?actor=system"); len(got) != 2 {
		t.Errorf("by the system: %v", got)
	}
	if got := s.logged("?until=2001-01-01T00:00:00Z"); len(got) != 0 {
		t.Errorf("of long ago: %v", got)
	}
	for query, want := range map[string]string{
		"?action=webhook.exploded": "action: is no action that there is, such as webhook.updated",
		"?actor=a.b":               "actor: must be an id",
		"?object=":                 "object: is empty",
		"?offset=1":                "offset: is not a parameter of this request",
		"/export?limit=1":          "limit: is not a parameter of this request",
		"/export?until=x":          "until: must be a time as in RFC 3339, such as 2026-01-31T12:00:00Z",
	} {
		if a := s.must(400, "GET", "/services/audit"+query, ""); !slices.Contains(a.problems(), want) {
			t.Errorf("%s: %v", query, a.problems())
		}
	}
}

// longLog is a log of so many entries, that breaks at one of its pages.
type longLog struct {
	entries int
	breaks  int // the page that can't be read, from 1; 0: none
	pages   int
	asked   []store.AuditQuery
}

var errBroken = errors.New("the disk is on fire")

func (l *longLog) AuditEntries(_ context.Context, q store.AuditQuery) (*store.AuditPage, error) {
	l.asked = append(l.asked, q)
	if l.pages++; l.pages == l.breaks {
		return nil, errBroken
	}
	first := int(binary.BigEndian.Uint64(q.After[8:]))
	page := &store.AuditPage{}
	for i := first + 1; i <= min(first+q.Limit, l.entries); i++ {
		var key id.Audit
		binary.BigEndian.PutUint64(key[8:], uint64(i))
		page.Entries = append(page.Entries, hook.AuditEntry{
			ID: key, Tenant: q.Tenant, Action: hook.AuditWebhookUpdated, Actor: hook.AuditActor{Kind: hook.ActorSystem},
			Object: hook.AuditObject{Kind: hook.ObjectWebhook, ID: "wh_x"},
		})
		page.Next = key
	}
	if first+q.Limit >= l.entries {
		page.Next = id.Audit{}
	}
	return page, nil
}

// export fetches an export, and answers the ids in its lines, and the error that
// ended it.
func export(t *testing.T, s *server, method string) (ids []string, header http.Header, err error) {
	t.Helper()
	served := httptest.NewServer(s.handler)
	defer served.Close()
	req, err := http.NewRequestWithContext(t.Context(), method, served.URL+"/services/audit/export?since=2001-01-01T00:00:00Z", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminKey)
	resp, err := served.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return nil, resp.Header, fmt.Errorf("%s: %s", resp.Status, body)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var e struct{ ID string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("line %d: %v", len(ids)+1, err)
		}
		ids = append(ids, e.ID)
	}
	return ids, resp.Header, lines.Err()
}

func TestExportGivesEveryEntryOnce(t *testing.T) {
	for _, n := range []int{0, 1, 499, 500, 501, 1750} {
		log := &longLog{entries: n}
		s := newServer(t, func(o *api.Options) { o.Audit = log })
		ids, header, err := export(t, s, http.MethodGet)
		if err != nil || len(ids) != n || !slices.IsSorted(ids) || len(slices.Compact(ids)) != n {
			t.Errorf("%d entries: %d lines, %v", n, len(ids), err)
		}
		if header.Get("Content-Type") != "application/x-ndjson" || header.Get("X-Request-Id") == "" {
			t.Errorf("headers %v", header)
		}
		for _, q := range log.asked {
			if !q.Oldest || q.Since.Year() != 2001 || q.Tenant != s.tenant || q.Limit > 1000 {
				t.Errorf("the store was asked for %+v", q)
			}
		}
	}
}

func TestHeadOfAnExportReadsNoMore(t *testing.T) {
	log := &longLog{entries: 5000}
	s := newServer(t, func(o *api.Options) { o.Audit = log })
	if ids, _, err := export(t, s, http.MethodHead); err != nil || len(ids) != 0 || log.pages > 1 {
		t.Errorf("%d lines, %v, after %d pages", len(ids), err, log.pages)
	}
}

// An export that can't go on must not look like one that is whole.
func TestExportThatBreaksIsCut(t *testing.T) {
	s := newServer(t, func(o *api.Options) { o.Audit = &longLog{entries: 2000, breaks: 3} })
	ids, _, err := export(t, s, http.MethodGet)
	if err == nil || len(ids) != 1000 {
		t.Errorf("%d lines, and it ended with %v", len(ids), err)
	}
	if log := s.log.String(); !strings.Contains(log, "the disk is on fire") || !strings.Contains(log, "level=INFO") {
		t.Errorf("the log: %s", log)
	}
	// Before it has begun, it is an answer like any other.
	s = newServer(t, func(o *api.Options) { o.Audit = &longLog{entries: 2000, breaks: 1} })
	if _, _, err := export(t, s, http.MethodGet); err == nil || !strings.Contains(err.Error(), "500") || strings.Contains(err.Error(), "fire") {
		t.Errorf("it ended with %v", err)
	}
}

// deadlines notes when the time to read and to write was set anew.
type deadlines struct {
	*httptest.ResponseRecorder
	reads, writes, flushes int
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	if time.Until(t) > 25*time.Second {
		d.reads++
	}
	return nil
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	if time.Until(t) > 25*time.Second {
		d.writes++
	}
	return nil
}

func (d *deadlines) FlushError() error {
	d.flushes++
	return nil
}

// Each page has a time limit of its own, so that an export may take as long as it is.
func TestExportHasTimeForEachPage(t *testing.T) {
	s := newServer(t, func(o *api.Options) { o.Audit = &longLog{entries: 1750} })
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	req := httptest.NewRequest(http.MethodGet, "/services/audit/export", http.NoBody)
	req.Header.Set("Authorization", "Bearer "+adminKey)
	s.handler.ServeHTTP(w, req)
	if w.reads != 4 || w.writes != 4 || w.flushes != 4 {
		t.Errorf("the time was set %d times to read and %d to write, and %d pieces were sent; want 4", w.reads, w.writes, w.flushes)
	}
}

// The actions are one closed list: the contract and the documentation have each of
// them, and no other.
func TestEveryActionIsDocumented(t *testing.T) {
	var want []string
	for _, a := range hook.AuditActions() {
		want = append(want, string(a))
	}
	_, text, _ := strings.Cut(string(api.OpenAPI()), "\n    AuditAction:\n")
	text, _, _ = strings.Cut(text, "\n    AuditEntry:\n")
	var contract []string
	for _, m := range regexp.MustCompile(`(?m)^ +- ([\w.]+)$`).FindAllStringSubmatch(text, -1) {
		contract = append(contract, m[1])
	}
	if diff := cmp.Diff(want, contract); diff != "" {
		t.Errorf("openapi.yaml (-code +document):\n%s", diff)
	}
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+\\.\\w+)` ").FindAllStringSubmatch(string(page), -1) {
		told = append(told, m[1])
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("docs/audit.md (-code +document):\n%s", diff)
	}
}
