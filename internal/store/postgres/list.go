package postgres

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// A list goes down an index in the order of ids. Where the index does not tell
// whether a row is wanted, it looks at each, and how many one question looks at is
// bounded: a page may come short, and say where to go on. Deliveries are in two
// tables; each is walked by itself, and the walks are merged.

const (
	// lookChunk is how many rows of a table one question looks at.
	lookChunk = 8_000
	// countLooks is how many rows of a table a count looks at before it says "or
	// more".
	countLooks = 100_000
	// pageLimit is the most that a page holds.
	pageLimit = 1000
)

// beginList begins a snapshot in which plans go down an index by its order, whatever
// the statistics of a table say that was empty a moment ago; and each time anew, so
// that they leave out the spans in which there is nothing to look for.
const beginList = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
	SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_sort = off; SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL jit = off`

const sqlTenant = `SELECT 1 FROM tenants WHERE id = $1 AND NOT removed`

// look runs f on such a snapshot.
func (s *Store) look(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return edge(pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{BeginQuery: beginList}, func(q pgx.Tx) error { return f(ctx, q) }))
}

// browse runs f on a snapshot, for a tenant that is there.
func (s *Store) browse(ctx context.Context, tenant id.Tenant, f func(context.Context, pgx.Tx) error) error {
	return s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
		found, err := one(ctx, q, sqlTenant, []any{uuid(tenant)}, new(int))
		if err == nil && !found {
			err = hook.NotFound("Tenant")
		}
		if err != nil {
			return err
		}
		return f(ctx, q)
	})
}

// walk is a way over a table's rows in falling order of ids: those of a tenant that
// a condition of an index is true of, between first (included) and end (not).
type walk struct {
	table   string
	columns string // of a page
	indexed string // what an index tells: a condition
	args    []any
	// wanted is what must be looked for in each row: what a column must be.
	wanted     []wanted
	first, end [16]byte
}

type wanted struct {
	column string
	value  any
}

func (w *walk) arg(v any) string {
	w.args = append(w.args, v)
	return fmt.Sprintf("$%d", len(w.args))
}

// newWalk begins at the newest of a time that is older than before (zero: of all).
func newWalk(table, columns string, tenant id.Tenant, since, until time.Time, before [16]byte) *walk {
	w := &walk{table: table, columns: columns, end: [16]byte(bytes.Repeat([]byte{0xff}, 16))}
	if !since.IsZero() {
		w.first = id.First(since)
	}
	if !until.IsZero() {
		w.end = id.First(until)
	}
	if before != ([16]byte{}) && bytes.Compare(before[:], w.end[:]) < 0 {
		w.end = before
	}
	w.indexed = "tenant_id = " + w.arg(uuid(tenant))
	return w
}

// want adds a condition that must be looked for in each row.
func (w *walk) want(column string, value any) { w.wanted = append(w.wanted, wanted{column, value}) }

// rows are all that the index leads to, newest first, as far as one look goes.
func (w *walk) rows(columns string, limit int) (text string, args []any) {
	args = append(slices.Clone(w.args), uuid(w.first), uuid(w.end), int64(limit))
	n := len(w.args)
	return fmt.Sprintf("SELECT %s FROM %s WHERE %s AND id >= $%d AND id < $%d ORDER BY id DESC LIMIT $%d", columns, w.table, w.indexed, n+1, n+2, n+3), args
}

// page asks for columns of the first n that are wanted, of so many that are looked at.
func (w *walk) page(columns string, n, looks int) (text string, args []any) {
	if len(w.wanted) == 0 {
		return w.rows(columns, n)
	}
	text, args = w.rows("*", looks)
	text = fmt.Sprintf("SELECT %s FROM (%s) AS looked WHERE true", columns, text)
	for _, c := range w.wanted {
		args = append(args, c.value)
		text += fmt.Sprintf(" AND %s = $%d", c.column, len(args))
	}
	args = append(args, int64(n))
	return fmt.Sprintf("%s ORDER BY id DESC LIMIT $%d", text, len(args)), args
}

// last is the last of so many rows that are looked at; zero if there are not so many.
func (w *walk) last(ctx context.Context, q querier, looks int) (last [16]byte, err error) {
	text, args := w.rows("id", 1)
	_, err = one(ctx, q, fmt.Sprintf("%s OFFSET %d", text, looks-1), args, &last)
	return last, err
}

// deliveryWalks are the walks that answer a query.
func deliveryWalks(q *store.DeliveryQuery) []*walk {
	if !storable(q.EventType) {
		return nil
	}
	var walks []*walk
	add := func(table, columns string) {
		w := newWalk(table, columns, q.Tenant, q.Since, q.Until, q.Before)
		if !q.Webhook.IsZero() {
			w.indexed += " AND webhook_id = " + w.arg(uuid(q.Webhook))
		}
		switch {
		case q.Status == nil:
		case *q.Status == hook.StatusFailed:
			w.indexed += " AND status = 3" // as the index has it
		default:
			w.want("status", int16(*q.Status))
		}
		if q.EventType != "" {
			w.want("event_type", q.EventType)
		}
		if table == "queue" {
			w.indexed += " AND era >= 0" // as the index of a webhook has it
		}
		walks = append(walks, w)
	}
	if q.Status == nil || !q.Status.Done() {
		add("queue", queuedColumns)
	}
	if q.Status == nil || q.Status.Done() {
		add("deliveries", finishedColumns)
	}
	return walks
}

// next reads of each walk the first n that are wanted, and merges them. With fewer
// than n, from is how far all of them looked: where to go on. It is zero if there is
// nothing else.
func next[T any](ctx context.Context, q pgx.Tx, walks []*walk, n int, read func(*walk) ([]T, error), idOf func(*T) [16]byte) (found []T, from [16]byte, err error) {
	for _, w := range walks {
		rows, err := read(w)
		if err != nil {
			return nil, from, err
		}
		found = append(found, rows...)
		if len(rows) == n || len(w.wanted) == 0 {
			continue
		}
		last, err := w.last(ctx, q, lookChunk)
		if err != nil {
			return nil, from, err
		}
		if bytes.Compare(last[:], from[:]) > 0 {
			from = last
		}
	}
	slices.SortFunc(found, func(a, b T) int {
		x, y := idOf(&a), idOf(&b)
		return bytes.Compare(y[:], x[:])
	})
	// Below that, one of the tables was not looked at.
	below := slices.IndexFunc(found, func(v T) bool {
		x := idOf(&v)
		return bytes.Compare(x[:], from[:]) < 0
	})
	if below >= 0 {
		found = found[:below]
	}
	return found[:min(n, len(found))], from, nil
}

// deliveryPage is the next page of walks.
func deliveryPage(ctx context.Context, q pgx.Tx, walks []*walk, limit int) (*store.DeliveryPage, error) {
	found, from, err := next(ctx, q, walks, limit+1, func(w *walk) ([]hook.Delivery, error) {
		text, args := w.page(w.columns, limit+1, lookChunk)
		return readDeliveries(ctx, q, text, args...)
	}, func(d *hook.Delivery) [16]byte { return d.ID })
	if err != nil {
		return nil, err
	}
	page := &store.DeliveryPage{Deliveries: found, Next: from}
	if len(found) > limit {
		page.Deliveries, page.Next = found[:limit], found[limit-1].ID
	}
	return page, nil
}

// skip passes over the n newest that are wanted, and reports whether that was all.
func skip(ctx context.Context, q pgx.Tx, walks []*walk, n int) (ended bool, err error) {
	for n > 0 && len(walks) > 0 {
		var passed int
		var from [16]byte
		if len(walks[0].wanted) == 0 {
			passed, from, err = leap(ctx, q, walks, n)
		} else {
			passed, from, err = pass(ctx, q, walks, n)
		}
		if err != nil {
			return false, fmt.Errorf("skip deliveries: %w", err)
		}
		if from == ([16]byte{}) {
			return true, nil
		}
		n -= passed
		for _, w := range walks {
			w.end = from
		}
	}
	return false, nil
}

// leap lets the database pass over n rows. Walks that are of one query take the same
// arguments.
func leap(ctx context.Context, q pgx.Tx, walks []*walk, n int) (passed int, from [16]byte, err error) {
	var texts []string
	var args []any
	for _, w := range walks {
		var text string
		text, args = w.rows("id", n)
		texts = append(texts, "("+text+")")
	}
	_, err = one(ctx, q, fmt.Sprintf("SELECT id FROM (%s) AS merged ORDER BY id DESC LIMIT 1 OFFSET %d", strings.Join(texts, " UNION ALL "), n-1), args, &from)
	return n, from, err
}

// pass passes over up to n rows that are looked for, as far as one look goes.
func pass(ctx context.Context, q pgx.Tx, walks []*walk, n int) (passed int, from [16]byte, err error) {
	found, from, err := next(ctx, q, walks, n, func(w *walk) ([][16]byte, error) {
		var out [][16]byte
		var v [16]byte
		text, args := w.page("id", n, lookChunk)
		err := each(ctx, q, text, args, []any{&v}, func() error {
			out = append(out, v)
			return nil
		})
		return out, err
	}, func(v *[16]byte) [16]byte { return *v })
	if err == nil && len(found) == n {
		from = found[n-1]
	}
	return len(found), from, err
}

// Deliveries lists deliveries, newest first.
func (s *Store) Deliveries(ctx context.Context, q store.DeliveryQuery) (*store.DeliveryPage, error) {
	q.Limit = min(max(1, q.Limit), pageLimit)
	page := &store.DeliveryPage{}
	err := s.browse(ctx, q.Tenant, func(ctx context.Context, c pgx.Tx) (err error) {
		if q.EventID != "" {
			page, err = deliveriesOfEvent(ctx, c, q)
			return err
		}
		walks := deliveryWalks(&q)
		ended, err := skip(ctx, c, walks, q.Offset)
		if err != nil || ended || len(walks) == 0 {
			return err
		}
		page, err = deliveryPage(ctx, c, walks, q.Limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	return page, nil
}

// deliveriesOfEvent lists the deliveries of one event: it names them itself.
func deliveriesOfEvent(ctx context.Context, c pgx.Tx, q store.DeliveryQuery) (*store.DeliveryPage, error) {
	all, err := eventDeliveries(ctx, c, &q)
	if err != nil {
		return nil, err
	}
	page := &store.DeliveryPage{}
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
func eventDeliveries(ctx context.Context, c pgx.Tx, q *store.DeliveryQuery) ([]hook.Delivery, error) {
	e, err := findEvent(ctx, c, q.Tenant, q.EventID)
	if err != nil && hook.CodeOf(err) == hook.CodeNotFound {
		return nil, nil
	}
	if err != nil || len(e.Deliveries) == 0 {
		return nil, err
	}
	first, last := bounds(e.Deliveries)
	all, err := readDeliveries(ctx, c, sqlDeliveries, uuid(q.Tenant), uuids(e.Deliveries), uuid(first), uuid(last))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b hook.Delivery) int { return b.ID.Compare(a.ID) })
	return slices.DeleteFunc(all, func(d hook.Delivery) bool {
		return !q.Webhook.IsZero() && d.Webhook != q.Webhook || q.Status != nil && d.Status != *q.Status ||
			q.EventType != "" && d.EventType != q.EventType ||
			!q.Since.IsZero() && d.CreatedAt.Before(q.Since) || !q.Until.IsZero() && !d.CreatedAt.Before(q.Until)
	}), nil
}

// CountDeliveries counts what q would list.
func (s *Store) CountDeliveries(ctx context.Context, q store.DeliveryQuery, most int64) (n int64, more bool, err error) {
	q.Before, q.Offset = id.Delivery{}, 0
	bare := q.EventType == "" && q.Since.IsZero() && q.Until.IsZero()
	err = s.browse(ctx, q.Tenant, func(ctx context.Context, c pgx.Tx) error {
		n, more = 0, false
		if q.EventID != "" {
			all, err := eventDeliveries(ctx, c, &q)
			n = min(int64(len(all)), most)
			more = int64(len(all)) > most
			return err
		}
		if bare && (q.Status == nil || *q.Status == hook.StatusFailed) {
			g, err := readGauge(ctx, c, q.Tenant, q.Webhook)
			if n = g.total; q.Status != nil {
				n = g.failed
			}
			return err
		}
		for _, w := range deliveryWalks(&q) {
			found, cut, err := w.count(ctx, c, most+1-n)
			if err != nil {
				return err
			}
			if n += found; n > most {
				n, more = most, true
				return nil
			}
			more = more || cut
		}
		return nil
	})
	if err != nil {
		return 0, false, fmt.Errorf("count deliveries: %w", err)
	}
	return n, more, nil
}

// count counts what is wanted, up to a number; cut says that it was not looked at
// all that there is.
func (w *walk) count(ctx context.Context, q querier, most int64) (n int64, cut bool, err error) {
	text, args := w.page("id", int(most), countLooks)
	_, err = one(ctx, q, "SELECT count(*) FROM ("+text+") AS found", args, &n)
	if err != nil || n == most || len(w.wanted) == 0 {
		return n, false, err
	}
	last, err := w.last(ctx, q, countLooks)
	return n, last != [16]byte{}, err
}

// Events lists events, newest first.
func (s *Store) Events(ctx context.Context, q store.EventQuery) (*store.EventPage, error) {
	q.Limit = min(max(1, q.Limit), pageLimit)
	page := &store.EventPage{}
	err := s.browse(ctx, q.Tenant, func(ctx context.Context, c pgx.Tx) error {
		if !storable(q.Type) {
			return nil
		}
		w := newWalk("events", eventColumns, q.Tenant, q.Since, q.Until, q.Before)
		if q.Type != "" {
			w.want("type", q.Type)
		}
		found, from, err := next(ctx, c, []*walk{w}, q.Limit+1, func(w *walk) ([]hook.Event, error) {
			var out []hook.Event
			var e eventRow
			text, args := w.page(w.columns, q.Limit+1, lookChunk)
			err := each(ctx, c, text, args, e.columns(), func() error {
				out = append(out, e.event())
				e.deliveries = nil
				return nil
			})
			return out, err
		}, func(e *hook.Event) [16]byte { return e.ID })
		if err != nil {
			return err
		}
		page = &store.EventPage{Events: found, Next: from}
		if len(found) > q.Limit {
			page.Events, page.Next = found[:q.Limit], found[q.Limit-1].ID
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return page, nil
}
