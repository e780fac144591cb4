package storetest

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func auditTests() tests {
	return tests{
		"an entry is there with its change":          auditWithChange,
		"a change that fails leaves none":            auditFailure,
		"what changes nothing leaves none":           auditNoChange,
		"an entry is read as it was written":         auditRoundTrip,
		"entries without a change":                   auditAlone,
		"entries are listed both ways, page by page": auditLists,
		"entries are found by what they say":         auditFilters,
		"each tenant has a log of its own":           auditTenants,
		"old entries go, and no others":              auditPrune,
		"a deleted tenant's log goes with it":        auditDeletedTenant,
	}
}

// entry is an entry about an object, in the tenant's log.
func (f *fixture) entry(action hook.AuditAction, object string) hook.AuditEntry {
	return hook.AuditEntry{
		Tenant: f.tenant, Action: action, Actor: hook.AuditActor{Kind: hook.ActorSystem},
		Object: hook.AuditObject{Kind: hook.ObjectWebhook, ID: object},
	}
}

// recorded writes entries of the fixture's clock.
func (f *fixture) recorded(entries ...hook.AuditEntry) []id.Audit {
	f.Helper()
	var ids []id.Audit
	for _, e := range entries {
		e.ID = f.makeID()
		f.must(f.store.RecordAudit(store.WithAudit(f.ctx, e)))
		ids = append(ids, e.ID)
	}
	return ids
}

func (f *fixture) audit(q store.AuditQuery) *store.AuditPage {
	f.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	page, err := f.store.AuditEntries(f.ctx, q)
	f.must(err)
	return page
}

// actions are what the tenant's log says was done, oldest first.
func (f *fixture) actions(tenant id.Tenant) (out []hook.AuditAction) {
	f.Helper()
	for _, e := range f.audit(store.AuditQuery{Tenant: tenant, Oldest: true}).Entries {
		out = append(out, e.Action)
	}
	return out
}

func entryIDs(entries []hook.AuditEntry) (ids []id.Audit) {
	for i := range entries {
		ids = append(ids, entries[i].ID)
	}
	return ids
}

