package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
	"github.com/plinqx/hypha/internal/store/transfer"
)

// read asks for a page as a text.
func (c client) read(t *testing.T, path string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, c.base+"/services"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %d, %v: %s", path, answer.StatusCode, err, text)
	}
	return string(text)
}

// A store that has a bit of everything is copied. The server on PostgreSQL answers as
// the one before did, and sends what had been waiting.
func TestStoreCopy(t *testing.T) {
	receiver := newArrivals(t, func(a arrived) int {
		if strings.HasPrefix(a.path, "/fails") {
			return http.StatusInternalServerError
		}
		return http.StatusOK
	})
	dir := t.TempDir()
	start := func(env ...string) *programProcess {
		return startProgram(t, append(env, "HYPHA_BOOTSTRAP_API_KEY="+testKey), "serve", "--listen", "127.0.0.1:0",
			"--allow-egress", "127.0.0.0/8", "--retry-schedule", "100ms,100ms")
	}
	p := start("HYPHA_DATA=" + dir)
	c := client{p.url, testKey}
	c.createWebhook(t, receiver.URL+"/takes", "copy.test")
	c.must(t, http.MethodPost, "/vault", `{"name":"TOKEN","value":"kept in the vault","description":"✓"}`, nil)
	failing, _ := c.createWebhook(t, receiver.URL+"/fails", "copy.bad")
	waiting, _ := c.createWebhook(t, receiver.URL+"/waits", "copy.test")
	c.must(t, http.MethodPatch, "/webhooks/"+waiting, map[string]any{"pausedUntil": time.Now().Add(time.Hour), "headers": map[string]string{"X-Key": "{{vault.TOKEN}}"}}, nil)
	for i := range 30 {
		c.must(t, http.MethodPost, "/events", fmt.Sprintf(`{"type":"copy.test","id":"copy-%d","data":{"n":%d}}`, i, i), nil)
	}
	for i := range 3 {
		c.must(t, http.MethodPost, "/events", fmt.Sprintf(`{"type":"copy.bad","data":{"n":%d}}`, i), nil)
	}
	paths := []string{
		"/webhooks", "/webhooks/" + failing, "/webhooks/deliveries?limit=100", "/webhooks/deliveries?status=FAILED&limit=100",
		"/webhooks/" + waiting + "/deliveries?limit=100", "/webhooks/stats", "/events?limit=100", "/events/copy-7", "/audit", "/vault", "/users",
	}
	eventually(t, "all deliveries have had their attempts", func() bool {
		return strings.Count(c.read(t, "/webhooks/deliveries?status=FAILED&limit=100"), `"status":"FAILED"`) == 3 &&
			strings.Count(c.read(t, "/webhooks/deliveries?status=SUCCESS&limit=100"), `"status":"SUCCESS"`) == 30
	})
	before := map[string]string{}
	for _, path := range paths {
		before[path] = c.read(t, path)
	}
	if err := p.stop(t); err != nil {
		t.Fatal(err)
	}

	database := databases.Database(t)
	breakOff(t, dir, database)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"store", "copy", "--from", dir, "--to", database}, noVariables, strings.NewReader(""), &out, io.Discard); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if !strings.Contains(out.String(), "events             33 of 33 copied and counted") {
		t.Errorf("it says:\n%s", &out)
	}
	if err := run(t.Context(), []string{"store", "copy", "--from", dir, "--to", database}, noVariables, strings.NewReader(""), io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second copy: %v; want that the database is not empty", err)
	}

	key, err := os.ReadFile(filepath.Join(dir, "secret.key"))
	if err != nil {
		t.Fatal(err)
	}
	p = start("HYPHA_DATABASE_URL="+database, "HYPHA_SECRET_KEY="+strings.TrimSpace(string(key)))
	c = client{p.url, testKey}
	for _, path := range paths {
		if diff := cmp.Diff(before[path], c.read(t, path)); diff != "" {
			t.Errorf("GET %s (-before +after):\n%s", path, diff)
		}
	}
	if status, err := c.do(http.MethodPost, "/events", `{"type":"copy.test","id":"copy-3","data":{"n":3}}`, nil); status != http.StatusOK && status != http.StatusAccepted {
		t.Errorf("an event that was published before: %d, %v", status, err)
	}
	c.must(t, http.MethodPatch, "/webhooks/"+waiting, map[string]any{"pausedUntil": nil}, nil)
	var vault struct{ Data []struct{ ID string } }
	c.must(t, http.MethodGet, "/vault", nil, &vault)
	if status, _ := c.do(http.MethodDelete, "/vault/"+vault.Data[0].ID, nil, nil); status != http.StatusConflict {
		t.Errorf("a secret that is referred to can be deleted: %d", status)
	}
	receiver.await(t, "what had been waiting", func(got []arrived) bool {
		n := 0
		for _, a := range got {
			if a.path == "/waits" && a.header.Get("X-Key") == "kept in the vault" {
				n++
			}
		}
		return n >= 30
	})
}

func noVariables(string) (string, bool) { return "", false }

// breakOff copies until a page of the events has been written, and then no further.
func breakOff(t *testing.T, dir, database string) {
	t.Helper()
	from, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	to, err := postgres.Open(t.Context(), postgres.Options{URL: database})
	if err != nil {
		t.Fatal(err)
	}
	err = transfer.Run(t.Context(), from, &breaking{Store: to}, transfer.Options{Rows: 7})
	if !errors.Is(err, errBroken) {
		t.Errorf("the copy that was to break: %v", err)
	}
	if err := errors.Join(from.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
}

var errBroken = errors.New("broken off")

// breaking is a target that breaks at the second page of the events.
type breaking struct {
	*postgres.Store
	pages int
}

func (b *breaking) WritePart(ctx context.Context, p transfer.Part, rows []transfer.Row, now transfer.Progress) error {
	if p.Name == "events" {
		if b.pages++; b.pages == 2 {
			return errBroken
		}
	}
	return b.Store.WritePart(ctx, p, rows, now)
}
