package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
	"github.com/plinqx/hypha/internal/store/idempotency"
)

// Apply writes a batch in one transaction: the accepts in their order, then the
// outcomes.
func (s *Store) Apply(ctx context.Context, b *store.Batch) error {
	return s.write(ctx, func(t *tx) error {
		a := newAcceptor(t)
		for _, accept := range b.Accepts {
			accept.Results, accept.Err = nil, nil
			if err := a.accept(accept); err != nil {
				var known *hook.Error
				if !errors.As(err, &known) && !errors.Is(err, store.ErrConfigMoved) {
					return err
				}
				accept.Results, accept.Err = nil, err
			}
		}
		if err := a.flush(); err != nil {
			return err
		}
		if err := t.outcomes(b.Outcomes); err != nil {
			return err
		}
		return t.boundHeld()
	})
}

// acceptor takes the accepts of a batch. It checks the whole of an accept
// before it writes any of it. Rows are gathered over all accepts.
type acceptor struct {
	t          *tx
	now        time.Time
	batch      *idempotency.Batch
	events     rowWriter
	deliveries rowWriter
	keys       rowWriter
}

func newAcceptor(t *tx) *acceptor {
	a := &acceptor{
		t:   t,
		now: t.s.now(),
		events: t.write(rows{columns: 10,
			head: "INSERT INTO events (n, tenant_id, id, type, ts, created_at, given_id, deliveries, body, held) VALUES ",
			row:  "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"}),
		deliveries: t.newDeliveries(),
		keys: t.write(rows{columns: 7,
			head: "INSERT OR REPLACE INTO event_keys (tenant_id, kind, key, hash, expires_at, event_id, answer) VALUES ",
			row:  "(?, ?, ?, ?, ?, ?, ?)"}),
	}
	a.batch = idempotency.NewBatch(a, a.now)
	return a
}

// newDeliveries writes rows of deliveries that wait: tenant, id, webhook, event,
// given id, type, trigger, era, due, created, expires.
func (t *tx) newDeliveries() rowWriter {
	return t.write(rows{columns: 11,
		head: "INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, given_id, event_type, trigger, era, due_at, created_at, expires_at, status, attempts, try) VALUES ",
		row:  "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)"})
}

func (a *acceptor) flush() error {
	for _, w := range [...]*rowWriter{&a.events, &a.deliveries, &a.keys} {
		if err := w.flush(); err != nil {
			return fmt.Errorf("write events: %w", err)
		}
	}
	return nil
}

// accept takes one request. What it returns as *hook.Error or ErrConfigMoved is
// the request's own; nothing of it was written then.
func (a *acceptor) accept(r *store.Accept) error {
	version, err := a.t.version(r.Tenant)
	if err != nil {
		return err
	}
	if version == tenantGone {
		return hook.NotFound("Tenant")
	}
	if version != r.ConfigVersion {
		return store.ErrConfigMoved
	}
	results, repeated, err := a.batch.Check(r)
	if err != nil || repeated {
		r.Results = results
		return err
	}
	if r.MaxQueued > 0 {
		g, err := a.t.gauge(gaugeKey{tenant: r.Tenant})
		if err != nil {
			return err
		}
		if err := idempotency.Room(r, results, g.pending); err != nil {
			return err
		}
	}
	if err := a.writeEvents(r, results); err != nil {
		return err
	}
	r.Results = results
	return nil
}

func (a *acceptor) writeEvents(r *store.Accept, results []store.AcceptResult) error {
	t := a.t
	for i := range r.Events {
		if results[i].Duplicate {
			continue
		}
		e := &r.Events[i]
		ids := make([]byte, 0, len(e.Deliveries)*len(id.Delivery{}))
		for j := range e.Deliveries {
			d := &e.Deliveries[j]
			ids = append(ids, d.ID[:]...)
			if err := t.addGauge(r.Tenant, d.Webhook, 1, 0, 1); err != nil {
				return err
			}
			if d.Held {
				continue
			}
			err := a.deliveries.add(r.Tenant[:], d.ID[:], d.Webhook[:], e.ID[:], textOrNull(e.GivenID), e.Type,
				string(d.Trigger), t.era, millis(e.Due), millis(d.ID.Time()), millis(e.ExpiresAt))
			if err != nil {
				return fmt.Errorf("write deliveries: %w", err)
			}
		}
		t.lastEvent++
		// Nobody asks its row when it was created: its id tells. The column has what
		// rows need that a start after a crash makes of it (see recoverEvent).
		err := a.events.add(t.lastEvent, r.Tenant[:], e.ID[:], e.Type, millis(e.Timestamp), millis(e.Due), textOrNull(e.GivenID), ids, e.Body,
			blobOrNull(t.hold(r.Tenant, e, t.lastEvent)))
		if err != nil {
			return fmt.Errorf("write events: %w", err)
		}
	}
	keys, err := a.batch.Took(r, results)
	if err != nil {
		return err
	}
	for i := range keys {
		k := &keys[i]
		err := a.keys.add(k.Tenant[:], int64(k.Kind), k.Text, k.Hash[:], millisOrNull(k.ExpiresAt), idOrNull(k.Event), blobOrNull(k.Answer))
		if err != nil {
			return fmt.Errorf("write an idempotency key: %w", err)
		}
	}
	return nil
}

// LookUp implements idempotency.Ledger.
func (a *acceptor) LookUp(key idempotency.Key) (*idempotency.Entry, error) {
	var held *idempotency.Entry
	var event id.Event
	var broken error
	_, err := a.t.one("SELECT hash, expires_at, event_id, answer FROM event_keys WHERE tenant_id = ? AND kind = ? AND key = ?",
		func(r row) {
			if !r.null(1) && r.int(1) <= millis(a.now) {
				return
			}
			held = &idempotency.Entry{Hash: r.hash(0)}
			if key.Kind == idempotency.Request {
				held.Answer, broken = codec.DecodeAnswer(r.blob(3))
			}
			copy(event[:], r.blob(2))
		}, key.Tenant[:], int64(key.Kind), key.Text)
	if err = errors.Join(err, broken); err != nil {
		return nil, fmt.Errorf("look up an idempotency key: %w", err)
	}
	if held == nil || key.Kind == idempotency.Request {
		return held, nil
	}
	found, err := a.t.one("SELECT type, ts, length(deliveries) FROM events WHERE tenant_id = ? AND id = ?",
		func(r row) {
			held.Answer = []store.AcceptResult{{PublicID: key.Text, Type: r.text(0), Timestamp: r.time(1), Deliveries: int(r.int(2)) / len(id.Delivery{})}}
		}, key.Tenant[:], event[:])
	if err != nil {
		return nil, fmt.Errorf("look up an event: %w", err)
	}
	if !found {
		return nil, nil
	}
	return held, nil
}

// Taken implements idempotency.Ledger.
func (a *acceptor) Taken(tenant id.Tenant, event id.Event) (bool, error) {
	taken, err := a.t.one("SELECT 1 FROM events WHERE tenant_id = ? AND id = ? AND given_id IS NULL", func(row) {}, tenant[:], event[:])
	if err != nil {
		return false, fmt.Errorf("look up an event: %w", err)
	}
	return taken, nil
}
