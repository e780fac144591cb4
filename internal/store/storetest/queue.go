package storetest

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func queueTests() tests {
	return tests{
		"a claim gives all that is needed to send":       claimRow,
		"claims come in order of due, then id":           claimOrder,
		"a clock that was set back delays nothing":       claimClock,
		"what is held is passed over":                    claimHeld,
		"a panic undoes its transaction":                 claimPanics,
		"a claim is bounded by bytes":                    claimBytes,
		"a claim says when the next is due":              claimNextDue,
		"bodies come as they were":                       claimBodies,
		"a claim takes nothing of another webhook":       claimWebhook,
		"what is too old expires":                        expire,
		"expiry is bounded":                              expireLimit,
		"the backlog names webhooks with work":           backlog,
		"the backlog is silent about a deleted webhook":  backlogDeleted,
		"ping answers":                                   func(_ *testing.T, f *fixture) { f.must(f.store.Ping(f.ctx)) },
		"a claim of an unknown webhook gives nothing":    claimUnknown,
		"a change of configuration waits for its turn":   configBetween,
		"the size of the store is known and grows":       size,
		"a batch of nothing is no error":                 func(_ *testing.T, f *fixture) { f.apply(&store.Batch{}) },
		"an outcome in the batch of its accept is found": outcomeInBatch,
	}
}

func claimRow(_ *testing.T, f *fixture) {
	e := f.event(f.a)
	e.GivenID = "order-1"
	f.accept(f.request(e))
	f.crash() // nothing is held any more
	want := store.Queued{
		ID: e.Deliveries[0].ID, Event: e.ID, PublicEventID: "order-1", EventType: e.Type, Body: e.Body,
		Trigger: hook.TriggerAuto, Due: e.Due, ExpiresAt: e.ExpiresAt,
	}
	f.equal("claimed", f.claim(f.a, 10), &store.Claimed{Deliveries: []store.Queued{want}})
	f.finish(f.outcome(f.a, want.ID, 1, hook.Postponed))
	f.equal("claimed before it is due", f.claim(f.a, 10), &store.Claimed{NextDue: f.now.Add(5 * time.Second)})
	f.now = f.now.Add(5 * time.Second)
	want.Attempts, want.Try, want.Due = 1, 1, f.now
	f.equal("claimed again", f.claim(f.a, 10), &store.Claimed{Deliveries: []store.Queued{want}})
}

// What panics in the middle of a transaction is undone, and nobody has to wait for it
// after.
func claimPanics(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 2)
	f.crash()
	for range 2 {
		func() {
			defer func() {
				if p := recover(); p != "held" {
					f.Errorf("recovered %v", p)
				}
			}()
			_, _ = f.store.Claim(f.ctx, store.ClaimParams{
				Tenant: f.tenant, Webhook: f.a, Now: f.now, Limit: 10, MaxBytes: 1 << 20,
				Held: func(delivery id.Delivery) bool {
					if delivery == ids[1] {
						panic("held") //nolint:forbidigo // that is the test
					}
					return false
				},
			})
		}()
	}
	more := f.queue(f.a, 1) // is written
	f.equal("claimed", claimed(f.claim(f.a, 10)), append(ids, more...))
}

func claimClock(_ *testing.T, f *fixture) {
	now := f.now
	f.now = now.Add(time.Hour) // ids don't go back with the clock
	e := f.event(f.a)
	made := f.now
	f.now = now
	e.Due, e.ExpiresAt = now, now.Add(time.Minute)
	f.accept(f.request(e))
	for range 2 {
		f.crash()
		got := f.claim(f.a, 10)
		f.equal("claimed", claimed(got), []id.Delivery{e.Deliveries[0].ID})
		f.equal("due", got.Deliveries[0].Due, now)
		f.equal("backlog", f.backlog(), map[id.Webhook]time.Time{f.a: now})
		f.equal("created", f.delivery(e.Deliveries[0].ID).CreatedAt, made)
		event, err := f.store.Event(f.ctx, f.tenant, e.ID.String())
		f.must(err)
		f.equal("the event is created", event.CreatedAt, made)
	}
}

func claimOrder(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 4)
	late := f.outcome(f.a, ids[0], 1, hook.Postponed)
	late.Due = f.now.Add(time.Millisecond)
	early := f.outcome(f.a, ids[3], 1, hook.Postponed)
	early.Due = f.now.Add(-time.Hour)
	f.finish(late, early)
	f.now = f.now.Add(time.Second)
	want := []id.Delivery{ids[3], ids[1], ids[2], ids[0]}
	f.equal("claimed", claimed(f.claim(f.a, 10)), want)
	got := f.claim(f.a, 3)
	f.equal("claimed with a limit", claimed(got), want[:3])
	if !got.More {
		f.Fatalf("the claim does not say that there is more")
	}
	if f.claim(f.a, 4).More {
		f.Fatalf("the claim of all says that there is more")
	}
}

