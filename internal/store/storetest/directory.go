package storetest

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func directoryTests() tests {
	return tests{
		"tenants are listed, oldest first": directoryTenants,
		"a tenant is renamed":              directoryRename,
		"a deleted tenant is out of reach": directoryDelete,
		"keys are found by their hash":     directoryKeys,
		"an operator's key":                directoryOperator,
		"the use of keys is noted":         directoryTouch,
	}
}

func directoryTenants(_ *testing.T, f *fixture) {
	want := []id.Tenant{f.tenant, f.newTenant(), f.newTenant(), f.newTenant()}
	var got []id.Tenant
	var after id.Tenant
	for {
		page, err := f.store.Tenants(f.ctx, after, 3)
		f.must(err)
		for _, t := range page {
			got = append(got, t.ID)
		}
		if len(page) < 3 {
			break
		}
		after = page[2].ID
	}
	f.equal("tenants", got, want)
}

func directoryRename(_ *testing.T, f *fixture) {
	want := hook.Tenant{ID: f.tenant, Name: "new", CreatedAt: f.now, UpdatedAt: f.now.Add(time.Hour)}
	f.must(f.store.UpdateTenant(f.ctx, want))
	f.crash()
	got, err := f.store.Tenant(f.ctx, f.tenant)
	f.must(err)
	f.equal("tenant", *got, want)
	want.ID = f.makeID()
	f.wantCode(f.store.UpdateTenant(f.ctx, want), hook.CodeNotFound)
	f.wantCode(f.store.DeleteTenant(f.ctx, want.ID), hook.CodeNotFound)
	_, err = f.store.Tenant(f.ctx, want.ID)
	f.wantCode(err, hook.CodeNotFound)
}

func directoryDelete(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 3)
	f.fail(f.a, ids[0])
	job := f.start(store.JobDiscard, f.a)
	event := f.delivery(ids[0]).PublicEventID
	u := f.newUser("a@example.com")
	k := f.keyRow()
	_, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	f.must(f.store.InsertSession(f.ctx, hook.Session{ID: f.makeID(), Tenant: f.tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}, hash("s"), mostSessions))
	f.must(f.store.DeleteTenant(f.ctx, f.tenant))

	check := func(name string, err error) {
		f.Helper()
		if hook.CodeOf(err) != hook.CodeNotFound || err == nil {
			f.Fatalf("%s of a deleted tenant: %v; want not found", name, err)
		}
	}
	late := f.outcome(f.a, ids[1], 1, hook.Succeeded)
	accept := f.request(f.event())
	f.apply(&store.Batch{Accepts: []*store.Accept{accept}, Outcomes: []*store.Outcome{late}})
	check("accept", accept.Err)
	if late.Matched {
		f.Fatalf("an outcome of a deleted tenant matched")
	}
	_, err = f.store.Tenant(f.ctx, f.tenant)
	check("Tenant", err)
	_, err = f.store.TenantConfig(f.ctx, f.tenant)
	check("TenantConfig", err)
	_, err = f.store.Event(f.ctx, f.tenant, event)
	check("Event", err)
	_, err = f.store.Events(f.ctx, store.EventQuery{Tenant: f.tenant, Limit: 5})
	check("Events", err)
	_, err = f.store.Delivery(f.ctx, f.tenant, ids[0])
	check("Delivery", err)
	_, err = f.store.Attempts(f.ctx, f.tenant, ids[0])
	check("Attempts", err)
	_, err = f.store.Deliveries(f.ctx, store.DeliveryQuery{Tenant: f.tenant, Limit: 5})
	check("Deliveries", err)
	_, _, err = f.store.CountDeliveries(f.ctx, store.DeliveryQuery{Tenant: f.tenant}, 5)
	check("CountDeliveries", err)
	_, err = f.store.Stats(f.ctx, store.StatsQuery{Tenant: f.tenant})
	check("Stats", err)
	_, err = f.store.WebhookRevision(f.ctx, f.tenant, f.a, 1)
	check("WebhookRevision", err)
	_, err = f.store.Job(f.ctx, f.tenant, job.ID)
	check("Job", err)
	_, err = f.store.RetryDelivery(f.ctx, store.RetryParams{Tenant: f.tenant, Delivery: ids[0], Now: f.now, ExpiresAt: f.now})
	check("RetryDelivery", err)
	_, err = f.store.KeyByHash(f.ctx, k.Hash)
	check("KeyByHash", err)
	_, err = f.store.SessionByHash(f.ctx, hash("s"))
	check("SessionByHash", err)
	users, err := f.store.UsersByEmail(f.ctx, u.Email)
	f.must(err)
	f.equal("users", users, []hook.User(nil))
	f.equal("claimed", f.claim(f.a, 5), &store.Claimed{})
	f.equal("backlog", f.backlog(), map[id.Webhook]time.Time{})
	f.equal("running", f.running(), []id.Replay(nil))
}

