package postgres

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	planRows  = 100_000
	planSpans = 10
	// sqlPlanRows makes finished deliveries, with events and attempts, of ten hours;
	// a tenth of them wait too.
	sqlPlanRows = `WITH n AS (SELECT i, (lpad(to_hex($1::bigint + i * $2::bigint / $3), 12, '0') || '7000' || lpad(to_hex(i), 16, '8'))::uuid AS id,
				('00000000-0000-7000-8000-0000000000' || lpad((i % 20)::text, 2, '0'))::uuid AS webhook FROM generate_series(0, $3::bigint - 1) i),
			e AS (INSERT INTO events (tenant_id, id, ts, type, body) SELECT $4, id, 0, 'tool.error', '{}' FROM n),
			a AS (INSERT INTO attempts (tenant_id, delivery_id, number, data) SELECT $4, id, 1, '' FROM n WHERE i % 10 = 0),
			q AS (INSERT INTO queue (tenant_id, id, webhook_id, event_id, era, due_at, expires_at, status, attempts, try, event_type, trigger)
				SELECT $4, id, webhook, id, 0, 0, 0, 0, 0, 0, 'tool.error', 'auto' FROM n WHERE i % 10 = 1)
		INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, era, expires_at, completed_at, attempts, try, status, event_type, trigger)
		SELECT $4, id, webhook, id, 0, 0, 0, 1, 1, CASE WHEN i % 50 = 0 THEN 3 ELSE 2 END, 'tool.error', 'auto' FROM n WHERE i % 10 <> 1`
)

// explained is the plan of a statement: the spans that it names, and those that were
// looked into.
type explained struct {
	text  string
	spans []string // by the hour, from the oldest
}

var spanName = regexp.MustCompile(`(?:on|Update|Delete) ?(?:on)? (?:\w+_s)(\d+)\b`)

