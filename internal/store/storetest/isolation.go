package storetest

import (
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func isolationTests() tests {
	return tests{
		"another tenant's id is an unknown id": isolation,
	}
}

// isolation asks with one tenant for what is another's, through every method
// that takes a tenant and an id, and looks whether that one noticed.
func isolation(t *testing.T, f *fixture) {
	ids := f.queue(f.a, 4)
	f.fail(f.a, ids[0])
	given := f.event(f.a)
	given.GivenID, given.Hash = "order-1", hash("x")
	r := f.request(given)
	r.Key = &store.IdempotencyKey{Key: "k", Hash: hash("x"), ExpiresAt: f.now.Add(time.Hour)}
	f.accept(r)
	k := f.keyRow()
	_, err := f.store.InsertKey(f.ctx, k)
	f.must(err)
	u := f.newUser("a@example.com")
	session := hook.Session{ID: f.makeID(), Tenant: f.tenant, User: u, CreatedAt: f.now, ExpiresAt: f.now.Add(time.Hour)}
	f.must(f.store.InsertSession(f.ctx, session, hash("s"), mostSessions))
	job := f.start(store.JobRetryFailed, f.a)
	config, counts, first := f.config(), f.counts(f.a), f.delivery(ids[0])
	webhook := config.Webhooks[0]

	mallory := f.newTenant()
	m := *f
	m.tenant = mallory
	m.newWebhook(mallory)

	for name, ask := range map[string]func() error{
		"StartJob": func() error {
			_, err := f.store.StartJob(f.ctx, store.JobParams{ID: m.makeID(), Tenant: mallory, Webhook: f.a, Kind: store.JobDiscard, Now: f.now})
			return err
		},
		"StepJob": func() error {
			_, err := f.store.StepJob(f.ctx, store.JobStepParams{Tenant: mallory, Job: job.ID, Limit: 5, Now: f.now, ExpiresAt: f.now})
			return err
		},
		"Job": func() error { _, err := f.store.Job(f.ctx, mallory, job.ID); return err },
		"RetryDelivery": func() error {
			_, err := f.store.RetryDelivery(f.ctx, store.RetryParams{Tenant: mallory, Delivery: ids[0], Now: f.now, ExpiresAt: f.now})
			return err
		},
		"CancelDelivery":   func() error { _, err := f.store.CancelDelivery(f.ctx, mallory, ids[1], f.now); return err },
		"Event":            func() error { _, err := f.store.Event(f.ctx, mallory, first.PublicEventID); return err },
		"Event by its own": func() error { _, err := f.store.Event(f.ctx, mallory, "order-1"); return err },
		"Delivery":         func() error { _, err := f.store.Delivery(f.ctx, mallory, ids[0]); return err },
		"Attempts":         func() error { _, err := f.store.Attempts(f.ctx, mallory, ids[0]); return err },
		"UpdateWebhook": func() error {
			w := webhook
			w.Tenant = mallory
			w.Revision++
			_, err := f.store.UpdateWebhook(f.ctx, w)
			return err
		},
		"DeleteWebhook": func() error {
			_, err := f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: mallory, Webhook: f.a, Job: m.makeID(), Now: f.now})
			return err
		},
		"WebhookRevision": func() error { _, err := f.store.WebhookRevision(f.ctx, mallory, f.a, 1); return err },
		"SetPause":        func() error { return f.store.SetPause(f.ctx, mallory, f.a, f.now) },
		"UpdateKey": func() error {
			other := k
			other.Tenant, other.Name = mallory, "mine"
			_, err := f.store.UpdateKey(f.ctx, other)
			return err
		},
		"DeleteKey":     func() error { _, err := f.store.DeleteKey(f.ctx, mallory, k.ID); return err },
		"DeleteSession": func() error { return f.store.DeleteSession(f.ctx, mallory, session.ID) },
		"InsertSession": func() error {
			s := session
			s.ID, s.Tenant = m.makeID(), mallory
			return f.store.InsertSession(f.ctx, s, hash("t"), mostSessions)
		},
	} {
		if err := ask(); err == nil || hook.CodeOf(err) != hook.CodeNotFound {
			t.Errorf("%s: %v; want not found", name, err)
		}
	}
	// Lists and sums have nothing to show.
	m.equal("Deliveries", m.list(store.DeliveryQuery{Webhook: f.a, Limit: 9}), &store.DeliveryPage{})
	m.equal("Deliveries of an event", m.list(store.DeliveryQuery{EventID: "order-1", Limit: 9}), &store.DeliveryPage{})
	m.equal("Deliveries of all", m.list(store.DeliveryQuery{Limit: 9}), &store.DeliveryPage{})
	m.equal("Deliveries from another's on", m.list(store.DeliveryQuery{Limit: 9, Before: ids[3]}), &store.DeliveryPage{})
	m.wantCounts(f.a, "pending 0 failed 0 total 0; attempts 0+ 0-")
	m.wantCounts(id.Webhook{}, "pending 0 failed 0 total 0; attempts 0+ 0-")
	events, err := f.store.Events(f.ctx, store.EventQuery{Tenant: mallory, Limit: 9})
	f.must(err)
	m.equal("Events", events, &store.EventPage{})
	m.equal("Claim", m.claim(f.a, 9), &store.Claimed{})
	m.now = m.now.Add(1000 * time.Hour)
	m.equal("Expire", m.expire(9), &store.ExpireResult{})
	m.now = f.now
	f.must(f.store.TouchKeys(f.ctx, []store.KeyUse{{Tenant: mallory, Key: k.ID, At: f.now}}))
	o := m.outcome(f.a, ids[1], 1, hook.Succeeded)
	// Keys and given ids are the tenant's own.
	own := m.event()
	own.GivenID, own.Hash = "order-1", hash("y")
	accept := m.request(own)
	accept.Key = &store.IdempotencyKey{Key: "k", Hash: hash("y"), ExpiresAt: f.now.Add(time.Hour)}
	m.apply(&store.Batch{Accepts: []*store.Accept{accept}, Outcomes: []*store.Outcome{o}})
	f.must(accept.Err)
	if o.Matched || accept.Results[0].Duplicate {
		t.Errorf("an outcome matched (%v), or a key was another's (%v)", o.Matched, accept.Results)
	}
	m.wantCounts(id.Webhook{}, "pending 0 failed 0 total 0; attempts 0+ 0-")

	f.equal("configuration", f.config(), config)
	f.equal("delivery", f.delivery(ids[0]), first)
	if got := f.counts(f.a); got != counts {
		t.Errorf("counts went from %s to %s", counts, got)
	}
}