func directoryKeys(_ *testing.T, f *fixture) {
	k := f.keyRow()
	_, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	got, err := f.store.KeyByHash(f.ctx, k.Hash)
	f.must(err)
	f.equal("key", *got, k)
	_, err = f.store.DeleteKey(f.ctx, f.tenant, k.ID)
	f.must(err)
	_, err = f.store.KeyByHash(f.ctx, k.Hash)
	f.wantCode(err, hook.CodeNotFound)
}

func directoryOperator(_ *testing.T, f *fixture) {
	k := f.keyRow()
	k.Tenant, k.Scopes = id.Tenant{}, []hook.Scope{hook.ScopeOperator}
	f.must(f.store.InsertOperatorKey(f.ctx, k))
	f.crash()
	got, err := f.store.KeyByHash(f.ctx, k.Hash)
	f.must(err)
	f.equal("key", *got, k)
	f.wantCode(f.store.InsertOperatorKey(f.ctx, k), hook.CodeConflict)
	if n := len(f.config().Keys); n != 0 {
		f.Fatalf("a tenant has %d keys; want 0", n)
	}
	second, tenants := f.keyRow(), f.keyRow()
	second.Tenant, second.Scopes = id.Tenant{}, k.Scopes
	f.must(f.store.InsertOperatorKey(f.ctx, second))
	_, err = f.store.InsertKey(f.ctx, tenants)
	f.must(err)
	f.must(f.store.TouchKeys(f.ctx, []store.KeyUse{{Key: second.ID, At: f.now}}))
	second.LastUsedAt = f.now
	all, err := f.store.OperatorKeys(f.ctx)
	f.must(err)
	f.equal("operators' keys", all, []store.KeyRow{k, second})

	k.Name, k.ExpiresAt = "Another name", f.now.Add(time.Hour)
	f.must(f.store.UpdateOperatorKey(f.ctx, k))
	f.must(f.store.DeleteOperatorKey(f.ctx, second.ID))
	f.crash()
	all, err = f.store.OperatorKeys(f.ctx)
	f.must(err)
	f.equal("operators' keys", all, []store.KeyRow{k})
	_, err = f.store.KeyByHash(f.ctx, second.Hash)
	f.wantCode(err, hook.CodeNotFound)
	// A tenant's key is none of them, whatever is asked for.
	f.wantCode(f.store.UpdateOperatorKey(f.ctx, tenants), hook.CodeNotFound)
	f.wantCode(f.store.DeleteOperatorKey(f.ctx, tenants.ID), hook.CodeNotFound)
	f.wantCode(f.store.DeleteOperatorKey(f.ctx, second.ID), hook.CodeNotFound)
	_, err = f.store.DeleteKey(f.ctx, f.tenant, k.ID)
	f.wantCode(err, hook.CodeNotFound)
	f.must(f.store.InsertOperatorKey(f.ctx, second)) // its hash was let go of
}

func directoryTouch(_ *testing.T, f *fixture) {
	k := f.keyRow()
	_, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	version := f.config().Version
	f.must(f.store.TouchKeys(f.ctx, []store.KeyUse{
		{Tenant: f.tenant, Key: k.ID, At: f.now.Add(time.Minute)}, {Tenant: f.tenant, Key: k.ID, At: f.now}, {Tenant: f.tenant, Key: f.makeID(), At: f.now},
	}))
	got, err := f.store.KeyByHash(f.ctx, k.Hash)
	f.must(err)
	if !got.LastUsedAt.Equal(f.now.Add(time.Minute)) {
		f.Fatalf("the key was last used at %v; want %v", got.LastUsedAt, f.now.Add(time.Minute))
	}
	if got := f.config().Version; got != version {
		f.Fatalf("the use of a key raised the version from %d to %d", version, got)
	}
}
