package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/plinqx/hypha/internal/id"
)

// How a span that is old goes. What may go is everything in it but the few rows that
// must stay, and so the span is not emptied row by row: those few are written to a
// table of their own, which takes its place, and the rest is dropped with its table.
// If they are not few, the span is left for a later time, when they are old too.
//
// Nobody may wait for long meanwhile: neither who reads, nor who finishes a delivery
// of the span, be it ever so old. So what takes time is done without locks, and what
// needs one is quick.
//
//   - deliveries must be counted exactly, webhook by webhook, and may come back and go
//     while that is done. A small span is counted under a lock. A large one is
//     surveyed first; if what must stay is little, that is moved to a new span, and
//     the rest taken out of the history as it is, to be counted at leisure. Should
//     something be in it that must stay after all (it was finished during the
//     survey), it is put back. A retry-all that comes to its end meanwhile goes over
//     the history once more, as it may have missed that.
//   - attempts and events go after that. They stay with what is left of the
//     deliveries of their time, and that can't become more: the deliveries of an event
//     are made with it.

// sizes are in pages of the database.
type sizes struct {
	// small is the size of a span that is dealt with under a lock: it takes about a
	// tenth of a second.
	small int64
	// chunk is how much of a larger one a call looks at.
	chunk int64
}

// or is what is set, or the defaults.
func (s sizes) or() sizes {
	if s == (sizes{}) {
		return sizes{small: 4096, chunk: 2048}
	}
	return s
}

const (
	// chunkRows is how many rows a call counts where an index is gone along.
	chunkRows = 100_000
	// mostKept is how many rows of a large span may be written anew.
	mostKept = 10_000
	// smallKept is the number of rows of a span of which any part is few.
	smallKept = 1000
	// cutTries is how often it is tried to have a span for oneself.
	cutTries = 3
)

// few reports whether it is worth while to write rows anew for the sake of dropping
// the rest.
func few(kept, total int64) bool {
	return kept < total && kept <= mostKept && (kept*10 <= total || total <= smallKept)
}

const (
	// stays is true of a delivery that must not be deleted.
	stays = `(d.completed_at >= $1 OR d.status = 3 AND EXISTS (SELECT 1 FROM jobs j WHERE j.tenant_id = d.tenant_id AND j.webhook_id = d.webhook_id
		AND j.kind = 'retry_failed' AND NOT j.done AND d.era < j.era))`
	historyColumns = `tenant_id, id, webhook_id, event_id, era, expires_at, completed_at, last_at, last_us, last_status, attempts, try, status,
		given_id, event_type, trigger, replay_id, last_kind, last_message, fail_kind, fail_message, detail`
	// sqlNoJobs excludes, with a lock on all tenants, that a job starts: what it
	// stands for must not be deleted from under it.
	sqlNoJobs = `SELECT count(pg_advisory_xact_lock_shared(7001, k)) FROM generate_series(0, $1::int - 1) k`
	// sqlParted are the tables of deliveries that were taken out of the history,
	// with the first page that is not counted yet.
	sqlParted = `SELECT name, value FROM settings WHERE name LIKE 'deliveries\_p%' ORDER BY name LIMIT 1`
	// sqlLive goes from tenant to tenant, since indexes do.
	sqlLive = `SELECT x.tenant_id, x.id, x.event_id FROM tenants t CROSS JOIN LATERAL (
			SELECT tenant_id, id, event_id FROM queue q WHERE q.tenant_id = t.id AND q.id >= $1 AND q.id < $2
			UNION ALL SELECT tenant_id, id, event_id FROM deliveries d WHERE d.tenant_id = t.id AND d.id >= $1 AND d.id < $2) x LIMIT $3`
	sqlOldGivenIDs = `DELETE FROM event_keys WHERE (tenant_id, kind, key) IN
		(SELECT tenant_id, kind, key FROM event_keys WHERE event_id >= $1 AND event_id < $2 AND event_id <> ALL ($3) ORDER BY event_id LIMIT $4)`
)

// survey is how far a span was looked at that is too large for one call.
type survey struct {
	oid         uint32 // of its table
	page        int64  // the next one
	at          [][16]byte
	total, kept int64
	counted     bool
	// tenants and ids are of what must stay.
	tenants, ids []pgtype.UUID
}