func claimHeld(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 5)
	held := map[id.Delivery]bool{ids[0]: true, ids[2]: true, ids[4]: true}
	got, err := f.store.Claim(f.ctx, store.ClaimParams{
		Tenant: f.tenant, Webhook: f.a, Now: f.now, Limit: 2, MaxBytes: 1 << 20, Held: func(d id.Delivery) bool { return held[d] },
	})
	f.must(err)
	f.equal("claimed", claimed(got), []id.Delivery{ids[1], ids[3]})
	if got.More || !got.NextDue.IsZero() {
		f.Fatalf("what is held counts as more: %+v", got)
	}
}

func claimBytes(_ *testing.T, f *fixture) {
	r := f.request(f.event(f.a), f.event(f.a), f.event(f.a))
	for i := range r.Events {
		r.Events[i].Body = bytes.Repeat([]byte{'x'}, 1000)
	}
	f.accept(r)
	for _, c := range []struct{ bytes, want int }{{1, 1}, {1000, 1}, {1999, 1}, {2000, 2}, {3000, 3}, {9000, 3}} {
		got, err := f.store.Claim(f.ctx, store.ClaimParams{Tenant: f.tenant, Webhook: f.a, Now: f.now, Limit: 10, MaxBytes: c.bytes})
		f.must(err)
		if len(got.Deliveries) != c.want || got.More != (c.want < 3) {
			f.Fatalf("%d bytes: %d deliveries, more %v; want %d", c.bytes, len(got.Deliveries), got.More, c.want)
		}
	}
}

func claimNextDue(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 3)
	first, second := f.outcome(f.a, ids[0], 1, hook.Postponed), f.outcome(f.a, ids[1], 1, hook.Postponed)
	first.Due, second.Due = f.now.Add(time.Hour), f.now.Add(time.Minute)
	f.finish(first, second)
	f.equal("next due", f.claim(f.a, 5).NextDue, second.Due)
	f.equal("nothing is due", f.claim(f.b, 5), &store.Claimed{})
	f.now = f.now.Add(time.Minute) // due at this very moment
	got := f.claim(f.a, 5)
	f.equal("claimed", claimed(got), []id.Delivery{ids[2], ids[1]})
	f.equal("next due", got.NextDue, first.Due)
}

func claimBodies(_ *testing.T, f *fixture) {
	r := f.request()
	for _, n := range []int{0, 1, 8000, 1 << 20} {
		e := f.event(f.a)
		e.Body = bytes.Repeat([]byte{0, 0xff, '\n', '{'}, n/4+1)[:n]
		r.Events = append(r.Events, e)
	}
	f.accept(r)
	for _, q := range f.claim(f.a, 10).Deliveries {
		found := false
		for i := range r.Events {
			if r.Events[i].ID == q.Event {
				found = true
				if !bytes.Equal(q.Body, r.Events[i].Body) {
					f.Fatalf("a body of %d bytes came as %d others", len(r.Events[i].Body), len(q.Body))
				}
			}
		}
		if !found {
			f.Fatalf("claimed %s, which nobody queued", q.Event)
		}
	}
	if n := len(f.claim(f.a, 10).Deliveries); n != 4 {
		f.Fatalf("%d are claimed; want 4", n)
	}
}

func claimWebhook(_ *testing.T, f *fixture) {
	a, b := f.queue(f.a, 2), f.queue(f.b, 3)
	f.equal("claimed of the one", claimed(f.claim(f.a, 9)), a)
	f.equal("claimed of the other", claimed(f.claim(f.b, 9)), b)
}

func claimUnknown(_ *testing.T, f *fixture) {
	f.queue(f.a, 1)
	f.equal("claimed", f.claim(id.Webhook(f.makeID()), 9), &store.Claimed{})
}

func (f *fixture) expire(limit int, held ...id.Delivery) *store.ExpireResult {
	f.Helper()
	r, err := f.store.Expire(f.ctx, store.ExpireParams{Tenant: f.tenant, Webhook: f.a, Now: f.now, Limit: limit, Held: func(d id.Delivery) bool {
		for _, h := range held {
			if h == d {
				return true
			}
		}
		return false
	}})
	f.must(err)
	return r
}

