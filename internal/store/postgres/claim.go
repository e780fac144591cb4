package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlMine     = `SELECT id FROM queue WHERE node = $1 AND tenant_id = $2 AND webhook_id = $3`
	sqlFreeMine = `UPDATE queue q SET node = NULL FROM unnest($1::uuid[], $2::uuid[]) AS o(tenant_id, id)
		WHERE q.tenant_id = o.tenant_id AND q.id = o.id AND coalesce(q.node, 0) = $3`
	// sqlDue passes over what another node is taking at this moment.
	sqlDue = `SELECT q.id, q.due_at, q.event_id, q.given_id, q.event_type, q.attempts, q.try, q.trigger, q.expires_at, octet_length(e.body)
		FROM queue q LEFT JOIN events e ON e.tenant_id = q.tenant_id AND e.id = q.event_id
		WHERE q.tenant_id = $1 AND q.webhook_id = $2 AND q.node IS NULL AND q.due_at <= $3
		ORDER BY q.due_at, q.id LIMIT $4 FOR UPDATE OF q SKIP LOCKED`
	sqlHold = `UPDATE queue q SET node = $3 FROM unnest($1::uuid[], $2::uuid[]) AS o(tenant_id, id)
		WHERE q.tenant_id = o.tenant_id AND q.id = o.id`
	sqlBodies  = `SELECT id, body FROM events WHERE tenant_id = $1 AND id = ANY($2)`
	sqlNextDue = `SELECT due_at FROM queue WHERE tenant_id = $1 AND webhook_id = $2 AND node IS NULL AND due_at > $3 ORDER BY due_at, id LIMIT 1`
	sqlExpired = `SELECT id, expires_at, node FROM queue WHERE tenant_id = $1 AND webhook_id = $2 AND expires_at <= $3 AND expires_at > 0 ORDER BY expires_at, id LIMIT $4`
	sqlNextEnd = `SELECT expires_at FROM queue WHERE tenant_id = $1 AND webhook_id = $2 AND expires_at > $3 AND expires_at > 0 ORDER BY expires_at, id LIMIT 1`
	sqlBacklog = `SELECT w.tenant_id, w.id, least(
			(SELECT due_at FROM queue q WHERE q.tenant_id = w.tenant_id AND q.webhook_id = w.id AND q.node IS NULL ORDER BY due_at, id LIMIT 1),
			(SELECT min(due_at) FROM queue q WHERE q.node = $1 AND q.tenant_id = w.tenant_id AND q.webhook_id = w.id))
		FROM webhooks w WHERE (w.tenant_id, w.id) > ($2, $3) ORDER BY w.tenant_id, w.id LIMIT $4`
)

// Claim takes due deliveries, oldest due first, and marks them as this node's. What
// is marked so and not held was given back: it is taken with the rest, in its turn.
func (s *Store) Claim(ctx context.Context, p store.ClaimParams) (*store.Claimed, error) {
	held := func(d id.Delivery) bool { return p.Held != nil && p.Held(d) }
	c := claim{p: &p, held: held}
	err := s.transact(ctx, s.commits, sqlBeginShared, []id.Tenant{p.Tenant}, func(t *tx, first *pgx.Batch) {
		c = claim{p: &p, held: held}
		first.Queue(sqlMine, t.node, uuid(p.Tenant), uuid(p.Webhook))
		t.first = append(t.first, c.readMine)
	}, func(ctx context.Context, t *tx) error {
		if !t.has(p.Tenant) {
			return nil
		}
		return c.take(ctx, t)
	})
	if err != nil {
		return nil, err
	}
	return &c.out, nil
}

type claim struct {
	p    *store.ClaimParams
	held func(id.Delivery) bool
	mine []id.Delivery // marked as this node's, and not held
	out  store.Claimed
}

func (c *claim) readMine(r pgx.BatchResults) error {
	rows, err := r.Query()
	if err != nil {
		return fmt.Errorf("look for what was given back: %w", err)
	}
	var d id.Delivery
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&d)}, func() error {
		if !c.held(d) {
			c.mine = append(c.mine, d)
		}
		return nil
	})
	return err
}

func (c *claim) take(ctx context.Context, t *tx) error {
	p := c.p
	if len(c.mine) > 0 {
		if _, err := t.execByID(ctx, sqlFreeMine, sameTenant(p.Tenant, len(c.mine)), uuids(c.mine), t.node); err != nil {
			return fmt.Errorf("free what was given back: %w", err)
		}
	}
	if err := c.choose(ctx, t); err != nil {
		return fmt.Errorf("claim deliveries: %w", err)
	}
	var b pgx.Batch
	b.Queue(sqlNextDue, uuid(p.Tenant), uuid(p.Webhook), millis(p.Now))
	if len(c.out.Deliveries) > 0 {
		var ids []id.Delivery
		var events []id.Event
		for i := range c.out.Deliveries {
			ids, events = append(ids, c.out.Deliveries[i].ID), append(events, c.out.Deliveries[i].Event)
		}
		slices.SortFunc(events, id.Event.Compare)
		b.Queue(sqlBodies, uuid(p.Tenant), uuids(slices.Compact(events)))
		b.Queue(sqlByID)
		b.Queue(sqlHold, sameTenant(p.Tenant, len(ids)), uuids(ids), t.node)
	}
	return c.readRest(t.conn.SendBatch(ctx, &b))
}

