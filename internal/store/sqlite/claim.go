package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	// sqlClaim leaves the order to the index, and joins row by row, so that no
	// more is read than is taken.
	sqlClaim = `SELECT d.id, d.due_at, d.event_id, d.given_id, d.event_type, d.attempts, d.try, d.trigger, d.expires_at, e.body
		FROM deliveries d INDEXED BY deliveries_queue LEFT JOIN events e ON e.tenant_id = d.tenant_id AND e.id = d.event_id
		WHERE d.tenant_id = ? AND d.webhook_id = ? AND d.due_at <= ? ORDER BY d.due_at, d.id`
	sqlNextDue = `SELECT id, due_at FROM deliveries INDEXED BY deliveries_queue
		WHERE tenant_id = ? AND webhook_id = ? AND due_at > ? ORDER BY due_at, id`
	sqlExpired = `SELECT id, expires_at FROM deliveries INDEXED BY deliveries_expiry
		WHERE tenant_id = ? AND webhook_id = ? AND due_at IS NOT NULL ORDER BY expires_at, id`
	sqlBacklog = `SELECT w.tenant_id, w.id, (SELECT due_at FROM deliveries INDEXED BY deliveries_queue
			WHERE tenant_id = w.tenant_id AND webhook_id = w.id AND due_at IS NOT NULL ORDER BY due_at LIMIT 1) AS due
		FROM webhooks w WHERE w.tenant_id > ? OR (w.tenant_id = ? AND w.id > ?) ORDER BY w.tenant_id, w.id LIMIT ?`
)

// backlogChunk is how many webhooks are looked at in one snapshot.
const backlogChunk = 5000

// Claim takes due deliveries. It writes nothing of that (see the package
// comment), and reads on the writer's connection, whose pages are in memory.
func (s *Store) Claim(ctx context.Context, p store.ClaimParams) (*store.Claimed, error) {
	out := &store.Claimed{}
	err := s.write(ctx, func(t *tx) error {
		if v, err := t.version(p.Tenant); err != nil || v == tenantGone {
			return err
		}
		held := func(d id.Delivery) bool { return p.Held != nil && p.Held(d) }
		if err := t.settle(p.Tenant, p.Webhook, held); err != nil {
			return err
		}
		var bytes int
		err := t.query(sqlClaim, func(r row) (bool, error) {
			q := queued(r)
			if held(q.ID) {
				return true, nil
			}
			bytes += len(q.Body)
			if len(out.Deliveries) >= p.Limit || bytes > p.MaxBytes && len(out.Deliveries) > 0 {
				out.More = true
				return false, nil
			}
			out.Deliveries = append(out.Deliveries, q)
			return true, nil
		}, p.Tenant[:], p.Webhook[:], millis(p.Now))
		if err != nil {
			return fmt.Errorf("claim deliveries: %w", err)
		}
		return t.query(sqlNextDue, func(r row) (bool, error) {
			if held(readID[id.Delivery](r, 0)) {
				return true, nil
			}
			out.NextDue = r.time(1)
			return false, nil
		}, p.Tenant[:], p.Webhook[:], millis(p.Now))
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// queued reads a row of sqlClaim.
func queued(r row) store.Queued {
	q := store.Queued{
		ID: readID[id.Delivery](r, 0), Due: r.time(1), Event: readID[id.Event](r, 2), EventType: r.text(4),
		Attempts: int(r.int(5)), Try: int(r.int(6)), Trigger: hook.Trigger(r.text(7)), ExpiresAt: r.time(8), Body: r.blob(9),
	}
	q.PublicEventID = publicID(r.text(3), q.Event)
	return q
}

// publicID is the id of an event that the world sees.
func publicID(given string, event id.Event) string {
	if given != "" {
		return given
	}
	return event.String()
}

// Expire gives up what is too old.
func (s *Store) Expire(ctx context.Context, p store.ExpireParams) (*store.ExpireResult, error) {
	out := &store.ExpireResult{}
	err := s.write(ctx, func(t *tx) error {
		if v, err := t.version(p.Tenant); err != nil || v == tenantGone {
			return err
		}
		if err := t.settle(p.Tenant, p.Webhook, nil); err != nil {
			return err
		}
		var old []id.Delivery
		err := t.query(sqlExpired, func(r row) (bool, error) {
			delivery, expires := readID[id.Delivery](r, 0), r.time(1)
			takes := !expires.After(p.Now) && (p.Held == nil || !p.Held(delivery))
			if takes && len(old) < p.Limit {
				old = append(old, delivery)
				return true, nil
			}
			if out.Next.IsZero() {
				out.Next = expires
			}
			out.More = out.More || takes
			return !out.More && !expires.After(p.Now), nil
		}, p.Tenant[:], p.Webhook[:])
		if err != nil {
			return fmt.Errorf("find expired deliveries: %w", err)
		}
		out.Expired = len(old)
		return t.giveUpAll(p.Tenant, p.Webhook, old, hook.Expired, p.Now,
			hook.Failure{Kind: hook.FailureExpired, Message: "the delivery was not made in the time that it had"})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// giveUpAll ends unfinished deliveries of a webhook without an attempt.
func (t *tx) giveUpAll(tenant id.Tenant, webhook id.Webhook, ids []id.Delivery, change hook.Change, now time.Time, f hook.Failure) error {
	for _, delivery := range ids {
		o := store.Outcome{Tenant: tenant, Webhook: webhook, Delivery: delivery, Change: change, At: now, Failure: &f}
		if err := t.outcome(&o); err != nil {
			return err
		}
		if !o.Matched {
			return fmt.Errorf("give up delivery %s: its index names a row that is done", delivery)
		}
	}
	return nil
}

// Backlog lists the webhooks that have unfinished deliveries. What a deleted
// webhook left is the work of its discard.
func (s *Store) Backlog(ctx context.Context) ([]store.BacklogLane, error) {
	if err := s.write(ctx, (*tx).settleAll); err != nil {
		return nil, err
	}
	var lanes []store.BacklogLane
	var tenant id.Tenant
	var webhook id.Webhook
	for {
		n := 0
		err := s.snapshot(ctx, func(c *conn) error {
			from, after := tenant, webhook
			return c.scan(sqlBacklog, func(r row) {
				n++
				tenant, webhook = readID[id.Tenant](r, 0), readID[id.Webhook](r, 1)
				if !r.null(2) {
					lanes = append(lanes, store.BacklogLane{Tenant: tenant, Webhook: webhook, Due: r.time(2)})
				}
			}, from[:], from[:], after[:], backlogChunk)
		})
		if err != nil {
			return nil, err
		}
		if n < backlogChunk {
			return lanes, nil
		}
	}
}
