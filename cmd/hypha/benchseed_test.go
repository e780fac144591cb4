package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/postgres"
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// A store that is filled looks as if a server had done it: a tenant with its
// key and webhooks, and a history that has ended, in the order of time.
func TestBenchSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	made := seedStore(t, dir, map[string]string{}, "--data", dir)
	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	checkSeeded(t, s, made)
}

// The same in a database, where no commit has gone before the rows.
func TestBenchSeedIntoADatabase(t *testing.T) {
	url := databases.Database(t)
	made := seedStore(t, "the database", map[string]string{"HYPHA_DATABASE_URL": url, "HYPHA_SECRET_KEY": strings.Repeat("5e", 32)})
	s, err := postgres.Open(t.Context(), postgres.Options{URL: url, Node: "test"})
	if err != nil {
		t.Fatal(err)
	}
	checkSeeded(t, s, made)
}

// seedStore fills a store, and fails to do so again.
func seedStore(t *testing.T, where string, env map[string]string, args ...string) *benchSeeded {
	t.Helper()
	env["HYPHA_BOOTSTRAP_API_KEY"], env["HYPHA_BOOTSTRAP_PASSWORD"] = "hypha_bench-seed-has-a-key", "a-password-of-some-length"
	look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	args = append([]string{"bench-seed", "--deliveries", "5003", "--webhooks", "25", "--fanout", "10", "--age", "240h"}, args...)
	var out strings.Builder
	if err := run(t.Context(), args, look, strings.NewReader(""), &out, &out); err != nil {
		t.Fatal(err)
	}
	made := &benchSeeded{}
	if err := json.Unmarshal([]byte(out.String()), made); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if made.Deliveries != 5003 || made.Webhooks != 25 || made.Until.Sub(made.From) != 240*time.Hour || made.Failed < 50 || made.Failed > 150 {
		t.Errorf("made %+v, want 5,003 deliveries, of which 2 in 100 have failed", made)
	}
	if err := run(t.Context(), args, look, strings.NewReader(""), &out, &out); err == nil || !strings.Contains(err.Error(), "a store in "+where+" already") {
		t.Errorf("error %v, want that a store is there", err)
	}
	return made
}

