package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
	"github.com/plinqx/hypha/internal/store/codec"
)

// A delivery is in one of two tables, and moves between them: in the queue while it
// is unfinished, in deliveries when it is done. Both are read in one statement, or
// on one snapshot.

const (
	// shownColumns are what both tables have to show of a delivery.
	shownColumns = `tenant_id, id, webhook_id, event_id, given_id, event_type, status, attempts, try, trigger, replay_id,
		expires_at, last_at, last_status, last_us, last_kind, last_message`
	queuedColumns   = shownColumns + `, due_at, NULL::bigint AS completed_at, NULL::text AS fail_kind, NULL::text AS fail_message`
	finishedColumns = shownColumns + `, NULL::bigint AS due_at, completed_at, fail_kind, fail_message`

	sqlDelivery = `SELECT ` + queuedColumns + ` FROM queue WHERE tenant_id = $1 AND id = $2
		UNION ALL SELECT ` + finishedColumns + ` FROM deliveries WHERE tenant_id = $1 AND id = $2`
	sqlDeliveries = `SELECT ` + queuedColumns + ` FROM queue WHERE tenant_id = $1 AND id = ANY($2) AND id >= $3 AND id <= $4
		UNION ALL SELECT ` + finishedColumns + ` FROM deliveries WHERE tenant_id = $1 AND id = ANY($2) AND id >= $3 AND id <= $4`
	sqlDetail = `SELECT detail FROM queue WHERE tenant_id = $1 AND id = $2
		UNION ALL SELECT detail FROM deliveries WHERE tenant_id = $1 AND id = $2`
	sqlAttempts  = `SELECT data FROM attempts WHERE tenant_id = $1 AND delivery_id = $2`
	eventColumns = `tenant_id, id, type, ts, given_id, deliveries`
	sqlEvent     = `SELECT ` + eventColumns + `, body FROM events WHERE tenant_id = $1 AND id = $2`
	sqlGiven     = `SELECT event_id FROM event_keys WHERE tenant_id = $1 AND kind = 1 AND key = $2`
	// sqlSize leaves out what has no span: it does not get smaller with the history.
	sqlSize = `SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits
		WHERE inhparent IN ('events'::regclass, 'deliveries'::regclass, 'attempts'::regclass)`
)

// shown is a row of shownColumns and what follows them.
type shown struct {
	hook.Delivery
	given              pgtype.Text
	status             int16
	trigger            string
	replay             pgtype.UUID
	expires            int64
	lastAt, lastTook   pgtype.Int8
	lastStatus         pgtype.Int4
	lastKind, lastText pgtype.Text
	due, completed     pgtype.Int8
	failKind, failText pgtype.Text
}

func (d *shown) columns() []any {
	return []any{
		(*[16]byte)(&d.Tenant), (*[16]byte)(&d.ID), (*[16]byte)(&d.Webhook), (*[16]byte)(&d.Event), &d.given, &d.EventType,
		&d.status, &d.Attempts, &d.Try, &d.trigger, &d.replay, &d.expires, &d.lastAt, &d.lastStatus, &d.lastTook, &d.lastKind, &d.lastText,
		&d.due, &d.completed, &d.failKind, &d.failText,
	}
}

// delivery makes of columns what they stand for.
func (d *shown) delivery() hook.Delivery {
	out := d.Delivery
	out.PublicEventID = publicID(d.given.String, d.Event)
	out.Status, out.Trigger, out.Replay = hook.Status(d.status), hook.Trigger(d.trigger), d.replay.Bytes
	out.Due, out.CreatedAt, out.ExpiresAt, out.CompletedAt = fromMillis(d.due), d.ID.Time(), atMillis(d.expires), fromMillis(d.completed)
	out.Failure = failureOf(d.failKind, d.failText)
	if d.lastAt.Valid {
		out.Last = &hook.LastAttempt{
			At: fromMillis(d.lastAt), StatusCode: int(d.lastStatus.Int32), Duration: time.Duration(d.lastTook.Int64) * time.Microsecond,
			Failure: failureOf(d.lastKind, d.lastText),
		}
	}
	return out
}

// readDeliveries reads the deliveries that a query finds.
func readDeliveries(ctx context.Context, q querier, text string, args ...any) ([]hook.Delivery, error) {
	var d shown
	var out []hook.Delivery
	err := each(ctx, q, text, args, d.columns(), func() error {
		out = append(out, d.delivery())
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read deliveries: %w", err)
	}
	return out, nil
}

func readDelivery(ctx context.Context, q querier, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	found, err := readDeliveries(ctx, q, sqlDelivery, uuid(tenant), uuid(delivery))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, hook.NotFound("Delivery")
	}
	return &found[0], nil
}

