package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/plinqx/hypha/internal/api"
	"github.com/plinqx/hypha/internal/api/openapitest"
)

// nobody is the random part of an id that nothing has.
const nobody = "01jd6c3v7genxa5fhm2rj8wq4t"

// idKinds are the parameters that stand in the document's paths, and an id of
// each kind that nothing has.
func idKinds() map[string]string {
	return map[string]string{
		"webhook": "wh_" + nobody, "delivery": "dlv_" + nobody, "event": "evt_" + nobody, "key": "key_" + nobody, "tenant": "ten_" + nobody,
		"secret": "vlt_" + nobody, "operatorKey": "key_" + nobody,
		"user": "usr_" + nobody,
	}
}

// fill puts ids in the place of a path's parameters.
func fill(t *testing.T, path string, ids map[string]string) string {
	t.Helper()
	for name, id := range ids {
		path = strings.ReplaceAll(path, "{"+name+"}", id)
	}
	if strings.Contains(path, "{") {
		t.Fatalf("%s has a parameter that this test has no id for", path)
	}
	return path
}

// bodyFor is a body that is well-formed for an operation on one thing.
func bodyFor(op operation) string {
	switch {
	case op.method == http.MethodPatch && strings.Contains(op.path, "{user}"):
		return `{"email":"x@example.com"}`
	case op.method == http.MethodPatch:
		return `{"name":"x"}`
	}
	return ""
}

