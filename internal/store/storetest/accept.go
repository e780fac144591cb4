package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func acceptTests() tests {
	return tests{
		"an event is there with its deliveries":           acceptEvent,
		"an event without deliveries is kept":             acceptUnwanted,
		"the results are in order":                        acceptResults,
		"idempotency":                                     acceptIdempotency,
		"an expired key is free again":                    acceptExpiredKey,
		"a key answers when its event is gone":            acceptKeyOutlives,
		"a given id is free again when its event is gone": acceptGivenGone,
		"a refused request leaves no trace":               acceptRefusedWhole,
		"the version is checked":                          acceptVersion,
		"the queue's limit":                               acceptLimit,
		"an unknown tenant":                               acceptUnknownTenant,
		"many rows":                                       acceptMany,
	}
}

func acceptEvent(_ *testing.T, f *fixture) {
	e := f.event(f.a, f.b)
	r := f.request(e)
	f.accept(r)
	f.equal("results", r.Results, []store.AcceptResult{{PublicID: e.ID.String(), Type: e.Type, Timestamp: e.Timestamp, Deliveries: 2}})
	for range 2 {
		got, err := f.store.Event(f.ctx, f.tenant, e.ID.String())
		f.must(err)
		f.equal("event", got, &hook.Event{
			ID: e.ID, Tenant: f.tenant, PublicID: e.ID.String(), Type: e.Type, Timestamp: e.Timestamp, Body: e.Body, CreatedAt: e.ID.Time(),
			Deliveries: []id.Delivery{e.Deliveries[0].ID, e.Deliveries[1].ID},
		})
		f.equal("delivery", f.delivery(e.Deliveries[1].ID), &hook.Delivery{
			ID: e.Deliveries[1].ID, Tenant: f.tenant, Webhook: f.b, Event: e.ID, PublicEventID: e.ID.String(), EventType: e.Type,
			Status: hook.StatusPending, Trigger: hook.TriggerAuto, Due: e.Due, CreatedAt: e.Deliveries[1].ID.Time(), ExpiresAt: e.ExpiresAt,
		})
		f.equal("attempts", f.attempts(e.Deliveries[0].ID), []hook.Attempt(nil))
		f.wantCounts(id.Webhook{}, "pending 2 failed 0 total 2; attempts 0+ 0-")
		f.wantCounts(f.a, "pending 1 failed 0 total 1; attempts 0+ 0-")
		f.crash()
	}
}

func acceptUnwanted(_ *testing.T, f *fixture) {
	e := f.event()
	e.GivenID, e.Hash = "order-1", hash("order")
	f.accept(f.request(e))
	got, err := f.store.Event(f.ctx, f.tenant, "order-1")
	f.must(err)
	f.equal("event", got, &hook.Event{ID: e.ID, Tenant: f.tenant, PublicID: "order-1", Type: e.Type, Timestamp: e.Timestamp, Body: e.Body, CreatedAt: e.ID.Time()})
	_, err = f.store.Event(f.ctx, f.tenant, e.ID.String())
	f.wantCode(err, hook.CodeNotFound) // it has one name
}

func acceptResults(_ *testing.T, f *fixture) {
	one, two, three := f.event(f.a), f.event(), f.event(f.a, f.b)
	two.GivenID, two.Type = "two", "tool.error"
	r := f.request(one, two, three)
	f.accept(r)
	f.equal("results", r.Results, []store.AcceptResult{
		{PublicID: one.ID.String(), Type: one.Type, Timestamp: one.Timestamp, Deliveries: 1},
		{PublicID: "two", Type: "tool.error", Timestamp: two.Timestamp},
		{PublicID: three.ID.String(), Type: three.Type, Timestamp: three.Timestamp, Deliveries: 2},
	})
}

// given describes an event of a request: its own id, and what it asks.
type given struct{ id, ask string }

// asked describes a request.
type asked struct {
	key    string
	ask    string // what the key's hash is of
	events []given
	// want is "new", "duplicate", a mix of them by event as "new,duplicate", or
	// the path that a conflict names.
	want string
}

