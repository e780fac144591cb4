package storetest

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func pruneTests() tests {
	return tests{
		"old and finished goes, and nothing else":         pruneOld,
		"what is unfinished stays with its event":         pruneUnfinished,
		"a call deletes no more than it may":              pruneLimit,
		"a running retry keeps what it stands for":        pruneRetry,
		"ended sessions go":                               pruneSessions,
		"a deleted tenant goes":                           pruneTenant,
		"stats stay":                                      pruneStats,
		"a finished delivery that is young keeps its own": pruneYoung,
	}
}

// prune calls until there is no more to do.
func (f *fixture) prune(before time.Time) store.PruneResult {
	f.Helper()
	var sum store.PruneResult
	for calls := 0; ; calls++ {
		if calls > 1000 {
			f.Fatalf("pruning does not come to its end")
		}
		r, err := f.store.Prune(f.ctx, store.PruneParams{Before: before, Now: f.now, Limit: 10})
		f.must(err)
		if !f.spans && (r.Events > 10 || r.Deliveries > 10) {
			f.Fatalf("a call deleted %+v; the limit is 10", r)
		}
		sum.Events += r.Events
		sum.Deliveries += r.Deliveries
		if !r.More {
			return sum
		}
	}
}

// aged queues deliveries some time ago.
func (f *fixture) aged(ago time.Duration, w id.Webhook, n int) []id.Delivery {
	f.Helper()
	now := f.now
	defer func() { f.now = now }()
	f.now = now.Add(-ago)
	return f.queue(w, n)
}

func (f *fixture) gone(d id.Delivery) {
	f.Helper()
	_, err := f.store.Delivery(f.ctx, f.tenant, d)
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.Attempts(f.ctx, f.tenant, d)
	f.wantCode(err, hook.CodeNotFound)
}

func pruneOld(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(-72 * time.Hour)
	ids := f.queue(f.a, 4)
	event := f.delivery(ids[0]).PublicEventID
	f.finish(f.outcome(f.a, ids[0], 1, hook.Succeeded), f.outcome(f.a, ids[2], 1, hook.Postponed))
	f.fail(f.a, ids[1], ids[3])
	f.finish(f.outcome(f.a, ids[2], 2, hook.Succeeded))
	f.now = now
	young := f.queue(f.a, 1)[0]
	f.fail(f.a, young)
	f.equal("pruned", f.prune(now.Add(-48*time.Hour)), store.PruneResult{Events: 4, Deliveries: 4})
	for _, d := range ids {
		f.gone(d)
	}
	_, err := f.store.Event(f.ctx, f.tenant, event)
	f.wantCode(err, hook.CodeNotFound)
	f.delivery(young)
	f.wantCounts(f.a, "pending 0 failed 1 total 1; attempts 2+ 4-")
	f.wantCounts(id.Webhook{}, "pending 0 failed 1 total 1; attempts 2+ 4-")
	f.equal("pruned again", f.prune(now.Add(-48*time.Hour)), store.PruneResult{})
}

func pruneUnfinished(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(-72 * time.Hour)
	e := f.event(f.a, f.b)
	f.accept(f.request(e))
	ids := f.queue(f.a, 2)
	f.finish(f.outcome(f.a, ids[1], 1, hook.Postponed), f.outcome(f.a, e.Deliveries[0].ID, 1, hook.Succeeded))
	f.now = now
	f.equal("pruned", f.prune(now), store.PruneResult{Deliveries: 1})
	f.gone(e.Deliveries[0].ID)
	f.delivery(e.Deliveries[1].ID)
	if _, err := f.store.Event(f.ctx, f.tenant, e.ID.String()); err != nil {
		f.Fatalf("the event of an unfinished delivery: %v", err)
	}
	f.equal("claimed", claimed(f.claim(f.a, 9)), ids)
	if got := f.claim(f.b, 9); len(got.Deliveries) != 1 || string(got.Deliveries[0].Body) != string(e.Body) {
		f.Fatalf("claimed %+v", got)
	}
}

func pruneYoung(_ *testing.T, f *fixture) {
	d := f.aged(72*time.Hour, f.a, 1)[0]
	f.fail(f.a, d) // now
	f.equal("pruned", f.prune(f.now.Add(-time.Hour)), store.PruneResult{})
	f.delivery(d)
	f.now = f.now.Add(2 * time.Hour)
	f.equal("pruned later", f.prune(f.now.Add(-time.Hour)), store.PruneResult{Events: 1, Deliveries: 1})
}

func pruneLimit(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(-72 * time.Hour)
	f.queue(f.a, 100) // in the way, and not to be touched
	f.fail(f.a, f.queue(f.a, 35)...)
	f.now = now
	f.equal("pruned", f.prune(now), store.PruneResult{Events: 35, Deliveries: 35})
	f.wantCounts(f.a, "pending 100 failed 0 total 100; attempts 0+ 35-")
}

func pruneRetry(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(-72 * time.Hour)
	ids := f.queue(f.a, 5)
	f.fail(f.a, ids...)
	f.now = now
	j := f.step(f.start(store.JobRetryFailed, f.a), 2)
	f.equal("pruned", f.prune(now), store.PruneResult{})
	if j = f.complete(j, 2); j.Moved != 5 {
		f.Fatalf("the job is %+v", j)
	}
}

func pruneSessions(_ *testing.T, f *fixture) {
	u := f.newUser("a@example.com")
	for i, ends := range []time.Duration{-time.Hour, time.Hour} {
		f.must(f.store.InsertSession(f.ctx, hook.Session{ID: f.makeID(), Tenant: f.tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(ends)}, hash(itoa(i)), mostSessions))
	}
	f.prune(f.now.Add(-time.Hour))
	_, err := f.store.SessionByHash(f.ctx, hash("0"))
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.SessionByHash(f.ctx, hash("1"))
	f.must(err)
}

func pruneTenant(_ *testing.T, f *fixture) {
	other := *f
	other.tenant = other.newTenant()
	other.a = other.newWebhook(other.tenant)
	kept := other.queue(other.a, 3)
	f.ids = other.ids
	ids := f.queue(f.a, 25)
	f.fail(f.a, ids[:5]...)
	f.must(f.store.DeleteTenant(f.ctx, f.tenant))
	f.crash()
	other.store = f.store
	got := f.prune(f.now.Add(-time.Hour))
	f.equal("pruned", got, store.PruneResult{Events: 25, Deliveries: 25})
	f.equal("the other tenant's", claimed(other.claim(other.a, 9)), kept)
	f.equal("pruned again", f.prune(f.now.Add(-time.Hour)), store.PruneResult{})
	f.wantCode(f.store.InsertTenant(f.ctx, hook.Tenant{ID: other.tenant, CreatedAt: f.now, UpdatedAt: f.now}), hook.CodeConflict)
}

func pruneStats(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(-72 * time.Hour).Truncate(24 * time.Hour).Add(5 * time.Hour)
	f.fail(f.a, f.queue(f.a, 3)...)
	day := f.now.Truncate(24 * time.Hour)
	f.now = now
	f.prune(now)
	f.fail(f.a, f.queue(f.a, 1)...)
	if s := f.stats(f.a, day, day.Add(24*time.Hour)); s.Failed != 3 {
		f.Fatalf("the day has %d; want 3", s.Failed)
	}
	if s := f.stats(f.a, time.Time{}, time.Time{}); s.Failed != 4 {
		f.Fatalf("all time has %d; want 4", s.Failed)
	}
}
