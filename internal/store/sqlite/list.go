package sqlite

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A list goes down an index in the order of ids and looks at each row, whether
// it is wanted. How many rows one snapshot looks at is bounded, so that none
// lives longer than 250 ms: a log that a reader holds on to can't begin anew.
const (
	lookChunk = 20_000
	// countLooks is how many rows a count looks at before it says "or more".
	countLooks = 250_000
	// pageLimit is the most that a page holds.
	pageLimit = 1000
)

// idRange are the bounds of ids, the first included and the end not.
type idRange struct {
	first, end [16]byte
}

// rangeOf is where the ids of a time are, below one of them; a zero time, or id, is open.
func rangeOf(since, until time.Time, before [16]byte) idRange {
	r := idRange{end: [16]byte(bytes.Repeat([]byte{0xff}, 16))} // no UUIDv7
	if !since.IsZero() {
		r.first = id.First(since)
	}
	if !until.IsZero() {
		r.end = id.First(until)
	}
	if before != ([16]byte{}) && bytes.Compare(before[:], r.end[:]) < 0 {
		r.end = before
	}
	return r
}

// list is a walk over rows in falling order of ids: id, and whether wanted.
type list struct {
	text string
	args []any // of the text before the range and the limit
	idRange
}

// look goes on with the walk over at most lookChunk rows, and hands over the wanted
// ones until told to stop. It says how many rows it looked at and whether it
// came to the end.
func (l *list) look(c *conn, wanted func([16]byte) (goOn bool)) (looks int, ended bool, err error) {
	first, end := l.first, l.end
	args := append(slices.Clone(l.args), first[:], end[:], lookChunk)
	stopped := false
	err = c.query(l.text, func(r row) (bool, error) {
		looks++
		v := readID[[16]byte](r, 0)
		if r.bool(1) && !wanted(v) {
			stopped = true
			return false, nil
		}
		l.end = v
		return true, nil
	}, args...)
	return looks, err == nil && !stopped && looks < lookChunk, err
}

// deliveryList is the walk that answers a query.
func deliveryList(q *store.DeliveryQuery) list {
	l := list{idRange: rangeOf(q.Since, q.Until, q.Before)}
	failed := q.Status != nil && *q.Status == hook.StatusFailed
	wanted := "1"
	var wantedArgs []any
	want := func(condition string, arg any) {
		wanted += " AND " + condition
		wantedArgs = append(wantedArgs, arg)
	}
	if q.Status != nil && !failed {
		want("status = ?", int64(*q.Status))
	}
	if q.EventType != "" {
		want("event_type = ?", q.EventType)
	}
	l.args = append(wantedArgs, q.Tenant[:])
	var from string
	switch {
	case failed && q.Webhook.IsZero():
		from = " INDEXED BY deliveries_failed_all WHERE tenant_id = ? AND status = 3"
	case failed:
		from = " INDEXED BY deliveries_failed WHERE tenant_id = ? AND webhook_id = ? AND status = 3"
	case q.Webhook.IsZero():
		from = " WHERE tenant_id = ?"
	default:
		from = " INDEXED BY deliveries_webhook WHERE tenant_id = ? AND webhook_id = ?"
	}
	if !q.Webhook.IsZero() {
		webhook := q.Webhook
		l.args = append(l.args, webhook[:])
	}
	l.text = "SELECT id, " + wanted + " FROM deliveries" + from + " AND id >= ? AND id < ? ORDER BY id DESC LIMIT ?"
	return l
}