// auditWithChange makes every change that there is, each with an entry of its own,
// and looks for them after a crash.
func auditWithChange(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 3)
	f.fail(f.a, ids[0])
	w := f.webhookRow(f.tenant)
	k := f.keyRow()
	operator := f.keyRow()
	operator.Tenant, operator.Hash = id.Tenant{}, hash("operator")
	u := hook.User{ID: f.makeID(), Tenant: f.tenant, Email: "a@example.com", Role: hook.RoleDeveloper, PasswordHash: "x", CreatedAt: f.now}
	session := hook.Session{ID: f.makeID(), Tenant: f.tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
	other := hook.Tenant{ID: f.makeID(), Name: "other", CreatedAt: f.now, UpdatedAt: f.now}
	var want, wantOperators []hook.AuditAction
	change := func(tenant id.Tenant, action hook.AuditAction, do func() error) {
		f.Helper()
		before := f.ctx
		e := f.entry(action, "o")
		e.Tenant = tenant
		f.ctx = store.WithAudit(f.ctx, e)
		f.must(do())
		f.ctx = before
		if tenant.IsZero() {
			wantOperators = append(wantOperators, action)
		} else {
			want = append(want, action)
		}
	}
	one := func(_ any, err error) error { return err }
	change(f.tenant, hook.AuditWebhookCreated, func() error { return one(f.store.InsertWebhook(f.ctx, w)) })
	change(f.tenant, hook.AuditWebhookUpdated, func() error {
		w.Revision++
		return one(f.store.UpdateWebhook(f.ctx, w))
	})
	change(f.tenant, hook.AuditWebhookPaused, func() error { return f.store.SetPause(f.ctx, f.tenant, w.ID, f.now.Add(time.Hour)) })
	change(f.tenant, hook.AuditWebhookResumed, func() error { return f.store.SetPause(f.ctx, f.tenant, w.ID, time.Time{}) })
	change(f.tenant, hook.AuditWebhookDeleted, func() error {
		return one(f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: w.ID, Job: f.makeID(), Now: f.now}))
	})
	change(f.tenant, hook.AuditFailedRetried, func() error {
		return one(f.store.StartJob(f.ctx, store.JobParams{ID: f.makeID(), Tenant: f.tenant, Webhook: f.a, Kind: store.JobRetryFailed, Now: f.now}))
	})
	change(f.tenant, hook.AuditQueueDiscarded, func() error {
		return one(f.store.StartJob(f.ctx, store.JobParams{ID: f.makeID(), Tenant: f.tenant, Webhook: f.a, Kind: store.JobDiscard, Now: f.now}))
	})
	change(f.tenant, hook.AuditDeliveryRetried, func() error {
		return one(f.store.RetryDelivery(f.ctx, store.RetryParams{Tenant: f.tenant, Delivery: ids[1], Now: f.now, ExpiresAt: f.now.Add(time.Hour)}))
	})
	change(f.tenant, hook.AuditDeliveryCanceled, func() error { return one(f.store.CancelDelivery(f.ctx, f.tenant, ids[2], f.now)) })
	change(f.tenant, hook.AuditAPIKeyCreated, func() error { return one(f.store.InsertKey(f.ctx, k)) })
	change(f.tenant, hook.AuditAPIKeyUpdated, func() error { return one(f.store.UpdateKey(f.ctx, k)) })
	change(f.tenant, hook.AuditAPIKeyDeleted, func() error { return one(f.store.DeleteKey(f.ctx, f.tenant, k.ID)) })
	change(f.tenant, hook.AuditUserCreated, func() error { return f.store.InsertUser(f.ctx, u, 10) })
	change(f.tenant, hook.AuditSessionStarted, func() error { return f.store.InsertSession(f.ctx, session, hash("s"), 10) })
	change(f.tenant, hook.AuditSessionEnded, func() error { return f.store.DeleteSession(f.ctx, f.tenant, session.ID) })
	role := hook.RoleViewer
	change(f.tenant, hook.AuditUserUpdated, func() error {
		return one(f.store.UpdateUser(f.ctx, store.UserChange{Tenant: f.tenant, User: u.ID, Now: f.now, Role: &role}))
	})
	change(f.tenant, hook.AuditUserSignedOut, func() error { return f.store.EndSessions(f.ctx, f.tenant, u.ID, id.Session{}) })
	change(f.tenant, hook.AuditUserDeleted, func() error { return f.store.DeleteUser(f.ctx, f.tenant, u.ID) })
	change(id.Tenant{}, hook.AuditOperatorKeyCreated, func() error { return f.store.InsertOperatorKey(f.ctx, operator) })
	change(id.Tenant{}, hook.AuditOperatorKeyUpdated, func() error { return f.store.UpdateOperatorKey(f.ctx, operator) })
	change(id.Tenant{}, hook.AuditOperatorKeyDeleted, func() error { return f.store.DeleteOperatorKey(f.ctx, operator.ID) })
	change(id.Tenant{}, hook.AuditTenantCreated, func() error { return f.store.InsertTenant(f.ctx, other) })
	change(id.Tenant{}, hook.AuditTenantUpdated, func() error { return f.store.UpdateTenant(f.ctx, other) })
	change(id.Tenant{}, hook.AuditTenantDeleted, func() error { return f.store.DeleteTenant(f.ctx, other.ID) })
	f.crash()
	f.equal("the tenant's log", f.actions(f.tenant), want)
	f.equal("the operators' log", f.actions(id.Tenant{}), wantOperators)
	// What a job stands for is known to the transaction alone.
	retried := f.audit(store.AuditQuery{Tenant: f.tenant, Action: hook.AuditFailedRetried}).Entries
	f.equal("what was retried", retried[0].Changes, []hook.AuditChange{{Field: "deliveries", To: json.RawMessage("1")}})
}

