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
	"github.com/plinqx/hypha/internal/store/codec"
)

// An outcome matches a delivery that is unfinished, has the expected number of
// attempts, and is this node's or nobody's: what another node has taken over is its
// own to record.

const (
	// matches asks for the node in a way that no index answers: the table is small
	// at most times, and the rows of a node would be looked through for each
	// outcome.
	matches = ` WHERE q.tenant_id = o.tenant_id AND q.id = o.id AND q.webhook_id = o.webhook_id
		AND (o.before < 0 OR q.attempts = o.before) AND coalesce(q.node, $1) = $1`
	// queueColumns are those that a row keeps when it moves from the queue to
	// history.
	queueColumns = `q.tenant_id, q.id, q.webhook_id, q.event_id, q.era, q.expires_at, q.attempts, q.try, q.status,
		q.given_id, q.event_type, q.trigger, q.replay_id, q.last_at, q.last_status, q.last_us, q.last_kind, q.last_message, q.detail`
	sqlDone = `DELETE FROM queue q USING unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::int[]) AS o(tenant_id, id, webhook_id, before)` +
		matches + ` RETURNING ` + queueColumns
	// sqlPostponed leaves the delivery free: whoever comes first when it is due
	// sends it. The schedule makes the attempts after this one, so the trigger
	// goes back to auto.
	sqlPostponed = `UPDATE queue q SET node = NULL, status = 1, trigger = 'auto', attempts = o.before + 1, try = o.try, due_at = o.due_at,
		last_at = o.last_at, last_status = o.last_status, last_us = o.last_us, last_kind = o.last_kind, last_message = o.last_message
		FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::int[], $6::int[], $7::bigint[], $8::bigint[], $9::int[], $10::bigint[], $11::text[], $12::text[])
			AS o(tenant_id, id, webhook_id, before, try, due_at, last_at, last_status, last_us, last_kind, last_message)` +
		matches + ` RETURNING q.tenant_id, q.id`
	sqlInsertDone = `INSERT INTO deliveries (tenant_id, id, webhook_id, event_id, era, expires_at, completed_at, last_at, last_us, last_status,
			attempts, try, status, given_id, event_type, trigger, replay_id, last_kind, last_message, fail_kind, fail_message, detail)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::int[],
			$11::int[], $12::int[], $13::smallint[], $14::text[], $15::text[], $16::text[], $17::uuid[], $18::text[], $19::text[], $20::text[], $21::text[], $22::bytea[])`
	sqlInsertAttempts = `INSERT INTO attempts (tenant_id, delivery_id, number, data) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::bytea[])
		ON CONFLICT (tenant_id, delivery_id, number) DO UPDATE SET data = excluded.data`
	// sqlKnown finds the deliveries of attempts that ended after their delivery
	// had been given up, or had gone on without them.
	sqlKnown = `SELECT o.i - 1, d.detail IS NOT NULL FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY AS o(tenant_id, id, webhook_id, i)
			JOIN deliveries d ON d.tenant_id = o.tenant_id AND d.id = o.id WHERE d.webhook_id = o.webhook_id
		UNION ALL SELECT o.i - 1, q.detail IS NOT NULL FROM unnest($2::uuid[], $3::uuid[], $4::uuid[]) WITH ORDINALITY AS o(tenant_id, id, webhook_id, i)
			JOIN queue q ON q.tenant_id = o.tenant_id AND q.id = o.id WHERE q.webhook_id = o.webhook_id AND coalesce(q.node, $1) = $1`
	sqlInsertLate = `INSERT INTO attempts (tenant_id, delivery_id, number, data) SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::bytea[])
		ON CONFLICT (tenant_id, delivery_id, number) DO NOTHING RETURNING tenant_id, delivery_id, number`
)

// queueRow is what a row keeps when it moves from the queue to history.
type queueRow struct {
	tenant               id.Tenant
	id                   id.Delivery
	webhook              id.Webhook
	event                id.Event
	era, expires         int64
	attempts, try        int32
	status               int16
	given                pgtype.Text
	eventType, trigger   string
	replay               pgtype.UUID
	lastAt, lastTook     pgtype.Int8
	lastStatus           pgtype.Int4
	lastKind, lastText   pgtype.Text
	detail               []byte
	completed            int64
	failKind, failReason pgtype.Text
}

