package sqlite

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// TestCostOfEvents holds what an event and its outcome cost, in counts that are
// the same on every machine: statements, commits to the log, pages written to it
// and allocations. The bounds are a little above what they were when they were
// written; one that is broken says that the way of an event has become longer.
func TestCostOfEvents(t *testing.T) {
	for _, c := range []struct {
		name             string
		events, fanout   int
		statements       int // of the whole batch: BEGIN and COMMIT included
		pages            int // of the whole batch
		allocsOfDelivery int
	}{
		{"one event", 1, 1, 6, 7, 80},
		{"32 events", 32, 1, 9, 26, 40},
		{"256 events", 256, 1, 13, 95, 39},
		{"32 events to 8 webhooks", 32, 8, 11, 57, 23},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openAt(t, t.TempDir())
			b := newBench(t, s)
			var before []*store.Accept
			batch := func() *store.Batch {
				next := &store.Batch{Accepts: b.fanned(c.events, c.fanout)}
				for _, a := range before {
					next.Outcomes = append(next.Outcomes, b.outcomes(a)...)
				}
				before = next.Accepts
				return next
			}
			apply := func(next *store.Batch) {
				if err := s.Apply(t.Context(), next); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 { // prepares the statements
				apply(batch())
			}
			statements, log := s.writer.executed, logSize(t, s)
			apply(batch())
			statements, log = s.writer.executed-statements, logSize(t, s)-log
			pages := int(log / (pageSize + 24))

			ready := make([]*store.Batch, 6) // one for AllocsPerRun to warm up with
			for i := range ready {
				ready[i] = batch()
			}
			i := 0
			allocs := testing.AllocsPerRun(len(ready)-1, func() { apply(ready[i]); i++ }) / float64(c.events*c.fanout)
			t.Logf("%d statements, %d pages of log, %.0f allocations per delivery", statements, pages, allocs)
			if statements > c.statements {
				t.Errorf("%d statements, want %d at most", statements, c.statements)
			}
			if pages > c.pages {
				t.Errorf("%d pages written to the log, want %d at most", pages, c.pages)
			}
			if allocs > float64(c.allocsOfDelivery) {
				t.Errorf("%.1f allocations per delivery, want %d at most", allocs, c.allocsOfDelivery)
			}
		})
	}
}

// TestPlansOfManyRows holds that with 100,000 deliveries of 1,000 webhooks the
// plans are the ones of TestPlans, whether the database knows its sizes or not.
func TestPlansOfManyRows(t *testing.T) {
	s := openAt(t, t.TempDir())
	b := newBench(t, s)
	fill(t, s, b, 100_000)
	checkPlans(t, s)
	if err := s.writer.run("ANALYZE"); err != nil {
		t.Fatal(err)
	}
	if err := s.replaceWriter(t.Context()); err != nil { // so that the statements are planned anew
		t.Fatal(err)
	}
	checkPlans(t, s)
}

