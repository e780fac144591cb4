package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func (c *contractTest) operatorKeys(t *testing.T) {
	_, tr := c.start(t, nil)
	tr.key = operatorKey
	tr.section("Make an operator's key; it is shown once")
	made := tr.ask(201, "POST", "/services/operator-keys", fmt.Sprintf(`{"name":"Deployments","expiresAt":%q}`, inAnHour()))
	second := "Authorization: Bearer " + made.text("key")
	tr.secrets[made.text("key")] = "<second operator's key>"
	one := "/services/operator-keys/" + made.text("id")
	tr.section("It may do what operators may")
	tr.ask(200, "GET", "/services/tenants", "", second)
	tr.section("List, oldest first, with the last use")
	list := tr.ask(200, "GET", "/services/operator-keys?limit=1", "")
	rest := tr.ask(200, "GET", "/services/operator-keys?limit=1&cursor="+list.text("nextCursor"), "")
	if rest.text("data.0.id") != made.text("id") || rest.get("nextCursor") != nil || rest.get("data.0.lastUsedAt") == nil || strings.Contains(string(rest.body), made.text("key")) {
		t.Errorf("the rest: %s", rest.body)
	}
	tr.section("Show it, and change its name and its end")
	tr.ask(200, "GET", one, "")
	tr.ask(200, "PATCH", one, `{"name":"CI","expiresAt":null}`)
	tr.section("What is wrong is said together; there are no scopes to choose")
	tr.ask(400, "POST", "/services/operator-keys", `{"name":"","expiresAt":"2001-01-01T00:00:00Z","scopes":["operator"]}`)
	tr.ask(400, "PATCH", one, `{"expiresAt":"2001-01-01T00:00:00Z"}`)
	tr.section("A tenant's key is none of them, and they are none of a tenant's")
	tenants := tr.quietly(201, "POST", "/services/api-keys", `{"name":"theirs"}`, "Authorization: Bearer "+testKey).text("id")
	tr.ask(404, "DELETE", "/services/operator-keys/"+tenants, "")
	tr.ask(404, "DELETE", "/services/api-keys/"+made.text("id"), "", "Authorization: Bearer "+testKey)
	tr.ask(403, "GET", "/services/operator-keys", "", "Authorization: Bearer "+testKey)
	tr.section("The key that asks can't be deleted: that would be a way to lock oneself out")
	tr.ask(409, "DELETE", one, "", second)
	tr.section("Another one deletes it: it is refused at once")
	tr.ask(204, "DELETE", one, "")
	tr.ask(401, "GET", "/services/tenants", "", second)
	tr.ask(404, "GET", one, "")
	tr.save("operator-keys.txt", "Operators' keys")
}

// An operator's key that was deleted is refused at once where that was done, however
// much it is used meanwhile, and by another server that shares the database soon.
func TestDeletedOperatorKeyIsRefused(t *testing.T) {
	database := databases.Database(t)
	share := func(s *settings) { s.DatabaseURL, s.SecretKey = database, strings.Repeat("5a", 32) }
	a, b := startServer(t, share), startServer(t, share)
	operator := client{a.url(), operatorKey}
	var made struct{ ID, Key string }
	operator.must(t, http.MethodPost, "/operator-keys", `{"name":"short"}`, &made)
	here, there := client{a.url(), made.Key}, client{b.url(), made.Key}
	here.must(t, http.MethodGet, "/tenants", nil, nil)
	there.must(t, http.MethodGet, "/tenants", nil, nil)
	operator.must(t, http.MethodDelete, "/operator-keys/"+made.ID, nil, nil)
	if status, err := here.do(http.MethodGet, "/tenants", nil, nil); status != http.StatusUnauthorized {
		t.Errorf("a deleted key: %d %v", status, err)
	}
	eventually(t, "the other server refuses it", func() bool {
		status, _ := there.do(http.MethodGet, "/tenants", nil, nil)
		return status == http.StatusUnauthorized
	})
}
