package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// past is a tenant with a webhook, and things that happened to it some time ago.
type past struct {
	testing.TB
	s       *Store
	tenant  id.Tenant
	webhook id.Webhook
	version int64
	made    uint64
}

func newPast(t testing.TB, s *Store) *past {
	t.Helper()
	p := &past{TB: t, s: s}
	now := time.Now()
	p.tenant, p.webhook = p.id(now), p.id(now)
	if err := s.InsertTenant(t.Context(), hook.Tenant{ID: p.tenant, Name: "acme", CreatedAt: now, UpdatedAt: now}); err != nil {
		t.Fatal(err)
	}
	v, err := s.InsertWebhook(t.Context(), store.WebhookRow{Webhook: hook.Webhook{ID: p.webhook, Tenant: p.tenant, Revision: 1, Name: "orders", Enabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	p.version = v
	return p
}

// id makes an id of a time; later ones are larger.
func (p *past) id(at time.Time) [16]byte {
	v := id.First(at)
	p.made++
	binary.BigEndian.PutUint64(v[8:], p.made|1<<63)
	v[6] = 0x70
	return v
}

// queue makes n events at a time, each with a delivery.
func (p *past) queue(at time.Time, n int) []id.Delivery {
	p.Helper()
	a := &store.Accept{Tenant: p.tenant, ConfigVersion: p.version}
	var ids []id.Delivery
	for range n {
		e := store.NewEvent{ID: p.id(at), Type: "tool.error", Timestamp: at, Body: []byte("{}"), Due: at, ExpiresAt: at.Add(1000 * time.Hour)}
		e.Deliveries = []store.NewDelivery{{ID: p.id(at), Webhook: p.webhook, Trigger: hook.TriggerAuto}}
		ids = append(ids, e.Deliveries[0].ID)
		a.Events = append(a.Events, e)
	}
	if err := errors.Join(p.s.Apply(p.Context(), &store.Batch{Accepts: []*store.Accept{a}}), a.Err); err != nil {
		p.Fatal(err)
	}
	return ids
}

// fail records that the attempts at deliveries came to their end at a time.
func (p *past) fail(at time.Time, ids ...id.Delivery) {
	p.Helper()
	var b store.Batch
	for _, d := range ids {
		b.Outcomes = append(b.Outcomes, p.outcome(d, at, 1))
	}
	if err := p.s.Apply(p.Context(), &b); err != nil {
		p.Fatal(err)
	}
	for _, o := range b.Outcomes {
		if !o.Matched {
			p.Fatalf("the outcome of delivery %s did not match", o.Delivery)
		}
	}
}

func (p *past) outcome(d id.Delivery, at time.Time, number int) *store.Outcome {
	f := &hook.Failure{Kind: hook.FailureStatus, Message: "the receiver answered 500"}
	return &store.Outcome{
		Tenant: p.tenant, Webhook: p.webhook, Delivery: d, Change: hook.Exhausted, Try: number, At: at,
		Attempt: hook.Attempt{Number: number, Trigger: hook.TriggerAuto, StartedAt: at, StatusCode: 500, Failure: f},
	}
}

// prune goes on to the end, or until stop says so.
func (p *past) prune(before time.Time, stop func() bool) (sum store.PruneResult) {
	p.Helper()
	for range 1000 {
		r, err := p.s.Prune(p.Context(), store.PruneParams{Before: before, Now: time.Now(), Limit: 1000})
		if err != nil {
			p.Fatal(err)
		}
		sum.Events, sum.Deliveries = sum.Events+r.Events, sum.Deliveries+r.Deliveries
		if !r.More || stop != nil && stop() {
			return sum
		}
	}
	p.Fatal("pruning does not come to its end")
	return sum
}

// one asks the database for a number.
func (p *past) one(text string, args ...any) (n int64) {
	p.Helper()
	if err := p.s.pool.QueryRow(p.Context(), text, args...).Scan(&n); err != nil {
		p.Fatal(err)
	}
	return n
}

// oid tells a table from another one of its name; 0 if there is none.
func (p *past) oid(table string) int64 {
	return p.one("SELECT coalesce(to_regclass($1)::oid::bigint, 0)", table)
}

// wantCounts compares what is counted with what is there.
func (p *past) wantCounts() {
	p.Helper()
	g, err := readGauge(p.Context(), p.s.pool, p.tenant, p.webhook)
	if err != nil {
		p.Fatal(err)
	}
	want := gauge{
		pending: p.one("SELECT count(*) FROM queue WHERE tenant_id = $1", uuid(p.tenant)),
		failed:  p.one("SELECT count(*) FROM deliveries WHERE tenant_id = $1 AND status = 3", uuid(p.tenant)),
	}
	want.total = want.pending + p.one("SELECT count(*) FROM deliveries WHERE tenant_id = $1", uuid(p.tenant))
	if g != want {
		p.Fatalf("counted are %+v; there are %+v", g, want)
	}
}

func longAgo() time.Time { return time.Now().Add(-100 * time.Hour).Truncate(time.Hour) }

func TestSpansAreMadeOnce(t *testing.T) {
	url := server.Database(t)
	stores := []*Store{openAt(t, url), openAt(t, url), openAt(t, url)}
	var wg sync.WaitGroup
	errs := make([]error, len(stores))
	for i, s := range stores {
		wg.Go(func() {
			for n := range 10 {
				v := id.First(longAgo().Add(time.Duration(n) * time.Hour))
				errs[i] = errors.Join(errs[i], s.needSpans(t.Context(), v, v))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	have, err := readSpans(t.Context(), stores[0].pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range historyTables() {
		for n := range int64(10) {
			hour := longAgo().UnixMilli()/msPerHour + n
			if i, ok := find(have[table], hour); !ok || have[table][i] != (span{from: hour, to: hour + 1}) {
				t.Errorf("%s has %v; want a span for hour %d", table, have[table], hour)
			}
		}
	}
}

func TestSpansOfAnotherWidth(t *testing.T) {
	url := server.Database(t)
	narrow := openAt(t, url)
	noon := longAgo().Truncate(24 * time.Hour).Add(12 * time.Hour)
	if err := narrow.needSpans(t.Context(), id.First(noon), id.First(noon.Add(3*time.Hour))); err != nil {
		t.Fatal(err)
	}
	wide, err := Open(t.Context(), Options{URL: url, Span: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := wide.Close(); err != nil {
			t.Error(err)
		}
	}()
	p := newPast(t, wide)
	for h := range 24 {
		at := noon.Add(time.Duration(h-12) * time.Hour)
		p.fail(at, p.queue(at, 1)...)
	}
	have, err := readSpans(t.Context(), wide.pool)
	if err != nil {
		t.Fatal(err)
	}
	first := noon.UnixMilli()/msPerHour - 12
	want := []span{{first, first + 12}, {first + 12, first + 13}, {first + 13, first + 15}, {first + 15, first + 16}, {first + 16, first + 24}}
	if got := have["events"][:len(want)]; !slices.Equal(got, want) {
		t.Errorf("the day has the spans %v; want %v", got, want)
	}
}

func TestSpanThatIsDroppedMeanwhile(t *testing.T) {
	url := server.Database(t)
	p, other := newPast(t, openAt(t, url)), openAt(t, url)
	ids := p.queue(longAgo(), 3)
	p.fail(longAgo(), ids[0])
	q := *p
	q.s = other
	q.prune(time.Now(), nil)
	if table := (span{from: hourOf(ids[0])}).table("deliveries"); p.oid(table) != 0 {
		t.Fatalf("table %s is there although all in it is old", table)
	}
	if _, err := p.s.CancelDelivery(t.Context(), p.tenant, ids[1], time.Now()); err != nil {
		t.Errorf("canceling a delivery whose span is gone: %v", err)
	}
	q.prune(time.Now().Add(time.Hour), nil)
	p.fail(time.Now(), ids[2])
	p.wantCounts()
}

func TestPinnedSpanIsWrittenAnew(t *testing.T) {
	p := newPast(t, openAt(t, server.Database(t)))
	ids := p.queue(longAgo(), 50)
	p.fail(longAgo(), ids[1:]...)
	table := span{from: hourOf(ids[0])}.table("events")
	before := p.oid(table)
	if r, want := p.prune(time.Now(), nil), (store.PruneResult{Events: 49, Deliveries: 49}); r != want {
		t.Errorf("pruned %+v; want 49 of each", r)
	}
	if after := p.oid(table); after == 0 || after == before {
		t.Errorf("the table of the events was %d and is %d; want another one", before, after)
	}
	if n := p.one("SELECT count(*) FROM events"); n != 1 {
		t.Errorf("%d events are left; want the one that waits", n)
	}
	c, err := p.s.Claim(t.Context(), store.ClaimParams{Tenant: p.tenant, Webhook: p.webhook, Now: time.Now(), Limit: 5, MaxBytes: 1000})
	if err != nil || len(c.Deliveries) != 1 || string(c.Deliveries[0].Body) != "{}" {
		t.Errorf("claimed %+v, %v", c, err)
	}
	p.fail(time.Now(), ids[0])
	p.wantCounts()
	if r, want := p.prune(time.Now().Add(time.Hour), nil), (store.PruneResult{Events: 1, Deliveries: 1}); r != want {
		t.Errorf("pruned %+v; want the last", r)
	}
	if p.oid(table) != 0 {
		t.Error("the table of the events is there although there is nothing in it")
	}
}

// TestLargeSpan prunes a span as if it were too large to be counted at once, by two
// nodes in turns, and with a retry-all that begins in the middle.
func TestLargeSpan(t *testing.T) {
	url := server.Database(t)
	p := newPast(t, openAt(t, url))
	q := *p
	q.s = openAt(t, url)
	p.s.spans.sizes, q.s.spans.sizes = sizes{small: 1, chunk: 1}, sizes{small: 1, chunk: 1}
	ids := p.queue(longAgo(), 200)
	waits, young, late := ids[0], ids[1:3], ids[3]
	p.fail(time.Now(), young...)
	p.fail(longAgo(), ids[4:]...)
	before := time.Now().Add(-time.Hour)
	parted := func() bool { return p.oid(fmt.Sprintf("deliveries_p%d", hourOf(waits))) != 0 }

	calls := 0
	r := p.prune(before, func() bool {
		if calls++; calls == 1 {
			p.fail(time.Now(), late) // while it is surveyed
		}
		return parted()
	})
	if calls < 3 || !parted() || r.Deliveries != 0 {
		t.Fatalf("after %d calls, %+v, the span is out of the history: %v", calls, r, parted())
	}
	for _, d := range append(young, waits, late) {
		if _, err := p.s.Delivery(t.Context(), p.tenant, d); err != nil {
			t.Errorf("a delivery that stays is gone while the rest is counted: %v", err)
		}
	}
	first := q.prune(before, parted) // one call
	if first.Deliveries == 0 || !parted() {
		t.Fatalf("a call counted %+v, and there is more: %v", first, parted())
	}
	job, err := p.s.StartJob(t.Context(), store.JobParams{ID: p.id(time.Now()), Tenant: p.tenant, Webhook: p.webhook, Kind: store.JobRetryFailed, Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	step := func() {
		if job, err = p.s.StepJob(t.Context(), store.JobStepParams{Tenant: p.tenant, Job: job.ID, Limit: 100, Now: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
	}
	step()
	if job.Done {
		t.Fatal("the retry has come to its end, and some that it stands for are not back yet")
	}
	if rest := q.prune(before, nil); rest.Deliveries != 0 {
		t.Errorf("%+v was deleted from under a retry", rest)
	}
	for range 10 {
		step()
	}
	if !job.Done || job.Moved != job.Total || int(job.Total)+first.Deliveries != len(ids)-1 {
		t.Errorf("the retry is %+v; want it done, and all that was not deleted (%d)", job, first.Deliveries)
	}
	if parted() {
		t.Error("what was taken out of the history is there although it is counted")
	}
	p.wantCounts()
}

// TestPruneBesideWriters prunes while deliveries of the same span are finished,
// retried and canceled.
func TestPruneBesideWriters(t *testing.T) {
	for name, sizes := range map[string]sizes{"at once": {}, "in chunks": {small: 1, chunk: 1}} {
		t.Run(name, func(t *testing.T) {
			url := server.Database(t)
			p := newPast(t, openAt(t, url))
			p.s.spans.sizes = sizes
			q := *p
			q.s = openAt(t, url)
			ids := p.queue(longAgo(), 600)
			p.fail(longAgo(), ids[100:]...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			live := map[id.Delivery]bool{}
			var wg sync.WaitGroup
			wg.Go(func() {
				defer cancel()
				for i, d := range ids[:100] {
					switch i % 4 {
					case 0:
						if _, err := q.s.CancelDelivery(t.Context(), q.tenant, d, time.Now()); err != nil {
							t.Errorf("cancel: %v", err)
						}
					case 1:
						continue // it goes on waiting
					default:
						o := q.outcome(d, time.Now(), 1)
						if err := q.s.Apply(t.Context(), &store.Batch{Outcomes: []*store.Outcome{o}}); err != nil || !o.Matched {
							t.Errorf("outcome: matched %v, %v", o.Matched, err)
						}
					}
					live[d] = true
					r := ids[100+5*i]
					if _, err := q.s.RetryDelivery(t.Context(), store.RetryParams{Tenant: q.tenant, Delivery: r, Now: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}); err == nil {
						live[r] = true
					} else if hook.CodeOf(err) != hook.CodeNotFound {
						t.Errorf("retry: %v", err)
					}
				}
			})
			for ctx.Err() == nil {
				p.prune(time.Now().Add(-time.Hour), nil)
			}
			wg.Wait()
			p.prune(time.Now().Add(-time.Hour), nil)
			for d := range live {
				if _, err := p.s.Delivery(t.Context(), p.tenant, d); err != nil {
					t.Errorf("delivery %s: %v", d, err)
				}
			}
			p.wantCounts()
			if n := p.one("SELECT count(*) FROM queue q WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.tenant_id = q.tenant_id AND e.id = q.event_id)"); n != 0 {
				t.Errorf("%d unfinished deliveries have lost their event", n)
			}
			if n := p.one("SELECT count(*) FROM deliveries d WHERE attempts > 0 AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.tenant_id = d.tenant_id AND a.delivery_id = d.id)"); n != 0 {
				t.Errorf("%d deliveries have lost their attempts", n)
			}
		})
	}
}

// TestPruneWaitsForNobody prunes while somebody reads the span for a long time.
func TestPruneWaitsForNobody(t *testing.T) {
	p := newPast(t, openAt(t, server.Database(t)))
	p.fail(longAgo(), p.queue(longAgo(), 5)...)
	reader, err := p.s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRow(t.Context(), "SELECT count(*) FROM deliveries").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if r := p.prune(time.Now(), nil); r.Deliveries != 0 {
		t.Errorf("pruned %+v under a reader", r)
	}
	if err := reader.Rollback(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
		t.Fatal(err)
	}
	if r, want := p.prune(time.Now(), nil), (store.PruneResult{Events: 5, Deliveries: 5}); r != want {
		t.Errorf("pruned %+v afterwards; want 5 of each", r)
	}
}