func ask(t *testing.T, base, method, path, body string, headers ...string) told {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = http.NoBody, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	asIs := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := asIs.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	a := told{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestScopes asks for every operation of the document with a key of each scope.
// A key whose scope is another is refused before anything else is looked at, and
// one whose scope is right gets further. The table is in
// testdata/contract/scopes.txt.
func TestScopes(t *testing.T) {
	v := startServer(t, nil)
	c := client{v.url(), testKey}
	var me struct{ Tenant struct{ ID string } }
	c.must(t, http.MethodGet, "/auth/me", nil, &me)
	scopes := []string{"webhooks:read", "webhooks:write", "events:write", "deliveries:read", "deliveries:write", "admin"}
	keys := map[string][]string{"operator": {"Authorization: Bearer " + operatorKey, "X-Hypha-Tenant: " + me.Tenant.ID}, "none": nil}
	for _, scope := range scopes {
		var made struct{ Key string }
		c.must(t, http.MethodPost, "/api-keys", map[string]any{"name": scope, "scopes": []string{scope}}, &made)
		keys[scope] = []string{"Authorization: Bearer " + made.Key}
	}
	var session struct{ Token string }
	c.must(t, http.MethodPost, "/auth/login", map[string]string{"email": testEmail, "password": testPassword}, &session)

	operations := operationsOf(t)
	documented := make([]string, len(operations))
	for i, op := range operations {
		documented[i] = op.String()
	}
	slices.Sort(documented)
	if all := openapitest.New(t, api.OpenAPI()).Operations(); !slices.Equal(documented, all) {
		t.Fatalf("read %v\nwant %v", documented, all)
	}

	columns := append([]string{"none"}, append(scopes, "operator")...)
	var table strings.Builder
	fmt.Fprintf(&table, "# Who may do what\n\nyes: the scope is enough. 401, 403: it is not.\n\n%-75s %s\n", "", strings.Join(columns, " "))
	for _, op := range operations {
		path := fill(t, op.path, idKinds())
		fmt.Fprintf(&table, "%-75s", op.String())
		for _, column := range columns {
			if strings.HasPrefix(op.id, "logout") && column != "none" {
				fmt.Fprintf(&table, " %-*s", len(column), "yes") // of a session; a key has none, whatever its scope
				continue
			}
			body := bodyFor(op)
			if op.method == http.MethodPost && !strings.Contains(op.path, "{") {
				body = `{}` // malformed, for what makes something
			}
			a := ask(t, v.url(), op.method, path, body, keys[column]...)
			cell := "yes"
			if a.status == http.StatusUnauthorized || a.status == http.StatusForbidden {
				cell = fmt.Sprint(a.status)
			}
			fmt.Fprintf(&table, " %-*s", len(column), cell)

			want := "yes"
			switch {
			case op.public:
			case column == "none":
				want = "401"
			case op.scope == "", column == op.scope, column == "operator":
			case column == "admin" && op.scope != "operator":
			default:
				want = "403"
			}
			if cell != want {
				t.Errorf("%s with %s: %d, want %s (the document asks for %q)\n%s", op, column, a.status, want, op.scope, a.body)
			}
			if a.status >= http.StatusInternalServerError {
				t.Errorf("%s with %s: %d %s", op, column, a.status, a.body)
			}
		}
		table.WriteByte('\n')
	}
	var trimmed strings.Builder
	for line := range strings.Lines(table.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	golden(t, "contract/scopes.txt", []byte(trimmed.String()))
	if a := ask(t, v.url(), http.MethodGet, "/services/auth/me", "", "Authorization: Bearer "+session.Token); a.text("user.role") != "Administrator" {
		t.Errorf("the first user is %s", a.body)
	}
}

// TestTenantIsolation calls every operation of the document that takes an id
// with ids of another tenant. Each must answer byte for byte, headers too, as
// for an id that nothing has; and the other tenant must not notice.
func TestTenantIsolation(t *testing.T) {
	receiver := newArrivals(t, nil)
	v := startServer(t, nil)
	operator := "Authorization: Bearer " + operatorKey
	tenant := ask(t, v.url(), http.MethodPost, "/services/tenants", `{"name":"other"}`, operator).text("id")
	acting := []string{operator, "X-Hypha-Tenant: " + tenant}
	theirKey := ask(t, v.url(), http.MethodPost, "/services/api-keys", `{"name":"theirs"}`, acting...)
	theirs := []string{"Authorization: Bearer " + theirKey.text("key")}
	webhook := ask(t, v.url(), http.MethodPost, "/services/webhooks", hookOf(receiver.URL, "order.*"), theirs...).text("id")
	user := ask(t, v.url(), http.MethodPost, "/services/users", `{"email":"theirs@example.com","role":"Administrator"}`, theirs...).text("id")
	event := ask(t, v.url(), http.MethodPost, "/services/events", `{"type":"order.paid","data":{"secret":"theirs"}}`, theirs...).text("id")
	named := ask(t, v.url(), http.MethodPost, "/services/events", `{"type":"order.paid","data":1,"id":"their-own-id"}`, theirs...).text("id")
	secret := ask(t, v.url(), http.MethodPost, "/services/vault", `{"name":"THEIRS","value":"their-value"}`, theirs...).text("id")
	receiver.awaitCount(t, 2)
	var delivery string
	eventually(t, "both deliveries are recorded", func() bool {
		a := ask(t, v.url(), http.MethodGet, "/services/webhooks/deliveries?status=SUCCESS", "", theirs...)
		delivery = a.text("data.1.id")
		return delivery != ""
	})
	// A page that goes on, for its cursor.
	page := ask(t, v.url(), http.MethodGet, "/services/webhooks/deliveries?limit=1", "", theirs...)

	ids := map[string]string{"webhook": webhook, "delivery": delivery, "event": event, "key": theirKey.text("id"), "tenant": tenant, "secret": secret, "user": user}
	look := func() string {
		var all strings.Builder
		for _, op := range operationsOf(t) {
			if op.method != http.MethodGet || !strings.HasPrefix(op.path, "/services/") || op.scope == "operator" || op.public {
				continue
			}
			a := ask(t, v.url(), op.method, fill(t, op.path, ids), "", theirs...)
			if a.status != http.StatusOK {
				t.Errorf("the other tenant itself: %s: %d %s", op, a.status, a.body)
			}
			fmt.Fprintf(&all, "%s %s\n", op, a.body)
		}
		return all.String()
	}
	before := look()

	stranger := ask(t, v.url(), http.MethodPost, "/services/tenants", `{"name":"stranger"}`, operator).text("id")
	for who, headers := range map[string][]string{
		"an administrator of another tenant": {"Authorization: Bearer " + testKey},
		"an operator for another tenant":     {operator, "X-Hypha-Tenant: " + stranger},
	} {
		var targets []struct{ op, mine, nobodys, body string }
		add := func(op operation, theirs, nobodys string) {
			targets = append(targets, struct{ op, mine, nobodys, body string }{op.method, theirs, nobodys, bodyFor(op)})
		}
		for _, op := range operationsOf(t) {
			if strings.Contains(op.path, "{") && op.scope != "operator" {
				add(op, fill(t, op.path, ids), fill(t, op.path, idKinds()))
			}
			if strings.Contains(op.path, "{event}") {
				add(op, fill(t, op.path, map[string]string{"event": named}), fill(t, op.path, idKinds()))
			}
			// With one's own id in the place of each other parameter there would
			// be nothing to see: each path has one.
			if strings.Count(op.path, "{") > 1 {
				t.Errorf("%s takes several ids: mix them here", op)
			}
		}
		if len(targets) < 15 {
			t.Errorf("%d operations take an id: the document was not read", len(targets))
		}
		get := operation{method: http.MethodGet}
		for _, filter := range []struct{ path, id, nobodys string }{
			{"/services/webhooks/stats?webhookId=", webhook, "wh_" + nobody},
			{"/services/webhooks/deliveries/failed?webhookId=", webhook, "wh_" + nobody},
			{"/services/webhooks/deliveries?eventId=", event, "evt_" + nobody},
			{"/services/webhooks/deliveries?eventId=", named, "evt_" + nobody},
			{"/services/audit?object=", webhook, "wh_" + nobody},
			{"/services/webhooks/deliveries?limit=1&cursor=", page.text("nextCursor"), "x"},
		} {
			if strings.Contains(filter.path, "cursor") {
				if a := ask(t, v.url(), http.MethodGet, filter.path+filter.id, "", headers...); a.status != http.StatusBadRequest {
					t.Errorf("%s: another tenant's cursor: %d %s", who, a.status, a.body)
				}
				continue
			}
			add(get, filter.path+filter.id, filter.path+filter.nobodys)
		}
		for _, target := range targets {
			a := ask(t, v.url(), target.op, target.mine, target.body, headers...)
			b := ask(t, v.url(), target.op, target.nobodys, target.body, headers...)
			for _, h := range []http.Header{a.header, b.header} {
				h.Del("X-Request-Id")
				h.Del("Date")
			}
			if a.status != b.status || !bytes.Equal(a.body, b.body) || !maps.EqualFunc(a.header, b.header, slices.Equal) {
				t.Errorf("%s: %s %s = %d %v %s\nnobody's: %d %v %s", who, target.op, target.mine, a.status, a.header, a.body, b.status, b.header, b.body)
			}
			if strings.Contains(target.mine, "?") == (a.status == http.StatusNotFound) {
				t.Errorf("%s: %s %s = %d %s", who, target.op, target.mine, a.status, a.body)
			}
		}
	}
	if after := look(); after != before {
		t.Errorf("the other tenant sees a difference:\n%s\n%s", before, after)
	}
	if got := receiver.awaitCount(t, 2); len(got) != 2 {
		t.Errorf("%d requests arrived, want 2", len(got))
	}
}