// checkSeeded looks at what was made, and closes the store.
func checkSeeded(t *testing.T, s store.Store, made *benchSeeded) {
	t.Helper()
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	tenants, err := s.Tenants(t.Context(), id.Tenant{}, 2)
	if err != nil || len(tenants) != 1 {
		t.Fatalf("%d tenants, %v", len(tenants), err)
	}
	tenant := tenants[0].ID
	config, err := s.TenantConfig(t.Context(), tenant)
	if err != nil || len(config.Webhooks) != 25 || len(config.Keys) != 1 {
		t.Fatalf("%d webhooks, %d keys, %v", len(config.Webhooks), len(config.Keys), err)
	}
	failed := hook.StatusFailed
	for _, c := range []struct {
		status *hook.Status
		want   int
	}{{nil, made.Deliveries}, {&failed, made.Failed}} {
		if n, _, err := s.CountDeliveries(t.Context(), store.DeliveryQuery{Tenant: tenant, Status: c.status}, 1e6); err != nil || n != int64(c.want) {
			t.Errorf("%d deliveries, %v; want %d", n, err, c.want)
		}
	}
	if backlog, err := s.Backlog(t.Context()); err != nil || len(backlog) > 0 {
		t.Errorf("a backlog of %d webhooks, %v; want none: all has ended", len(backlog), err)
	}
	checkSeededCounts(t, s, tenant, made)
	seen, newest := 0, made.Until
	for before := (id.Delivery{}); ; {
		page, err := s.Deliveries(t.Context(), store.DeliveryQuery{Tenant: tenant, Before: before, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page.Deliveries {
			if seen++; d.CreatedAt.After(newest) || d.CreatedAt.Before(made.From) || !d.Status.Done() || d.Last == nil {
				t.Fatalf("delivery %d: %+v after one of %v", seen, d, newest)
			}
			newest = d.CreatedAt
		}
		if before = page.Next; before.IsZero() {
			break
		}
	}
	if seen != made.Deliveries || newest.Sub(made.From) > time.Hour {
		t.Errorf("%d deliveries, the oldest of %v; want %d from %v on", seen, newest, made.Deliveries, made.From)
	}
}

// checkSeededCounts compares counts of all kinds with each other, and attempts with
// their deliveries.
func checkSeededCounts(t *testing.T, s store.Store, tenant id.Tenant, made *benchSeeded) {
	t.Helper()
	stats := func(q store.StatsQuery) *store.Stats {
		t.Helper()
		q.Tenant = tenant
		got, err := s.Stats(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := int64(made.Deliveries - made.Failed)
	middle := made.From.Add(made.Until.Sub(made.From) / 2).Truncate(time.Minute)
	for what, q := range map[string][]store.StatsQuery{
		"all":               {{}},
		"halves by minutes": {{Until: middle}, {Since: middle}},
	} {
		var sum store.Stats
		for _, q := range q {
			got := stats(q)
			sum.Succeeded, sum.Failed, sum.Pending = sum.Succeeded+got.Succeeded, sum.Failed+got.Failed, sum.Pending+got.Pending
			if got.Succeeded == 0 || got.Latency.Quantile(0.5) < 20*time.Millisecond || got.Latency.Quantile(1) > 250*time.Millisecond {
				t.Errorf("%s: %+v took %v in the middle and %v at most", what, q, got.Latency.Quantile(0.5), got.Latency.Quantile(1))
			}
		}
		if sum.Succeeded != want || sum.Failed != int64(made.Failed) || sum.Pending != 0 {
			t.Errorf("%s: counted %d successes, %d failures, %d pending; want %d, %d, 0", what, sum.Succeeded, sum.Failed, sum.Pending, want, made.Failed)
		}
	}
	config, err := s.TenantConfig(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, w := range config.Webhooks {
		got := stats(store.StatsQuery{Webhook: w.ID})
		sum += got.Succeeded + got.Failed
	}
	if sum != int64(made.Deliveries) {
		t.Errorf("the webhooks' counts come to %d, want %d", sum, made.Deliveries)
	}
	failed := hook.StatusFailed
	for _, status := range []*hook.Status{nil, &failed} {
		page, err := s.Deliveries(t.Context(), store.DeliveryQuery{Tenant: tenant, Status: status, Limit: 20})
		if err != nil || len(page.Deliveries) != 20 {
			t.Fatalf("%d deliveries (%v), want 20", len(page.Deliveries), err)
		}
		for _, d := range page.Deliveries {
			attempts, err := s.Attempts(t.Context(), tenant, d.ID)
			if err != nil || len(attempts) != 1 || len(attempts[0].Body) == 0 || (attempts[0].Failure != nil) != (d.Status == failed) {
				t.Errorf("delivery %s, %v, has attempts %+v (%v)", d.ID, d.Status, attempts, err)
			}
		}
	}
}

func TestBenchSeedRefusesNonsense(t *testing.T) {
	_, err := runCLI(t, nil, "bench-seed", "--data", t.TempDir(), "--webhooks", "5", "--fanout", "6")
	if err == nil || !strings.Contains(err.Error(), "fanout not more than the webhooks") {
		t.Errorf("error %v", err)
	}
}

func TestBenchSeedNeedsOnePlace(t *testing.T) {
	for _, args := range [][]string{{}, {"--data", t.TempDir(), "--database-url", "postgres://127.0.0.1:1/x"}} {
		if _, err := runCLI(t, nil, append([]string{"bench-seed"}, args...)...); err == nil || !strings.Contains(err.Error(), "name a folder or a database") {
			t.Errorf("%v: error %v, want that one is named", args, err)
		}
	}
}