// Delivery shows a delivery.
func (s *Store) Delivery(ctx context.Context, tenant id.Tenant, delivery id.Delivery) (*hook.Delivery, error) {
	var out *hook.Delivery
	err := s.browse(ctx, tenant, func(ctx context.Context, q pgx.Tx) (err error) {
		out, err = readDelivery(ctx, q, tenant, delivery)
		return err
	})
	return out, err
}

// Attempts lists a delivery's attempts.
func (s *Store) Attempts(ctx context.Context, tenant id.Tenant, delivery id.Delivery) ([]hook.Attempt, error) {
	var out []hook.Attempt
	err := s.browse(ctx, tenant, func(ctx context.Context, q pgx.Tx) error {
		var data []byte
		take := func() error {
			if data == nil {
				return nil
			}
			a, err := codec.DecodeAttempt(data)
			out, data = append(out, a), nil
			return err
		}
		found, err := one(ctx, q, sqlDetail, []any{uuid(tenant), uuid(delivery)}, &data)
		if err != nil {
			return fmt.Errorf("read delivery %s: %w", delivery, err)
		}
		if !found {
			return hook.NotFound("Delivery")
		}
		if err := take(); err != nil {
			return err
		}
		if err := each(ctx, q, sqlAttempts, []any{uuid(tenant), uuid(delivery)}, []any{&data}, take); err != nil {
			return fmt.Errorf("read the attempts of delivery %s: %w", delivery, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(out, func(a, b hook.Attempt) int { return a.Number - b.Number })
	return out, nil
}

// eventRow is a row of eventColumns.
type eventRow struct {
	hook.Event
	ts         int64
	given      pgtype.Text
	deliveries []byte
}

func (e *eventRow) columns() []any {
	return []any{(*[16]byte)(&e.Tenant), (*[16]byte)(&e.ID), &e.Type, &e.ts, &e.given, &e.deliveries}
}

// event makes of columns what they stand for.
func (e *eventRow) event() hook.Event {
	out := e.Event
	out.PublicID, out.Timestamp, out.CreatedAt = publicID(e.given.String, e.ID), atMillis(e.ts), e.ID.Time()
	out.Deliveries = codec.SplitIDs(e.deliveries)
	return out
}

// findEvent finds an event by its public id: one that a publisher gave, or a
// generated one. An event that was given an id has no other name.
func findEvent(ctx context.Context, q querier, tenant id.Tenant, public string) (*hook.Event, error) {
	if !storable(public) {
		return nil, hook.NotFound("Event")
	}
	var event id.Event
	given, err := one(ctx, q, sqlGiven, []any{uuid(tenant), public}, (*[16]byte)(&event))
	if err != nil {
		return nil, fmt.Errorf("look up event %q: %w", public, err)
	}
	if !given {
		if event, err = id.ParseEvent(public); err != nil {
			return nil, hook.NotFound("Event")
		}
	}
	var row eventRow
	var body []byte
	found, err := one(ctx, q, sqlEvent, []any{uuid(tenant), uuid(event)}, append(row.columns(), &body)...)
	if err != nil {
		return nil, fmt.Errorf("read event %s: %w", event, err)
	}
	e := row.event()
	if !found || e.PublicID != public {
		return nil, hook.NotFound("Event")
	}
	e.Body = body
	return &e, nil
}

// storable reports whether the database takes a text at all. What it does not take
// is not there.
func storable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Event shows an event with its body.
func (s *Store) Event(ctx context.Context, tenant id.Tenant, public string) (*hook.Event, error) {
	var out *hook.Event
	err := s.browse(ctx, tenant, func(ctx context.Context, q pgx.Tx) (err error) {
		out, err = findEvent(ctx, q, tenant, public)
		return err
	})
	return out, err
}

// Size is what the history takes on disk. What waits, and what is kept however old,
// is not in it.
func (s *Store) Size(ctx context.Context) (int64, error) {
	var size int64
	_, err := one(ctx, s.pool, sqlSize, nil, &size)
	if err != nil {
		return 0, edge(fmt.Errorf("measure the history: %w", err))
	}
	return size, nil
}

var _ store.History = (*Store)(nil)