// columns are where queueColumns go.
func (q *queueRow) columns() []any {
	return []any{
		(*[16]byte)(&q.tenant), (*[16]byte)(&q.id), (*[16]byte)(&q.webhook), (*[16]byte)(&q.event), &q.era, &q.expires, &q.attempts, &q.try, &q.status,
		&q.given, &q.eventType, &q.trigger, &q.replay, &q.lastAt, &q.lastStatus, &q.lastTook, &q.lastKind, &q.lastText, &q.detail,
	}
}

// doneRows are rows on their way to history.
type doneRows struct {
	tenants, ids, webhooks, events   []pgtype.UUID
	era, expires, completed          []int64
	lastAt, lastTook                 []pgtype.Int8
	lastStatus                       []pgtype.Int4
	attempts, try                    []int32
	status                           []int16
	given                            []pgtype.Text
	types, triggers                  []string
	replays                          []pgtype.UUID
	lastKind, lastText, fail, reason []pgtype.Text
	detail                           [][]byte
}

func (d *doneRows) add(q *queueRow) {
	d.tenants, d.ids, d.webhooks, d.events = append(d.tenants, uuid(q.tenant)), append(d.ids, uuid(q.id)), append(d.webhooks, uuid(q.webhook)), append(d.events, uuid(q.event))
	d.era, d.expires, d.completed = append(d.era, q.era), append(d.expires, q.expires), append(d.completed, q.completed)
	d.lastAt, d.lastTook, d.lastStatus = append(d.lastAt, q.lastAt), append(d.lastTook, q.lastTook), append(d.lastStatus, q.lastStatus)
	d.attempts, d.try, d.status = append(d.attempts, q.attempts), append(d.try, q.try), append(d.status, q.status)
	d.given, d.types, d.triggers, d.replays = append(d.given, q.given), append(d.types, q.eventType), append(d.triggers, q.trigger), append(d.replays, q.replay)
	d.lastKind, d.lastText = append(d.lastKind, q.lastKind), append(d.lastText, q.lastText)
	d.fail, d.reason, d.detail = append(d.fail, q.failKind), append(d.reason, q.failReason), append(d.detail, q.detail)
}

// queue puts the insert into a batch.
func (d *doneRows) queue(b *pgx.Batch) {
	if len(d.ids) > 0 {
		b.Queue(sqlInsertDone, d.tenants, d.ids, d.webhooks, d.events, d.era, d.expires, d.completed, d.lastAt, d.lastTook, d.lastStatus,
			d.attempts, d.try, d.status, d.given, d.types, d.triggers, d.replays, d.lastKind, d.lastText, d.fail, d.reason, d.detail)
	}
}

// attemptRows are attempts to be written.
type attemptRows struct {
	tenants, deliveries []pgtype.UUID
	numbers             []int32
	data                [][]byte
}

func (a *attemptRows) add(o *store.Outcome, data []byte) {
	a.tenants, a.deliveries = append(a.tenants, uuid(o.Tenant)), append(a.deliveries, uuid(o.Delivery))
	a.numbers, a.data = append(a.numbers, int32(o.Attempt.Number)), append(a.data, data)
}

// outcomeKey names what an outcome is of.
type outcomeKey struct {
	tenant   id.Tenant
	delivery id.Delivery
}

// recorder records the outcomes of a batch.
type recorder struct {
	t    *tx
	all  []*store.Outcome
	byID map[outcomeKey][]*store.Outcome
	done []queueRow
}

// record queues the statements that find and change what the outcomes are of.
func (r *recorder) record(b *pgx.Batch, all []*store.Outcome) {
	r.all, r.byID = all, make(map[outcomeKey][]*store.Outcome, len(all))
	for _, o := range all {
		o.Matched = false
		key := outcomeKey{o.Tenant, o.Delivery}
		r.byID[key] = append(r.byID[key], o)
	}
	r.t.first = append(r.t.first, r.find(b, all)...)
}

