package sqlite

import (
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/contain"
	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A panic between the commit and what has to agree with it in memory is not said to
// have undone anything: the process ends, and the next one reads what is on disk.
func TestPanicAfterTheCommit(t *testing.T) {
	dir, ended := t.TempDir(), make(chan struct{})
	s, err := Open(t.Context(), Options{Dir: dir, Guard: contain.New(contain.Options{
		Logger: slog.New(slog.DiscardHandler), Counted: func(contain.Where) { t.Error("it is said to be contained") }, End: func() { close(ended); runtime.Goexit() },
	})})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	tenant := hook.Tenant{ID: id.Tenant{1}, Name: "before", CreatedAt: now, UpdatedAt: now}
	if err := s.InsertTenant(t.Context(), tenant); err != nil {
		t.Fatal(err)
	}
	config, err := s.TenantConfig(t.Context(), tenant.ID)
	if err != nil {
		t.Fatal(err)
	}
	versions := s.versions
	s.versions = nil // what is kept can't be written there
	ctx := t.Context()
	go func() {
		_, _ = s.InsertKey(ctx, store.KeyRow{APIKey: hook.APIKey{
			ID: id.Key{1}, Tenant: tenant.ID, Name: "ci", Hint: "hypha_ab", Scopes: []hook.Scope{hook.ScopeEventsWrite}, CreatedAt: now,
		}})
		t.Error("it goes on")
	}()
	<-ended
	s.takeOver(t, versions)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	next := openAt(t, dir)
	again, err := next.TenantConfig(t.Context(), tenant.ID)
	if err != nil || again.Version != config.Version+1 || len(again.Keys) != 1 {
		t.Errorf("%+v, %v", again, err)
	}
}

// takeOver waits for the turn of the goroutine that ended, and mends what the test
// broke.
func (s *Store) takeOver(t *testing.T, versions map[id.Tenant]int64) {
	t.Helper()
	release, err := s.takeTurn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	s.versions = versions
}
