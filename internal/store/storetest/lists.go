package storetest

import (
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

func listTests() tests {
	return tests{
		"deliveries by every filter":               listFilters,
		"pages of deliveries, while rows arrive":   listPages,
		"pages of events, while rows arrive":       listEventPages,
		"events by type and time":                  listEvents,
		"since is included, until is not":          listBorders,
		"totals are exact without filters":         listTotals,
		"totals stop where they are told to":       listCapped,
		"events and deliveries that are not there": listUnknown,
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

func (f *fixture) list(q store.DeliveryQuery) *store.DeliveryPage {
	f.Helper()
	q.Tenant = f.tenant
	p, err := f.store.Deliveries(f.ctx, q)
	f.must(err)
	return p
}

// listAll goes from page to page.
func (f *fixture) listAll(q store.DeliveryQuery) []id.Delivery {
	f.Helper()
	var ids []id.Delivery
	for pages := 0; ; pages++ {
		if pages > 1000 {
			f.Fatalf("the list does not come to its end")
		}
		p := f.list(q)
		if len(p.Deliveries) > q.Limit {
			f.Fatalf("a page of %d; the limit is %d", len(p.Deliveries), q.Limit)
		}
		for _, d := range p.Deliveries {
			ids = append(ids, d.ID)
		}
		if p.Next.IsZero() {
			return ids
		}
		q.Before, q.Offset = p.Next, 0
	}
}

func listFilters(t *testing.T, f *fixture) {
	start := f.now.Add(-24 * time.Hour)
	var all []hook.Delivery
	for i := range 24 {
		f.now = start.Add(time.Duration(i) * time.Hour)
		e := f.event(f.a, f.b)
		e.Type = []string{"invocation.completed", "tool.error"}[i%2]
		if i%4 == 0 {
			e.GivenID = "given-" + itoa(i)
		}
		f.accept(f.request(e))
		for j, d := range e.Deliveries {
			if change := (i + j) % 5; change < 3 {
				f.finish(f.outcome(d.Webhook, d.ID, 1, []hook.Change{hook.Succeeded, hook.Postponed, hook.Exhausted}[change]))
			}
			all = append(all, *f.delivery(d.ID))
		}
	}
	slices.Reverse(all)
	var queries []store.DeliveryQuery
	for _, w := range []id.Webhook{{}, f.a, f.b} {
		for _, s := range []*hook.Status{nil, status(hook.StatusPending), status(hook.StatusRetrying), status(hook.StatusSuccess), status(hook.StatusFailed)} {
			for _, typ := range []string{"", "tool.error", "unheard.of"} {
				for _, event := range []string{"", all[5].PublicEventID, "given-8", "nobody"} {
					for _, since := range []time.Time{{}, start.Add(5 * time.Hour)} {
						for _, until := range []time.Time{{}, start.Add(16 * time.Hour)} {
							queries = append(queries, store.DeliveryQuery{Webhook: w, Status: s, EventType: typ, EventID: event, Since: since, Until: until})
						}
					}
				}
			}
		}
	}
	for _, q := range queries {
		var want []id.Delivery
		for _, d := range all {
			if (q.Webhook.IsZero() || q.Webhook == d.Webhook) && (q.Status == nil || *q.Status == d.Status) &&
				(q.EventType == "" || q.EventType == d.EventType) && (q.EventID == "" || q.EventID == d.PublicEventID) &&
				(q.Since.IsZero() || !d.CreatedAt.Before(q.Since)) && (q.Until.IsZero() || d.CreatedAt.Before(q.Until)) {
				want = append(want, d.ID)
			}
		}
		q.Limit = 5
		f.equal("list", f.listAll(q), want)
		q.Limit, q.Offset = 100, 3
		f.equal("list from the fourth on", f.listAll(q), want[min(3, len(want)):])
		q.Offset = 0
		if n, more := f.count(q, 1000); n != int64(len(want)) || more {
			t.Fatalf("count is %d, more %v; want %d, for %+v", n, more, len(want), q)
		}
	}
	f.equal("the rows", f.list(store.DeliveryQuery{Limit: 100}).Deliveries, all)
}

func listPages(_ *testing.T, f *fixture) {
	a, all := f.queue(f.a, 25), []id.Delivery(nil)
	all = append(all, a...)
	for _, q := range []store.DeliveryQuery{{Limit: 7}, {Limit: 7, Webhook: f.a}, {Limit: 5, Offset: 5}, {Limit: 25}, {Limit: 1, Offset: 24}} {
		want := slices.Clone(all)
		if q.Webhook == f.a {
			want = slices.Clone(a)
		}
		slices.Reverse(want)
		want = want[q.Offset:]
		var got []id.Delivery
		for {
			p := f.list(q)
			for _, d := range p.Deliveries {
				got = append(got, d.ID)
			}
			if p.Next.IsZero() {
				break
			}
			q.Before, q.Offset = p.Next, 0
			fresh := f.queue(f.a, 1)
			a, all = append(a, fresh...), append(all, fresh...)
			all = append(all, f.queue(f.b, 1)...)
		}
		f.equal("list while rows arrive", got, want)
	}
	f.equal("past the end", f.list(store.DeliveryQuery{Limit: 5, Offset: 10_000}), &store.DeliveryPage{})
}

func listEventPages(_ *testing.T, f *fixture) {
	var want []id.Event
	for range 13 {
		e := f.event()
		f.accept(f.request(e))
		want = append(want, e.ID)
	}
	slices.Reverse(want)
	q := store.EventQuery{Tenant: f.tenant, Limit: 4}
	var got []id.Event
	for {
		p, err := f.store.Events(f.ctx, q)
		f.must(err)
		for _, e := range p.Events {
			if e.Body != nil {
				f.Fatalf("the list has bodies")
			}
			got = append(got, e.ID)
		}
		if p.Next.IsZero() {
			break
		}
		q.Before = p.Next
		f.accept(f.request(f.event()))
	}
	f.equal("events", got, want)
}

func listEvents(_ *testing.T, f *fixture) {
	start := f.now.Add(-10 * time.Hour)
	var all []store.NewEvent
	for i := range 10 {
		f.now = start.Add(time.Duration(i) * time.Hour)
		e := f.event(f.a)
		e.Type = []string{"invocation.completed", "tool.error"}[i%2]
		f.accept(f.request(e))
		all = append(all, e)
	}
	slices.Reverse(all)
	for _, q := range []store.EventQuery{
		{}, {Type: "tool.error"}, {Type: "unheard.of"}, {Since: start.Add(3 * time.Hour)}, {Until: start.Add(3 * time.Hour)},
		{Type: "tool.error", Since: start.Add(2 * time.Hour), Until: start.Add(7 * time.Hour)},
	} {
		var want []id.Event
		for _, e := range all {
			if (q.Type == "" || q.Type == e.Type) && (q.Since.IsZero() || !e.ID.Time().Before(q.Since)) && (q.Until.IsZero() || e.ID.Time().Before(q.Until)) {
				want = append(want, e.ID)
			}
		}
		q.Tenant, q.Limit = f.tenant, 100
		p, err := f.store.Events(f.ctx, q)
		f.must(err)
		var got []id.Event
		for _, e := range p.Events {
			got = append(got, e.ID)
		}
		f.equal("events", got, want)
	}
}

// listBorders asks for times at the borders of milliseconds, and between.
func listBorders(t *testing.T, f *fixture) {
	start := f.now
	var events []store.NewEvent
	for i := range 5 {
		f.now = start.Add(time.Duration(i) * time.Millisecond)
		e := f.event(f.a)
		f.accept(f.request(e))
		f.fail(f.a, e.Deliveries[0].ID)
		events = append(events, e)
	}
	const between = 500 * time.Microsecond
	for _, c := range []struct {
		name         string
		since, until time.Time
		want         []int // of events, newest first
	}{
		{"all", start, start.Add(5 * time.Millisecond), []int{4, 3, 2, 1, 0}},
		{"since the first", start, time.Time{}, []int{4, 3, 2, 1, 0}},
		{"since the third", start.Add(2 * time.Millisecond), time.Time{}, []int{4, 3, 2}},
		{"since a bit later", start.Add(2*time.Millisecond + between), time.Time{}, []int{4, 3}},
		{"since a nanosecond later", start.Add(2*time.Millisecond + 1), time.Time{}, []int{4, 3}},
		{"until the first", time.Time{}, start, nil},
		{"until the third", time.Time{}, start.Add(2 * time.Millisecond), []int{1, 0}},
		{"until a bit later", time.Time{}, start.Add(2*time.Millisecond + between), []int{2, 1, 0}},
		{"one millisecond", start.Add(3 * time.Millisecond), start.Add(4 * time.Millisecond), []int{3}},
		{"no time at all", start.Add(3 * time.Millisecond), start.Add(3 * time.Millisecond), nil},
		{"until before since", start.Add(3 * time.Millisecond), start.Add(time.Millisecond), nil},
		{"until before there were ids", time.Time{}, time.Unix(-1, 0), nil},
		{"since before there were ids", time.Unix(-1, 0), time.Time{}, []int{4, 3, 2, 1, 0}},
		{"since a day that is far", time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), time.Time{}, nil},
	} {
		var wantEvents []id.Event
		var want []id.Delivery
		for _, i := range c.want {
			wantEvents = append(wantEvents, events[i].ID)
			want = append(want, events[i].Deliveries[0].ID)
		}
		p, err := f.store.Events(f.ctx, store.EventQuery{Tenant: f.tenant, Since: c.since, Until: c.until, Limit: 10})
		f.must(err)
		var got []id.Event
		for _, e := range p.Events {
			got = append(got, e.ID)
		}
		f.equal(c.name+": events", got, wantEvents)
		for _, q := range []store.DeliveryQuery{{}, {Webhook: f.a}, {Status: status(hook.StatusFailed)}, {Webhook: f.a, Status: status(hook.StatusFailed)}} {
			q.Since, q.Until, q.Limit = c.since, c.until, 2
			f.equal(c.name+": deliveries", f.listAll(q), want)
			if n, more := f.count(q, 10); n != int64(len(want)) || more {
				t.Fatalf("%s: count is %d, more %v; want %d", c.name, n, more, len(want))
			}
		}
		for i, e := range events {
			q := store.DeliveryQuery{EventID: e.ID.String(), Since: c.since, Until: c.until, Limit: 2}
			var want []id.Delivery
			if slices.Contains(c.want, i) {
				want = append(want, e.Deliveries[0].ID)
			}
			f.equal(c.name+": deliveries of an event", f.listAll(q), want)
		}
	}
}

func listTotals(_ *testing.T, f *fixture) {
	ids := f.queue(f.a, 30)
	f.queue(f.b, 5)
	f.fail(f.a, ids[:20]...)
	for _, c := range []struct {
		q    store.DeliveryQuery
		want int64
	}{
		{store.DeliveryQuery{}, 35}, {store.DeliveryQuery{Webhook: f.a}, 30}, {store.DeliveryQuery{Webhook: f.b}, 5},
		{store.DeliveryQuery{Status: status(hook.StatusFailed)}, 20}, {store.DeliveryQuery{Status: status(hook.StatusFailed), Webhook: f.a}, 20},
		{store.DeliveryQuery{Status: status(hook.StatusFailed), Webhook: f.b}, 0},
	} {
		if n, more := f.count(c.q, 3); n != c.want || more { // the bound is for filters
			f.Fatalf("count is %d, more %v; want %d, for %+v", n, more, c.want, c.q)
		}
	}
}

func listCapped(_ *testing.T, f *fixture) {
	f.queue(f.a, 30)
	q := store.DeliveryQuery{EventType: "invocation.completed"}
	for _, c := range []struct {
		most, want int64
		more       bool
	}{{10, 10, true}, {29, 29, true}, {30, 30, false}, {31, 30, false}} {
		if n, more := f.count(q, c.most); n != c.want || more != c.more {
			f.Fatalf("up to %d: %d, more %v; want %d, %v", c.most, n, more, c.want, c.more)
		}
	}
}

func listUnknown(_ *testing.T, f *fixture) {
	for _, public := range []string{"", "nobody", id.Event(f.makeID()).String()} {
		_, err := f.store.Event(f.ctx, f.tenant, public)
		f.wantCode(err, hook.CodeNotFound)
	}
	_, err := f.store.Delivery(f.ctx, f.tenant, f.makeID())
	f.wantCode(err, hook.CodeNotFound)
	_, err = f.store.Attempts(f.ctx, f.tenant, f.makeID())
	f.wantCode(err, hook.CodeNotFound)
}