func acceptIdempotency(t *testing.T, f *fixture) {
	for _, c := range []struct {
		name     string
		requests []asked
	}{
		{"no key, no id", []asked{{want: "new", events: []given{{}}}, {want: "new", events: []given{{}}}}},
		{"the same key, the same ask", []asked{
			{"k", "x", []given{{}}, "new"}, {"k", "x", []given{{}}, "duplicate"}, {"k", "x", []given{{}}, "duplicate"}}},
		{"the same key, another ask", []asked{
			{"k", "x", []given{{}}, "new"}, {"k", "y", []given{{}}, "Idempotency-Key"}, {"k", "x", []given{{}}, "duplicate"}}},
		{"another key", []asked{{"k", "x", []given{{}}, "new"}, {"l", "x", []given{{}}, "new"}}},
		{"a key of a batch", []asked{
			{"k", "x", []given{{}, {}}, "new,new"}, {"k", "x", []given{{}, {}}, "duplicate,duplicate"}}},
		{"the same id, the same ask", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"", "", []given{{"i", "x"}}, "duplicate"}}},
		{"the same id, another ask", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"", "", []given{{"i", "y"}}, "events[0].id"}}},
		{"a batch with one that is there", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"", "", []given{{}, {"i", "x"}, {"j", "x"}}, "new,duplicate,new"}}},
		{"a batch with one conflict is refused whole", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"", "", []given{{"j", "x"}, {"i", "y"}}, "events[1].id"},
			{"", "", []given{{"j", "y"}}, "new"}}},
		{"an id twice in a batch", []asked{{"", "", []given{{"i", "x"}, {"j", "x"}, {"i", "x"}}, "new,new,duplicate"}}},
		{"an id twice in a batch, another ask", []asked{{"", "", []given{{"i", "x"}, {"i", "y"}}, "events[1].id"}}},
		{"an id that is there, twice in a batch", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"", "", []given{{"i", "x"}, {"i", "x"}}, "duplicate,duplicate"}}},
		{"key and id, both known, of one event", []asked{
			{"k", "x", []given{{"i", "x"}}, "new"}, {"k", "x", []given{{"i", "x"}}, "duplicate"}}},
		{"key known, id of no event", []asked{
			{"k", "x", []given{{"i", "x"}}, "new"}, {"k", "x", []given{{"j", "x"}}, "Idempotency-Key"},
			{"", "", []given{{"j", "x"}}, "new"}}},
		{"key known, id of another event", []asked{
			{"k", "x", []given{{"i", "x"}}, "new"}, {"", "", []given{{"j", "x"}}, "new"}, {"k", "x", []given{{"j", "x"}}, "Idempotency-Key"}}},
		{"key of an event without id, id of another", []asked{
			{"k", "x", []given{{}}, "new"}, {"k", "x", []given{{"j", "x"}}, "Idempotency-Key"}}},
		{"a new key names the event that the id names", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"k", "x", []given{{"i", "x"}}, "duplicate"},
			{"k", "x", []given{{"i", "x"}}, "duplicate"}, {"k", "x", []given{{"j", "x"}}, "Idempotency-Key"}}},
		{"a new key, id of another ask", []asked{
			{"", "", []given{{"i", "x"}}, "new"}, {"k", "y", []given{{"i", "y"}}, "events[0].id"}, {"k", "z", []given{{}}, "new"}}},
		{"key and id are different things", []asked{
			{"k", "x", []given{{}}, "new"}, {"", "", []given{{"k", "x"}}, "new"}}},
	} {
		for _, how := range []string{"one after another", "in one batch", "with crashes"} {
			t.Run(c.name+", "+how, func(t *testing.T) {
				g := *f
				g.tb = t
				g.tenant = g.newTenant()
				g.a = g.newWebhook(g.tenant)
				var all []*store.Accept
				for _, a := range c.requests {
					r := g.request()
					if a.key != "" {
						r.Key = &store.IdempotencyKey{Key: a.key, Hash: hash(a.ask), ExpiresAt: g.now.Add(time.Hour)}
					}
					for _, e := range a.events {
						n := g.event(g.a)
						n.GivenID, n.Hash = e.id, hash(e.ask)
						r.Events = append(r.Events, n)
					}
					all = append(all, r)
					if how != "in one batch" {
						g.apply(&store.Batch{Accepts: []*store.Accept{r}})
					}
					if how == "with crashes" {
						g.crash()
					}
				}
				if how == "in one batch" {
					g.apply(&store.Batch{Accepts: all})
				}
				written := 0
				first := map[string]store.AcceptResult{}
				for i, r := range all {
					if got := told(r); got != c.requests[i].want {
						t.Fatalf("request %d: %s (%v); want %s", i, got, r.Err, c.requests[i].want)
					}
					for j, result := range r.Results {
						before, ok := first[result.PublicID]
						if result.Duplicate {
							result.Duplicate = false
							g.equal(fmt.Sprintf("the answer given again in request %d, event %d", i, j), result, before)
							continue
						}
						if ok {
							t.Fatalf("%s is new twice", result.PublicID)
						}
						first[result.PublicID] = result
						written++
					}
				}
				g.wantCounts(g.a, fmt.Sprintf("pending %d failed 0 total %d; attempts 0+ 0-", written, written))
				page, err := g.store.Events(g.ctx, store.EventQuery{Tenant: g.tenant, Limit: 100})
				g.must(err)
				if len(page.Events) != written {
					t.Fatalf("%d events are there; want %d", len(page.Events), written)
				}
				f.store = g.store
				f.ids = g.ids
			})
		}
	}
}