// cut deals with a span, or a part of it. done says that the next one is next, worked
// that it took its time.
type cut func(ctx context.Context, p span) (done, worked bool, err error)

// nextSpan goes on with the oldest span of a table that the pass has not come to.
func (p *pruner) nextSpan(ctx context.Context, table string, f cut) (ended, worked bool, err error) {
	have, err := readSpans(ctx, p.s.pool)
	if err != nil {
		return false, false, err
	}
	for _, of := range have[table] {
		if of.to <= p.pass.after {
			continue
		}
		if of.to*msPerHour > millis(p.p.Before) {
			break
		}
		done, worked, err := f(ctx, of)
		if done || err != nil {
			p.pass.after, p.pass.survey = of.to, nil
		}
		return false, worked, err
	}
	return true, false, nil
}

// errLeave ends a transaction that finds that a span can't go yet.
var errLeave = errors.New("the span is left for later")

// alone runs f in a transaction that has a table of the history for itself, but for
// those who read. It reports false if that can't be had, or f leaves it.
func (p *pruner) alone(ctx context.Context, table string, f func(context.Context, *tx) error) (bool, error) {
	var err error
	for range cutTries {
		err = p.turn(ctx, func(ctx context.Context, t *tx) error {
			if _, err := t.exec(ctx, sqlNoJobs, int32(lockKeys)); err != nil {
				return err
			}
			if _, err := t.exec(ctx, "LOCK TABLE ONLY "+table+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
				return err
			}
			return f(ctx, t)
		})
		switch {
		case err == nil:
			p.s.forgetSpans()
			return true, nil
		case errors.Is(err, errLeave), state(err) == stateNoTable:
			return false, nil
		case state(err) != stateLockNotAvailable:
			return false, err
		}
	}
	p.s.logger.DebugContext(ctx, "a part of the history is in use; it is deleted later", "table", table, "err", err)
	return false, nil
}

// replace drops a span's table, and puts another in its place if there is one. All
// that read the history at this moment are waited for, and those who come wait: not
// for long, on either side.
func (t *tx) replace(ctx context.Context, table string, p span, by string) error {
	if err := t.drop(ctx, table, "DROP TABLE "+p.table(table)); err != nil || by == "" {
		return err
	}
	return t.fill(ctx, table, p, by)
}

