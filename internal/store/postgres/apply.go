package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
	"github.com/plinqx/hypha/internal/store/idempotency"
)

// A batch takes two round trips: what must be known, with the outcomes; and all
// that is new, with the commit. Keys take one more, since another node may write
// the same one.

const (
	sqlKeys = `SELECT k.i - 1, e.hash, e.expires_at, e.event_id, e.answer, v.type, v.ts, length(v.deliveries)
		FROM unnest($1::uuid[], $2::smallint[], $3::text[]) WITH ORDINALITY AS k(tenant_id, kind, key, i)
		JOIN event_keys e ON e.tenant_id = k.tenant_id AND e.kind = k.kind AND e.key = k.key
		LEFT JOIN events v ON v.tenant_id = e.tenant_id AND v.id = e.event_id`
	sqlTaken = `SELECT e.tenant_id, e.id FROM unnest($1::uuid[], $2::uuid[]) AS k(tenant_id, id)
		JOIN events e ON e.tenant_id = k.tenant_id AND e.id = k.id WHERE e.given_id IS NULL`
	// sqlPending reads gauges and what is not folded into them in one snapshot.
	sqlPending = `SELECT tenant_id, pending, NULL::bytea FROM gauges WHERE tenant_id = ANY($1) AND webhook_id = '00000000-0000-0000-0000-000000000000'
		UNION ALL SELECT tenant_id, 0, data FROM count_log WHERE tenant_id = ANY($1)`
	// sqlFreeKeys deletes keys that have ended, or whose event has, if they are
	// still what was read.
	sqlFreeKeys = `DELETE FROM event_keys e USING unnest($1::uuid[], $2::smallint[], $3::text[], $4::bytea[]) AS k(tenant_id, kind, key, hash)
		WHERE e.tenant_id = k.tenant_id AND e.kind = k.kind AND e.key = k.key AND e.hash = k.hash`
	sqlInsertKeys = `INSERT INTO event_keys (tenant_id, kind, key, hash, expires_at, event_id, answer)
		SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::text[], $4::bytea[], $5::bigint[], $6::uuid[], $7::bytea[])
		ON CONFLICT (tenant_id, kind, key) DO NOTHING`
	sqlInsertEvents = `INSERT INTO events (tenant_id, id, ts, type, given_id, deliveries, body)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bytea[], $7::bytea[])`
	sqlInsertQueue = `INSERT INTO queue (tenant_id, id, webhook_id, event_id, node, era, due_at, expires_at, status, attempts, try, given_id, event_type, trigger)
		SELECT tenant_id, id, webhook_id, event_id, node, era, due_at, expires_at, 0, 0, 0, given_id, event_type, trigger
		FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[], $10::text[], $11::text[])
			AS v(tenant_id, id, webhook_id, event_id, node, era, due_at, expires_at, given_id, event_type, trigger)`
)

// Apply writes a batch in one transaction.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	err := s.apply(ctx, b)
	if state(err) == stateCheck { // a span was dropped since this node saw it
		s.forgetSpans()
		err = s.apply(ctx, b)
	}
	return edge(err)
}

func (s *Store) apply(ctx context.Context, b *store.Batch) error {
	tenants := map[id.Tenant]struct{}{}
	var ids [][16]byte
	for _, a := range b.Accepts {
		tenants[a.Tenant] = struct{}{}
		for i := range a.Events {
			ids = append(ids, a.Events[i].ID)
		}
	}
	for _, o := range b.Outcomes {
		tenants[o.Tenant] = struct{}{}
		ids = append(ids, o.Delivery)
	}
	if err := s.needSpans(ctx, ids...); err != nil {
		return err
	}
	var l *ledger
	var r *recorder
	return s.transact(ctx, s.commits, sqlBeginApply, slices.Collect(maps.Keys(tenants)), func(t *tx, first *pgx.Batch) {
		l, r = newLedger(t, b.Accepts), &recorder{t: t}
		l.ask(first)
		r.record(first, b.Outcomes)
	}, func(ctx context.Context, t *tx) error {
		w := writer{t: t, ledger: l, batch: idempotency.NewBatch(l, s.now())}
		for _, a := range b.Accepts {
			if err := w.take(a); err != nil {
				return err
			}
		}
		if err := w.claimKeys(ctx); err != nil {
			return err
		}
		w.queue(&t.last)
		if w.accepted(b.Outcomes) {
			// They could not be found before.
			if err := r.again(ctx); err != nil {
				return err
			}
		}
		return r.finish(ctx)
	})
}