// choose locks what is due and chooses of it as much as was asked for. What is held
// and yet free, as after a lease that had ended, is in the way: it looks further.
func (c *claim) choose(ctx context.Context, t *tx) error {
	for limit := c.p.Limit + 1; ; limit *= 4 {
		c.out.Deliveries, c.out.More = nil, false
		rows, err := c.look(ctx, t, limit)
		if err != nil || rows < limit || c.out.More {
			return err
		}
	}
}

// look looks at no more than limit rows and says how many there were.
func (c *claim) look(ctx context.Context, t *tx, limit int) (rows int, err error) {
	p := c.p
	var q store.Queued
	var due, expires int64
	var given pgtype.Text
	var size pgtype.Int4
	var trigger string
	var total int
	err = t.each(ctx, sqlDue, []any{uuid(p.Tenant), uuid(p.Webhook), millis(p.Now), int64(limit)},
		[]any{(*[16]byte)(&q.ID), &due, (*[16]byte)(&q.Event), &given, &q.EventType, &q.Attempts, &q.Try, &trigger, &expires, &size}, func() error {
			rows++
			if c.held(q.ID) || c.out.More {
				return nil
			}
			total += int(size.Int32)
			if len(c.out.Deliveries) >= p.Limit || total > p.MaxBytes && len(c.out.Deliveries) > 0 {
				c.out.More = true
				return nil
			}
			q.Trigger, q.Due, q.ExpiresAt = hook.Trigger(trigger), atMillis(due), atMillis(expires)
			q.PublicEventID = publicID(given.String, q.Event)
			c.out.Deliveries = append(c.out.Deliveries, q)
			return nil
		})
	return rows, err
}

// publicID is the id of an event that the world sees.
func publicID(given string, event id.Event) string {
	if given != "" {
		return given
	}
	return event.String()
}

func (c *claim) readRest(r pgx.BatchResults) (err error) {
	defer func() {
		if closed := r.Close(); err == nil {
			err = closed
		}
	}()
	rows, err := r.Query()
	if err != nil {
		return err
	}
	var due int64
	_, err = pgx.ForEachRow(rows, []any{&due}, func() error {
		c.out.NextDue = atMillis(due)
		return nil
	})
	if err != nil || len(c.out.Deliveries) == 0 {
		return err
	}
	if rows, err = r.Query(); err != nil {
		return err
	}
	bodies := make(map[id.Event][]byte, len(c.out.Deliveries))
	var event id.Event
	var body []byte
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&event), &body}, func() error {
		bodies[event] = body
		body = nil
		return nil
	})
	if err != nil {
		return err
	}
	for i := range c.out.Deliveries {
		c.out.Deliveries[i].Body = bodies[c.out.Deliveries[i].Event]
	}
	return passOver(r, 2)
}

// mostHeld is how many deliveries of a webhook nodes may hold that a sweep has to
// look past, in the worst case.
const mostHeld = 10_000

// Expire gives up what is too old, except what a node holds.
func (s *Store) Expire(ctx context.Context, p store.ExpireParams) (*store.ExpireResult, error) {
	var out store.ExpireResult
	err := s.commit(ctx, []id.Tenant{p.Tenant}, func(ctx context.Context, t *tx) error {
		out = store.ExpireResult{}
		if !t.has(p.Tenant) {
			return nil
		}
		var old []id.Delivery
		var d id.Delivery
		var expires int64
		var node pgtype.Int8
		err := t.each(ctx, sqlExpired, []any{uuid(p.Tenant), uuid(p.Webhook), millis(p.Now), int64(p.Limit) + mostHeld},
			[]any{(*[16]byte)(&d), &expires, &node}, func() error {
				takes := (!node.Valid || node.Int64 == t.node) && (p.Held == nil || !p.Held(d))
				if takes && len(old) < p.Limit {
					old = append(old, d)
					return nil
				}
				if out.Next.IsZero() {
					out.Next = atMillis(expires)
				}
				out.More = out.More || takes
				return nil
			})
		if err != nil {
			return fmt.Errorf("find expired deliveries: %w", err)
		}
		if out.Next.IsZero() {
			found, err := t.one(ctx, sqlNextEnd, []any{uuid(p.Tenant), uuid(p.Webhook), millis(p.Now)}, &expires)
			if err != nil {
				return err
			}
			if found {
				out.Next = atMillis(expires)
			}
		}
		out.Expired = len(old)
		return t.giveUpAll(ctx, p.Tenant, p.Webhook, old, hook.Expired, p.Now,
			hook.Failure{Kind: hook.FailureExpired, Message: "the delivery was not made in the time that it had"})
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// backlogChunk is how many webhooks are looked at in one query.
const backlogChunk = 5000

// Backlog lists the webhooks that have deliveries which are free, or this node's.
// What a deleted webhook left is the work of its discard.
func (s *Store) Backlog(ctx context.Context) ([]store.BacklogLane, error) {
	var lanes []store.BacklogLane
	var tenant id.Tenant
	var webhook id.Webhook
	for {
		n := 0
		var due pgtype.Int8
		err := s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
			return each(ctx, q, sqlBacklog, []any{s.node.Load(), uuid(tenant), uuid(webhook), int64(backlogChunk)},
				[]any{(*[16]byte)(&tenant), (*[16]byte)(&webhook), &due}, func() error {
					n++
					if due.Valid {
						lanes = append(lanes, store.BacklogLane{Tenant: tenant, Webhook: webhook, Due: fromMillis(due)})
					}
					return nil
				})
		})
		if err != nil {
			return nil, fmt.Errorf("look for a backlog: %w", err)
		}
		if n < backlogChunk {
			return lanes, nil
		}
	}
}