// drop runs a statement that takes a table out of the history.
func (t *tx) drop(ctx context.Context, from, text string) error {
	if _, err := t.exec(ctx, "SELECT set_config('lock_timeout', '200', true)"); err != nil {
		return err
	}
	if _, err := t.exec(ctx, "LOCK TABLE ONLY "+from+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	_, err := t.exec(ctx, text)
	return err
}

// fill makes a table a span.
func (t *tx) fill(ctx context.Context, table string, p span, name string) error {
	if _, err := t.exec(ctx, "ALTER TABLE "+name+" RENAME TO "+p.table(table)); err != nil {
		return err
	}
	_, err := t.exec(ctx, attachText(table, p.table(table), p))
	return err
}

// spare makes a table for what stays of a span.
func (t *tx) spare(ctx context.Context, table string, p span) (string, error) {
	name := p.table(table) + "_kept"
	_, err := t.exec(ctx, createText(table, name))
	return name, err
}

func (p *pruner) cutDeliveries(ctx context.Context, of span) (done, worked bool, err error) {
	table := of.table("deliveries")
	if p.pass.survey == nil {
		var oid uint32
		var pages int64
		found, err := one(ctx, p.s.pool, "SELECT oid, pg_relation_size(oid) / current_setting('block_size')::bigint FROM pg_class WHERE oid = to_regclass($1)", []any{table}, &oid, &pages)
		if err != nil || !found {
			return true, false, err
		}
		if pages <= p.s.spans.sizes.or().small {
			worked, err = p.cutSmall(ctx, of)
			return true, worked, err
		}
		p.pass.survey = &survey{oid: oid}
	}
	ended, err := p.survey(ctx, table)
	if err != nil || !ended {
		return false, true, err
	}
	if v := p.pass.survey; few(v.kept, v.total) {
		_, err = p.part(ctx, of)
	}
	return true, true, err
}

// cutSmall counts and drops a span of deliveries at once.
func (p *pruner) cutSmall(ctx context.Context, of span) (bool, error) {
	table, before := of.table("deliveries"), millis(p.p.Before)
	deleted := int64(0)
	cut, err := p.alone(ctx, table, func(ctx context.Context, t *tx) error {
		var total, kept int64
		_, err := t.one(ctx, "SELECT count(*), count(*) FILTER (WHERE "+stays+") FROM "+table+" d", []any{before}, &total, &kept)
		if err != nil {
			return err
		}
		if total > 0 && !few(kept, total) {
			return errLeave
		}
		spare := ""
		if kept > 0 {
			if spare, err = t.spare(ctx, "deliveries", of); err != nil {
				return err
			}
		}
		if deleted, err = t.countOut(ctx, table, "", spare, before); err != nil {
			return err
		}
		return t.replace(ctx, "deliveries", of, spare)
	})
	if cut {
		p.out.Deliveries += int(deleted)
	}
	return cut, err
}

// countOut takes what is not to stay off the gauges, and writes what is to stay to
// another table, if it is given; both by the same look at it. where is a condition on
// the rows.
func (t *tx) countOut(ctx context.Context, from, where, to string, before int64, args ...any) (deleted int64, err error) {
	put := ""
	if to != "" {
		put = ", put AS (INSERT INTO " + to + " (" + historyColumns + ") SELECT " + historyColumns + " FROM " + from + " WHERE ctid IN (SELECT at FROM looked WHERE stays))"
	}
	var tenant id.Tenant
	var webhook id.Webhook
	var failed, total int64
	err = t.each(ctx, "WITH looked AS MATERIALIZED (SELECT tenant_id, webhook_id, status, ctid AS at, "+stays+" AS stays FROM "+from+" d "+where+")"+put+
		" SELECT tenant_id, webhook_id, count(*) FILTER (WHERE status = 3), count(*) FROM looked WHERE NOT stays GROUP BY tenant_id, webhook_id",
		append([]any{before}, args...), []any{(*[16]byte)(&tenant), (*[16]byte)(&webhook), &failed, &total}, func() error {
			t.addGauge(tenant, webhook, 0, -failed, -total)
			deleted += total
			return nil
		})
	return deleted, err
}

const pages = `WHERE d.ctid >= format('(%s,0)', $2::bigint)::tid AND d.ctid < format('(%s,0)', $3::bigint)::tid`

// survey looks at the next pages of a span of deliveries.
func (p *pruner) survey(ctx context.Context, table string) (ended bool, err error) {
	v, chunk := p.pass.survey, p.s.spans.sizes.or().chunk
	err = p.s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
		var size, total, kept int64
		args := []any{millis(p.p.Before), v.page, v.page + chunk}
		_, err := one(ctx, q, "SELECT pg_relation_size('"+table+"') / current_setting('block_size')::bigint", nil, &size)
		if err != nil {
			return err
		}
		_, err = one(ctx, q, "SELECT count(*), count(*) FILTER (WHERE "+stays+") FROM "+table+" d "+pages, args, &total, &kept)
		if err != nil {
			return err
		}
		v.total, v.kept, v.page = v.total+total, v.kept+kept, v.page+chunk
		ended = v.page >= size
		if kept == 0 || v.kept > mostKept {
			return nil
		}
		var tenant, delivery pgtype.UUID
		return each(ctx, q, "SELECT tenant_id, id FROM "+table+" d "+pages+" AND "+stays, args, []any{&tenant, &delivery}, func() error {
			v.tenants, v.ids = append(v.tenants, tenant), append(v.ids, delivery)
			return nil
		})
	})
	if state(err) == stateNoTable { // another node was faster
		return true, nil
	}
	return ended, err
}