// ledger knows what stands behind the keys of a batch. All of it is read at once.
type ledger struct {
	t       *tx
	keys    []idempotency.Key
	entries map[idempotency.Key]*idempotency.Entry
	// dead are the keys that are there and free, with their hashes.
	dead  map[idempotency.Key][]byte
	given []ownID // that look like ids of ours
	taken map[ownID]struct{}
	limit []id.Tenant // whose number of unfinished deliveries must be read
	fresh map[id.Tenant]int64
	read  time.Time
}

type ownID struct {
	tenant id.Tenant
	event  id.Event
}

func newLedger(t *tx, accepts []*store.Accept) *ledger {
	l := &ledger{
		t: t, entries: map[idempotency.Key]*idempotency.Entry{}, dead: map[idempotency.Key][]byte{},
		taken: map[ownID]struct{}{}, fresh: map[id.Tenant]int64{}, read: time.Now(),
	}
	limited := map[id.Tenant]struct{}{}
	for _, a := range accepts {
		if a.MaxQueued > 0 {
			limited[a.Tenant] = struct{}{}
		}
		if a.Key != nil {
			l.keys = append(l.keys, idempotency.Key{Tenant: a.Tenant, Kind: idempotency.Request, Text: a.Key.Key})
		}
		for i := range a.Events {
			given := a.Events[i].GivenID
			if given == "" {
				continue
			}
			l.keys = append(l.keys, idempotency.Key{Tenant: a.Tenant, Kind: idempotency.Given, Text: given})
			if event, err := id.ParseEvent(given); err == nil {
				l.given = append(l.given, ownID{a.Tenant, event})
			}
		}
	}
	t.s.countsMu.Lock()
	defer t.s.countsMu.Unlock()
	for tenant := range limited {
		if known, ok := t.s.pending[tenant]; !ok || l.read.Sub(known.read) > pendingLife {
			l.limit = append(l.limit, tenant)
		}
	}
	return l
}

// ask queues the questions.
func (l *ledger) ask(b *pgx.Batch) {
	if len(l.keys) > 0 {
		tenants, kinds, texts := keyColumns(l.keys)
		b.Queue(sqlKeys, tenants, kinds, texts)
		l.t.first = append(l.t.first, l.readKeys)
	}
	if len(l.given) > 0 {
		var tenants, events []pgtype.UUID
		for _, g := range l.given {
			tenants, events = append(tenants, uuid(g.tenant)), append(events, uuid(g.event))
		}
		b.Queue(sqlTaken, tenants, events)
		l.t.first = append(l.t.first, l.readTaken)
	}
	if len(l.limit) > 0 {
		b.Queue(sqlPending, uuids(l.limit))
		l.t.first = append(l.t.first, l.readPending)
	}
}

func keyColumns(keys []idempotency.Key) (tenants []pgtype.UUID, kinds []int16, texts []string) {
	for _, k := range keys {
		tenants, kinds, texts = append(tenants, uuid(k.Tenant)), append(kinds, int16(k.Kind)), append(texts, k.Text)
	}
	return tenants, kinds, texts
}

func (l *ledger) readKeys(r pgx.BatchResults) error {
	rows, err := r.Query()
	if err != nil {
		return fmt.Errorf("look up idempotency keys: %w", err)
	}
	var at int64
	var hash, answer []byte
	var expires, ts, length pgtype.Int8
	var event pgtype.UUID
	var eventType pgtype.Text
	now := millis(l.t.s.now())
	_, err = pgx.ForEachRow(rows, []any{&at, &hash, &expires, &event, &answer, &eventType, &ts, &length}, func() error {
		k := l.keys[at]
		e := &idempotency.Entry{Hash: [32]byte(hash)}
		switch {
		case expires.Valid && expires.Int64 <= now, k.Kind == idempotency.Given && !eventType.Valid:
			l.dead[k] = slices.Clone(hash)
			return nil
		case k.Kind == idempotency.Given:
			e.Answer = []store.AcceptResult{{PublicID: k.Text, Type: eventType.String, Timestamp: atMillis(ts.Int64), Deliveries: int(length.Int64) / len(id.Delivery{})}}
		default:
			var err error
			if e.Answer, err = codec.DecodeAnswer(answer); err != nil {
				return err
			}
		}
		l.entries[k] = e
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up idempotency keys: %w", err)
	}
	return nil
}

func (l *ledger) readTaken(r pgx.BatchResults) error {
	rows, err := r.Query()
	if err != nil {
		return fmt.Errorf("look up events: %w", err)
	}
	var v ownID
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&v.tenant), (*[16]byte)(&v.event)}, func() error {
		l.taken[v] = struct{}{}
		return nil
	})
	return err
}