func expire(_ *testing.T, f *fixture) {
	start := f.now
	old := f.queue(f.a, 3)
	f.finish(f.outcome(f.a, old[1], 1, hook.Postponed))
	f.now = start.Add(time.Hour)
	young := f.queue(f.a, 1)
	end := start.Add(7 * 24 * time.Hour)

	f.now = end.Add(-time.Millisecond)
	f.equal("a moment before", f.expire(10), &store.ExpireResult{Next: end})
	f.now = end
	f.equal("at the moment", f.expire(10, old[2]), &store.ExpireResult{Expired: 2, Next: end})
	f.equal("again", f.expire(10, old[2]), &store.ExpireResult{Next: end})

	d := f.delivery(old[1])
	if d.Status != hook.StatusFailed || d.Failure == nil || d.Failure.Kind != hook.FailureExpired || !d.CompletedAt.Equal(f.now) ||
		!d.Due.IsZero() || d.Attempts != 1 || d.Last == nil {
		f.Fatalf("the expired delivery is %+v", d)
	}
	if d := f.delivery(old[0]); d.Status != hook.StatusFailed || d.Attempts != 0 || d.Last != nil {
		f.Fatalf("the delivery that expired before its first attempt is %+v", d)
	}
	f.wantCounts(f.a, "pending 2 failed 2 total 4; attempts 0+ 1-")
	f.equal("released", f.expire(10), &store.ExpireResult{Expired: 1, Next: f.delivery(young[0]).ExpiresAt})
	f.now = end.Add(time.Hour)
	f.equal("the last", f.expire(10), &store.ExpireResult{Expired: 1})
	f.wantCounts(id.Webhook{}, "pending 0 failed 4 total 4; attempts 0+ 1-")
}

func expireLimit(_ *testing.T, f *fixture) {
	f.queue(f.a, 5)
	f.queue(f.b, 1)
	end := f.now.Add(7 * 24 * time.Hour)
	f.now = end.Add(time.Second)
	f.equal("first", f.expire(2), &store.ExpireResult{Expired: 2, Next: end, More: true})
	f.equal("second", f.expire(2), &store.ExpireResult{Expired: 2, Next: end, More: true})
	f.equal("third", f.expire(2), &store.ExpireResult{Expired: 1})
	f.wantCounts(f.b, "pending 1 failed 0 total 1; attempts 0+ 0-")
}

func (f *fixture) backlog() map[id.Webhook]time.Time {
	f.Helper()
	lanes, err := f.store.Backlog(f.ctx)
	f.must(err)
	out := map[id.Webhook]time.Time{}
	for _, l := range lanes {
		out[l.Webhook] = l.Due
	}
	return out
}

func backlog(_ *testing.T, f *fixture) {
	f.equal("of nothing", f.backlog(), map[id.Webhook]time.Time{})
	ids := f.queue(f.a, 2)
	f.queue(f.b, 1)
	mine := f.now
	f.finish(f.outcome(f.a, ids[0], 1, hook.Succeeded), f.outcome(f.a, ids[1], 1, hook.Postponed))
	f.crash()
	f.equal("of two webhooks", f.backlog(), map[id.Webhook]time.Time{f.a: mine.Add(5 * time.Second), f.b: mine})
	f.finish(f.outcome(f.a, ids[1], 2, hook.Exhausted))
	f.equal("of one", f.backlog(), map[id.Webhook]time.Time{f.b: mine})
}

func backlogDeleted(_ *testing.T, f *fixture) {
	f.queue(f.a, 2)
	_, err := f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: f.a, Job: f.makeID(), Now: f.now})
	f.must(err)
	f.equal("backlog", f.backlog(), map[id.Webhook]time.Time{})
}

func configBetween(_ *testing.T, f *fixture) {
	done := make(chan error)
	go func() {
		for range 20 {
			if err := f.store.SetPause(f.ctx, f.tenant, f.a, f.now); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 20 {
		f.queue(f.a, 3)
	}
	f.must(<-done)
	f.wantCounts(f.a, "pending 60 failed 0 total 60; attempts 0+ 0-")
}

func size(_ *testing.T, f *fixture) {
	before, err := f.store.Size(f.ctx)
	f.must(err)
	e := f.event()
	e.Body = make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(e.Body) // never fails; a store may compress
	f.accept(f.request(e))
	after, err := f.store.Size(f.ctx)
	f.must(err)
	if before <= 0 || after < before+4<<20 {
		f.Fatalf("the size went from %d to %d with an event of 4 MiB", before, after)
	}
}

func outcomeInBatch(_ *testing.T, f *fixture) {
	e := f.event(f.a)
	o := f.outcome(f.a, e.Deliveries[0].ID, 1, hook.Succeeded)
	f.apply(&store.Batch{Accepts: []*store.Accept{f.request(e)}, Outcomes: []*store.Outcome{o}})
	if !o.Matched {
		f.Fatalf("the outcome did not match")
	}
	f.wantCounts(f.a, "pending 0 failed 0 total 1; attempts 1+ 0-")
}