func plan(t *testing.T, q querier, text string, args ...any) explained {
	t.Helper()
	var e explained
	var line string
	explain := "EXPLAIN (COSTS OFF) "
	if strings.HasPrefix(text, "SELECT") {
		explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) "
	}
	err := each(t.Context(), q, explain+text, args, []any{&line}, func() error {
		e.text += line + "\n"
		if found := spanName.FindStringSubmatch(line); found != nil && !strings.Contains(line, "never executed") && !slices.Contains(e.spans, found[1]) {
			e.spans = append(e.spans, found[1])
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	slices.Sort(e.spans)
	return e
}

// TestPlans asks the database how it goes about things when there are many rows, of
// which it has no statistics: by an index, and in the spans alone where there can be
// something.
func TestPlans(t *testing.T) {
	s := openAt(t, server.Database(t))
	start := longAgo()
	at := func(hours float64) id.Delivery {
		return id.Delivery(id.First(start.Add(time.Duration(hours * float64(time.Hour)))))
	}
	for h := range planSpans {
		if err := s.needSpans(t.Context(), at(float64(h))); err != nil {
			t.Fatal(err)
		}
	}
	p := newPast(t, s)
	if _, err := s.pool.Exec(t.Context(), sqlPlanRows, millis(start), int64(planSpans)*msPerHour, int64(planRows), uuid(p.tenant)); err != nil {
		t.Fatal(err)
	}
	var webhook id.Webhook
	var third id.Delivery // one of the third hour
	if _, err := one(t.Context(), s.pool, "SELECT id, webhook_id FROM deliveries WHERE id >= $1 AND status = 3 ORDER BY id LIMIT 1", []any{uuid(at(2))},
		(*[16]byte)(&third), (*[16]byte)(&webhook)); err != nil {
		t.Fatal(err)
	}
	type statement struct {
		name string
		text string
		args []any
		most int // spans
	}
	var reads, writes []statement
	read := func(most int, name, text string, args ...any) {
		reads = append(reads, statement{name, text, args, most})
	}
	write := func(most int, name, text string, args ...any) {
		writes = append(writes, statement{name, text, args, most})
	}
	succeeded, failed, pending := hook.StatusSuccess, hook.StatusFailed, hook.StatusPending
	for _, c := range []struct {
		name string
		q    store.DeliveryQuery
		most int
	}{
		{"the newest", store.DeliveryQuery{Before: at(9.5)}, 1},
		{"of a webhook", store.DeliveryQuery{Before: at(9.5), Webhook: webhook}, 1},
		{"FAILED", store.DeliveryQuery{Before: at(9.5), Status: &failed}, 1},
		{"FAILED of a webhook", store.DeliveryQuery{Before: at(9.5), Status: &failed, Webhook: webhook}, 5},
		{"SUCCESS", store.DeliveryQuery{Before: at(9.5), Status: &succeeded}, 1},
		{"PENDING", store.DeliveryQuery{Before: at(9.5), Status: &pending}, 0},
		{"of a type", store.DeliveryQuery{Before: at(9.5), EventType: "tool.error"}, 1},
		{"of a type that there is not", store.DeliveryQuery{Before: at(9.5), EventType: "nothing"}, 2},
		{"in the middle", store.DeliveryQuery{Before: at(4.5)}, 1},
		{"of a time", store.DeliveryQuery{Since: start.Add(2 * time.Hour), Until: start.Add(4 * time.Hour), EventType: "nothing"}, 2},
	} {
		c.q.Tenant = p.tenant
		for _, w := range deliveryWalks(&c.q) {
			text, args := w.page(w.columns, 51, lookChunk)
			read(c.most, "deliveries "+c.name+" in "+w.table, text, args...)
			text, args = w.page("id", 1000, countLooks)
			read(planSpans, "count of deliveries "+c.name+" in "+w.table, text, args...)
		}
	}
	events := newWalk("events", eventColumns, p.tenant, time.Time{}, time.Time{}, at(4.5))
	query, args := events.page(events.columns, 51, lookChunk)
	read(1, "events", query, args...)
	tenant, ids := uuid(p.tenant), uuids([]id.Delivery{third})
	read(1, "a delivery", sqlDelivery, tenant, uuid(third))
	read(1, "deliveries by id", sqlDeliveries, tenant, ids, uuid(third), uuid(third))
	read(1, "the first attempt", sqlDetail, tenant, uuid(third))
	read(1, "attempts", sqlAttempts, tenant, uuid(third))
	read(1, "an event", sqlEvent, tenant, uuid(third))
	read(2, "what is left of a time", sqlLive, uuid(at(2)), uuid(at(4)), int64(10))
	write(planSpans, "failed ones of a job", sqlFailedRows, tenant, uuid(webhook), uuid(at(2)), int64(10))
	write(0, "queued ones of a job", sqlQueueRows, tenant, uuid(webhook), uuid(at(2)), int64(10))
	write(1, "retrying finished ones", sqlAskDone, tenant, ids, uuid(third), uuid(third), anyEra, true, int64(1), int64(1), int64(1), int16(1), int16(0), "manual", uuid(third))
	write(1, "retrying unfinished ones", sqlAskQueued, tenant, ids, uuid(third), uuid(third), int64(1), int64(1), int64(1), int16(1), int16(0), "manual")

	check := func(q querier, statements []statement) {
		for _, c := range statements {
			got := plan(t, q, c.text, c.args...)
			if strings.Contains(got.text, "Seq Scan") || strings.Contains(got.text, "Bitmap") {
				t.Errorf("%s: goes over all rows:\n%s", c.name, got.text)
			}
			if len(got.spans) > c.most {
				t.Errorf("%s: looks into the spans %v; want %d:\n%s", c.name, got.spans, c.most, got.text)
			}
		}
	}
	err := s.look(t.Context(), func(_ context.Context, q pgx.Tx) error {
		check(q, reads)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.write(t.Context(), []id.Tenant{p.tenant}, func(_ context.Context, w *tx) error {
		check(w.conn, writes)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
