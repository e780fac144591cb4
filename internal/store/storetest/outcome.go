package storetest

import (
	"bytes"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func outcomeTests() tests {
	return tests{
		"each change from each state":                     outcomeChanges,
		"a success at the first try is kept whole":        outcomeFirst,
		"attempts are kept whole and in order":            outcomeAttempts,
		"a stale outcome changes nothing":                 outcomeStale,
		"an attempt of a canceled delivery is kept":       outcomeAfterCancel,
		"an outcome of another webhook does not match":    outcomeElsewhere,
		"many outcomes in a batch":                        outcomeMany,
		"a retry starts the schedule again":               retryOne,
		"a cancel gives up what is unfinished":            cancelOne,
		"a retry of a deleted webhook's is a conflict":    retryDeleted,
		"numbers go on after an attempt that came late":   retryAfterStale,
		"an answer of 16 KiB and no headers is kept":      outcomeLarge,
		"an outcome without an attempt gives a reason":    outcomeNoAttempt,
		"a failed outcome of the batch is its own affair": outcomeMixed,
	}
}

func outcomeChanges(t *testing.T, f *fixture) {
	for name, c := range map[string]struct {
		change    hook.Change
		noAttempt bool
		want      hook.Status
		counts    string // besides those before
	}{
		"succeeded": {hook.Succeeded, false, hook.StatusSuccess, "pending 0 failed 0 total 1; attempts 1+ 0-"},
		"postponed": {hook.Postponed, false, hook.StatusRetrying, "pending 1 failed 0 total 1; attempts 0+ 1-"},
		"exhausted": {hook.Exhausted, false, hook.StatusFailed, "pending 0 failed 1 total 1; attempts 0+ 1-"},
		"expired":   {hook.Expired, true, hook.StatusFailed, "pending 0 failed 1 total 1; attempts 0+ 0-"},
		"canceled":  {hook.Canceled, true, hook.StatusFailed, "pending 0 failed 1 total 1; attempts 0+ 0-"},
	} {
		for _, tried := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				g := *f
				g.tb, g.tenant = t, f.newTenant()
				g.a = g.newWebhook(g.tenant)
				d := g.queue(g.a, 1)[0]
				number, counts := 1, c.counts
				if tried {
					g.finish(g.outcome(g.a, d, 1, hook.Postponed))
					g.now = g.now.Add(time.Minute)
					number = 2
				}
				o := g.outcome(g.a, d, number, c.change)
				if c.noAttempt {
					o.Attempt = hook.Attempt{}
					o.Failure = &hook.Failure{Kind: hook.FailureExpired, Message: "too old"}
				}
				g.finish(o)
				v := g.delivery(d)
				if v.Status != c.want || v.Due.IsZero() == (c.want == hook.StatusRetrying) || v.CompletedAt.IsZero() == v.Status.Done() {
					t.Fatalf("the delivery is %+v", v)
				}
				if c.want.Done() && !v.CompletedAt.Equal(g.now) {
					t.Fatalf("it was completed at %v; want %v", v.CompletedAt, g.now)
				}
				g.equal("failure", v.Failure, o.Failure)
				if !c.noAttempt {
					g.equal("last", v.Last, &hook.LastAttempt{
						At: o.Attempt.StartedAt, StatusCode: o.Attempt.StatusCode, Duration: o.Attempt.Duration, Failure: o.Attempt.Failure,
					})
					if v.Attempts != number || v.Try != number {
						t.Fatalf("attempts %d, try %d; want %d", v.Attempts, v.Try, number)
					}
				}
				if !tried {
					g.wantCounts(g.a, counts)
					g.wantCounts(id.Webhook{}, counts)
				}
				f.ids = g.ids
			})
		}
	}
}

func outcomeFirst(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	o := f.outcome(f.a, d, 1, hook.Succeeded)
	f.finish(o)
	f.crash()
	f.equal("attempts", f.attempts(d), []hook.Attempt{o.Attempt})
}

func outcomeAttempts(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	var want []hook.Attempt
	for n := 1; n <= 12; n++ {
		change := hook.Postponed
		if n == 12 {
			change = hook.Succeeded
		}
		o := f.outcome(f.a, d, n, change)
		o.Attempt.Revision = int64(n)
		f.finish(o)
		want = append(want, o.Attempt)
		f.now = f.now.Add(time.Minute)
	}
	f.equal("attempts", f.attempts(d), want)
	if v := f.delivery(d); v.Attempts != 12 || v.Status != hook.StatusSuccess {
		f.Fatalf("the delivery is %+v", v)
	}
}

func outcomeLarge(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 2)
	for i, change := range []hook.Change{hook.Succeeded, hook.Exhausted} {
		o := f.outcome(f.a, ids[i], 1, change)
		o.Attempt.Header, o.Attempt.Body = nil, bytes.Repeat([]byte{0xfe}, hook.MaxKeptBody)
		f.finish(o)
		f.equal("attempts", f.attempts(ids[i]), []hook.Attempt{o.Attempt})
	}
}