func auditFailure(_ *testing.T, f *fixture) {
	row := f.config().Webhooks[0]
	k := f.keyRow()
	_, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	ctx := store.WithAudit(f.ctx, f.entry(hook.AuditWebhookUpdated, "o"))
	_, err = f.store.UpdateWebhook(ctx, row) // its revision is taken
	f.wantMoved(err)
	_, err = f.store.InsertKey(ctx, k)
	f.wantCode(err, hook.CodeConflict)
	_, err = f.store.DeleteKey(ctx, f.tenant, f.makeID())
	f.wantCode(err, hook.CodeNotFound)
	f.wantCode(f.store.SetPause(ctx, f.tenant, f.makeID(), f.now), hook.CodeNotFound)
	f.wantCode(f.store.DeleteSession(ctx, f.tenant, f.makeID()), hook.CodeNotFound)
	f.wantCode(f.store.DeleteUser(ctx, f.tenant, f.makeID()), hook.CodeNotFound)
	f.wantLast("the last administrator", f.store.DeleteUser(ctx, f.tenant, f.newUserAs("a@example.com", hook.RoleAdministrator).ID))
	f.wantCode(f.store.DeleteTenant(ctx, f.makeID()), hook.CodeNotFound)
	_, err = f.store.CancelDelivery(ctx, f.tenant, f.makeID(), f.now)
	f.wantCode(err, hook.CodeNotFound)
	// The other way round: an entry that can't be written takes its change with it.
	taken := f.recorded(f.entry(hook.AuditWebhookCreated, "o"))[0]
	e := f.entry(hook.AuditWebhookPaused, "o")
	e.ID = taken
	if err := f.store.SetPause(store.WithAudit(f.ctx, e), f.tenant, f.a, f.now.Add(time.Hour)); err == nil {
		f.Fatalf("two entries have one id")
	}
	for _, w := range f.config().Webhooks {
		if !w.PausedUntil.IsZero() {
			f.Fatalf("the webhook is paused although the entry could not be written")
		}
	}
	f.equal("log", f.actions(f.tenant), []hook.AuditAction{hook.AuditWebhookCreated})
}

func auditNoChange(_ *testing.T, f *fixture) {
	f.fail(f.a, f.queue(f.a, 1)...)
	ctx := store.WithAudit(f.ctx, f.entry(hook.AuditFailedRetried, "o"))
	until := f.now.Add(time.Hour)
	f.must(f.store.SetPause(ctx, f.tenant, f.a, time.Time{}))
	f.must(f.store.SetPause(f.ctx, f.tenant, f.a, until))
	f.must(f.store.SetPause(ctx, f.tenant, f.a, until))
	f.start(store.JobRetryFailed, f.a)
	job, err := f.store.StartJob(ctx, store.JobParams{ID: f.makeID(), Tenant: f.tenant, Webhook: f.a, Kind: store.JobRetryFailed, Now: f.now})
	f.must(err)
	if !job.Existing {
		f.Fatalf("the job was started twice")
	}
	f.equal("log", f.actions(f.tenant), []hook.AuditAction(nil))
}

func auditRoundTrip(_ *testing.T, f *fixture) {
	want := hook.AuditEntry{
		Tenant: f.tenant, Action: hook.AuditAPIKeyCreated, SecretShown: true,
		Actor:  hook.AuditActor{Kind: hook.ActorUser, ID: "usr_1", Name: "zoë@example.com"},
		Object: hook.AuditObject{Kind: hook.ObjectAPIKey, ID: "key_1", Name: "日本 <b>\"'"},
		Origin: hook.AuditOrigin{Address: "2001:db8::1", RequestID: "mine-42", UserAgent: "curl/8"},
		Changes: []hook.AuditChange{
			{Field: "name", From: json.RawMessage(`"a"`), To: json.RawMessage(`"b"`)}, {Field: "scopes", To: json.RawMessage(`["x","y"]`)},
			{Field: "expiresAt", From: json.RawMessage(`null`), To: json.RawMessage(`null`)}, {Field: "secret"},
		},
	}
	want.ID = f.recorded(want)[0]
	want.At = want.ID.Time()
	got := f.audit(store.AuditQuery{Tenant: f.tenant}).Entries
	f.equal("entries", got, []hook.AuditEntry{want})
}