// Deliveries lists deliveries, newest first. What an offset skips is skipped in
// snapshots of their own.
func (s *Store) Deliveries(ctx context.Context, q store.DeliveryQuery) (*store.DeliveryPage, error) {
	_ = s.settled(ctx, q.Tenant) // if it can't be, a list without what is being sent is better than none
	if q.EventID != "" {
		return s.deliveriesOfEvent(ctx, &q)
	}
	q.Limit = min(max(1, q.Limit), pageLimit)
	l := deliveryList(&q)
	if ended, err := s.skip(ctx, q.Tenant, &l, q.Offset); ended || err != nil {
		return &store.DeliveryPage{}, err
	}
	page := &store.DeliveryPage{}
	err := s.read(ctx, q.Tenant, func(c *conn) error {
		var ids []id.Delivery
		more := false
		_, ended, err := l.look(c, func(v [16]byte) bool {
			more = len(ids) == q.Limit
			if !more {
				ids = append(ids, v)
			}
			return !more
		})
		if err != nil {
			return fmt.Errorf("list deliveries: %w", err)
		}
		for _, delivery := range ids {
			d, err := readDelivery(c, q.Tenant, delivery)
			if err != nil {
				return err
			}
			page.Deliveries = append(page.Deliveries, *d)
		}
		switch {
		case more:
			page.Next = ids[len(ids)-1]
		case !ended:
			page.Next = l.end
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// skip passes over n wanted rows.
func (s *Store) skip(ctx context.Context, tenant id.Tenant, l *list, n int) (ended bool, err error) {
	for n > 0 && !ended {
		err = s.read(ctx, tenant, func(c *conn) error {
			var err error
			_, ended, err = l.look(c, func([16]byte) bool {
				n--
				return n >= 0
			})
			return err
		})
		if err != nil {
			return false, fmt.Errorf("skip deliveries: %w", err)
		}
	}
	return ended, nil
}

// deliveriesOfEvent lists the deliveries of one event: it names them itself.
func (s *Store) deliveriesOfEvent(ctx context.Context, q *store.DeliveryQuery) (*store.DeliveryPage, error) {
	var all []hook.Delivery
	err := s.read(ctx, q.Tenant, func(c *conn) (err error) {
		all, err = eventDeliveries(c, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	page := &store.DeliveryPage{}
	q.Limit = min(max(1, q.Limit), pageLimit)
	for i := range all {
		d := &all[i]
		if !q.Before.IsZero() && d.ID.Compare(q.Before) >= 0 {
			continue
		}
		if q.Offset > 0 {
			q.Offset--
			continue
		}
		if len(page.Deliveries) == q.Limit {
			page.Next = page.Deliveries[q.Limit-1].ID
			break
		}
		page.Deliveries = append(page.Deliveries, *d)
	}
	return page, nil
}

// eventDeliveries are the deliveries of q.EventID that q wants, newest first.
func eventDeliveries(c *conn, q *store.DeliveryQuery) ([]hook.Delivery, error) {
	e, err := findEvent(c, q.Tenant, q.EventID)
	if hook.CodeOf(err) == hook.CodeNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(e.Deliveries, func(a, b id.Delivery) int { return b.Compare(a) })
	var out []hook.Delivery
	for _, delivery := range e.Deliveries {
		d, err := readDelivery(c, q.Tenant, delivery)
		if hook.CodeOf(err) == hook.CodeNotFound && err != nil {
			continue // it is older than the history goes
		}
		if err != nil {
			return nil, err
		}
		if (q.Webhook.IsZero() || d.Webhook == q.Webhook) &&
			(q.Status == nil || d.Status == *q.Status) &&
			(q.EventType == "" || d.EventType == q.EventType) &&
			(q.Since.IsZero() || !d.CreatedAt.Before(q.Since)) &&
			(q.Until.IsZero() || d.CreatedAt.Before(q.Until)) {
			out = append(out, *d)
		}
	}
	return out, nil
}

// CountDeliveries counts what q would list.
func (s *Store) CountDeliveries(ctx context.Context, q store.DeliveryQuery, most int64) (int64, bool, error) {
	q.Before, q.Offset = id.Delivery{}, 0
	var n int64
	if q.EventID != "" {
		_ = s.settled(ctx, q.Tenant) // as for the list
		err := s.read(ctx, q.Tenant, func(c *conn) error {
			all, err := eventDeliveries(c, &q)
			n = int64(len(all))
			return err
		})
		return min(n, most), n > most, err
	}
	bare := q.EventType == "" && q.Since.IsZero() && q.Until.IsZero()
	if bare && (q.Status == nil || *q.Status == hook.StatusFailed) {
		s.foldedUp(ctx)
		err := s.read(ctx, q.Tenant, func(c *conn) error {
			g, err := readGauge(c, gaugeKey{q.Tenant, q.Webhook})
			if n = g.total; q.Status != nil {
				n = g.failed
			}
			return err
		})
		return n, false, err
	}
	_ = s.settled(ctx, q.Tenant) // as for the list
	l := deliveryList(&q)
	looks := 0
	for ended := false; !ended; {
		if looks >= countLooks {
			return n, true, nil
		}
		err := s.read(ctx, q.Tenant, func(c *conn) error {
			var k int
			var err error
			k, ended, err = l.look(c, func([16]byte) bool {
				n++
				return n <= most
			})
			looks += k
			return err
		})
		if err != nil {
			return 0, false, fmt.Errorf("count deliveries: %w", err)
		}
		if n > most {
			return most, true, nil
		}
	}
	return n, false, nil
}

// eventList is the walk that answers a query.
func eventList(q *store.EventQuery) list {
	l := list{idRange: rangeOf(q.Since, q.Until, q.Before)}
	wanted := "1"
	if q.Type != "" {
		wanted = "type = ?"
		l.args = append(l.args, q.Type)
	}
	l.args = append(l.args, q.Tenant[:])
	l.text = "SELECT id, " + wanted + " FROM events INDEXED BY events_id WHERE tenant_id = ? AND id >= ? AND id < ? ORDER BY id DESC LIMIT ?"
	return l
}

// Events lists events, newest first.
func (s *Store) Events(ctx context.Context, q store.EventQuery) (*store.EventPage, error) {
	const columns = "tenant_id, id, type, ts, given_id, deliveries"
	q.Limit = min(max(1, q.Limit), pageLimit)
	l := eventList(&q)
	page := &store.EventPage{}
	err := s.read(ctx, q.Tenant, func(c *conn) error {
		var ids []id.Event
		more := false
		_, ended, err := l.look(c, func(v [16]byte) bool {
			more = len(ids) == q.Limit
			if !more {
				ids = append(ids, v)
			}
			return !more
		})
		if err != nil {
			return fmt.Errorf("list events: %w", err)
		}
		for _, event := range ids {
			err := c.scan("SELECT "+columns+" FROM events WHERE tenant_id = ? AND id = ?",
				func(r row) { page.Events = append(page.Events, eventOf(r)) }, q.Tenant[:], event[:])
			if err != nil {
				return fmt.Errorf("list events: %w", err)
			}
		}
		switch {
		case more:
			page.Next = ids[len(ids)-1]
		case !ended:
			page.Next = l.end
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}