func outcomeStale(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	f.finish(f.outcome(f.a, d, 1, hook.Postponed))
	before := f.delivery(d)
	known, ahead := f.outcome(f.a, d, 1, hook.Succeeded), f.outcome(f.a, d, 7, hook.Succeeded)
	unknown := f.outcome(f.a, f.makeID(), 1, hook.Succeeded)
	f.apply(&store.Batch{Outcomes: []*store.Outcome{known, ahead, unknown}})
	if known.Matched || ahead.Matched || unknown.Matched {
		f.Fatalf("stale outcomes matched: %v %v %v", known.Matched, ahead.Matched, unknown.Matched)
	}
	f.equal("the delivery", f.delivery(d), before)
	kept := f.attempts(d)
	if len(kept) != 2 || kept[0].Failure == nil || kept[1].Number != 7 {
		f.Fatalf("the attempts are %+v; want number 1 as it was, and 7", kept)
	}
	// What is told twice counts once.
	f.wantCounts(f.a, "pending 1 failed 0 total 1; attempts 1+ 1-")
}

func outcomeAfterCancel(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 2)
	for _, d := range ids {
		_, err := f.store.CancelDelivery(f.ctx, f.tenant, d, f.now)
		f.must(err)
	}
	before := f.delivery(ids[0])
	late := f.outcome(f.a, ids[0], 1, hook.Succeeded)
	f.apply(&store.Batch{Outcomes: []*store.Outcome{late}})
	if late.Matched {
		f.Fatalf("the outcome of a canceled delivery matched")
	}
	f.equal("the delivery", f.delivery(ids[0]), before)
	f.equal("the attempts", f.attempts(ids[0]), []hook.Attempt{late.Attempt})
	f.wantCounts(f.a, "pending 0 failed 2 total 2; attempts 1+ 0-")
}

func outcomeElsewhere(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	o := f.outcome(f.b, d, 1, hook.Succeeded)
	f.apply(&store.Batch{Outcomes: []*store.Outcome{o}})
	if o.Matched {
		f.Fatalf("it matched")
	}
	f.wantCounts(f.a, "pending 1 failed 0 total 1; attempts 0+ 0-")
	f.wantCounts(f.b, "pending 0 failed 0 total 0; attempts 0+ 0-")
}

func outcomeMany(_ *testing.T, f *fixture) {
	var outcomes []*store.Outcome
	for i, d := range f.queue(f.a, 300) {
		change := []hook.Change{hook.Succeeded, hook.Postponed, hook.Exhausted}[i%3]
		outcomes = append(outcomes, f.outcome(f.a, d, 1, change))
	}
	f.finish(outcomes...)
	f.crash()
	f.wantCounts(f.a, "pending 100 failed 100 total 300; attempts 100+ 200-")
}

func outcomeMixed(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 3)
	outcomes := []*store.Outcome{
		f.outcome(f.a, ids[0], 1, hook.Succeeded), f.outcome(f.a, ids[1], 5, hook.Succeeded), f.outcome(f.a, ids[2], 1, hook.Succeeded),
		f.outcome(f.a, ids[2], 1, hook.Succeeded),
	}
	f.apply(&store.Batch{Outcomes: outcomes})
	for i, want := range []bool{true, false, true, false} {
		if outcomes[i].Matched != want {
			f.Fatalf("outcome %d: matched is %v", i, outcomes[i].Matched)
		}
	}
}

func outcomeNoAttempt(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	f.finish(f.outcome(f.a, d, 1, hook.Postponed))
	last := f.delivery(d).Last
	o := &store.Outcome{
		Tenant: f.tenant, Webhook: f.a, Delivery: d, Change: hook.Canceled, At: f.now,
		Failure: &hook.Failure{Kind: hook.FailureCanceled, Message: "canceled"},
	}
	f.finish(o)
	v := f.delivery(d)
	f.equal("last", v.Last, last)
	f.equal("failure", v.Failure, o.Failure)
	f.wantCounts(f.a, "pending 0 failed 1 total 1; attempts 0+ 1-")
	f.apply(&store.Batch{Outcomes: []*store.Outcome{o}})
	if o.Matched {
		f.Fatalf("it was given up twice")
	}
}

func (f *fixture) retry(d id.Delivery) *hook.Delivery {
	f.Helper()
	v, err := f.store.RetryDelivery(f.ctx, store.RetryParams{Tenant: f.tenant, Delivery: d, Now: f.now, ExpiresAt: f.now.Add(time.Hour)})
	f.must(err)
	f.equal("what the retry answered", v, f.delivery(d))
	return v
}

