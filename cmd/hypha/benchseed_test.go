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
	"github.com/plinqx/hypha/internal/store/sqlite"
)

// A store that is filled looks as if a server had done it: a tenant with its
// key and webhooks, and a history that has ended, in the order of time.
func TestBenchSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var out strings.Builder
	seed := func() error {
		env := map[string]string{"HYPHA_BOOTSTRAP_API_KEY": "hypha_bench-seed-has-a-key", "HYPHA_BOOTSTRAP_PASSWORD": "a-password-of-some-length"}
		look := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
		return run(t.Context(), []string{"bench-seed", "--data", dir, "--deliveries", "5003", "--webhooks", "25", "--fanout", "10", "--age", "240h"},
			look, strings.NewReader(""), &out, &out)
	}
	if err := seed(); err != nil {
		t.Fatal(err)
	}
	var made benchSeeded
	if err := json.Unmarshal([]byte(out.String()), &made); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if made.Deliveries != 5003 || made.Webhooks != 25 || made.Until.Sub(made.From) != 240*time.Hour || made.Failed < 50 || made.Failed > 150 {
		t.Errorf("made %+v, want 5,003 deliveries, of which 2 in 100 have failed", made)
	}
	if err := seed(); err == nil || !strings.Contains(err.Error(), "a store in "+dir+" already") {
		t.Errorf("error %v, want that a store is there", err)
	}

	s, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
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

func TestBenchSeedRefusesNonsense(t *testing.T) {
	_, err := runCLI(t, nil, "bench-seed", "--data", t.TempDir(), "--webhooks", "5", "--fanout", "6")
	if err == nil || !strings.Contains(err.Error(), "fanout not more than the webhooks") {
		t.Errorf("error %v", err)
	}
}
