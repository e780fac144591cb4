package sqlite

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store/codec"
)

const (
	deliveryColumns = `tenant_id, id, webhook_id, event_id, given_id, event_type, status, attempts, try, trigger, replay_id,
		due_at, expires_at, completed_at, last_at, last_status, last_us, last_kind, last_message, fail_kind, fail_message`

	sqlDelivery = `SELECT ` + deliveryColumns + ` FROM deliveries WHERE tenant_id = ? AND id = ?`
	sqlEvent    = `SELECT tenant_id, id, type, ts, given_id, deliveries, body FROM events WHERE tenant_id = ? AND id = ?`
	sqlGiven    = `SELECT event_id FROM event_keys WHERE tenant_id = ? AND kind = 1 AND key = ?`
	sqlDetail   = `SELECT detail FROM deliveries WHERE tenant_id = ? AND id = ?`
	sqlAttempts = `SELECT data FROM attempts WHERE tenant_id = ? AND delivery_id = ? ORDER BY number`
)

func deliveryOf(r row) hook.Delivery {
	d := hook.Delivery{
		Tenant: readID[id.Tenant](r, 0), ID: readID[id.Delivery](r, 1), Webhook: readID[id.Webhook](r, 2), Event: readID[id.Event](r, 3),
		EventType: r.text(5), Status: hook.Status(r.int(6)), Attempts: int(r.int(7)), Try: int(r.int(8)),
		Trigger: hook.Trigger(r.text(9)), Replay: readID[id.Replay](r, 10),
		Due: r.time(11), ExpiresAt: r.time(12), CompletedAt: r.time(13),
		Failure: readFailure(r, 19),
	}
	d.CreatedAt = d.ID.Time()
	d.PublicEventID = publicID(r.text(4), d.Event)
	if !r.null(14) {
		d.Last = &hook.LastAttempt{
			At: r.time(14), StatusCode: int(r.int(15)), Duration: time.Duration(r.int(16)) * time.Microsecond, Failure: readFailure(r, 17),
		}
	}
	return d
}

// readFailure takes a kind and a message; nil for NULL.
func readFailure(r row, i int) *hook.Failure {
	if r.null(i) {
		return nil
	}
	return &hook.Failure{Kind: hook.FailureKind(r.text(i)), Message: r.text(i + 1)}
}

func readDelivery(c *conn, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	var d hook.Delivery
	found, err := c.one(sqlDelivery, func(r row) { d = deliveryOf(r) }, tenant[:], delivery[:])
	if err != nil {
		return nil, fmt.Errorf("read delivery %s: %w", delivery, err)
	}
	if !found {
		return nil, hook.NotFound("Delivery")
	}
	return &d, nil
}

// eventOf reads columns tenant_id, id, type, ts, given_id, deliveries.
func eventOf(r row) hook.Event {
	e := hook.Event{
		Tenant: readID[id.Tenant](r, 0), ID: readID[id.Event](r, 1), Type: r.text(2), Timestamp: r.time(3),
		Deliveries: codec.SplitIDs(r.blob(5)),
	}
	e.PublicID, e.CreatedAt = publicID(r.text(4), e.ID), e.ID.Time()
	return e
}

// findEvent finds an event by its public id: one that a publisher gave, or a
// generated one. An event that was given an id has no other name.
func findEvent(c *conn, tenant id.Tenant, public string) (*hook.Event, error) {
	var event id.Event
	given, err := c.one(sqlGiven, func(r row) { event = readID[id.Event](r, 0) }, tenant[:], public)
	if err != nil {
		return nil, fmt.Errorf("look up event %q: %w", public, err)
	}
	if !given {
		if event, err = id.ParseEvent(public); err != nil {
			return nil, hook.NotFound("Event")
		}
	}
	var e hook.Event
	found, err := c.one(sqlEvent, func(r row) {
		e = eventOf(r)
		e.Body = r.blob(6)
	}, tenant[:], event[:])
	if err != nil {
		return nil, fmt.Errorf("read event %s: %w", event, err)
	}
	if !found || e.PublicID != public {
		return nil, hook.NotFound("Event")
	}
	return &e, nil
}

// Event shows an event with its body.
func (s *Store) Event(ctx context.Context, tenant id.Tenant, public string) (*hook.Event, error) {
	var out *hook.Event
	err := s.read(ctx, tenant, func(c *conn) (err error) {
		out, err = findEvent(c, tenant, public)
		return err
	})
	return out, err
}

// Delivery shows a delivery.
func (s *Store) Delivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	unsettled := s.settled(ctx, tenant)
	var out *hook.Delivery
	err := s.read(ctx, tenant, func(c *conn) (err error) {
		out, err = readDelivery(c, tenant, delivery)
		return err
	})
	return out, orUnsettled(err, unsettled)
}

// Attempts lists a delivery's attempts.
func (s *Store) Attempts(ctx context.Context, tenant id.Tenant, delivery id.Delivery) ([]hook.Attempt, error) {
	unsettled := s.settled(ctx, tenant)
	var out []hook.Attempt
	err := s.read(ctx, tenant, func(c *conn) error {
		take := func(b []byte) error {
			a, err := codec.DecodeAttempt(b)
			out = append(out, a)
			return err
		}
		found := false
		err := c.query(sqlDetail, func(r row) (bool, error) {
			found = true
			if r.null(0) {
				return false, nil
			}
			return false, take(r.blob(0))
		}, tenant[:], delivery[:])
		if err != nil {
			return err
		}
		if !found {
			return hook.NotFound("Delivery")
		}
		return c.query(sqlAttempts, func(r row) (bool, error) { return true, take(r.blob(0)) }, tenant[:], delivery[:])
	})
	if err != nil {
		return nil, orUnsettled(err, unsettled)
	}
	slices.SortStableFunc(out, func(a, b hook.Attempt) int { return a.Number - b.Number })
	return out, nil
}

// Size is what the store takes on disk, without free pages.
func (s *Store) Size(ctx context.Context) (int64, error) {
	var pages, free, size int64
	err := s.snapshot(ctx, func(c *conn) error {
		for text, to := range map[string]*int64{"PRAGMA page_count": &pages, "PRAGMA freelist_count": &free, "PRAGMA page_size": &size} {
			if err := c.scan(text, func(r row) { *to = r.int(0) }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	log, err := os.Stat(s.path + "-wal")
	if err != nil {
		return 0, edge(fmt.Errorf("measure the log: %w", err))
	}
	return (pages-free)*size + log.Size(), nil
}