func (l *ledger) readPending(r pgx.BatchResults) error {
	rows, err := r.Query()
	if err != nil {
		return fmt.Errorf("read how many deliveries there are: %w", err)
	}
	var tenant id.Tenant
	var pending int64
	var data []byte
	for _, tenant := range l.limit {
		l.fresh[tenant] = 0
	}
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&tenant), &pending, &data}, func() error {
		if data != nil {
			c := newCounts()
			if err := c.merge(data); err != nil {
				return err
			}
			pending = c.pending()
		}
		l.fresh[tenant] += pending
		return nil
	})
	if err != nil {
		return fmt.Errorf("read how many deliveries there are: %w", err)
	}
	l.t.s.countsMu.Lock()
	defer l.t.s.countsMu.Unlock()
	if known := l.t.s.pending; len(known) > maxPending {
		maps.DeleteFunc(known, func(_ id.Tenant, k knownPending) bool { return l.read.Sub(k.read) > pendingLife })
	}
	for tenant, n := range l.fresh {
		l.t.s.pending[tenant] = knownPending{n: n, read: l.read}
	}
	return nil
}

// LookUp implements idempotency.Ledger.
func (l *ledger) LookUp(k idempotency.Key) (*idempotency.Entry, error) { return l.entries[k], nil }

// Taken implements idempotency.Ledger.
func (l *ledger) Taken(tenant id.Tenant, event id.Event) (bool, error) {
	_, ok := l.taken[ownID{tenant, event}]
	return ok, nil
}

// pending is how many unfinished deliveries a tenant has, as well as is known: what
// others have queued within pendingLife may not be among them.
func (l *ledger) pending(tenant id.Tenant) int64 {
	l.t.s.countsMu.Lock()
	n := l.t.s.pending[tenant].n
	l.t.s.countsMu.Unlock()
	if c := l.t.tally[tenant]; c != nil {
		n += c.pending()
	}
	return n
}

// writer gathers the rows of the accepts of a batch.
type writer struct {
	t      *tx
	ledger *ledger
	batch  *idempotency.Batch
	keys   []idempotency.Row

	events struct {
		tenants, ids     []pgtype.UUID
		ts               []int64
		types            []string
		given            []pgtype.Text
		deliveries, body [][]byte
	}
	deliveries struct {
		tenants, ids, webhooks, events []pgtype.UUID
		node                           []pgtype.Int8
		era, due, expires              []int64
		given                          []pgtype.Text
		types, triggers                []string
	}
}

// take takes one accept, or sets its error. Only what is wrong with the whole batch
// is an error of its own.
func (w *writer) take(a *store.Accept) error {
	a.Results, a.Err = nil, nil
	err := w.accept(a)
	var known *hook.Error
	if err != nil && !errors.As(err, &known) && !errors.Is(err, store.ErrConfigMoved) {
		return err
	}
	if err != nil {
		a.Results, a.Err = nil, err
	}
	return nil
}

func (w *writer) accept(a *store.Accept) error {
	tenant, ok := w.t.tenants[a.Tenant]
	switch {
	case !ok:
		return hook.NotFound("Tenant")
	case tenant.version != a.ConfigVersion:
		return store.ErrConfigMoved
	}
	results, repeated, err := w.batch.Check(a)
	if err != nil || repeated {
		a.Results = results
		return err
	}
	if a.MaxQueued > 0 {
		if err := idempotency.Room(a, results, w.ledger.pending(a.Tenant)); err != nil {
			return err
		}
	}
	keys, err := w.batch.Took(a, results)
	if err != nil {
		return err
	}
	w.keys = append(w.keys, keys...)
	for i := range a.Events {
		if !results[i].Duplicate {
			w.event(a.Tenant, tenant.era, &a.Events[i])
		}
	}
	a.Results = results
	return nil
}