// told says what became of a request in the words of asked.want.
func told(r *store.Accept) string {
	if e, ok := errors.AsType[*hook.Error](r.Err); ok && e.Code == hook.CodeConflict && len(e.Details) == 1 {
		return e.Details[0].Path
	}
	if r.Err != nil {
		return r.Err.Error()
	}
	var b bytes.Buffer
	for i, result := range r.Results {
		if i > 0 {
			b.WriteByte(',')
		}
		if result.Duplicate {
			b.WriteString("duplicate")
		} else {
			b.WriteString("new")
		}
	}
	return b.String()
}

func acceptExpiredKey(_ *testing.T, f *fixture) {
	for range 2 {
		r := f.request(f.event(f.a))
		r.Key = &store.IdempotencyKey{Key: "k", Hash: hash("x"), ExpiresAt: f.now.Add(-time.Minute)}
		s := f.request(f.event(f.a))
		s.Key = &store.IdempotencyKey{Key: "k", Hash: hash("y"), ExpiresAt: f.now.Add(-time.Minute)}
		f.accept(r, s)
		if r.Results[0].Duplicate || s.Results[0].Duplicate {
			f.Fatalf("an expired key still counts: %+v, %+v", r.Results, s.Results)
		}
	}
	r := f.request(f.event(f.a))
	r.Key = &store.IdempotencyKey{Key: "k", Hash: hash("z"), ExpiresAt: f.now.Add(time.Hour)}
	f.accept(r)
	again := f.request(f.event(f.a))
	again.Key = r.Key
	f.accept(again)
	if r.Results[0].Duplicate || !again.Results[0].Duplicate {
		f.Fatalf("a key that is used anew does not count: %+v, %+v", r.Results, again.Results)
	}
}

func acceptKeyOutlives(_ *testing.T, f *fixture) {
	start := f.now
	f.now = start.Add(-48 * time.Hour)
	r := f.request(f.event())
	r.Key = &store.IdempotencyKey{Key: "k", Hash: hash("x"), ExpiresAt: start.Add(time.Hour)}
	f.accept(r)
	f.now = start
	f.prune(start.Add(-time.Hour))
	_, err := f.store.Event(f.ctx, f.tenant, r.Results[0].PublicID)
	f.wantCode(err, hook.CodeNotFound)
	again := f.request(f.event(f.a))
	again.Key = r.Key
	f.accept(again)
	want := r.Results
	want[0].Duplicate = true
	f.equal("the answer given again", again.Results, want)
}

func acceptGivenGone(_ *testing.T, f *fixture) {
	start := f.now
	f.now = start.Add(-48 * time.Hour)
	e := f.event()
	e.GivenID, e.Hash = "i", hash("x")
	f.accept(f.request(e))
	f.now = start
	f.prune(start.Add(-time.Hour))
	n := f.event()
	n.GivenID, n.Hash = "i", hash("y")
	r := f.request(n)
	f.accept(r)
	if r.Results[0].Duplicate {
		f.Fatalf("the id of an event that is gone still counts")
	}
}

