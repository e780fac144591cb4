package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

const (
	sqlClaim = `SELECT id, due_at FROM deliveries INDEXED BY deliveries_queue
		WHERE tenant_id = ? AND webhook_id = ? AND due_at <= ? ORDER BY due_at, id`
	sqlNextDue = `SELECT id, due_at FROM deliveries INDEXED BY deliveries_queue
		WHERE tenant_id = ? AND webhook_id = ? AND due_at > ? ORDER BY due_at, id`
	sqlQueued = `SELECT d.event_id, d.given_id, d.event_type, d.attempts, d.try, d.trigger, d.expires_at, e.body
		FROM deliveries d LEFT JOIN events e ON e.tenant_id = d.tenant_id AND e.id = d.event_id
		WHERE d.tenant_id = ? AND d.id = ?`
	sqlExpired = `SELECT id, expires_at FROM deliveries INDEXED BY deliveries_expiry
		WHERE tenant_id = ? AND webhook_id = ? AND due_at IS NOT NULL ORDER BY expires_at, id`
	sqlBacklog = `SELECT w.tenant_id, w.id, (SELECT due_at FROM deliveries INDEXED BY deliveries_queue
			WHERE tenant_id = w.tenant_id AND webhook_id = w.id AND due_at IS NOT NULL ORDER BY due_at LIMIT 1) AS due
		FROM webhooks w WHERE w.tenant_id > ? OR (w.tenant_id = ? AND w.id > ?) ORDER BY w.tenant_id, w.id LIMIT ?`
)

// backlogChunk is how many webhooks are looked at in one snapshot.
const backlogChunk = 5000

// Claim takes due deliveries. It writes nothing (see the package comment), and
// reads on the writer's connection, whose pages are in memory.
func (s *Store) Claim(ctx context.Context, p store.ClaimParams) (*store.Claimed, error) {
	out := &store.Claimed{}
	err := s.write(ctx, func(t *tx) error {
		if v, err := t.version(p.Tenant); err != nil || v == tenantGone {
			return err
		}
		held := func(d id.Delivery) bool { return p.Held != nil && p.Held(d) }
		var bytes int
		err := t.query(sqlClaim, func(r row) (bool, error) {
			delivery := readID[id.Delivery](r, 0)
			if held(delivery) {
				return true, nil
			}
			if len(out.Deliveries) >= p.Limit {
				out.More = true
				return false, nil
			}
			q, err := t.queued(p.Tenant, delivery)
			if err != nil {
				return false, err
			}
			bytes += len(q.Body)
			if bytes > p.MaxBytes && len(out.Deliveries) > 0 {
				out.More = true
				return false, nil
			}
			q.Due = r.time(1)
			out.Deliveries = append(out.Deliveries, *q)
			return true, nil
		}, p.Tenant[:], p.Webhook[:], millis(p.Now))
		if err != nil {
			return err
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

func (t *tx) queued(tenant id.Tenant, delivery id.Delivery) (*store.Queued, error) {
	q := store.Queued{ID: delivery}
	found, err := t.one(sqlQueued, func(r row) {
		q.Event = readID[id.Event](r, 0)
		q.PublicEventID = publicID(r.text(1), q.Event)
		q.EventType, q.Attempts, q.Try = r.text(2), int(r.int(3)), int(r.int(4))
		q.Trigger, q.ExpiresAt, q.Body = hook.Trigger(r.text(5)), r.time(6), r.blob(7)
	}, tenant[:], delivery[:])
	if err == nil && !found {
		err = errors.New("its index names a row that is not there")
	}
	if err != nil {
		return nil, fmt.Errorf("claim delivery %s: %w", delivery, err)
	}
	return &q, nil
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