// part takes a large span of deliveries out of the history, but for what must stay.
func (p *pruner) part(ctx context.Context, of span) (bool, error) {
	table, v := of.table("deliveries"), p.pass.survey
	return p.alone(ctx, table, func(ctx context.Context, t *tx) error {
		var oid uint32
		if _, err := t.one(ctx, "SELECT '"+table+"'::regclass::oid", nil, &oid); err != nil {
			return err
		}
		if oid != v.oid {
			return errLeave // another node has cut it meanwhile
		}
		spare := ""
		if len(v.ids) > 0 {
			var err error
			if spare, err = t.spare(ctx, "deliveries", of); err != nil {
				return err
			}
			_, err = t.exec(ctx, "WITH kept AS (DELETE FROM "+table+" d USING unnest($2::uuid[], $3::uuid[]) AS k(tenant_id, id) WHERE d.tenant_id = k.tenant_id AND d.id = k.id AND "+stays+
				" RETURNING d.*) INSERT INTO "+spare+" ("+historyColumns+") SELECT "+historyColumns+" FROM kept", millis(p.p.Before), v.tenants, v.ids)
			if err != nil {
				return err
			}
		}
		parted := fmt.Sprintf("deliveries_p%d", of.from)
		if _, err := t.exec(ctx, "INSERT INTO settings (name, value) VALUES ($1, 0)", parted); err != nil {
			return err
		}
		if err := t.drop(ctx, "deliveries", "ALTER TABLE deliveries DETACH PARTITION "+table); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "ALTER TABLE "+table+" RENAME TO "+parted); err != nil || spare == "" {
			return err
		}
		return t.fill(ctx, "deliveries", of, spare)
	})
}

// drain counts a part of what was taken out of the history, and puts back what must
// stay. It reports false if there is nothing.
func (p *pruner) drain(ctx context.Context) (found bool, err error) {
	deleted, chunk := int64(0), p.s.spans.sizes.or().chunk
	err = p.turn(ctx, func(ctx context.Context, t *tx) error {
		var table string
		var page, size int64
		if found, err = t.one(ctx, sqlParted, nil, &table, &page); err != nil || !found {
			return err
		}
		if _, err := t.exec(ctx, sqlNoJobs, int32(lockKeys)); err != nil {
			return err
		}
		_, err := t.one(ctx, "SELECT pg_relation_size('"+table+"') / current_setting('block_size')::bigint", nil, &size)
		if err != nil {
			return err
		}
		if deleted, err = t.countOut(ctx, table, pages, "deliveries", millis(p.p.Before), page, page+chunk); err != nil {
			return err
		}
		if page += chunk; page < size {
			_, err := t.exec(ctx, "UPDATE settings SET value = $2 WHERE name = $1", table, page)
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM settings WHERE name = $1", table); err != nil {
			return err
		}
		_, err = t.exec(ctx, "DROP TABLE "+table)
		return err
	})
	if err == nil {
		p.out.Deliveries += int(deleted)
	}
	return found, err
}

// live are the deliveries of a time that there are still.
type live struct {
	tenants, ids, events []pgtype.UUID
}

// errMany says that a span must stay for the sake of too many.
var errMany = errors.New("too many are left")

// live finds what is left of the deliveries between two ids.
func (p *pruner) live(ctx context.Context, first, end [16]byte) (*live, error) {
	var l live
	err := p.s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
		if found, err := one(ctx, q, sqlParted, nil, new(string), new(int64)); found || err != nil {
			return errors.Join(err, errMany) // not all is where it can be seen
		}
		var tenant, delivery, event pgtype.UUID
		return each(ctx, q, sqlLive, []any{uuid(first), uuid(end), int64(mostKept) + 1}, []any{&tenant, &delivery, &event}, func() error {
			l.tenants, l.ids, l.events = append(l.tenants, tenant), append(l.ids, delivery), append(l.events, event)
			return nil
		})
	})
	if err == nil && len(l.ids) > mostKept {
		err = errMany
	}
	return &l, err
}

// count goes on to count the rows of a span along its key.
func (p *pruner) count(ctx context.Context, table, key string) (ended bool, err error) {
	if p.pass.survey == nil {
		p.pass.survey = &survey{}
	}
	v := p.pass.survey
	err = p.s.look(ctx, func(ctx context.Context, q pgx.Tx) error {
		from, args := "", []any(nil)
		if v.at != nil {
			from, args = " WHERE (tenant_id, "+key+") > ($1, $2)", []any{uuid(v.at[0]), uuid(v.at[1])}
		}
		at := make([][16]byte, 2)
		// Rows of one delivery's attempts have the same key, so it is by key that
		// is counted: as good for what it is for.
		more, err := one(ctx, q, fmt.Sprintf("SELECT tenant_id, %[1]s FROM %[2]s%[3]s ORDER BY tenant_id, %[1]s LIMIT 1 OFFSET %[4]d", key, table, from, chunkRows-1), args, &at[0], &at[1])
		if err != nil {
			return err
		}
		if more {
			v.total, v.at = v.total+chunkRows, at
			return nil
		}
		var rest int64
		_, err = one(ctx, q, "SELECT count(*) FROM "+table+from, args, &rest)
		v.total, ended = v.total+rest, true
		return err
	})
	return ended, err
}