func retryOne(t *testing.T, f *fixture) {
	for name, c := range map[string]struct {
		before func(id.Delivery)
		want   hook.Status
		tries  int
	}{
		"pending":  {func(id.Delivery) {}, hook.StatusPending, 0},
		"retrying": {func(d id.Delivery) { f.finish(f.outcome(f.a, d, 1, hook.Postponed)) }, hook.StatusRetrying, 1},
		"success":  {func(d id.Delivery) { f.finish(f.outcome(f.a, d, 1, hook.Succeeded)) }, hook.StatusRetrying, 1},
		"failed":   {func(d id.Delivery) { f.fail(f.a, d) }, hook.StatusRetrying, 1},
		"failed untried": {func(d id.Delivery) {
			_, err := f.store.CancelDelivery(f.ctx, f.tenant, d, f.now)
			f.must(err)
		}, hook.StatusPending, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f.tb = t
			f.a = f.newWebhook(f.tenant)
			d := f.queue(f.a, 1)[0]
			c.before(d)
			attempts := f.attempts(d)
			f.now = f.now.Add(time.Minute)
			v := f.retry(d)
			if v.Status != c.want || v.Attempts != c.tries || v.Try != 0 || v.Trigger != hook.TriggerManual || !v.Due.Equal(f.now) ||
				!v.ExpiresAt.Equal(f.now.Add(time.Hour)) || !v.CompletedAt.IsZero() || v.Failure != nil {
				t.Fatalf("the delivery is %+v", v)
			}
			f.equal("attempts", f.attempts(d), attempts)
			got := f.claim(f.a, 5)
			if len(got.Deliveries) != 1 || got.Deliveries[0].Trigger != hook.TriggerManual {
				t.Fatalf("claimed %+v", got)
			}
			o := f.outcome(f.a, d, c.tries+1, hook.Postponed)
			o.Attempt.Trigger = hook.TriggerManual
			f.finish(o)
			if v := f.delivery(d); v.Trigger != hook.TriggerAuto || v.Attempts != c.tries+1 {
				t.Fatalf("after the attempt the delivery is %+v; the schedule makes the next", v)
			}
			if got := f.stats(f.a, time.Time{}, time.Time{}).Pending; got != 1 {
				t.Fatalf("%d are pending; want 1", got)
			}
			if n, _ := f.count(store.DeliveryQuery{Webhook: f.a, Status: status(hook.StatusFailed)}, 9); n != 0 {
				t.Fatalf("%d are failed; want 0", n)
			}
		})
	}
}

func retryAfterStale(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	_, err := f.store.CancelDelivery(f.ctx, f.tenant, d, f.now)
	f.must(err)
	late := f.outcome(f.a, d, 1, hook.Postponed)
	f.apply(&store.Batch{Outcomes: []*store.Outcome{late}})
	if v := f.retry(d); v.Attempts != 1 || v.Status != hook.StatusRetrying {
		f.Fatalf("the delivery is %+v; its late attempt counts", v)
	}
	next := f.outcome(f.a, d, 2, hook.Succeeded)
	f.finish(next)
	f.equal("attempts", f.attempts(d), []hook.Attempt{late.Attempt, next.Attempt})
}

func retryDeleted(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	f.fail(f.a, d)
	_, err := f.store.DeleteWebhook(f.ctx, store.DeleteWebhookParams{Tenant: f.tenant, Webhook: f.a, Job: f.makeID(), Now: f.now})
	f.must(err)
	_, err = f.store.RetryDelivery(f.ctx, store.RetryParams{Tenant: f.tenant, Delivery: d, Now: f.now, ExpiresAt: f.now.Add(time.Hour)})
	f.wantCode(err, hook.CodeConflict)
	f.wantCounts(f.a, "pending 0 failed 1 total 1; attempts 0+ 1-")
}

func cancelOne(_ *testing.T, f *fixture) {
	d := f.queue(f.a, 1)[0]
	f.finish(f.outcome(f.a, d, 1, hook.Postponed))
	f.now = f.now.Add(time.Minute)
	v, err := f.store.CancelDelivery(f.ctx, f.tenant, d, f.now)
	f.must(err)
	f.equal("what the cancel answered", v, f.delivery(d))
	if v.Status != hook.StatusFailed || v.Failure == nil || v.Failure.Kind != hook.FailureCanceled || !v.Due.IsZero() || !v.CompletedAt.Equal(f.now) {
		f.Fatalf("the delivery is %+v", v)
	}
	_, err = f.store.CancelDelivery(f.ctx, f.tenant, d, f.now)
	f.wantCode(err, hook.CodeConflict)
	f.equal("claimed", f.claim(f.a, 5), &store.Claimed{})
	f.wantCounts(f.a, "pending 0 failed 1 total 1; attempts 0+ 1-")
}
