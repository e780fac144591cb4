package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/plinqx/hypha/internal/id"
	"github.com/plinqx/hypha/internal/store"
)

// Prune goes over what is old in phases, and a call does a piece of one: what has a
// row of its own (keys, sessions, jobs, what a removed tenant left) in chunks, and
// history a span at a time (cut.go). Calls go on where the one before stopped, so
// that a span that may not go yet is looked at once in a pass, not once in a call.
// One node prunes at a time; which one, does not matter.

const (
	// sqlPruneTurn is the turn of a node for one transaction. lock_timeout bounds
	// how long others queue behind a span's lock that is waited for; it is longer
	// than deadlock_timeout, after which an autovacuum in the way gives up.
	sqlPruneTurn = `SELECT pg_try_advisory_xact_lock(7004, 1), set_config('lock_timeout', '1500', true)`

	sqlOldKeys = `DELETE FROM event_keys WHERE (tenant_id, kind, key) IN
		(SELECT tenant_id, kind, key FROM event_keys WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)`
	sqlOldSignIns = `WITH old AS (SELECT hash FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)
		DELETE FROM credentials WHERE hash IN (SELECT hash FROM old) AND kind = 1`
	sqlOldSessions = `DELETE FROM sessions WHERE (tenant_id, id) IN
		(SELECT tenant_id, id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)`
	sqlOldJobs = `DELETE FROM jobs WHERE (tenant_id, id) IN
		(SELECT tenant_id, id FROM jobs WHERE done AND created_at < $1 LIMIT $2)`

	sqlRemovedTenant = `SELECT id FROM tenants WHERE removed ORDER BY id LIMIT 1`
	sqlTenantGone    = `DELETE FROM tenants WHERE id = $1 AND removed`
	sqlNextCounted   = `SELECT tenant_id, webhook_id FROM counters WHERE (tenant_id, webhook_id) > ($1, $2) ORDER BY tenant_id, webhook_id LIMIT 1`
	sqlDropCounters  = `DELETE FROM counters WHERE tenant_id = $1 AND webhook_id = $2 AND level = ANY($3) AND bucket < $4`
)

// prunePhase is what a pass does.
type prunePhase int

const (
	pruneDeliveries prunePhase = iota
	pruneAttempts
	pruneEvents
	pruneCounters
	pruneEnd
)

// prunePass is how far a pass is.
type prunePass struct {
	phase prunePhase
	// after is the last hour of the span that was dealt with last.
	after int64
	// survey is of a span that is too large to be looked at in one call.
	survey *survey
	// counted is the webhook whose counters were looked at last.
	counted [2][16]byte
	// counters is the day up to which counters have been looked at, in an earlier
	// pass.
	counters int64
}

// pruner is one call.
type pruner struct {
	s    *Store
	p    store.PruneParams
	pass *prunePass
	out  store.PruneResult
}

// errNotMyTurn ends a transaction when another node prunes.
var errNotMyTurn = errors.New("another node prunes")

// Prune deletes what is old and finished. A delivery that a running retry-all stands
// for is kept until it had its turn, and so is what a span holds besides if that is
// too much to be written anew.
func (s *Store) Prune(ctx context.Context, params store.PruneParams) (*store.PruneResult, error) {
	s.spans.pruning.Lock()
	defer s.spans.pruning.Unlock()
	params.Limit = max(1, params.Limit)
	p := &pruner{s: s, p: params, pass: &s.spans.pass}
	for _, step := range [...]func(context.Context) error{p.usedUp, p.removedTenant, p.history} {
		switch err := step(ctx); {
		case errors.Is(err, errNotMyTurn):
			return &p.out, nil
		case err != nil:
			return nil, edge(fmt.Errorf("prune: %w", err))
		}
	}
	return &p.out, nil
}

// turn runs f in a transaction of the node that prunes.
func (p *pruner) turn(ctx context.Context, f func(context.Context, *tx) error) error {
	return p.s.write(ctx, nil, func(ctx context.Context, t *tx) error {
		mine := false
		if _, err := t.one(ctx, sqlPruneTurn, nil, &mine, new(string)); err != nil {
			return err
		}
		if !mine {
			return errNotMyTurn
		}
		return f(ctx, t)
	})
}

// usedUp deletes keys and sessions that have ended, jobs that are history, and old
// entries of the audit log.
func (p *pruner) usedUp(ctx context.Context) error {
	return p.turn(ctx, func(ctx context.Context, t *tx) error {
		for _, d := range [...]struct {
			text   string
			before int64
		}{
			{sqlOldKeys, millis(p.p.Now)}, {sqlOldSignIns, millis(p.p.Now)}, {sqlOldSessions, millis(p.p.Now)}, {sqlOldJobs, millis(p.p.Before)},
		} {
			n, err := t.exec(ctx, d.text, d.before, int64(p.p.Limit))
			if err != nil {
				return err
			}
			p.out.More = p.out.More || n == int64(p.p.Limit)
		}
		if p.p.AuditBefore.IsZero() {
			return nil
		}
		n, err := t.exec(ctx, sqlOldAudit, uuid(id.First(p.p.AuditBefore)), int64(p.p.Limit))
		p.out.AuditEntries = int(n)
		p.out.More = p.out.More || n == int64(p.p.Limit)
		return err
	})
}