// TestCostOfLists holds that a list of a time looks at the rows of that time alone,
// and at no more than its page has, however many of the same hour came after.
func TestCostOfLists(t *testing.T) {
	s := openAt(t, t.TempDir())
	b := newBench(t, s)
	fill(t, s, b, 20_000)
	accepts := b.accepts(2000)
	for i, a := range accepts { // no delivery has a row, so that those of fill are all there are
		b.made(a, b.now.Add(time.Duration(i-len(accepts))*time.Millisecond))
	}
	if err := s.Apply(t.Context(), &store.Batch{Accepts: accepts}); err != nil {
		t.Fatal(err)
	}
	// middle is the time of the row in the middle, and how many are of then or later.
	middle := func(table string) (at time.Time, later int) {
		t.Helper()
		var times []time.Time
		err := s.writer.scan("SELECT id FROM "+table+" ORDER BY id", func(r row) { times = append(times, readID[id.Event](r, 0).Time()) })
		if err != nil {
			t.Fatal(err)
		}
		at = times[len(times)/2]
		return at, len(times) - slices.IndexFunc(times, at.Equal)
	}
	webhook := id.Webhook{3: 50} // one of fill's that has failed ones
	failed := hook.StatusFailed
	deliveries := func(q store.DeliveryQuery) list {
		q.Tenant = b.tenant
		return deliveryList(&q)
	}
	half, later := middle("deliveries")
	halfOfEvents, laterEvents := middle("events")
	for name, l := range map[string]list{
		"until":                      deliveries(store.DeliveryQuery{Until: half}),
		"of a webhook until":         deliveries(store.DeliveryQuery{Until: half, Webhook: webhook}),
		"of failed until":            deliveries(store.DeliveryQuery{Until: half, Status: &failed}),
		"of a webhook, failed until": deliveries(store.DeliveryQuery{Until: half, Webhook: webhook, Status: &failed}),
		"of events until":            eventList(&store.EventQuery{Tenant: b.tenant, Until: halfOfEvents}),
	} {
		const page = 5
		found := 0
		until := half
		if strings.Contains(name, "events") {
			until = halfOfEvents
		}
		looks, _, err := l.look(s.writer, func(v [16]byte) bool {
			if made := id.Event(v).Time(); !made.Before(until) {
				t.Errorf("list %s has a row of %v; want none from %v on", name, made, until)
			}
			found++
			return found < page
		})
		if err != nil || found != page || looks != page {
			t.Errorf("list %s: %d found, %d rows looked at, %v; want %d", name, found, looks, err, page)
		}
	}
	for name, c := range map[string]struct {
		list
		want int
	}{
		"since":           {deliveries(store.DeliveryQuery{Since: half, EventType: "nobody's"}), later},
		"of events since": {eventList(&store.EventQuery{Tenant: b.tenant, Since: halfOfEvents, Type: "nobody's"}), laterEvents},
	} {
		looks, ended, err := c.look(s.writer, func([16]byte) bool { return true })
		if err != nil || !ended || looks != c.want {
			t.Errorf("list %s: %d rows looked at, ended %v, %v; want %d", name, looks, ended, err, c.want)
		}
	}
}

// fill writes finished deliveries without going the way of an event, so that a
// test of many takes seconds.
func fill(t *testing.T, s *Store, b *bench, n int) {
	t.Helper()
	err := s.write(t.Context(), func(t *tx) error {
		var tenant, webhook [16]byte
		copy(tenant[:], b.tenant[:])
		for i := range n {
			binary.BigEndian.PutUint32(webhook[:], uint32(i%1000))
			d, status, due := newID(), hook.StatusSuccess, any(nil)
			switch i % 50 {
			case 0:
				status = hook.StatusFailed
			case 1:
				status, due = hook.StatusPending, int64(i)
			}
			_, err := t.exec(`INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, event_type, status, attempts, try, trigger, era, due_at, created_at, expires_at)
				VALUES (?, ?, ?, ?, 'a.b', ?, 1, 1, 'auto', 0, ?, ?, ?)`, tenant[:], d[:], webhook[:], d[:], int64(status), due, millis(id.Delivery(d).Time()), int64(i))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// logSize is how large the log is by what was written to it.
func logSize(t *testing.T, s *Store) int64 {
	t.Helper()
	info, err := os.Stat(filepath.Join(s.dir, databaseFile+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// fanned makes n requests of an event with a delivery to each of some webhooks.
func (b *bench) fanned(n, fanout int) []*store.Accept {
	out := b.accepts(n)
	for _, a := range out {
		e := &a.Events[0]
		e.Deliveries = e.Deliveries[:0]
		for i := range fanout {
			e.Deliveries = append(e.Deliveries, store.NewDelivery{ID: id.Delivery(newID()), Webhook: b.webhooks[i], Trigger: hook.TriggerAuto, Held: true})
		}
	}
	return out
}

// outcomes are those of all deliveries of a request.
func (b *bench) outcomes(a *store.Accept) []*store.Outcome {
	var out []*store.Outcome
	for i := range a.Events[0].Deliveries {
		one := *a
		one.Events = []store.NewEvent{a.Events[0]}
		one.Events[0].Deliveries = a.Events[0].Deliveries[i : i+1]
		out = append(out, b.outcome(&one))
	}
	return out
}