func auditAlone(_ *testing.T, f *fixture) {
	f.must(f.store.RecordAudit(f.ctx)) // with nothing to write
	f.recorded(f.entry(hook.AuditUserFailed, "o"))
	operators := f.entry(hook.AuditTenantCreated, "o")
	operators.Tenant = id.Tenant{}
	f.recorded(operators)
	nobody := f.entry(hook.AuditUserFailed, "o")
	nobody.Tenant = f.makeID()
	f.wantCode(f.store.RecordAudit(store.WithAudit(f.ctx, nobody)), hook.CodeNotFound)
	f.equal("log", f.actions(f.tenant), []hook.AuditAction{hook.AuditUserFailed})
	f.equal("the operators' log", f.actions(id.Tenant{}), []hook.AuditAction{hook.AuditTenantCreated})
	// Without an id, the store gives one of now.
	before := time.Now().Add(-time.Minute)
	f.must(f.store.RecordAudit(store.WithAudit(f.ctx, f.entry(hook.AuditUserCreated, "o"))))
	for _, e := range f.audit(store.AuditQuery{Tenant: f.tenant, Action: hook.AuditUserCreated}).Entries {
		if e.ID.IsZero() || e.At.Before(before) || e.At.After(time.Now().Add(time.Minute)) {
			f.Fatalf("entry %s is of %v", e.ID, e.At)
		}
	}
}

// walked are the ids of a list, in pages of so many.
func (f *fixture) walked(q store.AuditQuery, limit int) (ids []id.Audit) {
	f.Helper()
	for q.Limit = limit; ; {
		page := f.audit(q)
		ids = append(ids, entryIDs(page.Entries)...)
		if page.Next.IsZero() {
			return ids
		}
		q.After = page.Next
	}
}

func reversed(ids []id.Audit) (out []id.Audit) {
	for i := range ids {
		out = append(out, ids[len(ids)-1-i])
	}
	return out
}

func auditLists(_ *testing.T, f *fixture) {
	start := f.now
	var ids []id.Audit
	for range 7 {
		ids = append(ids, f.recorded(f.entry(hook.AuditWebhookUpdated, "o"))...)
		f.now = f.now.Add(time.Second)
	}
	for _, limit := range []int{1, 2, 3, 7, 8} {
		f.equal("oldest first", f.walked(store.AuditQuery{Tenant: f.tenant, Oldest: true}, limit), ids)
		f.equal("newest first", f.walked(store.AuditQuery{Tenant: f.tenant}, limit), reversed(ids))
		span := store.AuditQuery{Tenant: f.tenant, Since: start.Add(2 * time.Second), Until: start.Add(5 * time.Second)}
		f.equal("of a time, newest first", f.walked(span, limit), reversed(ids[2:5]))
		span.Oldest = true
		f.equal("of a time, oldest first", f.walked(span, limit), ids[2:5])
		span.After = ids[0] // which is before the time
		f.equal("of a time, after what is before", f.walked(span, limit), ids[2:5])
	}
	// What comes meanwhile changes nothing in the pages that follow.
	page := f.audit(store.AuditQuery{Tenant: f.tenant, Limit: 3})
	f.recorded(f.entry(hook.AuditWebhookUpdated, "o"))
	f.equal("the second page", entryIDs(f.audit(store.AuditQuery{Tenant: f.tenant, Limit: 3, After: page.Next}).Entries), reversed(ids[1:4]))
}

func auditFilters(_ *testing.T, f *fixture) {
	var ids []id.Audit
	for i := range 6 {
		e := f.entry([]hook.AuditAction{hook.AuditWebhookUpdated, hook.AuditWebhookDeleted}[i%2], fmt.Sprintf("wh_%d", i%3))
		if i > 3 {
			e.Actor = hook.AuditActor{Kind: hook.ActorAPIKey, ID: "key_1"}
		}
		ids = append(ids, f.recorded(e)...)
	}
	pick := func(which ...int) (out []id.Audit) {
		for _, i := range which {
			out = append(out, ids[i])
		}
		return out
	}
	for what, tc := range map[string]struct {
		q    store.AuditQuery
		want []id.Audit
	}{
		"action":            {store.AuditQuery{Action: hook.AuditWebhookDeleted}, pick(1, 3, 5)},
		"object":            {store.AuditQuery{Object: "wh_2"}, pick(2, 5)},
		"actor":             {store.AuditQuery{Actor: "key_1"}, pick(4, 5)},
		"the system":        {store.AuditQuery{Actor: "system"}, pick(0, 1, 2, 3)},
		"all three":         {store.AuditQuery{Action: hook.AuditWebhookDeleted, Object: "wh_2", Actor: "key_1"}, pick(5)},
		"nothing":           {store.AuditQuery{Actor: "key_2"}, nil},
		"what can't be":     {store.AuditQuery{Object: "\x00"}, nil},
		"what is no UTF-8":  {store.AuditQuery{Actor: "\xff"}, nil},
		"what is no action": {store.AuditQuery{Action: "x"}, nil},
	} {
		tc.q.Tenant = f.tenant
		for _, limit := range []int{1, 2, 10} {
			tc.q.Oldest = true
			f.equal(what+", oldest first", f.walked(tc.q, limit), tc.want)
			tc.q.Oldest = false
			f.equal(what+", newest first", f.walked(tc.q, limit), reversed(tc.want))
		}
	}
}