// removedTenant deletes rows of the first tenant that was removed, and the tenant
// with the last of them. Nobody else writes to a tenant that was removed, but who
// folds what it counted.
func (p *pruner) removedTenant(ctx context.Context) error {
	var deleted store.PruneResult
	err := p.turn(ctx, func(ctx context.Context, t *tx) error {
		deleted = store.PruneResult{}
		var tenant id.Tenant
		found, err := t.one(ctx, sqlRemovedTenant, nil, (*[16]byte)(&tenant))
		if err != nil || !found {
			return err
		}
		deleted.More = true
		if _, err := t.exec(ctx, sqlFoldWait, lockKey(tenant)); err != nil {
			return err
		}
		left := p.p.Limit
		for _, d := range [...]struct {
			table, id string
			count     *int
		}{
			{"attempts", "delivery_id", nil}, {"deliveries", "id", &deleted.Deliveries}, {"queue", "id", &deleted.Deliveries}, {"events", "id", &deleted.Events},
			{"event_keys", "kind, key", nil}, {"count_log", "node, n", nil}, {"counters", "webhook_id, level, bucket", nil},
			{"gauges", "webhook_id", nil}, {"webhook_revisions", "webhook_id, revision", nil}, {"audit", "id", &deleted.AuditEntries},
		} {
			n, err := t.deleteOf(ctx, tenant, d.table, d.id, left)
			if err != nil {
				return fmt.Errorf("delete %s of a removed tenant: %w", d.table, err)
			}
			if d.count != nil {
				*d.count += n
			}
			if left -= n; left <= 0 {
				return nil
			}
		}
		_, err = t.exec(ctx, sqlTenantGone, uuid(tenant))
		return err
	})
	p.out.Deliveries += deleted.Deliveries
	p.out.Events += deleted.Events
	p.out.AuditEntries += deleted.AuditEntries
	p.out.More = p.out.More || deleted.More
	return err
}

// deleteOf deletes up to limit rows of a tenant. key are the columns of the primary
// key after the tenant.
func (t *tx) deleteOf(ctx context.Context, tenant id.Tenant, table, key string, limit int) (int, error) {
	n, err := t.exec(ctx, fmt.Sprintf("DELETE FROM %[1]s WHERE tenant_id = $1 AND (%[2]s) IN (SELECT %[2]s FROM %[1]s WHERE tenant_id = $1 ORDER BY tenant_id, %[2]s LIMIT $2)", table, key),
		uuid(tenant), int64(limit))
	return int(n), err
}

// history goes on with the pass, until something took its time.
func (p *pruner) history(ctx context.Context) error {
	for p.pass.phase < pruneEnd {
		ended, worked, err := p.piece(ctx)
		if err != nil {
			return err
		}
		if ended {
			*p.pass = prunePass{phase: p.pass.phase + 1, counters: p.pass.counters}
		}
		if worked {
			p.out.More = true
			return nil
		}
	}
	*p.pass = prunePass{counters: p.pass.counters}
	return nil
}

// piece does a piece of the phase's work. It reports whether it was the last, and
// whether it took its time.
func (p *pruner) piece(ctx context.Context) (ended, worked bool, err error) {
	switch p.pass.phase {
	case pruneDeliveries:
		if drained, err := p.drain(ctx); drained || err != nil {
			return false, true, err
		}
		return p.nextSpan(ctx, "deliveries", p.cutDeliveries)
	case pruneAttempts:
		return p.nextSpan(ctx, "attempts", p.cutAttempts)
	case pruneEvents:
		return p.nextSpan(ctx, "events", p.cutEvents)
	default:
		return p.dropCounters(ctx)
	}
}

// countersChunk is how many webhooks' counters a transaction looks at.
const countersChunk = 100

// dropCounters drops the minutes and hours of days that are over and old; the days
// stay. That is done once a day.
func (p *pruner) dropCounters(ctx context.Context) (ended, worked bool, err error) {
	before := store.LevelDay.Start(max(0, millis(p.p.Before)))
	if before <= p.pass.counters {
		return true, false, nil
	}
	err = p.turn(ctx, func(ctx context.Context, t *tx) error {
		ended = false
		at := p.pass.counted
		for range countersChunk {
			found, err := t.one(ctx, sqlNextCounted, []any{uuid(at[0]), uuid(at[1])}, &at[0], &at[1])
			if err != nil {
				return err
			}
			if !found {
				ended = true
				break
			}
			if _, err := t.exec(ctx, sqlDropCounters, uuid(at[0]), uuid(at[1]), []int16{int16(store.LevelHour), int16(store.LevelMinute)}, before); err != nil {
				return err
			}
		}
		p.pass.counted = at
		return nil
	})
	if err == nil && ended {
		p.pass.counters = before
	}
	return ended, !ended, err
}