// cutAttempts keeps the attempts at what is left.
func (p *pruner) cutAttempts(ctx context.Context, of span) (done, worked bool, err error) {
	table := of.table("attempts")
	ended, err := p.count(ctx, table, "delivery_id")
	if err != nil || !ended {
		return state(err) == stateNoTable, true, unlessNoTable(err)
	}
	l, err := p.live(ctx, of.first(), of.end())
	if errors.Is(err, errMany) {
		return true, false, nil
	}
	if err != nil {
		return true, false, err
	}
	total := p.pass.survey.total
	worked, err = p.alone(ctx, table, func(ctx context.Context, t *tx) error {
		spare, kept := "", int64(0)
		if len(l.ids) > 0 {
			if spare, err = t.spare(ctx, "attempts", of); err != nil {
				return err
			}
			kept, err = t.exec(ctx, "INSERT INTO "+spare+" SELECT a.* FROM unnest($1::uuid[], $2::uuid[]) AS l(tenant_id, id) JOIN "+table+" a ON a.tenant_id = l.tenant_id AND a.delivery_id = l.id",
				l.tenants, l.ids)
			if err != nil {
				return err
			}
		}
		if kept > 0 && !few(kept, total) {
			return errLeave
		}
		if kept == 0 && spare != "" {
			if _, err := t.exec(ctx, "DROP TABLE "+spare); err != nil {
				return err
			}
			spare = ""
		}
		return t.replace(ctx, "attempts", of, spare)
	})
	return true, worked, err
}

func unlessNoTable(err error) error {
	if state(err) == stateNoTable {
		return nil
	}
	return err
}

// slackHours is how far the times of an event and of its deliveries may be apart, in
// hours: they are taken one after the other.
const slackHours = 1

// cutEvents keeps the events of what is left. The ids that publishers gave to the
// others go before.
func (p *pruner) cutEvents(ctx context.Context, of span) (done, worked bool, err error) {
	table := of.table("events")
	v := p.pass.survey
	if v == nil || !v.counted {
		ended, err := p.count(ctx, table, "id")
		if err != nil || !ended {
			return state(err) == stateNoTable, true, unlessNoTable(err)
		}
		v = p.pass.survey
		v.counted = true
	}
	l, err := p.live(ctx, hourBound(max(0, of.from-slackHours)), hourBound(of.to+slackHours))
	if errors.Is(err, errMany) {
		return true, false, nil
	}
	if err != nil {
		return true, false, err
	}
	pinned := l.eventsOf(of)
	if v.total > 0 && !few(int64(len(pinned.ids)), v.total) {
		return true, false, nil
	}
	more := false
	err = p.turn(ctx, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, sqlOldGivenIDs, uuid(of.first()), uuid(of.end()), pinned.ids, int64(p.p.Limit))
		more = n == int64(p.p.Limit)
		return err
	})
	if err != nil || more {
		return false, true, err
	}
	kept := int64(0)
	cut, err := p.alone(ctx, table, func(ctx context.Context, t *tx) error {
		spare := ""
		if len(pinned.ids) > 0 {
			if spare, err = t.spare(ctx, "events", of); err != nil {
				return err
			}
			kept, err = t.exec(ctx, "INSERT INTO "+spare+" SELECT e.* FROM unnest($1::uuid[], $2::uuid[]) AS l(tenant_id, id) JOIN "+table+" e ON e.tenant_id = l.tenant_id AND e.id = l.id",
				pinned.tenants, pinned.ids)
			if err != nil {
				return err
			}
		}
		return t.replace(ctx, "events", of, spare)
	})
	if !cut || err != nil {
		return true, false, err
	}
	p.out.Events += int(v.total - kept)
	return true, true, nil
}

// eventsOf are the events of a span that have deliveries left, each once.
func (l *live) eventsOf(p span) live {
	var out live
	seen := map[[16]byte]struct{}{}
	for i, event := range l.events {
		if hour := hourOf(event.Bytes); hour < p.from || hour >= p.to {
			continue
		}
		if _, ok := seen[event.Bytes]; ok {
			continue
		}
		seen[event.Bytes] = struct{}{}
		out.tenants, out.ids = append(out.tenants, l.tenants[i]), append(out.ids, event)
	}
	return out
}