func auditTenants(_ *testing.T, f *fixture) {
	mine := f.recorded(f.entry(hook.AuditWebhookUpdated, "o"))
	m := *f
	m.tenant = f.newTenant()
	theirs := m.recorded(m.entry(hook.AuditWebhookDeleted, "o"), m.entry(hook.AuditWebhookDeleted, "o"))
	f.equal("mine", f.walked(store.AuditQuery{Tenant: f.tenant}, 9), mine)
	f.equal("theirs", f.walked(store.AuditQuery{Tenant: m.tenant}, 9), reversed(theirs))
	f.equal("mine, after one of theirs", f.walked(store.AuditQuery{Tenant: f.tenant, After: theirs[1]}, 9), mine)
	f.equal("the operators'", f.walked(store.AuditQuery{}, 9), []id.Audit(nil))
	_, err := f.store.AuditEntries(f.ctx, store.AuditQuery{Tenant: f.makeID(), Limit: 9})
	f.wantCode(err, hook.CodeNotFound)
}

// pruned prunes to the end, and says how many entries went.
func (f *fixture) pruned(p store.PruneParams) (n int) {
	f.Helper()
	for {
		got, err := f.store.Prune(f.ctx, p)
		f.must(err)
		n += got.AuditEntries
		if got.AuditEntries > p.Limit {
			f.Fatalf("one call deleted %d entries; want %d at most", got.AuditEntries, p.Limit)
		}
		if !got.More {
			return n
		}
	}
}

func auditPrune(_ *testing.T, f *fixture) {
	operators := f.entry(hook.AuditTenantCreated, "o")
	operators.Tenant = id.Tenant{}
	for range 5 {
		f.recorded(f.entry(hook.AuditWebhookUpdated, "o"), operators)
	}
	f.now = f.now.Add(time.Hour)
	bound := f.now
	kept := f.recorded(f.entry(hook.AuditWebhookUpdated, "o"))
	keptOperators := f.recorded(operators)
	now := f.now.Add(time.Hour)
	if n := f.pruned(store.PruneParams{Before: now, Now: now, Limit: 3}); n != 0 {
		f.Fatalf("%d entries went with the history", n)
	}
	if n := f.pruned(store.PruneParams{Before: bound.Add(-24 * time.Hour), AuditBefore: bound, Now: now, Limit: 3}); n != 10 {
		f.Fatalf("%d entries went; want 10", n)
	}
	f.equal("the tenant's", f.walked(store.AuditQuery{Tenant: f.tenant}, 9), kept)
	f.equal("the operators'", f.walked(store.AuditQuery{}, 9), keptOperators)
}

func auditDeletedTenant(_ *testing.T, f *fixture) {
	for range 5 {
		f.recorded(f.entry(hook.AuditWebhookUpdated, "o"))
	}
	other := f.newTenant()
	e := f.entry(hook.AuditTenantDeleted, "o")
	e.Tenant = id.Tenant{}
	f.must(f.store.DeleteTenant(store.WithAudit(f.ctx, e), f.tenant))
	_, err := f.store.AuditEntries(f.ctx, store.AuditQuery{Tenant: f.tenant, Limit: 9})
	f.wantCode(err, hook.CodeNotFound)
	if n := f.pruned(store.PruneParams{Before: f.now.Add(-time.Hour), Now: f.now, Limit: 3}); n != 5 {
		f.Fatalf("%d entries went with their tenant; want 5", n)
	}
	f.equal("the operators' log", f.actions(id.Tenant{}), []hook.AuditAction{hook.AuditTenantDeleted})
	f.equal("another tenant's", f.actions(other), []hook.AuditAction(nil))
}