// again looks for the outcomes that did not match, after the deliveries of this
// batch have been written.
func (r *recorder) again(ctx context.Context) error {
	found := map[outcomeKey]bool{}
	for i := range r.done {
		found[outcomeKey{r.done[i].tenant, r.done[i].id}] = true
	}
	left := slices.DeleteFunc(slices.Clone(r.all), func(o *store.Outcome) bool { return o.Matched || found[outcomeKey{o.Tenant, o.Delivery}] })
	written := r.t.last
	r.t.last = pgx.Batch{}
	sent := written.Len()
	read := r.find(&written, left)
	results := r.t.conn.SendBatch(ctx, &written)
	err := passOver(results, sent)
	for i := 0; err == nil && i < len(read); i++ {
		err = read[i](results)
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return err
}

// passOver passes over the answers of n statements.
func passOver(r pgx.BatchResults, n int) error {
	for range n {
		if _, err := r.Exec(); err != nil {
			return err
		}
	}
	return nil
}

// find queues the statements, and answers what reads their answers.
func (r *recorder) find(b *pgx.Batch, all []*store.Outcome) (read []func(pgx.BatchResults) error) {
	var done struct {
		tenants, ids, webhooks []pgtype.UUID
		before                 []int32
	}
	later := done
	var try []int32
	var due []int64
	var lastAt, lastTook []pgtype.Int8
	var lastStatus []pgtype.Int4
	var lastKind, lastText []pgtype.Text
	for _, o := range all {
		to := &done
		if o.Change == hook.Postponed {
			to = &later
			q := lastOf(o)
			try, due = append(try, int32(o.Try)), append(due, millis(o.Due))
			lastAt, lastTook, lastStatus = append(lastAt, q.lastAt), append(lastTook, q.lastTook), append(lastStatus, q.lastStatus)
			lastKind, lastText = append(lastKind, q.lastKind), append(lastText, q.lastText)
		}
		to.tenants, to.ids, to.webhooks = append(to.tenants, uuid(o.Tenant)), append(to.ids, uuid(o.Delivery)), append(to.webhooks, uuid(o.Webhook))
		to.before = append(to.before, int32(o.Attempt.Number)-1) // without an attempt, any number will do
	}
	if len(done.ids) > 0 {
		b.Queue(sqlDone, r.t.node, done.tenants, done.ids, done.webhooks, done.before)
		read = append(read, r.readDone)
	}
	if len(later.ids) > 0 {
		b.Queue(sqlPostponed, r.t.node, later.tenants, later.ids, later.webhooks, later.before, try, due, lastAt, lastStatus, lastTook, lastKind, lastText)
		read = append(read, r.readPostponed)
	}
	return read
}

// lastOf is what is kept of an outcome's attempt in the delivery's row.
func lastOf(o *store.Outcome) (q queueRow) {
	a := &o.Attempt
	q.lastAt, q.lastTook = number(millis(a.StartedAt)), number(a.Duration.Microseconds())
	q.lastStatus = pgtype.Int4{Int32: int32(a.StatusCode), Valid: true}
	q.lastKind, q.lastText = failure(a.Failure)
	return q
}

func (r *recorder) readDone(results pgx.BatchResults) error {
	rows, err := results.Query()
	if err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	var q queueRow
	_, err = pgx.ForEachRow(rows, q.columns(), func() error {
		r.done = append(r.done, q)
		q.detail = nil // the next row's goes elsewhere
		return nil
	})
	if err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	return nil
}

func (r *recorder) readPostponed(results pgx.BatchResults) error {
	rows, err := results.Query()
	if err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	var key outcomeKey
	_, err = pgx.ForEachRow(rows, []any{(*[16]byte)(&key.tenant), (*[16]byte)(&key.delivery)}, func() error {
		for _, o := range r.byID[key] {
			if !o.Matched && o.Change == hook.Postponed {
				o.Matched = true
				break
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record outcomes: %w", err)
	}
	return nil
}

// finish puts what the outcomes led to into the last batch of the transaction.
func (r *recorder) finish(ctx context.Context) error {
	var done doneRows
	var attempts attemptRows
	for i := range r.done {
		q := &r.done[i]
		for _, o := range r.byID[outcomeKey{q.tenant, q.id}] {
			if o.Matched || o.Change == hook.Postponed || o.Attempt.Number > 0 && int32(o.Attempt.Number)-1 != q.attempts {
				continue
			}
			tenant, ok := r.t.tenants[q.tenant]
			if !ok {
				break // it is being removed, and this row with it
			}
			if err := q.end(o, tenant.era); err != nil {
				return err
			}
			o.Matched = true
			done.add(q)
			r.t.addGauge(o.Tenant, o.Webhook, -1, failedOne(q.status), 0)
			break
		}
	}
	var late []*store.Outcome
	for _, o := range r.all {
		switch {
		case o.Attempt.Number == 0:
		case !o.Matched:
			late = append(late, o)
		default:
			r.t.addAttempt(o.Tenant, o.Webhook, o.At, o.Attempt.Duration, o.Attempt.Failure == nil)
			if !inRow(o) {
				attempts.add(o, codec.EncodeAttempt(&o.Attempt))
			}
		}
	}
	done.queue(&r.t.last)
	if len(attempts.numbers) > 0 {
		r.t.last.Queue(sqlInsertAttempts, attempts.tenants, attempts.deliveries, attempts.numbers, attempts.data)
	}
	return r.late(ctx, late)
}

func failedOne(status int16) int64 {
	if hook.Status(status) == hook.StatusFailed {
		return 1
	}
	return 0
}

// inRow reports whether an outcome's attempt is kept in the delivery's row.
func inRow(o *store.Outcome) bool { return o.Attempt.Number == 1 && o.Change == hook.Succeeded }

// end makes of a row what it is in history.
func (q *queueRow) end(o *store.Outcome, era int64) error {
	// An outcome applies to an unfinished delivery alone, and from the states
	// that are, a change leads to the same one.
	status, ok := hook.StatusPending.Next(o.Change, true)
	if !ok || o.Change == hook.Asked || !status.Done() {
		return fmt.Errorf("outcome of delivery %s: change %d is not one that ends a delivery", o.Delivery, o.Change)
	}
	q.status, q.era, q.completed = int16(status), era, millis(o.At)
	q.failKind, q.failReason = failure(o.Failure)
	if o.Attempt.Number == 0 {
		return nil
	}
	last := lastOf(o)
	q.attempts, q.try = int32(o.Attempt.Number), int32(o.Try)
	q.lastAt, q.lastTook, q.lastStatus, q.lastKind, q.lastText = last.lastAt, last.lastTook, last.lastStatus, last.lastKind, last.lastText
	if inRow(o) {
		q.detail = codec.EncodeAttempt(&o.Attempt)
	}
	return nil
}

// late keeps attempts that ended after their delivery had been given up or had gone
// on without them. One that is there already changes nothing: its outcome was
// written before, and the answer lost.
func (r *recorder) late(ctx context.Context, late []*store.Outcome) error {
	if len(late) == 0 {
		return nil
	}
	var tenants, ids, webhooks []pgtype.UUID
	for _, o := range late {
		tenants, ids, webhooks = append(tenants, uuid(o.Tenant)), append(ids, uuid(o.Delivery)), append(webhooks, uuid(o.Webhook))
	}
	var attempts attemptRows
	var at int64
	var inDelivery bool
	err := r.t.each(ctx, sqlKnown, []any{r.t.node, tenants, ids, webhooks}, []any{&at, &inDelivery}, func() error {
		if o := late[at]; !inDelivery || o.Attempt.Number != 1 {
			attempts.add(o, codec.EncodeAttempt(&o.Attempt))
		}
		return nil
	})
	if err != nil || len(attempts.numbers) == 0 {
		return err
	}
	var key outcomeKey
	var n int32
	return r.t.each(ctx, sqlInsertLate, []any{attempts.tenants, attempts.deliveries, attempts.numbers, attempts.data},
		[]any{(*[16]byte)(&key.tenant), (*[16]byte)(&key.delivery), &n}, func() error {
			for _, o := range r.byID[key] {
				if !o.Matched && o.Attempt.Number == int(n) {
					r.t.addAttempt(o.Tenant, o.Webhook, o.At, o.Attempt.Duration, o.Attempt.Failure == nil)
					break
				}
			}
			return nil
		})
}