func acceptRefusedWhole(_ *testing.T, f *fixture) {
	own := f.event(f.a)
	f.accept(f.request(own))
	bad := f.request(f.event(f.a), f.event(f.b))
	bad.Events[0].GivenID, bad.Events[1].GivenID = "fresh", own.ID.String()
	bad.Key = &store.IdempotencyKey{Key: "k", Hash: hash("x"), ExpiresAt: f.now.Add(time.Hour)}
	good := f.request(f.event(f.b))
	good.Key = &store.IdempotencyKey{Key: "k", Hash: hash("y"), ExpiresAt: f.now.Add(time.Hour)}
	f.apply(&store.Batch{Accepts: []*store.Accept{bad, good}})
	if got := told(bad); got != "events[1].id" {
		f.Fatalf("an id that is another event's own: %s; want a conflict at events[1].id", got)
	}
	if bad.Results != nil {
		f.Fatalf("a refused request has results: %+v", bad.Results)
	}
	if got := told(good); got != "new" {
		f.Fatalf("the request after a refused one: %s; want new", got)
	}
	_, err := f.store.Event(f.ctx, f.tenant, "fresh")
	f.wantCode(err, hook.CodeNotFound)
	f.wantCounts(id.Webhook{}, "pending 2 failed 0 total 2; attempts 0+ 0-")
}

func acceptVersion(_ *testing.T, f *fixture) {
	old := f.request(f.event(f.a))
	f.newWebhook(f.tenant)
	f.apply(&store.Batch{Accepts: []*store.Accept{old}})
	f.wantMoved(old.Err)
	ahead := f.request(f.event(f.a))
	ahead.ConfigVersion++
	f.apply(&store.Batch{Accepts: []*store.Accept{ahead}})
	f.wantMoved(ahead.Err)
	f.crash()
	f.apply(&store.Batch{Accepts: []*store.Accept{ahead}})
	f.wantMoved(ahead.Err)
	f.wantCounts(id.Webhook{}, "pending 0 failed 0 total 0; attempts 0+ 0-")
	ahead.ConfigVersion--
	f.accept(ahead)
}

func acceptLimit(_ *testing.T, f *fixture) {
	ask := func(n int) *store.Accept {
		r := f.request()
		for range n {
			r.Events = append(r.Events, f.event(f.a))
		}
		r.MaxQueued = 5
		return r
	}
	three, second, two, unwanted := ask(3), ask(3), ask(2), f.request(f.event())
	unwanted.MaxQueued = 5
	f.apply(&store.Batch{Accepts: []*store.Accept{three, second, two, unwanted}})
	f.must(three.Err)
	f.wantCode(second.Err, hook.CodeRateLimited)
	f.must(two.Err)
	f.must(unwanted.Err) // it adds nothing
	if e, ok := errors.AsType[*hook.Error](second.Err); !ok || e.RetryAfter <= 0 {
		f.Fatalf("the refusal does not say when to come again: %v", second.Err)
	}
	f.crash()
	one := ask(1)
	f.apply(&store.Batch{Accepts: []*store.Accept{one}})
	f.wantCode(one.Err, hook.CodeRateLimited)
	f.finish(f.outcome(f.a, three.Events[0].Deliveries[0].ID, 1, hook.Succeeded))
	f.accept(one)
	other := *f
	other.tenant = f.newTenant()
	r := other.request(other.event(other.newWebhook(other.tenant)))
	r.ConfigVersion, r.MaxQueued = other.version[other.tenant], 1
	other.accept(r)
}

func acceptUnknownTenant(_ *testing.T, f *fixture) {
	r := f.request(f.event())
	r.Tenant = id.Tenant(f.makeID())
	f.apply(&store.Batch{Accepts: []*store.Accept{r}})
	f.wantCode(r.Err, hook.CodeNotFound)
}

func acceptMany(_ *testing.T, f *fixture) {
	for _, n := range []int{7, 9, 64, 73, 300} {
		ids := f.queue(f.b, n)
		for _, d := range ids {
			if v := f.delivery(d); v.Webhook != f.b || v.Status != hook.StatusPending {
				f.Fatalf("delivery %s is %+v", d, v)
			}
		}
	}
	f.wantCounts(f.b, "pending 453 failed 0 total 453; attempts 0+ 0-")
}