func (w *writer) event(tenant id.Tenant, era int64, e *store.NewEvent) {
	given, due := textOrNull(e.GivenID), millis(e.Due)
	ids := make([]byte, 0, len(e.Deliveries)*len(id.Delivery{}))
	d := &w.deliveries
	for i := range e.Deliveries {
		n := &e.Deliveries[i]
		ids = append(ids, n.ID[:]...)
		d.tenants, d.ids, d.webhooks, d.events = append(d.tenants, uuid(tenant)), append(d.ids, uuid(n.ID)), append(d.webhooks, uuid(n.Webhook)), append(d.events, uuid(e.ID))
		d.node = append(d.node, pgtype.Int8{Int64: w.t.node, Valid: n.Held})
		d.era, d.due, d.expires = append(d.era, era), append(d.due, due), append(d.expires, millis(e.ExpiresAt))
		d.given, d.types, d.triggers = append(d.given, given), append(d.types, e.Type), append(d.triggers, string(n.Trigger))
		w.t.addGauge(tenant, n.Webhook, 1, 0, 1)
	}
	v := &w.events
	v.tenants, v.ids, v.ts = append(v.tenants, uuid(tenant)), append(v.ids, uuid(e.ID)), append(v.ts, millis(e.Timestamp))
	v.types, v.given = append(v.types, e.Type), append(v.given, given)
	v.deliveries, v.body = append(v.deliveries, ids), append(v.body, e.Body)
}

// claimKeys writes the keys. If another node wrote one of them meanwhile, the whole
// transaction is run again: it sees that one then.
func (w *writer) claimKeys(ctx context.Context) error {
	if len(w.keys) == 0 {
		return nil
	}
	// In one order on every node, so that none waits for another in a circle. Of a
	// key that ended at once, the last of the batch counts.
	slices.SortStableFunc(w.keys, func(a, b idempotency.Row) int {
		if c := a.Tenant.Compare(b.Tenant); c != 0 {
			return c
		}
		if a.Kind != b.Kind {
			return int(a.Kind - b.Kind)
		}
		return strings.Compare(a.Text, b.Text)
	})
	slices.Reverse(w.keys)
	w.keys = slices.CompactFunc(w.keys, func(a, b idempotency.Row) bool { return a.Key == b.Key })
	slices.Reverse(w.keys)
	var b pgx.Batch
	if len(w.ledger.dead) > 0 {
		dead := slices.Collect(maps.Keys(w.ledger.dead))
		tenants, kinds, texts := keyColumns(dead)
		var hashes [][]byte
		for _, k := range dead {
			hashes = append(hashes, w.ledger.dead[k])
		}
		b.Queue(sqlFreeKeys, tenants, kinds, texts, hashes)
	}
	keys := make([]idempotency.Key, len(w.keys))
	var hashes, answers [][]byte
	var expires []pgtype.Int8
	var events []pgtype.UUID
	for i := range w.keys {
		k := &w.keys[i]
		keys[i] = k.Key
		hashes, answers = append(hashes, k.Hash[:]), append(answers, k.Answer)
		expires, events = append(expires, millisOrNull(k.ExpiresAt)), append(events, uuidOrNull(k.Event))
	}
	tenants, kinds, texts := keyColumns(keys)
	written := int64(-1)
	b.Queue(sqlInsertKeys, tenants, kinds, texts, hashes, expires, events, answers)
	r := w.t.conn.SendBatch(ctx, &b)
	for range b.Len() {
		tag, err := r.Exec()
		if err != nil {
			return errors.Join(fmt.Errorf("write idempotency keys: %w", err), r.Close())
		}
		written = tag.RowsAffected()
	}
	if err := r.Close(); err != nil {
		return fmt.Errorf("write idempotency keys: %w", err)
	}
	if written != int64(len(w.keys)) {
		return errAgain
	}
	return nil
}

// queue puts the rows into the last batch of the transaction.
func (w *writer) queue(b *pgx.Batch) {
	if v := &w.events; len(v.ids) > 0 {
		b.Queue(sqlInsertEvents, v.tenants, v.ids, v.ts, v.types, v.given, v.deliveries, v.body)
	}
	if d := &w.deliveries; len(d.ids) > 0 {
		b.Queue(sqlInsertQueue, d.tenants, d.ids, d.webhooks, d.events, d.node, d.era, d.due, d.expires, d.given, d.types, d.triggers)
	}
}

// accepted reports whether an outcome is of a delivery of this very batch.
func (w *writer) accepted(outcomes []*store.Outcome) bool {
	if len(outcomes) == 0 || len(w.deliveries.ids) == 0 {
		return false
	}
	own := make(map[[16]byte]struct{}, len(w.deliveries.ids))
	for _, d := range w.deliveries.ids {
		own[d.Bytes] = struct{}{}
	}
	return slices.ContainsFunc(outcomes, func(o *store.Outcome) bool {
		_, ok := own[o.Delivery]
		return ok
	})
}
